#include <algorithm>
#include <limits>
#include <ostream>
#include <set>

#include "cuda/linear/stream_k.h"
#include "test/cuda/support.h"

namespace chatglm::test {
namespace {

using cuda::Epilogue;

// --- The work split, on the host.

struct SplitCase {
  int32_t tiles, steps, blocks, least_steps;
};

/// Walks through all blocks' segments: every iteration is there once, no block is idle, each part of a shared tile has
/// a slot of its own, and those who share a tile are the blocks that its owners say.
void verify_split(const SplitCase& c) {
  SCOPED_TRACE(testing::Message() << c.tiles << " tiles of " << c.steps << " steps on " << c.blocks << " blocks");
  const cuda::StreamK split = cuda::split_stream_k(c.tiles, c.steps, c.blocks, c.least_steps);
  ASSERT_EQ(split.whole + split.shared, c.tiles);
  ASSERT_LE(split.blocks, c.blocks);
  std::vector<int32_t> next_step(static_cast<size_t>(c.tiles), 0);  // of each tile: parts come in the blocks' order
  std::vector<std::vector<int32_t>> parts(static_cast<size_t>(c.tiles));
  for (int32_t b = 0; b < split.blocks; ++b) {
    cuda::StreamKBlock work(split, b);
    cuda::StreamKSegment s;
    std::set<int32_t> slots;
    int64_t steps = 0;
    while (work.next(s)) {
      steps += s.count;
      ASSERT_GT(s.count, 0);
      ASSERT_EQ(next_step[static_cast<size_t>(s.tile)], s.first);
      next_step[static_cast<size_t>(s.tile)] += s.count;
      if (s.count == c.steps) continue;
      const auto begin = static_cast<uint32_t>((s.tile - split.whole) * c.steps);
      EXPECT_TRUE(slots.insert(split.begin(b) >= begin ? 0 : 1).second);
      parts[static_cast<size_t>(s.tile)].push_back(b);
    }
    EXPECT_GT(steps, 0);
  }
  for (int32_t t = 0; t < c.tiles; ++t) {
    EXPECT_EQ(next_step[static_cast<size_t>(t)], c.steps);
    const std::vector<int32_t>& shared = parts[static_cast<size_t>(t)];
    if (shared.empty()) continue;
    const auto begin = static_cast<uint32_t>((t - split.whole) * c.steps);
    const int32_t first = split.owner(begin), last = split.owner(begin + static_cast<uint32_t>(c.steps) - 1);
    EXPECT_EQ(shared.front(), first);
    EXPECT_EQ(shared.back(), last);
    EXPECT_EQ(static_cast<int32_t>(shared.size()), last - first + 1);
  }
}

TEST(StreamKTest, EveryIterationIsDoneOnce) {
  for (const int32_t tiles : {1, 2, 5, 16, 36, 107, 119, 131, 132, 133, 200, 264, 265, 300, 1712}) {
    for (const int32_t steps : {1, 2, 7, 64, 107}) {
      for (const int32_t blocks : {1, 13, 132, 264}) {
        for (const int32_t least_steps : {1, 4}) verify_split({tiles, steps, blocks, least_steps});
      }
    }
  }
}

TEST(StreamKTest, LinesThatAreTooLongAreNotCut) {
  verify_split({3, 1 << 20, 132, 4});
  const cuda::StreamK split = cuda::split_stream_k(133, 1 << 24, 132, 4);
  EXPECT_EQ(split.whole, 133);
  EXPECT_EQ(split.shared, 0);
}

TEST(StreamKTest, EveryTileHasAPlaceOfItsOwn) {
  for (const int32_t rows : {1, 2, 107}) {
    for (const int32_t tokens : {1, 7, 8, 9, 17, 64}) {
      const cuda::TileGrid grid{rows, tokens};
      std::set<std::pair<int32_t, int32_t>> places;
      for (int32_t i = 0; i < rows * tokens; ++i) {
        int32_t row, token;
        grid.place(i, row, token);
        EXPECT_TRUE(row >= 0 && row < rows && token >= 0 && token < tokens);
        places.insert({row, token});
      }
      EXPECT_EQ(static_cast<int32_t>(places.size()), rows * tokens);
    }
  }
}

// --- The kernels.

/// A random matrix whose products with numbers of the size of 1 are of that size, too.
TestMatrix random_matrix(const cuda::Launch& launch, DataType type, int32_t rows, int32_t columns, bool gate_up,
                         Random& random) {
  std::vector<uint8_t> source(static_cast<size_t>(rows * row_bytes(type, columns)));
  if (type == DataType::f16) {
    for (size_t i = 0; i < source.size(); i += 2) store_u16(&source[i], float_to_half(random.normal(0.05f)));
  } else {
    // Any byte is a code, or two.
    source = random.bytes(static_cast<int64_t>(source.size()));
    const float scale = type == DataType::q4_0 ? 0.01f : 0.0007f;
    for (size_t i = 0; i < source.size(); i += static_cast<size_t>(block_shape(type).bytes)) {
      store_u16(&source[i], float_to_half(scale * static_cast<float>(1 + random.uniform())));
    }
  }
  return {launch, type, rows, columns, gate_up, std::move(source)};
}

double root_mean_square(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum / static_cast<double>(x.size()));
}

/// At most `most` of [0, n): the ends, what lies beside tiles' borders, and others at random.
std::vector<int32_t> sample(int32_t n, int32_t most, Random& random) {
  std::set<int32_t> chosen;
  if (n <= most) {
    for (int32_t i = 0; i < n; ++i) chosen.insert(i);
  } else {
    for (const int32_t i : {0, 7, 8, 15, 16, 63, 64, 127, 128, 255, 256, n - 9, n - 8, n - 1}) {
      if (i >= 0 && i < n) chosen.insert(i);
    }
    while (static_cast<int32_t>(chosen.size()) < most) chosen.insert(static_cast<int32_t>(random.integer(0, n - 1)));
  }
  return {chosen.begin(), chosen.end()};
}

struct GemmCase {
  const char* kernel;
  bool wgmma;
  decltype(&cuda::gemm) run;
  size_t (*workspace_bytes)(const cuda::Device&);
  DataType type;
};
std::string name(const GemmCase& c) { return std::string(c.kernel) + "_" + name_of(c.type); }
void PrintTo(const GemmCase& c, std::ostream* out) { *out << name(c); }

std::vector<GemmCase> all_cases() {
  std::vector<GemmCase> cases;
  for (const DataType type : {DataType::q4_0, DataType::q8_0, DataType::f16}) {
    cases.push_back({"mma", false, cuda::gemm_mma, cuda::gemm_mma_workspace_bytes, type});
    cases.push_back({"wgmma", true, cuda::gemm_wgmma, cuda::gemm_wgmma_workspace_bytes, type});
  }
  return cases;
}

class GemmTest : public CudaTest, public testing::WithParamInterface<GemmCase> {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    if (GetParam().wgmma && !device_.wgmma) GTEST_SKIP() << "the code that runs here has no wgmma";
    partial_ = DeviceArray<float>(GetParam().workspace_bytes(device_) / sizeof(float));
    counters_ = DeviceArray<uint32_t>(cuda::kGemmCounters, 0);
  }
  void TearDown() override {
    if (counters_.size() > 0) {
      const std::vector<uint32_t> counters = counters_.read();
      EXPECT_EQ(std::count(counters.begin(), counters.end(), 0u), static_cast<ptrdiff_t>(counters.size()));
    }
    CudaTest::TearDown();
  }

  DataType type() const { return GetParam().type; }
  void run(const TestMatrix& matrix, const TestActivations& x, const cuda::LinearOutput& output) {
    GetParam().run(launch_, matrix.packed, x.tokens, x.view(), output, {partial_.data(), counters_.data()});
  }

  static constexpr int32_t kExtra = 3;  // tokens and columns of the output beyond those that are written

  /// y with room for more than is written; `fill`: 0xff poisons it, 0 clears it.
  static DeviceArray<float> output(const TestMatrix& matrix, int32_t tokens, int fill = 0xff) {
    return DeviceArray<float>(static_cast<size_t>(tokens + kExtra) * (matrix.packed.rows + kExtra), fill);
  }
  static cuda::LinearOutput into(Epilogue epilogue, const TestMatrix& matrix, const DeviceArray<float>& y) {
    cuda::LinearOutput output;
    output.epilogue = epilogue;
    output.y = y.data();
    output.y_stride = matrix.packed.rows + kExtra;
    return output;
  }

  /// The product of sampled rows with sampled tokens in float64: (tokens, rows).
  static std::vector<double> product(const TestMatrix& matrix, const std::vector<int32_t>& rows,
                                     const std::vector<double>& x, const std::vector<int32_t>& tokens) {
    const auto columns = static_cast<size_t>(matrix.packed.columns);
    std::vector<double> result(rows.size() * tokens.size());
    for (size_t r = 0; r < rows.size(); ++r) {
      const std::vector<float> row = matrix.rows(rows[r], 1);
      const std::vector<double> w(row.begin(), row.end());
      for (size_t t = 0; t < tokens.size(); ++t) {
        const double* const v = &x[static_cast<size_t>(tokens[t]) * columns];
        double sum = 0;
        for (size_t c = 0; c < columns; ++c) sum += w[c] * v[c];
        result[t * rows.size() + r] = sum;
      }
    }
    return result;
  }

  /// Runs store, twice, then add on top of it, without a pause in between.
  void verify(int32_t rows, int32_t columns, int32_t tokens, float magnitude = 1) {
    SCOPED_TRACE(testing::Message() << rows << " x " << columns << ", " << tokens << " tokens");
    Random random(static_cast<uint64_t>(rows) * 7919 + static_cast<uint64_t>(columns) * 31 +
                  static_cast<uint64_t>(tokens));
    const TestMatrix matrix = random_matrix(launch_, type(), rows, columns, false, random);
    verify(matrix, tokens, magnitude, random);
  }
  void verify(const TestMatrix& matrix, int32_t tokens, float magnitude, Random& random) {
    const int32_t rows = matrix.packed.rows, columns = matrix.packed.columns;
    SCOPED_TRACE(testing::Message() << tokens << " tokens");
    TestActivations x(tokens, columns);
    const std::vector<double> values = x.fill(random.normals(static_cast<int64_t>(tokens) * columns, magnitude));
    const DeviceArray<float> y = output(matrix, tokens), again = output(matrix, tokens);
    run(matrix, x, into(Epilogue::store, matrix, y));
    run(matrix, x, into(Epilogue::store, matrix, again));
    run(matrix, x, into(Epilogue::add, matrix, again));
    const std::vector<float> actual = y.read(), doubled = again.read();

    const std::vector<int32_t> some_rows = sample(rows, 40, random), some_tokens = sample(tokens, 24, random);
    const size_t stride = static_cast<size_t>(rows + kExtra);
    std::vector<float> chosen;
    for (const int32_t t : some_tokens) {
      for (const int32_t r : some_rows) chosen.push_back(actual[static_cast<size_t>(t) * stride + r]);
    }
    EXPECT_LT(relative_error(chosen, product(matrix, some_rows, values, some_tokens)), 1e-3);

    // What is not sampled is a number at least, what is outside is not written, and the second run had the same bits:
    // adding them doubles them exactly.
    int64_t wrong = 0;
    for (size_t i = 0; i < actual.size(); ++i) {
      const bool inside = i / stride < static_cast<size_t>(tokens) && i % stride < static_cast<size_t>(rows);
      if (inside ? !(std::isfinite(actual[i]) && doubled[i] == 2 * actual[i])
                 : !(std::isnan(actual[i]) && std::isnan(doubled[i]))) {
        if (++wrong <= 5) {
          ADD_FAILURE() << "token " << i / stride << " row " << i % stride << ": " << actual[i] << ", then "
                        << doubled[i];
        }
      }
    }
    EXPECT_EQ(wrong, 0);
  }

  DeviceArray<float> partial_;
  DeviceArray<uint32_t> counters_;
};

TEST_P(GemmTest, AnyNumberOfTokens) {
  Random random(1);
  const TestMatrix small = random_matrix(launch_, type(), 160, 544, false, random),
                   odd = random_matrix(launch_, type(), 96, 96, false, random);
  for (const int32_t tokens : {1, 2, 7, 8, 9, 16, 17, 31, 33, 64, 65, 100, 127, 128, 129, 200, 257, 300}) {
    verify(small, tokens, 1, random);
    verify(odd, tokens, 1, random);
  }
}

TEST_P(GemmTest, AnyNumberOfColumns) {
  for (const int32_t columns : {32, 64, 96, 160, 192, 1056, 4096, 13696}) {
    for (const int32_t tokens : {3, 29, 61, 130}) verify(144, columns, tokens);
  }
}

TEST_P(GemmTest, FewTilesThatManyBlocksShare) {
  const int32_t columns = type() == DataType::f16 ? 1056 : 4096;
  verify(1088, columns, 33);
  verify(4608, columns, 9);
  verify(4608, columns, 200);
  verify(4608, columns, 500);  // enough for tiles of 256 rows
}

TEST_P(GemmTest, ManyTiles) {
  for (const int32_t tokens : {5, 20, 50, 100}) verify(17000, 160, tokens);  // the last tile of 256 rows is half empty
  verify(34000, 96, 40);  // more than a tile of 256 rows for each block
  verify(4720, 96, 1100);
  verify(4608, 160, 2047);  // whole tiles and shared ones
  verify(520, 64, 4100);    // more than a band of tokens
}

TEST_P(GemmTest, ManyTilesOfManyColumns) {  // more than the stages of a ring have room for
  Random random(2);
  const TestMatrix matrix = random_matrix(launch_, type(), 17000, type() == DataType::f16 ? 544 : 1312, false, random);
  for (const int32_t tokens : {9, 30, 50, 100}) verify(matrix, tokens, 1, random);
}

TEST_P(GemmTest, LargeActivations) {
  verify(96, 1056, 70, 1e4f);
  verify(4608, 544, 13, 1e4f);
}

TEST_P(GemmTest, GatedUnits) {
  for (const auto& [ffn, columns] :
       {std::pair{544, 96}, std::pair{37, 1056}, std::pair{2056, 544}, std::pair{8500, 96}}) {
    Random random(static_cast<uint64_t>(ffn + columns));
    const TestMatrix matrix = random_matrix(launch_, type(), 2 * ffn, columns, true, random);
    for (const int32_t tokens : {1, 10, 30, 64, 130, 300}) {
      for (const float magnitude : {1.0f, 1e4f}) {
        SCOPED_TRACE(testing::Message() << ffn << " units, " << columns << " columns, " << tokens << " tokens, "
                                        << magnitude);
        TestActivations x(tokens, columns), y(tokens, ffn), again(tokens, ffn);
        const std::vector<double> values = x.fill(random.normals(static_cast<int64_t>(tokens) * columns, magnitude));
        cuda::LinearOutput output;
        output.epilogue = Epilogue::swiglu;
        output.activated = y.view();
        run(matrix, x, output);
        output.activated = again.view();
        run(matrix, x, output);

        const std::vector<uint16_t> before = y.host;
        const std::vector<float> actual = y.read();  // checks that filling columns are still zero
        EXPECT_EQ(y.host, again.memory.read());
        for (size_t i = 0; i < before.size(); ++i) {
          if (before[i] == 0x7e00) ASSERT_EQ(y.host[i], 0x7e00) << "a token that is not there was written: " << i;
        }
        EXPECT_EQ(std::count_if(actual.begin(), actual.end(), [](float v) { return !std::isfinite(v); }), 0);

        const std::vector<int32_t> units = sample(ffn, 30, random), some_tokens = sample(tokens, 20, random);
        std::vector<int32_t> ups;
        for (const int32_t i : units) ups.push_back(ffn + i);
        const std::vector<double> gate = product(matrix, units, values, some_tokens);
        const std::vector<double> up = product(matrix, ups, values, some_tokens);
        // Weights times their scale are rounded to f16: to a part in 4,000 of a sum, about. Where a sum of thousands
        // comes out near zero, that decides between nothing and the largest f16.
        const double least_gate = magnitude > 1 ? 0.01 * root_mean_square(gate) : 0;
        const double least_up = magnitude > 1 ? 0.01 * root_mean_square(up) : 0;
        std::vector<double> expected;
        std::vector<float> chosen;
        for (size_t i = 0; i < up.size(); ++i) {
          if (std::abs(gate[i]) < least_gate || std::abs(up[i]) < least_up) continue;
          expected.push_back(std::clamp(up[i] * gate[i] / (1 + std::exp(-gate[i])), -65504.0, 65504.0));
          chosen.push_back(actual[static_cast<size_t>(some_tokens[i / units.size()]) * ffn + units[i % units.size()]]);
        }
        EXPECT_LT(relative_error(chosen, expected), 2e-3);
      }
    }
  }
}

TEST_P(GemmTest, NanStaysInItsTokenAndIsNotLost) {
  Random random(5);
  const TestMatrix matrix = random_matrix(launch_, type(), 160, 544, false, random);
  for (const int32_t tokens : {6, 40, 129}) {
    SCOPED_TRACE(testing::Message() << tokens << " tokens");
    TestActivations x(tokens, 544);
    std::vector<float> values = random.normals(int64_t{tokens} * 544);
    const int32_t bad = tokens / 2;
    values[static_cast<size_t>(bad) * 544 + 77] = std::numeric_limits<float>::quiet_NaN();
    x.fill(values);
    const DeviceArray<float> y = output(matrix, tokens);
    run(matrix, x, into(Epilogue::store, matrix, y));
    const std::vector<float> actual = y.read();
    int64_t wrong = 0;
    for (int32_t t = 0; t < tokens; ++t) {
      for (int32_t r = 0; r < 160; ++r) {
        wrong += std::isnan(actual[static_cast<size_t>(t) * (160 + kExtra) + r]) != (t == bad);
      }
    }
    EXPECT_EQ(wrong, 0);
  }
}

TEST_P(GemmTest, NanInAWeightIsNotLost) {
  Random random(6);
  const TestMatrix matrix = random_matrix(launch_, type(), 160, 544, false, random);
  std::vector<uint8_t> bytes = matrix.memory.read();
  // The first number of row 16 + 3, or the scale of its first block.
  const int64_t block = int64_t{matrix.packed.chunks} * cuda::block_bytes(matrix.packed.type);
  const int64_t at = block + (type() == DataType::f16 ? 3 * 4 * 16 : cuda::code_bytes(matrix.packed.type) + 3 * 8);
  store_u16(&bytes[static_cast<size_t>(at)], 0x7e00);
  const DeviceArray<uint8_t> changed(bytes);
  cuda::PackedMatrix packed = matrix.packed;
  packed.data = changed.data();
  TestActivations x(20, 544);
  x.fill(random.normals(20 * 544));
  const DeviceArray<float> y = output(matrix, 20);
  GetParam().run(launch_, packed, 20, x.view(), into(Epilogue::store, matrix, y), {partial_.data(), counters_.data()});
  const std::vector<float> actual = y.read();
  int64_t wrong = 0;
  for (int32_t t = 0; t < 20; ++t) {
    for (int32_t r = 0; r < 160; ++r) {
      wrong += std::isnan(actual[static_cast<size_t>(t) * (160 + kExtra) + r]) != (r == 19);
    }
  }
  EXPECT_EQ(wrong, 0);
}

INSTANTIATE_TEST_SUITE_P(Kernels, GemmTest, testing::ValuesIn(all_cases()),
                         [](const auto& info) { return name(info.param); });

}  // namespace
}  // namespace chatglm::test
