#include "text/grammar.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/grammar_constraint.h"
#include "test/vocabulary.h"
#include "text/token_grammar.h"
#include "text/utf8.h"

namespace chatglm {
namespace {

// The pieces that every tokenizer has, and some of several letters.
std::shared_ptr<const TokenTrie> make_trie(const std::vector<std::string>& pieces,
                                           std::vector<uint32_t> special = {1000}) {
  test::Vocabulary vocabulary;
  for (const std::string& piece : pieces) vocabulary.add(piece, -static_cast<float>(vocabulary.scores.size()));
  return std::make_shared<const TokenTrie>(vocabulary.make(false), std::move(special));
}

const std::vector<std::string> kPieces = {
    "a",  "b",    "ab",   "ba",  "aba", "abab",  "\"",   "\"a", "a\"", "\",", "\":", "{\"", "\"}", "},", "1",
    "12", "123",  "123,", ",",   "[",   "]",     "[[",   "]]",  "],",  "[1",  "{",   "}",   ":",   "你", "你好",
    "好", "\"你", "true", "tru", "e",   "false", "null", " ",   "  ",  "\n",  "x",   "xx",  "-",   "0",  "00"};

std::shared_ptr<TokenGrammar> make(const std::string& text, const std::shared_ptr<const TokenTrie>& trie,
                                   Grammar::Options options = {}) {
  options.longest_token = trie->longest();
  return std::make_shared<TokenGrammar>(Grammar(text, options), trie);
}

uint32_t byte_token(char c) { return 3 + static_cast<uint8_t>(c); }

// Whether the grammar has the text, read byte by byte.
bool has(TokenGrammar& grammar, const std::string& text) {
  TokenGrammar::Position position = grammar.begin();
  for (const char c : text) {
    if (!grammar.advance(position, byte_token(c))) return false;
  }
  return grammar.may_end(position);
}

bool has(const std::string& grammar, const std::string& text, Grammar::Options options = {}) {
  return has(*make(grammar, make_trie({}), options), text);
}

std::string problem_of(const std::string& text) {
  try {
    Grammar(text, {});
  } catch (const Error& error) {
    EXPECT_EQ(error.code, "ERR_INVALID_ARGUMENT");
    return error.what();
  }
  return "";
}

const std::string kJson = R"(
root   ::= value
value  ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ( pair ("," pair)* )? "}"
pair   ::= string ":" value
array  ::= "[" ( value ("," value)* )? "]"
string ::= "\"" ( [^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) )* "\""
number ::= "-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,14})? ([eE] [-+]? [0-9]{1,2})?
)";

TEST(Grammar, LiteralsClassesAndRepetitions) {
  EXPECT_TRUE(has("root ::= \"ab\"", "ab"));
  EXPECT_FALSE(has("root ::= \"ab\"", "a"));
  EXPECT_FALSE(has("root ::= \"ab\"", "abc"));
  for (const char* text : {"ab", "abab", "ababab"}) EXPECT_TRUE(has("root ::= (\"a\" [b-c])+", text)) << text;
  EXPECT_FALSE(has("root ::= (\"a\" [b-c])+", ""));
  EXPECT_TRUE(has("root ::= \"a\"{2,4}", "aa"));
  EXPECT_TRUE(has("root ::= \"a\"{2,4}", "aaaa"));
  EXPECT_FALSE(has("root ::= \"a\"{2,4}", "a"));
  EXPECT_FALSE(has("root ::= \"a\"{2,4}", "aaaaa"));
  EXPECT_TRUE(has("root ::= \"a\"{3}", "aaa"));
  EXPECT_TRUE(has("root ::= \"a\"{2,}", "aaaaaaa"));
  EXPECT_FALSE(has("root ::= \"a\"{2,}", "a"));
  EXPECT_TRUE(has("root ::= \"a\"{0}", ""));
  EXPECT_TRUE(has("root ::= \"\" | \"a\" | # a comment\n \"b\"\n", "b"));
  EXPECT_TRUE(has("root ::= \"\" | \"a\"", ""));
  EXPECT_TRUE(has("root ::= \"a\"\n  \"b\"\nother ::= \"c\"", "ab"));
  EXPECT_TRUE(has("root ::= one | two\none ::= \"1\"\ntwo ::= \"2\"", "2"));
  EXPECT_TRUE(has("root ::= \"\\x41\\u4f60\\U0001F600\\n\\t\\\"\\\\\"", "A你😀\n\t\"\\"));
  EXPECT_TRUE(has("root ::= [\\]\\[\\-^]+", "]-^["));
  EXPECT_TRUE(has("root ::= [a-]+", "a-a"));
}

TEST(Grammar, ClassesAreOfCodePoints) {
  EXPECT_TRUE(has("root ::= [你-好]", "在"));
  EXPECT_TRUE(has("root ::= .", "😀"));
  EXPECT_TRUE(has("root ::= [^a]", "你"));
  EXPECT_FALSE(has("root ::= [^a]", "a"));
  EXPECT_FALSE(has("root ::= [^你]", "你"));
  EXPECT_TRUE(has("root ::= [^你]", "好"));
  EXPECT_FALSE(has("root ::= .", "\xed\xa0\x80"));  // a surrogate
  EXPECT_FALSE(has("root ::= .", "\xc0\x80"));      // an overlong form
  EXPECT_FALSE(has("root ::= .", "\xf4\x90\x80\x80"));
  EXPECT_FALSE(has("root ::= .", "\xff"));
  // Each code point is in a class or in its complement.
  const auto in =
      make("root ::= [\\u0000-\\u007e\\u0100-\\u0fff\\u2000-\\ud7ff\\U00010000-\\U00045678]", make_trie({}));
  const auto out =
      make("root ::= [^\\u0000-\\u007e\\u0100-\\u0fff\\u2000-\\ud7ff\\U00010000-\\U00045678]", make_trie({}));
  const auto expected = [](char32_t c) {
    return c <= 0x7e || (c >= 0x100 && c <= 0xfff) || (c >= 0x2000 && c <= 0xd7ff) || (c >= 0x10000 && c <= 0x45678);
  };
  for (char32_t code = 0; code <= 0x10FFFF; code += code < 0x3000 ? 1 : 0xfd) {
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    std::string text;
    for_utf8_bytes(code, [&](uint8_t byte) { text += static_cast<char>(byte); });
    ASSERT_EQ(has(*in, text), expected(code)) << static_cast<uint32_t>(code);
    ASSERT_EQ(has(*out, text), !expected(code)) << static_cast<uint32_t>(code);
  }
}

TEST(Grammar, RulesCallEachOther) {
  const std::string balanced = "root ::= \"(\" root \")\" root | \"\"";
  EXPECT_TRUE(has(balanced, "(()())()"));
  EXPECT_FALSE(has(balanced, "(()"));
  EXPECT_FALSE(has(balanced, "())"));
  for (const char* text : {"{}", "[]", "[1,2,{\"a\":[true]}]", "\"\\u4f60\\n你\"", "-1.5e+10", "null"})
    EXPECT_TRUE(has(kJson, text)) << text;
  for (const char* text : {"{", "[1,]", "01", "\"\n\"", "nul", "{\"a\"}", "\"\\x\""})
    EXPECT_FALSE(has(kJson, text)) << text;
}

TEST(Grammar, ARuleThatEndsWithACallOfItselfTakesNoMoreMemoryWithEachTurn) {
  const auto grammar = make("root ::= \"a\" root | \"b\"", make_trie({}));
  TokenGrammar::Position position = grammar->begin();
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(grammar->advance(position, byte_token('a')));
  const size_t before = grammar->bytes();
  for (int i = 0; i < 10'000; ++i) ASSERT_TRUE(grammar->advance(position, byte_token('a')));
  EXPECT_EQ(grammar->bytes(), before);
}

TEST(Grammar, WhatIsNoGrammarIsRefusedWithItsPlace) {
  EXPECT_EQ(problem_of("rule ::= \"a\""), "grammar, line 1, column 1: there is no rule root");
  EXPECT_EQ(problem_of("root ::= other"), "grammar, line 1, column 10: the rule other is not defined");
  EXPECT_EQ(problem_of("root ::= \"a"), "grammar, line 1, column 10: the literal has no end");
  EXPECT_EQ(problem_of("root ::= \"a\"\nroot ::= \"b\""),
            "grammar, line 2, column 1: a rule of this name is there already");
  EXPECT_EQ(problem_of("root ::= (\"a\""), "grammar, line 1, column 14: ) is missing");
  EXPECT_EQ(problem_of("root ::= [a"), "grammar, line 1, column 10: the class has no end");
  EXPECT_EQ(problem_of("root ::= [b-a]"), "grammar, line 1, column 10: the range's end is below its beginning");
  EXPECT_EQ(problem_of("root ::= \"\\q\""), "grammar, line 1, column 11: there is no such escape");
  EXPECT_EQ(problem_of("root ::= \"a\"{3,2}"),
            "grammar, line 1, column 13: the repetition's end is below its beginning");
  EXPECT_EQ(problem_of("root ::= \"a\"{1000000}"), "grammar, line 1, column 14: more than 100000 repetitions");
  EXPECT_EQ(problem_of("root ::= \"你\" ?? ]"), "grammar, line 1, column 17: this is no part of a rule");
  EXPECT_NE(problem_of("root ::= root \"a\" | \"b\"").find("left recursion"), std::string::npos);
  EXPECT_NE(problem_of("root ::= x root\nx ::= \"a\"?").find("left recursion"), std::string::npos);
  EXPECT_NE(problem_of("root ::= \"a\" root").find("no finite text"), std::string::npos);
  EXPECT_NE(problem_of("root ::= " + std::string(100'000, '(')).find("nested too deep"), std::string::npos);
  EXPECT_NE(problem_of("root ::= ((\"a\"{1000}){1000}){1000}").find("too large"), std::string::npos);
  EXPECT_EQ(problem_of(""), "grammar, line 1, column 1: there is no rule root");
  EXPECT_EQ(problem_of("root"), "grammar, line 1, column 5: ::= is missing behind the name of the rule");
}

TEST(Grammar, AGrammarThatIsTooAmbiguousEndsWithAnErrorAndTheNextAnswerIsWhatItWas) {
  // A text of n letters can be read as a tree in exponentially many ways, whose open rules differ.
  const auto grammar =
      make("root ::= \"b\" | \"a\" (root | root root | root root \"a\" | root \"a\"? root?)", make_trie(kPieces));
  GrammarConstraint constraint(grammar, {2});
  bool failed = false;
  for (int i = 0; i < 200 && !failed; ++i) {
    std::vector<uint32_t> mask(1001 / 32 + 1, ~0u);
    constraint.restrict(mask);
    constraint.accept(static_cast<int32_t>(byte_token('a')));
    failed = !constraint.problem().empty();
    if (failed) {
      EXPECT_NE(constraint.problem().find("too ambiguous"), std::string::npos);
      constraint.restrict(mask);
      EXPECT_TRUE(std::ranges::all_of(mask, [](uint32_t word) { return word == 0; }));
    }
  }
  EXPECT_TRUE(failed);
  EXPECT_LT(grammar->bytes(), 3 * TokenGrammar::kMostBytes);
  TokenGrammar::Position position = grammar->begin();
  std::vector<uint32_t> mask(1001 / 32 + 1, ~0u);
  grammar->restrict(position, mask, Grammar::kNever);
  for (uint32_t token = 0; token < 300; ++token) {
    TokenGrammar::Position next = position;
    EXPECT_EQ(mask[token / 32] >> (token % 32) & 1, grammar->advance(next, token) ? 1u : 0u) << token;
  }
}

TEST(Grammar, PrefixAndDummySpace) {
  Grammar::Options options;
  options.prefix = " \n";
  options.dummy_space = true;
  EXPECT_TRUE(has("root ::= \"a\"", " \na", options));
  EXPECT_TRUE(has("root ::= \"a\"", " \n a", options));
  EXPECT_FALSE(has("root ::= \"a\"", "a", options));
  EXPECT_FALSE(has("root ::= \"a\"", " \n  a", options));
  // Where the answer may begin with a space, the dummy is a must: else the answer " a" could not be told from "a".
  EXPECT_FALSE(has("root ::= \" \"? \"a\"", " \na", options));
  EXPECT_TRUE(has("root ::= \" \"? \"a\"", " \n a", options));
  EXPECT_TRUE(has("root ::= \" \"? \"a\"", " \n  a", options));
}

TEST(Grammar, TokensCanBeNamedByTheirIds) {
  const auto trie = make_trie(kPieces);
  const auto grammar = make("root ::= \"a\"? <[1000]> \"b\"", trie);
  TokenGrammar::Position position = grammar->begin();
  std::vector<uint32_t> mask((trie->token_count() + 31) / 32, ~0u);
  grammar->restrict(position, mask, 100);
  EXPECT_TRUE(mask[1000 / 32] >> (1000 % 32) & 1);
  // The bytes of the token's text are no tokens of their own.
  EXPECT_FALSE(grammar->advance(position, byte_token('\xff')));
  EXPECT_TRUE(grammar->advance(position, 1000));
  EXPECT_FALSE(grammar->advance(position, 1000));
  EXPECT_TRUE(grammar->advance(position, byte_token('b')));
  EXPECT_TRUE(grammar->may_end(position));
  EXPECT_FALSE(has(*make("root ::= .*", trie), "\xff"));
}

std::vector<std::string> grammars() {
  return {
      kJson,
      "root ::= (\"a\" | \"b\")* \"\\n\"",
      "root ::= [ab]{0,300} \"x\"",
      "root ::= [ab你]{290} \"x\"",
      "root ::= (\"ab\"? \"a\"){3,280} (\"b\" | \"ba\")*",
      "root ::= \"[\" item (\",\" item){0,500} \"]\"\nitem ::= \"123\" | \"[\" item \"]\"",
      "root ::= x{0,200} \"]\"\nx ::= \"a\"? \"b\"?",
      "root ::= \"\\\"\" .* \"\\\"\" | .{3} | .*",
      "root ::= ([a-b]* \" \")* \"x\"",
  };
}

// The masks are what reading each token says: masks are made of parts that were found for other places, reading is not.
TEST(TokenGrammar, AMaskHasTheTokensThatCanBeRead) {
  const auto trie = make_trie(kPieces);
  std::mt19937 random(7);
  for (const std::string& text : grammars()) {
    const auto grammar = make(text, trie);
    for (int walk = 0; walk < 25; ++walk) {
      TokenGrammar::Position position = grammar->begin();
      for (int length = 0; length < 40; ++length) {
        std::vector<uint32_t> mask((trie->token_count() + 31) / 32, ~0u);
        grammar->restrict(position, mask, Grammar::kNever);
        std::vector<uint32_t> allowed;
        for (uint32_t token = 0; token < trie->token_count(); ++token) {
          TokenGrammar::Position next = position;
          const bool reads = grammar->advance(next, token);
          ASSERT_EQ(mask[token / 32] >> (token % 32) & 1, reads ? 1u : 0u)
              << text << " token " << token << " '" << trie->text(token) << "' at length " << length;
          if (reads) allowed.push_back(token);
        }
        if (allowed.empty()) {
          ASSERT_TRUE(grammar->may_end(position)) << text;
          break;
        }
        ASSERT_TRUE(grammar->advance(position, allowed[random() % allowed.size()]));
      }
    }
  }
}

// With random choices among what is allowed, every answer is complete when its tokens are used up.
TEST(GrammarConstraint, AnAnswerIsCompleteWithinItsTokens) {
  const auto trie = make_trie(kPieces);
  constexpr int32_t kStop = 2;
  std::mt19937 random(11);
  for (const std::string& text : grammars()) {
    const auto grammar = make(text, trie);
    TokenGrammar::Position start = grammar->begin();
    const auto shortest = static_cast<int32_t>(grammar->least(start));
    for (int answer = 0; answer < 60; ++answer) {
      const int32_t most = shortest + 1 + static_cast<int32_t>(random() % 60);
      GrammarConstraint constraint(grammar, {kStop});
      constraint.limit(most);
      std::string written;
      bool stopped = false;
      for (int32_t i = 0; i < most && !stopped; ++i) {
        std::vector<uint32_t> mask((trie->token_count() + 31) / 32, ~0u);
        constraint.restrict(mask);
        std::vector<int32_t> allowed;
        for (uint32_t token = 0; token < trie->token_count(); ++token) {
          if (mask[token / 32] >> (token % 32) & 1) allowed.push_back(static_cast<int32_t>(token));
        }
        ASSERT_FALSE(allowed.empty()) << text << ": " << written;
        const int32_t token = allowed[random() % allowed.size()];
        constraint.accept(token);
        stopped = token == kStop;
        if (!stopped) written += trie->text(static_cast<uint32_t>(token));
      }
      ASSERT_TRUE(stopped) << text << " in " << most << " tokens: " << written;
      ASSERT_TRUE(has(*grammar, written)) << text << ": " << written;
    }
  }
}

TEST(GrammarConstraint, WhereTheAnswerMayStopNothingIsBegunThatTheTokensCannotComplete) {
  const auto trie = make_trie(kPieces);
  GrammarConstraint constraint(make("root ::= \"a\" | \"ab123123123\"", trie), {2});
  constraint.limit(4);
  constraint.accept(byte_token('a'));
  std::vector<uint32_t> mask((trie->token_count() + 31) / 32, ~0u);
  constraint.restrict(mask);  // three tokens are left: too few for what may follow, but the answer is complete
  for (uint32_t token = 0; token < trie->token_count(); ++token) {
    ASSERT_EQ((mask[token / 32] >> (token % 32) & 1) == 1, token == 2) << token;
  }
}

TEST(GrammarConstraint, WithTooFewTokensTheAnswerGoesTheShortestWay) {
  const auto trie = make_trie(kPieces);
  const auto grammar = make("root ::= \"xxxxxxxx\" | [ab]* \"12312312312312312312\"", trie);
  GrammarConstraint constraint(grammar, {2});
  constraint.limit(3);
  for (int i = 0; i < 3; ++i) {
    std::vector<uint32_t> mask((trie->token_count() + 31) / 32, ~0u);
    constraint.restrict(mask);
    for (uint32_t token = 0; token < trie->token_count(); ++token) {
      if (mask[token / 32] >> (token % 32) & 1) {
        ASSERT_EQ(trie->text(token), "xx");
      }
    }
    constraint.accept(static_cast<int32_t>(3 + 256 + 41));
  }
}

TEST(TokenGrammar, StatesThatAreForgottenAreMadeAnew) {
  const auto trie = make_trie(kPieces);
  // Each number of brackets that are open is a state of its own.
  const auto grammar = make("root ::= \"[\" root \"]\" | \"a\"", trie);
  TokenGrammar::Position deep = grammar->begin(), other = grammar->begin();
  ASSERT_TRUE(grammar->advance(other, byte_token('[')));
  size_t most = 0;
  bool forgot = false;
  for (int i = 0; i < 200'000 && !forgot; ++i) {
    ASSERT_TRUE(grammar->advance(deep, byte_token('[')));
    forgot = grammar->bytes() < most;
    most = std::max(most, grammar->bytes());
  }
  EXPECT_TRUE(forgot);
  EXPECT_LT(most, TokenGrammar::kMostBytes + (size_t{8} << 20));
  EXPECT_TRUE(grammar->advance(other, byte_token('a')));
  EXPECT_TRUE(grammar->advance(other, byte_token(']')));
  EXPECT_TRUE(grammar->may_end(other));
  EXPECT_TRUE(grammar->advance(deep, byte_token('a')));
  EXPECT_FALSE(grammar->may_end(deep));
}

}  // namespace
}  // namespace chatglm
