#include "cuda/bandwidth.h"

#include <algorithm>
#include <vector>

#include "cuda/device.h"
#include "cuda/memory.h"
#include "cuda/ptx/cache.cuh"

// A plain read of a GPU's memory, whose rate is the ceiling that the figures of docs/performance.md are shares of.
//
// Launch: 4 blocks of 512 threads a multiprocessor; a thread has eight loads of 16 bytes under way. Bytes moved: those
// of the buffer, once. Measured on H100s: 3.06 and 3.14 TB/s.
namespace chatglm::cuda {

namespace {

constexpr int kThreads = 512, kLoads = 8;
constexpr int kRepeats = 9;

__global__ void __launch_bounds__(kThreads) read_all(const uint4* data, uint64_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads * kLoads;
  for (uint64_t begin = static_cast<uint64_t>(blockIdx.x) * kThreads * kLoads; begin < count; begin += step) {
    uint4 v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const uint64_t at = begin + static_cast<uint64_t>(i * kThreads + threadIdx.x);
      v[i] = at < count ? load_stream_16(data + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) sum += v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  if (sum == 0x12345678u) *sink = sum;  // so that the loads are not optimized away
}

}  // namespace

double measure_bandwidth(int32_t index, uint64_t bytes) {
  const Device device = open_device(index);
  const uint64_t count = bytes / sizeof(uint4);
  const DeviceMemory data(count * sizeof(uint4)), sink(sizeof(uint32_t));
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "creating an event");
  check(cudaEventCreate(&end), "creating an event");
  std::vector<float> times;
  for (int i = 0; i < kRepeats; ++i) {
    check(cudaEventRecord(begin), "recording an event");
    read_all<<<static_cast<unsigned>(device.multiprocessors * 4), kThreads>>>(
        reinterpret_cast<const uint4*>(data.data()), count, reinterpret_cast<uint32_t*>(sink.data()));
    check(cudaGetLastError(), "launching a kernel");
    check(cudaEventRecord(end), "recording an event");
    check(cudaEventSynchronize(end), "measuring the memory");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "measuring the memory");
    times.push_back(milliseconds);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return static_cast<double>(count * sizeof(uint4)) / (times[kRepeats / 2] * 1e-3);
}

}  // namespace chatglm::cuda
