#include "engine/scheduler.h"

#include <algorithm>
#include <limits>

namespace chatglm {

namespace {

// Of the time that a step of decoding sequences takes, so much is added for each sequence that waits for its first
// token, where no budget is set. Below 1, because the measurements that decide the length of a chunk are always those
// of the past, and attention to a longer past takes longer. On a GPU a step with prompts is no graph, which costs half
// of a step of 16 sequences: with 0.7 a prompt of 8,192 tokens took twice as long as with 0.85, for a gap of 1.5
// instead of 1.7 steps.
constexpr double kPrefillShare = 0.8;
// However many wait, no step is made longer than this for them.
constexpr double kMostPrefillMs = 100;
// As long as nobody knows what drafts cost beside so many decoding sequences, more of these do not try.
constexpr int32_t kMostUnmeasuredDrafting = 8;
// After so many steps without drafts what they cost is measured again.
constexpr int32_t kDraftsForgotten = 256;

}  // namespace

bool Scheduler::is_senior(const Job* a, const Job* b) {
  return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
}

void Scheduler::enqueue(Job& job, const std::string& key, double weight) {
  std::unique_ptr<Job::Client>& client = clients_[key];
  if (!client) {
    client = std::make_unique<Job::Client>();
    client->key = key;
  }
  if (client->waiting.empty()) {
    double least = std::numeric_limits<double>::infinity();
    for (const auto& [_, other] : clients_) {
      // Where nobody waits, all have what they want, and none owes the others anything.
      if (waiting_ == 0) {
        floor_ = std::max(floor_, other->service);
      } else if (!other->waiting.empty()) {
        least = std::min(least, other->service);
      }
    }
    client->service = std::max({client->service, floor_, waiting_ == 0 ? 0 : least});
  }
  client->weight = weight;
  ++client->jobs;
  job.client = client.get();
  client->waiting[job.priority][job.arrival] = &job;
  ++waiting_;
}

void Scheduler::remove(Job& job) {
  if (std::erase(running_, &job) == 0) {
    auto& of_priority = job.client->waiting[job.priority];
    of_priority.erase(job.arrival);
    if (of_priority.empty()) job.client->waiting.erase(job.priority);
    --waiting_;
  }
  if (--job.client->jobs == 0) clients_.erase(std::string(job.client->key));
  job.client = nullptr;
}

Job* Scheduler::next() const {
  if (waiting_ == 0) return nullptr;
  Job* best = nullptr;
  for (const auto& [_, client] : clients_) {
    if (client->waiting.empty()) continue;
    Job* first = client->waiting.begin()->second.begin()->second;
    if (best) {
      if (first->priority < best->priority) continue;
      if (first->priority == best->priority &&
          (client->service > best->client->service ||
           (client->service == best->client->service && first->arrival > best->arrival)))
        continue;
    }
    best = first;
  }
  if (running() >= limits_.sequences) return victim_for(*best) ? best : nullptr;
  int64_t prefill = 0;
  for (const Job* job : running_) {
    if (!job->decoding && job->priority >= best->priority) prefill += job->remaining();
  }
  return prefill < limits_.batch_tokens ? best : nullptr;
}

bool Scheduler::fits(const Job& job, int32_t available_pages) const {
  if (running() >= limits_.sequences) return false;
  if (running_.empty()) return true;
  return pages_for(job.tokens + 1) - job.pages + running() <= available_pages;
}

void Scheduler::admit(Job& job) {
  auto& of_priority = job.client->waiting[job.priority];
  of_priority.erase(job.arrival);
  if (of_priority.empty()) job.client->waiting.erase(job.priority);
  --waiting_;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &job, is_senior), &job);
}

Job* Scheduler::victim_for(const Job& waiting) const {
  return !running_.empty() && running_.back()->priority < waiting.priority ? running_.back() : nullptr;
}

void Scheduler::preempt(Job& job) {
  std::erase(running_, &job);
  job.client->waiting[job.priority][job.arrival] = &job;
  ++waiting_;
}

int32_t Scheduler::prefill_tokens(int32_t decoding, int32_t prefilling) const {
  const int32_t most = limits_.batch_tokens - decoding;
  if (decoding == 0) return most;
  const double share = kPrefillShare * clock_.decode_ms(decoding);
  const double all = std::min(kMostPrefillMs, share * (prefilling + waiting_));
  const double budget = limits_.prefill_budget_ms > 0 ? limits_.prefill_budget_ms : std::max(share, all);
  return clock_.tokens_within(budget, kLeastChunk, most);
}

Scheduler::Plan Scheduler::plan(int32_t available_pages) {
  Plan plan;
  std::vector<Job*> decoding, prefilling;
  for (Job* job : running_) (job->decoding ? decoding : prefilling).push_back(job);

  // Prompts have room in a step even if the decoding sequences fill it: then these take turns.
  int32_t room = limits_.batch_tokens;
  if (!prefilling.empty()) room = std::max(1, room - kLeastChunk);
  if (static_cast<int32_t>(decoding.size()) > room) {
    std::rotate(decoding.begin(), decoding.begin() + turn_++ % static_cast<uint32_t>(decoding.size()), decoding.end());
    decoding.resize(static_cast<size_t>(room));
  }
  const auto missing_pages = [&](const Job& job, int32_t tokens) {
    return std::max(0, pages_for(job.evaluated + tokens) - job.pages);
  };
  int32_t spare = room - static_cast<int32_t>(decoding.size());
  for (Job* job : decoding) {
    if (missing_pages(*job, 1) > available_pages) {
      plan.parts.clear();
      plan.preempt = running_.back();
      return plan;
    }
    available_pages -= missing_pages(*job, 1);
    plan.parts.push_back({job, 1, 0});
  }
  plan.decoding = static_cast<int32_t>(decoding.size());
  // Drafts take what is left of the step and of the pages, if no prompt waits for these.
  for (size_t i = 0; i < decoding.size() && prefilling.empty() && waiting_ == 0; ++i) {
    Part& part = plan.parts[i];
    int32_t drafts = std::min(part.job->drafts, spare);
    while (drafts > 0 && missing_pages(*part.job, 1 + drafts) - missing_pages(*part.job, 1) > available_pages) --drafts;
    if (drafts <= 0) continue;
    available_pages -= missing_pages(*part.job, 1 + drafts) - missing_pages(*part.job, 1);
    part.tokens += drafts;
    spare -= drafts;
    plan.drafts += drafts;
  }
  if (prefilling.empty()) return plan;
  // What prompts add to a step cannot be told without the time of a step that has none.
  if (plan.decoding > 0 && !clock_.knows_decode(plan.decoding)) return plan;

  std::stable_sort(prefilling.begin(), prefilling.end(), [](const Job* a, const Job* b) {
    return a->priority != b->priority ? a->priority > b->priority : a->client->service < b->client->service;
  });
  int32_t tokens = prefill_tokens(plan.decoding, static_cast<int32_t>(prefilling.size())),
          logits = limits_.batch_logits;
  for (Job* job : prefilling) {
    int32_t count = std::min(job->remaining(), tokens);
    const int32_t in_held_pages = job->pages * limits_.page_tokens - job->evaluated;
    count = static_cast<int32_t>(
        std::min<int64_t>(count, in_held_pages + static_cast<int64_t>(available_pages) * limits_.page_tokens));
    int32_t rows = 0;
    if (job->rows_from >= 0) {
      // Each token from there on takes a row of logits, and a batch has room for few rows.
      count = std::min(count, std::max(0, job->rows_from - job->evaluated) + logits);
      rows = std::max(0, job->evaluated + count - std::max(job->rows_from, job->evaluated));
    }
    if (count <= 0) {
      // A younger sequence must not keep the pages that an older one needs for its prompt.
      const bool lacks_pages = tokens > 0 && in_held_pages <= 0 && available_pages <= 0;
      if (!lacks_pages || running_.back() == job || !is_senior(job, running_.back())) continue;
      plan = {};
      plan.preempt = running_.back();
      return plan;
    }
    available_pages -= missing_pages(*job, count);
    tokens -= count;
    logits -= rows;
    plan.prefill += count;
    plan.parts.push_back({job, count, rows});
  }
  // Only pages can be what keeps all sequences from going on: there is always room for some tokens and rows.
  if (plan.parts.empty()) plan.preempt = running_.back();
  return plan;
}

void Scheduler::learn(const Plan& plan, double milliseconds) {
  int64_t tokens = 0;
  for (const Part& part : plan.parts) {
    part.job->client->service += part.tokens / part.job->client->weight;
    tokens += part.tokens;
  }
  double weights = 0;
  for (const auto& [_, client] : clients_) weights += client->weight;
  if (weights > 0) floor_ += static_cast<double>(tokens) / weights;

  if (plan.drafts == 0) clock_.learn(plan.decoding, plan.prefill, milliseconds);
  if (plan.prefill > 0) return;
  auto& [clock, steps_without] = draft_clocks_[static_cast<size_t>(StepClock::bucket_of(plan.decoding))];
  clock.learn(plan.decoding, plan.drafts, milliseconds);
  if (plan.drafts > 0) {
    steps_without = 0;
  } else if (++steps_without == kDraftsForgotten) {
    clock.forget_further();
    steps_without = 0;
  }
}

bool Scheduler::drafts_pay(int32_t decoding, int32_t drafts, double acceptance) const {
  const StepClock& clock = draft_clocks_[static_cast<size_t>(StepClock::bucket_of(decoding))].clock;
  const double step = clock.decode_ms(decoding), cost = clock.further_ms(drafts);
  if (step == 0 || cost == 0) return decoding <= kMostUnmeasuredDrafting;
  return acceptance * drafts * step / decoding > cost;
}

}  // namespace chatglm
