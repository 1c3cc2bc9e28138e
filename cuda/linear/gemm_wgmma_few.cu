#include "cuda/launch.cuh"
#include "cuda/linear/gemm_wgmma.cuh"
#include "cuda/linear/stream_k.cuh"

// A linear layer on 8 to 128 tokens with Hopper's tensor cores, for matrices with rows enough for every multiprocessor:
// the same product as gemm_wgmma.cu, for the case that its time is that of reading the weights once at full speed, so
// that the kernel's beginning and end must be short.
//
// Launch: a block of 384 threads a multiprocessor. A block takes 9 to 16 row tiles at a time, as many as make all
// shares the same, with all columns and all tokens: the up projection is 13 row tiles for each of 132 blocks, the
// logits are two times 16. So blocks have no sums to add up between them. Matrices with fewer rows would need such sums
// (split-K); dividing their columns among the blocks of a cluster was slower than stream_k.h (39 us and 25 us for the
// down projection), because clusters of blocks that take a multiprocessor each do not all find room at once.
//
// Bytes moved: the packed matrix, once, and for each block the activations, from L2. Bounds on an H100 (3.14 TB/s),
// q4_0, for a 6B model: 20.1 us for the up projection, 48 us for the logits. From 64 tokens on the tensor cores take
// about as long as the memory: 128 tokens of the up projection are 29 GFLOP, 36 us. Measured on an H100 at 8, 16, 32,
// 64 and 128 tokens:
//   up projection 32.4, 32.8, 35.0, 38.1,  56.9 us (gemm_wgmma.cu: 35.9, 34.4, 35.8, 41.0,  61.6)
//   logits        64.0, 61.5, 66.1, 76.4, 122.4 us (gemm_wgmma.cu: 70.5, 67.9, 70.4, 81.5, 115.3)
//
// Registers and shared memory leave room for a block of the norm's kernel beside this one (up to 64 tokens), so that
// each of the two kernels can start while the other one is still at work.
namespace chatglm::cuda {

namespace {

constexpr int kThreads = (kConsumerWarps + kProducerWarps) * 32;
constexpr int kMostRowTiles = 16;  // of a block at a time

/// What a block takes of its multiprocessor.
template <int kTokens>
struct Budget {
  static constexpr bool kLean = kTokens <= 64;
  static constexpr int kLaunchThreads = kLean ? 512 : kThreads;  // tells the compiler: 128 registers a thread, or 168
  static constexpr size_t kSharedBytes = (kLean ? 216 : 227) * 1024;
};

template <DataType type, int kTokens>
using FewShape = Shape<type, 2, kTokens, Budget<kTokens>::kSharedBytes>;

struct Parameters {
  PackedMatrix weights;
  Activations x;
  int32_t tokens = 0;
  LinearOutput output;
  int32_t tile = 0;   // row tiles that a block takes at a time
  int32_t tiles = 0;  // of so many row tiles, of the matrix
};

template <DataType type, int kTokens>
__global__ void __launch_bounds__(Budget<kTokens>::kLaunchThreads, 1)
    gemm_wgmma_few_kernel(const __grid_constant__ Parameters p) {
#if defined(CHATGLM_WGMMA)
  using S = FewShape<type, kTokens>;
  extern __shared__ uint8_t shared[];
  const Ring<S> ring(shared);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  let_next_kernel_start();
  if (threadIdx.x == 0) ring.init();
  __syncthreads();

  // This block's tiles are `first_tile`, and every tile_stride-th after it.
  const int32_t first_tile = static_cast<int32_t>(blockIdx.x), tile_stride = static_cast<int32_t>(gridDim.x);
  const int32_t chunks = p.weights.chunks;
  const auto rows_of = [&](int32_t tile) { return min(p.tile, p.weights.row_tiles - tile * p.tile); };

  if (warp >= kConsumerWarps) {
    give_up_registers<Budget<kTokens>::kLean ? 40 : 56>();
    // Each warp copies the weights of every fourth row tile, and one of the stage's chunks of activations, or none.
    const int producer = warp - kConsumerWarps;
    const uint64_t policy = l2_evict_first();
    const int64_t row_tile_bytes = static_cast<int64_t>(chunks) * block_bytes(type);
    RingPlace<S> place;
    int32_t tile = first_tile, chunk = 0;
    const auto has_activations = [&] { return producer < S::kChunks && chunk + producer < chunks; };
    const auto copy_weights = [&] {
      const int32_t row_tiles = (rows_of(tile) - producer + kProducerWarps - 1) / kProducerWarps;
      const uint32_t run = static_cast<uint32_t>(min(S::kChunks, chunks - chunk) * block_bytes(type));
      const uint8_t* const source =
          p.weights.data + (tile * p.tile + producer) * row_tile_bytes + chunk * block_bytes(type);
      if (elect_one()) {
        barrier_arrive_expect(ring.full + place.slot, row_tiles * run + (has_activations() ? S::kActivationBytes : 0));
        uint8_t* const target = ring.weights + place.slot * S::kWeightBytes + producer * S::kRunBytes;
#pragma unroll
        for (int i = 0; i < S::kProducerTiles; ++i) {
          if (i < row_tiles) {
            copy_bulk(target + i * kProducerWarps * S::kRunBytes, source + i * kProducerWarps * row_tile_bytes, run,
                      ring.full + place.slot, policy);
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
      if (chunk >= chunks) {
        chunk = 0;
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
    chunk = 0;
    for (int stage = 0; tile < p.tiles; ++stage) {
      if (stage >= started) {
        barrier_wait(ring.empty + place.slot, place.parity ^ 1);
        copy_weights();
      }
      copy_activations();
      next_step();
    }
  } else {
    take_registers<Budget<kTokens>::kLean ? 168 : 224>();
    wait_for_previous_kernel();
    Consumer<S> consumer(ring, lane);
    float(&d)[2][S::kOctets][4] = consumer.d;
    // Row tile i of a tile is the warp's that is i % 8; the first eight are its first subtile, the others its second.
    const int first = warp, second = warp + kConsumerWarps, first_of_group = warp / 4 * 4;
    for (int32_t tile = first_tile; tile < p.tiles; tile += tile_stride) {
      const int32_t rows = rows_of(tile);
      const bool two = kConsumerWarps + first_of_group < rows;  // of the warpgroup
      // A warp without a row tile multiplies the last one's, for its warpgroup's sake.
      if (first_of_group < rows) {
        consumer.multiply(chunks, min(first, rows - 1), min(second, rows - 1), two);
      } else {  // a warpgroup without a row tile still has to give back the ring's stages
        consumer.skip((chunks + S::kChunks - 1) / S::kChunks);
      }

      // Were the addresses of the results computed before the loop, they would take registers that the loop needs.
      LinearOutput output = p.output;
      int lane_now = lane;
      asm volatile("" : "+r"(lane_now), "+l"(output.y_stride));
      const auto store = [&](int i, float(&sum)[S::kOctets][4]) {
        store_tile(output, p.weights.rows, p.tokens, (tile * p.tile + i) * kTileRows, 0, lane_now,
                   reinterpret_cast<float(&)[1][S::kOctets][4]>(sum));
      };
      if (first < rows) store(first, d[0]);
      asm volatile("" : "+r"(lane_now), "+l"(output.y_stride));
      if (two && second < rows) store(second, d[1]);
    }
  }
#endif
}

template <DataType type, int kTokens>
void launch_tokens(const Launch& launch, Parameters& p) {
  using S = FewShape<type, kTokens>;
  const int32_t blocks = launch.device->multiprocessors, row_tiles = p.weights.row_tiles;
  const int32_t rounds = (row_tiles + blocks * kMostRowTiles - 1) / (blocks * kMostRowTiles);
  p.tile = (row_tiles + blocks * rounds - 1) / (blocks * rounds);
  p.tiles = (row_tiles + p.tile - 1) / p.tile;
  const auto kernel = gemm_wgmma_few_kernel<type, kTokens>;
  allow_shared_bytes(*launch.device, kernel, S::kSharedBytes);
  launch_kernel(launch, kernel, dim3(static_cast<uint32_t>(std::min(p.tiles, blocks))), dim3(kThreads), S::kSharedBytes,
                p);
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

bool gemm_wgmma_few_suits(const Device& device, const PackedMatrix& weights, int32_t tokens) {
  const int32_t most = device.multiprocessors * kMostRowTiles;  // in one round
  // No block has to take more than an eighth above the average. Above 64 tokens the end of a round, when the tensor
  // cores wait for the results to be written, costs too much to have two.
  return weights.row_tiles > most / 2 && tokens <= (weights.row_tiles <= most ? 128 : 64);
}

void gemm_wgmma_few(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
                    const LinearOutput& output) {
  Parameters p = {weights, x, tokens, output};
  with_weight_type(weights.type, [&]<DataType type>() { launch_type<type>(launch, p); });
}

}  // namespace chatglm::cuda
