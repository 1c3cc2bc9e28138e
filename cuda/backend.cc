#include "cuda/backend.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "cuda/device.h"
#include "cuda/exit_gate.h"
#include "cuda/kernels.h"
#include "cuda/memory.h"
#include "cuda/weights.h"

namespace chatglm::cuda {

namespace {

constexpr int32_t kMaxBatchTokens = 2048;
constexpr int32_t kMaxBatchLogits = 64;
// A batch of at most so many sequences, one token each, is one CUDA graph.
constexpr int32_t kMaxGraphTokens = 256;
// Tiles of tokens may be read so far past the last one.
constexpr int32_t kTokenSlack = 128;
// What is left free for what the driver takes by itself: graphs, code, stacks.
constexpr size_t kDriverBytes = size_t{96} << 20;
// How many layers the host is ahead of the GPU, at most, when a batch may be aborted.
constexpr int32_t kLayersAhead = 2;

struct Sizes {
  int32_t tokens = 0;       // of a batch
  int32_t rows = 0;         // of logits
  int32_t page_tables = 0;  // numbers in all page tables of a batch
};

Sizes sizes_of(const CudaOptions& options) {
  Sizes sizes;
  const int64_t all = static_cast<int64_t>(options.max_sequences) * options.context_tokens;
  sizes.tokens = static_cast<int32_t>(std::clamp<int64_t>(all, kMaxGraphTokens, kMaxBatchTokens));
  sizes.rows = kMaxBatchLogits + options.max_sequences;
  sizes.page_tables = options.max_sequences * ((options.context_tokens + kPageTokens - 1) / kPageTokens);
  return sizes;
}

/// The activations of the running batch.
struct Workspace {
  float* residual = nullptr;     // (tokens, hidden)
  Activations normed;            // (tokens, hidden)
  float* qkv = nullptr;          // (tokens, qkv_size)
  half* queries = nullptr;       // (tokens, heads, padded head size), of prefilled tokens
  Activations attended;          // (tokens, query_size)
  Activations activated;         // (tokens, ffn)
  Activations normed_rows;       // (rows, hidden): of the tokens whose logits are wanted
  float* logits = nullptr;       // (rows, vocabulary)
  float2* rotations = nullptr;   // (tokens, rope_dimension / 2)
  float* frequencies = nullptr;  // (rope_dimension / 2)
  int32_t* numbers = nullptr;    // ids, positions, tables, gather, then pages: see Numbers
  GemmWorkspace gemm;
  AttendDecodeWorkspace decode;
};

Activations take_activations(Arena& memory, int32_t tokens, int32_t columns) {
  Activations result;
  result.stride = (tokens + 7) / 8 * 8 + kTokenSlack;
  const int64_t chunks = (columns + kChunkColumns - 1) / kChunkColumns;
  result.data = memory.take<half>(static_cast<size_t>(chunks * result.stride * kChunkColumns));
  return result;
}

size_t number_count(const Sizes& sizes) {
  return static_cast<size_t>(3 * sizes.tokens + std::max(sizes.rows, sizes.tokens) + sizes.page_tables);
}

Workspace place_workspace(const ModelShape& shape, const Sizes& sizes, const Device& device, int32_t padded_head,
                          Arena& memory) {
  const auto tokens = static_cast<size_t>(sizes.tokens), half_rope = static_cast<size_t>(shape.rope_dimension / 2);
  Workspace w;
  w.residual = memory.take<float>(tokens * static_cast<size_t>(shape.hidden_size));
  w.normed = take_activations(memory, sizes.tokens, shape.hidden_size);
  w.qkv = memory.take<float>(tokens * static_cast<size_t>(shape.qkv_size()));
  w.queries = memory.take<half>(tokens * static_cast<size_t>(shape.heads * padded_head));
  w.attended = take_activations(memory, sizes.tokens, shape.query_size());
  w.activated = take_activations(memory, sizes.tokens, shape.ffn_size);
  w.normed_rows = take_activations(memory, sizes.rows, shape.hidden_size);
  w.logits = memory.take<float>(static_cast<size_t>(sizes.rows) * static_cast<size_t>(shape.vocabulary));
  w.rotations = memory.take<float2>(tokens * half_rope);
  w.frequencies = memory.take<float>(half_rope);
  w.numbers = memory.take<int32_t>(number_count(sizes));
  w.gemm.partial = memory.take<float>(gemm_workspace_bytes(device) / sizeof(float));
  w.gemm.counters = memory.take<uint32_t>(kGemmCounters);
  w.decode.partial = memory.take<float>(
      attend_decode_workspace_bytes(device, shape.heads, shape.kv_groups, shape.head_size, sizes.tokens) /
      sizeof(float));
  const int32_t head_tiles = (shape.heads / shape.kv_groups + 15) / 16;
  w.decode.counters = memory.take<uint32_t>(tokens * static_cast<size_t>(shape.kv_groups * head_tiles));
  return w;
}

KvCache kv_cache_of(const ModelShape& shape, const CudaOptions& options) {
  KvCache cache;
  cache.type = options.kv_q8_0 ? KvType::q8_0 : KvType::f16;
  cache.layers = shape.layers;
  cache.groups = shape.kv_groups;
  cache.pages = options.pages;
  cache.head_size = shape.head_size;
  cache.padded_head = padded_head_size(shape.head_size);
  return cache;
}

void check_supported(const ModelShape& shape) {
  check_shape(shape);
  if (shape.head_size > kMaxHeadSize) {
    throw Error("ERR_INVALID_ARGUMENT", "headSize is " + std::to_string(shape.head_size) +
                                            "; the CUDA backend computes at most " + std::to_string(kMaxHeadSize));
  }
}

// The whole amount, before anything is taken or read.
void check_memory(uint64_t wanted) {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for free memory");
  if (wanted + kDriverBytes <= free) return;
  throw Error("ERR_OUT_OF_MEMORY",
              "the model takes " + std::to_string(wanted >> 20) + " MiB of the GPU's memory, and " +
                  std::to_string(free >> 20) +
                  " MiB are free; a shorter contextLength, fewer maxSequences, kvCacheType 'q8_0' or quantization "
                  "takes less",
              {{"wantedBytes", static_cast<double>(wanted)}, {"freeBytes", static_cast<double>(free)}});
}

class CudaBackend final : public Backend {
 public:
  /// Takes all memory. Then the weights are to be loaded.
  CudaBackend(const ModelSource& source, const CudaOptions& options)
      : shape_(source.shape), sizes_(sizes_of(options)), device_(open_device(options.device)) {
    check_supported(shape_);
    launch_ = {stream_.get(), &device_};
    kv_ = kv_cache_of(shape_, options);

    Arena weights, workspace;
    place_weights(source, weights);
    place_workspace(shape_, sizes_, device_, kv_.padded_head, workspace);
    check_memory(weights.used() + workspace.used() + kv_bytes());
    weight_memory_ = DeviceMemory(weights.used());
    kv_memory_ = DeviceMemory(kv_bytes());
    work_memory_ = DeviceMemory(workspace.used());
    weights = Arena(weight_memory_.data());
    weights_ = place_weights(source, weights);
    workspace = Arena(work_memory_.data());
    w_ = place_workspace(shape_, sizes_, device_, kv_.padded_head, workspace);
    kv_.data = kv_memory_.data();

    numbers_ = PinnedMemory(number_count(sizes_) * sizeof(int32_t));
    for (std::unique_ptr<Event>& event : layers_done_) event = std::make_unique<Event>(true);
    top_ = PinnedMemory(static_cast<size_t>(sizes_.rows) * sizeof(TopLogits));
    const std::vector<float> frequencies = rope_frequencies(shape_);
    check(cudaMemcpy(w_.frequencies, frequencies.data(), frequencies.size() * sizeof(float), cudaMemcpyHostToDevice),
          "copying the rotations' frequencies");
  }

  void load(const ModelSource& source, const Progress& progress, const std::atomic<bool>& abort) {
    upload_weights(source, weights_, launch_, progress, abort);
  }

  ~CudaBackend() override {
    cudaStreamSynchronize(stream_.get());
    for (const cudaGraphExec_t graph : graphs_) {
      if (graph) cudaGraphExecDestroy(graph);
    }
  }

  BackendInfo info() const override {
    BackendInfo info;
    info.device = "cuda:" + std::to_string(device_.index);
    info.kernels = kernels_name(device_);
    for (const auto& [type, bytes] : weights_.bytes_by_type) info.weight_bytes += bytes;
    info.weight_types = weights_.bytes_by_type;
    info.bytes_per_token = weights_.bytes_per_token;
    info.kv_type = kv_.type == KvType::q8_0 ? "q8_0" : "f16";
    info.kv_bytes = kv_memory_.size();
    info.device_bytes = weight_memory_.size() + kv_memory_.size() + work_memory_.size();
    return info;
  }
  int32_t max_batch_tokens() const override { return sizes_.tokens; }
  int32_t max_batch_logits() const override { return kMaxBatchLogits; }
  int32_t max_top() const override { return TopLogits::kMost; }

  bool forward(std::span<const Segment> batch, float* logits, TopLogits* top, const std::atomic<bool>& abort) override {
    Plan plan = plan_of(batch);
    if (plan.graph) {
      const cudaGraphExec_t graph = graph_of(plan.tokens);
      send_numbers(plan, batch, kMaxGraphTokens);
      check(cudaGraphLaunch(graph, stream_.get()), "launching a graph");
    } else {
      send_numbers(plan, batch, sizes_.tokens);
      enqueue(plan, sizes_.tokens, &abort);
    }
    return receive(plan, batch, logits, top, abort);
  }

  void copy_page(int32_t from, int32_t to, int32_t) override {
    const auto bytes = static_cast<size_t>(kv_.head_page_bytes());
    const size_t pitch = bytes * static_cast<size_t>(kv_.pages);
    check(cudaMemcpy2DAsync(kv_.head_page(0, 0, to), pitch, kv_.head_page(0, 0, from), pitch, bytes,
                            static_cast<size_t>(kv_.layers * kv_.groups), cudaMemcpyDeviceToDevice, stream_.get()),
          "copying a page");
  }

 private:
  // A batch as the kernels take it: first the sequences of one token, then the others.
  struct Plan {
    int32_t tokens = 0;
    int32_t decoded = 0;                  // sequences of one token
    std::vector<PrefillSegment> prefill;  // the others
    int32_t rows = 0;                     // of logits
    bool top = false;                     // some of them as TopLogits
    bool graph = false;                   // one token and one row a sequence, in the batch's order
    std::vector<const Segment*> order;
  };

  // Where the kernels find a batch's numbers: ids, positions and tables of `stride` each, then rows to gather, then the
  // page tables.
  struct Numbers {
    int32_t *ids, *positions, *tables, *gather, *pages;
  };
  static Numbers numbers_at(int32_t* data, int32_t stride, int32_t rows) {
    return {data, data + stride, data + 2 * stride, data + 3 * stride, data + 3 * stride + std::max(stride, rows)};
  }

  uint64_t kv_bytes() const { return static_cast<uint64_t>(kv_.bytes()); }

  Plan plan_of(std::span<const Segment> batch) const {
    Plan plan;
    plan.order.reserve(batch.size());
    bool in_order = true;
    for (const Segment& segment : batch) {
      if (segment.tokens.size() == 1) {
        plan.order.push_back(&segment);
        in_order = in_order && segment.logits == 1;
      }
      plan.rows += segment.logits;
      plan.top = plan.top || (segment.top && segment.logits == 1);
    }
    plan.decoded = plan.tokens = static_cast<int32_t>(plan.order.size());
    for (const Segment& segment : batch) {
      if (segment.tokens.size() == 1) continue;
      plan.order.push_back(&segment);
      const auto count = static_cast<int32_t>(segment.tokens.size());
      plan.prefill.push_back({plan.tokens, count, segment.position, 0});
      plan.tokens += count;
    }
    plan.graph = in_order && plan.prefill.empty() && plan.tokens <= kMaxGraphTokens;
    return plan;
  }

  // Writes the batch's numbers and sends them off; notes in the plan where the page tables are.
  void send_numbers(Plan& plan, std::span<const Segment> batch, int32_t stride) {
    const Numbers n = numbers_at(reinterpret_cast<int32_t*>(numbers_.data()), stride, sizes_.rows);
    int32_t token = 0, page = 0;
    size_t prefill = 0;
    std::vector<int32_t> first(batch.size());  // token of each segment, in the batch's order
    for (const Segment* segment : plan.order) {
      first[static_cast<size_t>(segment - batch.data())] = token;
      if (segment->tokens.size() != 1) plan.prefill[prefill++].table = page;
      int32_t position = segment->position;
      for (const int32_t id : segment->tokens) {
        n.ids[token] = id;
        n.positions[token] = position++;
        n.tables[token++] = page;
      }
      const int32_t pages = (position + kPageTokens - 1) / kPageTokens;
      std::copy_n(segment->pages.begin(), pages, n.pages + page);
      page += pages;
    }
    int32_t row = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      const int32_t end = first[i] + static_cast<int32_t>(batch[i].tokens.size());
      for (int32_t t = end - batch[i].logits; t < end; ++t) n.gather[row++] = t;
    }
    const auto bytes = static_cast<size_t>(n.pages + page - n.ids) * sizeof(int32_t);
    check(cudaMemcpyAsync(w_.numbers, numbers_.data(), bytes, cudaMemcpyHostToDevice, stream_.get()),
          "sending a batch");
  }

  // All kernels of a batch, up to its logits. `abort` is looked at between layers; without it nothing is waited for.
  void enqueue(const Plan& plan, int32_t stride, const std::atomic<bool>* abort) {
    const Numbers n = numbers_at(w_.numbers, stride, sizes_.rows);
    const Batch batch = {plan.tokens, n.ids, n.positions, n.tables, n.pages, w_.rotations};
    const Rope rope = {shape_.rope_dimension, w_.frequencies, shape_.rope_scale};
    embed(launch_, weights_.embedding, rope, batch, w_.residual, w_.rotations);
    for (int32_t i = 0; i < shape_.layers; ++i) {
      if (abort) {
        Event& layer_done = *layers_done_[static_cast<size_t>(i % kLayersAhead)];
        if (i >= kLayersAhead) layer_done.wait();
        if (*abort) return;
        attention(i, plan, batch);
        feed_forward(weights_.layers[static_cast<size_t>(i)], plan.tokens);
        layer_done.record(stream_.get());
      } else {
        attention(i, plan, batch);
        feed_forward(weights_.layers[static_cast<size_t>(i)], plan.tokens);
      }
    }
    if (plan.rows == 0) return;
    normed_linear(weights_.output, weights_.output_norm, plan.rows, n.gather, w_.normed_rows,
                  {Epilogue::store, w_.logits, shape_.vocabulary, {}});
    if (plan.top) top_k(launch_, w_.logits, plan.rows, shape_.vocabulary, reinterpret_cast<TopLogits*>(top_.data()));
  }

  void attention(int32_t index, const Plan& plan, const Batch& batch) {
    const GpuLayer& layer = weights_.layers[static_cast<size_t>(index)];
    const Activations attended = packed(w_.attended, shape_.query_size(), plan.tokens);
    normed_linear(layer.qkv, layer.attention_norm, plan.tokens, nullptr, w_.normed,
                  {Epilogue::store, w_.qkv, shape_.qkv_size(), {}});
    const QkvRows qkv = {w_.qkv,           layer.qkv_bias,   shape_.heads,
                         shape_.kv_groups, shape_.head_size, shape_.rope_dimension};
    if (plan.decoded > 0) {
      Batch decoded = batch;
      decoded.tokens = plan.decoded;
      // Nothing else in the stream writes what is read ahead: the batch's numbers were copied before its first kernel
      // began, and the old keys and values are of steps that the host has waited for.
      attend_decode(launch_, qkv, decoded, kv_, index, attended, w_.decode, true);
    }
    if (!plan.prefill.empty()) {
      rotate_append(launch_, qkv, batch, plan.decoded, plan.tokens - plan.decoded, kv_, index, w_.queries);
      for (const PrefillSegment& segment : plan.prefill)
        attend_prefill(launch_, w_.queries, shape_.heads, batch, segment, kv_, index, attended);
    }
    linear(layer.attention_output, plan.tokens, attended, {Epilogue::add, w_.residual, shape_.hidden_size, {}});
  }

  void feed_forward(const GpuLayer& layer, int32_t tokens) {
    const Activations activated = packed(w_.activated, shape_.ffn_size, tokens);
    normed_linear(layer.ffn_up, layer.ffn_norm, tokens, nullptr, w_.normed, {Epilogue::swiglu, nullptr, 0, activated});
    linear(layer.ffn_down, tokens, activated, {Epilogue::add, w_.residual, shape_.hidden_size, {}});
  }

  // The activations of a batch, its chunks close together: with the stride of the largest batch they would lie at
  // addresses that fall into few of the memory's channels. Filling columns keep their places, where they are zero.
  static Activations packed(Activations x, int32_t columns, int32_t tokens) {
    if (columns % kChunkColumns == 0) x.stride = (tokens + 7) / 8 * 8;
    return x;
  }

  void linear(const PackedMatrix& weights, int32_t tokens, const Activations& x, const LinearOutput& output) {
    if (gemv_fits(device_, weights, tokens)) {
      gemv(launch_, weights, tokens, {.x = x}, output);
    } else {
      gemm(launch_, weights, tokens, x, output, w_.gemm);
    }
  }

  // The layer on rows of the residual, normalized: on the way, or before into `normed`.
  void normed_linear(const PackedMatrix& weights, const float* norm, int32_t tokens, const int32_t* gather,
                     const Activations& normed, const LinearOutput& output) {
    if (gemv_fits(device_, weights, tokens)) {
      gemv(launch_, weights, tokens,
           {.residual = w_.residual, .norm = norm, .gather = gather, .epsilon = shape_.norm_epsilon}, output);
    } else {
      const Activations x = packed(normed, shape_.hidden_size, tokens);
      rms_norm(launch_, w_.residual, norm, shape_.norm_epsilon, shape_.hidden_size, tokens, gather, x);
      gemm(launch_, weights, tokens, x, output, w_.gemm);
    }
  }

  // The kernels of `tokens` sequences of one token each, recorded once and launched as one.
  cudaGraphExec_t graph_of(int32_t tokens) {
    cudaGraphExec_t& executable = graphs_[static_cast<size_t>(tokens)];
    if (executable) return executable;
    Plan plan;
    plan.tokens = plan.decoded = plan.rows = tokens;
    plan.top = true;
    check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "recording a graph");
    cudaGraph_t graph = nullptr;
    try {
      enqueue(plan, kMaxGraphTokens, nullptr);
    } catch (...) {
      cudaStreamEndCapture(stream_.get(), &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream_.get(), &graph), "recording a graph");
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "preparing a graph");
    return executable;
  }

  // Waits for the batch and takes its results, or returns false if it was aborted.
  bool receive(const Plan& plan, std::span<const Segment> batch, float* logits, TopLogits* top,
               const std::atomic<bool>& abort) {
    const auto* rows = reinterpret_cast<const TopLogits*>(top_.data());
    const auto vocabulary = static_cast<size_t>(shape_.vocabulary);
    // Sleeping costs some dozen microseconds: nothing beside a prompt, much beside one token.
    Event& done = plan.prefill.empty() ? step_done_ : batch_done_;
    done.record(stream_.get());
    done.wait();
    if (abort) return false;
    size_t row = 0;
    bool copied = false;
    for (const Segment& segment : batch) {
      const auto count = static_cast<size_t>(segment.logits);
      if (segment.top && count == 1) {
        *top++ = rows[row];
      } else if (count > 0) {
        check(cudaMemcpyAsync(logits, w_.logits + row * vocabulary, count * vocabulary * sizeof(float),
                              cudaMemcpyDeviceToHost, stream_.get()),
              "receiving logits");
        logits += count * vocabulary;
        copied = true;
      }
      row += count;
    }
    if (copied) check(cudaStreamSynchronize(stream_.get()), "receiving logits");
    return true;
  }

  ModelShape shape_;
  Sizes sizes_;
  Device device_;
  Stream stream_;
  Launch launch_;
  DeviceMemory weight_memory_, kv_memory_, work_memory_;
  PinnedMemory numbers_, top_;
  GpuWeights weights_;
  KvCache kv_;
  Workspace w_;
  Event step_done_{false}, batch_done_{true};
  std::array<std::unique_ptr<Event>, kLayersAhead> layers_done_;
  std::array<cudaGraphExec_t, kMaxGraphTokens + 1> graphs_ = {};  // by number of sequences
};

/// The backend behind the gate that closes when the process ends.
class GatedBackend final : public Backend {
 public:
  GatedBackend(const ModelSource& source, const CudaOptions& options) {
    const ExitGate::Pass pass;
    backend_ = std::make_unique<CudaBackend>(source, options);
    ExitGate::install();
  }
  ~GatedBackend() override {
    const ExitGate::Pass pass;
    backend_.reset();
  }

  void load(const ModelSource& source, const Progress& progress, const std::atomic<bool>& abort) {
    backend_->load(source, progress, abort);
  }

  BackendInfo info() const override { return backend_->info(); }
  int32_t max_batch_tokens() const override { return backend_->max_batch_tokens(); }
  int32_t max_batch_logits() const override { return backend_->max_batch_logits(); }
  int32_t max_top() const override { return backend_->max_top(); }
  bool forward(std::span<const Segment> batch, float* logits, TopLogits* top, const std::atomic<bool>& abort) override {
    const ExitGate::Pass pass;
    return backend_->forward(batch, logits, top, abort);
  }
  void copy_page(int32_t from, int32_t to, int32_t tokens) override {
    const ExitGate::Pass pass;
    backend_->copy_page(from, to, tokens);
  }

 private:
  std::unique_ptr<CudaBackend> backend_;
};

}  // namespace

std::unique_ptr<Backend> make_backend(const ModelSource& source, const CudaOptions& options, const Progress& progress,
                                      const std::atomic<bool>& abort) {
  auto backend = std::make_unique<GatedBackend>(source, options);
  backend->load(source, progress, abort);
  return backend;
}

}  // namespace chatglm::cuda
