// The whole model on the CPU: against a slow forward pass in double precision, and against itself in every way in which
// a prompt can be cut, batched and found again.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/half.h"
#include "cpu/backend.h"
#include "cpu/kernels/kernels.h"
#include "engine/engine.h"
#include "test/random.h"
#include "test/recorder.h"
#include "test/small_model.h"

namespace chatglm {
namespace {

using test::generation;
using test::logits_of;
using test::Recorder;
using test::small_shape;
using Tokens = std::vector<int32_t>;
using Vector = std::vector<double>;

std::vector<Vector> operator*(const std::vector<Vector>& x, const Tensor& weights) {  // x * weights^T, f32
  std::vector<Vector> result;
  for (const Vector& row : x) {
    Vector y(static_cast<size_t>(weights.rows), 0);
    for (int64_t r = 0; r < weights.rows; ++r) {
      for (int64_t i = 0; i < weights.columns; ++i) {
        y[static_cast<size_t>(r)] +=
            row[static_cast<size_t>(i)] * static_cast<double>(weights.floats()[r * weights.columns + i]);
      }
    }
    result.push_back(std::move(y));
  }
  return result;
}

std::vector<Vector> normed(std::vector<Vector> x, const Tensor& weight, double epsilon) {
  for (Vector& row : x) {
    double squares = 0;
    for (const double value : row) squares += value * value;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(row.size()) + epsilon);
    for (size_t i = 0; i < row.size(); ++i) row[i] *= scale * static_cast<double>(weight.floats()[i]);
  }
  return x;
}

// The logits of all positions: THUDM's layer, step by step, with all scores of all positions.
std::vector<Vector> slow_forward(const ModelShape& s, const Weights& w, const Tokens& tokens) {
  const size_t n = tokens.size(), head = static_cast<size_t>(s.head_size);
  std::vector<Vector> x;
  for (const int32_t token : tokens) {
    const float* row = w.embedding.floats() + static_cast<int64_t>(token) * s.hidden_size;
    x.emplace_back(row, row + s.hidden_size);
  }
  for (const LayerWeights& layer : w.layers) {
    auto qkv = normed(x, layer.attention_norm, s.norm_epsilon) * layer.qkv;
    for (size_t t = 0; t < n; ++t) {
      for (size_t i = 0; s.architecture.qkv_bias && i < qkv[t].size(); ++i)
        qkv[t][i] += static_cast<double>(layer.qkv_bias.floats()[i]);
      // Queries of all heads, then keys of all groups: rotated the same way.
      for (size_t h = 0; h < static_cast<size_t>(s.heads + s.kv_groups); ++h) {
        for (size_t j = 0; j < static_cast<size_t>(s.rope_dimension) / 2; ++j) {
          const double theta =
              std::pow(static_cast<double>(s.rope_base), -2.0 * static_cast<double>(j) / s.rope_dimension);
          const double angle = static_cast<double>(t) / static_cast<double>(s.rope_scale) * theta;
          double &a = qkv[t][h * head + 2 * j], &b = qkv[t][h * head + 2 * j + 1];
          const double rotated = a * std::cos(angle) - b * std::sin(angle);
          b = b * std::cos(angle) + a * std::sin(angle);
          a = rotated;
        }
      }
    }
    const size_t keys = static_cast<size_t>(s.query_size()), values = keys + static_cast<size_t>(s.kv_size());
    std::vector<Vector> context(n, Vector(keys, 0));
    for (size_t t = 0; t < n; ++t) {
      for (size_t h = 0; h < static_cast<size_t>(s.heads); ++h) {
        const size_t group = h / static_cast<size_t>(s.heads / s.kv_groups);
        Vector scores(t + 1, 0);
        double largest = -INFINITY, sum = 0;
        for (size_t k = 0; k <= t; ++k) {
          for (size_t d = 0; d < head; ++d) scores[k] += qkv[t][h * head + d] * qkv[k][keys + group * head + d];
          scores[k] /= std::sqrt(static_cast<double>(head));
          largest = std::max(largest, scores[k]);
        }
        for (double& score : scores) sum += score = std::exp(score - largest);
        for (size_t k = 0; k <= t; ++k) {
          for (size_t d = 0; d < head; ++d)
            context[t][h * head + d] += scores[k] / sum * qkv[k][values + group * head + d];
        }
      }
    }
    const auto attended = context * layer.attention_output;
    for (size_t t = 0; t < n; ++t) {
      for (size_t i = 0; i < x[t].size(); ++i) x[t][i] += attended[t][i];
    }
    const auto up = normed(x, layer.ffn_norm, s.norm_epsilon) * layer.ffn_up;
    std::vector<Vector> active(n);
    const size_t ffn = static_cast<size_t>(s.ffn_size);
    for (size_t t = 0; t < n; ++t) {
      for (size_t i = 0; i < ffn; ++i) active[t].push_back(up[t][i] / (1 + std::exp(-up[t][i])) * up[t][ffn + i]);
    }
    const auto down = active * layer.ffn_down;
    for (size_t t = 0; t < n; ++t) {
      for (size_t i = 0; i < x[t].size(); ++i) x[t][i] += down[t][i];
    }
  }
  return normed(x, w.output_norm, s.norm_epsilon) * w.output;
}

Tokens random_prompt(int64_t count, uint64_t seed) {
  test::Random random(seed);
  Tokens tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.integer(0, 159)));
  return tokens;
}

// An engine with a small model.
struct Running {
  Recorder recorder;
  std::unique_ptr<Engine> engine;

  Running(const ModelSource& source, cpu::KvType kv, bool prefix_cache,
          const std::function<void(cpu::CpuWeights&)>& change = nullptr) {
    EngineOptions options;
    options.vocabulary = source.shape.vocabulary;
    options.context_tokens = 400;
    options.max_sequences = 4;
    options.pages = options.least_pages = 4 * options.pages_of_context();
    options.prefix_cache = prefix_cache;
    engine = std::make_unique<Engine>(
        options,
        [=](const Progress& progress, const std::atomic<bool>& abort) {
          cpu::CpuWeights weights = cpu::load_cpu_weights(source, cpu::select_kernels(), progress, abort);
          if (change) change(weights);
          return cpu::make_cpu_backend(source.shape, std::move(weights), {3, options.pages, kv});
        },
        recorder);
  }
  Recorder::Answer answer(const Request& request) { return recorder.wait(engine->submit(request)); }
};

const ModelShape kShapes[] = {small_shape(2, 16, 96, 544), small_shape(1, 32, 96, 1056), small_shape(3, 128, 64, 544)};

class ForwardTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!cpu::kernels_by_name(GetParam())) GTEST_SKIP() << "not on this CPU";
    setenv("CHATGLM_KERNELS", GetParam(), 1);
  }
  void TearDown() override { unsetenv("CHATGLM_KERNELS"); }
};

// A sanitizer makes this ten times slower, and other instruction sets are other kernels only, which have tests of their
// own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kQuick = true;
#else
constexpr bool kQuick = false;
#endif
std::vector<const char*> instruction_sets() {
  if (kQuick) return {cpu::select_kernels().name};
  std::vector<const char*> names;
  for (const cpu::Kernels* kernels : cpu::all_kernels()) names.push_back(kernels->name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(InstructionSets, ForwardTest, testing::ValuesIn(instruction_sets()),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(ForwardTest, EqualsASlowForwardInDoublePrecision) {
  for (ModelShape shape : kShapes) {
    for (const int variant : {0, 1, 2, 3}) {
      if (kQuick && variant != 1) continue;
      // Once so long that attention is computed in two spans.
      const bool is_long = !kQuick && variant == 0 && shape.kv_groups == 1;
      const Tokens prompt = random_prompt(kQuick ? 70 : is_long ? 290 : 150, 40);
      if (variant == 1) shape.rope_scale = 4, shape.rope_dimension = shape.head_size;
      if (variant == 2) shape.rope_scale = 1, shape.rope_base = 5e5f, shape.rope_dimension = shape.head_size / 2;
      if (variant == 3) shape.rope_base = 10000, shape.architecture.qkv_bias = false;
      const ModelSource source = test::random_model(shape, DataType::f32, 77);
      const std::atomic<bool> never{false};
      const Weights weights = load_weights(
          source, [](uint64_t, uint64_t) {}, never);
      const std::vector<Vector> expected = slow_forward(shape, weights, prompt);
      Running model(source, cpu::KvType::f32, true);
      const auto answer = model.answer(logits_of(prompt, 0));
      ASSERT_EQ(answer.logits.size(), prompt.size() * static_cast<size_t>(shape.vocabulary));
      double largest = 0, error = 0;
      for (size_t i = 0; i < answer.logits.size(); ++i) {
        const double wanted =
            expected[i / static_cast<size_t>(shape.vocabulary)][i % static_cast<size_t>(shape.vocabulary)];
        largest = std::max(largest, std::abs(wanted));
        error = std::max(error, std::abs(static_cast<double>(answer.logits[i]) - wanted));
      }
      EXPECT_LT(error / largest, 1e-4) << "head size " << shape.head_size << " variant " << variant;
      EXPECT_GT(largest, 1);
      // The keys and values in f16 are not far from that.
      Running half(source, cpu::KvType::f16, true);
      const auto rough = half.answer(logits_of(prompt, 0));
      double rough_error = 0;
      for (size_t i = 0; i < rough.logits.size(); ++i) {
        rough_error = std::max(rough_error, static_cast<double>(std::fabs(rough.logits[i] - answer.logits[i])));
      }
      EXPECT_LT(rough_error / largest, 2e-2);
      EXPECT_GT(rough_error, 0);
    }
  }
}

void expect_same(const std::vector<float>& actual, const std::vector<float>& expected, int64_t first_row,
                 const char* how) {
  const float* rows = expected.data() + first_row * 160;
  ASSERT_LE(static_cast<size_t>(first_row) * 160 + actual.size(), expected.size()) << how;
  ASSERT_FALSE(actual.empty()) << how;
  ASSERT_EQ(std::memcmp(actual.data(), rows, actual.size() * sizeof(float)), 0) << how << " from row " << first_row;
}

TEST_P(ForwardTest, TheSameBitsHoweverAPromptIsComputed) {
  constexpr int32_t kTokens = kQuick ? 100 : 140;
  const Tokens prompt = random_prompt(kTokens, 41);
  for (const DataType type : {DataType::f32, DataType::f16, DataType::bf16, DataType::q8_0, DataType::q4_0}) {
    if (kQuick && type != DataType::f16 && type != DataType::q4_0) continue;
    for (const cpu::KvType kv : {cpu::KvType::f16, cpu::KvType::f32, cpu::KvType::q8_0}) {
      const ModelShape& shape =
          kShapes[kv == cpu::KvType::q8_0 ? 1 : (static_cast<int>(type) + static_cast<int>(kv)) % 3];
      const ModelSource source = test::random_model(shape, type, 78);
      SCOPED_TRACE(std::string(name_of(type)) + " kv " + std::to_string(static_cast<int>(kv)));

      std::vector<float> all;
      {
        Running model(source, kv, false);
        all = model.answer(logits_of(prompt, 0)).logits;
        ASSERT_EQ(all.size(), static_cast<size_t>(kTokens) * 160);
        for (const float x : all) ASSERT_TRUE(std::isfinite(x));
        // All tokens in one step.
        expect_same(model.answer(logits_of(prompt, kTokens - 1)).logits, all, kTokens - 1, "at once");
        expect_same(model.answer(logits_of(prompt, kTokens - 50)).logits, all, kTokens - 50, "at once, 50 rows");
      }
      Running model(source, kv, true);
      for (int32_t count = 1; count <= kTokens; ++count) {
        const auto answer = model.answer(logits_of(Tokens(prompt.begin(), prompt.begin() + count), count - 1));
        ASSERT_EQ(answer.finish->cached_tokens, count - 1);
        expect_same(answer.logits, all, count - 1, "token by token");
      }
      // After a prefix-cache hit that ends inside of a page.
      model.engine->clear_cache();
      Tokens other(prompt.begin(), prompt.begin() + 70);
      other.push_back((prompt[70] + 1) % 160);
      model.answer(generation(other, 3));
      const auto hit = model.answer(logits_of(prompt, 90));
      EXPECT_EQ(hit.finish->cached_tokens, 70);
      expect_same(hit.logits, all, 90, "after a cache hit");
      // In a batch with other prompts, and in pieces while others are answering.
      model.engine->clear_cache();
      std::vector<uint32_t> ids;
      for (int i = 0; i < 3; ++i)
        ids.push_back(model.engine->submit(generation(random_prompt(30 + 20 * i, 50 + static_cast<uint64_t>(i)), 120)));
      model.recorder.wait_for_tokens(ids[2], 4);
      expect_same(model.answer(logits_of(prompt, 0)).logits, all, 0, "in pieces");
      for (const uint32_t id : ids) model.engine->cancel(id);
      model.engine->clear_cache();
      const uint32_t a = model.engine->submit(logits_of(prompt, kTokens - 40)),
                     b = model.engine->submit(logits_of(random_prompt(99, 60), 10)),
                     c = model.engine->submit(generation(random_prompt(3, 61), 30));
      expect_same(model.recorder.wait(a).logits, all, kTokens - 40, "in a batch");
      model.recorder.wait(b);
      model.recorder.wait(c);
      // A greedy answer is what the logits say, alone and among others.
      model.engine->clear_cache();
      const Tokens answer = model.answer(generation(prompt, 12)).tokens;
      Tokens whole = prompt;
      whole.insert(whole.end(), answer.begin(), answer.end());
      model.engine->clear_cache();
      const auto rows = model.answer(logits_of(whole, kTokens - 1)).logits;
      for (size_t i = 0; i < answer.size(); ++i) {
        const float* row = rows.data() + i * 160;
        EXPECT_EQ(std::max_element(row, row + 160) - row, answer[i]);
      }
      const uint32_t again = model.engine->submit(generation(prompt, 12)),
                     beside = model.engine->submit(generation(random_prompt(130, 62), 40));
      EXPECT_EQ(model.recorder.wait(again).tokens, answer);
      model.recorder.wait(beside);
    }
  }
}

// Attention to more than 256 tokens is computed in spans: by one thread or shared out, for prompts, for pieces of them
// and for single tokens.
TEST_P(ForwardTest, TheSameBitsOfALongContextHoweverItIsComputed) {
  constexpr int32_t kTokens = 330;
  const Tokens prompt = random_prompt(kTokens, 43);
  for (const cpu::KvType kv : {cpu::KvType::f16, cpu::KvType::f32, cpu::KvType::q8_0}) {
    if (kQuick && kv != cpu::KvType::f16) continue;
    const ModelSource source = test::random_model(kShapes[1], DataType::q4_0, 80);
    SCOPED_TRACE("kv " + std::to_string(static_cast<int>(kv)));
    Running model(source, kv, true);
    const std::vector<float> all = model.answer(logits_of(prompt, 0)).logits;
    ASSERT_EQ(all.size(), static_cast<size_t>(kTokens) * 160);
    for (const auto& [first, step] : {std::pair{250, 1}, {257, 3}, {300, 30}}) {
      model.engine->clear_cache();
      model.answer(logits_of(Tokens(prompt.begin(), prompt.begin() + first), first - 1));
      for (int32_t count = first + step; count <= std::min(kTokens, first + 12 * step); count += step) {
        const auto answer = model.answer(logits_of(Tokens(prompt.begin(), prompt.begin() + count), count - step));
        ASSERT_EQ(answer.finish->cached_tokens, count - step);
        expect_same(answer.logits, all, count - step, "in pieces");
      }
    }
    // Many sequences at a time: their tasks are more than the threads need.
    model.engine->clear_cache();
    std::vector<uint32_t> ids;
    for (int i = 0; i < 4; ++i) {
      const Tokens beginning(prompt.begin(), prompt.begin() + 280 + 10 * i);
      ids.push_back(model.engine->submit(logits_of(beginning, 270 + 10 * i)));
    }
    for (int i = 0; i < 4; ++i)
      expect_same(model.recorder.wait(ids[static_cast<size_t>(i)]).logits, all, 270 + 10 * i, "in a batch");
  }
}

// A single number that is not finite, wherever it is, must be found and not be rounded away.
TEST_P(ForwardTest, NaNWeightsAreReported) {
  const Tokens prompt = random_prompt(20, 42);
  for (const DataType type : {DataType::f32, DataType::f16, DataType::q8_0, DataType::q4_0}) {
    const ModelSource source = test::random_model(kShapes[0], type, 79);
    const auto poison = [&](cpu::PackedMatrix& matrix, int64_t row) {
      // The first number of a row: of quantized types its first scale.
      const int64_t lanes = cpu::select_kernels().lanes;
      const bool gated = matrix.order == cpu::PackedMatrix::Order::gated;
      const int64_t vector = gated ? row / matrix.outputs : row / lanes % 2;
      const int64_t panel = gated ? row % matrix.outputs / lanes : row / (2 * lanes);
      const int64_t lane = gated ? row % matrix.outputs % lanes : row % lanes;
      uint8_t* data = matrix.data.data() + panel * matrix.panel_bytes;
      if (type == DataType::f32) {
        const float nan = NAN;
        std::memcpy(data + 4 * (vector * lanes + lane), &nan, 4);
      } else {
        store_u16(data + 2 * (vector * lanes + lane), 0x7e00);
      }
    };
    const std::function<void(cpu::CpuWeights&)> changes[] = {
        [&](cpu::CpuWeights& w) { poison(w.layers[0].qkv, 1); },                            // a query
        [&](cpu::CpuWeights& w) { poison(w.layers[0].qkv, kShapes[0].query_size() + 1); },  // a key
        [&](cpu::CpuWeights& w) { poison(w.layers[1].qkv, kShapes[0].qkv_size() - 1); },    // a value
        [&](cpu::CpuWeights& w) { poison(w.layers[0].attention_output, 3); },
        [&](cpu::CpuWeights& w) { poison(w.layers[1].ffn_up, 17); },  // a gate
        [&](cpu::CpuWeights& w) { poison(w.layers[1].ffn_up, kShapes[0].ffn_size + 5); },
        [&](cpu::CpuWeights& w) { poison(w.layers[1].ffn_down, 8); },
        [&](cpu::CpuWeights& w) { poison(w.output, 100); },
    };
    int index = 0;
    for (const auto& change : changes) {
      Running model(source, cpu::KvType::f16, true, change);
      EXPECT_EQ(model.answer(generation(prompt, 5)).error, "ERR_INVALID_LOGITS") << name_of(type) << " " << index;
      EXPECT_EQ(model.recorder.failure(), "");
      ++index;
    }
  }
}

TEST_P(ForwardTest, TheBackendSaysWhatItIs) {
  const ModelSource source = test::random_model(kShapes[1], DataType::q4_0);
  Running model(source, cpu::KvType::f16, true);
  model.recorder.wait_until_ready();
  const BackendInfo info = *model.recorder.info();
  EXPECT_EQ(info.device, "cpu");
  EXPECT_EQ(info.kernels, GetParam());
  EXPECT_EQ(info.threads, 3);
  uint64_t bytes = 0;
  for (const TensorSource& t : source.tensors) bytes += static_cast<uint64_t>(t.rows * row_bytes(t.type, t.columns));
  EXPECT_EQ(info.weight_bytes, bytes);
  EXPECT_EQ(info.bytes_per_token, bytes - static_cast<uint64_t>(159 * row_bytes(DataType::q4_0, 96)));
  EXPECT_EQ(info.mapped_bytes, 0u);
  EXPECT_EQ(info.pages, 4 * 7);
  EXPECT_EQ(info.page_bytes, 64u * 2 * 2 * 32 * 2);  // 64 tokens; 2 layers; keys and values of 32 f16
  EXPECT_EQ(info.page_layout, "cpu-f16-64");
}

// A backend without an engine: the test says which pages a sequence has.
struct Bare {
  static constexpr int32_t kPages = 12;
  std::unique_ptr<Backend> backend;
  const std::atomic<bool> never{false};

  explicit Bare(const ModelSource& source, cpu::KvType kv = cpu::KvType::f16, int32_t threads = 3) {
    cpu::CpuWeights weights = cpu::load_cpu_weights(
        source, cpu::select_kernels(), [](uint64_t, uint64_t) {}, never);
    backend = cpu::make_cpu_backend(source.shape, std::move(weights), {threads, kPages, kv});
  }
};

// Rows of all uses in one batch, more than are computed at once: each outcome is what the reference makes of the
// logits.
TEST_P(ForwardTest, RowsOfAllUsesInOneBatch) {
  const ModelSource source = test::random_model(kShapes[1], DataType::q4_0, 81);
  Bare bare(source);
  const Tokens first = random_prompt(150, 44), second = random_prompt(80, 45);
  const std::vector<int32_t> first_pages = {0, 1, 2}, second_pages = {3, 4};
  const auto run = [&](const std::vector<Row>& rows_of_first, const std::vector<Row>& rows_of_second,
                       std::vector<float>& logits, std::vector<Outcome>& outcomes) {
    const Segment batch[] = {{.tokens = first, .pages = first_pages, .rows = rows_of_first},
                             {.tokens = second, .pages = second_pages, .rows = rows_of_second}};
    return bare.backend->forward(batch, logits.data(), outcomes.data(), bare.never);
  };
  // Every row's logits, 64 of them at most in a batch.
  std::vector<float> all;
  for (size_t end = first.size() - 90; end <= first.size(); end += 30) {
    std::vector<float> logits(30 * 160);
    const std::vector<Row> rows(30);
    const Segment batch[] = {{.tokens = std::span(first).first(end), .pages = first_pages, .rows = rows}};
    ASSERT_TRUE(bare.backend->forward(batch, logits.data(), nullptr, bare.never));
    all.insert(all.end(), logits.begin(), logits.end());
  }
  std::vector<float> of_second(50 * 160);
  std::vector<Outcome> none;
  ASSERT_TRUE(run({}, std::vector<Row>(50), of_second, none));
  all.insert(all.end(), of_second.begin(), of_second.end());

  test::Random random(46);
  const TokenBias bias[] = {{3, 2.0f}, {159, -1.0f}};
  std::vector<Draw> draws(170);
  std::vector<Row> rows_of_first, rows_of_second;
  for (size_t i = 0; i < draws.size(); ++i) {
    Draw& draw = draws[i];
    draw.inverse_temperature = i % 5 == 0 ? 0 : 1.25f;
    draw.top_k = i % 3 == 0 ? 20 : 0;
    draw.top_p = i % 4 == 0 ? 0.8f : 1;
    draw.random = static_cast<uint64_t>(random.integer(0, INT64_MAX - 1)) * 2;
    if (i % 7 == 0) draw.bias = bias;
    Row row;
    row.use = i % 3 == 1 ? Row::Use::score : i % 11 == 0 ? Row::Use::logits : Row::Use::sample;
    row.target = row.use == Row::Use::score ? static_cast<int32_t>(i % 160) : -1;
    row.logprobs = row.use == Row::Use::score ? 3 : static_cast<int32_t>(i % 4) - 1;
    if (row.use == Row::Use::sample) row.draw = &draw;
    (i < 120 ? rows_of_first : rows_of_second).push_back(row);
  }
  // The first of these rows is that of token 30 of the first sequence, and of token 30 of the second.
  std::vector<float> logits(64 * 160, -1);
  std::vector<Outcome> outcomes(170);
  ASSERT_TRUE(run(rows_of_first, rows_of_second, logits, outcomes));
  std::vector<Row> rows = rows_of_first;
  rows.insert(rows.end(), rows_of_second.begin(), rows_of_second.end());
  size_t logits_row = 0, outcome = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::span<const float> expected = std::span(all).subspan(i * 160, 160);
    SCOPED_TRACE(i);
    if (rows[i].use == Row::Use::logits) {
      ASSERT_EQ(std::memcmp(logits.data() + 160 * logits_row++, expected.data(), 160 * sizeof(float)), 0);
      continue;
    }
    const Outcome wanted = outcome_of(rows[i], expected), &found = outcomes[outcome++];
    ASSERT_EQ(found.status, Outcome::Status::ok);
    ASSERT_EQ(found.token, wanted.token);
    ASSERT_EQ(found.count, wanted.count);
    if (rows[i].logprobs >= 0) ASSERT_NEAR(found.logprob, wanted.logprob, 1e-5);
    for (int32_t j = 0; j < wanted.count; ++j) {
      ASSERT_EQ(found.ids[j], wanted.ids[j]);
      ASSERT_NEAR(found.logprobs[j], wanted.logprobs[j], 1e-5);
    }
  }
  EXPECT_GT(logits_row, 4u);
  EXPECT_EQ(logits_row + outcome, 170u);
}

// A sequence goes on from pages that another backend has computed, with the same bits.
TEST_P(ForwardTest, PagesGoToAnotherBackend) {
  for (const cpu::KvType kv : {cpu::KvType::f16, cpu::KvType::f32, cpu::KvType::q8_0}) {
    const ModelSource source = test::random_model(kShapes[1], DataType::q4_0, 82);
    const Tokens prompt = random_prompt(100, 47);
    const std::vector<Row> row(1);
    std::vector<float> expected(160), found(160);
    Bare from(source, kv), to(source, kv, 1);
    ASSERT_EQ(from.backend->info().page_layout, to.backend->info().page_layout);
    const std::vector<int32_t> pages = {2, 5}, other_pages = {7, 1};
    const Segment whole[] = {{.tokens = prompt, .pages = pages, .rows = row}};
    ASSERT_TRUE(from.backend->forward(whole, expected.data(), nullptr, from.never));
    std::vector<uint8_t> bytes(from.backend->info().page_bytes + 1, 0xa5);
    for (size_t i = 0; i < pages.size(); ++i) {
      from.backend->read_page(pages[i], bytes.data());
      ASSERT_EQ(bytes.back(), 0xa5);
      to.backend->write_page(other_pages[i], bytes.data());
    }
    const Segment last[] = {{.tokens = std::span(prompt).last(1), .position = 99, .pages = other_pages, .rows = row}};
    ASSERT_TRUE(to.backend->forward(last, found.data(), nullptr, to.never));
    EXPECT_EQ(std::memcmp(found.data(), expected.data(), 160 * sizeof(float)), 0);
  }
}

TEST(Backend, WeightsThatCannotFitAreRefusedBeforeAnythingIsRead) {
  ModelShape shape = kShapes[0];
  shape.vocabulary = 1 << 20;
  shape.hidden_size = 1 << 16;
  const std::atomic<bool> never{false};
  try {
    cpu::load_cpu_weights(
        test::random_model(shape, DataType::f32), cpu::select_kernels(), [](uint64_t, uint64_t) { FAIL(); }, never);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, "ERR_OUT_OF_MEMORY");
    EXPECT_NE(std::string(error.what()).find("the weights need 26"), std::string::npos) << error.what();
  }
}

TEST(Backend, KeysAndValuesThatCannotFitAreRefused) {
  const ModelSource source = test::random_model(kShapes[0], DataType::q4_0);
  const std::atomic<bool> never{false};
  for (const int32_t pages : {1 << 27, INT32_MAX}) {
    try {
      cpu::make_cpu_backend(source.shape,
                            cpu::load_cpu_weights(
                                source, cpu::select_kernels(), [](uint64_t, uint64_t) {}, never),
                            {1, pages, cpu::KvType::f32});
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code, "ERR_OUT_OF_MEMORY");
    }
  }
}

}  // namespace
}  // namespace chatglm
