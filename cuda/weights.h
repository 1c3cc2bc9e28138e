#pragma once
#include <map>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/memory.h"
#include "model/model.h"

namespace chatglm::cuda {

struct GpuLayer {
  const float* attention_norm = nullptr;  // (hidden)
  PackedMatrix qkv;                       // (qkv_size, hidden)
  const float* qkv_bias = nullptr;        // (qkv_size); zeros, the same for all layers, if the architecture has none
  PackedMatrix attention_output;          // (hidden, query_size)
  const float* ffn_norm = nullptr;        // (hidden)
  PackedMatrix ffn_up;                    // (2 * ffn, hidden), gate_up: as the table says
  PackedMatrix ffn_down;                  // (hidden, ffn)
};

/// A model's weights in a GPU's memory.
struct GpuWeights {
  EmbeddingTable embedding;  // (vocabulary, hidden), as the file has it: only single rows of it are read
  std::vector<GpuLayer> layers;
  const float* output_norm = nullptr;  // (hidden)
  PackedMatrix output;                 // (vocabulary, hidden)

  std::map<std::string, uint64_t> bytes_by_type;
  uint64_t bytes_per_token = 0;  // of the weights, all but the embeddings of other tokens
};

/// Takes a place in `memory`, which is zero, for each tensor; with an arena that has no block it only counts.
GpuWeights place_weights(const ModelSource& source, Arena& memory);

/// Reads the model and fills the places. Throws what load_weights does, and ERR_CHECKPOINT_INVALID if a number is too
/// large for f16.
void upload_weights(const ModelSource& source, const GpuWeights& weights, const Launch& launch,
                    const Progress& progress, const std::atomic<bool>& abort);

}  // namespace chatglm::cuda
