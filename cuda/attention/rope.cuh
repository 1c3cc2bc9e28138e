#pragma once
#include <cmath>

#include "cuda/linear/layout.h"
#include "cuda/ptx/math.cuh"

// The steps from the QKV product to attention: bias, rotation of pairs, and the storage of keys and values. All kernels
// round alike, so the bits in the cache do not depend on the kernel that wrote them.
namespace chatglm::cuda {

/// Numbers `index` and `index` + 1; `index` is even.
__device__ __forceinline__ float2 load_pair(const float* numbers, int64_t index) {
  return *reinterpret_cast<const float2*>(numbers + index);
}
__device__ __forceinline__ float2 add_pair(float2 x, float2 bias) {
  return make_float2(__fadd_rn(x.x, bias.x), __fadd_rn(x.y, bias.y));
}
/// rotation: cosine and sine.
__device__ __forceinline__ float2 rotate_pair(float2 x, float2 rotation) {
  return make_float2(__fmaf_rn(x.x, rotation.x, -__fmul_rn(x.y, rotation.y)),
                     __fmaf_rn(x.y, rotation.x, __fmul_rn(x.x, rotation.y)));
}

/// log2(e) / sqrt(head_size): what queries are multiplied with, so that a weight of the softmax is
/// 2^(score - largest).
inline float query_scale(int32_t head_size) { return 1.44269504f / std::sqrt(static_cast<float>(head_size)); }

/// Two neighbouring numbers of a key or a value as the cache stores them.
template <KvType type>
struct KvPair;

template <>
struct KvPair<KvType::f16> {
  half2 numbers;

  __device__ explicit KvPair(float2 x) : numbers(to_half2(x.x, x.y)) {}
  __device__ half2 decoded() const { return numbers; }
};

template <>
struct KvPair<KvType::q8_0> {
  char2 codes;
  half scale;  // of the block

  /// Called by whole warps: the 16 lanes of half a warp hold a block of 32 dimensions. The result is that of
  /// quantize.cc, with two differences: numbers are clamped, so that 127 * scale is finite in f16, and a NaN makes the
  /// scale NaN.
  __device__ explicit KvPair(float2 x) {
    constexpr float kMost = 127 * 515.5f;
    x.x = x.x > kMost ? kMost : x.x < -kMost ? -kMost : x.x;
    x.y = x.y > kMost ? kMost : x.y < -kMost ? -kMost : x.y;
    float largest = larger(fabsf(x.x), fabsf(x.y));
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
    const float exact = __fdiv_rn(largest, 127.0f);
    float inverse = __fdiv_rn(1.0f, exact);
    if (isinf(inverse)) inverse = 0;  // too small to be told from zero
    codes = make_char2(code(__fmul_rn(x.x, inverse)), code(__fmul_rn(x.y, inverse)));
    scale = __float2half_rn(exact);
  }
  __device__ half2 decoded() const { return __hmul2(__floats2half2_rn(codes.x, codes.y), __half2half2(scale)); }

 private:
  /// The larger of two; NaN if either is.
  __device__ static float larger(float a, float b) { return b > a || b != b ? b : a; }
  __device__ static signed char code(float x) {
    const float rounded = roundf(x);
    return static_cast<signed char>(!(rounded > -127.0f) ? -127 : rounded < 127.0f ? static_cast<int>(rounded) : 127);
  }
};

/// Stores dimensions 2 * pair and 2 * pair + 1 of a token's key; `keys`: of a head page.
template <KvType type, int D>
__device__ __forceinline__ void store_key(uint8_t* keys, int slot, int pair, const KvPair<type>& x) {
  const int index = key_index(type, D, slot, 2 * pair);
  if constexpr (type == KvType::f16) {
    *reinterpret_cast<half2*>(keys + 2 * index) = x.numbers;
  } else {
    *reinterpret_cast<char2*>(keys + index) = x.codes;
    if (pair % 16 == 0) {
      reinterpret_cast<half*>(keys + kPageTokens * D)[key_scale_index(D, slot, 2 * pair)] = x.scale;
    }
  }
}

/// The same of a token's value; `values`: of a head page.
template <KvType type, int D>
__device__ __forceinline__ void store_value(uint8_t* values, int slot, int pair, const KvPair<type>& x) {
  const int low = value_index(type, slot, 2 * pair), high = value_index(type, slot, 2 * pair + 1);
  if constexpr (type == KvType::f16) {
    reinterpret_cast<half*>(values)[low] = __low2half(x.numbers);
    reinterpret_cast<half*>(values)[high] = __high2half(x.numbers);
  } else {
    reinterpret_cast<signed char*>(values)[low] = x.codes.x;
    reinterpret_cast<signed char*>(values)[high] = x.codes.y;
    if (pair % 16 == 0) {
      reinterpret_cast<half*>(values + kPageTokens * D)[value_scale_index(slot, 2 * pair)] = x.scale;
    }
  }
}

}  // namespace chatglm::cuda
