#pragma once
#include <cuda_runtime.h>  // its templates: cudaMalloc of any pointer
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "test/random.h"

namespace chatglm::test {

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

/// Device memory for a test. Poisoned, so that what a kernel should have written and did not shows up as NaN.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t count, int fill = 0xff) : count_(count) {
    check(cudaMalloc(&data_, std::max<size_t>(1, count) * sizeof(T)));
    check(cudaMemset(data_, fill, std::max<size_t>(1, count) * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { write(values); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }

  T* data() const { return data_; }
  size_t size() const { return count_; }
  void write(const std::vector<T>& values) {
    if (!values.empty()) check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    check(cudaDeviceSynchronize());
    if (count_ > 0) check(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

/// A GPU and a stream; the test is skipped where there is none.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    try {
      device_ = cuda::open_device(0);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    check(cudaStreamCreate(&stream_));
    launch_ = {stream_, &device_};
  }
  void TearDown() override {
    if (!stream_) return;
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    cudaStreamDestroy(stream_);
  }

  cuda::Device device_;
  cudaStream_t stream_ = nullptr;
  cuda::Launch launch_;
};

/// Activations in the kernels' layout with room for `tokens` tokens: zeros, but NaN in the rows of tokens that are not
/// there, which nothing may depend on.
struct TestActivations {
  TestActivations(int32_t tokens, int32_t columns)
      : tokens(tokens), columns(columns), stride((tokens + 7) / 8 * 8 + 128) {
    const int64_t chunks = (columns + cuda::kChunkColumns - 1) / cuda::kChunkColumns;
    host.assign(static_cast<size_t>(chunks * stride * cuda::kChunkColumns), 0x7e00);
    for (int32_t t = 0; t < tokens; ++t) {
      for (int64_t c = 0; c < chunks * cuda::kChunkColumns; ++c) at(t, static_cast<int32_t>(c)) = 0;
    }
    memory = DeviceArray<uint16_t>(host);
  }
  uint16_t& at(int32_t token, int32_t column) {
    return host[static_cast<size_t>(cuda::activation_index(token, column, stride))];
  }
  /// Rounds values (tokens, columns) to f16 and uploads them; returns what they were rounded to.
  std::vector<double> fill(const std::vector<float>& values) {
    std::vector<double> rounded;
    for (int32_t t = 0; t < tokens; ++t) {
      for (int32_t c = 0; c < columns; ++c) {
        at(t, c) = float_to_half(values[static_cast<size_t>(t) * columns + c]);
        rounded.push_back(half_to_float(at(t, c)));
      }
    }
    memory.write(host);
    return rounded;
  }
  /// What is there now: (tokens, columns). Checks that the filling columns are still zero.
  std::vector<float> read() {
    host = memory.read();
    std::vector<float> values;
    const int32_t padded = (columns + cuda::kChunkColumns - 1) / cuda::kChunkColumns * cuda::kChunkColumns;
    for (int32_t t = 0; t < tokens; ++t) {
      for (int32_t c = 0; c < columns; ++c) values.push_back(half_to_float(at(t, c)));
      for (int32_t c = columns; c < padded; ++c) EXPECT_EQ(at(t, c), 0) << "filling, token " << t << " column " << c;
    }
    return values;
  }
  cuda::Activations view() const { return {reinterpret_cast<half*>(memory.data()), stride}; }

  int32_t tokens, columns, stride;
  std::vector<uint16_t> host;
  DeviceArray<uint16_t> memory;
};

/// ||actual - expected|| / ||expected||; NaN if anything is NaN.
template <class A, class B>
double relative_error(const std::vector<A>& actual, const std::vector<B>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size() && i < expected.size(); ++i) {
    const double d = static_cast<double>(actual[i]) - static_cast<double>(expected[i]);
    difference += d * d;
    norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return std::sqrt(difference / norm);
}

}  // namespace chatglm::test
