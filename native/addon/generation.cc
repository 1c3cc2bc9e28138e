#include "addon/generation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

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
  sampling.logprobs = static_cast<int32_t>(integer_of(object.Get("logprobs"), "logprobs", -1, Outcome::kMostLogprobs));
  sampling.mask = ids_of(object.Get("mask"), "mask");
  const Napi::Array banned = array_of(object.Get("banned"), "banned");
  for (uint32_t i = 0; i < banned.Length(); ++i) sampling.banned.push_back(signed_ids(banned.Get(i), "banned"));
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
  object.Set("pages", info.pages);
  object.Set("pageBytes", static_cast<double>(info.page_bytes));
  object.Set("pageLayout", info.page_layout);
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
  object.Set("draftedTokens", finish.drafted_tokens);
  object.Set("acceptedTokens", finish.accepted_tokens);
  object.Set("preemptions", finish.preemptions);
  object.Set("queueMs", finish.queue_ms);
  object.Set("firstTokenMs", finish.first_token_ms);
  object.Set("prefillMs", finish.prefill_ms);
  object.Set("decodeMs", finish.decode_ms);
  return object;
}

// An array of JavaScript's of numbers that lie in a row. `Array`: its class.
template <class Array, class Number>
Array to_js(Napi::Env env, std::span<const Number> values) {
  Array array = Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size_bytes());
  return array;
}

Napi::Object to_js(Napi::Env env, const Outcome& outcome) {
  const auto count = static_cast<size_t>(outcome.count);
  Napi::Object object = Napi::Object::New(env);
  object.Set("logprob", outcome.logprob);
  object.Set("topIds", to_js<Napi::Uint32Array>(env, std::span(outcome.ids, count)));
  object.Set("topLogprobs", to_js<Napi::Float32Array>(env, std::span(outcome.logprobs, count)));
  return object;
}

Napi::Object to_js(Napi::Env env, const Trace& trace) {
  constexpr const char* kPhases[] = {"queued", "admitted", "prefill", "decode", "preempted", "finished", "failed"};
  Napi::Object object = Napi::Object::New(env);
  object.Set("phase", kPhases[static_cast<int>(trace.phase)]);
  object.Set("atMs", trace.at_ms);
  object.Set("tookMs", trace.took_ms);
  object.Set("tokens", trace.tokens);
  return object;
}

}  // namespace

Request request_of(const Napi::Value& value) {
  const Napi::Object object = object_of(value, "request");
  const auto integer = [&](const char* name, int64_t least, int64_t most) {
    return static_cast<int32_t>(integer_of(object.Get(name), name, least, most));
  };
  Request request;
  request.kind = choice_of(object.Get("kind"), "kind",
                           {std::pair{"generate", Request::Kind::generate},
                            {"logits", Request::Kind::logits},
                            {"score", Request::Kind::score}});
  request.prompt = signed_ids(object.Get("prompt"), "prompt");
  request.max_tokens = integer("maxTokens", 0, kMostTokens);
  request.stop_tokens = signed_ids(object.Get("stopTokens"), "stopTokens");
  request.from = integer("from", 0, kMostTokens);
  request.top = integer("top", 0, Outcome::kMostLogprobs);
  request.priority = integer("priority", -kMostTokens, kMostTokens);
  request.client = string_of(object.Get("client"), "client");
  request.weight = number_of(object.Get("weight"), "weight");
  if (!(request.weight > 0)) throw Error("ERR_INVALID_ARGUMENT", "weight must be above 0");
  request.pin = boolean_of(object.Get("pin"), "pin");
  request.trace = boolean_of(object.Get("trace"), "trace");
  request.sampling = sampling_of(object_of(object.Get("sampling"), "sampling"));
  return request;
}

Napi::Object Event::to_js(Napi::Env env) const {
  constexpr const char* kTypes[] = {"progress", "ready", "warning", "failed", "admitted", "token",   "logits",
                                    "scores",   "trace", "finish",  "error",  "pages",    "disposed"};
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
      if (outcome) object.Set("logprobs", addon::to_js(env, *outcome));
      break;
    case Type::logits:
      object.Set("position", position);
      object.Set("values", addon::to_js<Napi::Float32Array>(env, std::span(logits)));
      break;
    case Type::scores: {
      object.Set("position", position);
      Napi::Array list = Napi::Array::New(env, scores.size());
      for (size_t i = 0; i < scores.size(); ++i) list.Set(static_cast<uint32_t>(i), addon::to_js(env, scores[i]));
      object.Set("scores", list);
      break;
    }
    case Type::trace: object.Set("trace", addon::to_js(env, trace)); break;
    case Type::finish: object.Set("finish", addon::to_js(env, finish)); break;
    case Type::pages:
      object.Set("data", addon::to_js<Napi::Uint8Array>(env, std::span(data)));
      if (error) object.Set("error", to_js_object(env, *error));
      break;
    case Type::warning:
    case Type::failed:
    case Type::error: object.Set("error", to_js_object(env, *error)); break;
    case Type::admitted:
    case Type::disposed: break;
  }
  return object;
}

}  // namespace chatglm::addon
