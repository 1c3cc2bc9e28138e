#include "engine/step_clock.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace chatglm {

namespace {

constexpr int32_t kRobust = 3;  // measurements of which one may be wrong

}  // namespace

void RecentMedian::add(double value) { values_[static_cast<size_t>(count_++ % kKept)] = value; }

double RecentMedian::value() const {
  if (count_ == 0) return 0;
  const size_t count = static_cast<size_t>(std::min(count_, kKept));
  std::array<double, kKept> sorted;
  sorted.fill(std::numeric_limits<double>::infinity());  // where nothing was measured yet
  std::copy_n(values_.begin(), count, sorted.begin());
  std::ranges::sort(sorted);
  // Of an even number the smaller one: the first step of a kind is often the slowest.
  return sorted[(count - 1) / 2];
}

int32_t StepClock::bucket_of(int32_t count) {
  return std::min(kBuckets - 1, static_cast<int32_t>(std::bit_width(static_cast<uint32_t>(std::max(1, count)))) - 1);
}

void StepClock::learn(int32_t decoding, int32_t further, double milliseconds) {
  if (decoding == 0 && further == 0) return;
  const auto sequences = static_cast<size_t>(bucket_of(decoding)), tokens = static_cast<size_t>(bucket_of(further));
  if (decoding == 0) return prefill_alone_[tokens].add(milliseconds / further);
  if (further == 0) {
    decode_steps_[sequences] = mixed_steps_;
    return decode_[sequences].add(milliseconds);
  }
  ++mixed_steps_;
  const double base = decode_ms(decoding);
  if (base == 0) return;  // what the further tokens took cannot be told
  further_[tokens].of_token.add(std::max(0.0, milliseconds - base) / further);
  further_[tokens].step = mixed_steps_;
  further_[tokens].tokens = further;
}

bool StepClock::knows_decode(int32_t decoding) const {
  const auto bucket = static_cast<size_t>(bucket_of(decoding));
  return decode_[bucket].count() >= kRobust && mixed_steps_ - decode_steps_[bucket] < kFresh;
}

double StepClock::decode_ms(int32_t decoding) const {
  // The nearest known number; fewer sequences first, as these do not take longer.
  const int32_t bucket = bucket_of(decoding);
  for (int32_t i = bucket; i >= 0; --i) {
    if (decode_[static_cast<size_t>(i)].is_known()) return decode_[static_cast<size_t>(i)].value();
  }
  for (int32_t i = bucket + 1; i < kBuckets; ++i) {
    if (decode_[static_cast<size_t>(i)].is_known()) return decode_[static_cast<size_t>(i)].value();
  }
  return 0;
}

// What was measured lately comes before what was measured long ago.
double StepClock::of_token(int32_t bucket) const {
  for (const bool fresh : {true, false}) {
    const auto usable = [&](int32_t i) {
      const Further& further = further_[static_cast<size_t>(i)];
      return fresh ? is_fresh(further) : further.of_token.is_known();
    };
    for (int32_t i = bucket; i >= 0; --i) {
      if (usable(i)) return further_[static_cast<size_t>(i)].of_token.value();
    }
    for (int32_t i = bucket + 1; i < kBuckets; ++i) {
      if (usable(i)) return further_[static_cast<size_t>(i)].of_token.value();
    }
  }
  return 0;
}

double StepClock::further_ms(int32_t tokens) const { return of_token(bucket_of(tokens)) * tokens; }

int32_t StepClock::tokens_within(double budget_ms, int32_t least, int32_t most) const {
  int32_t longest = 0;  // chunk that may be tried although none of its length was measured
  for (const Further& further : further_) {
    if (is_fresh(further)) longest = std::max(longest, 2 * further.tokens);
  }
  int32_t best = least;
  const auto consider = [&](double of_token, int32_t begin, int32_t end) {
    const int32_t fits = of_token * end <= budget_ms ? end : static_cast<int32_t>(budget_ms / of_token);
    if (fits >= begin) best = std::max(best, fits);
  };
  for (int32_t i = 0; i < kBuckets; ++i) {
    const int32_t begin = 1 << i, end = i + 1 < kBuckets ? std::min((2 << i) - 1, most) : most;
    if (begin > most) break;
    const Further& mixed = further_[static_cast<size_t>(i)];
    const RecentMedian& alone = prefill_alone_[static_cast<size_t>(i)];
    if (mixed.of_token.is_known()) consider(mixed.of_token.value(), begin, end);
    if (is_fresh(mixed)) continue;
    if (begin <= longest) {
      consider(of_token(i), begin, std::min(end, longest));
    } else if (!mixed.of_token.is_known() && alone.is_known()) {
      consider(alone.value(), begin, end);
    }
  }
  return std::clamp(best, std::min(least, most), most);
}

}  // namespace chatglm
