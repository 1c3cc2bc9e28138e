// Sampling: its steps one by one, every instruction set beside the plain reference, and what is drawn beside exact
// probabilities.
#include "engine/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <vector>

#include "cpu/kernels/kernels.h"
#include "cpu/sampling.h"
#include "engine/sampling_math.h"
#include "engine/sequence_sampler.h"
#include "test/random.h"

namespace chatglm {
namespace {

using test::Random;
using Logits = std::vector<float>;
using Tokens = std::vector<int32_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Row sample(const Draw& draw, int32_t logprobs = -1) {
  Row row;
  row.use = Row::Use::sample;
  row.draw = &draw;
  row.logprobs = logprobs;
  return row;
}

TEST(SamplingMath, PhiloxGivesThePublishedNumbers) {
  // The known answers that come with Random123, of ten rounds.
  struct Known {
    RandomBits counter;
    uint32_t key0, key1;
    RandomBits result;
  };
  const Known all[] = {
      {{{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       0xa4093822,
       0x299f31d0,
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const Known& known : all) {
    const RandomBits bits = philox(known.counter, known.key0, known.key1);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(bits.word[i], known.result.word[i]);
  }
}

TEST(SamplingMath, TheExponentialIsNearTheOneOfDoubles) {
  double worst = 0;
  for (float x = 0; x >= ExpSteps::kLeast; x = std::nextafter(x - 1e-4f, -kInfinity)) {
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(exp_of(x) - exact) / exact);
  }
  EXPECT_LT(worst, 8.14e-8);
  EXPECT_EQ(exp_of(0.0f), 1.0f);
  EXPECT_EQ(exp_of(-kInfinity), 0.0f);
  EXPECT_EQ(exp_of(-88.0f), 0.0f);
}

TEST(SamplingMath, Weights) {
  EXPECT_EQ(weight_of(3, 3, 1), kWholeWeight);
  EXPECT_EQ(weight_of(3, 3, std::numeric_limits<float>::max()), kWholeWeight);
  EXPECT_EQ(weight_of(2.999f, 3, std::numeric_limits<float>::max()), 0);
  EXPECT_EQ(weight_of(-kInfinity, 3, 1e-3f), 0);
  EXPECT_NEAR(static_cast<double>(weight_of(2, 3, 1)), std::exp(-1.0) * static_cast<double>(kWholeWeight), 4e3);
  EXPECT_EQ(drawn_point(0, 10), 0);
  EXPECT_EQ(drawn_point(~uint64_t{0}, 10), 9);
}

TEST(Sampling, Greedy) {
  Draw draw;
  EXPECT_EQ(outcome_of(sample(draw), Logits{1, 5, 5, 2}).token, 1);  // the lowest id of equal ones
  draw.inverse_temperature = 1;
  draw.top_k = 1;
  EXPECT_EQ(outcome_of(sample(draw), Logits{1, 5, 6, 2}).token, 2);
}

TEST(Sampling, BiasPenaltiesAndBans) {
  Draw draw;
  const TokenBias bias[] = {{0, 5}, {9, 100}};  // there is no token 9
  draw.bias = bias;
  EXPECT_EQ(outcome_of(sample(draw), Logits{1, 5, 2}).token, 0);
  draw = {};
  // A logit below 0 is multiplied, another one is divided.
  const TokenCount prompt[] = {{0, 0}, {1, 0}};
  draw.counts = prompt;
  draw.repetition_penalty = 2;
  EXPECT_EQ(outcome_of(sample(draw), Logits{3, 2.9f, 1.6f}).token, 2);
  EXPECT_EQ(outcome_of(sample(draw), Logits{-1, -1.1f, -1.9f}).token, 2);
  draw.repetition_penalty = 1;
  draw.presence_penalty = 2;
  EXPECT_EQ(outcome_of(sample(draw), Logits{3, 2, 1.5f}).token, 0);  // only the prompt has it
  const TokenCount answer[] = {{0, 1}, {1, 3}};
  draw.counts = answer;
  EXPECT_EQ(outcome_of(sample(draw), Logits{3, 2, 1.5f}).token, 2);
  draw.presence_penalty = 0;
  draw.frequency_penalty = 1;
  EXPECT_EQ(outcome_of(sample(draw), Logits{3, 4.5f, 1.9f}).token, 0);
  draw = {};
  const uint32_t mask[] = {0b101};
  draw.mask = mask;
  EXPECT_EQ(outcome_of(sample(draw), Logits{1, 5, 2}).token, 2);
  const int32_t banned[] = {2};
  draw.banned = banned;
  EXPECT_EQ(outcome_of(sample(draw), Logits{1, 5, 2}).token, 0);
  const uint32_t none[] = {0b100};
  draw.mask = none;
  EXPECT_EQ(outcome_of(sample(draw), Logits{1, 5, 2}).status, Outcome::Status::none_allowed);
}

// The tokens that a draw may give, found by many random numbers.
std::map<int32_t, int> drawn_of(Draw draw, const Logits& logits, int draws = 2000) {
  std::map<int32_t, int> found;
  for (int i = 0; i < draws; ++i) {
    draw.random = random_at(11, static_cast<uint32_t>(i));
    ++found[outcome_of(sample(draw), logits).token];
  }
  return found;
}
Tokens keys(const std::map<int32_t, int>& found) {
  Tokens result;
  for (const auto& [id, _] : found) result.push_back(id);
  return result;
}

TEST(Sampling, WhatStays) {
  const Logits logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};
  Draw draw;
  draw.inverse_temperature = 1;
  EXPECT_EQ(keys(drawn_of(draw, logits)), Tokens({0, 1, 2, 3}));
  draw.top_k = 2;
  EXPECT_EQ(keys(drawn_of(draw, logits)), Tokens({1, 3}));
  draw.top_k = 0;
  draw.top_p = 0.75f;
  EXPECT_EQ(keys(drawn_of(draw, logits)), Tokens({1, 2, 3}));
  draw.top_p = 0;
  EXPECT_EQ(keys(drawn_of(draw, logits)), Tokens({1}));
  draw.top_p = 1;
  draw.min_p = 0.6f;
  EXPECT_EQ(keys(drawn_of(draw, logits)), Tokens({1, 3}));
  draw.min_p = 2;  // counts as 1
  EXPECT_EQ(keys(drawn_of(draw, logits)), Tokens({1}));
  // top-p is of what top-k has left: 0.4 of 0.7 are enough for 0.5.
  draw.min_p = 0;
  draw.top_k = 2;
  draw.top_p = 0.5f;
  EXPECT_EQ(keys(drawn_of(draw, logits)), Tokens({1}));
  // Of equal logits the lower ids stay.
  draw.top_p = 1;
  EXPECT_EQ(keys(drawn_of(draw, Logits(100, 1.0f))), Tokens({0, 1}));
}

TEST(Sampling, LogProbabilitiesAreTheModelsOwn) {
  const Logits logits = {1, 3, 2, -1};
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  Draw draw;
  const TokenBias bias[] = {{3, 100}};
  draw.bias = bias;
  const Outcome outcome = outcome_of(sample(draw, 2), logits);
  EXPECT_EQ(outcome.token, 3);
  EXPECT_NEAR(outcome.logprob, -1 - std::log(sum), 1e-6);
  ASSERT_EQ(outcome.count, 2);
  EXPECT_EQ(outcome.ids[0], 1);
  EXPECT_EQ(outcome.ids[1], 2);
  EXPECT_NEAR(outcome.logprobs[1], 2 - std::log(sum), 1e-6);
  Row score;
  score.use = Row::Use::score;
  score.target = 0;
  score.logprobs = 0;
  EXPECT_NEAR(outcome_of(score, logits).logprob, 1 - std::log(sum), 1e-6);
  EXPECT_EQ(outcome_of(score, Logits{1, NAN}).status, Outcome::Status::not_finite);
}

// The probabilities that the options leave, computed in doubles without weights.
std::vector<double> exact_probabilities(const Draw& draw, Logits logits) {
  for (const auto& [id, value] : draw.bias) logits[static_cast<size_t>(id)] += value;
  for (const auto& [id, count] : draw.counts) {
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit < 0 ? logit * draw.repetition_penalty : logit / draw.repetition_penalty;
    logit -= draw.frequency_penalty * static_cast<float>(count) + (count > 0 ? draw.presence_penalty : 0);
  }
  for (size_t id = 0; id < logits.size() && !draw.mask.empty(); ++id) {
    if ((draw.mask[id / 32] >> (id % 32) & 1) == 0) logits[id] = -kInfinity;
  }
  for (const int32_t id : draw.banned) logits[static_cast<size_t>(id)] = -kInfinity;
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> result(logits.size());
  for (size_t id = 0; id < logits.size(); ++id)
    result[id] = std::exp((static_cast<double>(logits[id]) - logits[order[0]]) * draw.inverse_temperature);
  const auto keep = [&](size_t count) {
    for (size_t i = count; i < order.size(); ++i) result[order[i]] = 0;
  };
  if (draw.top_k > 0) keep(static_cast<size_t>(draw.top_k));
  double sum = std::accumulate(result.begin(), result.end(), 0.0);
  if (draw.top_p < 1) {
    size_t count = 0;
    for (double part = 0; count < order.size() && (count == 0 || part < draw.top_p * sum); ++count)
      part += result[order[count]];
    keep(count);
  }
  for (double& weight : result) weight = weight < draw.min_p ? 0 : weight;
  sum = std::accumulate(result.begin(), result.end(), 0.0);
  for (double& weight : result) weight /= sum;
  return result;
}

// Pearson's statistic of draws beside probabilities, as a distance from its mean in standard deviations (Wilson and
// Hilferty). Below 4 for all but one in 30,000 right samplers. Tokens that are expected less than five times are one.
double deviation(const std::map<int32_t, int>& found, const std::vector<double>& probabilities, int draws) {
  double statistic = 0, rare_expected = 0, rare_found = 0;
  int classes = 0;
  const auto add = [&](double expected, double seen) {
    statistic += (seen - expected) * (seen - expected) / expected;
    ++classes;
  };
  for (size_t id = 0; id < probabilities.size(); ++id) {
    const auto at = found.find(static_cast<int32_t>(id));
    const double seen = at == found.end() ? 0 : at->second, expected = probabilities[id] * draws;
    if (expected == 0 && seen > 0) return kInfinity;
    if (expected >= 5) {
      add(expected, seen);
    } else {
      rare_expected += expected;
      rare_found += seen;
    }
  }
  if (rare_expected >= 5) add(rare_expected, rare_found);
  const double freedom = classes - 1;
  if (freedom < 1) return 0;
  const double spread = 2 / (9 * freedom);
  return (std::cbrt(statistic / freedom) - (1 - spread)) / std::sqrt(spread);
}

TEST(SamplingDistribution, OfEachOptionAndOfSeveral) {
  constexpr int kDraws = 40000;
  Random random(5);
  Logits logits(200);
  for (float& logit : logits) logit = static_cast<float>(random.normal()) * 2;
  const TokenBias bias[] = {{3, 4}, {50, -3}, {120, 2}};
  const TokenCount counts[] = {{1, 0}, {7, 2}, {100, 1}, {150, 5}};
  std::vector<uint32_t> mask(7, 0x5a5a5a5au);
  const int32_t banned[] = {4, 12, 33};
  std::vector<std::pair<const char*, Draw>> draws;
  const auto with = [&](const char* name, const std::function<void(Draw&)>& change) {
    Draw draw;
    draw.inverse_temperature = 1;
    change(draw);
    draws.emplace_back(name, draw);
  };
  with("nothing", [](Draw&) {});
  with("temperature", [](Draw& d) { d.inverse_temperature = 1 / 0.6f; });
  with("a high temperature", [](Draw& d) { d.inverse_temperature = 0.2f; });
  with("top-k", [](Draw& d) { d.top_k = 20; });
  with("top-p", [](Draw& d) { d.top_p = 0.7f; });
  with("min-p", [](Draw& d) { d.min_p = 0.1f; });
  with("bias", [&](Draw& d) { d.bias = bias; });
  with("repetition", [&](Draw& d) {
    d.counts = counts;
    d.repetition_penalty = 1.5f;
  });
  with("presence", [&](Draw& d) {
    d.counts = counts;
    d.presence_penalty = 1;
  });
  with("frequency", [&](Draw& d) {
    d.counts = counts;
    d.frequency_penalty = 0.5f;
  });
  with("mask", [&](Draw& d) { d.mask = mask; });
  with("banned", [&](Draw& d) { d.banned = banned; });
  with("THUDM's defaults", [](Draw& d) {
    d.inverse_temperature = 1 / 0.8f;
    d.top_k = 50;
    d.top_p = 0.8f;
  });
  with("everything", [&](Draw& d) {
    d.inverse_temperature = 1 / 1.3f;
    d.top_k = 60;
    d.top_p = 0.95f;
    d.min_p = 0.01f;
    d.bias = bias;
    d.counts = counts;
    d.repetition_penalty = 1.2f;
    d.presence_penalty = 0.3f;
    d.frequency_penalty = 0.2f;
    d.mask = mask;
    d.banned = banned;
  });
  const cpu::Kernels& kernels = cpu::select_kernels();
  uint64_t seed = 0;
  for (auto& [name, draw] : draws) {
    std::map<int32_t, int> found;
    ++seed;
    for (int i = 0; i < kDraws; ++i) {
      draw.random = random_at(seed, static_cast<uint32_t>(i));
      Logits scratch = logits;
      ++found[cpu::outcome_of(kernels, sample(draw), scratch).token];
    }
    EXPECT_LT(std::abs(deviation(found, exact_probabilities(draw, logits), kDraws)), 4) << name;
    // The check itself: what was drawn is not what a slightly different temperature gives.
    Draw other = draw;
    other.inverse_temperature *= 1.3f;
    EXPECT_GT(deviation(found, exact_probabilities(other, logits), kDraws), 4) << name;
  }
}

// Of the same seed, neighbouring places and neighbouring seeds are independent enough to be uniform together.
TEST(SamplingDistribution, RandomBitsAreUniform) {
  constexpr int kDraws = 64000;
  std::map<int32_t, int> places, seeds;
  for (uint32_t i = 0; i < kDraws; ++i) {
    ++places[static_cast<int32_t>((random_at(7, i) >> 61) * 8 + (random_at(7, i + 1) >> 61))];
    ++seeds[static_cast<int32_t>((random_at(i, 0) >> 61) * 8 + (random_at(i + 1, 0) >> 61))];
  }
  const std::vector<double> even(64, 1.0 / 64);
  EXPECT_LT(deviation(places, even, kDraws), 4);
  EXPECT_LT(deviation(seeds, even, kDraws), 4);
}

void expect_same(const Row& row, const Outcome& found, const Outcome& expected) {
  // Of large logits, rounding allows no more than the last bits of float.
  const auto near = [](float a, float b) { return a == b || std::abs(a - b) <= 1e-5f * std::max(1.0f, std::abs(b)); };
  ASSERT_EQ(found.status, expected.status);
  if (expected.status != Outcome::Status::ok) return;
  ASSERT_EQ(found.token, expected.token);
  ASSERT_EQ(found.count, expected.count);
  if (row.logprobs >= 0) ASSERT_PRED2(near, found.logprob, expected.logprob);
  for (int32_t i = 0; i < expected.count; ++i) {
    ASSERT_EQ(found.ids[i], expected.ids[i]) << "rank " << i;
    ASSERT_PRED2(near, found.logprobs[i], expected.logprobs[i]);
  }
}

// Every instruction set of this machine gives the reference's tokens, for random rows, options and vocabularies.
TEST(SamplingKernels, EveryInstructionSetGivesTheReferencesTokens) {
  int compared = 0;
  for (const cpu::Kernels* kernels : cpu::all_kernels()) {
    if (!cpu::kernels_by_name(kernels->name)) continue;
    Random random(9);
    const auto options = [&](int32_t vocabulary) {
      struct Options {
        Draw draw;
        std::vector<TokenBias> bias;
        std::vector<TokenCount> counts;
        std::vector<uint32_t> mask;
        Tokens banned;
        int32_t logprobs = -1;
      };
      auto result = std::make_unique<Options>();
      Draw& draw = result->draw;
      const auto token = [&] { return static_cast<int32_t>(random.integer(0, vocabulary - 1)); };
      const auto distinct = [&](int64_t count) {
        std::map<int32_t, int> ids;
        for (int64_t i = 0; i < count; ++i) ids[token()] = static_cast<int>(random.integer(0, 4));
        return ids;
      };
      const float temperatures[] = {0, 1e-30f, 0.1f, 0.8f, 1, 3, 100, 1e30f};
      const float temperature = temperatures[random.integer(0, 7)];
      draw.inverse_temperature = temperature == 0 ? 0 : std::min(1 / temperature, std::numeric_limits<float>::max());
      const int32_t ks[] = {0, 0, 1, 2, 50, 64, 65, 500, vocabulary - 1, vocabulary, vocabulary + 5};
      draw.top_k = std::max(0, ks[random.integer(0, 10)]);
      const float ps[] = {1, 1, 0, 0.1f, 0.5f, 0.8f, 0.95f, 0.9999f};
      draw.top_p = ps[random.integer(0, 7)];
      const float mins[] = {0, 0, 0, 1e-4f, 0.05f, 0.5f, 1};
      draw.min_p = mins[random.integer(0, 6)];
      draw.random = random_at(3, static_cast<uint32_t>(random.integer(0, 1 << 30)));
      if (random.chance(0.3)) {
        for (const auto& [id, _] : distinct(random.integer(1, 20)))
          result->bias.push_back({id, random.chance(0.2) ? -kInfinity : static_cast<float>(random.normal() * 5)});
      }
      if (random.chance(0.3)) {
        for (const auto& [id, count] : distinct(random.integer(1, 300))) result->counts.push_back({id, count});
        draw.repetition_penalty = random.chance(0.7) ? 1.1f : 100.0f;
        draw.presence_penalty = 0.5f;
        draw.frequency_penalty = 0.3f;
      }
      if (random.chance(0.3)) {
        const double density = random.chance(0.5) ? 0.5 : 0.001;
        result->mask.resize(static_cast<size_t>(vocabulary + 31) / 32);
        for (int32_t id = 0; id < vocabulary; ++id) {
          if (random.chance(density)) result->mask[static_cast<size_t>(id / 32)] |= 1u << (id % 32);
        }
      }
      if (random.chance(0.2)) {
        for (int i = 0; i < 5; ++i) result->banned.push_back(token());
      }
      if (random.chance(0.4)) result->logprobs = static_cast<int32_t>(random.integer(0, 100));
      draw.bias = result->bias;
      draw.counts = result->counts;
      draw.mask = result->mask;
      draw.banned = result->banned;
      return result;
    };
    for (const int32_t vocabulary : {1, 17, 127, 128, 129, 1000, 8192, 65024, 130528, 151552}) {
      const int rounds = vocabulary > 60000 ? 12 : vocabulary > 2000 ? 40 : 150;
      for (int round = 0; round < rounds; ++round) {
        Logits logits(static_cast<size_t>(vocabulary));
        const double spread = random.chance(0.2) ? 0.01 : random.chance(0.5) ? 2 : 8;
        const bool tied = random.chance(0.3);
        for (float& logit : logits) {
          logit = static_cast<float>(random.normal() * spread);
          if (tied) logit = std::round(logit);
        }
        if (random.chance(0.03))
          logits[static_cast<size_t>(random.integer(0, vocabulary - 1))] = round % 2 ? NAN : kInfinity;
        const auto given = options(vocabulary);
        Row row = sample(given->draw, given->logprobs);
        if (random.chance(0.1)) {
          row.use = Row::Use::score;
          row.target = static_cast<int32_t>(random.integer(0, vocabulary - 1));
          row.logprobs = std::max(0, row.logprobs);
        }
        const Outcome expected = outcome_of(row, logits);
        Logits scratch = logits;
        const Outcome found = cpu::outcome_of(*kernels, row, scratch);
        const auto where = [&] {
          return std::string(kernels->name) + " vocabulary " + std::to_string(vocabulary) + " round " +
                 std::to_string(round);
        };
        ++compared;
        SCOPED_TRACE(where());
        expect_same(row, found, expected);
        if (HasFatalFailure()) return;
      }
    }
  }
  EXPECT_GT(compared, 500);
}

// Numbers at the ends of float, far beyond what options are checked for, in rows of equal, tiny and huge logits.
TEST(SamplingKernels, ExtremesGiveTheReferencesTokens) {
  constexpr float kMost = std::numeric_limits<float>::max(), kLeast = std::numeric_limits<float>::min();
  Random random(31);
  const auto one_of = [&](std::initializer_list<float> values) {
    return values.begin()[random.integer(0, static_cast<int64_t>(values.size()) - 1)];
  };
  std::map<Outcome::Status, int> statuses;
  for (int round = 0; round < 4000; ++round) {
    SCOPED_TRACE(round);
    const auto vocabulary = static_cast<int32_t>(one_of({1, 2, 17, 128, 129, 300, 2000}));
    const float spread = one_of({0, 1e-6f, 0.1f, 3, 1e4f, 1e30f}), middle = one_of({0, 5, -5, 1e8f, -1e8f});
    Logits logits(static_cast<size_t>(vocabulary));
    for (float& logit : logits) logit = random.normal() * spread + middle;
    const auto token = [&] { return static_cast<int32_t>(random.integer(0, vocabulary - 1)); };
    if (random.chance(0.1)) logits[static_cast<size_t>(token())] = one_of({kMost, -kMost});
    if (random.chance(0.1)) logits[static_cast<size_t>(token())] = one_of({NAN, kInfinity, -kInfinity});

    Draw draw;
    draw.inverse_temperature = one_of({0, kLeast, 1e-30f, 1e-3f, 1, 30, 1e30f, kMost});
    draw.top_k = random.chance(0.5) ? 0 : random.chance(0.1) ? INT32_MAX : static_cast<int32_t>(random.integer(1, 300));
    draw.top_p = one_of({-1, 0, 1e-30f, 0.3f, 0.9f, 0.99999994f, 1, 2, kInfinity});
    draw.min_p = one_of({-1, 0, 0, 1e-10f, 0.1f, 0.99999994f, 1, 2, kMost, kInfinity});
    draw.random = random.chance(0.1) ? ~uint64_t{0} : random_at(8, static_cast<uint32_t>(round));
    std::vector<TokenBias> bias;
    std::vector<TokenCount> counts;
    std::vector<uint32_t> mask;
    Tokens banned;
    // Some are of tokens that the vocabulary does not have.
    const float bias_value = one_of({1, -1e6f, kMost, -kMost, kInfinity, -kInfinity});
    for (int32_t id = -1; random.chance(0.9) && id < vocabulary + 2; id += static_cast<int32_t>(random.integer(1, 99)))
      bias.push_back({id, bias_value});
    if (random.chance(0.4)) {
      for (int32_t id = -1; id < vocabulary + 2; id += static_cast<int32_t>(random.integer(1, 9)))
        counts.push_back({id, static_cast<int32_t>(random.integer(0, 1000))});
      draw.repetition_penalty = one_of({1, kLeast, 0.01f, 100, kMost});
      draw.presence_penalty = one_of({0, 1, -100, kMost, -kMost});
      draw.frequency_penalty = one_of({0, 1, -100, kMost, -kMost});
    }
    if (random.chance(0.3))
      mask.assign(static_cast<size_t>(vocabulary + 31) / 32, random.chance(0.2) ? 0 : 0x8001'0010);
    if (random.chance(0.05)) {
      for (int32_t id = 0; id < vocabulary; ++id) banned.push_back(id);
    }
    draw.bias = bias;
    draw.counts = counts;
    draw.mask = mask;
    draw.banned = banned;
    const Row row = sample(draw, random.chance(0.5) ? -1 : static_cast<int32_t>(random.integer(0, 100)));
    const Outcome expected = outcome_of(row, logits);
    ++statuses[expected.status];
    if (expected.status == Outcome::Status::ok) ASSERT_LT(static_cast<uint32_t>(expected.token), logits.size());
    for (const cpu::Kernels* kernels : cpu::all_kernels()) {
      if (!cpu::kernels_by_name(kernels->name)) continue;
      SCOPED_TRACE(kernels->name);
      Logits scratch = logits;
      expect_same(row, cpu::outcome_of(*kernels, row, scratch), expected);
      if (HasFatalFailure()) return;
    }
  }
  for (const auto status : {Outcome::Status::ok, Outcome::Status::not_finite, Outcome::Status::none_allowed})
    EXPECT_GT(statuses[status], 100);
}

// Of 1024 equal logits, each has a 1024th of the random numbers, from its first one to its last one.
TEST(SamplingKernels, ADrawOnTheBorderOfTwoTokens) {
  for (const int32_t top_k : {0, 512}) {
    Draw draw;
    draw.inverse_temperature = 1;
    draw.top_k = top_k;
    const int shift = top_k == 0 ? 54 : 55;
    const Logits logits(1024, 0.5f);
    for (const uint64_t token : {0, 1, 127, 128, 129, 511}) {
      for (const uint64_t random : {token << shift, ((token + 1) << shift) - 1}) {
        draw.random = random;
        ASSERT_EQ(outcome_of(sample(draw), logits).token, static_cast<int32_t>(token));
        for (const cpu::Kernels* kernels : cpu::all_kernels()) {
          if (!cpu::kernels_by_name(kernels->name)) continue;
          Logits scratch = logits;
          ASSERT_EQ(cpu::outcome_of(*kernels, sample(draw), scratch).token, static_cast<int32_t>(token));
        }
      }
    }
  }
}

// The largest vocabulary of a model: sums of its weights have more bits than a double.
TEST(SamplingKernels, TheLargestVocabulary) {
  Random random(32);
  const Logits logits = random.normals(1 << 20, 0.5f);
  for (const float top_p : {1.0f, 0.7f}) {
    Draw draw;
    draw.inverse_temperature = 0.01f;
    draw.top_p = top_p;
    draw.random = random_at(1, 1);
    int64_t sum = 0;
    const float largest = *std::ranges::max_element(logits);
    for (const float logit : logits) sum += weight_of(logit, largest, draw.inverse_temperature);
    EXPECT_GT(sum, int64_t{1} << 53);
    const Outcome expected = outcome_of(sample(draw), logits);
    Logits scratch = logits;
    expect_same(sample(draw), cpu::outcome_of(cpu::select_kernels(), sample(draw), scratch), expected);
  }
}

TEST(SamplingKernels, WeightsOfEveryInstructionSetAreExact) {
  Random random(4);
  Logits logits(1000);
  for (float& logit : logits) logit = static_cast<float>(random.normal()) * 10;
  logits[5] = -kInfinity;
  const float largest = *std::ranges::max_element(logits);
  for (const cpu::Kernels* kernels : cpu::all_kernels()) {
    if (!cpu::kernels_by_name(kernels->name)) continue;
    for (const float inverse : {0.001f, 0.9f, 1.0f, 20.0f, std::numeric_limits<float>::max()}) {
      int64_t sums[8];
      kernels->chunk_weights(logits.data(), 1000, largest, inverse, sums);
      std::vector<int64_t> weights(1001, -7);
      kernels->weights(logits.data(), 1000, largest, inverse, weights.data());
      EXPECT_EQ(weights[1000], -7);
      for (size_t i = 0; i < 1000; ++i) ASSERT_EQ(weights[i], weight_of(logits[i], largest, inverse)) << kernels->name;
      for (size_t chunk = 0; chunk < 8; ++chunk) {
        int64_t sum = 0;
        for (size_t i = chunk * 128; i < std::min<size_t>(1000, chunk * 128 + 128); ++i)
          sum += weight_of(logits[i], largest, inverse);
        EXPECT_EQ(sums[chunk], sum) << kernels->name << " chunk " << chunk;
      }
    }
  }
}

TEST(SequenceSampler, TemperaturesAtTheEndsOfFloat) {
  const auto inverse = [](float temperature) {
    Sampling sampling;
    sampling.temperature = temperature;
    return SequenceSampler(sampling, Tokens{1}, 100).row().draw->inverse_temperature;
  };
  EXPECT_EQ(inverse(0), 0);
  EXPECT_EQ(inverse(0.5f), 2);
  EXPECT_EQ(inverse(std::numeric_limits<float>::denorm_min()), std::numeric_limits<float>::max());
  // Not 0, which would take the likeliest token: all tokens have the same probability.
  EXPECT_EQ(inverse(kInfinity), std::numeric_limits<float>::min());
  EXPECT_EQ(weight_of(-100, 100, inverse(kInfinity)), kWholeWeight);
}

TEST(SequenceSampler, WhatKernelsGetIsOfTheVocabulary) {
  Sampling sampling;
  sampling.bias = {{3, 2}, {100, 9}, {7, 1}, {3, 0.5f}, {4'000'000'000u, 9}};
  sampling.mask = {~0u};
  SequenceSampler sampler(sampling, Tokens{1}, 100);
  const Row row = sampler.row();
  ASSERT_EQ(row.draw->bias.size(), 2u);
  EXPECT_EQ(row.draw->bias[0].id, 3);
  EXPECT_EQ(row.draw->bias[0].value, 2.5f);
  EXPECT_EQ(row.draw->bias[1].id, 7);
  ASSERT_EQ(row.draw->mask.size(), 4u);
  EXPECT_EQ(row.draw->mask[0], ~0u);
  EXPECT_EQ(row.draw->mask[1], 0u);
}

Tokens banned_now(SequenceSampler& sampler) {
  const Row row = sampler.row();
  return {row.draw->banned.begin(), row.draw->banned.end()};
}

TEST(SequenceSampler, CountsAndPlaces) {
  Sampling sampling;
  sampling.temperature = 2;
  sampling.repetition_penalty = 1.5f;
  sampling.seed = 77;
  const Tokens prompt = {4, 5, 4};
  SequenceSampler sampler(sampling, prompt, 100);
  EXPECT_FALSE(sampler.is_plain());
  Row row = sampler.row();
  EXPECT_EQ(row.draw->inverse_temperature, 0.5f);
  EXPECT_EQ(row.draw->random, random_at(77, 0));
  ASSERT_EQ(row.draw->counts.size(), 2u);
  EXPECT_EQ(row.draw->counts[0].count, 0);
  sampler.accept(5);
  sampler.accept(9);
  sampler.accept(9);
  row = sampler.row();
  EXPECT_EQ(row.draw->random, random_at(77, 3));
  ASSERT_EQ(row.draw->counts.size(), 3u);
  EXPECT_EQ(row.draw->counts[1].count, 1);
  EXPECT_EQ(row.draw->counts[2].id, 9);
  EXPECT_EQ(row.draw->counts[2].count, 2);
}

TEST(SequenceSampler, PresenceCountsTheAnswerOnly) {
  Sampling sampling;
  sampling.presence_penalty = 1;
  const Tokens prompt = {4, 5};
  SequenceSampler sampler(sampling, prompt, 100);
  EXPECT_TRUE(sampler.row().draw->counts.empty());
  sampler.accept(7);
  EXPECT_EQ(sampler.row().draw->counts.size(), 1u);
}

TEST(SequenceSampler, DraftsHaveTheRandomBitsOfTheirPlaces) {
  Sampling sampling;
  sampling.seed = 5;
  SequenceSampler sampler(sampling, Tokens{1}, 100);
  ASSERT_TRUE(sampler.is_plain());
  sampler.accept(3);
  const Row next = sampler.row_at(0), later = sampler.row_at(2);
  EXPECT_EQ(next.draw->random, random_at(5, 1));
  EXPECT_EQ(later.draw->random, random_at(5, 3));
}

TEST(SequenceSampler, BannedSequences) {
  Sampling sampling;
  sampling.banned = {{7}, {1, 2, 3}, {2, 9}, {}};
  SequenceSampler sampler(sampling, Tokens{5, 1}, 100);
  EXPECT_FALSE(sampler.is_plain());
  EXPECT_EQ(banned_now(sampler), Tokens({7}));
  sampler.accept(2);  // after 1 of the prompt
  EXPECT_EQ(banned_now(sampler), Tokens({7, 3, 9}));
  sampler.accept(4);
  EXPECT_EQ(banned_now(sampler), Tokens({7}));
  sampler.accept(2);
  EXPECT_EQ(banned_now(sampler), Tokens({7, 9}));
}

TEST(SequenceSampler, AConstraintRestrictsTheMask) {
  // Allows one more token after each.
  struct Rising final : TokenConstraint {
    void limit(int32_t) override {}
    int32_t last = 0;
    void restrict(std::span<uint32_t> mask) override {
      for (int32_t id = 0; id < static_cast<int32_t>(mask.size()) * 32; ++id) {
        if (id <= last) mask[static_cast<size_t>(id / 32)] &= ~(1u << (id % 32));
      }
    }
    void accept(int32_t token) override { last = token; }
  };
  Sampling sampling;
  sampling.constraint = std::make_shared<Rising>();
  sampling.mask = {0xffff'fff0u, 0xffu, 0, 0};
  SequenceSampler sampler(sampling, Tokens{1}, 100);
  EXPECT_FALSE(sampler.is_plain());
  EXPECT_EQ(sampler.row().draw->mask[0], 0xffff'fff0u);
  sampler.accept(8);
  EXPECT_EQ(sampler.row().draw->mask[0], 0xffff'fe00u);
  EXPECT_EQ(sampler.row().draw->mask[1], 0xffu);
}

}  // namespace
}  // namespace chatglm
