// The engine on a backend that computes nothing but remembers everything: each position of its pages holds the token
// that was written there, and the logits are a hash of all tokens that a sequence's pages hold. A wrong page, a token
// written twice or a prefix taken from another sequence changes the answer.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

#include "test/random.h"
#include "test/recorder.h"

namespace chatglm {
namespace {

using test::generation;
using test::logits_of;
using test::Random;
using test::Recorder;
using Tokens = std::vector<int32_t>;

constexpr int32_t kVocabulary = 101;
constexpr int32_t kBatchTokens = 96;

uint64_t hash(uint64_t state, int32_t token) {
  state = (state ^ static_cast<uint64_t>(token + 1)) * 0x9e3779b97f4a7c15u;
  return state ^ state >> 29;
}
uint64_t hash(const Tokens& tokens) {
  uint64_t state = 7;
  for (const int32_t token : tokens) state = hash(state, token);
  return state;
}
int32_t next_token(const Tokens& tokens, uint64_t alphabet = kVocabulary) {
  return static_cast<int32_t>(hash(tokens) % alphabet);
}
Tokens chain(Tokens prompt, size_t count, uint64_t alphabet = kVocabulary) {
  Tokens answer;
  for (; answer.size() < count; prompt.push_back(answer.back())) answer.push_back(next_token(prompt, alphabet));
  return answer;
}

// What a test does to a running backend.
struct Controls {
  std::atomic<bool> hold{false};          // forward() waits until it is let go or aborted
  std::atomic<bool> hold_prefill{false};  // the same, but for steps with pieces of prompts only
  std::atomic<int> prefills{0};           // such steps
  std::atomic<int> forwards{0};           // begun
  std::atomic<int> aborted{0};
  std::atomic<int> throw_at{-1};     // the so many-th forward() throws
  std::atomic<bool> invalid{false};  // logits are NaN
  std::atomic<int> rows{0};          // whole rows that were wanted
  std::atomic<int> outcomes{0};      // rows of the other uses
  std::atomic<int> drafts{0};        // tokens of a segment with a row of their own, beyond the last
  std::atomic<int> no_read_page{0};  // read_page() throws
  std::atomic<int> delay_us{0};
  std::atomic<int> alphabet{kVocabulary};  // the next token is one of so many
  std::atomic<int> period{0};              // not 0: the next token is the last one plus 1, modulo this
  std::atomic<bool> alive{false};
};

class FakeBackend final : public Backend {
 public:
  FakeBackend(int32_t pages, Controls& controls)
      : controls_(controls), pages_(pages), memory_(static_cast<size_t>(pages), Tokens(kPageTokens, -1)) {
    controls_.alive = true;
  }
  ~FakeBackend() override { controls_.alive = false; }

  BackendInfo info() const override {
    return {.device = "fake", .pages = pages_, .page_bytes = kPageTokens * sizeof(int32_t), .page_layout = "tokens"};
  }
  int32_t max_batch_tokens() const override { return kBatchTokens; }
  int32_t max_batch_logits() const override { return 16; }

  bool forward(std::span<const Segment> batch, float* logits, Outcome* outcomes,
               const std::atomic<bool>& abort) override {
    if (++controls_.forwards == controls_.throw_at) throw std::bad_alloc();
    int32_t tokens = 0;
    for (const Segment& segment : batch) {
      EXPECT_FALSE(segment.tokens.empty());
      EXPECT_LE(segment.rows.size(), segment.tokens.size());
      const auto end = segment.position + static_cast<int32_t>(segment.tokens.size());
      EXPECT_GE(static_cast<int32_t>(segment.pages.size()) * kPageTokens, end);
      tokens += static_cast<int32_t>(segment.tokens.size());
      for (int32_t position = segment.position; position < end; ++position) {
        at(segment, position) = segment.tokens[static_cast<size_t>(position - segment.position)];
      }
      if (abort) break;  // half of the batch is written
    }
    EXPECT_LE(tokens, kBatchTokens);
    const bool prefill = tokens > static_cast<int32_t>(batch.size());
    if (prefill) ++controls_.prefills;
    if (const int delay = controls_.delay_us) std::this_thread::sleep_for(std::chrono::microseconds(delay));
    while ((controls_.hold || (prefill && controls_.hold_prefill)) && !abort)
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    if (abort) {
      ++controls_.aborted;
      return false;
    }
    for (const Segment& segment : batch) {
      const auto end = segment.position + static_cast<int32_t>(segment.tokens.size());
      uint64_t state = 7;
      for (int32_t position = 0; position < end; ++position) {
        state = hash(state, at(segment, position));
        const int32_t wanted = position - (end - static_cast<int32_t>(segment.rows.size()));
        if (wanted < 0) continue;
        std::vector<float> row(kVocabulary, controls_.invalid ? NAN : 0.0f);
        const auto period = static_cast<uint64_t>(controls_.period.load());
        const uint64_t next = period == 0 ? state % static_cast<uint64_t>(controls_.alphabet)
                                          : (static_cast<uint64_t>(at(segment, position)) + 1) % period;
        row[next % kVocabulary] += 1;
        const Row& use = segment.rows[static_cast<size_t>(wanted)];
        if (use.use == Row::Use::logits) {
          ++controls_.rows;
          logits = std::copy(row.begin(), row.end(), logits);
        } else {
          ++controls_.outcomes;
          if (position + 1 < end && use.use == Row::Use::sample) ++controls_.drafts;
          *outcomes++ = outcome_of(use, row);
        }
      }
    }
    return true;
  }

  void copy_page(int32_t from, int32_t to, int32_t tokens) override {
    ASSERT_NE(from, to);
    std::copy_n(memory_[static_cast<size_t>(from)].begin(), tokens, memory_[static_cast<size_t>(to)].begin());
  }
  void read_page(int32_t page, uint8_t* target) override {
    if (controls_.no_read_page) throw Error("ERR_INTERNAL", "no page can be read");
    std::memcpy(target, memory_[static_cast<size_t>(page)].data(), kPageTokens * sizeof(int32_t));
  }
  void write_page(int32_t page, const uint8_t* source) override {
    std::memcpy(memory_[static_cast<size_t>(page)].data(), source, kPageTokens * sizeof(int32_t));
  }

 private:
  int32_t& at(const Segment& segment, int32_t position) {
    const auto page = static_cast<size_t>(segment.pages[static_cast<size_t>(position / kPageTokens)]);
    return memory_[page][static_cast<size_t>(position % kPageTokens)];
  }

  Controls& controls_;
  int32_t pages_;
  std::vector<Tokens> memory_;
};

class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    options_.vocabulary = kVocabulary;
    options_.context_tokens = 300;
    options_.max_sequences = 3;
    options_.max_queue = 100;
    options_.pages = 3 * options_.pages_of_context();
  }
  void start() {
    engine_ = std::make_unique<Engine>(
        options_,
        [pages = options_.pages, this](const Progress&, const std::atomic<bool>&) {
          return std::make_unique<FakeBackend>(pages, controls_);
        },
        recorder_);
  }
  void TearDown() override {
    controls_.hold = false;
    if (!engine_) return;
    engine_.reset();
    EXPECT_EQ(recorder_.stopped(), 1);
    EXPECT_FALSE(controls_.alive);
    for (const auto& [id, answer] : recorder_.answers()) EXPECT_EQ(answer.ends, 1) << "request " << id;
  }
  void wait_for_forwards(int count) {
    for (int i = 0; i < 100000 && controls_.forwards < count; ++i)
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    ASSERT_GE(controls_.forwards, count);
  }
  std::string code_of(const Request& request) {
    try {
      engine_->submit(request);
    } catch (const Error& error) {
      details_ = error.details;
      return error.code;
    }
    return "none";
  }
  double detail(const std::string& name) {
    for (const auto& [key, value] : details_) {
      if (key == name) return std::get<double>(value);
    }
    return -1;
  }
  // Everything has ended: no page belongs to anybody but the cached histories.
  void expect_nothing_is_left() {
    engine_->clear_cache();
    Engine::Stats stats;
    for (int i = 0; i < 50000; ++i) {
      stats = engine_->stats();
      if (stats.used_pages == 0 && stats.active_sequences == 0) break;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    EXPECT_EQ(stats.used_pages, 0);
    EXPECT_EQ(stats.active_sequences, 0);
    EXPECT_EQ(stats.queued_requests, 0);
    EXPECT_EQ(stats.cached_tokens, 0);
  }

  EngineOptions options_;
  Controls controls_;
  Recorder recorder_;
  std::unique_ptr<Engine> engine_;
  Error::Details details_;
};

Tokens numbers(int32_t first, int32_t count) {
  Tokens tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back((first + i * i) % kVocabulary);
  return tokens;
}

TEST_F(EngineTest, GeneratesUntilTheLengthOrAStopToken) {
  start();
  const Tokens prompt = numbers(3, 150);
  const Tokens expected = chain(prompt, 40);
  auto answer = recorder_.wait(engine_->submit(generation(prompt, 40)));
  EXPECT_EQ(answer.tokens, expected);
  EXPECT_EQ(answer.finish->reason, FinishReason::length);
  EXPECT_EQ(answer.finish->prompt_tokens, 150);
  EXPECT_EQ(answer.finish->generated_tokens, 40);
  EXPECT_GE(answer.finish->queue_ms, 0);
  EXPECT_GT(answer.finish->first_token_ms, 0);
  EXPECT_GE(answer.finish->first_token_ms, answer.finish->prefill_ms);

  Request request = generation(prompt, 40);
  request.stop_tokens = {kVocabulary - 1, expected[5]};
  const auto first = static_cast<size_t>(std::find(expected.begin(), expected.end(), expected[5]) - expected.begin());
  answer = recorder_.wait(engine_->submit(request));
  EXPECT_EQ(answer.tokens, Tokens(expected.begin(), expected.begin() + static_cast<int64_t>(first) + 1));
  EXPECT_EQ(answer.finish->reason, FinishReason::stop);
  EXPECT_EQ(answer.finish->cached_tokens, 149);

  answer = recorder_.wait(engine_->submit(generation(prompt, 0)));
  EXPECT_TRUE(answer.tokens.empty());
  EXPECT_EQ(answer.finish->reason, FinishReason::length);
  EXPECT_EQ(answer.finish->first_token_ms, 0);
  expect_nothing_is_left();
}

TEST_F(EngineTest, LogitsOfPositions) {
  start();
  const Tokens prompt = numbers(1, 120);
  for (const int32_t from : {0, 17, 64, 119}) {
    const auto answer = recorder_.wait(engine_->submit(logits_of(prompt, from)));
    EXPECT_EQ(answer.first_row, from);
    ASSERT_EQ(answer.logits.size(), static_cast<size_t>((120 - from) * kVocabulary));
    for (int32_t row = from; row < 120; ++row) {
      const int32_t token = next_token(Tokens(prompt.begin(), prompt.begin() + row + 1));
      EXPECT_EQ(answer.logits[static_cast<size_t>((row - from) * kVocabulary + token)], 1) << row;
    }
    EXPECT_EQ(answer.finish->generated_tokens, 0);
  }
}

TEST_F(EngineTest, ASecondTurnComputesItsNewTokensOnly) {
  start();
  Tokens tokens = numbers(9, 100);
  const Tokens answer = recorder_.wait(engine_->submit(generation(tokens, 30))).tokens;
  tokens.insert(tokens.end(), answer.begin(), answer.end());
  const Tokens question = numbers(5, 20);
  tokens.insert(tokens.end(), question.begin(), question.end());
  const auto second = recorder_.wait(engine_->submit(generation(tokens, 10)));
  EXPECT_EQ(second.finish->cached_tokens, 129);  // the last generated token was never computed
  EXPECT_EQ(second.tokens, chain(tokens, 10));
  engine_->clear_cache();
  EXPECT_EQ(recorder_.wait(engine_->submit(generation(tokens, 10))).finish->cached_tokens, 0);
}

TEST_F(EngineTest, WithoutAPrefixCacheNothingIsKept) {
  options_.prefix_cache = false;
  start();
  const Tokens prompt = numbers(9, 100);
  for (int i = 0; i < 3; ++i) {
    const auto answer = recorder_.wait(engine_->submit(generation(prompt, 5)));
    EXPECT_EQ(answer.finish->cached_tokens, 0);
    EXPECT_EQ(answer.tokens, chain(prompt, 5));
  }
  EXPECT_EQ(engine_->stats().cached_tokens, 0);
}

TEST_F(EngineTest, ABeginningIsSharedWithASequenceThatStillRuns) {
  start();
  controls_.delay_us = 300;
  const Tokens prompt = numbers(2, 140);
  const uint32_t first = engine_->submit(generation(prompt, 150));
  recorder_.wait_for_tokens(first, 3);
  Tokens longer = prompt;
  longer.push_back(kVocabulary - 1);
  longer.push_back(3);
  const uint32_t second = engine_->submit(generation(longer, 20));
  Tokens shorter(prompt.begin(), prompt.begin() + 70);
  const auto third = recorder_.wait(engine_->submit(generation(shorter, 20)));
  EXPECT_EQ(recorder_.wait(second).tokens, chain(longer, 20));
  EXPECT_GE(recorder_.wait(second).finish->cached_tokens, 128);  // its full pages
  EXPECT_EQ(third.tokens, chain(shorter, 20));
  EXPECT_EQ(third.finish->cached_tokens, 69);
  EXPECT_EQ(recorder_.wait(first).tokens, chain(prompt, 150));
}

TEST_F(EngineTest, RefusesWhatItCannotDo) {
  start();
  EXPECT_EQ(code_of(generation({}, 5)), "ERR_INVALID_ARGUMENT");
  EXPECT_EQ(code_of(generation({1, kVocabulary}, 5)), "ERR_INVALID_ARGUMENT");
  EXPECT_EQ(code_of(generation({1, -1}, 5)), "ERR_INVALID_ARGUMENT");
  EXPECT_EQ(code_of(generation(numbers(0, 301), 0)), "ERR_CONTEXT_OVERFLOW");
  EXPECT_EQ(detail("tokens"), 301);
  EXPECT_EQ(detail("limit"), 300);
  EXPECT_EQ(code_of(generation(numbers(0, 300), 1)), "ERR_CONTEXT_OVERFLOW");
  EXPECT_EQ(code_of(logits_of(numbers(0, 301), 0)), "ERR_CONTEXT_OVERFLOW");
  // What just fits.
  EXPECT_EQ(recorder_.wait(engine_->submit(generation(numbers(0, 300), 0))).ends, 1);
  const auto last = recorder_.wait(engine_->submit(generation(numbers(0, 299), INT32_MAX)));
  EXPECT_EQ(last.tokens, chain(numbers(0, 299), 1));
  EXPECT_EQ(last.finish->reason, FinishReason::length);
  EXPECT_EQ(recorder_.wait(engine_->submit(generation(numbers(0, 290), 100))).tokens, chain(numbers(0, 290), 10));
  EXPECT_EQ(recorder_.wait(engine_->submit(logits_of(numbers(0, 300), 299))).logits.size(),
            static_cast<size_t>(kVocabulary));
  EXPECT_EQ(recorder_.wait(engine_->submit(logits_of(numbers(0, 10), 10))).logits.size(), 0u);
}

TEST_F(EngineTest, AFullQueueRefuses) {
  options_.max_sequences = 1;
  options_.max_queue = 2;
  controls_.hold = true;
  start();
  const uint32_t first = engine_->submit(generation(numbers(0, 10), 5));
  wait_for_forwards(1);
  const uint32_t second = engine_->submit(generation(numbers(1, 10), 5)),
                 third = engine_->submit(generation(numbers(2, 10), 5));
  EXPECT_EQ(code_of(generation(numbers(3, 10), 5)), "ERR_QUEUE_FULL");
  EXPECT_EQ(detail("limit"), 2);
  EXPECT_EQ(engine_->stats().queued_requests, 2);
  engine_->cancel(second);
  controls_.hold = false;
  EXPECT_EQ(recorder_.wait(first).tokens, chain(numbers(0, 10), 5));
  EXPECT_EQ(recorder_.wait(second).finish->reason, FinishReason::cancelled);
  EXPECT_EQ(recorder_.wait(third).tokens, chain(numbers(2, 10), 5));
  EXPECT_EQ(code_of(generation(numbers(3, 10), 5)), "none");
  recorder_.wait(third + 1);
  expect_nothing_is_left();
}

// The step that a cancelled request shares with others is not lost for these.
TEST_F(EngineTest, CancellingAPrefillBesideAnAnswer) {
  start();
  controls_.delay_us = 200;
  const uint32_t other = engine_->submit(generation(numbers(40, 20), 100));
  recorder_.wait_for_tokens(other, 5);
  controls_.hold_prefill = true;
  const uint32_t request = engine_->submit(generation(numbers(7, 200), 50));
  for (int i = 0; i < 100000 && controls_.prefills < 2; ++i)
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  engine_->cancel(request);
  controls_.hold_prefill = false;
  const auto answer = recorder_.wait(request);
  ASSERT_TRUE(answer.finish);
  EXPECT_EQ(answer.finish->reason, FinishReason::cancelled);
  EXPECT_TRUE(answer.tokens.empty());
  EXPECT_EQ(recorder_.wait(other).tokens, chain(numbers(40, 20), 100));
  EXPECT_EQ(controls_.aborted, 0);
  expect_nothing_is_left();
}

// Between the engine's look at what was cancelled and its next step, which nothing but the abort would end.
TEST_F(EngineTest, CancellingJustBeforeAPrefill) {
  recorder_.on_admission = [this](uint32_t request) { engine_->cancel(request); };
  start();
  controls_.hold_prefill = true;
  const uint32_t request = engine_->submit(generation(numbers(7, 150), 50));
  ASSERT_EQ(request, 1u);
  EXPECT_EQ(recorder_.wait(request).finish->reason, FinishReason::cancelled);
  controls_.hold_prefill = false;
  expect_nothing_is_left();
}

TEST_F(EngineTest, CancellingAHeldPrefill) {
  start();
  controls_.hold = true;
  const uint32_t request = engine_->submit(generation(numbers(7, 200), 50));
  wait_for_forwards(1);
  engine_->cancel(request);
  const auto answer = recorder_.wait(request);  // only the abort can end the step
  EXPECT_EQ(answer.finish->reason, FinishReason::cancelled);
  EXPECT_EQ(answer.finish->generated_tokens, 0);
  EXPECT_GE(controls_.aborted, 1);
  controls_.hold = false;
  // What was not completed is not taken for computed.
  EXPECT_EQ(recorder_.wait(engine_->submit(generation(numbers(7, 200), 20))).tokens, chain(numbers(7, 200), 20));
}

TEST_F(EngineTest, CancellingWhileDecoding) {
  start();
  controls_.delay_us = 500;
  const uint32_t request = engine_->submit(generation(numbers(7, 20), 250));
  recorder_.wait_for_tokens(request, 4);
  engine_->cancel(request);
  engine_->cancel(request);
  engine_->cancel(12345);
  const auto answer = recorder_.wait(request);
  EXPECT_EQ(answer.finish->reason, FinishReason::cancelled);
  EXPECT_LT(answer.tokens.size(), 200u);
  EXPECT_EQ(answer.tokens, chain(numbers(7, 20), answer.tokens.size()));
  EXPECT_EQ(answer.finish->generated_tokens, static_cast<int32_t>(answer.tokens.size()));
  engine_->cancel(request);
  Tokens tokens = numbers(7, 20);
  tokens.insert(tokens.end(), answer.tokens.begin(), answer.tokens.end());
  controls_.delay_us = 0;
  const auto next = recorder_.wait(engine_->submit(generation(tokens, 10)));
  EXPECT_EQ(next.tokens, chain(tokens, 10));
  EXPECT_EQ(next.finish->cached_tokens, static_cast<int32_t>(tokens.size()) - 1);
  expect_nothing_is_left();
}

TEST_F(EngineTest, MoreRequestsThanSequencesWaitAndComplete) {
  options_.max_sequences = 2;
  options_.prefix_cache = true;
  start();
  std::vector<uint32_t> ids;
  for (int32_t i = 0; i < 20; ++i) ids.push_back(engine_->submit(generation(numbers(i, 250), 50)));
  for (int32_t i = 0; i < 20; ++i)
    EXPECT_EQ(recorder_.wait(ids[static_cast<size_t>(i)]).tokens, chain(numbers(i, 250), 50)) << i;
  expect_nothing_is_left();
}

TEST_F(EngineTest, StoppingEndsEverythingOnce) {
  start();
  controls_.delay_us = 300;
  std::vector<uint32_t> ids;
  for (int32_t i = 0; i < 8; ++i) ids.push_back(engine_->submit(generation(numbers(i, 60), 200)));
  recorder_.wait_for_tokens(ids[0], 3);
  engine_->stop();
  engine_->stop();
  recorder_.wait_until_stopped();
  for (const uint32_t id : ids) EXPECT_EQ(recorder_.answers()[id].error, "ERR_DISPOSED");
  EXPECT_EQ(code_of(generation(numbers(0, 5), 5)), "ERR_DISPOSED");
  engine_->cancel(ids[0]);
  engine_->clear_cache();
  EXPECT_EQ(engine_->stats().used_pages, 0);
  EXPECT_EQ(engine_->stats().queued_requests, 0);
  EXPECT_EQ(recorder_.failure(), "");
}

TEST_F(EngineTest, StoppingInsideOfAStep) {
  start();
  controls_.hold = true;
  const uint32_t id = engine_->submit(generation(numbers(1, 60), 200));
  wait_for_forwards(1);
  engine_->stop();
  EXPECT_EQ(recorder_.wait(id).error, "ERR_DISPOSED");
}

TEST_F(EngineTest, DestructionInsideOfAStep) {
  for (int round = 0; round < 20; ++round) {
    Controls controls;
    Recorder recorder;
    controls.delay_us = 50;
    auto engine = std::make_unique<Engine>(
        options_,
        [&](const Progress&, const std::atomic<bool>&) {
          return std::make_unique<FakeBackend>(options_.pages, controls);
        },
        recorder);
    for (int32_t i = 0; i < round % 5; ++i) engine->submit(generation(numbers(i, 60), 200));
    std::this_thread::sleep_for(std::chrono::microseconds(100 * round));
    engine.reset();
    EXPECT_EQ(recorder.stopped(), 1);
    for (const auto& [id, answer] : recorder.answers()) EXPECT_EQ(answer.ends, 1);
  }
}

TEST_F(EngineTest, StoppingWhileLoading) {
  engine_ = std::make_unique<Engine>(
      options_,
      [](const Progress& progress, const std::atomic<bool>& abort) -> std::unique_ptr<Backend> {
        progress(1, 10);
        while (!abort) std::this_thread::sleep_for(std::chrono::microseconds(100));
        throw Error("ERR_ABORTED", "aborted");
      },
      recorder_);
  const uint32_t id = engine_->submit(generation(numbers(1, 60), 200));
  const uint32_t cancelled = engine_->submit(generation(numbers(1, 60), 200));
  engine_->cancel(cancelled);
  engine_->stop();
  recorder_.wait_until_stopped();
  EXPECT_EQ(recorder_.failure(), "ERR_ABORTED");
  EXPECT_EQ(recorder_.answers()[id].error, "ERR_DISPOSED");
  EXPECT_FALSE(recorder_.info());
}

TEST_F(EngineTest, LoadingThatFails) {
  engine_ = std::make_unique<Engine>(
      options_, [](const Progress&, const std::atomic<bool>&) -> std::unique_ptr<Backend> { throw std::bad_alloc(); },
      recorder_);
  recorder_.wait_until_stopped();
  EXPECT_EQ(recorder_.failure(), "ERR_OUT_OF_MEMORY");
  EXPECT_EQ(code_of(generation(numbers(0, 5), 5)), "ERR_OUT_OF_MEMORY");
}

TEST_F(EngineTest, ABackendThatThrowsEndsTheEngineNotTheProcess) {
  controls_.throw_at = 5;
  start();
  std::vector<uint32_t> ids;
  for (int32_t i = 0; i < 6; ++i) {
    try {
      ids.push_back(engine_->submit(generation(numbers(i, 60), 200)));
    } catch (const Error& error) {
      EXPECT_EQ(error.code, "ERR_OUT_OF_MEMORY");
    }
  }
  recorder_.wait_until_stopped();
  EXPECT_EQ(recorder_.failure(), "ERR_OUT_OF_MEMORY");
  EXPECT_EQ(recorder_.failures(), 1);
  int failed = 0;
  for (const uint32_t id : ids) {
    EXPECT_EQ(recorder_.answers()[id].ends, 1);
    failed += recorder_.answers()[id].error == "ERR_OUT_OF_MEMORY";  // the cause
  }
  EXPECT_GT(failed, 0);
  EXPECT_EQ(code_of(generation(numbers(0, 5), 5)), "ERR_OUT_OF_MEMORY");
}

TEST_F(EngineTest, InvalidLogitsFailTheRequestOnly) {
  controls_.invalid = true;
  start();
  const auto bad = recorder_.wait(engine_->submit(generation(numbers(1, 60), 200)));
  EXPECT_EQ(bad.error, "ERR_INVALID_LOGITS");
  EXPECT_TRUE(bad.tokens.empty());
  controls_.invalid = false;
  const auto good = recorder_.wait(engine_->submit(generation(numbers(1, 60), 20)));
  EXPECT_EQ(good.tokens, chain(numbers(1, 60), 20));
  EXPECT_EQ(good.finish->cached_tokens, 0);
  expect_nothing_is_left();
}

TEST_F(EngineTest, NoRowOfLogitsIsCopiedUnlessAsked) {
  start();
  const Tokens prompt = numbers(1, 150);
  Request request = generation(prompt, 20);
  request.sampling.frequency_penalty = 1e-6f;
  request.sampling.logprobs = 3;
  EXPECT_EQ(recorder_.wait(engine_->submit(request)).tokens, chain(prompt, 20));
  EXPECT_EQ(controls_.outcomes, 20);
  recorder_.wait(engine_->submit(generation(prompt, 0)));
  EXPECT_EQ(controls_.outcomes, 20);
  EXPECT_EQ(controls_.rows, 0);
  recorder_.wait(engine_->submit(logits_of(prompt, 149)));
  EXPECT_EQ(controls_.rows, 1);
  expect_nothing_is_left();
}

TEST_F(EngineTest, ScoresOfATextsTokens) {
  start();
  const Tokens prompt = numbers(1, 120);
  const double of_others = -std::log(kVocabulary - 1 + std::exp(1.0)), of_next = of_others + 1;
  for (const int32_t from : {1, 17, 64, 119}) {
    Request request = logits_of(prompt, from);
    request.kind = Request::Kind::score;
    request.top = 2;
    const auto answer = recorder_.wait(engine_->submit(request));
    ASSERT_EQ(answer.scores.size(), static_cast<size_t>(120 - from));
    EXPECT_EQ(answer.first_row, from);
    for (int32_t i = from; i < 120; ++i) {
      const Outcome& score = answer.scores[static_cast<size_t>(i - from)];
      const int32_t likeliest = next_token(Tokens(prompt.begin(), prompt.begin() + i));
      EXPECT_EQ(score.token, prompt[static_cast<size_t>(i)]);
      EXPECT_NEAR(score.logprob, score.token == likeliest ? of_next : of_others, 1e-5);
      ASSERT_EQ(score.count, 2);
      EXPECT_EQ(score.ids[0], likeliest);
      EXPECT_NEAR(score.logprobs[0], of_next, 1e-5);
    }
  }
  EXPECT_EQ(controls_.rows, 0);
  Request request = logits_of(prompt, 0);
  request.kind = Request::Kind::score;
  EXPECT_EQ(code_of(request), "ERR_INVALID_ARGUMENT");  // nothing stands before the first token
  request.from = 120;
  EXPECT_EQ(code_of(request), "ERR_INVALID_ARGUMENT");
  expect_nothing_is_left();
}

TEST_F(EngineTest, DraftsDoNotChangeAnswers) {
  // The next token depends on all tokens, so what followed the same three tokens before is right one time in three.
  controls_.alphabet = 3;
  start();
  std::vector<uint32_t> ids;
  for (int32_t i = 0; i < 3; ++i) ids.push_back(engine_->submit(generation(numbers(i, 20), 250)));
  for (int32_t i = 0; i < 3; ++i)
    EXPECT_EQ(recorder_.wait(ids[static_cast<size_t>(i)]).tokens, chain(numbers(i, 20), 250, 3));
  EXPECT_GT(controls_.drafts, 0);
  expect_nothing_is_left();
  engine_.reset();

  Controls controls;
  controls.alphabet = 3;
  Recorder recorder;
  options_.speculation = false;
  Engine engine(
      options_,
      [&](const Progress&, const std::atomic<bool>&) {
        return std::make_unique<FakeBackend>(options_.pages, controls);
      },
      recorder);
  EXPECT_EQ(recorder.wait(engine.submit(generation(numbers(0, 20), 250))).tokens, chain(numbers(0, 20), 250, 3));
  EXPECT_EQ(controls.drafts, 0);
}

// The fake's next token depends on all tokens, so nothing repeats by itself; a small period makes drafts right.
TEST_F(EngineTest, RightDraftsSaveSteps) {
  controls_.period = 5;
  start();
  const Tokens prompt = {1, 2, 3, 4, 0, 1, 2, 3};
  const auto answer = recorder_.wait(engine_->submit(generation(prompt, 100)));
  Tokens expected;
  for (int32_t i = 0; i < 100; ++i) expected.push_back((3 + 1 + i) % 5);
  EXPECT_EQ(answer.tokens, expected);
  EXPECT_GT(answer.finish->accepted_tokens, 60);
  EXPECT_LT(controls_.forwards, 40);
  EXPECT_EQ(answer.finish->generated_tokens, 100);

  Request penalized = generation(prompt, 50);  // the next token's penalties depend on whether a draft is right
  penalized.sampling.presence_penalty = 1e-6f;
  EXPECT_EQ(recorder_.wait(engine_->submit(penalized)).finish->drafted_tokens, 0);

  Request stopped = generation(prompt, 100);  // what was drafted behind the stop token is not told
  stopped.stop_tokens = {2};
  EXPECT_EQ(recorder_.wait(engine_->submit(stopped)).tokens, Tokens({4, 0, 1, 2}));
  expect_nothing_is_left();
}

TEST_F(EngineTest, SequencesArePreemptedWhenPagesRunOut) {
  options_.max_sequences = 8;
  options_.pages = options_.pages_of_context() + 2;
  options_.speculation = false;
  start();
  std::vector<uint32_t> ids;
  for (int32_t i = 0; i < 8; ++i) ids.push_back(engine_->submit(generation(numbers(i, 60), 230)));
  int32_t preemptions = 0;
  for (int32_t i = 0; i < 8; ++i) {
    const auto answer = recorder_.wait(ids[static_cast<size_t>(i)]);
    EXPECT_EQ(answer.tokens, chain(numbers(i, 60), 230)) << i;
    preemptions += answer.finish->preemptions;
    if (i == 0) EXPECT_EQ(answer.finish->preemptions, 0) << "the oldest sequence";
  }
  EXPECT_GT(preemptions, 0);
  EXPECT_EQ(engine_->stats().preemptions, preemptions);
  expect_nothing_is_left();
}

TEST_F(EngineTest, AHigherPriorityComesFirst) {
  options_.max_sequences = 1;
  start();
  controls_.delay_us = 300;
  const uint32_t first = engine_->submit(generation(numbers(1, 40), 60));
  recorder_.wait_for_tokens(first, 3);
  const uint32_t second = engine_->submit(generation(numbers(2, 40), 20));
  Request urgent = generation(numbers(3, 40), 20);
  urgent.priority = 5;
  const auto answer = recorder_.wait(engine_->submit(urgent));
  EXPECT_EQ(answer.tokens, chain(numbers(3, 40), 20));
  EXPECT_EQ(recorder_.answers()[first].ends, 0);
  EXPECT_EQ(recorder_.answers()[second].ends, 0);
  EXPECT_EQ(recorder_.wait(first).tokens, chain(numbers(1, 40), 60));
  EXPECT_EQ(recorder_.wait(first).finish->preemptions, 1);
  EXPECT_EQ(recorder_.wait(second).tokens, chain(numbers(2, 40), 20));
  expect_nothing_is_left();
}

TEST_F(EngineTest, PinnedPagesStay) {
  options_.pages = options_.pages_of_context() + 1;
  start();
  Request request = generation(numbers(1, 128), 0);
  request.pin = true;
  const uint32_t pin = engine_->submit(request);
  recorder_.wait(pin);
  // Others take all other pages.
  EXPECT_EQ(recorder_.wait(engine_->submit(generation(numbers(50, 250), 5))).tokens, chain(numbers(50, 250), 5));
  EXPECT_EQ(recorder_.wait(engine_->submit(generation(numbers(60, 250), 5))).tokens, chain(numbers(60, 250), 5));
  Tokens longer = numbers(1, 128);
  longer.push_back(5);
  const auto answer = recorder_.wait(engine_->submit(generation(longer, 10)));
  EXPECT_EQ(answer.finish->cached_tokens, 128);
  EXPECT_EQ(answer.tokens, chain(longer, 10));

  const uint32_t read = engine_->read_pages(pin, 0, 2);
  const auto pages = recorder_.wait_for_pages(read);
  ASSERT_EQ(pages.data.size(), 2 * kPageTokens * sizeof(int32_t));
  EXPECT_EQ(std::memcmp(pages.data.data(), numbers(1, 128).data(), pages.data.size()), 0);
  EXPECT_EQ(recorder_.wait_for_pages(engine_->read_pages(pin, 1, 2)).error, "ERR_INVALID_ARGUMENT");
  EXPECT_EQ(recorder_.wait_for_pages(engine_->write_pages(pin, 0, pages.data)).error, "ERR_INVALID_ARGUMENT");
  // A sequence that needs the pinned pages cannot go on, and says so.
  const auto hungry = recorder_.wait(engine_->submit(generation(numbers(70, 299), 1)));
  EXPECT_EQ(hungry.error, "ERR_OUT_OF_MEMORY");
  engine_->release(pin);
  engine_->release(pin);
  EXPECT_EQ(recorder_.wait_for_pages(engine_->read_pages(pin, 0, 1)).error, "ERR_OUT_OF_MEMORY");
  EXPECT_EQ(recorder_.wait(engine_->submit(generation(numbers(70, 299), 1))).ends, 1);
  expect_nothing_is_left();
}

TEST_F(EngineTest, ImportedPagesAreFound) {
  start();
  const Tokens tokens = numbers(1, 100);
  std::vector<uint8_t> data(2 * kPageTokens * sizeof(int32_t));
  std::memcpy(data.data(), tokens.data(), tokens.size() * sizeof(int32_t));
  const std::vector<uint8_t> second(data.begin() + static_cast<int64_t>(data.size() / 2), data.end());
  data.resize(data.size() / 2);
  uint32_t pin = engine_->import_pages(tokens);
  EXPECT_EQ(recorder_.wait_for_pages(engine_->write_pages(pin, 0, data)).error, "");
  engine_->release(pin);  // not all of them were written: they are not taken for computed
  EXPECT_EQ(recorder_.wait(engine_->submit(generation(tokens, 10))).finish->cached_tokens, 0);
  engine_->clear_cache();
  pin = engine_->import_pages(tokens);
  EXPECT_EQ(recorder_.wait_for_pages(engine_->write_pages(pin, 1, second)).error, "");
  EXPECT_EQ(recorder_.wait_for_pages(engine_->write_pages(pin, 0, data)).error, "");
  EXPECT_EQ(recorder_.wait_for_pages(engine_->write_pages(pin, 2, data)).error, "ERR_INVALID_ARGUMENT");
  engine_->release(pin);
  const auto answer = recorder_.wait(engine_->submit(generation(tokens, 10)));
  EXPECT_EQ(answer.finish->cached_tokens, 99);
  EXPECT_EQ(answer.tokens, chain(tokens, 10));
  expect_nothing_is_left();
}

TEST_F(EngineTest, CallsForPagesEndWithTheEngine) {
  start();
  Request request = generation(numbers(1, 60), 0);
  request.pin = true;
  const uint32_t pin = engine_->submit(request);
  recorder_.wait(pin);
  controls_.hold = true;
  const int before = controls_.forwards;
  engine_->submit(generation(numbers(2, 60), 5));
  wait_for_forwards(before + 1);
  const uint32_t call = engine_->read_pages(pin, 0, 1);
  engine_->stop();
  EXPECT_EQ(recorder_.wait_for_pages(call).error, "ERR_DISPOSED");
}

TEST_F(EngineTest, TracesTellThePhases) {
  start();
  Request request = generation(numbers(1, 200), 20);
  request.trace = true;
  const auto answer = recorder_.wait(engine_->submit(request));
  ASSERT_GE(answer.traces.size(), 5u);
  EXPECT_EQ(answer.traces.front().phase, Trace::Phase::queued);
  EXPECT_EQ(answer.traces[1].phase, Trace::Phase::admitted);
  EXPECT_EQ(answer.traces.back().phase, Trace::Phase::finished);
  EXPECT_EQ(answer.traces.back().tokens, 20);
  int32_t prefilled = 0;
  double at = 0;
  for (const Trace& trace : answer.traces) {
    EXPECT_GE(trace.at_ms, at);
    at = trace.at_ms;
    if (trace.phase == Trace::Phase::prefill) prefilled += trace.tokens;
  }
  EXPECT_EQ(prefilled, 200);
  EXPECT_TRUE(recorder_.wait(engine_->submit(generation(numbers(1, 20), 5))).traces.empty());
}

// Many threads submit and cancel at random; every answer that comes must be right, and every request must end once.
TEST_F(EngineTest, RandomRequestsAndCancellations) {
  options_.context_tokens = 200;
  options_.max_queue = 40;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    options_.prefix_cache = seed != 4;
    options_.max_sequences = 2 * static_cast<int32_t>(seed);
    options_.pages = static_cast<int32_t>(seed) * options_.pages_of_context();  // too few for all
    Controls controls;
    Recorder recorder;
    Engine engine(
        options_,
        [&](const Progress&, const std::atomic<bool>&) {
          return std::make_unique<FakeBackend>(options_.pages, controls);
        },
        recorder);
    struct Sent {
      uint32_t id;
      Request request;
      bool cancelled;
    };
    std::mutex mutex;
    std::vector<Sent> sent;
    const auto work = [&](uint64_t worker) {
      Random random(100 * seed + worker);
      std::vector<uint32_t> mine;
      for (int i = 0; i < 250; ++i) {
        Tokens prompt =
            numbers(static_cast<int32_t>(random.integer(0, 2)), static_cast<int32_t>(random.integer(1, 150)));
        for (int64_t n = random.integer(0, 30); n > 0; --n)
          prompt.push_back(static_cast<int32_t>(random.integer(0, 2)));
        Request request =
            random.chance(0.2)
                ? logits_of(prompt, static_cast<int32_t>(random.integer(0, static_cast<int64_t>(prompt.size()))))
                : generation(prompt, static_cast<int32_t>(random.integer(0, 40)));
        if (random.chance(0.3)) request.sampling.presence_penalty = 1e-6f;
        request.priority = static_cast<int32_t>(random.integer(0, 2));
        request.client = std::string(1, static_cast<char>('a' + random.integer(0, 3)));
        if (random.chance(0.3)) request.stop_tokens = {static_cast<int32_t>(random.integer(0, kVocabulary - 1))};
        const bool cancel = random.chance(0.4);
        uint32_t id;
        try {
          id = engine.submit(request);
        } catch (const Error& error) {
          EXPECT_EQ(error.code, "ERR_QUEUE_FULL");
          std::this_thread::sleep_for(std::chrono::microseconds(200));
          continue;
        }
        {
          const std::lock_guard lock(mutex);
          sent.push_back({id, request, cancel});
        }
        if (random.chance(0.5)) std::this_thread::sleep_for(std::chrono::microseconds(random.integer(0, 600)));
        if (cancel) engine.cancel(id);
        if (random.chance(0.02)) engine.clear_cache();
        if (random.chance(0.1)) engine.stats();
      }
    };
    {
      std::vector<std::thread> threads;
      for (uint64_t worker = 0; worker < 3; ++worker) threads.emplace_back(work, worker);
      for (std::thread& thread : threads) thread.join();
    }
    for (const Sent& s : sent) {
      const auto answer = recorder.wait(s.id);
      ASSERT_EQ(answer.ends, 1);
      ASSERT_TRUE(answer.finish) << answer.error;
      const Finish& finish = *answer.finish;
      if (!s.cancelled) ASSERT_NE(finish.reason, FinishReason::cancelled);
      ASSERT_EQ(answer.tokens, chain(s.request.prompt, answer.tokens.size()));
      ASSERT_EQ(finish.generated_tokens, static_cast<int32_t>(answer.tokens.size()));
      const auto rows = answer.logits.size() / kVocabulary;
      for (size_t row = 0; row < rows; ++row) {
        const int64_t position = answer.first_row + static_cast<int64_t>(row) + 1;
        const int32_t token = next_token(Tokens(s.request.prompt.begin(), s.request.prompt.begin() + position));
        ASSERT_EQ(answer.logits[row * kVocabulary + static_cast<size_t>(token)], 1);
      }
      if (finish.reason == FinishReason::cancelled) continue;
      if (s.request.kind == Request::Kind::logits) {
        ASSERT_EQ(rows, s.request.prompt.size() - static_cast<size_t>(s.request.from));
      } else if (finish.reason == FinishReason::stop) {
        ASSERT_EQ(answer.tokens.back(), s.request.stop_tokens.at(0));
      } else {
        const auto room = 200 - static_cast<int32_t>(s.request.prompt.size());
        ASSERT_EQ(finish.generated_tokens, std::min(s.request.max_tokens, room));
      }
    }
    engine.clear_cache();
    Engine::Stats stats = engine.stats();
    for (int i = 0; i < 20000 && stats.used_pages > 0; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      stats = engine.stats();
    }
    EXPECT_EQ(stats.used_pages, 0);
    EXPECT_EQ(stats.active_sequences, 0);
    EXPECT_EQ(stats.queued_requests, 0);
    EXPECT_GT(controls.forwards, 100);
  }
}

}  // namespace
}  // namespace chatglm
