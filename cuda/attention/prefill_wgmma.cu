#include "cuda/attention/prefill.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/warp_roles.cuh"
#include "cuda/ptx/wgmma.cuh"

// Causal attention of a prompt on Hopper's tensor cores, in the manner of FlashAttention-3 (Shah et al. 2024,
// arXiv:2407.08608), for f16 caches and heads of 65 to 128. The result is that of prefill.cu.
//
// Launch: ceil(tokens * group_heads / 128) * groups blocks of two consumer warpgroups with 64 rows (token, head) each
// and a producer warp (warp specialization); one block a multiprocessor. The producer copies pages, two at a time, into
// a ring in shared memory (cp.async.bulk: a page's keys and values lie in memory as wgmma wants them). A consumer
// multiplies its queries by 128 keys at once, and computes the next weights while the product of the last weights and
// their values is under way. The two warpgroups take turns in issuing products, so that the tensor cores work for one
// warpgroup while the other computes its softmax.
//
// Few tokens after many (the next turn of a chat) give few tiles with many keys each. Then clusters of up to eight
// blocks share the keys of a tile (split-K) and merge their results through each other's shared memory.
//
// Operations: 4 * 128 per row and key seen. A 6B layer (32 heads), 2,048 tokens after 6,144: 4 * 128 * 32 * 2,048 *
// 7,168.5 = 240.5 GFLOP: bound 0.304 ms at 790 TFLOP/s. A block and 128 keys: 2,048 cycles of tensor cores, 1,024 of
// exponentials (16 a cycle), ~600 of other f32 arithmetic. Bytes from L2: 64 KB per 8.4 MFLOP, 6.2 TB/s at the bound,
// 3.9 TB/s as expected; from DRAM 8.4 MB. Expected: 0.48 ms, 500 TFLOP/s.
// Measured on an H100: 2,048 tokens after 6,144 take 0.394 ms, 611 TFLOP/s (77% of 790); 2,048 at the beginning 87 us,
// 50%.
namespace chatglm::cuda {

namespace {

constexpr int D = kMaxHeadSize;
constexpr int kConsumers = 2;                         // warpgroups
constexpr int kGroupRows = kAttendRows / kConsumers;  // rows of a warpgroup: 64, wgmma's
constexpr int kThreads = (kConsumers + 1) * 128;      // the last warpgroup has the producer, one warp
constexpr int kConsumerThreads = kConsumers * 128;
constexpr int kMostSplits = 8;                            // blocks of a cluster
constexpr int kTileKeys = 2 * kPageTokens;                // of a step
constexpr int kStages = 2;                                // steps in the ring
constexpr int kTileBytes = kTileKeys * D * sizeof(half);  // of a step's keys; of its values as many
constexpr int kHalfPage = kPageTokens * 128;              // bytes of 64 dimensions of a page's keys
constexpr int kPageBytes = 2 * kHalfPage;                 // of a page's keys; of its values as many
constexpr int kQueryBytes = kAttendRows * D * sizeof(half);

struct Barriers {
  uint64_t keys_full[kStages], keys_empty[kStages];
  uint64_t values_full[kStages], values_empty[kStages];
  uint64_t last_values;  // the values of the last step have been copied, but not yet been cleaned
};

constexpr size_t kSharedBytes = kMatrixAlignment + kQueryBytes + kStages * 2 * kTileBytes + sizeof(Barriers);

#if defined(CHATGLM_WGMMA)

// Registers of a thread: 65,536 / 384 threads are 168 at the launch; the producer's go to the consumers.
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

/// Copies keys and values of steps [begin, end) of a tile's into the ring. By one warp.
__device__ __forceinline__ void produce(const PrefillProblem& p, const PrefillTile& tile, int32_t begin, int32_t end,
                                        uint8_t* keys, uint8_t* values, Barriers& barriers, int lane) {
  const int32_t pages = tile.last_position / kPageTokens + 1;
  int32_t page = 0;  // of lane l: the l-th of 32 entries of the page table
  for (int32_t i = begin; i < end; ++i) {
    const int stage = (i - begin) % kStages;
    const uint32_t emptied = ((i - begin) / kStages + 1) % 2;  // the first wait passes at once: the stage is empty
    uint8_t* const step_keys = keys + stage * kTileBytes;
    uint8_t* const step_values = values + stage * kTileBytes;
    if (i == begin || 2 * i % 32 == 0) {
      const int32_t entry = 2 * i / 32 * 32 + lane;
      page = entry < pages ? p.pages[entry] : 0;
    }
    const uint8_t* first = p.cache.head_page(p.layer, tile.group, __shfl_sync(0xffffffffu, page, 2 * i % 32));
    const uint8_t* second = p.cache.head_page(p.layer, tile.group, __shfl_sync(0xffffffffu, page, 2 * i % 32 + 1));
    const bool last = 2 * i + 2 >= pages, two = 2 * i + 1 < pages;
    const uint32_t bytes = two ? kTileBytes : kPageBytes;

    barrier_wait(&barriers.keys_empty[stage], emptied);
    if (!two) {  // a page of zeros in the place of the second one
      for (int k = lane * 16; k < kHalfPage; k += 32 * 16) {
        *reinterpret_cast<uint4*>(step_keys + kHalfPage + k) = make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4*>(step_keys + 3 * kHalfPage + k) = make_uint4(0, 0, 0, 0);
      }
      fence_shared_stores();
      __syncwarp();
    }
    if (lane == 0) {  // (2, 128 keys, 64 dimensions)
      barrier_arrive_expect(&barriers.keys_full[stage], bytes);
      copy_bulk(step_keys, first, kHalfPage, &barriers.keys_full[stage]);
      copy_bulk(step_keys + 2 * kHalfPage, first + kHalfPage, kHalfPage, &barriers.keys_full[stage]);
      if (two) {
        copy_bulk(step_keys + kHalfPage, second, kHalfPage, &barriers.keys_full[stage]);
        copy_bulk(step_keys + 3 * kHalfPage, second + kHalfPage, kHalfPage, &barriers.keys_full[stage]);
      }
    }

    barrier_wait(&barriers.values_empty[stage], emptied);
    uint64_t* const copied = last ? &barriers.last_values : &barriers.values_full[stage];
    if (lane == 0) {  // (2 pages, 128 dimensions, 64 tokens)
      barrier_arrive_expect(copied, bytes);
      copy_bulk(step_values, first + kPageBytes, kPageBytes, copied);
      if (two) copy_bulk(step_values + kPageBytes, second + kPageBytes, kPageBytes, copied);
    }
    if (last) {
      // Values behind the tile's last key become zeros: in the cache they may be NaN, which a weight of 0 would not
      // remove.
      barrier_wait(copied, 0);
      for (int row = lane; row < 2 * D; row += 32) {  // a dimension of the first page, then of the second
        const int visible = min(max(tile.last_position + 1 - i * kTileKeys - row / D * kPageTokens, 0), kPageTokens);
        for (int k = visible / 8; k < kPageTokens / 8; ++k) {
          uint4* const piece = reinterpret_cast<uint4*>(step_values + row * 128 + (k ^ (row % 8)) * 16);
          *piece = k * 8 < visible ? *piece & first_halves(visible - k * 8) : make_uint4(0, 0, 0, 0);
        }
      }
      fence_shared_stores();
      __syncwarp();
      if (lane == 0) barrier_arrive(&barriers.values_full[stage]);
    }
  }
}

/// Adds up the results of a cluster's blocks, which have the same rows and different keys, in the blocks' order; each
/// block writes its share of the dimensions. `results` (D / 8, consumer threads) and `states` (consumer threads) are
/// shared memory that is free by then.
__device__ __forceinline__ void merge(const PrefillProblem& p, const PrefillTile& tile, int32_t splits, int32_t rank,
                                      const float (&o)[D / 8][4], const OnlineSoftmax& softmax, float4* results,
                                      float4* states) {
  const int thread = threadIdx.x, lane = thread % 32;
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
    results[n * kConsumerThreads + thread] = make_float4(o[n][0], o[n][1], o[n][2], o[n][3]);
  }
  states[thread] = make_float4(softmax.largest[0], softmax.largest[1], softmax.sum[0], softmax.sum[1]);
  cluster_sync();

  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  float share[kMostSplits][2];
#pragma unroll
  for (int q = 0; q < kMostSplits; ++q) {
    if (q >= splits) break;
    const float4 state = load_remote(states + thread, q);
    largest[0] = fmaxf(largest[0], state.x), largest[1] = fmaxf(largest[1], state.y);
  }
#pragma unroll
  for (int q = 0; q < kMostSplits; ++q) {
    if (q >= splits) break;
    const float4 state = load_remote(states + thread, q);
    share[q][0] = exp2_fast(state.x - largest[0]), share[q][1] = exp2_fast(state.y - largest[1]);
    sum[0] += state.z * share[q][0], sum[1] += state.w * share[q][1];
  }

  const int32_t row = tile.row + thread / 32 * 16 + lane / 4;
  const int32_t share_of_tiles = D / 8 / splits;
#pragma unroll 1
  for (int32_t n = rank * share_of_tiles; n < (rank + 1) * share_of_tiles && n * 8 < p.cache.head_size; ++n) {
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int q = 0; q < kMostSplits; ++q) {
      if (q >= splits) break;
      const float4 part = load_remote(results + n * kConsumerThreads + thread, q);
      total.x += part.x * share[q][0], total.y += part.y * share[q][0];
      total.z += part.z * share[q][1], total.w += part.w * share[q][1];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row + r * 8 >= p.rows) continue;
      const int32_t token = p.first + (row + r * 8) / p.group_heads;
      const int32_t head = tile.group * p.group_heads + (row + r * 8) % p.group_heads;
      half* target = p.out.data + activation_index(token, head * p.cache.head_size + n * 8, p.out.stride);
      reinterpret_cast<half2*>(target)[lane % 4] =
          r == 0 ? to_half2(total.x / sum[0], total.y / sum[0]) : to_half2(total.z / sum[1], total.w / sum[1]);
    }
  }
  cluster_sync();  // a block that ends takes its shared memory along
}

/// The rows of one warpgroup: steps [begin, begin + steps) of their keys, which are all of them unless kSplit.
template <bool kSplit>
__device__ __forceinline__ void consume(const PrefillProblem& p, const PrefillTile& tile, int32_t begin, int32_t steps,
                                        uint8_t* queries, uint8_t* keys, uint8_t* values, Barriers& barriers,
                                        int warpgroup, int32_t splits, int32_t rank) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int32_t group_row = tile.row + warpgroup * kGroupRows;
  const int own_barrier = 1 + warpgroup;        // of this warpgroup alone
  const int turn = 1 + kConsumers + warpgroup;  // it is this one's turn to issue
  const int other_turn = 1 + kConsumers + (kConsumers - 1 - warpgroup);
  const int consumers_barrier = 1 + 2 * kConsumers;

#pragma unroll
  for (int i = thread; i < kGroupRows * D / 8; i += 128) {
    load_query<D, kGroupRows>(p, tile.group, group_row, i, queries);
  }
  fence_shared_stores();
  named_barrier_sync(own_barrier, 128);
  if (warpgroup == 1 && steps > 0) named_barrier_arrive(other_turn, kConsumerThreads);  // the first turn is the other's

  const int32_t first_position = PrefillTile::position(p, group_row);
  const uint64_t query_matrix = matrix_descriptor(queries);
  const uint64_t key_matrix = matrix_descriptor(keys), value_matrix = matrix_descriptor(values);

  float s[kTileKeys / 8][4] = {};  // scores, then weights
  float o[D / 8][4] = {};          // the result, but for its division
  uint32_t weights[kTileKeys / 16][4];
  OnlineSoftmax softmax;

  const auto issue_scores = [&](int stage) {
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const uint64_t a = advance(query_matrix, k / 4 * kGroupRows * 128 + k % 4 * 32);
      const uint64_t b = advance(key_matrix, stage * kTileBytes + k / 4 * kTileKeys * 128 + k % 4 * 32);
      wgmma(s, a, b, k > 0);
    }
    wgmma_commit();
  };
  const auto issue_values = [&](int stage) {
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
      wgmma(o, weights[k], advance(value_matrix, stage * kTileBytes + k / 4 * kPageBytes + k % 4 * 32), 1);
    }
    wgmma_commit();
  };
  const auto release = [&](uint64_t* barrier) {
    if (lane == 0) barrier_arrive(barrier);
  };
  const auto pass_turn = [&](int32_t i) {
    if (warpgroup == 0 || i + 1 < steps) named_barrier_arrive(other_turn, kConsumerThreads);
  };
  // Scores to weights, still in f32, of step begin + i.
  const auto weigh = [&](int32_t i, float(&scale)[2]) {
    i += begin;
    if (i * kTileKeys + kTileKeys - 1 > first_position) {
      hide_later_keys(p, group_row + warp * 16, i * kTileKeys, s, lane);
    }
    softmax.update<kSplit>(s, scale);
  };
  const auto round_weights = [&] {
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) weights_fragment(s, k, weights[k]);
  };

  if (!kSplit || steps > 0) {
    float scale[2];
    barrier_wait(&barriers.keys_full[0], 0);
    named_barrier_sync(turn, kConsumerThreads);
    issue_scores(0);
    pass_turn(0);
    wgmma_wait<0>();
    pin(s);
    release(&barriers.keys_empty[0]);
    weigh(0, scale);
    round_weights();

#pragma unroll 1
    for (int32_t i = 1; i < steps; ++i) {
      const int stage = i % kStages, before = (i - 1) % kStages;
      barrier_wait(&barriers.keys_full[stage], i / kStages % 2);
      barrier_wait(&barriers.values_full[before], (i - 1) / kStages % 2);
      named_barrier_sync(turn, kConsumerThreads);
      issue_scores(stage);
      issue_values(before);
      pass_turn(i);
      wgmma_wait<1>();
      pin(s);
      release(&barriers.keys_empty[stage]);
      weigh(i, scale);
      pin(s);
      wgmma_wait<0>();
      pin(o);
      pin(s);  // the registers of the weights are free only now
      release(&barriers.values_empty[before]);
      scale_rows(o, scale);
      round_weights();
    }

    barrier_wait(&barriers.values_full[(steps - 1) % kStages], (steps - 1) / kStages % 2);
    issue_values((steps - 1) % kStages);
    wgmma_wait<0>();
    pin(o);
  }

  softmax.finish();
  if constexpr (kSplit) {
    named_barrier_sync(consumers_barrier, kConsumerThreads);  // both are done with keys and values
    merge(p, tile, splits, rank, o, softmax, reinterpret_cast<float4*>(keys), reinterpret_cast<float4*>(values));
    return;
  }
  // The result takes the place of the queries, to be written in whole pieces.
  named_barrier_sync(own_barrier, 128);
  uint8_t* const image = queries + warp * 16 * 128;
  write_image<kGroupRows>(o, softmax, 0, image, lane);
  __syncwarp();
  store_result<D, kGroupRows, 16>(p, tile.group, group_row + warp * 16, image, lane);
}

#endif

/// `splits` blocks to a tile; kSplit: more than one.
template <bool kSplit>
__global__ void __launch_bounds__(kThreads, 1) attend_wgmma_kernel(const PrefillProblem p, const int32_t splits) {
#if defined(CHATGLM_WGMMA)
  extern __shared__ uint8_t shared[];
  uint8_t* const queries = align_matrix(shared);
  uint8_t* const keys = queries + kQueryBytes;
  uint8_t* const values = keys + kStages * kTileBytes;
  Barriers& barriers = *reinterpret_cast<Barriers*>(values + kStages * kTileBytes);

  let_next_kernel_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&barriers.keys_full[i], 1);
      barrier_init(&barriers.values_full[i], 1);
      barrier_init(&barriers.keys_empty[i], kConsumers * 4);  // warps
      barrier_init(&barriers.values_empty[i], kConsumers * 4);
    }
    barrier_init(&barriers.last_values, 1);
    barrier_init_fence();
  }
  const int32_t rank = kSplit ? blockIdx.x % splits : 0;
  const PrefillTile tile =
      kSplit ? PrefillTile(p, blockIdx.x / splits, gridDim.x / splits) : PrefillTile(p, blockIdx.x, gridDim.x);
  const int32_t steps = tile.last_position / kTileKeys + 1;
  const int32_t begin = kSplit ? steps * rank / splits : 0, end = kSplit ? steps * (rank + 1) / splits : steps;
  __syncthreads();
  wait_for_previous_kernel();

  const int warpgroup = warp / 4;
  if (warpgroup == kConsumers) {
    give_up_registers<kProducerRegisters>();
    if (warp == kConsumers * 4) produce(p, tile, begin, end, keys, values, barriers, lane);
    if constexpr (kSplit) cluster_sync(), cluster_sync();  // merge()'s
  } else {
    take_registers<kConsumerRegisters>();
    consume<kSplit>(p, tile, begin, end - begin, queries + warpgroup * (kQueryBytes / kConsumers), keys, values,
                    barriers, warpgroup, splits, rank);
  }
#endif
}

}  // namespace

bool attend_prefill_wgmma_fits(const Device& device, const KvCache& cache) {
  return device.wgmma && cache.type == KvType::f16 && cache.padded_head == D && device.shared_bytes >= kSharedBytes;
}

void attend_prefill_wgmma(const Launch& launch, const half* queries, int32_t heads, const Batch& batch,
                          const PrefillSegment& segment, const KvCache& cache, int32_t layer, const Activations& out) {
  if (segment.count <= 0) return;
  const PrefillProblem p = prefill_problem(queries, heads, batch, segment, cache, layer, out);
  // Clusters as large as still find a multiprocessor for every block, if there are a few steps for each.
  const int32_t blocks = prefill_tiles(p) * p.groups, steps = (segment.position + segment.count - 1) / kTileKeys + 1;
  int32_t splits = 1;
  while (splits < kMostSplits && 2 * splits * blocks <= launch.device->multiprocessors && steps >= 8 * splits) {
    splits *= 2;
  }
  if (splits == 1) {
    allow_shared_bytes(*launch.device, attend_wgmma_kernel<false>, kSharedBytes);
    launch_kernel(launch, attend_wgmma_kernel<false>, dim3(blocks), dim3(kThreads), kSharedBytes, p, 1);
  } else {
    allow_shared_bytes(*launch.device, attend_wgmma_kernel<true>, kSharedBytes);
    launch_kernel_in_clusters(launch, attend_wgmma_kernel<true>, dim3(blocks * splits), dim3(kThreads), kSharedBytes,
                              splits, p, splits);
  }
}

}  // namespace chatglm::cuda
