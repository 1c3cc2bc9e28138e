#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

// Arithmetic of f32 and f16 that all kernels do alike, and the instructions for it that CUDA C++ has no name for.
namespace chatglm::cuda {

/// 2^x with a relative error of 2^-22; 0 for -infinity and for what would be subnormal, NaN for NaN.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// (a & b) | c in one instruction.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

/// The sum of the squares of four numbers.
__device__ __forceinline__ float squares(float4 x) { return x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w; }

// --- Over lanes. All 32 lanes of the warp call these.

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}
/// The sum over the four lanes that hold a row of an accumulator (lane / 4 is the row).
template <class T>
__device__ __forceinline__ T quad_sum(T x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  x += __shfl_xor_sync(0xffffffffu, x, 2);
  return x;
}
/// The largest of these four lanes' numbers; a NaN is passed by.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
  return x;
}

// --- f16.

__device__ __forceinline__ uint32_t bits(half2 x) { return *reinterpret_cast<const uint32_t*>(&x); }
__device__ __forceinline__ half2 as_half2(uint32_t x) { return *reinterpret_cast<const half2*>(&x); }

/// Clamped to the finite range of f16; NaN stays NaN (comparisons with NaN are false).
__device__ __forceinline__ float clamp_to_half(float x) {
  return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
}
__device__ __forceinline__ half to_half(float x) { return __float2half_rn(clamp_to_half(x)); }
__device__ __forceinline__ half2 to_half2(float x, float y) {
  return __floats2half2_rn(clamp_to_half(x), clamp_to_half(y));
}

/// Codes of q8_0, each stored as code + 128 in a byte of `bytes`, as f16 numbers: those of the two low bytes (0) or
/// of the two high ones. It takes no conversion instruction: an integer n below 1024 in the mantissa of 0x6400 is the
/// f16 number 1024 + n, exactly (Kim et al., "Who Says Elephants Can't Run", 2022, arXiv:2211.10017).
template <int which>
__device__ __forceinline__ half2 codes_to_half2(uint32_t bytes) {
  const half2 bias = as_half2(0x64806480);  // 1024 + 128
  return __hsub2(as_half2(__byte_perm(bytes, 0x64646464, which == 0 ? 0x4140 : 0x4342)), bias);
}

/// A mask of the first `count` of 8 f16 numbers.
__device__ __forceinline__ uint4 first_halves(int count) {
  const auto word = [&](int w) { return count >= 2 * w + 2 ? 0xffffffffu : count == 2 * w + 1 ? 0xffffu : 0u; };
  return make_uint4(word(0), word(1), word(2), word(3));
}
__device__ __forceinline__ uint4 operator&(const uint4& a, const uint4& b) {
  return make_uint4(a.x & b.x, a.y & b.y, a.z & b.z, a.w & b.w);
}

}  // namespace chatglm::cuda
