#pragma once
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace chatglm::test {

/// The pieces of a tokenizer: <unk>, <s>, </s> and the bytes, as every ChatGLM tokenizer begins, and what add() adds.
struct Vocabulary {
  std::string pieces;
  std::vector<uint32_t> offsets = {0};
  std::vector<float> scores;
  std::vector<uint8_t> types;

  Vocabulary() {
    add("<unk>", 0, PieceType::unknown);
    add("<s>", 0, PieceType::control);
    add("</s>", 0, PieceType::control);
    for (int i = 0; i < 256; ++i) {
      char text[8];
      std::snprintf(text, sizeof text, "<0x%02X>", static_cast<unsigned>(i));
      add(text, 0, PieceType::byte);
    }
  }

  /// Returns the piece's id.
  uint32_t add(const std::string& text, float score, PieceType type = PieceType::normal) {
    pieces += text;
    offsets.push_back(static_cast<uint32_t>(pieces.size()));
    scores.push_back(score);
    types.push_back(static_cast<uint8_t>(type));
    return static_cast<uint32_t>(scores.size()) - 1;
  }

  std::shared_ptr<const Tokenizer> make(bool add_dummy_prefix = true) const {
    return std::make_shared<const Tokenizer>(pieces, offsets, scores, types, add_dummy_prefix);
  }
};

}  // namespace chatglm::test
