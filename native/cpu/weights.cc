#include "cpu/weights.h"

#include <algorithm>
#include <map>
#include <string>

#include "base/error.h"

namespace chatglm::cpu {

namespace {

PackedMatrix room_for(const Tensor& shape, bool gated, const Kernels& kernels) {
  return PackedMatrix(shape, gated ? PackedMatrix::Order::gated : PackedMatrix::Order::plain, kernels);
}

PackedMatrix packed(const Tensor& matrix, bool gated, const Kernels& kernels) {
  PackedMatrix result = room_for(matrix, gated, kernels);
  result.pack(0, matrix.rows, matrix.data);
  return result;
}

// The system lends more memory than it has and ends the process later; so what does not fit is refused here.
void expect_room(const ModelSource& source, const std::map<std::string, PackedMatrix*>& matrices) {
  double wanted = 0;  // may be more than any integer holds
  const std::vector<PlannedTensor> plan = planned_tensors(source);
  const bool tied = std::none_of(plan.begin(), plan.end(),
                                 [](const PlannedTensor& tensor) { return tensor.name == "output.weight"; });
  for (const PlannedTensor& tensor : plan) {
    if (!matrices.contains(tensor.name) && !(tied && tensor.name == "token_embd.weight")) continue;
    wanted += static_cast<double>(tensor.rows) * static_cast<double>(row_bytes(tensor.type, tensor.columns));
  }
  const uint64_t free_bytes = available_memory();
  if (free_bytes == 0 || wanted <= static_cast<double>(free_bytes)) return;
  const auto megabytes = [](double bytes) { return std::to_string(static_cast<uint64_t>(bytes / 1048576)) + " MiB"; };
  throw Error("ERR_OUT_OF_MEMORY",
              "the weights need " + megabytes(wanted) + "; the machine has " +
                  megabytes(static_cast<double>(free_bytes)) + " free",
              {{"wantedBytes", wanted}, {"freeBytes", static_cast<double>(free_bytes)}});
}

}  // namespace

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
    matrix = room_for(shape, name.ends_with("ffn_up.weight"), kernels);
    return [&matrix](int64_t begin, int64_t end, const uint8_t* data) { matrix.pack(begin, end, data); };
  };
  expect_room(source, matrices);
  weights.rest = load_weights(source, progress, abort, {.rows = rows, .whole = nullptr});
  if (weights.output.panels == 0) weights.output = packed(weights.rest.embedding, false, kernels);
  return weights;
}

CpuWeights pack_weights(Weights weights, const Kernels& kernels) {
  CpuWeights result;
  result.kernels = &kernels;
  for (const LayerWeights& layer : weights.layers) {
    result.layers.push_back({packed(layer.qkv, false, kernels), packed(layer.attention_output, false, kernels),
                             packed(layer.ffn_up, true, kernels), packed(layer.ffn_down, false, kernels)});
  }
  result.output = packed(weights.output, false, kernels);
  result.rest = std::move(weights);
  return result;
}

}  // namespace chatglm::cpu
