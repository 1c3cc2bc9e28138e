#include "text/token_trie.h"

#include <algorithm>
#include <utility>

namespace chatglm {

namespace {

constexpr char kSpecialMark = '\xff';

}  // namespace

std::string TokenTrie::special_text(uint32_t token) {
  std::string text(1, kSpecialMark);
  for (int shift = 24; shift >= 0; shift -= 8) text += static_cast<char>(token >> shift & 0xff);
  return text;
}

TokenTrie::TokenTrie(std::shared_ptr<const Tokenizer> tokenizer, std::vector<uint32_t> special)
    : tokenizer_(std::move(tokenizer)), special_(std::move(special)) {
  std::sort(special_.begin(), special_.end());
  special_.erase(std::unique(special_.begin(), special_.end()), special_.end());
  std::vector<std::pair<std::string, uint32_t>> texts;
  texts.reserve(tokenizer_->size() + special_.size());
  for (uint32_t id = 0; id < tokenizer_->size(); ++id) {
    std::string text(tokenizer_->text(id));
    // The byte 255 by itself would be taken for the beginning of a special token.
    if (!text.empty() && text[0] != kSpecialMark) texts.emplace_back(std::move(text), id);
  }
  uint32_t count = tokenizer_->size();
  for (const uint32_t id : special_) {
    texts.emplace_back(special_text(id), id);
    count = std::max(count, id + 1);
  }
  std::sort(texts.begin(), texts.end());

  next_.assign(count, -1);
  nodes_.push_back({0, -1, 0, 0});
  std::vector<int32_t> path{0};  // the node of each prefix of the text before
  const auto leave = [&](size_t depth) {
    while (path.size() > depth + 1) {
      nodes_[static_cast<size_t>(path.back())].end = static_cast<int32_t>(nodes_.size());
      path.pop_back();
    }
  };
  std::string_view before;
  for (const auto& [text, id] : texts) {
    const size_t common = static_cast<size_t>(
        std::mismatch(before.begin(), before.end(), text.begin(), text.end()).first - before.begin());
    leave(common);
    for (size_t depth = common; depth < text.size(); ++depth) {
      path.push_back(static_cast<int32_t>(nodes_.size()));
      nodes_.push_back({0, -1, static_cast<int32_t>(depth) + 1, static_cast<uint8_t>(text[depth])});
    }
    Node& node = nodes_[static_cast<size_t>(path.back())];
    next_[id] = node.token;
    node.token = static_cast<int32_t>(id);
    longest_ = std::max(longest_, static_cast<int32_t>(text.size()));
    before = text;
  }
  leave(0);
  nodes_[0].end = static_cast<int32_t>(nodes_.size());
}

std::string TokenTrie::text(uint32_t token) const {
  if (token < tokenizer_->size()) {
    const std::string_view text = tokenizer_->text(token);
    return text.empty() || text[0] == kSpecialMark ? std::string() : std::string(text);
  }
  return is_special(token) ? special_text(token) : std::string();
}

bool TokenTrie::is_special(uint32_t token) const { return std::binary_search(special_.begin(), special_.end(), token); }

}  // namespace chatglm
