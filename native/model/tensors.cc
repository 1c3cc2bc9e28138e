#include "model/tensors.h"

namespace chatglm {

std::vector<TensorSpec> tensor_table(const ModelShape& s) {
  using Role = TensorRole;
  using Kind = TensorKind;
  std::vector<TensorSpec> table;
  table.push_back({{Role::embedding}, Kind::embedding, "token_embd.weight", s.vocabulary, s.hidden_size});
  for (int32_t layer = 0; layer < s.layers; ++layer) {
    const auto add = [&](Role role, Kind kind, const char* name, int64_t rows, int64_t columns, bool gated = false) {
      table.push_back({{role, layer}, kind, "blk." + std::to_string(layer) + "." + name, rows, columns, gated});
    };
    const bool gated = s.architecture.gated();
    const int64_t up_rows = (gated ? 2 : 1) * static_cast<int64_t>(s.ffn_size);
    add(Role::attention_norm, Kind::norm, "attn_norm.weight", 1, s.hidden_size);
    // All query heads, then the key heads, then the value heads.
    add(Role::qkv, Kind::linear, "attn_qkv.weight", s.qkv_size(), s.hidden_size);
    if (s.architecture.qkv_bias) add(Role::qkv_bias, Kind::bias, "attn_qkv.bias", 1, s.qkv_size());
    add(Role::attention_output, Kind::linear, "attn_output.weight", s.hidden_size, s.query_size());
    add(Role::ffn_norm, Kind::norm, "ffn_norm.weight", 1, s.hidden_size);
    add(Role::ffn_up, Kind::linear, "ffn_up.weight", up_rows, s.hidden_size, gated);
    add(Role::ffn_down, Kind::linear, "ffn_down.weight", s.hidden_size, s.ffn_size);
  }
  table.push_back({{Role::output_norm}, Kind::norm, "output_norm.weight", 1, s.hidden_size});
  table.push_back({{Role::output}, Kind::output, "output.weight", s.vocabulary, s.hidden_size});
  return table;
}

}  // namespace chatglm
