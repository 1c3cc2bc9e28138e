#include "base/thread_pool.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "base/cores.h"

namespace chatglm {

namespace {

constexpr int kSpins = 1000;  // about 40 microseconds where `pause` takes 140 cycles
// A shorter range is not worth the cache line that is fetched for it, and a shorter job is not worth a handover.
constexpr double kLeastRangeNanoseconds = 4000;
constexpr std::chrono::milliseconds kTurn{3};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until the value differs from `old`: first by spinning, then asleep.
int32_t wait_for_change(const std::atomic<int32_t>& value, int32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    const int32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

// The cores, which the pools of this process share: first come, first served.
class Cores {
 public:
  // The one mutable global: cores belong to the process, not to a pool.
  static Cores& of_process() {
    static Cores* const cores = new Cores;  // never destroyed: threads may still compute when the process ends
    return *cores;
  }

  int take(int wanted) {
    std::unique_lock lock(mutex_);
    const int count = std::min(wanted, total_);
    const uint64_t ticket = next_ticket_++;
    waiting_.fetch_add(1, std::memory_order_relaxed);
    changed_.wait(lock, [&] { return ticket == serving_ && free_ >= count; });
    waiting_.fetch_sub(1, std::memory_order_relaxed);
    ++serving_;
    free_ -= count;
    if (waiting()) changed_.notify_all();  // the cores that are left may be enough for the next pool
    return count;
  }

  void give_back(int count) {
    const std::lock_guard lock(mutex_);
    free_ += count;
    if (waiting()) changed_.notify_all();
  }

  bool waiting() const { return waiting_.load(std::memory_order_relaxed) > 0; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  const int total_ = physical_cores();
  int free_ = total_;
  uint64_t next_ticket_ = 0, serving_ = 0;
  std::atomic<int> waiting_{0};
};

}  // namespace

ThreadPool::ThreadPool(int threads) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { worker(); });
  } catch (...) {  // the system has no more threads
    end_workers();
    throw;
  }
}

ThreadPool::~ThreadPool() { end_workers(); }

void ThreadPool::end_workers() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

void ThreadPool::start(Call call, const void* task, int64_t tasks, const std::atomic<bool>& abort) {
  call_ = call;
  task_ = task;
  abort_ = &abort;
  tasks_ = tasks;
  next_.store(0, std::memory_order_relaxed);
  // Every worker takes part in every job, if only to find no task left, so no worker reads the next job's fields while
  // they are written.
  busy_.store(static_cast<int32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  work();
  int32_t busy = busy_.load(std::memory_order_acquire);
  while (busy != 0) busy = wait_for_change(busy_, busy);
  if (failed_.exchange(false)) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::work() {
  for (;;) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= tasks_ || abort_->load(std::memory_order_relaxed) || failed_.load(std::memory_order_relaxed)) return;
    try {
      call_(task_, i);
    } catch (...) {  // run() throws it again; an exception that leaves a thread would end the process
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }
}

void ThreadPool::worker() {
  int32_t seen = 0;
  for (;;) {
    seen = wait_for_change(generation_, seen);
    if (stop_.load(std::memory_order_relaxed)) return;
    work();
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

// Each range is a share of the units that no earlier range has, so ranges become shorter, and a thread that is late or
// slow takes fewer of them.
void ThreadPool::divide(int64_t units, int64_t granularity, const Cost& cost) {
  ends_.clear();
  const double whole = cost.nanoseconds * static_cast<double>(units);
  if (workers_.empty() || (whole > 0 && whole < kLeastRangeNanoseconds)) {
    ends_.push_back(units);
    return;
  }
  int64_t least = granularity;
  if (cost.nanoseconds > 0) {
    const auto worth = static_cast<int64_t>(kLeastRangeNanoseconds / cost.nanoseconds) + 1;
    least = std::max(least, (worth + granularity - 1) / granularity * granularity);
  }
  for (int64_t end = 0; end < units;) {
    const int64_t share = (units - end) / (2 * threads()) / granularity * granularity;
    end = std::min(units, end + std::max(least, share));
    ends_.push_back(end);
  }
}

// Other processes make a measurement too large and hardly ever too small, so the cost falls at once and rises slowly.
void ThreadPool::learn(Cost& cost, double nanoseconds) {
  const bool first = cost.nanoseconds == 0, less = nanoseconds < cost.nanoseconds;
  cost.nanoseconds = first || less ? nanoseconds : cost.nanoseconds + (nanoseconds - cost.nanoseconds) / 16;
}

void ThreadPool::take_turn() {
  cores_ = Cores::of_process().take(threads());
  turn_began_ = std::chrono::steady_clock::now();
}

void ThreadPool::end_turn() { Cores::of_process().give_back(std::exchange(cores_, 0)); }

void ThreadPool::let_others_compute() {
  if (cores_ == 0 || !Cores::of_process().waiting()) return;
  if (std::chrono::steady_clock::now() - turn_began_ < kTurn) return;
  end_turn();
  take_turn();
}

}  // namespace chatglm
