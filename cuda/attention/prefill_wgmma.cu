#include "cuda/attention/prefill.cuh"

// Causal attention of a prompt on Hopper's tensor cores, in the manner of FlashAttention-3 (Shah et al. 2024,
// arXiv:2407.08608): f16 cache, heads of 65 to 128. attention_prefill.cu says what is computed.
//
// Launch: ceil(tokens * group_heads / 128) * groups blocks of two consumer warpgroups with 64 rows (token, head) each
// and a producer warp; one block a multiprocessor. The producer copies pages, two at a time, into a ring in shared
// memory (cp.async.bulk: a page's keys and values lie in memory as wgmma wants them). A consumer multiplies its queries
// by 128 keys at once, and while the product of the weights and the values before is under way it computes the next
// weights. The two warpgroups take turns in issuing products, so that the tensor cores have one's while the other is at
// its softmax.
//
// Few tokens after many (the next turn of a chat) give few blocks with many keys each. Then clusters of up to eight
// blocks share the keys of a tile and merge their results through each other's shared memory.
//
// Operations: 4 * 128 per row and key seen. A 6B layer (32 heads), 2,048 tokens after 6,144: 4 * 128 * 32 * 2,048 *
// 7,168.5 = 240.5 GFLOP: bound 0.304 ms at 790 TFLOP/s. A block and 128 keys: 2,048 cycles of tensor cores, 1,024 of
// exponentials (16 a cycle), ~600 of other f32 arithmetic. Bytes from L2: 64 KB per 8.4 MFLOP, 6.2 TB/s at the bound,
// 3.9 TB/s as expected; from DRAM 8.4 MB. Expected: 0.48 ms, 500 TFLOP/s.
// Measured: 2,048 tokens after 6,144 0.394 ms, 611 TFLOP/s (77% of 790); 2,048 at the beginning 87 us, 50%.
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

constexpr size_t kAlignment = 1024;  // of wgmma's swizzled operands
constexpr size_t kSharedBytes = kAlignment + kQueryBytes + kStages * 2 * kTileBytes + sizeof(Barriers);

#if defined(CHATGLM_WGMMA)

/// Waits for `threads` threads that sync or arrive at a named barrier (0 is __syncthreads').
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Registers of a thread: 65,536 / 384 threads are 168 at the launch; the producer's go to the consumers.
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
template <int count>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

/// Ordinary stores to shared memory become visible to the tensor cores and the copy engine.
__device__ __forceinline__ void fence_shared_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Before the first wgmma, and whenever registers that the next one uses were written otherwise.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
/// What a wgmma under way writes must not be moved across its fence and its wait.
template <int kTiles>
__device__ __forceinline__ void pin(float (&d)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[j][e])::"memory");
  }
}

/// A matrix of shared memory whose rows are 128 bytes of the dimension that is summed over, in groups of eight rows,
/// the pieces of 16 bytes swapped about by row % 8 (PTX ISA, "Matrix descriptor": 128-byte swizzle, stride 1,024
/// bytes).
__device__ __forceinline__ uint64_t matrix_descriptor(const void* p) {
  return static_cast<uint64_t>((shared_address(p) & 0x3ffff) >> 4) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}
/// Descriptors count in 16 bytes.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes / 16);
}

#define CHATGLM_REGISTERS_64                                                                                     \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"  \
  "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
  "%56,%57,%58,%59,%60,%61,%62,%63}"
#define CHATGLM_TILE(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define CHATGLM_TILES_16                                                                                      \
  CHATGLM_TILE(0), CHATGLM_TILE(1), CHATGLM_TILE(2), CHATGLM_TILE(3), CHATGLM_TILE(4), CHATGLM_TILE(5),       \
      CHATGLM_TILE(6), CHATGLM_TILE(7), CHATGLM_TILE(8), CHATGLM_TILE(9), CHATGLM_TILE(10), CHATGLM_TILE(11), \
      CHATGLM_TILE(12), CHATGLM_TILE(13), CHATGLM_TILE(14), CHATGLM_TILE(15)

/// d (64 x 128) = a (64 x 16) b (16 x 128), plus d if `accumulate`; both from shared memory.
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[16][4], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred accumulate;\n"
      "setp.ne.b32 accumulate, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " CHATGLM_REGISTERS_64
      ", %64, %65, accumulate, 1, 1, 0, 0;\n"
      "}\n"
      : CHATGLM_TILES_16
      : "l"(a), "l"(b), "r"(accumulate));
}
/// d += a b; a from registers.
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " CHATGLM_REGISTERS_64
               ", {%64,%65,%66,%67}, %68, 1, 1, 1, 0;\n"
               : CHATGLM_TILES_16
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef CHATGLM_TILES_16
#undef CHATGLM_TILE
#undef CHATGLM_REGISTERS_64

/// Copies keys and values of steps [begin, end) of a tile's into the ring. By one warp.
__device__ __forceinline__ void produce(const PrefillProblem& p, const PrefillTile& tile, int32_t begin, int32_t end,
                                        uint8_t* keys, uint8_t* values, Barriers& barriers, int lane) {
  const int32_t pages = tile.last_position / kPageTokens + 1;
  int32_t page = 0;  // of lane l: the l-th of 32 entries of the page table
  for (int32_t i = begin; i < end; ++i) {
    const int stage = (i - begin) % kStages;
    const uint32_t emptied = ((i - begin) / kStages + 1) % 2;  // the first time nobody has to empty it
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
      // Behind the last key of all there may be anything, even NaN, for which a weight of 0 is no remedy: zeros.
      barrier_wait(copied, 0);
      for (int row = lane; row < 2 * D; row += 32) {  // a dimension of the first page, then of the second
        const int visible = min(max(tile.last_position + 1 - i * kTileKeys - row / D * kPageTokens, 0), kPageTokens);
        for (int k = visible / 8; k < kPageTokens / 8; ++k) {
          uint4* const piece = reinterpret_cast<uint4*>(step_values + row * 128 + (k ^ (row % 8)) * 16);
          *piece = k * 8 < visible ? keep_tokens(*piece, k * 8, visible) : make_uint4(0, 0, 0, 0);
        }
      }
      fence_shared_stores();
      __syncwarp();
      if (lane == 0) barrier_arrive(&barriers.values_full[stage]);
    }
  }
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
/// What lies in the shared memory of a block of the cluster where `own` does in this one's.
__device__ __forceinline__ float4 load_remote(const float4* own, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(rank));
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

/// Adds up what the blocks of a cluster have found for the same rows, each for other keys, in the blocks' order; each
/// block writes its share of the dimensions. `results` (D / 8, consumer threads) and `states` (consumer threads) are in
/// shared memory that no one uses any more.
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

/// The rows of one warpgroup: steps [begin, begin + steps) of their keys. `share` of the cluster's shares, if kSplit.
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

  // (2, 64 rows, 64 dimensions)
#pragma unroll
  for (int i = thread; i < kGroupRows * D / 8; i += 128) {
    const int row = i / (D / 8), piece = i % (D / 8);
    *reinterpret_cast<uint4*>(queries + (piece / 8 * kGroupRows + row) * 128 + ((piece % 8) ^ (row % 8)) * 16) =
        load_query<D>(p, tile.group, group_row + row, piece);
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
      wgmma_m64n128k16(s, a, b, k > 0);
    }
    wgmma_commit();
  };
  const auto issue_values = [&](int stage) {
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
      wgmma_m64n128k16(o, weights[k], advance(value_matrix, stage * kTileBytes + k / 4 * kPageBytes + k % 4 * 32));
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
  // The accumulators of two tiles of eight keys are the A fragment of sixteen.
  const auto round_weights = [&] {
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        weights[k][e] = bits(__floats2half2_rn(s[2 * k + e / 2][e % 2 * 2], s[2 * k + e / 2][e % 2 * 2 + 1]));
      }
    }
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
      // Most steps do not change the largest score. NaN is not equal to 1.
      if (__any_sync(0xffffffffu, !(scale[0] == 1.0f && scale[1] == 1.0f))) {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) o[n][e] *= scale[e / 2];
        }
      }
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
  const float inverse[2] = {1.0f / softmax.sum[0], 1.0f / softmax.sum[1]};
  uint8_t* const image = queries + warp * 16 * 128;
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = r * 8 + lane / 4;
      *reinterpret_cast<half2*>(image + (n / 8 * kGroupRows + row) * 128 + ((n % 8) ^ (row % 8)) * 16 + lane % 4 * 4) =
          to_half2(o[n][2 * r] * inverse[r], o[n][2 * r + 1] * inverse[r]);
    }
  }
  __syncwarp();
  store_result<D, kGroupRows, 16>(p, tile.group, group_row + warp * 16, image, lane);
}

#endif

/// `splits` blocks to a tile; kSplit: more than one.
template <bool kSplit>
__global__ void __launch_bounds__(kThreads, 1) attend_wgmma_kernel(const PrefillProblem p, const int32_t splits) {
#if defined(CHATGLM_WGMMA)
  extern __shared__ uint8_t shared[];
  uint8_t* const queries = shared + (kAlignment - shared_address(shared) % kAlignment) % kAlignment;
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
    allow_shared_bytes(attend_wgmma_kernel<false>, kSharedBytes);
    launch_kernel(launch, attend_wgmma_kernel<false>, dim3(blocks), dim3(kThreads), kSharedBytes, p, 1);
  } else {
    allow_shared_bytes(attend_wgmma_kernel<true>, kSharedBytes);
    launch_kernel_in_clusters(launch, attend_wgmma_kernel<true>, dim3(blocks * splits), dim3(kThreads), kSharedBytes,
                              splits, p, splits);
  }
}

}  // namespace chatglm::cuda
