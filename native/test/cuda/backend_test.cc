// The CUDA backend as a whole: against the CPU backend with the same weights in f32, which is exact to 1e-4
// (forward_test.cc), and against itself in every way in which a prompt can be cut, batched and computed again.
#include <algorithm>
#include <chrono>
#include <numeric>
#include <thread>

#include "cpu/backend.h"
#include "cuda/api.h"
#include "engine/engine.h"
#include "model/quantize.h"
#include "test/cuda/support.h"
#include "test/recorder.h"
#include "test/small_model.h"
#include "test/top_logits.h"

namespace chatglm::test {
namespace {

using Tokens = std::vector<int32_t>;
using Pages = std::vector<int32_t>;
using Rows = std::vector<float>;  // of logits

// Activations are f16 here: about 2e-3 of the logits' norm.
constexpr double kBar = 1e-2;
// Keys and values in q8_0 are off by up to 0.4% of the largest of their 32.
constexpr double kQ8Bar = 3e-2;
// A single row may be this much worse than all of them together.
constexpr double kRowFactor = 3;

const std::atomic<bool> kNever{false};
void no_progress(uint64_t, uint64_t) {}

cuda::CudaOptions options_of(int32_t pages, int32_t sequences, int32_t context, bool kv_q8_0 = false) {
  cuda::CudaOptions options;
  options.pages = pages;
  options.max_sequences = sequences;
  options.context_tokens = context;
  options.kv_q8_0 = kv_q8_0;
  return options;
}

Tokens random_tokens(int64_t count, uint64_t seed, int32_t vocabulary) {
  Random random(seed);
  Tokens tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.integer(0, vocabulary - 1)));
  return tokens;
}

Pages shuffled_pages(int32_t count, uint64_t seed) {
  Pages pages(static_cast<size_t>(count));
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937_64(seed));
  return pages;
}

/// A backend, and the ways in which tests use it.
class Model {
 public:
  Model(const ModelSource& source, const cuda::CudaOptions& options)
      : vocabulary(source.shape.vocabulary),
        backend(chatglm_cuda_api(cuda::kCudaApiVersion)->make_backend(source, options, no_progress, kNever)) {}

  /// On the CPU, with all weights and the keys and values in f32.
  static Model exact(const ModelSource& source, int32_t pages) {
    ModelSource here = source;
    here.threads = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
    Weights weights = load_weights(here, no_progress, kNever);
    const auto widen = [&](Tensor& tensor) {
      const int64_t count = tensor.rows * tensor.columns;
      Buffer buffer(static_cast<size_t>(count) * sizeof(float), "weights in f32");
      to_float(tensor.type, tensor.data, 1, count, reinterpret_cast<float*>(buffer.data()));
      tensor.type = DataType::f32;
      tensor.data = buffer.data();
      weights.buffers.push_back(std::move(buffer));
    };
    for (LayerWeights& layer : weights.layers) {
      for (Tensor* tensor : {&layer.qkv, &layer.attention_output, &layer.ffn_up, &layer.ffn_down}) widen(*tensor);
    }
    widen(weights.embedding);
    widen(weights.output);
    return {
        source.shape.vocabulary,
        cpu::make_cpu_backend(source.shape, cpu::pack_weights(source.shape, std::move(weights), cpu::select_kernels()),
                              {here.threads, pages, cpu::KvType::f32})};
  }

  /// Computes the positions from `begin` on, in pieces of at most `piece` tokens; gives the logits of those from `from`
  /// on.
  Rows logits(const Tokens& prompt, const Pages& pages, int32_t from, int32_t piece = INT32_MAX, int32_t begin = 0) {
    const auto end = static_cast<int32_t>(prompt.size());
    Rows result(static_cast<size_t>(end - from) * static_cast<size_t>(vocabulary), NAN);
    float* target = result.data();
    while (begin < end) {
      int32_t count = std::min({piece, end - begin, backend->max_batch_tokens()});
      count = std::min(count, std::max(0, from - begin) + backend->max_batch_logits());
      const int32_t rows = std::max(0, begin + count - std::max(from, begin));
      const Segment segment = {{prompt.data() + begin, static_cast<size_t>(count)}, begin, pages, rows};
      EXPECT_TRUE(backend->forward({&segment, 1}, target, nullptr, kNever));
      target += static_cast<int64_t>(rows) * vocabulary;
      begin += count;
    }
    return result;
  }

  int32_t vocabulary;
  std::unique_ptr<Backend> backend;

 private:
  Model(int32_t vocabulary, std::unique_ptr<Backend> backend) : vocabulary(vocabulary), backend(std::move(backend)) {}
};

std::span<const float> row_of(const Rows& rows, int32_t vocabulary, int64_t index) {
  return std::span<const float>(rows).subspan(static_cast<size_t>(index * vocabulary), static_cast<size_t>(vocabulary));
}

double row_error(std::span<const float> actual, std::span<const float> expected) {
  return relative_error(std::vector<float>(actual.begin(), actual.end()),
                        std::vector<float>(expected.begin(), expected.end()));
}

/// `actual` beside the rows of `expected` from `first` on: all together, and each by itself.
void expect_close(const Rows& actual, const Rows& expected, int32_t vocabulary, int32_t first, const std::string& how,
                  double bar = kBar) {
  const size_t begin = static_cast<size_t>(first) * static_cast<size_t>(vocabulary);
  ASSERT_LE(begin + actual.size(), expected.size()) << how;
  ASSERT_FALSE(actual.empty()) << how;
  const std::span<const float> wanted = std::span<const float>(expected).subspan(begin, actual.size());
  EXPECT_LT(row_error(actual, wanted), bar) << how;
  for (int64_t row = 0; row < static_cast<int64_t>(actual.size()) / vocabulary; ++row) {
    const double error = row_error(row_of(actual, vocabulary, row), row_of(expected, vocabulary, first + row));
    ASSERT_LT(error, kRowFactor * bar) << how << ", position " << first + row;
  }
}

/// The largest logits beside an exact row.
void expect_top_close(const TopLogits& top, std::span<const float> expected, const std::string& how) {
  ASSERT_EQ(top.finite, 1) << how;
  const TopLogits wanted = top_logits(expected);
  ASSERT_EQ(top.count, wanted.count) << how;
  std::vector<float> actual, exact;
  for (int32_t i = 0; i < top.count; ++i) {
    ASSERT_GE(top.ids[i], 0) << how;
    ASSERT_LT(top.ids[i], static_cast<int32_t>(expected.size())) << how;
    if (i > 0) ASSERT_LE(top.logits[i], top.logits[i - 1]) << how;
    actual.push_back(top.logits[i]);
    exact.push_back(expected[static_cast<size_t>(top.ids[i])]);
  }
  EXPECT_LT(relative_error(actual, exact), kRowFactor * kBar) << how;
  EXPECT_NEAR(top.log_sum, wanted.log_sum, 0.05) << how;
}

/// The largest logits beside the row that the same kernels gave.
void expect_top_is(const TopLogits& top, std::span<const float> row, const std::string& how) {
  const TopLogits wanted = top_logits(row);
  ASSERT_EQ(top.finite, wanted.finite) << how;
  ASSERT_EQ(top.count, wanted.count) << how;
  for (int32_t i = 0; i < top.count; ++i) {
    ASSERT_EQ(top.ids[i], wanted.ids[i]) << how << ", number " << i;
    ASSERT_EQ(top.logits[i], wanted.logits[i]) << how << ", number " << i;
  }
  EXPECT_NEAR(top.log_sum, wanted.log_sum, 1e-4 * std::max(1.0f, std::abs(wanted.log_sum))) << how;
}

/// All that a call gave, bit for bit.
struct Record {
  std::vector<uint8_t> bytes;

  void add(const Rows& rows) {
    const auto* data = reinterpret_cast<const uint8_t*>(rows.data());
    bytes.insert(bytes.end(), data, data + rows.size() * sizeof(float));
  }
  void add(const TopLogits& top) {
    Rows numbers = {static_cast<float>(top.finite), static_cast<float>(top.count), top.log_sum};
    for (int32_t i = 0; i < top.count; ++i) {
      numbers.push_back(static_cast<float>(top.ids[i]));
      numbers.push_back(top.logits[i]);
    }
    add(numbers);
  }
};

struct Sequence {
  Tokens tokens;
  Pages pages;
  int32_t done = 0;
  Rows expected;  // of all positions; may be empty

  int32_t remaining() const { return static_cast<int32_t>(tokens.size()) - done; }
};

/// Sequences of the given lengths, whose pages lie among each other's. `exact` may be null.
std::vector<Sequence> make_sequences(const std::vector<int32_t>& lengths, int32_t pages, uint64_t seed,
                                     int32_t vocabulary, Model* exact) {
  const Pages order = shuffled_pages(pages, seed);
  std::vector<Sequence> sequences;
  size_t page = 0;
  for (const int32_t length : lengths) {
    Sequence sequence;
    sequence.tokens = random_tokens(length, seed + sequences.size(), vocabulary);
    for (int32_t i = 0; i < length; i += kPageTokens) sequence.pages.push_back(order.at(page++));
    if (exact) sequence.expected = exact->logits(sequence.tokens, sequence.pages, 0);
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

/// Computes all sequences in random batches: pieces of prompts beside single tokens, rows of logits beside the largest
/// alone, beside none at all.
void run_in_batches(Model& model, std::vector<Sequence>& sequences, uint64_t seed, Record* record) {
  Random random(seed);
  for (int step = 0;
       std::any_of(sequences.begin(), sequences.end(), [](const Sequence& s) { return s.remaining() > 0; }); ++step) {
    auto room = static_cast<int32_t>(random.integer(1, std::min(700, model.backend->max_batch_tokens())));
    int32_t logits_room = model.backend->max_batch_logits();
    std::vector<Segment> batch;
    std::vector<Sequence*> owners;
    const size_t start = static_cast<size_t>(random.integer(0, static_cast<int64_t>(sequences.size()) - 1));
    for (size_t i = 0; i < sequences.size(); ++i) {
      Sequence& sequence = sequences[(start + i) % sequences.size()];
      if (sequence.remaining() == 0 || room == 0 || random.chance(0.25)) continue;
      const int64_t most = random.chance(0.4) ? 1 : random.chance(0.5) ? 20 : 200;
      const auto count = static_cast<int32_t>(std::min<int64_t>({random.integer(1, most), sequence.remaining(), room}));
      const auto rows = static_cast<int32_t>(std::min<int64_t>({random.integer(0, 3), count, logits_room}));
      batch.push_back({{sequence.tokens.data() + sequence.done, static_cast<size_t>(count)},
                       sequence.done,
                       sequence.pages,
                       rows,
                       rows == 1 && random.chance(0.5)});
      owners.push_back(&sequence);
      room -= count;
      logits_room -= rows;
    }
    if (batch.empty()) continue;
    Rows logits;
    std::vector<TopLogits> tops;
    for (const Segment& segment : batch) {
      if (segment.top) {
        tops.emplace_back();
      } else {
        logits.resize(logits.size() + static_cast<size_t>(segment.logits * model.vocabulary), NAN);
      }
    }
    ASSERT_TRUE(model.backend->forward(batch, logits.data(), tops.data(), kNever));
    if (record) {
      record->add(logits);
      for (const TopLogits& top : tops) record->add(top);
    }
    int64_t row = 0;
    size_t top = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      Sequence& sequence = *owners[i];
      sequence.done += static_cast<int32_t>(batch[i].tokens.size());
      const std::string how = "step " + std::to_string(step) + ", segment " + std::to_string(i);
      const auto expected = [&](int32_t position) { return row_of(sequence.expected, model.vocabulary, position); };
      if (batch[i].top) {
        const TopLogits& given = tops[top++];
        if (!sequence.expected.empty()) expect_top_close(given, expected(sequence.done - 1), how);
        continue;
      }
      for (int32_t position = sequence.done - batch[i].logits; position < sequence.done; ++position, ++row) {
        if (sequence.expected.empty()) continue;
        ASSERT_LT(row_error(row_of(logits, model.vocabulary, row), expected(position)), kRowFactor * kBar) << how;
      }
    }
  }
}

/// The next token of each sequence in one batch: rows of logits, or the largest alone. The positions must not move, so
/// that it can be done again.
Rows decode_rows(Model& model, const std::vector<Segment>& batch) {
  Rows rows(batch.size() * static_cast<size_t>(model.vocabulary), NAN);
  EXPECT_TRUE(model.backend->forward(batch, rows.data(), nullptr, kNever));
  return rows;
}
std::vector<TopLogits> decode_tops(Model& model, std::vector<Segment> batch) {
  for (Segment& segment : batch) segment.top = true;
  std::vector<TopLogits> tops(batch.size());
  EXPECT_TRUE(model.backend->forward(batch, nullptr, tops.data(), kNever));
  return tops;
}

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

// --- One model, all else.

class CudaBackendTest : public CudaTest {
 protected:
  const ModelShape shape_ = small_shape(2, 32, 96, 1056);
  const ModelSource source_ = random_model(shape_, DataType::q4_0, 9);
};

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

TEST_F(CudaBackendTest, AnAbortedBatchCanBeRunAgain) {
  ModelShape shape = shape_;
  shape.layers = 12;
  const ModelSource source = random_model(shape, DataType::f16, 19);
  constexpr int32_t kTokens = 1500, kPages = 24;
  const Tokens prompt = random_tokens(kTokens, 20, shape.vocabulary);
  const Pages pages = shuffled_pages(kPages, 21);
  Model model(source, options_of(kPages, 2, kTokens)), calm(source, options_of(kPages, 2, kTokens));
  const Rows expected = calm.logits(prompt, pages, kTokens - 20);
  const Segment whole = {prompt, 0, pages, 20}, token = {{&prompt.back(), 1}, kTokens - 1, pages, 1};
  Rows rows(expected.size());
  TopLogits top;
  const std::atomic<bool> aborted{true};
  EXPECT_FALSE(model.backend->forward({&whole, 1}, rows.data(), &top, aborted));
  EXPECT_FALSE(model.backend->forward({&token, 1}, rows.data(), &top, aborted));
  for (const int microseconds : {0, 100, 500, 2000}) {
    std::atomic<bool> abort{false};
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
      abort = true;
    });
    const bool complete = model.backend->forward({&whole, 1}, rows.data(), &top, abort);
    other.join();
    if (complete) EXPECT_EQ(std::memcmp(rows.data(), expected.data(), expected.size() * sizeof(float)), 0);
  }
  ASSERT_TRUE(model.backend->forward({&whole, 1}, rows.data(), &top, kNever));
  EXPECT_EQ(std::memcmp(rows.data(), expected.data(), expected.size() * sizeof(float)), 0);
}

// Positions that are infinite after scaling have no rotation: from the eighth on, queries and keys are NaN, and with
// the second layer values too.
class CudaNaNTest : public CudaBackendTest {
 protected:
  static constexpr int32_t kFinite = 7;  // 6 / 2e-38 is the last that f32 has

  static ModelSource poisoned(DataType type) {
    ModelShape shape = small_shape(2, 32, 96, 544);
    shape.rope_scale = 2e-38f;
    return random_model(shape, type, 22);
  }
};

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

TEST_F(CudaBackendTest, WhatDoesNotFitIsRefusedBeforeAnythingIsTaken) {
  { const Model warm(source_, options_of(4, 1, 100)); }
  size_t free_before = 0, total = 0;
  check(cudaMemGetInfo(&free_before, &total));
  ModelShape vast = shape_;
  vast.vocabulary = 1 << 20;
  vast.hidden_size = 1 << 16;
  const std::pair<ModelSource, int32_t> wishes[] = {
      {source_, 1 << 27}, {source_, INT32_MAX}, {random_model(vast, DataType::f16), 4}};
  for (const auto& [source, pages] : wishes) {
    try {
      const Model model(source, options_of(pages, 1, 100));
      FAIL() << pages;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, "ERR_OUT_OF_MEMORY") << error.what();
      double wanted = 0, free = 0;
      for (const auto& [key, value] : error.details) {
        if (key == "wantedBytes") wanted = std::get<double>(value);
        if (key == "freeBytes") free = std::get<double>(value);
      }
      EXPECT_GT(wanted, 1e11);
      EXPECT_GT(free, 0);
      EXPECT_LE(free, static_cast<double>(total));
    }
  }
  size_t free_after = 0;
  check(cudaMemGetInfo(&free_after, &total));
  EXPECT_NEAR(static_cast<double>(free_after), static_cast<double>(free_before), 4e6);
}

std::string code_of(const std::function<void()>& body) {
  try {
    body();
    return "none";
  } catch (const Error& error) {
    return error.code;
  }
}

TEST_F(CudaBackendTest, WhatItCannotComputeIsRefused) {
  const auto code = [](const ModelShape& shape, int32_t device = 0) {
    return code_of([&] {
      cuda::CudaOptions options = options_of(4, 1, 100);
      options.device = device;
      const Model model(random_model(shape, DataType::f32), options);
    });
  };
  ModelShape shape = shape_;
  EXPECT_EQ(code(shape), "none");
  EXPECT_EQ(code(shape, 99), "ERR_DEVICE_UNAVAILABLE");
  EXPECT_EQ(code(shape, -1), "ERR_DEVICE_UNAVAILABLE");
  shape.head_size = 256;
  shape.rope_dimension = 128;
  EXPECT_EQ(code(shape), "ERR_INVALID_ARGUMENT");
  shape = shape_;
  shape.ffn_size = 40;
  EXPECT_EQ(code(shape), "ERR_CHECKPOINT_INVALID");
  const cuda::CudaApi* api = chatglm_cuda_api(cuda::kCudaApiVersion);
  EXPECT_EQ(chatglm_cuda_api(cuda::kCudaApiVersion + 1), nullptr);
  const std::atomic<bool> abort{true};
  EXPECT_EQ(code_of([&] { api->make_backend(source_, options_of(4, 1, 100), no_progress, abort); }), "ERR_ABORTED");
  ASSERT_FALSE(api->gpus().empty());
  EXPECT_FALSE(api->gpus()[0].name.empty());
  EXPECT_GT(api->gpus()[0].free_bytes, 0u);
  EXPECT_GE(api->gpus()[0].total_bytes, api->gpus()[0].free_bytes);
}

TEST_F(CudaBackendTest, AllMemoryComesBack) {
  const Tokens prompt = random_tokens(100, 25, shape_.vocabulary);
  const Pages pages = {0, 1};
  size_t free_before = 0, free_after = 0, total = 0;
  for (int i = 0; i < 20; ++i) {
    {
      Model model(source_, options_of(200, 4, 1000));
      model.logits(prompt, pages, 90);
      model.logits(prompt, pages, 95, 1, 95);
    }
    if (i == 2) check(cudaMemGetInfo(&free_before, &total));  // code and stacks are there by then
  }
  check(cudaMemGetInfo(&free_after, &total));
  EXPECT_GE(static_cast<double>(free_after), static_cast<double>(free_before) - 4e6);
  // Loading that ends early leaves nothing behind either.
  for (int i = 0; i < 5; ++i) {
    std::atomic<bool> abort{false};
    const auto progress = [&](uint64_t bytes, uint64_t all) {
      EXPECT_LE(bytes, all);
      abort = true;
    };
    EXPECT_EQ(
        code_of([&] {
          chatglm_cuda_api(cuda::kCudaApiVersion)->make_backend(source_, options_of(2000, 4, 1000), progress, abort);
        }),
        "ERR_ABORTED");
  }
  check(cudaMemGetInfo(&free_after, &total));
  EXPECT_GE(static_cast<double>(free_after), static_cast<double>(free_before) - 4e6);
}

TEST_F(CudaBackendTest, SaysWhatItIs) {
  for (const DataType type : {DataType::f32, DataType::q8_0, DataType::q4_0}) {
    const ModelSource source = random_model(shape_, type);
    const Model model(source, options_of(5, 1, 100));
    const BackendInfo info = model.backend->info();
    EXPECT_EQ(info.device, "cuda:0");
    EXPECT_EQ(info.kernels, cuda::kernels_name(device_));
    EXPECT_EQ(info.mapped_bytes, 0u);
    uint64_t expected = 0, per_token = 0, all = 0;
    for (const TensorSource& t : source.tensors) {
      const bool embedding = t.name == "token_embd.weight";
      const auto bytes = static_cast<uint64_t>(t.rows == 1 || embedding
                                                   ? t.rows * row_bytes(t.type, t.columns)
                                                   : cuda::packed_shape(t.type, t.rows, t.columns, false).bytes());
      expected += bytes;
      per_token += embedding ? static_cast<uint64_t>(row_bytes(t.type, t.columns)) : bytes;
    }
    for (const auto& [name, bytes] : info.weight_types) all += bytes;
    EXPECT_EQ(info.weight_bytes, expected);
    EXPECT_EQ(all, expected);
    EXPECT_EQ(info.bytes_per_token, per_token);
    EXPECT_EQ(info.kv_type, "f16");
    EXPECT_GE(info.device_bytes, info.weight_bytes + info.kv_bytes);
    EXPECT_EQ(info.kv_bytes, 2u * 2 * 5 * 64 * 2 * 64 * 2);  // 2 layers, 2 groups, heads filled up to 64, f16
    EXPECT_GE(model.backend->max_batch_tokens(), 256);
    EXPECT_GE(model.backend->max_batch_logits(), 1);
  }
}

// --- Through the engine.

struct Running {
  Recorder recorder;
  std::unique_ptr<Engine> engine;

  explicit Running(const ModelSource& source, bool prefix_cache = true) {
    EngineOptions options;
    options.vocabulary = source.shape.vocabulary;
    options.context_tokens = 400;
    options.max_sequences = 4;
    options.prefix_cache = prefix_cache;
    engine = std::make_unique<Engine>(
        options,
        [=](const Progress& progress, const std::atomic<bool>& abort) {
          return chatglm_cuda_api(cuda::kCudaApiVersion)
              ->make_backend(source, options_of(options.pages(), 4, 400), progress, abort);
        },
        recorder);
  }
  Recorder::Answer answer(const Request& request) { return recorder.wait(engine->submit(request)); }
};

TEST_F(CudaBackendTest, TheEngineAnswersWhatTheLogitsSay) {
  for (const DataType type : {DataType::f16, DataType::q4_0}) {
    const ModelSource source = random_model(shape_, type, 26);
    const int32_t vocabulary = shape_.vocabulary;
    Running model(source);
    // More than run at once, of which some begin alike: page copies, waiting, mixed batches.
    std::vector<Tokens> prompts;
    for (int i = 0; i < 9; ++i) prompts.push_back(random_tokens(3 + 37 * i, 27 + static_cast<uint64_t>(i), vocabulary));
    for (const int32_t common : {40, 64, 100}) {
      prompts.emplace_back(prompts[7].begin(), prompts[7].begin() + common);
      prompts.back().push_back(1);
    }
    std::vector<uint32_t> ids;
    for (const Tokens& prompt : prompts) {
      ids.push_back(model.engine->submit(generation(prompt, 30)));
      if (ids.size() == 8) model.recorder.wait(ids.back());
    }
    Model exact = Model::exact(source, 8);
    for (size_t i = 0; i < prompts.size(); ++i) {
      const Recorder::Answer answer = model.recorder.wait(ids[i]);
      ASSERT_EQ(answer.error, "");
      ASSERT_EQ(answer.tokens.size(), 30u);
      Tokens whole = prompts[i];
      whole.insert(whole.end(), answer.tokens.begin(), answer.tokens.end());
      const auto from = static_cast<int32_t>(prompts[i].size()) - 1;
      const Rows expected = exact.logits(whole, {0, 1, 2, 3, 4, 5, 6, 7}, from);
      model.engine->clear_cache();
      const Rows rows = model.answer(logits_of(whole, from)).logits;
      expect_close(rows, expected, vocabulary, 0, "sequence " + std::to_string(i));
      for (size_t t = 0; t < answer.tokens.size(); ++t) {
        // Two logits that are equal but for rounding may change places.
        const auto row = row_of(rows, vocabulary, static_cast<int64_t>(t));
        EXPECT_GE(row[static_cast<size_t>(answer.tokens[t])], *std::max_element(row.begin(), row.end()) - 0.05f)
            << "sequence " << i << " token " << t;
      }
    }
    EXPECT_EQ(model.recorder.failure(), "");
    EXPECT_EQ(model.recorder.info()->device, "cuda:0");
  }
}

TEST_F(CudaNaNTest, TheEngineReportsThem) {
  Running model(poisoned(DataType::q4_0));
  EXPECT_EQ(model.answer(generation(random_tokens(20, 28, 160), 5)).error, "ERR_INVALID_LOGITS");
  EXPECT_EQ(model.answer(generation(random_tokens(5, 29, 160), 20)).error, "ERR_INVALID_LOGITS");
  EXPECT_EQ(model.answer(generation(random_tokens(3, 30, 160), 3)).tokens.size(), 3u);
  EXPECT_EQ(model.recorder.failure(), "");
}

TEST_F(CudaBackendTest, CancellingEndsAnAnswerAndDisposingEndsAll) {
  Running model(source_);
  const uint32_t cancelled = model.engine->submit(generation(random_tokens(300, 31, 160), 90)),
                 kept = model.engine->submit(generation(random_tokens(20, 32, 160), 30));
  model.engine->cancel(cancelled);
  EXPECT_EQ(model.recorder.wait(kept).tokens.size(), 30u);
  EXPECT_EQ(model.recorder.wait(cancelled).finish->reason, FinishReason::cancelled);
  model.engine->submit(generation(random_tokens(300, 33, 160), 90));
  model.engine->stop();
  model.recorder.wait_until_stopped();
}

}  // namespace
}  // namespace chatglm::test
