#include "cpu/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "runtime/half.h"
#include "runtime/quantize.h"
#include "test/random.h"

namespace chatglm::cpu {
namespace {

using test::Random;

class KernelsTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels_ = kernels_by_name(GetParam());
    if (!kernels_) GTEST_SKIP() << "not on this CPU";
  }
  const Kernels* kernels_ = nullptr;
};

INSTANTIATE_TEST_SUITE_P(InstructionSets, KernelsTest, testing::Values("portable", "avx2", "avx512"),
                         [](const auto& info) { return std::string(info.param); });

constexpr float kUntouched = 12345.0f;

struct Operands {
  DataType type;
  int64_t rows, columns, tokens;
  std::vector<uint8_t> weights;  // (rows, columns), at an odd address
  std::vector<float> values;     // (rows, columns), decoded
  std::vector<float> x;          // (tokens, columns): the activations, or codes * scales
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  std::vector<float> bias, before;

  Operands(DataType type, int64_t rows, int64_t columns, int64_t tokens, Random& random)
      : type(type), rows(rows), columns(columns), tokens(tokens) {
    const int64_t row = row_bytes(type, columns);
    values.resize(static_cast<size_t>(rows * columns));
    weights.resize(static_cast<size_t>(rows * row) + 1);
    for (int64_t r = 0; r < rows; ++r) {
      const std::vector<float> w = random.normals(columns, 0.3f);
      from_float(type, w.data(), columns, weights.data() + 1 + r * row);
      if (type == DataType::q8_0) weights[static_cast<size_t>(1 + r * row + 2 + r % 32)] = 0x80;  // -128 is a code too
      to_float(type, weights.data() + 1 + r * row, 1, columns, values.data() + r * columns);
    }
    x = random.normals(tokens * columns);
    for (int64_t b = 0; b < tokens * columns / 32; ++b) {
      scales.push_back(std::fabs(random.normal(0.01f)));
      int32_t sum = 0;
      for (int i = 0; i < 32; ++i) {
        codes.push_back(
            static_cast<int8_t>(random.chance(0.1) ? (random.chance(0.5) ? 127 : -127) : random.integer(-127, 127)));
        sum += codes.back();
      }
      sums.push_back(sum);
    }
    if (type == DataType::q8_0 || type == DataType::q4_0) {
      for (size_t i = 0; i < x.size(); ++i) x[i] = scales[i / 32] * static_cast<float>(codes[i]);
    }
    bias = random.normals(rows);
    before = random.normals(rows * tokens);
  }

  Product product(float* y, int64_t stride, bool with_bias, bool accumulate, int64_t first = 0,
                  int64_t count = -1) const {
    Product p;
    p.type = type;
    p.weights = weights.data() + 1;
    p.row_bytes = row_bytes(type, columns);
    p.columns = columns;
    p.tokens = count < 0 ? tokens : count;
    p.x = x.data() + first * columns;
    p.codes = codes.data() + first * columns;
    p.scales = scales.data() + first * columns / 32;
    p.sums = sums.data() + first * columns / 32;
    p.bias = with_bias ? bias.data() : nullptr;
    p.y = y;
    p.y_stride = stride;
    p.accumulate = accumulate;
    return p;
  }
};

constexpr DataType kTypes[] = {DataType::f32, DataType::f16, DataType::bf16, DataType::q8_0, DataType::q4_0};

TEST_P(KernelsTest, ProductOfEveryTypeAndSize) {
  Random random(10);
  for (const DataType type : kTypes) {
    for (const int64_t columns : {32, 96, 544, 1056}) {
      for (int64_t tokens = 1; tokens <= 9; ++tokens) {
        const int64_t rows = tokens % 3 == 0 ? 1 : tokens % 3 == 1 ? 7 : 13;
        const Operands o(type, rows, columns, tokens, random);
        for (const bool with_bias : {false, true}) {
          const bool accumulate = (tokens + with_bias) % 2;
          const int64_t stride = rows + 3;
          std::vector<float> y(static_cast<size_t>(tokens * stride), kUntouched);
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t r = 0; r < rows; ++r)
              y[static_cast<size_t>(t * stride + r)] = o.before[static_cast<size_t>(t * rows + r)];
          }
          kernels_->product(o.product(y.data(), stride, with_bias, accumulate), 0, rows);
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t r = 0; r < rows; ++r) {
              double sum = 0, magnitudes = 0;
              for (int64_t i = 0; i < columns; ++i) {
                const double term = static_cast<double>(o.values[static_cast<size_t>(r * columns + i)]) *
                                    static_cast<double>(o.x[static_cast<size_t>(t * columns + i)]);
                sum += term;
                magnitudes += std::abs(term);
              }
              if (with_bias) sum += o.bias[static_cast<size_t>(r)];
              if (accumulate) sum += o.before[static_cast<size_t>(t * rows + r)];
              ASSERT_NEAR(y[static_cast<size_t>(t * stride + r)], sum, 1e-6 * (magnitudes + 3))
                  << name_of(type) << " columns " << columns << " tokens " << tokens << " row " << r << " token " << t;
            }
            for (int64_t r = rows; r < stride; ++r) ASSERT_EQ(y[static_cast<size_t>(t * stride + r)], kUntouched);
          }
        }
      }
    }
  }
}

TEST_P(KernelsTest, ATokensProductHasTheSameBitsInEveryBatchAndRowRange) {
  Random random(11);
  for (const DataType type : kTypes) {
    for (const int64_t columns : {96, 1056}) {
      constexpr int64_t kRows = 23, kTokens = 11;
      const Operands o(type, kRows, columns, kTokens, random);
      std::vector<float> all(kRows * kTokens);
      kernels_->product(o.product(all.data(), kRows, true, false), 0, kRows);
      for (int64_t count = 1; count <= 9; ++count) {
        for (int64_t first = 0; first + count <= kTokens; ++first) {
          std::vector<float> some(static_cast<size_t>(kRows * count), kUntouched);
          const int64_t cut = random.integer(0, kRows), second = random.integer(cut, kRows);
          const Product p = o.product(some.data(), kRows, true, false, first, count);
          kernels_->product(p, 0, cut);
          kernels_->product(p, cut, second);
          if (second < kRows) ASSERT_EQ(some[static_cast<size_t>(second)], kUntouched);
          kernels_->product(p, second, kRows);
          ASSERT_EQ(std::memcmp(some.data(), all.data() + first * kRows, some.size() * 4), 0)
              << name_of(type) << " " << first << " " << count;
        }
      }
    }
  }
}

// Keys and values of some pages, and rows of queries that each see so many tokens.
struct Attention {
  int32_t head_size, rows;
  std::vector<int32_t> tokens;      // (rows): that the row sees, over all pages
  std::vector<float> queries;       // (rows, head_size)
  std::vector<float> keys, values;  // (pages, 64, head_size)
  std::vector<uint16_t> half_keys, half_values;
  std::vector<float> result;  // divided
  std::vector<float> sums;

  Attention(int32_t head_size, std::vector<int32_t> tokens, float magnitude, Random& random)
      : head_size(head_size), rows(static_cast<int32_t>(tokens.size())), tokens(std::move(tokens)) {
    queries = random.normals(rows * head_size, magnitude / std::sqrt(static_cast<float>(head_size)));
    keys = random.normals(pages() * 64 * head_size);
    values = random.normals(pages() * 64 * head_size);
    for (std::vector<float>* numbers : {&keys, &values}) {
      for (float& x : *numbers) {
        const uint16_t half = float_to_half(x);
        (numbers == &keys ? half_keys : half_values).push_back(half);
        x = half_to_float(half);  // so that both types have the same numbers
      }
    }
  }
  int32_t pages() const { return (*std::max_element(tokens.begin(), tokens.end()) + 63) / 64; }

  void run(const Kernels& kernels, bool half, int32_t first, int32_t count) {
    result.assign(static_cast<size_t>(count * head_size), 0);
    sums.assign(static_cast<size_t>(count), 0);
    std::vector<float> largest(static_cast<size_t>(count), -INFINITY);
    std::vector<int32_t> visible(static_cast<size_t>(count));
    for (int32_t page = 0; page < pages(); ++page) {
      for (int32_t r = 0; r < count; ++r) {
        visible[static_cast<size_t>(r)] = std::clamp(tokens[static_cast<size_t>(first + r)] - page * 64, 0, 64);
      }
      const int64_t at = static_cast<int64_t>(page) * 64 * head_size;
      AttentionPage work;
      work.keys = half ? static_cast<const void*>(half_keys.data() + at) : keys.data() + at;
      work.values = half ? static_cast<const void*>(half_values.data() + at) : values.data() + at;
      work.head_size = head_size;
      work.rows = count;
      work.queries = queries.data() + first * head_size;
      work.visible = visible.data();
      work.largest = largest.data();
      work.sum = sums.data();
      work.result = result.data();
      (half ? kernels.attend_half : kernels.attend_float)(work);
    }
    for (size_t i = 0; i < result.size(); ++i) result[i] /= sums[i / static_cast<size_t>(head_size)];
  }

  std::vector<double> expected(int32_t row) const {
    std::vector<double> scores(static_cast<size_t>(tokens[static_cast<size_t>(row)]));
    double largest = -INFINITY, sum = 0;
    for (size_t k = 0; k < scores.size(); ++k) {
      for (int32_t d = 0; d < head_size; ++d) {
        scores[k] += static_cast<double>(queries[static_cast<size_t>(row * head_size + d)]) *
                     static_cast<double>(keys[k * static_cast<size_t>(head_size) + static_cast<size_t>(d)]);
      }
      largest = std::max(largest, scores[k]);
    }
    std::vector<double> out(static_cast<size_t>(head_size), 0);
    for (double& score : scores) sum += score = std::exp(score - largest);
    for (size_t k = 0; k < scores.size(); ++k) {
      for (size_t d = 0; d < out.size(); ++d) {
        out[d] += scores[k] / sum * static_cast<double>(values[k * static_cast<size_t>(head_size) + d]);
      }
    }
    return out;
  }
};

TEST_P(KernelsTest, AttentionEqualsASoftmaxInDoublePrecision) {
  Random random(12);
  const std::vector<std::vector<int32_t>> cases = {{1},
                                                   {63},
                                                   {64},
                                                   {65},
                                                   {1, 2, 3, 4, 5},
                                                   {64, 65, 63, 66, 64, 1, 2},
                                                   {128, 129, 130},
                                                   {300, 301, 302, 303, 304, 305}};
  for (const auto& tokens : cases) {
    for (const int32_t head_size : {16, 48, 128}) {
      for (const float magnitude : {1.0f, 30.0f}) {
        Attention a(head_size, tokens, magnitude, random);
        for (const bool half : {false, true}) {
          a.run(*kernels_, half, 0, a.rows);
          const std::vector<float> result = a.result;
          for (int32_t row = 0; row < a.rows; ++row) {
            const std::vector<double> expected = a.expected(row);
            for (int32_t d = 0; d < head_size; ++d) {
              // A score's rounding error grows with the score.
              ASSERT_NEAR(result[static_cast<size_t>(row * head_size + d)], expected[static_cast<size_t>(d)],
                          magnitude > 1 ? 2e-4 : 5e-6)
                  << "head size " << head_size << " row " << row << " of " << a.rows << " half " << half;
            }
          }
          // The same bits, whatever the other rows are.
          for (int32_t row = 0; row < a.rows; ++row) {
            a.run(*kernels_, half, row, 1);
            ASSERT_EQ(std::memcmp(a.result.data(), result.data() + row * head_size, static_cast<size_t>(head_size) * 4),
                      0);
          }
        }
      }
    }
  }
}

TEST_P(KernelsTest, AttentionLeavesRowsThatSeeNothing) {
  Random random(13);
  Attention a(32, {40, 3, 80, 64, 1}, 1, random);
  const std::vector<int32_t> visible = {16, 0, 1, 0, 63};
  std::vector<float> largest = {0.5f, 0.25f, -INFINITY, 2, 1}, sums = {2, 3, 0, 4, 5}, result(5 * 32, 0.75f);
  std::fill(result.begin() + 64, result.begin() + 96, 0.0f);
  const std::vector<float> before = result;
  AttentionPage work{a.keys.data(),  a.values.data(), 32,           5, a.queries.data(), visible.data(),
                     largest.data(), sums.data(),     result.data()};
  kernels_->attend_float(work);
  for (const size_t row : {size_t{1}, size_t{3}}) {
    EXPECT_EQ(largest[row], row == 1 ? 0.25f : 2.0f);
    EXPECT_EQ(sums[row], row == 1 ? 3.0f : 4.0f);
    for (size_t d = 0; d < 32; ++d) EXPECT_EQ(result[row * 32 + d], before[row * 32 + d]);
  }
  // A single visible token: its value.
  for (size_t d = 0; d < 32; ++d) EXPECT_NEAR(result[64 + d] / sums[2], a.values[d], 1e-6);
}

TEST_P(KernelsTest, AttentionOfHugeScoresIsFinite) {
  Random random(14);
  for (const float magnitude : {1e4f, 1e18f}) {
    Attention a(64, {200, 201, 202, 203, 204}, magnitude, random);
    for (const bool half : {false, true}) {
      a.run(*kernels_, half, 0, a.rows);
      for (int32_t row = 0; row < a.rows; ++row) {
        const std::vector<double> expected = a.expected(row);  // in effect the value of one token
        for (size_t d = 0; d < 64; ++d) ASSERT_NEAR(a.result[static_cast<size_t>(row) * 64 + d], expected[d], 1e-3);
      }
    }
  }
}

TEST_P(KernelsTest, NaNIsNotLostInAttention) {
  Random random(15);
  for (const int where : {0, 1, 2}) {
    Attention a(32, {70, 71, 72, 73}, 1, random);
    if (where == 0) std::fill(a.queries.begin(), a.queries.end(), NAN);
    if (where == 1) a.keys[5 * 32 + 3] = NAN;
    if (where == 2) a.values[69 * 32 + 3] = NAN;
    a.run(*kernels_, false, 0, a.rows);
    for (int32_t row = 0; row < a.rows; ++row) {
      bool bad = false;
      for (size_t d = 0; d < 32; ++d) bad = bad || !std::isfinite(a.result[static_cast<size_t>(row) * 32 + d]);
      EXPECT_TRUE(bad) << where << " " << row;
    }
  }
}

TEST_P(KernelsTest, RmsNorm) {
  Random random(16);
  for (const int64_t count : {32, 96, 4096}) {
    for (const float magnitude : {1e-4f, 1.0f, 1e4f}) {
      const std::vector<float> x = random.normals(count, magnitude), weight = random.normals(count);
      std::vector<float> y(static_cast<size_t>(count) + 1, kUntouched);
      kernels_->rms_norm(x.data(), weight.data(), 1e-5f, count, y.data());
      double squares = 0;
      for (const float value : x) squares += static_cast<double>(value) * static_cast<double>(value);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(count) + static_cast<double>(1e-5f));
      for (size_t i = 0; i < x.size(); ++i) {
        const double expected = static_cast<double>(x[i]) * scale * static_cast<double>(weight[i]);
        ASSERT_NEAR(y[i], expected, 2e-6 * std::abs(expected) + 1e-12);
      }
      EXPECT_EQ(y.back(), kUntouched);
    }
  }
  std::vector<float> zeros(64, 0), ones(64, 1), y(64, kUntouched);
  kernels_->rms_norm(zeros.data(), ones.data(), 1e-5f, 64, y.data());
  EXPECT_EQ(y, zeros);
}

TEST_P(KernelsTest, SwigluFromTinyToHuge) {
  std::vector<float> gate;
  for (const float magnitude :
       {0.0f, 1e-30f, 1e-6f, 0.1f, 1.0f, 5.0f, 20.0f, 86.0f, 87.5f, 89.0f, 200.0f, 1e4f, 1e18f, 3e38f}) {
    gate.push_back(magnitude);
    gate.push_back(-magnitude);
  }
  Random random(17);
  while (gate.size() < 544) gate.push_back(random.normal(8));
  std::vector<float> gate_up = gate;
  for (size_t i = 0; i < gate.size(); ++i) gate_up.push_back(i < 28 ? 0.5f : random.normal());
  std::vector<float> y(545, kUntouched);
  kernels_->swiglu(gate_up.data(), 544, y.data());
  for (size_t i = 0; i < 544; ++i) {
    const double g = gate_up[i], expected = g / (1 + std::exp(-g)) * static_cast<double>(gate_up[544 + i]);
    ASSERT_TRUE(std::isfinite(y[i])) << gate[i];
    // Below exp(-87) the result stays at that: next to nothing of the gate.
    const double tolerance = g < -86 ? 2e-38 * std::abs(g) : 1e-6 * std::abs(expected) + 1e-38;
    ASSERT_NEAR(y[i], expected, tolerance) << gate[i];
  }
  EXPECT_EQ(y.back(), kUntouched);
}

TEST_P(KernelsTest, SwigluKeepsNaN) {
  std::vector<float> gate_up(64, 1);
  gate_up[3] = NAN;
  gate_up[32 + 9] = NAN;
  std::vector<float> y(32);
  kernels_->swiglu(gate_up.data(), 32, y.data());
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(std::isnan(y[i]), i == 3 || i == 9) << i;
}

TEST_P(KernelsTest, QuantizesActivations) {
  Random random(18);
  for (int round = 0; round < 200; ++round) {
    constexpr int64_t kCount = 96;
    std::vector<float> x = random.normals(kCount, std::pow(10.0f, static_cast<float>(random.integer(-10, 10))));
    if (round % 10 == 0) std::fill(x.begin(), x.begin() + 32, 0.0f);
    std::vector<int8_t> codes(kCount + 1, 99);
    std::vector<float> scales(4, kUntouched);
    std::vector<int32_t> sums(4, 99);
    kernels_->quantize(x.data(), kCount, codes.data(), scales.data(), sums.data());
    for (size_t b = 0; b < 3; ++b) {
      double largest = 0;
      int32_t sum = 0;
      for (size_t i = 32 * b; i < 32 * b + 32; ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(x[i])));
        sum += codes[i];
      }
      EXPECT_NEAR(scales[b], largest / 127, 1e-7 * largest);
      EXPECT_EQ(sums[b], sum);
      for (size_t i = 32 * b; i < 32 * b + 32; ++i) {
        EXPECT_NEAR(codes[i], largest == 0 ? 0 : static_cast<double>(x[i]) / largest * 127, 0.5001);
      }
    }
    EXPECT_EQ(codes.back(), 99);
    EXPECT_EQ(scales.back(), kUntouched);
    EXPECT_EQ(sums.back(), 99);
  }
}

TEST_P(KernelsTest, QuantizeTakesTinyNumbersForZeroAndKeepsNaN) {
  std::vector<int8_t> codes(32);
  float scale;
  int32_t sum;
  for (const float tiny : {1e-45f, 1e-40f, 3e-38f, 1e-37f}) {
    std::vector<float> x(32, tiny);
    x[7] = -tiny;
    kernels_->quantize(x.data(), 32, codes.data(), &scale, &sum);
    int32_t expected = 0;
    for (size_t i = 0; i < 32; ++i) {
      expected += codes[i];
      EXPECT_LE(std::abs(static_cast<double>(codes[i]) * static_cast<double>(scale)), 2e-37);
    }
    EXPECT_EQ(sum, expected);
  }
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (size_t at = 0; at < 32; ++at) {
      std::vector<float> x(32, 1);
      x[at] = bad;
      kernels_->quantize(x.data(), 32, codes.data(), &scale, &sum);
      EXPECT_TRUE(std::isnan(scale)) << bad << " at " << at;
    }
  }
}

TEST_P(KernelsTest, ToHalf) {
  Random random(19);
  std::vector<float> x = {0.0f,     -0.0f,   65504.0f, 65519.9f,   65520.0f, -1e30f,
                          0x1p-25f, 6.1e-5f, 5.9e-8f,  1.0009765f, 2049.0f,  2051.0f};
  while (x.size() < 256) x.push_back(random.normal(std::pow(10.0f, static_cast<float>(random.integer(-8, 4)))));
  std::vector<uint16_t> y(257, 77);
  kernels_->to_half(x.data(), 256, y.data());
  for (size_t i = 0; i < 256; ++i) EXPECT_EQ(y[i], float_to_half(x[i])) << x[i];
  EXPECT_EQ(y[256], 77);
}

TEST_P(KernelsTest, ReadTakesTheWholeRange) {
  const std::vector<uint8_t> memory(4096, 1);
  EXPECT_EQ(kernels_->read(memory.data(), 4096), kernels_->read(memory.data(), 512));
}

TEST(Kernels, TheEnvironmentChooses) {
  setenv("CHATGLM_KERNELS", "portable", 1);
  EXPECT_STREQ(select_kernels().name, "portable");
  setenv("CHATGLM_KERNELS", "sse9", 1);
  EXPECT_ANY_THROW(select_kernels());
  unsetenv("CHATGLM_KERNELS");
  EXPECT_EQ(kernels_by_name("sse9"), nullptr);
  EXPECT_EQ(&select_kernels(), &select_kernels());
}

}  // namespace
}  // namespace chatglm::cpu
