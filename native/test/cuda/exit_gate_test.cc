// The gate that closes at the end of the process. No GPU is needed.
#include "cuda/exit_gate.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

namespace chatglm::test {
namespace {

TEST(ExitGateTest, ThreadsThatPassAllTheTimeDoNotHoldUpTheClosing) {
  constexpr size_t kThreads = 4;
  cuda::Gate gate;
  std::atomic<int> inside{0};
  std::array<std::atomic<int64_t>, kThreads> passes{};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      // Each thread is inside nearly all the time, so at any moment some thread is.
      while (gate.enter()) {
        ++inside;
        ++passes[i];
        --inside;
        gate.leave();
      }
    });
  }
  for (const std::atomic<int64_t>& count : passes) {
    while (count < 1000) std::this_thread::yield();
  }
  gate.close();
  EXPECT_EQ(inside, 0);
  std::array<int64_t, kThreads> after_closing{};
  for (size_t i = 0; i < kThreads; ++i) after_closing[i] = passes[i];
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < kThreads; ++i) EXPECT_EQ(passes[i], after_closing[i]) << "nobody passes a closed gate";
}

// The one pass that a thread may still make is the one that it had begun: had asked for before the closing.
TEST(ExitGateTest, AThreadPassesAtMostOnceMoreAfterTheClosingBegan) {
  for (int round = 0; round < 50; ++round) {
    constexpr size_t kThreads = 3;
    cuda::Gate gate;
    std::atomic<size_t> started{0};
    std::atomic<bool> begun{false};  // set after the gate's own flag: by a thread that has seen enter() refuse
    std::array<std::atomic<int>, kThreads> late{};
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        ++started;
        while (gate.enter()) {
          if (begun) ++late[i];
          gate.leave();
        }
        begun = true;
      });
    }
    while (started < kThreads) std::this_thread::yield();
    gate.close();
    for (std::thread& thread : threads) thread.join();
    for (const std::atomic<int>& count : late) EXPECT_LE(count, 1);
  }
}

TEST(ExitGateTest, ClosingWaitsForThoseInside) {
  cuda::Gate gate;
  ASSERT_TRUE(gate.enter());
  std::atomic<bool> closed{false};
  std::thread other([&] {
    gate.close();
    closed = true;
  });
  while (gate.enter()) {  // until the closing has begun
    gate.leave();
    std::this_thread::yield();
  }
  EXPECT_FALSE(closed);
  gate.leave();
  other.join();
  EXPECT_TRUE(closed);
  EXPECT_FALSE(gate.enter());
}

}  // namespace
}  // namespace chatglm::test
