#include "cuda/attention/prefill.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/mma.cuh"

// Causal attention of a prompt, or of a piece of it (chunked prefill): for each token and head O = softmax(Q K^T) V
// over the keys up to the token's own, in one pass with an online softmax (Milakov and Gimelshein 2018,
// arXiv:1805.02867; Dao 2023, arXiv:2307.08691). This kernel uses mma.sync: it runs on every GPU from Turing on, with
// f16 and q8_0 caches and heads of up to 64 and up to 128. prefill_wgmma.cu has the kernel for Hopper's tensor cores.
//
// Launch: ceil(tokens * group_heads / 128) * groups blocks of 4 warps, two blocks a multiprocessor; a warp has 32 rows
// (token, head). Shared memory holds the tile's queries, a page's keys and a page's values, as f16: 64 KB at D = 128,
// which is all the shared memory of a Turing multiprocessor. Values are copied while the scores are computed, the next
// page's keys during softmax and O.
//
// Operations: 4 * D per row and key seen. A 6B layer (32 heads x 128), 2,048 tokens after 6,144: 4 * 128 * 32 * 2,048 *
// 7,168.5 = 240.5 GFLOP. mma.sync gives ~62% of an H100's 790 TFLOP/s: bound 0.49 ms; expected ~0.75 ms, the softmax
// being hidden by the other block only in part. Bytes (keys and values once from DRAM, 8.4 MB; 33 KB a block and page
// from L2) do not bind.
// Measured on an H100, q8_0 keys and values: 2,048 tokens after 6,144 1.33 ms, 180 TFLOP/s.
namespace chatglm::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kWarpRows = 32;

template <int D>
constexpr size_t kSharedBytes = (kAttendRows + 2 * kPageTokens) * D * sizeof(half);

/// Eight codes (two words) times their scales, as f16.
__device__ __forceinline__ uint4 scale_codes(uint32_t low, uint32_t high, const half2 (&scales)[4]) {
  low ^= 0x80808080u, high ^= 0x80808080u;  // codes + 128
  uint4 v;
  v.x = bits(__hmul2(codes_to_half2<0>(low), scales[0]));
  v.y = bits(__hmul2(codes_to_half2<1>(low), scales[1]));
  v.z = bits(__hmul2(codes_to_half2<0>(high), scales[2]));
  v.w = bits(__hmul2(codes_to_half2<1>(high), scales[3]));
  return v;
}

/// The scale of a block whose largest number was close to f16's own limit is rounded, maybe upwards: 127 times that
/// would be infinite. NaN stays NaN.
__device__ __forceinline__ half2 safe_scales(half2 scales) {
  const half limit = __float2half(515.5f);
  const half a = __low2half(scales), b = __high2half(scales);
  return __halves2half2(__hgt(a, limit) ? limit : a, __hgt(b, limit) ? limit : b);
}

/// A page's keys to shared memory, (D / 64, 64 tokens, 64). Asynchronous from sm_80 on if the cache is f16.
template <int D, KvType kType>
__device__ __forceinline__ void load_keys(const uint8_t* page, uint8_t* keys) {
  if constexpr (kType == KvType::f16) {
#pragma unroll
    for (int i = threadIdx.x; i < D * kPageTokens / 8; i += kThreads) copy_async_16(keys + i * 16, page + i * 16);
  } else {
    const half* scales = reinterpret_cast<const half*>(page + D * kPageTokens);
#pragma unroll
    for (int i = threadIdx.x; i < D * kPageTokens / 16; i += kThreads) {  // 16 dimensions of a token
      const int token = i / (D / 16), dimension = i % (D / 16) * 16;
      const uint4 codes = *reinterpret_cast<const uint4*>(page + i * 16);
      const half2 scale = safe_scales(__half2half2(scales[key_scale_index(D, token, dimension)]));
      const half2 all[4] = {scale, scale, scale, scale};
      *reinterpret_cast<uint4*>(keys + 2 * key_index(KvType::f16, D, token, dimension)) =
          scale_codes(codes.x, codes.y, all);
      *reinterpret_cast<uint4*>(keys + 2 * key_index(KvType::f16, D, token, dimension + 8)) =
          scale_codes(codes.z, codes.w, all);
    }
  }
}

/// A page's values, (D, 64 tokens), with zeros for the tokens from `end` on: their values in the cache may be NaN,
/// which a weight of 0 would not remove.
template <int D, KvType kType>
__device__ __forceinline__ void load_values(const uint8_t* page, uint8_t* values, int end) {
  if constexpr (kType == KvType::f16) {
    if (end == kPageTokens) {
#pragma unroll
      for (int i = threadIdx.x; i < D * kPageTokens / 8; i += kThreads) copy_async_16(values + i * 16, page + i * 16);
    } else {
#pragma unroll
      for (int i = threadIdx.x; i < D * kPageTokens / 8; i += kThreads) {
        const int token = ((i % 8) ^ (i / 8 % 8)) * 8;
        const uint4 v = *reinterpret_cast<const uint4*>(page + i * 16);
        *reinterpret_cast<uint4*>(values + i * 16) = v & first_halves(end - token);
      }
    }
  } else {
    const half* scales = reinterpret_cast<const half*>(page + D * kPageTokens);
#pragma unroll
    for (int i = threadIdx.x; i < D * kPageTokens / 16; i += kThreads) {  // 16 tokens of a dimension
      const int dimension = i / (kPageTokens / 16), token = i % (kPageTokens / 16) * 16;
      const uint4 codes = *reinterpret_cast<const uint4*>(page + i * 16);
      const half2* scale = reinterpret_cast<const half2*>(scales + value_scale_index(token, dimension));
      half2 low[4], high[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) low[k] = safe_scales(scale[k]), high[k] = safe_scales(scale[k + 4]);
      *reinterpret_cast<uint4*>(values + 2 * value_index(KvType::f16, token, dimension)) =
          scale_codes(codes.x, codes.y, low) & first_halves(end - token);
      *reinterpret_cast<uint4*>(values + 2 * value_index(KvType::f16, token + 8, dimension)) =
          scale_codes(codes.z, codes.w, high) & first_halves(end - token - 8);
    }
  }
}

template <int D, KvType kType>
__global__ void __launch_bounds__(kThreads, 2) attend_kernel(const PrefillProblem p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  uint8_t* const queries = shared;  // (D / 64, 128 rows, 64), swizzled; later the result
  uint8_t* const keys = queries + kAttendRows * D * sizeof(half);
  uint8_t* const values = keys + kPageTokens * D * sizeof(half);

  let_next_kernel_start();
  wait_for_previous_kernel();

  const PrefillTile tile(p, blockIdx.x, gridDim.x);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int32_t first_row = tile.row + warp * kWarpRows;
  const int32_t pages = tile.last_position / kPageTokens + 1;
  const int values_offset = static_cast<int>(p.cache.keys_bytes());
  const auto page_at = [&](int32_t i) { return p.cache.head_page(p.layer, tile.group, p.pages[i]); };

  const uint8_t* page = page_at(0);
  load_keys<D, kType>(page, keys);
  copy_async_commit();
#pragma unroll 4
  for (int i = threadIdx.x; i < kAttendRows * D / 8; i += kThreads) {
    load_query<D, kAttendRows>(p, tile.group, tile.row, i, queries);
  }

  const int32_t warp_first = PrefillTile::position(p, first_row);
  const int32_t warp_last = PrefillTile::position(p, first_row + kWarpRows - 1);

  // The addresses that a lane gives to ldmatrix. Queries: matrices (rows 0-7, first piece), (8-15, first), (0-7,
  // second), (8-15, second) are the A fragment. Keys and values: (0-7, first), (0-7, second), (8-15, first), (8-15,
  // second) are the B fragments of two tiles of eight. Step k of 16 columns adds 2k to the piece: an exclusive or, as
  // the piece is even.
  const int matrix = lane / 8, r8 = lane % 8;
  const uint32_t query_address =
      shared_address(queries) + (warp * kWarpRows + matrix % 2 * 8 + r8) * 128 + ((matrix / 2) ^ r8) * 16;
  const uint32_t key_offset = (matrix / 2 * 8 + r8) * 128 + ((matrix % 2) ^ r8) * 16;
  const uint32_t key_address = shared_address(keys) + key_offset, value_address = shared_address(values) + key_offset;

  float o[2][D / 8][4] = {};
  OnlineSoftmax softmax[2];

  for (int32_t i = 0; i < pages; ++i) {
    // In a group of few heads a block's last rows see far more keys than its first warps' rows.
    const bool active = i * kPageTokens <= warp_last;
    copy_async_wait<0>();
    __syncthreads();  // the keys (and queries) have come, and every warp is done with the last page's values
    load_values<D, kType>(page + values_offset, values, min(kPageTokens, tile.last_position - i * kPageTokens + 1));
    copy_async_commit();

    float s[2][kPageTokens / 8][4] = {};
    if (active) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          ldmatrix_x4(a[m], (query_address ^ (k % 4 * 32)) + k / 4 * kAttendRows * 128 + m * 2048);
        }
#pragma unroll
        for (int n = 0; n < kPageTokens / 16; ++n) {
          uint32_t b[4];
          ldmatrix_x4(b, (key_address ^ (k % 4 * 32)) + k / 4 * kPageTokens * 128 + n * 2048);
          const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            mma_m16n8k16(s[m][2 * n], a[m], even);
            mma_m16n8k16(s[m][2 * n + 1], a[m], odd);
          }
        }
      }
    }

    copy_async_wait<0>();
    __syncthreads();  // the values have come, and every warp is done with the keys
    if (i + 1 < pages) {
      page = page_at(i + 1);
      load_keys<D, kType>(page, keys);
    }
    copy_async_commit();
    if (!active) continue;

#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if (i * kPageTokens + kPageTokens - 1 > warp_first) {
        hide_later_keys(p, first_row + m * 16, i * kPageTokens, s[m], lane);
      }
      float scale[2];
      softmax[m].update<false>(s[m], scale);
      scale_rows(o[m], scale);
    }
#pragma unroll
    for (int k = 0; k < kPageTokens / 16; ++k) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) weights_fragment(s[m], k, a[m]);
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t b[4];
        ldmatrix_x4(b, (value_address ^ (k * 32)) + n * 2048);
        const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_m16n8k16(o[m][2 * n], a[m], even);
          mma_m16n8k16(o[m][2 * n + 1], a[m], odd);
        }
      }
    }
  }

  // The result takes the place of the warp's own queries, which no other warp reads, to be written in whole pieces.
  uint8_t* const image = queries + warp * kWarpRows * 128;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    softmax[m].finish();
    write_image<kAttendRows>(o[m], softmax[m], m * 16, image, lane);
  }
  __syncwarp();
  store_result<D, kAttendRows, kWarpRows>(p, tile.group, first_row, image, lane);
}

template <int D, KvType kType>
void launch_kernel_for(const Launch& launch, const PrefillProblem& p) {
  allow_shared_bytes(*launch.device, attend_kernel<D, kType>, kSharedBytes<D>);
  launch_kernel(launch, attend_kernel<D, kType>, dim3(prefill_tiles(p) * p.groups), dim3(kThreads), kSharedBytes<D>, p);
}

}  // namespace

void attend_prefill_mma(const Launch& launch, const half* queries, int32_t heads, const Batch& batch,
                        const PrefillSegment& segment, const KvCache& cache, int32_t layer, const Activations& out) {
  if (segment.count <= 0) return;
  const PrefillProblem p = prefill_problem(queries, heads, batch, segment, cache, layer, out);
  with_cache_shape(cache, [&]<KvType type, int D>() { launch_kernel_for<D, type>(launch, p); });
}

void attend_prefill(const Launch& launch, const half* queries, int32_t heads, const Batch& batch,
                    const PrefillSegment& segment, const KvCache& cache, int32_t layer, const Activations& out) {
  const auto attend = attend_prefill_wgmma_fits(*launch.device, cache) ? attend_prefill_wgmma : attend_prefill_mma;
  attend(launch, queries, heads, batch, segment, cache, layer, out);
}

}  // namespace chatglm::cuda
