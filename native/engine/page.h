#pragma once
#include <cstdint>

namespace chatglm {

/// Tokens of a page, the unit in which sequences take key/value memory. The kernels are compiled for this number.
constexpr int32_t kPageTokens = 64;

}  // namespace chatglm
