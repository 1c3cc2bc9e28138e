#include "text/token_grammar.h"

#include <algorithm>

#include "base/error.h"

namespace chatglm {

namespace {

// A grammar whose texts can be read in more ways than this at once is too ambiguous.
constexpr size_t kMostFrames = 5'000;
// Nodes that are reached for one token, for the states of a mask included: a fraction of a second, in which the
// engine's other sequences wait. The masks of the tests' JSON schemas reach 9,000 at most, with 65,024 tokens.
constexpr size_t kMostWork = 1'000'000;

uint64_t key_of(int32_t node, int32_t parent) {
  return static_cast<uint64_t>(static_cast<uint32_t>(node)) << 32 | static_cast<uint32_t>(parent);
}

uint32_t sum(uint32_t a, uint32_t b) { return a > Grammar::kNever - b ? Grammar::kNever : a + b; }

}  // namespace

size_t TokenGrammar::Hash::operator()(const std::vector<int32_t>& frames) const {
  uint64_t hash = 0x9E3779B97F4A7C15u;
  for (const int32_t frame : frames) {
    hash = (hash ^ static_cast<uint32_t>(frame)) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
  }
  return static_cast<size_t>(hash);
}

TokenGrammar::TokenGrammar(Grammar grammar, std::shared_ptr<const TokenTrie> trie)
    : grammar_(std::move(grammar)), trie_(std::move(trie)) {
  forget();
}

void TokenGrammar::forget() {
  ++epoch_;
  frames_.clear();
  frame_numbers_.clear();
  states_.clear();
  for (auto& numbers : state_numbers_) numbers.clear();
  locals_.clear();
  reached_.clear();
  bytes_ = 0;
  state_of(grammar_.start(), kNone);  // state 0
}

TokenGrammar::Position TokenGrammar::begin() {
  Position position;
  return position;  // of no epoch: locate() reads nothing
}

/// Makes the position's state known to the present epoch.
void TokenGrammar::locate(Position& position) {
  work_ = 0;
  if (bytes_ > kMostBytes) forget();
  if (position.epoch_ == epoch_) return;
  // Only the last state is made: the others would take the memory again that was just given back.
  collected_ = states_[0].frames;
  collected_end_ = states_[0].may_end;
  for (const char c : position.read_) {
    work_ = 0;  // the answer was read before: its length is no fault
    read(std::vector<int32_t>(collected_), static_cast<uint8_t>(c));
  }
  position.state_ = finish_state();
  position.epoch_ = epoch_;
  work_ = 0;
}

bool TokenGrammar::advance(Position& position, uint32_t token) {
  const std::lock_guard lock(mutex_);
  locate(position);
  const std::string text = trie_->text(token);
  int32_t state = position.state_;
  for (const char c : text) {
    state = step(state, static_cast<uint8_t>(c));
    if (state == kNone) return false;
  }
  if (text.empty()) return false;
  position.state_ = state;
  position.read_ += text;
  return true;
}

bool TokenGrammar::may_end(Position& position) {
  const std::lock_guard lock(mutex_);
  locate(position);
  return states_[static_cast<size_t>(position.state_)].may_end;
}

uint32_t TokenGrammar::least(Position& position) {
  const std::lock_guard lock(mutex_);
  locate(position);
  return states_[static_cast<size_t>(position.state_)].least;
}

size_t TokenGrammar::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

void TokenGrammar::restrict(Position& position, std::span<uint32_t> mask, uint32_t budget, bool may_stop) {
  const std::lock_guard lock(mutex_);
  locate(position);
  const State& state = masked(position.state_);
  const auto keep = [&](const std::vector<uint32_t>& allowed) {
    const size_t common = std::min(mask.size(), allowed.size());
    for (size_t i = 0; i < common; ++i) mask[i] &= allowed[i];
    std::fill(mask.begin() + static_cast<int64_t>(common), mask.end(), 0);
  };
  if (state.worst <= budget) return keep(*state.mask);
  // Some token leads further from the end than the budget allows: the tokens are looked at one by one.
  uint32_t nearest = Grammar::kNever;
  std::vector<std::pair<int32_t, uint32_t>> ends;  // nodes of the trie that have tokens
  walk(0, position.state_, [&](int32_t at, int32_t reached) {
    if (trie_->nodes()[static_cast<size_t>(at)].token < 0) return;
    const uint32_t least = states_[static_cast<size_t>(reached)].least;
    ends.emplace_back(at, least);
    nearest = std::min(nearest, least);
  });
  const uint32_t most = may_stop ? budget : std::max(nearest, budget);
  std::vector<uint32_t> allowed((trie_->token_count() + 31) / 32, 0);
  for (const auto& [at, least] : ends) {
    if (least <= most) set_bits(allowed, trie_->nodes()[static_cast<size_t>(at)].token);
  }
  keep(allowed);
}

void TokenGrammar::set_bits(std::vector<uint32_t>& mask, int32_t token) const {
  for (; token >= 0; token = trie_->next_of(token)) mask[static_cast<size_t>(token) / 32] |= 1u << (token % 32);
}

int32_t TokenGrammar::frame_of(int32_t node, int32_t parent) {
  const auto [found, is_new] = frame_numbers_.try_emplace(key_of(node, parent), static_cast<int32_t>(frames_.size()));
  if (is_new) {
    const uint32_t behind = parent == kNone ? 0 : frames_[static_cast<size_t>(parent)].least;
    frames_.push_back({node, parent, sum(grammar_.node(node).least, behind)});
    bytes_ += sizeof(Frame) + 48;
  }
  return found->second;
}

void TokenGrammar::reach(int32_t node, int32_t parent) {
  const auto add = [&](int32_t next, int32_t to) {
    uint64_t& last = reached_[key_of(next, to)];
    if (std::exchange(last, making_) != making_) open_.emplace_back(next, to);
  };
  add(node, parent);
  while (!open_.empty()) {
    const auto [index, above] = open_.back();
    open_.pop_back();
    if (++visited_ > kMostFrames || ++work_ > kMostWork) {
      open_.clear();
      throw Error("ERR_INVALID_ARGUMENT", "the grammar is too ambiguous: an answer can be read in more than " +
                                              std::to_string(kMostFrames) + " ways at once");
    }
    const Grammar::Node& at = grammar_.node(index);
    if (!at.edges.empty()) collected_.push_back(frame_of(index, above));
    for (const int32_t next : at.empty) add(next, above);
    for (const Grammar::Call& call : at.calls) {
      // Where the call is the last thing of its rule, what follows is what follows the rule: a rule that ends with a
      // call of itself takes no more frames with each turn.
      const bool is_last = grammar_.node(call.target).is_tail;
      add(grammar_.start_of(call.rule), is_last ? above : frame_of(call.target, above));
    }
    if (!at.end) continue;
    if (above == kNone) {
      collected_end_ = true;
    } else {
      const Frame& frame = frames_[static_cast<size_t>(above)];
      add(frame.node, frame.parent);
    }
  }
}

/// The state of the frames that reach() has collected.
int32_t TokenGrammar::finish_state() {
  std::sort(collected_.begin(), collected_.end());
  collected_.erase(std::unique(collected_.begin(), collected_.end()), collected_.end());
  auto& numbers = state_numbers_[collected_end_ ? 1 : 0];
  const auto [found, is_new] = numbers.try_emplace(collected_, static_cast<int32_t>(states_.size()));
  if (is_new) {
    State& state = states_.emplace_back();
    state.frames = collected_;
    state.may_end = collected_end_;
    for (const int32_t frame : collected_)
      state.least = std::min(state.least, frames_[static_cast<size_t>(frame)].least);
    if (collected_end_) state.least = 0;
    bytes_ += sizeof(State) + 8 * collected_.size() + 64;
  }
  // What was reached is looked up for this state alone; the table must not grow with the answer.
  if (reached_.size() > 100'000) reached_.clear();
  return found->second;
}

int32_t TokenGrammar::state_of(int32_t node, int32_t parent) {
  collected_.clear();
  collected_end_ = false;
  ++making_;
  visited_ = 0;
  reach(node, parent);
  return finish_state();
}

/// Collects the frames behind a byte.
void TokenGrammar::read(const std::vector<int32_t>& frames, uint8_t byte) {
  collected_.clear();
  collected_end_ = false;
  ++making_;
  visited_ = 0;
  for (const int32_t index : frames) {
    const Frame frame = frames_[static_cast<size_t>(index)];
    for (const Grammar::Edge& edge : grammar_.node(frame.node).edges) {
      if (edge.first <= byte && byte <= edge.last) reach(edge.target, frame.parent);
    }
  }
}

int32_t TokenGrammar::step(int32_t from, uint8_t byte) {
  if (from == kNone) return kNone;
  {
    State& state = states_[static_cast<size_t>(from)];
    if (!state.transitions) {
      state.transitions = std::make_unique<Transitions>();
      state.transitions->fill(kUnknown);
      bytes_ += sizeof(Transitions);
    }
    const int32_t known = (*state.transitions)[byte];
    if (known != kUnknown) return known;
  }
  read(states_[static_cast<size_t>(from)].frames, byte);
  const int32_t to = collected_.empty() && !collected_end_ ? kNone : finish_state();
  // States are forgotten between two tokens; one token of a very ambiguous grammar must not take all memory.
  if (bytes_ > 2 * kMostBytes)
    throw Error("ERR_INVALID_ARGUMENT", "the grammar is too ambiguous: its states take too much memory");
  (*states_[static_cast<size_t>(from)].transitions)[byte] = to;
  return to;
}

template <typename Visit>
void TokenGrammar::walk(int32_t top, int32_t state, const Visit& visit) {
  const std::span<const TokenTrie::Node> nodes = trie_->nodes();
  const int32_t depth = nodes[static_cast<size_t>(top)].depth;
  std::vector<int32_t> path = std::move(path_);
  path.assign(static_cast<size_t>(trie_->longest()) + 1, kNone);
  path[static_cast<size_t>(depth)] = state;
  for (int32_t i = top + 1; i < nodes[static_cast<size_t>(top)].end;) {
    const TokenTrie::Node& node = nodes[static_cast<size_t>(i)];
    const int32_t reached = step(path[static_cast<size_t>(node.depth) - 1], node.byte);
    if (reached == kNone) {
      i = node.end;
      continue;
    }
    path[static_cast<size_t>(node.depth)] = reached;
    visit(i, reached);
    ++i;
  }
  path_ = std::move(path);
}

const TokenGrammar::Local& TokenGrammar::local_of(int32_t node) {
  const int32_t mask_class = grammar_.node(node).mask_class;
  if (const auto known = locals_.find(mask_class); known != locals_.end()) return *known->second;
  // Kept only once complete: the walk may end with an exception.
  auto local = std::make_unique<Local>();
  Local& result = *local;
  result.mask.assign((trie_->token_count() + 31) / 32, 0);
  bytes_ += 4 * result.mask.size() + sizeof(Local);
  walk(0, state_of(mask_class, kNone), [&](int32_t at, int32_t reached) {
    const TokenTrie::Node& place = trie_->nodes()[static_cast<size_t>(at)];
    const State& state = states_[static_cast<size_t>(reached)];
    if (place.token >= 0) {
      set_bits(result.mask, place.token);
      result.worst = std::max(result.worst, state.least);
    }
    if (state.may_end && place.end > at + 1) result.exits.push_back(at);
  });
  bytes_ += 4 * result.exits.capacity();
  return *locals_.emplace(mask_class, std::move(local)).first->second;
}

/// The state, with its mask.
const TokenGrammar::State& TokenGrammar::masked(int32_t index) {
  if (states_[static_cast<size_t>(index)].mask) return states_[static_cast<size_t>(index)];
  auto mask = std::make_unique<std::vector<uint32_t>>((trie_->token_count() + 31) / 32, 0);
  bytes_ += 4 * mask->size();
  uint32_t worst = 0;
  for (size_t i = 0; i < states_[static_cast<size_t>(index)].frames.size(); ++i) {
    const Frame frame = frames_[static_cast<size_t>(states_[static_cast<size_t>(index)].frames[i])];
    const Local& local = local_of(frame.node);
    for (size_t word = 0; word < mask->size(); ++word) (*mask)[word] |= local.mask[word];
    if (frame.parent == kNone) {
      worst = std::max(worst, local.worst);
      continue;
    }
    const Frame above = frames_[static_cast<size_t>(frame.parent)];
    worst = std::max(worst, sum(local.worst, above.least));
    if (local.exits.empty()) continue;
    const int32_t behind = state_of(above.node, above.parent);
    for (const int32_t exit : local.exits) {
      walk(exit, behind, [&](int32_t at, int32_t reached) {
        const int32_t token = trie_->nodes()[static_cast<size_t>(at)].token;
        if (token < 0) return;
        set_bits(*mask, token);
        worst = std::max(worst, states_[static_cast<size_t>(reached)].least);
      });
    }
  }
  State& state = states_[static_cast<size_t>(index)];
  state.mask = std::move(mask);
  state.worst = worst;
  return state;
}

}  // namespace chatglm
