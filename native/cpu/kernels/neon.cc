// Kernels for 64-bit Arm CPUs with the dot product instructions (Armv8.2-A with DotProd: Neoverse N1, Cortex-A76, Apple
// M1 and later).
#include <arm_neon.h>

#include <cstdint>

namespace {

struct Simd {
  static constexpr const char* kName = "neon";
  using F = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kQuantizedTokens = 4;
  static constexpr int kFloatTokens = 8;
  static constexpr int kAttentionVectors = 4;

  static F zero() { return vdupq_n_f32(0); }
  static F all(float x) { return vdupq_n_f32(x); }
  static F load(const float* p) { return vld1q_f32(p); }
  static F load_bytes(const uint8_t* p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
  static F load_half(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
  static F load_bfloat(const uint8_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
  }
  static F load_signed(const uint8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
  }
  static float half(const uint8_t* p) {
    __fp16 value;
    __builtin_memcpy(&value, p, 2);
    return value;
  }
  static void store(float* p, F x) { vst1q_f32(p, x); }
  static void store_half(uint16_t* p, F x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
  static void store_signed(int8_t* p, F x) {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(x));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(vqmovn_s16(vcombine_s16(words, words))), 0);
    __builtin_memcpy(p, &four, 4);
  }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F multiply(F a, F b) { return vmulq_f32(a, b); }
  static F divide(F a, F b) { return vdivq_f32(a, b); }
  static F multiply_add(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  // As on x86, the result is the second operand if one operand is NaN.
  static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F magnitude(F a) { return vabsq_f32(a); }
  static F round(F a) { return vrndnq_f32(a); }
  static F swap_pairs(F a) { return vrev64q_f32(a); }
  static F scale_by_power_of_two(F a, F n) {
    const int32x4_t power = vshlq_n_s32(vcvtq_s32_f32(n), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), power));
  }
  static float first(F a) { return vgetq_lane_f32(a, 0); }
  static float sum(F a) { return vaddvq_f32(a); }
  static float largest(F a) { return vmaxvq_f32(a); }

  // Four codes for each of 4 rows.
  using Codes = int8x16_t;
  static Codes load_codes(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
  static Codes low_nibbles(Codes w) { return vandq_s8(w, vdupq_n_s8(15)); }
  static Codes high_nibbles(Codes w) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(w), 4)); }
  static Codes repeat_four(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
  static constexpr int kByteZeroPoint = 0;
  struct NibbleSum {
    int32x4_t dot;
    static NibbleSum start(int32_t offset) { return {vdupq_n_s32(offset)}; }
    static NibbleSum add(NibbleSum sum, Codes w, Codes x) { return {vdotq_s32(sum.dot, w, x)}; }
    F finish(int32_t) const { return vcvtq_f32_s32(dot); }
  };
  using ByteSum = NibbleSum;
};

}  // namespace

#include "cpu/kernels/impl.h"

namespace chatglm::cpu {
const Kernels neon_kernels = kKernels;
}
