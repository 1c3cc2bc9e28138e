// Attention of one token a sequence over the keys and values in the cache, with everything that lies between the QKV
// product and it: bias, rotation, the storage of the new key and value. Partial results of pieces of a long context are
// merged by their largest score and sum (Dao et al., "Flash-Decoding", 2023).
//
// Launch: (splits, groups * tiles of 16 query heads, tokens) blocks of 4 warps. The query heads of a group are the rows
// of the tensor cores' A tile, so keys and values are read once for 16 heads, straight into registers, where they are B
// fragments as they lie in memory. A warp takes runs of 32 keys: 16 KB in f16, all loads of which are under way at
// once, those of the next run during the work on this one. The number of splits depends on the number of tokens alone
// (the launch is recorded once for all positions); each token spreads its runs over as many of them as gives every warp
// one. From sm_90 on 4 splits are a cluster, whose blocks merge through each other's shared memory, 4 heads each.
// Clusters (before sm_90: splits) merge through global memory: the last to finish reads the results of all, in their
// order.
//
// Bytes a token of context: 1,024 in f16 (544 in q8_0) over both groups of the 6B model, 28,672 (15,232) over its 28
// layers. 32,000 tokens are 32.8 MB a layer: 10.4 us at 3.14 TB/s. Expected: 13 us; up to 2048 tokens the latency of
// the kernel, 3 to 4 us.

#include "cuda/rope.cuh"

#include <algorithm>

namespace chatglm::cuda {

namespace {

constexpr int kHeads = 16;  // of a tile
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRun = 32;            // keys that a warp takes at a time
constexpr int kMaxSplits = 32;      // merged by one block, which takes as long as reading 8 KB of each
constexpr int kMaxClusters = 32;    // the same for a cluster
constexpr int kCluster = 4;         // splits of a cluster, from sm_90 on
constexpr int kBlocksPerSm = 2;     // as many as registers allow
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
  int32_t tiles;  // of a group
  bool read_ahead;
};

// Loads of what another kernel wrote, each byte once: past L1, in the order that the program states.
__device__ __forceinline__ uint4 load_16(const uint8_t* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ uint2 load_8(const uint8_t* p) {
  uint2 v;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
__device__ __forceinline__ uint32_t load_4(const uint8_t* p) {
  uint32_t v;
  asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

/// 2^x with a relative error of 2^-22; 0 for -infinity, NaN for NaN.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// The factor that brings sums relative to `old_largest` to `largest`.
__device__ __forceinline__ float rescaling(float old_largest, float largest) {
  return old_largest == kNone ? 0.0f : exp2_fast(old_largest - largest);
}

// The keys and values of a run of 32 tokens in a lane's registers; g = lane / 4, t = lane % 4.
//
// Keys are the columns of four B tiles. Column n of tile j is token 8 (n / 2) + 2 j + n % 2 of the run: then the scores
// that a lane accumulates, columns 2t and 2t + 1 of each tile, are those of tokens 8t + 2j and 8t + 2j + 1: of all
// tiles together the 8 tokens from 8t on. The same in values: a lane loads the 8 tokens from 8t on of a dimension.
//
// Dimensions are summed over, so their order is free if queries have the same: of each 32 a lane loads the 8 from 8t
// on, which are its k = 2t, 2t + 1, 2t + 8, 2t + 9 of a first step of 16 and then of a second.
template <KvType type, int D>
struct Run;

template <int D>
struct Run<KvType::f16, D> {
  uint4 keys[4][D / 32];
  uint4 values[D / 8];

  // `keys_of_page`: of a head page; `half`: which of its two runs.
  __device__ __forceinline__ void load_keys(const uint8_t* keys_of_page, int half, int lane) {
    const int g = lane / 4, t = lane % 4;
    const uint8_t* row = keys_of_page + (32 * half + 8 * (g / 2) + g % 2) * 128;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int b = 0; b < D / 32; ++b) {
        const int piece = (4 * (b % 2) + t) ^ (2 * j + g % 2);  // the token is 2 j + g % 2 modulo 8
        keys[j][b] = load_16(row + b / 2 * (kPageTokens * 128) + j * 256 + piece * 16);
      }
    }
  }
  __device__ __forceinline__ void load_values(const uint8_t* values_of_page, int half, int lane) {
    const int g = lane / 4, t = lane % 4;
    const uint8_t* row = values_of_page + g * 128 + ((4 * half + t) ^ g) * 16;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) values[i] = load_16(row + i * 1024);
  }

  /// The B fragments of tile j for dimensions [32 b, 32 b + 32).
  __device__ __forceinline__ void key_fragments(int j, int b, uint32_t (&first)[2], uint32_t (&second)[2]) const {
    first[0] = keys[j][b].x, first[1] = keys[j][b].y;
    second[0] = keys[j][b].z, second[1] = keys[j][b].w;
  }
  /// The B fragments of dimensions [8 i, 8 i + 8).
  __device__ __forceinline__ void value_fragments(int i, uint32_t (&first)[2], uint32_t (&second)[2]) const {
    first[0] = values[i].x, first[1] = values[i].y;
    second[0] = values[i].z, second[1] = values[i].w;
  }
  /// Makes zeros of the values of all but the first `tokens` of the lane's 8 tokens.
  __device__ __forceinline__ void mask_values(const uint4& mask) {
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      values[i].x &= mask.x, values[i].y &= mask.y, values[i].z &= mask.z, values[i].w &= mask.w;
    }
  }
};

template <int D>
struct Run<KvType::q8_0, D> {
  uint2 keys[4][D / 32];
  uint32_t key_scales[4][D / 64];  // of two blocks of 32 dimensions each
  uint2 values[D / 8];
  uint4 value_scales[D / 32];  // of 8 tokens each

  __device__ __forceinline__ void load_keys(const uint8_t* keys_of_page, int half, int lane) {
    const int g = lane / 4, t = lane % 4;
    const int token = 32 * half + 8 * (g / 2) + g % 2;
    const uint8_t* codes = keys_of_page + token * D + 8 * t;
    const uint8_t* scales = keys_of_page + kPageTokens * D + token * (D / 16);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (D == 128) {
        const uint2 pair = load_8(scales + 2 * j * (D / 16));
        key_scales[j][0] = pair.x, key_scales[j][1] = pair.y;
      } else {
        key_scales[j][0] = load_4(scales + 2 * j * (D / 16));
      }
#pragma unroll
      for (int b = 0; b < D / 32; ++b) keys[j][b] = load_8(codes + 2 * j * D + 32 * b);
    }
  }
  __device__ __forceinline__ void load_values(const uint8_t* values_of_page, int half, int lane) {
    const int g = lane / 4, t = lane % 4;
    const uint8_t* codes = values_of_page + g * kPageTokens + 32 * half + 8 * t;
    const uint8_t* scales = values_of_page + D * kPageTokens + (32 * half + 8 * t) * 2;
#pragma unroll
    for (int b = 0; b < D / 32; ++b) value_scales[b] = load_16(scales + b * (kPageTokens * 2));
#pragma unroll
    for (int i = 0; i < D / 8; ++i) values[i] = load_8(codes + i * (8 * kPageTokens));
  }

  __device__ __forceinline__ void key_fragments(int j, int b, uint32_t (&first)[2], uint32_t (&second)[2]) const {
    const half2 pair = as_half2(key_scales[j][b / 2]);
    const half2 scale = b % 2 == 0 ? __low2half2(pair) : __high2half2(pair);
    decode(keys[j][b].x, scale, scale, first);
    decode(keys[j][b].y, scale, scale, second);
  }
  __device__ __forceinline__ void value_fragments(int i, uint32_t (&first)[2], uint32_t (&second)[2]) const {
    const uint4& scales = value_scales[i / 4];
    decode(values[i].x, as_half2(scales.x), as_half2(scales.y), first);
    decode(values[i].y, as_half2(scales.z), as_half2(scales.w), second);
  }
  __device__ __forceinline__ void mask_values(const uint4& mask) {  // codes are finite whatever they are
#pragma unroll
    for (int b = 0; b < D / 32; ++b) {
      value_scales[b].x &= mask.x, value_scales[b].y &= mask.y;
      value_scales[b].z &= mask.z, value_scales[b].w &= mask.w;
    }
  }

 private:
  /// Four codes times their scales. A byte in the mantissa of 0x6400 is the f16 number 1024 + byte.
  __device__ __forceinline__ static void decode(uint32_t codes, half2 low_scale, half2 high_scale,
                                                uint32_t (&result)[2]) {
    const uint32_t bytes = codes ^ 0x80808080;  // code + 128
    const half2 bias = __float2half2_rn(1152);
    result[0] = bits(__hmul2(__hsub2(as_half2(__byte_perm(bytes, 0x64646464, 0x4140)), bias), low_scale));
    result[1] = bits(__hmul2(__hsub2(as_half2(__byte_perm(bytes, 0x64646464, 0x4342)), bias), high_scale));
  }
};

/// Shared memory of a block. Strides are such that no access has bank conflicts.
template <int D>
struct Shared {
  alignas(16) half queries[kHeads][D + 32];
  alignas(16) float results[kWarps][kHeads][D + 8];  // of each warp; then [0]: of the block
  float largest[kWarps][kHeads], sums[kWarps][kHeads];
  float block_largest[kHeads], block_sum[kHeads];
  float new_key[D], new_value[D];
  float new_score[kHeads];
  bool last;
};

/// Values weighted by 2^(score - largest), and the sum of the weights: what partial results of a head consist of.
struct Weighted {
  float largest = kNone, sum = 0;
  float4 values = {0, 0, 0, 0};

  __device__ __forceinline__ void scale_to(float new_largest) {
    const float factor = rescaling(largest, new_largest);
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

// Clusters: blocks 0 .. kCluster - 1 of a cluster, and their shared memory.
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
/// What lies at the place of `local` in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ float load_remote(const float* local, uint32_t rank) {
  float v = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [remote];\n"
      "}\n"
      : "=f"(v)
      : "r"(shared_address(local)), "r"(rank)
      : "memory");
#endif
  return v;
}
__device__ __forceinline__ float4 load_remote_4(const float* local, uint32_t rank) {
  float4 v = {0, 0, 0, 0};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [remote];\n"
      "}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared_address(local)), "r"(rank)
      : "memory");
#endif
  return v;
}

template <KvType type, int D, int cluster>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) attend_decode_kernel(const Parameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (cluster > 1) return;
#endif
  constexpr int kPairs = D / 2, kQuads = D / 4;
  __shared__ Shared<D> shared;

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

  // Which runs are whose. The new token's own key and value are not among them: split 0 adds them at the end.
  const int position = p.batch.positions[token];
  const int32_t* table = p.batch.pages + p.batch.tables[token];
  const int runs = (position + kRun - 1) / kRun;
  const int split_runs = max(1, (runs + splits * kWarps - 1) / (splits * kWarps)) * kWarps;
  const int active = max(1, (runs + split_runs - 1) / split_runs);  // splits that have something to do
  const int mergers = active > 1 ? cluster : 1;                     // blocks that share the merging, by heads
  const int rank = split % mergers;
  if (split - rank >= active) return;  // whole clusters, but for that of the only active split
  const int end = min(runs, (split + 1) * split_runs);
  int run = split * split_runs + warp;

  Run<type, D> data;
  const int half_page = run % 2;  // the same for all runs of a warp
  if (run < end) {
    const uint8_t* keys = p.cache.head_page(p.layer, group, table[run / 2]);
    data.load_keys(keys, half_page, lane);
    data.load_values(keys + p.cache.keys_bytes(), half_page, lane);
  }

  if (split < active) {
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
        uint8_t* keys = p.cache.head_page(p.layer, group, table[position / kPageTokens]);
        const int slot = position % kPageTokens;
        if (is_value) {
          store_value<type, D>(keys + p.cache.keys_bytes(), slot, pair, stored);
        } else {
          store_key<type, D>(keys, slot, pair, stored);
        }
      }
    }
    __syncthreads();
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

    float o[D / 8][4] = {};  // of dimensions [8 i, 8 i + 8): (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
    float largest[2] = {kNone, kNone}, sum[2] = {0, 0};  // of heads g and g + 8; sums of the lane's tokens only
    for (; run < end; run += kWarps) {
      const bool more = run + kWarps < end;
      const int next_page = more ? table[(run + kWarps) / 2] : 0;
      const uint8_t* next_keys = p.cache.head_page(p.layer, group, next_page);

      float s[4][4] = {};  // of tile j: (g, 8t + 2j), (g, 8t + 2j + 1), (g + 8, 8t + 2j), (g + 8, 8t + 2j + 1)
#pragma unroll
      for (int b = 0; b < D / 32; ++b) {
        const uint4 upper = *reinterpret_cast<const uint4*>(&shared.queries[g][32 * b + 8 * t]);
        const uint4 lower = *reinterpret_cast<const uint4*>(&shared.queries[g + 8][32 * b + 8 * t]);
        const uint32_t a_first[4] = {upper.x, lower.x, upper.y, lower.y};
        const uint32_t a_second[4] = {upper.z, lower.z, upper.w, lower.w};
        uint32_t first[4][2], second[4][2];
#pragma unroll
        for (int j = 0; j < 4; ++j) data.key_fragments(j, b, first[j], second[j]);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_m16n8k16(s[j], a_first, first[j]);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_m16n8k16(s[j], a_second, second[j]);
      }
      if (more) data.load_keys(next_keys, half_page, lane);

      const int visible = position - run * kRun;  // of the run's tokens
      if (visible < kRun) {
        const int mine = visible - 8 * t;
        const auto word = [&](int w) { return (mine > 2 * w ? 0xffffu : 0u) | (mine > 2 * w + 1 ? 0xffff0000u : 0u); };
        data.mask_values(make_uint4(word(0), word(1), word(2), word(3)));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (mine <= 2 * j) s[j][0] = s[j][2] = kNone;
          if (mine <= 2 * j + 1) s[j][1] = s[j][3] = kNone;
        }
      }

#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float most = largest[r];
#pragma unroll
        for (int j = 0; j < 4; ++j) most = fmaxf(most, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float factor = exp2_fast(largest[r] - most);
        largest[r] = most;
        sum[r] *= factor;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          s[j][2 * r] = exp2_fast(s[j][2 * r] - most);
          s[j][2 * r + 1] = exp2_fast(s[j][2 * r + 1] - most);
          sum[r] += s[j][2 * r] + s[j][2 * r + 1];
        }
#pragma unroll
        for (int i = 0; i < D / 8; ++i) o[i][2 * r] *= factor, o[i][2 * r + 1] *= factor;
      }
      uint32_t weights[2][4];
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const float* pair_of = &s[2 * step + part / 2][part % 2 * 2];
          weights[step][part] = bits(__floats2half2_rn(pair_of[0], pair_of[1]));
        }
      }
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        uint32_t first[2], second[2];
        data.value_fragments(i, first, second);
        mma_m16n8k16(o[i], weights[0], first);
        mma_m16n8k16(o[i], weights[1], second);
      }
      if (more) data.load_values(next_keys + p.cache.keys_bytes(), half_page, lane);
    }

    // The warps' results to shared memory.
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = g + 8 * r;
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
      if (t == 0) shared.largest[warp][head] = largest[r], shared.sums[warp][head] = sum[r];
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        *reinterpret_cast<float2*>(&shared.results[warp][head][8 * i + 2 * t]) =
            make_float2(o[i][2 * r], o[i][2 * r + 1]);
      }
    }
    __syncthreads();
  } else {
    wait_for_previous_kernel();
  }

  const int clusters = (active + mergers - 1) / mergers, my_cluster = split / mergers;
  const auto write_out = [&](int head, int quad, const Weighted& result) {
    const float inverse = 1.0f / result.sum;
    const int dimension = 4 * quad;
    if (dimension < head_size) {
      const int64_t index = activation_index(token, (first_head + head) * head_size + dimension, p.out.stride);
      *reinterpret_cast<half2*>(p.out.data + index) = to_half2(result.values.x * inverse, result.values.y * inverse);
    }
    if (dimension + 2 < head_size) {
      const int64_t index = activation_index(token, (first_head + head) * head_size + dimension + 2, p.out.stride);
      *reinterpret_cast<half2*>(p.out.data + index) = to_half2(result.values.z * inverse, result.values.w * inverse);
    }
  };
  const int64_t first_partial = task * (splits / cluster) * kHeads;
  const auto finish = [&](int head, int quad, const Weighted& result) {
    if (clusters == 1) {
      write_out(head, quad, result);
      return;
    }
    const int64_t index = first_partial + my_cluster * kHeads + head;
    *reinterpret_cast<float4*>(p.partial + index * D + 4 * quad) = result.values;
    if (quad == 0) p.partial_sums[index] = make_float2(result.largest, result.sum);
  };

  // The warps' results, and that of the new token, become the block's.
  if (split < active) {
    for (int i = thread; i < heads * kQuads; i += kThreads) {
      const int head = i / kQuads, quad = i % kQuads;
      Weighted parts[kWarps + 1];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        parts[w].largest = shared.largest[w][head];
        parts[w].sum = shared.sums[w][head];
        parts[w].values = *reinterpret_cast<const float4*>(&shared.results[w][head][4 * quad]);
      }
      if (split == 0) {
        parts[kWarps].largest = shared.new_score[head];
        parts[kWarps].sum = 1;
        parts[kWarps].values = *reinterpret_cast<const float4*>(&shared.new_value[4 * quad]);
      }
      const Weighted result = merge(parts);
      if (mergers == 1) {
        finish(head, quad, result);
      } else {
        *reinterpret_cast<float4*>(&shared.results[0][head][4 * quad]) = result.values;
        if (quad == 0) shared.block_largest[head] = result.largest, shared.block_sum[head] = result.sum;
      }
    }
  }
  // The blocks' results become the cluster's.
  const int merger_heads = kHeads / mergers, head_begin = rank * merger_heads;
  const int head_end = min(heads, head_begin + merger_heads);
  if constexpr (cluster > 1) {
    if (mergers > 1) {
      cluster_arrive();
      cluster_wait();
      const int sources = min(cluster, active - my_cluster * cluster);
      for (int i = thread; i < (head_end - head_begin) * kQuads; i += kThreads) {
        const int head = head_begin + i / kQuads, quad = i % kQuads;
        Weighted parts[cluster];
#pragma unroll
        for (int source = 0; source < cluster; ++source) {
          if (source < sources) {
            parts[source].largest = load_remote(&shared.block_largest[head], source);
            parts[source].sum = load_remote(&shared.block_sum[head], source);
            parts[source].values = load_remote_4(&shared.results[0][head][4 * quad], source);
          }
        }
        finish(head, quad, merge(parts));
      }
      cluster_arrive();  // until all have: the others may still be reading this block's shared memory
    }
  }
  // The clusters' results become the token's, by the last that comes.
  if (clusters > 1) {
    __threadfence();
    __syncthreads();
    if (thread == 0) {
      const int shift = 8 * rank;  // a byte of the counter each: there are at most 32 to count
      const uint32_t before = atomicAdd(p.counters + task, 1u << shift) >> shift & 0xff;
      shared.last = before == static_cast<uint32_t>(clusters - 1);
      if (shared.last) atomicSub(p.counters + task, static_cast<uint32_t>(clusters) << shift);
    }
    __syncthreads();
    if (shared.last) {
      __threadfence();
      constexpr int kAtOnce = 16;
      for (int i = thread; i < (head_end - head_begin) * kQuads; i += kThreads) {
        const int head = head_begin + i / kQuads, quad = i % kQuads;
        Weighted result;
        for (int from = 0; from < clusters; from += kAtOnce) {
          Weighted parts[kAtOnce + 1];
          parts[0] = result;
#pragma unroll
          for (int k = 0; k < kAtOnce; ++k) {
            if (from + k < clusters) {
              const int64_t index = first_partial + (from + k) * kHeads + head;
              const float2 sums = __ldcg(p.partial_sums + index);
              parts[k + 1].largest = sums.x;
              parts[k + 1].sum = sums.y;
              parts[k + 1].values = __ldcg(reinterpret_cast<const float4*>(p.partial + index * D + 4 * quad));
            }
          }
          result = merge(parts);
        }
        write_out(head, quad, result);
      }
    }
  }
  if constexpr (cluster > 1) {
    if (mergers > 1) cluster_wait();
  }
}

struct Plan {
  int32_t splits = 1;
  bool clusters = false;

  int64_t partials() const { return clusters ? splits / kCluster : splits; }  // of a task
};

/// A task is a tile of heads of a token.
Plan plan_of(const Device& device, int32_t tasks) {
  Plan plan;
  const int32_t wanted = std::max(1, kBlocksPerSm * device.multiprocessors / tasks);
  plan.clusters = device.arch >= 900 && wanted >= kCluster;
  plan.splits = plan.clusters ? std::min(wanted / kCluster, kMaxClusters) * kCluster : std::min(wanted, kMaxSplits);
  return plan;
}

int32_t tiles_of(int32_t heads, int32_t groups) { return (heads / groups + kHeads - 1) / kHeads; }

template <KvType type, int D>
void launch_attend_decode(const Launch& launch, const Plan& plan, dim3 grid, const Parameters& parameters) {
  if (!plan.clusters) {
    launch_kernel(launch, attend_decode_kernel<type, D, 1>, grid, kThreads, 0, parameters);
    return;
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kCluster;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = kThreads;
  config.stream = launch.stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, attend_decode_kernel<type, D, kCluster>, parameters), "launching a kernel");
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
