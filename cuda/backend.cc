#include "cuda/backend.h"

#include <algorithm>
#include <array>
#include <map>
#include <vector>

#include "cuda/device.h"
#include "cuda/exit_gate.h"
#include "cuda/kernels.h"
#include "cuda/memory.h"
#include "cuda/sampling/sampling.h"
#include "cuda/weights.h"

namespace chatglm::cuda {

namespace {

constexpr int32_t kMaxBatchTokens = 2048;
constexpr int32_t kMaxBatchLogits = 64;
// The most rows of logits that there is memory for. A batch of more rows takes them in slices.
constexpr int32_t kMaxRows = 256;
// A batch of at most so many sequences, one token each, is one CUDA graph.
constexpr int32_t kMaxGraphTokens = 256;
// Segments of up to so many tokens, such as a token with its drafts, go token by token through the attention of single
// tokens. The prefill kernel would have the keys of a long context pass through one block a group.
constexpr int32_t kShortSegment = 8;
// A batch of at most so many tokens with short segments is one CUDA graph. Launching a larger one takes the host less
// time than the GPU takes to compute it.
constexpr int32_t kMaxShortGraphTokens = 64;
// What lists of biases, penalties and masks take at first, of each side's memory. More is taken when it is needed.
constexpr size_t kFirstListBytes = size_t{4} << 20;
// Memory that stays free for the driver's own needs: graphs, code, stacks.
constexpr size_t kDriverBytes = size_t{96} << 20;
// How many layers the host is ahead of the GPU, at most, when a batch may be aborted.
constexpr int32_t kLayersAhead = 2;

/// Of how many tokens the graph is that serves a batch: of 1 to 8 tokens exactly, of more the next multiple of 8.
int32_t graph_tokens(int32_t tokens) { return tokens <= 8 ? tokens : (tokens + 7) / 8 * 8; }
/// The same for batches with short segments: 8, 16, 32 or 64 tokens.
int32_t short_graph_tokens(int32_t tokens) {
  int32_t result = 8;
  while (result < tokens) result *= 2;
  return result;
}

struct Sizes {
  int32_t tokens = 0;       // of a batch
  int32_t rows = 0;         // of logits at a time
  int32_t page_tables = 0;  // numbers in all page tables of a batch
  int32_t sequences = 0;    // of a batch
};

Sizes sizes_of(const CudaOptions& options) {
  Sizes sizes;
  const int64_t all = static_cast<int64_t>(options.max_sequences) * options.context_tokens;
  sizes.tokens = static_cast<int32_t>(std::clamp<int64_t>(all, kMaxGraphTokens, kMaxBatchTokens));
  sizes.rows = std::clamp(graph_tokens(std::min(options.max_sequences, kMaxRows)), kMaxBatchLogits, kMaxRows);
  // One more for the padding of graphs.
  sizes.page_tables = options.max_sequences * ((options.context_tokens + kPageTokens - 1) / kPageTokens) + 1;
  sizes.sequences = options.max_sequences;
  return sizes;
}

// Where the kernels find a batch's numbers: for each of `stride` tokens or rows a job, an id, a position, where its
// page table begins, and a row's token; then the page tables, of which the first is that of tokens that only fill up a
// graph. All of it is sent at once.
struct Numbers {
  SamplingJob* jobs;
  int32_t *ids, *positions, *tables, *gather, *pages;
};
Numbers numbers_at(uint8_t* data, int32_t stride) {
  Numbers n;
  n.jobs = reinterpret_cast<SamplingJob*>(data);
  n.ids = reinterpret_cast<int32_t*>(n.jobs + stride);
  n.positions = n.ids + stride;
  n.tables = n.positions + stride;
  n.gather = n.tables + stride;
  n.pages = n.gather + stride;
  return n;
}
size_t number_bytes(const Sizes& sizes) {
  const size_t each = sizeof(SamplingJob) + 4 * sizeof(int32_t);
  return static_cast<size_t>(sizes.tokens) * each + static_cast<size_t>(sizes.page_tables) * sizeof(int32_t);
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
  RowStats* stats = nullptr;     // (rows)
  uint8_t* numbers = nullptr;    // see Numbers
  GemmWorkspace gemm;
  AttendDecodeWorkspace decode;
};

Activations take_activations(Arena& memory, int32_t tokens, int32_t columns) {
  Activations result;
  result.stride = stride_with_slack(tokens);
  result.data = memory.take<half>(static_cast<size_t>(activation_count(columns, result.stride)));
  return result;
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
  w.stats = memory.take<RowStats>(static_cast<size_t>(sizes.rows));
  w.numbers = memory.take<uint8_t>(number_bytes(sizes));
  w.gemm.partial = memory.take<float>(gemm_workspace_bytes(device) / sizeof(float));
  w.gemm.counters = memory.take<uint32_t>(kGemmCounters);
  w.decode.partial = memory.take<float>(
      attend_decode_workspace_bytes(device, shape.heads, shape.kv_groups, shape.head_size, sizes.tokens) /
      sizeof(float));
  w.decode.counters =
      memory.take<uint32_t>(static_cast<size_t>(attend_decode_counters(shape.heads, shape.kv_groups, sizes.tokens)));
  return w;
}

KvCache kv_cache_of(const ModelShape& shape, const CudaOptions& options) {
  KvCache cache;
  cache.type = options.kv_q8_0 ? KvType::q8_0 : KvType::f16;
  cache.layers = shape.layers;
  cache.groups = shape.kv_groups;
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

// How many pages of the key/value cache there is room for beside `other` bytes: those that are wanted, or as many as
// fit. One more than that is taken, for the padding of graphs. Asked before any memory is taken or any file is read.
int32_t pages_that_fit(const CudaOptions& options, uint64_t other, uint64_t page_bytes) {
  const int64_t least = options.least_pages > 0 ? std::min(options.least_pages, options.pages) : options.pages;
  const uint64_t wanted = other + (static_cast<uint64_t>(least) + 1) * page_bytes;
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for free memory");
  if (wanted + kDriverBytes <= free) {
    const uint64_t fitting = (free - kDriverBytes - other) / page_bytes - 1;
    return static_cast<int32_t>(std::min(fitting, static_cast<uint64_t>(options.pages)));
  }
  throw Error("ERR_OUT_OF_MEMORY",
              "the model takes " + std::to_string(wanted >> 20) + " MiB of the GPU's memory, and " +
                  std::to_string(free >> 20) +
                  " MiB are free; a shorter contextLength, fewer maxSequences, kvCacheType 'q8_0' or quantization "
                  "takes less",
              {{"wantedBytes", static_cast<double>(wanted)}, {"freeBytes", static_cast<double>(free)}});
}

class CudaBackend final : public Backend {
 public:
  /// Takes all memory. load() then has to bring the weights.
  CudaBackend(const ModelSource& source, const CudaOptions& options)
      : shape_(source.shape), sizes_(sizes_of(options)), device_(open_device(options.device)) {
    check_supported(shape_);
    launch_ = {stream_.get(), &device_};
    kv_ = kv_cache_of(shape_, options);

    Arena weights, workspace;
    place_weights(source, weights);
    place_workspace(shape_, sizes_, device_, kv_.padded_head, workspace);
    pages_ = pages_that_fit(options, weights.used() + workspace.used() + kFirstListBytes, page_bytes());
    kv_.pages = pages_ + 1;
    weight_memory_ = DeviceMemory(weights.used());
    kv_memory_ = DeviceMemory(static_cast<size_t>(kv_.bytes()));
    work_memory_ = DeviceMemory(workspace.used());
    weights = Arena(weight_memory_.data());
    weights_ = place_weights(source, weights);
    workspace = Arena(work_memory_.data());
    w_ = place_workspace(shape_, sizes_, device_, kv_.padded_head, workspace);
    kv_.data = kv_memory_.data();

    numbers_ = PinnedMemory(number_bytes(sizes_));
    for (std::unique_ptr<Event>& event : layers_done_) event = std::make_unique<Event>(true);
    outcomes_ = PinnedMemory(static_cast<size_t>(sizes_.tokens) * sizeof(Outcome));
    host_lists_ = PinnedMemory(kFirstListBytes);
    lists_ = DeviceMemory(kFirstListBytes);
    const std::vector<float> frequencies = rope_frequencies(shape_);
    check(cudaMemcpy(w_.frequencies, frequencies.data(), frequencies.size() * sizeof(float), cudaMemcpyHostToDevice),
          "copying the rotations' frequencies");
  }

  void load(const ModelSource& source, const Progress& progress, const std::atomic<bool>& abort) {
    upload_weights(source, weights_, launch_, progress, abort);
  }

  /// Records the graphs of all batches that can come, and starts what no graph has once, so that no request waits for
  /// either. After load(). `step` is called around the recording of each.
  template <class Step>
  void record_graphs(const Step& step) {
    const int32_t most = std::min(sizes_.sequences, kMaxGraphTokens);
    for (int32_t tokens = 1; tokens <= graph_tokens(most); tokens = graph_tokens(tokens + 1)) {
      step([&] { record_graph(tokens, false); });
    }
    // A verified batch has at least two tokens; all of its sequences together have at most this many.
    const int32_t most_short = std::min<int32_t>(kMaxShortGraphTokens, kShortSegment * most);
    for (int32_t tokens = 8; tokens <= most_short; tokens *= 2) step([&] { record_graph(tokens, true); });
    step([&] {
      for (int32_t rows = 1; rows <= sizes_.rows; rows *= 2) {  // whose jobs are zeros still: nothing
        draw_rows(launch_, w_.logits, numbers_at(w_.numbers, 1).jobs, rows, shape_.vocabulary, lists(), w_.stats,
                  outcomes());
      }
      check(cudaStreamSynchronize(stream_.get()), "starting the kernels");
    });
  }

  ~CudaBackend() override {
    cudaStreamSynchronize(stream_.get());
    cudaStreamSynchronize(list_stream_.get());
    for (const auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
  }

  BackendInfo info() const override {
    BackendInfo info;
    info.device = "cuda:" + std::to_string(device_.index);
    info.kernels = kernels_name(device_);
    for (const auto& [type, bytes] : weights_.bytes_by_type) info.weight_bytes += bytes;
    info.weight_types = weights_.bytes_by_type;
    info.bytes_per_token = weights_.bytes_per_token;
    info.kv_type = kv_.type == KvType::q8_0 ? "q8_0" : "f16";
    info.pages = pages_;
    info.page_bytes = page_bytes();
    info.page_layout = "cuda " + info.kv_type + " " + std::to_string(kv_.layers) + "x" + std::to_string(kv_.groups) +
                       "x" + std::to_string(kv_.padded_head) + " pages of " + std::to_string(kPageTokens);
    info.device_bytes = weight_memory_.size() + kv_memory_.size() + work_memory_.size() + lists_.size();
    return info;
  }
  int32_t max_batch_tokens() const override { return sizes_.tokens; }
  int32_t max_batch_logits() const override { return kMaxBatchLogits; }

  bool forward(std::span<const Segment> batch, float* logits, Outcome* outcomes,
               const std::atomic<bool>& abort) override {
    Plan plan = plan_of(batch);
    send(plan, batch);
    if (plan.graph) {
      check(cudaGraphLaunch(plan.graph, stream_.get()), "launching a graph");
      send_lists();
      draw_rows(launch_, w_.logits, plan.numbers.jobs, plan.whole, shape_.vocabulary, lists(), w_.stats,
                this->outcomes());
    } else {
      send_lists();
      enqueue(plan, plan.prefill.empty() ? nullptr : &abort);
    }
    return receive(plan, logits, outcomes, abort);
  }

  void copy_page(int32_t from, int32_t to, int32_t) override {
    const PageRows source = rows_of_page(from), target = rows_of_page(to);
    check(cudaMemcpy2DAsync(target.data, target.pitch, source.data, source.pitch, source.bytes, source.count,
                            cudaMemcpyDeviceToDevice, stream_.get()),
          "copying a page");
  }
  void read_page(int32_t page, uint8_t* target) override {
    const PageRows source = rows_of_page(page);
    check(cudaMemcpy2DAsync(target, source.bytes, source.data, source.pitch, source.bytes, source.count,
                            cudaMemcpyDeviceToHost, stream_.get()),
          "reading a page");
    check(cudaStreamSynchronize(stream_.get()), "reading a page");
  }
  void write_page(int32_t page, const uint8_t* source) override {
    const PageRows target = rows_of_page(page);
    check(cudaMemcpy2DAsync(target.data, target.pitch, source, target.bytes, target.bytes, target.count,
                            cudaMemcpyHostToDevice, stream_.get()),
          "writing a page");
    check(cudaStreamSynchronize(stream_.get()), "writing a page");
  }

 private:
  // A batch in the kernels' order: first the sequences of one token, then the short segments, then the long ones.
  struct Plan {
    int32_t tokens = 0;
    int32_t singles = 0;                  // sequences of one token
    int32_t decoded = 0;                  // tokens of singles and of short segments
    std::vector<PrefillSegment> prefill;  // long segments
    int32_t rows = 0;                     // of logits: first those of `whole`, last those of the use `logits`
    int32_t whole = 0;                    // rows whose tokens draw_rows chooses
    int32_t kept = 0;                     // rows of the use `logits`
    cudaGraphExec_t graph = nullptr;
    Numbers numbers;  // in device memory
    std::vector<const Segment*> order;
  };

  // The pieces in which a page lies in device memory, one for each layer and group.
  struct PageRows {
    uint8_t* data;
    size_t pitch, bytes, count;
  };
  PageRows rows_of_page(int32_t page) const {
    const auto bytes = static_cast<size_t>(kv_.head_page_bytes());
    return {kv_.head_page(0, 0, page), bytes * static_cast<size_t>(kv_.pages), bytes,
            static_cast<size_t>(kv_.layers * kv_.groups)};
  }
  uint64_t page_bytes() const { return static_cast<uint64_t>(kv_.head_page_bytes() * kv_.layers * kv_.groups); }
  uint32_t* lists() const { return reinterpret_cast<uint32_t*>(lists_.data()); }
  Outcome* outcomes() const { return reinterpret_cast<Outcome*>(outcomes_.data()); }

  Plan plan_of(std::span<const Segment> batch) const {
    Plan plan;
    plan.order.reserve(batch.size());
    const auto take = [&](size_t least, size_t most) {
      for (const Segment& segment : batch) {
        if (segment.tokens.size() < least || segment.tokens.size() > most) continue;
        plan.order.push_back(&segment);
        const auto count = static_cast<int32_t>(segment.tokens.size());
        if (count > kShortSegment) plan.prefill.push_back({plan.tokens, count, segment.position, 0});
        plan.tokens += count;
        plan.rows += static_cast<int32_t>(segment.rows.size());
      }
      return plan.tokens;
    };
    plan.singles = take(1, 1);
    plan.decoded = take(2, kShortSegment);
    take(kShortSegment + 1, SIZE_MAX);
    int32_t stride = plan.tokens;
    if (plan.prefill.empty() && plan.rows > 0) {
      const bool is_short = plan.singles < plan.decoded;
      const int32_t size = is_short ? short_graph_tokens(plan.tokens) : graph_tokens(plan.tokens);
      const auto graph = graphs_.find({size, is_short});
      if (graph != graphs_.end()) plan.graph = graph->second, stride = size;
    }
    plan.numbers = numbers_at(w_.numbers, stride);
    return plan;
  }

  // Sends the batch's numbers to the GPU; notes in the plan where the page tables of its prefill are, and which rows
  // there are.
  void send(Plan& plan, std::span<const Segment> batch) {
    const auto stride = static_cast<int32_t>(plan.numbers.positions - plan.numbers.ids);
    const Numbers n = numbers_at(numbers_.data(), stride);
    n.pages[0] = pages_;
    int32_t token = 0, page = 1;
    size_t prefill = 0;
    std::vector<int32_t> first(batch.size());  // token of each segment, in the batch's order
    for (const Segment* segment : plan.order) {
      first[static_cast<size_t>(segment - batch.data())] = token;
      if (segment->tokens.size() > kShortSegment) plan.prefill[prefill++].table = page;
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
    for (; token < stride; ++token) n.ids[token] = n.positions[token] = n.tables[token] = 0;  // padding

    send_rows(plan, batch, first, n);
    const auto bytes = static_cast<size_t>(reinterpret_cast<uint8_t*>(n.pages + page) - numbers_.data());
    check(cudaMemcpyAsync(w_.numbers, numbers_.data(), bytes, cudaMemcpyHostToDevice, stream_.get()),
          "sending a batch");
  }

  // The jobs of the rows, in the order that Plan::rows states.
  void send_rows(Plan& plan, std::span<const Segment> batch, const std::vector<int32_t>& first, const Numbers& n) {
    rows_.clear();
    int32_t outcome = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      int32_t token = first[i] + static_cast<int32_t>(batch[i].tokens.size() - batch[i].rows.size());
      for (const Row& row : batch[i].rows) {
        PlannedRow& planned = rows_.emplace_back();
        planned.row = &row, planned.token = token++;
        planned.job = {};
        if (row.use == Row::Use::logits) {
          ++plan.kept;
          continue;
        }
        fill_job(row, shape_.vocabulary, planned.job);
        planned.job.outcome = outcome++;
        plan.whole += planned.job.whole;
      }
    }
    list_words_ = 0;
    list_places_.clear();
    list_copies_.clear();
    int32_t next_whole = 0, next_other = plan.whole, next_kept = plan.rows - plan.kept;
    for (PlannedRow& planned : rows_) {
      if (planned.job.whole) place_lists(*planned.row->draw, planned.job);
      const int32_t place = planned.row->use == Row::Use::logits ? next_kept++
                            : planned.job.whole                  ? next_whole++
                                                                 : next_other++;
      n.jobs[place] = planned.job;
      n.gather[place] = planned.token;
    }
    const auto stride = static_cast<int32_t>(n.positions - n.ids);
    for (int32_t row = plan.rows; row < stride; ++row) n.jobs[row] = {}, n.gather[row] = 0;  // padding
  }

  // Gives the lists of a draw their places in the array of all lists. Masks and lists of banned tokens that several
  // rows share are there once, as kernels only read them; of biases and counts they overwrite the values.
  void place_lists(const Draw& draw, SamplingJob& job) {
    static_assert(sizeof(TokenBias) == 8 && sizeof(TokenCount) == 8);
    const auto place = [&](const auto& list, int32_t& begin, int32_t& count, bool is_shared) {
      count = static_cast<int32_t>(list.size());
      if (count == 0) return;
      const size_t words = list.size() * sizeof(list[0]) / sizeof(uint32_t);
      begin = static_cast<int32_t>(list_words_);
      if (is_shared) {
        const auto [known, is_new] = list_places_.try_emplace({list.data(), words}, begin);
        begin = known->second;
        if (!is_new) return;
      }
      list_copies_.push_back({list.data(), words, begin});
      list_words_ += words;
    };
    place(draw.bias, job.bias, job.bias_count, false);
    place(draw.counts, job.counts, job.counts_count, false);
    place(draw.banned, job.banned, job.banned_count, true);
    place(draw.mask, job.mask, job.mask_words, true);
  }

  // Copies the lists to the GPU in a stream of their own, while the GPU computes the layers. The draws wait for them.
  void send_lists() {
    if (list_words_ == 0) return;
    const size_t bytes = list_words_ * sizeof(uint32_t);
    if (bytes > host_lists_.size()) host_lists_ = PinnedMemory(std::max(bytes, 2 * host_lists_.size()));
    if (bytes > lists_.size()) {
      lists_ = DeviceMemory();  // before the larger piece is taken
      lists_ = DeviceMemory(host_lists_.size());
    }
    auto* const words = reinterpret_cast<uint32_t*>(host_lists_.data());
    for (const ListCopy& list : list_copies_) {
      std::copy_n(static_cast<const uint8_t*>(list.source), list.words * sizeof(uint32_t),
                  reinterpret_cast<uint8_t*>(words + list.begin));
    }
    check(cudaMemcpyAsync(lists_.data(), words, bytes, cudaMemcpyHostToDevice, list_stream_.get()), "sending lists");
    lists_sent_.record(list_stream_.get());
    lists_sent_.make_wait(stream_.get());
  }

  // All kernels of a batch. `abort` is looked at between layers; without it nothing is waited for.
  void enqueue(const Plan& plan, const std::atomic<bool>* abort) {
    const Numbers& n = plan.numbers;
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
    // In slices, of which the last one is a full one: its logits stay, so all rows of the use `logits` are in it.
    for (int32_t begin = 0, end = (plan.rows - 1) % sizes_.rows + 1; begin < plan.rows;
         begin = end, end += sizes_.rows) {
      output(plan, begin, end);
    }
  }

  // Logits of some of the rows, and what they give.
  void output(const Plan& plan, int32_t begin, int32_t end) {
    const Numbers& n = plan.numbers;
    normed_linear(weights_.output, weights_.output_norm, end - begin, n.gather + begin, w_.normed_rows,
                  {Epilogue::store, w_.logits, shape_.vocabulary, {}});
    const int32_t ranked = std::min(end, plan.rows - plan.kept) - begin, whole = std::min(end, plan.whole) - begin;
    if (ranked > 0) {
      rank_rows(launch_, w_.logits, n.jobs + begin, ranked, shape_.vocabulary, w_.stats, outcomes());
    }
    if (whole > 0) {
      draw_rows(launch_, w_.logits, n.jobs + begin, whole, shape_.vocabulary, lists(), w_.stats, outcomes());
    }
  }

  void attention(int32_t index, const Plan& plan, const Batch& batch) {
    const GpuLayer& layer = weights_.layers[static_cast<size_t>(index)];
    const Activations attended = packed(w_.attended, shape_.query_size(), plan.tokens);
    normed_linear(layer.qkv, layer.attention_norm, plan.tokens, nullptr, w_.normed,
                  {Epilogue::store, w_.qkv, shape_.qkv_size(), {}});
    const QkvRows qkv = {w_.qkv,           layer.qkv_bias,   shape_.heads,
                         shape_.kv_groups, shape_.head_size, shape_.rope_dimension};
    // The keys of short segments come first, because the segment's own tokens attend to them.
    const bool has_short = plan.singles < plan.decoded;
    if (plan.singles < plan.tokens) {
      rotate_append(launch_, qkv, batch, plan.singles, plan.tokens - plan.singles, kv_, index, w_.queries);
    }
    if (plan.decoded > 0) {
      Batch decoded = batch;
      decoded.tokens = plan.decoded;
      // Without short segments nothing else in the stream writes what is read ahead: the batch's numbers were copied
      // before its first kernel began, the old keys and values are of steps that the host has waited for, and
      // rotate_append writes the pages of other sequences.
      attend_decode(launch_, qkv, decoded, kv_, index, attended, w_.decode, !has_short);
    }
    for (const PrefillSegment& segment : plan.prefill) {
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
    if (columns % kChunkColumns == 0) x.stride = least_stride(tokens);
    return x;
  }

  void linear(const PackedMatrix& weights, int32_t tokens, const Activations& x, const LinearOutput& output) {
    if (gemv_fits(device_, weights, tokens)) {
      gemv(launch_, weights, tokens, {.x = x}, output);
    } else {
      gemm(launch_, weights, tokens, x, output, w_.gemm);
    }
  }

  // A linear layer on normalized rows of the residual: gemv normalizes them itself; for gemm, rms_norm writes `normed`.
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

  // The kernels of a batch of so many tokens, each with a row, up to the draws of whole rows; recorded once, and
  // launched as one. is_short: the tokens may be those of short segments.
  void record_graph(int32_t tokens, bool is_short) {
    Plan plan;
    plan.tokens = plan.decoded = plan.rows = tokens;
    plan.singles = is_short ? 0 : tokens;
    plan.numbers = numbers_at(w_.numbers, tokens);
    check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "recording a graph");
    cudaGraph_t graph = nullptr;
    try {
      enqueue(plan, nullptr);
    } catch (...) {
      cudaStreamEndCapture(stream_.get(), &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream_.get(), &graph), "recording a graph");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "preparing a graph");
    graphs_[{tokens, is_short}] = executable;
    check(cudaGraphUpload(executable, stream_.get()), "sending a graph");
  }

  // Waits for the batch and takes its results, or returns false if it was aborted.
  bool receive(const Plan& plan, float* logits, Outcome* outcomes, const std::atomic<bool>& abort) {
    // Sleeping costs some dozen microseconds: little beside the time of a prompt, much beside that of one token.
    Event& done = plan.prefill.empty() ? step_done_ : batch_done_;
    done.record(stream_.get());
    done.wait();
    if (abort) return false;
    for (int32_t i = 0; i < plan.rows - plan.kept; ++i) {
      const Outcome& from = this->outcomes()[i];
      Outcome& to = outcomes[i];
      to.status = from.status;
      to.token = from.token;
      to.logprob = from.logprob;
      to.count = from.count;
      std::copy_n(from.ids, from.count, to.ids);
      std::copy_n(from.logprobs, from.count, to.logprobs);
    }
    if (plan.kept > 0) {
      const auto vocabulary = static_cast<size_t>(shape_.vocabulary);
      const auto in_slice = static_cast<size_t>(std::min(plan.rows, sizes_.rows) - plan.kept);
      check(cudaMemcpyAsync(logits, w_.logits + in_slice * vocabulary,
                            static_cast<size_t>(plan.kept) * vocabulary * sizeof(float), cudaMemcpyDeviceToHost,
                            stream_.get()),
            "receiving logits");
      check(cudaStreamSynchronize(stream_.get()), "receiving logits");
    }
    return true;
  }

  struct PlannedRow {
    const Row* row;
    int32_t token;
    SamplingJob job;
  };
  struct ListCopy {
    const void* source;
    size_t words;
    int32_t begin;
  };

  ModelShape shape_;
  Sizes sizes_;
  Device device_;
  Stream stream_, list_stream_;
  Launch launch_;
  DeviceMemory weight_memory_, kv_memory_, work_memory_, lists_;
  PinnedMemory numbers_, outcomes_, host_lists_;
  GpuWeights weights_;
  KvCache kv_;
  int32_t pages_ = 0;  // of the cache that sequences have; the one behind them is for the padding of graphs
  Workspace w_;
  Event step_done_{false}, batch_done_{true}, lists_sent_{false};
  std::array<std::unique_ptr<Event>, kLayersAhead> layers_done_;
  std::map<std::pair<int32_t, bool>, cudaGraphExec_t> graphs_;  // by number of tokens, and whether segments are short
  // Of the running batch: its rows in its order, and the lists of its draws, of which those that kernels only read are
  // known by their address and length.
  std::vector<PlannedRow> rows_;
  size_t list_words_ = 0;
  std::vector<ListCopy> list_copies_;
  std::map<std::pair<const void*, size_t>, int32_t> list_places_;
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
    backend_->record_graphs([&](const auto& record) {
      if (abort) throw Error("ERR_ABORTED", "loading was aborted");
      const ExitGate::Pass pass;
      record();
    });
  }

  BackendInfo info() const override { return backend_->info(); }
  int32_t max_batch_tokens() const override { return backend_->max_batch_tokens(); }
  int32_t max_batch_logits() const override { return backend_->max_batch_logits(); }
  bool forward(std::span<const Segment> batch, float* logits, Outcome* outcomes,
               const std::atomic<bool>& abort) override {
    const ExitGate::Pass pass;
    return backend_->forward(batch, logits, outcomes, abort);
  }
  void copy_page(int32_t from, int32_t to, int32_t tokens) override {
    const ExitGate::Pass pass;
    backend_->copy_page(from, to, tokens);
  }
  void read_page(int32_t page, uint8_t* target) override {
    const ExitGate::Pass pass;
    backend_->read_page(page, target);
  }
  void write_page(int32_t page, const uint8_t* source) override {
    const ExitGate::Pass pass;
    backend_->write_page(page, source);
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
