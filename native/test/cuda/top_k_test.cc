#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "test/cuda/support.h"

namespace chatglm::test {
namespace {

class TopKTest : public CudaTest {
 protected:
  std::vector<TopLogits> top_k(const std::vector<float>& logits, int32_t rows) {
    const DeviceArray<float> device_logits(logits);
    const DeviceArray<TopLogits> first(static_cast<size_t>(rows)), second(static_cast<size_t>(rows), 0x55);
    const auto vocabulary = static_cast<int32_t>(logits.size() / static_cast<size_t>(rows));
    cuda::top_k(launch_, device_logits.data(), rows, vocabulary, first.data());
    cuda::top_k(launch_, device_logits.data(), rows, vocabulary, second.data());
    const std::vector<TopLogits> result = first.read(), again = second.read();
    for (size_t i = 0; i < result.size(); ++i) {
      EXPECT_EQ(std::memcmp(&result[i], &again[i], sizeof(TopLogits)), 0) << "the same bits twice, row " << i;
    }
    return result;
  }

  static void expect_row(const TopLogits& actual, std::span<const float> logits) {
    std::vector<int32_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    const auto count = std::min<size_t>(ids.size(), TopLogits::kMost);
    std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count), ids.end(),
                      [&](int32_t a, int32_t b) {
                        const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
                        return x != y ? x > y : a < b;
                      });
    const double largest = logits[static_cast<size_t>(ids[0])];
    double sum = 0;
    for (const float x : logits) sum += std::exp(x - largest);
    EXPECT_EQ(actual.finite, 1);
    ASSERT_EQ(actual.count, static_cast<int32_t>(count));
    EXPECT_NEAR(actual.log_sum, largest + std::log(sum), 1e-5 + 1e-7 * std::fabs(largest));
    for (size_t i = 0; i < count; ++i) {
      ASSERT_EQ(actual.ids[i], ids[i]) << "rank " << i << " of " << logits.size();
      ASSERT_EQ(actual.logits[i], logits[static_cast<size_t>(ids[i])]) << "rank " << i << " of " << logits.size();
    }
  }

  // A row whose logits a function of the id says.
  void expect_of(int32_t vocabulary, const std::function<float(int32_t)>& logit) {
    std::vector<float> logits;
    for (int32_t id = 0; id < vocabulary; ++id) logits.push_back(logit(id));
    expect_row(top_k(logits, 1)[0], logits);
  }
};

TEST_F(TopKTest, RandomRowsOfAnyLength) {
  Random random(1);
  for (const int32_t vocabulary :
       {1, 2, 5, 31, 63, 64, 65, 500, 511, 513, 1023, 1024, 1025, 1500, 4097, 16383, 16385, 65024, 65537, 151552}) {
    expect_of(vocabulary, [&](int32_t) { return random.normal(3); });
  }
}

TEST_F(TopKTest, LargeNumbersAndSmallOnes) {
  Random random(2);
  expect_of(65024, [&](int32_t) { return random.normal(1e4f); });
  expect_of(65024, [&](int32_t) { return random.normal(1e-30f); });
  expect_of(3000, [&](int32_t) { return random.normal(1) - 3e38f; });
  expect_of(3000, [&](int32_t id) { return id % 2 ? 3e38f : -3e38f; });
}

TEST_F(TopKTest, EqualLogitsGoByTheirIds) {
  Random random(3);
  for (const int32_t vocabulary : {40, 777, 5000, 65024}) {
    expect_of(vocabulary, [](int32_t) { return 0.0f; });
    expect_of(vocabulary, [&](int32_t) { return random.chance(0.5) ? 0.0f : -0.0f; });
    expect_of(vocabulary, [&](int32_t) { return static_cast<float>(random.integer(-3, 3)); });
    expect_of(vocabulary, [&](int32_t) { return random.chance(0.0005) ? 1.0f : -1.0f; });
  }
}

TEST_F(TopKTest, OrderedAndCrowdedRows) {
  Random random(4);
  expect_of(65024, [](int32_t id) { return static_cast<float>(id); });
  expect_of(65024, [](int32_t id) { return -static_cast<float>(id); });
  // Large logits in few groups of the kernel's threads, so that far more of them reach its first floor than it ranks.
  for (const int32_t crowd : {8, 64, 504, 512, 520}) {
    for (const int32_t vocabulary : {8000, 65024, 151552}) {
      expect_of(vocabulary, [&](int32_t id) { return random.normal() + (id % 1024 < crowd ? 100.0f : 0.0f); });
    }
    expect_of(40000, [&](int32_t id) { return id % 1024 < crowd ? 1.0f : 0.0f; });
  }
}

TEST_F(TopKTest, ManyRows) {
  Random random(5);
  const int32_t rows = 320, vocabulary = 3001;  // rows begin at odd addresses
  const std::vector<float> logits = random.normals(int64_t{rows} * vocabulary, 5);
  const std::vector<TopLogits> top = top_k(logits, rows);
  for (size_t r = 0; r < rows; ++r) expect_row(top[r], std::span(logits).subspan(r * vocabulary, vocabulary));
}

TEST_F(TopKTest, RowsThatAreNotFinite) {
  Random random(6);
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const int32_t vocabulary : {1, 100, 8193, 65024, 65537}) {
    const size_t columns = static_cast<size_t>(vocabulary);
    std::vector<float> logits = random.normals(7 * int64_t{vocabulary});
    logits[columns * 1 - 1] = kNaN;
    logits[columns * 2 - 1] = kInfinity;
    logits[columns * 3 - 1] = -kInfinity;
    for (const float bad : {kNaN, kInfinity, -kInfinity}) {
      const size_t row = bad > 0 ? 3 : bad < 0 ? 4 : 5;
      std::fill_n(logits.begin() + static_cast<std::ptrdiff_t>(row * columns), columns, bad);
    }
    const std::vector<TopLogits> top = top_k(logits, 7);
    for (size_t row = 0; row < 6; ++row) EXPECT_EQ(top[row].finite, 0) << "row " << row;
    expect_row(top[6], std::span(logits).subspan(6 * columns));
  }
}

TEST_F(TopKTest, MappedHostMemory) {
  Random random(7);
  const std::vector<float> logits = random.normals(2 * 65024);
  const DeviceArray<float> device_logits(logits);
  TopLogits* host = nullptr;
  ASSERT_EQ(cudaHostAlloc(&host, 2 * sizeof(TopLogits), cudaHostAllocMapped), cudaSuccess);
  std::fill_n(reinterpret_cast<uint32_t*>(host), 2 * sizeof(TopLogits) / 4, 0xffffffffu);
  TopLogits* mapped = nullptr;
  ASSERT_EQ(cudaHostGetDevicePointer(&mapped, host, 0), cudaSuccess);
  cuda::top_k(launch_, device_logits.data(), 2, 65024, mapped);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  for (size_t r = 0; r < 2; ++r) expect_row(host[r], std::span(logits).subspan(r * 65024, 65024));
  cudaFreeHost(host);
}

}  // namespace
}  // namespace chatglm::test
