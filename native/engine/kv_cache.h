#pragma once
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <vector>

namespace chatglm {

/// The page tables of live sequences, and the prefix cache. The backend has the memory of the pages; this class keeps
/// account of them. Only the engine's thread uses it.
///
/// A page holds `page_tokens` consecutive tokens of a sequence. A full page never changes, so sequences that begin with
/// the same tokens share their full pages. The pages of a finished sequence stay in the prefix cache as a history,
/// which is found again by its token ids. When a page is wanted and none is free, the least recently used history is
/// evicted.
class KvCache {
 public:
  KvCache(int32_t pages, int32_t page_tokens);

  int32_t page_tokens() const { return page_tokens_; }
  int32_t total_pages() const { return static_cast<int32_t>(uses_.size()); }
  int32_t used_pages() const { return total_pages() - static_cast<int32_t>(free_.size()); }
  int64_t cached_tokens() const;
  int32_t pages_for(int64_t tokens) const { return static_cast<int32_t>((tokens + page_tokens_ - 1) / page_tokens_); }

  /// The pages that hold the longest prefix of a prompt that has been computed.
  struct Match {
    int32_t tokens = 0;
    std::span<const int32_t> pages;  // of the sequence or history that computed the prefix
  };
  /// The longest match among the histories. The history that has it becomes the most recently used.
  Match find(std::span<const int32_t> tokens);
  static int32_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b);

  /// The pages of one live sequence.
  struct Holding {
    std::vector<int32_t> pages;
    int32_t reserved = 0;  // further pages that are promised to the sequence, so that take() cannot fail
  };
  /// Of a new sequence the first `reused_tokens` need no computation. If the match ends inside of a page (copy_from >=
  /// 0), the backend first copies that page's `copy_tokens` tokens to a page of the sequence's own.
  struct Start {
    int32_t reused_tokens = 0;
    int32_t copy_from = -1, copy_to = -1, copy_tokens = 0;
  };
  /// Admits a sequence of at most `most_tokens` tokens that begins with the first `match.tokens` of `match`. Returns
  /// nothing and changes nothing if live sequences hold, or were promised, too many pages. The caller makes the copy
  /// before any other call.
  std::optional<Start> begin(int64_t most_tokens, const Match& match, Holding& holding);
  /// Gives one of the promised pages to a live sequence.
  void take(Holding& holding);
  /// Ends a sequence. `tokens` are the tokens whose keys and values were computed: with `keep` they become a history.
  void end(Holding& holding, std::vector<int32_t> tokens, bool keep);
  void clear();

 private:
  struct History {
    std::vector<int32_t> tokens;
    std::vector<int32_t> pages;
  };

  int32_t allocate();
  void share(int32_t page, bool live);
  void release(int32_t page, bool live);
  void drop(std::list<History>::iterator history);

  int32_t page_tokens_;
  std::vector<int32_t> uses_;       // (pages): how many sequences and histories hold the page
  std::vector<int32_t> live_uses_;  // (pages): how many sequences hold the page
  std::vector<int32_t> free_;
  std::list<History> histories_;  // the most recently used first
  int32_t live_pages_ = 0;        // pages with live_uses_ > 0
  int32_t reserved_ = 0;          // sum of Holding::reserved over all sequences
};

}  // namespace chatglm
