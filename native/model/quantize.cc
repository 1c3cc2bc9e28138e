#include "model/quantize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"

namespace chatglm {

namespace {

struct TypeFacts {
  const char* name;
  BlockShape block;
};

// Indexed by DataType. An int4 "block" is a byte of two codes.
constexpr std::array<TypeFacts, 13> kTypes = {{{"f32", {1, 4}},
                                               {"f16", {1, 2}},
                                               {"bf16", {1, 2}},
                                               {"q8_0", {32, 34}},
                                               {"q4_0", {32, 18}},
                                               {"q4_1", {32, 20}},
                                               {"q5_0", {32, 22}},
                                               {"q5_1", {32, 24}},
                                               {"q4_k", {256, 144}},
                                               {"q5_k", {256, 176}},
                                               {"q6_k", {256, 210}},
                                               {"int8", {1, 1}},
                                               {"int4", {2, 1}}}};

float half_at(const uint8_t* p) { return half_to_float(load_u16(p)); }

// The sub-block scales and minima of q4_K and q5_K: eight pairs of 6-bit numbers in 12 bytes. The first four pairs lie
// in the low six bits of bytes 0-3 and 4-7; the others have their low four bits in bytes 8-11 and their high two bits
// on top of the first.
void scale_and_min(int index, const uint8_t* packed, int& scale, int& min) {
  if (index < 4) {
    scale = packed[index] & 63;
    min = packed[index + 4] & 63;
  } else {
    scale = (packed[index + 4] & 15) | (packed[index - 4] >> 6) << 4;
    min = (packed[index + 4] >> 4) | (packed[index] >> 6) << 4;
  }
}

void decode_q4_k(const uint8_t* block, float* out) {
  const float d = half_at(block), dmin = half_at(block + 2);
  const uint8_t *scales = block + 4, *codes = block + 16;
  for (int pair = 0; pair < 4; ++pair, codes += 32) {
    for (int part = 0; part < 2; ++part) {
      int scale, min;
      scale_and_min(2 * pair + part, scales, scale, min);
      for (int j = 0; j < 32; ++j) *out++ = d * scale * (codes[j] >> (4 * part) & 15) - dmin * min;
    }
  }
}

void decode_q5_k(const uint8_t* block, float* out) {
  const float d = half_at(block), dmin = half_at(block + 2);
  const uint8_t *scales = block + 4, *high = block + 16, *codes = block + 48;
  for (int pair = 0; pair < 4; ++pair, codes += 32) {
    for (int part = 0; part < 2; ++part) {
      const int sub = 2 * pair + part;
      int scale, min;
      scale_and_min(sub, scales, scale, min);
      for (int j = 0; j < 32; ++j) {
        const int code = (codes[j] >> (4 * part) & 15) | (high[j] >> sub & 1) << 4;
        *out++ = d * scale * code - dmin * min;
      }
    }
  }
}

void decode_q6_k(const uint8_t* block, float* out) {
  const uint8_t *low = block, *high = block + 128;
  const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192);
  const float d = half_at(block + 208);
  for (int half = 0; half < 2; ++half, low += 64, high += 32, scales += 8) {
    for (int part = 0; part < 4; ++part) {  // 32 elements each: low halves of 64 bytes, then their high halves
      for (int j = 0; j < 32; ++j) {
        const int nibble = low[(part & 1) * 32 + j] >> (part & 2 ? 4 : 0) & 15;
        const int code = (nibble | (high[j] >> (2 * part) & 3) << 4) - 32;
        *out++ = d * scales[2 * part + j / 16] * code;
      }
    }
  }
}

// The four formats of 32 elements: an f16 scale; q4_1 and q5_1 have an f16 offset; q5_0 and q5_1 a fifth bit of each
// code.
void decode_block32(DataType type, const uint8_t* block, float* out) {
  const float d = half_at(block);
  const bool offset = type == DataType::q4_1 || type == DataType::q5_1;
  const bool fifth = type == DataType::q5_0 || type == DataType::q5_1;
  const float base = offset ? half_at(block + 2) : 0.0f;
  const uint8_t* codes = block + (offset ? 4 : 2);
  uint32_t high = 0;
  if (fifth) {
    std::memcpy(&high, codes, 4);
    codes += 4;
  }
  const int zero = offset ? 0 : fifth ? 16 : 8;
  for (int j = 0; j < 32; ++j) {
    const int nibble = j < 16 ? codes[j] & 15 : codes[j - 16] >> 4;
    out[j] = d * ((nibble | static_cast<int>(high >> j & 1) << 4) - zero) + base;
  }
}

int int4_code(const uint8_t* row, int64_t column) {  // the even column is in the high half
  const int nibble = column % 2 == 0 ? row[column / 2] >> 4 : row[column / 2] & 15;
  return nibble >= 8 ? nibble - 16 : nibble;
}

void write_q4_0(uint16_t scale, const int8_t* codes, uint8_t* target) {  // codes -8..7
  auto* block = reinterpret_cast<BlockQ4_0*>(target);
  store_u16(block->scale, scale);
  for (int j = 0; j < 16; ++j) block->codes[j] = static_cast<uint8_t>((codes[j] + 8) | (codes[j + 16] + 8) << 4);
}

void write_q8_0(uint16_t scale, const int8_t* codes, uint8_t* target) {
  auto* block = reinterpret_cast<BlockQ8_0*>(target);
  store_u16(block->scale, scale);
  std::memcpy(block->codes, codes, 32);
}

// 1 / scale, or 0 if that is infinite.
float inverse_of(float scale) {
  const float inverse = 1.0f / scale;
  return std::isfinite(inverse) ? inverse : 0.0f;
}

// Clamps before the cast, so that every input has a defined result: NaN becomes `least`.
int to_code(float value, int least, int most) {
  if (!(value > static_cast<float>(least))) return least;
  return value < static_cast<float>(most) ? static_cast<int>(value) : most;
}

void encode_q8_0(const float* x, uint8_t* target) {
  float largest = 0;
  for (int j = 0; j < 32; ++j) largest = std::max(largest, std::fabs(x[j]));
  const float scale = largest / 127.0f, inverse = inverse_of(scale);
  int8_t codes[32];
  for (int j = 0; j < 32; ++j) codes[j] = static_cast<int8_t>(to_code(std::roundf(x[j] * inverse), -127, 127));
  write_q8_0(float_to_half(scale), codes, target);
}

void encode_q4_0(const float* x, uint8_t* target) {
  float largest = 0;
  for (int j = 0; j < 32; ++j) {
    if (std::fabs(x[j]) > std::fabs(largest)) largest = x[j];
  }
  const float scale = largest / -8.0f, inverse = inverse_of(scale);
  int8_t codes[32];
  for (int j = 0; j < 32; ++j) codes[j] = static_cast<int8_t>(to_code(x[j] * inverse + 8.5f, 0, 15) - 8);
  write_q4_0(float_to_half(scale), codes, target);
}

float round_to(DataType type, float value) {
  if (type == DataType::f16) return half_to_float(float_to_half(value));
  if (type == DataType::bf16) return bfloat_to_float(float_to_bfloat(value));
  return value;
}

}  // namespace

BlockShape block_shape(DataType type) { return kTypes[static_cast<size_t>(type)].block; }
const char* name_of(DataType type) { return kTypes[static_cast<size_t>(type)].name; }

std::optional<DataType> data_type_by_name(std::string_view name) {
  for (size_t i = 0; i < kTypes.size(); ++i) {
    if (name == kTypes[i].name) return static_cast<DataType>(i);
  }
  return std::nullopt;
}

void to_float(DataType type, const uint8_t* source, float scale, int64_t count, float* target) {
  const BlockShape block = block_shape(type);
  switch (type) {
    case DataType::f32: std::memcpy(target, source, static_cast<size_t>(count) * 4); return;
    case DataType::f16:
      for (int64_t i = 0; i < count; ++i) target[i] = half_at(source + 2 * i);
      return;
    case DataType::bf16:
      for (int64_t i = 0; i < count; ++i) target[i] = bfloat_to_float(load_u16(source + 2 * i));
      return;
    case DataType::int8:
      for (int64_t i = 0; i < count; ++i) target[i] = scale * static_cast<int8_t>(source[i]);
      return;
    case DataType::int4:
      for (int64_t i = 0; i < count; ++i) target[i] = scale * int4_code(source, i);
      return;
    default: break;
  }
  for (int64_t i = 0; i < count; i += block.elements, source += block.bytes, target += block.elements) {
    switch (type) {
      case DataType::q8_0: {
        const float d = half_at(source);
        for (int j = 0; j < 32; ++j) target[j] = d * static_cast<int8_t>(source[2 + j]);
        break;
      }
      case DataType::q4_k: decode_q4_k(source, target); break;
      case DataType::q5_k: decode_q5_k(source, target); break;
      case DataType::q6_k: decode_q6_k(source, target); break;
      default: decode_block32(type, source, target); break;
    }
  }
}

void from_float(DataType type, const float* source, int64_t count, uint8_t* target) {
  switch (type) {
    case DataType::f32: std::memcpy(target, source, static_cast<size_t>(count) * 4); return;
    case DataType::f16:
      for (int64_t i = 0; i < count; ++i) store_u16(target + 2 * i, float_to_half(source[i]));
      return;
    case DataType::bf16:
      for (int64_t i = 0; i < count; ++i) store_u16(target + 2 * i, float_to_bfloat(source[i]));
      return;
    case DataType::q8_0:
      for (int64_t i = 0; i < count; i += 32, target += sizeof(BlockQ8_0)) encode_q8_0(source + i, target);
      return;
    case DataType::q4_0:
      for (int64_t i = 0; i < count; i += 32, target += sizeof(BlockQ4_0)) encode_q4_0(source + i, target);
      return;
    default: throw Error("ERR_INVALID_ARGUMENT", std::string("cannot write tensors of type ") + name_of(type));
  }
}

void convert_row(DataType source_type, const uint8_t* source, float scale, int64_t columns, DataType target_type,
                 uint8_t* target, float* scratch) {
  if (source_type == target_type) {
    std::memcpy(target, source, static_cast<size_t>(row_bytes(source_type, columns)));
  } else if (source_type == DataType::int8 && target_type == DataType::q8_0) {
    for (int64_t i = 0; i < columns; i += 32, target += sizeof(BlockQ8_0)) {
      write_q8_0(float_to_half(scale), reinterpret_cast<const int8_t*>(source + i), target);
    }
  } else if (source_type == DataType::int4 && target_type == DataType::q4_0) {
    for (int64_t i = 0; i < columns; i += 32, target += sizeof(BlockQ4_0)) {
      int8_t codes[32];
      for (int64_t j = 0; j < 32; ++j) codes[j] = static_cast<int8_t>(int4_code(source, i + j));
      write_q4_0(float_to_half(scale), codes, target);
    }
  } else {
    to_float(source_type, source, scale, columns, scratch);
    from_float(target_type, scratch, columns, target);
  }
}

void quantize_row(DataType source_type, const uint8_t* source, int64_t columns, DataType target_type, uint8_t* target,
                  float* scratch) {
  to_float(source_type, source, 1.0f, columns, scratch);
  const int largest_code = target_type == DataType::q8_0 ? 127 : 7;
  float largest = 0;
  for (int64_t i = 0; i < columns; ++i) largest = std::max(largest, std::fabs(scratch[i]));
  const float scale = round_to(source_type, largest / static_cast<float>(largest_code));
  const uint16_t stored = float_to_half(scale);
  const int64_t step = block_shape(target_type).bytes;
  for (int64_t i = 0; i < columns; i += 32, target += step) {
    int8_t codes[32];
    for (int j = 0; j < 32; ++j) {
      const float code = scale > 0 ? std::nearbyintf(round_to(source_type, scratch[i + j] / scale)) : 0.0f;
      codes[j] = static_cast<int8_t>(to_code(code, -largest_code - 1, largest_code));
    }
    if (target_type == DataType::q8_0) {
      write_q8_0(stored, codes, target);
    } else {
      write_q4_0(stored, codes, target);
    }
  }
}

bool all_finite(DataType type, const uint8_t* data, int64_t count) {
  // This pass reads every byte of a checkpoint, so it has no branches and the compiler vectorizes it.
  uint32_t bad = 0;
  if (type == DataType::f32) {
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits;
      std::memcpy(&bits, data + 4 * i, 4);
      bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
  } else if (type == DataType::f16 || type == DataType::bf16) {
    const uint16_t exponent = type == DataType::f16 ? 0x7c00 : 0x7f80;
    uint16_t any = 0;
    for (int64_t i = 0; i < count; ++i) {
      any |= static_cast<uint16_t>((load_u16(data + 2 * i) & exponent) == exponent ? 1 : 0);
    }
    bad = any;
  } else if (type != DataType::int8 && type != DataType::int4) {
    // A block's f16 scale and, in some formats, the f16 number behind it: the offset, or the scale of the offsets.
    const bool two =
        type == DataType::q4_1 || type == DataType::q5_1 || type == DataType::q4_k || type == DataType::q5_k;
    const BlockShape block = block_shape(type);
    const uint8_t* first = data + (type == DataType::q6_k ? block.bytes - 2 : 0);
    const uint8_t* second = first + (two ? 2 : 0);
    for (int64_t i = 0; i < count / block.elements; ++i) {
      bad |= (load_u16(first + i * block.bytes) & 0x7c00u) == 0x7c00u;
      bad |= (load_u16(second + i * block.bytes) & 0x7c00u) == 0x7c00u;
    }
  }
  return bad == 0;
}

}  // namespace chatglm
