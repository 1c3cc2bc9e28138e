#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/sampling.h"
#include "engine/speculator.h"

namespace chatglm {

/// Says token by token which ones may come next: a grammar, for one. One object belongs to one sequence.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  /// Why restrict() left no token, if the constraint has failed.
  virtual std::string problem() const { return {}; }
  /// Called once, before the other methods: the most tokens that will be asked for, a stop token included.
  virtual void limit(int32_t tokens) = 0;
  /// Clears the bits of the tokens that may not come next. `mask` is as Draw::mask; some bits may be clear already.
  virtual void restrict(std::span<uint32_t> mask) = 0;
  /// The token that was chosen.
  virtual void accept(int32_t token) = 0;
};

/// How a sequence's next tokens are chosen, as its caller says: Draw has the steps.
struct Sampling {
  float temperature = 0.8f;  // 0: the likeliest token always
  int32_t top_k = 50;
  float top_p = 0.8f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // of tokens of prompt and answer
  float presence_penalty = 0.0f;    // of tokens of the answer
  float frequency_penalty = 0.0f;
  std::vector<std::pair<uint32_t, float>> bias;  // of a token that comes several times the sum
  /// Tokens that must not follow each other. As Hugging Face's NoBadWordsLogitsProcessor has it, the last token of one
  /// is banned where the tokens before it stand at the end of prompt and answer; the token of one that has no other
  /// always.
  std::vector<std::vector<int32_t>> banned;
  std::vector<uint32_t> mask;  // as Draw::mask; tokens for whose bits it is too short are not allowed
  std::shared_ptr<TokenConstraint> constraint;
  uint64_t seed = 0;
  int32_t logprobs = -1;  // Row::logprobs
};

/// The state of one sequence's sampling: what is wanted of the logits for its next token, and what was chosen so far.
class SequenceSampler {
 public:
  SequenceSampler(Sampling sampling, std::span<const int32_t> prompt, int32_t vocabulary);
  SequenceSampler(const SequenceSampler&) = delete;

  /// What is wanted of the row for the next token. It points into this object, until the next call.
  Row row();
  /// Whether what is wanted of a row does not depend on the tokens before, but for the random bits.
  bool is_plain() const;
  /// For drafts, if is_plain(): what is wanted of the row for the token that comes `ahead` places later than the next
  /// one, 0 to Speculator::kMostDrafts. It points into this object, until accept().
  Row row_at(int32_t ahead);
  /// The token that was chosen.
  void accept(int32_t token);
  /// Why no token is allowed, for people.
  std::string problem() const;

 private:
  bool penalizes() const;
  void count(int32_t token, int32_t times);
  void ban();

  Sampling sampling_;
  int32_t vocabulary_;
  std::array<Draw, Speculator::kMostDrafts + 1> draws_;
  std::vector<TokenBias> bias_;
  std::vector<TokenCount> counts_;
  std::unordered_map<int32_t, size_t> places_;  // of tokens in counts_
  size_t longest_banned_ = 0;
  std::vector<int32_t> tail_;        // the last tokens of prompt and answer, as many as a banned sequence may end with
  std::vector<int32_t> banned_now_;  // of the next token
  std::vector<uint32_t> mask_;       // of the next token, with a constraint
  uint32_t place_ = 0;               // of the next token in the answer
};

}  // namespace chatglm
