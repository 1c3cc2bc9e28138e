// Attention to one page of keys and values, for impl.h. A tile is some query rows by some vectors of tokens
// (for scores) or of dimensions (for values), so that each vector that is loaded and converted serves several rows.

constexpr int kTileRows = 4;
constexpr int kTileVectors = Simd::kAttentionVectors;

template <class Page>
constexpr bool kScaled = Page::kBytes == 1;  // q8_0

// scores[r][key...] of Vectors vectors of tokens: sums over the dimensions in their order; scaled keys in blocks of 32.
template <class Page, int Rows, int Vectors>
[[gnu::always_inline]] inline void score_tile(const AttentionPage& p, int row, int key, float (*scores)[kPageTokens]) {
  F sums[Rows][Vectors], block[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) sums[r][v] = block[r][v] = Simd::zero();
  }
  const float* queries = p.queries + static_cast<int64_t>(row) * p.head_size;
  const uint8_t* keys = p.keys + key * Page::kBytes;
  const uint8_t* scales = p.keys + kPageTokens * p.head_size + 2 * key;  // of q8_0
  for (int d = 0; d < p.head_size; ++d, keys += kPageTokens * Page::kBytes) {
    F k[Vectors];
    for (int v = 0; v < Vectors; ++v) k[v] = Page::load(keys + v * kLanes * Page::kBytes);
    for (int r = 0; r < Rows; ++r) {
      const F q = Simd::all(queries[r * p.head_size + d]);
      for (int v = 0; v < Vectors; ++v) {
        F& sum = kScaled<Page> ? block[r][v] : sums[r][v];
        sum = Simd::multiply_add(q, k[v], sum);
      }
    }
    if (kScaled<Page> && d % 32 == 31) {
      for (int v = 0; v < Vectors; ++v) {
        const F scale = Simd::load_half(scales + 2 * v * kLanes);
        for (int r = 0; r < Rows; ++r) {
          sums[r][v] = Simd::multiply_add(block[r][v], scale, sums[r][v]);
          block[r][v] = Simd::zero();
        }
      }
      scales += 2 * kPageTokens;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) Simd::store(scores[r] + key + v * kLanes, sums[r][v]);
  }
}

// Replaces scores by exp(score - largest score so far), and rescales the row's sums when the largest score has grown.
void update_softmax(const AttentionPage& p, const AttentionState& state, int row, float* scores) {
  const int visible = p.visible[row];
  float largest = state.largest[row];
  for (int k = 0; k < visible; ++k) largest = scores[k] > largest ? scores[k] : largest;
  const float rescale = state.sum[row] == 0.0f ? 0.0f : exponential_of(state.largest[row] - largest);
  for (int k = visible; k < kPageTokens; ++k) scores[k] = 0.0f;  // exponential() of these must not make NaN
  F sum = Simd::zero();
  for (int k = 0; k < visible; k += kLanes) {
    Simd::store(scores + k, exponential(Simd::add(Simd::load(scores + k), Simd::all(-largest))));
  }
  for (int k = visible; k < kPageTokens; ++k) scores[k] = 0.0f;
  for (int k = 0; k < kPageTokens; k += kLanes) sum = Simd::add(sum, Simd::load(scores + k));
  state.largest[row] = largest;
  state.sum[row] = state.sum[row] * rescale + Simd::sum(sum);
  if (rescale == 1.0f) return;
  float* result = state.result + static_cast<int64_t>(row) * p.head_size;
  for (int i = 0; i < p.head_size; i += kLanes) {
    Simd::store(result + i, Simd::multiply(Simd::load(result + i), Simd::all(rescale)));
  }
}

// result[r][d...] += sum over the tokens from `begin` to `end` of weights[r][k] * value[k][d...], in their order.
template <class Page, int Rows, int Vectors>
[[gnu::always_inline]] inline void value_tile(const AttentionPage& p, const AttentionState& state, int row, int d,
                                              int begin, int end, float (*weights)[kPageTokens]) {
  float* result = state.result + static_cast<int64_t>(row) * p.head_size + d;
  F sums[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) sums[r][v] = Simd::load(result + r * p.head_size + v * kLanes);
  }
  const uint8_t* values = p.values + (begin * p.head_size + d) * Page::kBytes;
  const uint8_t* scales = p.values + kPageTokens * p.head_size;  // of q8_0
  for (int k = begin; k < end; ++k, values += p.head_size * Page::kBytes) {
    F x[Vectors];
    for (int v = 0; v < Vectors; ++v) {
      x[v] = Page::load(values + v * kLanes * Page::kBytes);
      if constexpr (kScaled<Page>) {
        const float scale = Simd::half(scales + 2 * (k * (p.head_size / 32) + (d + v * kLanes) / 32));
        x[v] = Simd::multiply(x[v], Simd::all(scale));
      }
    }
    for (int r = 0; r < Rows; ++r) {
      const F weight = Simd::all(weights[r][k]);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = Simd::multiply_add(x[v], weight, sums[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) Simd::store(result + r * p.head_size + v * kLanes, sums[r][v]);
  }
}

template <class Page, int Rows>
void add_values(const AttentionPage& p, const AttentionState& state, int row, int begin, int end,
                float (*weights)[kPageTokens]) {
  if (begin >= end) return;
  int d = 0;
  for (; d + kTileVectors * kLanes <= p.head_size; d += kTileVectors * kLanes) {
    value_tile<Page, Rows, kTileVectors>(p, state, row, d, begin, end, weights);
  }
  for (; d < p.head_size; d += kLanes) value_tile<Page, Rows, 1>(p, state, row, d, begin, end, weights);
}

template <class Page, int Rows>
void attend_rows(const AttentionPage& p, const AttentionState& state, int row) {
  int keys = 0, common = kPageTokens;
  for (int r = 0; r < Rows; ++r) {
    keys = p.visible[row + r] > keys ? p.visible[row + r] : keys;
    common = p.visible[row + r] < common ? p.visible[row + r] : common;
  }
  if (keys == 0) return;
  alignas(64) float scores[Rows][kPageTokens];
  int key = 0;
  for (; key + (kTileVectors - 1) * kLanes < keys; key += kTileVectors * kLanes) {
    score_tile<Page, Rows, kTileVectors>(p, row, key, scores);
  }
  for (; key < keys; key += kLanes) score_tile<Page, Rows, 1>(p, row, key, scores);
  for (int r = 0; r < Rows; ++r) {
    if (p.visible[row + r] > 0) update_softmax(p, state, row + r, scores[r]);
  }
  // A row must not touch tokens that it does not see: their values may be NaN, and zero times NaN is NaN.
  add_values<Page, Rows>(p, state, row, 0, common, scores);
  for (int r = 0; r < Rows; ++r) add_values<Page, 1>(p, state, row + r, common, p.visible[row + r], scores + r);
}

template <class Page>
void attend_page(const AttentionPage& p, const AttentionState& state) {
  int row = 0;
  for (; row + kTileRows <= p.rows; row += kTileRows) attend_rows<Page, kTileRows>(p, state, row);
  for (; row < p.rows; ++row) attend_rows<Page, 1>(p, state, row);
}

void attend(const AttentionPage& p, const AttentionState& state) {
  switch (p.type) {
    case KvType::f16: return attend_page<Halves>(p, state);
    case KvType::f32: return attend_page<Floats>(p, state);
    case KvType::q8_0: return attend_page<SignedBytes>(p, state);
  }
}

void merge(const AttentionState& state, const AttentionState& other, int32_t rows, int32_t head_size) {
  for (int32_t r = 0; r < rows; ++r) {
    if (other.sum[r] == 0.0f) continue;
    const bool first = state.sum[r] == 0.0f;
    const float largest = !first && state.largest[r] > other.largest[r] ? state.largest[r] : other.largest[r];
    const float mine = first ? 0.0f : exponential_of(state.largest[r] - largest);
    const float theirs = first ? 1.0f : exponential_of(other.largest[r] - largest);
    state.largest[r] = largest;
    state.sum[r] = state.sum[r] * mine + other.sum[r] * theirs;
    float* result = state.result + static_cast<int64_t>(r) * head_size;
    const float* added = other.result + static_cast<int64_t>(r) * head_size;
    for (int32_t i = 0; i < head_size; i += kLanes) {
      const F scaled = Simd::multiply(Simd::load(result + i), Simd::all(mine));
      Simd::store(result + i, Simd::multiply_add(Simd::load(added + i), Simd::all(theirs), scaled));
    }
  }
}

void store_kv(KvType type, const float* key, const float* value, int32_t head_size, int32_t slot, uint8_t* keys,
              uint8_t* values) {
  if (type == KvType::f32) {
    for (int32_t d = 0; d < head_size; ++d) std::memcpy(keys + 4 * (d * kPageTokens + slot), key + d, 4);
    std::memcpy(values + static_cast<int64_t>(4) * slot * head_size, value, static_cast<size_t>(4 * head_size));
    return;
  }
  if (type == KvType::f16) {
    uint16_t half[kLanes];
    for (int32_t i = 0; i < head_size; i += kLanes) {
      Simd::store_half(half, Simd::load(key + i));
      for (int32_t j = 0; j < kLanes; ++j) std::memcpy(keys + 2 * ((i + j) * kPageTokens + slot), half + j, 2);
      Simd::store_half(half, Simd::load(value + i));
      std::memcpy(values + 2 * (static_cast<int64_t>(slot) * head_size + i), half, sizeof half);
    }
    return;
  }
  const int32_t blocks = head_size / 32;
  for (int32_t b = 0; b < blocks; ++b) {
    ActivationBlock block;
    uint16_t half[kLanes];
    // The codes are computed with the scale in float. Rounding the scale to f16 is a far smaller error than the codes'.
    quantize(key + 32 * b, 32, 0, &block, nullptr);
    for (int32_t i = 0; i < 32; ++i) {
      keys[(32 * b + i) * kPageTokens + slot] = static_cast<uint8_t>(block.codes[i]);
    }
    Simd::store_half(half, Simd::all(block.scale));
    std::memcpy(keys + kPageTokens * head_size + 2 * (b * kPageTokens + slot), half, 2);
    quantize(value + 32 * b, 32, 0, &block, nullptr);
    std::memcpy(values + slot * head_size + 32 * b, block.codes, 32);
    Simd::store_half(half, Simd::all(block.scale));
    std::memcpy(values + kPageTokens * head_size + 2 * (slot * blocks + b), half, 2);
  }
}
