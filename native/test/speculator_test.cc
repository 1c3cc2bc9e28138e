#include "engine/speculator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <tuple>

#include "test/random.h"

namespace chatglm {
namespace {

using test::Random;
using Tokens = std::vector<int32_t>;

// The draft of a text that stands in memory of its own, so that a sanitizer sees what is read before and after.
Tokens draft(Speculator& speculator, const Tokens& tokens, int32_t most = Speculator::kMostDrafts) {
  const auto copy = std::make_unique<int32_t[]>(tokens.size());
  std::ranges::copy(tokens, copy.get());
  const auto drafts = speculator.draft({copy.get(), tokens.size()}, most);
  return {drafts.begin(), drafts.end()};
}

// What followed the last occurrence of the last three tokens, found by looking everywhere.
Tokens what_followed(const Tokens& tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  for (int64_t end = count - 1; count > 3 && end >= 3; --end) {
    if (std::equal(tokens.end() - 3, tokens.end(), tokens.begin() + end - 3))
      return {tokens.begin() + end, tokens.end()};
  }
  return {};
}

TEST(Speculator, DraftsAreWhatFollowedTheLastOccurrence) {
  Speculator speculator;
  Tokens tokens = {1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8, 9, 1, 2, 3};
  EXPECT_EQ(draft(speculator, tokens), (Tokens{6, 7, 8}));
  EXPECT_EQ(draft(speculator, tokens, 2), (Tokens{6, 7}));
  EXPECT_EQ(draft(speculator, tokens, 0), Tokens{});
  EXPECT_EQ(draft(speculator, tokens, -5), Tokens{});
  tokens.push_back(4);  // another one than was guessed
  EXPECT_EQ(draft(speculator, tokens), (Tokens{5, 1, 2}));
  tokens.push_back(4);
  EXPECT_EQ(draft(speculator, tokens), Tokens{});
}

TEST(Speculator, ShortTextsHaveNoDrafts) {
  for (int32_t count = 0; count < 4; ++count) {
    Speculator speculator;
    EXPECT_EQ(draft(speculator, Tokens(static_cast<size_t>(count), 7)), Tokens{});
  }
  Speculator speculator;
  EXPECT_EQ(draft(speculator, {7, 7, 7, 7}), (Tokens{7, 7, 7}));
}

TEST(Speculator, TokensThatWereAppendedSeveralAtATimeAreFound) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const int64_t vocabulary = random.chance(0.1) ? 65024 : random.integer(1, 6);
    Speculator speculator;
    Tokens tokens;
    size_t length = 3, source = 0, resume = 0;
    for (int64_t calls = random.integer(1, 60); calls > 0; --calls) {
      for (int64_t n = random.integer(0, random.chance(0.05) ? 400 : 8); n > 0; --n)
        tokens.push_back(static_cast<int32_t>(random.integer(0, vocabulary - 1)));
      const auto most = static_cast<int32_t>(random.integer(0, 9));
      Tokens expected = what_followed(tokens);
      source = tokens.size() - expected.size();
      // Where the last tokens stood nowhere before, the guess goes on behind one that was wrong at its end.
      if (expected.empty() && most > 0 && resume > 0 && tokens.size() > 3) {
        source = resume;
        expected.assign(tokens.begin() + static_cast<int64_t>(std::min(source, tokens.size())), tokens.end());
      }
      if (most > 0 && tokens.size() > 3) resume = 0;
      // A guess that reaches the end of the text goes on in itself.
      const size_t period = expected.size();
      while (period > 0 && expected.size() < length) expected.push_back(expected[expected.size() - period]);
      expected.resize(std::min({expected.size(), static_cast<size_t>(most), length}));
      ASSERT_EQ(draft(speculator, tokens, most), expected);
      if (expected.empty()) continue;
      // Never wrong in all, so there are no pauses.
      const auto drafts = static_cast<int32_t>(expected.size()),
                 accepted = static_cast<int32_t>(random.integer(1, drafts));
      speculator.judge(drafts, accepted);
      length = accepted == drafts ? std::min<size_t>(2 * length, Speculator::kMostDrafts)
                                  : std::max<size_t>(3, static_cast<size_t>(accepted) + 1);
      if (accepted < drafts) resume = source + static_cast<size_t>(accepted) + 1;
    }
  }
}

TEST(Speculator, WrongDraftsArePausedForEverLonger) {
  Speculator speculator;
  Tokens tokens = {1, 2, 3, 4, 1, 2, 3};
  std::vector<int32_t> pauses;
  for (int i = 0; i < 9; ++i) {
    ASSERT_FALSE(draft(speculator, tokens).empty());
    speculator.judge(1, 0);
    int32_t pause = 0;
    while (draft(speculator, tokens).empty()) {
      ++pause;
      // What comes meanwhile is looked up later.
      for (const int32_t token : {4, 1, 2, 3}) tokens.push_back(token);
    }
    pauses.push_back(pause);
  }
  EXPECT_EQ(pauses, (std::vector<int32_t>{2, 4, 8, 16, 32, 64, 64, 64, 64}));
  EXPECT_EQ(draft(speculator, tokens).size(), 3u);  // and short
  speculator.judge(3, 3);
  EXPECT_EQ(draft(speculator, tokens).size(), 6u);
  speculator.judge(6, 0);
  EXPECT_TRUE(draft(speculator, tokens).empty());
  EXPECT_TRUE(draft(speculator, tokens).empty());
  EXPECT_FALSE(draft(speculator, tokens).empty());
}

TEST(Speculator, TheLengthFollowsWhatIsAccepted) {
  Speculator speculator;
  const Tokens tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 2, 3};
  const auto length = [&] { return draft(speculator, tokens).size(); };
  EXPECT_EQ(length(), 3u);
  speculator.judge(3, 3);
  EXPECT_EQ(length(), 6u);
  speculator.judge(6, 6);
  EXPECT_EQ(length(), 7u);
  speculator.judge(7, 2);
  EXPECT_EQ(length(), 3u);
  speculator.judge(3, 1);
  EXPECT_EQ(length(), 3u);
  speculator.judge(3, 3);
  EXPECT_EQ(length(), 6u);
  speculator.judge(6, 4);
  EXPECT_EQ(length(), 5u);
}

// A text that is rewritten differs in single tokens: guesses go on behind these.
TEST(Speculator, GoesOnBehindASingleTokenThatDiffers) {
  Speculator speculator;
  Tokens tokens;
  for (int32_t token = 1; token <= 30; ++token) tokens.push_back(token);
  tokens.insert(tokens.end(), {1, 2, 3});
  ASSERT_EQ(draft(speculator, tokens), (Tokens{4, 5, 6}));
  speculator.judge(3, 1);
  tokens.insert(tokens.end(), {4, 99});
  EXPECT_EQ(draft(speculator, tokens), (Tokens{6, 7, 8}));
  speculator.judge(3, 0);  // it was no single token
  tokens.push_back(98);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(draft(speculator, tokens).empty());
}

TEST(Speculator, AcceptanceIsThatOfRecentDrafts) {
  Speculator speculator;
  EXPECT_EQ(speculator.acceptance(), 1);
  speculator.judge(4, 0);
  EXPECT_DOUBLE_EQ(speculator.acceptance(), 0.8);
  speculator.judge(4, 2);
  EXPECT_DOUBLE_EQ(speculator.acceptance(), 0.74);
  for (int i = 0; i < 50; ++i) speculator.judge(4, 1);
  EXPECT_NEAR(speculator.acceptance(), 0.25, 1e-4);
  for (int i = 0; i < 50; ++i) speculator.judge(7, 7);
  EXPECT_NEAR(speculator.acceptance(), 1, 1e-4);
}

// A context of 32,768 tokens: the guesses are right, and what they took is noted with the test.
TEST(Speculator, LongTexts) {
  using Groups = std::map<std::tuple<int32_t, int32_t, int32_t>, size_t>;
  Random random(1);
  Tokens tokens;
  for (int i = 0; i < 16384; ++i) tokens.push_back(static_cast<int32_t>(random.integer(0, 29)));
  Groups groups;
  size_t entered = 3;
  Speculator speculator;
  double first = 0, others = 0;
  int64_t guesses = 0;
  for (int64_t call = 0; tokens.size() < 32768; ++call) {
    const auto begin = std::chrono::steady_clock::now();
    const auto drafts = speculator.draft(tokens, 3);
    (call == 0 ? first : others) +=
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
    for (; entered < tokens.size(); ++entered)
      groups[{tokens[entered - 3], tokens[entered - 2], tokens[entered - 1]}] = entered;
    const auto found = groups.find({tokens[entered - 3], tokens[entered - 2], tokens[entered - 1]});
    if (found != groups.end()) {
      ++guesses;
      ASSERT_FALSE(drafts.empty());
      for (size_t i = 0; i < drafts.size() && found->second + i < tokens.size(); ++i)
        ASSERT_EQ(drafts[i], tokens[found->second + i]);
    }
    // All of it was right, so nothing is guessed but by the last tokens, and without a pause.
    if (!drafts.empty()) speculator.judge(static_cast<int32_t>(drafts.size()), static_cast<int32_t>(drafts.size()));
    tokens.push_back(static_cast<int32_t>(random.integer(0, 29)));
  }
  EXPECT_GT(guesses, 5000);
  RecordProperty("first_call_us", std::to_string(first));
  RecordProperty("further_call_us", std::to_string(others / 16383));
}

}  // namespace
}  // namespace chatglm
