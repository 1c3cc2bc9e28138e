#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>

#include "test/random.h"
#include "test/top_logits.h"

namespace chatglm {
namespace {

using test::Random;

// The probabilities of the documented order of steps, 1 to 7, straight from the sentences.
std::vector<double> probabilities(const Sampling& s, const std::vector<float>& logits,
                                  const std::vector<int32_t>& prompt, const std::vector<uint32_t>& answer) {
  const size_t n = logits.size();
  std::vector<double> x(logits.begin(), logits.end());
  for (const auto& [id, value] : s.bias) {
    if (id < n) x[id] += value;
  }
  for (size_t i = 0; i < n; ++i) {
    const auto count = std::count(answer.begin(), answer.end(), i);
    const bool seen = count > 0 || std::count(prompt.begin(), prompt.end(), i) > 0;
    const double penalty = s.repetition_penalty;
    if (seen) x[i] = x[i] < 0 ? x[i] * penalty : x[i] / penalty;
    x[i] -= static_cast<double>(s.frequency_penalty) * static_cast<double>(count);
    if (count > 0) x[i] -= static_cast<double>(s.presence_penalty);
  }
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  std::vector<double> result(n, 0);
  if (s.temperature == 0) {
    result[order[0]] = 1;
    return result;
  }
  size_t kept = s.top_k > 0 ? std::min<size_t>(n, static_cast<size_t>(s.top_k)) : n;
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += std::exp((x[order[i]] - x[order[0]]) / static_cast<double>(s.temperature));
  const auto p = [&](size_t i) {
    return std::exp((x[order[i]] - x[order[0]]) / static_cast<double>(s.temperature)) / total;
  };
  double sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    sum += p(i);
    if (sum >= static_cast<double>(s.top_p) && s.top_p < 1) kept = i + 1;
  }
  while (kept > 1 && p(kept - 1) < static_cast<double>(s.min_p) * p(0)) --kept;
  sum = 0;
  for (size_t i = 0; i < kept; ++i) sum += p(i);
  for (size_t i = 0; i < kept; ++i) result[order[i]] = p(i) / sum;
  return result;
}

Sampling greedy() {
  Sampling s;
  s.temperature = 0;
  return s;
}

// Draws many tokens and compares their frequencies with the probabilities.
void check_distribution(const Sampling& s, const std::vector<float>& logits) {
  constexpr int kDraws = 10000;
  const std::vector<double> expected = probabilities(s, logits, {}, {});
  std::vector<int> counts(logits.size(), 0);
  Sampler sampler(s, {});
  for (int i = 0; i < kDraws; ++i) ++counts[sampler.choose(logits).token];
  double chi = 0;
  int degrees = -1;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double wanted = expected[i] * kDraws;
    if (wanted == 0) EXPECT_EQ(counts[i], 0) << "token " << i << " should have been left out";
    if (wanted < 5) continue;
    chi += (counts[i] - wanted) * (counts[i] - wanted) / wanted;
    ++degrees;
  }
  EXPECT_LT(chi, degrees + 5 * std::sqrt(2.0 * std::max(degrees, 1)) + 5);
}

TEST(Sampler, DistributionOfEachOption) {
  Random random(20);
  for (int round = 0; round < 3; ++round) {
    const std::vector<float> logits = random.normals(60, 2);
    Sampling plain;
    plain.temperature = 1;
    plain.top_k = 0;
    plain.top_p = 1;
    plain.seed = static_cast<uint64_t>(round) + 5;
    check_distribution(plain, logits);
    for (const float temperature : {0.3f, 0.8f, 2.5f}) {
      Sampling s = plain;
      s.temperature = temperature;
      check_distribution(s, logits);
    }
    for (const int32_t top_k : {2, 7, 59, 60, 1000}) {
      Sampling s = plain;
      s.top_k = top_k;
      check_distribution(s, logits);
    }
    for (const float top_p : {0.0f, 0.1f, 0.5f, 0.8f, 0.95f, 0.999f}) {
      Sampling s = plain;
      s.top_p = top_p;
      check_distribution(s, logits);
    }
    for (const float min_p : {0.01f, 0.2f, 0.9f, 2.0f}) {
      Sampling s = plain;
      s.min_p = min_p;
      check_distribution(s, logits);
    }
    Sampling all = plain;
    all.temperature = 1.3f;
    all.top_k = 20;
    all.top_p = 0.9f;
    all.min_p = 0.05f;
    all.bias = {{3, 2.5f}, {4, -1.0f}, {3, 0.5f}, {99999, 7.0f}};
    check_distribution(all, logits);
  }
}

TEST(Sampler, DefaultsAreThoseOfThudmsChat) {
  const Sampling s;
  EXPECT_EQ(s.temperature, 0.8f);
  EXPECT_EQ(s.top_k, 50);
  EXPECT_EQ(s.top_p, 0.8f);
  EXPECT_EQ(s.repetition_penalty, 1.0f);
}

TEST(Sampler, TopPKeepsTheTokenThatReachesIt) {
  // Probabilities 1/2, 1/4, 1/8, 1/8 exactly.
  const std::vector<float> logits = {std::log(2.0f), std::log(4.0f), std::log(1.0f), std::log(1.0f)};
  const auto tokens_of = [&](float top_p) {
    Sampling s;
    s.temperature = 1;
    s.top_p = top_p;
    Sampler sampler(s, {});
    std::map<uint32_t, int> counts;
    for (int i = 0; i < 2000; ++i) ++counts[sampler.choose(logits).token];
    return counts.size();
  };
  EXPECT_EQ(tokens_of(0.49f), 1u);
  EXPECT_EQ(tokens_of(0.51f), 2u);
  EXPECT_EQ(tokens_of(0.74f), 2u);
  EXPECT_EQ(tokens_of(0.76f), 3u);
  EXPECT_EQ(tokens_of(0.88f), 4u);
}

TEST(Sampler, PenaltiesAndBiasStepByStep) {
  Random random(21);
  for (int round = 0; round < 300; ++round) {
    Sampling s = greedy();
    s.repetition_penalty = random.chance(0.5) ? 1 : static_cast<float>(0.7 + random.uniform());
    s.presence_penalty = random.chance(0.5) ? 0 : random.normal();
    s.frequency_penalty = random.chance(0.5) ? 0 : random.normal(0.3f);
    for (int64_t i = random.integer(0, 3); i > 0; --i) {
      s.bias.emplace_back(static_cast<uint32_t>(random.integer(0, 24)), random.normal(3));
    }
    std::vector<int32_t> prompt;
    for (int64_t i = random.integer(0, 8); i > 0; --i) prompt.push_back(static_cast<int32_t>(random.integer(0, 19)));
    Sampler sampler(s, prompt);
    std::vector<uint32_t> answer;
    for (int step = 0; step < 12; ++step) {
      const std::vector<float> logits = random.normals(20);
      const std::vector<double> expected = probabilities(s, logits, prompt, answer);
      const Choice choice = sampler.choose(logits);
      ASSERT_EQ(expected[choice.token], 1) << round << " " << step;
      answer.push_back(choice.token);
    }
  }
}

TEST(Sampler, RepetitionIsOnceForEachTokenAndFrequencyForEachTime) {
  // Hugging Face: token 1, three times in the prompt, is divided once. OpenAI: prompts do not count.
  Sampling s = greedy();
  s.repetition_penalty = 2;
  const std::vector<int32_t> prompt = {1, 1, 1, 2};
  EXPECT_EQ(Sampler(s, prompt).choose(std::vector<float>{0.9f, 2.0f, -1.0f}).token, 1u);
  EXPECT_EQ(Sampler(s, prompt).choose(std::vector<float>{1.1f, 2.0f, -1.0f}).token, 0u);
  EXPECT_EQ(Sampler(s, prompt).choose(std::vector<float>{-1.9f, -9.0f, -1.0f}).token, 0u);  // -1 * 2 < -1.9
  s = greedy();
  s.presence_penalty = 1;
  s.frequency_penalty = 0.5f;
  Sampler sampler(s, prompt);
  const std::vector<float> logits = {0, 3.2f, 0};
  EXPECT_EQ(sampler.choose(logits).token, 1u);  // 3.2: the prompt does not count
  EXPECT_EQ(sampler.choose(logits).token, 1u);  // 3.2 - 1.5
  EXPECT_EQ(sampler.choose(logits).token, 1u);  // 3.2 - 2
  EXPECT_EQ(sampler.choose(logits).token, 1u);
  EXPECT_EQ(sampler.choose(logits).token, 1u);  // 3.2 - 3
  EXPECT_EQ(sampler.choose(logits).token, 0u);  // 3.2 - 3.5
}

TEST(Sampler, SameSeedSameTokens) {
  Random random(22);
  std::vector<std::vector<float>> logits;
  for (int i = 0; i < 50; ++i) logits.push_back(random.normals(200));
  const auto draw = [&](uint64_t seed) {
    Sampling s;
    s.seed = seed;
    Sampler sampler(s, {});
    std::vector<uint32_t> tokens;
    for (const auto& row : logits) tokens.push_back(sampler.choose(row).token);
    return tokens;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
  EXPECT_NE(draw(1), draw(1ull << 63 | 1));
}

TEST(Sampler, TiesGoToTheLowestId) {
  const std::vector<float> logits = {1, 5, 5, 2, 5};
  EXPECT_EQ(Sampler(greedy(), {}).choose(logits).token, 1u);
  Sampling s;
  s.top_k = 1;
  EXPECT_EQ(Sampler(s, {}).choose(logits).token, 1u);
  s.top_k = 2;
  s.top_p = 1;
  Sampler sampler(s, {});
  std::map<uint32_t, int> counts;
  for (int i = 0; i < 500; ++i) ++counts[sampler.choose(logits).token];
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_GT(counts[1], 0);
  EXPECT_GT(counts[2], 0);
}

TEST(Sampler, NaNAndInfinityAreReported) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const size_t at : {size_t{0}, size_t{50}, size_t{99}}) {
      std::vector<float> logits(100, 1);
      logits[at] = bad;
      EXPECT_FALSE(Sampler(greedy(), {}).choose(logits).finite);
      EXPECT_FALSE(Sampler(Sampling(), {}).choose(logits).finite);
    }
  }
  EXPECT_TRUE(Sampler(greedy(), {}).choose(std::vector<float>{3e38f, -3e38f}).finite);
}

TEST(Sampler, LogprobsAreTheModelsOwn) {
  Random random(23);
  const std::vector<float> logits = random.normals(40, 3);
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  Sampling s;
  s.temperature = 2;
  s.repetition_penalty = 1.7f;
  s.bias = {{3, 4.0f}};
  for (const int32_t count : {0, 1, 5, 40, 1000}) {
    s.logprobs = count;
    const std::vector<int32_t> prompt = {1, 2, 3};
    const Choice choice = Sampler(s, prompt).choose(logits);
    EXPECT_NEAR(choice.logprobs.chosen, static_cast<double>(logits[choice.token]) - std::log(sum), 1e-5);
    ASSERT_EQ(choice.logprobs.top.size(), static_cast<size_t>(std::min(count, 40)));
    std::vector<float> sorted = logits;
    std::sort(sorted.rbegin(), sorted.rend());
    for (size_t i = 0; i < choice.logprobs.top.size(); ++i) {
      const auto& [id, value] = choice.logprobs.top[i];
      EXPECT_EQ(logits[id], sorted[i]);
      EXPECT_NEAR(value, static_cast<double>(sorted[i]) - std::log(sum), 1e-5);
    }
  }
  s.logprobs = -1;
  EXPECT_TRUE(Sampler(s, {}).choose(logits).logprobs.top.empty());
}

TEST(Sampler, WhenTheLargestLogitsAreEnough) {
  constexpr int32_t kMost = TopLogits::kMost;
  const auto enough = [](const std::function<void(Sampling&)>& change, int32_t count = TopLogits::kMost) {
    Sampling s;
    change(s);
    const std::vector<int32_t> prompt = {1};
    return Sampler(s, prompt).enough(count);
  };
  EXPECT_TRUE(enough([](Sampling&) {}));
  EXPECT_TRUE(enough([](Sampling& s) { s.top_k = kMost, s.logprobs = kMost; }));
  EXPECT_TRUE(enough([](Sampling& s) { s.temperature = 0, s.top_k = 0; }));
  EXPECT_TRUE(enough([](Sampling& s) { s.min_p = 0.1f, s.top_p = 1; }));
  EXPECT_FALSE(enough([](Sampling&) {}, 0));
  EXPECT_FALSE(enough([](Sampling& s) { s.temperature = 0; }, 0));
  EXPECT_FALSE(enough([](Sampling& s) { s.top_k = 0; }));
  EXPECT_FALSE(enough([](Sampling& s) { s.top_k = kMost + 1; }));
  EXPECT_FALSE(enough([](Sampling& s) { s.logprobs = kMost + 1; }));
  EXPECT_FALSE(enough([](Sampling& s) { s.temperature = 0, s.logprobs = kMost + 1; }));
  EXPECT_FALSE(enough([](Sampling& s) { s.repetition_penalty = 1.1f; }));
  EXPECT_FALSE(enough([](Sampling& s) { s.presence_penalty = 0.1f; }));
  EXPECT_FALSE(enough([](Sampling& s) { s.frequency_penalty = -0.1f; }));
  EXPECT_FALSE(enough([](Sampling& s) { s.bias = {{5, 1.0f}}; }));
}

TEST(Sampler, TheLargestLogitsGiveTheSameChoiceAsTheWholeRow) {
  Random random(26);
  for (int round = 0; round < 400; ++round) {
    Sampling s;
    s.temperature = random.chance(0.2) ? 0 : static_cast<float>(0.1 + 2 * random.uniform());
    s.top_k = static_cast<int32_t>(random.integer(1, TopLogits::kMost));
    s.top_p = random.chance(0.3) ? 1 : static_cast<float>(random.uniform());
    s.min_p = random.chance(0.5) ? 0 : static_cast<float>(0.3 * random.uniform());
    s.logprobs = static_cast<int32_t>(random.integer(-1, TopLogits::kMost));
    s.seed = static_cast<uint64_t>(round);
    Sampler whole(s, {}), top(s, {});
    ASSERT_TRUE(top.enough(TopLogits::kMost));
    // Fewer tokens than there might be of the largest, about as many, and many; half of the rounds with many ties.
    const int64_t vocabulary = round % 3 == 0 ? random.integer(1, 40) : round % 3 == 1 ? random.integer(60, 70) : 1000;
    for (int step = 0; step < 10; ++step) {
      std::vector<float> logits = random.normals(vocabulary, 3);
      if (round % 2 == 0) {
        for (float& x : logits) x = std::round(2 * x) / 2;
      }
      const Choice expected = whole.choose(logits), actual = top.choose(test::top_logits(logits));
      ASSERT_EQ(actual.token, expected.token) << round << " " << step;
      ASSERT_TRUE(actual.finite);
      ASSERT_NEAR(actual.logprobs.chosen, expected.logprobs.chosen, 1e-5);
      ASSERT_EQ(actual.logprobs.top.size(), expected.logprobs.top.size());
      for (size_t i = 0; i < actual.logprobs.top.size(); ++i) {
        ASSERT_EQ(actual.logprobs.top[i].first, expected.logprobs.top[i].first);
        ASSERT_NEAR(actual.logprobs.top[i].second, expected.logprobs.top[i].second, 1e-5);
      }
    }
  }
  TopLogits invalid = test::top_logits(std::vector<float>(5, NAN));
  EXPECT_FALSE(Sampler(greedy(), {}).choose(invalid).finite);
}

TEST(Sampler, ExtremeOptionsNeverLeaveTheVocabulary) {
  Random random(24);
  const float extremes[] = {0.0f, 1e-45f, 1e-38f, 1e-3f, 1.0f, 1e30f, 3e38f, INFINITY};
  const auto extreme = [&] { return extremes[random.integer(0, 7)]; };
  for (int round = 0; round < 3000; ++round) {
    Sampling s;
    s.temperature = extreme();
    s.top_k = static_cast<int32_t>(random.integer(0, 40));
    s.top_p = extreme();
    s.min_p = extreme();
    s.repetition_penalty = std::max(1e-45f, extreme());
    s.presence_penalty = random.chance(0.5) ? extreme() : -extreme();
    s.frequency_penalty = random.chance(0.5) ? extreme() : -extreme();
    s.logprobs = static_cast<int32_t>(random.integer(-1, 40));
    for (uint32_t id = 0; id < 32; ++id) {
      if (random.chance(0.3)) s.bias.emplace_back(id, random.chance(0.5) ? -extreme() : extreme());
    }
    const std::vector<int32_t> prompt = {1, 2, 3, 31};
    Sampler sampler(s, prompt);
    for (int i = 0; i < 5; ++i) {
      const Choice choice = sampler.choose(random.normals(32, 10));
      ASSERT_TRUE(choice.finite);
      ASSERT_LT(choice.token, 32u);
    }
  }
}

TEST(Sampler, BannedTokensAreNeverDrawn) {
  Random random(25);
  Sampling s;
  s.top_k = 0;
  s.top_p = 1;
  s.temperature = 5;
  for (uint32_t id = 0; id < 20; ++id) {
    if (id != 7 && id != 13) s.bias.emplace_back(id, -INFINITY);
  }
  Sampler sampler(s, {});
  for (int i = 0; i < 200; ++i) {
    const uint32_t token = sampler.choose(random.normals(20)).token;
    EXPECT_TRUE(token == 7 || token == 13);
  }
  s.temperature = 0;
  EXPECT_NE(Sampler(s, {}).choose(std::vector<float>(20, 1)).token, 0u);
}

}  // namespace
}  // namespace chatglm
