// Kernels for x86-64 CPUs with AVX-512 F, BW, DQ, VL and VNNI (Cascade Lake, Ice Lake, Zen 4 and later).
#include <immintrin.h>

#include <cstdint>

namespace {

struct Simd {
  static constexpr const char* kName = "avx512";
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kQuantizedTokens = 6;
  static constexpr int kFloatTokens = 12;
  static constexpr int kAttentionVectors = 4;

  static F zero() { return _mm512_setzero_ps(); }
  static F all(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_bytes(const uint8_t* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
  static F load_half(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bfloat(const uint8_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static F load_signed(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static float half(const uint8_t* p) {
    uint16_t bits;
    __builtin_memcpy(&bits, p, 2);
    return _cvtsh_ss(bits);
  }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_half(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_signed(int8_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F multiply(F a, F b) { return _mm512_mul_ps(a, b); }
  static F divide(F a, F b) { return _mm512_div_ps(a, b); }
  static F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F magnitude(F a) { return _mm512_abs_ps(a); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F swap_pairs(F a) { return _mm512_permute_ps(a, 0xb1); }
  static F scale_by_power_of_two(F a, F n) { return _mm512_scalef_ps(a, n); }
  static float first(F a) { return _mm512_cvtss_f32(a); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float largest(F a) { return _mm512_reduce_max_ps(a); }

  // Four codes for each of 16 rows.
  using Codes = __m512i;
  static Codes load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Codes low_nibbles(Codes w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
  static Codes high_nibbles(Codes w) { return low_nibbles(_mm512_srli_epi16(w, 4)); }
  static Codes repeat_four(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  static constexpr int kByteZeroPoint = 128;  // the instruction takes unsigned codes of weights
  struct NibbleSum {
    __m512i dot;
    static NibbleSum start(int32_t offset) { return {_mm512_set1_epi32(offset)}; }
    static NibbleSum add(NibbleSum sum, Codes w, Codes x) { return {_mm512_dpbusd_epi32(sum.dot, w, x)}; }
    F finish(int32_t) const { return _mm512_cvtepi32_ps(dot); }
  };
  using ByteSum = NibbleSum;
};

}  // namespace

#include "cpu/kernels/impl.h"

namespace chatglm::cpu {
const Kernels avx512_kernels = kKernels;
}
