#pragma once
#include "cuda/api.h"

namespace chatglm::addon {

/// The CUDA backend, a shared library beside the addon that is opened when it is first asked for. Throws
/// ERR_DEVICE_UNAVAILABLE with the reason if there is none. Whether there is a GPU is another question: gpus() tells.
const cuda::CudaApi& cuda_api();

}  // namespace chatglm::addon
