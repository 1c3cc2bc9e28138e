#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/bpe.h"

namespace chatglm {

/// SentencePiece's types of pieces (sentencepiece_model.proto, ModelProto.SentencePiece.Type).
enum class PieceType : uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// SentencePiece BPE as the ChatGLM family uses it: identity normalization, spaces written as U+2581, bytes for what no
/// piece covers, and, but for CodeGeeX2, a dummy prefix: a space before every text, which decoding takes away again.
/// ChatGLM's special tokens are not pieces; no text can produce one. All methods are safe to call from any thread.
class Tokenizer {
 public:
  /// No piece has more bytes. SentencePiece's own limit is 16 characters unless a trainer is told otherwise.
  static constexpr size_t kMostPieceBytes = 256;

  /// offsets: (count + 1) into `pieces`; scores, types: (count). Throws ERR_CHECKPOINT_INVALID.
  Tokenizer(std::string pieces, std::vector<uint32_t> offsets, std::vector<float> scores, std::vector<uint8_t> types,
            bool add_dummy_prefix);

  uint32_t size() const { return static_cast<uint32_t>(types_.size()); }
  bool adds_dummy_prefix() const { return add_dummy_prefix_; }
  PieceType type(uint32_t id) const { return static_cast<PieceType>(types_[id]); }
  std::string_view piece(uint32_t id) const {
    return std::string_view(pieces_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
  }
  /// What the piece appends to a text: of a byte piece the byte, of a control piece nothing.
  std::string_view text(uint32_t id) const {
    return std::string_view(texts_).substr(text_offsets_[id], text_offsets_[id + 1] - text_offsets_[id]);
  }

  /// The ids of UTF-16, in time linear in its length. A surrogate without its other half counts as U+FFFD. Throws
  /// ERR_ABORTED soon after `*abort` is true.
  std::vector<uint32_t> encode(std::u16string_view text, const std::atomic<bool>* abort = nullptr) const;
  /// The same of UTF-8. Each byte that is not part of a valid character counts as U+FFFD.
  std::vector<uint32_t> encode(std::string_view text) const;
  /// Ids that have no piece, special tokens among them, have no text.
  std::string decode(const uint32_t* ids, size_t count) const;

 private:
  friend class Decoder;

  std::string pieces_;
  std::vector<uint32_t> offsets_;       // (count + 1)
  std::vector<uint8_t> types_;          // (count)
  std::string texts_;                   // what the pieces are decoded to, spaces as spaces; for a byte piece the byte
  std::vector<uint32_t> text_offsets_;  // (count + 1)
  bool add_dummy_prefix_;
  std::optional<Bpe> bpe_;
  uint32_t byte_ids_[256];
};

/// Decodes ids as they come. Bytes of a character are held back until it is complete, so that each text is whole
/// characters; invalid bytes become U+FFFD, one for each maximal invalid part as SentencePiece does it byte by byte.
class Decoder {
 public:
  explicit Decoder(std::shared_ptr<const Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)), strips_space_(tokenizer_->add_dummy_prefix_) {}

  /// Appends the text that is complete with this id.
  void push(uint32_t id, std::string& text);
  std::string push(uint32_t id) {
    std::string text;
    push(id, text);
    return text;
  }
  std::string flush() {
    std::string text;
    take_bytes(true, text);
    return text;
  }

 private:
  friend class Tokenizer;
  void take_bytes(bool all, std::string& text);

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string bytes_;  // of a character that is not complete, or to be taken
  bool strips_space_;  // no piece yet: a space at its beginning is the dummy prefix
};

}  // namespace chatglm
