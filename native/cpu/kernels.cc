#include "cpu/kernels.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/error.h"

namespace chatglm::cpu {

const Kernels* kernels_by_name(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (std::strcmp(name, "avx512") == 0) {
    const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512vnni");
    return has ? &avx512_kernels : nullptr;
  }
  if (std::strcmp(name, "avx2") == 0) {
    // Every CPU with AVX2 and FMA has F16C as well.
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2_kernels : nullptr;
  }
#endif
  return std::strcmp(name, "portable") == 0 ? &portable_kernels : nullptr;
}

const Kernels& select_kernels() {
  if (const char* name = std::getenv("CHATGLM_KERNELS"); name && *name) {
    if (const Kernels* kernels = kernels_by_name(name)) return *kernels;
    throw Error("ERR_DEVICE_UNAVAILABLE",
                std::string("CHATGLM_KERNELS: this CPU does not run the kernels '") + name + "'");
  }
  for (const char* name : {"avx512", "avx2"}) {
    if (const Kernels* kernels = kernels_by_name(name)) return *kernels;
  }
  return portable_kernels;
}

}  // namespace chatglm::cpu
