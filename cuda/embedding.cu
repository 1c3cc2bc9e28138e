#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/ptx/math.cuh"

// The beginning of a step: rows of the embedding to the residual in f32, and cosines and sines of the positions.
//
// Launch: a thread for every four numbers of a row and one for every rotated pair; grid (tokens, threads of a token /
// 256).
//
// Bytes moved, hidden size 4096, rope dimension 64: a token writes 16,384 + 256 and reads 8,192 (f16) or 2,304 (q4_0).
// In a step of decoding that is so little that the kernel's time is its launch. A prefill of 2,048 tokens moves 50 MB
// (f16), for which an H100 (3.14 TB/s) needs at least 16 us.
// Measured on an H100: 1.1 us for a token; 15 us for 2,048, 84% of the bound.
namespace chatglm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kQuad = 4;  // numbers of a thread; blocks of 32 have eight of them

// The table lies as in the model file: rows of q4_0 and q8_0 are aligned to two bytes at best.
__device__ __forceinline__ uint32_t load_16_bits(const uint8_t* p) {
  if (reinterpret_cast<uintptr_t>(p) % 2 == 0) return *reinterpret_cast<const uint16_t*>(p);
  return p[0] | static_cast<uint32_t>(p[1]) << 8;
}
__device__ __forceinline__ uint32_t load_32_bits(const uint8_t* p) {
  if (reinterpret_cast<uintptr_t>(p) % 4 == 0) return *reinterpret_cast<const uint32_t*>(p);
  return load_16_bits(p) | load_16_bits(p + 2) << 16;
}
__device__ __forceinline__ float load_half(const uint8_t* p) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(load_16_bits(p))));
}

/// Numbers [column, column + 4) of a row.
__device__ __forceinline__ float4 load_quad(DataType type, const uint8_t* row, int32_t column) {
  switch (type) {
    case DataType::f32: {
      const uint8_t* p = row + static_cast<int64_t>(column) * 4;
      return make_float4(__uint_as_float(load_32_bits(p)), __uint_as_float(load_32_bits(p + 4)),
                         __uint_as_float(load_32_bits(p + 8)), __uint_as_float(load_32_bits(p + 12)));
    }
    case DataType::f16: {
      const uint8_t* p = row + static_cast<int64_t>(column) * 2;
      const float2 low = __half22float2(as_half2(load_32_bits(p))),
                   high = __half22float2(as_half2(load_32_bits(p + 4)));
      return make_float4(low.x, low.y, high.x, high.y);
    }
    case DataType::bf16: {
      const uint8_t* p = row + static_cast<int64_t>(column) * 2;
      const uint32_t low = load_32_bits(p), high = load_32_bits(p + 4);
      return make_float4(__uint_as_float(low << 16), __uint_as_float(low & 0xffff0000u), __uint_as_float(high << 16),
                         __uint_as_float(high & 0xffff0000u));
    }
    case DataType::q8_0: {
      const uint8_t* block = row + static_cast<int64_t>(column / 32) * sizeof(BlockQ8_0);
      const float scale = load_half(block);
      const uint32_t codes = load_32_bits(block + 2 + column % 32);
      return make_float4(scale * static_cast<int8_t>(codes), scale * static_cast<int8_t>(codes >> 8),
                         scale * static_cast<int8_t>(codes >> 16), scale * static_cast<int8_t>(codes >> 24));
    }
    default: {  // q4_0: the second half of a block's numbers is in the high nibbles
      const uint8_t* block = row + static_cast<int64_t>(column / 32) * sizeof(BlockQ4_0);
      const float scale = load_half(block);
      const uint32_t codes = load_32_bits(block + 2 + column % 16) >> (column % 32 < 16 ? 0 : 4);
      return make_float4(scale * (static_cast<int>(codes & 15) - 8), scale * (static_cast<int>(codes >> 8 & 15) - 8),
                         scale * (static_cast<int>(codes >> 16 & 15) - 8),
                         scale * (static_cast<int>(codes >> 24 & 15) - 8));
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    embed_tokens(EmbeddingTable table, int64_t row_bytes, Rope rope, const int32_t* ids, const int32_t* positions,
                 float* residual, float2* rotations) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t token = blockIdx.x;
  const int32_t quads = table.columns / kQuad, pairs = rope.dimension / 2;
  const int32_t i = blockIdx.y * kThreads + threadIdx.x;
  if (i < quads) {
    const uint8_t* row = table.data + ids[token] * row_bytes;
    const float4 numbers = load_quad(table.type, row, i * kQuad);
    *reinterpret_cast<float4*>(residual + token * table.columns + static_cast<int64_t>(i) * kQuad) = numbers;
  } else if (i - quads < pairs) {
    // The product is rounded to f32 before the functions reduce it, as on the CPU: at positions of tens of thousands
    // its last bit turns the angle noticeably.
    const float position = __fdiv_rn(static_cast<float>(positions[token]), rope.scale);
    const float angle = __fmul_rn(position, rope.frequencies[i - quads]);
    float sine, cosine;
    sincosf(angle, &sine, &cosine);
    rotations[token * pairs + (i - quads)] = make_float2(cosine, sine);
  }
}

}  // namespace

void embed(const Launch& launch, const EmbeddingTable& table, const Rope& rope, const Batch& batch, float* residual,
           float2* rotations) {
  if (!is_compute_type(table.type)) throw Error("ERR_INTERNAL", "embed: a type that is not computed with");
  if (batch.tokens == 0) return;
  const int32_t threads = table.columns / kQuad + rope.dimension / 2;
  const dim3 grid(static_cast<uint32_t>(batch.tokens), static_cast<uint32_t>((threads + kThreads - 1) / kThreads));
  launch_kernel(launch, embed_tokens, grid, dim3(kThreads), 0, table, row_bytes(table.type, table.columns), rope,
                batch.ids, batch.positions, residual, rotations);
}

}  // namespace chatglm::cuda
