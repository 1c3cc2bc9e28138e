#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>

#include "base/error.h"
#include "test/random.h"

namespace chatglm {
namespace {

const std::string kSpace = "\xe2\x96\x81";
const std::string kBad = "\xef\xbf\xbd";

struct Vocabulary {
  std::string pieces;
  std::vector<uint32_t> offsets = {0};
  std::vector<float> scores;
  std::vector<uint8_t> types;

  uint32_t add(const std::string& text, float score, PieceType type = PieceType::normal) {
    pieces += text;
    offsets.push_back(static_cast<uint32_t>(pieces.size()));
    scores.push_back(score);
    types.push_back(static_cast<uint8_t>(type));
    return static_cast<uint32_t>(scores.size()) - 1;
  }
  // <unk>, <s>, </s> and the bytes, as every ChatGLM tokenizer begins.
  Vocabulary() {
    add("<unk>", 0, PieceType::unknown);
    add("<s>", 0, PieceType::control);
    add("</s>", 0, PieceType::control);
    for (int i = 0; i < 256; ++i) {
      char text[8];
      std::snprintf(text, sizeof text, "<0x%02X>", i);
      add(text, 0, PieceType::byte);
    }
  }
  std::shared_ptr<const Tokenizer> make() const {
    return std::make_shared<const Tokenizer>(pieces, offsets, scores, types);
  }
};

uint32_t byte_id(int value) { return static_cast<uint32_t>(value) + 3; }

using Ids = std::vector<uint32_t>;

TEST(Tokenizer, MergesTheBestScoreFirst) {
  Vocabulary v;
  v.add(kSpace, -10);
  v.add("a", -11);
  v.add("b", -12);
  v.add("c", -13);
  const uint32_t ab = v.add("ab", -2), bc = v.add("bc", -1), space_a = v.add(kSpace + "a", -3);
  const auto t = v.make();
  EXPECT_EQ(t->encode("abc"), (Ids{space_a, bc}));  // bc before ab, though ab stands first
  EXPECT_EQ(t->encode("ab"), (Ids{259, ab}));       // ab before _a
  EXPECT_EQ(t->encode(""), (Ids{}));
}

TEST(Tokenizer, OfEqualScoresTheLeftmostMergesFirst) {
  Vocabulary v;
  const uint32_t space = v.add(kSpace, -10), a = v.add("a", -11), aa = v.add("aa", -1);
  const auto t = v.make();
  EXPECT_EQ(t->encode("aaa"), (Ids{space, aa, a}));
  EXPECT_EQ(t->encode("aaaaa"), (Ids{space, aa, aa, a}));
}

TEST(Tokenizer, AMergeMakesOthersPossible) {
  Vocabulary v;
  v.add(kSpace, -10);
  v.add("a", -11);
  v.add("b", -12);
  v.add("aa", -1);
  v.add("ab", -2);
  const uint32_t aab = v.add("aab", -3), all = v.add(kSpace + "aab", -4);
  const auto t = v.make();
  EXPECT_EQ(t->encode("aab"), (Ids{all}));
  EXPECT_EQ(t->encode("aabaab"), (Ids{all, aab}));
}

TEST(Tokenizer, BytesForWhatNoPieceCovers) {
  Vocabulary v;
  const uint32_t space = v.add(kSpace, -10), x = v.add("x", -11);
  const auto t = v.make();
  EXPECT_EQ(t->encode("x\n你"), (Ids{space, x, byte_id('\n'), byte_id(0xe4), byte_id(0xbd), byte_id(0xa0)}));
  EXPECT_EQ(t->encode("  "), (Ids{space, space, space}));
  // Control pieces and bytes as text are text.
  Ids spelled{space};
  for (const char c : std::string("</s>")) spelled.push_back(byte_id(c));
  EXPECT_EQ(t->encode("</s>"), spelled);
  EXPECT_EQ(t->encode("<0x41>").size(), 7u);
  // Not valid, so the caller's mistake; but nothing may be read beyond it.
  EXPECT_EQ(t->encode("\xf0").size(), 2u);
  EXPECT_EQ(t->encode("x\xe4\xbd").size(), 4u);
}

TEST(Tokenizer, RefusesTablesThatDoNotFit) {
  const auto code = [](const Vocabulary& v) {
    try {
      v.make();
    } catch (const Error& error) {
      return error.code;
    }
    return std::string("none");
  };
  EXPECT_EQ(code(Vocabulary()), "none");
  Vocabulary no_type;
  no_type.types.pop_back();
  EXPECT_EQ(code(no_type), "ERR_CHECKPOINT_INVALID");
  Vocabulary backwards;
  std::swap(backwards.offsets[5], backwards.offsets[6]);
  EXPECT_EQ(code(backwards), "ERR_CHECKPOINT_INVALID");
  Vocabulary beyond;
  beyond.offsets.back() += 1;
  EXPECT_EQ(code(beyond), "ERR_CHECKPOINT_INVALID");
  Vocabulary no_byte;
  no_byte.types[77] = static_cast<uint8_t>(PieceType::normal);
  EXPECT_EQ(code(no_byte), "ERR_CHECKPOINT_INVALID");
  Vocabulary bad_byte;
  bad_byte.add("<0xZZ>", 0, PieceType::byte);
  EXPECT_EQ(code(bad_byte), "ERR_CHECKPOINT_INVALID");
}

// Decoding by its rules, on the whole list of ids at once: texts of the pieces with the runs of bytes between them, in
// which every byte that is not part of a valid character becomes U+FFFD.
std::string decode_slowly(const Tokenizer& t, const Ids& ids) {
  const auto characters = [](const std::string& bytes) {
    std::string text;
    for (size_t i = 0; i < bytes.size();) {
      size_t taken = 0;
      for (size_t length = 1; length <= 4 && i + length <= bytes.size() && taken == 0; ++length) {
        const auto at = [&](size_t j) { return static_cast<uint32_t>(static_cast<uint8_t>(bytes[i + j])); };
        bool tails = true;
        for (size_t j = 1; j < length; ++j) tails = tails && at(j) >> 6 == 2;
        uint32_t code = 0, least = 0;
        if (length == 1 && at(0) < 0x80)
          code = at(0);
        else if (length == 2 && at(0) >> 5 == 6 && tails)
          code = (at(0) & 31) << 6 | (at(1) & 63), least = 0x80;
        else if (length == 3 && at(0) >> 4 == 14 && tails)
          code = (at(0) & 15) << 12 | (at(1) & 63) << 6 | (at(2) & 63), least = 0x800;
        else if (length == 4 && at(0) >> 3 == 30 && tails)
          code = (at(0) & 7) << 18 | (at(1) & 63) << 12 | (at(2) & 63) << 6 | (at(3) & 63), least = 0x10000;
        else
          continue;
        if (code >= least && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff)) taken = length;
      }
      text += taken ? bytes.substr(i, taken) : kBad;
      i += taken ? taken : 1;
    }
    return text;
  };
  std::string text, bytes;
  bool first = true;
  for (const uint32_t id : ids) {
    if (id < t.size() && t.type(id) == PieceType::byte) {
      bytes += static_cast<char>(id - 3);
      first = false;
      continue;
    }
    text += characters(bytes);
    bytes.clear();
    if (id >= t.size() || t.type(id) == PieceType::control) continue;
    if (t.type(id) == PieceType::unknown) {
      text += " \xe2\x81\x87 ";
    } else {
      std::string piece(t.piece(id));
      if (first && piece.starts_with(kSpace)) piece = piece.substr(3);
      for (size_t at; (at = piece.find(kSpace)) != std::string::npos;) piece.replace(at, 3, " ");
      text += piece;
    }
    first = false;
  }
  return text + characters(bytes);
}

TEST(Decoder, InvalidBytesAndHeldBackCharacters) {
  Vocabulary v;
  const uint32_t a = v.add(kSpace + "a", -1);
  const auto t = v.make();
  Decoder d(t);
  EXPECT_EQ(d.push(a), "a");
  EXPECT_EQ(d.push(byte_id(0xf0)), "");
  EXPECT_EQ(d.push(byte_id(0x9f)), "");
  EXPECT_EQ(d.push(byte_id(0x98)), "");
  EXPECT_EQ(d.push(byte_id(0x80)), "\xf0\x9f\x98\x80");
  EXPECT_EQ(d.push(byte_id(0xe4)), "");
  EXPECT_EQ(d.push(a), kBad + " a");
  EXPECT_EQ(d.push(byte_id(0xe4)), "");
  EXPECT_EQ(d.push(byte_id(0xbd)), "");
  EXPECT_EQ(d.flush(), kBad + kBad);
  EXPECT_EQ(d.flush(), "");
  EXPECT_EQ(d.push(byte_id(0xc0)), kBad);  // overlong
  EXPECT_EQ(d.push(byte_id(0x80)), kBad);
  EXPECT_EQ(d.push(0), " \xe2\x81\x87 ");
  EXPECT_EQ(d.push(1), "");
  EXPECT_EQ(d.push(9999999), "");
}

TEST(Decoder, TextComesAsWholeCharactersAndAddsUpToTheWhole) {
  Vocabulary v;
  for (const char* piece : {"a", "bc", "\xe4\xbd\xa0", "\n"}) v.add(piece, -1);
  v.add(kSpace, -1);
  v.add(kSpace + kSpace + "x", -1);
  v.add("y" + kSpace, -1);
  v.add(kSpace + "z", -1, PieceType::user_defined);
  const auto t = v.make();
  test::Random random(1);
  const uint8_t leads[] = {0xc3, 0xe4, 0xed, 0xf0, 0xf4, 0x80, 0xa0, 0x9f, 0xbf, 0x41, 0xff, 0xc0, 0xe0, 0x8f, 0x90};
  for (int round = 0; round < 20000; ++round) {
    Ids ids;
    for (int64_t n = random.integer(0, 12); n > 0; --n) {
      if (random.chance(0.6)) {
        ids.push_back(byte_id(leads[random.integer(0, 14)]));
      } else {
        ids.push_back(static_cast<uint32_t>(random.chance(0.2) ? random.integer(0, 2) : random.integer(259, 269)));
      }
    }
    const std::string expected = decode_slowly(*t, ids);
    ASSERT_EQ(t->decode(ids.data(), ids.size()), expected) << round;
    Decoder d(t);
    std::string joined;
    for (const uint32_t id : ids) {
      const std::string text = d.push(id);
      if (!text.empty()) ASSERT_NE(static_cast<uint8_t>(text[0]) >> 6, 2) << "begins inside of a character";
      joined += text;
    }
    ASSERT_EQ(joined + d.flush(), expected) << round;
  }
}

TEST(Tokenizer, WhatIsEncodedDecodesToItself) {
  Vocabulary v;
  for (const char* piece : {"a", "b", "ab", "\xe4\xbd\xa0",
                            "\xe4\xbd\xa0"
                            "a"})
    v.add(piece, -static_cast<float>(v.scores.size()));
  v.add(kSpace, -900);
  v.add(kSpace + "a", -901);
  v.add(kSpace + kSpace, -902);
  const auto t = v.make();
  test::Random random(2);
  const char* parts[] = {"a", "b", " ", "\xe4\xbd\xa0", "\xf0\x9f\x98\x80", "\n", "c"};
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (int64_t n = random.integer(0, 15); n > 0; --n) text += parts[random.integer(0, 6)];
    const Ids ids = t->encode(text);
    ASSERT_EQ(t->decode(ids.data(), ids.size()), text);
    for (const uint32_t id : ids) ASSERT_GE(id, 3u);
  }
}

}  // namespace
}  // namespace chatglm
