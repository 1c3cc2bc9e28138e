#include "engine/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"

namespace chatglm {

namespace {

uint64_t mixed(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  x ^= x >> 32;
  return x;
}

// Collisions cost a comparison, nothing else: who finds a page compares its tokens.
uint64_t hash_of(int32_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = mixed(static_cast<uint32_t>(parent) + 1ull);
  size_t i = 0;
  for (; i + 2 <= tokens.size(); i += 2) {
    const uint64_t pair =
        static_cast<uint64_t>(static_cast<uint32_t>(tokens[i])) << 32 | static_cast<uint32_t>(tokens[i + 1]);
    hash = mixed(hash ^ pair) + 0x9e3779b97f4a7c15u;
  }
  if (i < tokens.size()) hash = mixed(hash ^ static_cast<uint32_t>(tokens[i]));
  return hash;
}

int32_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  const auto limit = static_cast<int64_t>(std::min(a.size(), b.size()));
  return static_cast<int32_t>(std::mismatch(a.begin(), a.begin() + limit, b.begin()).first - a.begin());
}

void require(bool condition, const char* what) {
  if (!condition) throw Error("ERR_INTERNAL", std::string("pages: ") + what);
}

}  // namespace

bool KvCache::Order::less(const Prefix& a, const Prefix& b) {
  if (a.parent != b.parent) return a.parent < b.parent;
  return std::lexicographical_compare(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end());
}

KvCache::KvCache(int32_t pages, int32_t page_tokens)
    : page_tokens_(page_tokens),
      pages_(static_cast<size_t>(pages)),
      tokens_(static_cast<size_t>(pages) * static_cast<size_t>(page_tokens)),
      sorted_(Order{this}) {
  for (int32_t page = pages; page-- > 0;) free_.push_back(page);
}

KvCache::Prefix KvCache::prefix_of(int32_t page) const {
  const Page& p = at(page);
  return {
      p.parent,
      {tokens_.data() + static_cast<size_t>(page) * static_cast<size_t>(page_tokens_), static_cast<size_t>(p.tokens)}};
}

bool KvCache::is_chained(const Holding& holding) const {
  return holding.cached &&
         (holding.registered == 0 || at(holding.pages[static_cast<size_t>(holding.registered) - 1]).tokens > 0);
}

KvCache::Start KvCache::extend(Holding& holding, std::span<const int32_t> tokens) {
  const auto size = static_cast<size_t>(page_tokens_);
  Start start;
  start.tokens = holding.registered * page_tokens_;
  if (!is_chained(holding) || holding.pages.size() != static_cast<size_t>(holding.registered)) return start;
  while (static_cast<size_t>(start.tokens) + size <= tokens.size()) {
    const int32_t parent = parent_of(holding, holding.pages.size());
    const std::span<const int32_t> wanted = tokens.subspan(static_cast<size_t>(start.tokens), size);
    const int32_t page = find_full(parent, wanted, hash_of(parent, wanted));
    if (page == kNone) break;
    hold(page);
    holding.pages.push_back(page);
    ++holding.registered;
    start.tokens += page_tokens_;
  }

  // Of the pages that come next, one may begin with the next tokens: one of the neighbours of these in the order.
  const Prefix next = {parent_of(holding, holding.pages.size()),
                       tokens.subspan(static_cast<size_t>(start.tokens),
                                      std::min(size, tokens.size() - static_cast<size_t>(start.tokens)))};
  int32_t best = kNone, length = 0;
  const auto look_at = [&](int32_t page) {
    const Prefix found = prefix_of(page);
    const int32_t common = found.parent == next.parent ? common_prefix(found.tokens, next.tokens) : 0;
    if (common > length) best = page, length = common;
  };
  const auto after = sorted_.lower_bound(next);
  if (after != sorted_.end()) look_at(*after);
  if (after != sorted_.begin()) look_at(*std::prev(after));
  if (best == kNone) return start;
  hold(best);  // so that allocate() does not evict the page
  if (available_pages() > 0) {
    const int32_t copy = allocate();
    at(copy).uses = 1;
    holding.pages.push_back(copy);
    start = {start.tokens + length, best, copy, length};
  }
  release(best);
  return start;
}

bool KvCache::take(Holding& holding, int32_t pages) {
  const int32_t missing = pages - static_cast<int32_t>(holding.pages.size());
  if (missing > available_pages()) return false;
  for (int32_t i = 0; i < missing; ++i) {
    const int32_t page = allocate();
    at(page).uses = 1;
    holding.pages.push_back(page);
  }
  return true;
}

void KvCache::note(Holding& holding, std::span<const int32_t> tokens) {
  const auto size = static_cast<size_t>(page_tokens_);
  while (is_chained(holding) && (static_cast<size_t>(holding.registered) + 1) * size <= tokens.size()) {
    const auto i = static_cast<size_t>(holding.registered);
    const int32_t parent = parent_of(holding, i), page = holding.pages[i];
    const std::span<const int32_t> own = tokens.subspan(i * size, size);
    const int32_t equal = find_full(parent, own, hash_of(parent, own));
    if (equal == kNone) {
      enter(page, parent, own);
    } else {
      hold(equal);
      release(page);
      holding.pages[i] = equal;
    }
    ++holding.registered;
  }
}

void KvCache::end(Holding& holding, std::span<const int32_t> tokens, bool keep) {
  if (keep) note(holding, tokens);
  const auto done = static_cast<size_t>(holding.registered) * static_cast<size_t>(page_tokens_);
  if (keep && is_chained(holding) && done < tokens.size() &&
      holding.pages.size() > static_cast<size_t>(holding.registered)) {
    const auto i = static_cast<size_t>(holding.registered);
    const Prefix last = {parent_of(holding, i), tokens.subspan(done)};
    const auto after = sorted_.lower_bound(last);
    const auto longer = [&](int32_t page) {
      const Prefix found = prefix_of(page);
      return found.parent == last.parent &&
             common_prefix(found.tokens, last.tokens) == static_cast<int32_t>(last.tokens.size());
    };
    // Where a page begins with the same tokens, this one is of no use.
    if (after == sorted_.end() || !longer(*after)) enter(holding.pages[i], last.parent, last.tokens);
  }
  // From the last to the first: of pages that nobody holds, the children are evicted before their parents.
  for (size_t i = holding.pages.size(); i-- > 0;) release(holding.pages[i]);
  holding.pages.clear();
  holding.registered = 0;
}

void KvCache::clear() {
  full_.clear();
  sorted_.clear();
  cached_tokens_ = 0;
  for (int32_t page = 0; page < total_pages(); ++page) {
    Page& p = at(page);
    if (p.tokens > 0 && p.uses == 0) {
      unlink(page);
      free_.push_back(page);
    }
    p.tokens = 0;
  }
}

int32_t KvCache::find_full(int32_t parent, std::span<const int32_t> tokens, uint64_t hash) const {
  const auto [begin, end] = full_.equal_range(hash);
  for (auto found = begin; found != end; ++found) {
    const Prefix prefix = prefix_of(found->second);
    if (prefix.parent == parent && std::ranges::equal(prefix.tokens, tokens)) return found->second;
  }
  return kNone;
}

void KvCache::enter(int32_t page, int32_t parent, std::span<const int32_t> tokens) {
  Page& p = at(page);
  p.parent = parent;
  p.tokens = static_cast<int32_t>(tokens.size());
  std::ranges::copy(tokens, tokens_.begin() + static_cast<int64_t>(page) * page_tokens_);
  const auto place = sorted_.insert(page).first;
  cached_tokens_ += p.tokens;
  if (p.tokens == page_tokens_) {
    p.hash = hash_of(parent, tokens);
    full_.emplace(p.hash, page);
  }
  if (place == sorted_.begin()) return;
  // A page that holds only the beginning of this one's tokens is of no use any more: a conversation leaves one a turn.
  const int32_t before = *std::prev(place);
  const Prefix shorter = prefix_of(before);
  if (at(before).uses == 0 && shorter.parent == parent && shorter.tokens.size() < tokens.size() &&
      common_prefix(shorter.tokens, tokens) == static_cast<int32_t>(shorter.tokens.size())) {
    unlink(before);
    unregister(before);
    free_.push_back(before);
  }
}

// The caller decides what becomes of the page.
void KvCache::unregister(int32_t page) {
  Page& p = at(page);
  sorted_.erase(page);
  if (p.tokens == page_tokens_) {
    auto [found, end] = full_.equal_range(p.hash);
    while (found != end && found->second != page) ++found;
    if (found != end) full_.erase(found);
  }
  cached_tokens_ -= p.tokens;
  p.tokens = 0;
}

int32_t KvCache::allocate() {
  if (free_.empty()) {
    const int32_t page = oldest_;
    require(page != kNone, "none is available");
    unlink(page);
    unregister(page);
    return page;
  }
  const int32_t page = free_.back();
  free_.pop_back();
  return page;
}

void KvCache::hold(int32_t page) {
  if (at(page).uses++ == 0) unlink(page);
}

void KvCache::release(int32_t page) {
  if (--at(page).uses > 0) return;
  if (at(page).tokens > 0) {
    link(page);
  } else {
    free_.push_back(page);
  }
}

void KvCache::link(int32_t page) {
  at(page).previous = newest_;
  at(page).next = kNone;
  (newest_ == kNone ? oldest_ : at(newest_).next) = page;
  newest_ = page;
  ++evictable_;
}

void KvCache::unlink(int32_t page) {
  const Page& p = at(page);
  (p.previous == kNone ? oldest_ : at(p.previous).next) = p.next;
  (p.next == kNone ? newest_ : at(p.next).previous) = p.previous;
  --evictable_;
}

void KvCache::check(std::span<const Holding* const> holdings) const {
  std::vector<int32_t> uses(pages_.size());
  for (const Holding* holding : holdings) {
    require(static_cast<size_t>(holding->registered) <= holding->pages.size(), "more are registered than held");
    for (size_t i = 0; i < holding->pages.size(); ++i) {
      ++uses[static_cast<size_t>(holding->pages[i])];
      if (i >= static_cast<size_t>(holding->registered) || !holding->cached) continue;
      const Page& page = at(holding->pages[i]);
      // clear() forgets pages that are held.
      require(page.tokens == 0 || (page.tokens == page_tokens_ && page.parent == parent_of(*holding, i)),
              "a registered page is not the child of the page before");
    }
  }
  int32_t listed = 0, registered = 0;
  int64_t tokens = 0;
  for (int32_t page = oldest_; page != kNone; page = at(page).next, ++listed) {
    require(at(page).uses == 0 && at(page).tokens > 0, "an evictable page is held, or not registered");
  }
  for (size_t i = 0; i < pages_.size(); ++i) {
    const Page& page = pages_[i];
    require(page.uses == uses[i], "the number of holders is wrong");
    if (page.tokens == 0) continue;
    ++registered;
    tokens += page.tokens;
    require(page.parent < 0 || at(page.parent).tokens == page_tokens_, "a parent was evicted before its child");
  }
  require(listed == evictable_, "the list of evictable pages has another length");
  require(static_cast<size_t>(registered) == sorted_.size(), "the index has other pages");
  require(tokens == cached_tokens_, "the sum of tokens is wrong");
  const auto held = std::ranges::count_if(pages_, [](const Page& page) { return page.uses > 0; });
  require(static_cast<int32_t>(free_.size()) + evictable_ + held == total_pages(), "pages were lost");
}

}  // namespace chatglm
