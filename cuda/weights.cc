#include "cuda/weights.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "cuda/exit_gate.h"

namespace chatglm::cuda {

namespace {

constexpr size_t kPieceBytes = 16 << 20;  // of a tensor, on its way through pinned memory

// The model's bytes go to the GPU in pieces through two pinned buffers: while one is being filled, the other is copied
// and its rows are put in order.
class Uploader {
 public:
  explicit Uploader(const Launch& launch)
      : launch_(launch), overflow_(sizeof(uint32_t)), buffers_{Buffer{}, Buffer{}} {}

  /// As it is.
  void copy(const uint8_t* source, size_t bytes, const void* target) {
    auto* to = static_cast<uint8_t*>(const_cast<void*>(target));
    for (size_t done = 0; done < bytes; done += kPieceBytes) {
      const size_t piece = std::min(kPieceBytes, bytes - done);
      Buffer& buffer = fill(source + done, piece);
      check(cudaMemcpyAsync(to + done, buffer.pinned.data(), piece, cudaMemcpyHostToDevice, launch_.stream),
            "copying weights");
      buffer.free.record(launch_.stream);
    }
  }

  /// Into the kernels' order. Throws ERR_CHECKPOINT_INVALID if a number is too large for f16.
  void pack(const std::string& name, const Tensor& tensor, const PackedMatrix& target) {
    const int64_t row_bytes = tensor.row_bytes();
    const int64_t rows = std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes) / row_bytes);
    for (int64_t first = 0; first < tensor.rows; first += rows) {
      const int64_t count = std::min(rows, tensor.rows - first);
      const auto bytes = static_cast<size_t>(count * row_bytes);
      Buffer& buffer = fill(tensor.row(first), bytes);
      if (buffer.device.size() < bytes) buffer.device = DeviceMemory(std::max(bytes, kPieceBytes));
      check(cudaMemcpyAsync(buffer.device.data(), buffer.pinned.data(), bytes, cudaMemcpyHostToDevice, launch_.stream),
            "copying weights");
      cuda::pack(launch_, tensor.type, buffer.device.data(), row_bytes, static_cast<int32_t>(first),
                 static_cast<int32_t>(count), target, const_cast<uint8_t*>(target.data),
                 reinterpret_cast<uint32_t*>(overflow_.data()));
      buffer.free.record(launch_.stream);
    }
    if (packed_type(tensor.type) != DataType::f16 || tensor.type == DataType::f16) return;
    uint32_t overflow = 0;
    check(cudaMemcpyAsync(&overflow, overflow_.data(), sizeof overflow, cudaMemcpyDeviceToHost, launch_.stream),
          "copying weights");
    check(cudaStreamSynchronize(launch_.stream), "copying weights");
    if (overflow != 0) {
      throw Error("ERR_CHECKPOINT_INVALID",
                  name +
                      " has numbers beyond 65504, the largest of f16, which GPUs compute with here; the CPU backend "
                      "takes them",
                  {{"tensor", name}});
    }
  }

  void finish() { check(cudaStreamSynchronize(launch_.stream), "copying weights"); }

 private:
  struct Buffer {
    PinnedMemory pinned{kPieceBytes};
    DeviceMemory device;
    Event free{true};  // when recorded work is done, the buffer can be filled again
  };

  Buffer& fill(const uint8_t* source, size_t bytes) {
    Buffer& buffer = buffers_[next_];
    next_ ^= 1;
    buffer.free.wait();
    if (buffer.pinned.size() < bytes) buffer.pinned = PinnedMemory(bytes);
    std::memcpy(buffer.pinned.data(), source, bytes);
    return buffer;
  }

  const Launch& launch_;
  DeviceMemory overflow_;
  Buffer buffers_[2];
  int next_ = 0;
};

std::string layer_prefix(size_t layer) { return "blk." + std::to_string(layer) + "."; }

}  // namespace

GpuWeights place_weights(const ModelSource& source, Arena& memory) {
  std::map<std::string, PlannedTensor> tensors;
  for (PlannedTensor& tensor : planned_tensors(source)) tensors[tensor.name] = tensor;

  GpuWeights weights;
  const auto count = [&](DataType type, uint64_t bytes, uint64_t read) {
    weights.bytes_by_type[name_of(type)] += bytes;
    weights.bytes_per_token += read;
  };
  const auto matrix = [&](const std::string& name, bool gate_up = false) {
    const PlannedTensor& tensor = tensors.at(name);
    PackedMatrix result = packed_shape(tensor.type, tensor.rows, tensor.columns, gate_up);
    const auto bytes = static_cast<uint64_t>(result.bytes());
    result.data = memory.take<uint8_t>(bytes);
    count(result.type, bytes, bytes);
    return result;
  };
  const auto vector = [&](const std::string& name) {
    const auto columns = static_cast<uint64_t>(tensors.at(name).columns);
    count(DataType::f32, columns * sizeof(float), columns * sizeof(float));
    return static_cast<const float*>(memory.take<float>(columns));
  };

  const PlannedTensor& embedding = tensors.at("token_embd.weight");
  const auto row = static_cast<uint64_t>(row_bytes(embedding.type, embedding.columns));
  const auto embedding_bytes = static_cast<uint64_t>(embedding.rows) * row;
  weights.embedding = {embedding.type, memory.take<uint8_t>(embedding_bytes), static_cast<int32_t>(embedding.columns)};
  count(embedding.type, embedding_bytes, row);
  for (int32_t i = 0; i < source.shape.layers; ++i) {
    const std::string prefix = layer_prefix(static_cast<size_t>(i));
    GpuLayer layer;
    layer.attention_norm = vector(prefix + "attn_norm.weight");
    layer.qkv = matrix(prefix + "attn_qkv.weight");
    layer.qkv_bias = vector(prefix + "attn_qkv.bias");
    layer.attention_output = matrix(prefix + "attn_output.weight");
    layer.ffn_norm = vector(prefix + "ffn_norm.weight");
    layer.ffn_up = matrix(prefix + "ffn_up.weight", true);
    layer.ffn_down = matrix(prefix + "ffn_down.weight");
    weights.layers.push_back(layer);
  }
  weights.output_norm = vector("output_norm.weight");
  // A model without an output matrix uses its embedding, which then is here twice: as rows and in the kernels' order.
  weights.output = matrix(tensors.contains("output.weight") ? "output.weight" : "token_embd.weight");
  return weights;
}

void upload_weights(const ModelSource& source, const GpuWeights& weights, const Launch& launch,
                    const Progress& progress, const std::atomic<bool>& abort) {
  std::map<std::string, PackedMatrix> matrices;
  std::map<std::string, const float*> vectors;
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const GpuLayer& layer = weights.layers[i];
    const std::string prefix = layer_prefix(i);
    vectors[prefix + "attn_norm.weight"] = layer.attention_norm;
    matrices[prefix + "attn_qkv.weight"] = layer.qkv;
    vectors[prefix + "attn_qkv.bias"] = layer.qkv_bias;
    matrices[prefix + "attn_output.weight"] = layer.attention_output;
    vectors[prefix + "ffn_norm.weight"] = layer.ffn_norm;
    matrices[prefix + "ffn_up.weight"] = layer.ffn_up;
    matrices[prefix + "ffn_down.weight"] = layer.ffn_down;
  }
  vectors["output_norm.weight"] = weights.output_norm;
  const bool tied = std::none_of(source.tensors.begin(), source.tensors.end(),
                                 [](const TensorSource& tensor) { return tensor.name == "output.weight"; });
  matrices[tied ? "token_embd.weight" : "output.weight"] = weights.output;

  std::unique_ptr<Uploader> uploader;
  const auto gated = [](const auto& action) {
    const ExitGate::Pass pass;
    action();
  };
  gated([&] { uploader = std::make_unique<Uploader>(launch); });
  try {
    const auto take = [&](const std::string& name, const Tensor& tensor) {
      const ExitGate::Pass pass;
      const auto bytes = static_cast<size_t>(tensor.bytes());
      if (name == "token_embd.weight") uploader->copy(tensor.data, bytes, weights.embedding.data);
      if (const auto matrix = matrices.find(name); matrix != matrices.end())
        uploader->pack(name, tensor, matrix->second);
      if (const auto vector = vectors.find(name); vector != vectors.end())
        uploader->copy(tensor.data, bytes, vector->second);
      return true;
    };
    load_weights(source, progress, abort, {.rows = nullptr, .whole = take});
    gated([&] { uploader->finish(); });
  } catch (...) {
    gated([&] { uploader.reset(); });
    throw;
  }
  gated([&] { uploader.reset(); });
}

}  // namespace chatglm::cuda
