#include "engine/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "test/random.h"

namespace chatglm {
namespace {

using test::Random;
using Tokens = std::vector<int32_t>;

Tokens range(int32_t begin, int32_t end) {
  Tokens tokens;
  for (int32_t i = begin; i < end; ++i) tokens.push_back(i);
  return tokens;
}

Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// A sequence that takes what the cache has of the tokens and the further pages that these need.
KvCache::Holding begun(KvCache& cache, const Tokens& tokens, int32_t adapter = 0) {
  KvCache::Holding holding;
  holding.adapter = adapter;
  cache.extend(holding, tokens);
  EXPECT_TRUE(cache.take(holding, cache.pages_for(static_cast<int64_t>(tokens.size()))));
  return holding;
}

// A sequence of these tokens begins, is computed and ends: a cached history.
void compute(KvCache& cache, const Tokens& tokens, int32_t adapter = 0) {
  KvCache::Holding holding = begun(cache, tokens, adapter);
  cache.end(holding, tokens, true);
}

// How many of the tokens the cache has, up to a copy of a part of a page.
int32_t found(KvCache& cache, const Tokens& tokens, int32_t adapter = 0) {
  KvCache::Holding holding;
  holding.adapter = adapter;
  const int32_t count = cache.extend(holding, tokens).tokens;
  cache.end(holding, {}, false);
  return count;
}

void check(const KvCache& cache, const std::vector<const KvCache::Holding*>& holdings = {}) {
  ASSERT_NO_THROW(cache.check(holdings));
}

TEST(KvCache, AHistoryIsFoundByItsTokens) {
  KvCache cache(8, 4);
  EXPECT_EQ(found(cache, range(0, 5)), 0);
  compute(cache, range(0, 10));
  EXPECT_EQ(cache.used_pages(), 3);
  EXPECT_EQ(cache.available_pages(), 8);
  EXPECT_EQ(cache.cached_tokens(), 10);
  EXPECT_EQ(found(cache, range(0, 20)), 10);
  EXPECT_EQ(found(cache, range(0, 6)), 6);
  EXPECT_EQ(found(cache, range(1, 6)), 0);
  EXPECT_EQ(found(cache, {}), 0);
  compute(cache, joined(range(0, 9), {99}));
  EXPECT_EQ(found(cache, joined(range(0, 9), {99, 100})), 10);
  EXPECT_EQ(found(cache, range(0, 20)), 10);  // the other one did not displace this one
  EXPECT_EQ(cache.used_pages(), 4);           // the full pages are the same
  EXPECT_EQ(cache.cached_tokens(), 12);
  check(cache);
}

TEST(KvCache, FullPagesAreSharedWhileTheirSequencesRun) {
  KvCache cache(8, 4);
  KvCache::Holding a = begun(cache, range(0, 12));
  EXPECT_EQ(found(cache, range(0, 12)), 0);  // nothing is computed yet
  cache.note(a, range(0, 9));                // two pages are full
  EXPECT_EQ(a.registered, 2);
  KvCache::Holding b;
  const KvCache::Start start = cache.extend(b, range(0, 12));
  EXPECT_EQ(start.tokens, 8);
  EXPECT_EQ(start.copy_from, -1);
  EXPECT_EQ(b.pages, Tokens({a.pages[0], a.pages[1]}));
  EXPECT_EQ(cache.used_pages(), 3);
  check(cache, {&a, &b});
  // The pages remain when the one that computed them ends, and nobody else can take them.
  cache.end(a, range(0, 9), false);
  EXPECT_EQ(cache.available_pages(), 6);
  EXPECT_EQ(found(cache, range(0, 12)), 8);
  // What comes next was not there when the sequence began; later it takes it, from its own place on.
  compute(cache, range(0, 12));
  EXPECT_EQ(cache.extend(b, range(0, 12)).tokens, 12);
  EXPECT_EQ(b.pages.size(), 3u);
  check(cache, {&b});
}

TEST(KvCache, APartOfAPageIsCopied) {
  KvCache cache(8, 4);
  compute(cache, range(0, 10));
  KvCache::Holding a;
  const KvCache::Start start = cache.extend(a, range(0, 12));
  EXPECT_EQ(start.tokens, 10);
  EXPECT_EQ(start.copy_tokens, 2);
  ASSERT_EQ(a.pages.size(), 3u);
  EXPECT_EQ(a.registered, 2);
  EXPECT_EQ(start.copy_to, a.pages[2]);
  EXPECT_NE(start.copy_to, start.copy_from);
  EXPECT_EQ(cache.used_pages(), 4);
  check(cache, {&a});
  cache.end(a, range(0, 12), true);  // goes on from the other page, which is of no use any more
  EXPECT_EQ(cache.used_pages(), 3);
  EXPECT_EQ(cache.cached_tokens(), 12);
  check(cache);
}

TEST(KvCache, TheLongestCommonPrefixIsCopied) {
  KvCache cache(32, 8);
  const Tokens shared = range(100, 108);
  for (const Tokens& tail : {Tokens{1, 1, 1}, Tokens{1, 2, 3, 4}, Tokens{1, 2, 3, 9, 9, 9}, Tokens{1, 3}, Tokens{2}})
    compute(cache, joined(shared, tail));
  const auto of = [&](const Tokens& tail) { return found(cache, joined(shared, tail)) - 8; };
  EXPECT_EQ(of({1, 2, 3, 8}), 3);
  EXPECT_EQ(of({1, 2, 3, 9, 9, 8}), 5);
  EXPECT_EQ(of({1, 2, 3, 4, 5, 6}), 4);
  EXPECT_EQ(of({1, 0}), 1);
  EXPECT_EQ(of({1, 9}), 1);
  EXPECT_EQ(of({3}), 0);
  EXPECT_EQ(of({}), 0);
  // A full page is copied from as well.
  compute(cache, range(0, 16));
  KvCache::Holding a;
  const KvCache::Start start = cache.extend(a, joined(range(0, 13), {99}));
  EXPECT_EQ(start.tokens, 13);
  EXPECT_EQ(start.copy_tokens, 5);
  check(cache, {&a});
}

TEST(KvCache, NothingIsCopiedWithoutAPageForTheCopy) {
  KvCache cache(3, 4);
  compute(cache, range(0, 10));
  // The only page that could be taken is the one to copy from.
  KvCache::Holding a;
  const KvCache::Start start = cache.extend(a, range(0, 12));
  EXPECT_EQ(start.tokens, 8);
  EXPECT_EQ(start.copy_from, -1);
  EXPECT_EQ(a.pages.size(), 2u);
  check(cache, {&a});
  EXPECT_TRUE(cache.take(a, 3));  // evicts that page
  EXPECT_EQ(cache.cached_tokens(), 8);
  check(cache, {&a});
}

TEST(KvCache, TheLeastRecentlyUsedPagesAreEvictedFromTheLeaves) {
  KvCache cache(6, 4);
  compute(cache, range(0, 12));
  compute(cache, joined(range(0, 8), range(50, 54)));  // shares two pages
  compute(cache, range(100, 108));
  EXPECT_EQ(cache.used_pages(), 6);
  KvCache::Holding a;
  const auto counts = [&] {
    return std::vector<int32_t>{found(cache, range(0, 12)), found(cache, joined(range(0, 8), range(50, 54))),
                                found(cache, range(100, 108))};
  };
  // Each page more evicts one: never a page that others continue. The look-ups touch the histories in their order.
  EXPECT_EQ(counts(), (std::vector<int32_t>{12, 12, 8}));
  ASSERT_TRUE(cache.take(a, 1));
  EXPECT_EQ(counts(), (std::vector<int32_t>{8, 12, 8}));
  ASSERT_TRUE(cache.take(a, 2));
  EXPECT_EQ(counts(), (std::vector<int32_t>{8, 8, 8}));
  ASSERT_TRUE(cache.take(a, 3));
  EXPECT_EQ(counts(), (std::vector<int32_t>{4, 4, 8}));
  ASSERT_TRUE(cache.take(a, 4));
  EXPECT_EQ(counts(), (std::vector<int32_t>{0, 0, 8}));
  ASSERT_TRUE(cache.take(a, 6));
  EXPECT_EQ(counts(), (std::vector<int32_t>{0, 0, 0}));
  check(cache, {&a});
}

TEST(KvCache, EqualPagesThatTwoSequencesComputeAtOnceAreMerged) {
  KvCache cache(8, 4);
  KvCache::Holding a = begun(cache, range(0, 10)), b = begun(cache, range(0, 10));
  EXPECT_EQ(cache.used_pages(), 6);
  cache.note(a, range(0, 10));
  cache.note(b, range(0, 7));
  EXPECT_EQ(b.pages[0], a.pages[0]);
  EXPECT_NE(b.pages[1], a.pages[1]);
  cache.note(b, range(0, 10));
  EXPECT_EQ(b.pages[1], a.pages[1]);
  EXPECT_NE(b.pages[2], a.pages[2]);
  EXPECT_EQ(cache.used_pages(), 4);
  check(cache, {&a, &b});
  cache.end(b, range(0, 10), true);
  cache.end(a, range(0, 10), true);  // its last page is what the other one's last page is
  EXPECT_EQ(cache.used_pages(), 3);
  EXPECT_EQ(cache.cached_tokens(), 10);
  check(cache);
}

TEST(KvCache, AdaptersKeepApart) {
  KvCache cache(12, 4);
  compute(cache, range(0, 10), 0);
  compute(cache, range(0, 7), 1);
  EXPECT_EQ(cache.used_pages(), 5);
  EXPECT_EQ(found(cache, range(0, 12), 0), 10);
  EXPECT_EQ(found(cache, range(0, 12), 1), 7);
  EXPECT_EQ(found(cache, range(0, 12), 2), 0);
  check(cache);
}

TEST(KvCache, ATakeThatFailsChangesNothing) {
  KvCache cache(5, 4);
  compute(cache, range(0, 4));
  KvCache::Holding a = begun(cache, range(10, 22));
  const Tokens pages = a.pages;
  EXPECT_EQ(cache.available_pages(), 2);
  EXPECT_FALSE(cache.take(a, 6));
  EXPECT_EQ(a.pages, pages);
  EXPECT_EQ(cache.available_pages(), 2);
  EXPECT_EQ(cache.cached_tokens(), 4);
  EXPECT_EQ(found(cache, range(0, 4)), 4);
  EXPECT_TRUE(cache.take(a, 2));  // has more already
  EXPECT_EQ(a.pages, pages);
  EXPECT_TRUE(cache.take(a, 5));
  EXPECT_EQ(std::set<int32_t>(a.pages.begin(), a.pages.end()).size(), 5u);
  check(cache, {&a});
}

TEST(KvCache, WithoutKeepOnlyWhatWasFullStays) {
  KvCache cache(8, 4);
  KvCache::Holding a = begun(cache, range(0, 10));
  cache.end(a, range(0, 10), false);
  EXPECT_TRUE(a.pages.empty());
  EXPECT_EQ(cache.used_pages(), 0);
  KvCache::Holding b;
  b.cached = false;
  ASSERT_TRUE(cache.take(b, 3));
  cache.note(b, range(0, 10));
  EXPECT_EQ(b.registered, 0);
  cache.end(b, range(0, 10), true);
  EXPECT_EQ(cache.used_pages(), 0);
  compute(cache, range(0, 10));
  KvCache::Holding c;
  c.cached = false;
  EXPECT_EQ(cache.extend(c, range(0, 10)).tokens, 0);
  check(cache, {&c});
}

TEST(KvCache, ClearForgetsAndSequencesGoOn) {
  KvCache cache(8, 4);
  compute(cache, range(50, 60));
  KvCache::Holding a = begun(cache, range(0, 10)), b = begun(cache, range(0, 3));
  cache.note(a, range(0, 10));
  cache.clear();
  EXPECT_EQ(cache.cached_tokens(), 0);
  EXPECT_EQ(cache.used_pages(), 4);
  EXPECT_EQ(found(cache, range(50, 60)), 0);
  EXPECT_EQ(found(cache, range(0, 10)), 0);
  check(cache, {&a, &b});
  // What continues a forgotten page cannot be found by its tokens any more; the other sequence begins anew.
  cache.note(a, range(0, 12));
  EXPECT_EQ(cache.cached_tokens(), 0);
  cache.note(b, range(0, 4));
  EXPECT_EQ(cache.cached_tokens(), 4);
  EXPECT_NE(b.pages[0], a.pages[0]);
  EXPECT_EQ(cache.extend(a, range(0, 20)).copy_from, -1);
  check(cache, {&a, &b});
  cache.end(a, range(0, 12), true);
  EXPECT_EQ(cache.cached_tokens(), 4);
  cache.clear();
  cache.end(b, range(0, 4), true);
  EXPECT_EQ(cache.used_pages(), 0);
  check(cache);
}

TEST(KvCache, PinnedPagesStayUntilTheyAreGivenBack) {
  KvCache cache(4, 4);
  KvCache::Holding pin = begun(cache, range(0, 10));
  cache.note(pin, range(0, 10));
  for (int32_t i = 1; i < 20; ++i) compute(cache, range(100 * i, 100 * i + 4));
  KvCache::Holding a;
  EXPECT_FALSE(cache.take(a, 2));
  EXPECT_TRUE(cache.take(a, 1));
  check(cache, {&pin, &a});
  EXPECT_EQ(found(cache, range(0, 10)), 8);  // the last page is not registered before the end
  cache.end(a, {}, false);
  cache.end(pin, range(0, 10), true);
  EXPECT_EQ(cache.used_pages(), 3);
  EXPECT_EQ(found(cache, range(0, 10)), 10);
  check(cache);
}

// The same accounts, kept plainly: what is registered is a map from all tokens up to a page's end, with the adapter
// before them, to who uses the page and when it was given back.
class Plain {
 public:
  struct Entry {
    int32_t uses = 0;
    uint64_t stamp = 0;
  };
  struct Holding {
    std::vector<Tokens> pages;  // the key of a registered page; empty for another one
    size_t registered = 0;
    bool cached = true, forgotten = false;
    Tokens root;
  };

  Plain(int32_t pages, int32_t page_tokens) : total_(pages), page_(static_cast<size_t>(page_tokens)) {}

  int32_t used() const { return static_cast<int32_t>(entries_.size()) + others_; }
  int32_t available() const {
    return total_ - used() +
           static_cast<int32_t>(std::ranges::count_if(entries_, [](const auto& e) { return e.second.uses == 0; }));
  }
  int64_t tokens() const {
    int64_t sum = 0;
    for (const auto& [key, _] : entries_) sum += static_cast<int64_t>((key.size() - 2) % page_ + 1);
    return sum;
  }

  // Returns the tokens that are computed now.
  size_t extend(Holding& holding, const Tokens& tokens) {
    size_t done = holding.registered * page_;
    if (!holding.cached || holding.forgotten || holding.pages.size() != holding.registered) return done;
    for (; done + page_ <= tokens.size(); done += page_) {
      const Tokens key = key_of(holding, tokens, done + page_);
      if (!entries_.contains(key)) break;
      ++entries_[key].uses;
      holding.pages.push_back(key);
      ++holding.registered;
    }
    const Tokens parent = key_of(holding, tokens, done),
                 next = key_of(holding, tokens, std::min(done + page_, tokens.size()));
    const Tokens* best = nullptr;
    size_t longest = parent.size();
    for (const auto& [key, _] : entries_) {
      if (key.size() <= parent.size() || key.size() > parent.size() + page_) continue;
      const auto common = static_cast<size_t>(std::ranges::mismatch(key, next).in1 - key.begin());
      // Of several equally good ones: the first that is not less, or else the last that is less.
      if (common > longest || (best && common == longest && *best < next)) best = &key, longest = common;
    }
    if (!best) return done;
    const Tokens from = *best;
    ++entries_[from].uses;
    if (available() > 0) {
      allocate();
      holding.pages.push_back({});
      done += longest - parent.size();
    }
    release(from);
    return done;
  }
  bool take(Holding& holding, size_t pages) {
    if (pages > holding.pages.size() && static_cast<int32_t>(pages - holding.pages.size()) > available()) return false;
    while (holding.pages.size() < pages) {
      allocate();
      holding.pages.push_back({});
    }
    return true;
  }
  void note(Holding& holding, const Tokens& tokens) {
    while (holding.cached && !holding.forgotten && (holding.registered + 1) * page_ <= tokens.size()) {
      const Tokens key = key_of(holding, tokens, (holding.registered + 1) * page_);
      enter(key, holding.registered * page_ + 1);
      --others_;
      ++entries_[key].uses;
      holding.pages[holding.registered++] = key;
    }
  }
  void end(Holding& holding, const Tokens& tokens, bool keep) {
    if (keep) note(holding, tokens);
    const size_t done = holding.registered * page_;
    if (keep && holding.cached && !holding.forgotten && done < tokens.size()) {
      const Tokens key = key_of(holding, tokens, tokens.size());
      const bool useless = std::ranges::any_of(entries_, [&](const auto& e) {
        return e.first.size() >= key.size() && std::equal(key.begin(), key.end(), e.first.begin());
      });
      if (!useless) {
        enter(key, done + 1);
        --others_;
        ++entries_[key].uses;
        holding.pages[holding.registered] = key;
      }
    }
    for (size_t i = holding.pages.size(); i-- > 0;) release(holding.pages[i]);
    holding = {{}, 0, holding.cached, false, holding.root};
  }
  void clear(std::vector<Holding*> holdings) {
    std::set<Tokens> held;
    for (Holding* holding : holdings) {
      holding->forgotten = holding->forgotten || holding->registered > 0;
      for (Tokens& key : holding->pages) {
        if (key.empty() || key.front() < 0) continue;
        held.insert(key);
        key.insert(key.begin(), -1 - generation_);  // shared pages remain shared
      }
    }
    for (const Tokens& key : held) {
      Tokens old = key;
      old.insert(old.begin(), -1 - generation_);
      forgotten_[old] = entries_[key].uses;
      ++others_;
    }
    entries_.clear();
    ++generation_;
  }

 private:
  static Tokens key_of(const Holding& holding, const Tokens& tokens, size_t count) {
    Tokens key = holding.root;
    key.insert(key.end(), tokens.begin(), tokens.begin() + static_cast<int64_t>(count));
    return key;
  }
  // What holds only the beginning of the page is of no use any more.
  void enter(const Tokens& key, size_t least) {
    std::erase_if(entries_, [&](const auto& e) {
      return e.second.uses == 0 && e.first.size() > least && e.first.size() < key.size() &&
             std::equal(e.first.begin(), e.first.end(), key.begin());
    });
  }
  void allocate() {
    if (used() == total_) {
      auto oldest = entries_.end();
      for (auto e = entries_.begin(); e != entries_.end(); ++e) {
        if (e->second.uses == 0 && (oldest == entries_.end() || e->second.stamp < oldest->second.stamp)) oldest = e;
      }
      ASSERT_NE(oldest, entries_.end());
      for (const auto& [key, _] : entries_) {
        EXPECT_FALSE(key.size() > oldest->first.size() && (oldest->first.size() - 1) % page_ == 0 &&
                     std::equal(oldest->first.begin(), oldest->first.end(), key.begin()))
            << "a parent would be evicted before its child";
      }
      entries_.erase(oldest);
    }
    ++others_;
  }
  void release(const Tokens& key) {
    if (key.empty()) {
      --others_;
    } else if (key.front() < 0) {
      if (--forgotten_[key] == 0) --others_;
    } else if (--entries_[key].uses == 0) {
      entries_[key].stamp = ++stamp_;
    }
  }

  int32_t total_;
  size_t page_;
  std::map<Tokens, Entry> entries_;
  std::map<Tokens, int32_t> forgotten_;  // pages that clear() forgot, which are still held
  int32_t others_ = 0;                   // held pages that are not registered
  int32_t generation_ = 0;
  uint64_t stamp_ = 0;
};

// Random operations, compared with the plain accounts, and with a memory in which each place says what was written:
// the keys and values of a token depend on the adapter and on all tokens before.
class Trial {
 public:
  Trial(uint64_t seed, int32_t pages, int32_t page_tokens, int32_t most_live, int32_t vocabulary)
      : random_(seed),
        cache_(pages, page_tokens),
        plain_(pages, page_tokens),
        page_(page_tokens),
        most_live_(static_cast<size_t>(most_live)),
        vocabulary_(vocabulary),
        memory_(static_cast<size_t>(pages), std::vector<uint64_t>(static_cast<size_t>(page_tokens))) {}

  void step() {
    const int64_t what = random_.integer(0, 99);
    if (what < 25) {
      begin();
    } else if (what < 75) {
      grow();
    } else if (what < 80) {
      over_take();
    } else if (what < 99) {
      end();
    } else {
      cache_.clear();
      std::vector<Plain::Holding*> holdings;
      for (const auto& live : live_) holdings.push_back(&live->plain);
      plain_.clear(holdings);
    }
    check();
  }
  void finish() {
    while (!live_.empty()) {
      end();
      check();
    }
    EXPECT_EQ(cache_.available_pages(), cache_.total_pages());
    cache_.clear();
    EXPECT_EQ(cache_.used_pages(), 0);
    EXPECT_EQ(cache_.cached_tokens(), 0);
  }
  int64_t copies = 0, refused = 0, reused = 0, merged = 0, evicted = 0, late = 0;

 private:
  struct Live {
    KvCache::Holding holding;
    Plain::Holding plain;
    Tokens tokens;    // that the sequence wants to compute
    size_t done = 0;  // of them, computed
  };

  static uint64_t content(const Live& live, size_t count) {
    uint64_t hash = 1469598103934665603u + static_cast<uint64_t>(live.holding.adapter);
    for (size_t i = 0; i < count; ++i) hash = (hash ^ static_cast<uint64_t>(live.tokens[i] + 1)) * 1099511628211u;
    return hash;
  }
  uint64_t& place(const Live& live, size_t position) {
    const auto size = static_cast<size_t>(page_);
    return memory_[static_cast<size_t>(live.holding.pages[position / size])][position % size];
  }

  // Few different tokens, so that beginnings repeat; sometimes what an earlier sequence had.
  Tokens random_tokens() {
    Tokens tokens;
    if (!seen_.empty() && random_.chance(0.7)) {
      tokens = seen_[static_cast<size_t>(random_.integer(0, static_cast<int64_t>(seen_.size()) - 1))];
      tokens.resize(static_cast<size_t>(random_.integer(0, static_cast<int64_t>(tokens.size()))));
    }
    for (int64_t n = random_.integer(1, 3 * page_); n > 0; --n)
      tokens.push_back(static_cast<int32_t>(random_.integer(0, vocabulary_ - 1)));
    seen_.push_back(tokens);
    if (seen_.size() > 20) seen_.erase(seen_.begin());
    return tokens;
  }

  void extend(Live& live, const Tokens& tokens) {
    const size_t before = live.holding.pages.size();
    const int64_t cached = cache_.cached_tokens();
    const KvCache::Start start = cache_.extend(live.holding, tokens);
    EXPECT_EQ(static_cast<size_t>(start.tokens), plain_.extend(live.plain, tokens));
    evicted += cache_.cached_tokens() < cached;
    if (start.copy_from >= 0) {
      ++copies;
      EXPECT_NE(start.copy_from, start.copy_to);
      EXPECT_EQ(start.copy_to, live.holding.pages.back());
      expect_private(live, start.copy_to);
      std::copy_n(memory_[static_cast<size_t>(start.copy_from)].begin(), start.copy_tokens,
                  memory_[static_cast<size_t>(start.copy_to)].begin());
    }
    const auto done = static_cast<size_t>(start.tokens);
    if (before > 0 && done > live.done) ++late;
    if (done > live.done) reused += static_cast<int64_t>(done - live.done);
    live.done = std::max(live.done, done);
  }

  void begin() {
    if (live_.size() >= most_live_) return;
    auto live = std::make_unique<Live>();
    live->holding.adapter = random_.chance(0.2);
    live->plain.root = {live->holding.adapter};
    live->holding.cached = live->plain.cached = !random_.chance(0.05);
    live->tokens = random_tokens();
    live_.push_back(std::move(live));
    Live& added = *live_.back();
    extend(added, Tokens(added.tokens.begin(), added.tokens.end() - 1));
  }

  void expect_private(const Live& live, int32_t page) {
    for (const auto& other : live_) {
      EXPECT_EQ(std::ranges::count(other->holding.pages, page), other.get() == &live) << "a shared page is written";
    }
  }

  void grow() {
    if (live_.empty()) return;
    Live& live = pick();
    if (live.holding.registered * page_ == static_cast<int32_t>(live.done) && random_.chance(0.5))
      extend(live, live.tokens);
    if (live.done == live.tokens.size())
      live.tokens.push_back(static_cast<int32_t>(random_.integer(0, vocabulary_ - 1)));
    const size_t end = std::min(live.tokens.size(), live.done + static_cast<size_t>(random_.integer(1, 2 * page_)));
    const int32_t pages = cache_.pages_for(static_cast<int64_t>(end));
    if (!take(live, pages)) return;
    for (; live.done < end; ++live.done) {
      expect_private(live, live.holding.pages[live.done / static_cast<size_t>(page_)]);
      place(live, live.done) = content(live, live.done + 1);
    }
    if (random_.chance(0.2)) return;  // noted later
    const Tokens pages_before = live.holding.pages;
    const Tokens computed(live.tokens.begin(), live.tokens.begin() + static_cast<int64_t>(live.done));
    cache_.note(live.holding, computed);
    plain_.note(live.plain, computed);
    merged += live.holding.pages != pages_before;
  }

  bool take(Live& live, int32_t pages) {
    const Tokens before = live.holding.pages;
    const int32_t used = cache_.used_pages();
    const int64_t cached = cache_.cached_tokens();
    const bool taken = cache_.take(live.holding, pages);
    EXPECT_EQ(taken, plain_.take(live.plain, static_cast<size_t>(pages)));
    evicted += cache_.cached_tokens() < cached;
    if (!taken) {
      ++refused;
      EXPECT_EQ(live.holding.pages, before);
      EXPECT_EQ(cache_.used_pages(), used);
      EXPECT_EQ(cache_.cached_tokens(), cached);
    }
    return taken;
  }
  // Pages for drafts, of which nothing comes.
  void over_take() {
    if (live_.empty()) return;
    Live& live = pick();
    take(live, static_cast<int32_t>(live.holding.pages.size()) + static_cast<int32_t>(random_.integer(1, 3)));
  }

  void end() {
    if (live_.empty()) return;
    Live& live = pick();
    const bool keep = random_.chance(0.8);
    const Tokens computed(live.tokens.begin(), live.tokens.begin() + static_cast<int64_t>(live.done));
    cache_.end(live.holding, computed, keep);
    plain_.end(live.plain, computed, keep);
    EXPECT_TRUE(live.holding.pages.empty());
    EXPECT_EQ(live.holding.registered, 0);
    std::erase_if(live_, [&](const auto& other) { return other.get() == &live; });
  }

  Live& pick() { return *live_[static_cast<size_t>(random_.integer(0, static_cast<int64_t>(live_.size()) - 1))]; }

  void check() {
    std::vector<const KvCache::Holding*> holdings;
    for (const auto& live : live_) {
      holdings.push_back(&live->holding);
      EXPECT_EQ(live->holding.pages.size(), live->plain.pages.size());
      EXPECT_EQ(static_cast<size_t>(live->holding.registered), live->plain.registered);
      for (size_t i = 0; i < live->done; ++i)
        ASSERT_EQ(place(*live, i), content(*live, i + 1)) << "token " << i << " is not what was computed";
    }
    ASSERT_NO_THROW(cache_.check(holdings));
    EXPECT_EQ(cache_.used_pages(), plain_.used());
    EXPECT_EQ(cache_.available_pages(), plain_.available());
    EXPECT_EQ(cache_.cached_tokens(), plain_.tokens());
  }

  Random random_;
  KvCache cache_;
  Plain plain_;
  int32_t page_;
  size_t most_live_;
  int32_t vocabulary_;
  std::vector<std::vector<uint64_t>> memory_;
  std::vector<std::unique_ptr<Live>> live_;
  std::vector<Tokens> seen_;
};

TEST(KvCache, RandomOperationsAgreeWithPlainAccounts) {
  int64_t copies = 0, refused = 0, reused = 0, merged = 0, evicted = 0, late = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const auto number = [&](int64_t least, int64_t most) { return static_cast<int32_t>(random.integer(least, most)); };
    Trial trial(seed, number(1, 16), number(1, 6), number(1, 6), number(1, 4));
    for (int i = 0; i < 120 && !testing::Test::HasFailure(); ++i) trial.step();
    trial.finish();
    if (testing::Test::HasFailure()) return;
    copies += trial.copies;
    refused += trial.refused;
    reused += trial.reused;
    merged += trial.merged;
    evicted += trial.evicted;
    late += trial.late;
  }
  // The interesting ways were taken.
  EXPECT_GT(copies, 5000);
  EXPECT_GT(refused, 5000);
  EXPECT_GT(reused, 50000);
  EXPECT_GT(merged, 1000);
  EXPECT_GT(evicted, 5000);
  EXPECT_GT(late, 500);
}

}  // namespace
}  // namespace chatglm
