#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/memory.h"

// What the measurements share: the ceilings that they are compared with, and where they are written.
namespace chatglm::benchmark {

/// What the GPU can do at most. A time is compared with the larger of bytes / bytes_per_second and
/// operations / operations_per_second.
struct Ceilings {
  double bytes_per_second = 0;       // of a plain read, measured in the same run
  double operations_per_second = 0;  // dense f16 matrix products, as given
};

struct Measurement {
  std::string name;
  int64_t tokens = 0;  // computed by one call
  int64_t depth = 0;   // tokens that were there before
  double seconds = 0;  // of one call
  double bytes = 0;    // that one call has to read and write at least
  double operations = 0;
};

/// Settings of a run.
struct Settings {
  int32_t device = 0;
  std::vector<std::string> types;  // of weights
  int32_t layers = 28;
  bool kv_q8_0 = false;
  int32_t steps = 40;  // of which the median is taken
  std::string filter;  // only kernels whose names contain it
};

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

using cuda::check;

/// Prints lines as they come; measurements go to a file too, with all their numbers, separated by tabs.
class Report {
 public:
  Report(const std::string& path, double operations_per_second) : ceilings{0, operations_per_second} {
    if (path.empty()) return;
    file_ = std::fopen(path.c_str(), "w");
    if (!file_) throw std::runtime_error("cannot write " + path);
    std::fprintf(file_, "name\ttokens\tdepth\tmicroseconds\ttokens/s\tGB/s\tTFLOP/s\tshare of the bound\tbound\n");
  }
  ~Report() {
    if (file_) std::fclose(file_);
  }
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  double memory_bound(const Measurement& m) const { return m.bytes / ceilings.bytes_per_second; }
  double compute_bound(const Measurement& m) const { return m.operations / ceilings.operations_per_second; }
  /// The least time that the ceilings allow, as a share of the measured one.
  double share(const Measurement& m) const { return std::max(memory_bound(m), compute_bound(m)) / m.seconds; }
  /// 'm': memory bounds it, 'c': arithmetic does.
  char bound(const Measurement& m) const { return memory_bound(m) >= compute_bound(m) ? 'm' : 'c'; }

  void add(const Measurement& m) {
    if (!file_) return;
    std::fprintf(file_, "%s\t%lld\t%lld\t%.3f\t%.1f\t%.1f\t%.2f\t%.4f\t%c\n", m.name.c_str(),
                 static_cast<long long>(m.tokens), static_cast<long long>(m.depth), m.seconds * 1e6,
                 static_cast<double>(m.tokens) / m.seconds, m.bytes / m.seconds / 1e9, m.operations / m.seconds / 1e12,
                 share(m), bound(m));
    std::fflush(file_);
  }
  __attribute__((format(printf, 2, 3))) void print(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vprintf(format, arguments);
    va_end(arguments);
    std::fflush(stdout);
  }
  void fail(const std::string& what, const std::string& why) {
    print("%s: FAILED: %s\n", what.c_str(), why.c_str());
    failed = true;
  }
  /// Measures; what throws is written down and the rest goes on.
  void attempt(const std::string& what, const std::function<void()>& body) {
    try {
      body();
    } catch (const std::exception& error) {
      fail(what, error.what());
    }
  }

  Ceilings ceilings;
  bool failed = false;

 private:
  std::FILE* file_ = nullptr;
};

void measure_kernels(const Settings& settings, Report& report);
void measure_graphs(const Settings& settings, Report& report);
void measure_memory(const Settings& settings, Report& report);
void measure_steps(const Settings& settings, Report& report);

}  // namespace chatglm::benchmark
