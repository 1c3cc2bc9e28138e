#pragma once
#include <functional>
#include <memory>
#include <string>

#include "engine/backend.h"
#include "engine/engine.h"
#include "model/model.h"

namespace chatglm::addon {

/// Where a model is computed, and how.
struct DeviceOptions {
  std::string device;   // auto, cpu, cuda (which is cuda:0) or cuda:N
  std::string kv_type;  // f16, f32 or q8_0; empty: the device's default
  EngineOptions engine;
};

/// N of "cuda:N", 0 of "cuda". Throws ERR_INVALID_ARGUMENT.
int32_t cuda_index(const std::string& device);

/// Reads the model onto its device. `auto` is the first GPU, or the CPU where there is no GPU, where the model does not
/// fit into the GPU's memory, or where only the CPU computes what is asked for. Throws ERR_DEVICE_UNAVAILABLE with the
/// reason, ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY, and what load_weights throws. `warn` hears why the CPU is taken in
/// place of a GPU that has not memory enough.
std::unique_ptr<Backend> make_backend(const ModelSource& source, const DeviceOptions& options, const Progress& progress,
                                      const std::function<void(const Error&)>& warn, const std::atomic<bool>& abort);

}  // namespace chatglm::addon
