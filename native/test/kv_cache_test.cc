#include "engine/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
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

// A sequence of these tokens is admitted, computed and ended: a cached history.
void compute(KvCache& cache, const Tokens& tokens, bool keep = true) {
  KvCache::Holding holding;
  const auto start = cache.begin(static_cast<int64_t>(tokens.size()), cache.find(tokens), holding);
  ASSERT_TRUE(start);
  while (static_cast<int64_t>(holding.pages.size()) < cache.pages_for(static_cast<int64_t>(tokens.size())))
    cache.take(holding);
  cache.end(holding, tokens, keep);
}

TEST(KvCache, AHistoryIsFoundByItsTokens) {
  KvCache cache(8, 4);
  EXPECT_EQ(cache.find(range(0, 5)).tokens, 0);
  compute(cache, range(0, 10));
  EXPECT_EQ(cache.used_pages(), 3);
  EXPECT_EQ(cache.cached_tokens(), 10);
  EXPECT_EQ(cache.find(range(0, 20)).tokens, 10);
  EXPECT_EQ(cache.find(range(0, 6)).tokens, 6);
  EXPECT_EQ(cache.find(range(1, 6)).tokens, 0);
  Tokens other = range(0, 9);
  other.push_back(99);
  compute(cache, other);
  EXPECT_EQ(cache.find(other).tokens, 10);
  EXPECT_EQ(cache.find(range(0, 20)).tokens, 10);  // is no beginning of the other
  cache.clear();
  EXPECT_EQ(cache.used_pages(), 0);
  EXPECT_EQ(cache.find(range(0, 20)).tokens, 0);
  compute(cache, range(0, 10), false);
  EXPECT_EQ(cache.used_pages(), 0);
}

TEST(KvCache, FullPagesAreSharedAndThePartialOneCopied) {
  KvCache cache(8, 4);
  compute(cache, range(0, 10));
  const KvCache::Match match = cache.find(range(0, 12));
  const Tokens pages(match.pages.begin(), match.pages.end());
  KvCache::Holding a;
  const auto start = cache.begin(12, match, a);
  ASSERT_TRUE(start);
  EXPECT_EQ(start->reused_tokens, 10);
  EXPECT_EQ(start->copy_from, pages[2]);
  EXPECT_EQ(start->copy_tokens, 2);
  ASSERT_EQ(a.pages.size(), 3u);
  EXPECT_EQ(start->copy_to, a.pages[2]);
  EXPECT_EQ(a.pages[0], pages[0]);
  EXPECT_EQ(a.pages[1], pages[1]);
  EXPECT_NE(a.pages[2], pages[2]);
  EXPECT_EQ(a.reserved, 0);
  EXPECT_EQ(cache.used_pages(), 4);
  cache.end(a, range(0, 12), true);  // goes on from the other, which is dropped
  EXPECT_EQ(cache.used_pages(), 3);
  EXPECT_EQ(cache.cached_tokens(), 12);
}

TEST(KvCache, AMatchThatEndsWithAPageCopiesNothing) {
  KvCache cache(8, 4);
  compute(cache, range(0, 8));
  KvCache::Holding a;
  const auto start = cache.begin(9, cache.find(range(0, 9)), a);
  ASSERT_TRUE(start);
  EXPECT_EQ(start->reused_tokens, 8);
  EXPECT_EQ(start->copy_from, -1);
  EXPECT_EQ(a.pages.size(), 2u);
  EXPECT_EQ(a.reserved, 1);
}

TEST(KvCache, PromisesAreKept) {
  KvCache cache(4, 4);
  KvCache::Holding a, b, c;
  ASSERT_TRUE(cache.begin(9, {}, a));  // 3 pages
  EXPECT_FALSE(cache.begin(5, {}, b));
  EXPECT_TRUE(b.pages.empty());
  EXPECT_EQ(b.reserved, 0);
  ASSERT_TRUE(cache.begin(4, {}, b));
  EXPECT_FALSE(cache.begin(1, {}, c));
  for (int i = 0; i < 3; ++i) cache.take(a);
  cache.take(b);
  EXPECT_EQ(cache.used_pages(), 4);
  EXPECT_EQ(std::set<int32_t>({a.pages[0], a.pages[1], a.pages[2], b.pages[0]}).size(), 4u);
  cache.end(b, {}, false);
  EXPECT_TRUE(cache.begin(1, {}, c));
}

TEST(KvCache, TheLeastRecentlyUsedHistoryGoesFirst) {
  KvCache cache(3, 4);
  compute(cache, range(0, 4));
  compute(cache, range(100, 104));
  compute(cache, range(200, 204));
  EXPECT_EQ(cache.find(range(0, 4)).tokens, 4);  // used again
  compute(cache, range(300, 304));
  EXPECT_EQ(cache.find(range(100, 104)).tokens, 0);
  EXPECT_EQ(cache.find(range(0, 4)).tokens, 4);
  EXPECT_EQ(cache.find(range(200, 204)).tokens, 4);
  EXPECT_EQ(cache.find(range(300, 304)).tokens, 4);
}

// The page for the copy is had by throwing out the very history that is copied from.
TEST(KvCache, TheHistoryThatIsCopiedFromMayBeThrownOut) {
  KvCache cache(3, 4);
  compute(cache, range(0, 10));  // all three pages
  const KvCache::Match match = cache.find(range(0, 10));
  const Tokens pages(match.pages.begin(), match.pages.end());
  KvCache::Holding a;
  // Pages 0 and 1 are shared; the third is the only one that is not live, and it cannot be copied to itself.
  const auto start = cache.begin(12, match, a);
  ASSERT_TRUE(start);
  EXPECT_EQ(start->reused_tokens, 8);
  EXPECT_EQ(start->copy_from, -1);
  EXPECT_EQ(a.pages, Tokens({pages[0], pages[1]}));
  EXPECT_EQ(a.reserved, 1);
  cache.take(a);
  EXPECT_EQ(a.pages[2], pages[2]);
  EXPECT_EQ(cache.find(range(0, 10)).tokens, 0);
  cache.end(a, range(0, 12), true);
  EXPECT_EQ(cache.used_pages(), 3);

  KvCache wide(4, 4);
  compute(wide, range(0, 10));
  compute(wide, range(50, 54));
  KvCache::Holding b;
  const KvCache::Match second = wide.find(range(0, 10));
  const int32_t from = second.pages[2];
  const auto copied = wide.begin(12, second, b);
  ASSERT_TRUE(copied);
  EXPECT_EQ(copied->reused_tokens, 10);
  EXPECT_EQ(copied->copy_from, from);
  EXPECT_NE(copied->copy_to, from);
  EXPECT_EQ(wide.find(range(50, 54)).tokens, 0);
}

TEST(KvCache, SharingAnotherLiveSequencesPages) {
  KvCache cache(4, 4);
  KvCache::Holding a, b;
  ASSERT_TRUE(cache.begin(8, {}, a));
  cache.take(a);
  cache.take(a);
  // 6 tokens of a: its first page is shared, of the second two tokens are copied. 2 + 2 new pages are all there are.
  const auto start = cache.begin(12, {6, a.pages}, b);
  ASSERT_TRUE(start);
  EXPECT_EQ(start->reused_tokens, 6);
  EXPECT_EQ(start->copy_from, a.pages[1]);
  cache.take(b);
  EXPECT_EQ(cache.used_pages(), 4);
  cache.end(a, range(0, 8), true);
  EXPECT_EQ(cache.used_pages(), 4);
  cache.end(b, range(0, 12), true);
  EXPECT_EQ(cache.used_pages(), 3);  // a's history is the beginning of b's
}

// Thousands of random operations against a simulated memory, in which each written token leaves its id.
class Model {
 public:
  Model(uint64_t seed, int32_t pages, int32_t page_tokens, int32_t most_live)
      : random_(seed),
        cache_(pages, page_tokens),
        page_(page_tokens),
        most_live_(static_cast<size_t>(most_live)),
        memory_(static_cast<size_t>(pages), Tokens(static_cast<size_t>(page_tokens), -1)) {}

  void step() {
    const int64_t what = random_.integer(0, 99);
    if (what < 35) {
      admit();
    } else if (what < 80) {
      extend();
    } else if (what < 97) {
      end();
    } else if (what < 98) {
      cache_.clear();
    } else {
      look_up();
    }
    check();
  }
  void finish() {
    while (!live_.empty()) end();
    EXPECT_EQ(check_used_, 0) << "live pages are left";
    cache_.clear();
    EXPECT_EQ(cache_.used_pages(), 0);
    EXPECT_EQ(cache_.cached_tokens(), 0);
    KvCache::Holding all;
    ASSERT_TRUE(cache_.begin(static_cast<int64_t>(cache_.total_pages()) * page_, {}, all));
    std::set<int32_t> distinct;
    for (int32_t i = 0; i < cache_.total_pages(); ++i) {
      cache_.take(all);
      distinct.insert(all.pages.back());
    }
    EXPECT_EQ(static_cast<int32_t>(distinct.size()), cache_.total_pages());
  }
  int admitted = 0, refused = 0, copies = 0, reused = 0;

 private:
  struct Live {
    KvCache::Holding holding;
    Tokens tokens;   // computed
    Tokens planned;  // what it will compute
    int64_t most;
  };

  // Few different tokens, so that beginnings repeat; sometimes what an older sequence had.
  Tokens random_prompt() {
    Tokens tokens;
    if (!seen_.empty() && random_.chance(0.6)) {
      tokens = seen_[static_cast<size_t>(random_.integer(0, static_cast<int64_t>(seen_.size()) - 1))];
      tokens.resize(static_cast<size_t>(random_.integer(0, static_cast<int64_t>(tokens.size()))));
    }
    const int64_t room = static_cast<int64_t>(cache_.total_pages()) * page_ - static_cast<int64_t>(tokens.size());
    for (int64_t n = std::min(room, random_.integer(1, 2 * page_)); n > 0; --n) {
      tokens.push_back(static_cast<int32_t>(random_.integer(0, 2)));
    }
    return tokens;
  }

  void expect_content(std::span<const int32_t> pages, std::span<const int32_t> tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      const auto page = static_cast<size_t>(pages[i / static_cast<size_t>(page_)]);
      ASSERT_EQ(memory_[page][i % static_cast<size_t>(page_)], tokens[i]) << "token " << i << " was overwritten";
    }
  }

  void admit() {
    if (live_.size() >= most_live_) return;
    Live live;
    live.planned = random_prompt();
    if (live.planned.empty()) return;
    live.most = std::min<int64_t>(static_cast<int64_t>(live.planned.size()) + random_.integer(0, 3 * page_),
                                  static_cast<int64_t>(cache_.total_pages()) * page_);
    KvCache::Match match = cache_.find(live.planned);
    expect_content(match.pages, std::span(live.planned).first(static_cast<size_t>(match.tokens)));
    for (const Live& other : live_) {
      const int32_t common = KvCache::common_prefix(other.tokens, live.planned);
      if (common > match.tokens) match = {common, other.holding.pages};
    }
    match.tokens = std::min(match.tokens, static_cast<int32_t>(live.planned.size()) - 1);
    const int32_t used = cache_.used_pages();
    const auto start = cache_.begin(live.most, match, live.holding);
    if (!start) {
      ++refused;
      EXPECT_FALSE(live_.empty()) << "nothing is live and yet there is no room";
      EXPECT_TRUE(live.holding.pages.empty());
      EXPECT_EQ(cache_.used_pages(), used);
      return;
    }
    ++admitted;
    reused += start->reused_tokens;
    ASSERT_LE(start->reused_tokens, match.tokens);
    if (start->copy_from >= 0) {
      ++copies;
      EXPECT_NE(start->copy_to, start->copy_from);
      expect_unshared(start->copy_to);
      std::copy_n(memory_[static_cast<size_t>(start->copy_from)].begin(), start->copy_tokens,
                  memory_[static_cast<size_t>(start->copy_to)].begin());
    }
    live.tokens.assign(live.planned.begin(), live.planned.begin() + start->reused_tokens);
    live_.push_back(std::move(live));
  }

  void expect_unshared(int32_t page) {
    for (const Live& other : live_) {
      EXPECT_EQ(std::count(other.holding.pages.begin(), other.holding.pages.end(), page), 0)
          << "a shared page is written";
    }
  }

  void extend() {
    if (live_.empty()) return;
    Live& live = pick();
    for (int64_t n = random_.integer(1, page_ + 1); n > 0 && static_cast<int64_t>(live.tokens.size()) < live.most;
         --n) {
      const auto position = live.tokens.size();
      if (position < live.planned.size()) {
        live.tokens.push_back(live.planned[position]);
      } else {
        live.tokens.push_back(static_cast<int32_t>(random_.integer(0, 2)));
      }
      while (live.holding.pages.size() * static_cast<size_t>(page_) < live.tokens.size()) {
        ASSERT_GT(live.holding.reserved, 0) << "a promise was not enough";
        cache_.take(live.holding);
      }
      const int32_t page = live.holding.pages[position / static_cast<size_t>(page_)];
      for (const Live& other : live_) {
        if (&other != &live) EXPECT_EQ(std::count(other.holding.pages.begin(), other.holding.pages.end(), page), 0);
      }
      memory_[static_cast<size_t>(page)][position % static_cast<size_t>(page_)] = live.tokens.back();
    }
  }

  void end() {
    if (live_.empty()) return;
    Live& live = pick();
    const bool keep = random_.chance(0.8);
    if (keep && !live.tokens.empty()) seen_.push_back(live.tokens);
    if (seen_.size() > 30) seen_.erase(seen_.begin());
    cache_.end(live.holding, live.tokens, keep);
    if (keep && !live.tokens.empty()) {
      const KvCache::Match match = cache_.find(live.tokens);
      EXPECT_EQ(match.tokens, static_cast<int32_t>(live.tokens.size()));
      expect_content(match.pages, live.tokens);
    }
    EXPECT_TRUE(live.holding.pages.empty());
    EXPECT_EQ(live.holding.reserved, 0);
    live_.erase(live_.begin() + (&live - live_.data()));
    check();
  }

  void look_up() {
    for (const Tokens& tokens : seen_) {
      const KvCache::Match match = cache_.find(tokens);
      expect_content(match.pages, std::span(tokens).first(static_cast<size_t>(match.tokens)));
    }
  }

  Live& pick() { return live_[static_cast<size_t>(random_.integer(0, static_cast<int64_t>(live_.size()) - 1))]; }

  void check() {
    std::set<int32_t> pages;
    int32_t reserved = 0;
    for (const Live& live : live_) {
      EXPECT_EQ(std::set<int32_t>(live.holding.pages.begin(), live.holding.pages.end()).size(),
                live.holding.pages.size());
      pages.insert(live.holding.pages.begin(), live.holding.pages.end());
      reserved += live.holding.reserved;
      EXPECT_GE(live.holding.reserved, 0);
      // The promise reaches to the longest that the sequence may become.
      EXPECT_GE(static_cast<int64_t>(live.holding.pages.size()) + live.holding.reserved, cache_.pages_for(live.most));
      expect_content(live.holding.pages, live.tokens);
    }
    check_used_ = static_cast<int32_t>(pages.size());
    EXPECT_GE(cache_.used_pages(), check_used_);
    EXPECT_LE(check_used_ + reserved, cache_.total_pages()) << "more is promised than there is";
    EXPECT_LE(cache_.used_pages(), cache_.total_pages());
  }

  Random random_;
  KvCache cache_;
  int32_t page_;
  size_t most_live_;
  std::vector<Tokens> memory_;
  std::vector<Live> live_;
  std::vector<Tokens> seen_;
  int32_t check_used_ = 0;
};

TEST(KvCache, RandomOperationsKeepEveryPromiseAndEveryPage) {
  int copies = 0, refused = 0, reused = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Model model(seed, static_cast<int32_t>(random.integer(1, 14)), static_cast<int32_t>(random.integer(1, 5)),
                static_cast<int32_t>(random.integer(1, 6)));
    for (int i = 0; i < 600 && !testing::Test::HasFailure(); ++i) model.step();
    model.finish();
    if (testing::Test::HasFailure()) return;
    copies += model.copies;
    refused += model.refused;
    reused += model.reused;
  }
  // The interesting ways were taken.
  EXPECT_GT(copies, 500);
  EXPECT_GT(refused, 500);
  EXPECT_GT(reused, 3000);
}

}  // namespace
}  // namespace chatglm
