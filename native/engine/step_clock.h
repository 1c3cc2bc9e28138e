#pragma once
#include <array>
#include <cstdint>

namespace chatglm {

/// The median of the last few measurements, which a single slow step does not move.
class RecentMedian {
 public:
  void add(double value);
  bool is_known() const { return count_ > 0; }
  int32_t count() const { return count_; }  // of all measurements
  double value() const;                     // 0 without a measurement

 private:
  static constexpr int32_t kKept = 5;
  std::array<double, kKept> values_{};
  int32_t count_ = 0;
};

/// What a step takes: learned from the steps themselves, for the decisions of the scheduler. Times are milliseconds.
///
/// A step has some decoding sequences of one token each, and further tokens: chunks of prompts, or drafts. Without
/// further tokens a step gives the time of so many decoding sequences, by powers of two. With them, a step gives what
/// its further tokens took beyond that, by powers of two too, since a token of a long chunk takes less than one of a
/// short chunk. What was measured more than kFresh mixed steps ago is measured again when there is occasion: a
/// measurement that was too slow would otherwise never be corrected, because nobody chooses what seems to be slow.
class StepClock {
 public:
  static constexpr int32_t kBuckets = 16;
  static constexpr int64_t kFresh = 64;
  static int32_t bucket_of(int32_t count);

  void learn(int32_t decoding, int32_t further, double milliseconds);

  /// The time of a step with nothing but decoding sequences; 0 as long as no such step was measured.
  double decode_ms(int32_t decoding) const;
  /// Whether that time was measured lately and often enough not to be a single slow step's. Else a step without further
  /// tokens is due: what these take is the difference to such a step.
  bool knows_decode(int32_t decoding) const;
  /// What further tokens add. What was not measured is taken to cost what a token of the next shorter measured chunk
  /// costs, or of the next longer one if there is no shorter one. 0 as long as nothing was measured.
  double further_ms(int32_t tokens) const;
  /// The most further tokens, at least `least` and at most `most`, that add at most `budget_ms`. What was not measured
  /// is tried in steps: a chunk is at most twice as long as those that were measured lately beside decoding sequences,
  /// or as long as one that was measured alone, in a step that read the weights for nothing else.
  int32_t tokens_within(double budget_ms, int32_t least, int32_t most) const;
  /// Further tokens are to be measured anew.
  void forget_further() { further_ = {}; }

 private:
  struct Further {
    RecentMedian of_token;
    int64_t step = 0;    // the mixed step of the last measurement
    int32_t tokens = 0;  // of the last measurement
  };
  bool is_fresh(const Further& further) const {
    return further.of_token.is_known() && mixed_steps_ - further.step < kFresh;
  }
  double of_token(int32_t bucket) const;

  std::array<RecentMedian, kBuckets> decode_;         // by decoding sequences
  std::array<int64_t, kBuckets> decode_steps_{};      // the mixed steps before the last measurement
  std::array<Further, kBuckets> further_;             // by further tokens
  std::array<RecentMedian, kBuckets> prefill_alone_;  // a token, of steps without decoding sequences
  int64_t mixed_steps_ = 0;                           // with decoding sequences and further tokens
};

}  // namespace chatglm
