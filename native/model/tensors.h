#pragma once
#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "model/shape.h"

// The one list of a model's tensors. The loader, both backends, random weights and the tests read it.
namespace chatglm {

enum class TensorRole : uint8_t {
  // Of each layer:
  attention_norm,
  qkv,
  qkv_bias,
  attention_output,
  ffn_norm,
  ffn_up,
  ffn_down,
  // Of the model:
  embedding,
  output_norm,
  output,
};

/// Which tensor of a model: the part that it plays and, if it is a layer's, the layer.
struct TensorId {
  TensorRole role = TensorRole::embedding;
  int32_t layer = -1;

  auto operator<=>(const TensorId&) const = default;
};

/// How a tensor may be stored. Norms and biases are vectors, which are loaded as f32; the others are matrices, of which
/// only the linear ones, the layers', are quantized while loading.
enum class TensorKind : uint8_t { embedding, linear, output, norm, bias };

struct TensorSpec {
  TensorId id;
  TensorKind kind = TensorKind::linear;
  std::string name;  // GGUF's
  int64_t rows = 0;  // 1 of vectors
  int64_t columns = 0;
  bool gated = false;  // rows 0 to rows / 2 - 1 are the gates of the others, in their order

  bool is_vector() const { return kind == TensorKind::norm || kind == TensorKind::bias; }
};

/// The tensors that a model of this shape has, in the order of the computation. A checkpoint may lack the output matrix
/// alone: then the embedding is used in its place. `shape` has passed check_shape().
std::vector<TensorSpec> tensor_table(const ModelShape& shape);

}  // namespace chatglm
