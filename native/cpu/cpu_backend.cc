#include "cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/kernels.h"
#include "runtime/quantize.h"
#include "runtime/thread_pool.h"

namespace chatglm::cpu {

namespace {

constexpr int32_t kMaxBatchTokens = 256;
constexpr int32_t kMaxBatchLogits = 64;
// Positions whose heads are attended together, so that a page is read once for all.
constexpr int32_t kAttentionTokens = 8;

/// Rows of activations, and what quantized weights are multiplied with instead: codes of them or, where that is too
/// coarse, codes in one row and codes of what those leave over in the next (`passes` of 2).
struct Activations {
  Activations(int64_t columns, int64_t passes)
      : columns(columns),
        passes(passes),
        floats(static_cast<size_t>(kMaxBatchTokens * columns)),
        codes(floats.size() * static_cast<size_t>(passes)),
        scales(codes.size() / kBlockElements),
        sums(scales.size()) {}

  float* row(int64_t token) { return floats.data() + token * columns; }

  int64_t columns, passes;
  std::vector<float> floats;  // (tokens, columns)
  std::vector<int8_t> codes;  // (tokens, passes, columns)
  std::vector<float> scales;  // (tokens, passes, columns / 32)
  std::vector<int32_t> sums;  // (tokens, passes, columns / 32)
};

// Scores go through exp(), which makes the rounding of queries and keys to one code the largest error of the whole
// model: 1.6% instead of 2.3% of the logits on the reference checkpoints with these products in two passes.
constexpr int64_t kQkvPasses = 2;

bool is_quantized(DataType type) { return type == DataType::q8_0 || type == DataType::q4_0; }

// A product that overflows is more than any machine has, which Buffer then says.
size_t product_or_most(size_t a, size_t b) {
  return b != 0 && a > std::numeric_limits<size_t>::max() / b ? std::numeric_limits<size_t>::max() : a * b;
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelShape& shape, Weights weights, const CpuOptions& options)
      : shape_(shape),
        weights_(std::move(weights)),
        kernels_(select_kernels()),
        kv_type_(options.kv_type),
        kv_bytes_(options.kv_type == KvType::f16 ? 2 : 4),
        kv_(product_or_most(static_cast<size_t>(options.pages), static_cast<size_t>(page_bytes())),
            "the key/value cache"),
        pool_(options.threads),
        residual_(static_cast<size_t>(kMaxBatchTokens) * static_cast<size_t>(shape.hidden_size)),
        normed_(shape.hidden_size, 1),
        normed_for_qkv_(shape.hidden_size, kQkvPasses),
        qkv_(static_cast<size_t>(kMaxBatchTokens * kQkvPasses) * static_cast<size_t>(shape.qkv_size())),
        attended_(shape.query_size(), 1),
        gate_up_(static_cast<size_t>(kMaxBatchTokens) * 2 * static_cast<size_t>(shape.ffn_size)),
        activated_(shape.ffn_size, 1),
        cosines_(static_cast<size_t>(kMaxBatchTokens) * static_cast<size_t>(shape.rope_dimension / 2)),
        sines_(cosines_.size()) {
    for (int32_t j = 0; j < shape.rope_dimension / 2; ++j) {
      const float exponent = static_cast<float>(2 * j) / static_cast<float>(shape.rope_dimension);
      frequencies_.push_back(1.0f / std::pow(shape.rope_base, exponent));
    }
  }

  BackendInfo info() const override {
    BackendInfo info;
    info.device = "cpu";
    info.kernels = kernels_.name;
    info.threads = pool_.threads();
    for (const auto& [type, bytes] : weights_.bytes_by_type) info.weight_bytes += bytes;
    info.weight_types = weights_.bytes_by_type;
    const bool tied = weights_.output.data == weights_.embedding.data;
    const int64_t embeddings = tied ? 0 : weights_.embedding.bytes() - weights_.embedding.row_bytes();
    info.bytes_per_token = info.weight_bytes - static_cast<uint64_t>(embeddings);
    info.mapped_bytes = weights_.mapped_bytes;
    info.kv_type = kv_type_ == KvType::f16 ? "f16" : "f32";
    info.kv_bytes = kv_.size();
    return info;
  }
  int32_t max_batch_tokens() const override { return kMaxBatchTokens; }
  int32_t max_batch_logits() const override { return kMaxBatchLogits; }

  // No largest logits, whose rows cost nothing here: max_top() is 0.
  bool forward(std::span<const Segment> batch, float* logits, TopLogits*, const std::atomic<bool>& abort) override {
    abort_ = &abort;
    tokens_ = 0;
    for (const Segment& segment : batch) embed(segment);
    for (int32_t layer = 0; layer < shape_.layers && !abort; ++layer) {
      attention(layer, batch);
      feed_forward(weights_.layers[static_cast<size_t>(layer)]);
    }
    output(batch, logits);
    return !abort;
  }

  void copy_page(int32_t from, int32_t to, int32_t tokens) override {
    for (int32_t layer = 0; layer < shape_.layers; ++layer) {
      for (int32_t group = 0; group < shape_.kv_groups; ++group) {
        for (const bool values : {false, true}) {
          std::memcpy(kv_page(to, layer, group, values), kv_page(from, layer, group, values),
                      static_cast<size_t>(tokens * shape_.head_size * kv_bytes_));
        }
      }
    }
  }

 private:
  // The key/value memory: (pages, layers, groups, keys then values, page tokens, head_size).
  int64_t head_page_bytes() const { return static_cast<int64_t>(kPageTokens) * shape_.head_size * kv_bytes_; }
  int64_t page_bytes() const { return 2 * shape_.layers * shape_.kv_groups * head_page_bytes(); }
  uint8_t* kv_page(int32_t page, int32_t layer, int32_t group, bool values) {
    const int64_t index =
        ((static_cast<int64_t>(page) * shape_.layers + layer) * shape_.kv_groups + group) * 2 + values;
    return kv_.data() + index * head_page_bytes();
  }

  // Looks up the embeddings of a segment's tokens and the rotations of their positions; appends them to the batch.
  void embed(const Segment& segment) {
    const auto half = static_cast<int64_t>(frequencies_.size());
    for (size_t i = 0; i < segment.tokens.size(); ++i, ++tokens_) {
      to_float(weights_.embedding.type, weights_.embedding.row(segment.tokens[i]), 1, shape_.hidden_size,
               residual_.data() + tokens_ * shape_.hidden_size);
      const float position = static_cast<float>(segment.position + static_cast<int32_t>(i)) / shape_.rope_scale;
      for (int64_t j = 0; j < half; ++j) {
        const float angle = position * frequencies_[static_cast<size_t>(j)];
        cosines_[static_cast<size_t>(tokens_ * half + j)] = std::cos(angle);
        sines_[static_cast<size_t>(tokens_ * half + j)] = std::sin(angle);
      }
    }
  }

  void attention(int32_t layer, std::span<const Segment> batch) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    norm(weights.attention_norm, is_quantized(weights.qkv.type), normed_for_qkv_);
    qkv_passes_ = is_quantized(weights.qkv.type) ? kQkvPasses : 1;
    multiply(weights.qkv, normed_for_qkv_, tokens_ * qkv_passes_, nullptr, qkv_.data(), shape_.qkv_size(), false);

    int64_t first = 0;
    tasks_.clear();
    for (const Segment& segment : batch) {
      const auto count = static_cast<int32_t>(segment.tokens.size());
      for (int32_t begin = 0; begin < count; begin += kAttentionTokens) {
        const int32_t end = std::min(count, begin + kAttentionTokens);
        for (int32_t group = 0; group < shape_.kv_groups; ++group)
          tasks_.push_back({&segment, first, begin, end, group});
      }
      first += count;
    }
    const auto tasks = static_cast<int64_t>(tasks_.size());
    const float* bias = weights.qkv_bias.floats();
    pool_.run(tasks, *abort_, [&](int64_t i) { rotate_and_store(layer, tasks_[static_cast<size_t>(i)], bias); });
    // The last positions of a segment see the most pages, so their tasks go first.
    pool_.run(tasks, *abort_, [&](int64_t i) { attend(layer, tasks_[static_cast<size_t>(tasks - 1 - i)]); });
    if (is_quantized(weights.attention_output.type)) {
      pool_.run(tokens_, *abort_, [&](int64_t token) { quantize_row_of(attended_, token); });
    }
    multiply(weights.attention_output, attended_, tokens_, nullptr, residual_.data(), shape_.hidden_size, true);
  }

  // Some positions of a segment and one key/value group.
  struct AttentionTask {
    const Segment* segment;
    int64_t first;  // of the segment's tokens in the batch
    int32_t begin, end;
    int32_t group;
  };

  void rotate(float* head, int64_t token) const {
    const auto half = static_cast<int64_t>(frequencies_.size());
    const float *cosines = cosines_.data() + token * half, *sines = sines_.data() + token * half;
    for (int64_t j = 0; j < half; ++j) {
      const float a = head[2 * j], b = head[2 * j + 1];
      head[2 * j] = a * cosines[j] - b * sines[j];
      head[2 * j + 1] = b * cosines[j] + a * sines[j];
    }
  }

  float* qkv_row(int64_t token) { return qkv_.data() + token * qkv_passes_ * shape_.qkv_size(); }

  // Adds up the passes of the product, and the bias.
  void complete(float* row, const float* bias, int64_t begin, int64_t count) const {
    for (int64_t i = begin; i < begin + count; ++i) {
      float sum = bias[i];
      for (int64_t pass = qkv_passes_; pass-- > 0;) sum += row[pass * shape_.qkv_size() + i];
      row[i] = sum;
    }
  }

  void rotate_and_store(int32_t layer, const AttentionTask& task, const float* bias) {
    const int32_t heads = shape_.heads / shape_.kv_groups, size = shape_.head_size;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    for (int32_t i = task.begin; i < task.end; ++i) {
      const int64_t token = task.first + i;
      float* row = qkv_row(token);
      const int32_t first_key = shape_.query_size() + task.group * size;
      complete(row, bias, task.group * heads * size, heads * size);
      complete(row, bias, first_key, size);
      complete(row, bias, first_key + shape_.kv_size(), size);
      for (int32_t h = task.group * heads; h < (task.group + 1) * heads; ++h) {
        rotate(row + h * size, token);
        for (int32_t d = 0; d < size; ++d) row[h * size + d] *= scale;
      }
      float* key = row + first_key;
      rotate(key, token);
      const int32_t position = task.segment->position + i;
      const int32_t page = task.segment->pages[static_cast<size_t>(position / kPageTokens)];
      store_kv(kv_page(page, layer, task.group, false), position % kPageTokens, key);
      store_kv(kv_page(page, layer, task.group, true), position % kPageTokens, key + shape_.kv_size());
    }
  }

  void store_kv(uint8_t* page, int32_t slot, const float* head) const {
    uint8_t* target = page + static_cast<int64_t>(slot) * shape_.head_size * kv_bytes_;
    if (kv_type_ == KvType::f16) {
      kernels_.to_half(head, shape_.head_size, reinterpret_cast<uint16_t*>(target));
    } else {
      std::memcpy(target, head, static_cast<size_t>(shape_.head_size) * sizeof(float));
    }
  }

  void attend(int32_t layer, const AttentionTask& task) {
    const int32_t heads = shape_.heads / shape_.kv_groups, size = shape_.head_size;
    const int32_t rows = (task.end - task.begin) * heads;
    // The rows' queries, one after the other, and their results.
    thread_local std::vector<float> queries, results, largest, sums;
    thread_local std::vector<int32_t> visible;
    queries.resize(static_cast<size_t>(rows * size));
    results.assign(static_cast<size_t>(rows * size), 0.0f);
    largest.assign(static_cast<size_t>(rows), -std::numeric_limits<float>::infinity());
    sums.assign(static_cast<size_t>(rows), 0.0f);
    visible.resize(static_cast<size_t>(rows));
    const auto row_bytes = static_cast<size_t>(heads * size) * sizeof(float);
    for (int32_t i = task.begin; i < task.end; ++i) {
      const float* source = qkv_row(task.first + i) + task.group * heads * size;
      std::memcpy(queries.data() + (i - task.begin) * heads * size, source, row_bytes);
    }

    const int32_t last = task.segment->position + task.end - 1;
    for (int32_t page = 0; page <= last / kPageTokens && !*abort_; ++page) {
      for (int32_t row = 0; row < rows; ++row) {
        const int32_t position = task.segment->position + task.begin + row / heads;
        visible[static_cast<size_t>(row)] = std::clamp(position + 1 - page * kPageTokens, 0, kPageTokens);
      }
      const int32_t id = task.segment->pages[static_cast<size_t>(page)];
      const AttentionPage work = {kv_page(id, layer, task.group, false),
                                  kv_page(id, layer, task.group, true),
                                  size,
                                  rows,
                                  queries.data(),
                                  visible.data(),
                                  largest.data(),
                                  sums.data(),
                                  results.data()};
      (kv_type_ == KvType::f16 ? kernels_.attend_half : kernels_.attend_float)(work);
    }

    for (int32_t row = 0; row < rows; ++row) {
      float* target = attended_.row(task.first + task.begin + row / heads) + (task.group * heads + row % heads) * size;
      const float scale = 1.0f / sums[static_cast<size_t>(row)];
      for (int32_t d = 0; d < size; ++d) target[d] = results[static_cast<size_t>(row * size + d)] * scale;
    }
  }

  void feed_forward(const LayerWeights& weights) {
    norm(weights.ffn_norm, is_quantized(weights.ffn_up.type), normed_);
    multiply(weights.ffn_up, normed_, tokens_, nullptr, gate_up_.data(), 2 * static_cast<int64_t>(shape_.ffn_size),
             false);
    pool_.run(tokens_, *abort_, [&](int64_t token) {
      kernels_.swiglu(gate_up_.data() + token * 2 * shape_.ffn_size, shape_.ffn_size, activated_.row(token));
      if (is_quantized(weights.ffn_down.type)) quantize_row_of(activated_, token);
    });
    multiply(weights.ffn_down, activated_, tokens_, nullptr, residual_.data(), shape_.hidden_size, true);
  }

  void output(std::span<const Segment> batch, float* logits) {
    int64_t token = 0, row = 0;
    for (const Segment& segment : batch) {
      token += static_cast<int64_t>(segment.tokens.size());
      for (int64_t i = token - segment.logits; i < token; ++i, ++row) {
        kernels_.rms_norm(residual_.data() + i * shape_.hidden_size, weights_.output_norm.floats(), shape_.norm_epsilon,
                          shape_.hidden_size, normed_.row(row));
        if (is_quantized(weights_.output.type)) quantize_row_of(normed_, row);
      }
    }
    multiply(weights_.output, normed_, row, nullptr, logits, shape_.vocabulary, false);
  }

  void norm(const Tensor& weight, bool quantize, Activations& result) {
    pool_.run(tokens_, *abort_, [&](int64_t token) {
      kernels_.rms_norm(residual_.data() + token * shape_.hidden_size, weight.floats(), shape_.norm_epsilon,
                        shape_.hidden_size, result.row(token));
      if (quantize) quantize_row_of(result, token);
    });
  }

  // After several passes the row itself is used up: it holds what the codes leave over.
  void quantize_row_of(Activations& x, int64_t token) const {
    const int64_t blocks = x.columns / kBlockElements;
    for (int64_t pass = 0; pass < x.passes; ++pass) {
      const int64_t row = token * x.passes + pass;
      int8_t* codes = x.codes.data() + row * x.columns;
      float* scales = x.scales.data() + row * blocks;
      kernels_.quantize(x.row(token), x.columns, codes, scales, x.sums.data() + row * blocks);
      if (pass + 1 == x.passes) break;
      for (int64_t i = 0; i < x.columns; ++i)
        x.row(token)[i] -= scales[i / kBlockElements] * static_cast<float>(codes[i]);
    }
  }

  // y (tokens, y_stride) = or += x * weights^T + bias
  void multiply(const Tensor& weights, const Activations& x, int64_t tokens, const float* bias, float* y,
                int64_t y_stride, bool accumulate) {
    const Product product = {weights.type,
                             weights.data,
                             weights.row_bytes(),
                             weights.columns,
                             tokens,
                             x.floats.data(),
                             x.codes.data(),
                             x.scales.data(),
                             x.sums.data(),
                             bias,
                             y,
                             y_stride,
                             accumulate};
    // Some dozen pieces a thread, so that none waits long for another; multiples of the kernels' tiles.
    const int64_t pieces = 12 * pool_.threads();
    const int64_t rows = std::max<int64_t>(16, (weights.rows / pieces + 15) / 16 * 16);
    pool_.run((weights.rows + rows - 1) / rows, *abort_,
              [&](int64_t i) { kernels_.product(product, i * rows, std::min(weights.rows, (i + 1) * rows)); });
  }

  ModelShape shape_;
  Weights weights_;
  const Kernels& kernels_;
  KvType kv_type_;
  int32_t kv_bytes_;
  Buffer kv_;
  ThreadPool pool_;
  std::vector<float> frequencies_;  // (rope_dimension / 2)

  // State of the running batch.
  const std::atomic<bool>* abort_ = nullptr;
  int64_t tokens_ = 0;
  std::vector<AttentionTask> tasks_;
  std::vector<float> residual_;  // (tokens, hidden)
  Activations normed_;           // (tokens, hidden)
  Activations normed_for_qkv_;   // (tokens, hidden)
  int64_t qkv_passes_ = 1;
  std::vector<float> qkv_;              // (tokens, passes, qkv_size); once complete, the first pass has it all
  Activations attended_;                // (tokens, query_size)
  std::vector<float> gate_up_;          // (tokens, 2 * ffn)
  Activations activated_;               // (tokens, ffn)
  std::vector<float> cosines_, sines_;  // (tokens, rope_dimension / 2)
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const ModelShape& shape, Weights weights, const CpuOptions& options) {
  return std::make_unique<CpuBackend>(shape, std::move(weights), options);
}

}  // namespace chatglm::cpu
