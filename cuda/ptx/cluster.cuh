#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/ptx/address.cuh"

// Clusters (sm_90): the barrier of a cluster's blocks, and each other's shared memory. Before sm_90 there are no
// clusters; the functions then do nothing, so that kernels which also run without clusters need no guards.
namespace chatglm::cuda {

/// What a block wrote before it arrived is visible to the blocks of the cluster that have waited. Every thread of every
/// block arrives and waits in turn.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

/// The pointer to what lies in the shared memory of block `rank` of the cluster where `local` does in this one's.
template <class T>
__device__ __forceinline__ T* in_block(T* local, int rank) {
  T* remote = local;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(remote) : "l"(local), "r"(rank));
#endif
  return remote;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
/// The same place as an address of the cluster's shared memory.
__device__ __forceinline__ uint32_t address_in_block(const void* local, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(local)), "r"(rank));
  return address;
}
#endif
/// Reads what lies in block `rank` of the cluster where `local` does in this one.
__device__ __forceinline__ float4 load_remote(const float4* local, int rank) {
  float4 v = {};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address_in_block(local, rank))
               : "memory");
#endif
  return v;
}
/// Writes there.
__device__ __forceinline__ void store_remote(void* local, int rank, float2 x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1,%2};" ::"r"(address_in_block(local, rank)), "f"(x.x), "f"(x.y)
               : "memory");
#endif
}

}  // namespace chatglm::cuda
