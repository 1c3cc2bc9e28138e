#pragma once
#include "cuda/linear/layout.h"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/mma.cuh"

// Pages of the cache in the attention of single tokens (decode.cu): how they come to shared memory, and the products of
// the tensor cores with their keys and values.
namespace chatglm::cuda {

constexpr int kDecodeHeads = 16;  // rows of the A tile: the query heads of a tile
constexpr int kDecodeWarps = 8;   // of a block
constexpr int kDecodeThreads = 32 * kDecodeWarps;
constexpr int kMostSlots = kDecodeWarps / 2;  // pages of a round: two warps make the scores of one page
static_assert(kPageTokens == 64);             // half a page is 32 columns: four B tiles

/// The pages of a block on their way to shared memory: slot i of a round has page begin + round * slots + i, first its
/// keys, then its values. All threads call keys() and values() in turn, for one round after the other.
template <int D>
struct PageLoader {
  uint8_t* ring;        // (slots, 2 * keys_bytes)
  const uint8_t* head;  // of the layer and group: (pages) of head pages
  const int32_t* table;
  int keys_bytes, slots, begin, end;
  uint64_t (*barriers)[kMostSlots];
  int page = 0;  // sm_90: of the thread's slot, in the round to be loaded next

  __device__ __forceinline__ void init() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const int i = static_cast<int>(threadIdx.x);
    if (i < slots) {
      barrier_init(&barriers[0][i], 1);
      barrier_init(&barriers[1][i], 1);
      barrier_init_fence();
    }
#endif
    find(0);
  }
  /// Which page the thread will load.
  __device__ __forceinline__ void find(int round) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const int i = static_cast<int>(threadIdx.x);
    if (i < slots && begin + round * slots + i < end) page = table[begin + round * slots + i];
#endif
  }
  __device__ __forceinline__ void keys(int round) { load(round, 0); }
  __device__ __forceinline__ void values(int round) {
    load(round, 1);
    find(round + 1);
  }

  /// Waits until a slot's keys (is_values 1: its values) have come. Before sm_90 those of all slots have come, and are
  /// visible after the next __syncthreads.
  __device__ __forceinline__ void wait(int slot, int round, int is_values) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    barrier_wait(&barriers[is_values][slot], static_cast<uint32_t>(round) & 1);
#else
    copy_async_wait<1>();  // two groups are always under way, and only the older one is needed
#endif
  }
  __device__ __forceinline__ const uint8_t* slot_keys(int slot) const { return ring + slot * 2 * keys_bytes; }
  __device__ __forceinline__ const uint8_t* slot_values(int slot) const { return slot_keys(slot) + keys_bytes; }

 private:
  __device__ __forceinline__ void load(int round, int is_values) {
    const int64_t page_bytes = 2 * keys_bytes;
    const int first = begin + round * slots;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const int i = static_cast<int>(threadIdx.x);
    if (i < slots && first + i < end) {
      uint64_t* barrier = &barriers[is_values][i];
      barrier_arrive_expect(barrier, static_cast<uint32_t>(keys_bytes));
      copy_bulk(ring + i * page_bytes + is_values * keys_bytes, head + page * page_bytes + is_values * keys_bytes,
                static_cast<uint32_t>(keys_bytes), barrier);
    }
#else
    for (int i = 0; i < slots && first + i < end; ++i) {
      const uint8_t* source = head + table[first + i] * page_bytes + is_values * keys_bytes;
      uint8_t* target = ring + i * page_bytes + is_values * keys_bytes;
      for (int at = static_cast<int>(threadIdx.x) * 16; at < keys_bytes; at += kDecodeThreads * 16) {
        copy_async_16(target + at, source + at);
      }
    }
    copy_async_commit();
#endif
  }
};

// --- Keys and values of a page in shared memory, as B fragments; g = lane / 4, t = lane % 4.
//
// A warp's scores are those of half a page, of tokens 16 i + 8 half + (0 .. 7), i = 0 .. 3: 32 columns of four B tiles.
// Column n of tile j is the token with i = n / 2 and the last three bits 4 (n % 2) + j. Then the scores that a lane
// accumulates, columns 2t and 2t + 1 of each tile, are of all tiles together the 8 tokens from 16 t + 8 half on: 16
// bytes of a row of values. With this order the lanes that are served at a time read different banks, of keys and of
// values.
//
// Dimensions are summed over, so their order is free if queries have the same order: a lane loads 16 bytes of a key at
// a time, which are its k = 2t, 2t + 1, 2t + 8, 2t + 9 of a first step of 16 dimensions, then of a second (and, in
// q8_0, of a third and a fourth).

__device__ __forceinline__ uint4 load_16(const void* shared) { return *static_cast<const uint4*>(shared); }

/// The dimension from which on a lane has the 8 of steps 2 b and 2 b + 1.
template <KvType type>
__device__ __forceinline__ int first_dimension(int b, int t) {
  return type == KvType::f16 ? 32 * b + 8 * t : 64 * (b / 2) + 16 * t + 8 * (b % 2);
}

/// Four codes of q8_0 times their scales.
__device__ __forceinline__ void decode(uint32_t codes, half2 low_scale, half2 high_scale, uint32_t (&result)[2]) {
  const uint32_t bytes = codes ^ 0x80808080;  // code + 128
  result[0] = bits(__hmul2(codes_to_half2<0>(bytes), low_scale));
  result[1] = bits(__hmul2(codes_to_half2<1>(bytes), high_scale));
}

/// scores[j] += the tile's queries times the keys of tile j.
template <KvType type, int D>
__device__ __forceinline__ void add_scores(const uint8_t* keys, int half_page, int lane,
                                           const uint32_t (&queries)[D / 16][4], float (&scores)[4][4]) {
  const int g = lane / 4, t = lane % 4;
  const int token = 16 * (g / 2) + 8 * half_page + 4 * (g % 2);  // of tile 0
  if constexpr (type == KvType::f16) {
    const uint8_t* row = keys + token * 128;
#pragma unroll
    for (int b = 0; b < D / 32; ++b) {
      uint4 v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int piece = (4 * (b % 2) + t) ^ (4 * (g % 2) + j);
        v[j] = load_16(row + b / 2 * (kPageTokens * 128) + j * 128 + piece * 16);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) mma_m16n8k16(scores[j], queries[2 * b], {v[j].x, v[j].y});
#pragma unroll
      for (int j = 0; j < 4; ++j) mma_m16n8k16(scores[j], queries[2 * b + 1], {v[j].z, v[j].w});
    }
  } else {
    const uint8_t* codes = keys + token * D + 16 * t;
    const uint8_t* scales = keys + kPageTokens * D + token * (D / 16);
    const uint32_t which = t < 2 ? 0x1010 : 0x3232;  // of two neighbouring blocks of 32 dimensions
#pragma unroll
    for (int c = 0; c < D / 64; ++c) {
      uint4 v[4];
      half2 scale[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[j] = load_16(codes + j * D + 64 * c);
        const uint32_t pair = *reinterpret_cast<const uint32_t*>(scales + j * (D / 16) + 4 * c);
        scale[j] = as_half2(__byte_perm(pair, 0, which));
      }
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t word = step == 0 ? v[j].x : step == 1 ? v[j].y : step == 2 ? v[j].z : v[j].w;
          uint32_t b[2];
          decode(word, scale[j], scale[j], b);
          mma_m16n8k16(scores[j], queries[4 * c + step], b);
        }
      }
    }
  }
}

/// sums[step][i] += the weights of a page's tokens times the values of dimensions [dimension + 8 i, dimension + 8 i +
/// 8) of the first `visible` of its tokens; the last of sums[step] are the sums of the weights. Two sums of each, so
/// that fewer products wait for each other.
template <KvType type, int D>
__device__ __forceinline__ void add_values(const uint8_t* values, int visible, const uint4 (&weights)[2][2][32],
                                           int dimension, int lane, float (&sums)[2][D / 64 + 1][4]) {
  const int g = lane / 4, t = lane % 4;
  const bool all = visible >= kPageTokens;
#pragma unroll
  for (int half_page = 0; half_page < 2; ++half_page) {
    uint32_t a[2][4];
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const uint4 v = weights[half_page][step][lane];
      a[step][0] = v.x, a[step][1] = v.y, a[step][2] = v.z, a[step][3] = v.w;
    }
    const uint4 mask = first_halves(visible - 16 * t - 8 * half_page);
    uint4 scales = {};
    if constexpr (type == KvType::q8_0) {
      scales = load_16(values + D * kPageTokens + (dimension / 32 * kPageTokens + 16 * t + 8 * half_page) * 2);
      if (!all) scales = scales & mask;
    }
#pragma unroll
    for (int i = 0; i < D / 64; ++i) {
      const int row = dimension + 8 * i + g;
      uint32_t b[2][2];
      if constexpr (type == KvType::f16) {
        uint4 v = load_16(values + row * 128 + ((2 * t + half_page) ^ g) * 16);
        if (!all) v = v & mask;
        b[0][0] = v.x, b[0][1] = v.y, b[1][0] = v.z, b[1][1] = v.w;
      } else {  // codes are finite whatever they are
        const uint2 v = *reinterpret_cast<const uint2*>(values + row * kPageTokens + 16 * t + 8 * half_page);
        decode(v.x, as_half2(scales.x), as_half2(scales.y), b[0]);
        decode(v.y, as_half2(scales.z), as_half2(scales.w), b[1]);
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) mma_m16n8k16(sums[step][i], a[step], b[step]);
    }
    constexpr uint32_t kOnes = 0x3c003c00;
#pragma unroll
    for (int step = 0; step < 2; ++step) mma_m16n8k16(sums[step][D / 64], a[step], {kOnes, kOnes});
  }
}

}  // namespace chatglm::cuda
