#include <algorithm>
#include <cstdint>

#include "cuda/sampling/row.cuh"

// The largest logits of each row in order, up to 100, the logarithm of the sum of the exponentials, and whether all
// logits are finite; and the token of rows for which that is enough: greedy ones, and those whose top-k is in order and
// whose logits nothing changes. Rows that want less cost less.
//
// A logit and its id make one 64-bit key, whose order is the order of the result: larger logits first, of equal ones
// the lowest id. No two keys of a row are equal, so that "the k largest" is one set, which is found with hardly more
// than one reading of the row:
//   1. Every thread reads its share of the row and keeps the largest key and the sum of exponentials.
//   2. The threads form 128 groups; each has the largest key of its shares. The k-th largest of these keys is a floor:
//      at least k numbers reach it, so that the k largest do. In a row of random order about 88 numbers reach it for k
//      = 64 (half of the groups have none of them: (1 - 88 / n)^(n / 128) = 1 / 2), and 194 for k = 100.
//   3. Threads whose largest key reaches the floor collect the candidates among their share.
//   4. A candidate's rank is the number of larger ones; those below k are written.
// Where too many reach the floor, because large logits crowd into a few groups, bisection of the keys' range first
// raises the floor: each step of the bisection reads the row once more.
//   5. With top-k, a quad of threads for each of the k tokens adds up the weights of those before it, for top-p, and of
//      those that stayed and have no higher id, for the draw.
//
// Launch: from sm_90 on a cluster of 8 blocks of 512 threads a row, which tell each other their groups and their
// candidates through shared memory: 65,536 logits stay in registers between the phases. Before sm_90, and for short
// rows or many, one block of 1024 threads a row runs the same code. Operations, 65,024 logits: about 10 instructions
// each, so 0.4 us on the 8 multiprocessors of a cluster on an H100 at 1.755 GHz, and 0.3 us for 32 KB each from L2 at
// 64 bytes a cycle. The latencies of the phases are more than that: some 700 cycles for the loads, 400 for each of two
// barriers of the cluster with the stores before it, 500 for the ranks of the groups, 300 for those of the candidates,
// 600 for a draw, so 2.5 us in all, and a launch. Expected: 4 us, and 25 us for 256 rows, whose 67 MB come from memory
// in 22 us. One block a row takes 17.8 us. Outcomes go straight to mapped host memory. Measured on an H100 for the 64
// largest without a draw: 6.9 us for a row, 7.4 us for 8, 42.7 us for 256.
namespace chatglm::cuda {

namespace {

constexpr int kNext = 8;             // logits of a thread that are read at a time after those in registers
constexpr int kGroups = 128;         // of threads
constexpr int kCandidates = 1024;    // most that are ranked; each block has room for an equal part of them
constexpr int kFewCandidates = 128;  // bisection goes on until there are no more than this, if it has to begin
constexpr int kMost = Outcome::kMostLogprobs;
constexpr uint64_t kNotFinite = ~uint64_t{0};  // in place of a group's largest key; the key of no number

static_assert(kGroups >= kMost && kFewCandidates >= kMost && kFewCandidates <= kCandidates / kParts);

template <int parts>
constexpr int kThreadsOf = parts == 1 ? 1024 : 512;
/// Logits that a thread keeps in registers.
template <int parts>
constexpr int kHeadOf = parts == 1 ? 8 : 16;

/// e^x to about 2^-21. What underflows becomes 0: __expf would spend three more instructions on subnormal results.
__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * 1.44269504f); }

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

/// The largest logits of a row in order.
struct Ranked {
  int32_t ids[kMost];
  float logits[kMost];
};

/// The place among `count` ranked tokens of the one that a job draws. All threads of the block call this, of which
/// there are at least 512.
__device__ __forceinline__ int32_t draw_ranked(const SamplingJob& job, const Ranked& ranked, int32_t count) {
  __shared__ uint64_t weights[kMost], kept[kMost];
  __shared__ int32_t drawn;
  const int thread = threadIdx.x, i = thread / 4;
  if (thread < count) weights[thread] = weight(ranked.logits[thread], ranked.logits[0], job.inverse_temperature);
  __syncthreads();
  if (thread < 512) {
    uint64_t before = 0, sum = 0;  // of the tokens that are likelier; of all
    for (int other = thread % 4; other < count; other += 4) {
      sum += weights[other];
      if (other < i) before += weights[other];
    }
    before = quad_sum(before), sum = quad_sum(sum);
    if (thread % 4 == 0 && i < count) {
      const bool stays = (i == 0 || job.top_p >= 1.0f || before < least(job.top_p, sum)) &&
                         weights[i] >= least(job.min_p, kWholeWeight);
      kept[i] = stays ? weights[i] : 0;
    }
  }
  __syncthreads();
  if (thread < 512) {
    const int32_t id = i < count ? ranked.ids[i] : -1;
    uint64_t up_to = 0, sum = 0;  // of the tokens that have no higher id; of all
    for (int other = thread % 4; other < count; other += 4) {
      sum += kept[other];
      if (ranked.ids[other] <= id) up_to += kept[other];
    }
    up_to = quad_sum(up_to), sum = quad_sum(sum);
    const uint64_t point = __umul64hi(job.random, sum);
    if (thread % 4 == 0 && i < count && up_to > point && up_to - kept[i] <= point) drawn = i;
  }
  __syncthreads();
  return drawn;
}

template <int parts>
__global__ void __launch_bounds__(kThreadsOf<parts>, parts == 1 ? 1 : 2)
    rank_row(const float* logits, const SamplingJob* jobs, int32_t vocabulary, RowStats* stats, Outcome* outcomes) {
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
  __shared__ Ranked ranked;
  __shared__ RowStats shared_stats;

  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, part = blockIdx.x % parts;
  const int64_t row = blockIdx.x / parts;
  if (thread == 0) own_count = 0, shared_floor = 0;
  row_arrive<parts>();
  row_wait<parts>();  // all blocks of the row run, so that their shared memory may be written

  wait_for_previous_kernel();
  const SamplingJob& job = jobs[row];
  if (job.use == SamplingJob::nothing) return;  // alike in all blocks of the row
  const int32_t wanted = min(job.ranked, vocabulary);
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
    // It stays 0 if fewer groups than `wanted` have logits.
    if (larger == wanted - 1 && key != 0 && thread % 4 == 0) shared_floor = key;
  }
  if (__syncthreads_or(groups[thread % kGroups] == kNotFinite)) {  // alike in all blocks
    if (part == 0 && thread == 0) {
      stats[row].finite = 0;
      write_failure(outcomes + job.outcome, Outcome::Status::not_finite, job);
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
      stats[row] = shared_stats = {whole, logf(total), 1};
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
    uint64_t above = ~uint64_t{0};  // fewer than `wanted` numbers reach this, at least as many reach `floor`
    while (count > kFewCandidates) {
      const uint64_t middle = floor + (above - floor) / 2;
      start_counting();
      int32_t reaching = 0;
      if (own != 0 && own >= middle) share.visit_keys(middle, [&](uint64_t) { ++reaching; });
      if (reaching > 0) atomicAdd(&own_count, reaching);
      tell_count();
      row_wait<parts>();
      reaching = add_counts();
      if (reaching >= wanted) {
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
      ranked.ids[rank] = id_of_key(key);
      ranked.logits[rank] = logit_of_key(key);
    }
  }
  __syncthreads();

  Outcome* const outcome = outcomes + job.outcome;
  const int32_t listed = listed_tokens(job, vocabulary);
  if (thread < listed) {
    outcome->ids[thread] = ranked.ids[thread];
    outcome->logprobs[thread] = shared_stats.logprob(ranked.logits[thread]);
  }
  if (job.use == SamplingJob::score) {
    if (thread == 0) {
      const float logit = __ldcg(share.row + job.target);
      write_head(outcome, Outcome::Status::ok, job.target, shared_stats.logprob(logit), listed);
    }
  } else if (!job.whole) {
    const int32_t place =
        is_greedy(job) ? 0 : draw_ranked(job, ranked, job.top_k > 0 ? min(job.top_k, vocabulary) : vocabulary);
    if (thread == 0) {
      const float logprob = job.logprobs >= 0 ? shared_stats.logprob(ranked.logits[place]) : 0.0f;
      write_head(outcome, Outcome::Status::ok, ranked.ids[place], logprob, listed);
    }
  }
}

template <int parts>
void launch_rank_rows(const Launch& launch, const float* logits, const SamplingJob* jobs, int32_t rows,
                      int32_t vocabulary, RowStats* stats, Outcome* outcomes) {
  launch_kernel_in_clusters(launch, rank_row<parts>, dim3(static_cast<uint32_t>(rows * parts)), dim3(kThreadsOf<parts>),
                            0, parts, logits, jobs, vocabulary, stats, outcomes);
}

}  // namespace

void fill_job(const Row& row, int32_t vocabulary, SamplingJob& job) {
  job.use = row.use == Row::Use::score ? SamplingJob::score : SamplingJob::sample;
  job.target = row.target;
  job.logprobs = row.logprobs;
  job.ranked = std::max(row.logprobs, 1);
  job.whole = 0;
  if (row.use != Row::Use::sample) return;
  const Draw& draw = *row.draw;
  job.inverse_temperature = draw.inverse_temperature;
  job.top_k = draw.top_k;
  job.top_p = draw.top_p, job.min_p = draw.min_p;
  job.repetition_penalty = draw.repetition_penalty;
  job.presence_penalty = draw.presence_penalty, job.frequency_penalty = draw.frequency_penalty;
  job.random = draw.random;
  const bool changed = !draw.bias.empty() || !draw.counts.empty() || !draw.mask.empty() || !draw.banned.empty();
  const bool greedy = draw.inverse_temperature == 0.0f || draw.top_k == 1;
  const int32_t kept = draw.top_k > 0 ? std::min(draw.top_k, vocabulary) : vocabulary;
  job.whole = changed || (!greedy && kept > kMost);
  if (!job.whole && !greedy) job.ranked = std::max(job.ranked, kept);
}

void rank_rows(const Launch& launch, const float* logits, const SamplingJob* jobs, int32_t rows, int32_t vocabulary,
               RowStats* stats, Outcome* outcomes) {
  if (rows == 0) return;
  const bool clusters = parts_of_rows(launch, rows, vocabulary) == kParts;
  (clusters ? launch_rank_rows<kParts> : launch_rank_rows<1>)(launch, logits, jobs, rows, vocabulary, stats, outcomes);
}

}  // namespace chatglm::cuda
