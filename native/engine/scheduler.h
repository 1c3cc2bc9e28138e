#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/step_clock.h"

namespace chatglm {

/// What the scheduler knows of a request. The engine keeps the numbers of its sequence up to date in here.
struct Job {
  struct Client;

  uint32_t id = 0;
  uint64_t arrival = 0;    // earlier requests have smaller numbers
  int32_t priority = 0;    // higher ones come first
  int32_t tokens = 0;      // of the sequence, prompt and answer
  int32_t evaluated = 0;   // of the tokens, those whose keys and values are in the pages
  int32_t pages = 0;       // that the sequence holds
  int32_t rows_from = -1;  // -1, or: from this position on each token takes a row of whole logits
  int32_t drafts = 0;      // tokens that are guessed to follow, to be verified in the next step
  bool decoding = false;   // the prompt is computed: each step computes the last token
  Client* client = nullptr;

  int32_t remaining() const { return tokens - evaluated; }
};

struct SchedulerLimits {
  int32_t sequences = 1;     // that are computed at the same time
  int32_t batch_tokens = 1;  // of a step
  int32_t batch_logits = 1;  // rows of whole logits of a step
  int32_t page_tokens = 64;
  /// The most milliseconds that chunks of prompts add to a step in which other sequences decode. 0: nearly as much as
  /// the step takes without them for each sequence that waits for its first token, up to 100 ms for all: while one
  /// prompt is computed, the gap between tokens of running answers at most doubles.
  double prefill_budget_ms = 0;
};

/// Decides what the engine does next. The scheduler knows numbers only: neither tokens nor threads nor a backend.
///
/// Waiting requests are admitted by priority; among those of one priority the client with the least service comes
/// first, service being its computed tokens divided by its weight; requests of one client by arrival. A client has no
/// claim to times in which it did not wait: when it begins to, its service is raised to that of the others who wait.
/// Running sequences all decode in each step, and chunks of prompts fill the step up to a budget of time, in the same
/// order. Pages are taken as they are needed; when none is left, the youngest sequence of the lowest priority is
/// preempted: it gives its pages back, waits at its old place in the queue and is computed again later. The oldest
/// sequence of the highest priority is never preempted, so as long as one context fits into the pages, all requests
/// end.
class Scheduler {
 public:
  static constexpr int32_t kLeastChunk = 8;  // tokens that a prompt gets of a step, whatever the budget

  explicit Scheduler(SchedulerLimits limits) : limits_(limits) {}

  /// A request begins to wait. The job's address stays the same until remove(). `weight` is above 0: of clients with
  /// requests, each gets service in proportion; the client's last weight counts.
  void enqueue(Job& job, const std::string& client, double weight);
  /// The request has ended, wherever it was.
  void remove(Job& job);

  /// The waiting request that comes next; null if none may run now, because there are too many sequences or because the
  /// prompts that were admitted fill a step.
  Job* next() const;
  /// Whether the request, whose pages in the cache it already holds, may begin with so many pages available: its prompt
  /// fits, and a page remains for each running sequence, which may need one soon.
  bool fits(const Job& job, int32_t available_pages) const;
  void admit(Job& job);
  /// The sequence to preempt for a waiting request of a higher priority, or null.
  Job* victim_for(const Job& waiting) const;
  /// A running sequence has given its pages back, and waits again.
  void preempt(Job& job);

  /// The share of one sequence in a step.
  struct Part {
    Job* job;
    int32_t tokens;  // from `evaluated` on; of a decoding sequence one, and its drafts
    int32_t rows;    // of whole logits
  };
  struct Plan {
    Job* preempt = nullptr;  // if not null: this sequence has to be preempted, and then comes another plan
    std::vector<Part> parts;
    int32_t decoding = 0;  // of the parts, sequences that decode
    int32_t drafts = 0;    // tokens of these beyond one each
    int32_t prefill = 0;   // tokens of prompts
  };
  Plan plan(int32_t available_pages);
  /// The plan was carried out in so many milliseconds.
  void learn(const Plan& plan, double milliseconds);

  /// Whether drafts of one of so many decoding sequences gain more than they cost, if `acceptance` of them, from 0 to
  /// 1, turn out to be right: an accepted draft saves the time that a step spends on one sequence.
  bool drafts_pay(int32_t decoding, int32_t drafts, double acceptance) const;

  int32_t running() const { return static_cast<int32_t>(running_.size()); }
  int32_t waiting() const { return waiting_; }
  const StepClock& clock() const { return clock_; }

 private:
  static bool is_senior(const Job* a, const Job* b);
  int32_t pages_for(int32_t tokens) const { return (tokens + limits_.page_tokens - 1) / limits_.page_tokens; }
  int32_t prefill_tokens(int32_t decoding, int32_t prefilling) const;

  SchedulerLimits limits_;
  std::unordered_map<std::string, std::unique_ptr<Job::Client>> clients_;  // those that have requests
  std::vector<Job*> running_;                                              // by seniority: is_senior()
  int32_t waiting_ = 0;
  /// The service with which a client begins at least. It grows with what is computed, so that the service of no client
  /// that waits remains above that of ever new ones.
  double floor_ = 0;
  uint32_t turn_ = 0;  // of the sequences that do not all fit into a step
  StepClock clock_;
  /// By the number of decoding sequences: the steps without prompts, drafts being the further tokens.
  struct DraftClock {
    StepClock clock;
    int32_t steps_without = 0;  // since the last step with drafts
  };
  std::array<DraftClock, StepClock::kBuckets> draft_clocks_;
};

/// A client that has requests.
struct Job::Client {
  std::string key;
  double weight = 1;
  double service = 0;  // computed tokens / weight, and what it was raised by
  int32_t jobs = 0;
  /// Waiting requests, by priority and arrival; the highest priority comes first.
  std::map<int32_t, std::map<uint64_t, Job*>, std::greater<>> waiting;
};

}  // namespace chatglm
