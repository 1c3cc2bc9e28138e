#pragma once
#include <cuda_runtime.h>

#include "cuda/kernels.h"
#include "cuda/memory.h"

// How kernels are launched so that they overlap, and the two instructions with which a kernel takes part in that.
namespace chatglm::cuda {

/// Kernels that follow each other overlap from sm_90 on (programmatic dependent launch): a block may start before the
/// kernel before has finished. Every kernel calls this before it touches anything that another kernel writes, or writes
/// anything that another kernel reads. Weights and other constants may be read before.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The next kernel's blocks may start as soon as all of this kernel's blocks have called this (or ended).
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Launches in clusters of `blocks` blocks along x.
inline cudaLaunchAttribute cluster_attribute(int32_t blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

/// Launches a kernel so that it may overlap the one before in the stream, where the code knows how to wait for that, in
/// clusters of `cluster` blocks (sm_90) if that is more than 1.
template <class... Parameters, class... Arguments>
void launch_kernel_in_clusters(const Launch& launch, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                               size_t shared_bytes, int32_t cluster, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = launch.stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (launch.device->arch >= 900) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    // Kernels run beside each other only on multiprocessors that need not be split anew between L1 and shared memory.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
          "asking for shared memory");
  }
  if (cluster > 1) attributes[config.numAttrs++] = cluster_attribute(cluster);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launching a kernel");
}
template <class... Parameters, class... Arguments>
void launch_kernel(const Launch& launch, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   const Arguments&... arguments) {
  launch_kernel_in_clusters(launch, kernel, grid, block, shared_bytes, 1, arguments...);
}

/// Lets a kernel have so much dynamic shared memory. Called before every launch that needs more than 48 KB. What a
/// kernel may have never becomes less: another model's thread may be about to launch it with more.
void allow_shared_bytes(const Device& device, const void* kernel, size_t bytes);
template <class... Parameters>
void allow_shared_bytes(const Device& device, void (*kernel)(Parameters...), size_t bytes) {
  allow_shared_bytes(device, reinterpret_cast<const void*>(kernel), bytes);
}

// --- Which instance of a kernel template to launch.

/// Calls run.operator()<type>() with the type of packed weights.
template <class Run>
void with_weight_type(DataType type, const Run& run) {
  switch (type) {
    case DataType::q4_0: return run.template operator()<DataType::q4_0>();
    case DataType::q8_0: return run.template operator()<DataType::q8_0>();
    case DataType::f16: return run.template operator()<DataType::f16>();
    default: throw Error("ERR_INTERNAL", "CUDA: weights of a type that they are never packed to");
  }
}

/// Calls run.operator()<type, D>() with a cache's type and padded head size.
template <class Run>
void with_cache_shape(const KvCache& cache, const Run& run) {
  if (cache.type == KvType::f16) {
    if (cache.padded_head == 64) return run.template operator()<KvType::f16, 64>();
    return run.template operator()<KvType::f16, 128>();
  }
  if (cache.padded_head == 64) return run.template operator()<KvType::q8_0, 64>();
  return run.template operator()<KvType::q8_0, 128>();
}

}  // namespace chatglm::cuda
