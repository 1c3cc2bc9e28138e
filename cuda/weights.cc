#include "cuda/weights.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "cuda/exit_gate.h"

namespace chatglm::cuda {

namespace {

constexpr size_t kChunkBytes = 16 << 20;  // of a tensor, in one pinned buffer

// The weights go to the GPU in chunks through two pinned buffers: while the CPU fills one buffer, the GPU copies the
// other and packs its rows.
class Uploader {
 public:
  explicit Uploader(const Launch& launch)
      : launch_(launch), overflow_(sizeof(uint32_t)), buffers_{Buffer{}, Buffer{}} {}

  /// Copies bytes in their order.
  void copy(const uint8_t* source, size_t bytes, const void* target) {
    auto* to = static_cast<uint8_t*>(const_cast<void*>(target));
    for (size_t done = 0; done < bytes; done += kChunkBytes) {
      const size_t chunk = std::min(kChunkBytes, bytes - done);
      Buffer& buffer = fill(source + done, chunk);
      check(cudaMemcpyAsync(to + done, buffer.pinned.data(), chunk, cudaMemcpyHostToDevice, launch_.stream),
            "copying weights");
      buffer.free.record(launch_.stream);
    }
  }

  /// Copies a matrix and packs it into the kernels' order. Throws ERR_CHECKPOINT_INVALID if a number is too large for
  /// f16.
  void pack(const std::string& name, const Tensor& tensor, const PackedMatrix& target) {
    const int64_t row_bytes = tensor.row_bytes();
    const int64_t rows = std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes) / row_bytes);
    for (int64_t first = 0; first < tensor.rows; first += rows) {
      const int64_t count = std::min(rows, tensor.rows - first);
      const auto bytes = static_cast<size_t>(count * row_bytes);
      Buffer& buffer = fill(tensor.row(first), bytes);
      if (buffer.device.size() < bytes) buffer.device = DeviceMemory(std::max(bytes, kChunkBytes));
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
    PinnedMemory pinned{kChunkBytes};
    DeviceMemory device;
    Event free{true};  // reached when the GPU has read the buffer
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

// Where a tensor lies: in one matrix or one vector or, as the embedding does, in neither. `Weights` is GpuWeights,
// whose places are to be set, or const GpuWeights.
template <class Weights>
auto place_of(Weights& weights, TensorId id) {
  struct Place {
    decltype(&weights.output) matrix = nullptr;
    decltype(&weights.output_norm) vector = nullptr;
  };
  const auto layer = [&]() -> auto& { return weights.layers.at(static_cast<size_t>(id.layer)); };
  switch (id.role) {
    case TensorRole::attention_norm: return Place{.vector = &layer().attention_norm};
    case TensorRole::qkv: return Place{.matrix = &layer().qkv};
    case TensorRole::qkv_bias: return Place{.vector = &layer().qkv_bias};
    case TensorRole::attention_output: return Place{.matrix = &layer().attention_output};
    case TensorRole::ffn_norm: return Place{.vector = &layer().ffn_norm};
    case TensorRole::ffn_up: return Place{.matrix = &layer().ffn_up};
    case TensorRole::ffn_down: return Place{.matrix = &layer().ffn_down};
    case TensorRole::embedding: break;
    case TensorRole::output_norm: return Place{.vector = &weights.output_norm};
    case TensorRole::output: return Place{.matrix = &weights.output};
  }
  return Place{};
}

}  // namespace

GpuWeights place_weights(const ModelSource& source, Arena& memory) {
  const std::vector<PlannedTensor> plan = planned_tensors(source);
  std::map<TensorId, DataType> types;
  for (const PlannedTensor& tensor : plan) types[tensor.id] = tensor.type;
  // A model without an output matrix uses its embedding, which then is here twice: as rows and in the kernels' order.
  if (is_tied(plan)) types[{TensorRole::output}] = types.at({TensorRole::embedding});

  GpuWeights weights;
  weights.layers.resize(static_cast<size_t>(source.shape.layers));
  const auto count = [&](DataType type, uint64_t bytes, uint64_t read) {
    weights.bytes_by_type[name_of(type)] += bytes;
    weights.bytes_per_token += read;
  };
  for (const TensorSpec& spec : tensor_table(source.shape)) {
    const DataType type = types.at(spec.id);
    const auto place = place_of(weights, spec.id);
    if (place.matrix) {
      PackedMatrix& matrix = *place.matrix;
      matrix = packed_shape(type, spec.rows, spec.columns, spec.gated);
      const auto bytes = static_cast<uint64_t>(matrix.bytes());
      matrix.data = memory.take<uint8_t>(bytes);
      count(matrix.type, bytes, bytes);
    } else if (place.vector) {
      const auto columns = static_cast<uint64_t>(spec.columns);
      *place.vector = memory.take<float>(columns);
      count(DataType::f32, columns * sizeof(float), columns * sizeof(float));
    } else {
      const auto row = static_cast<uint64_t>(row_bytes(type, spec.columns));
      const auto bytes = static_cast<uint64_t>(spec.rows) * row;
      weights.embedding = {type, memory.take<uint8_t>(bytes), static_cast<int32_t>(spec.columns)};
      count(type, bytes, row);
    }
  }
  if (!source.shape.architecture.qkv_bias) {
    const float* zeros = memory.take<float>(static_cast<size_t>(source.shape.qkv_size()));
    for (GpuLayer& layer : weights.layers) layer.qkv_bias = zeros;
  }
  return weights;
}

void upload_weights(const ModelSource& source, const GpuWeights& weights, const Launch& launch,
                    const Progress& progress, const std::atomic<bool>& abort) {
  const bool tied = is_tied(planned_tensors(source));
  std::unique_ptr<Uploader> uploader;
  const auto gated = [](const auto& action) {
    const ExitGate::Pass pass;
    action();
  };
  gated([&] { uploader = std::make_unique<Uploader>(launch); });
  try {
    const auto take = [&](const TensorSpec& spec, const Tensor& tensor) {
      const ExitGate::Pass pass;
      const auto bytes = static_cast<size_t>(tensor.bytes());
      const auto place = place_of(weights, spec.id);
      if (place.matrix) uploader->pack(spec.name, tensor, *place.matrix);
      if (place.vector) uploader->copy(tensor.data, bytes, *place.vector);
      if (spec.kind == TensorKind::embedding) {
        uploader->copy(tensor.data, bytes, weights.embedding.data);
        if (tied) uploader->pack(spec.name, tensor, weights.output);
      }
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
