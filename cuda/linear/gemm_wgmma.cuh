#pragma once
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/linear/fragments.cuh"

// What the matrix products on wgmma (sm_90a) share: the instructions, the ring of stages in shared memory, and the
// warps that multiply.
namespace chatglm::cuda {

constexpr int kConsumerWarps = 8;  // two warpgroups
constexpr int kProducerWarps = 4;  // one warp alone would take longer to start the copies than they take

/// A tile of 128 kSubtiles rows x kTokens tokens, and the stages of the ring, in at most kLimit bytes of shared memory.
template <DataType type, int kSubtiles_, int kTokens_, size_t kLimit>
struct Shape {
  static constexpr DataType kType = type;
  static constexpr int kSubtiles = kSubtiles_;  // 64-row pieces a warpgroup
  static constexpr int kTokens = kTokens_;
  static constexpr int kRowTiles = kConsumerWarps * kSubtiles;
  static constexpr int kOctets = kTokens / 8;
  static constexpr int kChunks = type == DataType::q4_0 && kTokens <= 64 ? 2 : 1;  // of a stage: copies of 1 KB or more
  static constexpr int kRunBytes = kChunks * block_bytes(type);                    // of a row tile
  static constexpr int kWeightBytes = kRowTiles * kRunBytes;
  static constexpr int kActivationBytes = kOctets * 8 * kChunkColumns * 2;  // of a chunk
  static constexpr int kStageBytes = kWeightBytes + kChunks * kActivationBytes + 2 * sizeof(uint64_t);
  static constexpr int kStages = std::min(16, static_cast<int>((kLimit - 1024) / kStageBytes));
  static constexpr size_t kSharedBytes = 1024 + static_cast<size_t>(kStages) * kStageBytes;  // 1024: for the alignment
  static constexpr int kProducerTiles = kRowTiles / kProducerWarps;  // row tiles that a warp starts copies of
  // A warp may hold the stage before while it waits for the one behind its own.
  static_assert(kStages >= 4 && kRunBytes % 16 == 0 && kActivationBytes % 1024 == 0);
  static_assert(kRowTiles % kProducerWarps == 0 && kChunks <= kProducerWarps);
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

/// The ring: stages and their barriers.
template <class S>
struct Ring {
  // (stages, chunks, tokens, 64 columns) f16; (stages, row tiles, chunks, block_bytes); the barriers of the stages.
  uint8_t *activations, *weights;
  uint64_t *full, *empty;

  __device__ __forceinline__ explicit Ring(uint8_t* shared)
      : activations(shared + (1024 - shared_address(shared) % 1024) % 1024),
        weights(activations + S::kStages * S::kChunks * S::kActivationBytes),
        full(reinterpret_cast<uint64_t*>(weights + S::kStages * S::kWeightBytes)),
        empty(full + S::kStages) {}
  /// By one thread, before a barrier of the block.
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(full + i, kProducerWarps);
      barrier_init(empty + i, kConsumerWarps);
    }
    barrier_init_fence();
  }
};

/// Where a warp is in the ring.
template <class S>
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void next() {
    if (++slot == S::kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

/// A warp that multiplies. Two units of work take turns: one's registers are filled while the tensor cores work on the
/// other. The units are two subtiles or, in a shape of one, its even and its odd chunks.
template <class S>
class Consumer {
 public:
  float d[2][S::kOctets][4];  // of the units

  __device__ __forceinline__ Consumer(const Ring<S>& ring, int lane)
      : ring_(ring), lane_(lane), descriptor_(matrix_descriptor(shared_address(ring.activations))) {}

  /// d[0], and with `two` d[1], become the products of so many chunks, from the next stage on, with the subtiles whose
  /// row tiles, of this warp, have the numbers `first` and `second`.
  __device__ __forceinline__ void multiply(int32_t chunks, int first, int second, bool two) {
    unit_[0] = ring_.weights + first * S::kRunBytes;
    unit_[1] = ring_.weights + second * S::kRunBytes;
    in_stage_ = 0;
    barrier_wait(ring_.full + place_.slot, place_.parity);
    load_early(0);
    if constexpr (S::kSubtiles == 2) {
      if (two) {
        for (int32_t c = 0; c < chunks; ++c) {
          start(0, 0, c > 0);
          load_early(1);
          wgmma_wait<1>();  // the chunk before is done
          if (in_stage_ == 0 && c > 0) release();
          start(1, 1, c > 0);
          if (c + 1 < chunks) next_chunk();
          wgmma_wait<1>();  // the first subtile of this chunk is done
        }
      } else {  // the other warpgroup has two, and takes longer
        for (int32_t c = 0; c < chunks; ++c) {
          start(0, 0, c > 0);
          if (c + 1 < chunks) next_chunk();
          wgmma_wait<0>();
          if (in_stage_ == 0 && c + 1 < chunks) release();
        }
      }
    } else {
      for (int32_t pair = 0; pair < chunks / 2; ++pair) {
        start(0, 0, pair > 0);
        next_chunk();
        wgmma_wait<1>();  // the pair before is done
        if (pair > 0) release();
        start(1, 0, pair > 0);
        if (2 * pair + 2 < chunks) next_chunk();
        wgmma_wait<1>();  // the even chunk is done
        if (S::kChunks == 1) release();
      }
      if (chunks % 2 != 0) {
        wgmma_wait<0>();
        if (chunks > 1) release();
        start(0, 0, chunks > 1);
      }
    }
    wgmma_wait<0>();
    finish_registers(d[0]);
    finish_registers(d[1]);
    release();
    place_.next();
    if constexpr (S::kSubtiles == 1) {
      if (chunks > 1) {
#pragma unroll
        for (int n = 0; n < S::kOctets; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) d[0][n][j] += d[1][n][j];
        }
      }
    }
  }

  /// Gives back so many stages without a look at them.
  __device__ __forceinline__ void skip(int32_t stages) {
    for (int32_t i = 0; i < stages; ++i) {
      barrier_wait(ring_.full + place_.slot, place_.parity);
      release();
      place_.next();
    }
  }

 private:
  // Codes are loaded while the tensor cores work, before registers for them as f16 numbers are free. f16 numbers are
  // loaded into those registers themselves, so only then.
  static constexpr bool kLoadEarly = WeightBlock<S::kType>::kScaled;

  __device__ __forceinline__ void load(int unit) {
    block_.load(unit_[unit] + place_.slot * S::kWeightBytes + in_stage_ * block_bytes(S::kType), lane_);
  }
  __device__ __forceinline__ void load_early(int unit) {
    if constexpr (kLoadEarly) load(unit);
  }
  /// Decodes the block of a unit and starts its multiplication with a chunk of the current stage.
  __device__ __forceinline__ void start(int sum, int unit, bool add) {
    if constexpr (!kLoadEarly) load(unit);
    uint32_t(&set)[4][4] = a_[sum];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      block_.scaled_fragment(k, set[k]);
      asm volatile("" : "+r"(set[k][0]), "+r"(set[k][1]), "+r"(set[k][2]), "+r"(set[k][3])::"memory");
    }
    wgmma_fence();
    const uint64_t b =
        descriptor_ + static_cast<uint32_t>((place_.slot * S::kChunks + in_stage_) * (S::kActivationBytes >> 4));
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma<S::kOctets>(d[sum], set[k], b + 2 * k, k > 0 || add);
    wgmma_commit();
  }
  __device__ __forceinline__ void next_chunk() {
    if (++in_stage_ == S::kChunks) {
      in_stage_ = 0;
      place_.next();
      barrier_wait(ring_.full + place_.slot, place_.parity);
    }
    load_early(0);
  }
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(ring_.empty + held_);
    if (++held_ == S::kStages) held_ = 0;
  }

  const Ring<S>& ring_;
  const int lane_;
  const uint64_t descriptor_;
  const uint8_t* unit_[2];
  uint32_t a_[2][4][4];
  WeightBlock<S::kType> block_;  // of the unit that comes next
  RingPlace<S> place_;
  int in_stage_ = 0;  // chunk of the stage
  int held_ = 0;      // the oldest stage that is not given back
};

#endif

/// Whether gemm_wgmma_few is the fastest way: for matrices whose rows give every multiprocessor about the same work,
/// and at most 64 or 128 tokens.
bool gemm_wgmma_few_suits(const Device& device, const PackedMatrix& weights, int32_t tokens);
/// gemm_wgmma for these.
void gemm_wgmma_few(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
                    const LinearOutput& output);

}  // namespace chatglm::cuda
