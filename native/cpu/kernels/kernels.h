#pragma once
#include <cstdint>
#include <span>

#include "base/data_type.h"

namespace chatglm::cpu {

/// 32 activations, rounded to 8 bits: what quantized weights are multiplied with.
struct ActivationBlock {
  int8_t codes[32];  // x = scale * code
  float scale;       // max|x| / 127; NaN if one of them is not finite
  int32_t offset;    // -zero_point * (sum of codes), for weights whose codes are larger than they mean by zero_point
};

enum class Epilogue { store, add, swiglu };

/// y = x * weights^T for some panels of the weights (see packed_matrix.h).
struct Product {
  DataType type = DataType::f32;
  const uint8_t* weights = nullptr;  // (panels, panel_bytes)
  int64_t panel_bytes = 0;
  int64_t outputs = 0;       // numbers of y for each token: rows of the weights, or half of them for swiglu
  int64_t columns = 0;       // a multiple of 32
  int64_t tokens = 0;        // at least 1
  const float* x = nullptr;  // (tokens, columns), for f32, f16 and bf16 weights
  const ActivationBlock* blocks = nullptr;  // (tokens, columns / 32), for q8_0 and q4_0 weights
  float* y = nullptr;                       // (tokens, y_stride)
  int64_t y_stride = 0;
  Epilogue epilogue = Epilogue::store;  // y =, y +=, or y = silu(gate) * up of gated panels
};

enum class KvType { f16, f32, q8_0 };

constexpr int kMostPageTokens = 64;  // of a page; there are always as many slots

/// One page of one key/value head, attended to by query rows: the heads of the group at one or more positions.
struct AttentionPage {
  KvType type = KvType::f16;
  const uint8_t* keys = nullptr;    // see kv_page_bytes()
  const uint8_t* values = nullptr;  // the same
  int32_t head_size = 0;            // a multiple of 16; of 32 for q8_0
  int32_t rows = 0;
  const float* queries = nullptr;    // (rows, head_size), scaled by 1 / sqrt(head_size)
  const int32_t* visible = nullptr;  // (rows): how many of the page's tokens a row sees; 0 leaves its state as it is
};

/// The online softmax of query rows so far.
struct AttentionState {
  float* largest = nullptr;  // (rows): the largest score; -infinity before the first
  float* sum = nullptr;      // (rows): of exp(score - largest)
  float* result = nullptr;   // (rows, head_size): sum of exp(score - largest) * value
};

/// Bytes of one page of keys or of values of one head. Keys: (head_size, 64 slots), so that a vector holds the same
/// dimension of several tokens. Values: (64 slots, head_size). q8_0: these are codes; behind them lie f16 scales, one
/// for each token and 32 dimensions: (head_size / 32, 64 slots) for keys, (64 slots, head_size / 32) for values.
constexpr int64_t kv_page_bytes(KvType type, int64_t head_size) {
  const int64_t count = kMostPageTokens * head_size;
  return type == KvType::f32 ? 4 * count : type == KvType::f16 ? 2 * count : count + count / 32 * 2;
}

/// A head of queries or keys of one token on its way from the QKV product to attention.
struct Rotation {
  const float* sum = nullptr;   // (count): the product
  const float* rest = nullptr;  // (count): what is added to it, of a product in two passes; or none
  const float* bias = nullptr;  // (count)
  // (rope_dimension): cos and sin of each pair's angle, twice; of sin the first is negative. None: no rotation.
  const float* cosines = nullptr;
  const float* sines = nullptr;
  int32_t rope_dimension = 0;  // even
  int32_t count = 0;           // head_size
  float scale = 1;             // of the result
  float* y = nullptr;          // (count)
};

/// The kernels of one instruction set. Each output number is summed in an order that depends on the columns alone, so
/// that a token's result has the same bits in every batch.
struct Kernels {
  const char* name;
  int32_t lanes;            // rows of a vector: a panel of weights has two vectors of rows
  int32_t q8_0_zero_point;  // what is added to the codes of q8_0 weights when they are packed: 0 or 128
  void (*product)(const Product& product, int64_t panel_begin, int64_t panel_end);
  void (*attend)(const AttentionPage& page, const AttentionState& state);
  /// Adds to `state` what `other` has seen.
  void (*merge)(const AttentionState& state, const AttentionState& other, int32_t rows, int32_t head_size);
  /// Writes a token's key and value, both (head_size), to a slot of a page.
  void (*store_kv)(KvType type, const float* key, const float* value, int32_t head_size, int32_t slot, uint8_t* keys,
                   uint8_t* values);
  /// y = rotated(sum + rest + bias) * scale
  void (*rotate)(const Rotation& rotation);
  /// y = x / sqrt(mean(x^2) + epsilon) * weight
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t count, float* y);
  /// scale = max|x| / 127, code = round(x / scale). With `rest`: it becomes what the codes leave over.
  void (*quantize)(const float* x, int64_t count, int32_t zero_point, ActivationBlock* blocks, float* rest);
  uint64_t (*read)(const uint8_t* data, int64_t bytes);  // reads all bytes (a multiple of 512): bandwidth
};

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#if defined(CHATGLM_AVXVNNI)
extern const Kernels avxvnni_kernels;
#endif
#elif defined(__aarch64__)
extern const Kernels neon_kernels;
#endif

/// Those of this build, the fastest first, whether or not this CPU runs them.
std::span<const Kernels* const> all_kernels();
/// The best kernels that this CPU runs, or those that the environment variable CHATGLM_KERNELS names (for tests).
/// Throws ERR_DEVICE_UNAVAILABLE if this CPU does not run those.
const Kernels& select_kernels();
/// By name; none if this CPU or build does not have them.
const Kernels* kernels_by_name(const char* name);

}  // namespace chatglm::cpu
