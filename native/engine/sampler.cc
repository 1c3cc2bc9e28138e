#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace chatglm {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint32_t largest(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<uint32_t>(best);
}

bool all_finite(std::span<const float> values) {
  float zero = 0;  // 0 * x is NaN for infinite and NaN x, else 0
  for (const float value : values) zero += 0.0f * value;
  return zero == 0.0f;
}

// likeliest: ids and logits; log_sum: the logarithm of the sum of all logits' exponentials.
Logprobs log_probabilities(std::vector<std::pair<uint32_t, float>> likeliest, float chosen, double log_sum) {
  for (auto& [id, value] : likeliest) value = static_cast<float>(value - log_sum);
  return {static_cast<float>(chosen - log_sum), std::move(likeliest)};
}

Logprobs log_probabilities(std::span<const float> logits, uint32_t chosen, int32_t count) {
  std::vector<uint32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint32_t>(i);
  const auto kept = order.begin() + std::min<int64_t>(std::max(count, 1), static_cast<int64_t>(order.size()));
  std::partial_sort(order.begin(), kept, order.end(),
                    [&](uint32_t a, uint32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
  const double maximum = logits[order.front()];
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - maximum);
  std::vector<std::pair<uint32_t, float>> likeliest;
  for (auto id = order.begin(); id != kept && count > 0; ++id) likeliest.emplace_back(*id, logits[*id]);
  return log_probabilities(std::move(likeliest), logits[chosen], maximum + std::log(sum));
}

}  // namespace

Sampler::Sampler(Sampling sampling, std::span<const int32_t> prompt)
    : sampling_(std::move(sampling)), random_(sampling_.seed) {
  if (sampling_.repetition_penalty != 1.0f) {
    for (const int32_t id : prompt) generated_.emplace(static_cast<uint32_t>(id), 0);
  }
}

bool Sampler::penalizes() const {
  return sampling_.repetition_penalty != 1.0f || sampling_.presence_penalty != 0.0f ||
         sampling_.frequency_penalty != 0.0f;
}

bool Sampler::enough(int32_t count) const {
  const bool few = sampling_.temperature == 0.0f || (sampling_.top_k >= 1 && sampling_.top_k <= count);
  return few && !penalizes() && sampling_.bias.empty() && sampling_.logprobs <= count && count >= 1;
}

Choice Sampler::choose(const TopLogits& top) {
  Choice choice;
  choice.finite = top.finite == 1;
  if (!choice.finite) return choice;

  int32_t chosen = 0;
  if (sampling_.temperature != 0.0f && sampling_.top_k != 1) {
    candidates_.clear();
    for (int32_t i = 0; i < std::min(top.count, sampling_.top_k); ++i)
      candidates_.push_back({top.logits[i], static_cast<uint32_t>(top.ids[i])});
    const auto token = static_cast<int32_t>(draw());
    while (top.ids[chosen] != token) ++chosen;
  }
  choice.token = static_cast<uint32_t>(top.ids[chosen]);
  if (sampling_.logprobs >= 0) {
    std::vector<std::pair<uint32_t, float>> likeliest;
    for (int32_t i = 0; i < std::min(top.count, sampling_.logprobs); ++i)
      likeliest.emplace_back(top.ids[i], top.logits[i]);
    choice.logprobs = log_probabilities(std::move(likeliest), top.logits[chosen], top.log_sum);
  }
  return choice;
}

Choice Sampler::choose(std::span<const float> logits) {
  Choice choice;
  choice.finite = all_finite(logits);
  if (!choice.finite) return choice;

  const bool penalties = penalizes();
  std::span<const float> changed = logits;
  if (penalties || !sampling_.bias.empty()) {
    scratch_.assign(logits.begin(), logits.end());
    apply_penalties(scratch_);
    changed = scratch_;
  }
  if (sampling_.temperature == 0.0f || sampling_.top_k == 1) {
    choice.token = largest(changed);
  } else {
    candidates_.clear();
    for (size_t i = 0; i < changed.size(); ++i) candidates_.push_back({changed[i], static_cast<uint32_t>(i)});
    choice.token = draw();
  }
  if (penalties) ++generated_[choice.token];
  if (sampling_.logprobs >= 0) choice.logprobs = log_probabilities(logits, choice.token, sampling_.logprobs);
  return choice;
}

void Sampler::apply_penalties(std::span<float> logits) const {
  for (const auto& [id, value] : sampling_.bias) {
    if (id < logits.size()) logits[id] += value;
  }
  for (const auto& [id, count] : generated_) {
    if (id >= logits.size()) continue;
    float& logit = logits[id];
    logit = logit < 0 ? logit * sampling_.repetition_penalty : logit / sampling_.repetition_penalty;
    if (count > 0) logit -= sampling_.frequency_penalty * static_cast<float>(count) + sampling_.presence_penalty;
  }
  // With extreme options numbers leave the range of float. draw() takes -inf, a banned token, but not +inf or NaN.
  for (float& logit : logits) {
    if (!(logit <= std::numeric_limits<float>::max()))
      logit = std::isnan(logit) ? -kInfinity : std::numeric_limits<float>::max();
  }
}

// Draws one of candidates_, by steps 4 to 8 of Sampling.
uint32_t Sampler::draw() {
  const auto likelier = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  if (sampling_.top_k > 0 && static_cast<size_t>(sampling_.top_k) < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + sampling_.top_k - 1, candidates_.end(), likelier);
    candidates_.resize(static_cast<size_t>(sampling_.top_k));
  }
  // A few candidates, which may be those of TopLogits, are sorted, so that their sum does not depend on their source.
  if (candidates_.size() <= static_cast<size_t>(TopLogits::kMost))
    std::sort(candidates_.begin(), candidates_.end(), likelier);

  // From here on `logit` holds the weight exp((logit - max) / temperature), whose sum is `total`.
  const auto [maximum, likeliest] = *std::min_element(candidates_.begin(), candidates_.end(), likelier);
  if (maximum == -kInfinity) return likeliest;  // every token is banned
  double total = 0;
  for (Candidate& c : candidates_) {
    const float exponent = (c.logit - maximum) / sampling_.temperature;
    c.logit = exponent > -kInfinity ? std::exp(exponent) : 0.0f;  // 0 for NaN: -inf divided by an infinite temperature
    total += c.logit;
  }
  if (sampling_.top_p < 1.0f) {
    // Candidates that are each less likely than (1 - p) / n cannot be needed to reach p and need no sorting.
    const double floor = (1.0 - sampling_.top_p) / static_cast<double>(candidates_.size()) * total;
    std::erase_if(candidates_, [&](const Candidate& c) { return c.logit < floor; });
  }
  std::sort(candidates_.begin(), candidates_.end(), likelier);
  size_t kept = candidates_.size();
  if (sampling_.top_p < 1.0f) {
    double sum = 0;
    for (kept = 0; kept < candidates_.size() && (kept == 0 || sum < sampling_.top_p * total); ++kept) {
      sum += candidates_[kept].logit;
    }
  }
  while (kept > 1 && candidates_[kept - 1].logit < sampling_.min_p * candidates_.front().logit) --kept;

  double remaining = 0;
  for (size_t i = 0; i < kept; ++i) remaining += candidates_[i].logit;
  double point = static_cast<double>(random_() >> 11) * 0x1p-53 * remaining;  // uniform in [0, remaining)
  for (size_t i = 0; i < kept; ++i) {
    point -= candidates_[i].logit;
    if (point < 0) return candidates_[i].id;
  }
  return candidates_[kept - 1].id;
}

}  // namespace chatglm
