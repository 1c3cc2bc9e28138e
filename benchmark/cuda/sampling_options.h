#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/sampling.h"

namespace chatglm::benchmark {

/// Sampling options as people set them, and what their rows point to.
struct SamplingOptions {
  std::string name;
  Draw draw;
  int32_t logprobs = -1;
  std::vector<TokenBias> bias;
  std::vector<TokenCount> counts;
  std::vector<uint32_t> mask;
  std::vector<int32_t> banned;
  mutable std::vector<Draw> draws;

  /// Rows that differ in their random numbers. They live as long as the next call's do not.
  std::vector<Row> rows(int32_t count) const {
    draws.assign(static_cast<size_t>(count), draw);
    std::vector<Row> result;
    uint64_t random = 0x9e3779b97f4a7c15u;
    for (Draw& d : draws) {
      d.bias = bias, d.counts = counts, d.mask = mask, d.banned = banned;
      d.random = random *= 0xd1342543de82ef95u;
      result.push_back({Row::Use::sample, -1, logprobs, &d});
    }
    return result;
  }
};

inline std::vector<SamplingOptions> sampling_options(int32_t vocabulary) {
  std::vector<SamplingOptions> all;
  const auto add = [&](const std::string& name, float temperature, int32_t top_k, float top_p) -> SamplingOptions& {
    SamplingOptions& options = all.emplace_back();
    options.name = name;
    options.draw.inverse_temperature = temperature > 0 ? 1 / temperature : 0;
    options.draw.top_k = top_k, options.draw.top_p = top_p;
    return options;
  };
  const auto count = [&](SamplingOptions& options) {
    for (int32_t i = 0; i < 256; ++i) options.counts.push_back({i * 251 % vocabulary, i % 4});
    options.draw.repetition_penalty = 1.1f;
  };
  add("greedy", 0, 0, 1);
  add("THUDM", 0.8f, 50, 0.8f);
  add("OpenAI", 1, 0, 1);
  add("top-p 0.9", 1, 0, 0.9f);
  add("top-k 500", 1, 500, 1);
  count(add("repetition", 0.8f, 50, 0.8f));
  add("20 logprobs", 0.8f, 50, 0.8f).logprobs = 20;
  SamplingOptions& everything = add("everything", 0.8f, 500, 0.8f);
  count(everything);
  everything.draw.presence_penalty = 0.2f, everything.draw.frequency_penalty = 0.1f, everything.draw.min_p = 0.01f;
  everything.logprobs = 5;
  for (int32_t i = 0; i < 20; ++i) everything.bias.push_back({i * 3001 % vocabulary, 1.5f});
  everything.banned = {0, 1, 2, 3};
  everything.mask.assign(static_cast<size_t>(vocabulary + 31) / 32, 0xfffefffeu);
  return all;
}

}  // namespace chatglm::benchmark
