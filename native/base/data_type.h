#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace chatglm {

/// How a tensor's numbers are stored. Block formats are GGUF's, little endian
/// (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h); int8 and int4 are THUDM's rows,
/// whose scales, one a row, are a tensor of their own.
enum class DataType : uint8_t { f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k, int8, int4 };

/// The smallest run of numbers that can be decoded by itself.
struct BlockShape {
  int64_t elements;
  int64_t bytes;
};

BlockShape block_shape(DataType type);
const char* name_of(DataType type);
std::optional<DataType> data_type_by_name(std::string_view name);

/// Types that the kernels compute with.
inline bool is_compute_type(DataType type) { return type <= DataType::q4_0; }

inline int64_t row_bytes(DataType type, int64_t columns) {
  const BlockShape block = block_shape(type);
  return columns / block.elements * block.bytes;
}

// f16 scale, then 32 codes.
struct BlockQ8_0 {
  uint8_t scale[2];
  int8_t codes[32];  // weight = scale * code
};
static_assert(sizeof(BlockQ8_0) == 34);

// f16 scale, then 32 four-bit codes: element j in the low half of byte j, element j + 16 in its high half.
struct BlockQ4_0 {
  uint8_t scale[2];
  uint8_t codes[16];  // weight = scale * (code - 8)
};
static_assert(sizeof(BlockQ4_0) == 18);

constexpr int64_t kBlockElements = 32;  // of q8_0 and q4_0

}  // namespace chatglm
