#pragma once
#include <napi.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "base/error.h"

namespace chatglm::addon {

/// Work that runs on a thread of its own, once, and tells JavaScript its end. Once started the job belongs to a
/// thread-safe function, whose finalizer, which also runs when the environment is torn down, cancels the job and waits
/// for its thread. The process stays alive until the end was told.
class ThreadJob {
 public:
  virtual ~ThreadJob() = default;

  /// Begins. `on_end` is called with nothing, or with the error that run() threw. Throws ERR_THREAD_UNAVAILABLE.
  static void start(Napi::Env env, std::shared_ptr<ThreadJob> job, Napi::Function on_end, const char* name);
  /// Lets run() return soon, if the job has a way to.
  virtual void cancel() {}

  bool started() const { return started_; }
  /// Whether JavaScript was told.
  bool ended() const { return ended_; }

 protected:
  /// On the job's thread. Throws Error, or std::bad_alloc.
  virtual void run() = 0;

 private:
  void run_and_tell();
  static void deliver(napi_env env, napi_value callback, void* context, void* data);
  static void finalize(napi_env env, void* data, void* hint);

  std::optional<Error> error_;
  bool started_ = false, ended_ = false;
  napi_threadsafe_function function_ = nullptr;
  std::thread thread_;
};

}  // namespace chatglm::addon
