#pragma once
#include <cuda_runtime.h>

#include <cstdint>

// Warp specialization (sm_90a): some warps of a block copy, others multiply, and registers move from the former to the
// latter.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace chatglm::cuda {

/// True in one lane of the warp. The compiler knows that: instructions that want uniform operands need no loop over the
/// lanes.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred elected;\n"
      "elect.sync _|elected, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, elected;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

/// From here on a thread of this warpgroup has `count` registers, a multiple of 8; all its warps call this. Those who
/// take registers wait until others have given them up.
template <int count>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

}  // namespace chatglm::cuda
#endif
