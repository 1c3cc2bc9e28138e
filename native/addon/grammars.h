#pragma once
#include <napi.h>

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "text/token_grammar.h"

namespace chatglm::addon {

/// What NativeGrammar of lib/addon/native.ts says.
struct GrammarSpec {
  std::string text;
  std::string prefix;
  bool dummy_space = false;
};

GrammarSpec grammar_of(const Napi::Value& value);

/// The grammars of a model's answers. One that was compiled is kept, with all that its answers have found out about its
/// masks, until others have been wanted for longer, or all of them take too much memory. Safe to use from any thread.
class Grammars {
 public:
  /// vocabulary: of the model; ids from the tokenizer's pieces on are tokens that a grammar can name.
  Grammars(std::function<std::shared_ptr<const Tokenizer>()> tokenizer, uint32_t vocabulary)
      : tokenizer_(std::move(tokenizer)), vocabulary_(vocabulary) {}

  /// Compiles the grammar unless there is one of this text. Throws ERR_INVALID_ARGUMENT.
  std::shared_ptr<TokenGrammar> get(const GrammarSpec& spec);

 private:
  static constexpr size_t kMostKept = 32;
  static constexpr size_t kMostBytes = size_t{256} << 20;  // of all that are kept, but for the one wanted last

  const std::function<std::shared_ptr<const Tokenizer>()> tokenizer_;
  const uint32_t vocabulary_;
  std::once_flag trie_built_;
  std::shared_ptr<const TokenTrie> trie_;
  std::mutex mutex_;  // guards the fields from here on
  struct Entry {
    std::string key;
    std::shared_ptr<TokenGrammar> grammar;
  };
  std::list<Entry> entries_;  // the one that was wanted last comes first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
};

/// What createGrammars() of a tokenizer gives and a model takes.
using GrammarsHandle = Napi::External<std::shared_ptr<Grammars>>;

}  // namespace chatglm::addon
