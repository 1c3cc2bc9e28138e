#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "base/error.h"

namespace chatglm::cuda {

/// Throws ERR_INTERNAL naming `what` if a call failed.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // told here, once
  throw Error("ERR_INTERNAL", std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

/// Zeroed memory of a GPU. Throws ERR_OUT_OF_MEMORY with wantedBytes and freeBytes.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    if (const cudaError_t status = cudaMalloc(&data_, bytes); status != cudaSuccess) {
      cudaGetLastError();
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      throw Error("ERR_OUT_OF_MEMORY",
                  "the GPU has " + std::to_string(free) + " bytes of memory free, and " + std::to_string(bytes) +
                      " are wanted in one piece",
                  {{"wantedBytes", static_cast<double>(bytes)}, {"freeBytes", static_cast<double>(free)}});
    }
    cudaError_t status = cudaMemset(data_, 0, bytes);
    if (status == cudaSuccess) status = cudaStreamSynchronize(nullptr);  // other streams do not wait for that one
    if (status != cudaSuccess) {
      cudaFree(data_);
      check(status, "clearing memory");
    }
  }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

/// Memory of the machine that the GPU can read and write, at the same address.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t bytes) : size_(bytes) {
    check(cudaHostAlloc(&data_, bytes, cudaHostAllocMapped), "pinning memory of the machine");
  }
  ~PinnedMemory() { cudaFreeHost(data_); }
  PinnedMemory(PinnedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

/// Hands out the pieces of one block of memory; without the block, it only counts what they take.
class Arena {
 public:
  Arena() = default;
  explicit Arena(uint8_t* data) : data_(data) {}

  template <class T>
  T* take(size_t count) {
    const size_t begin = used_;
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return data_ ? reinterpret_cast<T*>(data_ + begin) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 1024;  // of the tensor cores' swizzled tiles

  uint8_t* data_ = nullptr;
  size_t used_ = 0;
};

/// A stream or an event that ends with its owner.
class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  /// blocking: who waits for it sleeps, instead of asking again and again.
  explicit Event(bool blocking) {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | (blocking ? cudaEventBlockingSync : 0)),
          "creating an event");
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "recording an event"); }
  void wait() { check(cudaEventSynchronize(event_), "running the model"); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace chatglm::cuda
