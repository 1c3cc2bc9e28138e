#include "test/cuda/support.h"

namespace chatglm::test {
namespace {

using cuda::PackedMatrix;

/// What stands at (packed row, column), read as the text of layout.h has it.
double packed_value(const PackedMatrix& m, const std::vector<uint8_t>& packed, int64_t row, int64_t column) {
  const int64_t code_bytes = m.type == DataType::q4_0 ? 512 : m.type == DataType::q8_0 ? 1024 : 2048;
  const int64_t block_bytes = code_bytes + (m.type == DataType::f16 ? 0 : 64);
  const uint8_t* block = packed.data() + (row / 16 * m.chunks + column / 64) * block_bytes;
  const int64_t step = column % 64 / 16, j = column % 16;
  const int64_t lane = row % 8 * 4 + j % 8 / 2;
  const int64_t number = (j < 8 ? 0 : 4) + (row % 16 < 8 ? 0 : 2) + j % 2;
  if (m.type == DataType::f16) return half_to_float(load_u16(block + step * 512 + lane * 16 + number * 2));
  const double scale = half_to_float(
      load_u16(block + code_bytes + row % 8 * 8 + 2 * ((column % 64 < 32 ? 0 : 2) + (row % 16 < 8 ? 0 : 1))));
  if (m.type == DataType::q8_0) return scale * (block[step / 2 * 512 + lane * 16 + step % 2 * 8 + number] - 128);
  uint32_t word;
  std::memcpy(&word, block + lane * 16 + step * 4, 4);
  return scale * (static_cast<int>(word >> (number / 2 * 4 + number % 2 * 16) & 15) - 8);
}

class PackTest : public CudaTest {
 protected:
  /// Packs a matrix in the given pieces and checks every number of the result, filling too.
  void verify(DataType type, int32_t rows, int32_t columns, bool gate_up, const std::vector<int32_t>& cuts,
              int offset) {
    SCOPED_TRACE(testing::Message() << name_of(type) << " " << rows << " x " << columns << (gate_up ? " gate_up" : "")
                                    << ", " << cuts.size() + 1 << " pieces, offset " << offset);
    Random random(static_cast<uint64_t>(rows * 31 + columns));
    const int64_t row_size = row_bytes(type, columns);
    std::vector<float> values = random.normals(static_cast<int64_t>(rows) * columns);
    std::vector<uint8_t> source(static_cast<size_t>(rows * row_size));
    from_float(type, values.data(), static_cast<int64_t>(values.size()), source.data());
    if (type == DataType::q8_0) source[2] = 0x80;  // -128 is a code too
    to_float(type, source.data(), 1, static_cast<int64_t>(values.size()), values.data());

    PackedMatrix m = cuda::packed_shape(type, rows, columns, gate_up);
    DeviceArray<uint8_t> packed(static_cast<size_t>(m.bytes()), 0);
    DeviceArray<uint32_t> overflow(1, 0);
    int32_t first = 0;
    for (size_t i = 0; i <= cuts.size(); ++i) {
      const int32_t end = i < cuts.size() ? cuts[i] : rows;
      std::vector<uint8_t> piece(static_cast<size_t>(offset));
      piece.insert(piece.end(), source.begin() + first * row_size, source.begin() + end * row_size);
      const DeviceArray<uint8_t> memory(piece);
      cuda::pack(launch_, type, memory.data() + offset, row_size, first, end - first, m, packed.data(),
                 overflow.data());
      check(cudaStreamSynchronize(stream_));
      first = end;
    }
    EXPECT_EQ(overflow.read()[0], 0u);
    const std::vector<uint8_t> bytes = packed.read();
    int64_t wrong = 0;
    for (int32_t r = 0; r < m.row_tiles * 16; ++r) {
      int32_t model_row = r < rows ? r : -1;
      if (gate_up) {  // tiles of 8 gates, then the 8 rows that they gate
        const int32_t i = r / 16 * 8 + r % 8;
        model_row = i >= rows / 2 ? -1 : r % 16 < 8 ? i : rows / 2 + i;
      }
      for (int32_t c = 0; c < m.chunks * 64; ++c) {
        double expected = 0;
        if (model_row >= 0 && c < columns) {
          const float value = values[static_cast<size_t>(model_row) * columns + c];
          expected = m.type == DataType::f16 ? half_to_float(float_to_half(value)) : value;
        }
        // to_float rounds nothing: a code has at most 8 bits and a scale 11.
        if (packed_value(m, bytes, r, c) != expected && ++wrong <= 5) {
          ADD_FAILURE() << "row " << r << " column " << c << ": " << packed_value(m, bytes, r, c) << " instead of "
                        << expected;
        }
      }
    }
    EXPECT_EQ(wrong, 0);
  }
};

constexpr DataType kTypes[] = {DataType::f32, DataType::f16, DataType::bf16, DataType::q8_0, DataType::q4_0};

TEST_F(PackTest, EveryTypeAndShape) {
  for (const DataType type : kTypes) {
    verify(type, 16, 64, false, {}, 0);
    verify(type, 300, 96, false, {}, 1);   // half a chunk, rows of filling
    verify(type, 37, 1056, false, {}, 3);  // more chunks than a block takes at once
    verify(type, 2 * 68, 544, true, {}, 2);
  }
}

TEST_F(PackTest, PiecesGiveTheSame) {
  for (const DataType type : kTypes) {
    verify(type, 201, 96, false, {3, 4, 12, 40, 41, 128, 199}, 1);
    verify(type, 2 * 100, 160, true, {1, 9, 60, 130, 131}, 0);  // the piece from 60 has both gates and ups
    verify(type, 2 * 100, 64, true, {100}, 2);
  }
}

TEST_F(PackTest, TellsWhatIsTooLargeForHalf) {
  const auto overflows = [&](DataType type, float value) {
    std::vector<float> values(2 * 32, 1.0f);
    values[45] = value;
    std::vector<uint8_t> source(static_cast<size_t>(2 * row_bytes(type, 32)));
    from_float(type, values.data(), 64, source.data());
    const PackedMatrix m = cuda::packed_shape(type, 2, 32, false);
    const DeviceArray<uint8_t> memory(source), packed(static_cast<size_t>(m.bytes()), 0);
    const DeviceArray<uint32_t> overflow(1, 0);
    cuda::pack(launch_, type, memory.data(), row_bytes(type, 32), 0, 2, m, packed.data(), overflow.data());
    return overflow.read()[0] != 0;
  };
  for (const DataType type : {DataType::f32, DataType::bf16}) {
    EXPECT_FALSE(overflows(type, 65024.0f)) << name_of(type);
    EXPECT_TRUE(overflows(type, -65536.0f)) << name_of(type);
    EXPECT_FALSE(overflows(type, INFINITY)) << name_of(type);
    EXPECT_FALSE(overflows(type, NAN)) << name_of(type);
  }
  EXPECT_FALSE(overflows(DataType::f16, INFINITY));
}

}  // namespace
}  // namespace chatglm::test
