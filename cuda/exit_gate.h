#pragma once
#include <unistd.h>

#include <cstdlib>
#include <mutex>
#include <shared_mutex>

namespace chatglm::cuda {

/// process.exit() ends the process while models' threads go on computing, and CUDA, which takes itself down then, does
/// not stand being called meanwhile. So every use of CUDA by a model's thread passes through here: when the process
/// ends, first those that are inside come out, and who comes later stays outside until the process is gone.
class ExitGate {
 public:
  class Pass {
   public:
    Pass() : lock_(state().mutex) {
      while (state().closed) pause();
    }

   private:
    std::shared_lock<std::shared_mutex> lock_;
  };

  /// Call once CUDA is up, so that the gate closes before CUDA goes: what is registered last runs first.
  static void install() {
    static const int registered = std::atexit(close);
    static_cast<void>(registered);
  }

 private:
  struct State {
    std::shared_mutex mutex;
    bool closed = false;
  };
  static State& state() {
    static auto* const state = new State;  // never destroyed: threads outlive static objects
    return *state;
  }
  static void close() {
    const std::unique_lock lock(state().mutex);
    state().closed = true;
  }
};

}  // namespace chatglm::cuda
