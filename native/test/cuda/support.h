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
#include "cuda/memory.h"
#include "model/quantize.h"
#include "test/random.h"

namespace chatglm::test {

inline void check(cudaError_t status) { cuda::check(status, "in a test"); }

/// Device memory for a test. Poisoned, so that what a kernel should have written and did not shows up as NaN.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t count, int fill = 0xff) : memory_(std::max<size_t>(1, count) * sizeof(T)), count_(count) {
    check(cudaMemset(memory_.data(), fill, memory_.size()));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { write(values); }

  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  size_t size() const { return count_; }
  void write(const std::vector<T>& values) {
    if (!values.empty()) check(cudaMemcpy(data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    check(cudaDeviceSynchronize());
    if (count_ > 0) check(cudaMemcpy(values.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  cuda::DeviceMemory memory_;
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
      : tokens(tokens), columns(columns), stride(cuda::stride_with_slack(tokens)) {
    host.assign(static_cast<size_t>(cuda::activation_count(columns, stride)), 0x7e00);
    for (int32_t t = 0; t < tokens; ++t) {
      for (int32_t c = 0; c < padded_columns(); ++c) at(t, c) = 0;
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
    for (int32_t t = 0; t < tokens; ++t) {
      for (int32_t c = 0; c < columns; ++c) values.push_back(half_to_float(at(t, c)));
      for (int32_t c = columns; c < padded_columns(); ++c)
        EXPECT_EQ(at(t, c), 0) << "filling, token " << t << " column " << c;
    }
    return values;
  }
  cuda::Activations view() const { return {reinterpret_cast<half*>(memory.data()), stride}; }
  int32_t padded_columns() const { return cuda::chunks_of(columns) * cuda::kChunkColumns; }

  int32_t tokens, columns, stride;
  std::vector<uint16_t> host;
  DeviceArray<uint16_t> memory;
};

/// A matrix (rows, columns) as a model file has it, and packed on the GPU.
struct TestMatrix {
  TestMatrix(const cuda::Launch& launch, DataType type, int32_t rows, int32_t columns, bool gate_up,
             std::vector<uint8_t> bytes)
      : type(type),
        source(std::move(bytes)),
        packed(cuda::packed_shape(type, rows, columns, gate_up)),
        memory(static_cast<size_t>(packed.bytes()), 0) {
    const DeviceArray<uint8_t> raw(source);
    const DeviceArray<uint32_t> overflow(1, 0);
    cuda::pack(launch, type, raw.data(), row_bytes(type, columns), 0, rows, packed, memory.data(), overflow.data());
    check(cudaStreamSynchronize(launch.stream));
    packed.data = memory.data();
  }

  /// Rows [first, first + count) as f32: (count, columns).
  std::vector<float> rows(int32_t first, int32_t count) const {
    std::vector<float> values(static_cast<size_t>(count) * static_cast<size_t>(packed.columns));
    to_float(type, source.data() + first * row_bytes(type, packed.columns), 1, static_cast<int64_t>(values.size()),
             values.data());
    return values;
  }

  DataType type;
  std::vector<uint8_t> source;
  cuda::PackedMatrix packed;
  DeviceArray<uint8_t> memory;
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
