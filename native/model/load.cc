#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "model/model.h"
#include "model/quantize.h"

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
    for (const std::string& path : source_.files) {
      weights_.files.emplace_back(path);
      readers_.emplace_back(path);
    }
    const std::map<std::string, Slot> slots = slots_of(source_.shape, weights_);
    for (const TensorSource& tensor : source_.tensors) total_ += bytes_of(tensor);
    for (size_t i = 0; i < plan.size(); ++i) {
      const TensorSource& source = source_.tensors[i];
      const Slot& slot = slots.at(source.name);
      *slot.tensor = {plan[i].type, plan[i].rows, plan[i].columns, nullptr};
      load_tensor(source, slot, i + 1 < plan.size() ? &source_.tensors[i + 1] : nullptr);
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

  // What stays, or is shown as a whole, lies in the mapped file if it needs no conversion. What is taken by rows is
  // read into a buffer, a little at a time, and stays in the processor's caches from there to where it goes.
  void load_tensor(const TensorSource& source, const Slot& slot, const TensorSource* next) {
    Tensor& tensor = *slot.tensor;
    weights_.bytes_by_type[name_of(tensor.type)] += static_cast<uint64_t>(tensor.bytes());
    const bool converts = source.random || tensor.type != source.type || slot.kind == Kind::vector;
    const uint8_t* data = source.random ? nullptr : mapped(source, source.data, bytes_of(source));
    const int64_t source_row = row_bytes(source.type, source.columns), row = tensor.row_bytes();
    if (next && !next->random && next->data.file >= 0 && static_cast<size_t>(next->data.file) < readers_.size()) {
      readers_[static_cast<size_t>(next->data.file)].expect(next->data.offset, next->data.length);
    }

    if (const RowSink take = sink_.rows ? sink_.rows(source.name, tensor) : nullptr) {
      for_rows(source, kStreamedBytes, [&](int64_t begin, int64_t end) {
        thread_local std::vector<uint8_t> read, made;
        if (!source.random) {
          read.resize(static_cast<size_t>((end - begin) * source_row));
          readers_[static_cast<size_t>(source.data.file)].read(
              source.data.offset + static_cast<uint64_t>(begin * source_row), read.size(), read.data());
        }
        const uint8_t* rows = read.data();
        if (converts) {
          made.resize(static_cast<size_t>((end - begin) * row));
          if (!make_rows(source, slot, begin, end, read.data(), made.data())) return false;
          rows = made.data();
        }
        if (!all_finite(tensor.type, rows, (end - begin) * source.columns)) return false;
        take(begin, end, rows);
        return true;
      });
      return;
    }

    uint8_t* target = nullptr;
    if (converts) {
      weights_.buffers.emplace_back(static_cast<size_t>(tensor.bytes()), "a tensor of the model");
      tensor.data = target = weights_.buffers.back().data();
    } else {
      tensor.data = data;
      weights_.mapped_bytes += bytes_of(source);
    }
    for_rows(source, kMappedBytes, [&](int64_t begin, int64_t end) {
      const uint8_t* rows = source.random ? nullptr : data + begin * source_row;
      if (converts && !make_rows(source, slot, begin, end, rows, target + begin * row)) return false;
      return all_finite(tensor.type, tensor.data + begin * row, (end - begin) * source.columns);
    });
    if (sink_.whole && sink_.whole(source.name, tensor)) {
      tensor.data = nullptr;
      if (converts) {
        weights_.buffers.pop_back();
      } else {
        weights_.mapped_bytes -= bytes_of(source);
      }
    }
    // What was looked at takes no memory of the process from here on; where it stays mapped, it comes back by the page.
    if (!source.random)
      weights_.files[static_cast<size_t>(source.data.file)].forget(source.data.offset, source.data.length);
  }

  // Rows of a tensor that is not as it will be loaded. `data`: the first of them as in the file. False if a number is
  // not finite.
  bool make_rows(const TensorSource& source, const Slot& slot, int64_t begin, int64_t end, const uint8_t* data,
                 uint8_t* target) const {
    const DataType type = slot.tensor->type;
    if (source.random) {
      const float deviation = slot.kind == Kind::vector      ? (source.name.ends_with("bias") ? 0.2f : 0.1f)
                              : slot.kind == Kind::embedding ? 1.0f
                                                             : 1.28f / std::sqrt(static_cast<float>(source.columns));
      const float mean = source.name.ends_with("norm.weight") ? 1.0f : 0.0f;
      fill_random(type, target, source.name, source_.seed, begin * source.columns, (end - begin) * source.columns, mean,
                  deviation);
      return true;
    }
    const bool quantizing = slot.kind == Kind::linear && source_.quantize && is_compute_type(source.type);
    const bool scaled = source.type == DataType::int8 || source.type == DataType::int4;
    const int64_t scale_bytes = row_bytes(source.scale_type, 1);
    const uint8_t* scales =
        scaled ? mapped(source, source.scale, static_cast<uint64_t>(source.rows * scale_bytes)) : nullptr;
    const int64_t source_row = row_bytes(source.type, source.columns), row = slot.tensor->row_bytes();
    std::vector<float> scratch(static_cast<size_t>(source.columns));
    for (int64_t i = begin; i < end; ++i, data += source_row, target += row) {
      float scale = 1;
      if (scaled) to_float(source.scale_type, scales + i * scale_bytes, 1, 1, &scale);
      if (!std::isfinite(scale) || !all_finite(source.type, data, source.columns)) return false;
      if (quantizing) {
        quantize_row(source.type, data, source.columns, type, target, scratch.data());
      } else {
        convert_row(source.type, data, scale, source.columns, type, target, scratch.data());
      }
    }
    return true;
  }

  // Runs task(begin, end) over all rows, as many at a time as these bytes of the source hold, on all threads; false
  // means that a number was not finite.
  template <class Task>
  void for_rows(const TensorSource& source, int64_t bytes, const Task& task) {
    constexpr int64_t kWhole = 32;  // rows: no packed order has longer runs of them
    constexpr int64_t kBatchBytes = 8 << 20;
    const int64_t source_row = std::max<int64_t>(1, row_bytes(source.type, source.columns));
    int64_t rows = std::clamp<int64_t>(bytes / source_row, 1, source.rows);
    if (rows > kWhole) rows = rows / kWhole * kWhole;
    const int64_t chunks = (source.rows + rows - 1) / rows;
    // Small, where other models wait for the cores meanwhile.
    const int64_t batch = std::max<int64_t>(pool_.threads(), kBatchBytes / (rows * source_row));
    std::atomic<bool> finite{true};
    for (int64_t first = 0; first < chunks; first += batch) {
      const int64_t last = std::min(chunks, first + batch);
      {
        const ThreadPool::Turn turn(pool_);
        pool_.run(last - first, abort_, [&](int64_t i) {
          const int64_t begin = (first + i) * rows, end = std::min(source.rows, begin + rows);
          if (!task(begin, end)) finite.store(false, std::memory_order_relaxed);
        });
      }
      if (abort_.load(std::memory_order_relaxed)) throw Error("ERR_ABORTED", "Loading was aborted");
      if (!finite) throw invalid(source, "holds NaN or infinite numbers");
      const int64_t loaded = std::min(source.rows, last * rows) - first * rows;
      done_ += static_cast<uint64_t>(loaded * row_bytes(source.type, source.columns));
      progress_(done_, total_);
    }
  }

  static constexpr int64_t kStreamedBytes = 256 << 10, kMappedBytes = 1 << 20;

  const ModelSource& source_;
  const Progress& progress_;
  const std::atomic<bool>& abort_;
  const TensorSink& sink_;
  ThreadPool pool_;
  std::vector<FileReader> readers_;
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
