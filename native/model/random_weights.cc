#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "model/model.h"
#include "model/quantize.h"

namespace chatglm {

namespace {

// splitmix64, https://prng.di.unimi.it/splitmix64.c: a good 64-bit hash of a counter.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Blocks are drawn from a pool of so many, which takes seconds; drawing billions of numbers would take minutes.
constexpr int64_t kPoolBlocks = 4096;

}  // namespace

Distribution random_distribution(TensorKind kind, int64_t columns) {
  switch (kind) {
    case TensorKind::norm: return {1.0f, 0.1f};
    case TensorKind::bias: return {0.0f, 0.2f};
    case TensorKind::embedding: return {0.0f, 1.0f};
    case TensorKind::linear:
    case TensorKind::output: break;
  }
  return {0.0f, 1.28f / std::sqrt(static_cast<float>(columns))};
}

void fill_random(DataType type, uint8_t* target, const std::string& name, uint64_t seed, int64_t first, int64_t count,
                 Distribution distribution) {
  if (!is_compute_type(type)) throw Error("ERR_INVALID_ARGUMENT", std::string("no random ") + name_of(type));
  uint64_t key = mix(seed);
  for (const char c : name) key = mix(key ^ static_cast<uint8_t>(c));

  std::vector<float> values(kBlockElements);
  const size_t bytes = static_cast<size_t>(row_bytes(type, kBlockElements));
  std::vector<uint8_t> pool(bytes * static_cast<size_t>(kPoolBlocks));
  // A short run makes only the blocks that it needs; so a block of the pool must not depend on the other blocks.
  std::vector<bool> made(static_cast<size_t>(kPoolBlocks), false);
  const auto make = [&](uint64_t block) {
    for (size_t j = 0; j < values.size(); ++j) {
      // The sum of four uniform numbers in [0, 1) has mean 2 and variance 1/3, and its distribution is near normal.
      const uint64_t bits = mix(key + block * kBlockElements + j);
      uint32_t sum = 0;
      for (int shift = 0; shift < 64; shift += 16) sum += static_cast<uint32_t>(bits >> shift & 0xffff);
      const float normal = (static_cast<float>(sum) * 0x1p-16f - 2.0f) * 1.7320508f;
      values[j] = distribution.mean + distribution.deviation * normal;
    }
    from_float(type, values.data(), kBlockElements, pool.data() + block * bytes);
    made[block] = true;
  };
  for (int64_t i = 0; i < count / kBlockElements; ++i, target += bytes) {
    const uint64_t block = mix(key ^ static_cast<uint64_t>(first / kBlockElements + i)) % kPoolBlocks;
    if (!made[block]) make(block);
    std::memcpy(target, pool.data() + block * bytes, bytes);
  }
}

}  // namespace chatglm
