#pragma once
#include <napi.h>

namespace chatglm::addon {

/// The classes of what a tokenizer makes, which JavaScript gets by its methods only.
struct TokenizerClasses {
  Napi::FunctionReference decoder, encoding;
};

/// The class `Tokenizer` of lib/addon/native.ts. `classes` are filled in and must outlive it.
Napi::Function define_tokenizer(Napi::Env env, TokenizerClasses& classes);

}  // namespace chatglm::addon
