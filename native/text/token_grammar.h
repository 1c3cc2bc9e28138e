#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/grammar.h"
#include "text/token_trie.h"

namespace chatglm {

/// Which tokens a grammar allows next. The grammar's automata run as one deterministic automaton whose states are made
/// when they are first reached, and kept, with their masks, for all answers of the grammar.
///
/// A state is a set of frames: a node of a rule's automaton, and the frame to return to when the rule ends. Most of a
/// mask does not depend on where a rule returns to: the tokens that stay within the rule are found once for each node,
/// by a walk through the trie; of the others, the beginnings that end the rule are kept, so that only what follows
/// these is walked through for each state. All methods are safe to call from any thread.
class TokenGrammar {
 public:
  TokenGrammar(Grammar grammar, std::shared_ptr<const TokenTrie> trie);

  /// How far an answer has come.
  class Position {
    friend class TokenGrammar;
    std::string read_;
    int32_t state_ = 0;
    uint64_t epoch_ = 0;
  };

  Position begin();
  /// Reads a token's text. False, and the position stays as it is: the token is not allowed there.
  bool advance(Position& position, uint32_t token);
  /// Whether the answer may end here.
  bool may_end(Position& position);
  /// The bytes of the shortest end of the answer.
  uint32_t least(Position& position);
  /// Clears the bits of tokens that are not allowed next. budget: the bytes that the answer may have after the token;
  /// if the shortest end has more, only tokens that lead to the shortest end are allowed, and none where the answer may
  /// stop instead. Bits that are clear already stay so. Tokens that the mask has no bit for are not allowed.
  void restrict(Position& position, std::span<uint32_t> mask, uint32_t budget, bool may_stop = false);

  /// The memory of states and masks, in bytes, as it was at the last call.
  size_t bytes() const;
  /// When states and masks take more than this, they are forgotten and made anew.
  static constexpr size_t kMostBytes = size_t{64} << 20;

 private:
  static constexpr int32_t kNone = -1;
  static constexpr int32_t kUnknown = -2;

  struct Frame {
    int32_t node;
    int32_t parent;  // the frame that follows at the end of the rule; kNone: the answer, or the walk, ends
    uint32_t least;  // the bytes of the shortest text to the end of all frames
  };
  using Transitions = std::array<int32_t, 256>;  // kNone: no such byte
  struct State {
    std::vector<int32_t> frames;  // sorted; each of a node that reads a byte
    bool may_end = false;
    uint32_t least = Grammar::kNever;
    std::unique_ptr<Transitions> transitions;
    std::unique_ptr<std::vector<uint32_t>> mask;  // (tokens / 32)
    uint32_t worst = 0;                           // of `mask`: the largest `least` behind a token
  };
  /// What is known of a node without knowing where its rule returns to.
  struct Local {
    std::vector<uint32_t> mask;  // (tokens / 32) tokens that are read within the rule, or just end it
    std::vector<int32_t> exits;  // nodes of the trie, which have children, whose texts end the rule
    uint32_t worst = 0;          // the largest `least` within the rule
  };

  void locate(Position& position);
  int32_t frame_of(int32_t node, int32_t parent);
  /// Collects the frames that are reached from a node without a byte.
  void reach(int32_t node, int32_t parent);
  void read(const std::vector<int32_t>& frames, uint8_t byte);
  int32_t finish_state();
  int32_t state_of(int32_t node, int32_t parent);
  int32_t step(int32_t state, uint8_t byte);
  const State& masked(int32_t state);
  const Local& local_of(int32_t node);
  /// Walks through the trie below `top`, whose text leads to `state`. visit(node of the trie, state) is called for each
  /// node that the grammar allows; it says whether to go on below.
  template <typename Visit>
  void walk(int32_t top, int32_t state, const Visit& visit);
  void set_bits(std::vector<uint32_t>& mask, int32_t token) const;
  void forget();

  const Grammar grammar_;
  const std::shared_ptr<const TokenTrie> trie_;

  mutable std::mutex mutex_;  // guards all that follows
  uint64_t epoch_ = 0;        // of states, which are numbered anew in each
  std::vector<Frame> frames_;
  std::unordered_map<uint64_t, int32_t> frame_numbers_;
  std::vector<State> states_;
  struct Hash {
    size_t operator()(const std::vector<int32_t>& frames) const;
  };
  std::unordered_map<std::vector<int32_t>, int32_t, Hash> state_numbers_[2];  // by may_end
  std::unordered_map<int32_t, std::unique_ptr<Local>> locals_;                // by mask_class
  size_t bytes_ = 0;

  // Of the state that is being made.
  std::vector<std::pair<int32_t, int32_t>> open_;  // node and parent
  std::vector<int32_t> collected_;
  std::unordered_map<uint64_t, uint64_t> reached_;  // node and parent: the last state that they were reached for
  uint64_t making_ = 0;
  size_t work_ = 0;     // nodes that were reached for the token
  size_t visited_ = 0;  // nodes that were reached for the state
  bool collected_end_ = false;
  std::vector<int32_t> path_;  // of a walk: the states by depth
};

}  // namespace chatglm
