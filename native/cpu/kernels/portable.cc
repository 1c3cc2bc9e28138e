// Kernels for any little-endian CPU, in the compiler's vector types of 16 bytes, which every baseline has.
#include <cstdint>
#include <cstring>

#include "base/half.h"

namespace {

struct Simd {
  static constexpr const char* kName = "portable";
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef int16_t Words __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kQuantizedTokens = 2;
  static constexpr int kFloatTokens = 4;
  static constexpr int kAttentionVectors = 2;

  template <class To, class From>
  static To cast(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
  }
  template <class T>
  static T load_as(const void* p) {
    T x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  typedef uint16_t Halves __attribute__((vector_size(8)));
  typedef int8_t Bytes __attribute__((vector_size(4)));

  static F zero() { return F{}; }
  static F all(float x) { return x - F{}; }
  static F load(const float* p) { return load_as<F>(p); }
  static F load_bytes(const uint8_t* p) { return load_as<F>(p); }
  // As half_to_float() in base/half.h.
  static F load_half(const uint8_t* p) {
    const I bits = __builtin_convertvector(load_as<Halves>(p), I);
    const I sign = (bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    const F finite = cast<F>(magnitude << 13) * 0x1p112f;
    const I special = 0x7f800000 | (magnitude & 0x3ff) << 13;
    return cast<F>(sign | (magnitude >= 0x7c00 ? special : cast<I>(finite)));
  }
  static F load_bfloat(const uint8_t* p) { return cast<F>(__builtin_convertvector(load_as<Halves>(p), I) << 16); }
  static F load_signed(const uint8_t* p) { return __builtin_convertvector(load_as<Bytes>(p), F); }
  static float half(const uint8_t* p) { return chatglm::half_to_float(chatglm::load_u16(p)); }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  static void store_half(uint16_t* p, F x) {
    for (int i = 0; i < kLanes; ++i) p[i] = chatglm::float_to_half(x[i]);
  }
  static void store_signed(int8_t* p,
                           F x) {  // x: whole numbers from -127 to 127; of other numbers the result does not matter
    for (int i = 0; i < kLanes; ++i) p[i] = x[i] >= -127.0f && x[i] <= 127.0f ? static_cast<int8_t>(x[i]) : int8_t{0};
  }
  static F add(F a, F b) { return a + b; }
  static F multiply(F a, F b) { return a * b; }
  static F divide(F a, F b) { return a / b; }
  static F multiply_add(F a, F b, F c) { return a * b + c; }
  static F min(F a, F b) { return a < b ? a : b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F magnitude(F a) { return cast<F>(cast<I>(a) & 0x7fffffff); }
  // Adding and subtracting 1.5 * 2^23 rounds numbers below 2^22 to the nearest whole number, halves to even.
  static F round(F a) { return (a + 12582912.0f) - 12582912.0f; }
  static F swap_pairs(F a) { return F{a[1], a[0], a[3], a[2]}; }
  static F scale_by_power_of_two(F a, F n) { return cast<F>(cast<I>(a) + (__builtin_convertvector(n, I) << 23)); }
  static float first(F a) { return a[0]; }
  static float sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float largest(F a) {
    float most = a[0];
    for (int i = 1; i < kLanes; ++i) most = a[i] > most ? a[i] : most;
    return most;
  }

  // Four codes for each of 4 rows, taken apart into 16-bit numbers: the first and third, the second and fourth.
  struct Codes {
    Words even, odd;
  };
  static Codes apart(Words w) { return {(w << 8) >> 8, w >> 8}; }
  static Codes load_codes(const uint8_t* p) { return apart(load_as<Words>(p)); }
  static Codes low_nibbles(Codes w) { return {w.even & 15, w.odd & 15}; }
  static Codes high_nibbles(Codes w) { return {(w.even >> 4) & 15, (w.odd >> 4) & 15}; }
  static Codes repeat_four(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return apart(cast<Words>(four - I{}));
  }
  // The sums of pairs of 16-bit numbers.
  static I pairs(Words w) {
    const I both = cast<I>(w);
    return ((both << 16) >> 16) + (both >> 16);
  }
  static constexpr int kByteZeroPoint = 0;
  struct NibbleSum {
    Words words;  // 16 products of a block fit: 16 * 15 * 127 = 30480
    static NibbleSum start(int32_t) { return {Words{}}; }
    static NibbleSum add(NibbleSum sum, Codes w, Codes x) { return {sum.words + w.even * x.even + w.odd * x.odd}; }
    F finish(int32_t offset) const { return __builtin_convertvector(pairs(words) + offset, F); }
  };
  struct ByteSum {
    I dot;
    static ByteSum start(int32_t) { return {I{}}; }
    static ByteSum add(ByteSum sum, Codes w, Codes x) {  // two products fit: 2 * 128 * 127 = 32512
      return {sum.dot + pairs(w.even * x.even + w.odd * x.odd)};
    }
    F finish(int32_t) const { return __builtin_convertvector(dot, F); }
  };
};

}  // namespace

#include "cpu/kernels/impl.h"

namespace chatglm::cpu {
const Kernels portable_kernels = kKernels;
}
