#pragma once
#include <algorithm>
#include <chrono>
#include <functional>
#include <numeric>
#include <thread>

#include "cpu/backend.h"
#include "cuda/api.h"
#include "model/quantize.h"
#include "test/cuda/support.h"
#include "test/small_model.h"

// What the tests of the whole CUDA backend share: models on the GPU and, exact, on the CPU; sequences whose pages lie
// among each other's; random batches; and comparisons of logits.
namespace chatglm::test {

using Tokens = std::vector<int32_t>;
using Pages = std::vector<int32_t>;
using Rows = std::vector<float>;  // of logits

// Activations are f16 here: about 2e-3 of the logits' norm.
constexpr double kBar = 1e-2;
// Keys and values in q8_0 are off by up to 0.4% of the largest of their 32.
constexpr double kQ8Bar = 3e-2;
// A single row may be this much worse than all of them together.
constexpr double kRowFactor = 3;

inline const std::atomic<bool> kNever{false};
inline void no_progress(uint64_t, uint64_t) {}

inline cuda::CudaOptions options_of(int32_t pages, int32_t sequences, int32_t context, bool kv_q8_0 = false) {
  cuda::CudaOptions options;
  options.pages = pages;
  options.max_sequences = sequences;
  options.context_tokens = context;
  options.kv_q8_0 = kv_q8_0;
  return options;
}

/// Rows whose logits are wanted.
inline std::span<const Row> logits_rows(int64_t count) {
  static const std::vector<Row> rows(4096);
  return std::span(rows).first(static_cast<size_t>(count));
}
/// Rows whose likeliest token is wanted, and the log-probabilities of kLikeliest.
constexpr int32_t kLikeliest = 64;
inline std::span<const Row> greedy_rows(int64_t count) {
  static const Draw draw;
  static const std::vector<Row> rows(4096, Row{Row::Use::sample, -1, kLikeliest, &draw});
  return std::span(rows).first(static_cast<size_t>(count));
}

inline Tokens random_tokens(int64_t count, uint64_t seed, int32_t vocabulary) {
  Random random(seed);
  Tokens tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.integer(0, vocabulary - 1)));
  return tokens;
}

inline Pages shuffled_pages(int32_t count, uint64_t seed) {
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
      const Segment segment = {{prompt.data() + begin, static_cast<size_t>(count)}, begin, pages, logits_rows(rows)};
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

inline std::span<const float> row_of(const Rows& rows, int32_t vocabulary, int64_t index) {
  return std::span<const float>(rows).subspan(static_cast<size_t>(index * vocabulary), static_cast<size_t>(vocabulary));
}

inline double row_error(std::span<const float> actual, std::span<const float> expected) {
  return relative_error(std::vector<float>(actual.begin(), actual.end()),
                        std::vector<float>(expected.begin(), expected.end()));
}

/// `actual` beside the rows of `expected` from `first` on: all together, and each by itself.
inline void expect_close(const Rows& actual, const Rows& expected, int32_t vocabulary, int32_t first,
                         const std::string& how, double bar = kBar) {
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

/// A greedy outcome beside an exact row.
inline void expect_outcome_close(const Outcome& outcome, std::span<const float> expected, const std::string& how) {
  ASSERT_EQ(outcome.status, Outcome::Status::ok) << how;
  ASSERT_EQ(outcome.count, std::min(kLikeliest, static_cast<int32_t>(expected.size()))) << how;
  const double largest = *std::max_element(expected.begin(), expected.end());
  double sum = 0;
  for (const float x : expected) sum += std::exp(x - largest);
  const double log_sum = largest + std::log(sum);
  std::vector<float> actual, exact;
  for (int32_t i = 0; i < outcome.count; ++i) {
    ASSERT_GE(outcome.ids[i], 0) << how;
    ASSERT_LT(outcome.ids[i], static_cast<int32_t>(expected.size())) << how;
    if (i > 0) ASSERT_LE(outcome.logprobs[i], outcome.logprobs[i - 1]) << how;
    actual.push_back(outcome.logprobs[i]);
    exact.push_back(static_cast<float>(expected[static_cast<size_t>(outcome.ids[i])] - log_sum));
  }
  EXPECT_EQ(outcome.token, outcome.ids[0]) << how;
  EXPECT_EQ(outcome.logprob, outcome.logprobs[0]) << how;
  EXPECT_LT(relative_error(actual, exact), kRowFactor * kBar) << how;
}

/// An outcome beside what the plain reference makes of the row that the same kernels gave.
inline void expect_outcome_is(const Outcome& outcome, const Row& row, std::span<const float> logits,
                              const std::string& how) {
  const Outcome wanted = outcome_of(row, logits);
  ASSERT_EQ(outcome.status, wanted.status) << how;
  if (wanted.status != Outcome::Status::ok) return;
  ASSERT_EQ(outcome.token, wanted.token) << how;
  ASSERT_EQ(outcome.count, wanted.count) << how;
  if (row.use == Row::Use::score || row.logprobs >= 0) {
    EXPECT_NEAR(outcome.logprob, wanted.logprob, 1e-4) << how;
  }
  for (int32_t i = 0; i < wanted.count; ++i) {
    ASSERT_EQ(outcome.ids[i], wanted.ids[i]) << how << ", number " << i;
    ASSERT_NEAR(outcome.logprobs[i], wanted.logprobs[i], 1e-4) << how << ", number " << i;
  }
}

/// All that a call gave, bit for bit.
struct Record {
  std::vector<uint8_t> bytes;

  void add(const Rows& rows) {
    const auto* data = reinterpret_cast<const uint8_t*>(rows.data());
    bytes.insert(bytes.end(), data, data + rows.size() * sizeof(float));
  }
  void add(const Outcome& outcome) {
    Rows numbers = {static_cast<float>(outcome.status), static_cast<float>(outcome.token), outcome.logprob};
    for (int32_t i = 0; i < outcome.count; ++i) {
      numbers.push_back(static_cast<float>(outcome.ids[i]));
      numbers.push_back(outcome.logprobs[i]);
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
inline std::vector<Sequence> make_sequences(const std::vector<int32_t>& lengths, int32_t pages, uint64_t seed,
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

/// Computes all sequences in random batches: pieces of prompts beside single tokens, rows of logits beside outcomes,
/// beside none at all.
inline void run_in_batches(Model& model, std::vector<Sequence>& sequences, uint64_t seed, Record* record) {
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
                       random.chance(0.4) ? greedy_rows(rows) : logits_rows(rows)});
      owners.push_back(&sequence);
      room -= count;
      logits_room -= rows;
    }
    if (batch.empty()) continue;
    Rows logits;
    std::vector<Outcome> outcomes;
    const auto is_greedy = [](const Segment& segment) {
      return !segment.rows.empty() && segment.rows[0].use == Row::Use::sample;
    };
    for (const Segment& segment : batch) {
      if (is_greedy(segment)) {
        outcomes.resize(outcomes.size() + segment.rows.size());
      } else {
        logits.resize(logits.size() + segment.rows.size() * static_cast<size_t>(model.vocabulary), NAN);
      }
    }
    ASSERT_TRUE(model.backend->forward(batch, logits.data(), outcomes.data(), kNever));
    if (record) {
      record->add(logits);
      for (const Outcome& outcome : outcomes) record->add(outcome);
    }
    int64_t row = 0;
    size_t outcome = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      Sequence& sequence = *owners[i];
      sequence.done += static_cast<int32_t>(batch[i].tokens.size());
      const std::string how = "step " + std::to_string(step) + ", segment " + std::to_string(i);
      for (int32_t position = sequence.done - static_cast<int32_t>(batch[i].rows.size()); position < sequence.done;
           ++position) {
        const Outcome* const given = is_greedy(batch[i]) ? &outcomes[outcome++] : nullptr;
        const int64_t given_row = given ? 0 : row++;
        if (sequence.expected.empty()) continue;
        const std::span<const float> expected = row_of(sequence.expected, model.vocabulary, position);
        if (given) {
          expect_outcome_close(*given, expected, how);
        } else {
          ASSERT_LT(row_error(row_of(logits, model.vocabulary, given_row), expected), kRowFactor * kBar) << how;
        }
      }
    }
  }
}

/// The next token of each sequence in one batch: rows of logits, or greedy outcomes. The positions must not move, so
/// that it can be done again.
inline Rows decode_rows(Model& model, const std::vector<Segment>& batch) {
  Rows rows(batch.size() * static_cast<size_t>(model.vocabulary), NAN);
  EXPECT_TRUE(model.backend->forward(batch, rows.data(), nullptr, kNever));
  return rows;
}
inline std::vector<Outcome> decode_greedily(Model& model, std::vector<Segment> batch) {
  for (Segment& segment : batch) segment.rows = greedy_rows(1);
  std::vector<Outcome> outcomes(batch.size());
  EXPECT_TRUE(model.backend->forward(batch, nullptr, outcomes.data(), kNever));
  return outcomes;
}

// --- The model that most tests use.

class CudaBackendTest : public CudaTest {
 protected:
  const ModelShape shape_ = small_shape(2, 32, 96, 1056);
  const ModelSource source_ = random_model(shape_, DataType::q4_0, 9);
};

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

}  // namespace chatglm::test
