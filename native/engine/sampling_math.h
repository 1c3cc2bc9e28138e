#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// Arithmetic of sampling that gives the same bits on every device: additions and multiplications of single precision,
// each rounded by itself. Compilers must not contract them: files that include this header are compiled with
// -ffp-contract=off, and CUDA code takes the intrinsics that are never contracted.
#if defined(__CUDACC__)
#define CHATGLM_HOST_DEVICE __host__ __device__
#else
#define CHATGLM_HOST_DEVICE
#endif

namespace chatglm {

/// The weight of the likeliest token.
constexpr int64_t kWholeWeight = int64_t{1} << 35;

struct RandomBits {
  uint32_t word[4];
};

/// Philox4x32 of ten rounds (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011).
CHATGLM_HOST_DEVICE inline RandomBits philox(RandomBits counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter.word[0], b = uint64_t{0xCD9E8D57} * counter.word[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(a)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

/// 64 uniform bits for the token at `place` of an answer. They depend on nothing else.
inline uint64_t random_at(uint64_t seed, uint32_t place) {
  const RandomBits bits = philox({{place, 0, 0, 0}}, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return uint64_t{bits.word[1]} << 32 | bits.word[0];
}

namespace exact {

// Single operations that are rounded by themselves. nvcc contracts plain operators, but never these intrinsics.
#if defined(__CUDA_ARCH__)
__device__ inline float times(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float over(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float float_of(uint32_t bits) { return __uint_as_float(bits); }
#else
inline float times(float a, float b) { return a * b; }
inline float plus(float a, float b) { return a + b; }
inline float over(float a, float b) { return a / b; }
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
#endif

}  // namespace exact

/// Constants of exp_of(): kernels that compute several values at once follow the same steps.
struct ExpSteps {
  static constexpr float kLeast = -87.0f;  // below, the result is 0: a weight of exp(-87) is far below half a unit
  static constexpr float kLog2e = 1.44269504f;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to a whole number
  // ln 2 in two parts. The first has 9 significant bits, so that its product with a whole number up to 127 is exact.
  static constexpr float kLn2High = 0.693359375f;
  static constexpr float kLn2Low = -2.12194440e-4f;
  // Of exp(r) - 1 - r over r^2, |r| <= ln 2 / 2: the coefficients of Cephes' expf (S. L. Moshier).
  static constexpr float kC0 = 5.0000001201e-1f;
  static constexpr float kC1 = 1.6666665459e-1f;
  static constexpr float kC2 = 4.1665795894e-2f;
  static constexpr float kC3 = 8.3334519073e-3f;
  static constexpr float kC4 = 1.3981999507e-3f;
  static constexpr float kC5 = 1.9875691500e-4f;
};

/// exp(x) for x <= 0, with the same bits everywhere; 0 for x below kLeast, for -inf and for NaN. The relative error is
/// at most 8.14e-8, and a larger x gives no smaller result (both found by trying each float from -87 to 0).
CHATGLM_HOST_DEVICE inline float exp_of(float x) {
  using S = ExpSteps;
  if (!(x >= S::kLeast)) return 0.0f;
  const float n = exact::plus(exact::plus(exact::times(x, S::kLog2e), S::kRound), -S::kRound);
  const float r = exact::plus(exact::plus(x, exact::times(n, -S::kLn2High)), exact::times(n, -S::kLn2Low));
  float p = S::kC5;
  p = exact::plus(exact::times(p, r), S::kC4);
  p = exact::plus(exact::times(p, r), S::kC3);
  p = exact::plus(exact::times(p, r), S::kC2);
  p = exact::plus(exact::times(p, r), S::kC1);
  p = exact::plus(exact::times(p, r), S::kC0);
  p = exact::plus(exact::plus(exact::times(p, exact::times(r, r)), r), 1.0f);
  const auto exponent = static_cast<uint32_t>(static_cast<int32_t>(n) + 127);
  return exact::times(p, exact::float_of(exponent << 23));
}

/// The weight of a token, from 0 to kWholeWeight. `largest` is the largest logit of the tokens that are allowed, and
/// not -inf; `inverse_temperature` is a number from 0 to the largest float.
CHATGLM_HOST_DEVICE inline int64_t weight_of(float logit, float largest, float inverse_temperature) {
  // The largest weight is what it should be even where 0 times the inverse temperature would be rounded otherwise.
  if (logit == largest) return kWholeWeight;
  const float x = exact::times(exact::plus(logit, -largest), inverse_temperature);
  const float scaled = exact::times(exp_of(x), static_cast<float>(kWholeWeight));  // exact: a power of two
#if defined(__CUDA_ARCH__)
  return __float2ll_rn(scaled);
#else
  return std::llrintf(scaled);  // to the nearest, halves to even, as nothing here changes the rounding mode
#endif
}

/// What step 2 of Draw makes of a logit.
CHATGLM_HOST_DEVICE inline float penalized(float logit, float repetition, float presence, float frequency,
                                           int32_t count) {
  logit = logit < 0 ? exact::times(logit, repetition) : exact::over(logit, repetition);
  if (count == 0) return logit;
  const float penalty = exact::plus(exact::times(frequency, static_cast<float>(count)), presence);
  return exact::plus(logit, -penalty);
}

/// A logit after steps 1 to 3 of Draw, as the later steps take it.
CHATGLM_HOST_DEVICE inline float within_range(float logit) {
  constexpr float kMost = 3.402823466e38f;
  if (logit <= kMost) return logit;  // -inf as well
  return logit > kMost ? kMost : exact::float_of(0xff800000u);
}

/// How much of `sum` top-p keeps at least, and how much weight min-p asks of a token.
CHATGLM_HOST_DEVICE inline int64_t least_sum(float top_p, int64_t sum) {
  return static_cast<int64_t>(ceil(static_cast<double>(top_p) * static_cast<double>(sum)));
}
CHATGLM_HOST_DEVICE inline int64_t least_weight(float min_p) {
  return least_sum(min_p < 1.0f ? min_p : 1.0f, kWholeWeight);  // the likeliest token always stays
}

/// Where a draw falls among weights of this sum: from 0 to sum - 1.
CHATGLM_HOST_DEVICE inline int64_t drawn_point(uint64_t random, int64_t sum) {
#if defined(__CUDA_ARCH__)
  return static_cast<int64_t>(__umul64hi(random, static_cast<uint64_t>(sum)));
#else
  return static_cast<int64_t>(static_cast<unsigned __int128>(random) * static_cast<uint64_t>(sum) >> 64);
#endif
}

}  // namespace chatglm
