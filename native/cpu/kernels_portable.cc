// Kernels for any CPU, in the compiler's own vector types: eight floats, which it splits as the target needs.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime/half.h"

namespace {

struct Simd {
  static constexpr const char* kName = "portable";
  typedef float F __attribute__((vector_size(32)));
  typedef int32_t I __attribute__((vector_size(32)));
  static constexpr int kLanes = 8;

  static F zero() { return F{}; }
  static F all(float x) { return x - F{}; }
  static F load(const float* p) { return load_bytes(reinterpret_cast<const uint8_t*>(p)); }
  static F load_bytes(const uint8_t* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static F load_half(const uint8_t* p) {
    F x;
    for (int i = 0; i < kLanes; ++i) x[i] = chatglm::half_to_float(chatglm::load_u16(p + 2 * i));
    return x;
  }
  static F load_bfloat(const uint8_t* p) {
    F x;
    for (int i = 0; i < kLanes; ++i) x[i] = chatglm::bfloat_to_float(chatglm::load_u16(p + 2 * i));
    return x;
  }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  static void store_half(uint16_t* p, F x) {
    for (int i = 0; i < kLanes; ++i) p[i] = chatglm::float_to_half(x[i]);
  }
  static F add(F a, F b) { return a + b; }
  static F multiply(F a, F b) { return a * b; }
  static F divide(F a, F b) { return a / b; }
  static F multiply_add(F a, F b, F c) { return a * b + c; }
  static F min(F a, F b) { return a < b ? a : b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F magnitude(F a) { return a < 0.0f ? -a : a; }
  // Adding and subtracting 1.5 * 2^23 leaves a whole number, to nearest even, for what is below 2^22.
  static F round(F a) { return (a + 12582912.0f) - 12582912.0f; }
  static F scale_by_power_of_two(F a, F n) {
    const I bits = reinterpret_cast<I>(a) + (__builtin_convertvector(n, I) << 23);
    return reinterpret_cast<F>(bits);
  }
  static float sum(F a) { return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])); }
  static float largest(F a) {
    float most = a[0];
    for (int i = 1; i < kLanes; ++i) most = a[i] > most ? a[i] : most;
    return most;
  }

  // Blocks of 32 codes.
  struct Bytes {
    int8_t values[32];
  };
  using Codes = Bytes;
  using QF = F;
  static Bytes load_codes(const int8_t* p) {
    Bytes x;
    std::memcpy(x.values, p, 32);
    return x;
  }
  static Codes load_signed(const uint8_t* p) { return load_codes(reinterpret_cast<const int8_t*>(p)); }
  static Codes load_nibbles(const uint8_t* p) {
    Codes x;
    for (int i = 0; i < 16; ++i) {
      x.values[i] = static_cast<int8_t>(p[i] & 15);
      x.values[i + 16] = static_cast<int8_t>(p[i] >> 4);
    }
    return x;
  }
  static QF dot_signed(const Codes& w, const Bytes& x) { return dot_unsigned(w, x, 0); }
  static QF dot_unsigned(const Codes& w, const Bytes& x, int32_t offset) {
    I dot{};
    dot[0] = offset;
    for (int i = 0; i < 32; ++i) dot[i % 8] += w.values[i] * x.values[i];
    return __builtin_convertvector(dot, F);
  }
  static float half(const uint8_t* p) { return chatglm::half_to_float(chatglm::load_u16(p)); }
  static QF quantized_zero() { return zero(); }
  static QF quantized_add(QF dot, float scale, QF sum) { return dot * scale + sum; }
  static float quantized_sum(QF a) { return sum(a); }
};

}  // namespace

#include "cpu/kernels_impl.h"

namespace chatglm::cpu {
const Kernels portable_kernels = kKernels;
}
