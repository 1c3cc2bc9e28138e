// Bias, rotation and storage of a prompt's queries, keys and values, between the QKV product and attention.
//
// Launch: (tiles of 32 tokens, heads + 2 groups) blocks of 128 threads: a block does one head of 32 tokens, and a
// thread the same pair of dimensions of several tokens. Values, which the cache holds transposed, go through shared
// memory, so that consecutive lanes write consecutive tokens.
//
// Bytes of a token of the 6B model: 18,432 read, 8,192 of queries and 1,024 of keys and values written: 2,048 tokens
// are 56.6 MB a layer, 18 us at the 3.14 TB/s of an H100, of the 2,000 us that a layer takes. Expected: 25 us. Measured
// on an H100: 21.5 us.

#include <type_traits>

#include "cuda/attention/rope.cuh"
#include "cuda/launch.cuh"

namespace chatglm::cuda {

namespace {

constexpr int kTokens = 32;  // of a block
constexpr int kThreads = 128;

// Values of a block on their way from lanes that are dimensions to lanes that are tokens. A row is an odd number of
// words, so neither side has bank conflicts.
template <KvType type, int D>
struct ValueTile {
  using Pair = std::conditional_t<type == KvType::f16, half2, char2>;
  using Number = std::conditional_t<type == KvType::f16, half, signed char>;
  static constexpr int kStride = D / 2 + (type == KvType::f16 ? 1 : 2);  // pairs
  static_assert(kStride * sizeof(Pair) / 4 % 2 == 1);

  alignas(4) Pair pairs[kTokens][kStride];
};

template <KvType type, int D>
__global__ void __launch_bounds__(kThreads)
    rotate_append_kernel(const QkvRows qkv, const Batch batch, int first, int count, const KvCache cache, int layer,
                         float scale, half* queries) {
  constexpr int kPairs = D / 2;
  constexpr int kStep = kThreads / kPairs;  // tokens at a time
  constexpr int kUnroll = 4;                // loads in flight
  __shared__ uint8_t* pages[kTokens];
  __shared__ int slots[kTokens];
  __shared__ ValueTile<type, D> tile;

  let_next_kernel_start();
  const int thread = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.y);
  const int begin = static_cast<int>(blockIdx.x) * kTokens, tokens = min(kTokens, count - begin);
  const int pair = thread % kPairs;
  const bool exists = 2 * pair < qkv.head_size;
  const bool is_query = head < qkv.heads, is_key = !is_query && head < qkv.heads + qkv.groups;
  const int group = (head - qkv.heads) % qkv.groups;  // of a key or value
  const float2 bias =
      exists ? load_pair(qkv.bias, static_cast<int64_t>(head) * qkv.head_size + 2 * pair) : make_float2(0, 0);
  wait_for_previous_kernel();

  if (!is_query) {
    if (thread < tokens) {
      const int token = first + begin + thread, position = batch.positions[token];
      const int page = batch.pages[batch.tables[token] + position / kPageTokens];
      pages[thread] = cache.head_page(layer, group, page);
      slots[thread] = position % kPageTokens;
    }
    __syncthreads();
  }

  const int64_t row = static_cast<int64_t>(qkv.heads + 2 * qkv.groups) * qkv.head_size;
  const bool rotated = (is_query || is_key) && 2 * pair < qkv.rope_dimension;
#pragma unroll
  for (int from = 0; from < kTokens; from += kStep * kUnroll) {
    float2 x[kUnroll], rotation[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int t = from + u * kStep + thread / kPairs;
      const int64_t token = first + begin + t;
      x[u] = rotation[u] = make_float2(0, 0);
      if (t < tokens && exists) {
        x[u] = load_pair(qkv.data, token * row + static_cast<int64_t>(head) * qkv.head_size + 2 * pair);
        if (rotated) rotation[u] = batch.rotations[token * (qkv.rope_dimension / 2) + pair];
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int t = from + u * kStep + thread / kPairs;
      const int64_t token = first + begin + t;
      float2 y = add_pair(x[u], bias);  // of what does not exist: zero
      if (rotated) y = rotate_pair(y, rotation[u]);
      if (is_query) {
        if (t < tokens) {
          *reinterpret_cast<half2*>(queries + (token * qkv.heads + head) * D + 2 * pair) =
              to_half2(__fmul_rn(y.x, scale), __fmul_rn(y.y, scale));
        }
        continue;
      }
      if (t >= tokens) y = make_float2(0, 0);
      const KvPair<type> stored(y);
      if (is_key) {
        if (t < tokens && exists) store_key<type, D>(pages[t], slots[t], pair, stored);
      } else if constexpr (type == KvType::f16) {
        tile.pairs[t][pair] = stored.numbers;
      } else {
        tile.pairs[t][pair] = stored.codes;
        if (t < tokens && exists && pair % 16 == 0) {
          uint8_t* scales = pages[t] + cache.keys_bytes() + kPageTokens * D;
          reinterpret_cast<half*>(scales)[value_scale_index(slots[t], 2 * pair)] = stored.scale;
        }
      }
    }
  }
  if (is_query || is_key) return;

  __syncthreads();
  const int lane = thread % 32;
  if (lane >= tokens) return;
  using Number = typename ValueTile<type, D>::Number;
  auto* values = reinterpret_cast<Number*>(pages[lane] + cache.keys_bytes());
  const int slot = slots[lane];
  const auto* numbers = reinterpret_cast<const Number*>(tile.pairs[lane]);
  for (int d = thread / 32; d < qkv.head_size; d += kThreads / 32) values[value_index(type, slot, d)] = numbers[d];
}

}  // namespace

void rotate_append(const Launch& launch, const QkvRows& qkv, const Batch& batch, int32_t first, int32_t count,
                   const KvCache& cache, int32_t layer, half* queries) {
  if (count == 0) return;
  const dim3 grid(static_cast<uint32_t>((count + kTokens - 1) / kTokens),
                  static_cast<uint32_t>(qkv.heads + 2 * qkv.groups));
  with_cache_shape(cache, [&]<KvType type, int D>() {
    launch_kernel(launch, rotate_append_kernel<type, D>, grid, kThreads, 0, qkv, batch, first, count, cache, layer,
                  query_scale(qkv.head_size), queries);
  });
}

}  // namespace chatglm::cuda
