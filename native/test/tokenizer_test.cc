#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <limits>
#include <map>
#include <memory>

#include "base/error.h"
#include "test/random.h"
#include "test/vocabulary.h"

namespace chatglm {
namespace {

const std::string kSpace = "\xe2\x96\x81";
const std::string kBad = "\xef\xbf\xbd";

using test::Vocabulary;

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
}

TEST(Tokenizer, WhatIsNotValidIsAReplacementCharacter) {
  Vocabulary v;
  const uint32_t space = v.add(kSpace, -10), x = v.add("x", -11), bad = v.add(kBad, -12), emoji = v.add("😀", -13);
  const auto t = v.make();
  EXPECT_EQ(t->encode("\xf0"), (Ids{space, bad}));
  EXPECT_EQ(t->encode("x\xe4\xbd"), (Ids{space, x, bad, bad}));
  EXPECT_EQ(t->encode("\xed\xa0\x80x"), (Ids{space, bad, bad, bad, x}));  // a surrogate in UTF-8
  const std::u16string lone = {0xd83d, 'x', 0xde00, 0xde00, 0xd83d, 0xd83d, 0xde00, 0xd83d};
  EXPECT_EQ(t->encode(lone), (Ids{space, bad, x, bad, bad, bad, emoji, bad}));
  EXPECT_EQ(t->encode(std::u16string_view(u"\0x\0", 3)), (Ids{space, byte_id(0), x, byte_id(0)}));
}

TEST(Tokenizer, WithoutADummyPrefixTextIsEncodedAndDecodedAsItStands) {
  Vocabulary v;
  const uint32_t space = v.add(kSpace, -10), a = v.add("a", -11), space_a = v.add(kSpace + "a", -1);
  const auto with = v.make(true), without = v.make(false);
  EXPECT_EQ(with->encode("a"), (Ids{space_a}));
  EXPECT_EQ(without->encode("a"), (Ids{a}));
  EXPECT_EQ(without->encode(" a"), (Ids{space_a}));
  EXPECT_EQ(without->encode(" "), (Ids{space}));
  EXPECT_EQ(without->encode(""), (Ids{}));
  const Ids ids = {space_a, space_a};
  EXPECT_EQ(with->decode(ids.data(), ids.size()), "a a");
  EXPECT_EQ(without->decode(ids.data(), ids.size()), " a a");
  Decoder decoder(without);
  EXPECT_EQ(decoder.push(space_a), " a");
}

// Merges the best pair until there is none, as SentencePiece's definition says: quadratic, and without a queue.
Ids encode_slowly(const Vocabulary& v, const std::string& text, bool add_dummy_prefix) {
  std::vector<std::string> symbols;
  if (add_dummy_prefix && !text.empty()) symbols.push_back(kSpace);
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<uint8_t>(text[i]);
    const size_t length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    symbols.push_back(text[i] == ' ' ? kSpace : text.substr(i, length));
    i += length;
  }
  std::map<std::string, uint32_t> ids;
  for (uint32_t id = 259; id < v.scores.size(); ++id) {
    ids.emplace(v.pieces.substr(v.offsets[id], v.offsets[id + 1] - v.offsets[id]), id);
  }
  for (;;) {
    size_t best = symbols.size();
    float score = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = ids.find(symbols[i] + symbols[i + 1]);
      if (found == ids.end() || (best < symbols.size() && v.scores[found->second] <= score)) continue;
      best = i;
      score = v.scores[found->second];
    }
    if (best == symbols.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
  Ids result;
  for (const std::string& symbol : symbols) {
    if (const auto found = ids.find(symbol); found != ids.end()) {
      result.push_back(found->second);
    } else {
      for (const char byte : symbol) result.push_back(byte_id(static_cast<uint8_t>(byte)));
    }
  }
  return result;
}

TEST(Tokenizer, EncodesAsTheDefinitionSaysWhateverTheVocabulary) {
  test::Random random(3);
  const std::string letters[] = {"a", "b", "c", kSpace, "你", "😀"};
  for (int vocabulary = 0; vocabulary < 400; ++vocabulary) {
    Vocabulary v;
    const int64_t kinds = random.integer(1, 6);
    // Few scores make ties; pieces without parts that merge cannot come about.
    const bool ties = random.chance(0.5);
    for (int64_t pieces = random.integer(0, 60); pieces > 0; --pieces) {
      std::string text;
      for (int64_t n = random.integer(1, random.chance(0.7) ? 3 : 9); n > 0; --n) {
        text += letters[random.integer(0, kinds - 1)];
      }
      v.add(text, static_cast<float>(random.integer(-(ties ? 3 : 1000), 0)));
    }
    const bool prefix = random.chance(0.5);
    const auto t = v.make(prefix);
    for (int round = 0; round < 60; ++round) {
      std::string text;
      for (int64_t n = random.integer(0, 40); n > 0; --n) {
        const int64_t letter = random.integer(0, 6);
        text += letter == 6 ? "z" : letters[letter] == kSpace ? " " : letters[letter];
      }
      ASSERT_EQ(t->encode(text), encode_slowly(v, text, prefix)) << vocabulary << ' ' << text;
    }
  }
}

// Of a chain of pieces, each better than the one before, the last characters decide how all are paired: the search goes
// back through all of it.
TEST(Tokenizer, GoesBackAsFarAsATextDemands) {
  Vocabulary v;
  std::string text, even;
  const auto letter = [](int i) {
    return std::string{static_cast<char>(0xe4 + i / 4096), static_cast<char>(0x80 | (i / 64 & 63)),
                       static_cast<char>(0x80 | (i & 63))};
  };
  constexpr int kLetters = 3001;
  for (int i = 0; i + 1 < kLetters; ++i) v.add(letter(i) + letter(i + 1), static_cast<float>(i));
  for (int i = 0; i < kLetters; ++i) text += letter(i);
  const auto t = v.make(false);
  const Ids ids = t->encode(text);
  ASSERT_EQ(ids.size(), 3u + (kLetters - 1) / 2);  // the bytes of the first letter, then pairs
  EXPECT_EQ(ids[3], 259u + 1);
  EXPECT_EQ(t->decode(ids.data(), ids.size()), text);
}

TEST(Tokenizer, EncodingEndsSoonWhenItIsAborted) {
  Vocabulary v;
  v.add("a", -1);
  const auto t = v.make();
  const std::atomic<bool> abort{true};
  try {
    t->encode(std::u16string(100'000, 'a'), &abort);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, "ERR_ABORTED");
  }
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
  Vocabulary no_number;
  no_number.add("a", std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(code(no_number), "ERR_CHECKPOINT_INVALID");
  Vocabulary longest, too_long;
  longest.add(std::string(Tokenizer::kMostPieceBytes, 'a'), 0);
  EXPECT_EQ(code(longest), "none");
  too_long.add(std::string(Tokenizer::kMostPieceBytes + 1, 'a'), 0);
  EXPECT_EQ(code(too_long), "ERR_CHECKPOINT_INVALID");
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
