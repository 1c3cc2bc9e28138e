#pragma once
#include <cstdint>

namespace chatglm::cuda {

/// See CudaApi::measure_bandwidth.
double measure_bandwidth(int32_t device, uint64_t bytes);

}  // namespace chatglm::cuda
