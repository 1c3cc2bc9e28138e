#pragma once
#include <cstdint>
#include <functional>
#include <string>

namespace chatglm {

/// The control groups of this process, a container's for instance, as Linux tells below `root`. Calls `visit` with the
/// folder of each group that has a say in `controller` ("cpu", "memory"), and the groups' version: 2, or 1
/// (https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1).
void visit_cgroups(const std::string& root, const std::string& controller,
                   const std::function<void(const std::string& folder, int version)>& visit);

/// How many bytes the control groups let this process take beyond what it has, and in all: the least of what any of
/// them leaves, where memory that holds files' contents, which the kernel gives back when it must, counts as free.
/// UINT64_MAX without a limit.
struct GrantedMemory {
  uint64_t free = UINT64_MAX;
  uint64_t limit = UINT64_MAX;
};
GrantedMemory granted_memory(const std::string& root);

/// The first line of a file; empty if there is none.
std::string first_line(const std::string& path);

}  // namespace chatglm
