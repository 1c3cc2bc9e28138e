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
  enum class Type {
    progress,
    ready,
    warning,
    failed,
    admitted,
    token,
    logits,
    scores,
    trace,
    finish,
    error,
    pages,
    disposed
  };

  Type type;
  uint32_t request = 0;  // or the number of the call that read or wrote pages
  uint64_t bytes = 0, total_bytes = 0;
  BackendInfo info;
  std::optional<Error> error;
  int32_t token = 0;
  std::unique_ptr<Outcome> outcome;  // of the token, if its log-probabilities were asked for
  int32_t position = 0;
  std::vector<float> logits;
  std::vector<Outcome> scores;
  std::vector<uint8_t> data;  // of pages
  Trace trace;
  Finish finish;

  Napi::Object to_js(Napi::Env env) const;
};

}  // namespace chatglm::addon
