#pragma once
#include "cuda/linear/layout.h"
#include "cuda/ptx/math.cuh"

// From a block of packed weights (layout.h) to the A fragments of the tensor cores.
namespace chatglm::cuda {

/// One lane's share of a block of 16 rows x 64 columns, in registers.
///
/// Codes become f16 without conversion instructions: see codes_to_half2. For q4_0, whose codes are nibbles, the
/// mantissa of 0x6400 takes the code or 16 times the code.
template <DataType type>
struct WeightBlock {
  static constexpr bool kScaled = type != DataType::f16;
  static constexpr int kPieces = code_bytes(type) / 512;  // of 16 bytes a lane

  uint4 codes[kPieces];
  uint2 scales;  // f16: (g, block 0), (g + 8, block 0), (g, block 1), (g + 8, block 1)

  /// From shared memory.
  __device__ __forceinline__ void load(const uint8_t* block, int lane) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) codes[i] = *reinterpret_cast<const uint4*>(block + i * 512 + lane * 16);
    if constexpr (kScaled) scales = *reinterpret_cast<const uint2*>(block + code_bytes(type) + lane / 4 * 8);
  }

  /// The fragment of columns [16 step, 16 step + 16), without the scales: small integers, exact in f16. `step` is a
  /// constant after unrolling.
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const {
    if constexpr (type == DataType::q4_0) {
      const uint32_t word = step == 0 ? codes[0].x : step == 1 ? codes[0].y : step == 2 ? codes[0].z : codes[0].w;
      constexpr uint32_t kMagic = 0x64006400;
      const half2 bias = __float2half2_rn(1032), sixteenth = __float2half2_rn(0.0625f), bias16 = __float2half2_rn(-72);
      a[0] = bits(__hsub2(as_half2(and_or(word, 0x000f000f, kMagic)), bias));
      a[1] = bits(__hfma2(as_half2(and_or(word, 0x00f000f0, kMagic)), sixteenth, bias16));
      a[2] = bits(__hsub2(as_half2(and_or(word >> 8, 0x000f000f, kMagic)), bias));
      a[3] = bits(__hfma2(as_half2(and_or(word >> 8, 0x00f000f0, kMagic)), sixteenth, bias16));
    } else if constexpr (type == DataType::q8_0) {
      const uint4 piece = codes[step / 2];
      const uint32_t low = step % 2 == 0 ? piece.x : piece.z, high = step % 2 == 0 ? piece.y : piece.w;
      a[0] = bits(codes_to_half2<0>(low));
      a[1] = bits(codes_to_half2<1>(low));
      a[2] = bits(codes_to_half2<0>(high));
      a[3] = bits(codes_to_half2<1>(high));
    } else {
      const uint4 piece = codes[step];
      a[0] = piece.x, a[1] = piece.y, a[2] = piece.z, a[3] = piece.w;
    }
  }

  /// The same times the scales, rounded to f16 as THUDM's own dequantization does.
  __device__ __forceinline__ void scaled_fragment(int step, uint32_t (&a)[4]) const {
    fragment(step, a);
    if constexpr (kScaled) {
      const half2 pair = as_half2(step < 2 ? scales.x : scales.y);
      const half2 upper = __low2half2(pair), lower = __high2half2(pair);  // rows g and g + 8
      a[0] = bits(__hmul2(as_half2(a[0]), upper));
      a[1] = bits(__hmul2(as_half2(a[1]), lower));
      a[2] = bits(__hmul2(as_half2(a[2]), upper));
      a[3] = bits(__hmul2(as_half2(a[3]), lower));
    }
  }

  /// The scale of row g (upper) and g + 8 (lower) in the block of 32 columns that `step` is in.
  __device__ __forceinline__ float upper_scale(int step) const {
    return __low2float(as_half2(step < 2 ? scales.x : scales.y));
  }
  __device__ __forceinline__ float lower_scale(int step) const {
    return __high2float(as_half2(step < 2 ? scales.x : scales.y));
  }
};

}  // namespace chatglm::cuda
