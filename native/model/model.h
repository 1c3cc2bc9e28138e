#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/data_type.h"
#include "base/memory.h"
#include "model/shape.h"
#include "model/tensors.h"

namespace chatglm {

/// The numbers of a tensor: a matrix in row order, or a vector as one row. Its bytes lie in a mapped file or in memory
/// that Weights owns, at any alignment.
struct Tensor {
  DataType type = DataType::f32;
  int64_t rows = 0;
  int64_t columns = 0;
  const uint8_t* data = nullptr;

  int64_t row_bytes() const { return chatglm::row_bytes(type, columns); }
  int64_t bytes() const { return rows * row_bytes(); }
  const uint8_t* row(int64_t i) const { return data + i * row_bytes(); }
  const float* floats() const { return reinterpret_cast<const float*>(data); }  // of norms and biases: f32, aligned
};

struct LayerWeights {
  Tensor attention_norm;    // (hidden) f32
  Tensor qkv;               // (qkv_size, hidden): all query heads, then the key heads, then the value heads
  Tensor qkv_bias;          // (qkv_size) f32; empty if the architecture has none
  Tensor attention_output;  // (hidden, query_size)
  Tensor ffn_norm;          // (hidden) f32
  Tensor ffn_up;            // (2 * ffn, hidden): the gates' rows, then the rows that they gate
  Tensor ffn_down;          // (hidden, ffn)
};

struct Weights {
  Tensor embedding;  // (vocabulary, hidden)
  std::vector<LayerWeights> layers;
  Tensor output_norm;  // (hidden) f32
  Tensor output;       // (vocabulary, hidden); may be the embedding

  std::vector<MappedFile> files;
  std::vector<Buffer> buffers;
  std::map<std::string, uint64_t> bytes_by_type;
  uint64_t mapped_bytes = 0;  // of the tensors that lie in the files

  /// The layers exist already.
  Tensor& at(TensorId id);
  const Tensor& at(TensorId id) const { return const_cast<Weights*>(this)->at(id); }
};

/// Bytes of a file of ModelSource::files.
struct FileRange {
  int32_t file = -1;
  uint64_t offset = 0;
  uint64_t length = 0;
};

/// One line of the table that the checkpoint readers make.
struct TensorSource {
  std::string name;  // as GGUF names it
  DataType type = DataType::f32;
  int64_t rows = 1;
  int64_t columns = 0;
  bool random = false;  // no data: fill with random numbers
  FileRange data;
  FileRange scale;  // int8 and int4: one a row
  DataType scale_type = DataType::f16;
};

struct ModelSource {
  ModelShape shape;
  std::vector<std::string> files;
  std::vector<TensorSource> tensors;
  bool quantize = false;  // the layers' matrices, as THUDM's model.quantize() does
  DataType quantized_type = DataType::q8_0;
  uint64_t seed = 0;  // of random tensors
  int32_t threads = 1;
};

using Progress = std::function<void(uint64_t bytes, uint64_t total_bytes)>;

/// A tensor of the table that a source has, and the type that it will have once it is loaded.
struct PlannedTensor : TensorSpec {
  DataType type = DataType::f32;
};

/// What load_weights() would load, in the source's order. Reads no file. Throws ERR_CHECKPOINT_INVALID if the shape is
/// refused or if a tensor is missing, there twice, unknown or of another shape than the table's, and
/// ERR_INVALID_ARGUMENT if a tensor cannot be quantized as asked for.
std::vector<PlannedTensor> planned_tensors(const ModelSource& source);

/// Whether the source has no output matrix, so that the embedding is used in its place.
bool is_tied(const std::vector<PlannedTensor>& plan);

/// Takes rows of a tensor, checked and converted: some at a time, in any order, on several threads. Their bytes are
/// there during the call only.
using RowSink = std::function<void(int64_t begin, int64_t end, const uint8_t* rows)>;

/// Takes tensors while they are loaded. A tensor that a sink does not take stays in what load_weights() returns.
struct TensorSink {
  /// Is asked for each tensor, whose numbers are not there yet, for what takes its rows; may return none.
  std::function<RowSink(const TensorSpec& spec, const Tensor& shape)> rows;
  /// Is shown each tensor that is not taken by rows; its bytes are there during the call. Returns whether it takes it.
  std::function<bool(const TensorSpec& spec, const Tensor& tensor)> whole;
};

/// Maps the files, checks every range and shape, checks that all numbers are finite, and converts the tensors that the
/// kernels cannot read as they lie in the file: norms and biases to f32; q4_1, q5_0, q5_1, q4_K, q5_K and q6_K matrices
/// to q8_0; int8 and int4 rows to q8_0 and q4_0. Throws ERR_CHECKPOINT_INVALID naming file and tensor, ERR_ABORTED,
/// ERR_OUT_OF_MEMORY, ERR_THREAD_UNAVAILABLE, and the errors of files (base/error.h).
///
/// A tensor that the sink takes goes there as soon as it is read, checked and converted: the weights that are returned
/// have its type and shape, but no numbers and no memory for them. An output matrix that the source lacks is not given
/// to the sink.
Weights load_weights(const ModelSource& source, const Progress& progress, const std::atomic<bool>& abort,
                     const TensorSink& sink = {});

/// The mean and the standard deviation that random numbers of a tensor have, so that activations stay in a model's
/// usual range: those of lib/checkpoint/synth.ts.
struct Distribution {
  float mean, deviation;
};
Distribution random_distribution(TensorKind kind, int64_t columns);

/// Fills a run of a tensor's elements with numbers that are about normally distributed. The same name and seed give the
/// same numbers wherever the tensor is cut; `first` and `count` are multiples of 32.
void fill_random(DataType type, uint8_t* target, const std::string& name, uint64_t seed, int64_t first, int64_t count,
                 Distribution distribution);

}  // namespace chatglm
