// Each kernel by itself at the 6B shape. A graph holds many launches, over copies of the weights that together exceed
// the L2 cache, so that neither the launches nor the cache show in the time of one.
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>
#include <random>

#include "base/half.h"
#include "benchmark/cuda/report.h"
#include "benchmark/cuda/sampling_options.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/sampling/sampling.h"

namespace chatglm::benchmark {

namespace {

constexpr int32_t kHidden = 4096, kHeads = 32, kGroups = 2, kHeadSize = 128, kFfn = 13696, kVocabulary = 65024;
constexpr int32_t kQkv = (kHeads + 2 * kGroups) * kHeadSize;
constexpr int32_t kLayers = 28, kRopeDimension = 64;
constexpr int32_t kMostTokens = 2048;
constexpr int64_t kBeyondCache = 256 << 20;  // several times the largest L2
constexpr int kReplays = 7;
constexpr double kGraphSeconds = 2e-3;  // about; longer with a slow kernel

class GpuMemory : public cuda::DeviceMemory {
 public:
  explicit GpuMemory(int64_t bytes) : DeviceMemory(static_cast<size_t>(bytes)) {}

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data());
  }
  /// Fills all of it with repetitions of a pattern.
  void repeat(const std::vector<uint8_t>& pattern) {
    size_t filled = std::min(size(), pattern.size());
    check(cudaMemcpy(data(), pattern.data(), filled, cudaMemcpyHostToDevice), "cudaMemcpy");
    while (filled < size()) {
      const size_t count = std::min(filled, size() - filled);
      check(cudaMemcpy(data() + filled, data(), count, cudaMemcpyDeviceToDevice), "cudaMemcpy");
      filled += count;
    }
  }
};

class Kernels {
 public:
  Kernels(const Settings& settings, Report& report)
      : settings_(settings),
        report_(report),
        device_(cuda::open_device(settings.device)),
        halves_(activation_bytes(kFfn, kMostTokens)),
        activated_(activation_bytes(kFfn, kMostTokens)),
        floats_(int64_t{4} * kMostTokens * kFfn),
        product_(std::max(int64_t{4} * kMostTokens * 2 * kFfn, int64_t{4} * 256 * kVocabulary)),
        partial_(static_cast<int64_t>(
            std::max({size_t{1}, cuda::gemm_workspace_bytes(device_), cuda::gemm_mma_workspace_bytes(device_),
                      device_.wgmma ? cuda::gemm_wgmma_workspace_bytes(device_) : size_t{0},
                      cuda::attend_decode_workspace_bytes(device_, kHeads, kGroups, kHeadSize, 256)}))),
        counters_(int64_t{4} * cuda::kGemmCounters) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
    launch_ = {stream_, &device_};
    halves_.repeat(random_halves(1));
    floats_.repeat(random_floats());
  }
  ~Kernels() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }

  void run() {
    report_.print("kernels %s: us, share of the bound (m: memory, c: %.0f TFLOP/s)\n",
                  cuda::kernels_name(device_).c_str(), report_.ceilings.operations_per_second / 1e12);
    for (const std::string& name : settings_.types) {
      const DataType type = *data_type_by_name(name);
      for (const Matrix& matrix : kMatrices) measure_matrix(matrix, type, name);
    }
    measure_attention(cuda::KvType::f16, " f16");
    measure_attention(cuda::KvType::q8_0, " q8_0");
    measure_small();
    measure_sampling();
  }

 private:
  struct Matrix {
    const char* name;
    int32_t rows, columns;
    cuda::Epilogue epilogue;
    bool normed;  // gemv reads the residual
  };
  static constexpr Matrix kMatrices[] = {{"qkv", kQkv, kHidden, cuda::Epilogue::store, true},
                                         {"attn_output", kHidden, kHidden, cuda::Epilogue::add, false},
                                         {"ffn_up", 2 * kFfn, kHidden, cuda::Epilogue::swiglu, true},
                                         {"ffn_down", kHidden, kFfn, cuda::Epilogue::add, false},
                                         {"output", kVocabulary, kHidden, cuda::Epilogue::store, true}};

  static int64_t activation_bytes(int32_t columns, int32_t tokens) {
    return int64_t{2} * cuda::activation_count(columns, cuda::stride_with_slack(tokens));
  }

  std::vector<uint8_t> random_halves(float deviation) {
    std::vector<uint8_t> bytes(1 << 20);
    std::normal_distribution<float> normal(0, deviation);
    for (size_t i = 0; i < bytes.size(); i += 2) store_u16(bytes.data() + i, float_to_half(normal(random_)));
    return bytes;
  }
  std::vector<uint8_t> random_floats() {
    std::vector<uint8_t> bytes(1 << 20);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < bytes.size(); i += 4) {
      const float value = normal(random_);
      std::memcpy(bytes.data() + i, &value, 4);
    }
    return bytes;
  }
  // Blocks of a packed matrix: random codes, scales such that products are of the size of 1.
  std::vector<uint8_t> random_blocks(DataType type) {
    if (type == DataType::f16) return random_halves(0.02f);
    const auto codes = static_cast<size_t>(cuda::code_bytes(type)),
               block = static_cast<size_t>(cuda::block_bytes(type));
    std::vector<uint8_t> bytes(1024 * block);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_());
    std::uniform_real_distribution<float> scale(0.5f, 1.5f);
    const float size = type == DataType::q4_0 ? 0.004f : 0.0003f;
    for (size_t b = 0; b < bytes.size(); b += block) {
      for (size_t i = codes; i < block; i += 2) store_u16(&bytes[b + i], float_to_half(size * scale(random_)));
    }
    return bytes;
  }

  bool wanted(const std::string& name) const { return name.find(settings_.filter) != std::string::npos; }

  /// Seconds of one launch. launch(i) enqueues launch number i.
  double time(double expected_seconds, const std::function<void(int)>& launch) {
    const int launches = std::clamp(static_cast<int>(kGraphSeconds / expected_seconds), 4, 400);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    check(cudaDeviceSynchronize(), "filling the buffers");
    launch(0);  // so that nothing is set up during the capture
    check(cudaStreamSynchronize(stream_), "a kernel");
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    try {
      for (int i = 0; i < launches; ++i) launch(i);
    } catch (...) {
      cudaStreamEndCapture(stream_, &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    std::vector<double> times;
    for (int i = -1; i < kReplays; ++i) {
      check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
      check(cudaGraphLaunch(executable, stream_), "cudaGraphLaunch");
      check(cudaEventRecord(end_, stream_), "cudaEventRecord");
      check(cudaStreamSynchronize(stream_), "a kernel");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
      if (i >= 0) times.push_back(1e-3 * milliseconds / launches);
    }
    check(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
    return median(times);
  }

  /// Measures and prints a cell of a line: tokens (or what `label` says), microseconds, share of the bound.
  void cell(Measurement m, const std::string& label, const std::function<void(int)>& launch) {
    try {
      m.seconds = time(std::max({report_.memory_bound(m), report_.compute_bound(m), 3e-6}), launch);
      report_.add(m);
      report_.print(" | %s %.1f %.0f%%%c", label.c_str(), m.seconds * 1e6, 100 * report_.share(m), report_.bound(m));
    } catch (const std::exception& error) {
      report_.print(" | %s FAILED %s", label.c_str(), error.what());
      report_.failed = true;
      if (cudaDeviceSynchronize() != cudaSuccess) throw;  // after some errors nothing runs any more
    }
  }

  cuda::LinearOutput output_of(const Matrix& matrix, int32_t tokens) const {
    cuda::LinearOutput output;
    output.epilogue = matrix.epilogue;
    output.y = product_.as<float>();
    output.y_stride = matrix.rows;
    output.activated = {activated_.as<half>(), cuda::stride_with_slack(tokens)};
    return output;
  }

  void measure_matrix(const Matrix& matrix, DataType type, const std::string& type_name) {
    const std::string suffix = std::string(matrix.name) + " " + type_name;
    const std::string gemv_name = "gemv " + suffix, wgmma_name = "gemm_wgmma " + suffix,
                      mma_name = "gemm_mma " + suffix;
    if (!wanted(gemv_name) && !wanted(wgmma_name) && !wanted(mma_name)) return;
    cuda::PackedMatrix packed =
        cuda::packed_shape(type, matrix.rows, matrix.columns, matrix.epilogue == cuda::Epilogue::swiglu);
    const int64_t copies = (kBeyondCache + packed.bytes() - 1) / packed.bytes();
    GpuMemory memory(copies * packed.bytes());
    memory.repeat(random_blocks(type));
    const auto copy = [&](int i) {
      cuda::PackedMatrix m = packed;
      m.data = memory.as<uint8_t>() + i % copies * packed.bytes();
      return m;
    };
    const auto measurement = [&](const std::string& name, int32_t tokens) {
      Measurement m;
      m.name = name;
      m.tokens = tokens;
      const double results = matrix.epilogue == cuda::Epilogue::swiglu ? 1.0 * matrix.rows  // half as many, of f16
                             : matrix.epilogue == cuda::Epilogue::add  ? 8.0 * matrix.rows  // read and written
                                                                       : 4.0 * matrix.rows;
      m.bytes = static_cast<double>(packed.bytes()) + tokens * (2.0 * matrix.columns + results);
      m.operations = 2.0 * matrix.rows * matrix.columns * tokens;
      return m;
    };

    if (wanted(gemv_name)) {
      report_.print("%-24s", gemv_name.c_str());
      for (const int32_t tokens : {1, 2, 4, 8}) {
        if (!cuda::gemv_fits(device_, packed, tokens)) continue;
        cuda::GemvInput input;
        if (matrix.normed) {
          input.residual = floats_.as<float>();
          input.norm = floats_.as<float>() + kMostTokens * kHidden;
          input.epsilon = 1e-5f;
        } else {
          input.x = {halves_.as<half>(), cuda::stride_with_slack(tokens)};
        }
        const cuda::LinearOutput output = output_of(matrix, tokens);
        cell(measurement(gemv_name, tokens), std::to_string(tokens),
             [&](int i) { cuda::gemv(launch_, copy(i), tokens, input, output); });
      }
      report_.print("\n");
    }
    const cuda::GemmWorkspace workspace = {partial_.as<float>(), counters_.as<uint32_t>()};
    for (const bool wgmma : {true, false}) {
      const std::string& name = wgmma ? wgmma_name : mma_name;
      if ((wgmma && !device_.wgmma) || !wanted(name)) continue;
      report_.print("%-24s", name.c_str());
      for (const int32_t tokens : {8, 16, 32, 64, 128, 256, 512, 2048}) {
        if (matrix.rows == kVocabulary && tokens > 256) continue;  // so many rows of logits nobody asks for
        const cuda::Activations x = {halves_.as<half>(), cuda::stride_with_slack(tokens)};
        const cuda::LinearOutput output = output_of(matrix, tokens);
        cell(measurement(name, tokens), std::to_string(tokens), [&](int i) {
          (wgmma ? cuda::gemm_wgmma : cuda::gemm_mma)(launch_, copy(i), tokens, x, output, workspace);
        });
      }
      report_.print("\n");
    }
  }

  // --- Attention.
  void measure_attention(cuda::KvType type, const std::string& suffix) {
    const std::string decode_name = "attend_decode" + suffix, append_name = "rotate_append" + suffix;
    if (!wanted(decode_name) && !wanted("attend_prefill_mma" + suffix) && !wanted("attend_prefill_wgmma" + suffix) &&
        !wanted(append_name)) {
      return;
    }
    constexpr int32_t kPages = 1024;  // for 256 sequences of 4, and for one of 32,768 tokens and more
    cuda::KvCache cache;
    cache.type = type;
    cache.layers = kLayers;
    cache.groups = kGroups;
    cache.pages = kPages;
    cache.head_size = kHeadSize;
    cache.padded_head = cuda::padded_head_size(kHeadSize);
    GpuMemory memory(cache.bytes());
    memory.repeat(random_halves(1));  // codes of all sizes and finite scales, seen as q8_0
    cache.data = memory.as<uint8_t>();
    const double kv_bytes =
        2.0 * kGroups * kHeadSize * (type == cuda::KvType::f16 ? 2 : 34.0 / 32);  // a token's, a layer

    GpuMemory positions(4 * kMostTokens), tables(4 * kMostTokens), pages(4 * kPages), ids(4 * kMostTokens),
        rotations(int64_t{8} * kMostTokens * kRopeDimension / 2);
    rotations.repeat(random_floats());
    std::vector<int32_t> host(kPages);
    for (int32_t i = 0; i < kPages; ++i) host[static_cast<size_t>(i)] = (i * 389 + 17) % kPages;  // 389 is odd: all
    copy_to(pages, host);
    GpuMemory queries(int64_t{2} * kMostTokens * kHeads * cache.padded_head);
    queries.repeat(random_halves(0.1f));

    const cuda::QkvRows qkv = {product_.as<float>(), floats_.as<float>(), kHeads, kGroups, kHeadSize, kRopeDimension};
    product_.repeat(random_floats());
    cuda::Batch batch;
    batch.ids = ids.as<int32_t>();
    batch.positions = positions.as<int32_t>();
    batch.tables = tables.as<int32_t>();
    batch.pages = pages.as<int32_t>();
    batch.rotations = rotations.as<float2>();
    const auto set = [&](int32_t tokens, const std::function<int32_t(int32_t)>& position,
                         const std::function<int32_t(int32_t)>& table) {
      std::vector<int32_t> p, t;
      for (int32_t i = 0; i < tokens; ++i) p.push_back(position(i)), t.push_back(table(i));
      copy_to(positions, p);
      copy_to(tables, t);
      batch.tokens = tokens;
    };
    const auto zero = [](int32_t) { return 0; };

    if (wanted(decode_name)) {
      report_.print("%-24s", decode_name.c_str());
      const cuda::AttendDecodeWorkspace workspace = {partial_.as<float>(), counters_.as<uint32_t>()};
      const std::pair<int32_t, int32_t> cases[] = {{1, 0},   {1, 128},  {1, 2048}, {1, 8192}, {1, 32000},
                                                   {8, 128}, {8, 2048}, {64, 128}, {256, 128}};
      for (const auto& [tokens, depth] : cases) {
        const int32_t at = depth;
        set(
            tokens, [&](int32_t) { return at; }, [&](int32_t i) { return tokens > 1 ? i * (at > 128 ? 36 : 4) : 0; });
        Measurement m;
        m.name = decode_name;
        m.tokens = tokens;
        m.depth = depth;
        m.bytes = 1.0 * tokens * (depth + 1) * kv_bytes + tokens * (4.0 * kQkv + 2.0 * kHidden);
        m.operations = 4.0 * tokens * (depth + 1) * kHeads * kHeadSize;
        const cuda::Activations out = {activated_.as<half>(), cuda::stride_with_slack(tokens)};
        cell(m, std::to_string(tokens) + "@" + std::to_string(depth),
             [&](int i) { cuda::attend_decode(launch_, qkv, batch, cache, i % kLayers, out, workspace, true); });
      }
      report_.print("\n");
    }
    if (wanted(append_name)) {
      report_.print("%-24s", append_name.c_str());
      for (const int32_t tokens : {64, 512, 2048}) {
        set(
            tokens, [](int32_t i) { return i; }, zero);
        Measurement m;
        m.name = append_name;
        m.tokens = tokens;
        m.bytes = tokens * (4.0 * kQkv + 2.0 * kHidden + kv_bytes);
        cell(m, std::to_string(tokens), [&](int i) {
          cuda::rotate_append(launch_, qkv, batch, 0, tokens, cache, i % kLayers, queries.as<half>());
        });
      }
      report_.print("\n");
    }
    for (const bool wgmma : {true, false}) {
      const std::string name = (wgmma ? "attend_prefill_wgmma" : "attend_prefill_mma") + suffix;
      if ((wgmma && !cuda::attend_prefill_wgmma_fits(device_, cache)) || !wanted(name)) continue;
      report_.print("%-24s", name.c_str());
      queries.repeat(random_halves(0.1f));
      const std::pair<int32_t, int32_t> cases[] = {{64, 0}, {512, 0}, {2048, 0}, {2048, 6144}, {2048, 30000}};
      for (const auto& [count, position] : cases) {
        const int32_t tokens = count, first = position;
        set(
            tokens, [&](int32_t i) { return first + i; }, zero);
        Measurement m;
        m.name = name;
        m.tokens = tokens;
        m.depth = first;
        const double visible = 1.0 * tokens * first + 0.5 * tokens * (tokens + 1.0);
        m.bytes = (first + tokens) * kv_bytes + tokens * 4.0 * kHidden;
        m.operations = 4.0 * visible * kHeads * kHeadSize;
        const cuda::Activations out = {activated_.as<half>(), cuda::stride_with_slack(tokens)};
        const cuda::PrefillSegment segment = {0, tokens, first, 0};
        cell(m, std::to_string(tokens) + "@" + std::to_string(first), [&](int i) {
          (wgmma ? cuda::attend_prefill_wgmma : cuda::attend_prefill_mma)(launch_, queries.as<half>(), kHeads, batch,
                                                                          segment, cache, i % kLayers, out);
        });
      }
      report_.print("\n");
    }
  }

  // --- What moves few bytes.
  void measure_small() {
    if (wanted("rms_norm")) {
      report_.print("%-24s", "rms_norm");
      for (const int32_t tokens : {1, 64, 256, 2048}) {
        Measurement m;
        m.name = "rms_norm";
        m.tokens = tokens;
        m.bytes = 6.0 * tokens * kHidden + 4.0 * kHidden;
        const cuda::Activations out = {activated_.as<half>(), cuda::stride_with_slack(tokens)};
        cell(m, std::to_string(tokens), [&](int) {
          cuda::rms_norm(launch_, floats_.as<float>(), floats_.as<float>() + kMostTokens * kHidden, 1e-5f, kHidden,
                         tokens, nullptr, out);
        });
      }
      report_.print("\n");
    }
    if (wanted("embed q4_0")) {
      report_.print("%-24s", "embed q4_0");
      const int64_t row = row_bytes(DataType::q4_0, kHidden);
      GpuMemory table(kVocabulary * row), frequencies(4 * kRopeDimension / 2), ids(4 * kMostTokens),
          positions(4 * kMostTokens), tables(4 * kMostTokens), pages(4),
          rotations(int64_t{8} * kMostTokens * kRopeDimension / 2);
      table.repeat(random_halves(0.1f));  // any bytes with finite scales
      std::vector<int32_t> values;
      for (int32_t i = 0; i < kMostTokens; ++i) values.push_back(static_cast<int32_t>(random_() % kVocabulary));
      copy_to(ids, values);
      copy_to(positions, values);
      std::vector<float> angles(kRopeDimension / 2);
      for (size_t j = 0; j < angles.size(); ++j)
        angles[j] = std::pow(1e4f, -2.0f * static_cast<float>(j) / kRopeDimension);
      check(cudaMemcpy(frequencies.as<float>(), angles.data(), angles.size() * 4, cudaMemcpyHostToDevice),
            "cudaMemcpy");
      for (const int32_t tokens : {1, 256, 2048}) {
        const cuda::Batch batch = {tokens,
                                   ids.as<int32_t>(),
                                   positions.as<int32_t>(),
                                   tables.as<int32_t>(),
                                   pages.as<int32_t>(),
                                   rotations.as<float2>()};
        Measurement m;
        m.name = "embed q4_0";
        m.tokens = tokens;
        m.bytes = tokens * (static_cast<double>(row) + 4.0 * kHidden + 4.0 * kRopeDimension);
        cell(m, std::to_string(tokens), [&](int) {
          cuda::embed(launch_, {DataType::q4_0, table.as<uint8_t>(), kHidden},
                      {kRopeDimension, frequencies.as<float>(), 1}, batch, product_.as<float>(),
                      rotations.as<float2>());
        });
      }
      report_.print("\n");
    }
  }

  // --- Sampling: every option by itself, on rows whose logits are about as a model's: a crowd and a few likely tokens.
  // Draws change their row, so each launch has the rows copied anew, and the time of the copies is taken off.
  void measure_sampling() {
    const std::string prefix = "sampling ";
    std::vector<SamplingOptions> wanted_options;
    for (const SamplingOptions& options : sampling_options(kVocabulary)) {
      if (wanted(prefix + options.name)) wanted_options.push_back(options);
    }
    if (wanted_options.empty()) return;
    constexpr int32_t kMostRows = 256;
    constexpr int64_t kRowBytes = int64_t{4} * kVocabulary;
    std::vector<float> pattern(1 << 18);
    std::normal_distribution<float> normal(0, 2.2f);
    for (float& x : pattern) x = normal(random_) + (random_() % 4096 == 0 ? 10.0f : 0.0f);
    std::vector<uint8_t> bytes(pattern.size() * sizeof(float));
    std::memcpy(bytes.data(), pattern.data(), bytes.size());
    GpuMemory pristine(kMostRows * kRowBytes), jobs(kMostRows * static_cast<int64_t>(sizeof(cuda::SamplingJob))),
        stats(kMostRows * static_cast<int64_t>(sizeof(cuda::RowStats)));
    pristine.repeat(bytes);
    const cuda::PinnedMemory outcomes(kMostRows * sizeof(Outcome));
    for (const SamplingOptions& options : wanted_options) {
      report_.print("%-24s", (prefix + options.name).c_str());
      const std::vector<Row> rows = options.rows(kMostRows);
      std::vector<uint32_t> words;
      std::vector<cuda::SamplingJob> host_jobs;
      bool is_whole = false;
      for (int32_t r = 0; r < kMostRows; ++r) {
        const Row& row = rows[static_cast<size_t>(r)];
        cuda::SamplingJob& job = host_jobs.emplace_back();
        job = {};
        cuda::fill_job(row, kVocabulary, job);
        job.outcome = r;
        const auto put = [&](const auto& list, int32_t& begin, int32_t& count) {
          begin = static_cast<int32_t>(words.size()), count = static_cast<int32_t>(list.size());
          const auto* data = reinterpret_cast<const uint32_t*>(list.data());
          words.insert(words.end(), data, data + list.size() * sizeof(list[0]) / 4);
        };
        put(row.draw->bias, job.bias, job.bias_count);
        put(row.draw->counts, job.counts, job.counts_count);
        put(row.draw->mask, job.mask, job.mask_words);
        put(row.draw->banned, job.banned, job.banned_count);
        is_whole = is_whole || job.whole;
      }
      GpuMemory lists(static_cast<int64_t>(words.size()) * 4 + 4);
      check(cudaMemcpy(lists.data(), words.data(), words.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
      check(cudaMemcpy(jobs.data(), host_jobs.data(), jobs.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
      for (const int32_t count : {1, 8, 64, 256}) {
        const auto copy = [&] {
          check(cudaMemcpyAsync(product_.data(), pristine.data(), static_cast<size_t>(count * kRowBytes),
                                cudaMemcpyDeviceToDevice, stream_),
                "copying logits");
        };
        const double copying = time(1e-4, [&](int) { copy(); });
        Measurement m;
        m.name = prefix + options.name;
        m.tokens = count;
        m.bytes = static_cast<double>(count * kRowBytes);
        const double all = time(1e-4, [&](int) {
          copy();
          cuda::rank_rows(launch_, product_.as<float>(), jobs.as<cuda::SamplingJob>(), count, kVocabulary,
                          stats.as<cuda::RowStats>(), reinterpret_cast<Outcome*>(outcomes.data()));
          if (is_whole) {
            cuda::draw_rows(launch_, product_.as<float>(), jobs.as<cuda::SamplingJob>(), count, kVocabulary,
                            lists.as<uint32_t>(), stats.as<cuda::RowStats>(),
                            reinterpret_cast<Outcome*>(outcomes.data()));
          }
        });
        const auto* outcome = reinterpret_cast<const Outcome*>(outcomes.data());
        if (outcome[count - 1].status != Outcome::Status::ok) throw std::runtime_error("no token was drawn");
        m.seconds = all - copying;
        report_.add(m);
        report_.print(" | %d %.1f", count, m.seconds * 1e6);
      }
      report_.print("\n");
    }
  }

  static void copy_to(const GpuMemory& memory, const std::vector<int32_t>& values) {
    check(cudaMemcpy(memory.as<int32_t>(), values.data(), values.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
  }

  const Settings& settings_;
  Report& report_;
  cuda::Device device_;
  GpuMemory halves_, activated_, floats_, product_, partial_, counters_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  cuda::Launch launch_;
  std::mt19937 random_{1};
};

}  // namespace

void measure_kernels(const Settings& settings, Report& report) { Kernels(settings, report).run(); }

}  // namespace chatglm::benchmark
