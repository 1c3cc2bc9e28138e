#pragma once
#include <cstdint>

#include "base/data_type.h"

namespace chatglm {

/// Decodes `count` numbers, a multiple of the type's block. `scale`: the row's scale, of int8 and int4 rows; else
/// unused.
void to_float(DataType type, const uint8_t* source, float scale, int64_t count, float* target);

/// Encodes `count` numbers as f32, f16, bf16, q8_0 or q4_0, rounding as GGML's reference quantizers do:
/// q8_0: scale = max|x| / 127, code = round(x / scale), halves away from zero;
/// q4_0: scale = (the value of largest magnitude) / -8, code = trunc(x / scale + 8.5), at most 15.
void from_float(DataType type, const float* source, int64_t count, uint8_t* target);

/// Converts one row. An int8 row becomes q8_0 and an int4 row q4_0 with every code as it is and the row's scale in each
/// block; a row of the target's type is copied; any other row goes through float. `scratch` holds `columns` floats.
void convert_row(DataType source_type, const uint8_t* source, float scale, int64_t columns, DataType target_type,
                 uint8_t* target, float* scratch);

/// What THUDM's model.quantize(8 | 4) does to one row (quantization.py, QuantizedLinear): scale = max|x| / 127 or / 7
/// and code = round(x / scale), halves to even, both in the arithmetic of the stored type (f32, f16 or bf16). The row
/// is written as q8_0 or q4_0 blocks that all have the row's scale.
void quantize_row(DataType source_type, const uint8_t* source, int64_t columns, DataType target_type, uint8_t* target,
                  float* scratch);

/// Whether each number (of a block format: each scale) is finite.
bool all_finite(DataType type, const uint8_t* data, int64_t count);

}  // namespace chatglm
