#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace chatglm {

/// Threads that share out numbered tasks. The calling thread works too. Workers spin for some tens of microseconds
/// after a job, because the next one of a forward pass follows at once, and then sleep.
class ThreadPool {
 public:
  /// `threads` counts the calling one.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Runs task(i) for each i below `tasks`, in any order, and returns when all are done. Once `abort` is true, tasks
  /// that have not begun are left out; the caller looks at `abort` again before it trusts the result. The first
  /// exception of a task is thrown here, once no task runs any more.
  template <class Task>
  void run(int64_t tasks, const std::atomic<bool>& abort, const Task& task) {
    if (tasks <= 0) return;
    if (workers_.empty() || tasks == 1) {
      for (int64_t i = 0; i < tasks && !abort.load(std::memory_order_relaxed); ++i) task(i);
      return;
    }
    start([](const void* t, int64_t i) { (*static_cast<const Task*>(t))(i); }, &task, tasks, abort);
  }

 private:
  using Call = void (*)(const void* task, int64_t index);

  void start(Call call, const void* task, int64_t tasks, const std::atomic<bool>& abort);
  void work();
  void worker();
  void end_workers();

  std::vector<std::thread> workers_;
  // The job; written before generation_ is raised, read after.
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
