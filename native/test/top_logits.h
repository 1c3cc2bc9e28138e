#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "engine/backend.h"

namespace chatglm::test {

/// What a backend gives instead of a row of logits.
inline TopLogits top_logits(std::span<const float> row) {
  std::vector<int32_t> order(row.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](int32_t id) { return row[static_cast<size_t>(id)]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logit(a) > logit(b); });
  TopLogits top;
  top.finite = std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); });
  top.count = std::min(TopLogits::kMost, static_cast<int32_t>(row.size()));
  double sum = 0;
  for (const float x : row) sum += std::exp(static_cast<double>(x - logit(order[0])));
  top.log_sum = static_cast<float>(logit(order[0]) + std::log(sum));
  for (int32_t i = 0; i < top.count; ++i) {
    top.ids[i] = order[static_cast<size_t>(i)];
    top.logits[i] = logit(top.ids[i]);
  }
  return top;
}

}  // namespace chatglm::test
