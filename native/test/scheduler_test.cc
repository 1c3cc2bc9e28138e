#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>

#include "engine/kv_cache.h"
#include "test/random.h"

namespace chatglm {
namespace {

using test::Random;

// What a step takes on a simulated machine, in milliseconds.
struct Costs {
  double step = 10, sequence = 0.1, mixed = 0, token = 0.05;
  double noise = 0;     // relative
  double outliers = 0;  // the share of steps that take a hundred times as long

  double decode(int32_t decoding) const { return step + sequence * decoding; }
  double further(int32_t tokens) const { return tokens > 0 ? mixed + token * tokens : 0; }
};

struct Load {
  int32_t prompt = 1, answer = 1;
  std::string client = {};
  double weight = 1;
  int32_t priority = 0;
  int32_t rows = 0;     // of logits, for the last tokens of the prompt
  bool drafts = false;  // each step has guesses
  int32_t text = 0;     // which one the prompt and the answer are the beginning of

  int32_t token(int32_t position) const { return position < 10 * (text % 4) ? 0 : text; }
};

// What the engine does with the scheduler and the pages, and checks of each plan.
class Simulation {
 public:
  struct Request {
    Load load;
    Job job;
    int32_t generated = 0, preemptions = 0;
    int64_t submitted = 0, admitted = -1, first_token = -1, ended = -1;  // steps
    bool is_running = false;
    KvCache::Holding holding;
    std::vector<int32_t> tokens;
  };

  Simulation(SchedulerLimits limits, int32_t pages, Costs costs, uint64_t seed = 0, bool prefix_cache = false)
      : costs(costs),
        scheduler(limits),
        limits_(limits),
        cache_(pages, limits.page_tokens),
        prefix_cache_(prefix_cache),
        random_(seed) {}

  Request& submit(const Load& load) {
    requests_.push_back(std::make_unique<Request>());
    Request& request = *requests_.back();
    request.load = load;
    request.submitted = steps;
    request.job.id = static_cast<uint32_t>(requests_.size());
    request.job.arrival = requests_.size();
    request.job.priority = load.priority;
    request.job.tokens = load.prompt;
    request.holding.cached = prefix_cache_;
    for (int32_t i = 0; i < load.prompt && prefix_cache_; ++i) request.tokens.push_back(load.token(i));
    if (load.rows > 0) request.job.rows_from = load.prompt - load.rows;
    scheduler.enqueue(request.job, load.client, load.weight);
    live_.push_back(&request);
    return request;
  }
  void cancel(Request& request) { end(request); }

  void step() {
    ++steps;
    admit();
    last = plan();
    check(last);
    for (const Scheduler::Part& part : last.parts) {
      Request& request = of(*part.job);
      EXPECT_TRUE(cache_.take(request.holding, cache_.pages_for(part.job->evaluated + part.tokens)));
      part.job->pages = static_cast<int32_t>(request.holding.pages.size());
    }
    double took = costs.decode(last.decoding) + costs.further(last.prefill) + 0.3 * costs.token * last.drafts;
    if (last.decoding == 0) took = costs.step + costs.further(last.prefill);
    took *= 1 + costs.noise * (2 * random_.uniform() - 1);
    if (random_.chance(costs.outliers) || steps == slow_step) took *= 100;
    scheduler.learn(last, took);
    for (const Scheduler::Part& part : last.parts) carry_out(of(*part.job), part);
  }

  int32_t available() const { return cache_.available_pages(); }
  void check_pages() const {
    std::vector<const KvCache::Holding*> holdings;
    for (const Request* request : live_) {
      holdings.push_back(&request->holding);
      EXPECT_EQ(request->job.pages, static_cast<int32_t>(request->holding.pages.size()));
      EXPECT_GE(request->job.pages * limits_.page_tokens, request->job.evaluated);
      EXPECT_TRUE(request->is_running || request->job.pages == 0);
    }
    ASSERT_NO_THROW(cache_.check(holdings));
  }
  bool is_idle() const { return live_.empty(); }
  const std::vector<Request*>& live() const { return live_; }
  const std::vector<std::unique_ptr<Request>>& all() const { return requests_; }
  int64_t work() const {
    int64_t tokens = 0;
    for (const auto& request : requests_) tokens += request->load.prompt + request->load.answer;
    return tokens;
  }

  Costs costs;
  Scheduler scheduler;
  Scheduler::Plan last;
  int64_t steps = 0;
  int64_t slow_step = -1;  // this one takes a hundred times as long
  std::map<std::string, int64_t> served;
  int64_t preemptions = 0, turns = 0, drafted = 0, reused = 0;
  double worst_excess = 0;  // of what prompts added to a step, over what they may

 private:
  Request& of(const Job& job) { return *requests_[job.id - 1]; }

  static bool is_senior(const Job& a, const Job& b) {
    return a.priority != b.priority ? a.priority > b.priority : a.arrival < b.arrival;
  }

  std::span<const int32_t> computed(const Request& request) const {
    return std::span(request.tokens).first(prefix_cache_ ? static_cast<size_t>(request.job.evaluated) : 0);
  }
  void give_pages_back(Job& job) {
    cache_.end(of(job).holding, computed(of(job)), prefix_cache_);
    job.evaluated = job.pages = job.drafts = 0;
    job.decoding = false;
  }
  bool find_cached(Job& job) {
    Request& request = of(job);
    if (job.decoding || job.evaluated != request.holding.registered * limits_.page_tokens) return false;
    const int32_t most = std::min(job.tokens - 1, job.rows_from < 0 ? INT32_MAX : job.rows_from);
    if (!prefix_cache_ || most <= job.evaluated) return false;
    const KvCache::Start start =
        cache_.extend(request.holding, std::span(request.tokens).first(static_cast<size_t>(most)));
    job.pages = static_cast<int32_t>(request.holding.pages.size());
    if (start.tokens <= job.evaluated) return false;
    reused += start.tokens - job.evaluated;
    job.evaluated = start.tokens;
    return true;
  }

  void preempt(Job& job) {
    EXPECT_TRUE(of(job).is_running);
    const bool is_last = std::ranges::none_of(
        live_, [&](const Request* other) { return &other->job != &job && is_senior(job, other->job); });
    const bool is_first = std::ranges::none_of(
        live_, [&](const Request* other) { return &other->job != &job && is_senior(other->job, job); });
    EXPECT_TRUE(!is_first || is_last) << "the oldest sequence of the highest priority was preempted";
    scheduler.preempt(job);
    give_pages_back(job);
    of(job).is_running = false;
    ++of(job).preemptions;
    ++preemptions;
  }

  void admit() {
    while (Job* next = scheduler.next()) {
      EXPECT_FALSE(of(*next).is_running);
      for (const Request* other : live_) {
        EXPECT_TRUE(other->is_running || other->job.priority <= next->priority) << "a higher priority was passed over";
      }
      find_cached(*next);
      if (!scheduler.fits(*next, available())) {
        Job* victim = scheduler.victim_for(*next);
        give_pages_back(*next);
        if (!victim) break;
        EXPECT_LT(victim->priority, next->priority);
        preempt(*victim);
        continue;
      }
      scheduler.admit(*next);
      of(*next).is_running = true;
      if (of(*next).admitted < 0) of(*next).admitted = steps;
    }
    EXPECT_TRUE(live_.empty() || scheduler.running() > 0) << "requests wait and nothing runs";
    EXPECT_EQ(static_cast<size_t>(scheduler.running() + scheduler.waiting()), live_.size());
    EXPECT_EQ(scheduler.running(), std::ranges::count_if(live_, [](const Request* r) { return r->is_running; }));
    EXPECT_LE(scheduler.running(), limits_.sequences);
  }

  Scheduler::Plan plan() {
    for (;;) {
      for (Request* request : live_) {
        request->job.drafts =
            request->job.decoding && request->load.drafts
                ? static_cast<int32_t>(random_.integer(0, std::min(7, request->load.answer - request->generated - 1)))
                : 0;
      }
      Scheduler::Plan result = scheduler.plan(available());
      if (!result.preempt) {
        bool more = false;
        for (const Scheduler::Part& part : result.parts) more = find_cached(*part.job) || more;
        if (more) continue;
        return result;
      }
      EXPECT_TRUE(result.parts.empty());
      EXPECT_GT(scheduler.running(), 1) << "one sequence has all pages and is yet to be preempted";
      if (testing::Test::HasFailure()) return {};
      preempt(*result.preempt);
    }
  }

  void check(const Scheduler::Plan& plan) {
    EXPECT_TRUE(live_.empty() || !plan.parts.empty()) << "nothing is done";
    std::set<const Job*> jobs;
    int32_t tokens = 0, rows = 0, pages = 0, decoding = 0, drafts = 0, prefill = 0;
    for (const Scheduler::Part& part : plan.parts) {
      const Job& job = *part.job;
      EXPECT_TRUE(jobs.insert(&job).second);
      EXPECT_TRUE(of(job).is_running);
      EXPECT_GT(part.tokens, 0);
      EXPECT_LE(part.tokens, job.remaining() + job.drafts);
      const int32_t from = job.rows_from < 0 ? INT32_MAX : job.rows_from;
      EXPECT_EQ(part.rows, job.decoding ? 0 : std::max(0, job.evaluated + part.tokens - std::max(from, job.evaluated)));
      tokens += part.tokens;
      rows += part.rows;
      pages += std::max(0, pages_for(job.evaluated + part.tokens) - job.pages);
      if (job.decoding) {
        ++decoding;
        drafts += part.tokens - 1;
      } else {
        prefill += part.tokens;
      }
    }
    EXPECT_LE(tokens, limits_.batch_tokens);
    EXPECT_LE(rows, limits_.batch_logits);
    EXPECT_LE(pages, available());
    EXPECT_EQ(decoding, plan.decoding);
    EXPECT_EQ(drafts, plan.drafts);
    EXPECT_EQ(prefill, plan.prefill);
    int32_t could_decode = 0, prompts = 0;
    for (const Request* request : live_) {
      could_decode += request->is_running && request->job.decoding;
      prompts += request->is_running && !request->job.decoding;
    }
    if (decoding < could_decode) {
      ++turns;
      EXPECT_GE(decoding, std::max(1, limits_.batch_tokens - Scheduler::kLeastChunk));
    }
    if (drafts > 0) {
      EXPECT_EQ(prompts, 0);
      EXPECT_EQ(scheduler.waiting(), 0);
    }
    drafted += drafts;
    if (decoding > 0 && prefill > Scheduler::kLeastChunk) {
      // As much as the step takes for each sequence that waits for its first token, up to 100 ms.
      const double step = scheduler.clock().decode_ms(decoding);
      const double claim = std::min(100.0, step * (prompts + scheduler.waiting()));
      const double budget = limits_.prefill_budget_ms > 0 ? limits_.prefill_budget_ms : std::max(step, claim);
      worst_excess = std::max(worst_excess, costs.further(prefill) / budget);
    }
  }

  void carry_out(Request& request, const Scheduler::Part& part) {
    Job& job = request.job;
    served[request.load.client] += part.tokens;
    if (!job.decoding) {
      job.evaluated += part.tokens;
      if (prefix_cache_) cache_.note(request.holding, computed(request));
      if (job.remaining() > 0) return;
      if (request.load.answer == request.generated) return end(request);
      job.decoding = true;
      generate(request);
    } else {
      const auto accepted = static_cast<int32_t>(random_.integer(0, part.tokens - 1));
      job.evaluated += 1 + accepted;
      for (int32_t i = 0; i <= accepted; ++i) generate(request);
      if (prefix_cache_) cache_.note(request.holding, computed(request));
    }
    if (request.generated == request.load.answer) end(request);
  }
  void generate(Request& request) {
    if (request.first_token < 0) request.first_token = steps;
    ++request.generated;
    if (prefix_cache_) request.tokens.push_back(request.load.token(request.job.tokens));
    ++request.job.tokens;
  }

  void end(Request& request) {
    cache_.end(request.holding, computed(request), prefix_cache_);
    request.job.pages = 0;
    scheduler.remove(request.job);
    request.is_running = false;
    request.ended = steps;
    std::erase(live_, &request);
  }
  int32_t pages_for(int32_t tokens) const { return cache_.pages_for(tokens); }

  SchedulerLimits limits_;
  KvCache cache_;
  bool prefix_cache_;
  Random random_;
  std::vector<std::unique_ptr<Request>> requests_;
  std::vector<Request*> live_;
};

// Any order of requests, limits and costs.
TEST(Scheduler, TenThousandRandomLoadsEnd) {
  int64_t preemptions = 0, preempted_ended = 0, cancelled = 0, turns = 0, drafted = 0, reused = 0;
  for (uint64_t seed = 0; seed < 10000; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const auto number = [&](int64_t least, int64_t most) { return static_cast<int32_t>(random.integer(least, most)); };
    const int32_t page = number(1, 8), context = number(8, 120), context_pages = (context + page - 1) / page;
    SchedulerLimits limits{number(1, 8), number(2, 64), number(1, 4), page,
                           random.chance(0.3) ? 20 * random.uniform() : 0};
    Costs costs{1 + 20 * random.uniform(), 2 * random.uniform(),         5 * random.uniform(),
                random.uniform(),          random.chance(0.5) ? 0.2 : 0, random.chance(0.5) ? 0.02 : 0};
    Simulation simulation(limits, context_pages * number(1, 4) + number(0, 3), costs, seed, random.chance(0.5));
    const int32_t count = number(1, 20), clients = number(1, 4), priorities = number(1, 3);
    const double arrivals = random.uniform() * random.uniform();
    const bool cancels = random.chance(0.3), rows = random.chance(0.3), drafts = random.chance(0.3);
    int32_t submitted = 0;
    while ((submitted < count || !simulation.is_idle()) && !testing::Test::HasFailure()) {
      while (submitted < count && (simulation.is_idle() || random.chance(arrivals))) {
        ++submitted;
        const int32_t prompt = number(1, context - 1), client = number(1, clients);
        const bool values = rows && random.chance(0.4);
        simulation.submit({prompt, values ? 0 : number(0, context - prompt), std::to_string(client),
                           static_cast<double>(client), number(1, priorities), values ? number(1, prompt) : 0, drafts,
                           number(1, 6)});
      }
      if (cancels && !simulation.is_idle() && random.chance(0.05)) {
        simulation.cancel(
            *simulation.live()[static_cast<size_t>(number(0, static_cast<int64_t>(simulation.live().size()) - 1))]);
        ++cancelled;
        continue;
      }
      simulation.step();
      simulation.check_pages();
      // Without preemption each step computes at least one token. What is computed again after preemptions has at most
      // doubled the work (1.8 times over all seeds).
      ASSERT_LT(simulation.steps, 100 + 2 * simulation.work()) << "requests starve";
    }
    if (testing::Test::HasFailure()) return;
    EXPECT_EQ(simulation.scheduler.running(), 0);
    EXPECT_EQ(simulation.scheduler.waiting(), 0);
    for (const auto& request : simulation.all()) {
      EXPECT_GE(request->ended, 0);
      preempted_ended += request->preemptions > 0;
    }
    preemptions += simulation.preemptions;
    turns += simulation.turns;
    drafted += simulation.drafted;
    reused += simulation.reused;
  }
  // The interesting ways were taken.
  EXPECT_GT(preemptions, 5000);
  EXPECT_GT(preempted_ended, 2000);
  EXPECT_GT(cancelled, 2000);
  EXPECT_GT(turns, 1000);
  EXPECT_GT(drafted, 5000);
  EXPECT_GT(reused, 50000);
}

// On a machine without noise, what prompts add to a step of decoding sequences is at most twice the budget that the
// clock says, or the least chunk.
TEST(Scheduler, ChunksKeepWithinTwiceTheBudget) {
  int64_t long_chunks = 0;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const auto number = [&](int64_t least, int64_t most) { return static_cast<int32_t>(random.integer(least, most)); };
    const Costs costs{2 + 20 * random.uniform(), (random.chance(0.5) ? 5 : 0.2) * random.uniform(), random.uniform(),
                      0.01 + 0.2 * random.uniform()};
    SchedulerLimits limits{number(2, 32), 512, 8, 64, random.chance(0.3) ? 5 + 20 * random.uniform() : 0};
    Simulation simulation(limits, 4000, costs, seed);
    for (int i = 0; i < 300 && !testing::Test::HasFailure(); ++i) {
      if (simulation.scheduler.waiting() < 2 && random.chance(0.2))
        simulation.submit({number(1, 2000), number(1, 60), std::to_string(number(1, 3))});
      simulation.step();
      long_chunks += simulation.last.decoding > 0 && simulation.last.prefill > 50;
    }
    EXPECT_LE(simulation.worst_excess, 2);
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(long_chunks, 10000);
}

// Four answers run while prompts never end; the chunks of the steps with prompts.
std::vector<int32_t> steady_chunks(int64_t slow_step, int64_t steps, double budget_ms = 0, Costs costs = {},
                                   uint64_t seed = 0) {
  SchedulerLimits limits{8, 1024, 8, 64, budget_ms};
  Simulation simulation(limits, 1 << 16, costs, seed);
  simulation.slow_step = slow_step;
  std::vector<int32_t> chunks;
  for (int i = 0; i < 4; ++i) simulation.submit({4, 1 << 16});
  simulation.step();
  simulation.submit({1 << 20, 1});
  for (int64_t i = 0; i < steps; ++i) {
    simulation.step();
    if (simulation.last.prefill > 0) chunks.push_back(simulation.last.prefill);
  }
  return chunks;
}

TEST(Scheduler, ChunksGrowFromTheLeastToTheBudget) {
  const std::vector<int32_t> chunks = steady_chunks(-1, 100);
  EXPECT_EQ(chunks[0], Scheduler::kLeastChunk);  // nothing is known yet
  for (size_t i = 1; i < chunks.size(); ++i) EXPECT_LE(chunks[i], 2 * chunks[i - 1]);
  // 80 % of a step of 10.4 ms, at 0.05 ms a token.
  EXPECT_NEAR(chunks.back(), 166, 2);
  EXPECT_NEAR(steady_chunks(-1, 100, 20).back(), 400, 2);
  EXPECT_EQ(steady_chunks(-1, 100, 0.1).back(), Scheduler::kLeastChunk);
}

// Whichever step takes a hundred times as long: chunks neither explode, nor remain short.
TEST(Scheduler, OneSlowStepChangesLittle) {
  for (int64_t slow = 1; slow <= 150; ++slow) {
    SCOPED_TRACE(slow);
    const std::vector<int32_t> chunks = steady_chunks(slow, 400);
    for (const int32_t chunk : chunks) ASSERT_LE(chunk, 2 * 167);
    for (size_t i = chunks.size() - 100; i < chunks.size(); ++i) ASSERT_GE(chunks[i], 125);
    // Once the clock has learned, not even the steps after the slow one have short chunks.
    if (slow > 50) {
      for (size_t i = 50; i < chunks.size(); ++i) ASSERT_GE(chunks[i], 100);
    }
  }
}

// More sequences that wait for their first token have a claim to more of the time.
TEST(Scheduler, ManyPromptsGetMoreOfAStep) {
  SchedulerLimits limits{64, 2048, 8, 64, 0};
  Simulation simulation(limits, 1 << 24, {});
  for (int i = 0; i < 4; ++i) simulation.submit({4, 1 << 20});
  simulation.step();
  for (int i = 0; i < 20; ++i) simulation.submit({1 << 16, 1});
  for (int i = 0; i < 100; ++i) simulation.step();
  // 100 ms, which is less than 80 % of 20 steps of 10.4 ms, at 0.05 ms a token.
  EXPECT_NEAR(simulation.last.prefill, 2000, 20);
}

// Two of a hundred steps take a hundred times as long, and all of them up to 20 % more or less.
TEST(Scheduler, NoiseMovesChunksLittle) {
  Costs costs;
  costs.noise = 0.2;
  costs.outliers = 0.02;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(seed);
    std::vector<int32_t> chunks = steady_chunks(-1, 1000, 0, costs, seed);
    const auto too_long = std::ranges::count_if(chunks, [](int32_t chunk) { return chunk > 2 * 177; });
    std::ranges::sort(chunks);
    const int32_t median = chunks[chunks.size() / 2];
    EXPECT_GT(median, 100);
    EXPECT_LT(median, 220);
    EXPECT_LE(too_long, 10);
  }
}

TEST(Scheduler, ShortPromptsTeachTheClock) {
  Simulation simulation({8, 512, 8, 64, 0}, 10000, {});
  simulation.submit({4, 1000});
  for (int i = 0; i < 100; ++i) {
    if (simulation.scheduler.running() < 3) simulation.submit({3 + i % 12, 2});
    simulation.step();
  }
  EXPECT_NEAR(simulation.scheduler.clock().further_ms(8), 0.4, 0.1);
  EXPECT_GT(simulation.scheduler.clock().tokens_within(8, 8, 500), 14);
}

TEST(Scheduler, PromptsGoOnWhereDecodingSequencesFillASteps) {
  Simulation simulation({64, 16, 8, 64, 0}, 10000, {});
  for (int i = 0; i < 40; ++i) simulation.submit({2, 400});
  while (simulation.scheduler.waiting() > 0) simulation.step();
  for (int i = 0; i < 30; ++i) simulation.step();
  Simulation::Request& prompt = simulation.submit({200, 1});
  std::map<uint32_t, int32_t> before;
  for (const Simulation::Request* request : simulation.live()) before[request->job.id] = request->generated;
  for (int i = 0; i < 30; ++i) simulation.step();
  EXPECT_GE(prompt.job.evaluated, 190);
  int32_t least = INT32_MAX, most = 0;
  for (const Simulation::Request* request : simulation.live()) {
    if (request == &prompt) continue;
    least = std::min(least, request->generated - before[request->job.id]);
    most = std::max(most, request->generated - before[request->job.id]);
  }
  EXPECT_GE(least, 3);  // 30 steps of 8 of 40 sequences are 6 turns each
  EXPECT_LE(most, 9);
}

TEST(Scheduler, RowsOfLogitsAreRationed) {
  Simulation simulation({8, 64, 4, 64, 0}, 1000, {});
  Simulation::Request &a = simulation.submit({20, 0, "a", 1, 0, 20}), &b = simulation.submit({30, 0, "b", 1, 0, 10}),
                      &c = simulation.submit({50, 5, "c"});
  simulation.step();
  EXPECT_EQ(a.job.evaluated, 4);
  EXPECT_EQ(b.job.evaluated, 20);
  EXPECT_EQ(c.job.evaluated, 40);
  while (!simulation.is_idle()) simulation.step();
  EXPECT_LE(std::max(a.ended, b.ended), 12);
}

TEST(Scheduler, AnOlderPromptGetsThePagesOfYoungerSequences) {
  Simulation simulation({8, 64, 4, 4, 0}, 30, {});
  Simulation::Request& old = simulation.submit({100, 10, "a"});
  simulation.step();
  EXPECT_EQ(old.job.pages, 16);
  std::vector<Simulation::Request*> young;
  for (int i = 0; i < 3; ++i) young.push_back(&simulation.submit({4, 40, "b"}));
  while (old.ended < 0) simulation.step();
  for (const Simulation::Request* request : young) EXPECT_LT(request->ended, 0);
  EXPECT_EQ(old.preemptions, 0);
  while (!simulation.is_idle()) simulation.step();

  // Where the pages are gone already when the older one needs them, the younger ones are preempted.
  Scheduler scheduler({8, 64, 4, 4, 0});
  Job older{.id = 1, .arrival = 1, .tokens = 40, .evaluated = 16, .pages = 4},
      younger{.id = 2, .arrival = 2, .tokens = 20, .evaluated = 19, .pages = 5, .decoding = true};
  scheduler.enqueue(older, "a", 1);
  scheduler.enqueue(younger, "b", 1);
  scheduler.admit(older);
  scheduler.admit(younger);
  for (int i = 0; i < 3; ++i) scheduler.learn({.parts = {{&younger, 1, 0}}, .decoding = 1}, 10);
  EXPECT_EQ(scheduler.plan(0).preempt, &younger);
  scheduler.preempt(younger);
  EXPECT_EQ(scheduler.plan(5).parts.front().job, &older);
}

TEST(Scheduler, DraftsOnlyWhereNothingWaits) {
  Simulation simulation({2, 16, 4, 64, 0}, 1000, {});
  simulation.submit({4, 300, "", 1, 0, 0, true});
  for (int i = 0; i < 10; ++i) simulation.step();
  EXPECT_GT(simulation.drafted, 0);
  simulation.submit({40, 300, "", 1, 0, 0, true});
  simulation.submit({4, 300, "", 1, 0, 0, true});  // waits, as two run
  const int64_t drafted = simulation.drafted;
  while (simulation.scheduler.waiting() > 0) {
    simulation.step();
    if (simulation.scheduler.waiting() > 0) EXPECT_EQ(simulation.drafted, drafted);
  }
  while (!simulation.is_idle()) simulation.step();
  EXPECT_GT(simulation.drafted, drafted);
}

TEST(Scheduler, DraftsPayUntilTheirCostSaysOtherwise) {
  Scheduler scheduler({8, 64, 4, 64, 0});
  std::vector<Job> jobs(8);
  Scheduler::Plan plain, drafted;
  for (Job& job : jobs) {
    job.id = static_cast<uint32_t>(&job - jobs.data()) + 1;
    job.arrival = job.id;
    scheduler.enqueue(job, "", 1);
    scheduler.admit(job);
    plain.parts.push_back({&job, 1, 0});
    drafted.parts.push_back({&job, 8, 0});
  }
  plain.decoding = drafted.decoding = 8;
  drafted.drafts = 56;
  EXPECT_TRUE(scheduler.drafts_pay(8, 7, 1));
  EXPECT_FALSE(scheduler.drafts_pay(16, 7, 1));  // that is not tried
  scheduler.learn(plain, 10);
  scheduler.learn(drafted, 10 + 56);  // 1 ms each; a sequence's share of a step is 1.25 ms
  EXPECT_TRUE(scheduler.drafts_pay(8, 7, 0.9));
  EXPECT_FALSE(scheduler.drafts_pay(8, 7, 0.7));
  // That is not for ever: the cost may have been another one then.
  for (int i = 0; i < 300; ++i) scheduler.learn(plain, 10);
  EXPECT_TRUE(scheduler.drafts_pay(8, 7, 0.7));
  for (Job& job : jobs) scheduler.remove(job);
}

// Each client has always requests that wait.
std::map<std::string, int64_t> shares(const std::map<std::string, double>& weights, uint64_t seed, int64_t steps) {
  Random random(seed);
  const auto number = [&](int64_t least, int64_t most) { return static_cast<int32_t>(random.integer(least, most)); };
  Simulation simulation({number(1, 8), 128, 8, 64, 0}, 10000, {}, seed);
  const int32_t prompt = number(1, 100), answer = number(1, 60);
  for (int64_t i = 0; i < steps; ++i) {
    std::map<std::string, int32_t> waiting;
    for (const Simulation::Request* request : simulation.live()) waiting[request->load.client] += !request->is_running;
    for (const auto& [client, weight] : weights) {
      while (waiting[client]++ < 8) simulation.submit({number(1, prompt), number(1, answer), client, weight});
    }
    simulation.step();
  }
  return simulation.served;
}

TEST(Scheduler, ClientsGetTokensByTheirWeights) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    const auto served = shares({{"one", 1}, {"three", 3}}, seed, 4000);
    EXPECT_NEAR(static_cast<double>(served.at("three")) / static_cast<double>(served.at("one")), 3, 0.45);
  }
}

TEST(Scheduler, AFloodDelaysANewClientByNoMoreThanWhatRuns) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const auto number = [&](int64_t least, int64_t most) { return static_cast<int32_t>(random.integer(least, most)); };
    const int32_t sequences = number(1, 8);
    Simulation simulation({sequences, 128, 8, 64, 0}, 10000, {}, seed);
    for (int i = 0; i < 500; ++i) simulation.submit({number(1, 100), number(1, 60), "flood"});
    for (int i = number(1, 300); i > 0; --i) simulation.step();
    const int64_t now = simulation.steps;
    const Simulation::Request& request = simulation.submit({50, 10, "new"});
    while (request.first_token < 0) simulation.step();
    // What runs may have to end first; of what waits, only what began in the same step as the new request.
    const auto overtook = std::ranges::count_if(simulation.all(), [&](const auto& other) {
      return other->load.client == "flood" && other->admitted > now && other->admitted < request.admitted;
    });
    EXPECT_LE(overtook, sequences);
    EXPECT_LE(request.first_token - now, 150);
  }
}

// A client with one long answer has little service; who comes new does not inherit that.
TEST(Scheduler, ANewClientHasNoClaimToTimesInWhichItDidNotWait) {
  Simulation simulation({3, 128, 8, 64, 0}, 10000, {});
  simulation.submit({4, 20000, "slow"});
  const auto flood = [&](const std::string& client) {
    int32_t waiting = 0;
    for (const Simulation::Request* request : simulation.live())
      waiting += request->load.client == client && !request->is_running;
    while (waiting++ < 4) simulation.submit({50, 10, client});
  };
  for (int i = 0; i < 3000; ++i) {
    flood("old");
    simulation.step();
  }
  const int64_t before = simulation.served["old"];
  for (int i = 0; i < 600; ++i) {
    flood("old");
    flood("new");
    simulation.step();
  }
  EXPECT_NEAR(static_cast<double>(simulation.served["old"] - before) / static_cast<double>(simulation.served["new"]), 1,
              0.1);
}

// Each request comes from another client, and more come than can be served: who was served before is served again.
TEST(Scheduler, AStreamOfNewClientsStarvesNobody) {
  Simulation simulation({2, 128, 8, 64, 0}, 10000, {});
  simulation.submit({60, 60, "known"});
  int32_t stranger = 0;
  const auto strangers = [&] {
    while (simulation.scheduler.waiting() < 10) simulation.submit({20, 10, "stranger " + std::to_string(stranger++)});
  };
  simulation.submit({60, 60, "known"});
  const Simulation::Request& request = simulation.submit({60, 60, "known"});
  while (request.ended < 0 && simulation.steps < 3000) {
    strangers();
    simulation.step();
  }
  EXPECT_LT(simulation.steps, 2000);
}

TEST(Scheduler, AHigherPriorityComesFirstAndPreempts) {
  // Where the number of sequences is what lacks.
  Simulation full({2, 64, 4, 64, 0}, 1000, {});
  Simulation::Request &a = full.submit({10, 100}), &b = full.submit({10, 100});
  for (int i = 0; i < 5; ++i) full.step();
  const Simulation::Request &equal = full.submit({10, 5}), &higher = full.submit({10, 5, "", 1, 1});
  full.step();
  EXPECT_EQ(higher.admitted, full.steps);
  EXPECT_EQ(b.preemptions, 1);  // the youngest of the lowest
  EXPECT_EQ(a.preemptions, 0);
  EXPECT_LT(equal.admitted, 0);
  while (!full.is_idle()) full.step();
  EXPECT_LT(b.first_token, equal.admitted);
  EXPECT_EQ(b.generated, 100);

  // Where the pages are.
  Simulation narrow({8, 64, 4, 4, 0}, 20, {});
  Simulation::Request& holder = narrow.submit({60, 10});
  narrow.step();
  const Simulation::Request& urgent = narrow.submit({40, 5, "", 1, 7});
  narrow.step();
  EXPECT_EQ(urgent.admitted, narrow.steps);
  EXPECT_EQ(holder.preemptions, 1);
  while (!narrow.is_idle()) narrow.step();
  EXPECT_LT(urgent.ended, holder.ended);

  // A long prompt of a low priority that is being computed does not keep a higher one from beginning, and waits.
  Simulation busy({8, 64, 4, 64, 0}, 1000, {});
  const Simulation::Request& low = busy.submit({1000, 5});
  busy.step();
  const Simulation::Request& high = busy.submit({60, 5, "", 1, 1});
  busy.step();
  EXPECT_EQ(high.generated, 1);
  EXPECT_LE(low.job.evaluated, 68);
}

TEST(StepClock, NearestMeasurementsStandInForMissingOnes) {
  StepClock clock;
  EXPECT_EQ(clock.decode_ms(1), 0);
  EXPECT_EQ(clock.further_ms(100), 0);
  EXPECT_EQ(clock.tokens_within(10, 8, 512), 8);
  EXPECT_EQ(clock.tokens_within(10, 8, 5), 5);
  EXPECT_EQ(clock.tokens_within(10, 8, 0), 0);
  clock.learn(0, 0, 5);
  clock.learn(2, 30, 20);  // nobody knows what of it the 30 tokens took
  EXPECT_EQ(clock.further_ms(30), 0);
  clock.learn(4, 0, 10);
  EXPECT_EQ(clock.decode_ms(1), 10);
  EXPECT_EQ(clock.decode_ms(7), 10);
  EXPECT_EQ(clock.decode_ms(60), 10);
  EXPECT_FALSE(clock.knows_decode(4));
  clock.learn(4, 0, 11);
  clock.learn(4, 0, 12);
  EXPECT_TRUE(clock.knows_decode(5));
  EXPECT_FALSE(clock.knows_decode(8));
  clock.learn(4, 30, 11 + 15);
  EXPECT_DOUBLE_EQ(clock.further_ms(30), 15);
  EXPECT_DOUBLE_EQ(clock.further_ms(100), 50);
  EXPECT_DOUBLE_EQ(clock.further_ms(4), 2);
  EXPECT_EQ(clock.tokens_within(1000, 8, 512), 60);  // one doubling
  EXPECT_EQ(clock.tokens_within(20, 8, 512), 40);
  EXPECT_EQ(clock.tokens_within(1, 8, 512), 8);
  // What a chunk took alone is an upper bound.
  clock.learn(0, 400, 40);
  EXPECT_EQ(clock.tokens_within(45, 8, 512), 450);
  EXPECT_EQ(clock.tokens_within(20, 8, 512), 40);
  // Of a length that was never measured a token costs at least what one of a longer chunk costs.
  clock.learn(4, 400, 11 + 100);
  EXPECT_LE(clock.tokens_within(50, 8, 512), 200);
}

TEST(StepClock, DecodingIsMeasuredAgainFromTimeToTime) {
  StepClock clock;
  for (int i = 0; i < 3; ++i) clock.learn(4, 0, 10);
  for (int64_t i = 0; i < StepClock::kFresh; ++i) {
    EXPECT_TRUE(clock.knows_decode(4));
    clock.learn(4, 10, 20);
  }
  EXPECT_FALSE(clock.knows_decode(4));
  clock.learn(4, 0, 10);
  EXPECT_TRUE(clock.knows_decode(4));
}

TEST(RecentMedian, OneOfFiveMovesNothing) {
  RecentMedian median;
  EXPECT_FALSE(median.is_known());
  EXPECT_EQ(median.value(), 0);
  median.add(100);
  EXPECT_EQ(median.value(), 100);
  median.add(1);
  EXPECT_EQ(median.value(), 1);
  for (const double value : {2., 3., 1000.}) median.add(value);
  EXPECT_EQ(median.value(), 3);
  for (const double value : {4., 4., 4.}) median.add(value);
  EXPECT_EQ(median.value(), 4);
}

}  // namespace
}  // namespace chatglm
