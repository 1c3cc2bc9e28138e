#include "engine/engine.h"

#include <algorithm>

namespace chatglm {

namespace {

// A chunk of a prompt should not delay the next tokens of the sequences that are generating by more than this.
constexpr double kSharedStepSeconds = 0.1;
constexpr int32_t kSmallestPiece = 16;

double milliseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

bool contains(const std::vector<uint32_t>& ids, uint32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

Engine::Engine(EngineOptions options, Load load, EngineListener& listener)
    : options_(options), listener_(listener), cache_(options.pages(), kPageTokens) {
  thread_ = std::thread([this, load = std::move(load)] { run(load); });
}

Engine::~Engine() {
  stop();
  thread_.join();
}

uint32_t Engine::submit(Request request) {
  const auto tokens = static_cast<int32_t>(request.prompt.size());
  const bool generates = request.logits_from < 0;
  if (tokens == 0) throw Error("ERR_INVALID_ARGUMENT", "the prompt is empty");
  for (const int32_t id : request.prompt) {
    if (id < 0 || id >= options_.vocabulary) {
      throw Error("ERR_INVALID_ARGUMENT", "token id " + std::to_string(id) + " is not in the vocabulary of " +
                                              std::to_string(options_.vocabulary));
    }
  }
  const int32_t limit = options_.context_tokens;
  if (tokens + (generates && request.max_tokens > 0 ? 1 : 0) > limit) {
    throw Error("ERR_CONTEXT_OVERFLOW",
                "the prompt has " + std::to_string(tokens) + " tokens; the context holds " + std::to_string(limit) +
                    (generates ? ", the answer included" : ""),
                {{"tokens", static_cast<double>(tokens)}, {"limit", static_cast<double>(limit)}});
  }
  if (!generates) request.max_tokens = 0;
  request.max_tokens = std::clamp(request.max_tokens, 0, limit - tokens);

  auto sequence = std::make_unique<Sequence>();
  sequence->tokens = request.prompt;
  sequence->submitted = Clock::now();
  sequence->sampler = std::make_unique<Sampler>(request.sampling, request.prompt);
  sequence->request = std::move(request);

  const std::lock_guard lock(mutex_);
  if (stopping_) throw Error("ERR_DISPOSED", "the model was disposed");
  // The limit counts all unfinished requests, so it does not depend on how soon the engine's thread empties the inbox.
  if (unfinished_ >= options_.max_sequences + options_.max_queue) {
    throw Error("ERR_QUEUE_FULL", std::to_string(options_.max_queue) + " requests are waiting already (maxQueue)",
                {{"limit", static_cast<double>(options_.max_queue)}});
  }
  const uint32_t id = sequence->id = next_id_++;
  ++unfinished_;
  inbox_.push_back(std::move(sequence));
  wake_.notify_one();
  return id;
}

void Engine::cancel(uint32_t request) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(request);
  // A step of single tokens is soon done, but a chunk of a prompt may take seconds: the step is aborted. The other
  // sequences of the step lose their results too and are computed again.
  if (contains(prefilling_, request)) abort_step_ = true;
  wake_.notify_one();
}

void Engine::clear_cache() {
  const std::lock_guard lock(mutex_);
  clear_cache_ = true;
  wake_.notify_one();
}

void Engine::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  abort_all_ = true;
  abort_step_ = true;
  wake_.notify_one();
}

Engine::Stats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  Stats stats = stats_;
  stats.active_sequences = running_;
  stats.queued_requests = unfinished_ - running_;
  return stats;
}

void Engine::run(const Load& load) {
  try {
    const std::unique_ptr<Backend> backend =
        load([&](uint64_t bytes, uint64_t total) { listener_.on_progress(bytes, total); }, abort_all_);
    listener_.on_ready(backend->info());
    serve(*backend);
  } catch (...) {
    listener_.on_failed(current_error());
  }
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (SequencePtr& sequence : inbox_) queue_.push_back(std::move(sequence));
    inbox_.clear();
  }
  for (SequencePtr& sequence : active_) queue_.push_back(std::move(sequence));
  active_.clear();
  for (const SequencePtr& sequence : queue_) {
    if (sequence->ended) continue;  // its end was told before an exception ended the step
    fail(*sequence, Error("ERR_DISPOSED", "the model was disposed"));
  }
  queue_.clear();
  cache_.clear();
  logits_ = {};
  tops_ = {};
  publish_stats();
  listener_.on_stopped();
}

void Engine::serve(Backend& backend) {
  const size_t rows = static_cast<size_t>(backend.max_batch_logits() + options_.max_sequences);
  logits_.resize(rows * static_cast<size_t>(options_.vocabulary));
  tops_.resize(static_cast<size_t>(options_.max_sequences));
  publish_stats();
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] {
        // The queue counts too: when all active sequences end in one step, nothing else wakes this thread.
        return stopping_ || !inbox_.empty() || !cancelled_.empty() || clear_cache_ || !active_.empty() ||
               !queue_.empty();
      });
      if (stopping_) return;
    }
    take_inbox();
    admit(backend);
    if (const std::vector<Part> parts = plan(backend); !parts.empty()) step(backend, parts);
    publish_stats();
  }
}

void Engine::take_inbox() {
  std::vector<uint32_t> cancelled;
  bool clear = false;
  {
    const std::lock_guard lock(mutex_);
    for (SequencePtr& sequence : inbox_) queue_.push_back(std::move(sequence));
    inbox_.clear();
    cancelled.swap(cancelled_);
    std::swap(clear, clear_cache_);
  }
  if (clear) cache_.clear();
  if (cancelled.empty()) return;
  for (const SequencePtr& sequence : active_) {
    if (contains(cancelled, sequence->id)) finish(*sequence, FinishReason::cancelled);
  }
  std::erase_if(active_, [&](const SequencePtr& sequence) { return contains(cancelled, sequence->id); });
  std::erase_if(queue_, [&](const SequencePtr& sequence) {
    if (!contains(cancelled, sequence->id)) return false;
    finish(*sequence, FinishReason::cancelled);
    return true;
  });
}

void Engine::admit(Backend& backend) {
  while (!queue_.empty() && static_cast<int32_t>(active_.size()) < options_.max_sequences) {
    Sequence& sequence = *queue_.front();
    const Request& request = sequence.request;
    KvCache::Match match;
    if (options_.prefix_cache) {
      match = cache_.find(sequence.tokens);
      for (const SequencePtr& other : active_) {
        const std::span<const int32_t> computed(other->tokens.data(), static_cast<size_t>(other->evaluated));
        const int32_t common = KvCache::common_prefix(computed, sequence.tokens);
        if (common > match.tokens) match = {common, other->holding.pages};
      }
      // The last token is always computed, for its logits, and so is every token whose logits are asked for.
      const auto last = static_cast<int32_t>(sequence.tokens.size()) - 1;
      match.tokens = std::min({match.tokens, last, request.logits_from < 0 ? last : request.logits_from});
    }
    const auto most = static_cast<int64_t>(sequence.tokens.size()) + request.max_tokens;
    const std::optional<KvCache::Start> start = cache_.begin(most, match, sequence.holding);
    if (!start) break;  // the request waits until a sequence ends and its pages are free
    if (start->copy_from >= 0) backend.copy_page(start->copy_from, start->copy_to, start->copy_tokens);
    sequence.cached = sequence.evaluated = start->reused_tokens;
    sequence.admitted = Clock::now();
    active_.push_back(std::move(queue_.front()));
    queue_.pop_front();
    const std::lock_guard lock(mutex_);
    ++running_;
  }
}

std::vector<Engine::Part> Engine::plan(const Backend& backend) const {
  std::vector<Part> parts;
  int32_t tokens = backend.max_batch_tokens(), logits = backend.max_batch_logits();
  const auto top = [most = backend.max_top()](const Sequence& sequence) { return sequence.sampler->enough(most); };
  for (const SequencePtr& sequence : active_) {
    if (sequence->prefilling() || tokens == 0) continue;
    parts.push_back({sequence.get(), 1, 1, top(*sequence)});
    --tokens;
  }
  if (!parts.empty() && prefill_tokens_per_second_ > 0) {
    const double share = std::min<double>(tokens, kSharedStepSeconds * prefill_tokens_per_second_);
    tokens = std::min(tokens, std::max(kSmallestPiece, static_cast<int32_t>(share)));
  }
  for (const SequencePtr& sequence : active_) {
    if (!sequence->prefilling()) continue;
    int32_t count = std::min(sequence->remaining(), tokens);
    const int32_t from = sequence->request.logits_from;
    int32_t rows = 0;
    if (from >= 0) {
      // Each token from `from` on takes a row of logits, and a batch has room for few rows.
      count = std::min(count, std::max(0, from - sequence->evaluated) + logits);
      rows = std::max(0, sequence->evaluated + count - std::max(from, sequence->evaluated));
    } else if (count == sequence->remaining() && sequence->request.max_tokens > 0) {
      rows = 1;
    }
    if (count <= 0) continue;
    parts.push_back({sequence.get(), count, rows, from < 0 && rows > 0 && top(*sequence)});
    tokens -= count;
    if (from >= 0) logits -= rows;
  }
  return parts;
}

void Engine::step(Backend& backend, const std::vector<Part>& parts) {
  std::vector<Segment> batch;
  int32_t prompt_tokens = 0;
  {
    const std::lock_guard lock(mutex_);
    prefilling_.clear();
    for (const Part& part : parts) {
      if (part.sequence->prefilling()) {
        prefilling_.push_back(part.sequence->id);
        prompt_tokens += part.tokens;
      }
    }
    const bool late =
        std::any_of(prefilling_.begin(), prefilling_.end(), [&](uint32_t id) { return contains(cancelled_, id); });
    abort_step_ = stopping_ || late;
  }
  for (const Part& part : parts) {
    Sequence& sequence = *part.sequence;
    const auto wanted = static_cast<size_t>(cache_.pages_for(sequence.evaluated + part.tokens));
    while (sequence.holding.pages.size() < wanted) cache_.take(sequence.holding);
    batch.push_back({{sequence.tokens.data() + sequence.evaluated, static_cast<size_t>(part.tokens)},
                     sequence.evaluated,
                     sequence.holding.pages,
                     part.logits,
                     part.top});
  }
  const Clock::time_point begin = Clock::now();
  const bool complete = backend.forward(batch, logits_.data(), tops_.data(), abort_step_);
  {
    const std::lock_guard lock(mutex_);
    prefilling_.clear();
  }
  if (!complete) return;
  if (prompt_tokens >= kSmallestPiece) {
    prefill_tokens_per_second_ = prompt_tokens * 1000.0 / milliseconds(Clock::now() - begin);
  }

  std::span<const float> logits = logits_;
  const TopLogits* top = tops_.data();
  for (const Part& part : parts) {
    const size_t rows = part.top ? 0 : static_cast<size_t>(part.logits);
    const size_t count = rows * static_cast<size_t>(options_.vocabulary);
    consume(part, logits.subspan(0, count), part.top ? top++ : nullptr);
    logits = logits.subspan(count);
  }
  std::erase_if(active_, [](const SequencePtr& sequence) { return sequence->ended; });
}

// Takes the results of a step for one sequence.
void Engine::consume(const Part& part, std::span<const float> logits, const TopLogits* top) {
  Sequence& sequence = *part.sequence;
  const int32_t first = sequence.evaluated + part.tokens - part.logits;
  sequence.evaluated += part.tokens;
  if (sequence.prefilling() && sequence.remaining() == 0) sequence.prefilled = Clock::now();
  if (sequence.request.logits_from >= 0) {
    if (part.logits > 0) listener_.on_logits(sequence.id, first, logits);
    if (sequence.remaining() == 0) finish(sequence, FinishReason::length);
    return;
  }
  if (sequence.remaining() > 0) return;
  if (sequence.request.max_tokens == 0) return finish(sequence, FinishReason::length);

  const Choice choice = top ? sequence.sampler->choose(*top) : sequence.sampler->choose(logits);
  if (!choice.finite) {
    return fail(sequence, Error("ERR_INVALID_LOGITS", "the model computed logits that are NaN or infinite",
                                {{"position", static_cast<double>(first)}}));
  }
  const auto token = static_cast<int32_t>(choice.token);
  sequence.last_token = Clock::now();
  if (sequence.generated == 0) sequence.prefilled = sequence.last_token;
  ++sequence.generated;
  sequence.tokens.push_back(token);
  listener_.on_token(sequence.id, token, sequence.request.sampling.logprobs >= 0 ? &choice.logprobs : nullptr);
  const std::vector<int32_t>& stops = sequence.request.stop_tokens;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    finish(sequence, FinishReason::stop);
  } else if (sequence.generated == sequence.request.max_tokens) {
    finish(sequence, FinishReason::length);
  }
}

void Engine::finish(Sequence& sequence, FinishReason reason) {
  const Clock::time_point now = Clock::now(), none{};
  const auto since = [&](Clock::time_point begin, Clock::time_point end) {
    return begin == none || end == none ? 0.0 : milliseconds(end - begin);
  };
  Finish result;
  result.reason = reason;
  result.prompt_tokens = static_cast<int32_t>(sequence.request.prompt.size());
  result.cached_tokens = sequence.cached;
  result.generated_tokens = sequence.generated;
  result.queue_ms = since(sequence.submitted, sequence.admitted == none ? now : sequence.admitted);
  result.first_token_ms = sequence.generated > 0 ? since(sequence.submitted, sequence.prefilled) : 0;
  result.prefill_ms = since(sequence.admitted, sequence.prefilled);
  result.decode_ms = sequence.generated > 0 ? since(sequence.prefilled, sequence.last_token) : 0;
  count_out(sequence);
  // The prefix cache keeps the computed pages for sequences that begin with the same tokens.
  sequence.tokens.resize(static_cast<size_t>(sequence.evaluated));
  cache_.end(sequence.holding, std::move(sequence.tokens), options_.prefix_cache);
  listener_.on_finish(sequence.id, result);
}

void Engine::fail(Sequence& sequence, const Error& error) {
  count_out(sequence);
  cache_.end(sequence.holding, {}, false);
  listener_.on_error(sequence.id, error);
}

// Called before the listener hears of a sequence's end, so that its caller can submit another request at once.
void Engine::count_out(Sequence& sequence) {
  sequence.ended = true;
  const std::lock_guard lock(mutex_);
  --unfinished_;
  if (sequence.admitted != Clock::time_point{}) --running_;
}

void Engine::publish_stats() {
  const std::lock_guard lock(mutex_);
  stats_.cached_tokens = cache_.cached_tokens();
  stats_.used_pages = cache_.used_pages();
  stats_.total_pages = cache_.total_pages();
}

}  // namespace chatglm
