#include "engine/engine.h"

#include <algorithm>
#include <cstring>

namespace chatglm {

namespace {

double milliseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

bool contains(const std::vector<uint32_t>& ids, uint32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

Engine::Engine(EngineOptions options, Load load, EngineListener& listener) : options_(options), listener_(listener) {
  thread_ = std::thread([this, load = std::move(load)] { run(load); });
}

Engine::~Engine() {
  stop();
  thread_.join();
}

uint32_t Engine::submit(Request request) {
  const auto tokens = static_cast<int32_t>(request.prompt.size());
  const bool generates = request.kind == Request::Kind::generate;
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
  const bool scores = request.kind == Request::Kind::score;
  if (scores && (request.from < 1 || request.from >= tokens)) {
    throw Error("ERR_INVALID_ARGUMENT", "position " + std::to_string(request.from) + " is not among the " +
                                            std::to_string(tokens) + " tokens that can be scored");
  }
  request.top = std::clamp(request.top, 0, Outcome::kMostLogprobs);
  request.max_tokens = std::clamp(request.max_tokens, 0, limit - tokens);

  auto sequence = std::make_unique<Sequence>();
  sequence->tokens = request.prompt;
  sequence->submitted = Clock::now();
  sequence->holding.cached = options_.prefix_cache;
  Job& job = sequence->job;
  job.priority = request.priority;
  // The last token of a text is scored by the logits of the token before.
  job.tokens = scores ? tokens - 1 : tokens;
  if (request.kind == Request::Kind::logits) job.rows_from = request.from;
  if (generates) {
    if (request.sampling.constraint) request.sampling.constraint->limit(request.max_tokens);
    sequence->sampler = std::make_unique<SequenceSampler>(request.sampling, request.prompt, options_.vocabulary);
    if (options_.speculation && request.speculation && sequence->sampler->is_plain())
      sequence->speculator = std::make_unique<Speculator>();
  }
  sequence->request = std::move(request);

  const std::lock_guard lock(mutex_);
  if (failure_) throw *failure_;
  if (stopping_) throw Error("ERR_DISPOSED", "the model was disposed");
  // The limit counts all unfinished requests, so it does not depend on how soon the engine's thread empties the inbox.
  if (unfinished_ >= options_.max_sequences + options_.max_queue) {
    throw Error("ERR_QUEUE_FULL", std::to_string(options_.max_queue) + " requests are waiting already (maxQueue)",
                {{"limit", static_cast<double>(options_.max_queue)}});
  }
  const uint32_t id = job.id = next_id_++;
  job.arrival = id;
  ++unfinished_;
  inbox_.push_back(std::move(sequence));
  wake_.notify_one();
  return id;
}

void Engine::cancel(uint32_t request) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(request);
  // A step of others must not be lost: a request that shares one ends after it.
  if (!stepping_.empty() && std::ranges::all_of(stepping_, [&](uint32_t id) { return contains(cancelled_, id); })) {
    abort_step_ = true;
  }
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

uint32_t Engine::command(std::function<void(Backend&, uint32_t)> body, bool replies) {
  const std::lock_guard lock(mutex_);
  if (failure_) throw *failure_;
  if (stopping_) throw Error("ERR_DISPOSED", "the model was disposed");
  const uint32_t id = next_id_++;
  commands_.push_back({id, replies, [id, body = std::move(body)](Backend& backend) { body(backend, id); }});
  wake_.notify_one();
  return id;
}

void Engine::release(uint32_t pin) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;
  commands_.push_back({0, false, [this, pin](Backend&) { give_back(pin); }});
  wake_.notify_one();
}

uint32_t Engine::read_pages(uint32_t pin, int32_t first, int32_t count) {
  return command(
      [=, this](Backend& backend, uint32_t call) {
        const Pin& pinned = pin_of(pin, first, count);
        const auto bytes = static_cast<size_t>(backend.info().page_bytes);
        std::vector<uint8_t> data(bytes * static_cast<size_t>(count));
        for (int32_t i = 0; i < count; ++i) {
          backend.read_page(pinned.holding.pages[static_cast<size_t>(first + i)],
                            data.data() + bytes * static_cast<size_t>(i));
        }
        listener_.on_pages(call, std::move(data), nullptr);
      },
      true);
}

uint32_t Engine::import_pages(std::vector<int32_t> tokens) {
  return command(
      [this, tokens = std::move(tokens)](Backend&, uint32_t pin) mutable {
        Pin pinned;
        pinned.imported = true;
        pinned.holding.cached = options_.prefix_cache;
        if (!cache_->take(pinned.holding, cache_->pages_for(static_cast<int64_t>(tokens.size())))) return;
        pinned.written.resize(pinned.holding.pages.size());
        pinned.tokens = std::move(tokens);
        pins_.emplace(pin, std::move(pinned));
      },
      false);
}

uint32_t Engine::write_pages(uint32_t pin, int32_t first, std::vector<uint8_t> data) {
  return command(
      [=, this, data = std::move(data)](Backend& backend, uint32_t call) {
        const auto bytes = static_cast<size_t>(backend.info().page_bytes);
        if (data.size() % bytes != 0) throw Error("ERR_INVALID_ARGUMENT", "pages are given in whole");
        const auto count = static_cast<int32_t>(data.size() / bytes);
        Pin& pinned = pin_of(pin, first, count);
        if (!pinned.imported) throw Error("ERR_INVALID_ARGUMENT", "these pages cannot be written");
        for (int32_t i = 0; i < count; ++i) {
          const auto page = static_cast<size_t>(first + i);
          backend.write_page(pinned.holding.pages[page], data.data() + bytes * static_cast<size_t>(i));
          pinned.written[page] = true;
        }
        listener_.on_pages(call, {}, nullptr);
      },
      true);
}

// The pin, which has `count` pages from `first` on.
Engine::Pin& Engine::pin_of(uint32_t pin, int32_t first, int32_t count) {
  const auto found = pins_.find(pin);
  if (found == pins_.end()) {
    throw Error("ERR_OUT_OF_MEMORY", "the key/value cache has no room for the pages, or they were given back");
  }
  if (first < 0 || count < 1 ||
      static_cast<size_t>(first) + static_cast<size_t>(count) > found->second.holding.pages.size()) {
    throw Error("ERR_INVALID_ARGUMENT", "there are no such pages");
  }
  return found->second;
}

void Engine::give_back(uint32_t pin) {
  const auto found = pins_.find(pin);
  if (found == pins_.end()) return;
  Pin& pinned = found->second;
  const bool complete = !pinned.imported || std::ranges::all_of(pinned.written, [](bool written) { return written; });
  cache_->end(pinned.holding, pinned.tokens, complete);
  pins_.erase(found);
}

void Engine::run(const Load& load) {
  std::optional<Error> failure;
  try {
    const std::unique_ptr<Backend> backend =
        load([&](uint64_t bytes, uint64_t total) { listener_.on_progress(bytes, total); }, abort_all_);
    const BackendInfo info = backend->info();
    cache_ = std::make_unique<KvCache>(info.pages, kPageTokens);
    scheduler_ = std::make_unique<Scheduler>(SchedulerLimits{options_.max_sequences, backend->max_batch_tokens(),
                                                             backend->max_batch_logits(), kPageTokens,
                                                             options_.prefill_budget_ms});
    outcomes_.resize(static_cast<size_t>(backend->max_batch_tokens()));
    publish_stats();
    listener_.on_ready(info);
    serve(*backend);
  } catch (...) {
    failure = current_error();
  }
  std::deque<Command> commands;
  bool stopped;  // loading that is told to stop fails too
  {
    const std::lock_guard lock(mutex_);
    stopped = std::exchange(stopping_, true);
    if (!stopped) failure_ = failure;
    for (SequencePtr& sequence : inbox_) sequences_.emplace(sequence->id(), std::move(sequence));
    inbox_.clear();
    commands.swap(commands_);
  }
  const Error cause = failure && !stopped ? *failure : Error("ERR_DISPOSED", "the model was disposed");
  for (const Command& command : commands) {
    if (command.replies) listener_.on_pages(command.id, {}, &cause);
  }
  for (const auto& [_, sequence] : sequences_) {
    if (sequence->ended) continue;  // its end was told before an exception ended the step
    count_out(*sequence);
    listener_.on_error(sequence->id(), cause);
  }
  sequences_.clear();
  pins_.clear();
  if (failure) listener_.on_failed(*failure);
  scheduler_ = nullptr;
  cache_ = nullptr;
  logits_ = {};
  outcomes_ = {};
  publish_stats();
  listener_.on_stopped();
}

void Engine::serve(Backend& backend) {
  while (wait_for_work()) {
    take_inbox(backend);
    admit(backend);
    const Scheduler::Plan planned = plan(backend);
    if (!planned.parts.empty()) step(backend, planned);
    publish_stats();
  }
}

// Returns false when the engine is to end.
bool Engine::wait_for_work() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [&] {
    return stopping_ || !inbox_.empty() || !cancelled_.empty() || clear_cache_ || !commands_.empty() ||
           !sequences_.empty();
  });
  return !stopping_;
}

void Engine::take_inbox(Backend& backend) {
  std::deque<SequencePtr> inbox;
  std::deque<Command> commands;
  std::vector<uint32_t> cancelled;
  bool clear;
  {
    const std::lock_guard lock(mutex_);
    inbox.swap(inbox_);
    commands.swap(commands_);
    cancelled.swap(cancelled_);
    clear = std::exchange(clear_cache_, false);
  }
  for (SequencePtr& sequence : inbox) {
    scheduler_->enqueue(sequence->job, sequence->request.client, sequence->request.weight);
    trace(*sequence, Trace::Phase::queued);
    sequences_.emplace(sequence->id(), std::move(sequence));
  }
  if (clear) cache_->clear();
  for (const Command& command : commands) {
    try {
      command.body(backend);
    } catch (const Error& error) {
      if (command.replies) listener_.on_pages(command.id, {}, &error);
    }
  }
  for (const uint32_t id : cancelled) {
    const auto found = sequences_.find(id);
    if (found != sequences_.end() && !found->second->ended) finish(*found->second, FinishReason::cancelled);
  }
  forget_ended();
}

void Engine::admit(Backend& backend) {
  while (Job* next = scheduler_->next()) {
    Sequence& sequence = *sequences_.at(next->id);
    // What did not fit is not looked up again before there are more pages.
    if (next->id == blocked_ && cache_->available_pages() <= blocked_pages_ && scheduler_->running() > 0 &&
        !scheduler_->victim_for(*next)) {
      return;
    }
    blocked_ = 0;
    const int32_t available = cache_->available_pages();
    find_cached(backend, sequence);
    if (!scheduler_->fits(*next, cache_->available_pages())) {
      Job* victim = scheduler_->victim_for(*next);
      give_pages_back(sequence);
      if (!victim) {  // the request waits until pages or a sequence's place are free
        blocked_ = next->id;
        blocked_pages_ = available;
        return;
      }
      preempt(*sequences_.at(victim->id));
      continue;
    }
    const bool first = sequence.admitted == Clock::time_point{};
    scheduler_->admit(*next);
    if (first) {
      sequence.admitted = Clock::now();
      {
        const std::lock_guard lock(mutex_);
        ++running_;
      }
      listener_.on_admitted(next->id);
    }
    trace(sequence, Trace::Phase::admitted, next->evaluated);
  }
}

// Takes what the prefix cache has of the tokens that come next. Only a sequence whose pages are all full and registered
// may have more, as others may have computed these tokens since the last look.
void Engine::find_cached(Backend& backend, Sequence& sequence) {
  Job& job = sequence.job;
  if (job.decoding || !sequence.holding.cached || job.evaluated != sequence.holding.registered * kPageTokens) return;
  // The last token is always computed, for its logits, and so is every token whose logits are asked for.
  int32_t most = job.tokens - 1;
  if (sequence.request.kind == Request::Kind::logits) most = std::min(most, sequence.request.from);
  if (sequence.request.kind == Request::Kind::score) most = std::min(most, sequence.request.from - 1);
  if (most <= job.evaluated) return;
  const KvCache::Start start =
      cache_->extend(sequence.holding, std::span(sequence.tokens).first(static_cast<size_t>(most)));
  if (start.copy_from >= 0) backend.copy_page(start.copy_from, start.copy_to, start.copy_tokens);
  const int32_t found = std::max(0, start.tokens - job.evaluated);
  job.evaluated += found;
  if (sequence.counts.preemptions == 0) sequence.cached += found;
  job.pages = static_cast<int32_t>(sequence.holding.pages.size());
}

void Engine::give_pages_back(Sequence& sequence) {
  cache_->end(sequence.holding, std::span(sequence.tokens).first(static_cast<size_t>(sequence.job.evaluated)),
              options_.prefix_cache);
  if (sequence.counts.preemptions == 0) sequence.cached = 0;
  sequence.holding = {};
  sequence.holding.cached = options_.prefix_cache;
  sequence.job.evaluated = 0;
  sequence.job.pages = 0;
  sequence.job.drafts = 0;
  sequence.job.decoding = false;
}

void Engine::preempt(Sequence& sequence) {
  trace(sequence, Trace::Phase::preempted, sequence.generated);
  ++sequence.counts.preemptions;
  ++totals_.preemptions;
  scheduler_->preempt(sequence.job);
  give_pages_back(sequence);
}

Scheduler::Plan Engine::plan(Backend& backend) {
  draft();
  for (;;) {
    Scheduler::Plan plan = scheduler_->plan(cache_->available_pages());
    if (!plan.preempt) {
      bool more = false;  // a chunk begins with tokens that others have computed meanwhile
      for (const Scheduler::Part& part : plan.parts) {
        if (part.job->decoding) continue;
        const int32_t before = part.job->evaluated;
        find_cached(backend, *sequences_.at(part.job->id));
        more = more || part.job->evaluated > before;
      }
      if (more) continue;
      return plan;
    }
    Sequence& sequence = *sequences_.at(plan.preempt->id);
    if (scheduler_->running() > 1) {
      preempt(sequence);
      continue;
    }
    fail(sequence, Error("ERR_OUT_OF_MEMORY",
                         "the key/value cache has no page left for the only sequence that is computed: pinned prompts "
                         "hold too many of its " +
                             std::to_string(cache_->total_pages()) + " pages",
                         {{"pages", static_cast<double>(cache_->total_pages())}}));
    forget_ended();
    return {};
  }
}

// Guesses the next tokens of the sequences that decode.
void Engine::draft() {
  int32_t decoding = 0;
  for (const auto& [_, sequence] : sequences_) {
    decoding += sequence->job.decoding;
    sequence->job.drafts = 0;
  }
  if (decoding < static_cast<int32_t>(sequences_.size())) return;  // prompts take what a step has room for
  for (const auto& [_, sequence] : sequences_) {
    Job& job = sequence->job;
    if (!sequence->speculator) continue;
    const int32_t left = sequence->request.max_tokens - sequence->generated - 1;
    Speculator& speculator = *sequence->speculator;
    if (!scheduler_->drafts_pay(decoding, Speculator::kMostDrafts, speculator.acceptance())) {
      speculator.rest();
      continue;
    }
    sequence->drafts = speculator.draft(sequence->tokens, left);
    job.drafts = static_cast<int32_t>(sequence->drafts.size());
  }
}

void Engine::step(Backend& backend, const Scheduler::Plan& plan) {
  std::vector<Segment> batch;
  std::vector<Sequence*> sequences;
  int32_t logits = 0;
  for (const Scheduler::Part& part : plan.parts) {
    Sequence& sequence = *sequences_.at(part.job->id);
    sequences.push_back(&sequence);
    // The plan counted the pages, so they are there.
    if (!cache_->take(sequence.holding, cache_->pages_for(sequence.job.evaluated + part.tokens)))
      throw Error("ERR_INTERNAL", "the scheduler planned with pages that there are not");
    sequence.job.pages = static_cast<int32_t>(sequence.holding.pages.size());
    prepare_rows(sequence, part);
    batch.push_back({{sequence.tokens.data() + sequence.job.evaluated, static_cast<size_t>(part.tokens)},
                     sequence.job.evaluated,
                     sequence.holding.pages,
                     sequence.rows});
    logits += part.rows;
  }
  const auto wanted = static_cast<size_t>(logits) * static_cast<size_t>(options_.vocabulary);
  if (logits_.size() < wanted) logits_.resize(wanted);
  {
    const std::lock_guard lock(mutex_);
    stepping_.clear();
    for (const Sequence* sequence : sequences) stepping_.push_back(sequence->id());
    abort_step_ = stopping_ || std::ranges::all_of(stepping_, [&](uint32_t id) { return contains(cancelled_, id); });
  }
  const Clock::time_point begin = Clock::now();
  const bool complete = backend.forward(batch, logits_.data(), outcomes_.data(), abort_step_);
  const double took_ms = milliseconds(Clock::now() - begin);
  {
    const std::lock_guard lock(mutex_);
    stepping_.clear();
  }
  for (Sequence* sequence : sequences) {  // the drafts go
    if (sequence->job.decoding) sequence->tokens.resize(static_cast<size_t>(sequence->job.tokens));
  }
  if (!complete) return;
  scheduler_->learn(plan, took_ms);
  ++totals_.steps;
  totals_.prefill_tokens += plan.prefill;
  totals_.drafted_tokens += plan.drafts;

  std::span<const float> rows = logits_;
  std::span<const Outcome> outcomes = outcomes_;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Scheduler::Part& part = plan.parts[i];
    const size_t count = static_cast<size_t>(part.rows) * static_cast<size_t>(options_.vocabulary);
    const size_t chosen = sequences[i]->rows.size() - static_cast<size_t>(part.rows);
    if (!part.job->decoding) trace(*sequences[i], Trace::Phase::prefill, part.tokens, took_ms);
    consume(*sequences[i], part, rows.first(count), outcomes.first(chosen));
    rows = rows.subspan(count);
    outcomes = outcomes.subspan(chosen);
  }
  forget_ended();
}

// Says what is wanted of the logits of a part's tokens, and appends the drafts to the sequence's tokens.
void Engine::prepare_rows(Sequence& sequence, const Scheduler::Part& part) {
  const Job& job = sequence.job;
  const Request& request = sequence.request;
  std::vector<Row>& rows = sequence.rows;
  rows.clear();
  switch (request.kind) {
    case Request::Kind::logits: rows.resize(static_cast<size_t>(part.rows)); return;
    case Request::Kind::score:
      for (int32_t i = std::max(job.evaluated, request.from - 1); i < job.evaluated + part.tokens; ++i) {
        rows.push_back(
            {.use = Row::Use::score, .target = sequence.tokens[static_cast<size_t>(i) + 1], .logprobs = request.top});
      }
      return;
    case Request::Kind::generate: break;
  }
  const int32_t drafts = job.decoding ? part.tokens - 1 : 0;
  if (drafts > 0) {
    for (int32_t i = 0; i <= drafts; ++i) rows.push_back(sequence.sampler->row_at(i));
    sequence.tokens.insert(sequence.tokens.end(), sequence.drafts.begin(), sequence.drafts.begin() + drafts);
  } else if (part.tokens == job.remaining() && request.max_tokens > sequence.generated) {
    rows.push_back(sequence.sampler->row());
  }
}

// Takes the results of a step for one sequence.
void Engine::consume(Sequence& sequence, const Scheduler::Part& part, std::span<const float> logits,
                     std::span<const Outcome> outcomes) {
  Job& job = sequence.job;
  const int32_t begin = job.evaluated;
  const auto note = [&] {
    cache_->note(sequence.holding, std::span(sequence.tokens).first(static_cast<size_t>(job.evaluated)));
  };
  if (job.decoding) {
    const int32_t drafts = part.tokens - 1;
    int32_t accepted = 0;
    while (accept(sequence, outcomes[static_cast<size_t>(accepted)]) && accepted < drafts &&
           sequence.tokens.back() == sequence.drafts[static_cast<size_t>(accepted)])
      ++accepted;
    if (drafts > 0) {
      sequence.speculator->judge(drafts, accepted);
      sequence.counts.drafted_tokens += drafts;
      sequence.counts.accepted_tokens += accepted;
      totals_.accepted_tokens += accepted;
    }
    job.evaluated = begin + 1 + accepted;
    if (!sequence.ended) note();
    return settle(sequence);
  }

  job.evaluated += part.tokens;
  note();
  // What was told is not told again if the sequence is preempted and computed once more.
  if (!logits.empty()) {
    listener_.on_logits(sequence.id(), job.evaluated - part.rows, logits);
    sequence.request.from = job.rows_from = job.evaluated;
  }
  if (sequence.request.kind == Request::Kind::score && !outcomes.empty()) {
    for (const Outcome& outcome : outcomes) {
      if (outcome.status != Outcome::Status::ok) return fail(sequence, not_finite(job.evaluated));
    }
    listener_.on_scores(sequence.id(), job.evaluated - static_cast<int32_t>(outcomes.size()) + 1, outcomes);
    sequence.request.from = job.evaluated + 1;
  }
  if (job.remaining() > 0) return;
  if (sequence.generated == 0) sequence.prefilled = Clock::now();
  if (sequence.request.max_tokens == sequence.generated) {
    sequence.reason = FinishReason::length;
  } else {
    job.decoding = true;
    accept(sequence, outcomes.front());
  }
  settle(sequence);
}

// Takes a token. Returns whether the sequence goes on; else `reason` or `error` says why not.
bool Engine::accept(Sequence& sequence, const Outcome& outcome) {
  const auto position = static_cast<double>(sequence.tokens.size());
  switch (outcome.status) {
    case Outcome::Status::ok: break;
    case Outcome::Status::not_finite: sequence.error = not_finite(static_cast<int32_t>(position) - 1); return false;
    case Outcome::Status::none_allowed:
      sequence.error = Error("ERR_INVALID_ARGUMENT", sequence.sampler->problem(), {{"position", position}});
      return false;
  }
  sequence.sampler->accept(outcome.token);
  sequence.last_token = Clock::now();
  if (sequence.generated == 0) sequence.prefilled = sequence.last_token;
  ++sequence.generated;
  ++totals_.generated_tokens;
  sequence.tokens.push_back(outcome.token);
  ++sequence.job.tokens;
  listener_.on_token(sequence.id(), outcome.token, sequence.request.sampling.logprobs >= 0 ? &outcome : nullptr);
  const std::vector<int32_t>& stops = sequence.request.stop_tokens;
  if (std::ranges::find(stops, outcome.token) != stops.end()) {
    sequence.reason = FinishReason::stop;
  } else if (sequence.generated == sequence.request.max_tokens) {
    sequence.reason = FinishReason::length;
  }
  return !sequence.reason;
}

// Ends a sequence that has a reason to.
void Engine::settle(Sequence& sequence) {
  if (sequence.error) {
    fail(sequence, *sequence.error);
  } else if (sequence.reason) {
    finish(sequence, *sequence.reason);
  }
}

Error Engine::not_finite(int32_t position) {
  return Error("ERR_INVALID_LOGITS", "the model computed logits that are NaN or infinite",
               {{"position", static_cast<double>(position)}});
}

void Engine::finish(Sequence& sequence, FinishReason reason) {
  const Clock::time_point now = Clock::now(), none{};
  const auto since = [&](Clock::time_point begin, Clock::time_point end) {
    return begin == none || end == none ? 0.0 : milliseconds(end - begin);
  };
  Finish result = sequence.counts;
  result.reason = reason;
  result.prompt_tokens = static_cast<int32_t>(sequence.request.prompt.size());
  result.cached_tokens = sequence.cached;
  result.generated_tokens = sequence.generated;
  result.queue_ms = since(sequence.submitted, sequence.admitted == none ? now : sequence.admitted);
  result.first_token_ms = sequence.generated > 0 ? since(sequence.submitted, sequence.prefilled) : 0;
  result.prefill_ms = since(sequence.admitted, sequence.prefilled);
  result.decode_ms = sequence.generated > 0 ? since(sequence.prefilled, sequence.last_token) : 0;
  // The prefix cache keeps the computed pages for sequences that begin with the same tokens.
  sequence.tokens.resize(static_cast<size_t>(sequence.job.evaluated));
  if (sequence.request.pin && reason != FinishReason::cancelled) {
    cache_->complete(sequence.holding, sequence.tokens);
    pins_.emplace(sequence.id(), Pin{std::move(sequence.holding), std::move(sequence.tokens), false, {}});
  } else {
    cache_->end(sequence.holding, sequence.tokens, options_.prefix_cache);
  }
  count_out(sequence);
  trace(sequence, Trace::Phase::decode, sequence.generated, result.decode_ms);
  trace(sequence, Trace::Phase::finished, sequence.generated);
  listener_.on_finish(sequence.id(), result);
}

void Engine::fail(Sequence& sequence, const Error& error) {
  cache_->end(sequence.holding, {}, false);
  // What led to logits that are not finite may be in pages that others would find.
  if (error.code == "ERR_INVALID_LOGITS") cache_->clear();
  count_out(sequence);
  trace(sequence, Trace::Phase::failed, sequence.generated);
  listener_.on_error(sequence.id(), error);
}

// Called before the listener hears of a sequence's end, so that its caller can submit another request at once.
void Engine::count_out(Sequence& sequence) {
  sequence.ended = true;
  if (scheduler_ && sequence.job.client) scheduler_->remove(sequence.job);
  const std::lock_guard lock(mutex_);
  --unfinished_;
  if (sequence.admitted != Clock::time_point{}) --running_;
}

void Engine::forget_ended() {
  std::erase_if(sequences_, [](const auto& entry) { return entry.second->ended; });
}

void Engine::trace(const Sequence& sequence, Trace::Phase phase, int32_t tokens, double took_ms) {
  if (!sequence.request.trace) return;
  listener_.on_trace(sequence.id(), {phase, milliseconds(Clock::now() - sequence.submitted), took_ms, tokens});
}

void Engine::publish_stats() {
  Stats stats = totals_;
  if (cache_) {
    stats.cached_tokens = cache_->cached_tokens();
    stats.used_pages = cache_->used_pages();
    stats.total_pages = cache_->total_pages();
  }
  const std::lock_guard lock(mutex_);
  stats_ = stats;
}

}  // namespace chatglm
