#include "base/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>

#include "base/cgroups.h"
#include "base/error.h"

namespace chatglm {

namespace {

uint64_t physical_memory() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

Error damaged(const std::string& path, const char* what) {
  return Error("ERR_CHECKPOINT_INVALID", path + " " + what, {{"file", path}});
}

// The file, opened for reading, and its size.
std::pair<int, uint64_t> open_file(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // opening a FIFO would wait for its writer
  if (file < 0) throw file_error(path, "opened", errno);
  struct stat status {};
  const int error = fstat(file, &status) == 0 ? 0 : errno;
  if (error == 0 && S_ISREG(status.st_mode)) return {file, static_cast<uint64_t>(status.st_size)};
  close(file);
  if (error != 0) throw file_error(path, "read", error);
  throw damaged(path, "is not a regular file");
}

}  // namespace

uint64_t available_memory() {
  uint64_t kilobytes = 0;
  if (FILE* file = std::fopen("/proc/meminfo", "r")) {
    char line[128];
    while (std::fgets(line, sizeof line, file) && std::sscanf(line, "MemAvailable: %" SCNu64, &kilobytes) != 1) {
    }
    std::fclose(file);
  }
  return std::min(kilobytes << 10, granted_memory("").free);
}

Error out_of_memory(const std::string& need, double wanted_bytes) {
  const auto megabytes = [](double bytes) { return std::to_string(static_cast<uint64_t>(bytes / (1 << 20))) + " MiB"; };
  const auto free_bytes = static_cast<double>(available_memory());
  return Error("ERR_OUT_OF_MEMORY",
               need + " " + megabytes(wanted_bytes) + "; " +
                   (granted_memory("").limit < physical_memory() ? "the container" : "the machine") + " has " +
                   megabytes(free_bytes) + " free",
               {{"wantedBytes", wanted_bytes}, {"freeBytes", free_bytes}});
}

Buffer::Buffer(size_t bytes, const char* purpose, [[maybe_unused]] Pages pages) : size_(bytes) {
  if (bytes == 0) return;
  // The system lends more memory than it has and kills the process later, so a buffer that can never fit is refused
  // here.
  void* memory = bytes > std::min(physical_memory(), granted_memory("").limit)
                     ? MAP_FAILED
                     : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw out_of_memory(std::string(purpose) + " needs", static_cast<double>(bytes));
  data_ = static_cast<uint8_t*>(memory);
#if defined(MADV_HUGEPAGE)
  if (pages == Pages::huge) madvise(memory, bytes, MADV_HUGEPAGE);  // the system may refuse
#endif
}

Buffer::~Buffer() {
  if (data_) munmap(data_, size_);
}

FileReader::FileReader(const std::string& path) : path_(path), file_(open_file(path).first) {}

FileReader::~FileReader() {
  if (file_ >= 0) close(file_);
}

void FileReader::read(uint64_t offset, uint64_t length, uint8_t* target) const {
  while (length > 0) {
    const ssize_t count = pread(file_, target, length, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw file_error(path_, "read", errno);
    if (count == 0) throw damaged(path_, "was cut while it was read");
    offset += static_cast<uint64_t>(count);
    length -= static_cast<uint64_t>(count);
    target += count;
  }
}

void FileReader::expect([[maybe_unused]] uint64_t offset, [[maybe_unused]] uint64_t length) const {
#if defined(POSIX_FADV_WILLNEED)
  posix_fadvise(file_, static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_WILLNEED);
#endif
}

MappedFile::MappedFile(const std::string& path) {
  const auto [file, size] = open_file(path);
  size_ = size;
  void* memory = size_ ? mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0) : nullptr;
  const int error = errno;
  close(file);
  if (memory == MAP_FAILED && error == ENOMEM)
    throw out_of_memory(path + ": the mapping needs", static_cast<double>(size_));
  if (memory == MAP_FAILED) throw file_error(path, "mapped into memory", error);
  data_ = static_cast<uint8_t*>(memory);
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, size_);
}

void MappedFile::forget(uint64_t offset, uint64_t length) const {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t begin = (offset + page - 1) / page * page, end = (offset + length) / page * page;
  if (end > begin) madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

}  // namespace chatglm
