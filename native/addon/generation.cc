#include "addon/generation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "addon/arguments.h"

namespace chatglm::addon {

namespace {

constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();

std::vector<int32_t> signed_ids(const Napi::Value& value, const char* name) {
  std::vector<int32_t> result;
  for (const uint32_t id : ids_of(value, name)) {
    if (id > static_cast<uint32_t>(kMostTokens))
      throw Error("ERR_INVALID_ARGUMENT", std::string(name) + ": id too large");
    result.push_back(static_cast<int32_t>(id));
  }
  return result;
}

Sampling sampling_of(const Napi::Object& object) {
  const auto number = [&](const char* name) { return static_cast<float>(number_of(object.Get(name), name)); };
  Sampling sampling;
  sampling.temperature = number("temperature");
  sampling.top_k = static_cast<int32_t>(integer_of(object.Get("topK"), "topK", 0, kMostTokens));
  sampling.top_p = number("topP");
  sampling.min_p = number("minP");
  sampling.repetition_penalty = number("repetitionPenalty");
  sampling.presence_penalty = number("presencePenalty");
  sampling.frequency_penalty = number("frequencyPenalty");
  if (sampling.temperature < 0 || sampling.top_p < 0 || sampling.min_p < 0 || sampling.repetition_penalty <= 0) {
    throw Error("ERR_INVALID_ARGUMENT", "a sampling option is out of range");
  }
  sampling.logprobs = static_cast<int32_t>(integer_of(object.Get("logprobs"), "logprobs", -1, kMostTokens));
  const std::vector<uint32_t> ids = ids_of(object.Get("biasIds"), "biasIds");
  const std::vector<float> values = floats_of(object.Get("biasValues"), "biasValues");
  for (size_t i = 0; i < std::min(ids.size(), values.size()); ++i) {
    if (std::isnan(values[i])) throw Error("ERR_INVALID_ARGUMENT", "biasValues must not hold NaN");
    sampling.bias.emplace_back(ids[i], values[i]);
  }
  const Napi::Value seed = object.Get("seed");
  if (!seed.IsBigInt()) throw Error("ERR_INVALID_ARGUMENT", "seed must be a bigint");
  bool lossless;
  sampling.seed = seed.As<Napi::BigInt>().Uint64Value(&lossless);
  return sampling;
}

Napi::Object to_js(Napi::Env env, const BackendInfo& info) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("device", info.device);
  object.Set("kernels", info.kernels);
  object.Set("threads", info.threads);
  object.Set("weightBytes", static_cast<double>(info.weight_bytes));
  Napi::Object types = Napi::Object::New(env);
  for (const auto& [type, bytes] : info.weight_types) types.Set(type, static_cast<double>(bytes));
  object.Set("weightTypes", types);
  object.Set("bytesPerToken", static_cast<double>(info.bytes_per_token));
  object.Set("mappedBytes", static_cast<double>(info.mapped_bytes));
  object.Set("kvCacheType", info.kv_type);
  object.Set("kvCacheBytes", static_cast<double>(info.kv_bytes));
  object.Set("deviceBytes", static_cast<double>(info.device_bytes));
  return object;
}

Napi::Object to_js(Napi::Env env, const Finish& finish) {
  constexpr const char* kReasons[] = {"stop", "length", "cancelled"};
  Napi::Object object = Napi::Object::New(env);
  object.Set("reason", kReasons[static_cast<int>(finish.reason)]);
  object.Set("promptTokens", finish.prompt_tokens);
  object.Set("cachedTokens", finish.cached_tokens);
  object.Set("generatedTokens", finish.generated_tokens);
  object.Set("queueMs", finish.queue_ms);
  object.Set("firstTokenMs", finish.first_token_ms);
  object.Set("prefillMs", finish.prefill_ms);
  object.Set("decodeMs", finish.decode_ms);
  return object;
}

Napi::Float32Array to_js(Napi::Env env, const std::vector<float>& values) {
  Napi::Float32Array array = Napi::Float32Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(float));
  return array;
}

Napi::Object to_js(Napi::Env env, const Logprobs& logprobs) {
  std::vector<uint32_t> ids;
  std::vector<float> values;
  for (const auto& [id, value] : logprobs.top) {
    ids.push_back(id);
    values.push_back(value);
  }
  Napi::Object object = Napi::Object::New(env);
  object.Set("logprob", logprobs.chosen);
  object.Set("topIds", to_ids(env, ids));
  object.Set("topLogprobs", to_js(env, values));
  return object;
}

}  // namespace

Request request_of(const Napi::Value& value) {
  const Napi::Object object = object_of(value, "request");
  Request request;
  request.prompt = signed_ids(object.Get("prompt"), "prompt");
  request.max_tokens = static_cast<int32_t>(integer_of(object.Get("maxTokens"), "maxTokens", 0, kMostTokens));
  request.stop_tokens = signed_ids(object.Get("stopTokens"), "stopTokens");
  request.logits_from = static_cast<int32_t>(integer_of(object.Get("logitsFrom"), "logitsFrom", -1, kMostTokens));
  request.sampling = sampling_of(object_of(object.Get("sampling"), "sampling"));
  return request;
}

Napi::Object Event::to_js(Napi::Env env) const {
  constexpr const char* kTypes[] = {"progress", "ready", "failed", "token", "logits", "finish", "error", "disposed"};
  Napi::Object object = Napi::Object::New(env);
  object.Set("type", kTypes[static_cast<int>(type)]);
  object.Set("request", request);
  switch (type) {
    case Type::progress:
      object.Set("bytes", static_cast<double>(bytes));
      object.Set("totalBytes", static_cast<double>(total_bytes));
      break;
    case Type::ready: object.Set("info", addon::to_js(env, info)); break;
    case Type::token:
      object.Set("id", token);
      if (logprobs) object.Set("logprobs", addon::to_js(env, *logprobs));
      break;
    case Type::logits:
      object.Set("row", row);
      object.Set("values", addon::to_js(env, logits));
      break;
    case Type::finish: object.Set("finish", addon::to_js(env, finish)); break;
    case Type::failed:
    case Type::error: object.Set("error", to_js_object(env, *error)); break;
    case Type::disposed: break;
  }
  return object;
}

}  // namespace chatglm::addon
