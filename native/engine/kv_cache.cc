#include "engine/kv_cache.h"

#include <algorithm>

namespace chatglm {

KvCache::KvCache(int32_t pages, int32_t page_tokens)
    : page_tokens_(page_tokens), uses_(static_cast<size_t>(pages), 0), live_uses_(static_cast<size_t>(pages), 0) {
  for (int32_t page = pages; page-- > 0;) free_.push_back(page);
}

int64_t KvCache::cached_tokens() const {
  int64_t sum = 0;
  for (const History& history : histories_) sum += static_cast<int64_t>(history.tokens.size());
  return sum;
}

int32_t KvCache::common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  const size_t limit = std::min(a.size(), b.size());
  return static_cast<int32_t>(std::mismatch(a.begin(), a.begin() + static_cast<int64_t>(limit), b.begin()).first -
                              a.begin());
}

KvCache::Match KvCache::find(std::span<const int32_t> tokens) {
  auto best = histories_.end();
  Match match;
  for (auto history = histories_.begin(); history != histories_.end(); ++history) {
    const int32_t length = common_prefix(history->tokens, tokens);
    if (length > match.tokens) {
      match.tokens = length;
      best = history;
    }
  }
  if (best != histories_.end()) {
    histories_.splice(histories_.begin(), histories_, best);
    match.pages = best->pages;
  }
  return match;
}

std::optional<KvCache::Start> KvCache::begin(int64_t most_tokens, const Match& match, Holding& holding) {
  const int32_t full = match.tokens / page_tokens_, partial = match.tokens % page_tokens_;
  int32_t becoming_live = pages_for(most_tokens);
  for (int32_t i = 0; i < full; ++i) {
    if (live_uses_[static_cast<size_t>(match.pages[static_cast<size_t>(i)])] > 0) --becoming_live;
  }
  if (live_pages_ + reserved_ + becoming_live > total_pages()) return std::nullopt;

  holding.pages.assign(match.pages.begin(), match.pages.begin() + full);
  for (const int32_t page : holding.pages) share(page, true);
  holding.reserved = pages_for(most_tokens) - full;
  reserved_ += holding.reserved;

  Start start{.reused_tokens = full * page_tokens_};
  if (partial > 0) {
    // The page is pinned while take() looks for the copy's page, which may evict the history that holds it. If it is
    // itself the only page that could be taken, nothing is copied and its few tokens are computed again.
    const int32_t from = match.pages[static_cast<size_t>(full)];
    const bool from_is_live = live_uses_[static_cast<size_t>(from)] > 0;
    if (total_pages() - live_pages_ - (from_is_live ? 0 : 1) >= 1) {
      share(from, false);
      take(holding);
      release(from, false);
      start = {match.tokens, from, holding.pages.back(), partial};
    }
  }
  return start;
}

void KvCache::take(Holding& holding) {
  const int32_t page = allocate();
  share(page, true);
  holding.pages.push_back(page);
  --holding.reserved;
  --reserved_;
}

void KvCache::end(Holding& holding, std::vector<int32_t> tokens, bool keep) {
  reserved_ -= holding.reserved;
  holding.reserved = 0;
  keep = keep && !tokens.empty();
  for (auto history = histories_.begin(); keep && history != histories_.end();) {
    const auto common = static_cast<size_t>(common_prefix(history->tokens, tokens));
    if (common == tokens.size()) keep = false;  // another history begins with all of them
    const auto next = std::next(history);
    if (keep && common == history->tokens.size()) drop(history);  // the new history begins with all of its tokens
    history = next;
  }
  if (keep) {
    const auto needed = static_cast<size_t>(pages_for(static_cast<int64_t>(tokens.size())));
    History history{std::move(tokens), {holding.pages.begin(), holding.pages.begin() + static_cast<int64_t>(needed)}};
    for (const int32_t page : history.pages) share(page, false);
    histories_.push_front(std::move(history));
  }
  for (const int32_t page : holding.pages) release(page, true);
  holding.pages.clear();
}

void KvCache::clear() {
  while (!histories_.empty()) drop(histories_.begin());
}

int32_t KvCache::allocate() {
  // begin() promised no more pages than there are, so evicting histories frees a page in the end.
  while (free_.empty()) drop(std::prev(histories_.end()));
  const int32_t page = free_.back();
  free_.pop_back();
  return page;
}

void KvCache::share(int32_t page, bool live) {
  const auto i = static_cast<size_t>(page);
  ++uses_[i];
  if (live && live_uses_[i]++ == 0) ++live_pages_;
}

void KvCache::release(int32_t page, bool live) {
  const auto i = static_cast<size_t>(page);
  if (live && --live_uses_[i] == 0) --live_pages_;
  if (--uses_[i] == 0) free_.push_back(page);
}

void KvCache::drop(std::list<History>::iterator history) {
  for (const int32_t page : history->pages) release(page, false);
  histories_.erase(history);
}

}  // namespace chatglm
