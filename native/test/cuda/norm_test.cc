#include "test/cuda/support.h"

namespace chatglm::test {
namespace {

class NormTest : public CudaTest {
 protected:
  void verify(int32_t columns, int32_t tokens, bool gathered, float magnitude) {
    SCOPED_TRACE(testing::Message() << columns << " columns, " << tokens << " tokens");
    constexpr float kEpsilon = 1e-5f;
    Random random(static_cast<uint64_t>(columns + tokens));
    const int32_t rows = gathered ? 9 : tokens;
    const std::vector<float> x = random.normals(static_cast<int64_t>(rows) * columns, magnitude);
    const std::vector<float> weight = random.normals(columns);
    std::vector<int32_t> gather;
    std::vector<double> expected;
    for (int32_t t = 0; t < tokens; ++t) {
      gather.push_back(gathered ? static_cast<int32_t>(random.integer(0, rows - 1)) : t);
      const float* row = x.data() + static_cast<int64_t>(gather.back()) * columns;
      double sum = 0;
      for (int32_t c = 0; c < columns; ++c) sum += static_cast<double>(row[c]) * row[c];
      for (int32_t c = 0; c < columns; ++c) {
        expected.push_back(row[c] / std::sqrt(sum / columns + kEpsilon) * weight[static_cast<size_t>(c)]);
      }
    }
    const DeviceArray<float> device_x(x), device_weight(weight);
    const DeviceArray<int32_t> device_gather(gather);
    TestActivations y(tokens, columns), again(tokens, columns);
    for (TestActivations* out : {&y, &again}) {
      cuda::rms_norm(launch_, device_x.data(), device_weight.data(), kEpsilon, columns, tokens,
                     gathered ? device_gather.data() : nullptr, out->view());
    }
    const std::vector<float> values = y.read();
    EXPECT_LT(relative_error(values, expected), 1e-3);  // rounded to f16
    EXPECT_EQ(again.read(), values) << "other bits";
    for (int32_t t = tokens; t < y.stride; ++t) EXPECT_EQ(y.at(t, columns - 1), 0x7e00) << "token " << t;
  }
};

TEST_F(NormTest, EveryShape) {
  for (const int32_t columns : {32, 64, 96, 1056, 4096, 5280}) {
    verify(columns, 1, false, 1);
    verify(columns, 13, true, 1);
  }
  verify(4096, 300, false, 1);
}

TEST_F(NormTest, LargeAndSmallNumbers) {
  verify(4096, 2, false, 1e4f);
  verify(96, 2, false, 1e-4f);  // epsilon counts
}

TEST_F(NormTest, NanStaysInItsToken) {
  constexpr int32_t kColumns = 320;
  Random random(2);
  std::vector<float> x = random.normals(2 * kColumns);
  x[7] = NAN;
  const DeviceArray<float> device_x(x), device_weight(random.normals(kColumns));
  TestActivations y(2, kColumns);
  cuda::rms_norm(launch_, device_x.data(), device_weight.data(), 1e-5f, kColumns, 2, nullptr, y.view());
  const std::vector<float> values = y.read();
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(std::isnan(values[i]), i < kColumns);
}

}  // namespace
}  // namespace chatglm::test
