#pragma once
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace chatglm::test {

/// Keeps all that an engine tells, and lets a test wait for it.
class Recorder final : public EngineListener {
 public:
  struct Answer {
    std::vector<int32_t> tokens;
    std::vector<float> logits;  // all rows
    std::vector<Outcome> scores;
    std::vector<Trace> traces;
    int admissions = 0;
    int32_t first_row = -1;
    int ends = 0;
    std::optional<Finish> finish;
    std::string error;  // its code
  };

  std::function<void(uint32_t request)> on_admission;  // set before the engine starts

  void on_progress(uint64_t bytes, uint64_t total_bytes) override {
    const std::lock_guard lock(mutex_);
    EXPECT_GE(bytes, bytes_);
    EXPECT_LE(bytes, total_bytes);
    bytes_ = bytes;
  }
  void on_ready(const BackendInfo& info) override {
    change([&] { info_ = info; });
  }
  void on_failed(const Error& error) override {
    change([&] {
      failure_ = error.code;
      ++failures_;
    });
  }
  void on_token(uint32_t request, int32_t token, const Outcome*) override {
    change([&] {
      EXPECT_EQ(answers_[request].ends, 0) << "a token after the end";
      answers_[request].tokens.push_back(token);
    });
  }
  void on_logits(uint32_t request, int32_t position, std::span<const float> logits) override {
    change([&] {
      Answer& answer = answers_[request];
      EXPECT_EQ(answer.ends, 0);
      if (answer.first_row < 0) answer.first_row = position;
      answer.logits.insert(answer.logits.end(), logits.begin(), logits.end());
    });
  }
  void on_scores(uint32_t request, int32_t position, std::span<const Outcome> scores) override {
    change([&] {
      Answer& answer = answers_[request];
      if (answer.first_row < 0) answer.first_row = position;
      answer.scores.insert(answer.scores.end(), scores.begin(), scores.end());
    });
  }
  void on_admitted(uint32_t request) override {
    change([&] { EXPECT_EQ(++answers_[request].admissions, 1); });
    if (on_admission) on_admission(request);
  }
  void on_trace(uint32_t request, const Trace& trace) override {
    change([&] { answers_[request].traces.push_back(trace); });
  }
  void on_pages(uint32_t call, std::vector<uint8_t> data, const Error* error) override {
    change([&] {
      EXPECT_FALSE(pages_.contains(call));
      pages_[call] = {std::move(data), error ? error->code : ""};
    });
  }
  void on_finish(uint32_t request, const Finish& finish) override {
    change([&] {
      ++answers_[request].ends;
      answers_[request].finish = finish;
    });
  }
  void on_error(uint32_t request, const Error& error) override {
    change([&] {
      ++answers_[request].ends;
      answers_[request].error = error.code;
    });
  }
  void on_stopped() override {
    change([&] { ++stopped_; });
  }

  template <class Condition>
  bool wait_for(const Condition& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), condition);
  }
  /// The request's answer, once it has ended.
  Answer wait(uint32_t request) {
    EXPECT_TRUE(wait_for([&] { return answers_[request].ends > 0; })) << "request " << request << " does not end";
    const std::lock_guard lock(mutex_);
    return answers_[request];
  }
  struct Pages {
    std::vector<uint8_t> data;
    std::string error;
  };
  Pages wait_for_pages(uint32_t call) {
    EXPECT_TRUE(wait_for([&] { return pages_.contains(call); })) << "call " << call << " does not end";
    const std::lock_guard lock(mutex_);
    return pages_[call];
  }
  void wait_for_tokens(uint32_t request, size_t count) {
    EXPECT_TRUE(wait_for([&] { return answers_[request].tokens.size() >= count || answers_[request].ends > 0; }));
  }
  void wait_until_ready() {
    EXPECT_TRUE(wait_for([&] { return info_ || !failure_.empty(); }));
  }
  void wait_until_stopped() {
    EXPECT_TRUE(wait_for([&] { return stopped_ > 0; }));
  }
  std::string failure() {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  int failures() {
    const std::lock_guard lock(mutex_);
    return failures_;
  }
  std::optional<BackendInfo> info() {
    const std::lock_guard lock(mutex_);
    return info_;
  }
  int stopped() {
    const std::lock_guard lock(mutex_);
    return stopped_;
  }
  std::map<uint32_t, Answer> answers() {
    const std::lock_guard lock(mutex_);
    return answers_;
  }

 private:
  template <class Body>
  void change(const Body& body) {
    {
      const std::lock_guard lock(mutex_);
      EXPECT_EQ(stopped_, 0) << "something after the last call";
      body();
    }
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint32_t, Answer> answers_;
  std::optional<BackendInfo> info_;
  std::map<uint32_t, Pages> pages_;
  std::string failure_;
  int failures_ = 0;
  uint64_t bytes_ = 0;
  int stopped_ = 0;
};

inline Request generation(std::vector<int32_t> prompt, int32_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  return request;
}
inline Request logits_of(std::vector<int32_t> prompt, int32_t from) {
  Request request;
  request.prompt = std::move(prompt);
  request.kind = Request::Kind::logits;
  request.from = from;
  return request;
}

}  // namespace chatglm::test
