#include <ostream>

#include "test/cuda/kv_reference.h"

namespace chatglm::test {
namespace {

using cuda::KvType;

struct Variant {
  const char* name;
  KvType type;
  bool clusters;  // as from sm_90 on
  friend std::ostream& operator<<(std::ostream& out, const Variant& v) { return out << v.name; }
};

struct Shape {
  int32_t heads, groups, head_size;
};

constexpr int32_t kLayers = 2, kLayer = 1;

/// A batch of sequences, of each the last token, with all earlier keys and values random.
class Problem {
 public:
  /// `positions`: of the sequences' last tokens. `shared`: so many first pages are the same in all sequences that have
  /// them full.
  Problem(KvType type, const Shape& shape, const std::vector<int32_t>& positions, int32_t shared = 0,
          float deviation = 1)
      : shape_(shape), random_(static_cast<uint64_t>(positions.size()) * 100 + static_cast<uint64_t>(shape.heads)) {
    int32_t page_count = 3;
    for (const int32_t p : positions) page_count += p / kPageTokens + 1;
    TestPages pages(page_count, random_);
    kv_ = std::make_unique<TestKv>(type, kLayers, shape.groups, page_count, shape.head_size);
    std::vector<int32_t> tables;
    const auto longest = std::max_element(positions.begin(), positions.end()) - positions.begin();
    const int32_t first = pages.add(positions[static_cast<size_t>(longest)] + 1);
    for (size_t i = 0; i < positions.size(); ++i) {
      const int32_t full = std::min(shared, positions[i] / kPageTokens);
      const bool is_longest = static_cast<int64_t>(i) == longest;
      tables.push_back(is_longest ? first : pages.add(positions[i] + 1, full, first));
      for (int32_t p = is_longest ? 0 : full * kPageTokens; p < positions[i]; ++p) {
        const int32_t page = pages.tables[static_cast<size_t>(tables[i] + p / kPageTokens)];
        for (int32_t group = 0; group < shape.groups; ++group) {
          kv_->set(kLayer, group, page, p % kPageTokens, random_.normals(shape.head_size, deviation).data(),
                   random_.normals(shape.head_size, deviation).data());
        }
      }
    }
    qkv_ = std::make_unique<TestQkv>(shape.heads, shape.groups, shape.head_size, shape.head_size / 2, positions, tables,
                                     pages.tables, random_, deviation);
  }

  TestKv& kv() { return *kv_; }
  TestQkv& qkv() { return *qkv_; }
  int32_t columns() const { return shape_.heads * shape_.head_size; }

  /// Attends, twice or with `read_ahead`; both must give the same bits. (tokens, columns).
  std::vector<float> run(const cuda::Launch& launch) {
    const int32_t tokens = qkv_->tokens();
    cuda::AttendDecodeWorkspace workspace;
    const DeviceArray<uint8_t> partial(
        cuda::attend_decode_workspace_bytes(*launch.device, shape_.heads, shape_.groups, shape_.head_size, tokens));
    const DeviceArray<uint32_t> counters(
        static_cast<size_t>(cuda::attend_decode_counters(shape_.heads, shape_.groups, tokens)), 0);
    workspace.partial = reinterpret_cast<float*>(partial.data());
    workspace.counters = counters.data();
    kv_->upload();
    qkv_->upload();
    std::vector<float> result;
    std::vector<uint16_t> before;
    for (const bool read_ahead : {false, false, true}) {
      TestActivations out(tokens, columns());
      out.fill(std::vector<float>(static_cast<size_t>(tokens) * columns(), std::numeric_limits<float>::infinity()));
      attend_decode(launch, qkv_->view(), qkv_->batch(), kv_->view(), kLayer, out.view(), workspace, read_ahead);
      result = out.read();
      if (before.empty()) before = out.host;
      EXPECT_EQ(std::memcmp(before.data(), out.host.data(), before.size() * sizeof(uint16_t)), 0);
      for (const uint32_t counter : counters.read()) EXPECT_EQ(counter, 0u);
    }
    return result;
  }

  /// The results of every `step`th token and of all its heads; and the cache, bit for bit.
  void expect_right(const cuda::Launch& launch, int32_t step = 1) {
    const std::vector<float> result = run(launch);
    for (int32_t t = 0; t < qkv_->tokens(); ++t) qkv_->append(*kv_, kLayer, t);
    const std::vector<uint8_t> expected_cache = kv_->bytes();
    kv_->download();
    EXPECT_TRUE(kv_->bytes() == expected_cache);
    const int32_t group_heads = shape_.heads / shape_.groups, size = shape_.head_size;
    for (int32_t t = 0; t < qkv_->tokens(); t += step) {
      const auto row = result.begin() + static_cast<int64_t>(t) * columns();
      std::vector<double> expected;
      for (int32_t group = 0; group < shape_.groups; ++group) {
        const int32_t length = qkv_->position(t) + 1;
        const TestContext context(*kv_, kLayer, group, qkv_->table(t), length);
        for (int32_t h = group * group_heads; h < (group + 1) * group_heads; ++h) {
          const std::vector<double> head = context.attend(natural_query(qkv_->query(t, h)).data(), length);
          expected.insert(expected.end(), head.begin(), head.end());
        }
      }
      const std::vector<float> actual(row, row + columns());
      EXPECT_LT(relative_error(actual, expected), 1e-3)
          << "position " << qkv_->position(t) << ", " << shape_.heads << " heads of " << size;
    }
  }

 private:
  Shape shape_;
  Random random_;
  std::unique_ptr<TestKv> kv_;
  std::unique_ptr<TestQkv> qkv_;
};

class AttentionDecodeTest : public CudaTest, public testing::WithParamInterface<Variant> {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    if (GetParam().clusters && device_.arch < 900) GTEST_SKIP() << "no clusters";
    if (!GetParam().clusters) device_.arch = std::min(device_.arch, 800);
  }
};

TEST_P(AttentionDecodeTest, OneSequence) {
  for (const int32_t position : {0, 1, 31, 32, 63, 64, 65, 127, 128, 129, 512, 1000, 4097}) {
    Problem(GetParam().type, {32, 2, 128}, {position}).expect_right(launch_);
  }
}

TEST_P(AttentionDecodeTest, LongContext) { Problem(GetParam().type, {3, 1, 32}, {32767}).expect_right(launch_); }

TEST_P(AttentionDecodeTest, Shapes) {
  const std::vector<int32_t> positions = {0, 63, 700, 64, 1, 130, 257};
  for (const Shape& shape : {Shape{3, 1, 16}, Shape{6, 2, 32}, Shape{9, 3, 64}, Shape{3, 1, 128}, Shape{40, 2, 128},
                             Shape{20, 1, 64}, Shape{1, 1, 128}}) {
    Problem(GetParam().type, shape, positions).expect_right(launch_);
  }
}

TEST_P(AttentionDecodeTest, SequencesThatSharePages) {
  Problem(GetParam().type, {6, 2, 128}, {128, 320, 191, 1500, 64, 5}, 2).expect_right(launch_);
}

TEST_P(AttentionDecodeTest, ManySequences) {  // so many that there are two splits, or one
  for (const int32_t tokens : {20, 40, 150}) {
    std::vector<int32_t> positions;
    for (int32_t i = 0; i < tokens; ++i) positions.push_back(i * 37 % 200);
    positions[7] = 1500;
    Problem(GetParam().type, {6, 2, 32}, positions).expect_right(launch_, 7);
  }
}

TEST_P(AttentionDecodeTest, LargeNumbers) {
  Problem problem(GetParam().type, {6, 2, 128}, {0, 40, 700}, 0, 1e4f);
  for (const float x : problem.run(launch_)) ASSERT_TRUE(std::isfinite(x));
}

TEST_P(AttentionDecodeTest, NaNReachesItsOwnSequenceAlone) {
  const Shape shape = {6, 2, 64};
  const std::vector<int32_t> positions = {70, 0, 300, 129};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> clean = Problem(GetParam().type, shape, positions).run(launch_);
  enum Place { query, key, value, old_key, old_value, places };
  for (int32_t token : {1, 2}) {
    for (int place = query; place < places; ++place) {
      if (place >= old_key && positions[static_cast<size_t>(token)] == 0) continue;
      Problem problem(GetParam().type, shape, positions);
      if (place == query) problem.qkv().at(token, 4, 9) = nan;
      if (place == key) problem.qkv().at(token, shape.heads + 1, 9) = nan;
      if (place == value) problem.qkv().at(token, shape.heads + shape.groups + 1, 9) = nan;
      if (place >= old_key) {
        std::vector<float> keys(64), values(64);
        (place == old_key ? keys : values)[9] = nan;
        problem.kv().set(kLayer, 1, problem.qkv().table(token)[1], 33, keys.data(), values.data());
      }
      const std::vector<float> result = problem.run(launch_);
      for (int32_t t = 0; t < 4; ++t) {
        for (int32_t c = 0; c < problem.columns(); ++c) {
          const size_t i = static_cast<size_t>(t * problem.columns() + c);
          const int32_t head = c / shape.head_size, dimension = c % shape.head_size;
          const bool whole_block = GetParam().type == KvType::q8_0 && dimension < 32;
          const bool of_values = (place == value || place == old_value) && (dimension == 9 || whole_block);
          const bool reached =
              t == token && (place == query ? head == 4 : head >= 3 && (of_values || place == key || place == old_key));
          if (reached) {
            ASSERT_TRUE(std::isnan(result[i])) << "place " << place << " token " << t << " column " << c;
          } else if (t != token || head < 3) {
            ASSERT_EQ(result[i], clean[i]) << "place " << place << " token " << t << " column " << c;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, AttentionDecodeTest,
                         testing::Values(Variant{"f16", KvType::f16, false}, Variant{"f16_clusters", KvType::f16, true},
                                         Variant{"q8_0", KvType::q8_0, false},
                                         Variant{"q8_0_clusters", KvType::q8_0, true}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace chatglm::test
