#pragma once
#include <vector>

#include "cpu/kernels/kernels.h"
#include "cpu/packed_matrix.h"
#include "model/model.h"

namespace chatglm::cpu {

/// A model's weights as the kernels of one instruction set read them.
struct CpuWeights {
  struct Layer {
    PackedMatrix qkv, attention_output, ffn_up, ffn_down;
  };

  const Kernels* kernels = nullptr;
  std::vector<Layer> layers;
  PackedMatrix output;
  Weights unpacked;  // embedding, norms and biases; matrices that are packed have only a type and a shape here

  /// The packed matrix of a tensor, or null for a tensor that is not packed: the embedding, norms and biases.
  PackedMatrix* packed(TensorId id);
};

/// Loads weights as load_weights() does, and packs the rows of matrices as they are read, so that no matrix is in
/// memory twice but an embedding that is the output matrix too. The embedding is not packed; where it needs no
/// conversion it stays in its file. Throws ERR_OUT_OF_MEMORY, before anything is read, if the matrices are larger than
/// the memory that is free.
CpuWeights load_cpu_weights(const ModelSource& source, const Kernels& kernels, const Progress& progress,
                            const std::atomic<bool>& abort);

/// Packs the matrices of weights that are in memory. The given matrices stay there as long as the result lives.
CpuWeights pack_weights(const ModelShape& shape, Weights weights, const Kernels& kernels);

}  // namespace chatglm::cpu
