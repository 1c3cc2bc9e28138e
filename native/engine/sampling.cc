#include "engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "engine/sampling_math.h"

namespace chatglm {

namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();

// Steps 1 to 4 of Draw.
std::vector<float> processed(const Draw& draw, std::span<const float> logits) {
  std::vector<float> result(logits.begin(), logits.end());
  const auto is_token = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < result.size(); };
  for (const auto& [id, value] : draw.bias) {
    if (is_token(id)) result[static_cast<size_t>(id)] = within_range(result[static_cast<size_t>(id)] + value);
  }
  for (const auto& [id, count] : draw.counts) {
    if (!is_token(id)) continue;
    float& logit = result[static_cast<size_t>(id)];
    logit =
        within_range(penalized(logit, draw.repetition_penalty, draw.presence_penalty, draw.frequency_penalty, count));
  }
  for (size_t id = 0; id < result.size() && !draw.mask.empty(); ++id) {
    if ((draw.mask[id / 32] >> (id % 32) & 1) == 0) result[id] = kBanned;
  }
  for (const int32_t id : draw.banned) {
    if (is_token(id)) result[static_cast<size_t>(id)] = kBanned;
  }
  return result;
}

// All tokens, by falling logit, of equal logits by rising id.
std::vector<int32_t> in_order(std::span<const float> logits) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  return order;
}

// Steps 5 to 9 of Draw. `kept` are all tokens in order.
int32_t drawn(const Draw& draw, std::span<const float> logits, std::vector<int32_t> kept) {
  const float largest = logits[static_cast<size_t>(kept.front())];
  const auto weight = [&](int32_t id) {
    return weight_of(logits[static_cast<size_t>(id)], largest, draw.inverse_temperature);
  };
  const auto sum_of = [&](const std::vector<int32_t>& ids) {
    int64_t sum = 0;
    for (const int32_t id : ids) sum += weight(id);
    return sum;
  };
  if (draw.top_k > 0) kept.resize(std::min(kept.size(), static_cast<size_t>(draw.top_k)));
  if (draw.top_p < 1) {
    const int64_t least = least_sum(draw.top_p, sum_of(kept));
    size_t count = 0;
    for (int64_t sum = 0; count < kept.size() && (count == 0 || sum < least); ++count) sum += weight(kept[count]);
    kept.resize(count);
  }
  if (draw.min_p > 0) std::erase_if(kept, [&](int32_t id) { return weight(id) < least_weight(draw.min_p); });
  std::ranges::sort(kept);
  int64_t point = drawn_point(draw.random, sum_of(kept));
  for (const int32_t id : kept) {
    point -= weight(id);
    if (point < 0) return id;
  }
  return kept.back();
}

}  // namespace

Outcome outcome_of(const Row& row, std::span<const float> logits) {
  Outcome outcome;
  outcome.token = row.target;
  if (!std::ranges::all_of(logits, [](float logit) { return std::isfinite(logit); })) {
    outcome.status = Outcome::Status::not_finite;
    return outcome;
  }
  if (row.use == Row::Use::sample) {
    const Draw& draw = *row.draw;
    const std::vector<float> changed = processed(draw, logits);
    const std::vector<int32_t> order = in_order(changed);
    if (changed[static_cast<size_t>(order.front())] == kBanned) {
      outcome.status = Outcome::Status::none_allowed;
      return outcome;
    }
    const bool greedy = draw.inverse_temperature == 0 || draw.top_k == 1;
    outcome.token = greedy ? order.front() : drawn(draw, changed, order);
    if (row.logprobs < 0) return outcome;
  }
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  const double log_sum = largest + std::log(sum);
  const auto logprob = [&](int32_t id) { return static_cast<float>(logits[static_cast<size_t>(id)] - log_sum); };
  outcome.logprob = logprob(outcome.token);
  outcome.count = std::min({row.logprobs, static_cast<int32_t>(logits.size()), Outcome::kMostLogprobs});
  if (outcome.count <= 0) {
    outcome.count = 0;
    return outcome;
  }
  const std::vector<int32_t> order = in_order(logits);
  for (int32_t i = 0; i < outcome.count; ++i) {
    outcome.ids[i] = order[static_cast<size_t>(i)];
    outcome.logprobs[i] = logprob(outcome.ids[i]);
  }
  return outcome;
}

}  // namespace chatglm
