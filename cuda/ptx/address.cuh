#pragma once
#include <cuda_runtime.h>

#include <cstdint>

// Addresses of shared memory, as the instructions take them that name their operands' memory.
namespace chatglm::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

}  // namespace chatglm::cuda
