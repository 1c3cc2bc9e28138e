#include "addon/cuda_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>

#include "base/error.h"

namespace chatglm::addon {

namespace {

constexpr const char* kFile = "libchatglm-cuda.so";

struct Library {
  const cuda::CudaApi* api = nullptr;
  std::string problem;  // without an api
};

Library open_library() {
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&open_library), &self) == 0 || !self.dli_fname)
    return {nullptr, "the addon does not find out where it lies"};
  const std::filesystem::path path = std::filesystem::path(self.dli_fname).parent_path() / kFile;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return {nullptr, std::string("this installation has no CUDA backend (") + kFile + " is not beside the addon)"};
  }
  // It stays when the addon goes, as it does with a worker that alone has loaded it: CUDA cannot be taken out of a
  // process.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) {
    const char* reason = dlerror();
    return {nullptr, std::string("the CUDA backend cannot be loaded: ") + (reason ? reason : path.c_str())};
  }
  const auto get = reinterpret_cast<decltype(&chatglm_cuda_api)>(dlsym(library, "chatglm_cuda_api"));
  const cuda::CudaApi* api = get ? get(cuda::kCudaApiVersion) : nullptr;
  if (!api) return {nullptr, path.string() + " belongs to another version of node-chatglm"};
  return {api, ""};
}

}  // namespace

const cuda::CudaApi& cuda_api() {
  // Never destroyed: models of other environments may still end while the process does.
  static const Library& library = *new Library(open_library());
  if (!library.api) throw Error("ERR_DEVICE_UNAVAILABLE", "device 'cuda': " + library.problem);
  return *library.api;
}

}  // namespace chatglm::addon
