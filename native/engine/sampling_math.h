#pragma once
#include <cstdint>

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

}  // namespace chatglm
