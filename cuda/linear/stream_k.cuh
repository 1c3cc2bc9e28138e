#pragma once
#include "cuda/kernels.h"
#include "cuda/linear/stream_k.h"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/mma.cuh"

// The end of a tile in all matrix products (gemm): adding up the parts of a tile that several blocks share, and the
// epilogues. A warp does both for its own part of the tile, so no warp waits for another.
//
// A warp holds the products of kRowTiles x 16 successive packed rows with kOctets x 8 successive tokens as
// d[row tile][octet of tokens][4], the accumulators of mma.m16n8k16 (and wgmma): with g = lane / 4 and t = lane % 4
//   0, 1: row g, tokens 2t and 2t + 1        2, 3: row g + 8, the same tokens
namespace chatglm::cuda {

/// Floats of the workspace that `blocks` blocks need, for tiles of `tile_numbers` outputs: each block has two slots.
CHATGLM_HD constexpr int64_t stream_k_floats(int64_t blocks, int64_t tile_numbers) { return blocks * 2 * tile_numbers; }

/// Called by each warp at the end of a segment. Returns whether the warp now holds the finished tile. Of a shared tile
/// the warp leaves its part in the block's slot; the last of the warps that hold the same part of the tile, which the
/// warps' counter tells, adds up all of them in the order of the blocks, so that the sum does not depend on who is
/// last. `warp`: of the `warps` that share a tile within the block. Needs warps * (shared tiles <= 2 * blocks)
/// counters.
template <int kRowTiles, int kOctets>
__device__ __forceinline__ bool stream_k_finish(const StreamK& split, const StreamKSegment& segment,
                                                const GemmWorkspace& workspace, int warp, int warps, int lane,
                                                float (&d)[kRowTiles][kOctets][4]) {
  if (segment.count == split.steps) return true;
  constexpr int kPieces = kRowTiles * kOctets;
  const int32_t shared_tile = segment.tile - split.whole;
  const uint32_t tile_begin = static_cast<uint32_t>(shared_tile * split.steps);
  const int32_t first = split.owner(tile_begin),
                last = split.owner(tile_begin + static_cast<uint32_t>(split.steps) - 1);
  // In 16-byte pieces; a slot is (warps, kPieces, 32 lanes).
  float4* const slots =
      reinterpret_cast<float4*>(workspace.partial) + (static_cast<int64_t>(warp) * kPieces * 32 + lane);
  const int64_t slot_size = static_cast<int64_t>(warps) * kPieces * 32;

  const int32_t block = static_cast<int32_t>(blockIdx.x);
  // A block's first slot is for the first tile of its range, the second for the last one. Of the ranges that share this
  // tile only the one that begins before it has it last.
  const auto slot_of = [&](int32_t b) { return slots + (2 * b + (split.begin(b) >= tile_begin ? 0 : 1)) * slot_size; };
  float4* const own = slot_of(block);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const float(&piece)[4] = d[i / kOctets][i % kOctets];
    __stcg(own + i * 32, make_float4(piece[0], piece[1], piece[2], piece[3]));
  }
  __threadfence();
  __syncwarp();
  uint32_t arrived = 0;
  uint32_t* const counter = workspace.counters + shared_tile * warps + warp;
  if (lane == 0) arrived = atomicAdd(counter, 1u);
  arrived = __shfl_sync(0xffffffffu, arrived, 0);
  if (arrived != static_cast<uint32_t>(last - first)) return false;
  __syncwarp();
  __threadfence();
  if (lane == 0) *counter = 0;

#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) d[i / kOctets][i % kOctets][j] = 0;
  }
  for (int32_t b = first; b <= last; ++b) {
    const float4* const slot = slot_of(b);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const float4 part = __ldcg(slot + i * 32);
      float(&piece)[4] = d[i / kOctets][i % kOctets];
      piece[0] += part.x, piece[1] += part.y, piece[2] += part.z, piece[3] += part.w;
      if (i % 8 == 7) asm volatile("" ::: "memory");  // no more loads ahead than there are registers for
    }
  }
  return true;
}

/// The epilogue of a finished tile, whose first packed row and token are `row` (a multiple of 16) and `token` (of 8).
/// Rows and tokens that are not there are not written.
template <int kRowTiles, int kOctets>
__device__ __forceinline__ void store_tile(const LinearOutput& output, int32_t rows, int32_t tokens, int32_t row,
                                           int32_t token, int lane, const float (&d)[kRowTiles][kOctets][4]) {
  const int g = lane / 4, t = lane % 4;
  if (output.epilogue == Epilogue::swiglu) {
    const int32_t ffn = rows / 2;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      // After the transposition this lane has columns i and i + 1 of one token.
      const int32_t i = (row / kTileRows + m) * 8 + 2 * t;
#pragma unroll
      for (int n = 0; n < kOctets; ++n) {
        const float(&piece)[4] = d[m][n];
        const uint32_t pair = transpose_8x8(bits(to_half2(silu(piece[0]) * piece[2], silu(piece[1]) * piece[3])));
        const int32_t to = token + n * 8 + g;
        if (to < tokens && i < ffn) {
          half* const out = output.activated.data + activation_index(to, i, output.activated.stride);
          if (i + 1 < ffn) {
            *reinterpret_cast<half2*>(out) = as_half2(pair);
          } else {
            *out = __low2half(as_half2(pair));
          }
        }
      }
    }
    return;
  }
  // Eight lanes write 32 successive bytes, a sector: as good as longer runs for the memory.
  const bool add = output.epilogue == Epilogue::add;
  constexpr int kBatch = kOctets < 4 ? kOctets : 4;  // so many octets' loads are under way before the first is needed
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    const int32_t upper = row + m * kTileRows + g;
#pragma unroll
    for (int n = 0; n < kOctets; n += kBatch) {
      float old[kBatch][4] = {};
      if (add) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int32_t to = token + (n + i) * 8 + 2 * t + j % 2, from = upper + j / 2 * 8;
            if (n + i < kOctets && to < tokens && from < rows) old[i][j] = output.y[to * output.y_stride + from];
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (n + i >= kOctets) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int32_t to = token + (n + i) * 8 + 2 * t + j % 2, from = upper + j / 2 * 8;
          if (to < tokens && from < rows) {
            output.y[to * output.y_stride + from] = add ? old[i][j] + d[m][n + i][j] : d[m][n + i][j];
          }
        }
      }
    }
  }
}

}  // namespace chatglm::cuda
