// The kernels of sampling against outcome_of(): the same tokens and ids exactly, log-probabilities up to rounding.
#include "cuda/sampling/sampling.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <thread>

#include "test/cuda/support.h"

namespace chatglm::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();

/// A row that is wanted, with what its spans point to.
struct Wish {
  Draw draw;
  std::vector<TokenBias> bias;
  std::vector<TokenCount> counts;
  std::vector<uint32_t> mask;
  std::vector<int32_t> banned;
  Row::Use use = Row::Use::sample;
  int32_t target = -1;
  int32_t logprobs = -1;

  Row row() {
    draw.bias = bias, draw.counts = counts, draw.mask = mask, draw.banned = banned;
    return {use, target, logprobs, &draw};
  }
  std::string text() const {
    return "use " + std::to_string(static_cast<int>(use)) + ", temperature " +
           std::to_string(1 / draw.inverse_temperature) + ", top-k " + std::to_string(draw.top_k) + ", top-p " +
           std::to_string(draw.top_p) + ", min-p " + std::to_string(draw.min_p) + ", penalties " +
           std::to_string(draw.repetition_penalty) + " " + std::to_string(draw.presence_penalty) + " " +
           std::to_string(draw.frequency_penalty) + " of " + std::to_string(counts.size()) + ", biases " +
           std::to_string(bias.size()) + ", mask " + std::to_string(mask.size()) + ", banned " +
           std::to_string(banned.size()) + ", log-probabilities " + std::to_string(logprobs);
  }
};

Wish drawn(float inverse_temperature, int32_t top_k = 0, float top_p = 1, float min_p = 0) {
  Wish wish;
  wish.draw.inverse_temperature = inverse_temperature;
  wish.draw.top_k = top_k, wish.draw.top_p = top_p, wish.draw.min_p = min_p;
  return wish;
}

/// So many different tokens, in any order.
std::vector<int32_t> some_tokens(Random& random, int64_t count, int32_t vocabulary) {
  std::vector<int32_t> ids(static_cast<size_t>(vocabulary));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  count = std::min<int64_t>(count, vocabulary);
  for (int64_t i = 0; i < count; ++i) {
    std::swap(ids[static_cast<size_t>(i)], ids[static_cast<size_t>(random.integer(i, vocabulary - 1))]);
  }
  ids.resize(static_cast<size_t>(count));
  return ids;
}

template <class T>
T one_of(Random& random, std::initializer_list<T> values) {
  return values.begin()[random.integer(0, static_cast<int64_t>(values.size()) - 1)];
}

Wish random_wish(Random& random, int32_t vocabulary) {
  const auto number = [&](std::initializer_list<int32_t> values) { return one_of(random, values); };
  const auto real = [&](std::initializer_list<float> values) { return one_of(random, values); };
  Wish wish = drawn(real({0, 10, 1.25f, 1.25f, 1, 1, 0.5f, 0.01f, 1000}),
                    number({0, 0, 0, 1, 2, 50, 50, 64, 65, 99, 100, 101, 500, 3000, vocabulary - 1, vocabulary}),
                    real({1, 1, 1, 0.8f, 0.8f, 0.95f, 0.999f, 0.5f, 0.01f, 0, 1e-9f, 0.9999999f}),
                    real({0, 0, 0, 0.05f, 0.5f, 1}));
  wish.draw.random = random.chance(0.05)   ? 0
                     : random.chance(0.05) ? ~uint64_t{0}
                                           : [&] {
                                               return static_cast<uint64_t>(random.integer(0, INT64_MAX - 1)) << 1 |
                                                      static_cast<uint64_t>(random.integer(0, 1));
                                             }();
  wish.logprobs = number({-1, -1, 0, 1, 5, 20, 64, 65, 100});
  if (random.chance(0.1)) {
    wish.use = Row::Use::score;
    wish.target = static_cast<int32_t>(random.integer(0, vocabulary - 1));
    return wish;
  }
  if (random.chance(0.35)) {
    wish.draw.repetition_penalty = real({1, 1.1f, 2, 0.5f});
    wish.draw.presence_penalty = real({0, 0.6f, -1});
    wish.draw.frequency_penalty = real({0, 0.3f, 2});
    for (const int32_t id : some_tokens(random, number({1, 20, 256, vocabulary / 2}), vocabulary)) {
      wish.counts.push_back({id, static_cast<int32_t>(random.integer(0, 5))});
    }
  }
  if (random.chance(0.25)) {
    for (const int32_t id : some_tokens(random, number({1, 7, 300}), vocabulary)) {
      wish.bias.push_back({id, real({-100, 100, 1, -0.5f, 0, 3e38f, -3e38f})});
    }
  }
  if (random.chance(0.25)) {
    const double share = one_of(random, {0.5, 0.01, 0.99});
    wish.mask.resize(static_cast<size_t>(vocabulary + 31) / 32);
    for (int32_t id = 0; id < vocabulary; ++id) {
      if (random.chance(share)) wish.mask[static_cast<size_t>(id / 32)] |= 1u << (id % 32);
    }
  }
  if (random.chance(0.25)) wish.banned = some_tokens(random, number({1, 2, 300, vocabulary / 3}), vocabulary);
  return wish;
}

constexpr int kShapes = 10;
std::vector<float> random_logits(Random& random, int32_t vocabulary, int shape) {
  std::vector<float> logits(static_cast<size_t>(vocabulary));
  for (int32_t id = 0; id < vocabulary; ++id) {
    float& x = logits[static_cast<size_t>(id)];
    switch (shape % kShapes) {
      case 0: x = random.normal(3); break;
      case 1: x = random.normal(2) + (random.chance(0.002) ? 12.0f : 0.0f); break;  // a few likely ones
      case 2: x = random.normal(0.3f); break;                                       // flat
      case 3: x = static_cast<float>(random.integer(-3, 3)); break;                 // ties
      case 4: x = random.chance(0.5) ? 0.0f : -0.0f; break;                         // all equal
      case 5: x = random.normal(1000); break;
      case 6: x = static_cast<float>(id) * 1e-4f; break;
      case 7: x = 20.0f - static_cast<float>(id % 1024) * 0.01f; break;
      case 8: x = random.normal() + (id % 1024 < 40 ? 100.0f : 0.0f); break;  // crowded
      default: x = random.chance(0.001) ? 3e38f : random.normal(1e-30f); break;
    }
  }
  return logits;
}

void in_parallel(size_t count, const std::function<void(size_t)>& body) {
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); ++t) {
    threads.emplace_back([&] {
      for (size_t i = next++; i < count; i = next++) body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// The outcome that is expected. Its log-probabilities are exact for the largest logits too, where the logarithm of the
/// sum of the exponentials has too few digits.
Outcome expected_outcome(const Row& row, std::span<const float> logits) {
  Outcome outcome = outcome_of(row, logits);
  if (outcome.status != Outcome::Status::ok) return outcome;
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(logits[static_cast<size_t>(id)] - largest - std::log(sum));
  };
  outcome.logprob = logprob(outcome.token);
  for (int32_t i = 0; i < outcome.count; ++i) outcome.logprobs[i] = logprob(outcome.ids[i]);
  return outcome;
}

class SamplingTest : public CudaTest {
 protected:
  /// The outcomes of rows (wishes.size(), vocabulary) of logits; null for a wish whose row wants nothing.
  std::vector<Outcome> outcomes_on_gpu(std::vector<Wish>& wishes, const std::vector<float>& logits) {
    const size_t rows = wishes.size();
    const auto vocabulary = static_cast<int32_t>(logits.size() / rows);
    std::vector<cuda::SamplingJob> jobs(rows);
    std::vector<uint32_t> lists(3, 0x7fffffffu);
    const auto put = [&](const auto& list, int32_t& begin, int32_t& count) {
      count = static_cast<int32_t>(list.size());
      begin = static_cast<int32_t>(lists.size());
      const auto* words = reinterpret_cast<const uint32_t*>(list.data());
      if (count > 0) lists.insert(lists.end(), words, words + list.size() * sizeof(list[0]) / 4);
    };
    for (size_t r = 0; r < rows; ++r) {
      cuda::SamplingJob& job = jobs[r];
      std::memset(&job, 0, sizeof job);
      if (wishes[r].use == Row::Use::logits) continue;
      cuda::fill_job(wishes[r].row(), vocabulary, job);
      job.outcome = static_cast<int32_t>(rows - 1 - r);  // in another order than the rows
      put(wishes[r].bias, job.bias, job.bias_count);
      put(wishes[r].counts, job.counts, job.counts_count);
      put(wishes[r].mask, job.mask, job.mask_words);
      put(wishes[r].banned, job.banned, job.banned_count);
    }
    const DeviceArray<cuda::SamplingJob> device_jobs(jobs);
    std::vector<Outcome> results[2];
    for (std::vector<Outcome>& result : results) {
      const DeviceArray<float> device_logits(logits);
      const DeviceArray<uint32_t> device_lists(lists);
      const DeviceArray<cuda::RowStats> stats(rows);
      const DeviceArray<Outcome> outcomes(rows, 0x55);
      const auto count = static_cast<int32_t>(rows);
      cuda::rank_rows(launch_, device_logits.data(), device_jobs.data(), count, vocabulary, stats.data(),
                      outcomes.data());
      cuda::draw_rows(launch_, device_logits.data(), device_jobs.data(), count, vocabulary, device_lists.data(),
                      stats.data(), outcomes.data());
      result = outcomes.read();
      std::reverse(result.begin(), result.end());
    }
    EXPECT_EQ(std::memcmp(results[0].data(), results[1].data(), rows * sizeof(Outcome)), 0) << "the same bits twice";
    return results[0];
  }

  static void expect_outcome(const Outcome& actual, const Outcome& expected, bool wants_logprob,
                             const std::string& how) {
    ASSERT_EQ(actual.status, expected.status) << how;
    if (expected.status != Outcome::Status::ok) return;
    ASSERT_EQ(actual.token, expected.token) << how;
    ASSERT_EQ(actual.count, expected.count) << how;
    const auto near = [](float x, float y) { return x == y || std::fabs(x - y) <= 2e-5f + 3e-7f * std::fabs(y); };
    if (wants_logprob) {
      ASSERT_TRUE(near(actual.logprob, expected.logprob))
          << actual.logprob << ", not " << expected.logprob << ": " << how;
    }
    for (int32_t i = 0; i < expected.count; ++i) {
      ASSERT_EQ(actual.ids[i], expected.ids[i]) << "rank " << i << ": " << how;
      ASSERT_TRUE(near(actual.logprobs[i], expected.logprobs[i]))
          << actual.logprobs[i] << ", not " << expected.logprobs[i] << ", rank " << i << ": " << how;
    }
  }

  void expect_all(std::vector<Wish> wishes, const std::vector<float>& logits, const std::string& how = "") {
    const size_t rows = wishes.size(), vocabulary = logits.size() / rows;
    const std::vector<Outcome> actual = outcomes_on_gpu(wishes, logits);
    std::vector<Outcome> expected(rows);
    in_parallel(rows, [&](size_t r) {
      if (wishes[r].use == Row::Use::logits) return;
      expected[r] = expected_outcome(wishes[r].row(), std::span(logits).subspan(r * vocabulary, vocabulary));
    });
    for (size_t r = 0; r < rows; ++r) {
      if (wishes[r].use == Row::Use::logits) {
        const Outcome untouched = [] {
          Outcome outcome;
          std::memset(static_cast<void*>(&outcome), 0x55, sizeof outcome);
          return outcome;
        }();
        EXPECT_EQ(std::memcmp(&actual[r], &untouched, sizeof untouched), 0) << "row " << r;
        continue;
      }
      const bool wants_logprob = wishes[r].use == Row::Use::score || wishes[r].logprobs >= 0;
      expect_outcome(actual[r], expected[r], wants_logprob,
                     how + " row " + std::to_string(r) + " of " + std::to_string(rows) + ", vocabulary " +
                         std::to_string(vocabulary) + ", " + wishes[r].text());
      if (HasFatalFailure()) return;
    }
  }

  // One row whose logits a function of the id says.
  void expect_one(Wish wish, int32_t vocabulary, const std::function<float(int32_t)>& logit) {
    std::vector<float> logits;
    for (int32_t id = 0; id < vocabulary; ++id) logits.push_back(logit(id));
    std::vector<Wish> wishes;
    wishes.push_back(std::move(wish));
    expect_all(std::move(wishes), logits);
  }
  // What ranks: the likeliest 1, 64 and 100, and a draw of 64.
  void expect_ranks(int32_t vocabulary, const std::function<float(int32_t)>& logit) {
    std::vector<float> row, logits;
    for (int32_t id = 0; id < vocabulary; ++id) row.push_back(logit(id));
    std::vector<Wish> wishes;
    for (const int32_t count : {0, 64, 100}) {
      wishes.push_back(drawn(1, 64, 0.9f));
      wishes.back().logprobs = count;
      wishes.back().draw.random = 0x123456789abcdef0u * static_cast<uint64_t>(count + 1);
      logits.insert(logits.end(), row.begin(), row.end());
    }
    expect_all(std::move(wishes), logits);
  }
};

TEST_F(SamplingTest, RandomWishesOfEveryVocabularyAndNumberOfRows) {
  Random random(1);
  for (const int32_t vocabulary : {1, 2, 3, 33, 100, 160, 1027, 8193, 65024, 130528, 151552}) {
    for (const int32_t rows : {1, 1, 1, 3, 3, 64, 130, 256}) {  // clusters of 8, 4 and 2 blocks, and single blocks
      if (rows >= 130 && vocabulary > 65024 && vocabulary != 151552) continue;
      std::vector<Wish> wishes;
      std::vector<float> logits;
      for (int32_t r = 0; r < rows; ++r) {
        wishes.push_back(random_wish(random, vocabulary));
        if (rows > 1 && random.chance(0.05)) wishes.back().use = Row::Use::logits;
        const std::vector<float> row =
            random_logits(random, vocabulary, rows > 1 ? r : static_cast<int>(random.integer(0, 9)));
        logits.insert(logits.end(), row.begin(), row.end());
      }
      expect_all(std::move(wishes), logits);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(SamplingTest, EachOptionAloneOnEachKindOfRow) {
  Random random(2);
  for (const int32_t vocabulary : {500, 65024}) {
    for (int shape = 0; shape < kShapes; ++shape) {
      const std::vector<float> row = random_logits(random, vocabulary, shape);
      std::vector<Wish> wishes;
      const auto add = [&](Wish wish) {
        wish.draw.random = static_cast<uint64_t>(random.integer(0, INT64_MAX - 1)) * 2;
        wish.logprobs = 3;
        wishes.push_back(std::move(wish));
      };
      add(drawn(0));
      for (const float inverse : {1.0f, 1.25f, 0.001f, 1e5f}) {
        add(drawn(inverse));
        for (const int32_t top_k : {1, 7, 100, 101, 2047, 2048, 2049, 30000}) add(drawn(inverse, top_k));
        for (const float top_p : {0.0f, 0.3f, 0.8f, 0.99f, 0.99999f}) add(drawn(inverse, 0, top_p));
        add(drawn(inverse, 0, 1, 0.02f));
        add(drawn(inverse, 3000, 0.9f, 0.001f));
      }
      for (const Wish& base : {drawn(0), drawn(1), drawn(1, 50, 0.8f)}) {
        Wish wish = base;
        wish.bias = {{3, 5.0f}, {4, -2.5f}};
        add(wish);
        wish = base;
        for (int32_t id = 0; id < 200; ++id) wish.counts.push_back({id, id % 3});
        wish.draw.repetition_penalty = 1.1f;
        add(wish);
        wish.draw.frequency_penalty = 0.7f, wish.draw.presence_penalty = -0.2f;
        wish.bias = {{0, 3.0f}, {199, 30.0f}, {250, 30.0f}};  // two tokens that the counts have, too
        add(wish);
        wish = base;
        wish.mask.assign(static_cast<size_t>(vocabulary + 31) / 32, 0x00010000u);
        add(wish);
        wish = base;
        wish.banned = {0, 1, 2, vocabulary - 1};
        add(wish);
      }
      std::vector<float> logits;
      for (size_t i = 0; i < wishes.size(); ++i) logits.insert(logits.end(), row.begin(), row.end());
      expect_all(wishes, logits, "kind " + std::to_string(shape));
      if (HasFatalFailure()) return;
      // And in clusters, where there are: a few rows at a time.
      for (size_t i = 0; i < wishes.size(); i += 9) {
        const size_t count = std::min<size_t>(9, wishes.size() - i);
        const auto first = wishes.begin() + static_cast<std::ptrdiff_t>(i);
        expect_all(std::vector<Wish>(first, first + static_cast<std::ptrdiff_t>(count)),
                   std::vector<float>(logits.begin(), logits.begin() + static_cast<std::ptrdiff_t>(count * row.size())),
                   "few rows of kind " + std::to_string(shape));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// The draw's edges: the first token, the last one, and every one of a small vocabulary.
TEST_F(SamplingTest, TheWholeRangeOfRandomNumbers) {
  for (const int32_t vocabulary : {7, 9000}) {
    std::vector<Wish> wishes;
    std::vector<float> logits;
    for (int i = 0; i <= 64; ++i) {
      for (const int32_t top_k : {0, 5}) {
        wishes.push_back(drawn(1, top_k));
        wishes.back().draw.random = i == 64 ? ~uint64_t{0} : static_cast<uint64_t>(i) << 58;
        for (int32_t id = 0; id < vocabulary; ++id) logits.push_back(static_cast<float>(id * 3 % 7) * 0.5f);
      }
    }
    expect_all(std::move(wishes), logits);
  }
}

TEST_F(SamplingTest, RanksOfRowsOfAnyLength) {
  Random random(3);
  for (const int32_t vocabulary :
       {1, 2, 5, 31, 63, 64, 65, 99, 100, 101, 500, 511, 513, 1023, 1024, 1025, 1500, 4097, 16383, 16385, 65537}) {
    expect_ranks(vocabulary, [&](int32_t) { return random.normal(3); });
  }
}

TEST_F(SamplingTest, RanksOfExtremeEqualOrderedAndCrowdedLogits) {
  Random random(4);
  expect_ranks(65024, [&](int32_t) { return random.normal(1e4f); });
  expect_ranks(65024, [&](int32_t) { return random.normal(1e-30f); });
  expect_ranks(3000, [&](int32_t) { return random.normal(1) - 3e38f; });
  expect_ranks(3000, [&](int32_t id) { return id % 2 ? 3e38f : -3e38f; });
  for (const int32_t vocabulary : {40, 777, 5000, 65024}) {
    expect_ranks(vocabulary, [](int32_t) { return 0.0f; });
    expect_ranks(vocabulary, [&](int32_t) { return random.chance(0.5) ? 0.0f : -0.0f; });
    expect_ranks(vocabulary, [&](int32_t) { return static_cast<float>(random.integer(-3, 3)); });
    expect_ranks(vocabulary, [&](int32_t) { return random.chance(0.0005) ? 1.0f : -1.0f; });
  }
  expect_ranks(65024, [](int32_t id) { return static_cast<float>(id); });
  expect_ranks(65024, [](int32_t id) { return -static_cast<float>(id); });
  // Large logits in few groups of the kernel's threads, so that far more of them reach its first floor than it ranks.
  for (const int32_t crowd : {8, 64, 504, 512, 520}) {
    for (const int32_t vocabulary : {8000, 65024, 151552}) {
      expect_ranks(vocabulary, [&](int32_t id) { return random.normal() + (id % 1024 < crowd ? 100.0f : 0.0f); });
    }
    expect_ranks(40000, [&](int32_t id) { return id % 1024 < crowd ? 1.0f : 0.0f; });
  }
}

TEST_F(SamplingTest, RowsThatAreNotFinite) {
  Random random(6);
  for (const int32_t vocabulary : {1, 100, 8193, 65024, 65537}) {
    const size_t columns = static_cast<size_t>(vocabulary);
    std::vector<Wish> wishes;
    std::vector<float> logits;
    for (int kind = 0; kind < 4; ++kind) {  // greedy, ranked, whole, changed
      const std::vector<float> finite = random.normals(7 * int64_t{vocabulary});
      const size_t begin = logits.size();
      logits.insert(logits.end(), finite.begin(), finite.end());
      float* rows = logits.data() + begin;
      rows[columns * 1 - 1] = kNaN;
      rows[columns * 2 - 1] = kInfinity;
      rows[columns * 3 - 1] = -kInfinity;
      std::fill_n(rows + 3 * columns, columns, kInfinity);
      std::fill_n(rows + 4 * columns, columns, -kInfinity);
      std::fill_n(rows + 5 * columns, columns, kNaN);
      for (int row = 0; row < 7; ++row) {
        wishes.push_back(kind == 0 ? drawn(0) : kind == 1 ? drawn(1, 50, 0.8f) : drawn(1));
        if (kind == 3) wishes.back().banned = {0};
        if (row % 2 == 1) wishes.back().logprobs = 2;
      }
    }
    expect_all(std::move(wishes), logits);
  }
}

TEST_F(SamplingTest, EveryTokenIsBanned) {
  Random random(7);
  for (const int32_t vocabulary : {1, 50, 65024}) {
    std::vector<float> logits;
    std::vector<Wish> wishes;
    for (const float inverse : {0.0f, 1.0f}) {
      for (int how = 0; how < 3; ++how) {
        Wish wish = drawn(inverse, 10, 0.9f);
        if (how != 1) wish.mask.assign(static_cast<size_t>(vocabulary + 31) / 32, how == 2 ? 0xffffffffu : 0);
        if (how != 0) wish.banned = some_tokens(random, vocabulary, vocabulary);
        wish.logprobs = how;
        wishes.push_back(std::move(wish));
      }
    }
    // One token is left.
    Wish wish = drawn(1, 10, 0.9f);
    wish.mask.assign(static_cast<size_t>(vocabulary + 31) / 32, 0);
    wish.mask[0] = 1;
    wishes.push_back(std::move(wish));
    for (size_t i = 0; i < wishes.size(); ++i) {
      const std::vector<float> row = random.normals(vocabulary, 2);
      logits.insert(logits.end(), row.begin(), row.end());
    }
    expect_all(std::move(wishes), logits);
  }
}

TEST_F(SamplingTest, MappedHostMemory) {
  Random random(8);
  constexpr size_t kVocabulary = 65024;
  const std::vector<float> logits = random.normals(2 * kVocabulary);
  const DeviceArray<float> device_logits(logits);
  Wish wishes[2] = {drawn(1, 50, 0.8f), drawn(1)};
  wishes[0].logprobs = 100, wishes[1].logprobs = 7;
  std::vector<cuda::SamplingJob> jobs(2);
  for (int32_t r = 0; r < 2; ++r) {
    jobs[static_cast<size_t>(r)] = {};
    cuda::fill_job(wishes[r].row(), kVocabulary, jobs[static_cast<size_t>(r)]);
    jobs[static_cast<size_t>(r)].outcome = r;
  }
  const DeviceArray<cuda::SamplingJob> device_jobs(jobs);
  const DeviceArray<cuda::RowStats> stats(2);
  cuda::PinnedMemory memory(2 * sizeof(Outcome));
  auto* outcomes = reinterpret_cast<Outcome*>(memory.data());
  std::memset(static_cast<void*>(outcomes), 0xff, 2 * sizeof(Outcome));
  cuda::rank_rows(launch_, device_logits.data(), device_jobs.data(), 2, kVocabulary, stats.data(), outcomes);
  cuda::draw_rows(launch_, device_logits.data(), device_jobs.data(), 2, kVocabulary, nullptr, stats.data(), outcomes);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  for (size_t r = 0; r < 2; ++r) {
    expect_outcome(outcomes[r], outcome_of(wishes[r].row(), std::span(logits).subspan(r * kVocabulary, kVocabulary)),
                   true, "row " + std::to_string(r));
  }
}

}  // namespace
}  // namespace chatglm::test
