#include <map>
#include <string>

#include "cpu/cpu_backend.h"

namespace chatglm::cpu {

CpuWeights load_cpu_weights(const ModelSource& source, const Kernels& kernels, const Progress& progress,
                            const std::atomic<bool>& abort) {
  CpuWeights weights;
  weights.kernels = &kernels;
  weights.layers.resize(static_cast<size_t>(source.shape.layers));
  std::map<std::string, PackedMatrix*> matrices;
  matrices["output.weight"] = &weights.output;
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    matrices[prefix + "attn_qkv.weight"] = &weights.layers[i].qkv;
    matrices[prefix + "attn_output.weight"] = &weights.layers[i].attention_output;
    matrices[prefix + "ffn_up.weight"] = &weights.layers[i].ffn_up;
    matrices[prefix + "ffn_down.weight"] = &weights.layers[i].ffn_down;
  }

  const auto rows = [&](const std::string& name, const Tensor& shape) -> RowSink {
    const auto found = matrices.find(name);
    if (found == matrices.end()) return nullptr;
    PackedMatrix& matrix = *found->second;
    const bool gated = name.ends_with("ffn_up.weight");
    matrix = PackedMatrix(shape, gated ? PackedMatrix::Order::gated : PackedMatrix::Order::plain, kernels);
    return [&matrix](int64_t begin, int64_t end, const uint8_t* data) { matrix.pack(begin, end, data); };
  };
  weights.rest = load_weights(source, progress, abort, {.rows = rows, .whole = nullptr});
  if (weights.output.panels == 0) {
    const Tensor& embedding = weights.rest.embedding;
    weights.output = PackedMatrix(embedding, PackedMatrix::Order::plain, kernels);
    weights.output.pack(0, embedding.rows, embedding.data);
  }
  return weights;
}

}  // namespace chatglm::cpu
