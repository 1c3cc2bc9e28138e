// Whole steps of the backend on a random model of the 6B shape: Backend::forward, timed by the wall clock from call to
// return, as the engine calls it.
#include <chrono>
#include <random>
#include <thread>

#include "benchmark/cuda/report.h"
#include "benchmark/cuda/sampling_options.h"
#include "cuda/api.h"
#include "test/small_model.h"

namespace chatglm::benchmark {

namespace {

constexpr int32_t kContext = 32768;
constexpr int32_t kMostSequences = 256;
constexpr int32_t kBatchDepth = 128;  // of the sequences of a batch, which hold it and the tokens of all steps
constexpr int32_t kPagesEach = 3;
constexpr int kWarmUps = 5;

ModelShape shape_of_6b(int32_t layers) {
  ModelShape shape;
  shape.layers = layers;
  shape.hidden_size = 4096;
  shape.heads = 32;
  shape.kv_groups = 2;
  shape.head_size = 128;
  shape.ffn_size = 13696;
  shape.vocabulary = 65024;
  shape.norm_epsilon = 1e-5f;
  shape.rope_dimension = 64;
  shape.rope_base = 10000;
  return shape;
}

double matrix_elements(const ModelShape& s) {  // of one layer
  const double hidden = s.hidden_size;
  return hidden * (s.qkv_size() + s.query_size() + 3.0 * s.ffn_size);
}

size_t used_bytes() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return total - free;
}

class Model {
 public:
  Model(const Settings& settings, DataType type, int32_t pages, int32_t sequences, int32_t context)
      : shape_(shape_of_6b(settings.layers)) {
    ModelSource source = test::random_model(shape_, type);
    source.threads = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
    cuda::CudaOptions options;
    options.device = settings.device;
    options.pages = pages;
    options.max_sequences = sequences;
    options.context_tokens = context;
    options.kv_q8_0 = settings.kv_q8_0;
    backend_ = chatglm_cuda_api(cuda::kCudaApiVersion)
                   ->make_backend(
                       source, options, [](uint64_t, uint64_t) {}, never_);
    kv_bytes_ = 2.0 * shape_.layers * shape_.kv_size() * (settings.kv_q8_0 ? 34.0 / 32 : 2.0);
  }

  Backend& operator*() { return *backend_; }
  Backend* operator->() { return backend_.get(); }
  const ModelShape& shape() const { return shape_; }

  std::vector<int32_t> random_tokens(int64_t count) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random_() % 64000));
    return tokens;
  }

  /// Runs a batch, of whose rows outcomes are wanted. Returns the seconds.
  double forward(const std::vector<Segment>& batch) {
    size_t rows = 0;
    for (const Segment& segment : batch) rows += segment.rows.size();
    outcomes_.resize(std::max(rows, outcomes_.size()));
    const auto begin = std::chrono::steady_clock::now();
    if (!backend_->forward(batch, nullptr, outcomes_.data(), never_)) throw std::runtime_error("a step was aborted");
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    for (size_t row = 0; row < rows; ++row) {
      if (outcomes_[row].status != Outcome::Status::ok) throw std::runtime_error("the logits are not finite");
    }
    return taken.count();
  }

  /// Bytes and operations that so many tokens take in so many steps. `visible`: tokens that their attention sees, the
  /// sum over all of them; `read`: tokens whose keys and values have to be read; `rows`: of logits.
  Measurement work(const std::string& name, int64_t tokens, int64_t depth, int64_t steps, double visible, double read,
                   double rows) const {
    Measurement m;
    m.name = name;
    m.tokens = tokens;
    m.depth = depth;
    m.bytes = static_cast<double>(steps) * static_cast<double>(backend_->info().bytes_per_token) +
              (read + static_cast<double>(tokens)) * kv_bytes_;
    m.operations = 2.0 * static_cast<double>(tokens) * shape_.layers * matrix_elements(shape_) +
                   2.0 * rows * shape_.hidden_size * shape_.vocabulary +
                   4.0 * visible * shape_.layers * shape_.query_size();
    return m;
  }

 private:
  const std::atomic<bool> never_{false};
  ModelShape shape_;
  std::unique_ptr<Backend> backend_;
  std::vector<Outcome> outcomes_;
  std::mt19937 random_{1};
  double kv_bytes_ = 0;
};

/// Rows whose likeliest token is wanted.
std::span<const Row> greedy_rows(int32_t count) {
  static const Draw draw;
  static const std::vector<Row> rows(kMostSequences, Row{Row::Use::sample, -1, -1, &draw});
  return std::span(rows).first(static_cast<size_t>(count));
}

std::vector<int32_t> pages_from(int32_t first, int32_t count) {
  std::vector<int32_t> pages;
  for (int32_t i = 0; i < count; ++i) pages.push_back(first + i);
  return pages;
}

void print_step(Report& report, const Measurement& m) {
  report.add(m);
  report.print("%-26s %9.1f us %9.1f tok/s %6.0f GB/s (%3.0f%%) %5.0f TFLOP/s (%3.0f%%)\n", m.name.c_str(),
               m.seconds * 1e6, static_cast<double>(m.tokens) / m.seconds, m.bytes / m.seconds / 1e9,
               100 * report.memory_bound(m) / m.seconds, m.operations / m.seconds / 1e12,
               100 * report.compute_bound(m) / m.seconds);
}

// A prompt from position 0 on, in pieces of max_batch_tokens.
double prefill(Model& model, const std::vector<int32_t>& tokens, const std::vector<int32_t>& pages) {
  double seconds = 0;
  const auto count = static_cast<int32_t>(tokens.size());
  for (int32_t begin = 0; begin < count;) {
    const int32_t piece = std::min(model->max_batch_tokens(), count - begin);
    Segment segment;
    segment.tokens = {tokens.data() + begin, static_cast<size_t>(piece)};
    segment.position = begin;
    segment.pages = pages;
    begin += piece;
    segment.rows = greedy_rows(begin == count ? 1 : 0);
    seconds += model.forward({segment});
  }
  return seconds;
}

void measure_prefill(Model& model, const std::string& prefix, Report& report) {
  const std::vector<int32_t> pages = pages_from(0, kContext / kPageTokens);
  for (const int32_t count : {512, 2048, 8192, 32000}) {
    const std::string name = prefix + "prefill " + std::to_string(count);
    report.attempt(name, [&] {
      const std::vector<int32_t> tokens = model.random_tokens(count);
      std::vector<double> times;
      // The longest one fills the pages for decoding at depth; it is timed once.
      const int runs = count > 8192 ? 1 : 5;
      for (int i = runs > 1 ? -1 : 0; i < runs; ++i) {
        const double seconds = prefill(model, tokens, pages);
        if (i >= 0) times.push_back(seconds);
      }
      const int32_t pieces = (count + model->max_batch_tokens() - 1) / model->max_batch_tokens();
      Measurement m = model.work(name, count, 0, pieces, 0.5 * count * (count + 1.0), 0, 1);
      m.seconds = median(times);
      print_step(report, m);
    });
  }
}

// Steps in which each of `batch` sequences gets a token, from `depth` on.
void measure_decode(Model& model, const std::string& name, int32_t batch, int32_t depth, int32_t pages_each,
                    const Settings& settings, Report& report) {
  std::vector<std::vector<int32_t>> pages;
  for (int32_t i = 0; i < batch; ++i) pages.push_back(pages_from(i * pages_each, pages_each));
  const int room = pages_each * kPageTokens - depth;
  std::vector<double> times;
  const int steps = std::min(settings.steps + kWarmUps, room);
  for (int step = 0; step < steps; ++step) {
    const std::vector<int32_t> tokens = model.random_tokens(batch);
    std::vector<Segment> segments;
    for (int32_t i = 0; i < batch; ++i) {
      const auto index = static_cast<size_t>(i);
      segments.push_back({{tokens.data() + index, 1}, depth + step, pages[index], greedy_rows(1)});
    }
    const double seconds = model.forward(segments);
    if (step >= kWarmUps) times.push_back(seconds);
  }
  const double middle = depth + 0.5 * (steps + kWarmUps);  // tokens that a step in the middle sees
  Measurement m = model.work(name, batch, depth, 1, batch * middle, batch * middle, batch);
  m.seconds = median(times);
  print_step(report, m);
}

void measure_batches(Model& model, const std::string& prefix, const Settings& settings, Report& report) {
  // All sequences' first tokens, as many in a batch as it takes.
  report.attempt(prefix + "prefill 256 x 128", [&] {
    double seconds = 0;
    const int32_t at_once = std::clamp(model->max_batch_tokens() / kBatchDepth, 1, kMostSequences);
    for (int32_t first = 0; first < kMostSequences; first += at_once) {
      const int32_t count = std::min(at_once, kMostSequences - first);
      const std::vector<int32_t> tokens = model.random_tokens(count * kBatchDepth);
      std::vector<std::vector<int32_t>> pages;
      for (int32_t i = 0; i < count; ++i) pages.push_back(pages_from((first + i) * kPagesEach, kPagesEach));
      std::vector<Segment> segments;
      for (int32_t i = 0; i < count; ++i) {
        const auto index = static_cast<size_t>(i);
        segments.push_back({{tokens.data() + index * kBatchDepth, kBatchDepth}, 0, pages[index], greedy_rows(1)});
      }
      seconds += model.forward(segments);
    }
    Measurement m = model.work(prefix + "prefill 256 x 128", kMostSequences * kBatchDepth, 0,
                               (kMostSequences + at_once - 1) / at_once,
                               kMostSequences * 0.5 * kBatchDepth * (kBatchDepth + 1.0), 0, kMostSequences);
    m.seconds = seconds;
    print_step(report, m);
  });
  for (const int32_t batch : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
    const std::string name = prefix + "decode x" + std::to_string(batch) + " at " + std::to_string(kBatchDepth);
    report.attempt(name, [&] { measure_decode(model, name, batch, kBatchDepth, kPagesEach, settings, report); });
  }
}

// Steps whose tokens are drawn with every option, beside greedy ones taken by turns: what the option adds.
void measure_sampling(Model& model, const std::string& prefix, const Settings& settings, Report& report) {
  for (const int32_t batch : {1, 8, 64, 256}) {
    report.attempt(prefix + "sampling x" + std::to_string(batch), [&] {
      const std::vector<SamplingOptions> all = sampling_options(model.shape().vocabulary);
      std::vector<std::vector<double>> times(all.size());
      const std::vector<int32_t> tokens = model.random_tokens(batch);
      std::vector<std::vector<int32_t>> pages;
      for (int32_t i = 0; i < batch; ++i) pages.push_back(pages_from(i * kPagesEach, kPagesEach));
      for (int step = 0; step < settings.steps + kWarmUps; ++step) {
        for (size_t o = 0; o < all.size(); ++o) {
          const std::vector<Row> rows = all[o].rows(batch);
          std::vector<Segment> segments;
          for (size_t i = 0; i < rows.size(); ++i) {
            segments.push_back({{tokens.data() + i, 1}, kBatchDepth, pages[i], {&rows[i], 1}});
          }
          const double seconds = model.forward(segments);
          if (step >= kWarmUps) times[o].push_back(seconds);
        }
      }
      report.print("%-26s %9.1f us greedy;", (prefix + "sampling x" + std::to_string(batch)).c_str(),
                   median(times[0]) * 1e6);
      for (size_t o = 0; o < all.size(); ++o) {
        Measurement m = model.work(prefix + "sampling " + all[o].name, batch, kBatchDepth, 1, batch * kBatchDepth,
                                   batch * kBatchDepth, batch);
        m.seconds = median(times[o]);
        report.add(m);
        if (o > 0) report.print(" %s %+.1f", all[o].name.c_str(), (m.seconds - median(times[0])) * 1e6);
      }
      report.print("\n");
    });
  }
}

// Steps in which sequences compute a token and seven drafts, all of whose rows are wanted, beside as many sequences of
// one token.
void measure_drafts(Model& model, const std::string& prefix, const Settings& settings, Report& report) {
  constexpr int32_t kTokens = 8;
  for (const auto& [sequences, depth] : {std::pair{1, kBatchDepth},
                                         {1, 8192},
                                         {1, 32000},
                                         {2, kBatchDepth},
                                         {4, kBatchDepth},
                                         {8, kBatchDepth},
                                         {16, kBatchDepth}}) {
    const std::string name = prefix + "drafts " + std::to_string(sequences) + "x8 at " + std::to_string(depth);
    const int32_t count = sequences, position = depth;
    report.attempt(name, [&] {
      std::vector<double> times;
      std::vector<std::vector<int32_t>> pages;
      for (int32_t i = 0; i < count; ++i) {
        pages.push_back(pages_from(i * kPagesEach, count == 1 ? kContext / kPageTokens : kPagesEach));
      }
      for (int step = 0; step < settings.steps + kWarmUps; ++step) {
        const std::vector<int32_t> tokens = model.random_tokens(count * kTokens);
        std::vector<Segment> segments;
        for (int32_t i = 0; i < count; ++i) {
          const auto index = static_cast<size_t>(i);
          segments.push_back(
              {{tokens.data() + index * kTokens, kTokens}, position, pages[index], greedy_rows(kTokens)});
        }
        const double seconds = model.forward(segments);
        if (step >= kWarmUps) times.push_back(seconds);
      }
      const double visible = 1.0 * count * kTokens * position;
      Measurement m = model.work(name, count * kTokens, position, 1, visible, visible / kTokens, count * kTokens);
      m.seconds = median(times);
      print_step(report, m);
    });
  }
}

}  // namespace

void measure_memory(const Settings& settings, Report& report) {
  for (const std::string& type : settings.types) {
    for (const int32_t context : {8192, 32768}) {
      const std::string name = type + " memory, context " + std::to_string(context);
      report.attempt(name, [&] {
        const size_t before = used_bytes();
        Model model(settings, *data_type_by_name(type), context / kPageTokens, 1, context);
        const std::vector<int32_t> pages = pages_from(0, context / kPageTokens);
        prefill(model, model.random_tokens(1000), pages);
        const size_t after = used_bytes();
        const BackendInfo info = model->info();
        report.print("%-26s %6.3f GB of its own (weights %.3f, keys and values %.3f), %6.3f GB in use on the GPU\n",
                     name.c_str(), static_cast<double>(after - before) / 1e9,
                     static_cast<double>(info.weight_bytes) / 1e9,
                     static_cast<double>(info.page_bytes) * info.pages / 1e9, static_cast<double>(after) / 1e9);
      });
    }
  }
}

// How long loading a model takes whose weights are next to nothing: the recording of its graphs, which does not depend
// on the matrices' sizes, and the memory that they take.
void measure_graphs(const Settings& settings, Report& report) {
  ModelShape shape = shape_of_6b(settings.layers);
  shape.hidden_size = 256, shape.ffn_size = 512, shape.vocabulary = 1024;
  const ModelSource source = test::random_model(shape, DataType::q4_0);
  const std::atomic<bool> never{false};
  for (const int32_t sequences : {1, 1, 8, 64, 256}) {
    report.attempt("graphs", [&] {
      cuda::CudaOptions options;
      options.device = settings.device;
      options.pages = 256, options.max_sequences = sequences, options.context_tokens = 64;
      const size_t before = used_bytes();
      const auto begin = std::chrono::steady_clock::now();
      const auto backend = chatglm_cuda_api(cuda::kCudaApiVersion)
                               ->make_backend(
                                   source, options, [](uint64_t, uint64_t) {}, never);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      report.print(
          "graphs of up to %3d sequences  %6.1f ms to load, %6.1f MB beside the model's own\n", sequences,
          taken.count() * 1e3,
          (static_cast<double>(used_bytes() - before) - static_cast<double>(backend->info().device_bytes)) / 1e6);
    });
  }
}

void measure_steps(const Settings& settings, Report& report) {
  for (const std::string& type : settings.types) {
    const std::string prefix = type + " ";
    report.attempt(prefix + "model", [&] {
      const auto begin = std::chrono::steady_clock::now();
      const size_t before = used_bytes();
      Model model(settings, *data_type_by_name(type), kMostSequences * kPagesEach, kMostSequences, kContext);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      const BackendInfo info = model->info();
      report.print(
          "%s: %s, loaded in %.1f s, %.3f GB (weights %.3f, read a token %.3f, keys and values %.3f), batches of %d\n",
          type.c_str(), info.kernels.c_str(), taken.count(), static_cast<double>(used_bytes() - before) / 1e9,
          static_cast<double>(info.weight_bytes) / 1e9, static_cast<double>(info.bytes_per_token) / 1e9,
          static_cast<double>(info.page_bytes) * info.pages / 1e9, model->max_batch_tokens());
      measure_prefill(model, prefix, report);
      for (const int32_t depth : {0, 2048, 8192, 32000}) {
        const std::string name = prefix + "decode at " + std::to_string(depth);
        report.attempt(name, [&] { measure_decode(model, name, 1, depth, kContext / kPageTokens, settings, report); });
      }
      measure_batches(model, prefix, settings, report);
      measure_sampling(model, prefix, settings, report);
      measure_drafts(model, prefix, settings, report);
      report.print("%s: %.3f GB at the end\n", type.c_str(), static_cast<double>(used_bytes() - before) / 1e9);
    });
  }
}

}  // namespace chatglm::benchmark
