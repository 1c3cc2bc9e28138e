#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace chatglm {

/// SentencePiece's types of pieces (sentencepiece_model.proto, ModelProto.SentencePiece.Type).
enum class PieceType : uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// SentencePiece BPE as ChatGLM2 and ChatGLM3 use it: identity normalization, a dummy prefix, spaces written as U+2581,
/// bytes for what no piece covers. ChatGLM's special tokens are not pieces; no text can produce one.
class Tokenizer {
 public:
  /// offsets: (count + 1) into `pieces`; scores, types: (count).
  Tokenizer(std::string pieces, std::vector<uint32_t> offsets, std::vector<float> scores, std::vector<uint8_t> types);

  uint32_t size() const { return static_cast<uint32_t>(scores_.size()); }
  PieceType type(uint32_t id) const { return static_cast<PieceType>(types_[id]); }
  std::string_view piece(uint32_t id) const {
    return std::string_view(pieces_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
  }

  /// `text` is valid UTF-8.
  std::vector<uint32_t> encode(std::string_view text) const;
  std::string decode(const uint32_t* ids, size_t count) const;

 private:
  std::string pieces_;
  std::vector<uint32_t> offsets_;
  std::vector<float> scores_;
  std::vector<uint8_t> types_;
  std::unordered_map<std::string_view, uint32_t> by_text_;  // normal pieces only; views into pieces_
  uint32_t byte_ids_[256];
};

/// Decodes ids as they come. Bytes of a character are held back until it is complete, so that each text is whole
/// characters; invalid bytes become U+FFFD, one for each maximal invalid part as SentencePiece does it byte by byte.
class Decoder {
 public:
  explicit Decoder(std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {}

  std::string push(uint32_t id);
  std::string flush();

 private:
  std::string take_bytes(bool all);

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string bytes_;
  bool first_ = true;  // no piece yet: a leading space is the dummy prefix
};

}  // namespace chatglm
