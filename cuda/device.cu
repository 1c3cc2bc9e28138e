#include "cuda/device.h"

#include "cuda/launch.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace chatglm::cuda {

namespace {

// What the code that runs was compiled for: with PTX the driver's choice, so only running it tells.
__global__ void report_arch(int32_t* arch) {
#if defined(__CUDA_ARCH__)
  arch[0] = __CUDA_ARCH__;
#if defined(CHATGLM_WGMMA)
  arch[1] = 1;
#else
  arch[1] = 0;
#endif
#endif
}

// As many clusters as the GPU's groups of multiprocessors have room for, of blocks that fill a multiprocessor each.
int32_t count_clusters(int32_t cluster, size_t shared_bytes) {
  cudaLaunchAttribute attribute = cluster_attribute(cluster);
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(cluster);
  config.blockDim = 32;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  cudaError_t status =
      cudaFuncSetAttribute(report_arch, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (status == cudaSuccess) status = cudaOccupancyMaxActiveClusters(&clusters, report_arch, &config);
  if (status == cudaSuccess) return clusters;
  cudaGetLastError();  // a part of a GPU, for one, may have too few multiprocessors for a cluster
  return 0;
}

void require(cudaError_t status, const std::string& device) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // the error is told once
  throw Error("ERR_DEVICE_UNAVAILABLE", "device '" + device + "': " + cudaGetErrorString(status));
}

}  // namespace

int32_t device_count() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  int driver = 0;
  if (status == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess) {
    cudaGetLastError();
    const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
    throw Error("ERR_DEVICE_UNAVAILABLE", driver == 0
                                              ? std::string("device 'cuda': there is no NVIDIA driver")
                                              : "device 'cuda': the NVIDIA driver is for CUDA " + version(driver) +
                                                    ", too old for this build with CUDA " + version(CUDART_VERSION));
  }
  require(status, "cuda");
  if (count == 0) throw Error("ERR_DEVICE_UNAVAILABLE", "device 'cuda': there is no NVIDIA GPU");
  return count;
}

GpuInfo gpu_info(int32_t index) {
  const std::string device = "cuda:" + std::to_string(index);
  int before = 0;
  require(cudaGetDevice(&before), device);
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, index), device);
  GpuInfo info;
  info.name = properties.name;
  info.compute_capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
  size_t free = 0, total = 0;
  require(cudaSetDevice(index), device);
  const cudaError_t status = cudaMemGetInfo(&free, &total);
  cudaSetDevice(before);
  require(status, device);
  info.total_bytes = total;
  info.free_bytes = free;
  return info;
}

Device open_device(int32_t index) {
  const int32_t count = device_count();
  const std::string name = "cuda:" + std::to_string(index);
  if (index < 0 || index >= count) {
    throw Error("ERR_DEVICE_UNAVAILABLE",
                "device '" + name + "': the GPUs here are cuda:0" +
                    (count > 1 ? " to cuda:" + std::to_string(count - 1) : std::string(" alone")),
                {{"devices", static_cast<double>(count)}});
  }
  require(cudaSetDevice(index), name);
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, index), name);
  if (properties.major * 10 + properties.minor < 75) {
    throw Error("ERR_DEVICE_UNAVAILABLE", "device '" + name + "': " + properties.name + " has compute capability " +
                                              std::to_string(properties.major) + "." +
                                              std::to_string(properties.minor) + "; 7.5 is the least");
  }
  Device device;
  device.index = index;
  device.multiprocessors = properties.multiProcessorCount;
  device.shared_bytes = properties.sharedMemPerBlockOptin;
  int32_t* arch = nullptr;
  require(cudaMalloc(&arch, 2 * sizeof(int32_t)), name);
  report_arch<<<1, 1>>>(arch);
  int32_t found[2] = {};
  const cudaError_t launched = cudaGetLastError();
  const cudaError_t copied = cudaMemcpy(found, arch, sizeof found, cudaMemcpyDeviceToHost);
  cudaFree(arch);
  require(launched, name);
  require(copied, name);
  device.arch = found[0];
  device.wgmma = found[1] != 0;
  if (device.arch >= 900) device.clusters_of_8 = count_clusters(8, device.shared_bytes);
  return device;
}

std::string kernels_name(const Device& device) {
  return "sm_" + std::to_string(device.arch / 10) + (device.wgmma ? "a" : "");
}

}  // namespace chatglm::cuda
