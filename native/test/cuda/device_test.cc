// What is asked of a GPU before a model is loaded.
#include "cuda/device.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "test/cuda/support.h"

namespace chatglm::test {
namespace {

/// Whether the process has a CUDA context on the first GPU.
bool has_context() {
  const auto find = [](const char* name, unsigned version) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion(name, &function, version, cudaEnableDefault, &result));
    return function;
  };
  const auto get_device = reinterpret_cast<PFN_cuDeviceGet_v2000>(find("cuDeviceGet", 2000));
  const auto get_state =
      reinterpret_cast<PFN_cuDevicePrimaryCtxGetState_v7000>(find("cuDevicePrimaryCtxGetState", 7000));
  CUdevice device = 0;
  unsigned flags = 0;
  int active = 0;
  EXPECT_EQ(get_device(&device, 0), CUDA_SUCCESS);
  EXPECT_EQ(get_state(device, &flags, &active), CUDA_SUCCESS);
  return active != 0;
}

// In a process of its own: the tests before this one have used the GPU. Death tests of this style start the program
// anew.
TEST(GpuInfoDeathTest, AskingLeavesNoContextAndTakesNoneAway) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  try {
    cuda::device_count();
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  const auto ask = [] {
    const cuda::GpuInfo info = cuda::gpu_info(0);
    return !info.name.empty() && info.free_bytes > 0 && info.free_bytes <= info.total_bytes;
  };
  EXPECT_EXIT(
      {
        if (has_context()) std::exit(2);  // the program's start makes none
        if (!ask()) std::exit(3);
        if (has_context()) std::exit(4);
        const cuda::Device device = cuda::open_device(0);
        if (!has_context()) std::exit(5);  // has_context() can tell
        if (!ask()) std::exit(6);
        if (!has_context()) std::exit(7);
        std::thread([&] { ask(); }).join();
        void* memory = nullptr;
        if (cudaMalloc(&memory, 1 << 20) != cudaSuccess || cudaFree(memory) != cudaSuccess) std::exit(8);
        std::exit(0);
      },
      testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace chatglm::test
