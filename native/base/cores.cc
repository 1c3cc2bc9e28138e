#include "base/cores.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <string>
#include <thread>

#include "base/cgroups.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace chatglm {

namespace {

#if defined(__linux__)
// The cores whose hardware threads are in the affinity mask.
int cores_of_mask() {
  // The mask must have as many bits as the kernel's, which may be more than cpu_set_t has.
  for (size_t count = CPU_SETSIZE; count <= size_t{1} << 18; count *= 2) {
    cpu_set_t* set = CPU_ALLOC(count);
    const size_t bytes = CPU_ALLOC_SIZE(count);
    if (sched_getaffinity(0, bytes, set) != 0) {
      CPU_FREE(set);
      continue;
    }
    std::set<std::string> cores;
    int threads = 0;
    for (size_t cpu = 0; cpu < count; ++cpu) {
      if (!CPU_ISSET_S(cpu, bytes, set)) continue;
      ++threads;
      std::string path = "/sys/devices/system/cpu/cpu";
      path.append(std::to_string(cpu)).append("/topology/thread_siblings_list");
      const std::string siblings = first_line(path);
      cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    CPU_FREE(set);
    return threads == 0 ? 0 : static_cast<int>(cores.size());
  }
  return 0;
}
#endif

}  // namespace

double granted_cores(const std::string& root) {
  double least = INFINITY;
  const auto limit = [&](double quota, double period) {
    if (quota > 0 && period > 0) least = std::min(least, quota / period);
  };
  visit_cgroups(root, "cpu", [&](const std::string& folder, int version) {
    double quota = 0, period = 0;
    if (version == 2) {
      if (std::sscanf(first_line(folder + "/cpu.max").c_str(), "%lf %lf", &quota, &period) == 2) limit(quota, period);
    } else if (std::sscanf(first_line(folder + "/cpu.cfs_quota_us").c_str(), "%lf", &quota) == 1 &&
               std::sscanf(first_line(folder + "/cpu.cfs_period_us").c_str(), "%lf", &period) == 1) {
      limit(quota, period);
    }
  });
  return least;
}

int physical_cores() {
  int cores = 0;
#if defined(__linux__)
  cores = cores_of_mask();
  cores = static_cast<int>(std::min<double>(cores, std::ceil(granted_cores(""))));
#endif
  if (cores <= 0) cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, cores);
}

}  // namespace chatglm
