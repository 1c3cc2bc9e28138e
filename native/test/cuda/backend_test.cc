// The numbers of the CUDA backend: against the CPU backend with the same weights in f32, which is exact to 1e-4
// (forward_test.cc), and against itself in every way in which a prompt can be cut, batched and computed again.
#include "test/cuda/backend_model.h"

namespace chatglm::test {
namespace {

// --- Every shape and type.

struct Case {
  const char* name;
  ModelShape shape;
  DataType type;
  int32_t tokens = 1000;  // of the longest prompt
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

// Six heads in all, where three of 16 would not fill a block of 32.
ModelShape six_heads(int32_t groups, int32_t head_size, int32_t hidden_size, int32_t ffn_size) {
  ModelShape shape = small_shape(groups, head_size, hidden_size, ffn_size);
  shape.heads = 6;
  return shape;
}
ModelShape wide(int32_t hidden_size, int32_t heads, int32_t groups, int32_t head_size, int32_t ffn_size) {
  ModelShape shape = small_shape(groups, head_size, hidden_size, ffn_size);
  shape.heads = heads;
  shape.layers = 1;
  return shape;
}
ModelShape changed(ModelShape shape, const std::function<void(ModelShape&)>& change) {
  change(shape);
  return shape;
}

const Case kCases[] = {
    {"F32", small_shape(2, 32, 96, 1056), DataType::f32},
    {"F16", small_shape(2, 32, 96, 1056), DataType::f16},
    {"BF16", small_shape(2, 32, 96, 1056), DataType::bf16},
    {"Q8", small_shape(2, 32, 96, 1056), DataType::q8_0},
    {"Q4", small_shape(2, 32, 96, 1056), DataType::q4_0},
    {"OneGroupOf16", six_heads(1, 16, 64, 544), DataType::q4_0},
    {"OneGroupOf32", small_shape(1, 32, 64, 1056), DataType::q8_0},
    {"OneGroupOf128", small_shape(1, 128, 96, 544), DataType::f16},
    {"TwoGroupsOf16", small_shape(2, 16, 64, 544), DataType::q8_0},
    {"TwoGroupsOf128", small_shape(2, 128, 96, 1056), DataType::q4_0},
    {"ThreeGroupsOf16", six_heads(3, 16, 96, 544), DataType::f32},
    {"ThreeGroupsOf32", small_shape(3, 32, 64, 544), DataType::q4_0},
    {"ThreeGroupsOf128", small_shape(3, 128, 64, 1056), DataType::bf16},
    {"ScaledPositions",
     changed(small_shape(2, 32, 96, 544),
             [](ModelShape& s) {
               s.rope_scale = 4;
               s.rope_dimension = 32;
             }),
     DataType::f16},
    {"AnotherBase", changed(small_shape(1, 128, 96, 544), [](ModelShape& s) { s.rope_base = 5e5f; }), DataType::q4_0},
    {"NothingRotated", changed(small_shape(1, 32, 64, 544), [](ModelShape& s) { s.rope_dimension = 0; }),
     DataType::f16},
    {"FewTokens", changed(small_shape(1, 32, 64, 544), [](ModelShape& s) { s.vocabulary = 50; }), DataType::q8_0},
    {"OddVocabulary", changed(small_shape(1, 32, 64, 544), [](ModelShape& s) { s.vocabulary = 1027; }), DataType::q4_0,
     300},
    {"HeadsOfTheRealModel", wide(64, 32, 2, 128, 544), DataType::f16},
    {"ManyHeadsInOneGroup", wide(64, 32, 1, 32, 544), DataType::q8_0},
    {"HiddenOfTheRealModelQ4", wide(4096, 32, 2, 128, 1056), DataType::q4_0, 300},
    {"HiddenOfTheRealModelF16", wide(4096, 32, 2, 128, 544), DataType::f16, 300},
    {"LongFfnQ4", wide(96, 3, 1, 32, 13696), DataType::q4_0, 300},
    {"LongFfnQ8", wide(64, 6, 2, 32, 13696), DataType::q8_0, 300},
    {"LongFfnF16", wide(96, 3, 1, 128, 13696), DataType::f16, 300},
};

class CudaModelTest : public CudaTest, public testing::WithParamInterface<Case> {};
INSTANTIATE_TEST_SUITE_P(Models, CudaModelTest, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

constexpr int32_t kLengths[] = {1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200, 257, 1000};

TEST_P(CudaModelTest, EqualsTheCpuHoweverAPromptIsCut) {
  const auto& [name, shape, type, most] = GetParam();
  const ModelSource source = random_model(shape, type, 100 + static_cast<uint64_t>(type));
  const int32_t vocabulary = shape.vocabulary, page_count = 2 * ((most + kPageTokens - 1) / kPageTokens);
  const Tokens prompt = random_tokens(most, 1, vocabulary);
  const Pages pages = shuffled_pages(page_count, 2);
  Model exact = Model::exact(source, page_count);
  const Rows expected = exact.logits(prompt, pages, 0);
  Model model(source, options_of(page_count, 2, most));

  for (const int32_t length : kLengths) {
    if (length > most) continue;
    const Tokens tokens(prompt.begin(), prompt.begin() + length);
    const int32_t from = std::max(0, length - model.backend->max_batch_logits());
    expect_close(model.logits(tokens, pages, from), expected, vocabulary, from, std::to_string(length) + " at once");
    const Pages others = shuffled_pages(page_count, static_cast<uint64_t>(length));
    expect_close(model.logits(tokens, others, length - 1), expected, vocabulary, length - 1,
                 std::to_string(length) + " in other pages");
  }
  expect_close(model.logits(prompt, pages, 0), expected, vocabulary, 0, "all rows");
  for (const int32_t piece : {1, 3, 8, 50, 64, 100}) {
    const int32_t length = std::min(most, piece == 1 ? 200 : 300);
    const Tokens tokens(prompt.begin(), prompt.begin() + length);
    expect_close(model.logits(tokens, pages, 0, piece), expected, vocabulary, 0,
                 "in pieces of " + std::to_string(piece));
  }
}

TEST_P(CudaModelTest, EqualsTheCpuInMixedBatches) {
  const auto& [name, shape, type, most] = GetParam();
  const ModelSource source = random_model(shape, type, 200 + static_cast<uint64_t>(type));
  constexpr int32_t kPages = 40;
  Model exact = Model::exact(source, kPages);
  Model model(source, options_of(kPages, 12, 320));
  std::vector<Sequence> sequences =
      make_sequences({1, 2, 5, 17, 64, 65, 90, 128, 129, 200, 257, 300}, kPages, 300, shape.vocabulary, &exact);
  run_in_batches(model, sequences, 5, nullptr);

  // And the last token of each once more, in batches of these alone.
  for (const size_t count : {sequences.size(), size_t{9}, size_t{8}, size_t{5}, size_t{1}}) {
    std::vector<Segment> batch;
    for (size_t i = 0; i < count; ++i) {
      const Sequence& s = sequences[sequences.size() - 1 - i];
      batch.push_back({{&s.tokens.back(), 1}, s.done - 1, s.pages, 1});
    }
    const Rows rows = decode_rows(model, batch);
    const std::vector<TopLogits> tops = decode_tops(model, batch);
    for (size_t i = 0; i < count; ++i) {
      const Sequence& s = sequences[sequences.size() - 1 - i];
      const std::string how = std::to_string(count) + " tokens, number " + std::to_string(i);
      const auto row = row_of(rows, shape.vocabulary, static_cast<int64_t>(i));
      EXPECT_LT(row_error(row, row_of(s.expected, shape.vocabulary, s.done - 1)), kRowFactor * kBar) << how;
      expect_top_is(tops[i], row, how);
    }
  }
}

TEST_P(CudaModelTest, TheSameCallsGiveTheSameBits) {
  const auto& [name, shape, type, most] = GetParam();
  const ModelSource source = random_model(shape, type, 400);
  constexpr int32_t kPages = 24;
  Record records[2];
  for (Record& record : records) {
    Model model(source, options_of(kPages, 8, 320));
    std::vector<Sequence> sequences =
        make_sequences({3, 30, 64, 70, 129, 200, 300}, kPages, 500, shape.vocabulary, nullptr);
    run_in_batches(model, sequences, 6, &record);
    std::vector<Segment> batch;
    for (const Sequence& s : sequences) batch.push_back({{&s.tokens.back(), 1}, s.done - 1, s.pages, 1});
    const Rows rows = decode_rows(model, batch);
    EXPECT_EQ(std::memcmp(rows.data(), decode_rows(model, batch).data(), rows.size() * sizeof(float)), 0);
    record.add(rows);
    for (const TopLogits& top : decode_tops(model, batch)) record.add(top);
  }
  EXPECT_FALSE(records[0].bytes.empty());
  EXPECT_TRUE(records[0].bytes == records[1].bytes);
}

TEST_P(CudaModelTest, KeysAndValuesInQ8) {
  const auto& [name, shape, type, most] = GetParam();
  const ModelSource source = random_model(shape, type, 600);
  constexpr int32_t kPages = 10;
  const int32_t length = 300;
  const Tokens prompt = random_tokens(length, 7, shape.vocabulary);
  const Pages pages = shuffled_pages(kPages, 8);
  Model exact = Model::exact(source, kPages);
  const Rows expected = exact.logits(prompt, pages, 0);
  Model model(source, options_of(kPages, 1, length, true));
  expect_close(model.logits(prompt, pages, length - 60), expected, shape.vocabulary, length - 60, "at once", kQ8Bar);
  expect_close(model.logits(prompt, pages, 0, 70), expected, shape.vocabulary, 0, "in pieces", kQ8Bar);
  expect_close(model.logits(prompt, pages, 150, 1, 150), expected, shape.vocabulary, 150, "by token", kQ8Bar);
  const uint64_t numbers = uint64_t{2} * static_cast<uint64_t>(shape.layers * shape.kv_groups * kPages * kPageTokens) *
                           static_cast<uint64_t>(cuda::padded_head_size(shape.head_size));
  EXPECT_EQ(model.backend->info().kv_bytes, numbers / 32 * 34);
}

// --- One model: sizes of batches, long contexts, pages, NaN.

TEST_F(CudaBackendTest, BatchesOfEverySizeUpTo300) {
  constexpr int32_t kSequences = 300;
  Model exact = Model::exact(source_, kSequences);
  Model model(source_, options_of(kSequences, kSequences, kPageTokens));
  ASSERT_EQ(model.backend->max_top(), TopLogits::kMost);
  ASSERT_GE(model.backend->max_batch_tokens(), kSequences);
  Random random(10);
  std::vector<int32_t> lengths;
  for (int i = 0; i < kSequences; ++i) lengths.push_back(static_cast<int32_t>(random.integer(1, 30)));
  const std::vector<Sequence> sequences = make_sequences(lengths, kSequences, 11, shape_.vocabulary, &exact);
  // All but the last tokens, without logits.
  std::vector<Segment> batch;
  int32_t tokens = 0;
  for (const Sequence& s : sequences) {
    const auto count = static_cast<int32_t>(s.tokens.size()) - 1;
    if (tokens + count > model.backend->max_batch_tokens()) {
      ASSERT_TRUE(model.backend->forward(batch, nullptr, nullptr, kNever));
      batch.clear();
      tokens = 0;
    }
    if (count > 0) batch.push_back({{s.tokens.data(), static_cast<size_t>(count)}, 0, s.pages});
    tokens += count;
  }
  if (!batch.empty()) ASSERT_TRUE(model.backend->forward(batch, nullptr, nullptr, kNever));

  for (const int32_t count :
       {300, 257, 256, 255, 200, 129, 128, 127, 65, 64, 63, 33, 32, 31, 17, 16, 15, 9, 8, 7, 6, 5, 4, 3, 2, 1}) {
    const auto first = static_cast<size_t>(random.integer(0, kSequences - 1));
    batch.clear();
    std::vector<const Sequence*> owners;
    for (int32_t i = 0; i < count; ++i) {
      const Sequence& s = sequences[(first + static_cast<size_t>(i)) % kSequences];
      owners.push_back(&s);
      batch.push_back({{&s.tokens.back(), 1}, static_cast<int32_t>(s.tokens.size()) - 1, s.pages, 1});
    }
    const Rows rows = decode_rows(model, batch);
    const std::vector<TopLogits> tops = decode_tops(model, batch);
    for (int32_t i = 0; i < count; ++i) {
      const Sequence& s = *owners[static_cast<size_t>(i)];
      const std::string how = "batch of " + std::to_string(count) + ", sequence " + std::to_string(i);
      const auto row = row_of(rows, shape_.vocabulary, i);
      ASSERT_LT(row_error(row, row_of(s.expected, shape_.vocabulary, static_cast<int64_t>(s.tokens.size()) - 1)),
                kRowFactor * kBar)
          << how;
      expect_top_is(tops[static_cast<size_t>(i)], row, how);
    }
  }
}

TEST_F(CudaBackendTest, TheWholeVocabularyOfTheRealModel) {
  ModelShape shape = small_shape(1, 32, 64, 544);
  shape.layers = 1;
  shape.vocabulary = 65024;
  for (const DataType type : {DataType::q4_0, DataType::f16}) {
    const ModelSource source = random_model(shape, type, 12);
    const Tokens prompt = random_tokens(40, 13, shape.vocabulary);
    const Pages pages = {0};
    Model exact = Model::exact(source, 1);
    const Rows expected = exact.logits(prompt, pages, 30);
    Model model(source, options_of(1, 2, kPageTokens));
    const Rows rows = model.logits(prompt, pages, 30);
    expect_close(rows, expected, shape.vocabulary, 0, name_of(type));
    const Segment whole = {prompt, 0, pages, 1}, last = {{&prompt.back(), 1}, 39, pages, 1};
    Segment whole_top = whole;
    whole_top.top = true;
    TopLogits top;
    ASSERT_TRUE(model.backend->forward({&whole_top, 1}, nullptr, &top, kNever));
    Rows row(static_cast<size_t>(shape.vocabulary), NAN);
    ASSERT_TRUE(model.backend->forward({&whole, 1}, row.data(), nullptr, kNever));
    expect_top_is(top, row, "of a prompt");
    expect_top_close(top, row_of(expected, shape.vocabulary, 9), "of a prompt");
    expect_top_is(decode_tops(model, {last})[0], decode_rows(model, {last}), "of a token");
  }
}

// Errors of single positions and pages that only show in long contexts.
TEST_F(CudaBackendTest, AContextOf32768) {
  ModelShape shape = small_shape(1, 32, 64, 544);
  shape.layers = 1;
  constexpr int32_t kContext = 32768, kPages = kContext / kPageTokens;
  const ModelSource source = random_model(shape, DataType::f16, 14);
  const Tokens prompt = random_tokens(kContext, 15, shape.vocabulary);
  const Pages pages = shuffled_pages(kPages, 16);
  Model exact = Model::exact(source, kPages);
  const Rows expected = exact.logits(prompt, pages, 0);
  Model model(source, options_of(kPages, 1, kContext));
  expect_close(model.logits(prompt, pages, kContext - 64), expected, shape.vocabulary, kContext - 64, "the end");
  // With everything in its place, single tokens and pieces in the midst give what they gave.
  for (const int32_t end : {1, 64, 65, 129, 1000, 1025, 2048, 4097, 8192, 16385, 30001, 32700, 32768}) {
    const Tokens tokens(prompt.begin(), prompt.begin() + end);
    const std::string how = "position " + std::to_string(end - 1);
    expect_close(model.logits(tokens, pages, end - 1, 1, end - 1), expected, shape.vocabulary, end - 1, how);
    const int32_t begin = std::max(0, end - 61);
    expect_close(model.logits(tokens, pages, begin, 61, begin), expected, shape.vocabulary, begin,
                 "a piece up to " + how);
  }
}

TEST_F(CudaBackendTest, ACopiedPageContinuesOnItsOwn) {
  Model exact = Model::exact(source_, 8), model(source_, options_of(8, 2, 256));
  for (const bool kv_q8_0 : {false, true}) {
    if (kv_q8_0) model = Model(source_, options_of(8, 2, 256, true));
    for (const int32_t common : {65, 100, 127, 128}) {
      Tokens a = random_tokens(170, 17, shape_.vocabulary), b = random_tokens(190, 18, shape_.vocabulary);
      std::copy_n(a.begin(), common, b.begin());
      const Pages of_a = {3, 7, 1}, of_b = {3, 5, 0}, alone = {2, 4, 6};
      Rows expected_a = exact.logits(a, alone, 0), expected_b = exact.logits(b, alone, 0);
      model.logits(Tokens(a.begin(), a.begin() + common), of_a, common);
      model.backend->copy_page(7, 5, common - kPageTokens);
      const double bar = kv_q8_0 ? kQ8Bar : kBar;
      expect_close(model.logits(a, of_a, common, 40, common), expected_a, shape_.vocabulary, common, "the old one",
                   bar);
      expect_close(model.logits(b, of_b, common, 1, common), expected_b, shape_.vocabulary, common, "the new one", bar);
      expect_close(model.logits(a, of_a, 160, 1, 160), expected_a, shape_.vocabulary, 160, "the old one again", bar);
    }
  }
}

TEST_F(CudaNaNTest, LogitsThatAreNotFiniteAreReported) {
  for (const DataType type : {DataType::f16, DataType::q8_0, DataType::q4_0}) {
    Model model(poisoned(type), options_of(4, 3, 200));
    const Tokens prompt = random_tokens(100, 23, model.vocabulary);
    const Pages pages = {0, 1}, others = {2};
    for (const int32_t length : {1, kFinite, kFinite + 1, 20, 64, 65, 100}) {
      const Tokens tokens(prompt.begin(), prompt.begin() + length);
      const Segment segment = {tokens, 0, pages, 1, true};
      // A neighbour in the batch has nothing of it.
      const Segment neighbour = {{prompt.data(), 4}, 0, others, 1, true};
      const Segment batch[] = {segment, neighbour};
      TopLogits tops[2];
      ASSERT_TRUE(model.backend->forward(batch, nullptr, tops, kNever));
      EXPECT_EQ(tops[0].finite, length <= kFinite) << name_of(type) << ", prompt of " << length;
      EXPECT_EQ(tops[1].finite, 1) << name_of(type) << ", beside a prompt of " << length;
      const Rows rows = model.logits(tokens, pages, length - 1);
      EXPECT_EQ(std::all_of(rows.begin(), rows.end(), [](float x) { return std::isfinite(x); }), length <= kFinite);
      const Segment last = {{&tokens.back(), 1}, length - 1, pages, 1, true};
      EXPECT_EQ(decode_tops(model, {last})[0].finite, length <= kFinite) << name_of(type) << ", token " << length - 1;
    }
  }
}

TEST_F(CudaNaNTest, WhatAnotherSequenceLeftInAPageIsNotSeen) {
  for (const bool kv_q8_0 : {false, true}) {
    Model model(poisoned(DataType::f16), options_of(3, 2, 192, kv_q8_0));
    const Tokens prompt = random_tokens(150, 24, model.vocabulary), few(prompt.begin(), prompt.begin() + 5),
                 more(prompt.begin(), prompt.begin() + 6);
    const Pages pages = {1, 0, 2};
    Rows fresh = model.logits(few, pages, 0);
    const Rows fresh_token = model.logits(more, pages, 5, 1, 5);
    for (const float x : fresh) ASSERT_TRUE(std::isfinite(x));
    for (const float x : fresh_token) ASSERT_TRUE(std::isfinite(x));
    EXPECT_TRUE(std::isnan(model.logits(prompt, pages, 149)[0]));
    const Rows again = model.logits(few, pages, 0), again_token = model.logits(more, pages, 5, 1, 5);
    EXPECT_EQ(std::memcmp(fresh.data(), again.data(), fresh.size() * sizeof(float)), 0);
    EXPECT_EQ(std::memcmp(fresh_token.data(), again_token.data(), fresh_token.size() * sizeof(float)), 0);
  }
}

}  // namespace
}  // namespace chatglm::test
