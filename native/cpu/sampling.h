#pragma once
#include <span>

#include "cpu/kernels/kernels.h"
#include "engine/sampling.h"

namespace chatglm::cpu {

/// The outcome of a row of the uses `score` and `sample`: the token that the plain outcome_of() gives, its
/// log-probabilities up to rounding. No step sorts the vocabulary. logits: (vocabulary); their values are lost.
Outcome outcome_of(const Kernels& kernels, const Row& row, std::span<float> logits);

}  // namespace chatglm::cpu
