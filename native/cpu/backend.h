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

/// Throws ERR_INVALID_ARGUMENT if q8_0 keys and values are asked for and the heads' size is no multiple of 32.
void check_kv_type(const ModelShape& shape, KvType type);

/// Throws what check_kv_type() does, and ERR_OUT_OF_MEMORY if the key/value memory is more than the machine has.
std::unique_ptr<Backend> make_cpu_backend(const ModelShape& shape, CpuWeights weights, const CpuOptions& options);

}  // namespace chatglm::cpu
