// Kernels for x86-64 CPUs with AVX2, FMA and F16C.
#include "cpu/kernels/avx2_impl.h"

namespace {

struct Simd : Avx2 {
  static constexpr const char* kName = "avx2";
  static constexpr int kQuantizedTokens = 4;
  static constexpr int kByteZeroPoint = 0;

  // The instruction multiplies unsigned with signed bytes and adds pairs, in 16 bits. 16 products of a block's codes of
  // 4 bits fit one such number: 16 * 15 * 127 = 30480.
  struct NibbleSum {
    __m256i words;
    static NibbleSum start(int32_t) { return {_mm256_setzero_si256()}; }
    static NibbleSum add(NibbleSum sum, Codes w, Codes x) {
      __m256i words = _mm256_add_epi16(sum.words, _mm256_maddubs_epi16(w, x));
      asm("" : "+x"(words));  // else GCC adds in a tree, whose many leaves do not fit the registers
      return {words};
    }
    F finish(int32_t offset) const {
      const __m256i dot = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
      return _mm256_cvtepi32_ps(_mm256_add_epi32(dot, _mm256_set1_epi32(offset)));
    }
  };
  // Of 8 bits only a pair does: 2 * 128 * 127. The signs go to the other factor.
  struct ByteSum {
    __m256i dot;
    static ByteSum start(int32_t) { return {_mm256_setzero_si256()}; }
    static ByteSum add(ByteSum sum, Codes w, Codes x) {
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
      __m256i dot = _mm256_add_epi32(sum.dot, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      asm("" : "+x"(dot));
      return {dot};
    }
    F finish(int32_t) const { return _mm256_cvtepi32_ps(dot); }
  };
};

}  // namespace

#include "cpu/kernels/impl.h"

namespace chatglm::cpu {
const Kernels avx2_kernels = kKernels;
}
