#include "cuda/launch.cuh"
#include "cuda/linear/layout.h"

// pack: from rows as the model file has them to the blocks of layout.h.
//
// Launch: one block of 8 warps for 16 packed rows x 8 chunks (512 columns), grid (row tiles touched, chunks / 8). The
// warps bring the rows' bytes, which begin anywhere, to shared memory in whole words; then each warp writes one block.
// A row shares words, for q4_0 even bytes, with the row 8 below it. Where the row below is not among the rows of this
// launch (always so for the gate and up rows of ffn_up, unless both are uploaded at once), the words that stand in the
// target are read and merged.
//
// Bytes moved: those of the source and of the target once each, the target's twice more where rows are merged; the
// bound is an H100's 3.14 TB/s. The kernel runs once for each piece of a tensor, behind a copy over PCIe or from a disk
// of at most a tenth of that rate: 500 GB/s are enough.
namespace chatglm::cuda {

namespace {

constexpr int kWarps = 8;

template <DataType type>
CHATGLM_HD constexpr int source_bytes(int columns) {  // a multiple of 32
  return type == DataType::f32    ? columns * 4
         : type == DataType::q8_0 ? columns / 32 * static_cast<int>(sizeof(BlockQ8_0))
         : type == DataType::q4_0 ? columns / 32 * static_cast<int>(sizeof(BlockQ4_0))
                                  : columns * 2;
}

__device__ __forceinline__ uint32_t misalignment(const uint8_t* p) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p) & 3);
}

/// `count` bytes by one warp; byte i arrives at target[misalignment(source) + i]. Reads nothing beyond them.
__device__ __forceinline__ void stage(const uint8_t* source, int count, uint8_t* target, int lane) {
  const int before = static_cast<int>(misalignment(source));
  for (int word = lane; word * 4 < before + count; word += 32) {
    const int first = word * 4 - before;
    if (first >= 0 && first + 4 <= count) {
      *reinterpret_cast<uint32_t*>(target + word * 4) = *reinterpret_cast<const uint32_t*>(source + first);
    } else {
      for (int i = max(first, 0); i < min(first + 4, count); ++i) target[before + i] = source[i];
    }
  }
}

// Shared memory at any alignment, little endian.
__device__ __forceinline__ uint32_t u16_at(const uint8_t* p) { return p[0] | static_cast<uint32_t>(p[1]) << 8; }
__device__ __forceinline__ uint32_t u32_at(const uint8_t* p) { return u16_at(p) | u16_at(p + 2) << 16; }

/// Number i of a row of floating-point numbers, as the bits of an f16.
template <DataType type>
__device__ __forceinline__ uint32_t half_at(const uint8_t* row, int i, bool& overflow) {
  if constexpr (type == DataType::f16) return u16_at(row + 2 * i);
  const float value = __uint_as_float(type == DataType::f32 ? u32_at(row + 4 * i) : u16_at(row + 2 * i) << 16);
  const uint32_t half_bits = __half_as_ushort(__float2half_rn(value));
  if ((half_bits & 0x7fff) == 0x7c00 && isfinite(value)) overflow = true;
  return half_bits;
}

/// Writes the bits of every word that `mask` has; the target's other bits stay. `Words`: uint2 or uint4.
template <class Words>
__device__ __forceinline__ void store_merged(uint8_t* target, Words words, Words mask) {
  constexpr int kCount = sizeof(Words) / 4;
  const auto* m = reinterpret_cast<const uint32_t*>(&mask);
  auto* w = reinterpret_cast<uint32_t*>(&words);
  bool whole = true;
#pragma unroll
  for (int i = 0; i < kCount; ++i) whole = whole && m[i] == 0xffffffffu;
  if (!whole) {
    const Words old_words = *reinterpret_cast<const Words*>(target);
    const auto* o = reinterpret_cast<const uint32_t*>(&old_words);
#pragma unroll
    for (int i = 0; i < kCount; ++i) w[i] = (w[i] & m[i]) | (o[i] & ~m[i]);
  }
  *reinterpret_cast<Words*>(target) = words;
}

template <DataType type>
__global__ void __launch_bounds__(32 * kWarps)
    pack_kernel(const uint8_t* source, int64_t row_bytes, int32_t first_row, int32_t rows, int32_t first_tile,
                PackedMatrix target, uint8_t* target_data, uint32_t* overflow) {
  constexpr int kChunkBytes = source_bytes<type>(kChunkColumns), kBlockBytes = source_bytes<type>(32);
  // Misalignment adds up to 3 bytes; 16 more keep the rows' banks apart.
  __shared__ __align__(16) uint8_t staged[kTileRows][kWarps * kChunkBytes + 16];

  let_next_kernel_start();
  wait_for_previous_kernel();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int32_t tile = first_tile + static_cast<int32_t>(blockIdx.x);
  const int32_t first_chunk = static_cast<int32_t>(blockIdx.y) * kWarps;
  const int columns = min(kWarps * kChunkColumns, target.columns - first_chunk * kChunkColumns);

  // The bytes of a row of the tile, or null if it is not among those of this launch.
  const auto bytes_of = [&](int row_in_tile) -> const uint8_t* {
    const int32_t row = source_row(target.gate_up, target.rows, tile * kTileRows + row_in_tile) - first_row;
    if (row < 0 || row >= rows) return nullptr;
    return source + row * row_bytes + static_cast<int64_t>(first_chunk) * kChunkBytes;
  };
  for (int row = warp; row < kTileRows; row += kWarps) {
    const uint8_t* bytes = bytes_of(row);
    if (bytes) stage(bytes, source_bytes<type>(columns), staged[row], lane);
  }
  __syncthreads();

  const int32_t chunk = first_chunk + warp;
  if (chunk >= target.chunks) return;
  // This lane's rows: g (0) and g + 8 (1).
  const uint8_t* row[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const uint8_t* bytes = bytes_of(g + 8 * h);
    row[h] = bytes ? staged[g + 8 * h] + misalignment(bytes) + warp * kChunkBytes : nullptr;
  }
  if (!row[0] && !row[1]) return;
  const int blocks = min(2, target.columns / 32 - chunk * 2);  // of 32 columns; what is behind them is filling
  uint8_t* block = target_data + (static_cast<int64_t>(tile) * target.chunks + chunk) * block_bytes(target.type);

  if constexpr (type == DataType::q4_0 || type == DataType::q8_0) {  // the scales: lane by lane as they lie
    const uint8_t* from = t % 2 == 0 ? row[0] : row[1];
    if (from && t / 2 < blocks) {
      const uint32_t scale = u16_at(from + t / 2 * kBlockBytes);
      *reinterpret_cast<uint16_t*>(block + code_bytes(type) + lane * 2) = static_cast<uint16_t>(scale);
    }
  }
  bool too_large = false;
  for (int b = 0; b < blocks; ++b) {
    if constexpr (type == DataType::q4_0) {
      // Byte j of a source block holds columns j and 16 + j: the two steps of 16 columns at once.
      uint32_t pairs[2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!row[h]) continue;
        const uint8_t* codes = row[h] + b * kBlockBytes + 2;
        const uint32_t low = u16_at(codes + 2 * t), high = u16_at(codes + 2 * t + 8);
        pairs[h] = __byte_perm(low, high, 0x5140);  // columns 2t, 2t + 8, 2t + 1, 2t + 9
      }
      const uint32_t mask = (row[0] ? 0x0f0f0f0fu : 0) | (row[1] ? 0xf0f0f0f0u : 0);
      store_merged(block + lane * 16 + b * 8,
                   make_uint2((pairs[0] & 0x0f0f0f0fu) | (pairs[1] & 0x0f0f0f0fu) << 4,
                              (pairs[0] >> 4 & 0x0f0f0f0fu) | (pairs[1] & 0xf0f0f0f0u)),
                   make_uint2(mask, mask));
    } else if constexpr (type == DataType::q8_0) {
      uint32_t words[4] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!row[h]) continue;
        const uint8_t* codes = row[h] + b * kBlockBytes + 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] |= (u16_at(codes + 8 * i + 2 * t) ^ 0x8080u) << 16 * h;
      }
      const uint32_t mask = (row[0] ? 0x0000ffffu : 0) | (row[1] ? 0xffff0000u : 0);
      store_merged(block + b * 512 + lane * 16, make_uint4(words[0], words[1], words[2], words[3]),
                   make_uint4(mask, mask, mask, mask));
    } else {
#pragma unroll
      for (int step = 2 * b, i = 0; i < 2; ++i, ++step) {
        uint32_t words[4] = {};
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const uint8_t* from = row[word % 2];
          if (!from) continue;
          const int column = step * 16 + word / 2 * 8 + 2 * t;
          words[word] = half_at<type>(from, column, too_large) | half_at<type>(from, column + 1, too_large) << 16;
        }
        const uint32_t upper = row[0] ? 0xffffffffu : 0, lower = row[1] ? 0xffffffffu : 0;
        store_merged(block + step * 512 + lane * 16, make_uint4(words[0], words[1], words[2], words[3]),
                     make_uint4(upper, lower, upper, lower));
      }
    }
  }
  if (too_large) *overflow = 1;  // all threads that write, write the same
}

template <DataType type>
void pack_type(const Launch& launch, const uint8_t* source, int64_t row_bytes, int32_t first_row, int32_t rows,
               const PackedMatrix& target, uint8_t* target_data, uint32_t* overflow) {
  // The tiles that hold any of the rows; those of ffn_up's gates begin anew with its other half.
  const int32_t last_row = first_row + rows - 1, ffn = target.rows / 2;
  int32_t first_tile = first_row / kTileRows, last_tile = last_row / kTileRows;
  if (target.gate_up) {
    const bool both = first_row < ffn && last_row >= ffn;
    first_tile = both ? 0 : first_row % ffn / 8;
    last_tile = both ? (ffn - 1) / 8 : last_row % ffn / 8;
  }
  const dim3 grid(static_cast<unsigned>(last_tile - first_tile + 1),
                  static_cast<unsigned>((target.chunks + kWarps - 1) / kWarps));
  launch_kernel(launch, pack_kernel<type>, grid, 32 * kWarps, 0, source, row_bytes, first_row, rows, first_tile, target,
                target_data, overflow);
}

}  // namespace

void pack(const Launch& launch, DataType source_type, const uint8_t* source, int64_t row_bytes, int32_t first_row,
          int32_t rows, const PackedMatrix& target, uint8_t* target_data, uint32_t* overflow) {
  if (rows <= 0) return;
  const auto run = [&](auto kernel) {
    kernel(launch, source, row_bytes, first_row, rows, target, target_data, overflow);
  };
  switch (source_type) {
    case DataType::f32: return run(pack_type<DataType::f32>);
    case DataType::f16: return run(pack_type<DataType::f16>);
    case DataType::bf16: return run(pack_type<DataType::bf16>);
    case DataType::q8_0: return run(pack_type<DataType::q8_0>);
    case DataType::q4_0: return run(pack_type<DataType::q4_0>);
    default: throw Error("ERR_INTERNAL", "CUDA: no packing of this type");
  }
}

}  // namespace chatglm::cuda
