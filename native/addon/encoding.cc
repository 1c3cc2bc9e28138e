#include "addon/encoding.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/thread_job.h"

namespace chatglm::addon {

namespace {

// A text on its way through a thread.
class EncodingJob final : public ThreadJob {
 public:
  explicit EncodingJob(std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {}

  // What follows, up to run(), is called on JavaScript's thread.
  void reserve(size_t units) { text_.reserve(units + 1); }
  void append(Napi::Env env, const Napi::Value& text) {
    if (started()) throw Error("ERR_INTERNAL", "the encoding has begun");
    size_t units = 0;
    if (napi_get_value_string_utf16(env, text, nullptr, 0, &units) != napi_ok) {
      throw Error("ERR_INVALID_ARGUMENT", "text must be a string");
    }
    const size_t before = text_.size();
    text_.resize(before + units + 1);  // with room for the zero that is written behind the text
    napi_get_value_string_utf16(env, text, text_.data() + before, units + 1, &units);
    text_.resize(before + units);
  }
  void cancel() override { abort_ = true; }

  /// Only once the end was told.
  const std::vector<uint32_t>& ids() const {
    if (!ended()) throw Error("ERR_INTERNAL", "the encoding has not ended");
    return ids_;
  }

 private:
  void run() override {
    // Freed here rather than on JavaScript's thread, which would have to wait for it.
    const std::u16string text = std::move(text_);
    ids_ = tokenizer_->encode(text, &abort_);
  }

  const std::shared_ptr<const Tokenizer> tokenizer_;
  std::u16string text_;
  std::vector<uint32_t> ids_;
  std::atomic<bool> abort_{false};
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
      ThreadJob::start(info.Env(), job_, function_of(info[0], "onEnd"), "chatglm:encode");
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
