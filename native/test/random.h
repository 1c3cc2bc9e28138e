#pragma once
#include <cstdint>
#include <random>
#include <vector>

namespace chatglm::test {

/// Repeatable random numbers for test data.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  /// Uniform in [least, most].
  int64_t integer(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(engine_() % static_cast<uint64_t>(most - least + 1));
  }
  bool chance(double probability) { return uniform() < probability; }
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  float normal(float deviation = 1) { return deviation * normal_(engine_); }

  std::vector<float> normals(int64_t count, float deviation = 1) {
    std::vector<float> result(static_cast<size_t>(count));
    for (float& value : result) value = normal(deviation);
    return result;
  }
  std::vector<uint8_t> bytes(int64_t count) {
    std::vector<uint8_t> result(static_cast<size_t>(count));
    for (uint8_t& value : result) value = static_cast<uint8_t>(engine_());
    return result;
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

}  // namespace chatglm::test
