#include "model/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "test/random.h"

namespace chatglm {
namespace {

using test::Random;

double half_of(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
  return (bits & 0x8000 ? -1 : 1) * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}
int bit(const uint8_t* p, int64_t i) { return p[i / 8] >> (i % 8) & 1; }

// Element i of a block, by the formats' descriptions (ggml-common.h), one element at a time and in double precision.
double element(DataType type, const uint8_t* b, int i) {
  const auto nibble = [&](const uint8_t* p) { return i < 16 ? p[i] & 15 : p[i - 16] >> 4; };
  switch (type) {
    case DataType::q8_0: return half_of(b) * static_cast<int8_t>(b[2 + i]);
    case DataType::q4_0: return half_of(b) * (nibble(b + 2) - 8);
    case DataType::q4_1: return half_of(b) * nibble(b + 4) + half_of(b + 2);
    case DataType::q5_0: return half_of(b) * (nibble(b + 6) + 16 * bit(b + 2, i) - 16);
    case DataType::q5_1: return half_of(b) * (nibble(b + 8) + 16 * bit(b + 4, i)) + half_of(b + 2);
    case DataType::q4_k:
    case DataType::q5_k: {
      // Eight sub-blocks of 32; the 12 bytes from 4 on hold the six-bit scales and minima.
      const int sub = i / 32, j = i % 32;
      const uint8_t* s = b + 4;
      int scale, min;
      if (sub < 4) {
        scale = s[sub] % 64;
        min = s[sub + 4] % 64;
      } else {
        scale = s[sub + 4] % 16 + s[sub - 4] / 64 * 16;
        min = s[sub + 4] / 16 + s[sub] / 64 * 16;
      }
      const uint8_t* codes = b + (type == DataType::q4_k ? 16 : 48) + sub / 2 * 32;
      int code = sub % 2 ? codes[j] / 16 : codes[j] % 16;
      if (type == DataType::q5_k) code += 16 * (b[16 + j] >> sub & 1);
      return half_of(b) * scale * code - half_of(b + 2) * min;
    }
    case DataType::q6_k: {
      // Two halves of 128. Of each, 64 bytes of low nibbles: elements 0-31 and 32-63 in the low, 64-127 in the high
      // ones; and 32 bytes that hold two high bits of elements j, j + 32, j + 64, j + 96. A scale for each 16.
      const int half = i / 128, k = i % 128;
      const uint8_t low = b[half * 64 + k % 64], high = b[128 + half * 32 + k % 32];
      const int code = (k < 64 ? low % 16 : low / 16) + 16 * (high >> (2 * (k / 32)) & 3) - 32;
      return half_of(b + 208) * static_cast<int8_t>(b[192 + i / 16]) * code;
    }
    default: return NAN;
  }
}

constexpr DataType kBlockTypes[] = {DataType::q8_0, DataType::q4_0, DataType::q4_1, DataType::q5_0,
                                    DataType::q5_1, DataType::q4_k, DataType::q5_k, DataType::q6_k};

void set_half(uint8_t* p, float value) { store_u16(p, float_to_half(value)); }

// Where the f16 numbers of a block are.
std::vector<int> half_offsets(DataType type) {
  if (type == DataType::q6_k) return {208};
  if (type == DataType::q8_0 || type == DataType::q4_0 || type == DataType::q5_0) return {0};
  return {0, 2};
}

// Blocks of random codes with sane scales.
std::vector<uint8_t> random_blocks(DataType type, int64_t blocks, Random& random) {
  const int64_t bytes = block_shape(type).bytes;
  std::vector<uint8_t> data = random.bytes(blocks * bytes);
  for (int64_t b = 0; b < blocks; ++b) {
    for (const int offset : half_offsets(type))
      set_half(&data[static_cast<size_t>(b * bytes + offset)], random.normal(0.1f));
  }
  return data;
}

TEST(Quantize, DecodesEveryBlockFormat) {
  Random random(3);
  for (const DataType type : kBlockTypes) {
    const BlockShape shape = block_shape(type);
    constexpr int64_t kBlocks = 200;
    const std::vector<uint8_t> data = random_blocks(type, kBlocks, random);
    std::vector<float> actual(static_cast<size_t>(kBlocks * shape.elements));
    to_float(type, data.data(), 1, kBlocks * shape.elements, actual.data());
    for (int64_t i = 0; i < kBlocks * shape.elements; ++i) {
      const double expected =
          element(type, data.data() + i / shape.elements * shape.bytes, static_cast<int>(i % shape.elements));
      // d * scale * code - dmin * min may cancel: three roundings of what goes in.
      ASSERT_NEAR(actual[static_cast<size_t>(i)], expected, 2e-6 * (std::abs(expected) + 64 * 0.5))
          << name_of(type) << " " << i;
    }
  }
}

TEST(Quantize, NamesAndSizes) {
  for (int i = 0; i <= static_cast<int>(DataType::int4); ++i) {
    const auto type = static_cast<DataType>(i);
    EXPECT_EQ(data_type_by_name(name_of(type)), type);
  }
  EXPECT_FALSE(data_type_by_name("q3_k"));
  EXPECT_EQ(row_bytes(DataType::q4_0, 4096), 2304);
  EXPECT_EQ(row_bytes(DataType::q8_0, 13696), 14552);
  EXPECT_EQ(row_bytes(DataType::q6_k, 256), 210);
  EXPECT_EQ(row_bytes(DataType::int4, 128), 64);
  EXPECT_EQ(row_bytes(DataType::f32, 3), 12);
}

TEST(Quantize, Q8RoundsToNearestAndHalvesAwayFromZero) {
  float x[32] = {127, -127, 0.5f, -0.5f, 1.5f, -1.5f, 2.4999f, 126.5f, -126.5f};  // scale 1
  uint8_t block[34];
  from_float(DataType::q8_0, x, 32, block);
  EXPECT_EQ(half_of(block), 1.0);
  const int expected[] = {127, -127, 1, -1, 2, -2, 2, 127, -127, 0};
  for (int i = 0; i < 10; ++i) EXPECT_EQ(static_cast<int8_t>(block[2 + i]), expected[i]) << i;
}

TEST(Quantize, Q4TakesItsScaleFromTheLargestWithItsSign) {
  float x[32] = {-8, 7, 7.49f, 7.5f, 8, 0.5f, 0.49f, -0.5f, -0.51f, -7.6f};  // scale 1: code = trunc(x + 8.5)
  uint8_t block[18];
  from_float(DataType::q4_0, x, 32, block);
  EXPECT_EQ(half_of(block), 1.0);
  const int expected[] = {0, 15, 15, 15, 15, 9, 8, 8, 7, 0};  // at most 15
  for (int i = 0; i < 10; ++i) EXPECT_EQ(block[2 + i] & 15, expected[i]) << i;
  EXPECT_EQ(block[2] >> 4, 8);
  x[0] = -1;
  x[31] = 16;  // scale -2
  from_float(DataType::q4_0, x, 32, block);
  EXPECT_EQ(half_of(block), -2.0);
  EXPECT_EQ(block[17] >> 4, 0);
  EXPECT_EQ(block[2] & 15, 9);  // trunc(0.5 + 8.5)
}

TEST(Quantize, QuantizedIsWithinHalfAStep) {
  Random random(4);
  for (int round = 0; round < 200; ++round) {
    const std::vector<float> x = random.normals(32, std::pow(10.0f, static_cast<float>(random.integer(-1, 3))));
    float largest = 0, decoded[32];
    for (const float value : x) largest = std::max(largest, std::fabs(value));
    uint8_t block[34];
    from_float(DataType::q8_0, x.data(), 32, block);
    to_float(DataType::q8_0, block, 1, 32, decoded);
    for (int i = 0; i < 32; ++i) EXPECT_NEAR(decoded[i], x[static_cast<size_t>(i)], largest / 127 * 0.57);
    from_float(DataType::q4_0, x.data(), 32, block);
    to_float(DataType::q4_0, block, 1, 32, decoded);
    for (int i = 0; i < 32; ++i) EXPECT_NEAR(decoded[i], x[static_cast<size_t>(i)], largest / 8 * 1.01);
  }
}

TEST(Quantize, ZeroTinyAndUnusableBlocksAreDefined) {
  uint8_t block[34];
  float decoded[32];
  for (const float value : {0.0f, 1e-45f, -1e-40f, 1e-38f}) {
    const std::vector<float> x(32, value);
    for (const DataType type : {DataType::q8_0, DataType::q4_0}) {
      from_float(type, x.data(), 32, block);
      to_float(type, block, 1, 32, decoded);
      for (const float y : decoded) EXPECT_EQ(y, 0.0f) << value;
    }
  }
  for (const float value : {NAN, INFINITY, -INFINITY, 3e38f}) {
    std::vector<float> x(32, 1);
    x[5] = value;
    from_float(DataType::q8_0, x.data(), 32, block);
    from_float(DataType::q4_0, x.data(), 32, block);
  }
  EXPECT_THROW(from_float(DataType::q6_k, decoded, 32, block), Error);
}

TEST(Quantize, FloatTypesRoundTrip) {
  Random random(5);
  const std::vector<float> x = random.normals(96);
  std::vector<uint8_t> bytes(96 * 4);
  std::vector<float> y(96);
  from_float(DataType::f32, x.data(), 96, bytes.data());
  to_float(DataType::f32, bytes.data(), 1, 96, y.data());
  EXPECT_EQ(x, y);
  from_float(DataType::f16, x.data(), 96, bytes.data());
  to_float(DataType::f16, bytes.data(), 1, 96, y.data());
  for (size_t i = 0; i < 96; ++i) EXPECT_NEAR(y[i], x[i], std::fabs(x[i]) * 0x1p-11 + 0x1p-25);
  from_float(DataType::bf16, x.data(), 96, bytes.data());
  to_float(DataType::bf16, bytes.data(), 1, 96, y.data());
  for (size_t i = 0; i < 96; ++i) EXPECT_NEAR(y[i], x[i], std::fabs(x[i]) * 0x1p-8);
}

TEST(Quantize, ThudmInt4EvenColumnsAreInTheHighHalf) {
  const uint8_t row[2] = {0xF9, 0x70};
  float out[4];
  to_float(DataType::int4, row, 0.5f, 4, out);
  EXPECT_EQ(out[0], -0.5f);
  EXPECT_EQ(out[1], -3.5f);
  EXPECT_EQ(out[2], 3.5f);
  EXPECT_EQ(out[3], 0.0f);
}

TEST(Quantize, ThudmRowsCarryOverExactly) {
  Random random(6);
  constexpr int64_t kColumns = 128;
  for (int round = 0; round < 100; ++round) {
    const float scale = half_to_float(float_to_half(0.01f + std::fabs(random.normal(0.1f))));
    const std::vector<uint8_t> int4 = random.bytes(kColumns / 2), int8 = random.bytes(kColumns);
    std::vector<uint8_t> target(kColumns / 32 * 34);
    std::vector<float> scratch(kColumns), y(kColumns);
    convert_row(DataType::int4, int4.data(), scale, kColumns, DataType::q4_0, target.data(), scratch.data());
    for (int64_t i = 0; i < kColumns; ++i) {
      const uint8_t byte = int4[static_cast<size_t>(i / 2)];
      int code = i % 2 == 0 ? byte >> 4 : byte & 15;
      if (code > 7) code -= 16;
      const uint8_t* block = target.data() + i / 32 * 18;
      EXPECT_EQ(element(DataType::q4_0, block, static_cast<int>(i % 32)), static_cast<double>(scale) * code);
    }
    convert_row(DataType::int8, int8.data(), scale, kColumns, DataType::q8_0, target.data(), scratch.data());
    for (int64_t i = 0; i < kColumns; ++i) {
      const uint8_t* block = target.data() + i / 32 * 34;
      EXPECT_EQ(element(DataType::q8_0, block, static_cast<int>(i % 32)),
                static_cast<double>(scale) * static_cast<int8_t>(int8[static_cast<size_t>(i)]));
    }
    // To floats, for norms and for files of other types.
    convert_row(DataType::int8, int8.data(), scale, kColumns, DataType::f32, reinterpret_cast<uint8_t*>(y.data()),
                scratch.data());
    for (size_t i = 0; i < kColumns; ++i) EXPECT_EQ(y[i], scale * static_cast<int8_t>(int8[i]));
  }
}

// model.quantize() of one element in the arithmetic of f16: the quotient of two f16 numbers, rounded to f16.
double rounded_to_half(double x) {
  if (x == 0) return 0;
  int exponent;
  std::frexp(x, &exponent);  // |x| in [2^(e-1), 2^e)
  const double unit = std::ldexp(1.0, std::max(exponent - 11, -24));
  return std::nearbyint(x / unit) * unit;  // x / unit is exact
}

TEST(Quantize, ModelQuantizeInTheArithmeticOfF16) {
  Random random(7);
  constexpr int64_t kColumns = 64;
  for (int round = 0; round < 500; ++round) {
    const bool bits8 = round % 2;
    std::vector<uint8_t> row(kColumns * 2), target(kColumns / 32 * 34);
    std::vector<float> scratch(kColumns);
    double values[kColumns], largest = 0;
    const float deviation = round % 5 == 0 ? 1e-4f : 0.05f;
    for (int64_t i = 0; i < kColumns; ++i) {
      set_half(&row[static_cast<size_t>(2 * i)], random.normal(deviation));
      values[i] = half_of(&row[static_cast<size_t>(2 * i)]);
      largest = std::max(largest, std::abs(values[i]));
    }
    const int most = bits8 ? 127 : 7;
    const double scale = rounded_to_half(static_cast<double>(static_cast<float>(largest / most)));
    const DataType type = bits8 ? DataType::q8_0 : DataType::q4_0;
    quantize_row(DataType::f16, row.data(), kColumns, type, target.data(), scratch.data());
    for (int64_t i = 0; i < kColumns; ++i) {
      double code = std::nearbyint(rounded_to_half(static_cast<double>(static_cast<float>(values[i] / scale))));
      code = std::min(std::max(code, -most - 1.0), 0.0 + most);
      const uint8_t* block = target.data() + i / 32 * block_shape(type).bytes;
      ASSERT_EQ(half_of(block), scale);
      ASSERT_EQ(element(type, block, static_cast<int>(i % 32)), scale * code) << round << " " << i;
    }
  }
}

TEST(Quantize, ModelQuantizeRoundsHalvesToEvenAndTakesZeroRows) {
  std::vector<float> x(32, 0), scratch(32);
  std::vector<uint8_t> target(34);
  quantize_row(DataType::f32, reinterpret_cast<uint8_t*>(x.data()), 32, DataType::q4_0, target.data(), scratch.data());
  for (int i = 0; i < 32; ++i) EXPECT_EQ(element(DataType::q4_0, target.data(), i), 0);
  const float some[] = {7, -7, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 6.5f};
  std::copy(std::begin(some), std::end(some), x.begin());
  quantize_row(DataType::f32, reinterpret_cast<uint8_t*>(x.data()), 32, DataType::q4_0, target.data(), scratch.data());
  const double codes[] = {7, -7, 0, 2, 2, 0, -2, 6};
  for (int i = 0; i < 8; ++i) EXPECT_EQ(element(DataType::q4_0, target.data(), i), codes[i]) << i;
}

TEST(Quantize, AllFiniteFindsASingleBadNumber) {
  Random random(8);
  for (const DataType type : {DataType::f32, DataType::f16, DataType::bf16}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> x = random.normals(67);
      x[13] = type == DataType::f16 ? 65504.0f : 3e38f;
      std::vector<uint8_t> bytes(67 * 4);
      from_float(type, x.data(), 67, bytes.data());
      EXPECT_TRUE(all_finite(type, bytes.data(), 67)) << name_of(type);
      x[static_cast<size_t>(random.integer(0, 66))] = bad;
      from_float(type, x.data(), 67, bytes.data());
      EXPECT_FALSE(all_finite(type, bytes.data(), 67)) << name_of(type);
    }
  }
  for (const DataType type : kBlockTypes) {
    const BlockShape shape = block_shape(type);
    for (const int offset : half_offsets(type)) {
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        std::vector<uint8_t> data = random_blocks(type, 9, random);
        EXPECT_TRUE(all_finite(type, data.data(), 9 * shape.elements)) << name_of(type);
        set_half(&data[static_cast<size_t>(random.integer(0, 8) * shape.bytes + offset)], bad);
        EXPECT_FALSE(all_finite(type, data.data(), 9 * shape.elements)) << name_of(type) << " " << offset;
      }
    }
  }
}

}  // namespace
}  // namespace chatglm
