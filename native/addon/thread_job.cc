#include "addon/thread_job.h"

#include <new>
#include <system_error>
#include <utility>

#include "addon/arguments.h"

namespace chatglm::addon {

void ThreadJob::start(Napi::Env env, std::shared_ptr<ThreadJob> job, Napi::Function on_end, const char* name) {
  if (std::exchange(job->started_, true)) throw Error("ERR_INTERNAL", std::string(name) + " has begun already");
  auto* owner = new std::shared_ptr<ThreadJob>(job);
  const napi_status status = napi_create_threadsafe_function(env, on_end, nullptr, Napi::String::New(env, name), 0, 1,
                                                             owner, finalize, job.get(), deliver, &job->function_);
  if (status != napi_ok) {
    delete owner;
    throw Napi::Error::New(env);
  }
  try {
    job->thread_ = std::thread([&job = *job] { job.run_and_tell(); });
  } catch (const std::system_error& error) {
    napi_release_threadsafe_function(job->function_, napi_tsfn_release);
    throw Error("ERR_THREAD_UNAVAILABLE", std::string("the system gave no thread: ") + error.what());
  }
}

void ThreadJob::run_and_tell() {
  try {
    run();
  } catch (const Error& error) {
    error_ = error;
  } catch (const std::bad_alloc&) {
    error_ = Error("ERR_OUT_OF_MEMORY", "there is not enough memory");
  }
  // Once the environment is closing, the function may not be touched again.
  if (napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking) == napi_closing) return;
  napi_release_threadsafe_function(function_, napi_tsfn_release);
}

void ThreadJob::deliver(napi_env raw_env, napi_value callback, void* context, void*) {
  if (!raw_env || !callback) return;  // the environment is going down
  auto& job = *static_cast<ThreadJob*>(context);
  job.ended_ = true;
  try {
    const Napi::Env env = raw_env;
    const Napi::HandleScope scope(env);
    Napi::Function(env, callback).Call({job.error_ ? to_js_object(env, *job.error_) : env.Undefined()});
  } catch (const Napi::Error&) {
    // No JavaScript can run any more: a worker is being terminated, or the process is about to end.
  }
}

void ThreadJob::finalize(napi_env, void* data, void*) {
  auto* owner = static_cast<std::shared_ptr<ThreadJob>*>(data);
  (*owner)->cancel();
  if ((*owner)->thread_.joinable()) (*owner)->thread_.join();
  delete owner;
}

}  // namespace chatglm::addon
