#pragma once
#include <string>

namespace chatglm {

/// Cores, not hardware threads, that this process may run on: the cores of its affinity mask, but no more than the time
/// of its control groups (a container's, for instance) is worth. At least 1.
int physical_cores();

/// How many cores' time the control groups of this process grant it, as Linux tells below `root`; infinite without a
/// limit (https://docs.kernel.org/admin-guide/cgroup-v2.html, cpu.max; version 1: cpu.cfs_quota_us,
/// cpu.cfs_period_us).
double granted_cores(const std::string& root);

}  // namespace chatglm
