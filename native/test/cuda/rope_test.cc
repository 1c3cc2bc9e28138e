#include "test/cuda/kv_reference.h"

namespace chatglm::test {
namespace {

using cuda::KvType;

class RopeTest : public CudaTest, public testing::WithParamInterface<KvType> {
 protected:
  /// Tokens [first, first + count) of a batch of three sequences of `tokens` tokens in all.
  void expect_right(int32_t heads, int32_t groups, int32_t head_size, int32_t rope_dimension, int32_t tokens,
                    int32_t first, int32_t count, float deviation = 1) {
    const KvType type = GetParam();
    Random random(static_cast<uint64_t>(tokens + head_size));
    std::vector<int32_t> positions, tables;
    TestPages pages(3 * (tokens / kPageTokens + 3), random);
    for (int32_t i = 0; i < 3; ++i) {
      const int32_t part = i < 2 ? tokens / 3 : tokens - tokens / 3 * 2;
      const auto position = static_cast<int32_t>(random.integer(0, 100));
      const int32_t table = pages.add(position + part);
      for (int32_t t = 0; t < part; ++t) {
        positions.push_back(position + t);
        tables.push_back(table);
      }
    }
    const int32_t layers = 2, layer = 1, padded = cuda::padded_head_size(head_size);
    TestQkv qkv(heads, groups, head_size, rope_dimension, positions, tables, pages.tables, random, deviation);
    TestKv kv(type, layers, groups, 3 * (tokens / kPageTokens + 3), head_size);
    qkv.upload();
    kv.upload();
    DeviceArray<uint16_t> queries(static_cast<size_t>(tokens) * heads * padded);
    std::vector<uint16_t> expected(queries.size(), 0xffff);
    for (int32_t t = first; t < first + count; ++t) {
      qkv.append(kv, layer, t);
      for (int32_t h = 0; h < heads; ++h) {
        const auto target = expected.begin() + (static_cast<int64_t>(t) * heads + h) * padded;
        std::fill_n(target, padded, 0);
        std::ranges::copy(qkv.query(t, h), target);
      }
    }
    const std::vector<uint8_t> cache = kv.bytes();
    for (int repeat = 0; repeat < 2; ++repeat) {
      rotate_append(launch_, qkv.view(), qkv.batch(), first, count, kv.view(), layer,
                    reinterpret_cast<half*>(queries.data()));
      EXPECT_TRUE(queries.read() == expected);
      kv.download();
      EXPECT_TRUE(kv.bytes() == cache);
    }
  }
};

TEST_P(RopeTest, WritesQueriesKeysAndValues) {
  expect_right(32, 2, 128, 64, 70, 0, 70);
  expect_right(3, 1, 16, 8, 33, 0, 33);
  expect_right(9, 3, 32, 16, 31, 5, 20);
  expect_right(6, 2, 64, 32, 150, 3, 129);
  expect_right(2, 1, 128, 128, 1, 0, 1);
}

TEST_P(RopeTest, LargeAndTinyNumbers) {
  expect_right(3, 1, 64, 32, 40, 0, 40, 1e4f);
  expect_right(3, 1, 64, 32, 40, 0, 40, 1e6f);
  expect_right(3, 1, 64, 32, 40, 0, 40, 1e-6f);
  expect_right(3, 1, 64, 32, 40, 0, 40, 0);
}

TEST_P(RopeTest, NaNStays) {
  Random random(5);
  const int32_t heads = 3, groups = 1, head_size = 64;
  TestPages pages(2, random);
  const int32_t table = pages.add(70);
  TestQkv qkv(heads, groups, head_size, 32, {63, 64, 65}, {table, table, table}, pages.tables, random);
  TestKv kv(GetParam(), 1, groups, 2, head_size);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  qkv.at(0, 1, 40) = qkv.at(1, 3, 33) = qkv.at(2, 4, 63) = nan;  // a query, a key, a value
  qkv.upload();
  kv.upload();
  DeviceArray<uint16_t> queries(static_cast<size_t>(3 * heads * head_size));
  rotate_append(launch_, qkv.view(), qkv.batch(), 0, 3, kv.view(), 0, reinterpret_cast<half*>(queries.data()));
  kv.download();
  const std::vector<uint16_t> q = queries.read();
  for (int32_t t = 0; t < 3; ++t) {
    const int32_t page = qkv.table(t)[qkv.position(t) / kPageTokens], slot = qkv.position(t) % kPageTokens;
    for (int32_t d = 0; d < head_size; ++d) {
      const bool whole_block = GetParam() == KvType::q8_0 && d >= 32;
      EXPECT_EQ(std::isnan(kv.key(0, 0, page, slot, d)), t == 1 && (d == 33 || whole_block)) << t << " " << d;
      EXPECT_EQ(std::isnan(kv.value(0, 0, page, slot, d)), t == 2 && (d == 63 || whole_block)) << t << " " << d;
      for (int32_t h = 0; h < heads; ++h) {
        const uint16_t x = q[static_cast<size_t>((t * heads + h) * head_size + d)];
        EXPECT_EQ(std::isnan(half_to_float(x)), t == 0 && h == 1 && d == 40) << t << " " << h << " " << d;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, RopeTest, testing::Values(KvType::f16, KvType::q8_0),
                         [](const auto& info) { return info.param == KvType::f16 ? "f16" : "q8_0"; });

}  // namespace
}  // namespace chatglm::test
