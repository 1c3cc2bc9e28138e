// Attention of one token a sequence over the keys and values in the cache, with everything that lies between the QKV
// product and it: bias, rotation, the storage of the new key and value. Partial results of pieces of a long context are
// merged by their largest score and sum (Dao et al., "Flash-Decoding", 2023).
//
// Launch: (splits, groups * tiles of 16 query heads, tokens) blocks of 8 warps. The query heads of a group are the rows
// of the tensor cores' A tile, so keys and values are read once for 16 heads. A block takes its share of the pages in
// rounds of up to 4, which bulk copies (sm_90; before, asynchronous ones) bring into shared memory, those of the first
// round while the kernel before is still running. In a round each warp makes the scores of half a page; their largest
// and then the weights go through shared memory, and each warp adds up an eighth of the dimensions over all pages, so
// nothing has to be merged within a block. The next round's keys are under way as soon as this one's scores are made,
// its values as soon as this one's are added up.
//
// The number of splits depends on the number of tokens alone (the launch is recorded once for all positions); each
// token takes as many of them as are of use. From sm_90 on 8 splits (of many tokens fewer) are a cluster; each block
// sends every other one its results of the heads that this one merges. A cluster is enough for 2,048 tokens; more
// clusters (before sm_90: splits) merge through global memory: the last to finish reads the results of all, in their
// order.
//
// Bytes a token of context: 1,024 in f16 (544 in q8_0) over both groups of the 6B model, 28,672 (15,232) over its 28
// layers. 32,000 tokens are 32.8 MB a layer: 10.4 us at 3.14 TB/s. Expected: 13 us; up to 2048 tokens the latency of
// the kernel, 3 to 4 us. Measured, one launch after the other: 2.5, 5.4, 8.7 and 16.6 us at depths 0, 2,048, 8,192 and
// 32,000 (63% of the bound); 256 tokens at depth 128 20.5 us (55%).

#include "cuda/attention/rope.cuh"

#include <algorithm>

namespace chatglm::cuda {

namespace {

constexpr int kHeads = 16;  // of a tile
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kMostSlots = kWarps / 2;  // pages of a round: two warps make the scores of one
// With so many a thread and two pages a round a block starts beside one of the matrix-vector product before it
// (gemv.cu): its first pages are there when that one ends.
constexpr int kMostRegisters = 112;
constexpr int kMostCluster = 8;     // blocks: as many as every GPU with clusters can
constexpr int kMaxSplits = 32;      // merged by one block, which takes as long as reading 8 KB of each
constexpr int kMaxClusters = 15;    // what counts them has 4 bits for each block of a cluster
constexpr int kAlonePages = 2;      // that one block takes rather than share the work
constexpr int kClusterPages = 32;   // that one cluster takes rather than share the work: a round
constexpr float kNone = -INFINITY;  // the largest score of no scores

struct Parameters {
  QkvRows qkv;
  Batch batch;
  KvCache cache;
  Activations out;
  // Of each (token, tile, cluster or split): (16 heads, D), and largest score and sum of each of the 16 heads.
  float* partial;
  float2* partial_sums;
  uint32_t* counters;
  float scale;
  int32_t layer;
  int32_t tiles;    // of a group
  int32_t cluster;  // blocks of a cluster: 1, 2, 4 or 8
  int32_t slots;    // pages of a round
  bool read_ahead;
};

/// 2^x with a relative error of 2^-22; 0 for -infinity, NaN for NaN.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// --- Keys and values of a page in shared memory, as B fragments; g = lane / 4, t = lane % 4.
//
// A warp's scores are those of half a page, of tokens 16 i + 8 half + (0 .. 7), i = 0 .. 3: 32 columns of four B tiles.
// Column n of tile j is the token with i = n / 2 and the last three bits 4 (n % 2) + j. Then the scores that a lane
// accumulates, columns 2t and 2t + 1 of each tile, are of all tiles together the 8 tokens from 16 t + 8 half on: 16
// bytes of a row of values. With this order the lanes that are served at a time read different banks, of keys and of
// values.
//
// Dimensions are summed over, so their order is free if queries have the same: a lane loads 16 bytes of a key at a
// time, which are its k = 2t, 2t + 1, 2t + 8, 2t + 9 of a first step of 16 dimensions, then of a second (and, in q8_0,
// of a third and a fourth).

__device__ __forceinline__ uint4 load_16(const void* shared) { return *static_cast<const uint4*>(shared); }

/// The dimension from which on a lane has the 8 of steps 2 b and 2 b + 1.
template <KvType type>
__device__ __forceinline__ int first_dimension(int b, int t) {
  return type == KvType::f16 ? 32 * b + 8 * t : 64 * (b / 2) + 16 * t + 8 * (b % 2);
}

/// Four codes of q8_0 times their scales. A byte in the mantissa of 0x6400 is the f16 number 1024 + byte.
__device__ __forceinline__ void decode(uint32_t codes, half2 low_scale, half2 high_scale, uint32_t (&result)[2]) {
  const uint32_t bytes = codes ^ 0x80808080;  // code + 128
  const half2 bias = __float2half2_rn(1152);
  result[0] = bits(__hmul2(__hsub2(as_half2(__byte_perm(bytes, 0x64646464, 0x4140)), bias), low_scale));
  result[1] = bits(__hmul2(__hsub2(as_half2(__byte_perm(bytes, 0x64646464, 0x4342)), bias), high_scale));
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

/// Ones for the first `count` of 8 f16 numbers, zeros for the others.
__device__ __forceinline__ uint4 mask_of(int count) {
  const auto word = [&](int w) { return (count > 2 * w ? 0xffffu : 0u) | (count > 2 * w + 1 ? 0xffff0000u : 0u); };
  return make_uint4(word(0), word(1), word(2), word(3));
}
__device__ __forceinline__ uint4 operator&(const uint4& a, const uint4& b) {
  return make_uint4(a.x & b.x, a.y & b.y, a.z & b.z, a.w & b.w);
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
    const uint4 mask = mask_of(visible - 16 * t - 8 * half_page);
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

/// Shared memory of a block, beside the pages.
template <int D>
struct Shared {
  alignas(16) uint64_t barriers[2][kMostSlots];     // of the pages' keys and values (sm_90)
  alignas(16) uint4 weights[kMostSlots][2][2][32];  // A fragments of a page's halves, two steps each
  alignas(16) half queries[kHeads][D + 8];
  alignas(16) float received[kHeads * D];  // (blocks of the cluster, heads that this one merges, D)
  float2 received_sums[kHeads];            // (blocks of the cluster, heads that this one merges): largest score, sum
  alignas(16) float largest[kHeads][kWarps + 4];  // of each warp
  float new_key[D], new_value[D];
  float new_score[kHeads];
  bool last;
};

/// Values weighted by 2^(score - largest), and the sum of the weights: what partial results of a head consist of.
struct Weighted {
  float largest = kNone, sum = 0;
  float4 values = {0, 0, 0, 0};

  __device__ __forceinline__ void scale_to(float new_largest) {
    const float factor = largest == kNone ? 0.0f : exp2_fast(largest - new_largest);
    largest = new_largest;
    sum *= factor;
    values.x *= factor, values.y *= factor, values.z *= factor, values.w *= factor;
  }
  /// Adds what has been scaled to the same largest score.
  __device__ __forceinline__ void add(const Weighted& other) {
    sum += other.sum;
    values.x += other.values.x, values.y += other.values.y, values.z += other.values.z, values.w += other.values.w;
  }
};

/// The merged parts, in their order.
template <int count>
__device__ __forceinline__ Weighted merge(Weighted (&parts)[count]) {
  float largest = kNone;
#pragma unroll
  for (int i = 0; i < count; ++i) largest = fmaxf(largest, parts[i].largest);
  parts[0].scale_to(largest);
#pragma unroll
  for (int i = 1; i < count; ++i) {
    parts[i].scale_to(largest);
    parts[0].add(parts[i]);
  }
  return parts[0];
}

// Clusters: the blocks of one, and their shared memory.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
/// Writes to the place of `local` in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ void store_remote(void* local, uint32_t rank, float2 x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.v2.f32 [remote], {%2,%3};\n"
      "}\n" ::"r"(shared_address(local)),
      "r"(rank), "f"(x.x), "f"(x.y)
      : "memory");
#endif
}

/// The pages of a block on their way to shared memory: slot i of a round has page begin + round * slots + i, keys and
/// behind them values. keys() and values() are called by all threads, in turn, for one round after the other.
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

  /// Until a slot's keys (values: 1) are there. Before sm_90: those of all slots, after the next __syncthreads.
  __device__ __forceinline__ void wait(int slot, int round, int is_values) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    barrier_wait(&barriers[is_values][slot], static_cast<uint32_t>(round) & 1);
#else
    copy_async_wait<1>();  // two are always under way, of which the younger one is not wanted yet
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
      for (int at = static_cast<int>(threadIdx.x) * 16; at < keys_bytes; at += kThreads * 16) {
        copy_async_16(target + at, source + at);
      }
    }
    copy_async_commit();
#endif
  }
};

template <KvType type, int D>
__global__ void __maxnreg__(kMostRegisters) attend_decode_kernel(const __grid_constant__ Parameters p) {
#if defined(__CUDA_ARCH__)
  constexpr bool kBulkCopies = __CUDA_ARCH__ >= 900;
#else
  constexpr bool kBulkCopies = true;
#endif
  constexpr int kPairs = D / 2, kQuads = D / 4, kTiles = D / 64;  // of 8 dimensions, a warp's
  __shared__ Shared<D> shared;
  extern __shared__ __align__(128) uint8_t ring[];

  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int split = static_cast<int>(blockIdx.x), splits = static_cast<int>(gridDim.x);
  const int64_t token = blockIdx.z;
  const int group = static_cast<int>(blockIdx.y) / p.tiles, tile = static_cast<int>(blockIdx.y) % p.tiles;
  const int head_size = p.qkv.head_size, group_heads = p.qkv.heads / p.qkv.groups;
  const int first_head = group * group_heads + tile * kHeads;  // of the tile
  const int heads = min(kHeads, group_heads - tile * kHeads);  // the tile's other rows are zero
  const int64_t task = token * gridDim.y + blockIdx.y;

  let_next_kernel_start();
  if (!p.read_ahead) wait_for_previous_kernel();

  // Which pages are whose. The new token's own key and value are not among them: split 0 adds them.
  const int position = p.batch.positions[token];
  const int32_t* table = p.batch.pages + p.batch.tables[token];
  const int pages = (position + kPageTokens - 1) / kPageTokens;
  const int useful = pages <= kAlonePages ? 1 : p.cluster > 1 && pages <= kClusterPages ? p.cluster : splits;
  const int active = max(1, min(min(useful, splits), pages));  // splits that have something to do
  const int mergers = active > 1 ? p.cluster : 1;              // blocks that share the merging, by heads
  const int rank = split % mergers;
  if (split - rank >= active) return;  // whole clusters, but for that of the only active split
  const int clusters = (active + mergers - 1) / mergers, my_cluster = split / mergers;
  const int merger_heads = kHeads / mergers, head_begin = rank * merger_heads;
  const int merged_heads = max(0, min(heads - head_begin, merger_heads));
  const bool working = split < active;
  if (mergers > 1) cluster_arrive();  // whose shared memory is there to be written

  const auto write_pair = [&](int head, int dimension, float x, float y) {
    if (dimension >= head_size) return;
    const int64_t index = activation_index(token, (first_head + head) * head_size + dimension, p.out.stride);
    *reinterpret_cast<half2*>(p.out.data + index) = to_half2(x, y);
  };
  const auto write_quad = [&](int head, int quad, const Weighted& result) {
    const float inverse = 1.0f / result.sum;
    write_pair(head, 4 * quad, result.values.x * inverse, result.values.y * inverse);
    write_pair(head, 4 * quad + 2, result.values.z * inverse, result.values.w * inverse);
  };
  const int64_t first_partial = task * (splits / p.cluster) * kHeads, my_partial = first_partial + my_cluster * kHeads;

  if (working) {
    PageLoader<D> loader;
    loader.ring = ring;
    loader.head = p.cache.head_page(p.layer, group, 0);
    loader.table = table;
    loader.keys_bytes = static_cast<int>(p.cache.keys_bytes());
    loader.slots = p.slots;
    loader.begin = static_cast<int>(static_cast<int64_t>(pages) * split / active);
    loader.end = static_cast<int>(static_cast<int64_t>(pages) * (split + 1) / active);
    loader.barriers = shared.barriers;
    loader.init();
    loader.keys(0);
    loader.values(0);

    // Queries. A thread always has the same pair of dimensions.
    constexpr int kStep = kThreads / kPairs, kPerThread = kHeads / kStep;
    const int pair = thread % kPairs;
    const bool exists = 2 * pair < head_size, rotated = 2 * pair < p.qkv.rope_dimension;
    const int64_t row = token * (p.qkv.heads + 2 * p.qkv.groups) * head_size;
    const int first = first_head * head_size + 2 * pair;
    float2 x[kPerThread], bias[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int head = thread / kPairs + i * kStep;
      x[i] = bias[i] = make_float2(0, 0);
      if (head < heads && exists) bias[i] = load_pair(p.qkv.bias, first + head * head_size);
    }
    // The new key (threads 0 .. D / 2 - 1) and value (those after them).
    const bool is_value = thread >= kPairs, has_new = split == 0 && thread < D;
    const int new_index = (p.qkv.heads + group + (is_value ? p.qkv.groups : 0)) * head_size + 2 * pair;
    float2 new_x = make_float2(0, 0), new_bias = new_x, rotation = new_x;
    if (has_new && exists) new_bias = load_pair(p.qkv.bias, new_index);
    const int new_page = has_new && tile == 0 ? table[position / kPageTokens] : 0;

    wait_for_previous_kernel();
    if (rotated) rotation = p.batch.rotations[token * (p.qkv.rope_dimension / 2) + pair];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int head = thread / kPairs + i * kStep;
      if (head < heads && exists) x[i] = load_pair(p.qkv.data, row + first + head * head_size);
    }
    if (has_new && exists) new_x = load_pair(p.qkv.data, row + new_index);

#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      float2 y = add_pair(x[i], bias[i]);
      if (rotated) y = rotate_pair(y, rotation);
      *reinterpret_cast<half2*>(&shared.queries[thread / kPairs + i * kStep][2 * pair]) =
          to_half2(__fmul_rn(y.x, p.scale), __fmul_rn(y.y, p.scale));
    }
    if (has_new) {  // whole warps
      float2 y = add_pair(new_x, new_bias);
      if (rotated && !is_value) y = rotate_pair(y, rotation);
      const KvPair<type> stored(y);
      *reinterpret_cast<float2*>((is_value ? shared.new_value : shared.new_key) + 2 * pair) =
          __half22float2(stored.decoded());
      if (tile == 0 && exists) {
        uint8_t* keys = p.cache.head_page(p.layer, group, new_page);
        const int slot = position % kPageTokens;
        if (is_value) {
          store_value<type, D>(keys + p.cache.keys_bytes(), slot, pair, stored);
        } else {
          store_key<type, D>(keys, slot, pair, stored);
        }
      }
    }
    if constexpr (!kBulkCopies) loader.wait(0, 0, 0);
    __syncthreads();

    uint32_t queries[D / 16][4];
#pragma unroll
    for (int b = 0; b < D / 32; ++b) {
      const int dimension = first_dimension<type>(b, t);
      const uint4 upper = load_16(&shared.queries[g][dimension]), lower = load_16(&shared.queries[g + 8][dimension]);
      queries[2 * b][0] = upper.x, queries[2 * b][1] = lower.x;
      queries[2 * b][2] = upper.y, queries[2 * b][3] = lower.y;
      queries[2 * b + 1][0] = upper.z, queries[2 * b + 1][1] = lower.z;
      queries[2 * b + 1][2] = upper.w, queries[2 * b + 1][3] = lower.w;
    }
    if (split == 0) {
#pragma unroll
      for (int i = 0; i < kHeads / kWarps; ++i) {
        const int head = warp * (kHeads / kWarps) + i;
        float score = 0;
#pragma unroll
        for (int d = 0; d < D; d += 32) {
          score += __half2float(shared.queries[head][d + lane]) * shared.new_key[d + lane];
        }
        score = warp_sum(score);
        if (lane == 0) shared.new_score[head] = score;
      }
    }

    // Of heads g (numbers 0 and 1) and g + 8 (2 and 3): values of dimensions my_dimension + 8 i + (2t, 2t + 1); behind
    // them the sum of the weights, twice.
    const int my_dimension = warp * (D / kWarps), my_slot = warp / 2;
    float sums[2][kTiles + 1][4] = {};
    float largest[2] = {kNone, kNone};  // of heads g and g + 8
    int round = 0, first_page = loader.begin;
    do {  // once even if there is nothing but the new token
      const int count = min(p.slots, loader.end - first_page);
      const bool more = loader.end - first_page > p.slots;
      const int visible = position - (first_page + my_slot) * kPageTokens;  // of the tokens of the warp's page
      float s[4][4] = {};
      float most[2] = {kNone, kNone};
      if (my_slot < count) {
        if constexpr (kBulkCopies) loader.wait(my_slot, round, 0);
        add_scores<type, D>(loader.slot_keys(my_slot), warp % 2, lane, queries, s);
        if (visible < kPageTokens) {
          const int mine = visible - 16 * t - 8 * (warp % 2);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (mine <= j) s[j][0] = s[j][2] = kNone;
            if (mine <= j + 4) s[j][1] = s[j][3] = kNone;
          }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int j = 0; j < 4; ++j) most[r] = fmaxf(most[r], fmaxf(s[j][2 * r], s[j][2 * r + 1]));
          most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffffu, most[r], 1));
          most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffffu, most[r], 2));
        }
      }
      if (t == 0) shared.largest[g][warp] = most[0], shared.largest[g + 8][warp] = most[1];
      __syncthreads();
      if (more || !kBulkCopies) loader.keys(round + 1);

      float factor[2], new_weight[2] = {0, 0};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int head = g + 8 * r;
        const float4 low = *reinterpret_cast<const float4*>(&shared.largest[head][0]);
        const float4 high = *reinterpret_cast<const float4*>(&shared.largest[head][4]);
        const bool with_new = split == 0 && round == 0;
        const float new_score = with_new ? shared.new_score[head] : kNone;
        const float all =
            fmaxf(fmaxf(fmaxf(low.x, low.y), fmaxf(low.z, low.w)), fmaxf(fmaxf(high.x, high.y), fmaxf(high.z, high.w)));
        const float now = fmaxf(largest[r], fmaxf(all, new_score));
        factor[r] = exp2_fast(largest[r] - now);
        if (with_new) new_weight[r] = exp2_fast(new_score - now);
        largest[r] = now;
      }
      if (my_slot < count) {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          uint32_t a[4];
#pragma unroll
          for (int part = 0; part < 4; ++part) {
            const int r = part % 2, j = part / 2 * 2, number = 2 * r + step;
            a[part] =
                bits(__floats2half2_rn(exp2_fast(s[j][number] - largest[r]), exp2_fast(s[j + 1][number] - largest[r])));
          }
          shared.weights[my_slot][warp % 2][step][lane] = make_uint4(a[0], a[1], a[2], a[3]);
        }
      }
#pragma unroll
      for (int i = 0; i <= kTiles; ++i) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          sums[0][i][n] *= factor[n / 2];
          sums[1][i][n] *= factor[n / 2];
        }
      }
      if (split == 0 && round == 0) {
#pragma unroll
        for (int i = 0; i <= kTiles; ++i) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const float value = i < kTiles ? shared.new_value[my_dimension + 8 * i + 2 * t + n % 2] : 1.0f;
            sums[0][i][n] = new_weight[n / 2] * value;
          }
        }
      }
      if constexpr (!kBulkCopies) loader.wait(0, round, 1);
      __syncthreads();

#pragma unroll 1
      for (int slot = 0; slot < count; ++slot) {
        if constexpr (kBulkCopies) loader.wait(slot, round, 1);
        add_values<type, D>(loader.slot_values(slot), position - (first_page + slot) * kPageTokens,
                            shared.weights[slot], my_dimension, lane, sums);
      }
      ++round;
      first_page += p.slots;
      if (more) {
        __syncthreads();
        loader.values(round);
        if constexpr (!kBulkCopies) {
          loader.wait(0, round, 0);
          __syncthreads();
        }
      }
    } while (first_page < loader.end);

#pragma unroll
    for (int i = 0; i <= kTiles; ++i) {
#pragma unroll
      for (int n = 0; n < 4; ++n) sums[0][i][n] += sums[1][i][n];
    }
    if (mergers > 1) cluster_wait();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = g + 8 * r;
      const float sum = sums[0][kTiles][2 * r], inverse = 1.0f / sum;
      const float2 both = make_float2(largest[r], sum);
      const int merger = head / merger_heads, place = split % mergers * merger_heads + head % merger_heads;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int dimension = my_dimension + 8 * i + 2 * t;
        const float2 v = make_float2(sums[0][i][2 * r], sums[0][i][2 * r + 1]);
        if (mergers > 1) {
          store_remote(&shared.received[place * D + dimension], static_cast<uint32_t>(merger), v);
        } else if (clusters > 1) {
          *reinterpret_cast<float2*>(p.partial + (my_partial + head) * D + dimension) = v;
        } else if (head < heads) {
          write_pair(head, dimension, v.x * inverse, v.y * inverse);
        }
      }
      if (warp == 0 && t == 0) {
        if (mergers > 1) {
          store_remote(&shared.received_sums[place], static_cast<uint32_t>(merger), both);
        } else if (clusters > 1) {
          p.partial_sums[my_partial + head] = both;
        }
      }
    }
  } else {
    wait_for_previous_kernel();
    cluster_wait();  // only clusters have blocks that do nothing but merge
  }
  if (active == 1) return;

  // The blocks' results become the cluster's. Nobody writes to this block's shared memory any more after that.
  if (mergers > 1) {
    cluster_arrive();
    cluster_wait();
    const int sources = min(mergers, active - my_cluster * mergers);
    for (int i = thread; i < merged_heads * kQuads; i += kThreads) {
      const int in_block = i / kQuads, quad = i % kQuads, head = head_begin + in_block;
      Weighted parts[kMostCluster];
#pragma unroll
      for (int source = 0; source < kMostCluster; ++source) {
        if (source < sources) {
          const int place = source * merger_heads + in_block;
          const float2 both = shared.received_sums[place];
          parts[source].largest = both.x;
          parts[source].sum = both.y;
          parts[source].values = *reinterpret_cast<const float4*>(&shared.received[place * D + 4 * quad]);
        }
      }
      const Weighted result = merge(parts);
      if (clusters == 1) {
        write_quad(head, quad, result);
      } else {
        const int64_t index = my_partial + head;
        *reinterpret_cast<float4*>(p.partial + index * D + 4 * quad) = result.values;
        if (quad == 0) p.partial_sums[index] = make_float2(result.largest, result.sum);
      }
    }
  }
  if (clusters == 1) return;

  // The clusters' results become the token's, by the last that comes.
  __syncthreads();
  if (thread == 0) {
    const int bits_each = 32 / mergers, shift = bits_each * rank;  // of the counter
    const uint32_t mask = mergers == 1 ? ~0u : (1u << bits_each) - 1;
    __threadfence();
    const uint32_t before = atomicAdd(p.counters + task, 1u << shift) >> shift & mask;
    shared.last = before == static_cast<uint32_t>(clusters - 1);
    if (shared.last) atomicSub(p.counters + task, static_cast<uint32_t>(clusters) << shift);
    __threadfence();
  }
  __syncthreads();
  if (!shared.last) return;
  constexpr int kAtOnce = 8;
  for (int i = thread; i < merged_heads * kQuads; i += kThreads) {
    const int head = head_begin + i / kQuads, quad = i % kQuads;
    Weighted result;
    for (int from = 0; from < clusters; from += kAtOnce) {
      Weighted parts[kAtOnce + 1];
      parts[0] = result;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (from + k < clusters) {
          const int64_t index = first_partial + (from + k) * kHeads + head;
          const float2 both = __ldcg(p.partial_sums + index);
          parts[k + 1].largest = both.x;
          parts[k + 1].sum = both.y;
          parts[k + 1].values = __ldcg(reinterpret_cast<const float4*>(p.partial + index * D + 4 * quad));
        }
      }
      result = merge(parts);
    }
    write_quad(head, quad, result);
  }
}

struct Plan {
  int32_t splits = 1;
  int32_t cluster = 1;
  int32_t slots = 2;  // three and four took more time: the block before had to end first

  int64_t partials() const { return splits / cluster; }  // of a task
};

/// A task is a tile of heads of a token.
Plan plan_of(const Device& device, int32_t tasks) {
  Plan plan;
  const int32_t wanted = std::max(1, device.multiprocessors / tasks);
  if (device.arch < 900) {
    plan.splits = std::min(wanted, kMaxSplits);
  } else if (device.clusters_of_8 >= tasks) {
    plan.cluster = kMostCluster;
    plan.splits = kMostCluster * std::min(device.clusters_of_8 / tasks, kMaxClusters);
  } else {
    plan.splits = plan.cluster = wanted >= 4 ? 4 : wanted >= 2 ? 2 : 1;
  }
  return plan;
}

int32_t tiles_of(int32_t heads, int32_t groups) { return (heads / groups + kHeads - 1) / kHeads; }

template <KvType type, int D>
void launch_attend_decode(const Launch& launch, const Plan& plan, dim3 grid, Parameters parameters) {
  const auto page_bytes = static_cast<size_t>(parameters.cache.head_page_bytes());
  const size_t fitting = (launch.device->shared_bytes - sizeof(Shared<D>)) / page_bytes;
  parameters.slots = std::min(plan.slots, static_cast<int32_t>(fitting));
  const size_t shared_bytes = static_cast<size_t>(parameters.slots) * page_bytes;
  allow_shared_bytes(attend_decode_kernel<type, D>, shared_bytes);
  launch_kernel_in_clusters(launch, attend_decode_kernel<type, D>, grid, kThreads, shared_bytes, plan.cluster,
                            parameters);
}

}  // namespace

size_t attend_decode_workspace_bytes(const Device& device, int32_t heads, int32_t groups, int32_t head_size,
                                     int32_t max_tokens) {
  int64_t partials = 0;
  for (int32_t tokens = 1; tokens <= max_tokens; ++tokens) {
    const int32_t tasks = tokens * groups * tiles_of(heads, groups);
    partials = std::max(partials, tasks * plan_of(device, tasks).partials());
  }
  const int64_t floats = padded_head_size(head_size) + 2;
  return static_cast<size_t>(partials * kHeads * floats) * sizeof(float);
}

void attend_decode(const Launch& launch, const QkvRows& qkv, const Batch& batch, const KvCache& cache, int32_t layer,
                   const Activations& out, const AttendDecodeWorkspace& workspace, bool read_ahead) {
  if (batch.tokens == 0) return;
  const int32_t tiles = tiles_of(qkv.heads, qkv.groups), tasks = batch.tokens * qkv.groups * tiles;
  const Plan plan = plan_of(*launch.device, tasks);
  Parameters parameters;
  parameters.qkv = qkv;
  parameters.batch = batch;
  parameters.cache = cache;
  parameters.out = out;
  parameters.partial = workspace.partial;
  parameters.partial_sums =
      reinterpret_cast<float2*>(workspace.partial + tasks * plan.partials() * kHeads * cache.padded_head);
  parameters.counters = workspace.counters;
  parameters.scale = query_scale(qkv.head_size);
  parameters.layer = layer;
  parameters.tiles = tiles;
  parameters.cluster = plan.cluster;
  parameters.read_ahead = read_ahead;
  const dim3 grid(static_cast<uint32_t>(plan.splits), static_cast<uint32_t>(qkv.groups * tiles),
                  static_cast<uint32_t>(batch.tokens));
  const auto run = [&](auto launcher) { launcher(launch, plan, grid, parameters); };
  if (cache.type == KvType::f16) {
    run(cache.padded_head == 64 ? launch_attend_decode<KvType::f16, 64> : launch_attend_decode<KvType::f16, 128>);
  } else {
    run(cache.padded_head == 64 ? launch_attend_decode<KvType::q8_0, 64> : launch_attend_decode<KvType::q8_0, 128>);
  }
}

}  // namespace chatglm::cuda
