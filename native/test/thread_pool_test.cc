#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "base/cores.h"

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

TEST_P(ThreadPoolTest, RangesCoverAllUnitsOnce) {
  ThreadPool pool(GetParam());
  for (const int64_t granularity : {1, 3, 16}) {
    for (const double nanoseconds : {0.0, 0.001, 50.0, 1e6}) {
      for (const int64_t units : {1, 2, 15, 16, 17, 100, 1000}) {
        ThreadPool::Cost cost{nanoseconds};
        std::vector<std::atomic<int>> counts(static_cast<size_t>(units));
        std::atomic<int> ranges{0};
        pool.run_ranges(units, granularity, cost, never_, [&](int64_t begin, int64_t end) {
          ++ranges;
          EXPECT_LT(begin, end);
          EXPECT_EQ(begin % granularity, 0);
          EXPECT_TRUE(end % granularity == 0 || end == units);
          for (int64_t i = begin; i < end; ++i) ++counts[static_cast<size_t>(i)];
        });
        for (const auto& count : counts) ASSERT_EQ(count, 1);
        EXPECT_GT(cost.nanoseconds, 0);
        // What takes less than a handover stays on one thread; what takes long is divided as far as it can be.
        if (nanoseconds == 0.001 || GetParam() == 1) EXPECT_EQ(ranges, 1);
        if (nanoseconds == 1e6 && GetParam() > 1 && units == 1000) EXPECT_GT(ranges, GetParam());
      }
    }
  }
  ThreadPool::Cost cost;
  pool.run_ranges(0, 1, cost, never_, [](int64_t, int64_t) { FAIL(); });
}

// By as many threads as there are cores, of two pools at the same time, and each gets on.
TEST_P(ThreadPoolTest, PoolsThatTakeTurnsDoNotCrowdTheCores) {
  const int cores = physical_cores();
  std::atomic<int> running{0}, most{0};
  std::atomic<bool> over{false};
  std::atomic<int64_t> jobs[2] = {0, 0};
  const auto compute = [&](int index) {
    ThreadPool pool(GetParam());
    while (!over) {
      const ThreadPool::Turn turn(pool);
      for (int job = 0; job < 40 && !over; ++job) {
        pool.run(4 * GetParam(), never_, [&](int64_t) {
          const int now = ++running;
          for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
          }
          const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
          while (std::chrono::steady_clock::now() < end) {
          }
          --running;
        });
        ++jobs[index];
      }
    }
  };
  std::thread first(compute, 0), second(compute, 1);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while ((jobs[0] < 60 || jobs[1] < 60) && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  over = true;
  first.join();
  second.join();
  EXPECT_GE(jobs[0], 60);
  EXPECT_GE(jobs[1], 60);
  // A pool with more threads than there are cores has the machine to itself.
  EXPECT_LE(most, std::max(cores, GetParam()));
}

TEST(Cores, AreThoseOfTheAffinityMask) {
  const int all = physical_cores();
  EXPECT_GE(all, 1);
  EXPECT_LE(all, static_cast<int>(std::thread::hardware_concurrency()));
#if defined(__linux__)
  std::thread([] {
    cpu_set_t before, one;
    ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &before)) continue;
      CPU_SET(cpu, &one);
      break;
    }
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);  // of this thread
    EXPECT_EQ(physical_cores(), 1);
  }).join();
#endif
}

TEST(Cores, ControlGroupsLimitThem) {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / ("chatglm-cores-" + std::to_string(std::random_device()()));
  const auto write = [&](const std::string& path, const std::string& text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  EXPECT_EQ(granted_cores(root.string()), INFINITY);  // no groups at all
  write("proc/self/cgroup", "0::/outer/inner\n");
  EXPECT_EQ(granted_cores(root.string()), INFINITY);
  write("sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n");
  EXPECT_EQ(granted_cores(root.string()), INFINITY);
  write("sys/fs/cgroup/outer/cpu.max", "250000 100000\n");
  EXPECT_EQ(granted_cores(root.string()), 2.5);
  write("sys/fs/cgroup/cpu.max", "50000 100000\n");  // a container's own root
  EXPECT_EQ(granted_cores(root.string()), 0.5);
  write("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a\nnonsense\n");
  write("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(granted_cores(root.string()), INFINITY);
  write("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "400000\n");
  EXPECT_EQ(granted_cores(root.string()), 4);
  fs::remove_all(root);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

}  // namespace
}  // namespace chatglm
