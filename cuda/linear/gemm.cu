#include <algorithm>
#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/linear/fragments.cuh"
#include "cuda/linear/gemm_wgmma.cuh"
#include "cuda/linear/stream_k.cuh"
#include "cuda/ptx/copy.cuh"

// A linear layer on tensor cores through mma.sync: y (rows, tokens) = W (rows, columns) * x^T, for compute
// capability 7.5 and 8.0 on, and the choice between this and wgmma.
//
// A block of 8 warps works on tiles of 128 packed rows x N tokens (N = 8 .. 128), 64 columns at a time. Both operands
// come through a ring of 2 to 4 stages in shared memory, filled by cp.async: eight blocks of weights, one a warp, and N
// rows of activations. Weights become A fragments in registers (fragments.cuh); the activations lie swizzled in global
// memory already, so that ldmatrix reads B fragments without bank conflicts. From N = 64 on a warp has 32 rows x N / 2
// tokens: every B fragment serves two row tiles, which halves the reading of shared memory, and every weight is
// converted by two warps. Below, a warp has 16 rows x N tokens, and every weight is converted once.
//
// Launch: a grid that fills the GPU once; stream_k.h deals out tiles and parts of tiles. The ring runs on across tiles.
//
// Bound for 64 columns of a tile with N = 128, per multiprocessor of an A100 (1,024 multiply-adds a cycle): 1,024
// cycles of mma; 64 KB of B fragments and at most 32 KB of weights, 770 cycles of shared memory; about 450 issue slots
// a scheduler, half of them for the conversion of q4_0. So mma.sync bounds it: 2 * rows * columns * tokens operations
// at 312 TFLOP/s (A100) or, on an H100, where mma.sync reaches about two thirds of the dense 990, some 620 TFLOP/s.
// Expected: 65% of that at 2,048 tokens. At 9 to 32 tokens the weights' bytes bound it, rows * columns * 0.5625 (q4_0).
// Measured with this kernel on an H100, where prompts take gemm_wgmma.cu instead: up projection of 2,048 tokens 1.28
// ms, 359 TFLOP/s (45%); of 8 tokens 32.7 us, 63% of the reading of the weights.
namespace chatglm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlockRows = 128;
constexpr int kMostTokens = 128;       // of a tile
constexpr int kMostTokensTuring = 64;  // there two blocks of this size share the 64 KB of a multiprocessor
constexpr int kBlocks = 2;             // of a multiprocessor, at most
// On an H100 mma.sync is the faster way up to here: two blocks a multiprocessor hide each other's beginning and end.
// QKV 9.5, 12.2, 11.9 and 17.5 us at 8, 16, 32 and 64 tokens, with wgmma 11.5, 11.5, 12.4 and 14.6; the down
// projection 19.4, 25.3, 23.3 and 35.5 us, with wgmma 25.4, 24.5, 24.2 and 27.1.
constexpr int kMostMmaTokens = 32;
// Where gemm_wgmma_few suits, it is as fast at 8 tokens, and faster above: the logits 61.5 us at 16 tokens, with
// mma.sync 97.6.
constexpr int kLeastFewTokens = 8;
constexpr int kRowBytes = kChunkColumns * 2;
static_assert(kBlockRows == kWarps * kTileRows && kBlockRows == kRowPadding);

template <DataType type, int N>
struct Tile {
  static constexpr int kWarpsAcross = N >= 64 ? 2 : 1;  // the tokens; the others are side by side along the rows
  static constexpr int kRowTiles = kWarpsAcross;        // of a warp
  static constexpr int kOctets = N / kWarpsAcross / 8;
  static constexpr int kActivationBytes = N * kRowBytes;
  static constexpr int kStageBytes = kActivationBytes + kWarps * block_bytes(type);  // a multiple of 128

  /// Before sm_80 copies are synchronous, and two stages are all that is of use. From there on enough of them to cover
  /// the latency, and few enough that two blocks fit into a multiprocessor: 164 KB or more, but 100 KB on sm_86, sm_89
  /// and sm_120.
  CHATGLM_HD static constexpr int stages(int arch) {
    if (arch < 800) return 2;
    const int most = arch == 860 || arch == 890 || arch >= 1200 ? 48 * 1024 : 80 * 1024;
    return 4 * kStageBytes <= 48 * 1024 ? 4 : 3 * kStageBytes <= most ? 3 : 2;
  }
};

/// Fills stages with the operands of a block's iterations, one after the other, ahead of those who use them.
template <DataType type, int N>
class Loader {
 public:
  __device__ __forceinline__ Loader(const StreamK& split, const TileGrid& grid, const PackedMatrix& weights,
                                    const Activations& x)
      : segments_(split, blockIdx.x), grid_(grid), matrix_(weights), x_(x) {
    begin_segment();
  }
  /// Whether there is an iteration left to load.
  __device__ __forceinline__ bool more() const { return left_ > 0; }

  __device__ __forceinline__ void load_weights(uint8_t* stage) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint8_t* const target = stage + Tile<type, N>::kActivationBytes + warp * block_bytes(type) + lane * 16;
#pragma unroll
    for (int i = 0; i < WeightBlock<type>::kPieces; ++i) copy_async_16(target + i * 512, weights_ + i * 512);
    if constexpr (WeightBlock<type>::kScaled) {  // 64 bytes
      if (lane < 4) copy_async_16(target + code_bytes(type), weights_ + code_bytes(type));
    }
  }
  __device__ __forceinline__ void load_activations(uint8_t* stage) const {
    constexpr int kPieces = Tile<type, N>::kActivationBytes / 16;
    const int thread = threadIdx.x;
#pragma unroll
    for (int i = 0; i < kPieces; i += kThreads) {
      if (kPieces % kThreads == 0 || thread < kPieces) {
        copy_async_16(stage + (i + thread) * 16, activations_ + i * 16);
      }
    }
  }
  __device__ __forceinline__ void advance() {
    weights_ += block_bytes(type);
    activations_ += static_cast<int64_t>(x_.stride) * kRowBytes;
    if (--left_ == 0) begin_segment();
  }

 private:
  __device__ __forceinline__ void begin_segment() {
    StreamKSegment segment;
    if (!segments_.next(segment)) return;
    left_ = segment.count;
    int32_t row_block, token_block;
    grid_.place(segment.tile, row_block, token_block);
    const int64_t row_tile = row_block * kWarps + static_cast<int>(threadIdx.x) / 32;
    weights_ = matrix_.data + (row_tile * matrix_.chunks + segment.first) * block_bytes(type) + threadIdx.x % 32 * 16;
    activations_ = reinterpret_cast<const uint8_t*>(x_.data) +
                   (static_cast<int64_t>(segment.first) * x_.stride + token_block * N) * kRowBytes + threadIdx.x * 16;
  }

  StreamKBlock segments_;
  const TileGrid& grid_;
  const PackedMatrix& matrix_;
  const Activations& x_;
  int32_t left_ = 0;                      // iterations of the segment
  const uint8_t* weights_ = nullptr;      // this thread's first piece of the next iteration
  const uint8_t* activations_ = nullptr;  // likewise
};

/// d += a stage's weights (of the warp's rows) * its activations. `fragments`: the shared address of this lane's row
/// for ldmatrix.
template <DataType type, int N>
__device__ __forceinline__ void multiply_stage(const uint8_t* weights, uint32_t fragments, int lane,
                                               float (&d)[Tile<type, N>::kRowTiles][Tile<type, N>::kOctets][4]) {
  using Shape = Tile<type, N>;
  WeightBlock<type> blocks[Shape::kRowTiles];
#pragma unroll
  for (int m = 0; m < Shape::kRowTiles; ++m) blocks[m].load(weights + m * block_bytes(type), lane);
#pragma unroll
  for (int step = 0; step < kChunkColumns / 16; ++step) {
    uint32_t a[Shape::kRowTiles][4];
#pragma unroll
    for (int m = 0; m < Shape::kRowTiles; ++m) blocks[m].scaled_fragment(step, a[m]);
    // A step is two pieces of 16 bytes: the second and third bit of a piece's number.
    const uint32_t at_step = fragments ^ static_cast<uint32_t>(step * 32);
    if constexpr (Shape::kOctets == 1) {
      uint32_t b[2];
      ldmatrix_x2(b, at_step);
#pragma unroll
      for (int m = 0; m < Shape::kRowTiles; ++m) mma_m16n8k16(d[m][0], a[m], b);
    } else {
#pragma unroll
      for (int n = 0; n < Shape::kOctets; n += 2) {
        uint32_t b[4];
        ldmatrix_x4(b, at_step + n * 8 * kRowBytes);
        const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < Shape::kRowTiles; ++m) {
          mma_m16n8k16(d[m][n], a[m], first);
          mma_m16n8k16(d[m][n + 1], a[m], second);
        }
      }
    }
  }
}

template <DataType type, int N>
__global__ void __launch_bounds__(kThreads, kBlocks)
    multiply_tiles(const __grid_constant__ PackedMatrix weights, int32_t tokens, const __grid_constant__ Activations x,
                   const __grid_constant__ LinearOutput output, const __grid_constant__ GemmWorkspace workspace,
                   const __grid_constant__ StreamK split, const __grid_constant__ TileGrid grid) {
#if defined(__CUDA_ARCH__)
  using Shape = Tile<type, N>;
  constexpr int kStages = Shape::stages(__CUDA_ARCH__);
  extern __shared__ __align__(128) uint8_t ring[];  // (stages, kStageBytes): activations (N, 64), blocks of weights

  let_next_kernel_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / Shape::kWarpsAcross, warp_column = warp % Shape::kWarpsAcross;

  Loader<type, N> loader(split, grid, weights, x);
  {  // Weights are no kernel's result, so they need not wait.
    Loader<type, N> ahead = loader;
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      if (!ahead.more()) break;
      ahead.load_weights(ring + s * Shape::kStageBytes);
      ahead.advance();
    }
  }
  wait_for_previous_kernel();
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (loader.more()) {
      loader.load_activations(ring + s * Shape::kStageBytes);
      loader.advance();
    }
    copy_async_commit();
  }

  // Matrix i of ldmatrix, whose rows lanes 8i .. 8i + 7 address: tokens 8 (i / 2) + lane % 8, piece i % 2 of a step.
  const int matrix = lane / 8, in_matrix = lane % 8;
  const uint32_t fragments =
      shared_address(ring) +
      static_cast<uint32_t>((warp_column * Shape::kOctets * 8 + matrix / 2 * 8 + in_matrix) * kRowBytes +
                            ((matrix % 2) ^ in_matrix) * 16);
  const int warp_weights = Shape::kActivationBytes + warp_row * Shape::kRowTiles * block_bytes(type);

  int used = 0, filled = kStages - 1;  // stages of this iteration and of the one that is loaded in it
  StreamKBlock segments(split, blockIdx.x);
  StreamKSegment segment;
  while (segments.next(segment)) {
    float d[Shape::kRowTiles][Shape::kOctets][4] = {};
#pragma unroll 1  // two iterations at a time would take too many registers
    for (int32_t i = 0; i < segment.count; ++i) {
      copy_async_wait<kStages - 2>();
      __syncthreads();  // this stage is complete, and no warp uses the one before, which is filled now
      if (loader.more()) {
        uint8_t* const stage = ring + filled * Shape::kStageBytes;
        loader.load_weights(stage);
        loader.load_activations(stage);
        loader.advance();
      }
      copy_async_commit();
      multiply_stage<type, N>(ring + used * Shape::kStageBytes + warp_weights,
                              fragments + static_cast<uint32_t>(used * Shape::kStageBytes), lane, d);
      used = used + 1 == kStages ? 0 : used + 1;
      filled = filled + 1 == kStages ? 0 : filled + 1;
    }
    if (!stream_k_finish(split, segment, workspace, warp, kWarps, lane, d)) continue;
    int32_t row_block, token_block;
    grid.place(segment.tile, row_block, token_block);
    store_tile(output, weights.rows, tokens, row_block * kBlockRows + warp_row * Shape::kRowTiles * kTileRows,
               token_block * N + warp_column * Shape::kOctets * 8, lane, d);
  }
#endif
}

template <DataType type, int N>
void launch_tiles(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
                  const LinearOutput& output, const GemmWorkspace& workspace) {
  using Shape = Tile<type, N>;
  const Device& device = *launch.device;
  const size_t shared_bytes = static_cast<size_t>(Shape::stages(device.arch)) * Shape::kStageBytes;
  // A multiprocessor has 1 KB more than a block may ask for, and takes 1 KB of each block for itself (from sm_80 on).
  const size_t fitting = (device.shared_bytes + 1024) / (shared_bytes + 1024);
  const int32_t blocks = device.multiprocessors * static_cast<int32_t>(fitting < kBlocks ? fitting : kBlocks);

  const TileGrid grid{weights.row_tiles / kWarps, (tokens + N - 1) / N};
  const StreamK split = split_stream_k(grid.row_blocks * grid.token_blocks, weights.chunks, blocks, 4);
  allow_shared_bytes(*launch.device, multiply_tiles<type, N>, shared_bytes);
  launch_kernel(launch, multiply_tiles<type, N>, dim3(static_cast<uint32_t>(split.blocks)), dim3(kThreads),
                shared_bytes, weights, tokens, x, output, workspace, split, grid);
}

template <DataType type>
void launch_type(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
                 const LinearOutput& output, const GemmWorkspace& workspace) {
  const int32_t most = launch.device->arch < 800 ? kMostTokensTuring : kMostTokens;
  int32_t n = 8;
  while (n < tokens && n < most) n *= 2;
  // Half tiles, where whole ones would leave much of the last one empty; they are less efficient by a tenth or so.
  if (n == 128 && (tokens + 63) / 64 * 64 * 10 < (tokens + 127) / 128 * 128 * 9) n = 64;
  switch (n) {
    case 8: return launch_tiles<type, 8>(launch, weights, tokens, x, output, workspace);
    case 16: return launch_tiles<type, 16>(launch, weights, tokens, x, output, workspace);
    case 32: return launch_tiles<type, 32>(launch, weights, tokens, x, output, workspace);
    case 64: return launch_tiles<type, 64>(launch, weights, tokens, x, output, workspace);
    default: return launch_tiles<type, 128>(launch, weights, tokens, x, output, workspace);
  }
}

}  // namespace

size_t gemm_mma_workspace_bytes(const Device& device) {
  const int tokens = device.arch < 800 ? kMostTokensTuring : kMostTokens;
  return static_cast<size_t>(stream_k_floats(int64_t{kBlocks} * device.multiprocessors, kBlockRows * tokens)) *
         sizeof(float);
}

void gemm_mma(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
              const LinearOutput& output, const GemmWorkspace& workspace) {
  if (tokens == 0) return;
  with_weight_type(weights.type,
                   [&]<DataType type>() { launch_type<type>(launch, weights, tokens, x, output, workspace); });
}

size_t gemm_workspace_bytes(const Device& device) {
  const size_t mma = gemm_mma_workspace_bytes(device);
  return device.wgmma ? std::max(mma, gemm_wgmma_workspace_bytes(device)) : mma;
}

void gemm(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
          const LinearOutput& output, const GemmWorkspace& workspace) {
  const bool wgmma =
      launch.device->wgmma &&
      (tokens > kMostMmaTokens || (tokens >= kLeastFewTokens && gemm_wgmma_few_suits(*launch.device, weights, tokens)));
  (wgmma ? gemm_wgmma : gemm_mma)(launch, weights, tokens, x, output, workspace);
}

}  // namespace chatglm::cuda
