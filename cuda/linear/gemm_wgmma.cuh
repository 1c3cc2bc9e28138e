#pragma once
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/linear/fragments.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/cache.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/warp_roles.cuh"
#include "cuda/ptx/wgmma.cuh"

// The parts that the matrix products on wgmma (sm_90a) have in common: the ring of stages in shared memory and the
// warps that multiply.
namespace chatglm::cuda {

constexpr int kConsumerWarps = 8;  // two warpgroups
constexpr int kProducerWarps = 4;  // one warp alone would take longer to start the copies than the copies take

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
  static constexpr int kStages = std::min(16, static_cast<int>((kLimit - kMatrixAlignment) / kStageBytes));
  static constexpr size_t kSharedBytes = kMatrixAlignment + static_cast<size_t>(kStages) * kStageBytes;
  static constexpr int kProducerTiles = kRowTiles / kProducerWarps;  // row tiles that a warp starts copies of
  // A warp may hold the stage before while it waits for the one behind its own.
  static_assert(kStages >= 4 && kRunBytes % 16 == 0 && kActivationBytes % kMatrixAlignment == 0);
  static_assert(kRowTiles % kProducerWarps == 0 && kChunks <= kProducerWarps);
};

#if defined(CHATGLM_WGMMA)

/// The ring: stages and their barriers.
template <class S>
struct Ring {
  // (stages, chunks, tokens, 64 columns) f16; (stages, row tiles, chunks, block_bytes); the barriers of the stages.
  uint8_t *activations, *weights;
  uint64_t *full, *empty;

  __device__ __forceinline__ explicit Ring(uint8_t* shared)
      : activations(align_matrix(shared)),
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
      : ring_(ring), lane_(lane), descriptor_(matrix_descriptor(ring.activations)) {}

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
    pin(d[0]);
    pin(d[1]);
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

  /// Gives back so many stages without using them.
  __device__ __forceinline__ void skip(int32_t stages) {
    for (int32_t i = 0; i < stages; ++i) {
      barrier_wait(ring_.full + place_.slot, place_.parity);
      release();
      place_.next();
    }
  }

 private:
  // Codes are loaded while the tensor cores work, before the registers for their f16 numbers are free. Weights in f16
  // are loaded into these registers themselves, so they are loaded later.
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
  int held_ = 0;      // the oldest stage that has not been given back
};

#endif

/// Whether gemm_wgmma_few is faster than gemm_wgmma: for matrices whose rows give every multiprocessor about the same
/// work, and at most 64 or 128 tokens.
bool gemm_wgmma_few_suits(const Device& device, const PackedMatrix& weights, int32_t tokens);
/// gemm_wgmma for the matrices and tokens that gemm_wgmma_few_suits.
void gemm_wgmma_few(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
                    const LinearOutput& output);

}  // namespace chatglm::cuda
