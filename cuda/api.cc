#include "cuda/api.h"

#include "cuda/backend.h"
#include "cuda/bandwidth.h"
#include "cuda/device.h"

namespace chatglm::cuda {

namespace {

std::vector<GpuInfo> gpus() {
  std::vector<GpuInfo> result;
  const int32_t count = device_count();
  for (int32_t i = 0; i < count; ++i) result.push_back(gpu_info(i));
  return result;
}

constexpr CudaApi kApi = {kCudaApiVersion, gpus, make_backend, measure_bandwidth};

}  // namespace

}  // namespace chatglm::cuda

extern "C" __attribute__((visibility("default"))) const chatglm::cuda::CudaApi* chatglm_cuda_api(uint32_t version) {
  return version == chatglm::cuda::kCudaApiVersion ? &chatglm::cuda::kApi : nullptr;
}
