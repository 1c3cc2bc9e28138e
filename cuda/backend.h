#pragma once
#include <atomic>
#include <memory>

#include "cuda/api.h"

namespace chatglm::cuda {

/// See CudaApi::make_backend.
std::unique_ptr<Backend> make_backend(const ModelSource& source, const CudaOptions& options, const Progress& progress,
                                      const std::atomic<bool>& abort);

}  // namespace chatglm::cuda
