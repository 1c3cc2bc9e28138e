#pragma once
#include <array>
#include <cstdint>

namespace chatglm {

/// The median of the last few measurements, which a single slow step does not move.
class RecentMedian {
 public:
  void add(double value);
  bool is_known() const { return count_ > 0; }
  double value() const;  // 0 without a measurement

 private:
  static constexpr int32_t kKept = 5;
  std::array<double, kKept> values_{};
  int32_t count_ = 0;  // of all measurements
};

/// What a step takes: learned from the steps themselves, for the decisions of the scheduler. Times are milliseconds.
///
/// A step has some decoding sequences of one token each, and further tokens: chunks of prompts, or drafts. Without
/// further tokens a step gives the time of so many decoding sequences, by powers of two. With them, a step gives what
/// its further tokens took beyond that, by powers of two too, since a token of a long chunk takes less than one of a
/// short chunk.
class StepClock {
 public:
  static constexpr int32_t kBuckets = 16;
  static int32_t bucket_of(int32_t count);

  void learn(int32_t decoding, int32_t further, double milliseconds);

  /// The time of a step with nothing but decoding sequences; 0 as long as no such step was measured.
  double decode_ms(int32_t decoding) const;
  /// What further tokens add, if so many or fewer have been measured; of more tokens than were measured, a token is
  /// taken to cost what a token of the longest measured chunk costs. 0 as long as nothing was measured.
  double further_ms(int32_t tokens) const;
  /// The most further tokens, at least `least` and at most `most`, that add at most `budget_ms`. What was not measured
  /// is tried in steps: a chunk is at most twice as long as those that were measured beside decoding sequences, or as
  /// long as one that was measured alone, in a step that read the weights for nothing else.
  int32_t tokens_within(double budget_ms, int32_t least, int32_t most) const;

 private:
  std::array<RecentMedian, kBuckets> decode_;         // by decoding sequences
  std::array<RecentMedian, kBuckets> further_;        // a token, by further tokens
  std::array<RecentMedian, kBuckets> prefill_alone_;  // a token, of steps without decoding sequences
};

}  // namespace chatglm
