// Grammars out of the fuzzer's bytes, as text and as parts that fit together more often. Checked: what is no grammar is
// an error of the caller's; a mask has the tokens that can be read, and no others; an answer that follows the masks is
// complete within its tokens.
#include "text/grammar.h"

#include <fuzzer/FuzzedDataProvider.h>

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/grammar_constraint.h"
#include "test/fuzz/expect.h"
#include "test/vocabulary.h"
#include "text/token_grammar.h"

namespace chatglm {
namespace {

constexpr int32_t kStop = 2;

std::shared_ptr<const TokenTrie> make_trie() {
  test::Vocabulary vocabulary;
  for (const char* text :
       {"a", "b", "ab", "ba", "aab", "abab", "你", "你a", "a你", "\n", " ", "  ", " a", "\"a", "a\""})
    vocabulary.add(text, -static_cast<float>(vocabulary.scores.size()));
  return std::make_shared<const TokenTrie>(vocabulary.make(), std::vector<uint32_t>{300});
}

std::string grammar_of(FuzzedDataProvider& input) {
  if (input.ConsumeIntegralInRange(0, 3) == 0) return input.ConsumeRandomLengthString(200);
  constexpr const char* kParts[] = {"\"a\"",   "\"ab\"", "[ab]", "[^a]",     ".",        "root",   "x",
                                    "y",       "(",      ")",    "|",        "*",        "+",      "?",
                                    "{2}",     "{0,3}",  "{1,}", "{0,60}",   "\"\"",     "\"你\"", "[你-好]",
                                    "<[300]>", "\\\"",   "\n",   "\nx ::= ", "\ny ::= ", " "};
  std::string text = "root ::= ";
  for (int n = input.ConsumeIntegralInRange(0, 30); n > 0; --n) {
    text += input.PickValueInArray(kParts);
    text += ' ';
  }
  for (const char* rule : {"x", "y"}) {
    if (text.find(std::string("\n") + rule + " ::=") == std::string::npos)
      text += std::string("\n") + rule + " ::= \"b\"";
  }
  return text;
}

void run(FuzzedDataProvider& input) {
  static const std::shared_ptr<const TokenTrie> trie = make_trie();
  std::shared_ptr<TokenGrammar> grammar;
  try {
    const Grammar::Options options{.prefix = input.ConsumeBool() ? " \n" : "",
                                   .dummy_space = input.ConsumeBool(),
                                   .longest_token = trie->longest()};
    grammar = std::make_shared<TokenGrammar>(Grammar(grammar_of(input), options), trie);
  } catch (const Error& error) {
    EXPECT(error.code == "ERR_INVALID_ARGUMENT");
    return;
  }
  TokenGrammar::Position position = grammar->begin();
  const uint32_t least = grammar->least(position);
  if (least > 200) return;
  const int32_t most = static_cast<int32_t>(least) + 1 + input.ConsumeIntegralInRange(0, 20);
  GrammarConstraint constraint(grammar, {kStop});
  constraint.limit(most);
  const size_t words = (trie->token_count() + 31) / 32;
  for (int32_t i = 0; i < most; ++i) {
    try {
      std::vector<uint32_t> mask(words, ~0u), close(words, ~0u);
      grammar->restrict(position, mask, Grammar::kNever);
      constraint.restrict(close);
      std::vector<int32_t> allowed;
      for (uint32_t token = 0; token < trie->token_count(); ++token) {
        TokenGrammar::Position next = position;
        EXPECT((mask[token / 32] >> (token % 32) & 1) == (grammar->advance(next, token) ? 1u : 0u));
        if (close[token / 32] >> (token % 32) & 1) allowed.push_back(static_cast<int32_t>(token));
      }
      if (!constraint.problem().empty()) return;  // too ambiguous
      EXPECT(!allowed.empty());
      const int32_t token = allowed[input.ConsumeIntegralInRange<size_t>(0, allowed.size() - 1)];
      constraint.accept(token);
      if (token == kStop) return;
      EXPECT(grammar->advance(position, static_cast<uint32_t>(token)));
    } catch (const Error& error) {
      EXPECT(error.code == "ERR_INVALID_ARGUMENT");  // too ambiguous
      return;
    }
  }
  EXPECT(false);  // the last token that was allowed is the stop token
}

}  // namespace
}  // namespace chatglm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider input(data, size);
  chatglm::run(input);
  return 0;
}
