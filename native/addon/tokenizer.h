#pragma once
#include <napi.h>

namespace chatglm::addon {

/// The classes `Tokenizer` and, for createDecoder(), `Decoder` of lib/native.ts. `decoder` must outlive the first.
Napi::Function define_tokenizer(Napi::Env env, Napi::FunctionReference& decoder);

}  // namespace chatglm::addon
