#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/data_type.h"
#include "base/memory.h"

namespace chatglm {

/// The shape of a model, in the terms of THUDM's config.json.
struct ModelShape {
  int32_t layers = 0;
  int32_t hidden_size = 0;
  int32_t heads = 0;
  int32_t kv_groups = 0;  // key/value heads; heads / kv_groups query heads share one
  int32_t head_size = 0;
  int32_t ffn_size = 0;
  int32_t vocabulary = 0;
  float norm_epsilon = 0;
  int32_t rope_dimension = 0;  // the first so many dimensions of a head are rotated, in pairs (2j, 2j + 1)
  float rope_base = 0;
  float rope_scale = 1;  // positions are divided by this

  int32_t query_size() const { return heads * head_size; }
  int32_t kv_size() const { return kv_groups * head_size; }
  int32_t qkv_size() const { return query_size() + 2 * kv_size(); }
};

/// A matrix in row order, or a vector as one row. The bytes lie in a mapped file or in memory that Weights owns, at any
/// alignment.
struct Tensor {
  DataType type = DataType::f32;
  int64_t rows = 0;
  int64_t columns = 0;
  const uint8_t* data = nullptr;

  int64_t row_bytes() const { return chatglm::row_bytes(type, columns); }
  int64_t bytes() const { return rows * row_bytes(); }
  const uint8_t* row(int64_t i) const { return data + i * row_bytes(); }
  const float* floats() const { return reinterpret_cast<const float*>(data); }  // norms and biases: f32, owned
};

struct LayerWeights {
  Tensor attention_norm;    // (hidden) f32
  Tensor qkv;               // (qkv_size, hidden): all query heads, then the key heads, then the value heads
  Tensor qkv_bias;          // (qkv_size) f32
  Tensor attention_output;  // (hidden, query_size)
  Tensor ffn_norm;          // (hidden) f32
  Tensor ffn_up;            // (2 * ffn, hidden): the gate's rows, then the others
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

/// Throws ERR_CHECKPOINT_INVALID if a backend could not compute with this shape.
void check_shape(const ModelShape& shape);

/// A tensor as it will be loaded.
struct PlannedTensor {
  std::string name;
  DataType type = DataType::f32;
  int64_t rows = 0;
  int64_t columns = 0;
};

/// The tensors of the table, in its order. Reads no file. Throws ERR_CHECKPOINT_INVALID if one is missing, there twice,
/// unknown or of another shape than the config's, and ERR_INVALID_ARGUMENT if it cannot be quantized as asked for.
std::vector<PlannedTensor> planned_tensors(const ModelSource& source);

/// Takes rows of a tensor, checked and converted: some at a time, in any order, on several threads. Their bytes are
/// there during the call only.
using RowSink = std::function<void(int64_t begin, int64_t end, const uint8_t* rows)>;

/// Takes tensors on their way. What it does not take stays in what load_weights() returns.
struct TensorSink {
  /// Is asked for each tensor, whose numbers are not there yet, for what takes its rows; may return none.
  std::function<RowSink(const std::string& name, const Tensor& shape)> rows;
  /// Is shown each tensor that is not taken by rows; its bytes are there during the call. Returns whether it takes it.
  std::function<bool(const std::string& name, const Tensor& tensor)> whole;
};

/// Maps the files, checks every range and shape, checks that all numbers are finite, and converts what the kernels do
/// not read as it lies: norms and biases to f32; q4_1, q5_0, q5_1, q4_K, q5_K and q6_K matrices to q8_0; int8 and int4
/// rows to q8_0 and q4_0. Throws ERR_CHECKPOINT_INVALID naming file and tensor, ERR_OUT_OF_MEMORY, or ERR_ABORTED.
///
/// With a sink each tensor goes there as soon as it is read, checked and converted, and takes no memory any more: what
/// is returned has types and shapes, but of these no numbers. A missing output matrix, which the embedding is then, is
/// not given.
Weights load_weights(const ModelSource& source, const Progress& progress, const std::atomic<bool>& abort,
                     const TensorSink& sink = {});

/// Fills a run of a tensor's elements with numbers that are about normally distributed. The same name and seed give the
/// same numbers wherever the tensor is cut; `first` and `count` are multiples of 32.
void fill_random(DataType type, uint8_t* target, const std::string& name, uint64_t seed, int64_t first, int64_t count,
                 float mean, float deviation);

}  // namespace chatglm
