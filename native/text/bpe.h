#pragma once
#include <atomic>
#include <bit>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace chatglm {

/// Byte-pair encoding over the characters of a text, as SentencePiece defines it: of all adjacent pairs that together
/// are a piece, the one whose piece has the highest score is merged, of equal ones the leftmost, until none is left.
///
/// The result is found in time linear in the text's length, whatever the text, because of two facts.
/// 1. No merge crosses the end of a token of the result. What is merged on either side is therefore what would be
/// merged
///    if that side were the whole text, and the tokens of the result are those T1 ... Tn of which every adjacent pair,
///    encoded by itself, stays the pair: then no merge across any of the ends ever has its turn.
/// 2. Hence each prefix of a text has one encoding only, and a search from left to right that tries the longest token
///    first, accepts what fits the token before, and otherwise goes back, comes to no position twice.
/// How many tokens are tried at a position, and what the test of a pair takes, depend on the pieces' lengths alone.
///
/// Nodes are the nodes of a trie of the pieces, level by level, so that the first are the characters that occur in
/// pieces. A node is a token if its text, encoded by itself, stays one piece; a character always is one.
class Bpe {
 public:
  using Node = uint32_t;
  static constexpr Node kNone = std::numeric_limits<uint32_t>::max();
  /// A character that occurs in no piece is this bit and its code point.
  static constexpr Node kForeign = 0x8000'0000;

  struct Piece {
    std::u32string text;  // not empty
    float score;          // finite
    uint32_t id;
  };

  /// Of pieces with one text the first counts. A space of a text is taken for the character `space`.
  Bpe(const std::vector<Piece>& pieces, char32_t space);

  /// The tokens, and foreign characters, of a text; with `prefixed` of the text behind a space. A surrogate without its
  /// other half counts as U+FFFD. Throws ERR_ABORTED soon after `*abort` is true.
  std::vector<Node> encode(std::u16string_view text, bool prefixed, const std::atomic<bool>* abort) const;

  /// The piece of a token; kNone for a character that is no piece, such as a foreign one.
  uint32_t id_of(Node token) const { return token & kForeign ? kNone : ids_[token]; }
  /// Of a token that is no piece.
  char32_t code_of(Node character) const { return character & kForeign ? character ^ kForeign : alphabet_[character]; }

 private:
  struct Token {
    Node shorter = kNone;              // the longest token that is a beginning of this one; kNone for a character
    Node left = kNone, right = kNone;  // what the last merge merges; kNone for a character
    // When the token's text is encoded by itself, merges come in an order in which their scores do not always fall. The
    // lowest one up to the last merge says when that has its turn beside what else is in a text.
    float lowest = std::numeric_limits<float>::infinity();
    // The lowest score of a merge within this token once `left` is there; the same of `right`. A merge of `left` with
    // what stands before the token comes first if its score is as high, one of `right` if its score is higher.
    float after_left = 0, after_right = 0;
  };

  // Says of most pairs that were not added that they were not: a Bloom filter of one bit a pair.
  class PairFilter {
   public:
    explicit PairFilter(size_t pairs) : bits_(std::bit_ceil(pairs * 12 / 64 + 1)) {}
    void add(Node a, Node b) { bits_[word(a, b)] |= bit(a, b); }
    bool may_have(Node a, Node b) const { return bits_[word(a, b)] & bit(a, b); }

   private:
    static uint64_t bit(Node a, Node b) { return uint64_t{1} << (hash(a, b) % 64); }
    size_t word(Node a, Node b) const { return hash(a, b) / 64 & (bits_.size() - 1); }
    std::vector<uint64_t> bits_;
  };

  struct Merge {
    Node left = kNone, right = kNone;
    float score = 0;
  };

  static uint64_t hash(Node a, Node b) {
    const uint64_t h = (uint64_t{a} << 32 | b) * 0x9e37'79b9'7f4a'7c15;
    return h ^ h >> 32;
  }

  // What is known of a node only while all this is made.
  struct Origin {
    Node parent;         // kNone for a character
    const Piece* piece;  // null if the node is none
    size_t length;       // characters
  };

  void make_alphabet(const std::vector<Piece>& pieces);
  std::vector<Origin> make_trie(const std::vector<Piece>& pieces);
  bool find_split(Node node, const std::vector<Origin>& origins);

  Node& slot_of(char32_t code);
  Node node_of(char32_t code) const {
    const Node node = nodes_[pages_[code >> 8] << 8 | (code & 0xff)];
    return node == kNone ? kForeign | code : node;
  }
  Node child(Node node, Node character) const;
  const float* score_of_merge(Node left, Node right) const;
  bool stays_a_pair(Node left, Node right) const;

  std::u32string alphabet_;      // (characters), sorted
  std::vector<uint32_t> pages_;  // (0x1100): which page of nodes_ a code point / 256 has; page 0 has foreign ones only
  std::vector<Node> nodes_;      // (pages, 256)

  std::vector<Node> last_;         // (nodes): a node's last character; those of siblings rise
  std::vector<Node> first_child_;  // (nodes + 1): a node's children are those from here up to the next one's first
  std::vector<Node> seconds_;      // (a power of two) the nodes of two characters by their hash; kNone: empty
  std::vector<Node> longest_;      // (nodes): the longest token that is a beginning of a node's text, or all of it
  std::vector<uint32_t> ids_;      // (nodes): see id_of()
  std::vector<uint16_t> units_;    // (nodes): UTF-16 units of a node's text
  std::vector<Token> tokens_;      // (nodes); without meaning for those that are no tokens

  std::vector<Merge>
      merges_;            // (a power of two) the merges that tokens end with, by their hash; a left of kNone: empty
  PairFilter mergeable_;  // what is in merges_
  PairFilter touching_;   // characters that follow each other in a piece
};

}  // namespace chatglm
