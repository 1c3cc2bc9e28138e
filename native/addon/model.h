#pragma once
#include <napi.h>

namespace chatglm::addon {

/// Why this addon cannot use a GPU.
constexpr const char* kNoCuda = "this build of node-chatglm has no CUDA backend";

/// The class `Model` of lib/native.ts.
Napi::Function define_model(Napi::Env env);

}  // namespace chatglm::addon
