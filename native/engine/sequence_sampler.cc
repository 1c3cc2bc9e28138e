#include "engine/sequence_sampler.h"

#include <algorithm>
#include <limits>

#include "engine/sampling_math.h"

namespace chatglm {

SequenceSampler::SequenceSampler(Sampling sampling, std::span<const int32_t> prompt, int32_t vocabulary)
    : sampling_(std::move(sampling)), vocabulary_(vocabulary) {
  std::erase_if(sampling_.banned, [](const std::vector<int32_t>& sequence) { return sequence.empty(); });
  for (const std::vector<int32_t>& sequence : sampling_.banned)
    longest_banned_ = std::max(longest_banned_, sequence.size() - 1);
  // Kernels take distinct tokens of the vocabulary, and masks of the whole vocabulary.
  std::unordered_map<uint32_t, size_t> places;
  for (const auto& [id, value] : sampling_.bias) {
    if (id >= static_cast<uint32_t>(vocabulary)) continue;
    const auto [found, is_new] = places.try_emplace(id, bias_.size());
    if (is_new) bias_.push_back({static_cast<int32_t>(id), 0});
    bias_[found->second].value += value;
  }
  if (!sampling_.mask.empty()) sampling_.mask.resize(static_cast<size_t>(vocabulary + 31) / 32);
  if (sampling_.repetition_penalty != 1.0f) {
    for (const int32_t id : prompt) count(id, 0);
  }
  tail_.assign(prompt.end() - static_cast<int64_t>(std::min(longest_banned_, prompt.size())), prompt.end());

  Draw draw;
  // Where the quotient leaves float's range, the likeliest token has it all, or all tokens have the same. It must not
  // become 0, which stands for the likeliest token.
  if (sampling_.temperature > 0) {
    draw.inverse_temperature =
        std::clamp(1.0f / sampling_.temperature, std::numeric_limits<float>::min(), std::numeric_limits<float>::max());
  }
  draw.top_k = sampling_.top_k;
  draw.top_p = sampling_.top_p;
  draw.min_p = sampling_.min_p;
  draw.repetition_penalty = sampling_.repetition_penalty;
  draw.presence_penalty = sampling_.presence_penalty;
  draw.frequency_penalty = sampling_.frequency_penalty;
  draw.bias = bias_;
  draw.mask = sampling_.mask;
  draws_.fill(draw);
}

bool SequenceSampler::penalizes() const {
  return sampling_.repetition_penalty != 1.0f || sampling_.presence_penalty != 0.0f ||
         sampling_.frequency_penalty != 0.0f;
}

bool SequenceSampler::is_plain() const { return !penalizes() && sampling_.banned.empty() && !sampling_.constraint; }

Row SequenceSampler::row() {
  Draw& draw = draws_[0];
  draw.counts = counts_;
  if (!sampling_.banned.empty()) ban();
  draw.banned = banned_now_;
  if (sampling_.constraint) {
    mask_ = sampling_.mask;
    if (mask_.empty()) mask_.assign(static_cast<size_t>(vocabulary_ + 31) / 32, ~uint32_t{0});
    sampling_.constraint->restrict(mask_);
    draw.mask = mask_;
  }
  return row_at(0);
}

Row SequenceSampler::row_at(int32_t ahead) {
  Draw& draw = draws_[static_cast<size_t>(ahead)];
  draw.random = random_at(sampling_.seed, place_ + static_cast<uint32_t>(ahead));
  Row row;
  row.use = Row::Use::sample;
  row.logprobs = sampling_.logprobs;
  row.draw = &draw;
  return row;
}

void SequenceSampler::accept(int32_t token) {
  ++place_;
  if (penalizes()) count(token, 1);
  if (sampling_.constraint) sampling_.constraint->accept(token);
  if (longest_banned_ == 0) return;
  if (tail_.size() == longest_banned_) tail_.erase(tail_.begin());
  tail_.push_back(token);
}

std::string SequenceSampler::problem() const {
  const std::string of_constraint = sampling_.constraint ? sampling_.constraint->problem() : std::string();
  return of_constraint.empty() ? "every token is banned at this place of the answer" : of_constraint;
}

void SequenceSampler::count(int32_t token, int32_t times) {
  const auto [found, is_new] = places_.try_emplace(token, counts_.size());
  if (is_new) counts_.push_back({token, 0});
  counts_[found->second].count += times;
}

void SequenceSampler::ban() {
  banned_now_.clear();
  for (const std::vector<int32_t>& sequence : sampling_.banned) {
    const auto before = static_cast<int64_t>(sequence.size()) - 1;
    if (before <= static_cast<int64_t>(tail_.size()) &&
        std::equal(sequence.begin(), sequence.end() - 1, tail_.end() - before)) {
      banned_now_.push_back(sequence.back());
    }
  }
}

}  // namespace chatglm
