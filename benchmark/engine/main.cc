// The engine on a real backend with random weights: what speculation gains where an answer repeats its prompt and loses
// where nothing repeats, and how long running answers wait for their tokens while a long prompt arrives.
//
//   chatglm_engine_bench [--layers 28] [--width 4096] [--tokens 96] [--rounds 3] [--streams 16] [--prompt 8192]
//
// Random weights do not rewrite texts, so the tokens of the answers are given: the backend computes each step in full,
// and then says the token that the script has at that place, whatever the logits are. Figures are medians of the
// rounds, by turns.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/cores.h"
#include "engine/engine.h"
#include "test/small_model.h"
#if defined(CHATGLM_BENCH_CUDA)
#include "cuda/api.h"
#else
#include "cpu/backend.h"
#include "cpu/kernels/kernels.h"
#include "cpu/weights.h"
#endif

namespace {

using namespace chatglm;
using Clock = std::chrono::steady_clock;
using Tokens = std::vector<int32_t>;

struct Settings {
  int32_t layers = 28, width = 4096, tokens = 96, rounds = 3, streams = 16, prompt = 8192;
};

ModelShape shape_of(const Settings& settings) {
  ModelShape shape;  // the 6B shape, or a narrower one of the same proportions
  shape.layers = settings.layers;
  shape.hidden_size = settings.width;
  shape.heads = settings.width / 128;
  shape.kv_groups = 2;
  shape.head_size = 128;
  shape.ffn_size = (settings.width * 107 / 32 + 31) / 32 * 32;
  shape.vocabulary = 65024;
  shape.norm_epsilon = 1e-5f;
  shape.rope_dimension = 64;
  shape.rope_base = 10000;
  return shape;
}

/// Computes in full, and then says what a script has.
class ScriptedBackend final : public Backend {
 public:
  ScriptedBackend(std::unique_ptr<Backend> inner, const Tokens* script) : inner_(std::move(inner)), script_(script) {}

  BackendInfo info() const override { return inner_->info(); }
  int32_t max_batch_tokens() const override { return inner_->max_batch_tokens(); }
  int32_t max_batch_logits() const override { return inner_->max_batch_logits(); }
  bool forward(std::span<const Segment> batch, float* logits, Outcome* outcomes,
               const std::atomic<bool>& abort) override {
    if (!inner_->forward(batch, logits, outcomes, abort)) return false;
    if (script_->empty()) return true;
    for (const Segment& segment : batch) {
      const auto end = segment.position + static_cast<int32_t>(segment.tokens.size());
      for (size_t i = 0; i < segment.rows.size(); ++i, ++outcomes) {
        const auto next = static_cast<size_t>(end) - segment.rows.size() + i + 1;
        outcomes->status = Outcome::Status::ok;
        outcomes->token = (*script_)[next % script_->size()];
      }
    }
    return true;
  }
  void copy_page(int32_t from, int32_t to, int32_t tokens) override { inner_->copy_page(from, to, tokens); }
  void read_page(int32_t page, uint8_t* target) override { inner_->read_page(page, target); }
  void write_page(int32_t page, const uint8_t* source) override { inner_->write_page(page, source); }

 private:
  std::unique_ptr<Backend> inner_;
  const Tokens* script_;
};

/// Notes when tokens come.
class Listener final : public EngineListener {
 public:
  void on_progress(uint64_t, uint64_t) override {}
  void on_ready(const BackendInfo& info) override {
    std::printf("%s %s, %d threads\n", info.device.c_str(), info.kernels.c_str(), info.threads);
  }
  void on_failed(const Error& error) override {
    std::fprintf(stderr, "%s: %s\n", error.code.c_str(), error.what());
    // On the engine's thread, which cannot throw to main(); main() waits for tokens that will not come any more.
    std::exit(1);
  }
  void on_token(uint32_t request, int32_t, const Outcome*) override {
    const std::lock_guard lock(mutex_);
    times_[request].push_back(Clock::now());
    changed_.notify_all();
  }
  void on_logits(uint32_t, int32_t, std::span<const float>) override {}
  void on_scores(uint32_t, int32_t, std::span<const Outcome>) override {}
  void on_admitted(uint32_t) override {}
  void on_finish(uint32_t request, const Finish& finish) override {
    const std::lock_guard lock(mutex_);
    finishes_[request] = finish;
    changed_.notify_all();
  }
  void on_error(uint32_t, const Error& error) override {
    if (error.code != "ERR_DISPOSED") on_failed(error);  // which those get that run at the end
  }
  void on_trace(uint32_t, const Trace&) override {}
  void on_pages(uint32_t, std::vector<uint8_t>, const Error*) override {}
  void on_stopped() override {}

  Finish wait(uint32_t request) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return finishes_.contains(request); });
    return finishes_[request];
  }
  void wait_for_tokens(uint32_t request, size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return times_[request].size() >= count || finishes_.contains(request); });
  }
  std::vector<Clock::time_point> times(uint32_t request) {
    const std::lock_guard lock(mutex_);
    return times_[request];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint32_t, std::vector<Clock::time_point>> times_;
  std::map<uint32_t, Finish> finishes_;
};

std::unique_ptr<Backend> backend_of(const Settings& settings, const EngineOptions& options,
                                    const std::atomic<bool>& abort) {
  ModelSource source = test::random_model(shape_of(settings), DataType::q4_0);
  const auto no_progress = [](uint64_t, uint64_t) {};
#if defined(CHATGLM_BENCH_CUDA)
  source.threads = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  cuda::CudaOptions cuda;
  cuda.pages = cuda.least_pages = options.pages;
  cuda.max_sequences = options.max_sequences;
  cuda.context_tokens = options.context_tokens;
  return chatglm_cuda_api(cuda::kCudaApiVersion)->make_backend(source, cuda, no_progress, abort);
#else
  source.threads = physical_cores();
  cpu::CpuOptions cpu;
  cpu.threads = source.threads;
  cpu.pages = options.pages;
  return cpu::make_cpu_backend(source.shape, cpu::load_cpu_weights(source, cpu::select_kernels(), no_progress, abort),
                               cpu);
#endif
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

double milliseconds(Clock::duration duration) { return std::chrono::duration<double, std::milli>(duration).count(); }

Tokens random_tokens(uint64_t seed, int32_t count) {
  std::mt19937_64 random(seed);
  Tokens tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random() % 64000));
  return tokens;
}

/// A prompt of 500 tokens and an answer that repeats it, but for one token in 25.
Tokens rewriting(uint64_t seed, int32_t answer) {
  Tokens script = random_tokens(seed, 500);
  std::mt19937_64 random(seed + 1);
  for (int32_t i = 0; i < answer; ++i)
    script.push_back(i % 25 == 24 ? static_cast<int32_t>(random() % 64000) : script[static_cast<size_t>(i)]);
  return script;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const int32_t value = std::atoi(argv[i + 1]);
    if (name == "--layers") settings.layers = value;
    if (name == "--width") settings.width = value;
    if (name == "--tokens") settings.tokens = value;
    if (name == "--rounds") settings.rounds = value;
    if (name == "--streams") settings.streams = value;
    if (name == "--prompt") settings.prompt = value;
  }
  EngineOptions options;
  options.vocabulary = 65024;
  options.context_tokens = std::max(settings.prompt + 64, 500 + settings.tokens);
  options.max_sequences = settings.streams + 1;
  options.pages = options.pages_of_context() + settings.streams * ((64 + 4096) / kPageTokens);
  options.prefix_cache = false;
  Tokens script;
  Listener listener;
  const auto load = [&](const Progress&, const std::atomic<bool>& abort) -> std::unique_ptr<Backend> {
    return std::make_unique<ScriptedBackend>(backend_of(settings, options, abort), &script);
  };
  // One engine for all, whose requests say whether they want drafts: with a penalty of nothing they do not.
  Engine engine(options, load, listener);

  const auto speed = [&](const Tokens& text, bool drafts) {
    script = text;
    Request request;
    request.prompt.assign(text.begin(), text.begin() + 500);
    request.max_tokens = settings.tokens;
    request.sampling.temperature = 0;
    request.speculation = drafts;
    const Finish finish = listener.wait(engine.submit(request));
    std::printf("  %s drafts: %.2f ms a token, %d drafted, %d accepted\n", drafts ? "with" : "without",
                finish.decode_ms / (finish.generated_tokens - 1), finish.drafted_tokens, finish.accepted_tokens);
    std::fflush(stdout);
    return (finish.generated_tokens - 1) / finish.decode_ms * 1e3;
  };
  for (const bool repeats : {true, false}) {
    std::vector<double> with, without;
    speed(random_tokens(1, 500 + settings.tokens), false);
    for (int32_t round = 0; round < settings.rounds; ++round) {
      const auto seed = static_cast<uint64_t>(10 + round);
      const Tokens text = repeats ? rewriting(seed, settings.tokens) : random_tokens(seed, 500 + settings.tokens);
      without.push_back(speed(text, false));
      with.push_back(speed(text, true));
    }
    std::printf("%s: %.1f tokens/s without drafts, %.1f with: %.2f times\n",
                repeats ? "an answer that repeats its prompt" : "random text", median(without), median(with),
                median(with) / median(without));
  }

  // Gaps between the tokens of running answers, before and while a long prompt is computed.
  if (settings.streams == 0) return 0;
  script.clear();
  std::vector<uint32_t> streams;
  for (int32_t i = 0; i < settings.streams; ++i) {
    Request request;
    request.prompt = random_tokens(static_cast<uint64_t>(100 + i), 64);
    request.max_tokens = 4000;
    request.sampling.temperature = 0;
    request.speculation = false;
    streams.push_back(engine.submit(request));
  }
  for (const uint32_t stream : streams) listener.wait_for_tokens(stream, 50);
  const Clock::time_point begin = Clock::now();
  Request request;
  request.prompt = random_tokens(7, settings.prompt);
  request.max_tokens = 1;
  const Finish prompt = listener.wait(engine.submit(request));
  const Clock::time_point end = Clock::now();
  for (const uint32_t stream : streams) engine.cancel(stream);
  std::vector<double> before, during;
  for (const uint32_t stream : streams) {
    const std::vector<Clock::time_point> times = listener.times(stream);
    for (size_t i = 20; i + 1 < times.size(); ++i) {
      if (times[i + 1] < begin) before.push_back(milliseconds(times[i + 1] - times[i]));
      if (times[i] > begin && times[i + 1] < end) during.push_back(milliseconds(times[i + 1] - times[i]));
    }
  }
  std::sort(during.begin(), during.end());
  if (during.empty()) return 1;
  std::printf(
      "%d streams, a prompt of %d tokens arrives: gaps between tokens %.2f ms before (median), %.2f ms meanwhile "
      "(median), %.2f ms (99%%), %.2f ms (longest): %.2f, %.2f and %.2f times; the prompt took %.0f ms\n",
      settings.streams, settings.prompt, median(before), median(during), during[during.size() * 99 / 100],
      during.back(), median(during) / median(before), during[during.size() * 99 / 100] / median(before),
      during.back() / median(before), prompt.prefill_ms);
  return 0;
}
