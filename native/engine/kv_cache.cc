#include "engine/kv_cache.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "base/error.h"

namespace chatglm {

namespace {

// Pages whose hashes are computed ahead of the look-ups, so that the memory that these read arrives meanwhile.
constexpr size_t kAhead = 16;

uint64_t mixed(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  x ^= x >> 32;
  return x;
}

// Collisions cost a comparison, nothing else: who finds a page compares its tokens. Four products are under way at the
// same time, since each of one chain would wait for the one before.
uint64_t hash_of(uint64_t before, std::span<const int32_t> tokens) {
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15u;
  uint64_t lanes[4] = {before, before + 1, before + 2, before + 3};
  size_t i = 0;
  for (; i + 8 <= tokens.size(); i += 8) {
    uint64_t pairs[4];
    std::memcpy(pairs, tokens.data() + i, sizeof(pairs));
    for (int lane = 0; lane < 4; ++lane) {
      lanes[lane] = (lanes[lane] ^ pairs[lane]) * kFactor;
      lanes[lane] ^= lanes[lane] >> 29;
    }
  }
  for (; i < tokens.size(); ++i) lanes[0] = mixed(lanes[0] ^ static_cast<uint32_t>(tokens[i])) + kFactor;
  uint64_t hash = lanes[0];
  for (int lane = 1; lane < 4; ++lane) hash = mixed(hash + lanes[lane]) + kFactor;
  return hash;
}

void prefetch([[maybe_unused]] const void* address) {
#ifdef __GNUC__
  __builtin_prefetch(address);
#endif
}

int32_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  const auto limit = static_cast<int64_t>(std::min(a.size(), b.size()));
  return static_cast<int32_t>(std::mismatch(a.begin(), a.begin() + limit, b.begin()).first - a.begin());
}

void require(bool condition, const char* what) {
  if (!condition) throw Error("ERR_INTERNAL", std::string("pages: ") + what);
}

}  // namespace

bool KvCache::Order::less(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

KvCache::KvCache(int32_t pages, int32_t page_tokens)
    : page_tokens_(page_tokens),
      pages_(static_cast<size_t>(pages)),
      tokens_(static_cast<size_t>(pages) * static_cast<size_t>(page_tokens)),
      full_(std::bit_ceil(2 * static_cast<size_t>(pages) + 1)),
      sorted_(Order{this}) {
  for (int32_t page = pages; page-- > 0;) free_.push_back(page);
}

uint64_t KvCache::hash_before(const Holding& holding, size_t page) const {
  return page == 0 ? mixed(static_cast<uint32_t>(holding.adapter) + 1ull) : at(holding.pages[page - 1]).hash;
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
  uint64_t hash = hash_before(holding, holding.pages.size());
  for (bool found = true; found && static_cast<size_t>(start.tokens) + size <= tokens.size();) {
    const std::span<const int32_t> rest = tokens.subspan(static_cast<size_t>(start.tokens));
    std::array<uint64_t, kAhead> hashes;
    const size_t count = std::min(kAhead, rest.size() / size);
    for (size_t i = 0; i < count; ++i) {
      hash = hashes[i] = hash_of(hash, rest.subspan(i * size, size));
      prefetch(&full_[place_of(hash)]);
    }
    for (size_t i = 0; i < count; ++i) {
      const int32_t page = full_[place_of(hashes[i])].page;
      if (page == kNone) break;
      prefetch(&at(page));
      const int32_t* first = tokens_.data() + static_cast<size_t>(page) * size;
      for (size_t token = 0; token < size; token += 16) prefetch(first + token);
    }
    for (size_t i = 0; i < count && found; ++i) {
      const int32_t parent = parent_of(holding, holding.pages.size());
      const int32_t page = find_full(parent, rest.subspan(i * size, size), hashes[i]);
      found = page != kNone;
      if (!found) break;
      hold(page);
      holding.pages.push_back(page);
      ++holding.registered;
      start.tokens += page_tokens_;
    }
  }

  // Of the pages that come next, one may begin with the next tokens: one of the neighbours of these in the order.
  const Prefix next = {parent_of(holding, holding.pages.size()),
                       tokens.subspan(static_cast<size_t>(start.tokens),
                                      std::min(size, tokens.size() - static_cast<size_t>(start.tokens)))};
  int32_t best = kNone, length = 0;
  const auto look_at = [&](const Sorted& sorted) {
    const int32_t common = sorted.parent == next.parent ? common_prefix(tokens_of(sorted.page), next.tokens) : 0;
    if (common > length) best = sorted.page, length = common;
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
    const uint64_t hash = hash_of(hash_before(holding, i), own);
    const int32_t equal = find_full(parent, own, hash);
    if (equal == kNone) {
      enter(page, parent, own, hash);
    } else {
      hold(equal);
      release(page);
      holding.pages[i] = equal;
    }
    ++holding.registered;
  }
}

void KvCache::complete(Holding& holding, std::span<const int32_t> tokens) {
  note(holding, tokens);
  const auto done = static_cast<size_t>(holding.registered) * static_cast<size_t>(page_tokens_);
  if (is_chained(holding) && done < tokens.size() && holding.pages.size() > static_cast<size_t>(holding.registered)) {
    const auto i = static_cast<size_t>(holding.registered);
    const Prefix last = {parent_of(holding, i), tokens.subspan(done)};
    const auto after = sorted_.lower_bound(last);
    // Where a page begins with the same tokens, this one is of no use.
    const bool useless = after != sorted_.end() && after->parent == last.parent &&
                         common_prefix(tokens_of(after->page), last.tokens) == static_cast<int32_t>(last.tokens.size());
    if (!useless && at(holding.pages[i]).tokens == 0) enter(holding.pages[i], last.parent, last.tokens, 0);
  }
}

void KvCache::end(Holding& holding, std::span<const int32_t> tokens, bool keep) {
  if (keep) complete(holding, tokens);
  // From the last to the first: of pages that nobody holds, the children are evicted before their parents.
  for (size_t i = holding.pages.size(); i-- > 0;) release(holding.pages[i]);
  holding.pages.clear();
  holding.registered = 0;
}

void KvCache::clear() {
  std::ranges::fill(full_, Slot{});
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
  for (size_t place = place_of(hash); full_[place].page != kNone; place = place_of(place + 1)) {
    const int32_t page = full_[place].page;
    if (full_[place].hash == static_cast<uint32_t>(hash) && at(page).parent == parent &&
        std::ranges::equal(tokens_of(page), tokens))
      return page;
  }
  return kNone;
}

void KvCache::enter(int32_t page, int32_t parent, std::span<const int32_t> tokens, uint64_t hash) {
  Page& p = at(page);
  p.parent = parent;
  p.tokens = static_cast<int32_t>(tokens.size());
  std::ranges::copy(tokens, tokens_.begin() + static_cast<int64_t>(page) * page_tokens_);
  const auto entry = sorted_.insert({parent, page}).first;
  cached_tokens_ += p.tokens;
  if (p.tokens == page_tokens_) {
    p.hash = hash;
    size_t place = place_of(hash);
    while (full_[place].page != kNone) place = place_of(place + 1);
    full_[place] = {static_cast<uint32_t>(hash), page};
  }
  if (entry == sorted_.begin()) return;
  // A page that holds only the beginning of this one's tokens is of no use any more: a conversation leaves one a turn.
  const auto [parent_before, before] = *std::prev(entry);
  const std::span<const int32_t> shorter = tokens_of(before);
  if (at(before).uses == 0 && parent_before == parent && shorter.size() < tokens.size() &&
      common_prefix(shorter, tokens) == static_cast<int32_t>(shorter.size())) {
    unlink(before);
    unregister(before);
    free_.push_back(before);
  }
}

// The caller decides what becomes of the page.
void KvCache::unregister(int32_t page) {
  Page& p = at(page);
  sorted_.erase({p.parent, page});
  if (p.tokens == page_tokens_) {
    size_t hole = place_of(p.hash);
    while (full_[hole].page != page) hole = place_of(hole + 1);
    // Entries that follow move up, unless they would come before the place that their hash says.
    for (size_t place = place_of(hole + 1); full_[place].page != kNone; place = place_of(place + 1)) {
      if (place_of(place - full_[place].hash) < place_of(place - hole)) continue;
      full_[hole] = full_[place];
      hole = place;
    }
    full_[hole] = {};
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
    require(page.tokens < page_tokens_ ||
                find_full(page.parent, tokens_of(static_cast<int32_t>(i)), page.hash) == static_cast<int32_t>(i),
            "a page is not found by its tokens");
    require(page.parent < 0 || at(page.parent).tokens == page_tokens_, "a parent was evicted before its child");
  }
  const auto full = std::ranges::count_if(pages_, [&](const Page& page) { return page.tokens == page_tokens_; });
  require(full == std::ranges::count_if(full_, [](const Slot& slot) { return slot.page != kNone; }),
          "the table has other pages");
  require(listed == evictable_, "the list of evictable pages has another length");
  require(static_cast<size_t>(registered) == sorted_.size(), "the index has other pages");
  require(tokens == cached_tokens_, "the sum of tokens is wrong");
  const auto held = std::ranges::count_if(pages_, [](const Page& page) { return page.uses > 0; });
  require(static_cast<int32_t>(free_.size()) + evictable_ + held == total_pages(), "pages were lost");
}

}  // namespace chatglm
