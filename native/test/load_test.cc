#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/error.h"
#include "base/half.h"
#include "model/quantize.h"
#include "test/random.h"
#include "test/small_model.h"

namespace chatglm {
namespace {

using test::Random;

class LoadTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = (std::filesystem::temp_directory_path() / "chatglm-load-XXXXXX").string();
    ASSERT_NE(mkdtemp(path.data()), nullptr);
    folder_ = path;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::vector<uint8_t>& bytes) {
    const std::string path = (folder_ / name).string();
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path;
  }

  // The random model's tensors as a file: matrices of `type`, some odd bytes between them. `change` edits the data.
  ModelSource in_file(DataType type,
                      const std::function<void(TensorSource&, std::vector<uint8_t>&)>& change = nullptr) {
    ModelSource source = test::random_model(shape_, type);
    Random random(30);
    std::vector<uint8_t> file = random.bytes(13);
    const bool scaled = type == DataType::int8 || type == DataType::int4;
    for (TensorSource& tensor : source.tensors) {
      if (tensor.rows == 1 && scaled) tensor.type = DataType::f16;
      if (tensor.rows == 1 && type == DataType::bf16) tensor.type = DataType::bf16;
      const int64_t columns = tensor.columns, count = tensor.rows * columns;
      std::vector<uint8_t> data;
      if (is_compute_type(tensor.type)) {
        data.resize(static_cast<size_t>(tensor.rows * row_bytes(tensor.type, columns)));
        from_float(tensor.type, random.normals(count, 0.1f).data(), count, data.data());
      } else {
        data = random.bytes(tensor.rows * row_bytes(tensor.type, columns));
        const BlockShape block = block_shape(tensor.type);
        for (size_t at = 0; at < data.size() && !scaled; at += static_cast<size_t>(block.bytes)) {
          store_u16(&data[at], 0x2400);  // 1/64
          if (tensor.type == DataType::q6_k) store_u16(&data[at + 208], 0x2400);
          if (tensor.type != DataType::q6_k && tensor.type != DataType::q5_0) store_u16(&data[at + 2], 0x2400);
        }
      }
      if (change) change(tensor, data);
      tensor.random = false;
      if (!is_compute_type(tensor.type) && scaled) {
        std::vector<uint8_t> scales(static_cast<size_t>(tensor.rows * 2));
        for (int64_t r = 0; r < tensor.rows; ++r)
          store_u16(&scales[static_cast<size_t>(2 * r)], float_to_half(0.001f * static_cast<float>(r + 1)));
        tensor.scale = {0, file.size(), scales.size()};
        file.insert(file.end(), scales.begin(), scales.end());
      }
      tensor.data = {0, file.size(), data.size()};
      file.insert(file.end(), data.begin(), data.end());
      file.push_back(7);
    }
    source.files = {write("model", file)};
    return source;
  }

  std::string code_of(const ModelSource& source) {
    try {
      load_weights(
          source, [](uint64_t, uint64_t) {}, never_);
      return "none";
    } catch (const Error& error) {
      message_ = error.what();
      return error.code;
    }
  }
  void expect_invalid(const ModelSource& source, const std::string& tensor) {
    EXPECT_EQ(code_of(source), "ERR_CHECKPOINT_INVALID");
    EXPECT_NE(message_.find(tensor), std::string::npos) << message_;
  }

  std::filesystem::path folder_;
  // Rows of 256, which the K formats want.
  const ModelShape shape_ = [] {
    ModelShape shape = test::small_shape(1, 32, 256, 512);
    shape.heads = 8;
    return shape;
  }();
  const std::atomic<bool> never_{false};
  std::string message_;
};

const Tensor& tensor_of(const ModelSource& source, const Weights& weights, const std::string& name) {
  for (const TensorSpec& spec : tensor_table(source.shape)) {
    if (spec.name == name) return weights.at(spec.id);
  }
  throw Error("ERR_TEST", "no tensor " + name);
}

std::vector<float> decoded(DataType type, const uint8_t* data, int64_t count) {
  std::vector<float> result(static_cast<size_t>(count));
  to_float(type, data, 1, count, result.data());
  return result;
}

TEST_F(LoadTest, ComputeTypesLieInTheFileAsTheyAre) {
  for (const DataType type : {DataType::f32, DataType::f16, DataType::bf16, DataType::q8_0, DataType::q4_0}) {
    const ModelSource source = in_file(type);
    const Weights weights = load_weights(
        source, [](uint64_t, uint64_t) {}, never_);
    uint64_t mapped = 0;
    for (const TensorSource& tensor : source.tensors) {
      const Tensor& loaded = tensor_of(source, weights, tensor.name);
      EXPECT_EQ(loaded.rows, tensor.rows);
      EXPECT_EQ(loaded.columns, tensor.columns);
      const uint8_t* data = weights.files[0].data() + tensor.data.offset;
      if (tensor.rows == 1) {
        EXPECT_EQ(loaded.type, DataType::f32);
        EXPECT_EQ(decoded(DataType::f32, loaded.data, tensor.columns), decoded(tensor.type, data, tensor.columns));
        EXPECT_EQ(reinterpret_cast<uintptr_t>(loaded.data) % 4, 0u);
      } else {
        EXPECT_EQ(loaded.type, type);
        EXPECT_EQ(loaded.data, data);
        mapped += tensor.data.length;
      }
    }
    EXPECT_EQ(weights.mapped_bytes, mapped);
    EXPECT_EQ(weights.bytes_by_type.at(name_of(type)) >= mapped, true);
  }
}

TEST_F(LoadTest, OtherTypesBecomeQ8OrQ4) {
  for (const DataType type : {DataType::q4_1, DataType::q5_0, DataType::q5_1, DataType::q4_k, DataType::q5_k,
                              DataType::q6_k, DataType::int8, DataType::int4}) {
    const ModelSource source = in_file(type);
    const Weights weights = load_weights(
        source, [](uint64_t, uint64_t) {}, never_);
    for (const TensorSource& tensor : source.tensors) {
      if (tensor.rows == 1) continue;
      const Tensor& loaded = tensor_of(source, weights, tensor.name);
      ASSERT_EQ(loaded.type, type == DataType::int4 ? DataType::q4_0 : DataType::q8_0);
      for (const int64_t row : {int64_t{0}, tensor.rows - 1}) {
        const bool scaled = type == DataType::int8 || type == DataType::int4;
        std::vector<float> before(static_cast<size_t>(tensor.columns));
        to_float(
            type,
            weights.files[0].data() + tensor.data.offset + static_cast<uint64_t>(row * row_bytes(type, tensor.columns)),
            half_to_float(float_to_half(0.001f * static_cast<float>(row + 1))), tensor.columns, before.data());
        const std::vector<float> after = decoded(loaded.type, loaded.row(row), tensor.columns);
        for (size_t i = 0; i < after.size(); ++i) {
          float largest = 0;
          for (size_t j = i / 32 * 32; j < i / 32 * 32 + 32; ++j) largest = std::max(largest, std::fabs(before[j]));
          ASSERT_NEAR(after[i], before[i], scaled ? 0 : largest / 127 * 0.57) << name_of(type) << " " << tensor.name;
        }
      }
    }
    EXPECT_EQ(weights.mapped_bytes, 0u);
  }
}

TEST_F(LoadTest, QuantizesOnlyTheLinearsOfTheLayers) {
  for (const DataType target : {DataType::q8_0, DataType::q4_0}) {
    ModelSource source = in_file(DataType::f16);
    source.quantize = true;
    source.quantized_type = target;
    const Weights weights = load_weights(
        source, [](uint64_t, uint64_t) {}, never_);
    EXPECT_EQ(weights.embedding.type, DataType::f16);
    EXPECT_EQ(weights.output.type, DataType::f16);
    EXPECT_EQ(weights.layers[1].qkv.type, target);
    EXPECT_EQ(weights.layers[1].ffn_down.type, target);
    // One scale a row.
    const uint8_t* row = weights.layers[0].ffn_up.row(5);
    for (int64_t b = 1; b < 8; ++b) EXPECT_EQ(load_u16(row), load_u16(row + b * block_shape(target).bytes));
  }
  ModelSource again = in_file(DataType::q8_0);
  again.quantize = true;
  again.quantized_type = DataType::q4_0;
  EXPECT_EQ(code_of(again), "ERR_INVALID_ARGUMENT");
  again = in_file(DataType::int4);
  again.quantize = true;
  again.quantized_type = DataType::q4_0;
  EXPECT_EQ(code_of(again), "none");
  again.quantized_type = DataType::q8_0;
  EXPECT_EQ(code_of(again), "ERR_INVALID_ARGUMENT");
}

TEST_F(LoadTest, WithoutAnOutputMatrixTheEmbeddingIsIt) {
  ModelSource source = in_file(DataType::f16);
  std::erase_if(source.tensors, [](const TensorSource& t) { return t.name == "output.weight"; });
  const Weights weights = load_weights(
      source, [](uint64_t, uint64_t) {}, never_);
  EXPECT_EQ(weights.output.data, weights.embedding.data);
}

TEST_F(LoadTest, ASinkGetsEveryTensorOnceAndNothingIsKept) {
  struct Seen {
    DataType type;
    int64_t rows, columns;
    std::vector<uint8_t> bytes;
  };
  for (const DataType type : {DataType::f32, DataType::f16, DataType::q4_0, DataType::q5_k, DataType::int4}) {
    for (const int how : {0, 1, 2}) {  // as it is, quantizing, random
      if (how == 1 && type != DataType::f16) continue;
      if (how == 2 && !is_compute_type(type)) continue;
      ModelSource source = how == 2 ? test::random_model(shape_, type) : in_file(type);
      source.quantize = how == 1;
      source.quantized_type = DataType::q4_0;
      const auto no_progress = [](uint64_t, uint64_t) {};
      const Weights kept = load_weights(source, no_progress, never_);
      std::vector<std::pair<std::string, Seen>> seen;
      const Weights weights =
          load_weights(source, no_progress, never_,
                       {.rows = nullptr, .whole = [&](const TensorSpec& spec, const Tensor& tensor) {
                          const std::vector<uint8_t> bytes(tensor.data, tensor.data + tensor.bytes());
                          seen.push_back({spec.name, {tensor.type, tensor.rows, tensor.columns, bytes}});
                          return true;
                        }});
      EXPECT_TRUE(weights.buffers.empty());
      EXPECT_EQ(weights.mapped_bytes, 0u);
      EXPECT_EQ(weights.bytes_by_type, kept.bytes_by_type);

      const std::vector<PlannedTensor> plan = planned_tensors(source);
      ASSERT_EQ(seen.size(), source.tensors.size());
      ASSERT_EQ(plan.size(), source.tensors.size());
      for (size_t i = 0; i < seen.size(); ++i) {
        const auto& [name, tensor] = seen[i];
        EXPECT_EQ(name, source.tensors[i].name);
        EXPECT_EQ(plan[i].name, name);
        EXPECT_EQ(plan[i].type, tensor.type);
        EXPECT_EQ(plan[i].rows, tensor.rows);
        EXPECT_EQ(plan[i].columns, tensor.columns);
        const Tensor& expected = tensor_of(source, kept, name);
        EXPECT_EQ(tensor.type, expected.type) << name;
        EXPECT_EQ(tensor.bytes, std::vector<uint8_t>(expected.data, expected.data + expected.bytes())) << name;
        EXPECT_EQ(tensor_of(source, weights, name).data, nullptr);
        EXPECT_EQ(tensor_of(source, weights, name).rows, tensor.rows);
      }
    }
  }
}

TEST_F(LoadTest, ASinksErrorEndsLoading) {
  int calls = 0;
  const auto sink = [&](const TensorSpec&, const Tensor&) {
    if (++calls == 3) throw Error("ERR_TEST", "full");
    return true;
  };
  try {
    load_weights(in_file(DataType::f16), [](uint64_t, uint64_t) {}, never_, {.rows = nullptr, .whole = sink});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, "ERR_TEST");
  }
  EXPECT_EQ(calls, 3);
}

TEST_F(LoadTest, APlanNeedsNoFilesAndFindsWhatTheTableHasWrong) {
  const auto code_of_plan = [](const ModelSource& source) {
    try {
      planned_tensors(source);
      return std::string("none");
    } catch (const Error& error) {
      return error.code;
    }
  };
  ModelSource good = in_file(DataType::int4);
  good.files = {(folder_ / "nothing").string()};
  EXPECT_EQ(code_of_plan(good), "none");
  for (const size_t i : {size_t{0}, size_t{1}, good.tensors.size() - 1}) {
    ModelSource source = good;
    source.tensors[i].rows += 1;
    EXPECT_EQ(code_of_plan(source), "ERR_CHECKPOINT_INVALID");
    source = good;
    source.tensors[i].columns -= 1;
    EXPECT_EQ(code_of_plan(source), "ERR_CHECKPOINT_INVALID");
    source = good;
    source.tensors[i].name = "x";
    EXPECT_EQ(code_of_plan(source), "ERR_CHECKPOINT_INVALID");
    source = good;
    source.tensors.push_back(source.tensors[i]);
    EXPECT_EQ(code_of_plan(source), "ERR_CHECKPOINT_INVALID");
  }
  ModelSource source = good;
  source.shape.heads = 0;
  EXPECT_EQ(code_of_plan(source), "ERR_CHECKPOINT_INVALID");
  source = good;
  source.tensors.erase(source.tensors.begin());
  EXPECT_EQ(code_of_plan(source), "ERR_CHECKPOINT_INVALID");
  source = good;
  std::erase_if(source.tensors, [](const TensorSource& t) { return t.name == "output.weight"; });
  EXPECT_EQ(code_of_plan(source), "none");
  source.quantize = true;
  source.quantized_type = DataType::q8_0;
  EXPECT_EQ(code_of_plan(source), "ERR_INVALID_ARGUMENT");
}

TEST_F(LoadTest, WrongRanges) {
  const ModelSource good = in_file(DataType::f16);
  EXPECT_EQ(code_of(good), "none");
  const auto with = [&](size_t tensor, const std::function<void(TensorSource&)>& change) {
    ModelSource source = good;
    change(source.tensors[tensor]);
    expect_invalid(source, source.tensors[tensor].name);
  };
  for (const size_t i : {size_t{0}, size_t{1}, good.tensors.size() - 1}) {
    with(i, [](TensorSource& t) { t.data.length -= 1; });
    with(i, [](TensorSource& t) { t.data.length += 1; });
    with(i, [](TensorSource& t) { t.data.length = 0; });
    with(i, [](TensorSource& t) { t.data.offset = uint64_t{1} << 52; });
    with(i, [](TensorSource& t) { t.data.offset = UINT64_MAX; });
    with(i, [](TensorSource& t) { t.data.file = 1; });
    with(i, [](TensorSource& t) { t.data.file = -1; });
    with(i, [](TensorSource& t) { t.rows += 1; });
    with(i, [](TensorSource& t) { t.columns -= 1; });
    with(i, [](TensorSource& t) { t.rows = t.columns = INT32_MAX; });
    with(i, [](TensorSource& t) { t.name += "x"; });
  }
  with(good.tensors.size() - 1, [](TensorSource& t) { t.data.offset += 2; });  // ends beyond the file
  ModelSource twice = good;
  twice.tensors.push_back(good.tensors[3]);
  expect_invalid(twice, good.tensors[3].name);
  ModelSource missing = good;
  missing.tensors.erase(missing.tensors.begin() + 5);
  expect_invalid(missing, good.tensors[5].name);
  ModelSource no_file = good;
  no_file.files = {(folder_ / "nothing").string()};
  EXPECT_EQ(code_of(no_file), "ERR_CHECKPOINT_NOT_FOUND");
  no_file.files = {folder_.string()};
  EXPECT_EQ(code_of(no_file), "ERR_CHECKPOINT_INVALID");
  no_file.files = {write("empty", {})};
  EXPECT_EQ(code_of(no_file), "ERR_CHECKPOINT_INVALID");
  no_file.files.clear();
  EXPECT_EQ(code_of(no_file), "ERR_CHECKPOINT_INVALID");
}

TEST_F(LoadTest, WrongScales) {
  const ModelSource good = in_file(DataType::int8);
  EXPECT_EQ(code_of(good), "none");
  for (const int what : {0, 1, 2, 3}) {
    ModelSource source = good;
    TensorSource& tensor = source.tensors[test::index_of(source, {TensorRole::qkv, 0})];
    ASSERT_EQ(tensor.type, DataType::int8);
    if (what == 0) tensor.scale.length -= 2;
    if (what == 1) tensor.scale.offset = uint64_t{1} << 40;
    if (what == 2) tensor.scale.file = -1;
    if (what == 3) tensor.scale_type = DataType::f32;
    expect_invalid(source, tensor.name);
  }
}

TEST_F(LoadTest, NumbersThatAreNotFinite) {
  const auto poison = [&](DataType type, TensorId id, size_t at, uint16_t bits) {
    size_t index = 0;
    std::string name;
    const size_t which = test::index_of(test::random_model(shape_, type), id);
    const ModelSource source = in_file(type, [&](TensorSource& tensor, std::vector<uint8_t>& data) {
      if (index++ != which) return;
      name = tensor.name;
      store_u16(&data[at], bits);
    });
    expect_invalid(source, name);
  };
  using Role = TensorRole;
  poison(DataType::f16, {Role::embedding}, 0, 0x7e00);
  poison(DataType::f16, {Role::qkv, 0}, 1000, 0xfc00);
  poison(DataType::f16, {Role::output_norm}, 2, 0x7fc0);  // f32
  poison(DataType::bf16, {Role::ffn_up, 0}, 200, 0x7f80);
  poison(DataType::f32, {Role::qkv_bias, 0}, 6, 0x7f80);
  poison(DataType::q8_0, {Role::qkv, 0}, 34 * 7, 0x7c00);
  poison(DataType::q4_0, {Role::qkv, 0}, 18 * 9, 0xfe00);
  const TensorId output{Role::output};
  for (const uint16_t bits : {uint16_t{0x7e00}, uint16_t{0x7c00}, uint16_t{0xfc00}}) {
    poison(DataType::q4_1, output, 20 * 5, bits);
    poison(DataType::q4_1, output, 20 * 5 + 2, bits);
    poison(DataType::q5_0, output, 22 * 3, bits);
    poison(DataType::q5_1, output, 24 * 3 + 2, bits);
    poison(DataType::q4_k, output, 144 * 2, bits);
    poison(DataType::q4_k, output, 144 * 2 + 2, bits);
    poison(DataType::q5_k, output, 176 * 2 + 2, bits);
    poison(DataType::q6_k, output, 210 * 4 + 208, bits);
  }
  // Finite, but not in a q8_0 block's f16 scale.
  poison(DataType::q4_k, output, 0, 0x7bff);
}

TEST_F(LoadTest, ProgressRisesToTheTotal) {
  for (const DataType type : {DataType::f16, DataType::q6_k}) {
    for (const bool random : {false, true}) {
      if (random && type == DataType::q6_k) continue;
      const ModelSource source = random ? test::random_model(shape_, type) : in_file(type);
      uint64_t last = 0, total = 0, calls = 0;
      load_weights(
          source,
          [&](uint64_t bytes, uint64_t all) {
            EXPECT_GT(bytes, last);
            EXPECT_TRUE(total == 0 || all == total);
            last = bytes;
            total = all;
            ++calls;
          },
          never_);
      uint64_t expected = 0;
      for (const TensorSource& t : source.tensors)
        expected += static_cast<uint64_t>(t.rows * row_bytes(t.type, t.columns));
      EXPECT_EQ(last, total);
      EXPECT_EQ(total, expected);
      EXPECT_GE(calls, source.tensors.size());
    }
  }
}

TEST_F(LoadTest, AbortEndsLoading) {
  std::atomic<bool> abort{false};
  int calls = 0;
  try {
    load_weights(
        in_file(DataType::f16), [&](uint64_t, uint64_t) { abort = ++calls == 3; }, abort);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, "ERR_ABORTED");
  }
  EXPECT_EQ(calls, 3);
}

TEST(Shape, WhatCannotBeComputedIsRefusedWithTheFieldAndItsNumber) {
  const auto problem = [](const std::function<void(ModelShape&)>& change) -> std::string {
    ModelShape shape = test::small_shape(1, 32, 256, 512);
    change(shape);
    try {
      check_shape(shape);
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code, "ERR_CHECKPOINT_INVALID");
      return error.what();
    }
  };
  using Shape = ModelShape;
  EXPECT_EQ(problem([](Shape&) {}), "");
  EXPECT_EQ(problem([](Shape& s) { s.layers = 0; }), "layers is 0; it must be an integer from 1 to 1024");
  EXPECT_EQ(problem([](Shape& s) { s.layers = INT32_MAX; }),
            "layers is 2147483647; it must be an integer from 1 to 1024");
  EXPECT_EQ(problem([](Shape& s) { s.hidden_size = 0; }), "hiddenSize is 0; it must be an integer from 1 to 65536");
  EXPECT_EQ(problem([](Shape& s) { s.hidden_size = 65568; }),
            "hiddenSize is 65568; it must be an integer from 1 to 65536");
  EXPECT_EQ(problem([](Shape& s) { s.hidden_size = 100; }), "hiddenSize is 100; it must be a multiple of 32");
  EXPECT_EQ(problem([](Shape& s) { s.heads = INT32_MAX; }),
            "heads is 2147483647; it must be an integer from 1 to 1024");
  EXPECT_EQ(problem([](Shape& s) { s.kv_groups = 0; }), "kvGroups is 0; it must be an integer from 1 to 1024");
  EXPECT_EQ(problem([](Shape& s) { s.kv_groups = 2; }), "heads 3 is no multiple of kvGroups 2");
  EXPECT_EQ(problem([](Shape& s) { s.head_size = INT32_MAX; }),
            "headSize is 2147483647; it must be an integer from 1 to 1024");
  EXPECT_EQ(problem([](Shape& s) { s.head_size = 20; }), "headSize is 20; it must be a multiple of 16");
  EXPECT_EQ(problem([](Shape& s) { s.head_size = 16, s.rope_dimension = 8; }),
            "heads 3 times headSize 16 is 48; it must be a multiple of 32");
  EXPECT_EQ(problem([](Shape& s) { s.ffn_size = 33; }), "ffnHiddenSize is 33; it must be a multiple of 32");
  EXPECT_EQ(problem([](Shape& s) { s.vocabulary = 0; }), "vocabSize is 0; it must be an integer from 1 to 1048576");
  EXPECT_EQ(problem([](Shape& s) { s.rope_dimension = 3; }), "ropeDimension is 3; it must be a multiple of 2");
  EXPECT_EQ(problem([](Shape& s) { s.rope_dimension = 64; }),
            "ropeDimension is 64; it must be an integer from 0 to 32");
  EXPECT_EQ(problem([](Shape& s) { s.rope_dimension = -2; }),
            "ropeDimension is -2; it must be an integer from 0 to 32");
  EXPECT_EQ(problem([](Shape& s) { s.rope_base = 0; }), "ropeBase gives 0; it must be a positive number");
  EXPECT_EQ(problem([](Shape& s) { s.rope_scale = NAN; }), "ropeScale gives nan; it must be a positive number");
  EXPECT_EQ(problem([](Shape& s) { s.norm_epsilon = -1; }), "normEpsilon gives -1; it must be a positive number");
  EXPECT_EQ(problem([](Shape& s) { s.norm_epsilon = 1; }), "normEpsilon is 1; it must be below 1");
}

TEST(Tensors, TheTableFollowsTheShapeAndTheArchitecture) {
  ModelShape shape = test::small_shape(1, 32, 256, 512);
  const std::vector<TensorSpec> table = tensor_table(shape);
  ASSERT_EQ(table.size(), 3 + 7 * static_cast<size_t>(shape.layers));
  EXPECT_EQ(table.front().name, "token_embd.weight");
  EXPECT_EQ(table.back().name, "output.weight");
  std::map<TensorId, TensorSpec> by_id;
  for (const TensorSpec& spec : table) EXPECT_TRUE(by_id.emplace(spec.id, spec).second) << spec.name << " twice";
  const TensorSpec& up = by_id.at({TensorRole::ffn_up, 1});
  EXPECT_EQ(up.name, "blk.1.ffn_up.weight");
  EXPECT_EQ(up.rows, 2 * 512);
  EXPECT_EQ(up.columns, 256);
  EXPECT_TRUE(up.gated);
  EXPECT_EQ(by_id.at({TensorRole::qkv_bias, 0}).columns, shape.qkv_size());

  shape.architecture.qkv_bias = false;
  const std::vector<TensorSpec> without = tensor_table(shape);
  EXPECT_EQ(without.size(), 3 + 6 * static_cast<size_t>(shape.layers));
  for (const TensorSpec& spec : without) EXPECT_NE(spec.kind, TensorKind::bias) << spec.name;
}

TEST_F(LoadTest, ABiasThatTheArchitectureDoesNotHaveIsRefused) {
  ModelSource source = in_file(DataType::f16);
  source.shape.architecture.qkv_bias = false;
  expect_invalid(source, "blk.0.attn_qkv.bias");
}

TEST_F(LoadTest, RandomNumbersAreTheSameWhereverTheyAreCut) {
  for (const DataType type : {DataType::f32, DataType::f16, DataType::bf16, DataType::q8_0, DataType::q4_0}) {
    constexpr int64_t kCount = 32 * 500;
    const auto bytes = static_cast<size_t>(row_bytes(type, kCount));
    std::vector<uint8_t> whole(bytes), pieces(bytes), other(bytes);
    fill_random(type, whole.data(), "a", 1, 0, kCount, {0.5f, 2});
    for (int64_t at = 0; at < kCount;) {
      const int64_t count = std::min<int64_t>(kCount - at, 32 * (1 + at / 32 % 7));
      fill_random(type, pieces.data() + row_bytes(type, at), "a", 1, at, count, {0.5f, 2});
      at += count;
    }
    EXPECT_EQ(whole, pieces);
    fill_random(type, other.data(), "b", 1, 0, kCount, {0.5f, 2});
    EXPECT_NE(whole, other);
    fill_random(type, other.data(), "a", 2, 0, kCount, {0.5f, 2});
    EXPECT_NE(whole, other);
    double mean = 0, square = 0;
    for (const float x : decoded(type, whole.data(), kCount)) {
      mean += static_cast<double>(x) / kCount;
      square += static_cast<double>(x) * static_cast<double>(x) / kCount;
    }
    EXPECT_NEAR(mean, 0.5, 0.08);
    EXPECT_NEAR(std::sqrt(square - mean * mean), 2, 0.1);
  }
}

}  // namespace
}  // namespace chatglm
