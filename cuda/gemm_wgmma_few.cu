#include "cuda/gemm_wgmma.cuh"
#include "cuda/stream_k.cuh"

// A linear layer on 8 to 128 tokens with Hopper's tensor cores: the same product as gemm_wgmma.cu, where what counts is
// to read the weights once, at full speed, with little before and after.
//
// Launch: clusters of 1, 2 or 4 blocks of 384 threads, a block a multiprocessor. A cluster takes up to 16 row tiles,
// as many as make all clusters the same, and all tokens; its blocks divide the columns among them. They leave their
// sums in their own shared memory, and each adds up a part of the results from all of them, in the order of the blocks:
// no trip through global memory, and no block that waits for a turn. Without a division of columns (the up projection:
// 13 row tiles for each of 132 multiprocessors) nothing is added up at all.
//
// Bytes moved: the packed matrix, once, and for each row block the activations, from L2. Bounds on an H100, q4_0, for
// ChatGLM-6B: 3.4 us for QKV, 3.0 us for the attention's output, 20.6 us for the up, 10.3 us for the down projection,
// 49 us for the logits. From 64 tokens on the tensor cores take about as long as the memory: 128 tokens of the up
// projection are 29 GFLOP, 36 us. Expected: 3 us more than the bound, for what is exposed of the first bytes' latency
// and of the adding up.
//
// Registers and shared memory leave room for a block of the norm's kernel beside this one (up to 64 tokens), so that
// either starts while the other one is still at work.
namespace chatglm::cuda {

namespace {

constexpr int kThreads = (kConsumerWarps + kProducerWarps) * 32;
constexpr int kMostRowTiles = 16;  // of a block
constexpr int kMostCluster = 4;

/// What a block takes of its multiprocessor.
template <int kTokens>
struct Budget {
  static constexpr bool kLean = kTokens <= 64;
  static constexpr int kLaunchThreads = kLean ? 512 : kThreads;  // tells the compiler: 128 registers a thread, or 168
  static constexpr size_t kSharedBytes = (kLean ? 216 : 227) * 1024;
};

template <DataType type, int kSubtiles, int kTokens>
using FewShape = Shape<type, kSubtiles, kTokens, Budget<kTokens>::kSharedBytes>;

struct Parameters {
  PackedMatrix weights;
  Activations x;
  int32_t tokens = 0;
  LinearOutput output;
  int32_t tile = 0;     // row tiles of a cluster
  int32_t tiles = 0;    // of the matrix
  int32_t cluster = 1;  // blocks, that divide the columns; if more than one, a cluster has one tile at most
};

#if defined(CHATGLM_WGMMA)

__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

/// 16 bytes at the place of `local` in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ float4 load_from_block(uint32_t local, int rank) {
  float4 v;
  asm volatile(
      "{\n"
      ".reg .u32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n"
      "}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(local), "r"(rank)
      : "memory");
  return v;
}

#endif

template <DataType type, int kSubtiles, int kTokens>
__global__ void __launch_bounds__(Budget<kTokens>::kLaunchThreads, 1)
    gemm_wgmma_few_kernel(const __grid_constant__ Parameters p) {
#if defined(CHATGLM_WGMMA)
  using S = FewShape<type, kSubtiles, kTokens>;
  extern __shared__ uint8_t shared[];
  const Ring<S> ring(shared);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  let_next_kernel_start();
  if (threadIdx.x == 0) ring.init();
  __syncthreads();

  // This block's tiles are first_tile + i * tile_stride, its chunks of each [begin, end).
  const int32_t cluster = p.cluster, rank = static_cast<int32_t>(blockIdx.x) % cluster;
  const int32_t first_tile = static_cast<int32_t>(blockIdx.x) / cluster;
  const int32_t tile_stride = static_cast<int32_t>(gridDim.x) / cluster;
  const int32_t steps = (p.weights.chunks + S::kChunks - 1) / S::kChunks;
  const int32_t begin = steps * rank / cluster * S::kChunks;
  const int32_t end = min(steps * (rank + 1) / cluster * S::kChunks, p.weights.chunks);
  const auto rows_of = [&](int32_t tile) { return min(p.tile, p.weights.row_tiles - tile * p.tile); };

  if (warp >= kConsumerWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Budget<kTokens>::kLean ? 40 : 56));
    // Each warp copies the weights of every fourth row tile, and one of the stage's chunks of activations, or none.
    const int producer = warp - kConsumerWarps;
    const uint64_t policy = weight_policy(true);
    const int64_t row_tile_bytes = static_cast<int64_t>(p.weights.chunks) * block_bytes(type);
    RingPlace<S> place;
    int32_t tile = first_tile, chunk = begin;
    const auto has_activations = [&] { return producer < S::kChunks && chunk + producer < end; };
    const auto copy_weights = [&] {
      const int32_t row_tiles = (rows_of(tile) - producer + kProducerWarps - 1) / kProducerWarps;
      const uint32_t run = static_cast<uint32_t>(min(S::kChunks, end - chunk) * block_bytes(type));
      const uint8_t* const source =
          p.weights.data + (tile * p.tile + producer) * row_tile_bytes + chunk * block_bytes(type);
      if (elect_one()) {
        barrier_arrive_expect(ring.full + place.slot, row_tiles * run + (has_activations() ? S::kActivationBytes : 0));
        uint8_t* const target = ring.weights + place.slot * S::kWeightBytes + producer * S::kRunBytes;
#pragma unroll
        for (int i = 0; i < S::kProducerTiles; ++i) {
          if (i < row_tiles) {
            copy_bulk_hinted(target + i * kProducerWarps * S::kRunBytes, source + i * kProducerWarps * row_tile_bytes,
                             run, ring.full + place.slot, policy);
          }
        }
      }
      __syncwarp();
    };
    const auto copy_activations = [&] {
      if (has_activations() && elect_one()) {
        copy_bulk(ring.activations + (place.slot * S::kChunks + producer) * S::kActivationBytes,
                  p.x.data + static_cast<int64_t>(chunk + producer) * p.x.stride * kChunkColumns, S::kActivationBytes,
                  ring.full + place.slot);
      }
      __syncwarp();
    };
    const auto next_step = [&] {
      chunk += S::kChunks;
      if (chunk >= end) {
        chunk = begin;
        tile += tile_stride;
      }
      place.next();
    };

    // The first stages' weights are fetched while the kernel before is still at work; the activations are its results.
    int started = 0;
    for (; started < S::kStages && tile < p.tiles; ++started) {
      copy_weights();
      next_step();
    }
    wait_for_previous_kernel();
    place = {};
    tile = first_tile;
    chunk = begin;
    for (int stage = 0; tile < p.tiles; ++stage) {
      if (stage >= started) {
        barrier_wait(ring.empty + place.slot, place.parity ^ 1);
        copy_weights();
      }
      copy_activations();
      next_step();
    }
    if (cluster > 1) {
      cluster_arrive();
      cluster_wait();
      cluster_arrive();
      cluster_wait();
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Budget<kTokens>::kLean ? 168 : 224));
    wait_for_previous_kernel();
    Consumer<S> consumer(ring, lane);
    float(&d)[2][S::kOctets][4] = consumer.d;
    // Row tile i of a tile is the warp's that is i % 8; the first eight are its first subtile, the others its second.
    const int first = warp, second = warp + kConsumerWarps, first_of_group = warp / 4 * 4;
    for (int32_t tile = first_tile; tile < p.tiles; tile += tile_stride) {
      const int32_t rows = rows_of(tile);
      const bool two = kSubtiles == 2 && kConsumerWarps + first_of_group < rows;  // of the warpgroup
      // A warp without a row tile multiplies the last one's, for its warpgroup's sake.
      if (first_of_group < rows) {
        consumer.multiply(end - begin, min(first, rows - 1), min(second, rows - 1), two);
      } else {
        consumer.skip((end - begin + S::kChunks - 1) / S::kChunks);
      }

      // Were the addresses of the results computed before the loop, they would take the registers that it needs.
      LinearOutput output = p.output;
      int lane_now = lane;
      asm volatile("" : "+r"(lane_now), "+l"(output.y_stride));
      if (cluster == 1) {
        const auto store = [&](int i, float(&sum)[S::kOctets][4]) {
          store_tile(output, p.weights.rows, p.tokens, (tile * p.tile + i) * kTileRows, 0, lane_now,
                     reinterpret_cast<float(&)[1][S::kOctets][4]>(sum));
        };
        if (first < rows) store(first, d[0]);
        asm volatile("" : "+r"(lane_now), "+l"(output.y_stride));
        if (two && second < rows) store(second, d[1]);
        continue;
      }

      // The ring is used up, and becomes (row tiles, octets, 32 lanes) of four sums.
      asm volatile("bar.sync 1, %0;" ::"n"(kConsumerWarps * 32) : "memory");
      auto* const sums = reinterpret_cast<float4*>(ring.activations);
      const auto leave = [&](int i, const float(&sum)[S::kOctets][4]) {
#pragma unroll
        for (int n = 0; n < S::kOctets; ++n) {
          sums[(i * S::kOctets + n) * 32 + lane] = make_float4(sum[n][0], sum[n][1], sum[n][2], sum[n][3]);
        }
      };
      if (first < rows) leave(first, d[0]);
      if (two && second < rows) leave(second, d[1]);
      cluster_arrive();

      // Unit u is octet u % kOctets of row tile u / kOctets. Each warp of the cluster has every 8 cluster-th one.
      constexpr int kBatch = 2;
      const int32_t units = rows * S::kOctets, unit_stride = kConsumerWarps * cluster;
      const int32_t first_unit = rank * kConsumerWarps + warp;
      const bool add = output.epilogue == Epilogue::add;
      if (add) output.epilogue = Epilogue::store;
      const int g = lane_now / 4, t = lane_now % 4;
      float old[kBatch][4];
      const auto load_old = [&](int32_t from) {
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          const int32_t unit = from + k * unit_stride;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int32_t row = (tile * p.tile + unit / S::kOctets) * kTileRows + g + j / 2 * 8;
            const int32_t token = unit % S::kOctets * 8 + 2 * t + j % 2;
            old[k][j] = add && unit < units && row < p.weights.rows && token < p.tokens
                            ? output.y[token * output.y_stride + row]
                            : 0.0f;
          }
        }
      };
      load_old(first_unit);
      cluster_wait();
      for (int32_t from = first_unit; from < units; from += kBatch * unit_stride) {
        float4 parts[kBatch][kMostCluster];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
#pragma unroll
          for (int r = 0; r < kMostCluster; ++r) {
            const int32_t unit = from + k * unit_stride;
            if (unit < units && r < cluster) parts[k][r] = load_from_block(shared_address(sums + unit * 32 + lane), r);
          }
        }
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          const int32_t unit = from + k * unit_stride;
          if (unit >= units) break;
          float sum[1][1][4] = {};
#pragma unroll
          for (int r = 0; r < kMostCluster; ++r) {
            if (r >= cluster) break;
            sum[0][0][0] += parts[k][r].x, sum[0][0][1] += parts[k][r].y;
            sum[0][0][2] += parts[k][r].z, sum[0][0][3] += parts[k][r].w;
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[0][0][j] += old[k][j];
          store_tile(output, p.weights.rows, p.tokens, (tile * p.tile + unit / S::kOctets) * kTileRows,
                     unit % S::kOctets * 8, lane_now, sum);
        }
        load_old(from + kBatch * unit_stride);
      }
      cluster_arrive();  // the others may still be reading this block's sums
      cluster_wait();
    }
  }
#endif
}

/// How many row tiles a cluster takes, and of how many blocks it is.
struct Plan {
  int32_t tile = 1, cluster = 1;
};

/// The plan with the shortest way for a block: bytes that it takes in, and some for what a cluster has to add up.
Plan plan_of(const Device& device, const PackedMatrix& weights, int32_t tokens, int32_t chunks_a_step) {
  constexpr int64_t kAddingUp = 24 * 1024;  // bytes that a multiprocessor could have read meanwhile: 1 us
  const int32_t steps = (weights.chunks + chunks_a_step - 1) / chunks_a_step;
  Plan best;
  int64_t least = 0;
  for (int32_t cluster = 1; cluster <= std::min(kMostCluster, steps); cluster *= 2) {
    // A GPU's multiprocessors come in groups of 16 or 18, some of them less; a cluster lies within one.
    const int32_t clusters = device.multiprocessors / 16 * 16 / cluster;
    if (clusters == 0) break;
    int32_t tile = (weights.row_tiles + clusters - 1) / clusters;
    int32_t rounds = 1;
    if (cluster == 1) {
      const int32_t blocks = device.multiprocessors;
      rounds = (weights.row_tiles + blocks * kMostRowTiles - 1) / (blocks * kMostRowTiles);
      tile = (weights.row_tiles + blocks * rounds - 1) / (blocks * rounds);
    }
    if (tile > kMostRowTiles) continue;
    const int64_t chunks = (steps + cluster - 1) / cluster * chunks_a_step;
    const int64_t bytes = rounds * chunks * (tile * block_bytes(weights.type) + tokens * kChunkColumns * 2) +
                          (cluster > 1 ? kAddingUp : 0);
    if (least == 0 || bytes < least) {
      least = bytes;
      best = {tile, cluster};
    }
  }
  return best;
}

template <DataType type, int kSubtiles, int kTokens>
void launch_shape(const Launch& launch, Parameters& p) {
  using S = FewShape<type, kSubtiles, kTokens>;
  const auto kernel = gemm_wgmma_few_kernel<type, kSubtiles, kTokens>;
  allow_shared_bytes(kernel, S::kSharedBytes);
  const int32_t clusters = p.cluster > 1 ? p.tiles : std::min(p.tiles, launch.device->multiprocessors);
  launch_kernel_in_clusters(launch, kernel, dim3(static_cast<uint32_t>(clusters * p.cluster)), dim3(kThreads),
                            S::kSharedBytes, p.cluster, p);
}

template <DataType type, int kTokens>
void launch_tokens(const Launch& launch, Parameters& p) {
  const Plan plan = plan_of(*launch.device, p.weights, kTokens, FewShape<type, 1, kTokens>::kChunks);
  p.tile = plan.tile;
  p.tiles = (p.weights.row_tiles + plan.tile - 1) / plan.tile;
  p.cluster = plan.cluster;
  if (plan.tile > kConsumerWarps) {
    launch_shape<type, 2, kTokens>(launch, p);
  } else {
    launch_shape<type, 1, kTokens>(launch, p);
  }
}

template <DataType type>
void launch_type(const Launch& launch, Parameters& p) {
  if (p.tokens <= 16) {
    launch_tokens<type, 16>(launch, p);
  } else if (p.tokens <= 32) {
    launch_tokens<type, 32>(launch, p);
  } else if (p.tokens <= 64) {
    launch_tokens<type, 64>(launch, p);
  } else {
    launch_tokens<type, 128>(launch, p);
  }
}

}  // namespace

void gemm_wgmma_few(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
                    const LinearOutput& output) {
  Parameters p;
  p.weights = weights;
  p.x = x;
  p.tokens = tokens;
  p.output = output;
  switch (weights.type) {
    case DataType::q4_0: return launch_type<DataType::q4_0>(launch, p);
    case DataType::q8_0: return launch_type<DataType::q8_0>(launch, p);
    case DataType::f16: return launch_type<DataType::f16>(launch, p);
    default: throw Error("ERR_INTERNAL", "gemm: a type that weights are never packed to");
  }
}

}  // namespace chatglm::cuda
