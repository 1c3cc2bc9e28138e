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

/// A block of memory that ends with its owner; `kFree` is the function that takes it back.
template <cudaError_t (*kFree)(void*)>
class OwnedMemory {
 public:
  OwnedMemory() = default;
  ~OwnedMemory() { kFree(data_); }
  OwnedMemory(OwnedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  OwnedMemory& operator=(OwnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  size_t size() const { return size_; }

 protected:
  explicit OwnedMemory(size_t bytes) : size_(bytes) {}

  void* data_ = nullptr;
  size_t size_ = 0;
};

/// Zeroed memory of a GPU. Throws ERR_OUT_OF_MEMORY with wantedBytes and freeBytes.
class DeviceMemory : public OwnedMemory<cudaFree> {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes) : OwnedMemory(bytes) {
    if (bytes == 0) return;
    if (cudaMalloc(&data_, bytes) != cudaSuccess) {
      data_ = nullptr;
      cudaGetLastError();
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      throw Error("ERR_OUT_OF_MEMORY",
                  "the GPU has " + std::to_string(free) + " bytes of memory free, and " + std::to_string(bytes) +
                      " are wanted in one piece",
                  {{"wantedBytes", static_cast<double>(bytes)}, {"freeBytes", static_cast<double>(free)}});
    }
    check(cudaMemset(data_, 0, bytes), "clearing memory");
    check(cudaStreamSynchronize(nullptr), "clearing memory");  // other streams do not wait for this one
  }
};

/// Memory of the machine that the GPU can read and write, at the same address.
class PinnedMemory : public OwnedMemory<cudaFreeHost> {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t bytes) : OwnedMemory(bytes) {
    check(cudaHostAlloc(&data_, bytes, cudaHostAllocMapped), "pinning memory of the machine");
  }
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
  /// What comes to the stream from now on waits for the event.
  void make_wait(cudaStream_t stream) { check(cudaStreamWaitEvent(stream, event_), "ordering two streams"); }
  void wait() { check(cudaEventSynchronize(event_), "running the model"); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace chatglm::cuda
