#pragma once
#include <memory>

#include "cpu/weights.h"
#include "engine/backend.h"

namespace chatglm::cpu {

struct CpuOptions {
  int32_t threads = 1;
  int32_t pages = 0;  // of kPageTokens tokens each
  KvType kv_type = KvType::f16;
};

/// Throws ERR_INVALID_ARGUMENT if `type` is q8_0 and the head size is no multiple of 32.
void check_kv_type(const ModelShape& shape, KvType type);

/// Throws what check_kv_type() throws, ERR_OUT_OF_MEMORY if the machine has less than the key/value memory, and
/// std::system_error if the system gives too few threads: see current_error().
std::unique_ptr<Backend> make_cpu_backend(const ModelShape& shape, CpuWeights weights, const CpuOptions& options);

}  // namespace chatglm::cpu
