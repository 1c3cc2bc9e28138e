#pragma once
#include <cstdint>
#include <set>
#include <span>
#include <vector>

namespace chatglm {

/// The page tables of sequences, and the prefix cache. The backend has the memory of the pages; this class keeps
/// account of them. Only the engine's thread uses it.
///
/// A page holds `page_tokens` consecutive tokens of a sequence. A full page never changes. Full pages are registered by
/// their tokens and their parent, the registered page with the tokens before: two sequences that begin with the same
/// tokens share their full pages, while they run and after. The last page of a sequence that ends is registered too,
/// although it is not full; who continues its tokens takes a copy. Registered pages that nobody holds stay in the cache
/// until a page is wanted and none is free. Then the least recently used one is evicted. Whoever holds a page holds its
/// parent, and gives it back after the page, so a parent is never evicted before its children.
class KvCache {
 public:
  KvCache(int32_t pages, int32_t page_tokens);

  int32_t page_tokens() const { return page_tokens_; }
  int32_t total_pages() const { return static_cast<int32_t>(pages_.size()); }
  /// Pages that hold something: held by a sequence, or registered.
  int32_t used_pages() const { return total_pages() - static_cast<int32_t>(free_.size()); }
  /// Pages that a sequence could take: the free ones, and those that nobody holds.
  int32_t available_pages() const { return static_cast<int32_t>(free_.size()) + evictable_; }
  /// Tokens of all registered pages.
  int64_t cached_tokens() const { return cached_tokens_; }
  int32_t pages_for(int64_t tokens) const { return static_cast<int32_t>((tokens + page_tokens_ - 1) / page_tokens_); }

  /// The pages of one sequence.
  struct Holding {
    std::vector<int32_t> pages;
    int32_t registered = 0;  // of the pages, those from the first on that are registered: all of them are full
    bool cached = true;      // false: nothing more of this sequence is registered or looked up
    int32_t adapter = 0;     // pages that another adapter computed are not equal
  };
  /// What a sequence was given from the cache. If the match ends inside of a page (copy_from >= 0), the backend copies
  /// the page's first `copy_tokens` tokens before anything else happens.
  struct Start {
    int32_t tokens = 0;  // so many tokens of the sequence are computed now
    int32_t copy_from = -1, copy_to = -1, copy_tokens = 0;
  };
  /// Gives the sequence registered pages that continue its own with `tokens`, all of the sequence's so far that may
  /// come from the cache. Only where all pages of the sequence are full and registered, as those of a new one are.
  Start extend(Holding& holding, std::span<const int32_t> tokens);
  /// Makes the sequence hold `pages` pages. Returns false and changes nothing if so many are not available.
  bool take(Holding& holding, int32_t pages);
  /// Registers the pages that became full. `tokens` are those of the sequence whose keys and values were computed. A
  /// page whose equal is registered already is given back for that one: the page table changes.
  void note(Holding& holding, std::span<const int32_t> tokens);
  /// As note(), and registers the last page as well, although it may not be full: for a sequence to which nothing is
  /// added any more.
  void complete(Holding& holding, std::span<const int32_t> tokens);
  /// Ends a sequence. With `keep`, it is completed first.
  void end(Holding& holding, std::span<const int32_t> tokens, bool keep);
  /// Forgets everything that is registered. Sequences go on with the pages that they hold.
  void clear();

  /// Throws ERR_INTERNAL if the accounts do not agree: for tests. `holdings`: of all sequences.
  void check(std::span<const Holding* const> holdings) const;

 private:
  static constexpr int32_t kNone = -1;

  struct Page {
    int32_t uses = 0;                        // sequences that hold the page
    int32_t tokens = 0;                      // if registered, how many it holds; else 0
    int32_t parent = kNone;                  // if registered: a page, or root_of() an adapter
    int32_t previous = kNone, next = kNone;  // in the list of evictable pages
    uint64_t hash = 0;                       // of a registered full page: of its tokens and its parent's hash
  };
  /// A place in the hash table of registered full pages.
  struct Slot {
    uint32_t hash = 0;     // the low half of the page's
    int32_t page = kNone;  // kNone: the place is empty
  };
  /// What registered pages are sorted by, so that those with the longest common prefix are neighbours.
  struct Prefix {
    int32_t parent;
    std::span<const int32_t> tokens;
  };
  /// The parent stands beside the page because it decides most comparisons, and pages_ and tokens_ are far away.
  struct Sorted {
    int32_t parent, page;
  };
  struct Order {
    using is_transparent = void;
    const KvCache* cache;
    bool operator()(const Sorted& a, const Sorted& b) const {
      return a.parent != b.parent ? a.parent < b.parent : less(cache->tokens_of(a.page), cache->tokens_of(b.page));
    }
    bool operator()(const Sorted& a, const Prefix& b) const {
      return a.parent != b.parent ? a.parent < b.parent : less(cache->tokens_of(a.page), b.tokens);
    }
    bool operator()(const Prefix& a, const Sorted& b) const {
      return a.parent != b.parent ? a.parent < b.parent : less(a.tokens, cache->tokens_of(b.page));
    }
    static bool less(std::span<const int32_t> a, std::span<const int32_t> b);
  };

  static int32_t root_of(int32_t adapter) { return -2 - adapter; }
  int32_t parent_of(const Holding& holding, size_t page) const {
    return page == 0 ? root_of(holding.adapter) : holding.pages[page - 1];
  }
  Page& at(int32_t page) { return pages_[static_cast<size_t>(page)]; }
  const Page& at(int32_t page) const { return pages_[static_cast<size_t>(page)]; }
  std::span<const int32_t> tokens_of(int32_t page) const {
    return {tokens_.data() + static_cast<size_t>(page) * static_cast<size_t>(page_tokens_),
            static_cast<size_t>(at(page).tokens)};
  }
  /// The hash of the sequence's tokens before a page, from which the hash of the page is made.
  uint64_t hash_before(const Holding& holding, size_t page) const;
  /// Whether the sequence's next page has a registered parent: clear() may have forgotten the parent.
  bool is_chained(const Holding& holding) const;

  size_t place_of(uint64_t hash) const { return static_cast<size_t>(hash) & (full_.size() - 1); }
  int32_t find_full(int32_t parent, std::span<const int32_t> tokens, uint64_t hash) const;
  /// `hash`: of a full page; of another one any number.
  void enter(int32_t page, int32_t parent, std::span<const int32_t> tokens, uint64_t hash);
  void unregister(int32_t page);
  int32_t allocate();
  void hold(int32_t page);
  void release(int32_t page);
  void link(int32_t page);
  void unlink(int32_t page);

  int32_t page_tokens_;
  std::vector<Page> pages_;
  std::vector<int32_t> tokens_;  // (pages, page_tokens): of registered pages
  std::vector<int32_t> free_;
  std::vector<Slot> full_;                   // registered full pages by hash: open addressing, linear probing
  std::set<Sorted, Order> sorted_;           // registered pages
  int32_t oldest_ = kNone, newest_ = kNone;  // the list of registered pages that nobody holds
  int32_t evictable_ = 0;                    // its length
  int64_t cached_tokens_ = 0;
};

}  // namespace chatglm
