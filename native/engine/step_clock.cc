#include "engine/step_clock.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace chatglm {

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
  if (further == 0) return decode_[static_cast<size_t>(bucket_of(decoding))].add(milliseconds);
  const auto bucket = static_cast<size_t>(bucket_of(further));
  if (decoding == 0) return prefill_alone_[bucket].add(milliseconds / further);
  const double base = decode_ms(decoding);
  if (base == 0) return;  // what the further tokens took cannot be told
  further_[bucket].add(std::max(0.0, milliseconds - base) / further);
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

double StepClock::further_ms(int32_t tokens) const {
  double of_token = 0;
  for (int32_t i = bucket_of(tokens); i >= 0 && of_token == 0; --i) {
    if (further_[static_cast<size_t>(i)].is_known()) of_token = further_[static_cast<size_t>(i)].value();
  }
  return of_token * tokens;
}

int32_t StepClock::tokens_within(double budget_ms, int32_t least, int32_t most) const {
  int32_t longest = 0;  // where the next bucket after the measured ones begins
  for (int32_t i = 0; i < kBuckets; ++i) {
    if (further_[static_cast<size_t>(i)].is_known()) longest = 2 << i;
  }
  int32_t best = least;
  for (int32_t i = 0; i < kBuckets; ++i) {
    const int32_t begin = 1 << i, end = std::min((2 << i) - 1, most);
    if (begin > most) break;
    const RecentMedian &mixed = further_[static_cast<size_t>(i)], &alone = prefill_alone_[static_cast<size_t>(i)];
    double of_token = 0;
    if (mixed.is_known()) {
      of_token = mixed.value();
    } else if (begin <= longest) {
      of_token = further_ms(begin) / begin;
    } else if (alone.is_known()) {
      of_token = alone.value();
    } else {
      continue;
    }
    const int32_t fits = of_token * end <= budget_ms ? end : static_cast<int32_t>(budget_ms / of_token);
    if (fits >= begin) best = std::max(best, fits);
  }
  return std::clamp(best, std::min(least, most), most);
}

}  // namespace chatglm
