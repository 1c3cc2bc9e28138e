#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace chatglm {

/// Bytes of the machine's memory that could be had without swapping, or 0 where the system does not tell.
uint64_t available_memory();

/// Zeroed memory straight from the system: pages cost nothing until they are written, and all of them go back at once.
/// Throws ERR_OUT_OF_MEMORY, naming `purpose`, if there is less of it in the machine.
class Buffer {
 public:
  /// huge: by the megabyte where the system has that, for what is read from end to end again and again.
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

/// Reads parts of a file into memory. What the system has cached comes without the faults of a mapping, page by page.
class FileReader {
 public:
  explicit FileReader(const std::string& path);  // throws ERR_CHECKPOINT_INVALID
  ~FileReader();
  FileReader(FileReader&& other) noexcept : path_(std::move(other.path_)), file_(std::exchange(other.file_, -1)) {}
  FileReader& operator=(FileReader&&) = delete;

  /// Throws ERR_CHECKPOINT_INVALID if the file cannot be read, or ends before.
  void read(uint64_t offset, uint64_t length, uint8_t* target) const;
  /// The system may fetch this from the disk meanwhile.
  void expect(uint64_t offset, uint64_t length) const;

 private:
  std::string path_;
  int file_ = -1;
};

/// A whole file, mapped for reading.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws ERR_CHECKPOINT_INVALID
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&&) = delete;

  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  /// The pages that lie wholly in this range are not needed again: take them out of the process.
  void forget(uint64_t offset, uint64_t length) const;

 private:
  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace chatglm
