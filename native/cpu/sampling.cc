#include "cpu/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/sampling_math.h"

namespace chatglm::cpu {

namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();

struct Candidate {
  float logit;
  int32_t id;
  int64_t weight = 0;
};

// The order in which tokens stay: by falling logit, of equal logits by rising id.
bool comes_before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
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

  /// Sets a logit; measure() has to follow.
  void set(int32_t id, float value) { logits_[static_cast<size_t>(id)] = value; }
  /// Bans the tokens whose bits are 0; measure() has to follow.
  void apply(std::span<const uint32_t> mask) {
    for (size_t word = 0; word * 32 < logits_.size(); ++word) {
      const uint32_t bits = word < mask.size() ? mask[word] : 0;
      if (bits == ~uint32_t{0}) continue;
      const std::span<float> part = logits_.subspan(word * 32, std::min<size_t>(32, logits_.size() - word * 32));
      for (size_t bit = 0; bit < part.size(); ++bit) {
        if ((bits >> bit & 1) == 0) part[bit] = kBanned;
      }
    }
  }
  bool measure() { return kernels_.chunk_maxima(logits_.data(), static_cast<int64_t>(logits_.size()), maxima_.data()); }

  /// Appends the tokens whose logits are at least `floor`.
  void collect(float floor, std::vector<Candidate>& result) const {
    for (size_t chunk = 0; chunk < maxima_.size(); ++chunk) {
      if (!(maxima_[chunk] >= floor)) continue;
      const std::span<float> part = chunk_at(chunk);
      for (float& logit : part) {
        if (logit >= floor) result.push_back({logit, static_cast<int32_t>(&logit - logits_.data())});
      }
    }
  }

  /// The `count` tokens that come first, in no order.
  void collect_first(size_t count, std::vector<Candidate>& result) const {
    result.clear();
    float floor = kBanned;
    if (count < maxima_.size()) {
      // So many chunks have a logit of at least the count-th largest of their maxima.
      thread_local std::vector<float> order;
      order = maxima_;
      std::ranges::nth_element(order, order.begin() + static_cast<int64_t>(count) - 1, std::greater<>());
      floor = order[count - 1];
    }
    collect(floor, result);
    if (count >= result.size()) return;
    std::nth_element(result.begin(), result.begin() + static_cast<int64_t>(count) - 1, result.end(), comes_before);
    result.resize(count);
  }

  /// The sum of the weights of each chunk, and of all.
  std::span<const double> weigh(float largest, float inverse_temperature, int64_t& sum) const {
    thread_local std::vector<double> sums;
    sums.resize(maxima_.size());
    kernels_.chunk_weights(logits_.data(), static_cast<int64_t>(logits_.size()), largest, inverse_temperature,
                           sums.data());
    double total = 0;  // exact: whole numbers
    for (const double part : sums) total += part;
    sum = static_cast<int64_t>(total);
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
  if (!draw.mask.empty()) row.apply(draw.mask);
  for (const int32_t id : draw.banned) {
    if (row.has(id)) row.set(id, kBanned);
  }
  row.measure();
}

// Keeps the fewest candidates that come first and whose weights sum up to `least`, at least one.
void keep_top(std::vector<Candidate>& candidates, int64_t least) {
  auto begin = candidates.begin(), end = candidates.end();  // the last one that stays lies between
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, comes_before);
    int64_t sum = 0;
    for (auto c = begin; c != middle; ++c) sum += c->weight;
    if (sum >= least) {
      end = middle;
    } else {
      least -= sum;
      begin = middle;
    }
  }
  candidates.erase(end, candidates.end());
}

// Step 9 of Draw, of what is left of the candidates.
int32_t draw_from(std::vector<Candidate>& candidates, uint64_t random) {
  std::ranges::sort(candidates, {}, &Candidate::id);
  int64_t sum = 0;
  for (const Candidate& c : candidates) sum += c.weight;
  int64_t point = drawn_point(random, sum);
  for (const Candidate& c : candidates) {
    point -= c.weight;
    if (point < 0) return c.id;
  }
  return candidates.back().id;
}

// Steps 5 to 9 of Draw, where all tokens stay.
int32_t draw_from_all(const Draw& draw, const ChunkedRow& row, float largest, std::span<const double> sums,
                      int64_t sum) {
  int64_t point = drawn_point(draw.random, sum);
  size_t chunk = 0;
  while (point >= static_cast<int64_t>(sums[chunk])) point -= static_cast<int64_t>(sums[chunk++]);
  int32_t id = static_cast<int32_t>(chunk) * kSampleChunk;
  for (const float logit : row.chunk_at(chunk)) {
    point -= weight_of(logit, largest, draw.inverse_temperature);
    if (point < 0) break;
    ++id;
  }
  return id;
}

// Steps 5 to 9 of Draw.
int32_t drawn(const Draw& draw, const ChunkedRow& row, float largest) {
  thread_local std::vector<Candidate> candidates;
  candidates.clear();
  int64_t sum = 0;
  const bool all = draw.top_k <= 0 || draw.top_k >= row.size();
  const auto weigh = [&] {
    for (Candidate& c : candidates) c.weight = weight_of(c.logit, largest, draw.inverse_temperature);
  };
  if (!all) {
    row.collect_first(static_cast<size_t>(draw.top_k), candidates);
    weigh();
    for (const Candidate& c : candidates) sum += c.weight;
  } else {
    const std::span<const double> sums = row.weigh(largest, draw.inverse_temperature, sum);
    if (draw.top_p >= 1 && draw.min_p <= 0) return draw_from_all(draw, row, largest, sums, sum);
    // Tokens below a floor stay in no case: those that are too unlikely for min-p; and of all tokens those that each
    // have less than the n-th part of what top-p leaves out, as their sum is less than that. The logarithm is rounded,
    // so the floor lies a little lower.
    const double least =
        std::max<double>(static_cast<double>(least_weight(draw.min_p)),
                         (1.0 - static_cast<double>(draw.top_p)) / row.size() * static_cast<double>(sum));
    const double exponent = std::log(std::max(least, 0.4) / static_cast<double>(kWholeWeight)) - 1e-3;
    row.collect(static_cast<float>(largest + exponent / draw.inverse_temperature - 1e-3 * std::abs(largest)),
                candidates);
    weigh();
  }
  if (draw.top_p < 1) keep_top(candidates, least_sum(draw.top_p, sum));
  if (draw.min_p > 0)
    std::erase_if(candidates, [least = least_weight(draw.min_p)](const Candidate& c) { return c.weight < least; });
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
  thread_local std::vector<Candidate> likeliest, raw;
  raw.clear();
  if (row.logprobs >= 0) {
    int64_t sum = 0;
    const float largest = chunked.largest();
    chunked.weigh(largest, 1.0f, sum);
    log_sum = largest + std::log(static_cast<double>(sum) / static_cast<double>(kWholeWeight));
    outcome.count = std::min({row.logprobs, chunked.size(), Outcome::kMostLogprobs});
    if (outcome.count > 0) {
      chunked.collect_first(static_cast<size_t>(outcome.count), likeliest);
      std::ranges::sort(likeliest, comes_before);
    }
    for (int32_t i = 0; i < outcome.count; ++i) {
      outcome.ids[i] = likeliest[static_cast<size_t>(i)].id;
      outcome.logprobs[i] = static_cast<float>(likeliest[static_cast<size_t>(i)].logit - log_sum);
    }
    // The chosen token's own logit is wanted, too, and what is written over is noted.
    if (samples) {
      for (const auto& [id, _] : row.draw->bias) raw.push_back({chunked.has(id) ? chunked[id] : 0, id});
      for (const auto& [id, _] : row.draw->counts) raw.push_back({chunked.has(id) ? chunked[id] : 0, id});
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
    outcome.token = greedy ? chunked.likeliest() : drawn(draw, chunked, largest);
  }
  if (row.logprobs >= 0) {
    const auto written = std::ranges::find(raw, outcome.token, &Candidate::id);
    const float logit = written != raw.end() ? written->logit : chunked[outcome.token];
    outcome.logprob = static_cast<float>(logit - log_sum);
  }
  return outcome;
}

}  // namespace chatglm::cpu
