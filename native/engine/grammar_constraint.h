#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/sequence_sampler.h"
#include "text/token_grammar.h"

namespace chatglm {

/// Holds one answer to a grammar. Where the tokens that are left would not suffice for what the answer has begun, only
/// the tokens of the shortest end may come: each byte is a token too, so the bytes of that end are as many tokens at
/// most.
class GrammarConstraint final : public TokenConstraint {
 public:
  /// stop_tokens: that may come where the answer may end, and are not part of it.
  GrammarConstraint(std::shared_ptr<TokenGrammar> grammar, std::vector<int32_t> stop_tokens);

  void limit(int32_t tokens) override { left_ = tokens; }
  void restrict(std::span<uint32_t> mask) override;
  void accept(int32_t token) override;
  std::string problem() const override { return problem_; }

 private:
  void apply(std::span<uint32_t> mask);

  const std::shared_ptr<TokenGrammar> grammar_;
  const std::vector<int32_t> stop_tokens_;
  TokenGrammar::Position position_;
  std::string problem_;       // why the grammar cannot be followed any further
  int32_t left_ = INT32_MAX;  // tokens that the answer may still have, the stop token included
};

}  // namespace chatglm
