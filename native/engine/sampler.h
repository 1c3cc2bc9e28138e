#pragma once
#include <cstdint>
#include <random>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/backend.h"

namespace chatglm {

/// How the next token is chosen. Applied in this order, which is Hugging Face's (bias, processors, then warpers):
///   1. logit bias: added;
///   2. repetition penalty over prompt and answer: a logit below 0 is multiplied by it, another divided;
///   3. presence and frequency penalty over the answer, as OpenAI defines them:
///      logit -= frequency * (times generated) + (generated ? presence : 0);
///   4. temperature 0: the largest logit, of equal ones the lowest id. Otherwise: logits / temperature;
///   5. the top_k largest (0: all); 6. the fewest likeliest whose probabilities reach top_p, at least one;
///   7. those at least min_p times as likely as the likeliest; 8. a draw among what is left.
struct Sampling {
  float temperature = 0.8f;
  int32_t top_k = 50;
  float top_p = 0.8f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<uint32_t, float>> bias;
  uint64_t seed = 0;
  int32_t logprobs = -1;  // -1: none; else of the chosen token and of this many of the likeliest
};

/// Natural logarithms of the model's own probabilities: softmax of the logits before any of the steps above.
struct Logprobs {
  float chosen = 0;
  std::vector<std::pair<uint32_t, float>> top;  // (logprobs), the likeliest first
};

struct Choice {
  uint32_t token = 0;
  bool finite = true;  // false: the logits hold NaN or infinity, and there is no token
  Logprobs logprobs;   // if asked for
};

/// The state of one sequence's sampling. The same seed and logits give the same tokens on every machine.
class Sampler {
 public:
  /// prompt: what the repetition penalty counts from the beginning.
  Sampler(Sampling sampling, std::span<const int32_t> prompt);

  /// Whether the `count` largest logits are all that a choice depends on.
  bool enough(int32_t count) const;
  /// logits: (vocabulary). Remembers the chosen token for the penalties.
  Choice choose(std::span<const float> logits);
  /// The same choice as from the whole row, if its largest logits are enough; log-probabilities up to rounding.
  Choice choose(const TopLogits& top);

 private:
  struct Candidate {
    float logit;
    uint32_t id;
  };

  bool penalizes() const;
  void apply_penalties(std::span<float> logits) const;
  uint32_t draw();

  Sampling sampling_;
  std::mt19937_64 random_;
  std::unordered_map<uint32_t, int32_t> generated_;  // id -> times generated; 0: only in the prompt
  std::vector<float> scratch_;                       // (vocabulary), when logits are changed
  std::vector<Candidate> candidates_;                // of draw()
};

}  // namespace chatglm
