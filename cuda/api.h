#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/backend.h"
#include "model/model.h"

// What the shared library of the CUDA backend offers to the addon, which opens it at run time. No CUDA header in here.
namespace chatglm::cuda {

struct CudaOptions {
  int32_t device = 0;  // index of the GPU
  int32_t pages = 0;   // wanted, of kPageTokens tokens each
  int32_t least_pages =
      0;  // so many are taken at least, and more only as far as the memory suffices; 0: all of `pages`
  int32_t max_sequences = 1;
  int32_t context_tokens = 0;  // most tokens of one sequence
  bool kv_q8_0 = false;        // keys and values in q8_0 instead of f16
};

struct GpuInfo {
  std::string name;                // "NVIDIA H100 80GB HBM3"
  std::string compute_capability;  // "9.0"
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;
};

struct CudaApi {
  uint32_t version = 0;  // kCudaApiVersion
  /// Throws ERR_DEVICE_UNAVAILABLE with the driver's reason if there is no GPU to use.
  std::vector<GpuInfo> (*gpus)();
  /// Reads the weights (load_weights) straight onto the GPU. Throws ERR_DEVICE_UNAVAILABLE, ERR_OUT_OF_MEMORY with
  /// wantedBytes and freeBytes before anything is read, ERR_INVALID_ARGUMENT for a shape that the kernels do not have,
  /// and what load_weights throws.
  std::unique_ptr<Backend> (*make_backend)(const ModelSource& source, const CudaOptions& options,
                                           const Progress& progress, const std::atomic<bool>& abort);
  /// Bytes a second of a plain read of `bytes` of a GPU's memory: what bounds decoding.
  double (*measure_bandwidth)(int32_t device, uint64_t bytes);
};

constexpr uint32_t kCudaApiVersion = 2;

}  // namespace chatglm::cuda

/// Null if the library was built for another version.
extern "C" const chatglm::cuda::CudaApi* chatglm_cuda_api(uint32_t version);
