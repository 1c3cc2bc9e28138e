#include "model/quantize.h"
#include "test/cuda/support.h"

namespace chatglm::test {
namespace {

struct EmbedResult {
  std::vector<float> residual;    // (tokens, columns)
  std::vector<float2> rotations;  // (tokens, dimension / 2)
};

class EmbeddingTest : public CudaTest {
 protected:
  // The table begins `offset` bytes behind an aligned address.
  EmbedResult embed(DataType type, const std::vector<uint8_t>& table, int32_t columns, size_t offset,
                    const std::vector<int32_t>& ids, const std::vector<int32_t>& positions,
                    const std::vector<float>& frequencies, float scale) {
    std::vector<uint8_t> shifted(offset);
    shifted.insert(shifted.end(), table.begin(), table.end());
    const DeviceArray<uint8_t> device_table(shifted);
    const DeviceArray<int32_t> device_ids(ids), device_positions(positions);
    const DeviceArray<float> device_frequencies(frequencies);
    const DeviceArray<float> residual(ids.size() * static_cast<size_t>(columns));
    const DeviceArray<float2> rotations(ids.size() * frequencies.size());
    cuda::Batch batch;
    batch.tokens = static_cast<int32_t>(ids.size());
    batch.ids = device_ids.data();
    batch.positions = device_positions.data();
    cuda::embed(launch_, {type, device_table.data() + offset, columns},
                {static_cast<int32_t>(2 * frequencies.size()), device_frequencies.data(), scale}, batch,
                residual.data(), rotations.data());
    return {residual.read(), rotations.read()};
  }
};

TEST_F(EmbeddingTest, RowsOfEveryTypeAtAnyAlignment) {
  Random random(1);
  const int32_t vocabulary = 37;
  for (const DataType type : {DataType::f32, DataType::f16, DataType::bf16, DataType::q8_0, DataType::q4_0}) {
    for (const int32_t columns : {32, 96, 4096}) {
      const std::vector<float> numbers = random.normals(int64_t{vocabulary} * columns);
      std::vector<uint8_t> table(static_cast<size_t>(vocabulary * row_bytes(type, columns)));
      from_float(type, numbers.data(), int64_t{vocabulary} * columns, table.data());
      for (size_t offset = 0; offset < 4; ++offset) {
        std::vector<int32_t> ids, positions;
        for (int64_t i = random.integer(1, 20); i > 0; --i) {
          ids.push_back(static_cast<int32_t>(random.integer(0, vocabulary - 1)));
          positions.push_back(0);
        }
        ids[0] = vocabulary - 1;
        std::vector<float> expected(ids.size() * static_cast<size_t>(columns));
        for (size_t i = 0; i < ids.size(); ++i) {
          to_float(type, table.data() + ids[i] * row_bytes(type, columns), 1, columns,
                   expected.data() + i * static_cast<size_t>(columns));
        }
        const EmbedResult result = embed(type, table, columns, offset, ids, positions, {1.0f}, 1);
        EXPECT_EQ(result.residual, expected) << name_of(type) << ", " << columns << " columns, offset " << offset;
      }
    }
  }
}

TEST_F(EmbeddingTest, Rotations) {
  Random random(2);
  const int32_t columns = 32;
  const std::vector<uint8_t> table(static_cast<size_t>(columns) * 4);
  for (const int32_t pairs : {1, 8, 32, 300}) {
    for (const float scale : {1.0f, 4.0f, 50.0f}) {
      std::vector<float> frequencies;
      for (int32_t j = 0; j < pairs; ++j) {
        frequencies.push_back(static_cast<float>(std::pow(1e4, -static_cast<double>(j) / pairs)));
      }
      std::vector<int32_t> positions = {0, 1, 2, 32767, 131071, 1048575};
      for (int32_t i = 0; i < 30; ++i) positions.push_back(static_cast<int32_t>(random.integer(0, 32767)));
      const EmbedResult result = embed(DataType::f32, table, columns, 0, std::vector<int32_t>(positions.size()),
                                       positions, frequencies, scale);
      for (size_t i = 0; i < positions.size(); ++i) {
        for (size_t j = 0; j < frequencies.size(); ++j) {
          const float angle = static_cast<float>(positions[i]) / scale * frequencies[j];
          const float2 actual = result.rotations[i * frequencies.size() + j];
          ASSERT_NEAR(actual.x, std::cos(static_cast<double>(angle)), 3e-7) << "angle " << angle;
          ASSERT_NEAR(actual.y, std::sin(static_cast<double>(angle)), 3e-7) << "angle " << angle;
        }
      }
    }
  }
}

TEST_F(EmbeddingTest, NaNIsKept) {
  std::vector<uint8_t> table(64 * 2);
  store_u16(table.data() + 2 * 33, 0x7e00);
  const EmbedResult result = embed(DataType::f16, table, 64, 0, {0}, {0}, {1.0f}, 1);
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(result.residual[i]), i == 33);
}

}  // namespace
}  // namespace chatglm::test
