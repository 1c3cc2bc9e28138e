#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/math.cuh"

// The 64 largest logits of each row, the logarithm of the sum of the exponentials, and whether all logits are finite.
//
// A logit and its id make one 64-bit key, whose order is the order of the result: larger logits first, of equal ones
// the lowest id. No two keys of a row are equal, so that "the 64 largest" is one set, which is found with hardly more
// than one reading of the row:
//   1. Every thread reads its share of the row and keeps the largest key and the sum of exponentials.
//   2. The threads form 128 groups; each has the largest key of its shares. The 64th largest of these keys is a floor:
//      at least 64 numbers reach it, so that the 64 largest do. In a row of random order about 88 numbers reach it
//      (half of the groups have none of them: (1 - 88 / n)^(n / 128) = 1 / 2).
//   3. Threads whose largest key reaches the floor collect the candidates among their share.
//   4. A candidate's rank is the number of larger ones; those below 64 are written.
// Where too many reach the floor, because large logits crowd into a few groups, bisection of the keys' range first
// raises the floor: each step of the bisection reads the row once more.
//
// Launch: from sm_90 on a cluster of 8 blocks of 512 threads a row, which tell each other their groups and their
// candidates through shared memory: 65,536 logits stay in registers between the phases. Before sm_90, and for short
// rows or many, one block of 1024 threads a row runs the same code. Operations, 65,024 logits: about 10 instructions
// each, so 0.4 us on the 8 multiprocessors of a cluster on an H100 at 1.755 GHz, and 0.3 us for 32 KB each from L2 at
// 64 bytes a cycle. The latencies of the phases are more than that: some 700 cycles for the loads, 400 for each of two
// barriers of the cluster with the stores before it, 500 for the ranks of the groups, 300 for those of the candidates,
// so 2 us in all, and a launch. Expected: 4 us, and 25 us for 256 rows, whose 67 MB come from memory in 22 us. One
// block a row takes 17.8 us. The result, 524 bytes a row, may go straight to mapped host memory. Measured on an
// H100: 6.9 us for a row, 7.4 us for 8, 42.7 us for 256.
namespace chatglm::cuda {

namespace {

constexpr int kParts = 8;            // blocks of a row, where there are clusters
constexpr int32_t kShortRow = 8192;  // one block is enough
constexpr int kNext = 8;             // logits of a thread that are read at a time after those in registers
constexpr int kGroups = 128;         // of threads
constexpr int kCandidates = 1024;    // most that are ranked; each block has room for an equal part of them
constexpr int kFewCandidates = 128;  // bisection goes on until there are no more than this, if it has to begin
constexpr int kMost = TopLogits::kMost;
constexpr int kResultWords = sizeof(TopLogits) / 4;
constexpr uint64_t kNotFinite = ~uint64_t{0};  // in place of a group's largest key; the key of no number

static_assert(std::is_standard_layout_v<TopLogits> && sizeof(TopLogits) == 4 * (3 + 2 * kMost));
static_assert(kGroups >= kMost && kFewCandidates >= kMost && kFewCandidates <= kCandidates / kParts);

template <int parts>
constexpr int kThreadsOf = parts == 1 ? 1024 : 512;
/// Logits that a thread keeps in registers.
template <int parts>
constexpr int kHeadOf = parts == 1 ? 8 : 16;

/// e^x to about 2^-21. What underflows becomes 0: __expf would spend three more instructions on subnormal results.
__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * 1.44269504f); }

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
/// What lies at the place of `local`, in shared memory, in a block of the row.
template <int parts, class T>
__device__ __forceinline__ T* in_part(T* local, int part) {
  if constexpr (parts == 1) return local;
  return in_block(local, part);
}

/// A thread's share of a row: ids first, first + stride, ...; the first head_count of them stay in registers.
template <int stride, int head_count>
struct Share {
  const float* row;
  int32_t vocabulary, first;
  float head[head_count];

  // Rows are read from L2, where the kernel before left them.
  template <int count>
  __device__ __forceinline__ void load(int32_t begin, float (&logits)[count]) const {
    const int32_t left = vocabulary - begin;
    const float* from = row + begin;
#pragma unroll
    for (int u = 0; u < count; ++u) logits[u] = u * stride < left ? __ldcg(from + u * stride) : -INFINITY;
  }
  /// Calls visit(begin, logits) for ids begin + u * stride, -inf where there are none. After load(first, head).
  template <class Visit>
  __device__ __forceinline__ void visit(Visit visit) const {
    visit(first, head);
    for (int32_t begin = first + head_count * stride; begin < vocabulary; begin += kNext * stride) {
      float logits[kNext];
      load(begin, logits);
      visit(begin, logits);
    }
  }
  /// Calls visit(key) for all keys that are not below `least`.
  template <class Visit>
  __device__ __forceinline__ void visit_keys(uint64_t least, Visit visit_key) const {
    const float least_logit = logit_of_key(least);  // NaN if `least` is the key of no number
    visit([&]<int count>(int32_t begin, const float(&logits)[count]) {
      const int32_t left = vocabulary - begin;
#pragma unroll
      for (int u = 0; u < count; ++u) {
        if (u * stride >= left || logits[u] < least_logit) continue;
        const uint64_t key = make_key(logits[u], begin + u * stride);
        if (key >= least) visit_key(key);
      }
    });
  }
};

template <int parts>
__global__ void __launch_bounds__(kThreadsOf<parts>, parts == 1 ? 1 : 2)
    select_top(const float* logits, int32_t vocabulary, TopLogits* top) {
  constexpr int kThreads = kThreadsOf<parts>, kGroupThreads = kThreads * parts / kGroups;
  constexpr int kPartGroups = kGroups / parts, kPartCandidates = kCandidates / parts;
  static_assert(kGroupThreads >= parts && kGroupThreads <= 32 && kThreads >= kGroups * 4);

  __shared__ uint64_t groups[kGroups];          // the largest key of each; the same in all blocks of a row
  __shared__ int32_t counts[parts];             // of the candidates of each block; the same in all blocks
  __shared__ float sums[kGroups];               // of exp(logit - the group's largest); in the first block
  __shared__ uint64_t candidates[kCandidates];  // kPartCandidates of each block; in the first block
  __shared__ uint64_t gathered[parts > 1 ? kCandidates : 1];
  __shared__ int32_t own_count;
  __shared__ uint64_t shared_floor;
  __shared__ uint32_t result[kResultWords];  // a TopLogits

  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, part = blockIdx.x % parts;
  const int64_t row = blockIdx.x / parts;
  const int32_t wanted = min(kMost, vocabulary);
  for (int i = thread; i < kResultWords; i += kThreads) result[i] = 0;
  if (thread == 0) own_count = 0, shared_floor = 0;
  row_arrive<parts>();
  row_wait<parts>();  // all blocks of the row run, so that their shared memory may be written

  wait_for_previous_kernel();
  Share<kThreads * parts, kHeadOf<parts>> share;
  share.row = logits + row * vocabulary;
  share.vocabulary = vocabulary;
  share.first = part * kThreads + thread;
  share.load(share.first, share.head);
  float largest = -INFINITY, sum = 0;
  float poison = 0;  // NaN once a logit was NaN or infinite
  int32_t largest_id = 0;
  share.visit([&]<int count>(int32_t begin, const float(&numbers)[count]) {
    const float before = largest;
    const int32_t left = vocabulary - begin;
#pragma unroll
    for (int u = 0; u < count; ++u) {
      const int32_t id = begin + u * kThreads * parts;
      if (u * kThreads * parts < left) poison = fmaf(numbers[u], 0.0f, poison);
      if (numbers[u] > largest) largest = numbers[u], largest_id = id;
    }
    sum *= exp_fast(before - largest);
#pragma unroll
    for (int u = 0; u < count; ++u) sum += exp_fast(numbers[u] - largest);
  });
  const uint64_t own = poison != poison ? kNotFinite : share.first < vocabulary ? make_key(largest, largest_id) : 0;
  const uint64_t group_key = largest_key<kGroupThreads>(own);
  // A thread without logits has no largest one, and -inf - -inf would be NaN.
  sum = share.first < vocabulary ? sum * exp_fast(largest - logit_of_key(group_key)) : 0.0f;
#pragma unroll
  for (int mask = 1; mask < kGroupThreads; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  {
    const int i = part * kPartGroups + thread / kGroupThreads, member = thread % kGroupThreads;
    if (member < parts) *in_part<parts>(&groups[i], member) = group_key;
    if (member == 0) *in_part<parts>(&sums[i], 0) = sum;
  }
  row_arrive<parts>();
  row_wait<parts>();

  if (thread < kGroups * 4) {  // The rank of each group, its comparisons shared by four threads.
    const uint64_t key = groups[thread / 4];
    int32_t larger = 0;
#pragma unroll 8
    for (int i = 0; i < kGroups; i += 4) larger += groups[i + thread % 4] > key;
    larger = quad_sum(larger);
    // It stays 0 if fewer than 64 groups have logits.
    if (larger == kMost - 1 && key != 0 && thread % 4 == 0) shared_floor = key;
  }
  if (__syncthreads_or(groups[thread % kGroups] == kNotFinite)) {  // alike in all blocks
    if (part == 0) {
      uint32_t* target = reinterpret_cast<uint32_t*>(top + row);
      for (int i = thread; i < kResultWords; i += kThreads) {
        target[i] = i == offsetof(TopLogits, count) / 4 ? static_cast<uint32_t>(wanted) : 0;
      }
    }
    return;
  }

  // From here on all logits are finite.
  uint64_t floor = shared_floor;  // 0: everything is a candidate
  const auto collect = [&] {
    if (own == 0 || own < floor) return;
    share.visit_keys(floor, [&](uint64_t key) {
      const int32_t i = atomicAdd(&own_count, 1);
      // In any order: ranks are by key.
      if (i < kPartCandidates) *in_part<parts>(&candidates[part * kPartCandidates + i], 0) = key;
    });
  };
  const auto tell_count = [&] {
    __syncthreads();
    if (thread < parts) *in_part<parts>(&counts[part], thread) = own_count;
    row_arrive<parts>();
  };
  const auto add_counts = [&] {
    int32_t count = 0;
#pragma unroll
    for (int i = 0; i < parts; ++i) count += counts[i];
    return count;
  };

  collect();
  tell_count();
  if (part == 0 && warp == 0) {  // while the others arrive
    float whole = -INFINITY;
#pragma unroll
    for (int i = lane; i < kGroups; i += 32) {
      if (groups[i] != 0) whole = fmaxf(whole, logit_of_key(groups[i]));
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) whole = fmaxf(whole, __shfl_xor_sync(0xffffffffu, whole, mask));
    float total = 0;
#pragma unroll
    for (int i = lane; i < kGroups; i += 32) {
      if (groups[i] != 0) total += sums[i] * exp_fast(logit_of_key(groups[i]) - whole);
    }
    total = warp_sum(total);
    if (lane == 0) {
      result[offsetof(TopLogits, finite) / 4] = 1;
      result[offsetof(TopLogits, count) / 4] = static_cast<uint32_t>(wanted);
      result[offsetof(TopLogits, log_sum) / 4] = __float_as_uint(whole + logf(total));
    }
  }
  row_wait<parts>();
  int32_t count = add_counts();
  bool too_many = false;
#pragma unroll
  for (int i = 0; i < parts; ++i) too_many = too_many || counts[i] > kPartCandidates;
  if (too_many) {  // more than kFewCandidates
    const auto start_counting = [&] {
      row_arrive<parts>();
      row_wait<parts>();  // all have read the counts
      if (thread == 0) own_count = 0;
      __syncthreads();
    };
    uint64_t above = ~uint64_t{0};  // fewer than 64 numbers reach this, at least 64 reach `floor`
    while (count > kFewCandidates) {
      const uint64_t middle = floor + (above - floor) / 2;
      start_counting();
      int32_t reaching = 0;
      if (own != 0 && own >= middle) share.visit_keys(middle, [&](uint64_t) { ++reaching; });
      if (reaching > 0) atomicAdd(&own_count, reaching);
      tell_count();
      row_wait<parts>();
      reaching = add_counts();
      if (reaching >= kMost) {
        floor = middle, count = reaching;
      } else {
        above = middle;
      }
    }
    start_counting();
    collect();
    tell_count();
    row_wait<parts>();
  }
  if (part != 0) return;

  // The first block has all candidates. Ranks, again with the comparisons of one shared by four threads.
  const uint64_t* keys = candidates;
  if constexpr (parts > 1) {
    for (int slot = thread; slot < kCandidates; slot += kThreads) {
      const int from = slot / kPartCandidates, i = slot % kPartCandidates;
      int32_t before = 0;
#pragma unroll
      for (int p = 0; p < parts; ++p) before += p < from ? counts[p] : 0;
      if (i < counts[from]) gathered[before + i] = candidates[slot];
    }
    __syncthreads();
    keys = gathered;
  }
  for (int first = warp * 8; first < count; first += kThreads / 4) {
    const int i = first + lane / 4;
    const uint64_t key = i < count ? keys[i] : 0;
    int32_t rank = 0;
#pragma unroll 4
    for (int other = lane % 4; other < count; other += 4) rank += keys[other] > key;
    rank = quad_sum(rank);
    if (lane % 4 == 0 && i < count && rank < wanted) {
      result[offsetof(TopLogits, ids) / 4 + rank] = ~static_cast<uint32_t>(key);
      result[offsetof(TopLogits, logits) / 4 + rank] = bits_of_key(key);
    }
  }
  __syncthreads();
  uint32_t* target = reinterpret_cast<uint32_t*>(top + row);
  for (int i = thread; i < kResultWords; i += kThreads) target[i] = result[i];
}

template <int parts>
void launch_select_top(const Launch& launch, const float* logits, int32_t rows, int32_t vocabulary, TopLogits* top) {
  launch_kernel_in_clusters(launch, select_top<parts>, dim3(static_cast<uint32_t>(rows * parts)),
                            dim3(kThreadsOf<parts>), 0, parts, logits, vocabulary, top);
}

}  // namespace

void top_k(const Launch& launch, const float* logits, int32_t rows, int32_t vocabulary, TopLogits* top) {
  if (rows == 0) return;
  // Many rows fill the GPU with a block each.
  const bool clusters =
      launch.device->arch >= 900 && vocabulary > kShortRow && rows * 4 <= launch.device->multiprocessors;
  (clusters ? launch_select_top<kParts> : launch_select_top<1>)(launch, logits, rows, vocabulary, top);
}

}  // namespace chatglm::cuda
