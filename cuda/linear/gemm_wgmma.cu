#include "cuda/launch.cuh"
#include "cuda/linear/gemm_wgmma.cuh"
#include "cuda/linear/stream_k.cuh"

// A linear layer, y = x . W^T, with Hopper's tensor cores (wgmma, sm_90a). gemm_wgmma_few.cu has the kernel for at most
// 128 tokens and many rows.
//
// Computes the transpose, D (rows, tokens) = W . X^T: A, the weights, go from shared memory through registers, where
// they become f16 numbers, to the tensor cores; B, the activations, lie in shared memory as the tensor cores read them
// (layout.h), so that a tile of one chunk of columns is a single bulk copy.
//
// Launch: at most one block a multiprocessor, 384 threads: two warpgroups that multiply, each with half of the block's
// 128 or 256 rows, and one that starts copies into a ring of 4 to 16 stages (mbarriers full and empty), so that about
// 200 KB are on their way or ready; the third warpgroup's registers go to the other two (warp specialization). Its four
// warps share the starting of copies, a thread of each, so that the kernel does not wait for copies to be started. A
// tile is the block's rows by 128 tokens, or by 64 if there are at most 64; stream_k.h deals out the tiles. While the
// tensor cores work on one set of A registers, the warps fill the other set.
//
// Bounds on an H100 (3.14 TB/s plain read, about 790 TFLOP/s dense f16): 2 * rows * columns * tokens
// operations; up projection of a 6B model, 27392 x 4096 on 2048 tokens: 460 GFLOP, 0.58 ms. From L2 a tile of 256 x 128
// takes 25.6 KB for each 64 columns (q4_0), 1024 cycles of the tensor cores: 33 GB/s a multiprocessor at 790 TFLOP/s.
// Decoding the weights takes 220 of the 1024 issue slots of a warp scheduler, the epilogue about 5% of a tile's time.
// Expected: 550 to 600 TFLOP/s, 0.8 ms. Measured at 64 and 128 tokens, where the weights' bytes still matter: QKV 14.6
// and 19.5 us, the attention's output 15.7 and 22.4, the down projection 27.1 and 37.2, the logits at 128 tokens 115.
// Measured: up projection of 2,048 tokens 0.74 to 0.77 ms, 600 to 624 TFLOP/s (76 to 79%); down projection 0.36 ms.
namespace chatglm::cuda {

namespace {

constexpr int kThreads = (kConsumerWarps + kProducerWarps) * 32;
constexpr size_t kSharedLimit = 227 * 1024;  // of a block on sm_90

template <DataType type, int kSubtiles, int kTokens>
using TileShape = Shape<type, kSubtiles, kTokens, kSharedLimit>;

struct Parameters {
  PackedMatrix weights;
  Activations x;
  int32_t tokens = 0;
  LinearOutput output;
  GemmWorkspace workspace;
  StreamK split;
  TileGrid grid;
};

template <DataType type, int kSubtiles, int kTokens>
__global__ void __launch_bounds__(kThreads, 1) gemm_wgmma_kernel(const __grid_constant__ Parameters p) {
#if defined(CHATGLM_WGMMA)
  using S = TileShape<type, kSubtiles, kTokens>;
  extern __shared__ uint8_t shared[];
  const Ring<S> ring(shared);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  let_next_kernel_start();
  if (threadIdx.x == 0) ring.init();
  __syncthreads();

  StreamKBlock work(p.split, static_cast<int32_t>(blockIdx.x));
  StreamKSegment segment;

  if (warp >= kConsumerWarps) {
    give_up_registers<56>();
    // Each warp copies the weights of kProducerTiles row tiles, and one of the stage's chunks of activations, or none.
    RingPlace<S> place;
    const int producer = warp - kConsumerWarps;
    const uint64_t policy = p.grid.token_blocks == 1 ? l2_evict_first() : l2_evict_normal();
    const uint8_t* weight_source = nullptr;
    const half* activation_source = nullptr;
    const int64_t row_tile_bytes = static_cast<int64_t>(p.weights.chunks) * block_bytes(type);
    int32_t row_tiles = 0, chunk = 0;
    const auto locate = [&] {
      int32_t row_block, token_block;
      p.grid.place(segment.tile, row_block, token_block);
      const int32_t row_tile = row_block * S::kRowTiles + producer * S::kProducerTiles;
      row_tiles = max(0, min(S::kProducerTiles, p.weights.row_tiles - row_tile));
      chunk = segment.first * S::kChunks;
      weight_source = p.weights.data + row_tile * row_tile_bytes + chunk * block_bytes(type);
      activation_source =
          p.x.data + (static_cast<int64_t>(chunk + producer) * p.x.stride + token_block * kTokens) * kChunkColumns;
    };
    const auto has_activations = [&] { return producer < S::kChunks && chunk + producer < p.weights.chunks; };
    const auto copy_weights = [&] {
      const uint32_t run = static_cast<uint32_t>(min(S::kChunks, p.weights.chunks - chunk) * block_bytes(type));
      if (elect_one()) {
        barrier_arrive_expect(ring.full + place.slot, row_tiles * run + (has_activations() ? S::kActivationBytes : 0));
        uint8_t* const target =
            ring.weights + place.slot * S::kWeightBytes + producer * (S::kProducerTiles * S::kRunBytes);
#pragma unroll
        for (int i = 0; i < S::kProducerTiles; ++i) {
          if (i < row_tiles) {
            copy_bulk(target + i * S::kRunBytes, weight_source + i * row_tile_bytes, run, ring.full + place.slot,
                      policy);
          }
        }
      }
      __syncwarp();
    };
    const auto copy_activations = [&] {
      if (has_activations() && elect_one()) {
        copy_bulk(ring.activations + (place.slot * S::kChunks + producer) * S::kActivationBytes, activation_source,
                  S::kActivationBytes, ring.full + place.slot);
      }
      __syncwarp();
    };
    const auto next_step = [&] {
      chunk += S::kChunks;
      weight_source += S::kRunBytes;
      activation_source += static_cast<int64_t>(S::kChunks) * p.x.stride * kChunkColumns;
      place.next();
    };

    // The first stages' weights are fetched while the kernel before is still at work; the activations are its results.
    StreamKBlock early = work;
    int started = 0;
    while (started < S::kStages && early.next(segment)) {
      locate();
      for (int step = 0; step < segment.count && started < S::kStages; ++step, ++started) {
        copy_weights();
        next_step();
      }
    }
    wait_for_previous_kernel();
    place = {};
    int stage = 0;
    while (work.next(segment)) {
      locate();
      for (int step = 0; step < segment.count; ++step) {
        if (stage < started) {
          ++stage;
        } else {
          barrier_wait(ring.empty + place.slot, place.parity ^ 1);
          copy_weights();
        }
        copy_activations();
        next_step();
      }
    }
  } else {
    take_registers<224>();
    wait_for_previous_kernel();
    Consumer<S> consumer(ring, lane);
    while (work.next(segment)) {
      int32_t row_block, token_block;
      p.grid.place(segment.tile, row_block, token_block);
      const int first = warp * kSubtiles;
      const int32_t row_tile = row_block * S::kRowTiles + first;
      if (row_tile >= p.weights.row_tiles) {  // the last tile may be half a tile, without rows for the second warpgroup
        consumer.skip(segment.count);
        continue;
      }
      const int32_t chunks = min(segment.count * S::kChunks, p.weights.chunks - segment.first * S::kChunks);
      consumer.multiply(chunks, first, first + kSubtiles - 1, kSubtiles == 2);
      float(&sum)[kSubtiles][S::kOctets][4] = reinterpret_cast<float(&)[kSubtiles][S::kOctets][4]>(consumer.d);
      if (stream_k_finish(p.split, segment, p.workspace, warp, kConsumerWarps, lane, sum)) {
        store_tile(p.output, p.weights.rows, p.tokens, row_tile * kTileRows, token_block * kTokens, lane, sum);
      }
    }
  }
#endif
}

template <DataType type, int kSubtiles, int kTokens>
void launch_shape(const Launch& launch, Parameters& p) {
  using S = TileShape<type, kSubtiles, kTokens>;
  p.grid.row_blocks = (p.weights.row_tiles + S::kRowTiles - 1) / S::kRowTiles;
  p.grid.token_blocks = (p.tokens + kTokens - 1) / kTokens;
  const int32_t steps = (p.weights.chunks + S::kChunks - 1) / S::kChunks;
  // A range of fewer steps takes less time than the adding up of its parts.
  constexpr int32_t kLeastSteps = kTokens < 128 ? 4 / S::kChunks : 8;
  p.split = split_stream_k(p.grid.row_blocks * p.grid.token_blocks, steps, launch.device->multiprocessors, kLeastSteps);
  const auto kernel = gemm_wgmma_kernel<type, kSubtiles, kTokens>;
  allow_shared_bytes(*launch.device, kernel, S::kSharedBytes);
  launch_kernel(launch, kernel, dim3(static_cast<uint32_t>(p.split.blocks)), dim3(kThreads), S::kSharedBytes, p);
}

template <DataType type, int kTokens>
void launch_tokens(const Launch& launch, Parameters& p) {
  // Tiles of 256 rows fetch the activations half as often; with few of them many blocks would share each.
  const int32_t tiles = (p.weights.row_tiles + 15) / 16 * ((p.tokens + kTokens - 1) / kTokens);
  if (2 * tiles >= launch.device->multiprocessors) {
    launch_shape<type, 2, kTokens>(launch, p);
  } else {
    launch_shape<type, 1, kTokens>(launch, p);
  }
}

template <DataType type>
void launch_type(const Launch& launch, Parameters& p) {
  if (p.tokens <= 64) {
    launch_tokens<type, 64>(launch, p);
  } else {
    launch_tokens<type, 128>(launch, p);
  }
}

}  // namespace

size_t gemm_wgmma_workspace_bytes(const Device& device) {
  return static_cast<size_t>(stream_k_floats(device.multiprocessors, 256 * 128)) * sizeof(float);
}

void gemm_wgmma(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
                const LinearOutput& output, const GemmWorkspace& workspace) {
  if (!launch.device->wgmma) throw Error("ERR_INTERNAL", "gemm_wgmma: not on this GPU");
  if (tokens == 0) return;
  if (gemm_wgmma_few_suits(*launch.device, weights, tokens)) {
    return gemm_wgmma_few(launch, weights, tokens, x, output);
  }
  Parameters p = {weights, x, tokens, output, workspace};
  with_weight_type(weights.type, [&]<DataType type>() { launch_type<type>(launch, p); });
}

}  // namespace chatglm::cuda
