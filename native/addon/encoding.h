#pragma once
#include <napi.h>

#include <memory>

#include "text/tokenizer.h"

namespace chatglm::addon {

/// The class of what createEncoding() gives: a text that is encoded on a thread of its own.
Napi::Function define_encoding(Napi::Env env);

using TokenizerHandle = Napi::External<std::shared_ptr<const Tokenizer>>;

}  // namespace chatglm::addon
