#include <algorithm>

#include "model/quantize.h"
#include "test/cuda/support.h"

namespace chatglm::test {
namespace {

using cuda::Epilogue;
using cuda::GemvInput;
using cuda::LinearOutput;
using cuda::PackedMatrix;

constexpr DataType kTypes[] = {DataType::q4_0, DataType::q8_0, DataType::f16};

/// x / sqrt(mean(x^2) + epsilon) * weight in float64.
std::vector<double> normalized(const float* x, const std::vector<float>& weight, double epsilon) {
  double sum = 0;
  for (size_t i = 0; i < weight.size(); ++i) sum += static_cast<double>(x[i]) * x[i];
  std::vector<double> y;
  for (size_t i = 0; i < weight.size(); ++i) {
    y.push_back(x[i] / std::sqrt(sum / static_cast<double>(weight.size()) + epsilon) * weight[i]);
  }
  return y;
}

class GemvTest : public CudaTest {
 protected:
  struct Matrix {
    PackedMatrix view;
    std::vector<float> values;  // (rows, columns)
    DeviceArray<uint8_t> memory;
  };

  /// A random matrix, packed; `break_row`, if not negative, has a NaN in it.
  Matrix matrix(DataType type, int32_t rows, int32_t columns, bool gate_up = false, int32_t break_row = -1) {
    Matrix m;
    const int64_t count = static_cast<int64_t>(rows) * columns, row = row_bytes(type, columns);
    std::vector<uint8_t> source(static_cast<size_t>(rows * row));
    fill_random(type, source.data(), "weights", static_cast<uint64_t>(count), 0, count, {0.0f, 0.05f});
    if (break_row >= 0) store_u16(source.data() + break_row * row, 0x7e00);
    m.values.resize(static_cast<size_t>(count));
    to_float(type, source.data(), 1, count, m.values.data());
    m.view = cuda::packed_shape(type, rows, columns, gate_up);
    m.memory = DeviceArray<uint8_t>(static_cast<size_t>(m.view.bytes()), 0);
    m.view.data = m.memory.data();
    const DeviceArray<uint8_t> device_source(source);
    const DeviceArray<uint32_t> overflow(1, 0);
    cuda::pack(launch_, type, device_source.data(), row, 0, rows, m.view, m.memory.data(), overflow.data());
    check(cudaStreamSynchronize(stream_));
    return m;
  }

  /// (tokens, rows): x (tokens, columns) times the matrix.
  static std::vector<double> product(const Matrix& m, const std::vector<double>& x) {
    const auto columns = static_cast<size_t>(m.view.columns);
    std::vector<double> y;
    for (size_t t = 0; t < x.size() / columns; ++t) {
      for (size_t r = 0; r < static_cast<size_t>(m.view.rows); ++r) {
        double sum[4] = {};  // four chains of additions: this is most of the test's time
        for (size_t c = 0; c < columns; ++c) sum[c % 4] += x[t * columns + c] * m.values[r * columns + c];
        y.push_back(sum[0] + sum[1] + sum[2] + sum[3]);
      }
    }
    return y;
  }

  /// y (tokens, rows) of the epilogues store and add; `before`: what is added to.
  std::vector<float> run(const Matrix& m, int32_t tokens, const GemvInput& input,
                         const std::vector<float>* before = nullptr) {
    const int32_t rows = m.view.rows, stride = rows + 5;
    std::vector<float> memory(static_cast<size_t>(tokens * stride), NAN);
    for (int32_t t = 0; before && t < tokens; ++t) {
      std::copy_n(before->begin() + t * rows, rows, memory.begin() + t * stride);
    }
    const DeviceArray<float> y(memory);
    LinearOutput output;
    output.epilogue = before ? Epilogue::add : Epilogue::store;
    output.y = y.data();
    output.y_stride = stride;
    EXPECT_TRUE(cuda::gemv_fits(device_, m.view, tokens));
    cuda::gemv(launch_, m.view, tokens, input, output);
    memory = y.read();
    std::vector<float> result;
    for (int32_t t = 0; t < tokens; ++t) {
      result.insert(result.end(), memory.begin() + t * stride, memory.begin() + t * stride + rows);
      for (int32_t r = rows; r < stride; ++r) EXPECT_TRUE(std::isnan(memory[static_cast<size_t>(t * stride + r)]));
    }
    return result;
  }

  /// The error of store, and that add adds the same, but for the order of summation, to what is there.
  void verify(DataType type, int32_t rows, int32_t columns, int32_t tokens, float magnitude = 1) {
    SCOPED_TRACE(testing::Message() << name_of(type) << " " << rows << " x " << columns << ", " << tokens << " tokens");
    Random random(static_cast<uint64_t>(rows + columns + tokens));
    const Matrix m = matrix(type, rows, columns);
    TestActivations x(tokens, columns);
    const std::vector<double> expected = product(m, x.fill(random.normals(tokens * columns, magnitude)));
    GemvInput input;
    input.x = x.view();
    const std::vector<float> y = run(m, tokens, input);
    EXPECT_LT(relative_error(y, expected), 1e-4);
    EXPECT_EQ(run(m, tokens, input), y) << "other bits";
    const std::vector<float> before = random.normals(tokens * rows, magnitude);
    std::vector<float> after = before;
    for (size_t i = 0; i < after.size(); ++i) after[i] += y[i];
    const std::vector<float> sum = run(m, tokens, input, &before);
    EXPECT_LT(relative_error(sum, after), 1e-5);
    EXPECT_EQ(run(m, tokens, input, &before), sum) << "other bits";
  }
};

TEST_F(GemvTest, EveryTypeTokensAndShape) {
  for (const DataType type : kTypes) {
    for (int32_t tokens = 1; tokens <= cuda::kGemvTokens; ++tokens) verify(type, 100 + tokens, 544, tokens);
    verify(type, 1, 32, 1);
    verify(type, 96, 64, 3);
    verify(type, 24, 1056, 8);  // an odd number of chunks, the last one half
  }
}

TEST_F(GemvTest, ManyTilesABlock) {
  for (const DataType type : kTypes) verify(type, 5000, 192, 2);
  verify(DataType::q4_0, 4608, 4096, 1);
}

TEST_F(GemvTest, LongRows) {
  for (const DataType type : kTypes) {
    verify(type, 70, 13696, 1);
    verify(type, 40, 13696, 2);
  }
}

TEST_F(GemvTest, LargeNumbers) {
  for (const DataType type : kTypes) verify(type, 64, 4096, 2, 1e4f);
}

TEST_F(GemvTest, NormOnTheWay) {
  struct Case {
    int32_t columns, tokens;
    bool gather;
    float magnitude;
  };
  // A thread holds a part of 4096 columns in registers; 5280 are more.
  for (const Case& c : {Case{64, 1, false, 1}, Case{96, 3, true, 1}, Case{4096, 1, true, 1e4f}, Case{4096, 8, false, 3},
                        Case{5280, 2, true, 1}}) {
    SCOPED_TRACE(testing::Message() << c.columns << " columns, " << c.tokens << " tokens");
    Random random(static_cast<uint64_t>(c.columns));
    const int32_t rows = 90, positions = 11;
    const Matrix m = matrix(DataType::q4_0, rows, c.columns);
    const std::vector<float> residual = random.normals(positions * c.columns, c.magnitude);
    std::vector<float> norm = random.normals(c.columns, 0.1f);
    for (float& weight : norm) weight += 1;
    std::vector<int32_t> gather;
    std::vector<double> x;
    for (int32_t t = 0; t < c.tokens; ++t) {
      gather.push_back(static_cast<int32_t>(random.integer(0, positions - 1)));
      const std::vector<double> row = normalized(&residual[(c.gather ? gather.back() : t) * c.columns], norm, 1e-5);
      x.insert(x.end(), row.begin(), row.end());
    }
    const DeviceArray<float> device_residual(residual), device_norm(norm);
    const DeviceArray<int32_t> device_gather(gather);
    GemvInput input;
    input.residual = device_residual.data();
    input.norm = device_norm.data();
    input.gather = c.gather ? device_gather.data() : nullptr;
    input.epsilon = 1e-5f;
    const std::vector<float> y = run(m, c.tokens, input);
    EXPECT_LT(relative_error(y, product(m, x)), 1e-3);  // the normalized numbers are rounded to f16
    EXPECT_EQ(run(m, c.tokens, input), y) << "other bits";
  }
}

TEST_F(GemvTest, SwiGlu) {
  for (const DataType type : kTypes) {
    for (const auto& [ffn, columns, tokens] : {std::array{544, 96, 1}, {1056, 64, 3}, {61, 4096, 8}, {13696, 64, 1}}) {
      SCOPED_TRACE(testing::Message() << name_of(type) << ", ffn " << ffn << ", " << tokens << " tokens");
      Random random(static_cast<uint64_t>(ffn));
      const Matrix m = matrix(type, 2 * ffn, columns, true);
      TestActivations x(tokens, columns), activated(tokens, ffn);
      const std::vector<double> both = product(m, x.fill(random.normals(tokens * columns, 3)));
      std::vector<double> expected;
      for (int32_t t = 0; t < tokens; ++t) {
        for (int32_t i = 0; i < ffn; ++i) {
          const double gate = both[static_cast<size_t>(t * 2 * ffn + i)];
          expected.push_back(gate / (1 + std::exp(-gate)) * both[static_cast<size_t>(t * 2 * ffn + ffn + i)]);
        }
      }
      GemvInput input;
      input.x = x.view();
      LinearOutput output;
      output.epilogue = Epilogue::swiglu;
      output.activated = activated.view();
      cuda::gemv(launch_, m.view, tokens, input, output);
      EXPECT_LT(relative_error(activated.read(), expected), 1e-3);
    }
  }
}

TEST_F(GemvTest, NanSpoilsWhatDependsOnItAndNoMore) {
  constexpr int32_t kRows = 50, kColumns = 320, kTokens = 5;
  Random random(1);
  for (const DataType type : kTypes) {
    const Matrix m = matrix(type, kRows, kColumns, false, 17);
    TestActivations x(kTokens, kColumns);
    std::vector<float> values = random.normals(kTokens * kColumns);
    values[2 * kColumns + 77] = NAN;
    x.fill(values);
    GemvInput input;
    input.x = x.view();
    const std::vector<float> y = run(m, kTokens, input);
    for (int32_t t = 0; t < kTokens; ++t) {
      for (int32_t r = 0; r < kRows; ++r) {
        EXPECT_EQ(std::isnan(y[static_cast<size_t>(t * kRows + r)]), t == 2 || r == 17) << t << " " << r;
      }
    }
  }
}

TEST_F(GemvTest, TellsWhatFits) {
  const PackedMatrix m = cuda::packed_shape(DataType::q4_0, 4096, 13696, false);
  EXPECT_FALSE(cuda::gemv_fits(device_, m, 0));
  EXPECT_TRUE(cuda::gemv_fits(device_, m, 1));
  EXPECT_FALSE(cuda::gemv_fits(device_, m, cuda::kGemvTokens + 1));
  EXPECT_FALSE(cuda::gemv_fits(device_, cuda::packed_shape(DataType::f16, 64, 1 << 20, false), 1));
}

}  // namespace
}  // namespace chatglm::test
