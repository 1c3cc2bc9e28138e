#pragma once
#include <cstdint>
#include <vector>

namespace chatglm {

/// What the layers of a model compute, where families differ. Each enum lists what the backends can compute; a backend
/// reads these fields and knows no family.
struct Architecture {
  enum class Norm : uint8_t { rms };            // x / sqrt(mean(x^2) + epsilon) * weight
  enum class Activation : uint8_t { swiglu };   // silu(gate) * up; ffn_up has rows for both
  enum class Rotary : uint8_t { interleaved };  // the first rope_dimension of a head rotate in pairs (2j, 2j + 1)
  enum class Mask : uint8_t { causal };         // a token attends to itself and to the tokens before it

  Norm norm = Norm::rms;
  Activation activation = Activation::swiglu;
  Rotary rotary = Rotary::interleaved;
  Mask mask = Mask::causal;
  bool qkv_bias = true;  // a bias is added to queries, keys and values

  /// Whether the activation multiplies a row of ffn_up by a gate, which is another row of ffn_up.
  bool gated() const { return activation == Activation::swiglu; }
};

/// The sizes of a model, in the terms of THUDM's config.json, and its architecture.
struct ModelShape {
  int32_t layers = 0;
  int32_t hidden_size = 0;
  int32_t heads = 0;
  int32_t kv_groups = 0;  // key/value heads; heads / kv_groups query heads share one
  int32_t head_size = 0;
  int32_t ffn_size = 0;
  int32_t vocabulary = 0;
  float norm_epsilon = 0;
  int32_t rope_dimension = 0;  // so many dimensions of a head are rotated
  float rope_base = 0;
  float rope_scale = 1;  // positions are divided by this
  Architecture architecture;

  int32_t query_size() const { return heads * head_size; }
  int32_t kv_size() const { return kv_groups * head_size; }
  int32_t qkv_size() const { return query_size() + 2 * kv_size(); }
};

/// The angles by which the pairs of a head are rotated from one position to the next: rope_base^(-2 j / rope_dimension)
/// for pair j. (rope_dimension / 2)
std::vector<float> rope_frequencies(const ModelShape& shape);

/// Throws ERR_CHECKPOINT_INVALID, naming the field and its number, if no backend can compute with this shape. Limits,
/// conditions, their order and their words are those of shapeProblem() in lib/checkpoint/validate.ts; so are the
/// fields' names, which are JavaScript's.
void check_shape(const ModelShape& shape);

}  // namespace chatglm
