#include <cstdint>

#include "cuda/sampling/row.cuh"

// The token of a row that depends on more than its 100 largest logits, or whose logits a Draw changes: all steps of
// Draw (engine/sampling.h), with the same bits as outcome_of(). Rows that rank_rows has served end at once.
//
// A row is read as often as its options need:
//   1. Changes: biases, penalties and banned tokens are scattered into the row, a value that is overwritten takes its
//      entry's place in the list, for the log-probability. Then one reading applies the mask and finds the largest
//      logit. A row that nothing changes has its largest logit from rank_rows.
//   2. Top-k and top-p: one reading makes a histogram of the tokens whose weight is not 0: 2048 bins of the scaled
//      distance to the largest logit, which is below 25 for them all, with the number and the weight of each bin's
//      tokens. A scan gives the bin where the limit is passed. One more reading collects this bin's tokens, at most
//      2048, which are sorted, and a scan of their weights gives the last key that stays. If the bin has more tokens,
//      because they are almost equal, histograms over the keys between the smallest and the largest of them come
//      first: each divides their range by 2048 and takes one more reading. Top-k comes before top-p, whose limit is a
//      share of what top-k left.
//   3. The draw: one reading gives the weight of what stays in each warp's stretch of ids; a scan finds the stretch,
//      which the first block reads once more.
// Weights are whole numbers, so no sum depends on the order in which threads add to it.
//
// Launch: blocks of 512 threads, of which a multiprocessor takes two; from sm_90 on a cluster of 8, 4 or 2 blocks a
// row, as many as run at the same time with all rows. Shared memory has no 64-bit atomics, so a bin's weight is two
// 32-bit words; a carry, or a weight of 2^32 and more (tokens at least an eighth as likely as the likeliest), takes a
// second atomic addition. Operations, 65,024 logits: a weight takes about 20 instructions, so 25 to 35 for each logit
// and reading. A block that has half of a multiprocessor issues about 50 of them a cycle: 43,000 cycles or 25 us a
// reading, and with top-p (three readings and the last stretch) 75 us; 256 rows run at the same time on an H100, so
// expected are 80 us for them, and for a row, which has a cluster, an eighth of it, 10 us, and some 10 barriers of 0.5
// us: 15 us.
namespace chatglm::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kAtOnce = 8;  // loads of a thread under way
constexpr int kBins = 2048;
constexpr int kBinBits = 11;
constexpr int kThreadBins = kBins / kThreads;
constexpr int kCollected = 2048;  // most tokens that are sorted
constexpr int kThreadCollected = kCollected / kThreads;

static_assert(1 << kBinBits == kBins && kBins % (kThreads * kThreadBins) == 0);

struct CountAndWeight {
  uint32_t count;
  uint64_t weight;
};

/// Where a search ended: the tokens with this key and larger ones stay.
struct Limit {
  uint64_t key;
  uint64_t weight;  // of all that stay
};

template <int parts>
struct Shared {
  uint32_t counts[kBins], low[kBins], high[kBins];  // a histogram: numbers and the words of the weights
  uint64_t collected[kCollected];                   // in the first block
  uint64_t stretches[kWarps * parts];               // weights; in the first block
  uint64_t scan[kWarps];
  uint64_t most[parts], least[parts];  // keys of each block (those of `least` inverted); the same in all
  SamplingJob job;
  CountAndWeight bin_before;  // of the bins before the one that was found
  Limit limit;
  uint64_t before;
  int32_t found;
  uint32_t collected_count;
  float raw;
};

/// The sum of the threads before this one, and of all. All threads of the block call this.
__device__ __forceinline__ uint64_t prefix(uint64_t x, uint64_t* scan, uint64_t& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto add_lanes_before = [&](uint64_t inclusive) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(0xffffffffu, inclusive, step);
      if (lane >= step) inclusive += other;
    }
    return inclusive;
  };
  const uint64_t inclusive = add_lanes_before(x);
  __syncthreads();  // what an earlier call left in `scan` has been read
  if (lane == 31) scan[warp] = inclusive;
  __syncthreads();
  const uint64_t warps = add_lanes_before(lane < kWarps ? scan[lane] : 0);
  sum = __shfl_sync(0xffffffffu, warps, 31);
  const uint64_t before = __shfl_sync(0xffffffffu, warps, max(warp - 1, 0));
  return (warp > 0 ? before : 0) + inclusive - x;
}

/// The block's share of a row: a stretch of ids for each warp.
template <int parts>
struct Walk {
  float* row;
  int32_t begin, end;  // of the warp

  __device__ __forceinline__ Walk(float* row, int32_t vocabulary, int part) : row(row) {
    const int32_t length = stretch(vocabulary);
    begin = min((part * kWarps + static_cast<int32_t>(threadIdx.x) / 32) * length, vocabulary);
    end = min(begin + length, vocabulary);
  }
  static __device__ __forceinline__ int32_t stretch(int32_t vocabulary) {
    constexpr int kStretches = kWarps * parts;
    return ((vocabulary + 31) / 32 + kStretches - 1) / kStretches * 32;
  }
  /// Calls visit(id, logit) for all ids of the lane, in rising order. Rows are read from L2: other multiprocessors
  /// write them. The code of a visit is long, and there are many: two copies of each stay in the instruction cache,
  /// eight would not.
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
#pragma unroll 1
    for (int32_t first = begin + static_cast<int32_t>(threadIdx.x) % 32; first < end; first += 32 * kAtOnce) {
      float logits[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) logits[u] = first + 32 * u < end ? __ldcg(row + first + 32 * u) : -INFINITY;
#pragma unroll 1
      for (int pair = 0; pair < kAtOnce / 2; ++pair) {
        float both[2] = {logits[0], logits[1]};
#pragma unroll
        for (int u = 2; u < kAtOnce; ++u) both[u % 2] = pair == u / 2 ? logits[u] : both[u % 2];
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int32_t id = first + 32 * (2 * pair + u);
          if (id < end) visit(id, both[u]);
        }
      }
    }
  }
};

/// The largest key of a row's threads. `keys` has one of each block, and is not in use.
template <int parts>
__device__ __forceinline__ uint64_t largest_of_row(uint64_t key, int part, uint64_t (&keys)[parts],
                                                   Shared<parts>& shared) {
  key = largest_key<32>(key);
  if (threadIdx.x % 32 == 0) shared.scan[threadIdx.x / 32] = key;
  __syncthreads();
  if (threadIdx.x < parts) {
    uint64_t largest = 0;
#pragma unroll 4
    for (int w = 0; w < kWarps; ++w) largest = max(largest, shared.scan[w]);
    *in_part<parts>(&keys[part], static_cast<int>(threadIdx.x)) = largest;
  }
  row_sync<parts>();
  uint64_t largest = 0;
#pragma unroll
  for (int p = 0; p < parts; ++p) largest = max(largest, keys[p]);
  return largest;
}

// --- Step 1.

/// Scatters what the lists say. Each block takes a part of the lists.
template <int parts>
__device__ __forceinline__ void change_listed(const SamplingJob& job, float* row, int32_t vocabulary, uint32_t* lists,
                                              int part) {
  constexpr int kStride = kThreads * parts;
  const int first = part * kThreads + static_cast<int>(threadIdx.x);
  const auto exists = [&](int32_t id) { return static_cast<uint32_t>(id) < static_cast<uint32_t>(vocabulary); };
  uint32_t* const bias = lists + job.bias;
  uint32_t* const counts = lists + job.counts;
#pragma unroll 1
  for (int i = first; i < job.bias_count; i += kStride) {
    const auto id = static_cast<int32_t>(bias[2 * i]);
    if (!exists(id)) continue;
    const float before = __ldcg(row + id), after = __fadd_rn(before, __uint_as_float(bias[2 * i + 1]));
    bias[2 * i + 1] = __float_as_uint(before);
    row[id] = within_range(after);
  }
  if (job.bias_count > 0 && job.counts_count > 0) row_sync<parts>();
#pragma unroll 1
  for (int i = first; i < job.counts_count; i += kStride) {
    const auto id = static_cast<int32_t>(counts[2 * i]), count = static_cast<int32_t>(counts[2 * i + 1]);
    if (!exists(id)) continue;
    const float before = __ldcg(row + id);
    counts[2 * i + 1] = __float_as_uint(before);
    row[id] =
        within_range(penalized(before, job.repetition_penalty, job.presence_penalty, job.frequency_penalty, count));
  }
  if (job.banned_count > 0) {
    if (job.bias_count > 0 || job.counts_count > 0) row_sync<parts>();
#pragma unroll 1
    for (int i = first; i < job.banned_count; i += kStride) {
      const auto id = static_cast<int32_t>(lists[job.banned + i]);
      if (exists(id)) row[id] = -INFINITY;
    }
  }
}

/// Applies the mask; returns the largest key of the row.
template <int parts>
__device__ __forceinline__ uint64_t largest_changed(const SamplingJob& job, const Walk<parts>& walk,
                                                    const uint32_t* lists, int part, Shared<parts>& shared) {
  const uint32_t* const mask = lists + job.mask;
  const int32_t masked = job.mask_words * 32;
  float largest = -INFINITY;
  int32_t id_of_largest = -1;
  walk.each([&](int32_t id, float logit) {
    if (id < masked && (__ldg(mask + id / 32) >> (id % 32) & 1) == 0) {
      walk.row[id] = logit = -INFINITY;
    }
    if (logit > largest) largest = logit, id_of_largest = id;
  });
  return largest_of_row<parts>(id_of_largest < 0 ? 0 : make_key(largest, id_of_largest), part, shared.most, shared);
}

// --- Step 2.

/// Which tokens a search still looks among: those of a bin of the first histogram with keys in [least, most].
struct Crowd {
  float largest, inverse_temperature;
  int32_t bin;  // -1: of all bins
  uint64_t least, most;

  __device__ __forceinline__ int bin_of(float logit) const {
    const float distance = __fmul_rn(__fsub_rn(largest, logit), inverse_temperature);
    return min(static_cast<int>(distance * (kBins / kFarthest)), kBins - 1);
  }
};

template <int parts>
class Search {
 public:
  __device__ __forceinline__ Search(const Walk<parts>& walk, int part, float largest, float inverse_temperature,
                                    Shared<parts>& shared)
      : walk_(walk), part_(part), crowd_{largest, inverse_temperature, -1, 0, ~uint64_t{0}}, shared_(shared) {}

  /// Top-k, or after it, by_weight, top-p: the shortest beginning of the tokens, by falling keys, that has as many
  /// tokens, or as large a share of the weight that has stayed so far.
  __device__ __forceinline__ void apply(const SamplingJob& job, bool by_weight) {
    crowd_.bin = -1, crowd_.least = 0, crowd_.most = ~uint64_t{0};
    CountAndWeight before = {0, 0};
    uint64_t wanted = 0;
    uint32_t count = 0;
    int shift = -1;  // of the first histogram, whose bins are not of keys
    do {
      if (shift >= 0 || !surveyed_) count_bins(shift);
      const Scan scan = scan_bins();
      if (shift < 0) {
        surveyed_ = true;
        if (limit_.weight == 0) limit_.weight = scan.weights, tokens_ = scan.counts;
        wanted = by_weight ? max(least(job.top_p, limit_.weight), uint64_t{1}) : static_cast<uint64_t>(job.top_k);
        if (wanted >= (by_weight ? limit_.weight : tokens_)) return;  // all stay
      }
      count = enter_bin(scan, by_weight, wanted, before);
      if (shift < 0) {
        crowd_.bin = shared_.found;
        if (count > kCollected) {
          find_ends();
          surveyed_ = false;  // by the end of the search
        }
      } else {
        const uint64_t offset = static_cast<uint64_t>(shared_.found) << shift;
        crowd_.most -= offset;
        crowd_.least = max(crowd_.least, crowd_.most - min(crowd_.most, (uint64_t{1} << shift) - 1));
      }
      shift = max(0, 64 - __clzll(static_cast<int64_t>(crowd_.most - crowd_.least)) - kBinBits);
    } while (count > kCollected);
    collect();
    if (part_ == 0) {
      sort_collected(count);
      find_collected(by_weight, wanted, before, count);
    }
    row_sync<parts>();
    limit_ = shared_.limit;
  }

  /// The key from which on tokens stay.
  __device__ __forceinline__ uint64_t last_key() const { return limit_.key; }

 private:
  /// What a thread knows of a histogram.
  struct Scan {
    CountAndWeight bins[kThreadBins];  // the thread's own
    uint64_t count, weight;            // of the bins before these
    uint64_t counts, weights;          // of all bins
  };

  /// Calls visit(key, weight) for the crowd's tokens.
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    const float least_logit = logit_of_key(crowd_.least);  // NaN if `least` is the key of no number
    walk_.each([&](int32_t id, float logit) {
      if (logit < least_logit) return;
      const uint64_t own = weight(logit, crowd_.largest, crowd_.inverse_temperature);
      if (own == 0 || (crowd_.bin >= 0 && crowd_.bin_of(logit) != crowd_.bin)) return;
      const uint64_t key = make_key(logit, id);
      if (key >= crowd_.least && key <= crowd_.most) visit(key, own);
    });
  }

  /// A histogram of the crowd, in all blocks: of distances, or from shift 0 on of keys.
  __device__ __forceinline__ void count_bins(int shift) {
    row_sync<parts>();  // an earlier histogram has been read by all
    for (int i = threadIdx.x; i < kBins; i += kThreads) shared_.counts[i] = shared_.low[i] = shared_.high[i] = 0;
    __syncthreads();
    each([&](uint64_t key, uint64_t own) {
      const int bin = shift < 0 ? crowd_.bin_of(logit_of_key(key)) : static_cast<int>((crowd_.most - key) >> shift);
      atomicAdd(&shared_.counts[bin], 1u);
      const auto low = static_cast<uint32_t>(own);
      const uint32_t old = atomicAdd(&shared_.low[bin], low);
      const uint32_t high = static_cast<uint32_t>(own >> 32) + (old + low < old ? 1 : 0);
      if (high != 0) atomicAdd(&shared_.high[bin], high);
    });
    row_sync<parts>();
    if constexpr (parts > 1) {  // each block adds up an equal share of the bins, and tells the others
      constexpr int kShare = kBins / parts;
      for (int i = threadIdx.x; i < kShare; i += kThreads) {
        const int bin = part_ * kShare + i;
        CountAndWeight sum = {0, 0};
#pragma unroll
        for (int p = 0; p < parts; ++p) {
          sum.count += *in_part<parts>(&shared_.counts[bin], p);
          sum.weight += static_cast<uint64_t>(*in_part<parts>(&shared_.high[bin], p)) << 32;
          sum.weight += *in_part<parts>(&shared_.low[bin], p);
        }
#pragma unroll
        for (int p = 0; p < parts; ++p) {
          *in_part<parts>(&shared_.counts[bin], p) = sum.count;
          *in_part<parts>(&shared_.low[bin], p) = static_cast<uint32_t>(sum.weight);
          *in_part<parts>(&shared_.high[bin], p) = static_cast<uint32_t>(sum.weight >> 32);
        }
      }
      row_sync<parts>();
    }
  }

  __device__ __forceinline__ Scan scan_bins() {
    Scan scan;
    uint64_t count = 0, weight = 0;
#pragma unroll
    for (int i = 0; i < kThreadBins; ++i) {
      const int bin = static_cast<int>(threadIdx.x) * kThreadBins + i;
      scan.bins[i] = {shared_.counts[bin], static_cast<uint64_t>(shared_.high[bin]) << 32 | shared_.low[bin]};
      count += scan.bins[i].count, weight += scan.bins[i].weight;
    }
    scan.count = prefix(count, shared_.scan, scan.counts);
    scan.weight = prefix(weight, shared_.scan, scan.weights);
    return scan;
  }

  /// Finds the bin in which the limit is passed, as shared_.found; takes what lies before it off `wanted` and adds it
  /// to `before`. Returns the number of its tokens.
  __device__ __forceinline__ uint32_t enter_bin(Scan scan, bool by_weight, uint64_t& wanted, CountAndWeight& before) {
#pragma unroll
    for (int i = 0; i < kThreadBins; ++i) {
      const CountAndWeight bin = scan.bins[i];
      const uint64_t reached = by_weight ? scan.weight : scan.count, own = by_weight ? bin.weight : bin.count;
      if (reached < wanted && wanted <= reached + own) {  // of one bin
        shared_.found = static_cast<int32_t>(threadIdx.x) * kThreadBins + i;
        shared_.bin_before = {static_cast<uint32_t>(scan.count), scan.weight};
      }
      scan.count += bin.count, scan.weight += bin.weight;
    }
    __syncthreads();
    const CountAndWeight skipped = shared_.bin_before;
    wanted -= by_weight ? skipped.weight : skipped.count;
    before.count += skipped.count, before.weight += skipped.weight;
    return shared_.counts[shared_.found];
  }

  /// Narrows the crowd to the keys that it has.
  __device__ __forceinline__ void find_ends() {
    uint64_t least = ~uint64_t{0}, most = 0;
    each([&](uint64_t key, uint64_t) { least = min(least, key), most = max(most, key); });
    crowd_.most = largest_of_row<parts>(most, part_, shared_.most, shared_);
    crowd_.least = ~largest_of_row<parts>(~least, part_, shared_.least, shared_);
  }

  /// Brings the crowd's keys to the first block. There is room for them all.
  __device__ __forceinline__ void collect() {
    if (threadIdx.x == 0) shared_.collected_count = 0;
    row_sync<parts>();
    each([&](uint64_t key, uint64_t) {
      const uint32_t i = atomicAdd(in_part<parts>(&shared_.collected_count, 0), 1u);
      *in_part<parts>(&shared_.collected[i], 0) = key;
    });
    row_sync<parts>();
  }

  /// By falling keys: a bitonic sort, filled up with 0 to a power of 2.
  __device__ __forceinline__ void sort_collected(uint32_t count) {
    int size = 2;
    while (size < static_cast<int>(count)) size *= 2;
    for (int i = static_cast<int>(count + threadIdx.x); i < size; i += kThreads) shared_.collected[i] = 0;
    __syncthreads();
#pragma unroll 1
    for (int length = 2; length <= size; length *= 2) {
#pragma unroll 1
      for (int distance = length / 2; distance > 0; distance /= 2) {
#pragma unroll 1
        for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
          const int i = 2 * (pair & -distance) + (pair & (distance - 1)), j = i + distance;
          const uint64_t a = shared_.collected[i], b = shared_.collected[j];
          if ((a < b) == ((i & length) == 0)) shared_.collected[i] = b, shared_.collected[j] = a;
        }
        __syncthreads();
      }
    }
  }

  /// The limit among the sorted tokens, told to all blocks.
  __device__ __forceinline__ void find_collected(bool by_weight, uint64_t wanted, const CountAndWeight& before,
                                                 uint32_t count) {
    uint64_t keys[kThreadCollected], weights[kThreadCollected], sum, own = 0;
#pragma unroll
    for (int k = 0; k < kThreadCollected; ++k) {
      const uint32_t i = threadIdx.x * kThreadCollected + k;
      keys[k] = i < count ? shared_.collected[i] : 0;
      weights[k] =
          i < count ? chatglm::cuda::weight(logit_of_key(keys[k]), crowd_.largest, crowd_.inverse_temperature) : 0;
      own += weights[k];
    }
    uint64_t weight = prefix(own, shared_.scan, sum);
#pragma unroll
    for (int k = 0; k < kThreadCollected; ++k) {
      const uint32_t i = threadIdx.x * kThreadCollected + k;
      const bool is_last = by_weight ? weight < wanted && wanted <= weight + weights[k] : i + 1 == wanted;
      weight += weights[k];
      if (is_last && i < count) {
        for (int p = 0; p < parts; ++p) *in_part<parts>(&shared_.limit, p) = {keys[k], before.weight + weight};
      }
    }
  }

  const Walk<parts>& walk_;
  const int part_;
  Crowd crowd_;
  Shared<parts>& shared_;
  bool surveyed_ = false;  // the histogram is the first one, of all tokens
  uint64_t tokens_ = 0;    // whose weight is not 0
  Limit limit_ = {0, 0};
};

/// The key from which on tokens stay after top-k and top-p. Tokens with a weight of 0 come last, add nothing to a sum
/// and are never drawn, so they count as gone.
template <int parts>
__device__ __forceinline__ uint64_t last_key(const SamplingJob& job, int32_t vocabulary, const Walk<parts>& walk,
                                             int part, float largest, Shared<parts>& shared) {
  const bool has_top_k = job.top_k > 0 && job.top_k < vocabulary, has_top_p = job.top_p < 1.0f;
  Search<parts> search(walk, part, largest, job.inverse_temperature, shared);
#pragma unroll 1
  for (int step = 0; step < 2; ++step) {
    if (step == 0 ? has_top_k : has_top_p) search.apply(job, step == 1);
  }
  return search.last_key();
}

// --- Step 3.

/// The token that is drawn, in the first block.
template <int parts>
__device__ __forceinline__ int32_t draw_kept(const SamplingJob& job, int32_t vocabulary, const Walk<parts>& walk,
                                             int part, float largest, uint64_t last, Shared<parts>& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const uint64_t least_weight = least(fminf(job.min_p, 1.0f), kWholeWeight);
  const float last_logit = last == 0 ? -INFINITY : logit_of_key(last);
  const auto kept_weight = [&](int32_t id, float logit) -> uint64_t {
    if (logit < last_logit) return 0;
    const uint64_t own = weight(logit, largest, job.inverse_temperature);
    return own >= least_weight && make_key(logit, id) >= last ? own : 0;
  };
  uint64_t own = 0;
  walk.each([&](int32_t id, float logit) { own += kept_weight(id, logit); });
  own = warp_sum(own);
  if (thread % 32 == 0) *in_part<parts>(&shared.stretches[part * kWarps + thread / 32], 0) = own;
  row_sync<parts>();
  if (part != 0) return 0;

  uint64_t sum, ignored;
  const uint64_t stretch = thread < kWarps * parts ? shared.stretches[thread] : 0;
  const uint64_t before = prefix(stretch, shared.scan, sum);
  const uint64_t point = __umul64hi(job.random, sum);
  if (before <= point && point < before + stretch) shared.found = thread, shared.before = before;
  __syncthreads();

  const int32_t length = Walk<parts>::stretch(vocabulary), each = (length + kThreads - 1) / kThreads;
  const int32_t end_of_stretch = min((shared.found + 1) * length, vocabulary);
  const int32_t begin = shared.found * length + thread * each, end = min(begin + each, end_of_stretch);
  uint64_t mine = 0;
#pragma unroll 2
  for (int32_t id = begin; id < end; ++id) mine += kept_weight(id, __ldcg(walk.row + id));
  uint64_t reached = shared.before + prefix(mine, shared.scan, ignored);
  if (reached <= point && point < reached + mine) {
#pragma unroll 1
    for (int32_t id = begin; id < end; ++id) {
      reached += kept_weight(id, __ldcg(walk.row + id));
      if (reached > point) {
        shared.found = id;
        break;
      }
    }
  }
  __syncthreads();
  return shared.found;
}

template <int parts>
__global__ void __launch_bounds__(kThreads, 2) draw_row(float* logits, const SamplingJob* jobs, int32_t vocabulary,
                                                        uint32_t* lists, const RowStats* stats, Outcome* outcomes) {
  __shared__ Shared<parts> shared;
  let_next_kernel_start();
  const int thread = static_cast<int>(threadIdx.x), part = static_cast<int>(blockIdx.x) % parts;
  const int64_t index = blockIdx.x / parts;
  row_arrive<parts>();
  wait_for_previous_kernel();
  if (thread < static_cast<int>(sizeof(SamplingJob) / 4)) {
    reinterpret_cast<uint32_t*>(&shared.job)[thread] = reinterpret_cast<const uint32_t*>(jobs + index)[thread];
  }
  __syncthreads();
  row_wait<parts>();  // all blocks of the row run, so that their shared memory may be written
  const SamplingJob& job = shared.job;
  if (job.use != SamplingJob::sample || !job.whole || !stats[index].finite) return;  // alike in all blocks of the row

  float* const row = logits + index * vocabulary;
  const Walk<parts> walk(row, vocabulary, part);
  const bool listed = job.bias_count > 0 || job.counts_count > 0 || job.banned_count > 0;
  const bool changed = listed || job.mask_words > 0;
  float largest = stats[index].largest;
  int32_t token = -1;
  if (changed) {
    if (listed) {
      change_listed<parts>(job, row, vocabulary, lists, part);
      row_sync<parts>();
    }
    const uint64_t key = largest_changed<parts>(job, walk, lists, part, shared);
    if (key == 0) {
      if (part == 0 && thread == 0) write_failure(outcomes + job.outcome, Outcome::Status::none_allowed, job);
      return;
    }
    largest = logit_of_key(key);
    if (is_greedy(job)) token = id_of_key(key);
  }
  if (token < 0) {
    const uint64_t last = last_key<parts>(job, vocabulary, walk, part, largest, shared);
    token = draw_kept<parts>(job, vocabulary, walk, part, largest, last, shared);
  }
  if (part != 0) return;

  float logprob = 0;
  if (job.logprobs >= 0) {
    if (thread == 0) shared.raw = __ldcg(row + token);
    __syncthreads();
    // The lists have what the row had before; where both have the token, the list of biases, which came first.
    const auto look_up = [&](int32_t list, int32_t count) {
#pragma unroll 1
      for (int i = thread; i < count; i += kThreads) {
        if (static_cast<int32_t>(__ldcg(lists + list + 2 * i)) == token) {
          shared.raw = __uint_as_float(__ldcg(lists + list + 2 * i + 1));
        }
      }
      __syncthreads();
    };
    if (job.counts_count > 0) look_up(job.counts, job.counts_count);
    if (job.bias_count > 0) look_up(job.bias, job.bias_count);
    logprob = stats[index].logprob(shared.raw);
  }
  if (thread == 0) {
    write_head(outcomes + job.outcome, Outcome::Status::ok, token, logprob, listed_tokens(job, vocabulary));
  }
}

template <int parts>
void launch_draw_rows(const Launch& launch, float* logits, const SamplingJob* jobs, int32_t rows, int32_t vocabulary,
                      uint32_t* lists, const RowStats* stats, Outcome* outcomes) {
  launch_kernel_in_clusters(launch, draw_row<parts>, dim3(static_cast<uint32_t>(rows * parts)), dim3(kThreads), 0,
                            parts, logits, jobs, vocabulary, lists, stats, outcomes);
}

}  // namespace

void draw_rows(const Launch& launch, float* logits, const SamplingJob* jobs, int32_t rows, int32_t vocabulary,
               uint32_t* lists, const RowStats* stats, Outcome* outcomes) {
  if (rows == 0) return;
  const int32_t parts = parts_of_rows(launch, rows, vocabulary);
  const auto launch_rows = parts == 8   ? launch_draw_rows<8>
                           : parts == 4 ? launch_draw_rows<4>
                           : parts == 2 ? launch_draw_rows<2>
                                        : launch_draw_rows<1>;
  launch_rows(launch, logits, jobs, rows, vocabulary, lists, stats, outcomes);
}

}  // namespace chatglm::cuda
