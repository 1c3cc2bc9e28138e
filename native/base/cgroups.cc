#include "base/cgroups.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <optional>

namespace chatglm {

namespace {

// A number of bytes; nothing for "max", or where the file is missing.
std::optional<uint64_t> bytes_in(const std::string& path) {
  uint64_t bytes = 0;
  if (std::sscanf(first_line(path).c_str(), "%" SCNu64, &bytes) != 1) return std::nullopt;
  return bytes;
}

uint64_t field_of(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  uint64_t value = 0;
  for (std::string word; file >> word >> value;) {
    if (word == name) return value;
  }
  return 0;
}

}  // namespace

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

void visit_cgroups(const std::string& root, const std::string& controller,
                   const std::function<void(const std::string& folder, int version)>& visit) {
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    // hierarchy:controllers:path; version 2 has no controllers.
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = std::string(",").append(line, first + 1, second - first - 1).append(",");
    const bool unified = controllers == ",,";
    if (!unified && controllers.find("," + controller + ",") == std::string::npos) continue;
    std::string path = line.substr(second + 1);
    // A container sees its own group at the root, whatever path /proc gives; elsewhere the groups above limit it too.
    for (;;) {
      visit(root + "/sys/fs/cgroup" + (unified ? "" : "/" + controller) + path, unified ? 2 : 1);
      if (path.empty()) break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
}

GrantedMemory granted_memory(const std::string& root) {
  GrantedMemory granted;
  visit_cgroups(root, "memory", [&](const std::string& folder, int version) {
    const std::optional<uint64_t> limit = bytes_in(folder + (version == 2 ? "/memory.max" : "/memory.limit_in_bytes"));
    const std::optional<uint64_t> used =
        bytes_in(folder + (version == 2 ? "/memory.current" : "/memory.usage_in_bytes"));
    // Version 1 writes a number near 2^63 where there is no limit.
    if (!limit || *limit >= uint64_t{1} << 60) return;
    const std::string stat = folder + "/memory.stat";
    const uint64_t files = field_of(stat, version == 2 ? "inactive_file" : "total_inactive_file");
    const uint64_t taken = used.value_or(0) - std::min(files, used.value_or(0));
    granted.limit = std::min(granted.limit, *limit);
    granted.free = std::min(granted.free, *limit - std::min(taken, *limit));
  });
  return granted;
}

}  // namespace chatglm
