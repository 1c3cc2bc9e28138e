#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "base/error.h"

namespace chatglm {

/// Bytes of the machine's memory that a process can get without swapping, or 0 where the system does not tell.
uint64_t available_memory();

/// ERR_OUT_OF_MEMORY with wantedBytes and freeBytes, and a message that begins with `need`: "the weights need".
Error out_of_memory(const std::string& need, double wanted_bytes);

/// Zeroed memory straight from the system: a page costs nothing until it is written, and the destructor gives all pages
/// back. Throws ERR_OUT_OF_MEMORY, naming `purpose`, if the machine has less memory or the process may have no more.
class Buffer {
 public:
  /// huge: pages of megabytes, where the system has them, for memory that is read from end to end again and again.
  enum class Pages { small, huge };

  Buffer() = default;
  Buffer(size_t bytes, const char* purpose, Pages pages = Pages::small);
  ~Buffer();
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

/// Reads parts of a file into memory. If the file is cached, a read is faster than a mapping, which faults on each
/// page.
class FileReader {
 public:
  /// Throws what file_error() tells, and ERR_CHECKPOINT_INVALID if this is no regular file.
  explicit FileReader(const std::string& path);
  ~FileReader();
  FileReader(FileReader&& other) noexcept : path_(std::move(other.path_)), file_(std::exchange(other.file_, -1)) {}
  FileReader& operator=(FileReader&&) = delete;

  /// Throws what file_error() tells, and ERR_CHECKPOINT_INVALID if the file ends before.
  void read(uint64_t offset, uint64_t length, uint8_t* target) const;
  /// Asks the system to fetch a range from the disk, without waiting for it.
  void expect(uint64_t offset, uint64_t length) const;

 private:
  std::string path_;
  int file_ = -1;
};

/// A whole file, mapped for reading.
class MappedFile {
 public:
  /// Throws what file_error() tells, and ERR_CHECKPOINT_INVALID if this is no regular file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&&) = delete;

  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  /// Takes the pages that lie wholly in a range out of the process. They return if they are read again.
  void forget(uint64_t offset, uint64_t length) const;

 private:
  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace chatglm
