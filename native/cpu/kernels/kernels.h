#pragma once
#include <cstdint>
#include <span>

#include "base/data_type.h"
#include "engine/page.h"

namespace chatglm::cpu {

/// 32 activations, rounded to 8 bits: the operand of products with quantized weights.
struct ActivationBlock {
  int8_t codes[32];  // x = scale * code
  float scale;       // max|x| / 127; NaN if one of them is not finite
  int32_t offset;  // -zero_point * (sum of codes): corrects products with weights whose codes are zero_point too large
};

enum class Epilogue { store, add, swiglu };

/// y = x * weights^T for some panels of the weights (see packed_matrix.h).
struct Product {
  DataType type = DataType::f32;
  const uint8_t* weights = nullptr;  // (panels, panel_bytes)
  int64_t panel_bytes = 0;
  int64_t outputs = 0;       // numbers of y for each token: rows of the weights; half of the rows for swiglu
  int64_t columns = 0;       // a multiple of 32
  int64_t tokens = 0;        // at least 1
  const float* x = nullptr;  // (tokens, columns), for f32, f16 and bf16 weights
  const ActivationBlock* blocks = nullptr;  // (tokens, columns / 32), for q8_0 and q4_0 weights
  float* y = nullptr;                       // (tokens, y_stride)
  int64_t y_stride = 0;
  Epilogue epilogue = Epilogue::store;  // y =, y +=, or y = silu(gate) * up of gated panels
};

enum class KvType { f16, f32, q8_0 };

/// Attention of query rows to one page of one key/value head. The rows are the query heads of the group at one or more
/// positions.
struct AttentionPage {
  KvType type = KvType::f16;
  const uint8_t* keys = nullptr;    // see kv_page_bytes()
  const uint8_t* values = nullptr;  // see kv_page_bytes()
  int32_t head_size = 0;            // a multiple of 16; of 32 for q8_0
  int32_t rows = 0;
  const float* queries = nullptr;  // (rows, head_size), scaled by 1 / sqrt(head_size)
  const int32_t* visible =
      nullptr;  // (rows): how many of the page's tokens a row sees; with 0 its state stays unchanged
};

/// The state of the online softmax of query rows, over the tokens that they have attended to.
struct AttentionState {
  float* largest = nullptr;  // (rows): the largest score; -infinity before the first
  float* sum = nullptr;      // (rows): of exp(score - largest)
  float* result = nullptr;   // (rows, head_size): sum of exp(score - largest) * value
};

/// Bytes of one page of keys or of values of one head. Keys: (head_size, 64 slots), so that a vector holds the same
/// dimension of several tokens. Values: (64 slots, head_size). q8_0: the numbers are codes, and the page's f16 scales
/// follow them, one for each token and 32 dimensions: (head_size / 32, 64 slots) for keys, (64 slots, head_size / 32)
/// for values.
constexpr int64_t kv_page_bytes(KvType type, int64_t head_size) {
  const int64_t count = kPageTokens * head_size;
  return type == KvType::f32 ? 4 * count : type == KvType::f16 ? 2 * count : count + count / 32 * 2;
}

/// A head of queries or keys of one token on its way from the QKV product to attention.
struct Rotation {
  const float* sum = nullptr;          // (count): the product, or its first pass
  const float* second_pass = nullptr;  // (count): the second pass of a product in two passes; or null
  const float* bias = nullptr;         // (count)
  // (rope_dimension): cos and sin of each pair's angle, for both dimensions; the first sin is negative. Null: no
  // rotation.
  const float* cosines = nullptr;
  const float* sines = nullptr;
  int32_t rope_dimension = 0;  // even
  int32_t count = 0;           // head_size
  float scale = 1;             // of the result
  float* y = nullptr;          // (count)
};

/// Logits of a row whose largest one, and whose sum of weights, are found in a pass over the row. A multiple of every
/// instruction set's vectors, and small beside the vocabulary.
constexpr int32_t kSampleChunk = 128;

/// The kernels of one instruction set. The order in which an output number is summed depends on the columns alone, so a
/// token's result has the same bits in every batch.
struct Kernels {
  const char* name;
  int32_t lanes;            // rows of a vector: a panel of weights has two vectors of rows
  int32_t q8_0_zero_point;  // packing adds it to the codes of q8_0 weights: 0 or 128
  void (*product)(const Product& product, int64_t panel_begin, int64_t panel_end);
  void (*attend)(const AttentionPage& page, const AttentionState& state);
  /// Merges the softmax of `other` into `state`.
  void (*merge)(const AttentionState& state, const AttentionState& other, int32_t rows, int32_t head_size);
  /// Writes a token's key and value, both (head_size), to a slot of a page.
  void (*store_kv)(KvType type, const float* key, const float* value, int32_t head_size, int32_t slot, uint8_t* keys,
                   uint8_t* values);
  /// y = rotated(sum + second_pass + bias) * scale
  void (*rotate)(const Rotation& rotation);
  /// y = x / sqrt(mean(x^2) + epsilon) * weight
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t count, float* y);
  /// scale = max|x| / 127, code = round(x / scale). remainder = x - scale * code, unless null; it may be x.
  void (*quantize)(const float* x, int64_t count, int32_t zero_point, ActivationBlock* blocks, float* remainder);
  /// Writes the largest logit of each chunk of kSampleChunk. Returns whether all logits are finite.
  bool (*chunk_maxima)(const float* logits, int64_t count, float* maxima);
  /// Writes the sum of weight_of() of each chunk of kSampleChunk.
  void (*chunk_weights)(const float* logits, int64_t count, float largest, float inverse_temperature, int64_t* sums);
  /// Writes weight_of() of each logit. No logit is above `largest`.
  void (*weights)(const float* logits, int64_t count, float largest, float inverse_temperature, int64_t* result);
  uint64_t (*read)(const uint8_t* data, int64_t bytes);  // reads all bytes (a multiple of 512), to measure bandwidth
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

/// The kernels of this build, the fastest first, whether or not this CPU runs them.
std::span<const Kernels* const> all_kernels();
/// The fastest kernels that this CPU runs, or the kernels that the environment variable CHATGLM_KERNELS names (for
/// tests). Throws ERR_DEVICE_UNAVAILABLE if this CPU does not run the named kernels.
const Kernels& select_kernels();
/// Kernels by name; null if this CPU or build does not have them.
const Kernels* kernels_by_name(const char* name);

}  // namespace chatglm::cpu
