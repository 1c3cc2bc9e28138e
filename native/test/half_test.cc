#include "base/half.h"

#include <gtest/gtest.h>

#include <cmath>

namespace chatglm {
namespace {

// The value of a binary16 pattern, by its definition.
double half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double sign = h & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

TEST(Half, EveryPatternToFloat) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto h = static_cast<uint16_t>(i);
    const double expected = half_value(h);
    const float actual = half_to_float(h);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(actual)) << i;
    } else {
      EXPECT_EQ(actual, expected) << i;
      EXPECT_EQ(std::signbit(actual), (i & 0x8000) != 0) << i;
    }
  }
}

TEST(Half, EveryPatternThereAndBack) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto h = static_cast<uint16_t>(i);
    const uint16_t back = float_to_half(half_to_float(h));
    if (std::isnan(half_value(h))) {
      EXPECT_TRUE(std::isnan(half_value(back))) << i;
    } else {
      EXPECT_EQ(back, h);
    }
  }
}

// Between each two neighbours: the middle goes to the even one, what is next to the middle to the nearer one.
TEST(Half, RoundsToNearestEven) {
  for (uint16_t h = 0; h < 0x7bff; ++h) {
    const auto up = static_cast<uint16_t>(h + 1);
    const auto middle = static_cast<float>((half_value(h) + half_value(up)) / 2);  // exact
    const uint16_t even = h % 2 == 0 ? h : up;
    EXPECT_EQ(float_to_half(middle), even) << h;
    EXPECT_EQ(float_to_half(std::nextafterf(middle, 0)), h) << h;
    EXPECT_EQ(float_to_half(std::nextafterf(middle, INFINITY)), up) << h;
    EXPECT_EQ(float_to_half(-middle), even | 0x8000) << h;
  }
  EXPECT_EQ(float_to_half(65504.0f), 0x7bff);
  EXPECT_EQ(float_to_half(std::nextafterf(65520.0f, 0)), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_half(-3e38f), 0xfc00);
  EXPECT_EQ(float_to_half(INFINITY), 0x7c00);
  EXPECT_EQ(float_to_half(0x1p-25f), 0x0000);  // half of the smallest: to even
  EXPECT_EQ(float_to_half(std::nextafterf(0x1p-25f, 1)), 0x0001);
  EXPECT_EQ(float_to_half(1e-45f), 0x0000);
  EXPECT_EQ(float_to_half(-0.0f), 0x8000);
}

TEST(Bfloat, EveryPatternThereAndBack) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto b = static_cast<uint16_t>(i);
    const float value = bfloat_to_float(b);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bfloat_to_float(float_to_bfloat(value)))) << i;
    } else {
      EXPECT_EQ(float_to_bfloat(value), b) << i;
    }
  }
  EXPECT_EQ(bfloat_to_float(0x3f80), 1.0f);
  EXPECT_EQ(bfloat_to_float(0xc040), -3.0f);
}

TEST(Bfloat, RoundsToNearestEven) {
  for (uint16_t b = 0; b < 0x7f7f; ++b) {
    const auto up = static_cast<uint16_t>(b + 1);
    const auto middle =
        static_cast<float>((static_cast<double>(bfloat_to_float(b)) + static_cast<double>(bfloat_to_float(up))) / 2);
    EXPECT_EQ(float_to_bfloat(middle), b % 2 == 0 ? b : up) << b;
    EXPECT_EQ(float_to_bfloat(std::nextafterf(middle, 0)), b) << b;
    EXPECT_EQ(float_to_bfloat(std::nextafterf(middle, INFINITY)), up) << b;
  }
  EXPECT_EQ(float_to_bfloat(3.4e38f), 0x7f80);
  // A NaN whose highest bits are zero must not become infinite.
  EXPECT_TRUE(std::isnan(bfloat_to_float(float_to_bfloat(std::bit_cast<float>(0x7f800001u)))));
}

}  // namespace
}  // namespace chatglm
