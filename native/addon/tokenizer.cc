#include "text/tokenizer.h"

#include <memory>

#include "addon/arguments.h"
#include "addon/tokenizer.h"

namespace chatglm::addon {

namespace {

class DecoderObject : public Napi::ObjectWrap<DecoderObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Decoder",
                       {InstanceMethod<&DecoderObject::push>("push"), InstanceMethod<&DecoderObject::flush>("flush")});
  }

  explicit DecoderObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DecoderObject>(info) {
    if (!info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "use tokenizer.createDecoder()");
    decoder_ = std::make_unique<Decoder>(*info[0].As<Napi::External<std::shared_ptr<const Tokenizer>>>().Data());
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
    decoder_class_ = static_cast<Napi::FunctionReference*>(info.Data());
    guarded(info.Env(), [&] {
      const Napi::Uint8Array pieces = bytes_of(info[0], "pieces"), types = bytes_of(info[3], "types");
      tokenizer_ = std::make_shared<const Tokenizer>(
          std::string(reinterpret_cast<const char*>(pieces.Data()), pieces.ByteLength()), ids_of(info[1], "offsets"),
          floats_of(info[2], "scores"), std::vector<uint8_t>(types.Data(), types.Data() + types.ByteLength()));
    });
  }

  static Napi::Function define(Napi::Env env, Napi::FunctionReference& decoder) {
    return DefineClass(
        env, "Tokenizer",
        {InstanceAccessor<&TokenizerObject::size>("size"), InstanceMethod<&TokenizerObject::encode>("encode"),
         InstanceMethod<&TokenizerObject::decode>("decode"),
         InstanceMethod<&TokenizerObject::create_decoder>("createDecoder")},
        &decoder);
  }

 private:
  Napi::Value size(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), tokenizer_->size()); }

  Napi::Value encode(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] { return to_ids(info.Env(), tokenizer_->encode(string_of(info[0], "text"))); });
  }

  Napi::Value decode(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const std::vector<uint32_t> ids = ids_of(info[0], "ids");
      return Napi::String::New(info.Env(), tokenizer_->decode(ids.data(), ids.size()));
    });
  }

  Napi::Value create_decoder(const Napi::CallbackInfo& info) {
    return decoder_class_->New({Napi::External<std::shared_ptr<const Tokenizer>>::New(info.Env(), &tokenizer_)});
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  Napi::FunctionReference* decoder_class_ = nullptr;
};

}  // namespace

Napi::Function define_tokenizer(Napi::Env env, Napi::FunctionReference& decoder) {
  decoder = Napi::Persistent(DecoderObject::define(env));
  return TokenizerObject::define(env, decoder);
}

}  // namespace chatglm::addon
