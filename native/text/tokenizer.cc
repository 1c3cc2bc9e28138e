#include "text/tokenizer.h"

#include <algorithm>
#include <cstdio>
#include <queue>
#include <utility>

#include "base/error.h"

namespace chatglm {

namespace {

constexpr std::string_view kSpace = "\xe2\x96\x81";          // U+2581
constexpr std::string_view kReplacement = "\xef\xbf\xbd";    // U+FFFD
constexpr std::string_view kUnknownText = " \xe2\x81\x87 ";  // what SentencePiece writes for <unk>

size_t utf8_length(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xe0) return 2;
  return lead < 0xf0 ? 3 : 4;
}

// A run of the text that is one piece so far, in a doubly linked list.
struct Symbol {
  uint32_t begin, length;  // length 0: merged into its left neighbour
  int32_t previous, next;
};

struct Merge {
  float score;
  int32_t left, right;
  uint32_t length;  // of both together; a stale merge no longer has it
};

struct LowerPriority {
  bool operator()(const Merge& a, const Merge& b) const {
    return a.score < b.score || (a.score == b.score && a.left > b.left);
  }
};

enum class Utf8 { valid, invalid, incomplete };

// The character at the beginning of `bytes` (not empty), and its length if valid. Overlong forms, surrogates and what
// is beyond U+10FFFF are invalid.
Utf8 first_character(std::string_view bytes, size_t& length) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  length = 1;
  if (lead < 0x80) return Utf8::valid;
  if (lead < 0xc2 || lead > 0xf4) return Utf8::invalid;
  const size_t wanted = utf8_length(lead);
  for (size_t i = 1; i < wanted; ++i) {
    if (i == bytes.size()) return Utf8::incomplete;
    uint8_t low = 0x80, high = 0xbf;
    if (i == 1) {
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    }
    if (at(i) < low || at(i) > high) return Utf8::invalid;
  }
  length = wanted;
  return Utf8::valid;
}

}  // namespace

Tokenizer::Tokenizer(std::string pieces, std::vector<uint32_t> offsets, std::vector<float> scores,
                     std::vector<uint8_t> types)
    : pieces_(std::move(pieces)), offsets_(std::move(offsets)), scores_(std::move(scores)), types_(std::move(types)) {
  const auto invalid = [](const std::string& what) { return Error("ERR_CHECKPOINT_INVALID", "the tokenizer " + what); };
  if (scores_.empty() || offsets_.size() != scores_.size() + 1 || types_.size() != scores_.size()) {
    throw invalid("has arrays of different lengths");
  }
  if (offsets_.front() != 0 || offsets_.back() != pieces_.size()) throw invalid("has wrong offsets");
  for (uint32_t id = 0; id < size(); ++id) {
    if (offsets_[id] > offsets_[id + 1]) throw invalid("has wrong offsets");
  }
  std::vector<bool> seen(256, false);
  by_text_.reserve(size());
  for (uint32_t id = 0; id < size(); ++id) {
    if (type(id) == PieceType::normal) by_text_.emplace(piece(id), id);
    if (type(id) == PieceType::byte) {
      unsigned value = 256;
      const std::string text(piece(id));
      if (text.size() != 6 || std::sscanf(text.c_str(), "<0x%02X>", &value) != 1 || value > 255) {
        throw invalid("has a byte piece that is not written <0xNN>: " + text);
      }
      seen[value] = true;
      byte_ids_[value] = id;
    }
  }
  for (int value = 0; value < 256; ++value) {
    if (!seen[static_cast<size_t>(value)]) throw invalid("has no piece for byte " + std::to_string(value));
  }
}

std::vector<uint32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<uint32_t> ids;
  if (text.empty()) return ids;

  std::string spaced(kSpace);
  spaced.reserve(text.size() * 2);
  for (const char c : text) {
    if (c == ' ') {
      spaced += kSpace;
    } else {
      spaced += c;
    }
  }
  const std::string_view input = spaced;

  std::vector<Symbol> symbols;
  symbols.reserve(input.size());
  for (size_t begin = 0; begin < input.size();) {
    const size_t length = std::min(utf8_length(static_cast<uint8_t>(input[begin])), input.size() - begin);
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(length), index - 1, index + 1});
    begin += length;
  }
  symbols.back().next = -1;

  std::priority_queue<Merge, std::vector<Merge>, LowerPriority> merges;
  const auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const Symbol &a = symbols[static_cast<size_t>(left)], &b = symbols[static_cast<size_t>(right)];
    const auto found = by_text_.find(input.substr(a.begin, a.length + b.length));
    if (found != by_text_.end()) merges.push({scores_[found->second], left, right, a.length + b.length});
  };
  for (size_t i = 1; i < symbols.size(); ++i) consider(static_cast<int32_t>(i) - 1, static_cast<int32_t>(i));
  while (!merges.empty()) {
    const Merge merge = merges.top();
    merges.pop();
    Symbol &left = symbols[static_cast<size_t>(merge.left)], &right = symbols[static_cast<size_t>(merge.right)];
    if (left.length == 0 || right.length == 0 || left.length + right.length != merge.length) continue;
    left.length = merge.length;
    right.length = 0;
    left.next = right.next;
    if (right.next >= 0) symbols[static_cast<size_t>(right.next)].previous = merge.left;
    consider(left.previous, merge.left);
    consider(merge.left, left.next);
  }

  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const Symbol& symbol = symbols[static_cast<size_t>(i)];
    const std::string_view part = input.substr(symbol.begin, symbol.length);
    const auto found = by_text_.find(part);
    if (found != by_text_.end()) {
      ids.push_back(found->second);
    } else {
      for (const char byte : part) ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
    }
  }
  return ids;
}

std::string Tokenizer::decode(const uint32_t* ids, size_t count) const {
  Decoder decoder(std::shared_ptr<const Tokenizer>(std::shared_ptr<const Tokenizer>(), this));
  std::string text;
  for (size_t i = 0; i < count; ++i) text += decoder.push(ids[i]);
  return text + decoder.flush();
}

std::string Decoder::push(uint32_t id) {
  if (id >= tokenizer_->size()) return flush();  // a special token: no text, but it ends a run of bytes
  std::string_view piece = tokenizer_->piece(id);
  const PieceType type = tokenizer_->type(id);
  if (type == PieceType::control) return flush();
  const bool first = std::exchange(first_, false);
  if (type == PieceType::byte) {
    unsigned value = 0;
    std::sscanf(std::string(piece).c_str(), "<0x%02X>", &value);
    bytes_ += static_cast<char>(value);
    return take_bytes(false);
  }
  std::string text = flush();
  if (type == PieceType::unknown) return text.append(kUnknownText);
  if (first && piece.starts_with(kSpace)) piece.remove_prefix(kSpace.size());
  for (size_t at = 0; at < piece.size();) {
    const size_t space = std::min(piece.find(kSpace, at), piece.size());
    text += piece.substr(at, space - at);
    if (space < piece.size()) text += ' ';
    at = space + kSpace.size();
  }
  return text;
}

std::string Decoder::flush() { return take_bytes(true); }

std::string Decoder::take_bytes(bool all) {
  std::string text;
  size_t used = 0;
  while (used < bytes_.size()) {
    const std::string_view rest = std::string_view(bytes_).substr(used);
    size_t length = 0;
    const Utf8 kind = first_character(rest, length);
    if (kind == Utf8::incomplete && !all) break;
    text += kind == Utf8::valid ? rest.substr(0, length) : kReplacement;
    used += kind == Utf8::valid ? length : 1;
  }
  bytes_.erase(0, used);
  return text;
}

}  // namespace chatglm
