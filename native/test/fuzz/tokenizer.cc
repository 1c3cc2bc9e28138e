// Vocabularies and texts out of the fuzzer's bytes. Checked: ids are those of the definition of BPE, done slowly; UTF-8
// and UTF-16 give the same; what is encoded decodes to the text; a stream of ids decodes to what all of them do.
#include "text/tokenizer.h"

#include <fuzzer/FuzzedDataProvider.h>

#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "test/fuzz/expect.h"
#include "test/vocabulary.h"
#include "text/utf8.h"

namespace chatglm {
namespace {

constexpr char32_t kSpace = 0x2581;
constexpr size_t kMostPieces = 48, kMostCharacters = 96, kMostIds = 64;

// The letters of a run are the first of these: few, so that pieces occur in texts and overlap. Among them are
// characters of each length in UTF-8 and what is special to the tokenizer.
constexpr char32_t kLetters[] = {'a', 'b',    ' ',    'c',    0x4f60, 'd',     0x1f600, '\n',
                                 0,   kSpace, 0x00e9, 0xfffd, '<',    0x1f601, 'z',     0x10ffff};

struct Letters {
  FuzzedDataProvider& input;
  size_t count;
  char32_t next() const {
    const auto kind = input.ConsumeIntegral<uint8_t>();
    if (kind < 250) return kLetters[kind % count];
    const auto code = input.ConsumeIntegralInRange<uint32_t>(0, 0x10ffff);
    return code >= 0xd800 && code < 0xe000 ? kReplacementCharacter : code;
  }
};

std::string utf8_of(const std::u32string& text) {
  std::string bytes;
  for (const char32_t code : text) for_utf8_bytes(code, [&](uint8_t byte) { bytes += static_cast<char>(byte); });
  return bytes;
}

using test::Vocabulary;

Vocabulary vocabulary_of(FuzzedDataProvider& input, const Letters& letters) {
  static const Vocabulary first;
  Vocabulary v = first;
  const bool ties = input.ConsumeBool(), others = input.ConsumeIntegral<uint8_t>() == 0;
  for (size_t n = input.ConsumeIntegralInRange<size_t>(0, kMostPieces); n > 0; --n) {
    std::u32string text;
    for (size_t m = input.ConsumeIntegralInRange<size_t>(others ? 0 : 1, 9); m > 0; --m) text += letters.next();
    const auto score = input.ConsumeIntegral<int8_t>();
    auto type = PieceType::normal;
    if (others) type = static_cast<PieceType>(input.ConsumeIntegral<uint8_t>());
    std::string bytes = utf8_of(text);
    if (others && input.ConsumeBool()) bytes = input.ConsumeRandomLengthString(300);
    v.add(bytes, static_cast<float>(ties ? score % 3 : score), type);
  }
  return v;
}

// What a text is once surrogates without their other half are U+FFFD.
std::u32string characters_of(const std::u16string& text) {
  std::u32string characters;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool high = text[i] >= 0xd800 && text[i] < 0xdc00, low = text[i] >= 0xdc00 && text[i] < 0xe000;
    if (high && i + 1 < text.size() && text[i + 1] >= 0xdc00 && text[i + 1] < 0xe000) {
      characters += 0x10000 + ((text[i] - 0xd800u) << 10) + (text[i + 1] - 0xdc00u);
      ++i;
    } else {
      characters += high || low ? kReplacementCharacter : text[i];
    }
  }
  return characters;
}

std::u16string utf16_of(FuzzedDataProvider& input, const Letters& letters) {
  std::u16string text;
  const bool any_units = input.ConsumeIntegral<uint8_t>() > 240;
  for (size_t n = input.ConsumeIntegralInRange<size_t>(0, kMostCharacters); n > 0; --n) {
    if (any_units) {
      text += static_cast<char16_t>(input.ConsumeIntegral<uint16_t>());
      continue;
    }
    const char32_t code = letters.next();
    if (code < 0x10000) {
      text += static_cast<char16_t>(code);
    } else {
      text += static_cast<char16_t>(0xd800 + ((code - 0x10000) >> 10));
      text += static_cast<char16_t>(0xdc00 + ((code - 0x10000) & 0x3ff));
    }
  }
  return text;
}

std::vector<uint32_t> encode_slowly(const Tokenizer& t, const std::vector<float>& scores, const std::u32string& text) {
  std::map<std::string, uint32_t> ids;
  for (uint32_t id = 0; id < t.size(); ++id) {
    if (t.type(id) == PieceType::normal) ids.emplace(t.piece(id), id);
  }
  std::vector<std::string> symbols;
  if (t.adds_dummy_prefix() && !text.empty()) symbols.push_back(utf8_of({kSpace}));
  for (const char32_t code : text) symbols.push_back(utf8_of({code == ' ' ? kSpace : code}));
  for (;;) {
    size_t best = symbols.size();
    float score = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = ids.find(symbols[i] + symbols[i + 1]);
      if (found == ids.end() || (best < symbols.size() && scores[found->second] <= score)) continue;
      best = i;
      score = scores[found->second];
    }
    if (best == symbols.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
  uint32_t byte_ids[256];  // the last piece of a byte counts
  for (uint32_t id = 0; id < t.size(); ++id) {
    if (t.type(id) != PieceType::byte) continue;
    byte_ids[std::strtoul(std::string(t.piece(id).substr(3, 2)).c_str(), nullptr, 16)] = id;
  }
  std::vector<uint32_t> result;
  for (const std::string& symbol : symbols) {
    if (const auto found = ids.find(symbol); found != ids.end()) {
      result.push_back(found->second);
      continue;
    }
    for (const char byte : symbol) result.push_back(byte_ids[static_cast<uint8_t>(byte)]);
  }
  return result;
}

// Spaces however they are written.
std::string plain(std::string text) {
  const std::string space = utf8_of({kSpace});
  for (size_t at = 0; (at = text.find(space, at)) != std::string::npos;) text.replace(at, space.size(), " ");
  return text;
}

std::string decode_as_stream(const std::shared_ptr<const Tokenizer>& t, const std::vector<uint32_t>& ids) {
  Decoder decoder(t);
  std::string text;
  for (const uint32_t id : ids) text += decoder.push(id);
  text += decoder.flush();
  EXPECT(decoder.flush().empty());
  return text;
}

void run(FuzzedDataProvider& input) {
  const bool prefix = input.ConsumeBool();
  const Letters letters{input, input.ConsumeIntegralInRange<size_t>(2, std::size(kLetters))};
  Vocabulary v = vocabulary_of(input, letters);
  if (input.ConsumeIntegral<uint8_t>() == 0) v.offsets[input.ConsumeIntegralInRange<size_t>(0, v.types.size())] ^= 1;
  const std::u16string text = utf16_of(input, letters);
  const auto t = std::make_shared<const Tokenizer>(v.pieces, v.offsets, v.scores, v.types, prefix);

  const std::vector<uint32_t> ids = t->encode(text);
  const std::u32string characters = characters_of(text);
  for (const uint32_t id : ids) {
    EXPECT(id < t->size());
    EXPECT(t->type(id) == PieceType::normal || t->type(id) == PieceType::byte);
  }
  EXPECT(ids == encode_slowly(*t, v.scores, characters));
  EXPECT(ids == t->encode(utf8_of(characters)));
  std::string whole = utf8_of((prefix && !text.empty() ? U" " : U"") + characters);
  // The prefix is taken away from a piece, and stays where the vocabulary has none for it.
  if (prefix && !ids.empty() && t->type(ids[0]) == PieceType::normal) whole.erase(0, 1);
  EXPECT(plain(t->decode(ids.data(), ids.size())) == plain(whole));
  EXPECT(decode_as_stream(t, ids) == t->decode(ids.data(), ids.size()));

  std::vector<uint32_t> any;
  for (size_t n = input.ConsumeIntegralInRange<size_t>(0, kMostIds); n > 0; --n) {
    const bool beyond = input.ConsumeIntegral<uint8_t>() == 0;
    any.push_back(beyond ? input.ConsumeIntegral<uint32_t>() : input.ConsumeIntegralInRange<uint32_t>(0, t->size()));
  }
  EXPECT(decode_as_stream(t, any) == t->decode(any.data(), any.size()));
  t->encode(input.ConsumeRemainingBytesAsString());  // bytes that are no UTF-8
}

}  // namespace
}  // namespace chatglm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider input(data, size);
  try {
    chatglm::run(input);
  } catch (const chatglm::Error& error) {
    EXPECT(error.code == "ERR_CHECKPOINT_INVALID");
  }
  return 0;
}
