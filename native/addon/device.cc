#include "addon/device.h"

#include <algorithm>
#include <charconv>

#include "addon/cuda_library.h"
#include "base/error.h"
#include "cpu/backend.h"

namespace chatglm::addon {

namespace {

std::unique_ptr<Backend> on_cpu(const ModelSource& source, const DeviceOptions& options, const Progress& progress,
                                const std::atomic<bool>& abort) {
  // The rounding of keys and values to f16 is a small error beside that of weights of few bits.
  const bool quantized =
      source.quantize || std::any_of(source.tensors.begin(), source.tensors.end(),
                                     [](const TensorSource& tensor) { return tensor.type > DataType::bf16; });
  cpu::CpuOptions cpu;
  cpu.threads = source.threads;
  cpu.pages = options.engine.pages;
  cpu.kv_type = options.kv_type == "q8_0"                                            ? cpu::KvType::q8_0
                : options.kv_type == "f16" || (options.kv_type.empty() && quantized) ? cpu::KvType::f16
                                                                                     : cpu::KvType::f32;
  cpu::check_kv_type(source.shape, cpu.kv_type);  // before minutes of loading
  return cpu::make_cpu_backend(source.shape, cpu::load_cpu_weights(source, cpu::select_kernels(), progress, abort),
                               cpu);
}

std::unique_ptr<Backend> on_gpu(int32_t index, const ModelSource& source, const DeviceOptions& options,
                                const Progress& progress, const std::atomic<bool>& abort) {
  if (options.kv_type == "f32") {
    throw Error("ERR_INVALID_ARGUMENT", "kvCacheType 'f32' takes the CPU: the CUDA backend has f16 and q8_0");
  }
  cuda::CudaOptions cuda;
  cuda.device = index;
  cuda.pages = options.engine.pages;
  cuda.least_pages = options.engine.least_pages;
  cuda.max_sequences = options.engine.max_sequences;
  cuda.context_tokens = options.engine.context_tokens;
  cuda.kv_q8_0 = options.kv_type == "q8_0";
  return cuda_api().make_backend(source, cuda, progress, abort);
}

}  // namespace

int32_t cuda_index(const std::string& device) {
  if (device == "cuda") return 0;
  const std::string prefix = "cuda:";
  int32_t index = 0;
  if (device.starts_with(prefix)) {
    const char *begin = device.data() + prefix.size(), *end = device.data() + device.size();
    const auto [last, error] = std::from_chars(begin, end, index);
    if (error == std::errc() && last == end && index >= 0) return index;
  }
  throw Error("ERR_INVALID_ARGUMENT", "there is no device '" + device + "'");
}

std::unique_ptr<Backend> make_backend(const ModelSource& source, const DeviceOptions& options, const Progress& progress,
                                      const std::function<void(const Error&)>& warn, const std::atomic<bool>& abort) {
  if (options.device == "cpu") return on_cpu(source, options, progress, abort);
  if (options.device != "auto") return on_gpu(cuda_index(options.device), source, options, progress, abort);
  try {
    return on_gpu(0, source, options, progress, abort);
  } catch (const Error& error) {
    // The GPU's backend throws the first and the last before anything is read, and
    // ERR_OUT_OF_MEMORY also when another process takes the memory while the weights are read. If the CPU's backend has
    // the same cause, it throws again.
    const bool elsewhere = error.code == "ERR_DEVICE_UNAVAILABLE" || error.code == "ERR_OUT_OF_MEMORY" ||
                           error.code == "ERR_INVALID_ARGUMENT";
    if (!elsewhere) throw;
    if (error.code == "ERR_OUT_OF_MEMORY") warn(error);
  }
  return on_cpu(source, options, progress, abort);
}

}  // namespace chatglm::addon
