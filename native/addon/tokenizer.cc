#include "addon/tokenizer.h"

#include <memory>
#include <string>

#include "addon/arguments.h"
#include "addon/encoding.h"
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

class TokenizerObject : public Napi::ObjectWrap<TokenizerObject> {
 public:
  explicit TokenizerObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TokenizerObject>(info) {
    classes_ = static_cast<TokenizerClasses*>(info.Data());
    guarded(info.Env(), [&] {
      const Napi::Uint8Array pieces = bytes_of(info[0], "pieces"), types = bytes_of(info[3], "types");
      tokenizer_ = std::make_shared<const Tokenizer>(
          std::string(reinterpret_cast<const char*>(pieces.Data()), pieces.ByteLength()), ids_of(info[1], "offsets"),
          floats_of(info[2], "scores"), std::vector<uint8_t>(types.Data(), types.Data() + types.ByteLength()),
          boolean_of(info[4], "addDummyPrefix"));
    });
  }

  static Napi::Function define(Napi::Env env, TokenizerClasses& classes) {
    return DefineClass(
        env, "Tokenizer",
        {InstanceAccessor<&TokenizerObject::size>("size"), InstanceMethod<&TokenizerObject::encode>("encode"),
         InstanceMethod<&TokenizerObject::decode>("decode"),
         InstanceMethod<&TokenizerObject::create_decoder>("createDecoder"),
         InstanceMethod<&TokenizerObject::create_encoding>("createEncoding")},
        &classes);
  }

 private:
  Napi::Value size(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), tokenizer_->size()); }

  Napi::Value encode(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] { return to_ids(info.Env(), tokenizer_->encode(utf16_of(info[0], "text"))); });
  }

  Napi::Value decode(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const std::vector<uint32_t> ids = ids_of(info[0], "ids");
      return Napi::String::New(info.Env(), tokenizer_->decode(ids.data(), ids.size()));
    });
  }

  Napi::Value create_decoder(const Napi::CallbackInfo& info) {
    return classes_->decoder.New({TokenizerHandle::New(info.Env(), &tokenizer_)});
  }

  Napi::Value create_encoding(const Napi::CallbackInfo& info) {
    return classes_->encoding.New({TokenizerHandle::New(info.Env(), &tokenizer_), info[0]});
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  TokenizerClasses* classes_ = nullptr;
};

}  // namespace

Napi::Function define_tokenizer(Napi::Env env, TokenizerClasses& classes) {
  classes.decoder = Napi::Persistent(DecoderObject::define(env));
  classes.encoding = Napi::Persistent(define_encoding(env));
  return TokenizerObject::define(env, classes);
}

}  // namespace chatglm::addon
