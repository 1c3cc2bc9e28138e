#pragma once
#include <memory>

#include "runtime/backend.h"
#include "runtime/model.h"

namespace chatglm::cpu {

enum class KvType { f16, f32 };

struct CpuOptions {
  int32_t threads = 1;
  int32_t pages = 0;  // of kPageTokens tokens each
  KvType kv_type = KvType::f16;
};

/// Throws ERR_OUT_OF_MEMORY if the key/value memory does not fit.
std::unique_ptr<Backend> make_cpu_backend(const ModelShape& shape, Weights weights, const CpuOptions& options);

}  // namespace chatglm::cpu
