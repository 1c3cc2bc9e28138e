// Time of what the engine does with the page tables when a sequence begins and ends: KvCache::extend() with the
// sequence's prompt and KvCache::end() with all its tokens, in a cache that is full of other histories.
//
//   chatglm_pages_bench [--histories 10000] [--tokens 2000,8000] [--rounds 2000]
//
// distinct: the histories have nothing in common. shared: each begins with one of ten system prompts of half of its
// length. turn: a history comes again with 200 tokens more, as the next turn of a conversation does, and the 200 tokens
// are noted before the end as a step of the engine does. Histories are chosen at random, so their pages are in no cache
// of the CPU. Every figure is a time of one sequence in microseconds.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/page.h"

namespace {

using namespace chatglm;
using Tokens = std::vector<int32_t>;

double now() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void print(const char* what, std::vector<double>& times) {
  std::sort(times.begin(), times.end());
  std::printf("  %s %6.2f (99%%: %6.2f)", what, times[times.size() / 2], times[times.size() * 99 / 100]);
}

void measure(int32_t histories, int32_t count, int rounds, bool shared) {
  std::mt19937 random(1);
  const auto draw = [&] { return static_cast<int32_t>(random() % 65024); };
  std::vector<Tokens> systems(10, Tokens(static_cast<size_t>(count / 2)));
  for (Tokens& system : systems) std::generate(system.begin(), system.end(), draw);
  std::vector<Tokens> texts(static_cast<size_t>(histories));
  for (Tokens& text : texts) {
    if (shared) text = systems[random() % systems.size()];
    while (static_cast<int32_t>(text.size()) < count) text.push_back(draw());
  }
  KvCache cache((histories + 64) * ((count + kPageTokens - 1) / kPageTokens), kPageTokens);
  const auto begin_all = now();
  for (const Tokens& text : texts) {
    KvCache::Holding holding;
    cache.extend(holding, text);
    cache.take(holding, cache.pages_for(count));
    cache.end(holding, text, true);
  }
  const double filling = (now() - begin_all) / histories;

  std::vector<double> looks, ends, turns, turn_ends;
  for (int round = 0; round < rounds; ++round) {
    const Tokens& text = texts[random() % texts.size()];
    KvCache::Holding holding;
    const double a = now();
    const KvCache::Start start = cache.extend(holding, std::span(text).first(text.size() - 1));
    const double b = now();
    cache.take(holding, cache.pages_for(count));
    const double c = now();
    cache.end(holding, text, true);
    const double d = now();
    // Else what was timed is another thing than a hit.
    if (start.tokens < count - kPageTokens) throw std::runtime_error("a cached history was not found");
    looks.push_back(b - a);
    ends.push_back(d - c);
  }
  for (int round = 0; round < rounds; ++round) {
    Tokens text = texts[random() % texts.size()];
    for (int i = 0; i < 200; ++i) text.push_back(draw());
    KvCache::Holding holding;
    const double a = now();
    cache.extend(holding, std::span(text).first(text.size() - 1));
    const double b = now();
    cache.take(holding, cache.pages_for(static_cast<int64_t>(text.size())));
    const double c = now();
    cache.note(holding, text);
    cache.end(holding, text, true);
    const double d = now();
    turns.push_back(b - a);
    turn_ends.push_back(d - c);
  }
  std::printf("%5d tokens, %-8s", count, shared ? "shared" : "distinct");
  print("extend", looks);
  print("end", ends);
  print("turn: extend", turns);
  print("note and end", turn_ends);
  std::printf("  filling %.1f\n", filling);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  int32_t histories = 10000;
  int rounds = 2000;
  std::string tokens = "2000,8000";
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--histories") {
      histories = std::atoi(value.c_str());
    } else if (name == "--rounds") {
      rounds = std::atoi(value.c_str());
    } else if (name == "--tokens") {
      tokens = value;
    } else {
      std::fprintf(stderr, "no such option: %s\n", name.c_str());
      return 2;
    }
  }
  std::stringstream stream(tokens);
  for (std::string count; std::getline(stream, count, ',');) {
    for (const bool shared : {false, true}) measure(histories, std::atoi(count.c_str()), rounds, shared);
  }
}
