#pragma once
#include <string>

#include "model/model.h"

namespace chatglm::test {

/// The table of a model of random tensors: matrices of `type`, norms and biases of f32.
inline ModelSource random_model(const ModelShape& shape, DataType type, uint64_t seed = 1) {
  ModelSource source;
  source.shape = shape;
  source.seed = seed;
  source.threads = 2;
  const auto add = [&](const std::string& name, DataType t, int64_t rows, int64_t columns) {
    TensorSource tensor;
    tensor.name = name;
    tensor.type = t;
    tensor.rows = rows;
    tensor.columns = columns;
    tensor.random = true;
    source.tensors.push_back(tensor);
  };
  add("token_embd.weight", type, shape.vocabulary, shape.hidden_size);
  add("output_norm.weight", DataType::f32, 1, shape.hidden_size);
  add("output.weight", type, shape.vocabulary, shape.hidden_size);
  for (int32_t i = 0; i < shape.layers; ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    add(prefix + "attn_norm.weight", DataType::f32, 1, shape.hidden_size);
    add(prefix + "attn_qkv.weight", type, shape.qkv_size(), shape.hidden_size);
    add(prefix + "attn_qkv.bias", DataType::f32, 1, shape.qkv_size());
    add(prefix + "attn_output.weight", type, shape.hidden_size, shape.query_size());
    add(prefix + "ffn_norm.weight", DataType::f32, 1, shape.hidden_size);
    add(prefix + "ffn_up.weight", type, 2 * static_cast<int64_t>(shape.ffn_size), shape.hidden_size);
    add(prefix + "ffn_down.weight", type, shape.hidden_size, shape.ffn_size);
  }
  return source;
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
