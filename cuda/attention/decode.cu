#include <algorithm>

#include "cuda/attention/decode_pages.cuh"
#include "cuda/attention/rope.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx/cluster.cuh"

// Attention of one new token of each sequence over the keys and values in the cache, together with the steps between
// the QKV product and attention: bias, rotation, and the storage of the new key and value. Partial results of a long
// context's splits are merged by their largest score and their sum (split-K over the context: Dao et al.,
// "Flash-Decoding", 2023).
//
// Launch: (splits, groups * tiles of 16 query heads, tokens) blocks of 8 warps. The query heads of a group are the rows
// of the tensor cores' A tile, so keys and values are read once for 16 heads. A block takes its share of the pages in
// rounds of up to 4, which bulk copies (sm_90; before sm_90, asynchronous copies) bring into shared memory; the first
// round's pages come while the kernel before is still running. In a round each warp makes the scores of half a page;
// the largest scores and then the weights go through shared memory, and each warp adds up an eighth of the dimensions
// over all pages, so nothing has to be merged within a block. The next round's keys are under way as soon as this
// round's scores are made, its values as soon as this round's values are added up.
//
// The number of splits depends on the number of tokens alone, because a CUDA graph records the launch once for all
// positions; each token uses as many of the splits as shorten its time. From sm_90 on 8 splits (fewer with many tokens)
// are a cluster, whose blocks share the merging by heads: each block sends the others its results of the heads that
// they merge. One cluster is enough for 2,048 tokens; several clusters (before sm_90: several splits) merge through
// global memory, where the last one to finish reads the results of all in their order.
//
// Bytes of a token of context: 1,024 in f16 (544 in q8_0) over both groups of the 6B model, 28,672 (15,232) over its 28
// layers. 32,000 tokens are 32.8 MB a layer: 10.4 us at the 3.14 TB/s of an H100. Expected: 13 us; up to 2,048 tokens
// the latency of the kernel, 3 to 4 us. Measured on an H100, one launch after the other: 2.5, 5.4, 8.7 and 16.6 us at
// depths 0, 2,048, 8,192 and 32,000 (63% of the bound); 256 tokens at depth 128 take 20.5 us (55%).
namespace chatglm::cuda {

namespace {

constexpr int kHeads = kDecodeHeads;  // of a tile
// Registers of a thread. With 112 and two pages a round a block finds room beside a block of the matrix-vector product
// before it (gemv.cu), so that the first pages have come when that product ends.
constexpr int kMostRegisters = 112;
constexpr int kMostCluster = 8;     // blocks of a cluster: as many as every GPU with clusters allows
constexpr int kMaxSplits = 32;      // one block merges them, which takes as long as reading 8 KB of each
constexpr int kMaxClusters = 15;    // their counter has 4 bits for each block of a cluster
constexpr int kAlonePages = 2;      // up to so many pages one block takes alone
constexpr int kClusterPages = 32;   // up to so many pages, a round, one cluster takes alone
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

/// Shared memory of a block, beside the pages.
template <int D>
struct Shared {
  alignas(16) uint64_t barriers[2][kMostSlots];     // of the pages' keys and values (sm_90)
  alignas(16) uint4 weights[kMostSlots][2][2][32];  // A fragments of a page's halves, two steps each
  alignas(16) half queries[kHeads][D + 8];
  alignas(16) float received[kHeads * D];  // (blocks of the cluster, heads that this one merges, D)
  float2 received_sums[kHeads];            // (blocks of the cluster, heads that this one merges): largest score, sum
  alignas(16) float largest[kHeads][kDecodeWarps + 4];  // of each warp
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

  // The splits share the pages of the earlier tokens. Split 0 adds the new token's own key and value.
  const int position = p.batch.positions[token];
  const int32_t* table = p.batch.pages + p.batch.tables[token];
  const int pages = (position + kPageTokens - 1) / kPageTokens;
  const int useful = pages <= kAlonePages ? 1 : p.cluster > 1 && pages <= kClusterPages ? p.cluster : splits;
  const int active = max(1, min(min(useful, splits), pages));  // splits that have pages, or the new token
  const int mergers = active > 1 ? p.cluster : 1;              // blocks that share the merging, by heads
  const int rank = split % mergers;
  if (split - rank >= active) return;  // whole clusters end, or all blocks but one if one split is active
  const int clusters = (active + mergers - 1) / mergers, my_cluster = split / mergers;
  const int merger_heads = kHeads / mergers, head_begin = rank * merger_heads;
  const int merged_heads = max(0, min(heads - head_begin, merger_heads));
  const bool working = split < active;
  if (mergers > 1) cluster_arrive();  // tells the cluster that this block runs: its shared memory may be written

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

    // Queries. A thread has the same pair of dimensions of several heads.
    constexpr int kStep = kDecodeThreads / kPairs, kPerThread = kHeads / kStep;
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
      for (int i = 0; i < kHeads / kDecodeWarps; ++i) {
        const int head = warp * (kHeads / kDecodeWarps) + i;
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
    const int my_dimension = warp * (D / kDecodeWarps), my_slot = warp / 2;
    float sums[2][kTiles + 1][4] = {};
    float largest[2] = {kNone, kNone};  // of heads g and g + 8
    int round = 0, first_page = loader.begin;
    do {  // once even if there are no pages, for the new token
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
          most[r] = quad_max(most[r]);
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
          store_remote(&shared.received[place * D + dimension], merger, v);
        } else if (clusters > 1) {
          *reinterpret_cast<float2*>(p.partial + (my_partial + head) * D + dimension) = v;
        } else if (head < heads) {
          write_pair(head, dimension, v.x * inverse, v.y * inverse);
        }
      }
      if (warp == 0 && t == 0) {
        if (mergers > 1) {
          store_remote(&shared.received_sums[place], merger, both);
        } else if (clusters > 1) {
          p.partial_sums[my_partial + head] = both;
        }
      }
    }
  } else {
    wait_for_previous_kernel();
    cluster_wait();  // a block without pages is in a cluster, and merges
  }
  if (active == 1) return;

  // The blocks' results become the cluster's. After this barrier no block writes to another's shared memory.
  if (mergers > 1) {
    cluster_arrive();
    cluster_wait();
    const int sources = min(mergers, active - my_cluster * mergers);
    for (int i = thread; i < merged_heads * kQuads; i += kDecodeThreads) {
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

  // The clusters' results become the token's: the last cluster to arrive merges them.
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
  for (int i = thread; i < merged_heads * kQuads; i += kDecodeThreads) {
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
  int32_t slots = 2;  // three and four took more time: the block of the kernel before had to end first

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
  allow_shared_bytes(*launch.device, attend_decode_kernel<type, D>, shared_bytes);
  launch_kernel_in_clusters(launch, attend_decode_kernel<type, D>, grid, kDecodeThreads, shared_bytes, plan.cluster,
                            parameters);
}

}  // namespace

int32_t attend_decode_counters(int32_t heads, int32_t groups, int32_t max_tokens) {
  return max_tokens * groups * tiles_of(heads, groups);
}

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
  with_cache_shape(cache, [&]<KvType type, int D>() { launch_attend_decode<type, D>(launch, plan, grid, parameters); });
}

}  // namespace chatglm::cuda
