#include "cuda/device.h"

#include <cudaTypedefs.h>

#include <map>
#include <mutex>

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

/// A function of the driver, which the CUDA runtime finds: this library is not linked with the driver.
template <class Function>
Function driver_function(const char* name, unsigned cuda_version, const std::string& device) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &function, cuda_version, cudaEnableDefault, &result);
  if (status != cudaSuccess || result != cudaDriverEntryPointSuccess || !function) {
    cudaGetLastError();
    throw Error("ERR_DEVICE_UNAVAILABLE", "device '" + device + "': the driver has no " + name);
  }
  return reinterpret_cast<Function>(function);
}

// The runtime would make a GPU's primary context to ask for its memory, and leave it: some hundred MB of the GPU's
// memory until the process ends. The driver counts who retains the context, the runtime among them, so it goes with the
// last one, and another thread that loads a model meanwhile keeps it.
class RetainedContext {
 public:
  RetainedContext(CUdevice device, const std::string& name)
      : device_(device),
        release_(driver_function<PFN_cuDevicePrimaryCtxRelease_v11000>("cuDevicePrimaryCtxRelease", 11000, name)) {
    const auto retain = driver_function<PFN_cuDevicePrimaryCtxRetain_v7000>("cuDevicePrimaryCtxRetain", 7000, name);
    const auto push = driver_function<PFN_cuCtxPushCurrent_v4000>("cuCtxPushCurrent", 4000, name);
    pop_ = driver_function<PFN_cuCtxPopCurrent_v4000>("cuCtxPopCurrent", 4000, name);
    CUcontext context = nullptr;
    if (retain(&context, device_) != CUDA_SUCCESS) refuse(name);
    if (push(context) != CUDA_SUCCESS) {
      release_(device_);
      refuse(name);
    }
  }
  ~RetainedContext() {
    CUcontext context = nullptr;
    pop_(&context);
    release_(device_);
  }
  RetainedContext(const RetainedContext&) = delete;

 private:
  [[noreturn]] static void refuse(const std::string& name) {
    throw Error("ERR_DEVICE_UNAVAILABLE", "device '" + name + "': the GPU cannot be used");
  }

  CUdevice device_;
  PFN_cuDevicePrimaryCtxRelease_v11000 release_;
  PFN_cuCtxPopCurrent_v4000 pop_ = nullptr;
};

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
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, index), device);
  GpuInfo info;
  info.name = properties.name;
  info.compute_capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
  const auto memory_info = driver_function<PFN_cuMemGetInfo_v3020>("cuMemGetInfo", 3020, device);
  const auto get_device = driver_function<PFN_cuDeviceGet_v2000>("cuDeviceGet", 2000, device);
  size_t free = 0, total = 0;
  CUdevice handle = 0;
  bool known = get_device(&handle, index) == CUDA_SUCCESS;
  if (known) {
    const RetainedContext context(handle, device);
    known = memory_info(&free, &total) == CUDA_SUCCESS;
  }
  if (!known) throw Error("ERR_DEVICE_UNAVAILABLE", "device '" + device + "': the driver does not tell its memory");
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

void allow_shared_bytes(const Device& device, const void* kernel, size_t bytes) {
  // The attribute is the process's, so what is known of it is, too. Never destroyed: threads outlive static objects.
  static auto& mutex = *new std::mutex;
  static auto& allowed = *new std::map<std::pair<int32_t, const void*>, size_t>;
  const std::lock_guard lock(mutex);
  size_t& most = allowed[{device.index, kernel}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "asking for shared memory");
  most = bytes;
}

std::string kernels_name(const Device& device) {
  return "sm_" + std::to_string(device.arch / 10) + (device.wgmma ? "a" : "");
}

}  // namespace chatglm::cuda
