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

DataType loaded_type(const ModelSource& model, const TensorSource& tensor, const TensorSpec& spec) {
  if (spec.is_vector()) return DataType::f32;
  if (spec.kind == TensorKind::linear && model.quantize) return model.quantized_type;
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

PlannedTensor planned(const ModelSource& model, const TensorSource& tensor, const TensorSpec& spec) {
  if (tensor.rows != spec.rows || tensor.columns != spec.columns) {
    throw invalid(model, tensor,
                  "has the shape (" + std::to_string(tensor.rows) + ", " + std::to_string(tensor.columns) +
                      "); the config makes it (" + std::to_string(spec.rows) + ", " + std::to_string(spec.columns) +
                      ")");
  }
  const int64_t block = block_shape(tensor.type).elements;
  if (tensor.columns % block != 0) {
    throw invalid(
        model, tensor,
        std::string("is of type ") + name_of(tensor.type) + ", whose rows are multiples of " + std::to_string(block));
  }
  const DataType type = loaded_type(model, tensor, spec);
  const bool from_float = tensor.type <= DataType::bf16;
  const bool exact = (tensor.type == DataType::int8 && type == DataType::q8_0) ||
                     (tensor.type == DataType::int4 && type == DataType::q4_0);
  if (spec.kind == TensorKind::linear && model.quantize && tensor.type != type && !from_float && !exact) {
    throw Error("ERR_INVALID_ARGUMENT", "quantization: this checkpoint is quantized already (" + tensor.name + " is " +
                                            name_of(tensor.type) + ")");
  }
  return {spec, type};
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
    weights_.layers.resize(static_cast<size_t>(source_.shape.layers));
    for (const TensorSource& tensor : source_.tensors) total_ += bytes_of(tensor);
    for (size_t i = 0; i < plan.size(); ++i) {
      weights_.at(plan[i].id) = {plan[i].type, plan[i].rows, plan[i].columns, nullptr};
      load_tensor(source_.tensors[i], plan[i], i + 1 < plan.size() ? &source_.tensors[i + 1] : nullptr);
    }
    if (is_tied(plan)) weights_.output = weights_.embedding;
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

  // A tensor that stays in memory, or that the sink takes whole, lies in the mapped file if it needs no conversion. A
  // tensor that the sink takes by rows is read into a buffer in chunks so small that they stay in the processor's
  // caches until the sink has them. The system meanwhile reads the `next` tensor from the disk.
  void load_tensor(const TensorSource& source, const TensorSpec& spec, const TensorSource* next) {
    Tensor& tensor = weights_.at(spec.id);
    weights_.bytes_by_type[name_of(tensor.type)] += static_cast<uint64_t>(tensor.bytes());
    const bool converts = source.random || tensor.type != source.type || spec.is_vector();
    const uint8_t* data = source.random ? nullptr : mapped(source, source.data, bytes_of(source));
    const int64_t source_row = row_bytes(source.type, source.columns), row = tensor.row_bytes();
    if (next && !next->random && next->data.file >= 0 && static_cast<size_t>(next->data.file) < readers_.size()) {
      readers_[static_cast<size_t>(next->data.file)].expect(next->data.offset, next->data.length);
    }

    if (const RowSink take = sink_.rows ? sink_.rows(spec, tensor) : nullptr) {
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
          if (!make_rows(source, spec, begin, end, read.data(), made.data())) return false;
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
      if (converts && !make_rows(source, spec, begin, end, rows, target + begin * row)) return false;
      return all_finite(tensor.type, tensor.data + begin * row, (end - begin) * source.columns);
    });
    if (sink_.whole && sink_.whole(spec, tensor)) {
      tensor.data = nullptr;
      if (converts) {
        weights_.buffers.pop_back();
      } else {
        weights_.mapped_bytes -= bytes_of(source);
      }
    }
    // The check has brought the tensor's pages into the process. They are given back; those of a tensor that stays
    // mapped return one by one as they are used.
    if (!source.random)
      weights_.files[static_cast<size_t>(source.data.file)].forget(source.data.offset, source.data.length);
  }

  // Writes rows that differ from those in the file, or that no file has. `data`: row `begin` as in the file. False if a
  // number is not finite.
  bool make_rows(const TensorSource& source, const TensorSpec& spec, int64_t begin, int64_t end, const uint8_t* data,
                 uint8_t* target) const {
    const Tensor& tensor = weights_.at(spec.id);
    const DataType type = tensor.type;
    if (source.random) {
      fill_random(type, target, source.name, source_.seed, begin * source.columns, (end - begin) * source.columns,
                  random_distribution(spec.kind, source.columns));
      return true;
    }
    const bool quantizing = spec.kind == TensorKind::linear && source_.quantize && is_compute_type(source.type);
    const bool scaled = source.type == DataType::int8 || source.type == DataType::int4;
    const int64_t scale_bytes = row_bytes(source.scale_type, 1);
    const uint8_t* scales =
        scaled ? mapped(source, source.scale, static_cast<uint64_t>(source.rows * scale_bytes)) : nullptr;
    const int64_t source_row = row_bytes(source.type, source.columns), row = tensor.row_bytes();
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

  // Runs task(begin, end) over all rows on all threads, in chunks of about `bytes` bytes of the source. A task returns
  // false if a number was not finite.
  template <class Task>
  void for_rows(const TensorSource& source, int64_t bytes, const Task& task) {
    constexpr int64_t kWhole = 32;  // rows: no packed order has longer runs of consecutive rows
    constexpr int64_t kBatchBytes = 8 << 20;
    const int64_t source_row = std::max<int64_t>(1, row_bytes(source.type, source.columns));
    int64_t rows = std::clamp<int64_t>(bytes / source_row, 1, source.rows);
    if (rows > kWhole) rows = rows / kWhole * kWhole;
    const int64_t chunks = (source.rows + rows - 1) / rows;
    // Chunks of one turn. A turn is short, because other models wait for the cores meanwhile.
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

Tensor& Weights::at(TensorId id) {
  const auto layer = [&]() -> LayerWeights& { return layers.at(static_cast<size_t>(id.layer)); };
  switch (id.role) {
    case TensorRole::attention_norm: return layer().attention_norm;
    case TensorRole::qkv: return layer().qkv;
    case TensorRole::qkv_bias: return layer().qkv_bias;
    case TensorRole::attention_output: return layer().attention_output;
    case TensorRole::ffn_norm: return layer().ffn_norm;
    case TensorRole::ffn_up: return layer().ffn_up;
    case TensorRole::ffn_down: return layer().ffn_down;
    case TensorRole::embedding: return embedding;
    case TensorRole::output_norm: return output_norm;
    case TensorRole::output: return output;
  }
  throw Error("ERR_INTERNAL", "there is no such tensor");
}

std::vector<PlannedTensor> planned_tensors(const ModelSource& source) {
  check_shape(source.shape);
  std::map<std::string, TensorSpec> missing;
  for (TensorSpec& spec : tensor_table(source.shape)) missing[spec.name] = spec;
  std::vector<PlannedTensor> plan;
  for (const TensorSource& tensor : source.tensors) {
    const auto spec = missing.find(tensor.name);
    if (spec == missing.end()) throw invalid(source, tensor, "is not a tensor of this model, or is there twice");
    plan.push_back(planned(source, tensor, spec->second));
    missing.erase(spec);
  }
  for (const auto& [name, spec] : missing) {
    if (spec.id.role == TensorRole::output) continue;
    throw Error("ERR_CHECKPOINT_INVALID", "the checkpoint has no tensor " + name, {{"tensor", name}});
  }
  return plan;
}

bool is_tied(const std::vector<PlannedTensor>& plan) {
  return std::none_of(plan.begin(), plan.end(),
                      [](const PlannedTensor& tensor) { return tensor.id.role == TensorRole::output; });
}

Weights load_weights(const ModelSource& source, const Progress& progress, const std::atomic<bool>& abort,
                     const TensorSink& sink) {
  return Loader(source, progress, abort, sink).load();
}

}  // namespace chatglm
