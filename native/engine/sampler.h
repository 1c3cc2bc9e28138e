#pragma once
#include <cstdint>
#include <random>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/backend.h"

namespace chatglm {

/// How the next token is chosen. The steps have Hugging Face's order: bias, logits processors, then logits warpers.
///   1. logit bias: it is added;
///   2. repetition penalty over prompt and answer: a logit below 0 is multiplied, another logit is divided by it;
///   3. presence and frequency penalty over the answer, as OpenAI defines them:
///      logit -= frequency * (times generated) + (generated ? presence : 0);
///   4. temperature: at 0 the largest logit is chosen, of equal logits the lowest id; else logits / temperature;
///   5. top-k: the top_k largest stay (0: all); 6. top-p: the fewest likeliest whose probabilities sum up to top_p
///   stay, at least one; 7. min-p: the tokens stay that are at least min_p times as likely as the likeliest;
///   8. one of the tokens that stayed is drawn.
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
  int32_t logprobs = -1;  // -1: none; else log-probabilities of the chosen token and of so many of the likeliest
};

/// Natural logarithms of the model's own probabilities, the softmax of the logits before all steps of Sampling.
struct Logprobs {
  float chosen = 0;
  std::vector<std::pair<uint32_t, float>> top;  // (logprobs), the likeliest first
};

struct Choice {
  uint32_t token = 0;
  bool finite = true;  // false: the logits hold NaN or infinity, and no token was chosen
  Logprobs logprobs;   // if asked for
};

/// The state of one sequence's sampling. The same seed and logits give the same tokens on every machine.
class Sampler {
 public:
  /// prompt: the repetition penalty counts its tokens as used.
  Sampler(Sampling sampling, std::span<const int32_t> prompt);

  /// Whether a choice depends on nothing but the `count` largest logits.
  bool enough(int32_t count) const;
  /// logits: (vocabulary). Remembers the chosen token for the penalties.
  Choice choose(std::span<const float> logits);
  /// The same choice as from the whole row, if enough() says so; log-probabilities are equal up to rounding.
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
