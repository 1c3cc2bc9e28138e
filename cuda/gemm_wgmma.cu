#include <algorithm>

#include "cuda/fragments.cuh"
#include "cuda/kernels.h"
#include "cuda/stream_k.cuh"

// A linear layer on many tokens, y = x . W^T, with Hopper's tensor cores (wgmma, sm_90a).
//
// Computes the transpose, D (rows, tokens) = W . X^T: A, the weights, go from shared memory through registers, where
// they become f16 numbers, to the tensor cores; B, the activations, lie in shared memory as the tensor cores read them
// (layout.h), so that a tile of one chunk of columns is a single bulk copy.
//
// Launch: at most one block a multiprocessor, 384 threads: two warpgroups that multiply, each with half of the block's
// 128 or 256 rows, and one that starts copies into a ring of 4 to 16 stages (mbarriers full and empty), so that about
// 200 KB are on their way or ready; its registers go to the other two. Its four warps share the starting of copies: one
// warp, with a copy a lane, took more than 100 cycles each, and that bounded everything. A tile is those rows by 16,
// 32, 64 or 128 tokens; tiles are dealt out by stream_k.h. While the tensor cores work on one set of A registers, the
// warps fill the other.
//
// Bounds on an H100 (3.14 TB/s plain read, about 790 TFLOP/s dense f16). Many tokens: 2 * rows * columns * tokens
// operations; up projection of a 6B model, 27392 x 4096 on 2048 tokens: 460 GFLOP, 0.58 ms. From L2 a tile of 256 x 128
// takes 25.6 KB for each 64 columns (q4_0), 1024 cycles of the tensor cores: 33 GB/s a multiprocessor at 790 TFLOP/s.
// Decoding the weights takes 220 of the 1024 issue slots of a warp scheduler, the epilogue about 5% of a tile's time.
// Expected: 550 to 600 TFLOP/s, 0.8 ms.
// Few tokens: the weights are read once: the same matrix is 63 MB, 20 us. With 32 tokens the multiprocessors fetch 1.4
// times that from L2 altogether; expected 75% of the bound and 3 us for adding up shared tiles.
namespace chatglm::cuda {

namespace {

constexpr int kConsumerWarps = 8;
constexpr int kProducerWarps = 4;  // one warp alone would take longer to start the copies than they take
constexpr int kThreads = (kConsumerWarps + kProducerWarps) * 32;
constexpr size_t kSharedLimit = 227 * 1024;  // of a block on sm_90

/// A tile and the stages of the ring. kSubtiles: 64-row pieces a warpgroup.
template <DataType type, int kSubtiles, int kTokens>
struct Shape {
  static constexpr int kRowTiles = kConsumerWarps * kSubtiles;
  static constexpr int kOctets = kTokens / 8;
  static constexpr int kChunks = type == DataType::q4_0 && kTokens <= 64 ? 2 : 1;  // of a stage: copies of 1 KB or more
  static constexpr int kRunBytes = kChunks * block_bytes(type);                    // of a row tile
  static constexpr int kWeightBytes = kRowTiles * kRunBytes;
  static constexpr int kActivationBytes = kOctets * 8 * kChunkColumns * 2;  // of a chunk
  static constexpr int kStageBytes = kWeightBytes + kChunks * kActivationBytes + 2 * sizeof(uint64_t);
  static constexpr int kStages = std::min(16, static_cast<int>((kSharedLimit - 1024) / kStageBytes));
  static constexpr size_t kSharedBytes = 1024 + static_cast<size_t>(kStages) * kStageBytes;  // 1024: for the alignment
  static constexpr int kProducerTiles = kRowTiles / kProducerWarps;  // row tiles that a warp starts copies of
  // A warp may hold the stage before while it waits for the one behind its own.
  static_assert(kStages >= 4 && kRunBytes % 16 == 0 && kActivationBytes % 1024 == 0);
  static_assert(kRowTiles % kProducerWarps == 0 && kChunks <= kProducerWarps);
};

struct Parameters {
  PackedMatrix weights;
  Activations x;
  int32_t tokens = 0;
  LinearOutput output;
  GemmWorkspace workspace;
  StreamK split;
  TileGrid grid;
};

#if defined(CHATGLM_WGMMA)

/// True in one lane of the warp. The compiler knows that: instructions that want uniform operands need no loop over the
/// lanes.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred elected;\n"
      "elect.sync _|elected, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, elected;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

/// How weights stay in L2: as the first to go, if they are used `once`.
__device__ __forceinline__ uint64_t weight_policy(bool once) {
  uint64_t policy;
  if (once) {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  } else {
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  }
  return policy;
}
/// copy_bulk with a policy for L2.
__device__ __forceinline__ void copy_bulk_hinted(void* shared, const void* global, uint32_t bytes, uint64_t* barrier,
                                                 uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

/// Orders accesses to registers before the wgmmas that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `pending` of the groups that this warp committed are under way.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/// Describes activations to wgmma: rows (tokens) of 64 columns, 128 bytes, with the 128-byte swizzle; 8 rows to 1024
/// bytes. `address` is a multiple of 1024, plus 32 for each 16 columns. PTX ISA, "matrix descriptor".
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address) {
  return static_cast<uint64_t>(address >> 4) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

/// d (64 x 8 kOctets) = a (64 x 16, registers) * b (16 x 8 kOctets, shared memory) + (add ? d : 0), asynchronously.
template <int kOctets>
__device__ __forceinline__ void wgmma(float (&d)[kOctets][4], const uint32_t (&a)[4], uint64_t b, int add);

#define CHATGLM_OCTET(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
template <>
__device__ __forceinline__ void wgmma<2>(float (&d)[2][4], const uint32_t (&a)[4], uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %13, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, %12, add, 1, 1, 0;\n"
      "}\n"
      : CHATGLM_OCTET(0), CHATGLM_OCTET(1)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
template <>
__device__ __forceinline__ void wgmma<4>(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, add, 1, 1, 0;\n"
      "}\n"
      : CHATGLM_OCTET(0), CHATGLM_OCTET(1), CHATGLM_OCTET(2), CHATGLM_OCTET(3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
template <>
__device__ __forceinline__ void wgmma<8>(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, add, 1, 1, 0;\n"
      "}\n"
      : CHATGLM_OCTET(0), CHATGLM_OCTET(1), CHATGLM_OCTET(2), CHATGLM_OCTET(3), CHATGLM_OCTET(4), CHATGLM_OCTET(5),
        CHATGLM_OCTET(6), CHATGLM_OCTET(7)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
template <>
__device__ __forceinline__ void wgmma<16>(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, add, 1, 1, 0;\n"
      "}\n"
      : CHATGLM_OCTET(0), CHATGLM_OCTET(1), CHATGLM_OCTET(2), CHATGLM_OCTET(3), CHATGLM_OCTET(4), CHATGLM_OCTET(5),
        CHATGLM_OCTET(6), CHATGLM_OCTET(7), CHATGLM_OCTET(8), CHATGLM_OCTET(9), CHATGLM_OCTET(10), CHATGLM_OCTET(11),
        CHATGLM_OCTET(12), CHATGLM_OCTET(13), CHATGLM_OCTET(14), CHATGLM_OCTET(15)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
#undef CHATGLM_OCTET

/// The compiler must not read results before the wait that was called before this.
template <int kOctets>
__device__ __forceinline__ void finish_registers(float (&d)[kOctets][4]) {
#pragma unroll
  for (int n = 0; n < kOctets; ++n) {
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
  }
}

#endif

template <DataType type, int kSubtiles, int kTokens>
__global__ void __launch_bounds__(kThreads, 1) gemm_wgmma_kernel(const __grid_constant__ Parameters p) {
#if defined(CHATGLM_WGMMA)
  using S = Shape<type, kSubtiles, kTokens>;
  extern __shared__ uint8_t shared[];
  // (stages, chunks, tokens, 64 columns) f16; (stages, row tiles, chunks, block_bytes); the barriers of the stages.
  uint8_t* const activations = shared + (1024 - shared_address(shared) % 1024) % 1024;
  uint8_t* const weights = activations + S::kStages * S::kChunks * S::kActivationBytes;
  uint64_t* const full = reinterpret_cast<uint64_t*>(weights + S::kStages * S::kWeightBytes);
  uint64_t* const empty = full + S::kStages;

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  let_next_kernel_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(full + i, kProducerWarps);
      barrier_init(empty + i, kConsumerWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();

  StreamKBlock work(p.split, static_cast<int32_t>(blockIdx.x));
  StreamKSegment segment;
  int slot = 0;
  uint32_t parity = 0;
  const auto next_stage = [&] {
    if (++slot == S::kStages) {
      slot = 0;
      parity ^= 1;
    }
  };

  if (warp >= kConsumerWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    // Each warp copies the weights of kProducerTiles row tiles, and one of the stage's chunks of activations, or none.
    const int producer = warp - kConsumerWarps;
    const uint64_t policy = weight_policy(p.grid.token_blocks == 1);
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
        barrier_arrive_expect(full + slot, row_tiles * run + (has_activations() ? S::kActivationBytes : 0));
        uint8_t* const target = weights + slot * S::kWeightBytes + producer * (S::kProducerTiles * S::kRunBytes);
#pragma unroll
        for (int i = 0; i < S::kProducerTiles; ++i) {
          if (i < row_tiles) {
            copy_bulk_hinted(target + i * S::kRunBytes, weight_source + i * row_tile_bytes, run, full + slot, policy);
          }
        }
      }
      __syncwarp();
    };
    const auto copy_activations = [&] {
      if (has_activations() && elect_one()) {
        copy_bulk(activations + (slot * S::kChunks + producer) * S::kActivationBytes, activation_source,
                  S::kActivationBytes, full + slot);
      }
      __syncwarp();
    };
    const auto next_step = [&] {
      chunk += S::kChunks;
      weight_source += S::kRunBytes;
      activation_source += static_cast<int64_t>(S::kChunks) * p.x.stride * kChunkColumns;
      next_stage();
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
    slot = 0;
    parity = 0;
    int stage = 0;
    while (work.next(segment)) {
      locate();
      for (int step = 0; step < segment.count; ++step) {
        if (stage < started) {
          ++stage;
        } else {
          barrier_wait(empty + slot, parity ^ 1);
          copy_weights();
        }
        copy_activations();
        next_step();
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    wait_for_previous_kernel();
    float d[2][S::kOctets][4];  // of the two units of work
    uint32_t a[2][4][4];
    WeightBlock<type> block;  // of the unit that comes next
    int held = 0;             // the oldest stage that is not given back
    const auto release_stage = [&] {
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + held);
      if (++held == S::kStages) held = 0;
    };
    const uint8_t* const warp_weights = weights + warp * kSubtiles * S::kRunBytes;
    const auto load_block = [&](int subtile, int in_stage) {
      block.load(warp_weights + slot * S::kWeightBytes + subtile * S::kRunBytes + in_stage * block_bytes(type), lane);
    };
    // Codes are loaded while the tensor cores work, before registers for them as f16 numbers are free. f16 numbers are
    // loaded into those registers themselves, so only then.
    constexpr bool kLoadEarly = WeightBlock<type>::kScaled;
    const auto load_early = [&](int subtile, int in_stage) {
      if constexpr (kLoadEarly) load_block(subtile, in_stage);
    };
    const uint64_t descriptor = matrix_descriptor(shared_address(activations));
    // Decodes a block and starts its multiplication with a chunk of the current stage.
    const auto multiply = [&](float(&to)[S::kOctets][4], uint32_t(&set)[4][4], int subtile, int in_stage, bool add) {
      if constexpr (!kLoadEarly) load_block(subtile, in_stage);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        block.scaled_fragment(k, set[k]);
        asm volatile("" : "+r"(set[k][0]), "+r"(set[k][1]), "+r"(set[k][2]), "+r"(set[k][3])::"memory");
      }
      wgmma_fence();
      const uint64_t b =
          descriptor + static_cast<uint32_t>((slot * S::kChunks + in_stage) * (S::kActivationBytes >> 4));
#pragma unroll
      for (int k = 0; k < 4; ++k) wgmma<S::kOctets>(to, set[k], b + 2 * k, k > 0 || add);
      wgmma_commit();
    };

    while (work.next(segment)) {
      int32_t row_block, token_block;
      p.grid.place(segment.tile, row_block, token_block);
      const int32_t row_tile = row_block * S::kRowTiles + warp * kSubtiles;
      if (row_tile >= p.weights.row_tiles) {  // half a tile at the end: nothing for the second warpgroup
        for (int32_t step = 0; step < segment.count; ++step) {
          barrier_wait(full + slot, parity);
          release_stage();
          next_stage();
        }
        continue;
      }

      // Two units of work take turns: one's registers are filled while the tensor cores work on the other.
      const int32_t chunks = min(segment.count * S::kChunks, p.weights.chunks - segment.first * S::kChunks);
      int in_stage = 0;
      const auto next_chunk = [&] {
        if (++in_stage == S::kChunks) {
          in_stage = 0;
          next_stage();
          barrier_wait(full + slot, parity);
        }
        load_early(0, in_stage);
      };
      barrier_wait(full + slot, parity);
      load_early(0, 0);
      if constexpr (kSubtiles == 2) {
        // The units are the subtiles.
        for (int32_t c = 0; c < chunks; ++c) {
          multiply(d[0], a[0], 0, in_stage, c > 0);
          load_early(1, in_stage);
          wgmma_wait<1>();  // the chunk before is done
          if (in_stage == 0 && c > 0) release_stage();
          multiply(d[1], a[1], 1, in_stage, c > 0);
          if (c + 1 < chunks) next_chunk();
          wgmma_wait<1>();  // the first subtile of this chunk is done
        }
      } else {
        // The units are the even and the odd chunks, each with a sum of its own.
        constexpr int kOdd = S::kChunks - 1;  // an odd chunk's place in its stage; an even one's is 0
        for (int32_t pair = 0; pair < chunks / 2; ++pair) {
          multiply(d[0], a[0], 0, 0, pair > 0);
          next_chunk();
          wgmma_wait<1>();  // the pair before is done
          if (pair > 0) release_stage();
          multiply(d[1], a[1], 0, kOdd, pair > 0);
          if (2 * pair + 2 < chunks) next_chunk();
          wgmma_wait<1>();  // the even chunk is done
          if (S::kChunks == 1) release_stage();
        }
        if (chunks % 2 != 0) {
          wgmma_wait<0>();
          if (chunks > 1) release_stage();
          multiply(d[0], a[0], 0, 0, chunks > 1);
        }
      }
      wgmma_wait<0>();
      finish_registers(d[0]);
      finish_registers(d[1]);
      release_stage();
      next_stage();

      if constexpr (kSubtiles == 1) {
        if (chunks > 1) {
#pragma unroll
          for (int n = 0; n < S::kOctets; ++n) {
#pragma unroll
            for (int j = 0; j < 4; ++j) d[0][n][j] += d[1][n][j];
          }
        }
      }
      float(&sum)[kSubtiles][S::kOctets][4] = reinterpret_cast<float(&)[kSubtiles][S::kOctets][4]>(d);
      if (stream_k_finish(p.split, segment, p.workspace, warp, kConsumerWarps, lane, sum)) {
        store_tile(p.output, p.weights.rows, p.tokens, row_tile * kTileRows, token_block * kTokens, lane, sum);
      }
    }
  }
#endif
}

template <DataType type, int kSubtiles, int kTokens>
void launch_shape(const Launch& launch, Parameters& p) {
  using S = Shape<type, kSubtiles, kTokens>;
  p.grid.row_blocks = (p.weights.row_tiles + S::kRowTiles - 1) / S::kRowTiles;
  p.grid.token_blocks = (p.tokens + kTokens - 1) / kTokens;
  const int32_t steps = (p.weights.chunks + S::kChunks - 1) / S::kChunks;
  // A range of fewer steps takes less time than the adding up of its parts.
  constexpr int32_t kLeastSteps = kTokens < 128 ? 4 / S::kChunks : 8;
  p.split = split_stream_k(p.grid.row_blocks * p.grid.token_blocks, steps, launch.device->multiprocessors, kLeastSteps);
  const auto kernel = gemm_wgmma_kernel<type, kSubtiles, kTokens>;
  allow_shared_bytes(kernel, S::kSharedBytes);
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

size_t gemm_wgmma_workspace_bytes(const Device& device) {
  return static_cast<size_t>(stream_k_floats(device.multiprocessors, 256 * 128)) * sizeof(float);
}

void gemm_wgmma(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
                const LinearOutput& output, const GemmWorkspace& workspace) {
  if (!launch.device->wgmma) throw Error("ERR_INTERNAL", "gemm_wgmma: not on this GPU");
  if (tokens == 0) return;
  Parameters p;
  p.weights = weights;
  p.x = x;
  p.tokens = tokens;
  p.output = output;
  p.workspace = workspace;
  switch (weights.type) {
    case DataType::q4_0: return launch_type<DataType::q4_0>(launch, p);
    case DataType::q8_0: return launch_type<DataType::q8_0>(launch, p);
    case DataType::f16: return launch_type<DataType::f16>(launch, p);
    default: throw Error("ERR_INTERNAL", "gemm: a type that weights are never packed to");
  }
}

}  // namespace chatglm::cuda
