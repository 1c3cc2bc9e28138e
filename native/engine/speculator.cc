#include "engine/speculator.h"

#include <algorithm>

namespace chatglm {

namespace {

constexpr int32_t kMostWrong = 6;  // after which the pause does not grow any more: 64 tokens
constexpr int32_t kShortest = 3;   // draft that is made if more tokens could follow
constexpr double kMemory = 0.8;    // of the acceptance, a draft weighs 1 - kMemory

}  // namespace

// The place of the group that ends before position `end`: its own, or an empty one.
int32_t& Speculator::slot_of(std::span<const int32_t> tokens, int32_t end) {
  const int32_t* group = tokens.data() + end - kGram;
  uint64_t hash = 0;
  for (int32_t i = 0; i < kGram; ++i) hash = (hash ^ static_cast<uint32_t>(group[i])) * 0x9e3779b97f4a7c15u;
  const size_t mask = table_.size() - 1;
  for (size_t slot = hash >> 32 & mask;; slot = (slot + 1) & mask) {
    const int32_t other = table_[slot];
    if (other == 0 || std::equal(group, group + kGram, tokens.data() + other - kGram)) return table_[slot];
  }
}

void Speculator::grow(std::span<const int32_t> tokens) {
  size_t size = 256;
  while (size < 4 * tokens.size()) size *= 2;
  table_.assign(size, 0);
  entered_ = kGram - 1;
}

std::span<const int32_t> Speculator::draft(std::span<const int32_t> tokens, int32_t most) {
  drafts_.clear();
  const auto count = static_cast<int32_t>(tokens.size());
  if (pause_ > 0) {
    --pause_;
    return drafts_;
  }
  most = std::min({most, length_, kMostDrafts});
  if (count <= kGram || most <= 0) return drafts_;
  if (table_.size() < 2 * tokens.size()) grow(tokens);
  // The last group is what is looked up; the others are entered, later ones in place of their equals.
  while (entered_ < count - 1) {
    ++entered_;
    slot_of(tokens, entered_) = entered_;
  }
  int32_t next = slot_of(tokens, count);
  if (next == 0 && resume_ < count) next = resume_;
  resume_ = 0;
  if (next == 0) return drafts_;
  source_ = next;
  // A guess that reaches the end of the text goes on in itself: what repeats with a short period is guessed at length.
  for (int32_t i = next; static_cast<int32_t>(drafts_.size()) < most; ++i)
    drafts_.push_back(i < count ? tokens[static_cast<size_t>(i)] : drafts_[static_cast<size_t>(i - count)]);
  return drafts_;
}

void Speculator::judge(int32_t drafts, int32_t accepted) {
  acceptance_ = kMemory * acceptance_ + (1 - kMemory) * accepted / drafts;
  if (accepted == drafts) {
    length_ = std::min(2 * length_, kMostDrafts);
    wrong_ = 0;
  } else if (accepted > 0) {
    length_ = std::max(accepted + 1, kShortest);
    wrong_ = 0;
    // The token that was drawn in place of the draft is likely to be the only one that differs.
    resume_ = source_ + accepted + 1;
  } else {
    length_ = std::max(kShortest, length_ / 2);
    wrong_ = std::min(wrong_ + 1, kMostWrong);
    pause_ = 1 << wrong_;
  }
}

}  // namespace chatglm
