#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace chatglm {

/// The texts of all tokens as a trie of bytes, whose nodes lie in preorder: a subtree is a range of nodes, and to leave
/// a subtree out is a jump. Immutable, and safe to use from any thread.
class TokenTrie {
 public:
  struct Node {
    int32_t end;    // the index behind the node's subtree
    int32_t token;  // a token whose text ends here, or -1; next_of() gives the others
    int32_t depth;  // bytes from the root, which has depth 0
    uint8_t byte;   // the last byte of the node's text
  };

  /// A token without text can be written in a grammar too: `special` are the ids of such tokens. In the trie, the text
  /// of one is special_text().
  TokenTrie(std::shared_ptr<const Tokenizer> tokenizer, std::vector<uint32_t> special);

  std::span<const Node> nodes() const { return nodes_; }
  /// Another token of the same text, or -1.
  int32_t next_of(int32_t token) const { return next_[static_cast<size_t>(token)]; }
  /// Ids are below this.
  uint32_t token_count() const { return static_cast<uint32_t>(next_.size()); }
  /// Whether the token is one of the special ones.
  bool is_special(uint32_t token) const;
  /// The bytes of the longest text.
  int32_t longest() const { return longest_; }
  /// What the token appends to a text. Tokens that the trie does not have give an empty text.
  std::string text(uint32_t token) const;

  /// The byte 255, which no UTF-8 has, and the four bytes of the id.
  static std::string special_text(uint32_t token);

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<uint32_t> special_;  // sorted
  std::vector<Node> nodes_;
  std::vector<int32_t> next_;  // (token_count)
  int32_t longest_ = 0;
};

}  // namespace chatglm
