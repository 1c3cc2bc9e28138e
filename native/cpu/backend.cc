#include "cpu/backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "cpu/sampling.h"
#include "model/quantize.h"

namespace chatglm::cpu {

namespace {

constexpr int32_t kMaxBatchTokens = 256;
constexpr int32_t kMaxBatchLogits = 64;
// Positions of a segment that attend together, so that each page is read and converted once for all of them.
constexpr int32_t kAttentionTokens = 8;
// The softmax of a long context is computed in spans of so many pages, which are then merged in their order. One thread
// does the same as several threads would, so that the result has the same bits.
constexpr int32_t kSpanPages = 4;
// Threads share the spans of a task if the states of all spans fit into so many bytes.
constexpr int64_t kMostStateBytes = 16 << 20;

Epilogue epilogue_of(Architecture::Activation activation) {
  switch (activation) {
    case Architecture::Activation::swiglu: break;
  }
  return Epilogue::swiglu;
}

bool is_quantized(DataType type) { return type == DataType::q8_0 || type == DataType::q4_0; }

/// Rows of activations, and their codes, which are the operand of products with quantized weights. Where codes of 8
/// bits are too coarse (`passes` of 2), a second row of codes holds the remainder that the first row leaves.
struct Activations {
  Activations(int64_t columns, int64_t passes)
      : columns(columns),
        passes(passes),
        floats(static_cast<size_t>(kMaxBatchTokens * columns)),
        blocks(floats.size() / kBlockElements * static_cast<size_t>(passes)) {}

  float* row(int64_t token) { return floats.data() + token * columns; }
  ActivationBlock* block_row(int64_t row) { return blocks.data() + row * (columns / kBlockElements); }

  int64_t columns, passes;
  std::vector<float> floats;            // (tokens, columns)
  std::vector<ActivationBlock> blocks;  // (tokens, passes, columns / 32)
};

/// Softmax states of some query rows.
struct States {
  std::vector<float> largest, sums;  // (rows)
  std::vector<float> results;        // (rows, head_size)

  void reset(int32_t rows, int32_t head_size) {
    largest.assign(static_cast<size_t>(rows), -std::numeric_limits<float>::infinity());
    sums.assign(static_cast<size_t>(rows), 0.0f);
    results.assign(static_cast<size_t>(rows) * static_cast<size_t>(head_size), 0.0f);
  }
  AttentionState view() { return {largest.data(), sums.data(), results.data()}; }
  static int64_t bytes(int64_t rows, int64_t head_size) { return rows * (head_size + 2) * 4; }
};

// Scores go through exp(), so the rounding of the activations that queries and keys are computed from is the largest
// error of the whole model. With two passes the error on the reference checkpoints is 1.6% of the logits instead of
// 2.3%.
constexpr int64_t kQkvPasses = 2;

// The product of two sizes, or the largest size if it overflows: a Buffer of that size is refused as out of memory.
size_t product_or_most(size_t a, size_t b) {
  return b != 0 && a > std::numeric_limits<size_t>::max() / b ? std::numeric_limits<size_t>::max() : a * b;
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelShape& shape, CpuWeights weights, const CpuOptions& options)
      : shape_(shape),
        weights_(std::move(weights)),
        kernels_(*weights_.kernels),
        kv_type_(options.kv_type),
        kv_(product_or_most(static_cast<size_t>(options.pages), static_cast<size_t>(page_bytes())),
            "the key/value cache"),
        pool_(options.threads),
        frequencies_(rope_frequencies(shape)),
        residual_(static_cast<size_t>(kMaxBatchTokens) * static_cast<size_t>(shape.hidden_size)),
        normed_(shape.hidden_size, 1),
        normed_for_qkv_(shape.hidden_size, kQkvPasses),
        qkv_(static_cast<size_t>(kMaxBatchTokens * kQkvPasses) * static_cast<size_t>(shape.qkv_size())),
        attended_(shape.query_size(), 1),
        activated_(shape.ffn_size, 1),
        zero_bias_(shape.architecture.qkv_bias ? 0 : static_cast<size_t>(shape.qkv_size()), 0.0f),
        cosines_(static_cast<size_t>(kMaxBatchTokens) * static_cast<size_t>(shape.rope_dimension)),
        sines_(cosines_.size()) {}

  BackendInfo info() const override {
    BackendInfo info;
    info.device = "cpu";
    info.kernels = kernels_.name;
    info.threads = pool_.threads();
    const Weights& weights = weights_.unpacked;
    for (const auto& [type, bytes] : weights.bytes_by_type) info.weight_bytes += bytes;
    info.weight_types = weights.bytes_by_type;
    const bool tied = weights.output.data == weights.embedding.data;
    const int64_t embeddings = tied ? 0 : weights.embedding.bytes() - weights.embedding.row_bytes();
    info.bytes_per_token = info.weight_bytes - static_cast<uint64_t>(embeddings);
    info.mapped_bytes = weights.mapped_bytes;
    info.kv_type = kv_type_ == KvType::f16 ? "f16" : kv_type_ == KvType::f32 ? "f32" : "q8_0";
    info.page_bytes = static_cast<uint64_t>(page_bytes());
    info.pages = static_cast<int32_t>(kv_.size() / info.page_bytes);
    // All instruction sets store the same bytes.
    info.page_layout = "cpu-" + info.kv_type + "-" + std::to_string(kPageTokens);
    return info;
  }
  int32_t max_batch_tokens() const override { return kMaxBatchTokens; }
  int32_t max_batch_logits() const override { return kMaxBatchLogits; }

  bool forward(std::span<const Segment> batch, float* logits, Outcome* outcomes,
               const std::atomic<bool>& abort) override {
    const ThreadPool::Turn turn(pool_);
    abort_ = &abort;
    tokens_ = 0;
    for (const Segment& segment : batch) embed(segment);
    for (int32_t layer = 0; layer < shape_.layers && !abort; ++layer) {
      attention(layer, batch);
      feed_forward(layer);
    }
    output(batch, logits, outcomes);
    return !abort;
  }

  // Copies whole pages: the slots from `tokens` on are written before they are read.
  void copy_page(int32_t from, int32_t to, int32_t) override {
    std::memcpy(kv_page(to, 0, 0, false), kv_page(from, 0, 0, false), static_cast<size_t>(page_bytes()));
  }
  void read_page(int32_t page, uint8_t* target) override {
    std::memcpy(target, kv_page(page, 0, 0, false), static_cast<size_t>(page_bytes()));
  }
  void write_page(int32_t page, const uint8_t* source) override {
    std::memcpy(kv_page(page, 0, 0, false), source, static_cast<size_t>(page_bytes()));
  }

 private:
  // The key/value memory: (pages, layers, groups, keys then values, head_page_bytes()).
  int64_t head_page_bytes() const { return kv_page_bytes(kv_type_, shape_.head_size); }
  int64_t page_bytes() const { return 2 * shape_.layers * shape_.kv_groups * head_page_bytes(); }
  uint8_t* kv_page(int32_t page, int32_t layer, int32_t group, bool values) {
    const int64_t index =
        ((static_cast<int64_t>(page) * shape_.layers + layer) * shape_.kv_groups + group) * 2 + values;
    return kv_.data() + index * head_page_bytes();
  }

  // Kinds of work, whose costs are measured apart.
  enum Work { kNorm, kQkv, kQuantize, kAttentionOutput, kUp, kDown, kOutput, kWorks };
  // The cost of a unit of work differs much between batches of 1, of a few and of many tokens.
  ThreadPool::Cost& cost(Work work) {
    return costs_[work][tokens_ == 1 ? 0 : tokens_ <= 8 ? 1 : tokens_ <= 64 ? 2 : 3];
  }

  // Appends the embeddings of a segment's tokens and the rotations of their positions to the batch.
  void embed(const Segment& segment) {
    const Tensor& embedding = weights_.unpacked.embedding;
    for (size_t i = 0; i < segment.tokens.size(); ++i, ++tokens_) {
      to_float(embedding.type, embedding.row(segment.tokens[i]), 1, shape_.hidden_size,
               residual_.data() + tokens_ * shape_.hidden_size);
      const float position = static_cast<float>(segment.position + static_cast<int32_t>(i)) / shape_.rope_scale;
      float *cosines = cosines_.data() + tokens_ * shape_.rope_dimension,
            *sines = sines_.data() + tokens_ * shape_.rope_dimension;
      for (size_t j = 0; j < frequencies_.size(); ++j) {
        const float angle = position * frequencies_[j];
        cosines[2 * j] = cosines[2 * j + 1] = std::cos(angle);
        sines[2 * j + 1] = std::sin(angle);
        sines[2 * j] = -sines[2 * j + 1];
      }
    }
  }

  // The attention of some positions of a segment in one key/value group.
  struct AttentionTask {
    const Segment* segment;
    int64_t first;  // the batch's index of the segment's first token
    int32_t begin, end;
    int32_t group;

    int32_t last_position() const { return segment->position + end - 1; }
    int32_t pages() const { return last_position() / kPageTokens + 1; }
    int32_t spans() const { return (pages() + kSpanPages - 1) / kSpanPages; }
  };

  int32_t group_heads() const { return shape_.heads / shape_.kv_groups; }

  void attention(int32_t layer, std::span<const Segment> batch) {
    const CpuWeights::Layer& packed = weights_.layers[static_cast<size_t>(layer)];
    const LayerWeights& unpacked = weights_.unpacked.layers[static_cast<size_t>(layer)];
    norm(unpacked.attention_norm, packed.qkv, normed_for_qkv_);
    qkv_passes_ = is_quantized(packed.qkv.type) ? kQkvPasses : 1;
    multiply(kQkv, packed.qkv, normed_for_qkv_, tokens_ * qkv_passes_, qkv_.data(), shape_.qkv_size(), Epilogue::store);

    int64_t first = 0;
    int32_t spans = 0;
    bool alone = true;  // each segment is one task a group, so no task needs keys that another task stores
    tasks_.clear();
    for (const Segment& segment : batch) {
      const auto count = static_cast<int32_t>(segment.tokens.size());
      alone = alone && count <= kAttentionTokens;
      for (int32_t begin = 0; begin < count; begin += kAttentionTokens) {
        const int32_t end = std::min(count, begin + kAttentionTokens);
        for (int32_t group = 0; group < shape_.kv_groups; ++group) {
          tasks_.push_back({&segment, first, begin, end, group});
          spans = std::max(spans, tasks_.back().spans());
        }
      }
      first += count;
    }
    const auto tasks = static_cast<int64_t>(tasks_.size());
    const float* bias = shape_.architecture.qkv_bias ? unpacked.qkv_bias.floats() : zero_bias_.data();
    const int64_t state_bytes = States::bytes(kAttentionTokens * group_heads(), shape_.head_size);
    if (tasks < 2 * pool_.threads() && spans > 1 && tasks * spans * state_bytes <= kMostStateBytes) {
      // There are few queries and many keys, as in decoding after a long prompt: threads share the spans.
      pool_.run(tasks, *abort_, [&](int64_t i) { rotate_and_store(layer, tasks_[static_cast<size_t>(i)], bias); });
      states_.resize(std::max(states_.size(), static_cast<size_t>(tasks * spans)));
      pool_.run(tasks * spans, *abort_, [&](int64_t i) {
        const AttentionTask& task = tasks_[static_cast<size_t>(i / spans)];
        const auto span = static_cast<int32_t>(i % spans);
        if (span < task.spans()) attend(layer, task, span, states_[static_cast<size_t>(i)]);
      });
      pool_.run(tasks, *abort_, [&](int64_t i) {
        const AttentionTask& task = tasks_[static_cast<size_t>(i)];
        States& state = states_[static_cast<size_t>(i * spans)];
        for (int32_t span = 1; span < task.spans(); ++span) {
          merge(task, state, states_[static_cast<size_t>(i * spans + span)]);
        }
        finish_attention(task, state);
      });
    } else if (alone) {
      pool_.run(tasks, *abort_, [&](int64_t i) {
        rotate_and_store(layer, tasks_[static_cast<size_t>(i)], bias);
        attend_all(layer, tasks_[static_cast<size_t>(i)]);
      });
    } else {
      pool_.run(tasks, *abort_, [&](int64_t i) { rotate_and_store(layer, tasks_[static_cast<size_t>(i)], bias); });
      // The last positions of a segment see the most pages, so their tasks begin first.
      pool_.run(tasks, *abort_, [&](int64_t i) { attend_all(layer, tasks_[static_cast<size_t>(tasks - 1 - i)]); });
    }
    if (is_quantized(packed.attention_output.type)) {
      for_tokens(kQuantize, [&](int64_t token) { quantize_row_of(attended_, token, packed.attention_output.type); });
    }
    multiply(kAttentionOutput, packed.attention_output, attended_, tokens_, residual_.data(), shape_.hidden_size,
             Epilogue::add);
  }

  float* qkv_row(int64_t token) { return qkv_.data() + token * qkv_passes_ * shape_.qkv_size(); }

  // Completes the queries, keys and values of a task (sum of the passes, bias, rotation) and stores keys and values.
  void rotate_and_store(int32_t layer, const AttentionTask& task, const float* bias) {
    const int32_t heads = group_heads(), size = shape_.head_size;
    for (int32_t i = task.begin; i < task.end; ++i) {
      const int64_t token = task.first + i;
      float* row = qkv_row(token);
      Rotation rotation;
      rotation.count = size;
      rotation.rope_dimension = shape_.rope_dimension;
      const auto complete = [&](int32_t first, bool rotated, float scale) {
        rotation.sum = rotation.y = row + first;
        rotation.second_pass = qkv_passes_ > 1 ? row + shape_.qkv_size() + first : nullptr;
        rotation.bias = bias + first;
        rotation.cosines = rotated ? cosines_.data() + token * shape_.rope_dimension : nullptr;
        rotation.sines = rotated ? sines_.data() + token * shape_.rope_dimension : nullptr;
        rotation.scale = scale;
        kernels_.rotate(rotation);
        return row + first;
      };
      const float scale = 1.0f / std::sqrt(static_cast<float>(size));
      for (int32_t h = task.group * heads; h < (task.group + 1) * heads; ++h) complete(h * size, true, scale);
      const float* key = complete(shape_.query_size() + task.group * size, true, 1);
      const float* value = complete(shape_.query_size() + shape_.kv_size() + task.group * size, false, 1);
      const int32_t position = task.segment->position + i;
      const int32_t page = task.segment->pages[static_cast<size_t>(position / kPageTokens)];
      kernels_.store_kv(kv_type_, key, value, size, position % kPageTokens, kv_page(page, layer, task.group, false),
                        kv_page(page, layer, task.group, true));
    }
  }

  // Computes one span of a task into `state`.
  void attend(int32_t layer, const AttentionTask& task, int32_t span, States& state) {
    const int32_t heads = group_heads(), size = shape_.head_size;
    const int32_t rows = (task.end - task.begin) * heads;
    thread_local std::vector<float> queries;
    thread_local std::vector<int32_t> visible;
    const float* source = qkv_row(task.first + task.begin) + task.group * heads * size;
    if (task.end - task.begin > 1) {  // gathers the queries of all rows
      queries.resize(static_cast<size_t>(rows * size));
      for (int32_t i = task.begin; i < task.end; ++i) {
        std::memcpy(queries.data() + (i - task.begin) * heads * size,
                    qkv_row(task.first + i) + task.group * heads * size,
                    static_cast<size_t>(heads * size) * sizeof(float));
      }
      source = queries.data();
    }
    visible.resize(static_cast<size_t>(rows));
    state.reset(rows, size);
    const AttentionState view = state.view();
    const int32_t end = std::min(task.pages(), (span + 1) * kSpanPages);
    for (int32_t page = span * kSpanPages; page < end && !*abort_; ++page) {
      for (int32_t row = 0; row < rows; ++row) {
        const int32_t position = task.segment->position + task.begin + row / heads;
        visible[static_cast<size_t>(row)] = std::clamp(position + 1 - page * kPageTokens, 0, kPageTokens);
      }
      const int32_t id = task.segment->pages[static_cast<size_t>(page)];
      AttentionPage work;
      work.type = kv_type_;
      work.keys = kv_page(id, layer, task.group, false);
      work.values = kv_page(id, layer, task.group, true);
      work.head_size = size;
      work.rows = rows;
      work.queries = source;
      work.visible = visible.data();
      kernels_.attend(work, view);
    }
  }

  void merge(const AttentionTask& task, States& state, States& other) {
    kernels_.merge(state.view(), other.view(), (task.end - task.begin) * group_heads(), shape_.head_size);
  }

  void attend_all(int32_t layer, const AttentionTask& task) {
    thread_local States state, other;
    attend(layer, task, 0, state);
    for (int32_t span = 1; span < task.spans() && !*abort_; ++span) {
      attend(layer, task, span, other);
      merge(task, state, other);
    }
    finish_attention(task, state);
  }

  void finish_attention(const AttentionTask& task, const States& state) {
    const int32_t heads = group_heads(), size = shape_.head_size;
    for (int32_t row = 0; row < (task.end - task.begin) * heads; ++row) {
      float* target = attended_.row(task.first + task.begin + row / heads) + (task.group * heads + row % heads) * size;
      const float scale = 1.0f / state.sums[static_cast<size_t>(row)];
      for (int32_t d = 0; d < size; ++d) target[d] = state.results[static_cast<size_t>(row * size + d)] * scale;
    }
  }

  void feed_forward(int32_t layer) {
    const CpuWeights::Layer& packed = weights_.layers[static_cast<size_t>(layer)];
    norm(weights_.unpacked.layers[static_cast<size_t>(layer)].ffn_norm, packed.ffn_up, normed_);
    const DataType next = packed.ffn_down.type;
    multiply(kUp, packed.ffn_up, normed_, tokens_, activated_.floats.data(), shape_.ffn_size,
             epilogue_of(shape_.architecture.activation), [&](int64_t begin, int64_t end) {
               if (is_quantized(next)) quantize_columns_of(activated_, begin, end, next);
             });
    multiply(kDown, packed.ffn_down, activated_, tokens_, residual_.data(), shape_.hidden_size, Epilogue::add);
  }

  // The rows that are wanted, a slice of a few dozen at a time, so that scores of a long text do not take a row of
  // memory for each of its tokens.
  void output(std::span<const Segment> batch, float* logits, Outcome* outcomes) {
    wanted_.clear();
    int64_t token = 0;
    for (const Segment& segment : batch) {
      token += static_cast<int64_t>(segment.tokens.size());
      const auto first = token - static_cast<int64_t>(segment.rows.size());
      for (size_t i = 0; i < segment.rows.size(); ++i)
        wanted_.push_back({first + static_cast<int64_t>(i), &segment.rows[i]});
    }
    const auto vocabulary = static_cast<size_t>(shape_.vocabulary);
    for (size_t begin = 0; begin < wanted_.size() && !*abort_; begin += kMaxBatchLogits) {
      const std::span<const Wanted> slice =
          std::span(wanted_).subspan(begin, std::min<size_t>(kMaxBatchLogits, wanted_.size() - begin));
      for (size_t row = 0; row < slice.size(); ++row) {
        norm_row(slice[row].token, weights_.unpacked.output_norm, weights_.output, normed_, static_cast<int64_t>(row));
      }
      if (logits_.size() < slice.size() * vocabulary) logits_.resize(slice.size() * vocabulary);
      multiply(kOutput, weights_.output, normed_, static_cast<int64_t>(slice.size()), logits_.data(), shape_.vocabulary,
               Epilogue::store);
      pool_.run(static_cast<int64_t>(slice.size()), *abort_, [&](int64_t i) {
        const auto row = static_cast<size_t>(i);
        const std::span<float> values = std::span(logits_).subspan(row * vocabulary, vocabulary);
        const size_t before = static_cast<size_t>(
            std::count_if(slice.begin(), slice.begin() + i, [](const Wanted& w) { return is_logits(w); }));
        if (is_logits(slice[row])) {
          std::ranges::copy(values, logits + before * vocabulary);
        } else {
          outcomes[row - before] = cpu::outcome_of(kernels_, *slice[row].row, values);
        }
      });
      const auto copied = static_cast<size_t>(std::ranges::count_if(slice, is_logits));
      logits += copied * vocabulary;
      outcomes += slice.size() - copied;
    }
  }

  /// A row of logits that is wanted, and its token in the batch.
  struct Wanted {
    int64_t token;
    const Row* row;
  };
  static bool is_logits(const Wanted& wanted) { return wanted.row->use == Row::Use::logits; }

  template <class Task>
  void for_tokens(Work work, const Task& task) {
    pool_.run_ranges(tokens_, 1, cost(work), *abort_, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) task(token);
    });
  }

  void norm(const Tensor& weight, const PackedMatrix& next, Activations& result) {
    for_tokens(kNorm, [&](int64_t token) { norm_row(token, weight, next, result, token); });
  }

  // Normalizes a token's residual into a row of `result`, as the matrix `next` takes it.
  void norm_row(int64_t token, const Tensor& weight, const PackedMatrix& next, Activations& result, int64_t row) {
    const float* x = residual_.data() + token * shape_.hidden_size;
    switch (shape_.architecture.norm) {
      case Architecture::Norm::rms:
        kernels_.rms_norm(x, weight.floats(), shape_.norm_epsilon, shape_.hidden_size, result.row(row));
    }
    if (is_quantized(next.type)) quantize_row_of(result, row, next.type);
  }

  int32_t zero_point(DataType weights) const { return weights == DataType::q4_0 ? 8 : kernels_.q8_0_zero_point; }

  // With two passes the row itself is overwritten: it becomes the remainder of the first pass.
  void quantize_row_of(Activations& x, int64_t token, DataType weights) const {
    for (int64_t pass = 0; pass < x.passes; ++pass) {
      kernels_.quantize(x.row(token), x.columns, zero_point(weights), x.block_row(token * x.passes + pass),
                        pass + 1 < x.passes ? x.row(token) : nullptr);
    }
  }

  // Quantizes the columns from `begin` to `end`, whole blocks, of all tokens.
  void quantize_columns_of(Activations& x, int64_t begin, int64_t end, DataType weights) {
    for (int64_t token = 0; token < tokens_; ++token) {
      kernels_.quantize(x.row(token) + begin, end - begin, zero_point(weights),
                        x.block_row(token) + begin / kBlockElements, nullptr);
    }
  }

  // y (tokens, y_stride) = x * weights^T, stored as the epilogue says. then(begin, end) is called for each range of
  // outputs, whole blocks of 32, when it is computed.
  template <class Then>
  void multiply(Work work, const PackedMatrix& weights, Activations& x, int64_t tokens, float* y, int64_t y_stride,
                Epilogue epilogue, const Then& then) {
    Product product;
    product.type = weights.type;
    product.weights = weights.data.data();
    product.panel_bytes = weights.panel_bytes;
    product.outputs = weights.outputs;
    product.columns = weights.columns;
    product.tokens = tokens;
    product.x = x.floats.data();
    product.blocks = x.blocks.data();
    product.y = y;
    product.y_stride = y_stride;
    product.epilogue = epilogue;
    const int64_t outputs = weights.outputs_of_panel();
    const int64_t granularity = std::max<int64_t>(1, kBlockElements / outputs);
    pool_.run_ranges(weights.panels, granularity, cost(work), *abort_, [&](int64_t begin, int64_t end) {
      kernels_.product(product, begin, end);
      then(begin * outputs, std::min(end * outputs, weights.outputs));
    });
  }
  void multiply(Work work, const PackedMatrix& weights, Activations& x, int64_t tokens, float* y, int64_t y_stride,
                Epilogue epilogue) {
    multiply(work, weights, x, tokens, y, y_stride, epilogue, [](int64_t, int64_t) {});
  }

  ModelShape shape_;
  CpuWeights weights_;
  const Kernels& kernels_;
  KvType kv_type_;
  Buffer kv_;
  ThreadPool pool_;
  ThreadPool::Cost costs_[kWorks][4];
  std::vector<float> frequencies_;  // (rope_dimension / 2)

  // State of the running batch.
  const std::atomic<bool>* abort_ = nullptr;
  int64_t tokens_ = 0;
  std::vector<AttentionTask> tasks_;
  std::vector<States> states_;   // (tasks, spans), if threads share the spans
  std::vector<float> residual_;  // (tokens, hidden)
  Activations normed_;           // (tokens, hidden)
  Activations normed_for_qkv_;   // (tokens, hidden)
  int64_t qkv_passes_ = 1;
  std::vector<float> qkv_;        // (tokens, passes, qkv_size); rotate_and_store() sums the passes up in the first
  Activations attended_;          // (tokens, query_size)
  Activations activated_;         // (tokens, ffn)
  std::vector<float> zero_bias_;  // (qkv_size), of a model without biases of queries, keys and values
  std::vector<float> cosines_, sines_;  // (tokens, rope_dimension): see Rotation
  std::vector<Wanted> wanted_;          // rows of the batch
  std::vector<float> logits_;           // (kMaxBatchLogits, vocabulary) at most, of the slice that is computed
};

}  // namespace

void check_kv_type(const ModelShape& shape, KvType type) {
  if (type == KvType::q8_0 && shape.head_size % kBlockElements != 0) {
    throw Error("ERR_INVALID_ARGUMENT",
                "kvCacheType 'q8_0' takes heads whose size is a multiple of 32; this model's is " +
                    std::to_string(shape.head_size));
  }
}

std::unique_ptr<Backend> make_cpu_backend(const ModelShape& shape, CpuWeights weights, const CpuOptions& options) {
  check_kv_type(shape, options.kv_type);
  return std::make_unique<CpuBackend>(shape, std::move(weights), options);
}

}  // namespace chatglm::cpu
