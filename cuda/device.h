#pragma once
#include <string>

#include "cuda/api.h"
#include "cuda/kernels.h"

namespace chatglm::cuda {

/// How many GPUs there are. Throws ERR_DEVICE_UNAVAILABLE with the driver's reason if there is none.
int32_t device_count();

/// Throws ERR_DEVICE_UNAVAILABLE. Where the process has no CUDA context on the GPU, it has none afterwards either.
GpuInfo gpu_info(int32_t index);

/// Makes the GPU the calling thread's and finds out what runs on it. Throws ERR_DEVICE_UNAVAILABLE.
Device open_device(int32_t index);

/// The name of the kernels that a device gets, e.g. "sm_90a".
std::string kernels_name(const Device& device);

}  // namespace chatglm::cuda
