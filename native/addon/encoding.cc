#include "addon/encoding.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "addon/arguments.h"

namespace chatglm::addon {

namespace {

// A text on its way through a thread. Once started it belongs to the thread-safe function, whose finalizer, which also
// runs when the environment is torn down, waits for the thread; the JavaScript object has a share in it.
class EncodingJob {
 public:
  explicit EncodingJob(std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {}

  // The rest, up to run(), is JavaScript's thread.
  void reserve(size_t units) { text_.reserve(units + 1); }
  void append(Napi::Env env, const Napi::Value& text) {
    if (started_) throw Error("ERR_INTERNAL", "the encoding has begun");
    size_t units = 0;
    if (napi_get_value_string_utf16(env, text, nullptr, 0, &units) != napi_ok) {
      throw Error("ERR_INVALID_ARGUMENT", "text must be a string");
    }
    const size_t before = text_.size();
    text_.resize(before + units + 1);  // with room for the zero that is written behind the text
    napi_get_value_string_utf16(env, text, text_.data() + before, units + 1, &units);
    text_.resize(before + units);
  }

  static void start(Napi::Env env, std::shared_ptr<EncodingJob> job, Napi::Function on_end) {
    if (std::exchange(job->started_, true)) throw Error("ERR_INTERNAL", "the encoding has begun");
    auto* owner = new std::shared_ptr<EncodingJob>(job);
    const napi_status status =
        napi_create_threadsafe_function(env, on_end, nullptr, Napi::String::New(env, "chatglm:encode"), 0, 1, owner,
                                        finalize, job.get(), deliver, &job->function_);
    if (status != napi_ok) {
      delete owner;
      throw Napi::Error::New(env);
    }
    try {
      job->thread_ = std::thread([&job = *job] { job.run(); });
    } catch (const std::system_error& error) {
      napi_release_threadsafe_function(job->function_, napi_tsfn_release);
      throw Error("ERR_THREAD_UNAVAILABLE", std::string("the system gave no thread: ") + error.what());
    }
  }
  void cancel() { abort_ = true; }

  /// Only once the end was told.
  const std::vector<uint32_t>& ids() const {
    if (!ended_) throw Error("ERR_INTERNAL", "the encoding has not ended");
    return ids_;
  }

 private:
  void run() {
    try {
      ids_ = tokenizer_->encode(text_, &abort_);
    } catch (const Error& error) {
      error_ = error;
    } catch (const std::bad_alloc&) {
      error_ = Error("ERR_OUT_OF_MEMORY", "there is not enough memory to encode the text");
    }
    text_ = {};  // here rather than on JavaScript's thread, which would have to wait for it
    // Once the environment is closing, the function may not be touched again.
    if (napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking) == napi_closing) return;
    napi_release_threadsafe_function(function_, napi_tsfn_release);
  }

  static void deliver(napi_env raw_env, napi_value callback, void* context, void*) {
    if (!raw_env || !callback) return;  // the environment is going down
    auto& job = *static_cast<EncodingJob*>(context);
    job.ended_ = true;
    try {
      const Napi::Env env = raw_env;
      const Napi::HandleScope scope(env);
      Napi::Function(env, callback).Call({job.error_ ? to_js_object(env, *job.error_) : env.Undefined()});
    } catch (const Napi::Error&) {
      // No JavaScript can run any more: a worker is being terminated, or the process is about to end.
    }
  }

  static void finalize(napi_env, void* data, void*) {
    auto* owner = static_cast<std::shared_ptr<EncodingJob>*>(data);
    (*owner)->abort_ = true;
    if ((*owner)->thread_.joinable()) (*owner)->thread_.join();
    delete owner;
  }

  const std::shared_ptr<const Tokenizer> tokenizer_;
  std::u16string text_;
  std::vector<uint32_t> ids_;
  std::optional<Error> error_;
  std::atomic<bool> abort_{false};
  bool started_ = false, ended_ = false;
  napi_threadsafe_function function_ = nullptr;
  std::thread thread_;
};

class EncodingObject : public Napi::ObjectWrap<EncodingObject> {
 public:
  explicit EncodingObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<EncodingObject>(info) {
    guarded(info.Env(), [&] {
      if (!info[0].IsExternal()) throw Error("ERR_INVALID_ARGUMENT", "use tokenizer.createEncoding()");
      job_ = std::make_shared<EncodingJob>(*info[0].As<TokenizerHandle>().Data());
      job_->reserve(static_cast<size_t>(integer_of(info[1], "units", 0, INT32_MAX)));
    });
  }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "Encoding",
        {InstanceMethod<&EncodingObject::append>("append"), InstanceMethod<&EncodingObject::start>("start"),
         InstanceMethod<&EncodingObject::cancel>("cancel"), InstanceAccessor<&EncodingObject::length>("length"),
         InstanceMethod<&EncodingObject::read>("read")});
  }

 private:
  Napi::Value append(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      job_->append(info.Env(), info[0]);
      return info.Env().Undefined();
    });
  }

  Napi::Value start(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      EncodingJob::start(info.Env(), job_, function_of(info[0], "onEnd"));
      return info.Env().Undefined();
    });
  }

  Napi::Value cancel(const Napi::CallbackInfo& info) {
    job_->cancel();
    return info.Env().Undefined();
  }

  Napi::Value length(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), static_cast<double>(job_->ids().size())); });
  }

  Napi::Value read(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const std::vector<uint32_t>& ids = job_->ids();
      if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array) {
        throw Error("ERR_INVALID_ARGUMENT", "target must be a Uint32Array");
      }
      Napi::Uint32Array target = info[0].As<Napi::Uint32Array>();
      const size_t most = std::min(ids.size(), target.ElementLength());
      const auto begin = static_cast<size_t>(integer_of(info[1], "begin", 0, static_cast<int64_t>(most)));
      const auto count = static_cast<size_t>(integer_of(info[2], "count", 0, UINT32_MAX));
      const size_t end = begin + std::min(count, most - begin);
      if (end > begin) std::memcpy(target.Data() + begin, ids.data() + begin, (end - begin) * sizeof(uint32_t));
      return info.Env().Undefined();
    });
  }

  std::shared_ptr<EncodingJob> job_;
};

}  // namespace

Napi::Function define_encoding(Napi::Env env) { return EncodingObject::define(env); }

}  // namespace chatglm::addon
