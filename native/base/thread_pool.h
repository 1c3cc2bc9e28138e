#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace chatglm {

/// Threads that share the numbered tasks of a job. The calling thread works too. After a job, workers spin for some
/// tens of microseconds, because the next job of a forward pass follows at once, and then sleep.
class ThreadPool {
 public:
  /// `threads` counts the calling thread. Throws std::system_error, having ended the workers that it started, if the
  /// system gives fewer: see current_error().
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Runs task(i) for each i below `tasks`, in any order, and returns when all tasks are done. Once `abort` is true,
  /// tasks that have not begun are left out; the caller looks at `abort` again before it trusts the result. The first
  /// exception of a task is thrown here, when no task runs any more.
  template <class Task>
  void run(int64_t tasks, const std::atomic<bool>& abort, const Task& task) {
    if (tasks <= 0) return;
    let_others_compute();
    if (workers_.empty() || tasks == 1) {
      for (int64_t i = 0; i < tasks && !abort.load(std::memory_order_relaxed); ++i) task(i);
      return;
    }
    start([](const void* t, int64_t i) { (*static_cast<const Task*>(t))(i); }, &task, tasks, abort);
  }

  /// The time that a unit of a kind of work takes, measured whenever the work is done.
  struct Cost {
    double nanoseconds = 0;  // of one thread; 0: not measured yet
  };

  /// Runs task(begin, end) for ranges that together are [0, units), like run(). The ranges begin at multiples of
  /// `granularity`. The first ranges are long and the last are short, so that threads of unequal speed end together. By
  /// `cost`, each range is long enough to be worth a handover, and the calling thread does a short job alone.
  template <class Task>
  void run_ranges(int64_t units, int64_t granularity, Cost& cost, const std::atomic<bool>& abort, const Task& task) {
    if (units <= 0) return;
    const auto begin = std::chrono::steady_clock::now();
    divide(units, granularity, cost);
    const auto pieces = static_cast<int64_t>(ends_.size());
    run(pieces, abort,
        [&](int64_t i) { task(i == 0 ? 0 : ends_[static_cast<size_t>(i - 1)], ends_[static_cast<size_t>(i)]); });
    if (abort.load(std::memory_order_relaxed)) return;  // tasks that were left out took no time
    const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - begin;
    learn(cost, elapsed.count() * static_cast<double>(pieces > 1 ? threads() : 1) / static_cast<double>(units));
  }

  /// A pool computes while it has a turn. The pools that have one use no more threads together than there are cores, so
  /// that no pool's threads wait for a core; a pool with more threads than cores computes alone. Pools that want to
  /// compute at the same time alternate after some milliseconds, between two jobs.
  class Turn {
   public:
    explicit Turn(ThreadPool& pool) : pool_(pool) { pool_.take_turn(); }
    ~Turn() { pool_.end_turn(); }
    Turn(const Turn&) = delete;

   private:
    ThreadPool& pool_;
  };

 private:
  using Call = void (*)(const void* task, int64_t index);

  void start(Call call, const void* task, int64_t tasks, const std::atomic<bool>& abort);
  void work();
  void worker();
  void end_workers();
  void divide(int64_t units, int64_t granularity, const Cost& cost);
  static void learn(Cost& cost, double nanoseconds);
  void take_turn();
  void end_turn();
  void let_others_compute();

  std::vector<std::thread> workers_;
  // Only the calling thread uses these three.
  std::vector<int64_t> ends_;  // of the ranges
  int cores_ = 0;              // held in a turn; 0 outside of one
  std::chrono::steady_clock::time_point turn_began_;
  // The job: written before generation_ is raised, read by workers after.
  Call call_ = nullptr;
  const void* task_ = nullptr;
  const std::atomic<bool>* abort_ = nullptr;
  int64_t tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int32_t> generation_{0};
  alignas(64) std::atomic<int32_t> busy_{0};
  std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // of the first task that threw; read when all workers are done
};

}  // namespace chatglm
