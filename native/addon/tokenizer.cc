#include "addon/tokenizer.h"

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/encoding.h"
#include "addon/grammars.h"
#include "addon/thread_job.h"
#include "text/tokenizer.h"

namespace chatglm::addon {

namespace {

std::u16string utf16_of(const Napi::Value& value, const char* name) {
  if (!value.IsString()) throw Error("ERR_INVALID_ARGUMENT", std::string(name) + " must be a string");
  return value.As<Napi::String>().Utf16Value();
}

class DecoderObject : public Napi::ObjectWrap<DecoderObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Decoder",
                       {InstanceMethod<&DecoderObject::push>("push"), InstanceMethod<&DecoderObject::flush>("flush")});
  }

  explicit DecoderObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DecoderObject>(info) {
    if (!info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "use tokenizer.createDecoder()");
    decoder_ = std::make_unique<Decoder>(*info[0].As<TokenizerHandle>().Data());
  }

 private:
  Napi::Value push(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const int64_t id = integer_of(info[0], "id", 0, UINT32_MAX);
      return Napi::String::New(info.Env(), decoder_->push(static_cast<uint32_t>(id)));
    });
  }
  Napi::Value flush(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), decoder_->flush()); }

  std::unique_ptr<Decoder> decoder_;
};

// The tables of a vocabulary of 65,024 pieces take 50 ms to build: on a thread, for who asks for it, or else when they
// are first needed.
class TokenizerJob final : public ThreadJob {
 public:
  TokenizerJob(std::string pieces, std::vector<uint32_t> offsets, std::vector<float> scores, std::vector<uint8_t> types,
               bool add_dummy_prefix)
      : pieces_(std::move(pieces)),
        offsets_(std::move(offsets)),
        scores_(std::move(scores)),
        types_(std::move(types)),
        add_dummy_prefix_(add_dummy_prefix),
        size_(static_cast<uint32_t>(types_.size())) {}

  uint32_t size() const { return size_; }

  /// Waits for the tables if a thread is building them. Throws what Tokenizer's constructor throws.
  std::shared_ptr<const Tokenizer>& tokenizer() {
    std::call_once(built_, [this] {
      tokenizer_ = std::make_shared<const Tokenizer>(std::move(pieces_), std::move(offsets_), std::move(scores_),
                                                     std::move(types_), add_dummy_prefix_);
    });
    return tokenizer_;
  }

 private:
  void run() override { tokenizer(); }

  std::string pieces_;
  std::vector<uint32_t> offsets_;  // (size + 1)
  std::vector<float> scores_;      // (size)
  std::vector<uint8_t> types_;     // (size)
  const bool add_dummy_prefix_;
  const uint32_t size_;
  std::once_flag built_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

class TokenizerObject : public Napi::ObjectWrap<TokenizerObject> {
 public:
  explicit TokenizerObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TokenizerObject>(info) {
    classes_ = static_cast<TokenizerClasses*>(info.Data());
    guarded(info.Env(), [&] {
      const Napi::Uint8Array pieces = bytes_of(info[0], "pieces"), types = bytes_of(info[3], "types");
      job_ = std::make_shared<TokenizerJob>(
          std::string(reinterpret_cast<const char*>(pieces.Data()), pieces.ByteLength()), ids_of(info[1], "offsets"),
          floats_of(info[2], "scores"), std::vector<uint8_t>(types.Data(), types.Data() + types.ByteLength()),
          boolean_of(info[4], "addDummyPrefix"));
    });
  }

  static Napi::Function define(Napi::Env env, TokenizerClasses& classes) {
    return DefineClass(
        env, "Tokenizer",
        {InstanceAccessor<&TokenizerObject::size>("size"), InstanceMethod<&TokenizerObject::prepare>("prepare"),
         InstanceMethod<&TokenizerObject::encode>("encode"), InstanceMethod<&TokenizerObject::decode>("decode"),
         InstanceMethod<&TokenizerObject::create_decoder>("createDecoder"),
         InstanceMethod<&TokenizerObject::create_encoding>("createEncoding"),
         InstanceMethod<&TokenizerObject::create_grammars>("createGrammars")},
        &classes);
  }

 private:
  Napi::Value size(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), job_->size()); }

  Napi::Value prepare(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      ThreadJob::start(info.Env(), job_, function_of(info[0], "onEnd"), "chatglm:tokenizer");
      return info.Env().Undefined();
    });
  }

  Napi::Value encode(const Napi::CallbackInfo& info) {
    return guarded(info.Env(),
                   [&] { return to_ids(info.Env(), job_->tokenizer()->encode(utf16_of(info[0], "text"))); });
  }

  Napi::Value decode(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const std::vector<uint32_t> ids = ids_of(info[0], "ids");
      return Napi::String::New(info.Env(), job_->tokenizer()->decode(ids.data(), ids.size()));
    });
  }

  Napi::Value create_decoder(const Napi::CallbackInfo& info) {
    return guarded(info.Env(),
                   [&] { return classes_->decoder.New({TokenizerHandle::New(info.Env(), &job_->tokenizer())}); });
  }

  Napi::Value create_encoding(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      return classes_->encoding.New({TokenizerHandle::New(info.Env(), &job_->tokenizer()), info[0]});
    });
  }

  Napi::Value create_grammars(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const auto vocabulary = static_cast<uint32_t>(integer_of(info[0], "vocabSize", 0, INT32_MAX));
      auto* grammars = new std::shared_ptr<Grammars>(
          std::make_shared<Grammars>([job = job_] { return job->tokenizer(); }, vocabulary));
      return GrammarsHandle::New(info.Env(), grammars, [](Napi::Env, std::shared_ptr<Grammars>* data) { delete data; });
    });
  }

  std::shared_ptr<TokenizerJob> job_;
  TokenizerClasses* classes_ = nullptr;
};

}  // namespace

Napi::Function define_tokenizer(Napi::Env env, TokenizerClasses& classes) {
  classes.decoder = Napi::Persistent(DecoderObject::define(env));
  classes.encoding = Napi::Persistent(define_encoding(env));
  return TokenizerObject::define(env, classes);
}

}  // namespace chatglm::addon
