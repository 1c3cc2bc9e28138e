#include <ostream>

#include "test/cuda/kv_reference.h"

namespace chatglm::test {
namespace {

using cuda::KvType;

/// One of the kernels and a type of cache.
struct Variant {
  const char* name;
  decltype(&cuda::attend_prefill) attend;
  bool wgmma;
  KvType type;
  friend std::ostream& operator<<(std::ostream& out, const Variant& v) { return out << v.name; }
};

struct Shape {
  int32_t heads, groups, head_size;
};
/// `count` new tokens after `position` ones.
struct Sequence {
  int32_t count, position;
  int32_t table = 0, first = 0;
};
/// Standard deviations. Queries are those of dot products with keys of deviation 1 (times log2(e), as rotate_append
/// gives them).
struct Deviations {
  float query = 1, key = 1, value = 1;
};

constexpr int32_t kLayers = 2, kLayer = 1;
constexpr int32_t kGap = 2;  // tokens before, between and after the sequences that are none of the kernel's business
constexpr float kUntouched = 7;

class AttentionPrefillTest : public CudaTest, public testing::WithParamInterface<Variant> {
 protected:
  bool fits(int32_t head_size) const {
    cuda::KvCache cache;
    cache.type = GetParam().type;
    cache.padded_head = cuda::padded_head_size(head_size);
    return !GetParam().wgmma || cuda::attend_prefill_wgmma_fits(device_, cache);
  }
};

/// A batch of sequences with all their keys, values and queries random.
class Problem {
 public:
  Problem(KvType type, const Shape& shape, std::vector<Sequence> sequences, const Deviations& deviations, uint64_t seed)
      : shape_(shape),
        padded_(cuda::padded_head_size(shape.head_size)),
        random_(seed),
        sequences_(std::move(sequences)),
        kv_(type, kLayers, shape.groups, page_count(sequences_) + 2, shape.head_size),
        pages_(page_count(sequences_) + 2, random_) {
    tokens_ = kGap;
    for (Sequence& s : sequences_) {
      s.table = pages_.add(s.position + s.count);
      s.first = tokens_;
      tokens_ += s.count + kGap;
      for (int32_t group = 0; group < shape.groups; ++group) {
        for (int32_t p = 0; p < s.position + s.count; ++p) {
          set(s, group, p, random_.normals(shape.head_size, deviations.key),
              random_.normals(shape.head_size, deviations.value));
        }
      }
    }
    // Queries of other tokens are NaN, the filling is zero.
    queries_.assign(static_cast<size_t>(tokens_) * shape.heads * padded_, 0x7e00);
    const float deviation = deviations.query * 1.442695f / std::sqrt(static_cast<float>(shape.head_size));
    for (const Sequence& s : sequences_) {
      for (int32_t t = 0; t < s.count; ++t) {
        for (int32_t h = 0; h < shape.heads; ++h) {
          for (int32_t d = 0; d < padded_; ++d) {
            query(s.first + t, h)[d] = d < shape.head_size ? float_to_half(random_.normal(deviation)) : 0;
          }
        }
      }
    }
  }

  void set(const Sequence& s, int32_t group, int32_t position, const std::vector<float>& key,
           const std::vector<float>& value) {
    const int32_t page = pages_.tables[static_cast<size_t>(s.table + position / kPageTokens)];
    kv_.set(kLayer, group, page, position % kPageTokens, key.data(), value.data());
  }
  uint16_t* query(int32_t token, int32_t head) {
    return queries_.data() + (static_cast<int64_t>(token) * shape_.heads + head) * padded_;
  }
  const std::vector<Sequence>& sequences() const { return sequences_; }
  Random& random() { return random_; }

  /// Attends twice, expects the same bits and nothing written elsewhere; result(token, head, d) then has the result.
  void run(const cuda::Launch& launch, const Variant& variant) {
    kv_.upload();
    const DeviceArray<uint16_t> queries(queries_);
    const DeviceArray<int32_t> tables(pages_.tables);
    cuda::Batch batch;
    batch.tokens = tokens_;
    batch.pages = tables.data();
    const int32_t columns = shape_.heads * shape_.head_size;
    std::vector<uint16_t> before;
    for (int repeat = 0; repeat < 2; ++repeat) {
      TestActivations out(tokens_, columns);
      out.fill(std::vector<float>(static_cast<size_t>(tokens_) * columns, kUntouched));
      for (const Sequence& s : sequences_) {
        variant.attend(launch, reinterpret_cast<const half*>(queries.data()), shape_.heads, batch,
                       {s.first, s.count, s.position, s.table}, kv_.view(), kLayer, out.view());
      }
      result_ = out.read();
      if (repeat == 0) before = out.host;
      EXPECT_EQ(std::memcmp(before.data(), out.host.data(), before.size() * sizeof(uint16_t)), 0)
          << "twice, different bits";
      for (int32_t t = tokens_; t < out.stride; ++t) {
        for (int32_t c = 0; c < columns; ++c) ASSERT_EQ(out.at(t, c), 0x7e00) << "behind the batch, token " << t;
      }
    }
    std::vector<bool> ours(static_cast<size_t>(tokens_));
    for (const Sequence& s : sequences_) std::fill_n(ours.begin() + s.first, s.count, true);
    for (int32_t t = 0; t < tokens_; ++t) {
      if (ours[static_cast<size_t>(t)]) continue;
      for (int32_t c = 0; c < columns; ++c) {
        ASSERT_EQ(result_[static_cast<size_t>(t) * columns + c], kUntouched) << "token " << t << " column " << c;
      }
    }
  }
  float result(int32_t token, int32_t head, int32_t dimension) const {
    return result_[(static_cast<size_t>(token) * shape_.heads + head) * shape_.head_size + dimension];
  }

  /// Of the first and last token, some tokens between and some heads of each sequence.
  void expect_right(double most) {
    const int32_t group_heads = shape_.heads / shape_.groups;
    for (const Sequence& s : sequences_) {
      std::vector<double> actual, expected;
      for (int32_t group = 0; group < shape_.groups; ++group) {
        const TestContext context(kv_, kLayer, group, pages_.tables.data() + s.table, s.position + s.count);
        for (int sample = 0; sample < 10; ++sample) {
          const auto t = sample < 2 ? sample * (s.count - 1) : static_cast<int32_t>(random_.integer(0, s.count - 1));
          const int32_t head = group * group_heads + static_cast<int32_t>(random_.integer(0, group_heads - 1));
          const std::vector<double> q =
              natural_query({query(s.first + t, head), static_cast<size_t>(shape_.head_size)});
          const std::vector<double> row = context.attend(q.data(), s.position + t + 1);
          expected.insert(expected.end(), row.begin(), row.end());
          for (int32_t d = 0; d < shape_.head_size; ++d) actual.push_back(result(s.first + t, head, d));
        }
      }
      EXPECT_LT(relative_error(actual, expected), most) << s.count << " tokens at " << s.position;
      expect_finite(s);
    }
  }
  void expect_finite(const Sequence& s) const {
    for (int32_t t = s.first; t < s.first + s.count; ++t) {
      for (int32_t h = 0; h < shape_.heads; ++h) {
        for (int32_t d = 0; d < shape_.head_size; ++d) {
          ASSERT_TRUE(std::isfinite(result(t, h, d))) << "token " << t - s.first << " head " << h << " of " << d;
        }
      }
    }
  }

 private:
  static int32_t page_count(const std::vector<Sequence>& sequences) {
    int32_t n = 0;
    for (const Sequence& s : sequences) n += (s.position + s.count + kPageTokens - 1) / kPageTokens;
    return n;
  }

  Shape shape_;
  int32_t padded_, tokens_ = 0;
  Random random_;
  std::vector<Sequence> sequences_;
  TestKv kv_;
  TestPages pages_;
  std::vector<uint16_t> queries_;  // (tokens, heads, padded head size)
  std::vector<float> result_;      // (tokens, heads, head size)
};

const std::vector<Sequence> kSequences = {{1, 0},  {1, 64},  {2, 63},  {5, 64},   {17, 100}, {63, 1},
                                          {64, 0}, {65, 63}, {64, 64}, {100, 28}, {200, 100}};

TEST_P(AttentionPrefillTest, AgreesWithFloat64) {
  uint64_t seed = 1;
  for (const Shape& shape : std::vector<Shape>{{1, 1, 16},
                                               {3, 1, 32},
                                               {9, 3, 16},
                                               {6, 2, 64},
                                               {40, 2, 64},
                                               {4, 2, 24},
                                               {32, 2, 128},
                                               {20, 1, 128},
                                               {3, 3, 128},
                                               {6, 2, 96}}) {
    if (!fits(shape.head_size)) continue;
    SCOPED_TRACE(testing::Message() << shape.heads << " heads, " << shape.groups << " groups, " << shape.head_size);
    Problem problem(GetParam().type, shape, kSequences, {}, seed++);
    problem.run(launch_, GetParam());
    problem.expect_right(1e-3);
  }
}

TEST_P(AttentionPrefillTest, LongContext) {
  // Few tokens after many, whose keys several blocks share; and one tile after the other, of which the first have
  // little to share.
  const std::vector<Sequence> few = {{1, 5000}, {300, 500}, {200, 5000}, {65, 3000}}, many = {{1000, 100}};
  for (const auto& [shape, sequences] :
       {std::pair(Shape{32, 2, 128}, few), std::pair(Shape{3, 3, 128}, many), std::pair(Shape{3, 1, 64}, many)}) {
    if (!fits(shape.head_size)) continue;
    SCOPED_TRACE(testing::Message() << shape.heads << " heads, " << shape.groups << " groups, " << shape.head_size);
    Problem problem(GetParam().type, shape, sequences, {}, 20);
    problem.run(launch_, GetParam());
    problem.expect_right(1e-3);
  }
}

TEST_P(AttentionPrefillTest, SharpScores) {
  if (!fits(128)) return;
  Problem problem(GetParam().type, {16, 1, 128}, {{200, 300}, {33, 0}}, {.query = 6}, 30);
  problem.run(launch_, GetParam());
  problem.expect_right(1e-3);
}

TEST_P(AttentionPrefillTest, LargeNumbers) {
  if (!fits(128)) return;
  Problem values(GetParam().type, {16, 1, 128}, kSequences, {.query = 1e-4f, .key = 1e4f, .value = 1e4f}, 40);
  values.run(launch_, GetParam());
  values.expect_right(1e-3);
  // Scores of 10^9 and more, each row's weight on a single key, which rounding of q8_0 to f16 may exchange for the
  // next.
  Problem all(GetParam().type, {16, 1, 128}, kSequences, {.query = 1e4f, .key = 1e4f, .value = 1e4f}, 41);
  all.run(launch_, GetParam());
  if (GetParam().type == KvType::f16) all.expect_right(1e-3);
  for (const Sequence& s : all.sequences()) all.expect_finite(s);
}

TEST_P(AttentionPrefillTest, NanReachesItsOwnRows) {
  if (!fits(128)) return;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Shape shape = {32, 2, 128};
  const auto key_or_value = [&](Problem& p, float bad) {
    std::vector<float> x = p.random().normals(shape.head_size);
    x[77] = bad;
    return x;
  };
  // A query, a key, a value of the past and one of the first token.
  for (int kind = 0; kind < 4; ++kind) {
    SCOPED_TRACE(kind);
    Problem problem(GetParam().type, shape, {{40, 70}, {40, 70}, {40, 70}}, {}, 50);
    const Sequence s = problem.sequences()[1];
    if (kind == 0) problem.query(s.first + 9, 3)[5] = 0x7e00;
    if (kind == 1) problem.set(s, 1, 65, key_or_value(problem, nan), key_or_value(problem, 0));
    if (kind == 2) problem.set(s, 1, 3, key_or_value(problem, 0), key_or_value(problem, nan));
    if (kind == 3) problem.set(s, 1, 70, key_or_value(problem, 0), key_or_value(problem, nan));
    problem.run(launch_, GetParam());
    problem.expect_finite(problem.sequences()[0]);
    problem.expect_finite(problem.sequences()[2]);
    for (int32_t t = 0; t < s.count; ++t) {
      for (int32_t h = 0; h < shape.heads; ++h) {
        const bool reached = kind == 0 ? t == 9 && h == 3 : h >= 16;
        ASSERT_EQ(std::isnan(problem.result(s.first + t, h, 77)), reached) << "token " << t << " head " << h;
      }
    }
  }
}

TEST_P(AttentionPrefillTest, EarlierTokensAsWithoutTheLater) {
  if (!fits(128)) return;
  // The bits of a prompt's first part do not depend on what follows, if both are cut into tiles at the same places.
  const Shape shape = {16, 1, 128};
  Problem whole(GetParam().type, shape, {{200, 0}}, {}, 60);
  whole.run(launch_, GetParam());
  // A later key and value that are absurd, but numbers, change nothing for earlier tokens.
  const Sequence s = whole.sequences()[0];
  std::vector<float> before;
  for (int32_t t = 0; t < 100; ++t) before.push_back(whole.result(s.first + t, t % 16, t));
  whole.set(s, 0, 100, std::vector<float>(128, 6e4f), std::vector<float>(128, -6e4f));
  whole.run(launch_, GetParam());
  for (int32_t t = 0; t < 100; ++t) {
    ASSERT_EQ(whole.result(s.first + t, t % 16, t), before[static_cast<size_t>(t)]) << "token " << t;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionPrefillTest,
                         testing::Values(Variant{"mma_f16", cuda::attend_prefill_mma, false, KvType::f16},
                                         Variant{"mma_q8_0", cuda::attend_prefill_mma, false, KvType::q8_0},
                                         Variant{"wgmma_f16", cuda::attend_prefill_wgmma, true, KvType::f16}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace chatglm::test
