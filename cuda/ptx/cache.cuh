#pragma once
#include <cuda_runtime.h>

#include <cstdint>

// What a read leaves in the caches: loads past L1, and policies for L2, which bulk copies (copy.cuh) take.
namespace chatglm::cuda {

/// Reads of what is used once: past L1, in the order that the program states.
__device__ __forceinline__ uint4 load_stream_16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
/// For bytes that are read once a step: they are the first to leave L2, before what is needed again soon.
__device__ __forceinline__ uint64_t l2_evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// For bytes that several blocks read: L2 treats them as those of ordinary loads.
__device__ __forceinline__ uint64_t l2_evict_normal() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
#endif

}  // namespace chatglm::cuda
