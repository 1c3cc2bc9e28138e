#pragma once
#include <napi.h>

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/engine.h"

namespace chatglm::addon {

/// NativeRequest of lib/addon/native.ts.
Request request_of(const Napi::Value& value);

/// What an engine told, on its way to JavaScript: NativeEvent of lib/addon/native.ts.
struct Event {
  enum class Type { progress, ready, failed, token, logits, finish, error, disposed };

  Type type;
  uint32_t request = 0;
  uint64_t bytes = 0, total_bytes = 0;
  BackendInfo info;
  std::optional<Error> error;
  int32_t token = 0;
  std::optional<Logprobs> logprobs;
  int32_t row = 0;
  std::vector<float> logits;
  Finish finish;

  Napi::Object to_js(Napi::Env env) const;
};

}  // namespace chatglm::addon
