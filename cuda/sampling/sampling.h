#pragma once
#include <cstdint>

#include "cuda/kernels.h"
#include "engine/sampling.h"

// The two kernels that make outcomes of rows of logits. Both take the same rows; each row says which of them chooses
// its token. Outcomes are aligned to 16 bytes and may lie in host memory that is mapped: of an outcome only what is
// wanted is written.
namespace chatglm::cuda {

/// What is wanted of a row of logits, as the kernels read it: a Row and its Draw, whose lists lie in one array of
/// 32-bit words. It has no defaults, so that memory of jobs needs no constructor.
struct SamplingJob {
  enum Use : int32_t { nothing, score, sample };
  int32_t use;
  int32_t outcome;   // which of the outcomes is the row's
  int32_t target;    // score
  int32_t logprobs;  // as in Row
  int32_t ranked;    // so many of the largest logits rank_rows puts in order: 1 to Outcome::kMostLogprobs
  int32_t whole;     // 1: the token depends on more of the row than on these, so draw_rows chooses it

  float inverse_temperature;  // as in Draw, down to `random`
  int32_t top_k;
  float top_p, min_p;
  float repetition_penalty, presence_penalty, frequency_penalty;
  int32_t bias_count, counts_count, banned_count, mask_words;  // elements of the lists
  int32_t bias, counts, banned, mask;                          // where in the array they begin
  uint64_t random;
};

/// What rank_rows finds out about a row for draw_rows.
struct RowStats {
  float largest;
  float log_total;  // logarithm of the sum of exp(logit - largest)
  int32_t finite;   // 0: the row holds NaN or infinity, and nothing else is valid

#if defined(__CUDACC__)
  /// Both differences are small where the probability is not: large logits lose no digits.
  __device__ float logprob(float logit) const { return logit - largest - log_total; }
#endif
};

/// Which kernel chooses a row's token, and how many of its largest logits are needed in order.
void fill_job(const Row& row, int32_t vocabulary, SamplingJob& job);

/// Of each row (rows, vocabulary): whether it is finite, the logarithm of the sum of the exponentials, and its largest
/// logits in order; of them the outcome's log-probabilities and, unless the row is `whole`, everything else.
void rank_rows(const Launch& launch, const float* logits, const SamplingJob* jobs, int32_t rows, int32_t vocabulary,
               RowStats* stats, Outcome* outcomes);

/// Draws the tokens of rows that are `whole`, after rank_rows. Changes their logits as the Draws say, and overwrites
/// the values of their biases and counts in `lists`.
void draw_rows(const Launch& launch, float* logits, const SamplingJob* jobs, int32_t rows, int32_t vocabulary,
               uint32_t* lists, const RowStats* stats, Outcome* outcomes);

}  // namespace chatglm::cuda
