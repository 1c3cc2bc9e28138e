#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace chatglm {

/// Prompt-lookup decoding: guesses the next tokens of one sequence from what followed the last time that its last three
/// tokens stood in its prompt or answer, or, where a guess was right but for its end, of what follows its end there: a
/// text that is rewritten differs in single tokens. A guess costs one look-up in a table.
///
/// Drafts are verified by what they are to the sampler: at each of their places it draws a token from the model's
/// logits, with the random bits of that place, and a draft is accepted if it is the token that was drawn. So the answer
/// is the one without drafts, for every sampling option.
class Speculator {
 public:
  static constexpr int32_t kMostDrafts = 7;

  /// The guess, at most `most` tokens; none if there is none, or while earlier guesses of this sequence were wrong.
  /// tokens: all of the sequence so far; the next call has the same tokens and more.
  std::span<const int32_t> draft(std::span<const int32_t> tokens, int32_t most);
  /// Of the drafts, so many were accepted.
  void judge(int32_t drafts, int32_t accepted);
  /// A step without a draft, because drafts did not pay: what was wrong long ago counts less.
  void rest() { acceptance_ += 0.01 * (1 - acceptance_); }
  /// The share of recent drafts that were accepted, from 0 to 1.
  double acceptance() const { return acceptance_; }

 private:
  static constexpr int32_t kGram = 3;  // with two tokens more guesses are wrong than right, with four few are made

  int32_t& slot_of(std::span<const int32_t> tokens, int32_t end);
  void grow(std::span<const int32_t> tokens);

  /// A hash table of the three-token groups: at each group's place the position after its last occurrence, or 0.
  std::vector<int32_t> table_;
  int32_t entered_ = kGram - 1;  // groups that end before this position are in the table
  std::vector<int32_t> drafts_;
  int32_t length_ = 3;  // of the next draft
  int32_t source_ = 0;  // position that the last draft was taken from
  int32_t resume_ = 0;  // position to go on from if the last tokens stood nowhere before; 0: none
  int32_t wrong_ = 0;   // drafts in sequence of which nothing was accepted
  int32_t pause_ = 0;   // calls until the next draft
  double acceptance_ = 1;
};

}  // namespace chatglm
