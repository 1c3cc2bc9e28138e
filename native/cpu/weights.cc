#include "cpu/weights.h"

#include "base/error.h"

namespace chatglm::cpu {

namespace {

PackedMatrix room_for(const Tensor& shape, bool gated, const Kernels& kernels) {
  return PackedMatrix(shape, gated ? PackedMatrix::Order::gated : PackedMatrix::Order::plain, kernels);
}

PackedMatrix pack(const Tensor& matrix, bool gated, const Kernels& kernels) {
  PackedMatrix result = room_for(matrix, gated, kernels);
  result.pack(0, matrix.rows, matrix.data);
  return result;
}

CpuWeights empty_weights(size_t layers, const Kernels& kernels) {
  CpuWeights weights;
  weights.kernels = &kernels;
  weights.layers.resize(layers);
  return weights;
}

// The system lends more memory than it has and ends the process later, so matrices that do not fit are refused here.
void expect_memory(const ModelSource& source, CpuWeights& weights) {
  double wanted = 0;  // may be more than any integer holds
  const std::vector<PlannedTensor> plan = planned_tensors(source);
  const bool tied = is_tied(plan);
  for (const PlannedTensor& tensor : plan) {
    if (!weights.packed(tensor.id) && !(tied && tensor.kind == TensorKind::embedding)) continue;
    wanted += static_cast<double>(tensor.rows) * static_cast<double>(row_bytes(tensor.type, tensor.columns));
  }
  const uint64_t free_bytes = available_memory();
  if (free_bytes != 0 && wanted > static_cast<double>(free_bytes)) throw out_of_memory("the weights need", wanted);
}

}  // namespace

PackedMatrix* CpuWeights::packed(TensorId id) {
  const auto layer = [&]() -> Layer& { return layers.at(static_cast<size_t>(id.layer)); };
  switch (id.role) {
    case TensorRole::qkv: return &layer().qkv;
    case TensorRole::attention_output: return &layer().attention_output;
    case TensorRole::ffn_up: return &layer().ffn_up;
    case TensorRole::ffn_down: return &layer().ffn_down;
    case TensorRole::output: return &output;
    case TensorRole::embedding:
    case TensorRole::attention_norm:
    case TensorRole::qkv_bias:
    case TensorRole::ffn_norm:
    case TensorRole::output_norm: break;
  }
  return nullptr;
}

CpuWeights load_cpu_weights(const ModelSource& source, const Kernels& kernels, const Progress& progress,
                            const std::atomic<bool>& abort) {
  check_shape(source.shape);  // before anything is sized by it
  CpuWeights weights = empty_weights(static_cast<size_t>(source.shape.layers), kernels);
  expect_memory(source, weights);
  const auto rows = [&](const TensorSpec& spec, const Tensor& shape) -> RowSink {
    PackedMatrix* matrix = weights.packed(spec.id);
    if (!matrix) return nullptr;
    *matrix = room_for(shape, spec.gated, kernels);
    return [matrix](int64_t begin, int64_t end, const uint8_t* data) { matrix->pack(begin, end, data); };
  };
  weights.unpacked = load_weights(source, progress, abort, {.rows = rows, .whole = nullptr});
  if (weights.output.panels == 0) weights.output = pack(weights.unpacked.embedding, false, kernels);
  return weights;
}

CpuWeights pack_weights(const ModelShape& shape, Weights weights, const Kernels& kernels) {
  CpuWeights result = empty_weights(weights.layers.size(), kernels);
  for (const TensorSpec& spec : tensor_table(shape)) {
    if (PackedMatrix* matrix = result.packed(spec.id)) *matrix = pack(weights.at(spec.id), spec.gated, kernels);
  }
  result.unpacked = std::move(weights);
  return result;
}

}  // namespace chatglm::cpu
