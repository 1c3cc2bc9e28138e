#pragma once
#include <algorithm>
#include <vector>

#include "model/model.h"

namespace chatglm::test {

/// The source of a model of random tensors: matrices of `type`, norms and biases of f32.
inline ModelSource random_model(const ModelShape& shape, DataType type, uint64_t seed = 1) {
  ModelSource source;
  source.shape = shape;
  source.seed = seed;
  source.threads = 2;
  for (const TensorSpec& spec : tensor_table(shape)) {
    TensorSource tensor;
    tensor.name = spec.name;
    tensor.type = spec.is_vector() ? DataType::f32 : type;
    tensor.rows = spec.rows;
    tensor.columns = spec.columns;
    tensor.random = true;
    source.tensors.push_back(tensor);
  }
  return source;
}

/// Where in such a source a tensor stands.
inline size_t index_of(const ModelSource& source, TensorId id) {
  const std::vector<TensorSpec> table = tensor_table(source.shape);
  const auto is_it = [&](const TensorSpec& spec) { return spec.id == id; };
  return static_cast<size_t>(std::find_if(table.begin(), table.end(), is_it) - table.begin());
}

/// Three heads a group.
inline ModelShape small_shape(int32_t groups, int32_t head_size, int32_t hidden_size, int32_t ffn_size) {
  ModelShape shape;
  shape.layers = 2;
  shape.hidden_size = hidden_size;
  shape.heads = 3 * groups;
  shape.kv_groups = groups;
  shape.head_size = head_size;
  shape.ffn_size = ffn_size;
  shape.vocabulary = 160;
  shape.norm_epsilon = 1e-5f;
  shape.rope_dimension = head_size / 2;
  shape.rope_base = 10000;
  return shape;
}

}  // namespace chatglm::test
