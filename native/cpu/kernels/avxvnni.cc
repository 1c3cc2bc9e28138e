// Kernels for x86-64 CPUs with AVX2, FMA, F16C and AVX-VNNI, but without AVX-512: Intel's desktop and laptop CPUs from
// 2021 (Alder Lake) on.
#include "cpu/kernels/avx2_impl.h"

namespace {

struct Simd : Avx2 {
  static constexpr const char* kName = "avxvnni";
  static constexpr int kQuantizedTokens = 4;
  static constexpr int kByteZeroPoint = 128;  // the instruction takes unsigned codes of weights

  struct NibbleSum {
    __m256i dot;
    static NibbleSum start(int32_t offset) { return {_mm256_set1_epi32(offset)}; }
    static NibbleSum add(NibbleSum sum, Codes w, Codes x) { return {_mm256_dpbusd_avx_epi32(sum.dot, w, x)}; }
    F finish(int32_t) const { return _mm256_cvtepi32_ps(dot); }
  };
  using ByteSum = NibbleSum;
};

}  // namespace

#include "cpu/kernels/impl.h"

namespace chatglm::cpu {
const Kernels avxvnni_kernels = kKernels;
}
