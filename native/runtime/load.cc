#include <algorithm>
#include <cmath>
#include <map>

#include "error.h"
#include "half.h"
#include "model.h"
#include "quantize.h"
#include "thread_pool.h"

namespace chatglm {

namespace {

enum class Kind { embedding, linear, output, vector };

// Where a tensor of the table goes, and what it must look like.
struct Slot {
  Tensor* tensor;
  int64_t rows, columns;
  Kind kind;
};

std::map<std::string, Slot> slots_of(const ModelShape& s, Weights& weights) {
  std::map<std::string, Slot> slots;
  weights.layers.resize(static_cast<size_t>(s.layers));
  slots["token_embd.weight"] = {&weights.embedding, s.vocabulary, s.hidden_size, Kind::embedding};
  slots["output_norm.weight"] = {&weights.output_norm, 1, s.hidden_size, Kind::vector};
  slots["output.weight"] = {&weights.output, s.vocabulary, s.hidden_size, Kind::output};
  for (int32_t i = 0; i < s.layers; ++i) {
    LayerWeights& layer = weights.layers[static_cast<size_t>(i)];
    const std::string prefix = "blk." + std::to_string(i) + ".";
    slots[prefix + "attn_norm.weight"] = {&layer.attention_norm, 1, s.hidden_size, Kind::vector};
    slots[prefix + "attn_qkv.weight"] = {&layer.qkv, s.qkv_size(), s.hidden_size, Kind::linear};
    slots[prefix + "attn_qkv.bias"] = {&layer.qkv_bias, 1, s.qkv_size(), Kind::vector};
    slots[prefix + "attn_output.weight"] = {&layer.attention_output, s.hidden_size, s.query_size(), Kind::linear};
    slots[prefix + "ffn_norm.weight"] = {&layer.ffn_norm, 1, s.hidden_size, Kind::vector};
    slots[prefix + "ffn_up.weight"] = {&layer.ffn_up, 2 * static_cast<int64_t>(s.ffn_size), s.hidden_size,
                                       Kind::linear};
    slots[prefix + "ffn_down.weight"] = {&layer.ffn_down, s.hidden_size, s.ffn_size, Kind::linear};
  }
  return slots;
}

DataType loaded_type(const ModelSource& model, const TensorSource& tensor, Kind kind) {
  if (kind == Kind::vector) return DataType::f32;
  if (kind == Kind::linear && model.quantize) return model.quantized_type;
  if (tensor.type == DataType::int4) return DataType::q4_0;
  return is_compute_type(tensor.type) ? tensor.type : DataType::q8_0;
}

Error invalid(const ModelSource& model, const TensorSource& tensor, const std::string& what) {
  const bool in_file =
      !tensor.random && tensor.data.file >= 0 && static_cast<size_t>(tensor.data.file) < model.files.size();
  const std::string file = in_file ? model.files[static_cast<size_t>(tensor.data.file)] : "";
  return Error("ERR_CHECKPOINT_INVALID", (in_file ? file + ": " : "") + tensor.name + " " + what,
               {{"file", file}, {"tensor", tensor.name}});
}

// What loading would do with a tensor.
PlannedTensor planned(const ModelSource& model, const TensorSource& tensor, const Slot& slot) {
  if (tensor.rows != slot.rows || tensor.columns != slot.columns) {
    throw invalid(model, tensor,
                  "has the shape (" + std::to_string(tensor.rows) + ", " + std::to_string(tensor.columns) +
                      "); the config makes it (" + std::to_string(slot.rows) + ", " + std::to_string(slot.columns) +
                      ")");
  }
  const int64_t block = block_shape(tensor.type).elements;
  if (tensor.columns % block != 0) {
    throw invalid(
        model, tensor,
        std::string("is of type ") + name_of(tensor.type) + ", whose rows are multiples of " + std::to_string(block));
  }
  const DataType type = loaded_type(model, tensor, slot.kind);
  const bool from_float = tensor.type <= DataType::bf16;
  const bool exact = (tensor.type == DataType::int8 && type == DataType::q8_0) ||
                     (tensor.type == DataType::int4 && type == DataType::q4_0);
  if (slot.kind == Kind::linear && model.quantize && tensor.type != type && !from_float && !exact) {
    throw Error("ERR_INVALID_ARGUMENT", "quantization: this checkpoint is quantized already (" + tensor.name + " is " +
                                            name_of(tensor.type) + ")");
  }
  return {tensor.name, type, tensor.rows, tensor.columns};
}

class Loader {
 public:
  Loader(const ModelSource& source, const Progress& progress, const std::atomic<bool>& abort, const TensorSink& sink)
      : source_(source), progress_(progress), abort_(abort), sink_(sink), pool_(source.threads) {}

  Weights load() {
    const std::vector<PlannedTensor> plan = planned_tensors(source_);
    for (const std::string& path : source_.files) weights_.files.emplace_back(path);
    const std::map<std::string, Slot> slots = slots_of(source_.shape, weights_);
    for (const TensorSource& tensor : source_.tensors) total_ += bytes_of(tensor);
    for (size_t i = 0; i < plan.size(); ++i) {
      const TensorSource& source = source_.tensors[i];
      const Slot& slot = slots.at(source.name);
      *slot.tensor = {plan[i].type, plan[i].rows, plan[i].columns, nullptr};
      load_tensor(source, slot);
      if (sink_) hand_over(source, *slot.tensor);
    }
    if (weights_.output.rows == 0) weights_.output = weights_.embedding;
    return std::move(weights_);
  }

 private:
  Error invalid(const TensorSource& tensor, const std::string& what) const {
    return chatglm::invalid(source_, tensor, what);
  }

  static uint64_t bytes_of(const TensorSource& tensor) {
    return static_cast<uint64_t>(tensor.rows * row_bytes(tensor.type, tensor.columns));
  }

  void hand_over(const TensorSource& source, Tensor& tensor) {
    const bool owned = !weights_.buffers.empty() && weights_.buffers.back().data() == tensor.data;
    if (sink_(source.name, tensor)) {
      tensor.data = nullptr;
      if (owned)
        weights_.buffers.pop_back();
      else
        weights_.mapped_bytes -= bytes_of(source);
    }
    // What was looked at takes no memory of the process from here on; where it stays mapped, it comes back page by
    // page.
    if (!source.random)
      weights_.files[static_cast<size_t>(source.data.file)].forget(source.data.offset, source.data.length);
  }

  const uint8_t* mapped(const TensorSource& tensor, const FileRange& range, uint64_t wanted) const {
    if (range.file < 0 || static_cast<size_t>(range.file) >= weights_.files.size())
      throw invalid(tensor, "has no file");
    const MappedFile& file = weights_.files[static_cast<size_t>(range.file)];
    if (range.length != wanted) {
      throw invalid(tensor,
                    "has " + std::to_string(range.length) + " bytes where its shape takes " + std::to_string(wanted));
    }
    if (range.offset > file.size() || range.length > file.size() - range.offset) {
      throw invalid(tensor, "ends beyond the end of the file");
    }
    return file.data() + range.offset;
  }

  void load_tensor(const TensorSource& source, const Slot& slot) {
    const DataType type = slot.tensor->type;
    if (source.random) {
      uint8_t* target = allocate(*slot.tensor);
      const float deviation = slot.kind == Kind::vector      ? (source.name.ends_with("bias") ? 0.2f : 0.1f)
                              : slot.kind == Kind::embedding ? 1.0f
                                                             : 1.28f / std::sqrt(static_cast<float>(source.columns));
      const float mean = source.name.ends_with("norm.weight") ? 1.0f : 0.0f;
      for_rows(source, [&](int64_t begin, int64_t end, float*) {
        fill_random(type, target + begin * slot.tensor->row_bytes(), source.name, source_.seed, begin * source.columns,
                    (end - begin) * source.columns, mean, deviation);
        return true;
      });
    } else {
      const uint8_t* data = mapped(source, source.data, bytes_of(source));
      const int64_t source_row = row_bytes(source.type, source.columns);
      if (type == source.type && slot.kind != Kind::vector) {
        slot.tensor->data = data;
        weights_.mapped_bytes += bytes_of(source);
        for_rows(source, [&](int64_t begin, int64_t end, float*) {
          return all_finite(type, data + begin * source_row, (end - begin) * source.columns);
        });
      } else {
        const bool quantizing = slot.kind == Kind::linear && source_.quantize && is_compute_type(source.type);
        convert(source, *slot.tensor, data, quantizing);
      }
    }
    weights_.bytes_by_type[name_of(type)] += static_cast<uint64_t>(slot.tensor->bytes());
  }

  void convert(const TensorSource& source, Tensor& tensor, const uint8_t* data, bool quantizing) {
    const bool scaled = source.type == DataType::int8 || source.type == DataType::int4;
    const uint8_t* scales = nullptr;
    if (scaled) {
      scales = mapped(source, source.scale, static_cast<uint64_t>(source.rows * row_bytes(source.scale_type, 1)));
    }
    uint8_t* target = allocate(tensor);
    const int64_t source_row = row_bytes(source.type, source.columns), target_row = tensor.row_bytes();
    for_rows(source, [&](int64_t begin, int64_t end, float* scratch) {
      for (int64_t i = begin; i < end; ++i) {
        float scale = 1;
        if (scaled) to_float(source.scale_type, scales + i * row_bytes(source.scale_type, 1), 1, 1, &scale);
        if (!std::isfinite(scale) || !all_finite(source.type, data + i * source_row, source.columns)) return false;
        if (quantizing) {
          quantize_row(source.type, data + i * source_row, source.columns, tensor.type, target + i * target_row,
                       scratch);
        } else {
          convert_row(source.type, data + i * source_row, scale, source.columns, tensor.type, target + i * target_row,
                      scratch);
        }
      }
      return all_finite(tensor.type, target + begin * target_row, (end - begin) * source.columns);
    });
    weights_.files[static_cast<size_t>(source.data.file)].forget(source.data.offset, source.data.length);
  }

  uint8_t* allocate(Tensor& tensor) {
    weights_.buffers.emplace_back(static_cast<size_t>(tensor.bytes()), "a tensor of the model");
    tensor.data = weights_.buffers.back().data();
    return weights_.buffers.back().data();
  }

  // Runs task(begin, end, scratch of one row) over all rows, some MiB at a time and on all threads; false means that a
  // number was not finite.
  template <class Task>
  void for_rows(const TensorSource& source, const Task& task) {
    constexpr int64_t kChunkBytes = 4 << 20;
    const int64_t rows =
        std::clamp<int64_t>(kChunkBytes / std::max<int64_t>(1, row_bytes(source.type, source.columns)), 1, source.rows);
    const int64_t chunks = (source.rows + rows - 1) / rows, batch = 4 * pool_.threads();
    std::atomic<bool> finite{true};
    for (int64_t first = 0; first < chunks; first += batch) {
      const int64_t last = std::min(chunks, first + batch);
      pool_.run(last - first, abort_, [&](int64_t i) {
        const int64_t begin = (first + i) * rows, end = std::min(source.rows, begin + rows);
        std::vector<float> scratch(static_cast<size_t>(source.columns));
        if (!task(begin, end, scratch.data())) finite.store(false, std::memory_order_relaxed);
      });
      if (abort_.load(std::memory_order_relaxed)) throw Error("ERR_ABORTED", "Loading was aborted");
      if (!finite) throw invalid(source, "holds NaN or infinite numbers");
      const int64_t loaded = std::min(source.rows, last * rows) - first * rows;
      done_ += static_cast<uint64_t>(loaded * row_bytes(source.type, source.columns));
      progress_(done_, total_);
    }
  }

  const ModelSource& source_;
  const Progress& progress_;
  const std::atomic<bool>& abort_;
  const TensorSink& sink_;
  ThreadPool pool_;
  Weights weights_;
  uint64_t done_ = 0, total_ = 0;
};

}  // namespace

void check_shape(const ModelShape& s) {
  const auto within = [](int64_t value, int64_t most) { return value >= 1 && value <= most; };
  const bool sane = within(s.layers, 1024) && within(s.hidden_size, 1 << 18) && within(s.heads, 4096) &&
                    within(s.kv_groups, s.heads) && within(s.head_size, 1024) && within(s.ffn_size, 1 << 20) &&
                    within(s.vocabulary, 1 << 24) && within(s.query_size(), 1 << 20);
  const bool fits = sane && s.heads % s.kv_groups == 0 && s.hidden_size % 32 == 0 && s.ffn_size % 32 == 0 &&
                    s.query_size() % 32 == 0 && s.head_size % 16 == 0 && s.rope_dimension % 2 == 0 &&
                    s.rope_dimension >= 0 && s.rope_dimension <= s.head_size;
  const bool numbers = std::isfinite(s.norm_epsilon) && s.norm_epsilon >= 0 && std::isfinite(s.rope_base) &&
                       s.rope_base > 0 && std::isfinite(s.rope_scale) && s.rope_scale > 0;
  if (!fits || !numbers)
    throw Error("ERR_CHECKPOINT_INVALID", "the model's shape is not one that this runtime computes");
}

std::vector<PlannedTensor> planned_tensors(const ModelSource& source) {
  check_shape(source.shape);
  Weights weights;
  std::map<std::string, Slot> slots = slots_of(source.shape, weights);
  std::vector<PlannedTensor> plan;
  for (const TensorSource& tensor : source.tensors) {
    const auto slot = slots.find(tensor.name);
    if (slot == slots.end()) throw invalid(source, tensor, "is not a tensor of this model, or is there twice");
    plan.push_back(planned(source, tensor, slot->second));
    slots.erase(slot);
  }
  slots.erase("output.weight");  // the embedding is it then
  if (!slots.empty()) {
    throw Error("ERR_CHECKPOINT_INVALID", "the checkpoint has no tensor " + slots.begin()->first,
                {{"tensor", slots.begin()->first}});
  }
  return plan;
}

Weights load_weights(const ModelSource& source, const Progress& progress, const std::atomic<bool>& abort,
                     const TensorSink& sink) {
  return Loader(source, progress, abort, sink).load();
}

}  // namespace chatglm
