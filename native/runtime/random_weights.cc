#include <cmath>
#include <cstring>
#include <vector>

#include "error.h"
#include "model.h"
#include "quantize.h"

namespace chatglm {

namespace {

// splitmix64, https://prng.di.unimi.it/splitmix64.c: a good 64-bit hash of a counter.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Drawing billions of normal numbers takes minutes; drawing blocks out of a pool takes seconds.
constexpr int64_t kPoolBlocks = 4096;

}  // namespace

void fill_random(DataType type, uint8_t* target, const std::string& name, uint64_t seed, int64_t first, int64_t count,
                 float mean, float deviation) {
  if (!is_compute_type(type)) throw Error("ERR_INVALID_ARGUMENT", std::string("no random ") + name_of(type));
  uint64_t key = mix(seed);
  for (const char c : name) key = mix(key ^ static_cast<uint8_t>(c));

  std::vector<float> values(kBlockElements);
  const size_t bytes = static_cast<size_t>(row_bytes(type, kBlockElements));
  std::vector<uint8_t> pool(bytes * static_cast<size_t>(kPoolBlocks));
  // A short run takes just the blocks that it needs; so block b of the pool must not depend on the others.
  std::vector<bool> made(static_cast<size_t>(kPoolBlocks), false);
  const auto make = [&](uint64_t block) {
    for (size_t j = 0; j < values.size(); j += 2) {  // Box-Muller
      const uint64_t bits = mix(key + block * kBlockElements + j), more = mix(bits);
      const double radius = std::sqrt(-2 * std::log((static_cast<double>(bits >> 11) + 0.5) * 0x1p-53));
      const double angle = 6.283185307179586 * (static_cast<double>(more >> 11) * 0x1p-53);
      values[j] = mean + deviation * static_cast<float>(radius * std::cos(angle));
      values[j + 1] = mean + deviation * static_cast<float>(radius * std::sin(angle));
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
