// What the AVX2 and the AVX-512 kernels do alike with blocks of 32 codes: 256-bit operations that both have. Included
// by their files only, each of which gets a copy of its own (see kernels_impl.h).
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {

struct X86Blocks {
  using Bytes = __m256i;
  using Codes = __m256i;
  using QF = __m256;
  static Bytes load_codes(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Codes load_signed(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Codes load_nibbles(const uint8_t* p) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
  }
  static float half(const uint8_t* p) {
    uint16_t bits;
    __builtin_memcpy(&bits, p, 2);
    return _cvtsh_ss(bits);
  }
  static QF quantized_zero() { return _mm256_setzero_ps(); }
  static QF quantized_add(QF dot, float scale, QF sum) { return _mm256_fmadd_ps(dot, _mm256_set1_ps(scale), sum); }
  static float quantized_sum(QF a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
};

}  // namespace
