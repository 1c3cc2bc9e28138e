#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/linear/fragments.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/cache.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/mma.cuh"

// gemv: a linear layer on 1 to 8 tokens, y = x . w, which takes most of the time of decoding. The norm before the layer
// and the epilogue behind it (addition or SwiGLU) are in the same launch.
//
// Launch: one block of 16 or 12 warps a multiprocessor (fewer if there are fewer row tiles); a block takes tiles of 16
// rows, blockIdx.x, + gridDim.x, ..., its warps every 16th or 12th chunk (q4_0: pair of chunks) of each. Their sums are
// added up in shared memory, in a fixed order.
//
// Bytes moved: those of the packed matrix, once; the activations (8 KB a token at 4096 columns) come from L2 into every
// block's shared memory. So an H100 (3.06 TB/s of plain reads) needs at least 3.5 us for QKV, 3.1 us for the
// attention's output, 20.6 us for ffn_up, 10.3 us for ffn_down and 49 us for the logits of a 6B model in q4_0. Measured
// on that GPU, from the end of the kernel before to the end of this one: 5.6, 4.2, 22.4, 12.2 and 50 us; when the
// kernels did not yet overlap, 7.4, 4.5, 23.2, 12.0 and 51 us.
//
// The speed depends on three conditions:
//  - Bytes under way. A multiprocessor's share of 24 bytes a nanosecond at 1 us of latency is 24 KB; each warp has a
//    ring of its own in shared memory, 65 to 74 KB a block together, that bulk copies (sm_90; before, asynchronous
//    copies) fill in the order in which the warp consumes. The rings run on across row tiles, and no warp waits for
//    another to fill or to empty its own. (A window of registers does not do: a warp has six scoreboards to wait for
//    loads with, and a load that shares its scoreboard with a younger one waits for both.)
//  - No gap between launches. The next kernel's blocks start beside this one's, if there is one token, and fill their
//    rings before they wait for its results.
//  - Few instructions: 92 of a warp for 1024 weights of q4_0, of the 168 cycles that a scheduler has for them at
//    full speed. Fragments of weights are small integers, exact in f16; the tensor core sums up a block of 32 columns
//    for all tokens before its scale is applied.
namespace chatglm::cuda {

namespace {

/// Two kernels that follow each other are to share each multiprocessor, a block of each. Two blocks of the same kernel
/// must not: another multiprocessor would have none then, and the tiles are dealt out evenly (that cost a fifth of the
/// speed). So there are two kinds, which take turns in a model's layer: `wide` ones, of which two do not fit by their
/// registers, and `tall` ones, of which two do not fit by their shared memory; one of each does.
enum class Kind { wide, tall };
CHATGLM_HD constexpr Kind kind_of(Epilogue epilogue) { return epilogue == Epilogue::add ? Kind::tall : Kind::wide; }
CHATGLM_HD constexpr int warps_of(Kind kind) { return kind == Kind::wide ? 16 : 12; }
constexpr int kMostWarps = 16;
constexpr int kMostRegisters = 72;  // a thread: (16 + 12) * 32 * 72 are just under the 65,536 of a multiprocessor
constexpr size_t kTallSharedBytes = 116 * 1024;  // more than half of a multiprocessor's

constexpr int kAsyncArch = 800;  // asynchronous copies from here on

/// A warp's ring has slots for so many blocks of weights each, of neighboring chunks, which are consumed together.
CHATGLM_HD constexpr int stage_chunks(DataType type) { return type == DataType::q4_0 ? 2 : 1; }
/// Slots of a ring. Without asynchronous copies more than one would be of no use: there, several blocks a
/// multiprocessor hide each other's latency.
CHATGLM_HD constexpr int ring_slots(DataType type, Kind kind, int arch) {
  return arch < kAsyncArch ? 1 : type == DataType::f16 ? (kind == Kind::wide ? 2 : 3) : kind == Kind::wide ? 4 : 5;
}

// --- Shared memory: the rings' barriers, the rings, the warps' partial sums, the activations.

// Partial sums of a warp: (16 rows, 10), of which 8 tokens are used: with 10 the fragments' pairs are written, and rows
// read, without bank conflicts worth mentioning. Two of them, so that one tile's are read while the next one's are
// made.
constexpr int kPartialPitch = 10;
constexpr int kPartialFloats = kTileRows * kPartialPitch;
CHATGLM_HD constexpr int partial_bytes(int warps) {
  return 2 * warps * kPartialFloats * static_cast<int>(sizeof(float));
}

// Activations of a token: for each chunk of 64 columns and each t of 4 the 32 bytes that the lanes with that t need for
// the B fragments of its four steps: [step][columns 2t, 2t + 1, 2t + 8, 2t + 9], two loads of 16 bytes. Tokens lie 16
// bytes further than a multiple of 128, so that a quarter of a warp, two tokens, reads all banks once; the t are
// swapped about by the chunk, so that a warp that writes four chunks' piece of the same t hits different banks.
CHATGLM_HD constexpr int activation_pitch(int chunks) { return chunks * kChunkColumns * 2 + 16; }
__device__ __forceinline__ int activation_offset(int chunk, int t) { return chunk * 128 + ((t ^ (chunk & 3)) << 5); }

constexpr int kBarrierBytes = kMostWarps * 8 * static_cast<int>(sizeof(uint64_t));  // for up to 8 slots

CHATGLM_HD constexpr int slot_bytes(DataType type) { return stage_chunks(type) * block_bytes(type); }
CHATGLM_HD constexpr int rings_bytes(DataType type, Kind kind, int arch) {
  return warps_of(kind) * ring_slots(type, kind, arch) * slot_bytes(type);
}

struct Arguments {
  PackedMatrix weights;
  int32_t tiles = 0;  // row tiles that have rows of the model
  int32_t tokens = 0;
  GemvInput input;
  LinearOutput output;
};

// --- Activations to shared memory.

/// Pieces of 4 columns that a thread holds in registers: 4096 columns a block.
template <int kWarps>
constexpr int kCached = (1024 + 32 * kWarps - 1) / (32 * kWarps);

/// This thread's pieces of a row of `count` pieces; zeros behind them.
template <int kWarps>
__device__ __forceinline__ void load_row(const float4* row, int count, float4 (&x)[kCached<kWarps>]) {
  constexpr int kThreads = 32 * kWarps;
#pragma unroll
  for (int k = 0; k < kCached<kWarps>; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * kThreads;
    x[k] = i < count ? row[i] : make_float4(0, 0, 0, 0);
  }
}

/// Columns 4i .. 4i + 3 of a token to its place.
__device__ __forceinline__ void store_normalized(uint8_t* token, int i, float4 x, float4 weight, float scale) {
  const int chunk = i / 16, step = i / 4 % 4, upper_half = i % 4 / 2, t = i % 2 * 2;
  uint8_t* p = token + step * 8 + upper_half * 4;
  *reinterpret_cast<half2*>(p + activation_offset(chunk, t)) = to_half2(x.x * scale * weight.x, x.y * scale * weight.y);
  *reinterpret_cast<half2*>(p + activation_offset(chunk, t + 1)) =
      to_half2(x.z * scale * weight.z, x.w * scale * weight.w);
}

/// RMSNorm of the tokens' rows, by every block for itself: a round of loads and a barrier a token, the next token's
/// loads under way meanwhile. `weight` is this thread's part of the norm's weights; `sums`: (8 tokens, kWarps).
template <int kWarps>
__device__ __forceinline__ void normalize(const GemvInput& input, const float4 (&weight)[kCached<kWarps>], int columns,
                                          int chunks, int tokens, uint8_t* activations, float* sums) {
  constexpr int kThreads = 32 * kWarps;
  const int thread = static_cast<int>(threadIdx.x), count = columns / 4, padded = chunks * (kChunkColumns / 4);
  const auto row_of = [&](int token) {
    const int64_t row = input.gather ? input.gather[token] : token;
    return reinterpret_cast<const float4*>(input.residual + row * columns);
  };
  const float4* row = row_of(0);
  float4 x[kCached<kWarps>];
  load_row<kWarps>(row, count, x);
#pragma unroll 1
  for (int token = 0; token < tokens; ++token) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kCached<kWarps>; ++k) sum += squares(x[k]);
#pragma unroll 1
    for (int i = thread + kCached<kWarps> * kThreads; i < count; i += kThreads) sum += squares(row[i]);
    sum = warp_sum(sum);
    if (thread % 32 == 0) sums[token * kWarps + thread / 32] = sum;
    const float4* const next_row = token + 1 < tokens ? row_of(token + 1) : row;
    float4 next[kCached<kWarps>] = {};
    if (token + 1 < tokens) load_row<kWarps>(next_row, count, next);
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[token * kWarps + w];
    const float scale = rsqrtf(total / static_cast<float>(columns) + input.epsilon);
    uint8_t* const target = activations + token * activation_pitch(chunks);
#pragma unroll
    for (int k = 0; k < kCached<kWarps>; ++k) {
      const int i = thread + k * kThreads;
      if (i < padded) store_normalized(target, i, x[k], weight[k], scale);
    }
#pragma unroll 1
    for (int i = thread + kCached<kWarps> * kThreads; i < padded; i += kThreads) {
      const bool inside = i < count;
      const float4 zero = make_float4(0, 0, 0, 0);
      store_normalized(target, i, inside ? row[i] : zero,
                       inside ? reinterpret_cast<const float4*>(input.norm)[i] : zero, scale);
    }
#pragma unroll
    for (int k = 0; k < kCached<kWarps>; ++k) x[k] = next[k];
    row = next_row;
  }
}

/// The tokens' f16 activations.
template <int kWarps>
__device__ __forceinline__ void copy_activations(const Activations& x, int chunks, int tokens, uint8_t* activations) {
  constexpr int kThreads = 32 * kWarps;
  // Pieces of 16 bytes under way a thread: 1712 of a token of 13696 columns in one round.
  constexpr int kBatch = 2048 / kThreads;
  const int pieces = tokens * chunks * 8, pitch = activation_pitch(chunks);
  // i / tokens for small i: exact while i * tokens < 65536, and what fits into shared memory is far below.
  const uint32_t reciprocal = (65535u + static_cast<uint32_t>(tokens)) / static_cast<uint32_t>(tokens);
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x); first < pieces; first += kBatch * kThreads) {
    uint4 v[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = first + k * kThreads;
      if (i >= pieces) continue;
      const int row = i / 8, chunk = static_cast<int>(static_cast<uint32_t>(row) * reciprocal >> 16);
      const int token = row - chunk * tokens;
      v[k] = *reinterpret_cast<const uint4*>(x.data + (static_cast<int64_t>(chunk) * x.stride + token) * kChunkColumns +
                                             i % 8 * 8);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = first + k * kThreads;
      if (i >= pieces) continue;
      const int row = i / 8, chunk = static_cast<int>(static_cast<uint32_t>(row) * reciprocal >> 16);
      const int token = row - chunk * tokens;
      // Piece j is columns 8j .. 8j + 7: half of a step for all four t.
      uint8_t* const p = activations + token * pitch + ((i % 8) ^ (token % 8)) * 4;
      *reinterpret_cast<uint32_t*>(p + activation_offset(chunk, 0)) = v[k].x;
      *reinterpret_cast<uint32_t*>(p + activation_offset(chunk, 1)) = v[k].y;
      *reinterpret_cast<uint32_t*>(p + activation_offset(chunk, 2)) = v[k].z;
      *reinterpret_cast<uint32_t*>(p + activation_offset(chunk, 3)) = v[k].w;
    }
  }
}

/// d += kCount blocks of weights times the activations of their columns.
template <int kCount, DataType type>
__device__ __forceinline__ void multiply(const WeightBlock<type> (&w)[kCount],
                                         const uint8_t* const (&activations)[kCount], float (&d)[4]) {
  uint32_t b[kCount][4][2];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const uint4 low = *reinterpret_cast<const uint4*>(activations[i]);
    const uint4 high = *reinterpret_cast<const uint4*>(activations[i] + 16);
    b[i][0][0] = low.x, b[i][0][1] = low.y, b[i][1][0] = low.z, b[i][1][1] = low.w;
    b[i][2][0] = high.x, b[i][2][1] = high.y, b[i][3][0] = high.z, b[i][3][1] = high.w;
  }
  uint32_t a[4];
  if constexpr (WeightBlock<type>::kScaled) {
    float sum[kCount][2][4] = {};  // of 32 columns each
#pragma unroll
    for (int half_block = 0; half_block < 2; ++half_block) {
#pragma unroll
      for (int block = 0; block < 2; ++block) {  // products that do not wait for each other, one after the other
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int step = 2 * block + half_block;
          w[i].fragment(step, a);
          mma_m16n8k16(sum[i][block], a, b[i][step]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        const float upper = w[i].upper_scale(2 * block), lower = w[i].lower_scale(2 * block);
        d[0] = fmaf(upper, sum[i][block][0], d[0]);
        d[1] = fmaf(upper, sum[i][block][1], d[1]);
        d[2] = fmaf(lower, sum[i][block][2], d[2]);
        d[3] = fmaf(lower, sum[i][block][3], d[3]);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        w[i].fragment(step, a);
        mma_m16n8k16(d, a, b[i][step]);
      }
    }
  }
}

/// A warp's ring of kSlots slots, each for the blocks of a stage.
template <DataType type, int kSlots>
struct Ring {
  static constexpr int kSlotBytes = slot_bytes(type);

  uint8_t* data;       // (kSlots, kSlotBytes), shared memory
  uint64_t* barriers;  // (kSlots), of bulk copies
  int lane;

  __device__ __forceinline__ void init() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < kSlots; ++i) barrier_init(barriers + i, 1);
      barrier_init_fence();
    }
    __syncwarp();
#endif
  }
  /// Starts to fill a slot, which no lane may still be reading. Called once for each slot in turn, with 0 bytes behind
  /// the end of the stream.
  __device__ __forceinline__ void fill(int slot, const uint8_t* source, int bytes) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (lane == 0 && bytes > 0) {
      barrier_arrive_expect(barriers + slot, static_cast<uint32_t>(bytes));
      copy_bulk(data + slot * kSlotBytes, source, static_cast<uint32_t>(bytes), barriers + slot, l2_evict_first());
    }
#else
#pragma unroll
    for (int i = 0; i < (kSlotBytes + 511) / 512; ++i) {
      const int at = i * 512 + lane * 16;
      if (at < bytes) copy_async_16(data + slot * kSlotBytes + at, source + at);
    }
    copy_async_commit();  // a group of nothing too, so that it is always the same number that may be under way
#endif
  }
  /// Waits until the bytes of the oldest fill() have come. `round`: how often the ring has gone round.
  __device__ __forceinline__ void wait(int slot, uint32_t round) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    barrier_wait(barriers + slot, round & 1);
#else
    copy_async_wait<kSlots - 1>();
    __syncwarp();
#endif
  }
};

template <DataType type, Epilogue epilogue>
__global__ void __maxnreg__(kMostRegisters) gemv_kernel(const __grid_constant__ Arguments arguments) {
  constexpr Kind kKind = kind_of(epilogue);
  constexpr int kWarps = warps_of(kKind);
#if defined(__CUDA_ARCH__)
  constexpr int kArch = __CUDA_ARCH__;
#else
  constexpr int kArch = 0;
#endif
  constexpr int kBytes = block_bytes(type), kSlots = ring_slots(type, kKind, kArch), kStage = stage_chunks(type);
  static_assert(kSlots <= 8 && kStage <= 2);
  extern __shared__ __align__(16) uint8_t shared[];
  const PackedMatrix& weights = arguments.weights;
  const LinearOutput& output = arguments.output;
  const int tokens = arguments.tokens, chunks = weights.chunks;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;

  uint8_t* const rings = shared + kBarrierBytes;
  auto* const partial = reinterpret_cast<float*>(rings + rings_bytes(type, kKind, kArch));
  uint8_t* const activations = rings + rings_bytes(type, kKind, kArch) + partial_bytes(kWarps);

  // This block's row tiles are first_tile + i * stride, i < tiles; this warp's chunks of each are first_chunk + i *
  // kStep and the one behind it, if there are two in a stage.
  constexpr int kStep = kWarps * kStage;
  const int stride = static_cast<int>(gridDim.x), first_tile = static_cast<int>(blockIdx.x);
  const int tiles = (arguments.tiles - first_tile + stride - 1) / stride;
  const int first_chunk = warp * kStage;

  // --- The ring: stages are loaded in the order of their use, each into the slot that has just been read.
  const Ring<type, kSlots> ring = {rings + warp * (kSlots * slot_bytes(type)),
                                   reinterpret_cast<uint64_t*>(shared) + warp * kSlots, lane};
  let_next_kernel_start();
  ring.init();
  const uint8_t* next = weights.data + (static_cast<int64_t>(first_tile) * chunks + first_chunk) * kBytes;
  const int stages = (chunks - first_chunk + kStep - 1) / kStep;  // of a tile; 0 if there are fewer chunks than warps
  const int64_t to_next_tile = (static_cast<int64_t>(stride) * chunks - stages * kStep) * kBytes;
  int next_chunk = first_chunk, tiles_to_load = stages > 0 ? tiles : 0;
  const auto load_next = [&](int slot) {
    ring.fill(slot, next, tiles_to_load > 0 ? min(kStage, chunks - next_chunk) * kBytes : 0);
    next += kStep * kBytes;
    next_chunk += kStep;
    if (next_chunk >= chunks) {
      next += to_next_tile;
      next_chunk = first_chunk;
      --tiles_to_load;
    }
  };
#pragma unroll 1
  for (int slot = 0; slot < kSlots; ++slot) load_next(slot);

  // --- The activations.
  const bool fused_norm = arguments.input.residual != nullptr;
  float4 norm[kCached<kWarps>];
  if (fused_norm) load_row<kWarps>(reinterpret_cast<const float4*>(arguments.input.norm), weights.columns / 4, norm);
  wait_for_previous_kernel();
  if (fused_norm) {
    normalize<kWarps>(arguments.input, norm, weights.columns, chunks, tokens, activations, partial);
  } else {
    copy_activations<kWarps>(arguments.input.x, chunks, tokens, activations);
  }

  // --- Adding up the warps' partial sums: one warp does two tokens of a tile, another warp in each tile; a lane does
  // one sum.
  int tile = 0;
  const int row = lane % kTileRows;
  int token = 0;
  float previous = 0;  // the old y, of Epilogue::add; loaded a tile ahead
  const auto next_sum = [&] {
    token = 2 * ((warp + tile) % kWarps) + lane / kTileRows;
    if constexpr (epilogue == Epilogue::add) {
      const int64_t y_row = static_cast<int64_t>(first_tile + tile * stride) * kTileRows + row;
      if (tile < tiles && token < tokens && y_row < weights.rows) previous = output.y[token * output.y_stride + y_row];
    }
  };
  const auto finish_tile = [&](const float(&sum)[4]) {
    float* const buffer = partial + tile % 2 * (kWarps * kPartialFloats);
    if (2 * t < tokens) {
      float* mine = buffer + warp * kPartialFloats + g * kPartialPitch + 2 * t;
      *reinterpret_cast<float2*>(mine) = make_float2(sum[0], sum[1]);
      *reinterpret_cast<float2*>(mine + 8 * kPartialPitch) = make_float2(sum[2], sum[3]);
    }
    // One barrier a tile is enough: a warp that writes this buffer again has passed the next tile's barrier, and so has
    // every warp that reads the buffer now.
    __syncthreads();
    if (token - lane / kTileRows < tokens) {
      float total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += buffer[w * kPartialFloats + row * kPartialPitch + token];
      const int64_t row_tile = first_tile + tile * stride;
      if constexpr (epilogue == Epilogue::swiglu) {
        const float up = __shfl_down_sync(0xffffffffu, total, 8);
        const int column = static_cast<int>(row_tile) * 8 + row;
        if (row < 8 && token < tokens && column < weights.rows / 2) {
          output.activated.data[activation_index(token, column, output.activated.stride)] = to_half(silu(total) * up);
        }
      } else {
        const int64_t y_row = row_tile * kTileRows + row;
        if (token < tokens && y_row < weights.rows) output.y[token * output.y_stride + y_row] = previous + total;
      }
    }
    ++tile;
    next_sum();
  };
  next_sum();
  __syncthreads();  // the activations are complete

  // --- The stream. Lanes of tokens behind the last one multiply by the last token's activations; their sums are not
  // used.
  const uint8_t* const my_activations = activations + min(g, tokens - 1) * activation_pitch(chunks);
  int slot = 0;
  uint32_t round = 0;
  while (tile < tiles) {
    float sum[4] = {};
    const uint8_t* at[kStage];
#pragma unroll
    for (int i = 0; i < kStage; ++i) at[i] = my_activations + activation_offset(first_chunk + i, t);
    const auto consume = [&]<int kCount>(const uint8_t* const(&x)[kCount]) {
      ring.wait(slot, round);
      WeightBlock<type> blocks[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) blocks[i].load(ring.data + slot * slot_bytes(type) + i * kBytes, lane);
      multiply(blocks, x, sum);
      __syncwarp();  // all have read
      load_next(slot);
      if (++slot == kSlots) slot = 0, ++round;
    };
    int chunk = first_chunk;
#pragma unroll 1
    for (; chunk + kStage <= chunks; chunk += kStep) {
      consume(at);
#pragma unroll
      for (int i = 0; i < kStage; ++i) at[i] += kStep * 128;
    }
    if (kStage > 1 && chunk < chunks) {
      const uint8_t* const last[1] = {at[0]};
      consume(last);
    }
    finish_tile(sum);
  }
}

size_t shared_bytes(const Device& device, const PackedMatrix& weights, Kind kind, int32_t tokens) {
  const size_t used = static_cast<size_t>(kBarrierBytes + rings_bytes(weights.type, kind, device.arch) +
                                          partial_bytes(warps_of(kind))) +
                      static_cast<size_t>(tokens) * activation_pitch(weights.chunks);
  return kind == Kind::tall && device.arch >= 900 ? std::max(used, kTallSharedBytes) : used;
}

template <DataType type, Epilogue epilogue>
void launch_gemv(const Launch& launch, const Arguments& arguments) {
  const Device& device = *launch.device;
  constexpr Kind kind = kind_of(epilogue);
  const size_t bytes = shared_bytes(device, arguments.weights, kind, arguments.tokens);
  allow_shared_bytes(*launch.device, gemv_kernel<type, epilogue>, bytes);
  const int32_t most = device.multiprocessors * (device.arch < kAsyncArch ? 2 : 1);
  launch_kernel(launch, gemv_kernel<type, epilogue>, static_cast<unsigned>(std::min(arguments.tiles, most)),
                32 * warps_of(kind), bytes, arguments);
}

template <DataType type>
void gemv_type(const Launch& launch, const Arguments& arguments) {
  switch (arguments.output.epilogue) {
    case Epilogue::store: return launch_gemv<type, Epilogue::store>(launch, arguments);
    case Epilogue::add: return launch_gemv<type, Epilogue::add>(launch, arguments);
    case Epilogue::swiglu: return launch_gemv<type, Epilogue::swiglu>(launch, arguments);
  }
}

}  // namespace

bool gemv_fits(const Device& device, const PackedMatrix& weights, int32_t tokens) {
  const auto fits = [&](Kind kind) { return shared_bytes(device, weights, kind, tokens) <= device.shared_bytes; };
  return tokens >= 1 && tokens <= kGemvTokens && fits(Kind::wide) && fits(Kind::tall);
}

void gemv(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const GemvInput& input,
          const LinearOutput& output) {
  if (!gemv_fits(*launch.device, weights, tokens)) throw Error("ERR_INTERNAL", "CUDA: gemv on too many tokens");
  if (weights.gate_up != (output.epilogue == Epilogue::swiglu)) throw Error("ERR_INTERNAL", "CUDA: SwiGLU or not?");
  Arguments arguments;
  arguments.weights = weights;
  const int32_t tile_rows = weights.gate_up ? kTileRows / 2 : kTileRows;
  arguments.tiles = ((weights.gate_up ? weights.rows / 2 : weights.rows) + tile_rows - 1) / tile_rows;
  arguments.tokens = tokens;
  arguments.input = input;
  arguments.output = output;
  with_weight_type(weights.type, [&]<DataType type>() { gemv_type<type>(launch, arguments); });
}

}  // namespace chatglm::cuda
