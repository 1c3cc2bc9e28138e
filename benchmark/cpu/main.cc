// Speed of the CPU's kernels beside what bounds them, on as many threads as --threads says: products against a plain
// read of memory (one token) and against the rate of multiply-additions (many tokens), attention against the same.
//
//   chatglm_cpu_bench [--threads N] [--kernels NAME] [--type q4_0,q8_0,f16,bf16,f32] [--tokens 1,2,4,8,256] [--rounds
//   5]
//                     [--shape ROWSxCOLUMNS] [--vocabulary 65024] [--only sampling]
//
// Every figure is the median of the rounds; a plain read of the same memory comes between them, because the memory's
// speed drifts.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "base/cores.h"
#include "base/thread_pool.h"
#include "cpu/kernels/kernels.h"
#include "cpu/packed_matrix.h"
#include "cpu/sampling.h"
#include "engine/sampling_math.h"
#include "model/model.h"
#include "model/quantize.h"

namespace {

using namespace chatglm;
using namespace chatglm::cpu;

const std::atomic<bool> kNever{false};

double seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<std::string> list(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

struct Plan {
  int threads = physical_cores();
  const Kernels* kernels = &select_kernels();
  std::string types = "q4_0,q8_0,f16";
  std::string tokens = "1,2,4,8,32,256";
  int rounds = 5;
  int64_t rows = 27392, columns = 4096;
  int32_t vocabulary = 65024;
  std::string only;  // "sampling", or empty: everything
};

// So many matrices that they do not fit a cache, as the layers of a model do not.
void products(const Plan& plan, DataType type) {
  ThreadPool pool(plan.threads);
  Tensor shape{type, plan.rows, plan.columns, nullptr};
  constexpr int64_t kBytes = int64_t{1} << 30;
  const int64_t count = std::max<int64_t>(2, kBytes / shape.bytes());
  std::vector<PackedMatrix> matrices;
  {
    std::vector<uint8_t> rows(static_cast<size_t>(shape.bytes()));
    fill_random(type, rows.data(), "weights", 1, 0, plan.rows * plan.columns, {0, 0.02f});
    shape.data = rows.data();
    for (int64_t i = 0; i < count; ++i) {
      matrices.emplace_back(shape, PackedMatrix::Order::plain, *plan.kernels);
      matrices.back().pack(0, plan.rows, shape.data);
    }
  }
  for (const std::string& text : list(plan.tokens)) {
    const int64_t tokens = std::atoll(text.c_str());
    const int64_t used = tokens > 8 ? std::max<int64_t>(1, count * 4 / tokens) : count;
    std::vector<float> x(static_cast<size_t>(tokens * plan.columns)), y(static_cast<size_t>(tokens * plan.rows));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(i * 7919 % 2001) - 1000) * 1e-3f;
    std::vector<ActivationBlock> blocks(x.size() / 32);
    plan.kernels->quantize(x.data(), static_cast<int64_t>(x.size()),
                           type == DataType::q4_0 ? 8 : plan.kernels->q8_0_zero_point, blocks.data(), nullptr);
    ThreadPool::Cost cost;
    std::vector<double> times, reads, bytes_per_second;
    for (int round = 0; round < plan.rounds + 1; ++round) {
      reads.push_back(seconds([&] {
        for (int64_t i = 0; i < used; ++i) {
          const PackedMatrix& m = matrices[static_cast<size_t>(i)];
          ThreadPool::Cost read_cost;
          std::atomic<uint64_t> sink{0};
          pool.run_ranges(m.panels, 1, read_cost, kNever, [&](int64_t begin, int64_t end) {
            sink +=
                plan.kernels->read(m.data.data() + begin * m.panel_bytes, (end - begin) * m.panel_bytes / 512 * 512);
          });
        }
      }));
      times.push_back(seconds([&] {
        for (int64_t i = 0; i < used; ++i) {
          const PackedMatrix& m = matrices[static_cast<size_t>(i)];
          Product p;
          p.type = type;
          p.weights = m.data.data();
          p.panel_bytes = m.panel_bytes;
          p.outputs = m.outputs;
          p.columns = m.columns;
          p.tokens = tokens;
          p.x = x.data();
          p.blocks = blocks.data();
          p.y = y.data();
          p.y_stride = m.outputs;
          pool.run_ranges(m.panels, 1, cost, kNever,
                          [&](int64_t begin, int64_t end) { plan.kernels->product(p, begin, end); });
        }
      }));
    }
    times.erase(times.begin());
    reads.erase(reads.begin());
    const double bytes = static_cast<double>(used * shape.bytes());
    const double operations = 2.0 * static_cast<double>(used * tokens * plan.rows * plan.columns);
    std::printf("%-5s %4lld tokens  %8.3f ms  %6.1f GB/s  %3.0f%% of a read's %5.1f  %7.0f GOP/s\n", name_of(type),
                static_cast<long long>(tokens), median(times) * 1e3 / static_cast<double>(used),
                bytes / median(times) * 1e-9, 100 * median(reads) / median(times), bytes / median(reads) * 1e-9,
                operations / median(times) * 1e-9);
    std::fflush(stdout);
  }
}

// One group's heads of a query, at a depth, on one thread.
void attention(const Plan& plan, KvType type, const char* name, int32_t depth) {
  constexpr int32_t kHeads = 16, kSize = 128;
  const int64_t page_bytes = kv_page_bytes(type, kSize), pages = (depth + kPageTokens - 1) / kPageTokens;
  std::vector<uint8_t> kv(static_cast<size_t>(2 * pages * page_bytes));
  std::vector<float> queries(kHeads * kSize, 0.05f), key(kSize), value(kSize);
  for (int32_t t = 0; t < depth; ++t) {
    for (int32_t d = 0; d < kSize; ++d) {
      key[static_cast<size_t>(d)] = static_cast<float>((t * 31 + d * 17) % 101 - 50) * 0.02f;
      value[static_cast<size_t>(d)] = static_cast<float>((t * 13 + d * 29) % 97 - 48) * 0.02f;
    }
    uint8_t* page = kv.data() + 2 * (t / kPageTokens) * page_bytes;
    plan.kernels->store_kv(type, key.data(), value.data(), kSize, t % kPageTokens, page, page + page_bytes);
  }
  std::vector<int32_t> visible(kHeads);
  std::vector<float> largest(kHeads), sums(kHeads), results(kHeads * kSize);
  std::vector<double> times;
  for (int round = 0; round < 50; ++round) {
    std::fill(largest.begin(), largest.end(), -1e30f);
    std::fill(sums.begin(), sums.end(), 0.0f);
    std::fill(results.begin(), results.end(), 0.0f);
    times.push_back(seconds([&] {
      for (int64_t page = 0; page < pages; ++page) {
        std::fill(visible.begin(), visible.end(),
                  static_cast<int32_t>(std::min<int64_t>(kPageTokens, depth - page * kPageTokens)));
        AttentionPage work;
        work.type = type;
        work.keys = kv.data() + 2 * page * page_bytes;
        work.values = work.keys + page_bytes;
        work.head_size = kSize;
        work.rows = kHeads;
        work.queries = queries.data();
        work.visible = visible.data();
        plan.kernels->attend(work, {largest.data(), sums.data(), results.data()});
      }
    }));
  }
  const double time = median(times), operations = 4.0 * kHeads * kSize * depth;
  std::printf("attention %-4s depth %5d, 16 heads, one thread  %8.1f us  %6.1f GB/s  %6.1f GFLOP/s\n", name, depth,
              time * 1e6, static_cast<double>(kv.size()) / time * 1e-9, operations / time * 1e-9);
}

void elementwise(const Plan& plan) {
  constexpr int64_t kCount = 4096;
  std::vector<float> x(kCount, 0.3f), weight(kCount, 1.1f), y(kCount);
  std::vector<ActivationBlock> blocks(kCount / 32);
  std::vector<double> norms, codes;
  for (int round = 0; round < 200; ++round) {
    norms.push_back(seconds([&] { plan.kernels->rms_norm(x.data(), weight.data(), 1e-5f, kCount, y.data()); }));
    codes.push_back(seconds([&] { plan.kernels->quantize(x.data(), kCount, 8, blocks.data(), nullptr); }));
  }
  std::printf("4096 numbers: RMSNorm %.2f us, rounding to 8 bits %.2f us\n", median(norms) * 1e6, median(codes) * 1e6);
  ThreadPool pool(plan.threads);
  std::vector<double> handovers;
  for (int round = 0; round < 2000; ++round) {
    handovers.push_back(seconds([&] { pool.run(2 * plan.threads, kNever, [](int64_t) {}); }));
  }
  std::printf("handover to %d threads and back: %.2f us\n", plan.threads, median(handovers) * 1e6);
}

// One token from one row of logits, on one thread. Half of the rows are peaked like those of a language model (most of
// the probability is with a few tokens), half are flat (thousands of tokens are needed for a top-p of 0.8).
void sampling(const Plan& plan) {
  constexpr int kRows = 8, kRounds = 60;
  const auto vocabulary = static_cast<size_t>(plan.vocabulary);
  std::vector<TokenBias> bias;
  std::vector<TokenCount> counts;
  for (int32_t i = 0; i < 10; ++i) bias.push_back({i * 37 % plan.vocabulary, 1.0f});
  for (int32_t i = 0; i < std::min(1000, plan.vocabulary); ++i) counts.push_back({i, i % 4});
  const std::vector<uint32_t> mask((vocabulary + 31) / 32, 0xfffffffeu);
  const std::vector<int32_t> banned = {1, 2, 3};

  struct Case {
    const char* name;
    Draw draw;
    int32_t logprobs = -1;
  };
  std::vector<Case> cases(10);
  const auto penalize = [&](Draw& draw) {
    draw.counts = counts;
    draw.repetition_penalty = 1.1f;
    draw.presence_penalty = 0.2f;
    draw.frequency_penalty = 0.1f;
  };
  for (Case& one : cases) one.draw.inverse_temperature = 1 / 0.8f;
  cases[0].name = "greedy";
  cases[0].draw.inverse_temperature = 0;
  cases[1].name = "top-k 50, top-p 0.8";
  cases[1].draw.top_k = 50;
  cases[1].draw.top_p = 0.8f;
  cases[2].name = "temperature 1";
  cases[2].draw.inverse_temperature = 1;
  cases[3].name = "top-p 0.8";
  cases[3].draw.top_p = 0.8f;
  cases[4].name = "min-p 0.05";
  cases[4].draw.min_p = 0.05f;
  cases[5].name = "top-k 5000, top-p 0.95";
  cases[5].draw.top_k = 5000;
  cases[5].draw.top_p = 0.95f;
  cases[6].name = "greedy, penalties of 1000 tokens";
  cases[6].draw.inverse_temperature = 0;
  penalize(cases[6].draw);
  cases[7].name = "temperature 1, mask of all but 1 in 32";
  cases[7].draw.inverse_temperature = 1;
  cases[7].draw.mask = mask;
  cases[8].name = "greedy, 5 log-probabilities";
  cases[8].draw.inverse_temperature = 0;
  cases[8].logprobs = 5;
  cases[9].name = "all options, 5 log-probabilities";
  cases[9].draw.top_k = 50;
  cases[9].draw.top_p = 0.8f;
  cases[9].draw.min_p = 0.05f;
  penalize(cases[9].draw);
  cases[9].draw.bias = bias;
  cases[9].draw.mask = mask;
  cases[9].draw.banned = banned;
  cases[9].logprobs = 5;

  for (const bool peaked : {true, false}) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<std::vector<float>> rows(kRows, std::vector<float>(vocabulary));
    for (std::vector<float>& row : rows) {
      for (float& logit : row) logit = (peaked ? 2.0f : 1.5f) * normal(random);
      for (size_t i = 0; peaked && i < 40; ++i) row[random() % vocabulary] = 20 - 0.3f * static_cast<float>(i);
    }
    std::vector<float> scratch(vocabulary);
    for (Case& one : cases) {
      Row row;
      row.use = Row::Use::sample;
      row.draw = &one.draw;
      row.logprobs = one.logprobs;
      std::vector<double> times;
      int64_t sink = 0;
      for (int round = 0; round < kRounds * kRows; ++round) {
        scratch = rows[static_cast<size_t>(round % kRows)];  // in the cache, as after the product
        one.draw.random = random_at(1, static_cast<uint32_t>(round));
        times.push_back(seconds([&] { sink += outcome_of(*plan.kernels, row, scratch).token; }));
      }
      std::printf("sampling, vocabulary %d, %s rows: %-40s %8.1f us%s\n", plan.vocabulary, peaked ? "peaked" : "flat  ",
                  one.name, median(times) * 1e6, sink < 0 ? "!" : "");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Plan plan;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--threads")
      plan.threads = std::atoi(value.c_str());
    else if (name == "--kernels")
      plan.kernels = kernels_by_name(value.c_str());
    else if (name == "--type")
      plan.types = value;
    else if (name == "--tokens")
      plan.tokens = value;
    else if (name == "--rounds")
      plan.rounds = std::atoi(value.c_str());
    else if (name == "--vocabulary")
      plan.vocabulary = std::max(1, std::atoi(value.c_str()));
    else if (name == "--only")
      plan.only = value;
    else if (name == "--shape") {
      long long rows = 0, columns = 0;
      std::sscanf(value.c_str(), "%lldx%lld", &rows, &columns);
      plan.rows = rows;
      plan.columns = columns;
    } else {
      std::fprintf(stderr, "no such option: %s\n", name.c_str());
      return 2;
    }
  }
  if (!plan.kernels) {
    std::fprintf(stderr, "this CPU or build does not have these kernels\n");
    return 2;
  }
  std::printf("%s, %d threads, matrix %lld x %lld\n", plan.kernels->name, plan.threads,
              static_cast<long long>(plan.rows), static_cast<long long>(plan.columns));
  if (!plan.only.empty() && plan.only != "sampling") {
    std::fprintf(stderr, "--only: no such part: %s\n", plan.only.c_str());
    return 2;
  }
  sampling(plan);
  if (plan.only == "sampling") return 0;
  elementwise(plan);
  for (const std::string& name : list(plan.types)) {
    const auto type = data_type_by_name(name);
    if (!type || !is_compute_type(*type)) {
      std::fprintf(stderr, "no such type: %s\n", name.c_str());
      return 2;
    }
    products(plan, *type);
  }
  for (const int32_t depth : {64, 2048, 8192}) {
    attention(plan, KvType::f16, "f16", depth);
    attention(plan, KvType::q8_0, "q8_0", depth);
    attention(plan, KvType::f32, "f32", depth);
  }
}
