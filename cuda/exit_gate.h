#pragma once
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <shared_mutex>

namespace chatglm::cuda {

/// Lets any number of threads be inside at a time, until it closes. Threads that come and go without a pause would hold
/// up whoever closes a std::shared_mutex for as long as they like, so they look at a flag first: once close() has
/// begun, none comes in any more.
class Gate {
 public:
  /// False, and the thread is not inside, if the gate is closed or closing.
  bool enter() {
    if (closing_) return false;
    mutex_.lock_shared();
    if (!closing_) return true;
    mutex_.unlock_shared();
    return false;
  }
  void leave() { mutex_.unlock_shared(); }
  /// Returns when the threads that are inside have left.
  void close() {
    closing_ = true;
    const std::unique_lock lock(mutex_);
  }

 private:
  std::shared_mutex mutex_;
  std::atomic<bool> closing_{false};
};

/// process.exit() ends the process while models' threads go on computing, and CUDA, which takes itself down then, does
/// not stand being called meanwhile. So every use of CUDA by a model's thread passes through here: when the process
/// ends, first those that are inside come out, and who comes later stays outside until the process is gone.
class ExitGate {
 public:
  /// A thread has one at a time: a second one would wait for ever while the first one keeps the gate from closing.
  class Pass {
   public:
    Pass() {
      while (!gate().enter()) pause();
    }
    ~Pass() { gate().leave(); }
    Pass(const Pass&) = delete;
  };

  /// Call once CUDA is up, so that the gate closes before CUDA goes: what is registered last runs first.
  static void install() {
    static const int registered = std::atexit([] { gate().close(); });
    static_cast<void>(registered);
  }

 private:
  static Gate& gate() {
    static auto* const gate = new Gate;  // never destroyed: threads outlive static objects
    return *gate;
  }
};

}  // namespace chatglm::cuda
