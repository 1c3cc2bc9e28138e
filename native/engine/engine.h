#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "engine/backend.h"
#include "engine/kv_cache.h"
#include "engine/scheduler.h"
#include "engine/sequence_sampler.h"
#include "engine/speculator.h"
#include "model/model.h"

namespace chatglm {

struct EngineOptions {
  int32_t vocabulary = 0;
  int32_t context_tokens = 0;  // most tokens of one sequence
  int32_t max_sequences = 1;   // most sequences that are computed at the same time; further requests wait
  int32_t max_queue = 256;     // most requests that wait
  /// Pages of the key/value cache: so many are asked of the backend, which gives at least `least_pages` or fails.
  int32_t pages = 0;
  int32_t least_pages = 0;
  bool prefix_cache = true;
  bool speculation = true;       // drafts where they pay
  double prefill_budget_ms = 0;  // SchedulerLimits::prefill_budget_ms

  /// Pages that hold one sequence of context_tokens.
  int32_t pages_of_context() const { return (context_tokens + kPageTokens - 1) / kPageTokens; }
};

struct Request {
  enum class Kind {
    generate,
    logits,  // the rows of logits of the prompt's positions from `from` on
    score,   // the log-probabilities of the prompt's tokens from position `from` on, which is at least 1
  };
  Kind kind = Kind::generate;
  std::vector<int32_t> prompt;
  int32_t max_tokens = 0;
  std::vector<int32_t> stop_tokens;
  Sampling sampling;
  int32_t from = 0;
  int32_t top = 0;  // score: of so many of the likeliest tokens too, at most Outcome::kMostLogprobs
  int32_t priority = 0;
  std::string client;
  double weight = 1;  // of the client
  /// The pages of the prompt stay held after the end, under the request's number, until release().
  bool pin = false;
  bool trace = false;       // whether the listener hears on_trace()
  bool speculation = true;  // drafts, if the engine makes any
};

enum class FinishReason { stop, length, cancelled };

struct Finish {
  FinishReason reason = FinishReason::length;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // of the prompt, found in the prefix cache
  int32_t generated_tokens = 0;
  int32_t drafted_tokens = 0;   // that were guessed
  int32_t accepted_tokens = 0;  // of these, those that turned out to be right
  int32_t preemptions = 0;
  double queue_ms = 0;        // from submission until the sequence was admitted
  double first_token_ms = 0;  // from submission to the first token; 0 without one
  double prefill_ms = 0;      // from admission to the end of the prompt
  double decode_ms = 0;       // from the first token to the last
};

/// What happens to a request, for logs and metrics.
struct Trace {
  enum class Phase { queued, admitted, prefill, decode, preempted, finished, failed };
  Phase phase = Phase::queued;
  double at_ms = 0;    // since submission
  double took_ms = 0;  // prefill: the step; decode: since the first token; else 0
  int32_t tokens = 0;  // admitted: found in the cache; prefill: of the chunk; decode, finished: generated; else 0
};

/// Receives the events of an engine, on the engine's thread. A listener must not call back into the engine.
class EngineListener {
 public:
  virtual ~EngineListener() = default;
  virtual void on_progress(uint64_t bytes, uint64_t total_bytes) = 0;
  virtual void on_ready(const BackendInfo& info) = 0;
  /// Loading failed, or the backend threw while it computed: the engine has ended, after on_error() of each request.
  virtual void on_failed(const Error& error) = 0;
  /// outcome: null, or the token's log-probabilities, if asked for.
  virtual void on_token(uint32_t request, int32_t token, const Outcome* outcome) = 0;
  /// logits: (some rows, vocabulary), of the positions that begin with `position`.
  virtual void on_logits(uint32_t request, int32_t position, std::span<const float> logits) = 0;
  /// Of the tokens whose positions begin with `position`.
  virtual void on_scores(uint32_t request, int32_t position, std::span<const Outcome> scores) = 0;
  virtual void on_admitted(uint32_t request) = 0;
  virtual void on_finish(uint32_t request, const Finish& finish) = 0;
  virtual void on_error(uint32_t request, const Error& error) = 0;
  virtual void on_trace(uint32_t request, const Trace& trace) = 0;
  /// The end of a call of read_pages() or write_pages(). data: the pages that were read. error: null, or why it failed.
  virtual void on_pages(uint32_t call, std::vector<uint8_t> data, const Error* error) = 0;
  /// The last call: the model's memory is free.
  virtual void on_stopped() = 0;
};

/// One model's thread. It loads the model and then computes in steps, by continuous batching with chunked prefill: the
/// batch of a step holds the next token of each sequence that is generating, drafts of further ones, and chunks of
/// prompts, as the scheduler decides.
class Engine {
 public:
  using Load = std::function<std::unique_ptr<Backend>(const Progress&, const std::atomic<bool>& abort)>;

  /// `listener` outlives the engine. Throws std::system_error if the system gives no thread: see current_error().
  Engine(EngineOptions options, Load load, EngineListener& listener);
  /// Stops and waits for the thread.
  ~Engine();

  /// Returns the request's number. Throws ERR_QUEUE_FULL, ERR_CONTEXT_OVERFLOW, ERR_INVALID_ARGUMENT, ERR_DISPOSED, or
  /// the cause of the failure that ended the engine.
  uint32_t submit(Request request);
  /// Ends a request: at once if the request waits, and else after the running step, which ends early, after at most one
  /// kernel's time, if it computes nothing but requests that were cancelled.
  void cancel(uint32_t request);
  void clear_cache();
  /// Cancels all requests and tells the thread to end, without waiting for its end.
  void stop();

  /// Gives back the pages that a request pinned, or that import_pages() took. Unknown numbers are ignored.
  void release(uint32_t pin);
  /// Copies `count` pinned pages from `first` on to the listener, between two steps. Returns the call's number.
  uint32_t read_pages(uint32_t pin, int32_t first, int32_t count);
  /// Takes pages for the keys and values of `tokens`, to be filled by write_pages() and then given to the prefix cache
  /// by release(). Returns the number of the pin. If the pages do not suffice, write_pages() fails with
  /// ERR_OUT_OF_MEMORY.
  uint32_t import_pages(std::vector<int32_t> tokens);
  /// Fills pages of import_pages() from `first` on, between two steps. Returns the call's number.
  uint32_t write_pages(uint32_t pin, int32_t first, std::vector<uint8_t> data);

  struct Stats {
    int32_t active_sequences = 0;
    int32_t queued_requests = 0;
    int64_t cached_tokens = 0;
    int32_t used_pages = 0;
    int32_t total_pages = 0;
    int64_t steps = 0;
    int64_t prefill_tokens = 0;  // computed
    int64_t generated_tokens = 0;
    int64_t drafted_tokens = 0;
    int64_t accepted_tokens = 0;
    int64_t preemptions = 0;
  };
  Stats stats() const;

 private:
  using Clock = std::chrono::steady_clock;

  struct Sequence {
    Job job;
    Request request;
    Clock::time_point submitted, admitted, prefilled, last_token;
    std::vector<int32_t> tokens;  // the prompt and the generated tokens
    int32_t cached = 0;
    int32_t generated = 0;
    Finish counts;
    bool ended = false;
    KvCache::Holding holding;
    std::unique_ptr<SequenceSampler> sampler;
    std::unique_ptr<Speculator> speculator;  // null: no drafts
    std::span<const int32_t> drafts;         // that the speculator made for the next step
    std::vector<Row> rows;                   // of the running step
    // Why the sequence is to end, from the token on that says so.
    std::optional<FinishReason> reason;
    std::optional<Error> error;

    uint32_t id() const { return job.id; }
  };
  using SequencePtr = std::unique_ptr<Sequence>;

  /// Pages that belong to no running sequence.
  struct Pin {
    KvCache::Holding holding;
    std::vector<int32_t> tokens;
    bool imported = false;
    std::vector<bool> written;  // (pages), of imported ones
  };

  /// What another thread asks of the engine's thread, between two steps.
  struct Command {
    uint32_t id;
    bool replies;  // on_pages() tells the end
    std::function<void(Backend&)> body;
  };

  uint32_t command(std::function<void(Backend&, uint32_t)> body, bool replies);
  Pin& pin_of(uint32_t pin, int32_t first, int32_t count);
  void give_back(uint32_t pin);
  void run(const Load& load);
  void serve(Backend& backend);
  bool wait_for_work();
  void take_inbox(Backend& backend);
  void admit(Backend& backend);
  void find_cached(Backend& backend, Sequence& sequence);
  void give_pages_back(Sequence& sequence);
  void preempt(Sequence& sequence);
  Scheduler::Plan plan(Backend& backend);
  void draft();
  void step(Backend& backend, const Scheduler::Plan& plan);
  void prepare_rows(Sequence& sequence, const Scheduler::Part& part);
  void consume(Sequence& sequence, const Scheduler::Part& part, std::span<const float> logits,
               std::span<const Outcome> outcomes);
  bool accept(Sequence& sequence, const Outcome& outcome);
  void settle(Sequence& sequence);
  static Error not_finite(int32_t position);
  void finish(Sequence& sequence, FinishReason reason);
  void fail(Sequence& sequence, const Error& error);
  void count_out(Sequence& sequence);
  void forget_ended();
  void trace(const Sequence& sequence, Trace::Phase phase, int32_t tokens = 0, double took_ms = 0);
  void publish_stats();

  const EngineOptions options_;
  EngineListener& listener_;

  mutable std::mutex mutex_;  // guards the fields from here to stats_
  std::condition_variable wake_;
  std::deque<SequencePtr> inbox_;
  std::deque<Command> commands_;
  std::vector<uint32_t> cancelled_;
  std::vector<uint32_t> stepping_;  // sequences of the running step
  bool clear_cache_ = false;
  bool stopping_ = false;
  std::optional<Error> failure_;
  int32_t unfinished_ = 0;  // submitted requests that have not ended
  int32_t running_ = 0;     // of the unfinished requests, those that were admitted
  uint32_t next_id_ = 1;
  Stats stats_;

  // Only the engine's thread uses the fields from here to totals_.
  std::map<uint32_t, SequencePtr> sequences_;  // that have not ended, by number
  std::map<uint32_t, Pin> pins_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<KvCache> cache_;
  uint32_t blocked_ = 0;           // the waiting request that came next and did not fit; 0: none
  int32_t blocked_pages_ = 0;      // that were available then
  std::vector<float> logits_;      // (rows of a batch, vocabulary)
  std::vector<Outcome> outcomes_;  // (tokens of a batch)
  Stats totals_;

  std::atomic<bool> abort_step_{false};
  std::atomic<bool> abort_all_{false};
  std::thread thread_;
};

}  // namespace chatglm
