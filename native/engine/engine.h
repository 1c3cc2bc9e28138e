#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "engine/backend.h"
#include "engine/kv_cache.h"
#include "engine/sampler.h"
#include "model/model.h"

namespace chatglm {

struct EngineOptions {
  int32_t vocabulary = 0;
  int32_t context_tokens = 0;  // most tokens of one sequence
  int32_t max_sequences = 1;   // most sequences that are computed at the same time; further requests wait
  int32_t max_queue = 256;     // most requests that wait
  bool prefix_cache = true;

  /// Pages that let max_sequences sequences fill their contexts.
  int32_t pages() const { return max_sequences * ((context_tokens + kPageTokens - 1) / kPageTokens); }
};

struct Request {
  std::vector<int32_t> prompt;
  int32_t max_tokens = 0;
  std::vector<int32_t> stop_tokens;
  Sampling sampling;
  int32_t logits_from = -1;  // -1, or: give the logits of the prompt from this position on and generate nothing
};

enum class FinishReason { stop, length, cancelled };

struct Finish {
  FinishReason reason = FinishReason::length;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // of the prompt, found in the prefix cache
  int32_t generated_tokens = 0;
  double queue_ms = 0;        // from submission until the sequence was admitted
  double first_token_ms = 0;  // from submission to the first token; 0 without one
  double prefill_ms = 0;      // from admission to the end of the prompt
  double decode_ms = 0;       // from the first token to the last
};

/// Receives the events of an engine, on the engine's thread. A listener must not call back into the engine.
class EngineListener {
 public:
  virtual ~EngineListener() = default;
  virtual void on_progress(uint64_t bytes, uint64_t total_bytes) = 0;
  virtual void on_ready(const BackendInfo& info) = 0;
  /// Loading failed, or the backend threw while it computed: the engine has ended.
  virtual void on_failed(const Error& error) = 0;
  virtual void on_token(uint32_t request, int32_t token, const Logprobs* logprobs) = 0;
  /// logits: (some rows, vocabulary), of the positions that begin with `position`.
  virtual void on_logits(uint32_t request, int32_t position, std::span<const float> logits) = 0;
  virtual void on_finish(uint32_t request, const Finish& finish) = 0;
  virtual void on_error(uint32_t request, const Error& error) = 0;
  /// The last call: the model's memory is free.
  virtual void on_stopped() = 0;
};

/// One model's thread. It loads the model and then computes in steps, by continuous batching with chunked prefill: the
/// batch of a step holds the next token of each sequence that is generating, and chunks of prompts.
class Engine {
 public:
  using Load = std::function<std::unique_ptr<Backend>(const Progress&, const std::atomic<bool>& abort)>;

  /// `listener` outlives the engine. Throws std::system_error if the system gives no thread: see current_error().
  Engine(EngineOptions options, Load load, EngineListener& listener);
  /// Stops and waits for the thread.
  ~Engine();

  /// Returns the request's number. Throws ERR_QUEUE_FULL, ERR_CONTEXT_OVERFLOW, ERR_INVALID_ARGUMENT or ERR_DISPOSED.
  uint32_t submit(Request request);
  /// Ends a request: at once if the request waits, and after at most one kernel's time if it is being computed.
  void cancel(uint32_t request);
  void clear_cache();
  /// Cancels all requests and tells the thread to end, without waiting for its end.
  void stop();

  struct Stats {
    int32_t active_sequences = 0;
    int32_t queued_requests = 0;
    int64_t cached_tokens = 0;
    int32_t used_pages = 0;
    int32_t total_pages = 0;
  };
  Stats stats() const;

 private:
  using Clock = std::chrono::steady_clock;

  struct Sequence {
    uint32_t id = 0;
    Request request;
    Clock::time_point submitted, admitted, prefilled, last_token;
    std::vector<int32_t> tokens;  // the prompt and the generated tokens
    int32_t evaluated = 0;        // of the tokens, those whose keys and values are in the pages
    int32_t cached = 0;
    int32_t generated = 0;
    bool ended = false;
    KvCache::Holding holding;
    std::unique_ptr<Sampler> sampler;

    bool prefilling() const { return generated == 0; }
    int32_t remaining() const { return static_cast<int32_t>(tokens.size()) - evaluated; }
  };
  using SequencePtr = std::unique_ptr<Sequence>;

  /// The share of one sequence in a step.
  struct Part {
    Sequence* sequence;
    int32_t tokens;
    int32_t logits;
    bool top;  // the largest logits of the row are wanted instead of the row
  };

  void run(const Load& load);
  void serve(Backend& backend);
  void take_inbox();
  void admit(Backend& backend);
  std::vector<Part> plan(const Backend& backend) const;
  void step(Backend& backend, const std::vector<Part>& parts);
  void consume(const Part& part, std::span<const float> logits, const TopLogits* top);
  void finish(Sequence& sequence, FinishReason reason);
  void fail(Sequence& sequence, const Error& error);
  void count_out(Sequence& sequence);
  void publish_stats();

  const EngineOptions options_;
  EngineListener& listener_;

  mutable std::mutex mutex_;  // guards the fields from here to stats_
  std::condition_variable wake_;
  std::deque<SequencePtr> inbox_;
  std::vector<uint32_t> cancelled_;
  std::vector<uint32_t> prefilling_;  // sequences of which the running step prefills a chunk
  bool clear_cache_ = false;
  bool stopping_ = false;
  int32_t unfinished_ = 0;  // submitted requests that have not ended
  int32_t running_ = 0;     // of the unfinished requests, those that were admitted
  uint32_t next_id_ = 1;
  Stats stats_;

  // Only the engine's thread uses the fields from here to prefill_tokens_per_second_.
  std::deque<SequencePtr> queue_;
  std::vector<SequencePtr> active_;
  KvCache cache_;
  std::vector<float> logits_;    // (rows of a batch, vocabulary)
  std::vector<TopLogits> tops_;  // (max_sequences)
  double prefill_tokens_per_second_ = 0;

  std::atomic<bool> abort_step_{false};
  std::atomic<bool> abort_all_{false};
  std::thread thread_;
};

}  // namespace chatglm
