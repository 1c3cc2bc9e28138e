#include "runtime/thread_pool.h"

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <vector>

namespace chatglm {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {
 protected:
  const std::atomic<bool> never_{false};
};

TEST_P(ThreadPoolTest, ManyTinyJobsRunEachTaskOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  std::vector<int> counts(37, 0);  // plain: each task writes its own, and run() makes that visible
  for (int job = 0; job < 2000; ++job) {
    const int tasks = job % 38;
    pool.run(tasks, never_, [&](int64_t i) { ++counts[static_cast<size_t>(i)]; });
  }
  for (int i = 0; i < 37; ++i) {
    int expected = 0;
    for (int job = 0; job < 2000; ++job) expected += job % 38 > i;
    EXPECT_EQ(counts[static_cast<size_t>(i)], expected) << i;
  }
}

TEST_P(ThreadPoolTest, AJobSeesTheResultsOfTheOneBefore) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> a(64, 1), b(64, 0);
  for (int job = 0; job < 300; ++job) {
    pool.run(64, never_, [&](int64_t i) {
      b[static_cast<size_t>(i)] = a[static_cast<size_t>(63 - i)] + a[static_cast<size_t>(i)];
    });
    pool.run(64, never_,
             [&](int64_t i) { a[static_cast<size_t>(i)] = b[static_cast<size_t>((i + 7) % 64)] % 1000003; });
  }
  // Symmetric data stay symmetric: all are 2^300 mod 1000003.
  int64_t expected = 1;
  for (int job = 0; job < 300; ++job) expected = expected * 2 % 1000003;
  for (const int64_t value : a) EXPECT_EQ(value, expected);
}

TEST_P(ThreadPoolTest, AbortLeavesTasksOut) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 50; ++round) {
    std::atomic<bool> abort{false};
    std::atomic<int> begun{0};
    pool.run(100000, abort, [&](int64_t) {
      if (++begun == 10) abort = true;
    });
    EXPECT_GE(begun, 10);
    EXPECT_LT(begun, 100000);
  }
  std::atomic<bool> aborted{true};
  pool.run(5, aborted, [&](int64_t) { FAIL(); });
  pool.run(1, aborted, [&](int64_t) { FAIL(); });
  int ran = 0;
  pool.run(1, never_, [&](int64_t) { ++ran; });
  EXPECT_EQ(ran, 1);
}

TEST_P(ThreadPoolTest, DestructionRightAfterWorkOrWithoutAny) {
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> ran{0};
    {
      ThreadPool pool(GetParam());
      if (round % 3) pool.run(round, never_, [&](int64_t) { ++ran; });
    }
    EXPECT_EQ(ran, round % 3 ? round : 0);
  }
}

TEST_P(ThreadPoolTest, AnExceptionReachesTheCaller) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.run(100, never_,
                          [&](int64_t i) {
                            if (i % 30 == 7) throw std::runtime_error("task");
                          }),
                 std::runtime_error);
    std::atomic<int> ran{0};
    pool.run(100, never_, [&](int64_t) { ++ran; });
    EXPECT_EQ(ran, 100);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

}  // namespace
}  // namespace chatglm
