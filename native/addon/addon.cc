#include <napi.h>

#include <chrono>
#include <cstring>
#include <vector>

#include "addon/arguments.h"
#include "addon/cuda_library.h"
#include "addon/device.h"
#include "addon/model.h"
#include "addon/tokenizer.h"
#include "base/cores.h"
#include "base/memory.h"
#include "base/thread_pool.h"
#include "cpu/kernels/kernels.h"
#include "model/model.h"
#include "model/quantize.h"

namespace chatglm::addon {

namespace {

DataType type_argument(const Napi::Value& value, const char* name) {
  if (const auto type = data_type_by_name(string_of(value, name))) return *type;
  throw Error("ERR_INVALID_ARGUMENT", std::string(name) + " is not a tensor type");
}

// Divides, because the product of two numbers from JavaScript may overflow.
void expect_room(size_t length, int64_t rows, int64_t row_length, const char* name) {
  if (static_cast<int64_t>(length) / row_length < rows) {
    throw Error("ERR_INVALID_ARGUMENT", std::string(name) + " is too short: " + std::to_string(length) + " for " +
                                            std::to_string(rows) + " rows of " + std::to_string(row_length));
  }
}

void expect_whole_blocks(DataType type, int64_t count, const char* name) {
  if (count % block_shape(type).elements != 0) {
    throw Error("ERR_INVALID_ARGUMENT", std::string(name) + " must be a multiple of " +
                                            std::to_string(block_shape(type).elements) + " for " + name_of(type));
  }
}

Napi::Value convert_rows(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const DataType source_type = type_argument(info[0], "sourceType"),
                   target_type = type_argument(info[5], "targetType");
    Napi::Uint8Array source = bytes_of(info[1], "source"), target = bytes_of(info[6], "target");
    const int64_t rows = integer_of(info[3], "rows", 0, INT32_MAX),
                  columns = integer_of(info[4], "columns", 1, INT32_MAX);
    const bool scaled = source_type == DataType::int8 || source_type == DataType::int4;
    const std::vector<float> scales = scaled ? floats_of(info[2], "scales") : std::vector<float>();
    if (!is_compute_type(target_type)) throw Error("ERR_INVALID_ARGUMENT", "targetType cannot be written");
    expect_whole_blocks(source_type, columns, "columns");
    expect_whole_blocks(target_type, columns, "columns");
    const int64_t source_row = row_bytes(source_type, columns), target_row = row_bytes(target_type, columns);
    expect_room(source.ByteLength(), rows, source_row, "source");
    expect_room(target.ByteLength(), rows, target_row, "target");
    if (scaled) expect_room(scales.size(), rows, 1, "scales");
    std::vector<float> scratch(static_cast<size_t>(columns));
    for (int64_t i = 0; i < rows; ++i) {
      convert_row(source_type, source.Data() + i * source_row, scaled ? scales[static_cast<size_t>(i)] : 1.0f, columns,
                  target_type, target.Data() + i * target_row, scratch.data());
    }
    return Napi::Number::New(info.Env(), static_cast<double>(rows * target_row));
  });
}

Napi::Value fill_random_blocks(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const DataType type = type_argument(info[0], "type");
    Napi::Uint8Array target = bytes_of(info[1], "target");
    const int64_t bytes = row_bytes(type, kBlockElements), length = static_cast<int64_t>(target.ByteLength());
    const int64_t first = integer_of(info[4], "firstElement", 0, int64_t{1} << 53);
    if (length % bytes != 0 || first % kBlockElements != 0) {
      throw Error("ERR_INVALID_ARGUMENT", "target and firstElement must be whole blocks of 32");
    }
    fill_random(type, target.Data(), string_of(info[2], "name"),
                static_cast<uint64_t>(integer_of(info[3], "seed", 0, int64_t{1} << 53)), first,
                length / bytes * kBlockElements,
                {static_cast<float>(number_of(info[5], "mean")), static_cast<float>(number_of(info[6], "deviation"))});
    return info.Env().Undefined();
  });
}

Napi::Value measure_bandwidth(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto threads = static_cast<int>(integer_of(info[0], "threads", 1, 1024));
    constexpr int64_t kPiece = 1 << 20;
    const int64_t bytes = integer_of(info[1], "bytes", kPiece, int64_t{1} << 40), pieces = bytes / kPiece;
    if (const std::string device = string_of(info[2], "device"); device != "cpu") {
      const int32_t index = cuda_index(device);
      const double speed = cuda_api().measure_bandwidth(index, static_cast<uint64_t>(bytes));
      return Napi::Number::New(info.Env(), speed);
    }
    // Huge pages, as weights have: with pages of 4 KiB the lookup of addresses would be measured.
    const Buffer memory(static_cast<size_t>(pieces * kPiece), "the bandwidth measurement", Buffer::Pages::huge);
    ThreadPool pool(threads);
    const std::atomic<bool> never{false};
    pool.run(pieces, never, [&](int64_t i) { std::memset(memory.data() + i * kPiece, 1, kPiece); });
    const cpu::Kernels& kernels = cpu::select_kernels();
    std::atomic<uint64_t> sink{0};
    const auto begin = std::chrono::steady_clock::now();
    pool.run(pieces, never, [&](int64_t i) { sink += kernels.read(memory.data() + i * kPiece, kPiece); });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    return Napi::Number::New(info.Env(), static_cast<double>(pieces * kPiece) / elapsed.count());
  });
}

Napi::Object to_js(Napi::Env env, const cuda::GpuInfo& gpu) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("name", gpu.name);
  object.Set("computeCapability", gpu.compute_capability);
  object.Set("totalBytes", static_cast<double>(gpu.total_bytes));
  object.Set("freeBytes", static_cast<double>(gpu.free_bytes));
  return object;
}

Napi::Value system_facts(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("kernels", cpu::select_kernels().name);
    object.Set("cores", physical_cores());
    Napi::Array gpus = Napi::Array::New(info.Env());
    std::string cuda = "available";
    try {
      for (const cuda::GpuInfo& gpu : cuda_api().gpus()) gpus.Set(gpus.Length(), to_js(info.Env(), gpu));
    } catch (const Error& error) {
      if (error.code != "ERR_DEVICE_UNAVAILABLE") throw;
      cuda = error.what();
    }
    object.Set("gpus", gpus);
    object.Set("cuda", cuda);
    return object;
  });
}

Napi::Value physical_core_count(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), physical_cores());
}

class Addon : public Napi::Addon<Addon> {
 public:
  Addon(Napi::Env env, Napi::Object exports) {
    exports.Set("Tokenizer", define_tokenizer(env, tokenizer_classes_));
    exports.Set("Model", define_model(env));
    exports.Set("convertRows", Napi::Function::New<convert_rows>(env));
    exports.Set("fillRandom", Napi::Function::New<fill_random_blocks>(env));
    exports.Set("measureBandwidth", Napi::Function::New<measure_bandwidth>(env));
    exports.Set("pageTokens", kPageTokens);
    exports.Set("physicalCores", Napi::Function::New<physical_core_count>(env));
    exports.Set("system", Napi::Function::New<system_facts>(env));
  }

 private:
  TokenizerClasses tokenizer_classes_;
};

}  // namespace

}  // namespace chatglm::addon

using ChatGLMAddon = chatglm::addon::Addon;
NODE_API_NAMED_ADDON(chatglm, ChatGLMAddon)
