#include "thread_pool.h"

#include <utility>

namespace chatglm {

namespace {

constexpr int kSpins = 1000;  // about 40 microseconds where `pause` takes 140 cycles

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until the value differs from `old`: spinning first, then asleep.
int32_t wait_for_change(const std::atomic<int32_t>& value, int32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    const int32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

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
  // Every worker takes part in every job, if only to find it done: so none can meet the next job's fields half written.
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
    } catch (...) {  // for the caller of run(): what leaves a thread ends the process
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

}  // namespace chatglm
