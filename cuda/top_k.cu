#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/ptx.cuh"

// The 64 largest logits of each row, the logarithm of the sum of the exponentials, and whether all logits are finite.
//
// A logit and its id make one 64-bit key, whose order is the order of the result: larger logits first, of equal ones
// the lowest id. No two keys of a row are equal, so that "the 64 largest" is one set. It is found with hardly more than
// one reading of the row:
//   1. Every thread reads its share of the row and keeps the largest key and the sum of exponentials.
//   2. Groups of eight threads form the largest key of their shares. The 64th largest of these 128 is a floor: 64
//   numbers
//      reach it, so that the result does. Of a row of random order about 88 numbers do (half of the groups are free of
//      them: (1 - 88 / n)^(n / 128) = 1 / 2).
//   3. Threads whose largest key reaches the floor read their share again and collect the candidates.
//   4. A candidate's rank is the number of larger ones; those below 64 are written.
// Where too many reach the floor, because large logits crowd into a few groups, bisection of the keys' range first
// raises it: each step reads the row once more.
//
// Launch: a block of 1024 threads a row. Operations, 65,024 logits: about 9 instructions each, 18,300 a scheduler, so
// 2.6 us on one multiprocessor of an H100 at 1.755 GHz; 260 KB from L2 at the 64 bytes a cycle that a multiprocessor
// takes are 2.3 us, behind the former. The bound of one row is that and the latencies of the four phases, some 2 us;
// expected: 6 us, and the same for up to 132 rows. The result, 524 bytes a row, may go straight to mapped host memory.
namespace chatglm::cuda {

namespace {

constexpr int kThreads = 1024;
constexpr int kUnroll = 16;  // loads of a thread under way
constexpr int kGroupThreads = 8;
constexpr int kGroups = kThreads / kGroupThreads;
constexpr int kCandidates = 1024;    // most that are ranked
constexpr int kFewCandidates = 256;  // bisection goes on until there are no more than this, if it has to begin
constexpr int kMost = TopLogits::kMost;
constexpr int kResultWords = sizeof(TopLogits) / 4;

static_assert(std::is_standard_layout_v<TopLogits> && sizeof(TopLogits) == 4 * (3 + 2 * kMost));
static_assert(kGroups >= kMost && kCandidates >= kGroups && kFewCandidates >= kMost);

/// e^x to about 2^-21. What underflows becomes 0: __expf would spend three more instructions on subnormal results.
__device__ __forceinline__ float exp_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
}

/// Larger for larger logits, -0 as 0; of equal logits larger for the lower id. Never 0, which stands for no logit.
__device__ __forceinline__ uint64_t make_key(float logit, int32_t id) {
  const uint32_t number = __float_as_uint(logit == 0.0f ? 0.0f : logit);
  const uint32_t ordered = number & 0x80000000u ? ~number : number | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | ~static_cast<uint32_t>(id);
}

/// Calls visit(id, logit) for the thread's share of a row: ids threadIdx.x, threadIdx.x + 1024, ... in this order. Rows
/// are read from L2, where the kernel before left them.
template <class Visit>
__device__ __forceinline__ void visit_share(const float* row, int32_t vocabulary, Visit visit) {
  for (int32_t first = threadIdx.x; first < vocabulary; first += kThreads * kUnroll) {
    float logits[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t id = first + u * kThreads;
      logits[u] = id < vocabulary ? __ldcg(row + id) : 0.0f;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t id = first + u * kThreads;
      if (id < vocabulary) visit(id, logits[u]);
    }
  }
}

/// The largest logit of some, its id, and the sum of exp(logit - largest).
struct Share {
  float largest = -INFINITY;
  int32_t id = 0;
  float sum = 0;
  bool finite = true;
};

__device__ __forceinline__ Share read_share(const float* row, int32_t vocabulary) {
  Share share;
  float poison = 0;  // NaN once a logit was NaN or infinite
  const auto add = [&](int32_t first, auto all_there) {
    constexpr bool kWhole = decltype(all_there)::value;
    float logits[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t id = first + u * kThreads;
      logits[u] = kWhole || id < vocabulary ? __ldcg(row + id) : -INFINITY;
    }
    const float before = share.largest;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t id = first + u * kThreads;
      if (kWhole || id < vocabulary) poison = fmaf(logits[u], 0.0f, poison);
      if (logits[u] > share.largest) share.largest = logits[u], share.id = id;
    }
    share.sum *= exp_fast(before - share.largest);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) share.sum += exp_fast(logits[u] - share.largest);
  };
  int32_t first = threadIdx.x;
  for (; first + (kUnroll - 1) * kThreads < vocabulary; first += kUnroll * kThreads) add(first, std::true_type());
  if (first < vocabulary) add(first, std::false_type());
  share.finite = poison == poison;
  return share;
}

__global__ void __launch_bounds__(kThreads) select_top(const float* logits, int32_t vocabulary, TopLogits* top) {
  __shared__ float warp_largest[kThreads / 32], warp_sums[kThreads / 32];
  __shared__ uint64_t groups[kGroups];
  __shared__ int32_t group_ranks[kGroups];
  __shared__ uint64_t candidates[kCandidates];
  __shared__ int32_t ranks[kCandidates];
  __shared__ int32_t candidate_count;
  __shared__ uint64_t shared_floor;
  __shared__ uint32_t result[kResultWords];  // a TopLogits

  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const float* row = logits + static_cast<int64_t>(blockIdx.x) * vocabulary;
  uint32_t* target = reinterpret_cast<uint32_t*>(top + blockIdx.x);
  const int32_t wanted = min(kMost, vocabulary);
  for (int i = thread; i < kResultWords; i += kThreads) result[i] = 0;
  if (thread < kGroups) group_ranks[thread] = 0;
  ranks[thread] = 0;
  if (thread == 0) candidate_count = 0, shared_floor = 0;
  static_assert(kCandidates == kThreads);

  wait_for_previous_kernel();
  const Share share = read_share(row, vocabulary);
  if (__syncthreads_or(!share.finite)) {
    for (int i = thread; i < kResultWords; i += kThreads) {
      target[i] = i == offsetof(TopLogits, count) / 4 ? static_cast<uint32_t>(wanted) : 0;
    }
    return;
  }

  // From here on all logits are finite.
  const uint64_t own = thread < vocabulary ? make_key(share.largest, share.id) : 0;
  uint64_t group = own;
#pragma unroll
  for (int mask = 1; mask < kGroupThreads; mask *= 2) group = max(group, __shfl_xor_sync(0xffffffffu, group, mask));
  if (thread % kGroupThreads == 0) groups[thread / kGroupThreads] = group;
  float largest = share.largest;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
  // A warp beyond the vocabulary has no largest logit, and -inf - -inf would be NaN.
  const float sum = warp_sum(share.largest == -INFINITY ? 0.0f : share.sum * exp_fast(share.largest - largest));
  if (lane == 0) warp_largest[warp] = largest, warp_sums[warp] = sum;
  __syncthreads();

  {  // The rank of each group, its comparisons shared by eight threads; one warp meanwhile finishes the sum.
    constexpr int kParts = kThreads / kGroups, kEach = kGroups / kParts;
    const uint64_t key = groups[thread % kGroups];
    int32_t larger = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) larger += groups[thread / kGroups * kEach + i] > key;
    atomicAdd(&group_ranks[thread % kGroups], larger);
  }
  if (warp == 0) {
    const float part = warp_largest[lane];
    float whole = part;
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) whole = fmaxf(whole, __shfl_xor_sync(0xffffffffu, whole, mask));
    const float total = warp_sum(warp_sums[lane] * exp_fast(part - whole));
    if (lane == 0) {
      result[offsetof(TopLogits, finite) / 4] = 1;
      result[offsetof(TopLogits, count) / 4] = static_cast<uint32_t>(wanted);
      result[offsetof(TopLogits, log_sum) / 4] = __float_as_uint(whole + logf(total));
    }
  }
  __syncthreads();
  if (thread < kGroups && group_ranks[thread] == kMost - 1 && groups[thread] != 0) shared_floor = groups[thread];
  __syncthreads();

  uint64_t floor = shared_floor;  // 0 if there are fewer than 64 groups with logits: everything is a candidate
  const auto count_reaching = [&](uint64_t least) {
    int32_t own_count = 0;
    if (own >= least) visit_share(row, vocabulary, [&](int32_t id, float x) { own_count += make_key(x, id) >= least; });
    return own_count;
  };
  const auto collect = [&](uint64_t least) {
    if (own == 0 || own < least) return;
    visit_share(row, vocabulary, [&](int32_t id, float x) {
      const uint64_t key = make_key(x, id);
      if (key < least) return;
      const int32_t i = atomicAdd(&candidate_count, 1);
      if (i < kCandidates) candidates[i] = key;  // in any order: ranks are by key
    });
  };
  collect(floor);
  __syncthreads();
  int32_t count = candidate_count;
  if (count > kCandidates) {
    uint64_t above = ~uint64_t{0};  // fewer than 64 numbers reach this, at least 64 reach `floor`
    while (count > kFewCandidates) {
      const uint64_t middle = floor + (above - floor) / 2;
      __syncthreads();  // all have read candidate_count
      if (thread == 0) candidate_count = 0;
      __syncthreads();
      const int32_t own_count = count_reaching(middle);
      if (own_count > 0) atomicAdd(&candidate_count, own_count);
      __syncthreads();
      const int32_t reaching = candidate_count;
      if (reaching >= kMost) {
        floor = middle, count = reaching;
      } else {
        above = middle;
      }
    }
    __syncthreads();
    if (thread == 0) candidate_count = 0;
    __syncthreads();
    collect(floor);
    __syncthreads();
  }

  {  // Ranks, again with the comparisons of a candidate shared: 2^k >= count candidates, 1024 / 2^k threads each.
    int slots = 64;
    while (slots < count) slots *= 2;
    const int slot = thread % slots, part = thread / slots, parts = kThreads / slots;
    if (slot < count) {
      const uint64_t key = candidates[slot];
      int32_t larger = 0;
      for (int i = part; i < count; i += parts) larger += candidates[i] > key;
      if (larger > 0) atomicAdd(&ranks[slot], larger);
    }
  }
  __syncthreads();
  if (thread < count && ranks[thread] < wanted) {
    const int rank = ranks[thread];
    const uint64_t key = candidates[thread];
    const uint32_t ordered = static_cast<uint32_t>(key >> 32);
    result[offsetof(TopLogits, ids) / 4 + rank] = ~static_cast<uint32_t>(key);
    result[offsetof(TopLogits, logits) / 4 + rank] = ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
  }
  __syncthreads();
  for (int i = thread; i < kResultWords; i += kThreads) target[i] = result[i];
}

}  // namespace

void top_k(const Launch& launch, const float* logits, int32_t rows, int32_t vocabulary, TopLogits* top) {
  if (rows == 0) return;
  launch_kernel(launch, select_top, dim3(static_cast<uint32_t>(rows)), dim3(kThreads), 0, logits, vocabulary, top);
}

}  // namespace chatglm::cuda
