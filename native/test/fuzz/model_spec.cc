// Shapes, tables of tensors and ranges of files out of the fuzzer's bytes, half of them near to valid ones. Each is
// refused with an Error or taken; what is taken and small is loaded from a file, whose ranges may lie anywhere.
#include <fuzzer/FuzzedDataProvider.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "base/error.h"
#include "model/model.h"
#include "model/tensors.h"
#include "test/fuzz/expect.h"

namespace chatglm {
namespace {

constexpr size_t kFileBytes = 64 << 10;
constexpr int64_t kMostLoadedBytes = 1 << 20;
constexpr int32_t kMostLayers = 3;
constexpr DataType kTypes[] = {DataType::f32,  DataType::f16,  DataType::bf16, DataType::q8_0, DataType::q4_0,
                               DataType::q4_1, DataType::q5_0, DataType::q5_1, DataType::q4_k, DataType::q5_k,
                               DataType::q6_k, DataType::int8, DataType::int4};

// A file of numbers that are finite in most types. It lies in memory: libFuzzer ends without a chance to delete one.
const std::string& weights_file() {
  static const std::string path = [] {
    const int file = memfd_create("weights", 0);
    EXPECT(file >= 0);
    std::vector<uint8_t> bytes(kFileBytes);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i % 2 ? 0x30 : i / 2);
    EXPECT(write(file, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    return "/proc/self/fd/" + std::to_string(file);
  }();
  return path;
}

// Small and valid ones among them.
int32_t number(FuzzedDataProvider& input, int32_t usual) {
  const auto kind = input.ConsumeIntegral<uint8_t>();
  if (kind < 200) return usual;
  if (kind < 230) return 16 * input.ConsumeIntegralInRange<int32_t>(0, 8);
  if (kind < 240) return input.ConsumeIntegralInRange<int32_t>(-2, 40);
  return input.ConsumeIntegral<int32_t>();
}

ModelShape shape_of(FuzzedDataProvider& input) {
  ModelShape shape;
  shape.layers = number(input, 1);
  shape.hidden_size = number(input, 32);
  shape.heads = number(input, 2);
  shape.kv_groups = number(input, 1);
  shape.head_size = number(input, 16);
  shape.ffn_size = number(input, 32);
  shape.vocabulary = number(input, 64);
  shape.rope_dimension = number(input, 8);
  const bool usual = input.ConsumeIntegral<uint8_t>() < 240;
  shape.norm_epsilon = usual ? 1e-5f : input.ConsumeFloatingPoint<float>();
  shape.rope_base = usual ? 10000 : input.ConsumeFloatingPoint<float>();
  shape.rope_scale = usual ? 1 : input.ConsumeFloatingPoint<float>();
  shape.architecture.qkv_bias = input.ConsumeBool();
  return shape;
}

FileRange range_of(FuzzedDataProvider& input, uint64_t usual) {
  const auto kind = input.ConsumeIntegral<uint8_t>();
  if (kind < 240) return {0, kind * 16u, usual};
  return {input.ConsumeIntegral<int32_t>(), input.ConsumeIntegral<uint64_t>(),
          kind < 248 ? usual : input.ConsumeIntegral<uint64_t>()};
}

void add_tensor(FuzzedDataProvider& input, ModelSource& source, DataType type, const std::string& name, int64_t rows,
                int64_t columns) {
  const auto kind = input.ConsumeIntegral<uint8_t>();
  if (kind == 255) return;  // missing
  TensorSource tensor;
  tensor.name = kind == 254 ? input.ConsumeRandomLengthString(40) : name;
  tensor.type = kind >= 200 && kind < 250 ? input.PickValueInArray(kTypes) : rows == 1 ? DataType::f32 : type;
  tensor.rows = kind == 253 ? input.ConsumeIntegral<int64_t>() : rows;
  tensor.columns = kind == 252 ? input.ConsumeIntegral<int64_t>() : columns;
  tensor.random = kind >= 100 && kind < 110;
  // As the addon makes them of numbers from JavaScript; where they overflow, nothing is loaded.
  const BlockShape block = block_shape(tensor.type);
  const uint64_t row = static_cast<uint64_t>(tensor.columns) / static_cast<uint64_t>(block.elements) *
                       static_cast<uint64_t>(block.bytes);
  tensor.data = range_of(input, static_cast<uint64_t>(tensor.rows) * row);
  tensor.scale_type = kTypes[kind % 3];
  tensor.scale = range_of(input, static_cast<uint64_t>(tensor.rows) * (kind % 3 == 0 ? 4 : 2));
  source.tensors.push_back(tensor);
  if (kind == 251) source.tensors.push_back(tensor);
}

ModelSource source_of(FuzzedDataProvider& input) {
  ModelSource source;
  source.shape = shape_of(input);
  source.files = {weights_file()};
  source.quantize = input.ConsumeIntegral<uint8_t>() > 200;
  source.quantized_type = input.ConsumeBool() ? DataType::q8_0 : DataType::q4_0;
  const DataType type = input.PickValueInArray(kTypes);
  // Of a shape that no backend computes, the tensors are never looked at.
  try {
    check_shape(source.shape);
  } catch (const Error&) {
    return source;
  }
  if (source.shape.layers > kMostLayers) return source;
  for (const TensorSpec& spec : tensor_table(source.shape)) {
    if (spec.id.role == TensorRole::output && input.ConsumeBool()) continue;
    add_tensor(input, source, type, spec.name, spec.rows, spec.columns);
  }
  return source;
}

void run(FuzzedDataProvider& input) {
  const ModelSource source = source_of(input);
  const std::vector<PlannedTensor> plan = planned_tensors(source);
  EXPECT(plan.size() == source.tensors.size());
  int64_t bytes = 0;
  for (size_t i = 0; i < plan.size(); ++i) {
    EXPECT(plan[i].name == source.tensors[i].name && plan[i].rows == source.tensors[i].rows);
    EXPECT(plan[i].rows >= 1 && plan[i].columns >= 1);
    // What check_shape() allows takes less than 2^45 bytes a tensor.
    bytes += plan[i].rows *
             std::max(row_bytes(plan[i].type, plan[i].columns), row_bytes(source.tensors[i].type, plan[i].columns));
  }
  // Loading takes ten times as long as all the rest: not every time.
  if (bytes > kMostLoadedBytes || input.ConsumeIntegral<uint8_t>() % 8 != 0) return;
  const std::atomic<bool> abort{false};
  const Weights weights = load_weights(
      source, [](uint64_t done, uint64_t total) { EXPECT(done <= total); }, abort);
  EXPECT(weights.embedding.rows == source.shape.vocabulary && weights.output.rows == source.shape.vocabulary);
  EXPECT(weights.mapped_bytes <= kFileBytes * source.tensors.size());
}

}  // namespace
}  // namespace chatglm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider input(data, size);
  try {
    chatglm::run(input);
  } catch (const chatglm::Error& error) {
    EXPECT(error.code == "ERR_CHECKPOINT_INVALID" || error.code == "ERR_INVALID_ARGUMENT");
  }
  return 0;
}
