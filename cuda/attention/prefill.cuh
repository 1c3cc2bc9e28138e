#pragma once
#include <cmath>
#include <string>

#include "base/error.h"
#include "cuda/kernels.h"
#include "cuda/ptx/math.cuh"

// The parts that both kernels of a prompt's attention have: the rows of a block's tile, their queries and results, and
// the online softmax.
namespace chatglm::cuda {

constexpr int kAttendRows = 128;  // of a block

/// The rows of a KV group's problem are its query heads at every token: row r is head r % group_heads at token
/// r / group_heads of the segment, so that a few tokens fill a tile and a key is read once for all of them.
struct PrefillProblem {
  const half* queries;   // (tokens of the batch, heads, D)
  const int32_t* pages;  // the page table of the sequence
  KvCache cache;
  Activations out;
  int32_t layer;
  int32_t heads, groups;
  int32_t group_heads;      // heads / groups
  int32_t first, position;  // of the segment, in the batch and in its sequence
  int32_t rows;             // of a group: tokens * group_heads
};

inline int32_t prefill_tiles(const PrefillProblem& p) { return (p.rows + kAttendRows - 1) / kAttendRows; }

inline PrefillProblem prefill_problem(const half* queries, int32_t heads, const Batch& batch,
                                      const PrefillSegment& segment, const KvCache& cache, int32_t layer,
                                      const Activations& out) {
  if (cache.head_size % 8 != 0 || cache.head_size > cache.padded_head || heads % cache.groups != 0) {
    throw Error("ERR_INTERNAL", "attention has no kernel for " + std::to_string(heads) + " heads of " +
                                    std::to_string(cache.head_size) + " in " + std::to_string(cache.groups) +
                                    " groups");
  }
  const int32_t group_heads = heads / cache.groups;
  return {
      queries,          batch.pages + segment.table, cache, out, layer, heads, cache.groups, group_heads, segment.first,
      segment.position, segment.count * group_heads};
}

/// The tile of a block. Tiles with the most keys come first, since they take longest, and those of all groups side by
/// side, so that the last tiles to be computed are equally short.
struct PrefillTile {
  int32_t group, row;     // first of kAttendRows rows
  int32_t last_position;  // the last key that any of its rows sees
  __device__ __forceinline__ PrefillTile(const PrefillProblem& p, int32_t block, int32_t blocks)
      : group(block % p.groups), row((blocks / p.groups - 1 - block / p.groups) * kAttendRows) {
    last_position = position(p, row + kAttendRows - 1);
  }
  /// The position of a row's token. Rows behind the last one take the last one's position; their results are not used.
  static __device__ __forceinline__ int32_t position(const PrefillProblem& p, int32_t row) {
    return p.position + min(row, p.rows - 1) / p.group_heads;
  }
};

/// Copies piece i, eight dimensions of row i / (D / 8), of the queries of kRows rows from `row` on to shared memory,
/// (D / 64, kRows, 64), swizzled; zeros behind the last row.
template <int D, int kRows>
__device__ __forceinline__ void load_query(const PrefillProblem& p, int32_t group, int32_t row, int i,
                                           uint8_t* queries) {
  const int in_tile = i / (D / 8), piece = i % (D / 8);
  uint4 value = make_uint4(0, 0, 0, 0);
  if (row + in_tile < p.rows) {
    const int32_t token = (row + in_tile) / p.group_heads;
    const int32_t head = group * p.group_heads + (row + in_tile) % p.group_heads;
    const half* query = p.queries + (static_cast<int64_t>(p.first + token) * p.heads + head) * D;
    value = *reinterpret_cast<const uint4*>(query + piece * 8);
  }
  *reinterpret_cast<uint4*>(queries + swizzled_offset(kRows, in_tile, piece)) = value;
}

/// The result of kRows rows from shared memory ((D / 64, kImageRows, 64), swizzled; `image` is the first of the rows)
/// to the activations, by one warp.
template <int D, int kImageRows, int kRows>
__device__ __forceinline__ void store_result(const PrefillProblem& p, int32_t group, int32_t row, const uint8_t* image,
                                             int lane) {
  constexpr int kPieces = D / 8;
#pragma unroll
  for (int i = lane; i < kRows * kPieces; i += 32) {
    const int r = i / kPieces, piece = i % kPieces;
    if (row + r >= p.rows || piece * 8 >= p.cache.head_size) continue;
    const int32_t token = p.first + (row + r) / p.group_heads;
    const int32_t head = group * p.group_heads + (row + r) % p.group_heads;
    const uint4 value = *reinterpret_cast<const uint4*>(image + swizzled_offset(kImageRows, r, piece));
    half* target = p.out.data + activation_index(token, head * p.cache.head_size + piece * 8, p.out.stride);
    *reinterpret_cast<uint4*>(target) = value;
  }
}

/// The online softmax of a lane's two rows, g = lane / 4 and g + 8 of a fragment of 16 (PTX ISA, accumulators of
/// mma.m16n8 and of wgmma.m64n8: a lane has of eight keys the numbers 2 (lane % 4) and one more of both rows).
/// fmaxf passes NaN by, but then the weight of that score is NaN, and so are the row's sum and result.
struct OnlineSoftmax {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // of this lane's keys alone

  /// Scores to weights. `scale` is what earlier sums and results have to be multiplied by. A row that has seen no key
  /// yet needs kMayBeEmpty; a kernel that starts with key 0, which all rows see, has no such rows.
  template <bool kMayBeEmpty, int kTiles>
  __device__ __forceinline__ void update(float (&s)[kTiles][4], float (&scale)[2]) {
    float m[2][2];  // two chains a row, for the latency
#pragma unroll
    for (int e = 0; e < 4; ++e) m[e / 2][e % 2] = s[0][e];
#pragma unroll
    for (int j = 1; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) m[e / 2][e % 2] = fmaxf(m[e / 2][e % 2], s[j][e]);
    }
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float most = quad_max(fmaxf(largest[r], fmaxf(m[r][0], m[r][1])));
      base[r] = kMayBeEmpty && most == -INFINITY ? 0 : most;
      scale[r] = exp2_fast(largest[r] - base[r]);
      largest[r] = most;
    }
    float sums[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[j][e] = exp2_fast(s[j][e] - base[e / 2]);
        sums[e] += s[j][e];
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = sum[r] * scale[r] + (sums[2 * r] + sums[2 * r + 1]);
  }
  /// The sums over the keys of all lanes.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = quad_sum(sum[r]);
  }
};

/// Hides the keys behind the rows' own positions. `row` is the first of the fragment's sixteen, `first_key` the
/// position of the first score.
template <int kTiles>
__device__ __forceinline__ void hide_later_keys(const PrefillProblem& p, int32_t row, int32_t first_key,
                                                float (&s)[kTiles][4], int lane) {
  int32_t last[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    last[r] = PrefillTile::position(p, row + r * 8 + lane / 4) - first_key - 2 * (lane % 4);
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (8 * j + e % 2 > last[e / 2]) s[j][e] = -INFINITY;
    }
  }
}

/// Multiplies the results o of a lane's two rows by `scale`, which is 1 for both in most steps: most keys do not change
/// a row's largest score. NaN is not equal to 1.
template <int kTiles>
__device__ __forceinline__ void scale_rows(float (&o)[kTiles][4], const float (&scale)[2]) {
  if (__any_sync(0xffffffffu, !(scale[0] == 1.0f && scale[1] == 1.0f))) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[n][e] *= scale[e / 2];
    }
  }
}

/// The weights of keys [16 k, 16 k + 16) as f16: the accumulators of two tiles of eight keys are the A fragment of
/// sixteen.
template <int kTiles>
__device__ __forceinline__ void weights_fragment(const float (&s)[kTiles][4], int k, uint32_t (&a)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float* const weights = &s[2 * k + e / 2][e % 2 * 2];
    a[e] = bits(__floats2half2_rn(weights[0], weights[1]));
  }
}

/// Writes o, a fragment of sixteen rows, divided by the rows' sums, to an image for store_result; `row` is the
/// fragment's first row in the image.
template <int kImageRows, int kTiles>
__device__ __forceinline__ void write_image(const float (&o)[kTiles][4], const OnlineSoftmax& softmax, int row,
                                            uint8_t* image, int lane) {
  const float inverse[2] = {1.0f / softmax.sum[0], 1.0f / softmax.sum[1]};
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      *reinterpret_cast<half2*>(image + swizzled_offset(kImageRows, row + r * 8 + lane / 4, n) + lane % 4 * 4) =
          to_half2(o[n][2 * r] * inverse[r], o[n][2 * r + 1] * inverse[r]);
    }
  }
}

}  // namespace chatglm::cuda
