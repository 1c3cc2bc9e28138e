#include "engine/grammar_constraint.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace chatglm {

GrammarConstraint::GrammarConstraint(std::shared_ptr<TokenGrammar> grammar, std::vector<int32_t> stop_tokens)
    : grammar_(std::move(grammar)), stop_tokens_(std::move(stop_tokens)), position_(grammar_->begin()) {}

void GrammarConstraint::restrict(std::span<uint32_t> mask) {
  // An exception would end the engine's thread, and with it all other sequences.
  try {
    if (problem_.empty()) return apply(mask);
  } catch (const Error& error) {
    problem_ = error.what();
  }
  std::ranges::fill(mask, 0);
}

void GrammarConstraint::apply(std::span<uint32_t> mask) {
  std::vector<std::pair<size_t, uint32_t>> stops;
  if (grammar_->may_end(position_)) {
    for (const int32_t token : stop_tokens_) {
      const auto word = static_cast<size_t>(token) / 32;
      const uint32_t bit = 1u << (token % 32);
      if (word < mask.size() && (mask[word] & bit) != 0) stops.emplace_back(word, bit);
    }
  }
  if (left_ <= 1 && !stops.empty()) {
    std::ranges::fill(mask, 0);
  } else {
    // Of the tokens behind the next one, one is the stop token.
    grammar_->restrict(position_, mask, static_cast<uint32_t>(std::max(0, left_ - 2)), !stops.empty());
  }
  for (const auto& [word, bit] : stops) mask[word] |= bit;
}

void GrammarConstraint::accept(int32_t token) {
  --left_;
  try {
    // A stop token is not read: nothing comes behind.
    grammar_->advance(position_, static_cast<uint32_t>(token));
  } catch (const Error& error) {
    problem_ = error.what();
  }
}

}  // namespace chatglm
