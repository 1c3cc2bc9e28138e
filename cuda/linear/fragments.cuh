#pragma once
#include "cuda/ptx/ptx.cuh"

// From a block of packed weights (layout.h) to the A fragments of the tensor cores.
namespace chatglm::cuda {

/// (a & b) | c in one instruction.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// One lane's share of a block of 16 rows x 64 columns, in registers.
///
/// Codes become f16 without conversion instructions: an integer n below 1024 put into the mantissa of 0x6400 is the f16
/// number 1024 + n, exactly (Kim et al., "Who Says Elephants Can't Run", 2022, arXiv:2211.10017).
template <DataType type>
struct WeightBlock {
  static constexpr bool kScaled = type != DataType::f16;
  static constexpr int kPieces = code_bytes(type) / 512;  // of 16 bytes a lane

  uint4 codes[kPieces];
  uint2 scales;  // f16: (g, block 0), (g + 8, block 0), (g, block 1), (g + 8, block 1)

  /// From global memory, past L1. `block`: its first byte.
  __device__ __forceinline__ void load_stream(const uint8_t* block, int lane) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) codes[i] = load_stream_16(block + i * 512 + lane * 16);
    if constexpr (kScaled) scales = load_stream_8(block + code_bytes(type) + lane / 4 * 8);
  }
  /// From shared memory.
  __device__ __forceinline__ void load(const uint8_t* block, int lane) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) codes[i] = *reinterpret_cast<const uint4*>(block + i * 512 + lane * 16);
    if constexpr (kScaled) scales = *reinterpret_cast<const uint2*>(block + code_bytes(type) + lane / 4 * 8);
  }
  /// A block of zeros.
  __device__ __forceinline__ void clear() {
    // Codes that mean 0 would do too, but a scale of 0 is the same for all types. f16 has no scale: zeros.
#pragma unroll
    for (int i = 0; i < kPieces; ++i) codes[i] = make_uint4(0, 0, 0, 0);
    scales = make_uint2(0, 0);
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
      constexpr uint32_t kMagic = 0x64646464;
      const half2 bias = __float2half2_rn(1152);
      a[0] = bits(__hsub2(as_half2(__byte_perm(low, kMagic, 0x4140)), bias));
      a[1] = bits(__hsub2(as_half2(__byte_perm(low, kMagic, 0x4342)), bias));
      a[2] = bits(__hsub2(as_half2(__byte_perm(high, kMagic, 0x4140)), bias));
      a[3] = bits(__hsub2(as_half2(__byte_perm(high, kMagic, 0x4342)), bias));
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
