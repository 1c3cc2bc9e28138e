#pragma once
#include <cstdint>

#include "runtime/data_type.h"

namespace chatglm::cpu {

/// y = x * weights^T for some rows of the weights. Quantized weights are multiplied with quantized activations.
struct Product {
  DataType type = DataType::f32;
  const uint8_t* weights = nullptr;  // (rows, columns)
  int64_t row_bytes = 0;
  int64_t columns = 0;  // a multiple of 32
  int64_t tokens = 0;
  const float* x = nullptr;       // (tokens, columns), for f32, f16 and bf16 weights
  const int8_t* codes = nullptr;  // (tokens, columns), for q8_0 and q4_0 weights
  const float* scales = nullptr;  // (tokens, columns / 32)
  const int32_t* sums = nullptr;  // (tokens, columns / 32): of each block's codes
  const float* bias = nullptr;    // (rows), or none
  float* y = nullptr;             // (tokens, y_stride)
  int64_t y_stride = 0;
  bool accumulate = false;  // y += instead of y =
};

/// One page of one key/value head, attended to by query rows: the heads of the group at one or more positions.
struct AttentionPage {
  const void* keys = nullptr;    // (page tokens, head_size)
  const void* values = nullptr;  // (page tokens, head_size)
  int32_t head_size = 0;         // a multiple of 16
  int32_t rows = 0;
  const float* queries = nullptr;    // (rows, head_size), scaled by 1 / sqrt(head_size)
  const int32_t* visible = nullptr;  // (rows): how many of the page's tokens a row sees; 0 leaves its state as it is
  // The online softmax of each row so far: the largest score, the sum of exp(score - largest), and the sum of
  // exp(score - largest) * value, not yet divided.
  float* largest = nullptr;  // (rows)
  float* sum = nullptr;      // (rows)
  float* result = nullptr;   // (rows, head_size)
};

/// The kernels of one instruction set. Each output number is summed in an order that depends on the columns alone, so
/// that a token's result has the same bits in every batch.
struct Kernels {
  const char* name;
  void (*product)(const Product& product, int64_t row_begin, int64_t row_end);
  void (*attend_half)(const AttentionPage& page);   // keys and values are f16
  void (*attend_float)(const AttentionPage& page);  // keys and values are f32
  /// y = x / sqrt(mean(x^2) + epsilon) * weight
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t count, float* y);
  /// y = silu(gate_up[0..count)) * gate_up[count..2 count)
  void (*swiglu)(const float* gate_up, int64_t count, float* y);
  /// Blocks of 32: scale = max|x| / 127, code = round(x / scale), sum of the codes.
  void (*quantize)(const float* x, int64_t count, int8_t* codes, float* scales, int32_t* sums);
  void (*to_half)(const float* x, int64_t count, uint16_t* y);  // count: a multiple of 16
  uint64_t (*read)(const uint8_t* data, int64_t bytes);         // reads all bytes (a multiple of 512): bandwidth
};

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

/// The best kernels that this CPU runs, or those that the environment variable CHATGLM_KERNELS names (for tests).
/// Throws ERR_DEVICE_UNAVAILABLE if this CPU does not run those.
const Kernels& select_kernels();
/// By name; none if this CPU or build does not have them.
const Kernels* kernels_by_name(const char* name);

}  // namespace chatglm::cpu
