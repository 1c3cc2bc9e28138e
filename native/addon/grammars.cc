#include "addon/grammars.h"

#include <numeric>
#include <utility>
#include <vector>

#include "addon/arguments.h"

namespace chatglm::addon {

GrammarSpec grammar_of(const Napi::Value& value) {
  const Napi::Object object = object_of(value, "grammar");
  return {string_of(object.Get("text"), "grammar.text"), string_of(object.Get("prefix"), "grammar.prefix"),
          boolean_of(object.Get("dummySpace"), "grammar.dummySpace")};
}

std::shared_ptr<TokenGrammar> Grammars::get(const GrammarSpec& spec) {
  const std::string key = (spec.dummy_space ? "1" : "0") + spec.prefix + '\0' + spec.text;
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = by_key_.find(key); found != by_key_.end()) {
      entries_.splice(entries_.begin(), entries_, found->second);
      return found->second->grammar;
    }
  }
  std::call_once(trie_built_, [&] {
    const std::shared_ptr<const Tokenizer> tokenizer = tokenizer_();
    std::vector<uint32_t> special(vocabulary_ > tokenizer->size() ? vocabulary_ - tokenizer->size() : 0);
    std::iota(special.begin(), special.end(), tokenizer->size());
    trie_ = std::make_shared<const TokenTrie>(tokenizer, std::move(special));
  });
  Grammar compiled(spec.text,
                   {.prefix = spec.prefix, .dummy_space = spec.dummy_space, .longest_token = trie_->longest()});
  for (const uint32_t token : compiled.tokens()) {
    if (!trie_->is_special(token)) {
      throw Error("ERR_INVALID_ARGUMENT", "grammar: <[" + std::to_string(token) +
                                              "]> is no special token of the model; write the text of an ordinary one");
    }
  }
  auto grammar = std::make_shared<TokenGrammar>(std::move(compiled), trie_);
  const std::lock_guard lock(mutex_);
  if (const auto found = by_key_.find(key); found != by_key_.end()) return found->second->grammar;
  entries_.push_front({key, grammar});
  by_key_[key] = entries_.begin();
  size_t kept = 0, bytes = 0;
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    bytes += entry->grammar->bytes();
    if (kept == 0 || (kept < kMostKept && bytes <= kMostBytes)) {
      ++kept;
      ++entry;
    } else {
      by_key_.erase(entry->key);
      entry = entries_.erase(entry);
    }
  }
  return grammar;
}

}  // namespace chatglm::addon
