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
      batch.push_back({{&s.tokens.back(), 1}, s.done - 1, s.pages, logits_rows(1)});
    }
    const Rows rows = decode_rows(model, batch);
    const std::vector<Outcome> outcomes = decode_greedily(model, batch);
    for (size_t i = 0; i < count; ++i) {
      const Sequence& s = sequences[sequences.size() - 1 - i];
      const std::string how = std::to_string(count) + " tokens, number " + std::to_string(i);
      const auto row = row_of(rows, shape.vocabulary, static_cast<int64_t>(i));
      EXPECT_LT(row_error(row, row_of(s.expected, shape.vocabulary, s.done - 1)), kRowFactor * kBar) << how;
      expect_outcome_is(outcomes[i], greedy_rows(1)[0], row, how);
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
    for (const Sequence& s : sequences) batch.push_back({{&s.tokens.back(), 1}, s.done - 1, s.pages, logits_rows(1)});
    const Rows rows = decode_rows(model, batch);
    EXPECT_EQ(std::memcmp(rows.data(), decode_rows(model, batch).data(), rows.size() * sizeof(float)), 0);
    record.add(rows);
    for (const Outcome& outcome : decode_greedily(model, batch)) record.add(outcome);
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
  const BackendInfo info = model.backend->info();
  EXPECT_EQ(info.page_bytes * static_cast<uint64_t>(info.pages), numbers / 32 * 34);
}

// --- One model: sizes of batches, long contexts, pages, NaN.

TEST_F(CudaBackendTest, BatchesOfEverySizeUpTo300) {
  constexpr int32_t kSequences = 300;
  Model exact = Model::exact(source_, kSequences);
  Model model(source_, options_of(kSequences, kSequences, kPageTokens));
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
      batch.push_back({{&s.tokens.back(), 1}, static_cast<int32_t>(s.tokens.size()) - 1, s.pages, {}});
    }
    // Whole rows come in parts, greedy outcomes all at once.
    const std::vector<Outcome> outcomes = decode_greedily(model, batch);
    for (size_t begin = 0; begin < batch.size(); begin += static_cast<size_t>(model.backend->max_batch_logits())) {
      for (size_t i = 0; i < batch.size(); ++i) {
        const bool is_wanted = i >= begin && i < begin + static_cast<size_t>(model.backend->max_batch_logits());
        batch[i].rows = is_wanted ? logits_rows(1) : greedy_rows(1);
      }
      const size_t wanted = std::min(batch.size() - begin, static_cast<size_t>(model.backend->max_batch_logits()));
      Rows rows(wanted * static_cast<size_t>(shape_.vocabulary), NAN);
      std::vector<Outcome> others(batch.size() - wanted);
      ASSERT_TRUE(model.backend->forward(batch, rows.data(), others.data(), kNever));
      for (size_t i = 0, other = 0; i < batch.size(); ++i) {
        const Sequence& s = *owners[i];
        const auto last = static_cast<int64_t>(s.tokens.size()) - 1;
        const std::string how = "batch of " + std::to_string(count) + ", sequence " + std::to_string(i);
        if (i < begin || i >= begin + wanted) {
          // More rows than fit come in slices, for which one row may be alone and take another kernel.
          if (count <= 256) {
            ASSERT_EQ(others[other].token, outcomes[i].token) << how;
            ASSERT_EQ(others[other].logprob, outcomes[i].logprob) << how;
          }
          expect_outcome_close(others[other++], row_of(s.expected, shape_.vocabulary, last), how);
          continue;
        }
        const auto row = row_of(rows, shape_.vocabulary, static_cast<int64_t>(i - begin));
        ASSERT_LT(row_error(row, row_of(s.expected, shape_.vocabulary, last)), kRowFactor * kBar) << how;
        if (count <= 256) {
          expect_outcome_is(outcomes[i], greedy_rows(1)[0], row, how);
        } else {
          expect_outcome_close(outcomes[i], row_of(s.expected, shape_.vocabulary, last), how);
        }
      }
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
    const Segment whole = {prompt, 0, pages, logits_rows(1)}, last = {{&prompt.back(), 1}, 39, pages, logits_rows(1)};
    Segment greedy = whole;
    greedy.rows = greedy_rows(1);
    Outcome outcome;
    ASSERT_TRUE(model.backend->forward({&greedy, 1}, nullptr, &outcome, kNever));
    Rows row(static_cast<size_t>(shape.vocabulary), NAN);
    ASSERT_TRUE(model.backend->forward({&whole, 1}, row.data(), nullptr, kNever));
    expect_outcome_is(outcome, greedy.rows[0], row, "of a prompt");
    expect_outcome_close(outcome, row_of(expected, shape.vocabulary, 9), "of a prompt");
    expect_outcome_is(decode_greedily(model, {last})[0], greedy.rows[0], decode_rows(model, {last}), "of a token");
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

// A token and its drafts: each of their rows is wanted. Beside single tokens, pieces of prompts, and full pages.
TEST_F(CudaBackendTest, ShortSegmentsWithARowForEachToken) {
  for (const bool kv_q8_0 : {false, true}) {
    constexpr int32_t kPages = 60;
    const double bar = kv_q8_0 ? kQ8Bar : kBar;
    Model exact = Model::exact(source_, kPages);
    Model model(source_, options_of(kPages, 12, 400, kv_q8_0));
    Random random(40);
    std::vector<Sequence> sequences =
        make_sequences({12, 40, 64, 65, 72, 100, 128, 130, 200, 300, 320, 350}, kPages, 41, shape_.vocabulary, &exact);
    for (Sequence& s : sequences) {  // all but the last tokens, which the rounds compute, each as often as it comes
      s.done = static_cast<int32_t>(s.tokens.size()) - 8;
      model.logits(Tokens(s.tokens.begin(), s.tokens.begin() + s.done), s.pages, s.done);
    }
    for (int round = 0; round < 40; ++round) {
      // In the first rounds nothing but short segments, of which some fill graphs exactly.
      std::vector<Segment> batch;
      std::vector<const Sequence*> owners;
      size_t rows = 0;
      const size_t count = round < 4 ? size_t{1} << round : static_cast<size_t>(random.integer(1, 12));
      for (size_t i = 0; i < count; ++i) {
        const Sequence& s = sequences[(static_cast<size_t>(round) + i) % sequences.size()];
        const auto length = static_cast<size_t>(round < 4 ? 8 : random.integer(1, 8));
        const bool is_piece = round > 20 && random.chance(0.2) && s.done > 10;
        const int32_t begin = is_piece ? s.done - 10 : s.done;
        const size_t tokens = is_piece ? 10 + length : length;
        if (rows + length > static_cast<size_t>(model.backend->max_batch_logits())) break;
        batch.push_back({{s.tokens.data() + begin, tokens}, begin, s.pages, logits_rows(static_cast<int64_t>(length))});
        owners.push_back(&s);
        rows += length;
      }
      Rows logits(rows * static_cast<size_t>(shape_.vocabulary), NAN);
      ASSERT_TRUE(model.backend->forward(batch, logits.data(), nullptr, kNever));
      for (Segment& segment : batch) segment.rows = greedy_rows(static_cast<int64_t>(segment.rows.size()));
      std::vector<Outcome> outcomes(rows);
      ASSERT_TRUE(model.backend->forward(batch, nullptr, outcomes.data(), kNever));
      int64_t row = 0;
      for (size_t i = 0; i < batch.size(); ++i) {
        const auto end = batch[i].position + static_cast<int32_t>(batch[i].tokens.size());
        for (int32_t p = end - static_cast<int32_t>(batch[i].rows.size()); p < end; ++p, ++row) {
          const std::string how = "round " + std::to_string(round) + ", segment " + std::to_string(i) + ", position " +
                                  std::to_string(p) + (kv_q8_0 ? ", q8_0" : "");
          const auto given = row_of(logits, shape_.vocabulary, row);
          ASSERT_LT(row_error(given, row_of(owners[i]->expected, shape_.vocabulary, p)), kRowFactor * bar) << how;
          expect_outcome_is(outcomes[static_cast<size_t>(row)], greedy_rows(1)[0], given, how);
        }
      }
    }
  }
}

// More rows than there is memory for logits at a time, of all uses, and the keys that short segments left.
TEST_F(CudaBackendTest, ScoresOfALongTextInSlices) {
  constexpr int32_t kLength = 700, kPages = 11;
  const Tokens tokens = random_tokens(kLength, 42, shape_.vocabulary);
  const Pages pages = shuffled_pages(kPages, 43);
  Model model(source_, options_of(kPages, 1, kLength));
  const Rows expected = model.logits(tokens, pages, 0);
  for (const int32_t count : {1, 63, 64, 65, 128, 129, 500, 699, 700}) {
    for (const int32_t kept : {0, 1, 40, 64}) {
      if (kept > count) continue;
      std::vector<Row> rows(static_cast<size_t>(count));
      Random random(44);
      const Draw greedy;
      int32_t left = kept;
      for (int32_t i = 0; i < count; ++i) {
        Row& row = rows[static_cast<size_t>(i)];
        row.logprobs = static_cast<int32_t>(random.integer(0, 5));
        if (random.integer(0, count - i - 1) < left) {
          --left;
        } else if (random.chance(0.8)) {
          row.use = Row::Use::score;
          row.target = static_cast<int32_t>(random.integer(0, shape_.vocabulary - 1));
        } else {
          row.use = Row::Use::sample;
          row.draw = &greedy;
        }
      }
      const Segment segment = {tokens, 0, pages, rows};
      Rows logits(static_cast<size_t>(kept * shape_.vocabulary), NAN);
      std::vector<Outcome> outcomes(static_cast<size_t>(count - kept));
      ASSERT_TRUE(model.backend->forward({&segment, 1}, logits.data(), outcomes.data(), kNever));
      size_t outcome = 0;
      int64_t given = 0;
      for (int32_t i = 0; i < count; ++i) {
        const Row& row = rows[static_cast<size_t>(i)];
        const auto exact = row_of(expected, shape_.vocabulary, kLength - count + i);
        const std::string how =
            std::to_string(count) + " rows, " + std::to_string(kept) + " kept, row " + std::to_string(i);
        if (row.use == Row::Use::logits) {
          ASSERT_LT(row_error(row_of(logits, shape_.vocabulary, given++), exact), kRowFactor * kBar) << how;
          continue;
        }
        const Outcome wanted = outcome_of(row, exact), &actual = outcomes[outcome++];
        ASSERT_EQ(actual.status, Outcome::Status::ok) << how;
        ASSERT_EQ(actual.count, row.logprobs) << how;
        if (row.use == Row::Use::score) ASSERT_EQ(actual.token, row.target) << how;
        ASSERT_NEAR(actual.logprob, wanted.logprob, 0.05) << how;
        for (int32_t k = 0; k < actual.count; ++k) ASSERT_NEAR(actual.logprobs[k], wanted.logprobs[k], 0.05) << how;
      }
    }
  }
}

// All options, beside each other in a batch, with lists that need more memory than there is at first.
TEST_F(CudaBackendTest, DrawsWhatTheLogitsSay) {
  constexpr int32_t kSequences = 12, kPages = 2 * kSequences;
  Model model(source_, options_of(kPages, kSequences, 100));
  Random random(45);
  std::vector<Sequence> sequences =
      make_sequences(std::vector<int32_t>(kSequences, 70), kPages, 46, shape_.vocabulary, nullptr);
  std::vector<Segment> batch;
  for (Sequence& s : sequences) {
    model.logits(s.tokens, s.pages, 70);
    batch.push_back({{&s.tokens.back(), 1}, 69, s.pages, logits_rows(1)});
  }
  const Rows logits = decode_rows(model, batch);
  std::vector<uint32_t> mask(5, 0xf0f0f0f0u);
  const std::vector<int32_t> banned = {1, 2, 3, 100};
  const std::vector<TokenBias> bias = {{5, 4.0f}, {6, -1.0f}};
  for (const bool is_large : {false, true}) {
    std::vector<TokenCount> counts = {{5, 2}, {7, 0}, {8, 1}};
    // Ids that the vocabulary does not have are passed over.
    for (int32_t id = 0; is_large && id < 400000; ++id) counts.push_back({1000 + id, 1});
    std::vector<Draw> draws(kSequences);
    std::vector<Row> rows(kSequences);
    for (size_t i = 0; i < kSequences; ++i) {
      Draw& draw = draws[i];
      draw.random = static_cast<uint64_t>(random.integer(0, INT64_MAX - 1)) * 2 + 1;
      if (i > 0) draw.inverse_temperature = 0.5f;
      if (i % 3 == 1) draw.top_k = 20, draw.top_p = 0.8f;
      if (i % 3 == 2) draw.top_p = 0.9f;
      if (i % 4 == 3) draw.mask = mask;
      if (i % 5 == 4) draw.banned = banned;
      if (i % 5 == 2) draw.bias = bias;
      if (i % 2 == 1) draw.counts = counts, draw.repetition_penalty = 1.3f, draw.frequency_penalty = 0.5f;
      rows[i] = {Row::Use::sample, -1, static_cast<int32_t>(i) - 1, &draw};
      batch[i].rows = {&rows[i], 1};
    }
    std::vector<Outcome> outcomes(kSequences);
    for (int twice = 0; twice < 2; ++twice) {
      ASSERT_TRUE(model.backend->forward(batch, nullptr, outcomes.data(), kNever));
      for (size_t i = 0; i < kSequences; ++i) {
        expect_outcome_is(outcomes[i], rows[i], row_of(logits, shape_.vocabulary, static_cast<int64_t>(i)),
                          "sequence " + std::to_string(i) + (is_large ? ", long lists" : ""));
      }
    }
  }
}

TEST_F(CudaBackendTest, APageThatIsReadAndWrittenElsewhereIsTheSame) {
  for (const bool kv_q8_0 : {false, true}) {
    Model model(source_, options_of(6, 2, 192, kv_q8_0)), other(source_, options_of(9, 2, 192, kv_q8_0));
    const BackendInfo info = model.backend->info();
    EXPECT_EQ(info.page_layout, other.backend->info().page_layout);
    EXPECT_EQ(info.page_bytes, other.backend->info().page_bytes);
    const Tokens tokens = random_tokens(150, 47, shape_.vocabulary);
    const Pages pages = {4, 0, 5}, elsewhere = {8, 2, 7};
    model.logits(tokens, pages, 150);
    for (size_t i = 0; i < pages.size(); ++i) {
      std::vector<uint8_t> bytes(info.page_bytes + 16, 0xa5);
      model.backend->read_page(pages[i], bytes.data());
      EXPECT_EQ(std::count(bytes.end() - 16, bytes.end(), 0xa5), 16) << "beyond the page";
      other.backend->write_page(elsewhere[i], bytes.data());
      std::vector<uint8_t> again(info.page_bytes);
      other.backend->read_page(elsewhere[i], again.data());
      EXPECT_TRUE(std::equal(again.begin(), again.end(), bytes.begin()));
    }
    const Rows here = model.logits(tokens, pages, 149, 1, 149), there = other.logits(tokens, elsewhere, 149, 1, 149);
    EXPECT_EQ(std::memcmp(here.data(), there.data(), here.size() * sizeof(float)), 0);
  }
}

TEST_F(CudaNaNTest, LogitsThatAreNotFiniteAreReported) {
  for (const DataType type : {DataType::f16, DataType::q8_0, DataType::q4_0}) {
    Model model(poisoned(type), options_of(4, 3, 200));
    const Tokens prompt = random_tokens(100, 23, model.vocabulary);
    const Pages pages = {0, 1}, others = {2};
    for (const int32_t length : {1, kFinite, kFinite + 1, 20, 64, 65, 100}) {
      const Tokens tokens(prompt.begin(), prompt.begin() + length);
      const Segment segment = {tokens, 0, pages, greedy_rows(1)};
      // A neighbour in the batch has nothing of it.
      const Segment neighbour = {{prompt.data(), 4}, 0, others, greedy_rows(1)};
      const Segment batch[] = {segment, neighbour};
      const auto wanted = length <= kFinite ? Outcome::Status::ok : Outcome::Status::not_finite;
      Outcome outcomes[2];
      ASSERT_TRUE(model.backend->forward(batch, nullptr, outcomes, kNever));
      EXPECT_EQ(outcomes[0].status, wanted) << name_of(type) << ", prompt of " << length;
      EXPECT_EQ(outcomes[1].status, Outcome::Status::ok) << name_of(type) << ", beside a prompt of " << length;
      const Rows rows = model.logits(tokens, pages, length - 1);
      EXPECT_EQ(std::all_of(rows.begin(), rows.end(), [](float x) { return std::isfinite(x); }), length <= kFinite);
      const Segment last = {{&tokens.back(), 1}, length - 1, pages, {}};
      EXPECT_EQ(decode_greedily(model, {last})[0].status, wanted) << name_of(type) << ", token " << length - 1;
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
