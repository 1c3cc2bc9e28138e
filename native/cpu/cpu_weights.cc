#include <map>
#include <string>

#include "cpu/cpu_backend.h"
#include "runtime/thread_pool.h"

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

  ThreadPool pool(source.threads);
  ThreadPool::Cost cost;
  const auto pack = [&](const Tensor& tensor, PackedMatrix::Order order, PackedMatrix& target) {
    const ThreadPool::Turn turn(pool);
    target = PackedMatrix(tensor, order, kernels);
    pool.run_ranges(target.panels, 1, cost, abort,
                    [&](int64_t begin, int64_t end) { target.pack(tensor, kernels, begin, end); });
  };
  weights.rest = load_weights(source, progress, abort, [&](const std::string& name, const Tensor& tensor) {
    const auto matrix = matrices.find(name);
    if (matrix == matrices.end()) return false;
    const bool gated = name.ends_with("ffn_up.weight");
    pack(tensor, gated ? PackedMatrix::Order::gated : PackedMatrix::Order::plain, *matrix->second);
    return true;
  });
  if (weights.output.panels == 0) pack(weights.rest.embedding, PackedMatrix::Order::plain, weights.output);
  return weights;
}

}  // namespace chatglm::cpu
