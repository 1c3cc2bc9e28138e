// What the system refuses: memory, files and threads.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <new>
#include <system_error>

#include "base/cgroups.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/thread_pool.h"

namespace chatglm {
namespace {

TEST(Memory, RefusesWhatTheMachineDoesNotHave) {
  EXPECT_GT(available_memory(), 0u);
  for (const size_t bytes : {size_t{1} << 60, SIZE_MAX}) {
    try {
      const Buffer buffer(bytes, "the test");
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code, "ERR_OUT_OF_MEMORY");
      EXPECT_EQ(error.details.size(), 2u);
    }
  }
  Buffer a(1 << 20, "the test");
  for (size_t i = 0; i < a.size(); i += 4096) EXPECT_EQ(a.data()[i], 0);
  a.data()[7] = 9;
  Buffer b = std::move(a);
  EXPECT_EQ(a.data(), nullptr);
  EXPECT_EQ(b.data()[7], 9);
  const Buffer none(0, "nothing");
  EXPECT_EQ(none.size(), 0u);
}

TEST(Memory, ControlGroupsLimitIt) {
  namespace fs = std::filesystem;
  const fs::path root = fs::path(testing::TempDir()) / ("chatglm-groups-" + std::to_string(getpid()));
  const auto write = [&](const std::string& path, const std::string& text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  const auto granted = [&] { return granted_memory(root.string()); };
  EXPECT_EQ(granted().limit, UINT64_MAX);  // no groups at all
  write("proc/self/cgroup", "0::/outer/inner\n");
  write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
  EXPECT_EQ(granted().limit, UINT64_MAX);
  EXPECT_EQ(granted().free, UINT64_MAX);
  write("sys/fs/cgroup/outer/memory.max", "1000000\n");
  EXPECT_EQ(granted().free, 1000000u);
  write("sys/fs/cgroup/outer/memory.current", "700000\n");
  EXPECT_EQ(granted().free, 300000u);
  // What the kernel gives back when it must.
  write("sys/fs/cgroup/outer/memory.stat", "anon 100\ninactive_file 200000\nactive_file 50000\n");
  EXPECT_EQ(granted().free, 500000u);
  EXPECT_EQ(granted().limit, 1000000u);
  write("sys/fs/cgroup/outer/inner/memory.max", "400000\n");  // the inner group is narrower
  EXPECT_EQ(granted().limit, 400000u);
  write("sys/fs/cgroup/memory.max", "300000\n");  // a container's own root
  write("sys/fs/cgroup/memory.current", "400000\n");
  EXPECT_EQ(granted().limit, 300000u);
  EXPECT_EQ(granted().free, 0u);

  write("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a/b\nnonsense\n");
  EXPECT_EQ(granted().limit, UINT64_MAX);
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");  // none
  write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "800000\n");
  write("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "500000\n");
  write("sys/fs/cgroup/memory/a/memory.stat", "inactive_file 1\ntotal_inactive_file 100000\n");
  EXPECT_EQ(granted().limit, 800000u);
  EXPECT_EQ(granted().free, 400000u);
  // Systems with both versions have the controller in the first only.
  write("proc/self/cgroup", "4:memory:/a/b\n0::/outer\n");
  write("sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(granted().limit, 800000u);
  fs::remove_all(root);
}

// A sanitizer ends the process where the sanitizer itself gets no memory, and takes objects for broken where it gets no
// pipe to look at them through.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

/// Lowers a limit of the process as long as it lives.
class Limit {
 public:
  Limit(decltype(RLIMIT_AS) resource, rlim_t value) : resource_(resource) {
    getrlimit(resource_, &before_);
    const rlimit limit = {value, before_.rlim_max};
    EXPECT_EQ(setrlimit(resource_, &limit), 0);
  }
  ~Limit() { setrlimit(resource_, &before_); }

 private:
  decltype(RLIMIT_AS) resource_;
  rlimit before_{};
};

/// Addresses that the process uses, in bytes.
rlim_t used_addresses() {
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

std::string code_of(const std::function<void()>& body) {
  try {
    body();
    return "none";
  } catch (...) {
    return current_error().code;
  }
}

class SystemTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = (std::filesystem::temp_directory_path() / "chatglm-system-XXXXXX").string();
    ASSERT_NE(mkdtemp(path.data()), nullptr);
    folder_ = path;
    chmod(path.c_str(), 0755);
    std::ofstream(file_ = (folder_ / "file").string()) << "content";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  /// What both ways of reading a file say.
  void expect_code(const std::string& path, const std::string& code) {
    EXPECT_EQ(code_of([&] { const FileReader reader(path); }), code) << path;
    EXPECT_EQ(code_of([&] { const MappedFile mapped(path); }), code) << path;
  }

  std::filesystem::path folder_;
  std::string file_;
};

TEST_F(SystemTest, FilesThatAreNotThereAndFoldersAreTold) {
  expect_code(file_, "none");
  expect_code(folder_ / "nothing", "ERR_CHECKPOINT_NOT_FOUND");
  expect_code(file_ + "/nothing", "ERR_CHECKPOINT_NOT_FOUND");
  expect_code(folder_, "ERR_CHECKPOINT_INVALID");
  try {
    const FileReader reader(folder_ / "nothing");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), (folder_ / "nothing").string() + ": cannot be opened: No such file or directory");
    ASSERT_EQ(error.details.size(), 1u);
    EXPECT_EQ(std::get<std::string>(error.details[0].second), (folder_ / "nothing").string());
  }
  const FileReader reader(file_);
  uint8_t bytes[8];
  EXPECT_EQ(code_of([&] { reader.read(0, 8, bytes); }), "ERR_CHECKPOINT_INVALID");  // it has 7
}

TEST_F(SystemTest, AFileThatMayNotBeReadIsTold) {
  ASSERT_EQ(chmod(file_.c_str(), 0), 0);
  const uid_t user = geteuid();
  if (user == 0) ASSERT_EQ(seteuid(65534), 0);  // root may read everything
  expect_code(file_, "ERR_PERMISSION_DENIED");
  if (user == 0) ASSERT_EQ(seteuid(0), 0);
}

TEST_F(SystemTest, TooManyOpenFilesAreTold) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer needs files of its own";
  const Limit limit(RLIMIT_NOFILE, 32);
  std::vector<FileReader> readers;
  EXPECT_EQ(code_of([&] {
              for (int i = 0; i < 32; ++i) readers.emplace_back(file_);
            }),
            "ERR_TOO_MANY_FILES");
  expect_code(file_, "ERR_TOO_MANY_FILES");
  readers.clear();
  expect_code(file_, "none");
}

TEST_F(SystemTest, MemoryThatTheProcessMayNotHaveIsTold) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer needs memory of its own";
  std::filesystem::resize_file(file_, uint64_t{1} << 32);
  const Limit limit(RLIMIT_AS, used_addresses() + (64 << 20));
  EXPECT_EQ(code_of([&] { const MappedFile mapped(file_); }), "ERR_OUT_OF_MEMORY");
  EXPECT_EQ(code_of([] { const Buffer buffer(128 << 20, "the test"); }), "ERR_OUT_OF_MEMORY");
  EXPECT_EQ(code_of([] { const std::vector<char> chars(128 << 20); }), "ERR_OUT_OF_MEMORY");
  EXPECT_EQ(code_of([] { const Buffer buffer(1 << 20, "the test"); }), "none");
}

TEST_F(SystemTest, ThreadsThatTheSystemDoesNotGiveAreTold) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer needs memory of its own";
  const std::atomic<bool> never{false};
  {
    const Limit limit(RLIMIT_AS, used_addresses() + (64 << 20));  // stacks of some threads
    EXPECT_EQ(code_of([] { const ThreadPool pool(256); }), "ERR_THREAD_UNAVAILABLE");
  }
  ThreadPool pool(4);
  std::atomic<int64_t> sum{0};
  pool.run(100, never, [&](int64_t i) { sum += i; });
  EXPECT_EQ(sum, 4950);
}

TEST(Errors, EveryExceptionHasACode) {
  EXPECT_EQ(code_of([] { throw Error("ERR_TEST", "it"); }), "ERR_TEST");
  EXPECT_EQ(code_of([] { throw std::bad_alloc(); }), "ERR_OUT_OF_MEMORY");
  EXPECT_EQ(code_of([] { throw std::system_error(EAGAIN, std::generic_category()); }), "ERR_THREAD_UNAVAILABLE");
  EXPECT_EQ(code_of([] { throw std::system_error(EAGAIN, std::system_category()); }), "ERR_THREAD_UNAVAILABLE");
  EXPECT_EQ(code_of([] { throw std::system_error(EDEADLK, std::generic_category()); }), "ERR_INTERNAL");
  EXPECT_EQ(code_of([] { throw std::logic_error("it"); }), "ERR_INTERNAL");
  EXPECT_EQ(code_of([] { throw 1; }), "ERR_INTERNAL");
  EXPECT_EQ(file_error("a", "read", EIO).code, "ERR_IO");
  EXPECT_STREQ(file_error("a", "read", EIO).what(), "a: cannot be read: Input/output error");
}

}  // namespace
}  // namespace chatglm
