#include "cpu/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "engine/sampling_math.h"

namespace chatglm::cpu {

namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();

// The bits of a word of Draw::mask. From a table, so that compilers compare 32 of them at once.
constexpr std::array<uint32_t, 32> kBit = [] {
  std::array<uint32_t, 32> bits{};
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = uint32_t{1} << i;
  return bits;
}();

// Tokens that may stay, by rising id, and their logits.
struct Candidates {
  std::vector<int32_t> ids;
  std::vector<float> logits;
  std::vector<int64_t> amounts;  // what each adds to the sum that keep_first() compares

  size_t size() const { return ids.size(); }
  int64_t sum() const { return std::reduce(amounts.begin(), amounts.end(), int64_t{0}); }

  /// Leaves those for whose index `stays` says so.
  template <class Stays>
  void filter(const Stays& stays) {
    size_t kept = 0;
    for (size_t i = 0; i < size(); ++i) {
      ids[kept] = ids[i];
      logits[kept] = logits[i];
      amounts[kept] = amounts[i];
      kept += stays(i) ? 1 : 0;
    }
    ids.resize(kept);
    logits.resize(kept);
    amounts.resize(kept);
  }
};

struct Ranked {
  float logit;
  int64_t amount;
};

// Keeps the fewest candidates, by falling logit and of equal logits by rising id, whose amounts sum up to `least`, at
// least one. Equal logits have equal amounts. The last one that stays is searched for in bins of logits, then in finer
// bins of the bin in which it is, so that only a few are sorted.
void keep_first(Candidates& candidates, int64_t least) {
  constexpr int kBins = 1024;
  constexpr size_t kFew = 64;
  thread_local std::vector<Ranked> left;  // those among which the last one is
  left.resize(candidates.size());
  for (size_t i = 0; i < left.size(); ++i) left[i] = {candidates.logits[i], candidates.amounts[i]};
  while (left.size() > kFew) {
    double low = std::numeric_limits<float>::max(), high = kBanned;  // `low` of those that are allowed
    for (const Ranked& one : left) {
      const double logit = one.logit;
      high = std::max(high, logit);
      low = logit < low && logit > static_cast<double>(kBanned) ? logit : low;
    }
    if (!(low < high)) break;
    const double scale = kBins / (high - low);
    const auto bin_of = [&](float logit) {
      const double bin = (high - static_cast<double>(logit)) * scale;
      return bin < kBins - 1 ? static_cast<int>(bin) : kBins - 1;
    };
    int64_t sums[kBins] = {};
    for (const Ranked& one : left) sums[bin_of(one.logit)] += one.amount;
    int last = 0;
    while (last < kBins - 1 && sums[last] < least) least -= sums[last++];
    std::erase_if(left, [&](const Ranked& one) { return bin_of(one.logit) != last; });
  }
  std::ranges::sort(left, std::greater<>(), &Ranked::logit);
  size_t count = 0;
  while (count < left.size() && (count == 0 || least > 0)) least -= left[count++].amount;
  const float last = left[count - 1].logit;
  const auto first_equal = std::ranges::find(left, last, &Ranked::logit);
  auto equal = left.begin() + static_cast<int64_t>(count) - first_equal;  // so many of that logit stay
  candidates.filter([&](size_t i) {
    const float logit = candidates.logits[i];
    return logit > last || (logit == last && equal-- > 0);
  });
}

/// A row with the largest logit of each of its chunks, by which most chunks need not be looked at.
class ChunkedRow {
 public:
  ChunkedRow(const Kernels& kernels, std::span<float> logits) : kernels_(kernels), logits_(logits) {
    maxima_.resize((logits.size() + kSampleChunk - 1) / kSampleChunk);
    finite_ = measure();
  }

  bool is_finite() const { return finite_; }
  float largest() const { return *std::ranges::max_element(maxima_); }
  float operator[](int32_t id) const { return logits_[static_cast<size_t>(id)]; }
  bool has(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < logits_.size(); }
  int32_t size() const { return static_cast<int32_t>(logits_.size()); }

  /// The lowest id of those with the largest logit.
  int32_t likeliest() const {
    const auto chunk = std::ranges::max_element(maxima_);
    const std::span<float> part = chunk_at(static_cast<size_t>(chunk - maxima_.begin()));
    return static_cast<int32_t>(&*std::ranges::find(part, *chunk) - logits_.data());
  }

  /// Sets a logit; measure_again() has to follow.
  void set(int32_t id, float value) {
    logits_[static_cast<size_t>(id)] = value;
    changed_.push_back(static_cast<size_t>(id) / kSampleChunk);
  }
  /// Bans the tokens whose bits are 0; measure() has to follow.
  void apply(std::span<const uint32_t> mask) {
    size_t begin = 0;
    for (; begin + 32 <= logits_.size(); begin += 32) {
      const uint32_t bits = mask[begin / 32];
      float* const part = logits_.data() + begin;
      for (int bit = 0; bit < 32; ++bit) part[bit] = (bits & kBit[bit]) != 0 ? part[bit] : kBanned;
    }
    for (size_t id = begin; id < logits_.size(); ++id) {
      if ((mask[id / 32] & kBit[id % 32]) == 0) logits_[id] = kBanned;
    }
  }
  bool measure() { return kernels_.chunk_maxima(logits_.data(), static_cast<int64_t>(logits_.size()), maxima_.data()); }
  /// The same for the chunks that set() has changed.
  void measure_again() {
    if (changed_.size() > maxima_.size()) {
      measure();
    } else {
      for (const size_t chunk : changed_) {
        const std::span<float> part = chunk_at(chunk);
        kernels_.chunk_maxima(part.data(), static_cast<int64_t>(part.size()), &maxima_[chunk]);
      }
    }
    changed_.clear();
  }

  /// The tokens whose logits are at least `floor`; each has the amount 1.
  void collect(float floor, Candidates& result) const {
    const auto chunks = std::ranges::count_if(maxima_, [&](float most) { return most >= floor; });
    const size_t most = static_cast<size_t>(chunks) * kSampleChunk;
    result.ids.resize(most);
    result.logits.resize(most);
    size_t count = 0;
    for (size_t chunk = 0; chunk < maxima_.size(); ++chunk) {
      if (!(maxima_[chunk] >= floor)) continue;
      int32_t id = static_cast<int32_t>(chunk) * kSampleChunk;
      for (const float logit : chunk_at(chunk)) {
        result.ids[count] = id++;
        result.logits[count] = logit;
        count += logit >= floor ? 1 : 0;
      }
    }
    result.ids.resize(count);
    result.logits.resize(count);
    result.amounts.assign(count, 1);
  }

  /// The `count` tokens that come first.
  void collect_first(size_t count, Candidates& result) const {
    float floor = kBanned;
    if (count < maxima_.size()) {
      // So many chunks have a logit of at least the count-th largest of their maxima.
      thread_local std::vector<float> order;
      order = maxima_;
      std::ranges::nth_element(order, order.begin() + static_cast<int64_t>(count) - 1, std::greater<>());
      floor = order[count - 1];
    }
    collect(floor, result);
    if (count < result.size()) keep_first(result, static_cast<int64_t>(count));
  }

  /// The sum of the weights of each chunk, and of all.
  std::span<const int64_t> weigh(float largest, float inverse_temperature, int64_t& sum) const {
    thread_local std::vector<int64_t> sums;
    sums.resize(maxima_.size());
    kernels_.chunk_weights(logits_.data(), static_cast<int64_t>(logits_.size()), largest, inverse_temperature,
                           sums.data());
    sum = std::reduce(sums.begin(), sums.end(), int64_t{0});
    return sums;
  }

  std::span<float> chunk_at(size_t chunk) const {
    const size_t begin = chunk * kSampleChunk;
    return logits_.subspan(begin, std::min<size_t>(kSampleChunk, logits_.size() - begin));
  }

 private:
  const Kernels& kernels_;
  std::span<float> logits_;
  std::vector<float> maxima_;
  std::vector<size_t> changed_;  // chunks in which logits were set, since the last measurement
  bool finite_ = false;
};

// Steps 1 to 4 of Draw.
void process(const Draw& draw, ChunkedRow& row) {
  if (draw.bias.empty() && draw.counts.empty() && draw.mask.empty() && draw.banned.empty()) return;
  for (const auto& [id, value] : draw.bias) {
    if (row.has(id)) row.set(id, within_range(row[id] + value));
  }
  for (const auto& [id, count] : draw.counts) {
    if (!row.has(id)) continue;
    row.set(id, within_range(
                    penalized(row[id], draw.repetition_penalty, draw.presence_penalty, draw.frequency_penalty, count)));
  }
  for (const int32_t id : draw.banned) {
    if (row.has(id)) row.set(id, kBanned);
  }
  if (draw.mask.empty()) {
    row.measure_again();
  } else {
    row.apply(draw.mask);
    row.measure();
  }
}

// Step 9 of Draw, of what is left of the candidates.
int32_t draw_from(const Candidates& candidates, uint64_t random) {
  int64_t point = drawn_point(random, candidates.sum());
  size_t i = 0;
  while (i + 1 < candidates.size() && point >= candidates.amounts[i]) point -= candidates.amounts[i++];
  return candidates.ids[i];
}

// Steps 5 to 9 of Draw, where all tokens stay.
int32_t draw_from_all(const Draw& draw, const ChunkedRow& row, float largest, std::span<const int64_t> sums,
                      int64_t sum) {
  int64_t point = drawn_point(draw.random, sum);
  size_t chunk = 0;
  while (point >= sums[chunk]) point -= sums[chunk++];
  int32_t id = static_cast<int32_t>(chunk) * kSampleChunk;
  for (const float logit : row.chunk_at(chunk)) {
    point -= weight_of(logit, largest, draw.inverse_temperature);
    if (point < 0) break;
    ++id;
  }
  return id;
}

// Steps 5 to 9 of Draw.
int32_t drawn(const Kernels& kernels, const Draw& draw, const ChunkedRow& row, float largest) {
  thread_local Candidates candidates;
  int64_t sum = 0;
  const bool all = draw.top_k <= 0 || draw.top_k >= row.size();
  if (!all) {
    row.collect_first(static_cast<size_t>(draw.top_k), candidates);
  } else {
    const std::span<const int64_t> sums = row.weigh(largest, draw.inverse_temperature, sum);
    if (draw.top_p >= 1 && draw.min_p <= 0) return draw_from_all(draw, row, largest, sums, sum);
    // Tokens below a floor stay in no case: those that are too unlikely for min-p; and of all tokens those that each
    // have less than the n-th part of what top-p leaves out, as their sum is less than that. The logarithm is rounded,
    // so the floor lies a little lower.
    const double least = std::max<double>(
        static_cast<double>(least_weight(draw.min_p)),
        (1.0 - std::max(0.0, static_cast<double>(draw.top_p))) / row.size() * static_cast<double>(sum));
    const double exponent = std::log(std::max(least, 0.4) / static_cast<double>(kWholeWeight)) - 1e-3;
    const double floor = largest + exponent / draw.inverse_temperature - 1e-3 * std::abs(largest);
    row.collect(static_cast<float>(std::max<double>(floor, -std::numeric_limits<float>::max())), candidates);
  }
  kernels.weights(candidates.logits.data(), static_cast<int64_t>(candidates.size()), largest, draw.inverse_temperature,
                  candidates.amounts.data());
  if (!all) sum = candidates.sum();
  if (draw.top_p < 1) keep_first(candidates, least_sum(draw.top_p, sum));
  if (draw.min_p > 0)
    candidates.filter([&, least = least_weight(draw.min_p)](size_t i) { return candidates.amounts[i] >= least; });
  return draw_from(candidates, draw.random);
}

}  // namespace

Outcome outcome_of(const Kernels& kernels, const Row& row, std::span<float> logits) {
  Outcome outcome;
  outcome.token = row.target;
  ChunkedRow chunked(kernels, logits);
  if (!chunked.is_finite()) {
    outcome.status = Outcome::Status::not_finite;
    return outcome;
  }
  const bool samples = row.use == Row::Use::sample;
  double log_sum = 0;
  thread_local Candidates likeliest;
  thread_local std::vector<TokenBias> raw;  // tokens that are written over, and their logits
  raw.clear();
  if (row.logprobs >= 0) {
    int64_t sum = 0;
    const float largest = chunked.largest();
    chunked.weigh(largest, 1.0f, sum);
    log_sum = largest + std::log(static_cast<double>(sum) / static_cast<double>(kWholeWeight));
    outcome.count = std::min({row.logprobs, chunked.size(), Outcome::kMostLogprobs});
    if (outcome.count > 0) {
      chunked.collect_first(static_cast<size_t>(outcome.count), likeliest);
      std::ranges::copy(likeliest.ids, outcome.ids);
      std::ranges::stable_sort(outcome.ids, outcome.ids + outcome.count, std::greater<>(),
                               [&](int32_t id) { return chunked[id]; });
    }
    for (int32_t i = 0; i < outcome.count; ++i)
      outcome.logprobs[i] = static_cast<float>(chunked[outcome.ids[i]] - log_sum);
    // The chosen token's own logit is wanted, too, and what is written over is noted.
    if (samples) {
      for (const auto& [id, _] : row.draw->bias) raw.push_back({id, chunked.has(id) ? chunked[id] : 0});
      for (const auto& [id, _] : row.draw->counts) raw.push_back({id, chunked.has(id) ? chunked[id] : 0});
    }
  }
  if (samples) {
    const Draw& draw = *row.draw;
    process(draw, chunked);
    const float largest = chunked.largest();
    if (largest == kBanned) {
      outcome.status = Outcome::Status::none_allowed;
      outcome.count = 0;
      return outcome;
    }
    const bool greedy = draw.inverse_temperature == 0 || draw.top_k == 1;
    outcome.token = greedy ? chunked.likeliest() : drawn(kernels, draw, chunked, largest);
  }
  if (row.logprobs >= 0) {
    const auto written = std::ranges::find(raw, outcome.token, &TokenBias::id);
    const float logit = written != raw.end() ? written->value : chunked[outcome.token];
    outcome.logprob = static_cast<float>(logit - log_sum);
  }
  return outcome;
}

}  // namespace chatglm::cpu
