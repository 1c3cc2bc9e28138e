#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace chatglm {

constexpr char32_t kReplacementCharacter = 0xfffd;

enum class Utf8 { valid, invalid, incomplete };

struct Utf8Character {
  Utf8 kind;
  uint32_t length;  // bytes; 1 unless valid
  char32_t code;    // U+FFFD unless valid
};

/// The character at the beginning of `bytes`, which is not empty. Overlong forms, surrogates and what is beyond
/// U+10FFFF are invalid. Only the beginning of a valid character that `bytes` cuts off is incomplete.
inline Utf8Character first_character(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {Utf8::valid, 1, lead};
  if (lead < 0xc2 || lead > 0xf4) return {Utf8::invalid, 1, kReplacementCharacter};
  const uint32_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  char32_t code = lead & (0x7f >> length);
  for (uint32_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8::incomplete, 1, kReplacementCharacter};
    uint8_t low = 0x80, high = 0xbf;
    if (i == 1) {
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    }
    if (at(i) < low || at(i) > high) return {Utf8::invalid, 1, kReplacementCharacter};
    code = code << 6 | (at(i) & 0x3f);
  }
  return {Utf8::valid, length, code};
}

inline size_t utf8_length(char32_t code) { return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4; }

/// Calls take(byte) for each byte of the character.
template <class Take>
void for_utf8_bytes(char32_t code, const Take& take) {
  const auto byte = [&](char32_t value) { take(static_cast<uint8_t>(value)); };
  if (code < 0x80) return byte(code);
  if (code < 0x800) {
    byte(0xc0 | code >> 6);
  } else {
    if (code < 0x10000) {
      byte(0xe0 | code >> 12);
    } else {
      byte(0xf0 | code >> 18);
      byte(0x80 | (code >> 12 & 0x3f));
    }
    byte(0x80 | (code >> 6 & 0x3f));
  }
  byte(0x80 | (code & 0x3f));
}

}  // namespace chatglm
