// Kernels for x86-64 CPUs with AVX2, FMA and F16C.
#include <immintrin.h>

#include <cstdint>

#include "cpu/x86_blocks.h"

namespace {

struct Simd : X86Blocks {
  static constexpr const char* kName = "avx2";
  using F = __m256;
  static constexpr int kLanes = 8;

  static F zero() { return _mm256_setzero_ps(); }
  static F all(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load_bytes(const uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_half(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F load_bfloat(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store_half(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F multiply(F a, F b) { return _mm256_mul_ps(a, b); }
  static F divide(F a, F b) { return _mm256_div_ps(a, b); }
  static F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F magnitude(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale_by_power_of_two(F a, F n) {
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), power));
  }
  static float sum(F a) { return quantized_sum(a); }
  static float largest(F a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }

  // Blocks of 32 codes; the rest of it is X86Blocks'.
  // Pairs of products fit 16 bits: 2 * 128 * 127 for signed weights, 2 * 15 * 127 for nibbles.
  static __m256i dot(__m256i unsigned_codes, __m256i signed_codes) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_codes, signed_codes), _mm256_set1_epi16(1));
  }
  static QF dot_signed(const Codes& w, const Bytes& x) {
    return _mm256_cvtepi32_ps(dot(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)));
  }
  static QF dot_unsigned(const Codes& w, const Bytes& x, int32_t offset) {
    return _mm256_cvtepi32_ps(_mm256_add_epi32(dot(w, x), _mm256_zextsi128_si256(_mm_cvtsi32_si128(offset))));
  }
};

}  // namespace

#include "cpu/kernels_impl.h"

namespace chatglm::cpu {
const Kernels avx2_kernels = kKernels;
}
