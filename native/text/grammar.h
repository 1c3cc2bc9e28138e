#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace chatglm {

/// A context-free grammar over bytes, in the form of one nondeterministic automaton for each rule. Grammars are written
/// in GBNF: `name ::= alternatives`, whose parts are "literals", [classes] of code points, names of rules, `.` for any
/// code point, (groups), <[id]> for the token of an id, and repetitions of these: * + ? {m} {m,} {m,n}. The rule `root`
/// is the whole answer.
class Grammar {
 public:
  struct Edge {
    uint8_t first, last;  // the bytes
    int32_t target;
  };
  struct Call {
    int32_t rule;
    int32_t target;  // where the rule's end leads to
  };
  struct Node {
    std::vector<Edge> edges;
    std::vector<int32_t> empty;  // nodes that are reached without a byte
    std::vector<Call> calls;
    bool end = false;      // of the rule
    bool is_tail = false;  // nothing of the rule comes behind the node
    /// Of all nodes with this number, the same tokens stay within the rule, and the same prefixes of tokens end it:
    /// copies of one repetition that lie further from the repetition's end than any token reaches.
    int32_t mask_class = 0;
    /// The bytes of the shortest text from here to the end of the rule.
    uint32_t least = 0;
  };

  static constexpr uint32_t kNever = UINT32_MAX;

  struct Options {
    /// What comes before the root.
    std::string prefix;
    /// Whether a space may stand between prefix and root, which is no part of the answer: SentencePiece's dummy prefix.
    /// Where the answer may begin with a space itself, the space is not optional, so that it is clear which is which.
    bool dummy_space = false;
    /// The most bytes that a token has.
    int32_t longest_token = 256;
  };

  /// Throws ERR_INVALID_ARGUMENT, with line and column, for what is no grammar, a rule that calls itself before it has
  /// read a byte, and a grammar whose root has no finite text.
  Grammar(std::string_view text, const Options& options);

  const Node& node(int32_t index) const { return nodes_[static_cast<size_t>(index)]; }
  int32_t node_count() const { return static_cast<int32_t>(nodes_.size()); }
  /// The first node of a rule.
  int32_t start_of(int32_t rule) const { return starts_[static_cast<size_t>(rule)]; }
  /// Prefix, dummy space and root.
  int32_t start() const { return start_; }
  /// The tokens that the grammar names by their ids.
  const std::vector<uint32_t>& tokens() const { return tokens_; }

 private:
  friend class GrammarCompiler;

  std::vector<Node> nodes_;
  std::vector<int32_t> starts_;  // (rules)
  std::vector<uint32_t> tokens_;
  int32_t start_ = 0;
};

}  // namespace chatglm
