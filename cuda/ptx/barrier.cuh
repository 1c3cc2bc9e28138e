#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/ptx/address.cuh"

// Barriers within a block, from sm_90 on: mbarriers in shared memory, which count arrivals and the bytes of bulk copies
// (copy.cuh); the fence between ordinary stores and those who read shared memory beside the program; and the hardware's
// numbered barriers for a part of the block's threads.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
namespace chatglm::cuda {

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives, and has the phase last until `bytes` more bytes of bulk copies have come.
__device__ __forceinline__ void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
/// Waits for the end of the phase with this parity: 0 for a barrier's first phase, then 1, 0, ...
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

/// Ordinary stores to shared memory become visible to the tensor cores (wgmma) and to bulk copies.
__device__ __forceinline__ void fence_shared_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/// Makes initialized barriers visible to bulk copies. __syncthreads then makes them visible to the block.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  fence_shared_stores();
}

/// Waits for `threads` threads, whole warps, that sync or arrive at the numbered barrier `id` (0 is __syncthreads').
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace chatglm::cuda
#endif
