#include "text/bpe.h"

#include <algorithm>

#include "base/error.h"
#include "text/utf8.h"

namespace chatglm {

namespace {

constexpr size_t kPages = 0x1100;        // of 256 code points, up to U+10FFFF
constexpr ptrdiff_t kFewChildren = 8;    // that are looked at one after the other
constexpr size_t kAbortInterval = 4096;  // steps

// Reads the character at `at` and moves behind it.
char32_t next_character(const char16_t*& at, const char16_t* end) {
  const char32_t unit = *at++;
  if ((unit & 0xf800) != 0xd800) return unit;
  if (unit >= 0xdc00 || at == end || (*at & 0xfc00) != 0xdc00) return kReplacementCharacter;
  return 0x10000 + ((unit & 0x3ff) << 10 | (*at++ & 0x3ff));
}

// At most half of the slots are taken, so that a search soon comes to an empty one.
size_t slots_for(size_t count) { return std::bit_ceil(2 * count + 2); }

// By code points; of one text the first first.
std::vector<const Bpe::Piece*> sorted_by_text(const std::vector<Bpe::Piece>& pieces) {
  struct Entry {
    uint64_t beginning;  // three characters, so that most comparisons need not look at the text
    const Bpe::Piece* piece;
  };
  std::vector<Entry> entries;
  entries.reserve(pieces.size());
  for (const Bpe::Piece& piece : pieces) {
    uint64_t beginning = 0;
    for (size_t i = 0; i < 3; ++i) beginning = beginning << 21 | (i < piece.text.size() ? piece.text[i] + 1 : 0);
    entries.push_back({beginning, &piece});
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    if (a.beginning != b.beginning) return a.beginning < b.beginning;
    const int order = a.piece->text.compare(b.piece->text);
    return order != 0 ? order < 0 : a.piece < b.piece;
  });
  std::vector<const Bpe::Piece*> sorted;
  sorted.reserve(pieces.size());
  for (const Entry& entry : entries) sorted.push_back(entry.piece);
  return sorted;
}

}  // namespace

Bpe::Bpe(const std::vector<Piece>& pieces, char32_t space) : mergeable_(pieces.size()), touching_(pieces.size()) {
  make_alphabet(pieces);
  const std::vector<Origin> origins = make_trie(pieces);
  const auto count = static_cast<Node>(origins.size());
  longest_.resize(count);
  ids_.resize(count, kNone);
  tokens_.resize(count);
  merges_.resize(slots_for(pieces.size()));
  // Shorter nodes stand first: what a piece is merged of is known when its turn comes.
  for (Node node = 0; node < count; ++node) {
    const Origin& origin = origins[node];
    const bool is_token = origin.parent == kNone || (origin.piece && find_split(node, origins));
    longest_[node] = is_token ? node : longest_[origin.parent];
    if (is_token && origin.piece) ids_[node] = origin.piece->id;
  }
  slot_of(U' ') = node_of(space);
}

Bpe::Node& Bpe::slot_of(char32_t code) {
  uint32_t& page = pages_[code >> 8];
  if (page == 0) {
    page = static_cast<uint32_t>(nodes_.size() / 256);
    nodes_.resize(nodes_.size() + 256, kNone);
  }
  return nodes_[page << 8 | (code & 0xff)];
}

void Bpe::make_alphabet(const std::vector<Piece>& pieces) {
  pages_.resize(kPages, 0);
  nodes_.resize(256, kNone);
  for (const Piece& piece : pieces) {
    for (const char32_t code : piece.text) {
      Node& node = slot_of(code);
      if (node == kNone) alphabet_ += code;
      node = 0;  // until its place is known
    }
  }
  std::sort(alphabet_.begin(), alphabet_.end());
  for (Node node = 0; node < alphabet_.size(); ++node) slot_of(alphabet_[node]) = node;
}

std::vector<Bpe::Origin> Bpe::make_trie(const std::vector<Piece>& pieces) {
  const std::vector<const Piece*> sorted = sorted_by_text(pieces);
  // Pieces that begin with a node's text stand together, those that are it first of all.
  struct Range {
    size_t begin, end;
  };
  std::vector<Range> ranges;  // (nodes)
  std::vector<Origin> origins;
  ranges.reserve(2 * pieces.size());
  origins.reserve(2 * pieces.size());
  const auto add = [&](Node parent, Node character, size_t begin, size_t end, size_t length) {
    const bool is_piece = begin < end && sorted[begin]->text.size() == length;
    origins.push_back({parent, is_piece ? sorted[begin] : nullptr, length});
    while (begin < end && sorted[begin]->text.size() == length) ++begin;
    ranges.push_back({begin, end});
    last_.push_back(character);
    units_.push_back(
        static_cast<uint16_t>((parent == kNone ? 0 : units_[parent]) + (alphabet_[character] > 0xffff ? 2 : 1)));
  };
  size_t at = 0;
  for (Node node = 0; node < alphabet_.size(); ++node) {
    const size_t begin = at;
    while (at < sorted.size() && sorted[at]->text[0] == alphabet_[node]) ++at;
    add(kNone, node, begin, at, 1);
  }
  for (Node node = 0; node < origins.size(); ++node) {
    const auto [first, end] = ranges[node];
    const size_t length = origins[node].length;
    first_child_.push_back(static_cast<Node>(origins.size()));
    for (size_t begin = first; begin < end;) {
      const char32_t code = sorted[begin]->text[length];
      size_t behind = begin + 1;
      while (behind < end && sorted[behind]->text[length] == code) ++behind;
      const Node character = node_of(code);
      touching_.add(last_[node], character);
      add(node, character, begin, behind, length + 1);
      begin = behind;
    }
  }
  first_child_.push_back(static_cast<Node>(origins.size()));

  const auto characters = static_cast<Node>(alphabet_.size()), seconds_end = characters ? first_child_[characters] : 0;
  seconds_.resize(slots_for(seconds_end - characters), kNone);
  for (Node node = characters; node < seconds_end; ++node) {
    uint64_t i = hash(origins[node].parent, last_[node]) >> 20;
    while (seconds_[i & (seconds_.size() - 1)] != kNone) ++i;
    seconds_[i & (seconds_.size() - 1)] = node;
  }
  return origins;
}

// A piece by itself ends as one token if, without it, its text ends as two: the last merge is theirs.
bool Bpe::find_split(Node node, const std::vector<Origin>& origins) {
  const Piece& piece = *origins[node].piece;
  const Node shorter = longest_[origins[node].parent];
  for (Node left = shorter; left != kNone; left = tokens_[left].shorter) {
    size_t at = origins[left].length;
    Node right = node_of(piece.text[at]);
    while (++at < piece.text.size() && right != kNone) right = child(right, node_of(piece.text[at]));
    if (right == kNone || longest_[right] != right || !stays_a_pair(left, right)) continue;
    const float score = piece.score, before = tokens_[left].lowest, behind = tokens_[right].lowest;
    // Of two merges of one score the left one comes first, so `left` is complete before `right` then.
    tokens_[node] = {.shorter = shorter,
                     .left = left,
                     .right = right,
                     .lowest = std::min({score, before, behind}),
                     .after_left = behind <= before ? std::min(score, behind) : score,
                     .after_right = before < behind ? std::min(score, before) : score};
    mergeable_.add(left, right);
    uint64_t i = hash(left, right) >> 20;
    while (merges_[i & (merges_.size() - 1)].left != kNone) ++i;
    merges_[i & (merges_.size() - 1)] = {left, right, score};
    return true;
  }
  return false;
}

Bpe::Node Bpe::child(Node node, Node character) const {
  if (node < alphabet_.size()) {
    for (uint64_t i = hash(node, character) >> 20;; ++i) {
      const Node found = seconds_[i & (seconds_.size() - 1)];
      if (found == kNone) return kNone;
      if (last_[found] == character && found >= first_child_[node] && found < first_child_[node + 1]) return found;
    }
  }
  const Node *begin = last_.data() + first_child_[node], *end = last_.data() + first_child_[node + 1];
  if (end - begin > kFewChildren) {
    begin = std::lower_bound(begin, end, character);
  } else {
    while (begin != end && *begin < character) ++begin;
  }
  return begin != end && *begin == character ? static_cast<Node>(begin - last_.data()) : kNone;
}

// null if they do not merge.
const float* Bpe::score_of_merge(Node left, Node right) const {
  if (!mergeable_.may_have(left, right)) return nullptr;
  for (uint64_t i = hash(left, right) >> 20;; ++i) {
    const Merge& merge = merges_[i & (merges_.size() - 1)];
    if (merge.left == left && merge.right == right) return &merge.score;
    if (merge.left == kNone) return nullptr;
  }
}

// Encoding the text of two tokens by itself, both come about in the end if no merge across their border has its turn
// before. The states of the border are looked at from the last one back: its neighbours are taken apart in the reverse
// order of their last merges, down to two characters.
bool Bpe::stays_a_pair(Node left, Node right) const {
  if (score_of_merge(left, right)) return false;
  for (;;) {
    const Token &a = tokens_[left], &b = tokens_[right];
    if (a.left == kNone && b.left == kNone) return true;
    if (b.lowest <= a.lowest) {
      right = b.left;
      const float* score = score_of_merge(left, right);
      if (score && *score >= b.after_left) return false;
    } else {
      left = a.right;
      const float* score = score_of_merge(left, right);
      if (score && *score > a.after_right) return false;
    }
  }
}

std::vector<Bpe::Node> Bpe::encode(std::u16string_view text, bool prefixed, const std::atomic<bool>* abort) const {
  std::vector<Node> tokens;
  tokens.reserve(text.size() + 1);  // a system gives memory only to what is written
  size_t settled = 0;               // of `tokens`: so many do not change any more
  // Positions count the space that stands before the text, if one does, as a unit.
  const size_t prefix = prefixed ? 1 : 0, length = text.size() + prefix;
  const char16_t* const end = text.data() + text.size();
  const Node space = node_of(U' ');
  size_t steps = 0;
  for (size_t at = 0; at < length;) {
    if (++steps % kAbortInterval == 0 && abort && abort->load(std::memory_order_relaxed)) {
      throw Error("ERR_ABORTED", "Encoding was aborted");
    }
    const char16_t* next = text.data() + (at < prefix ? 0 : at - prefix);
    Node node = at < prefix ? space : node_of(next_character(next, end));
    if (tokens.size() > settled && !touching_.may_have(last_[tokens.back()], node)) settled = tokens.size();
    if (node & kForeign) {
      tokens.push_back(node);
      settled = tokens.size();
      at = static_cast<size_t>(next - text.data()) + prefix;
      continue;
    }
    while (next != end) {
      const Node longer = child(node, node_of(next_character(next, end)));
      if (longer == kNone) break;
      node = longer;
    }
    Node token = longest_[node];
    while (tokens.size() > settled && !stays_a_pair(tokens.back(), token)) {
      token = tokens_[token].shorter;
      while (token == kNone) {
        // No token fits here, so another one must stand before.
        if (tokens.size() == settled) throw Error("ERR_INTERNAL", "a text has no encoding");
        at -= units_[tokens.back()];
        token = tokens_[tokens.back()].shorter;
        tokens.pop_back();
      }
    }
    tokens.push_back(token);
    at += units_[token];
  }
  return tokens;
}

}  // namespace chatglm
