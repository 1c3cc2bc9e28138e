#include "text/tokenizer.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "text/utf8.h"

namespace chatglm {

namespace {

constexpr char32_t kSpaceCharacter = 0x2581;
constexpr std::string_view kSpace = "\xe2\x96\x81";
constexpr std::string_view kReplacement = "\xef\xbf\xbd";
constexpr std::string_view kUnknownText = " \xe2\x81\x87 ";  // what SentencePiece writes for <unk>

Error invalid(const std::string& what) { return Error("ERR_CHECKPOINT_INVALID", "the tokenizer " + what); }

// The value of a byte piece, <0xNN>.
uint8_t byte_value(std::string_view piece) {
  unsigned value = 256;
  if (piece.size() == 6 && piece.starts_with("<0x") && piece.back() == '>') {
    const char *begin = piece.data() + 3, *end = begin + 2;
    if (std::from_chars(begin, end, value, 16).ptr != end) value = 256;
  }
  if (value > 255) throw invalid("has a byte piece that is not written <0xNN>: " + std::string(piece));
  return static_cast<uint8_t>(value);
}

// The characters of a piece, of which no text has one that is not valid UTF-8: then it has none here.
std::u32string characters_of(std::string_view piece) {
  std::u32string characters;
  while (!piece.empty()) {
    const Utf8Character character = first_character(piece);
    if (character.kind != Utf8::valid) return {};
    characters += character.code;
    piece.remove_prefix(character.length);
  }
  return characters;
}

}  // namespace

Tokenizer::Tokenizer(std::string pieces, std::vector<uint32_t> offsets, std::vector<float> scores,
                     std::vector<uint8_t> types, bool add_dummy_prefix)
    : pieces_(std::move(pieces)),
      offsets_(std::move(offsets)),
      types_(std::move(types)),
      add_dummy_prefix_(add_dummy_prefix) {
  if (scores.empty() || offsets_.size() != scores.size() + 1 || types_.size() != scores.size()) {
    throw invalid("has arrays of different lengths");
  }
  if (offsets_.front() != 0 || offsets_.back() != pieces_.size()) throw invalid("has wrong offsets");
  for (uint32_t id = 0; id < size(); ++id) {
    if (offsets_[id] > offsets_[id + 1]) throw invalid("has wrong offsets");
  }
  std::vector<bool> seen(256, false);
  std::vector<Bpe::Piece> normal;
  normal.reserve(size());
  texts_.reserve(pieces_.size());
  text_offsets_.reserve(size() + 1);
  for (uint32_t id = 0; id < size(); ++id) {
    text_offsets_.push_back(static_cast<uint32_t>(texts_.size()));
    const std::string_view text = piece(id);
    if (text.size() > kMostPieceBytes) {
      throw invalid("has a piece of " + std::to_string(text.size()) + " bytes; " + std::to_string(kMostPieceBytes) +
                    " are the most");
    }
    switch (type(id)) {
      case PieceType::control: continue;
      case PieceType::unknown: texts_ += kUnknownText; continue;
      case PieceType::byte: {
        const uint8_t value = byte_value(text);
        seen[value] = true;
        byte_ids_[value] = id;
        texts_ += static_cast<char>(value);
        continue;
      }
      default: break;
    }
    for (size_t at = 0; at < text.size();) {
      const size_t space = std::min(text.find(kSpace, at), text.size());
      texts_ += text.substr(at, space - at);
      if (space < text.size()) texts_ += ' ';
      at = space + kSpace.size();
    }
    if (type(id) != PieceType::normal) continue;
    if (!std::isfinite(scores[id])) throw invalid("has a score that is not finite");
    std::u32string characters = characters_of(text);
    if (!characters.empty()) normal.push_back({std::move(characters), scores[id], id});
  }
  text_offsets_.push_back(static_cast<uint32_t>(texts_.size()));
  for (int value = 0; value < 256; ++value) {
    if (!seen[static_cast<size_t>(value)]) throw invalid("has no piece for byte " + std::to_string(value));
  }
  bpe_.emplace(normal, kSpaceCharacter);
}

std::vector<uint32_t> Tokenizer::encode(std::u16string_view text, const std::atomic<bool>* abort) const {
  if (text.empty()) return {};
  std::vector<uint32_t> ids = bpe_->encode(text, add_dummy_prefix_, abort);
  const size_t tokens = ids.size();
  size_t count = 0;
  for (const Bpe::Node token : ids) {
    count += bpe_->id_of(token) != Bpe::kNone ? 1 : utf8_length(bpe_->code_of(token));
  }
  // From the last one on, so that none is overwritten before it was looked at.
  ids.resize(count);
  size_t at = count;
  for (size_t i = tokens; i-- > 0;) {
    const Bpe::Node token = ids[i];
    if (const uint32_t id = bpe_->id_of(token); id != Bpe::kNone) {
      ids[--at] = id;
      continue;
    }
    const char32_t code = bpe_->code_of(token);
    at -= utf8_length(code);
    size_t byte_at = at;
    for_utf8_bytes(code, [&](uint8_t byte) { ids[byte_at++] = byte_ids_[byte]; });
  }
  return ids;
}

std::vector<uint32_t> Tokenizer::encode(std::string_view text) const {
  std::u16string utf16;
  utf16.reserve(text.size());
  while (!text.empty()) {
    const Utf8Character character = first_character(text);
    text.remove_prefix(character.length);
    if (character.code < 0x10000) {
      utf16 += static_cast<char16_t>(character.code);
    } else {
      utf16 += static_cast<char16_t>(0xd7c0 + (character.code >> 10));
      utf16 += static_cast<char16_t>(0xdc00 | (character.code & 0x3ff));
    }
  }
  return encode(utf16);
}

std::string Tokenizer::decode(const uint32_t* ids, size_t count) const {
  Decoder decoder(std::shared_ptr<const Tokenizer>(std::shared_ptr<const Tokenizer>(), this));
  std::string text;
  for (size_t i = 0; i < count; ++i) decoder.push(ids[i], text);
  decoder.take_bytes(true, text);
  return text;
}

void Decoder::push(uint32_t id, std::string& text) {
  const Tokenizer& t = *tokenizer_;
  // A special token has no text, but it ends a run of bytes.
  const PieceType type = id < t.size() ? t.type(id) : PieceType::control;
  if (type == PieceType::control) return take_bytes(true, text);
  std::string_view piece = t.text(id);
  const bool first = std::exchange(strips_space_, false);
  if (type == PieceType::byte) {
    if (bytes_.empty() && static_cast<uint8_t>(piece[0]) < 0x80) {
      text += piece[0];
    } else {
      bytes_ += piece[0];
      take_bytes(false, text);
    }
    return;
  }
  if (!bytes_.empty()) take_bytes(true, text);
  if (first && type != PieceType::unknown && t.piece(id).starts_with(kSpace)) piece.remove_prefix(1);
  text += piece;
}

void Decoder::take_bytes(bool all, std::string& text) {
  size_t used = 0;
  while (used < bytes_.size()) {
    const std::string_view rest = std::string_view(bytes_).substr(used);
    const Utf8Character character = first_character(rest);
    if (character.kind == Utf8::incomplete && !all) break;
    text += character.kind == Utf8::valid ? rest.substr(0, character.length) : kReplacement;
    used += character.length;
  }
  bytes_.erase(0, used);
}

}  // namespace chatglm
