#include "cpu/kernels/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.h"

namespace chatglm::cpu {

namespace {

bool has(const Kernels& kernels) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (&kernels == &avx512_kernels) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
  }
  // Every CPU with AVX2 and FMA has F16C as well.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (&kernels == &avx2_kernels) return avx2;
#if defined(CHATGLM_AVXVNNI)
  if (&kernels == &avxvnni_kernels) {
    // AVX-VNNI: bit 4 of EAX, which not every compiler has a name for.
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
  }
#endif
#elif defined(__aarch64__) && defined(__linux__)
  if (&kernels == &neon_kernels) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__aarch64__) && defined(__APPLE__)
  if (&kernels == &neon_kernels) return true;
#endif
  return &kernels == &portable_kernels;
}

}  // namespace

std::span<const Kernels* const> all_kernels() {
  static const Kernels* const kAll[] = {
#if defined(__x86_64__)
    &avx512_kernels,
#if defined(CHATGLM_AVXVNNI)
    &avxvnni_kernels,
#endif
    &avx2_kernels,
#elif defined(__aarch64__)
    &neon_kernels,
#endif
    &portable_kernels,
  };
  return kAll;
}

const Kernels* kernels_by_name(const char* name) {
  for (const Kernels* kernels : all_kernels()) {
    if (std::strcmp(kernels->name, name) == 0) return has(*kernels) ? kernels : nullptr;
  }
  return nullptr;
}

const Kernels& select_kernels() {
  if (const char* name = std::getenv("CHATGLM_KERNELS"); name && *name) {
    if (const Kernels* kernels = kernels_by_name(name)) return *kernels;
    throw Error("ERR_DEVICE_UNAVAILABLE",
                std::string("CHATGLM_KERNELS: this CPU does not run the kernels '") + name + "'");
  }
  for (const Kernels* kernels : all_kernels()) {
    if (has(*kernels)) return *kernels;
  }
  return portable_kernels;
}

}  // namespace chatglm::cpu
