#pragma once
#include <napi.h>

namespace chatglm::addon {

/// The class `Model` of lib/addon/native.ts.
Napi::Function define_model(Napi::Env env);

}  // namespace chatglm::addon
