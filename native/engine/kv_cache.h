#pragma once
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <vector>

namespace chatglm {

/// Which pages of the key/value memory belong to whom. The memory itself is the backend's; this is the bookkeeping,
/// used by the engine's thread alone.
///
/// A page holds `page_tokens` consecutive tokens of a sequence. Once full it never changes, so sequences that begin
/// with the same tokens share their full pages. What a finished sequence computed stays behind as a cached history,
/// found again by its token ids and thrown out, least recently used first, when a page is wanted and none is free.
class KvCache {
 public:
  KvCache(int32_t pages, int32_t page_tokens);

  int32_t page_tokens() const { return page_tokens_; }
  int32_t total_pages() const { return static_cast<int32_t>(uses_.size()); }
  int32_t used_pages() const { return total_pages() - static_cast<int32_t>(free_.size()); }
  int64_t cached_tokens() const;
  int32_t pages_for(int64_t tokens) const { return static_cast<int32_t>((tokens + page_tokens_ - 1) / page_tokens_); }

  /// Where the longest beginning of a prompt has been computed already.
  struct Match {
    int32_t tokens = 0;
    std::span<const int32_t> pages;  // of the sequence or history that has it
  };
  /// The longest match among the cached histories, which then counts as used.
  Match find(std::span<const int32_t> tokens);
  static int32_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b);

  /// The pages of one live sequence.
  struct Holding {
    std::vector<int32_t> pages;
    int32_t reserved = 0;  // pages it may still take: promised, so take() cannot fail
  };
  /// What a new sequence need not compute: its first `reused_tokens`, after the backend has copied the last page of
  /// them if that one is shared only in part (copy_from >= 0).
  struct Start {
    int32_t reused_tokens = 0;
    int32_t copy_from = -1, copy_to = -1, copy_tokens = 0;
  };
  /// Admits a sequence of at most `most_tokens` tokens that begins with the first `match.tokens` of `match`. Returns
  /// nothing and changes nothing if live sequences hold or were promised too much. The copy must be made before any
  /// other call.
  std::optional<Start> begin(int64_t most_tokens, const Match& match, Holding& holding);
  /// One more page for a live sequence.
  void take(Holding& holding);
  /// The sequence has ended; `tokens` are those whose keys and values were computed. Keeps them as a cached history.
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
  std::vector<int32_t> uses_;       // (pages) by sequences and histories
  std::vector<int32_t> live_uses_;  // (pages) by sequences
  std::vector<int32_t> free_;
  std::list<History> histories_;  // the most recently used first
  int32_t live_pages_ = 0;        // pages with live_uses_ > 0
  int32_t reserved_ = 0;          // sum over the holdings
};

}  // namespace chatglm
