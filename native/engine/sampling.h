#pragma once
#include <cstdint>
#include <span>

namespace chatglm {

struct TokenBias {
  int32_t id;
  float value;
};

struct TokenCount {
  int32_t id;
  int32_t count;  // times generated; 0: only the prompt has the token
};

/// How one row of logits becomes a token: plain numbers, as kernels take them. The steps have Hugging Face's order:
///   1. bias: it is added;
///   2. repetition penalty, of the tokens in `counts`: a logit below 0 is multiplied, another logit is divided by it;
///   3. presence and frequency penalty, as OpenAI defines them: logit -= frequency * count + (count > 0 ?
///      presence : 0);
///      after steps 1 to 3 a number beyond float becomes the largest float, and NaN becomes -inf;
///   4. mask and banned: the logits of tokens that are not allowed become -inf;
///   5. the weight of a token is exp((logit - largest) * inverse_temperature), in units of 2^-35, as a whole number W
///      between 0 and 2^35: see sampling_math.h. Sums of whole numbers do not depend on their order, so all devices and
///      any number of threads keep the same tokens and draw the same one;
///   6. top-k: of all tokens, by falling logit and of equal logits by rising id, the first top_k stay (0: all);
///   7. top-p: of those, in the same order, the fewest stay whose W sum up to ceil(top_p * sum), at least one;
///   8. min-p: of those, the tokens stay whose W is at least ceil(min_p * 2^35); min_p above 1 counts as 1;
///   9. the draw: of the tokens that stayed, by rising id, the first one with which the sum of W exceeds
///      floor(random * sum / 2^64).
/// With inverse_temperature 0 or top_k 1, the token with the largest logit after step 4 is chosen, the lowest id of
/// equal ones.
struct Draw {
  float inverse_temperature = 0;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint64_t random = 0;                 // 64 uniform bits: random_at() of the seed and the token's place
  std::span<const TokenBias> bias;     // of distinct tokens
  std::span<const TokenCount> counts;  // of distinct tokens; empty where no penalty is set
  std::span<const uint32_t> mask;      // bit id % 32 of word id / 32: the token is allowed; empty: every token
                                       // is; else it has a bit for each token of the vocabulary
  std::span<const int32_t> banned;     // tokens that are not allowed
};

/// What is wanted of one row of logits.
struct Row {
  enum class Use : int32_t {
    logits,  // the row itself, on the host
    score,   // the log-probability of `target`
    sample,  // a token that is drawn
  };
  Use use = Use::logits;
  int32_t target = -1;
  /// score, sample: of so many of the likeliest tokens the log-probabilities are wanted, 0 to Outcome::kMostLogprobs;
  /// sample: -1, not even that of the token is.
  int32_t logprobs = -1;
  const Draw* draw = nullptr;  // sample
};

/// What a row of the uses `score` and `sample` gives. Log-probabilities are natural logarithms of the model's own
/// probabilities, the softmax of the row before all steps of Draw.
struct Outcome {
  static constexpr int32_t kMostLogprobs = 100;
  enum class Status : int32_t {
    ok,
    not_finite,    // the row holds NaN or infinity
    none_allowed,  // sample: every token is banned
  };
  Status status = Status::ok;
  int32_t token = 0;  // the drawn one, or the target
  float logprob = 0;  // of `token`, if wanted
  int32_t count = 0;  // min(Row::logprobs, vocabulary), or 0
  int32_t ids[kMostLogprobs];
  float logprobs[kMostLogprobs];  // in falling order; of equal ones the lowest id comes first
};

/// The outcome of a row, computed plainly: what every backend's kernels are held against. logits: (vocabulary).
Outcome outcome_of(const Row& row, std::span<const float> logits);

}  // namespace chatglm
