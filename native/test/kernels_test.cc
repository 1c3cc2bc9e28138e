#include "cpu/kernels/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/half.h"
#include "cpu/packed_matrix.h"
#include "model/quantize.h"
#include "test/random.h"

namespace chatglm::cpu {
namespace {

using test::Random;

class KernelsTest : public testing::TestWithParam<const Kernels*> {
 protected:
  void SetUp() override {
    if (!kernels_by_name(GetParam()->name)) GTEST_SKIP() << "not on this CPU";
  }
  const Kernels* kernels_ = GetParam();
};

INSTANTIATE_TEST_SUITE_P(InstructionSets, KernelsTest, testing::ValuesIn(all_kernels().begin(), all_kernels().end()),
                         [](const auto& info) { return std::string(info.param->name); });

constexpr float kUntouched = 12345.0f;

struct Operands {
  DataType type;
  int64_t rows, columns, tokens;
  std::vector<uint8_t> weights;  // (rows, columns), at an odd address
  std::vector<float> values;     // (rows, columns), decoded
  std::vector<float> x;          // (tokens, columns): the activations, or codes * scales
  std::vector<ActivationBlock> blocks;
  std::vector<float> before;
  PackedMatrix packed, gated;

  Operands(DataType type, int64_t rows, int64_t columns, int64_t tokens, const Kernels& kernels, Random& random)
      : type(type), rows(rows), columns(columns), tokens(tokens) {
    const int64_t row = row_bytes(type, columns);
    values.resize(static_cast<size_t>(rows * columns));
    weights.resize(static_cast<size_t>(rows * row) + 1);
    for (int64_t r = 0; r < rows; ++r) {
      const std::vector<float> w = random.normals(columns, 0.3f);
      from_float(type, w.data(), columns, weights.data() + 1 + r * row);
      if (type == DataType::q8_0) weights[static_cast<size_t>(1 + r * row + 2 + r % 32)] = 0x80;  // -128 is a code too
      // The largest that sums of products have to hold.
      if (type == DataType::q8_0 && r == 1) std::memset(weights.data() + 1 + r * row + 2, 0x80, 32);
      if (type == DataType::q4_0 && r == 1) std::memset(weights.data() + 1 + r * row + 2, 0xff, 16);
      to_float(type, weights.data() + 1 + r * row, 1, columns, values.data() + r * columns);
    }
    x = random.normals(tokens * columns);
    const int32_t zero_point = type == DataType::q4_0 ? 8 : kernels.q8_0_zero_point;
    for (int64_t b = 0; b < tokens * columns / 32; ++b) {
      ActivationBlock block;
      block.scale = std::fabs(random.normal(0.01f));
      int32_t sum = 0;
      for (int8_t& code : block.codes) {
        code = static_cast<int8_t>(random.chance(0.1) ? (random.chance(0.5) ? 127 : -127) : random.integer(-127, 127));
        if (b == 0) code = tokens % 2 ? 127 : -127;
        sum += code;
      }
      block.offset = -zero_point * sum;
      blocks.push_back(block);
    }
    if (type == DataType::q8_0 || type == DataType::q4_0) {
      for (size_t i = 0; i < x.size(); ++i)
        x[i] = blocks[i / 32].scale * static_cast<float>(blocks[i / 32].codes[i % 32]);
    }
    before = random.normals(rows * tokens);
    const Tensor matrix{type, rows, columns, weights.data() + 1};
    packed = PackedMatrix(matrix, PackedMatrix::Order::plain, kernels);
    packed.pack(0, rows, matrix.data);
    if (rows % 2 == 0) {
      gated = PackedMatrix(matrix, PackedMatrix::Order::gated, kernels);
      gated.pack(0, rows / 3, matrix.data);  // in two parts, wherever they begin
      gated.pack(rows / 3, rows, matrix.row(rows / 3));
    }
  }

  Product product(const PackedMatrix& matrix, float* y, int64_t stride, Epilogue epilogue, int64_t first = 0,
                  int64_t count = -1) const {
    Product p;
    p.type = type;
    p.weights = matrix.data.data();
    p.panel_bytes = matrix.panel_bytes;
    p.outputs = matrix.outputs;
    p.columns = columns;
    p.tokens = count < 0 ? tokens : count;
    p.x = x.data() + first * columns;
    p.blocks = blocks.data() + first * columns / 32;
    p.y = y;
    p.y_stride = stride;
    p.epilogue = epilogue;
    return p;
  }

  // In double precision, and the sum of the terms' magnitudes.
  std::pair<double, double> expected(int64_t row, int64_t token) const {
    double sum = 0, magnitudes = 0;
    for (int64_t i = 0; i < columns; ++i) {
      const double term = static_cast<double>(values[static_cast<size_t>(row * columns + i)]) *
                          static_cast<double>(x[static_cast<size_t>(token * columns + i)]);
      sum += term;
      magnitudes += std::abs(term);
    }
    return {sum, magnitudes};
  }
};

constexpr DataType kTypes[] = {DataType::f32, DataType::f16, DataType::bf16, DataType::q8_0, DataType::q4_0};

TEST_P(KernelsTest, ProductOfEveryTypeAndSize) {
  Random random(10);
  for (const DataType type : kTypes) {
    for (const int64_t columns : {32, 96, 544, 1056}) {
      for (int64_t tokens = 1; tokens <= 27; tokens += tokens < 14 ? 1 : 5) {
        const int64_t rows = tokens % 3 == 0 ? 2 : tokens % 3 == 1 ? 71 : 33;
        const Operands o(type, rows, columns, tokens, *kernels_, random);
        for (const Epilogue epilogue : {Epilogue::store, Epilogue::add}) {
          const int64_t stride = rows + 3;
          std::vector<float> y(static_cast<size_t>(tokens * stride), kUntouched);
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t r = 0; r < rows; ++r)
              y[static_cast<size_t>(t * stride + r)] = o.before[static_cast<size_t>(t * rows + r)];
          }
          kernels_->product(o.product(o.packed, y.data(), stride, epilogue), 0, o.packed.panels);
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t r = 0; r < rows; ++r) {
              auto [sum, magnitudes] = o.expected(r, t);
              if (epilogue == Epilogue::add) sum += o.before[static_cast<size_t>(t * rows + r)];
              ASSERT_NEAR(y[static_cast<size_t>(t * stride + r)], sum, 2e-6 * (magnitudes + 3))
                  << name_of(type) << " columns " << columns << " tokens " << tokens << " row " << r << " token " << t;
            }
            for (int64_t r = rows; r < stride; ++r) ASSERT_EQ(y[static_cast<size_t>(t * stride + r)], kUntouched);
          }
        }
      }
    }
  }
}

TEST_P(KernelsTest, GatedProduct) {
  Random random(20);
  for (const DataType type : kTypes) {
    for (const int64_t outputs : {1, 20, 65}) {
      for (const int64_t tokens : {1, 2, 7, 15}) {
        const Operands o(type, 2 * outputs, 96, tokens, *kernels_, random);
        const int64_t stride = outputs + 1;
        std::vector<float> y(static_cast<size_t>(tokens * stride), kUntouched);
        kernels_->product(o.product(o.gated, y.data(), stride, Epilogue::swiglu), 0, o.gated.panels);
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t r = 0; r < outputs; ++r) {
            const auto [gate, gate_magnitudes] = o.expected(r, t);
            const auto [up, up_magnitudes] = o.expected(outputs + r, t);
            const double expected = gate / (1 + std::exp(-gate)) * up;
            ASSERT_NEAR(y[static_cast<size_t>(t * stride + r)], expected,
                        4e-6 * (gate_magnitudes + 1) * (up_magnitudes + 1))
                << name_of(type) << " outputs " << outputs << " tokens " << tokens << " row " << r;
          }
          ASSERT_EQ(y[static_cast<size_t>(t * stride + outputs)], kUntouched);
        }
      }
    }
  }
}

// A gated product of f32 weights with one column that is not zero: the gate and the other factor are chosen freely.
std::vector<float> swiglu_of(const Kernels& kernels, const std::vector<float>& gate, const std::vector<float>& up) {
  const auto outputs = static_cast<int64_t>(gate.size());
  std::vector<float> weights(static_cast<size_t>(2 * outputs * 32), 0.0f), x(32, 0.0f), y(gate.size());
  x[5] = 1;
  for (size_t i = 0; i < gate.size(); ++i) {
    weights[32 * i + 5] = gate[i];
    weights[32 * (gate.size() + i) + 5] = up[i];
  }
  const Tensor matrix{DataType::f32, 2 * outputs, 32, reinterpret_cast<const uint8_t*>(weights.data())};
  PackedMatrix packed(matrix, PackedMatrix::Order::gated, kernels);
  packed.pack(0, 2 * outputs, matrix.data);
  Product p;
  p.weights = packed.data.data();
  p.panel_bytes = packed.panel_bytes;
  p.outputs = outputs;
  p.columns = 32;
  p.tokens = 1;
  p.x = x.data();
  p.y = y.data();
  p.epilogue = Epilogue::swiglu;
  kernels.product(p, 0, packed.panels);
  return y;
}

TEST_P(KernelsTest, SwigluFromTinyToHuge) {
  std::vector<float> gate, up;
  for (const float magnitude :
       {0.0f, 1e-30f, 1e-6f, 0.1f, 1.0f, 5.0f, 20.0f, 86.0f, 87.5f, 89.0f, 200.0f, 1e4f, 1e18f, 3e38f}) {
    gate.push_back(magnitude);
    gate.push_back(-magnitude);
  }
  Random random(17);
  while (gate.size() < 544) gate.push_back(random.normal(8));
  while (up.size() < gate.size()) up.push_back(up.size() < 28 ? 0.5f : random.normal());
  const std::vector<float> y = swiglu_of(*kernels_, gate, up);
  for (size_t i = 0; i < gate.size(); ++i) {
    const double g = gate[i], expected = g / (1 + std::exp(-g)) * static_cast<double>(up[i]);
    ASSERT_TRUE(std::isfinite(y[i])) << gate[i];
    // Below exp(-87) the result stays at that: next to nothing of the gate.
    const double tolerance = g < -86 ? 2e-38 * std::abs(g) : 1e-6 * std::abs(expected) + 1e-38;
    ASSERT_NEAR(y[i], expected, tolerance) << gate[i];
  }
}

TEST_P(KernelsTest, SwigluKeepsNaN) {
  std::vector<float> gate(32, 1), up(32, 1);
  gate[3] = NAN;
  up[9] = NAN;
  const std::vector<float> y = swiglu_of(*kernels_, gate, up);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(std::isnan(y[i]), i == 3 || i == 9) << i;
}

TEST_P(KernelsTest, ATokensProductHasTheSameBitsInEveryBatchAndPanelRange) {
  Random random(11);
  for (const DataType type : kTypes) {
    for (const int64_t columns : {96, 1056}) {
      constexpr int64_t kRows = 150, kTokens = 29;
      const Operands o(type, kRows, columns, kTokens, *kernels_, random);
      const int64_t panels = o.packed.panels, panel_rows = 2 * kernels_->lanes;
      std::vector<float> all(kRows * kTokens);
      kernels_->product(o.product(o.packed, all.data(), kRows, Epilogue::store), 0, panels);
      for (int64_t count = 1; count <= 14; ++count) {
        for (int64_t first = 0; first + count <= kTokens; first += random.integer(1, 5)) {
          std::vector<float> some(static_cast<size_t>(kRows * count), kUntouched);
          const int64_t cut = random.integer(0, panels), second = random.integer(cut, panels);
          const Product p = o.product(o.packed, some.data(), kRows, Epilogue::store, first, count);
          kernels_->product(p, 0, cut);
          kernels_->product(p, cut, second);
          if (second < panels) ASSERT_EQ(some[static_cast<size_t>(second * panel_rows)], kUntouched);
          kernels_->product(p, second, panels);
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
  std::vector<float> keys, values;  // (all tokens, head_size)
  std::vector<float> result;        // (rows that were computed, head_size), divided

  Attention(int32_t head_size, std::vector<int32_t> tokens, float magnitude, Random& random)
      : head_size(head_size), rows(static_cast<int32_t>(tokens.size())), tokens(std::move(tokens)) {
    queries = random.normals(rows * head_size, magnitude / std::sqrt(static_cast<float>(head_size)));
    keys = random.normals(pages() * 64 * head_size);
    values = random.normals(pages() * 64 * head_size);
    // So that all types have the same numbers: half the codes of a block whose largest is 63.5.
    for (std::vector<float>* numbers : {&keys, &values}) {
      for (size_t i = 0; i < numbers->size(); ++i) {
        float& x = (*numbers)[i];
        x = i % 32 == 0 ? 63.5f / 16 : std::clamp(std::round(x * 32), -127.0f, 127.0f) / 32;
      }
    }
  }
  int32_t pages() const { return (*std::max_element(tokens.begin(), tokens.end()) + 63) / 64; }

  // (pages, keys and values) as the kernels want them; all that no token is in is NaN where the type has that.
  std::vector<uint8_t> stored(const Kernels& kernels, KvType type) const {
    const int64_t bytes = kv_page_bytes(type, head_size);
    std::vector<uint8_t> kv(static_cast<size_t>(2 * pages() * bytes), 0xff);
    const int32_t count = *std::max_element(tokens.begin(), tokens.end());
    for (int32_t t = 0; t < count; ++t) {
      uint8_t* page = kv.data() + t / 64 * 2 * bytes;
      kernels.store_kv(type, keys.data() + t * head_size, values.data() + t * head_size, head_size, t % 64, page,
                       page + bytes);
    }
    return kv;
  }

  struct State {
    std::vector<float> largest, sums, results;
    State(int32_t rows, int32_t head_size)
        : largest(static_cast<size_t>(rows), -INFINITY),
          sums(static_cast<size_t>(rows)),
          results(static_cast<size_t>(rows * head_size)) {}
    AttentionState view() { return {largest.data(), sums.data(), results.data()}; }
  };

  void attend(const Kernels& kernels, KvType type, const std::vector<uint8_t>& kv, int32_t first, int32_t count,
              int32_t page, State& state) const {
    std::vector<int32_t> visible(static_cast<size_t>(count));
    for (int32_t r = 0; r < count; ++r) {
      visible[static_cast<size_t>(r)] = std::clamp(tokens[static_cast<size_t>(first + r)] - page * 64, 0, 64);
    }
    AttentionPage work;
    work.type = type;
    work.keys = kv.data() + page * 2 * kv_page_bytes(type, head_size);
    work.values = work.keys + kv_page_bytes(type, head_size);
    work.head_size = head_size;
    work.rows = count;
    work.queries = queries.data() + first * head_size;
    work.visible = visible.data();
    kernels.attend(work, state.view());
  }

  void run(const Kernels& kernels, KvType type, int32_t first, int32_t count) {
    const std::vector<uint8_t> kv = stored(kernels, type);
    State state(count, head_size);
    for (int32_t page = 0; page < pages(); ++page) attend(kernels, type, kv, first, count, page, state);
    divide(state);
  }
  // Each page by itself, and merged.
  void run_merged(const Kernels& kernels, KvType type) {
    const std::vector<uint8_t> kv = stored(kernels, type);
    State state(rows, head_size);
    for (int32_t page = 0; page < pages(); ++page) {
      State part(rows, head_size);
      attend(kernels, type, kv, 0, rows, page, part);
      kernels.merge(state.view(), part.view(), rows, head_size);
    }
    divide(state);
  }
  void divide(const State& state) {
    result = state.results;
    for (size_t i = 0; i < result.size(); ++i) result[i] /= state.sums[i / static_cast<size_t>(head_size)];
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

constexpr KvType kKvTypes[] = {KvType::f16, KvType::f32, KvType::q8_0};
bool fits(KvType type, int32_t head_size) { return type != KvType::q8_0 || head_size % 32 == 0; }

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
    for (const int32_t head_size : {16, 48, 64, 128}) {
      for (const float magnitude : {0.3f, 10.0f}) {
        Attention a(head_size, tokens, magnitude, random);
        for (const KvType type : kKvTypes) {
          if (!fits(type, head_size)) continue;
          a.run_merged(*kernels_, type);
          const std::vector<float> merged = a.result;
          a.run(*kernels_, type, 0, a.rows);
          const std::vector<float> result = a.result;
          for (int32_t row = 0; row < a.rows; ++row) {
            const std::vector<double> expected = a.expected(row);
            for (int32_t d = 0; d < head_size; ++d) {
              const auto i = static_cast<size_t>(row * head_size + d);
              // A score's rounding error grows with the score.
              const double tolerance = magnitude > 1 ? 4e-4 : 2e-5;
              ASSERT_NEAR(result[i], expected[static_cast<size_t>(d)], tolerance)
                  << "head size " << head_size << " row " << row << " of " << a.rows << " type "
                  << static_cast<int>(type);
              ASSERT_NEAR(merged[i], expected[static_cast<size_t>(d)], tolerance);
            }
          }
          // The same bits, whatever the other rows are.
          for (int32_t row = 0; row < a.rows; ++row) {
            a.run(*kernels_, type, row, 1);
            ASSERT_EQ(std::memcmp(a.result.data(), result.data() + row * head_size, static_cast<size_t>(head_size) * 4),
                      0);
          }
        }
      }
    }
  }
}

TEST_P(KernelsTest, RowsThatSeeNothingStayAsTheyAre) {
  Random random(13);
  Attention a(32, {16, 0, 1, 0, 63}, 1, random);
  Attention::State state(5, 32);
  state.largest = {0.5f, 0.25f, -INFINITY, 2, 1};
  state.sums = {2, 3, 0, 4, 5};
  state.results.assign(5 * 32, 0.75f);
  std::fill(state.results.begin() + 64, state.results.begin() + 96, 0.0f);
  const std::vector<float> before = state.results;
  a.attend(*kernels_, KvType::f32, a.stored(*kernels_, KvType::f32), 0, 5, 0, state);
  const auto expect_kept = [&] {
    for (const size_t row : {size_t{1}, size_t{3}}) {
      EXPECT_EQ(state.largest[row], row == 1 ? 0.25f : 2.0f);
      EXPECT_EQ(state.sums[row], row == 1 ? 3.0f : 4.0f);
      for (size_t d = 0; d < 32; ++d) EXPECT_EQ(state.results[row * 32 + d], before[row * 32 + d]);
    }
  };
  expect_kept();
  // A single visible token: its value.
  for (size_t d = 0; d < 32; ++d) EXPECT_NEAR(state.results[64 + d] / state.sums[2], a.values[d], 1e-6);
  Attention::State nothing(5, 32);
  kernels_->merge(state.view(), nothing.view(), 5, 32);
  expect_kept();
}

TEST_P(KernelsTest, AttentionOfHugeScoresIsFinite) {
  Random random(14);
  for (const float magnitude : {1e4f, 1e18f}) {
    Attention a(64, {200, 201, 202, 203, 204}, magnitude, random);
    for (const KvType type : kKvTypes) {
      a.run(*kernels_, type, 0, a.rows);
      for (int32_t row = 0; row < a.rows; ++row) {
        const std::vector<double> expected = a.expected(row);  // in effect the value of one token
        for (size_t d = 0; d < 64; ++d) ASSERT_NEAR(a.result[static_cast<size_t>(row) * 64 + d], expected[d], 1e-3);
      }
    }
  }
}

TEST_P(KernelsTest, NaNIsNotLostInAttention) {
  Random random(15);
  for (const KvType type : kKvTypes) {
    for (const int where : {0, 1, 2}) {
      Attention a(32, {70, 71, 72, 73}, 1, random);
      if (where == 0) std::fill(a.queries.begin(), a.queries.end(), NAN);
      if (where == 1) a.keys[5 * 32 + 3] = NAN;
      if (where == 2) a.values[69 * 32 + 3] = NAN;
      for (const bool merged : {false, true}) {
        if (merged)
          a.run_merged(*kernels_, type);
        else
          a.run(*kernels_, type, 0, a.rows);
        for (int32_t row = 0; row < a.rows; ++row) {
          bool bad = false;
          for (size_t d = 0; d < 32; ++d) bad = bad || !std::isfinite(a.result[static_cast<size_t>(row) * 32 + d]);
          EXPECT_TRUE(bad) << where << " " << row << " type " << static_cast<int>(type);
        }
      }
    }
  }
}

TEST_P(KernelsTest, ARowIsNotTouchedByTokensThatItDoesNotSee) {
  Random random(22);
  for (const KvType type : kKvTypes) {
    Attention a(32, {70, 71, 72, 73, 64, 3}, 1, random);
    Attention clean = a;
    clean.run(*kernels_, type, 0, a.rows);
    a.values[71 * 32 + 3] = NAN;
    a.keys[71 * 32 + 3] = NAN;
    a.run(*kernels_, type, 0, a.rows);
    for (const size_t row : {0, 1, 4, 5}) {
      EXPECT_EQ(std::memcmp(a.result.data() + row * 32, clean.result.data() + row * 32, 32 * 4), 0) << row;
    }
    EXPECT_TRUE(std::isnan(a.result[2 * 32 + 3])) << static_cast<int>(type);
  }
}

// Keys lie by dimension, values by token; f16 is rounded to nearest, q8_0 to a 127th of a block's largest.
TEST_P(KernelsTest, StoresKeysAndValues) {
  Random random(19);
  for (const int32_t head_size : {16, 96, 128}) {
    for (const KvType type : kKvTypes) {
      if (!fits(type, head_size)) continue;
      std::vector<float> key = random.normals(head_size), value = random.normals(head_size);
      key[1] = 65519.0f;
      key[2] = 5.9e-8f;
      value[3] = -6.1e-5f;
      const auto bytes = static_cast<size_t>(kv_page_bytes(type, head_size));
      std::vector<uint8_t> keys(bytes, 0x5a), values(bytes, 0x5a);
      for (const int32_t slot : {0, 17, 63}) {
        kernels_->store_kv(type, key.data(), value.data(), head_size, slot, keys.data(), values.data());
        const auto number = [&](const std::vector<uint8_t>& page, int32_t index, int32_t block) -> float {
          float x;
          if (type == KvType::f32) return std::memcpy(&x, page.data() + 4 * index, 4), x;
          if (type == KvType::f16) return half_to_float(load_u16(page.data() + 2 * index));
          return half_to_float(load_u16(page.data() + 64 * head_size + 2 * block)) *
                 static_cast<float>(static_cast<int8_t>(page[static_cast<size_t>(index)]));
        };
        for (int32_t d = 0; d < head_size; ++d) {
          const auto i = static_cast<size_t>(d);
          const float k = number(keys, d * 64 + slot, d / 32 * 64 + slot),
                      v = number(values, slot * head_size + d, slot * (head_size / 32) + d / 32);
          if (type == KvType::q8_0) {
            EXPECT_NEAR(k, key[i], d < 32 ? 65519.0 / 127 * 0.51 : 0.03) << d;
            EXPECT_NEAR(v, value[i], 0.03) << d;
          } else {
            EXPECT_EQ(k, type == KvType::f32 ? key[i] : half_to_float(float_to_half(key[i]))) << d;
            EXPECT_EQ(v, type == KvType::f32 ? value[i] : half_to_float(float_to_half(value[i]))) << d;
          }
        }
      }
      // The same bytes as any other instruction set's: pages are exchanged between machines.
      std::vector<uint8_t> portable_keys(bytes, 0x5a), portable_values(bytes, 0x5a);
      for (const int32_t slot : {0, 17, 63}) {
        portable_kernels.store_kv(type, key.data(), value.data(), head_size, slot, portable_keys.data(),
                                  portable_values.data());
      }
      EXPECT_EQ(keys, portable_keys);
      EXPECT_EQ(values, portable_values);
      // The other slots are as they were.
      const size_t size = type == KvType::f32 ? 4 : type == KvType::f16 ? 2 : 1;
      const auto untouched = static_cast<size_t>(std::count(keys.begin(), keys.end(), 0x5a));
      EXPECT_GE(untouched, size * 61 * static_cast<size_t>(head_size));
    }
  }
}

TEST_P(KernelsTest, Rotates) {
  Random random(21);
  for (const int32_t count : {16, 48, 128}) {
    for (const int32_t dimension : {0, 2, 8, 14, count / 2, count}) {
      for (const bool two_passes : {false, true}) {
        const std::vector<float> sum = random.normals(count), more = random.normals(count, 0.01f),
                                 bias = random.normals(count);
        std::vector<float> cosines, sines;
        for (int32_t j = 0; j < dimension / 2; ++j) {
          const float angle = random.normal(3);
          for (const float sign : {-1.0f, 1.0f}) {
            cosines.push_back(std::cos(angle));
            sines.push_back(sign * std::sin(angle));
          }
        }
        std::vector<float> y = sum;  // in place
        Rotation r;
        r.sum = r.y = y.data();
        r.second_pass = two_passes ? more.data() : nullptr;
        r.bias = bias.data();
        r.cosines = dimension ? cosines.data() : nullptr;
        r.sines = dimension ? sines.data() : nullptr;
        r.rope_dimension = dimension;
        r.count = count;
        r.scale = 0.25f;
        kernels_->rotate(r);
        const auto x = [&](size_t i) {
          return static_cast<double>(sum[i]) + (two_passes ? static_cast<double>(more[i]) : 0) +
                 static_cast<double>(bias[i]);
        };
        for (size_t i = 0; i < y.size(); ++i) {
          const bool rotated = i < static_cast<size_t>(dimension);
          const double turned =
              rotated ? x(i) * static_cast<double>(cosines[i]) + x(i ^ 1) * static_cast<double>(sines[i]) : x(i);
          EXPECT_NEAR(y[i], 0.25 * turned, 1e-6) << count << " " << dimension << " " << i;
        }
      }
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

TEST_P(KernelsTest, QuantizesActivations) {
  Random random(18);
  for (int round = 0; round < 200; ++round) {
    constexpr int64_t kCount = 96;
    std::vector<float> x = random.normals(kCount, std::pow(10.0f, static_cast<float>(random.integer(-10, 10))));
    if (round % 10 == 0) std::fill(x.begin(), x.begin() + 32, 0.0f);
    const int32_t zero_point = round % 3 == 0 ? 0 : round % 3 == 1 ? 8 : 128;
    std::vector<ActivationBlock> blocks(4);
    blocks[3].scale = kUntouched;
    std::vector<float> remainder(kCount);
    kernels_->quantize(x.data(), kCount, zero_point, blocks.data(), round % 2 ? remainder.data() : nullptr);
    for (size_t b = 0; b < 3; ++b) {
      double largest = 0;
      int32_t sum = 0;
      for (size_t i = 32 * b; i < 32 * b + 32; ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(x[i])));
        sum += blocks[b].codes[i % 32];
      }
      EXPECT_NEAR(blocks[b].scale, largest / 127, 1e-7 * largest);
      EXPECT_EQ(blocks[b].offset, -zero_point * sum);
      for (size_t i = 32 * b; i < 32 * b + 32; ++i) {
        const double code = blocks[b].codes[i % 32];
        EXPECT_NEAR(code, largest == 0 ? 0 : static_cast<double>(x[i]) / largest * 127, 0.5001);
        if (round % 2) {
          EXPECT_NEAR(remainder[i], static_cast<double>(x[i]) - code * static_cast<double>(blocks[b].scale),
                      1e-6 * largest);
        }
      }
    }
    EXPECT_EQ(blocks[3].scale, kUntouched);
  }
}

TEST_P(KernelsTest, QuantizeTakesTinyNumbersForZeroAndKeepsNaN) {
  ActivationBlock block;
  for (const float tiny : {1e-45f, 1e-40f, 3e-38f, 1e-37f}) {
    std::vector<float> x(32, tiny);
    x[7] = -tiny;
    kernels_->quantize(x.data(), 32, 8, &block, nullptr);
    int32_t sum = 0;
    for (const int8_t code : block.codes) {
      sum += code;
      EXPECT_LE(std::abs(static_cast<double>(code) * static_cast<double>(block.scale)), 2e-37);
    }
    EXPECT_EQ(block.offset, -8 * sum);
  }
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (size_t at = 0; at < 32; ++at) {
      std::vector<float> x(32, 1);
      x[at] = bad;
      kernels_->quantize(x.data(), 32, 8, &block, nullptr);
      EXPECT_TRUE(std::isnan(block.scale)) << bad << " at " << at;
    }
  }
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
