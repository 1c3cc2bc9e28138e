#pragma once
#include <cstddef>

#include "cuda/launch.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/sampling/sampling.h"
#include "engine/sampling_math.h"

// What the kernels of sampling share: keys, whose order is the order of logits; and the blocks of a row.
namespace chatglm::cuda {

/// Larger for larger logits, -0 as 0; of equal logits larger for the lower id. Never 0, which stands for no logit.
__device__ __forceinline__ uint64_t make_key(float logit, int32_t id) {
  const uint32_t number = __float_as_uint(logit == 0.0f ? 0.0f : logit);
  const uint32_t ordered = number & 0x80000000u ? ~number : number | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ uint32_t bits_of_key(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
}
__device__ __forceinline__ float logit_of_key(uint64_t key) { return __uint_as_float(bits_of_key(key)); }
__device__ __forceinline__ int32_t id_of_key(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

/// The largest key of each `lanes` consecutive lanes, a power of 2.
template <int lanes>
__device__ __forceinline__ uint64_t largest_key(uint64_t key) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (lanes == 32) {
    const uint32_t high = __reduce_max_sync(0xffffffffu, static_cast<uint32_t>(key >> 32));
    const uint32_t low = __reduce_max_sync(0xffffffffu, key >> 32 == high ? static_cast<uint32_t>(key) : 0);
    return static_cast<uint64_t>(high) << 32 | low;
  } else
#endif
  {
#pragma unroll
    for (int mask = 1; mask < lanes; mask *= 2) {
      const uint64_t other = __shfl_xor_sync(0xffffffffu, key, mask);
      key = other > key ? other : key;
    }
    return key;
  }
}

constexpr int kParts = 8;            // blocks of a row, where there are clusters
constexpr int32_t kShortRow = 8192;  // one block is enough

/// How many blocks, 8, 4, 2 or 1, of a cluster a row gets, if a multiprocessor takes two blocks. Many rows fill the GPU
/// with a block each.
inline int32_t parts_of_rows(const Launch& launch, int32_t rows, int32_t vocabulary) {
  if (launch.device->arch < 900 || vocabulary <= kShortRow) return 1;
  int32_t parts = kParts;
  while (parts > 1 && rows * parts > 2 * launch.device->multiprocessors) parts /= 2;
  return parts;
}

// The blocks of a row: a cluster, or one block, whose barrier is __syncthreads.
template <int parts>
__device__ __forceinline__ void row_arrive() {
  if constexpr (parts > 1) cluster_arrive();
}
template <int parts>
__device__ __forceinline__ void row_wait() {
  if constexpr (parts == 1) {
    __syncthreads();
  } else {
    cluster_wait();
  }
}
template <int parts>
__device__ __forceinline__ void row_sync() {
  row_arrive<parts>();
  row_wait<parts>();
}
/// What lies at the place of `local`, in shared memory, in a block of the row.
template <int parts, class T>
__device__ __forceinline__ T* in_part(T* local, int part) {
  if constexpr (parts == 1) return local;
  return in_block(local, part);
}

/// How many log-probabilities of likely tokens a row gives.
__device__ __forceinline__ int32_t listed_tokens(const SamplingJob& job, int32_t vocabulary) {
  return min(max(job.logprobs, 0), vocabulary);
}

static_assert(offsetof(Outcome, status) == 0 && offsetof(Outcome, token) == 4 && offsetof(Outcome, logprob) == 8 &&
              offsetof(Outcome, count) == 12 && sizeof(Outcome) % 16 == 0);
/// The beginning of an outcome in one store, as each store to the host's memory is a packet on the bus.
__device__ __forceinline__ void write_head(Outcome* outcome, Outcome::Status status, int32_t token, float logprob,
                                           int32_t count) {
  *reinterpret_cast<int4*>(outcome) =
      make_int4(static_cast<int32_t>(status), token, static_cast<int32_t>(__float_as_uint(logprob)), count);
}
__device__ __forceinline__ void write_failure(Outcome* outcome, Outcome::Status status, const SamplingJob& job) {
  write_head(outcome, status, job.target, 0.0f, 0);
}

/// Tokens farther from the largest logit have a weight of 0: e^-25 is less than half of 2^-35.
constexpr float kFarthest = 25.0f;

/// weight_of(), which comes sooner to what is 0.
__device__ __forceinline__ uint64_t weight(float logit, float largest, float inverse_temperature) {
  if (__fmul_rn(__fsub_rn(largest, logit), inverse_temperature) > kFarthest) return 0;
  return static_cast<uint64_t>(weight_of(logit, largest, inverse_temperature));
}
/// What top-p keeps at least of a sum, or min-p asks of a token.
__device__ __forceinline__ uint64_t least(float share, uint64_t sum) {
  return static_cast<uint64_t>(least_sum(share, static_cast<int64_t>(sum)));
}

__device__ __forceinline__ bool is_greedy(const SamplingJob& job) {
  return job.inverse_temperature == 0.0f || job.top_k == 1;
}

}  // namespace chatglm::cuda
