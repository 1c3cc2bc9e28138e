// Matrix products on packed weights (packed_matrix.h), for impl.h.
//
// A panel is two vectors of rows, `kLanes` each. A lane sums up the product of its row, from the first column to the
// last: no sum crosses lanes, the order of summation does not depend on how many tokens are computed together, and a
// panel is read front to back. A tile is a panel by some tokens; its sums stay in registers.

// Products of few tokens wait for memory, which delivers more if several panels are read at a time.
constexpr int streams_of(int tokens) { return tokens == 1 ? 4 : tokens == 2 ? 2 : 1; }

struct NibbleWeights {
  using Sum = Simd::NibbleSum;
  static constexpr int kVectors = 4;  // of codes for each vector of rows and block of 32 columns
  static constexpr int kParts = 2;    // groups of four columns in one of them
  template <int Part>
  static Simd::Codes part(Simd::Codes w) {
    return Part == 0 ? Simd::low_nibbles(w) : Simd::high_nibbles(w);
  }
};

struct ByteWeights {
  using Sum = Simd::ByteSum;
  static constexpr int kVectors = 8;
  static constexpr int kParts = 1;
  template <int Part>
  static Simd::Codes part(Simd::Codes w) {
    return w;
  }
};

// Adds up one group of four columns for all rows and tokens of a tile.
template <class Weights, int Part, int Tokens>
[[gnu::always_inline]] inline void add_group(const Simd::Codes w0, const Simd::Codes w1, const int8_t* codes,
                                             int64_t stride, typename Weights::Sum (*sums)[Tokens]) {
  const Simd::Codes part0 = Weights::template part<Part>(w0), part1 = Weights::template part<Part>(w1);
  for (int t = 0; t < Tokens; ++t) {
    const Simd::Codes x = Simd::repeat_four(codes + t * stride);
    sums[0][t] = Weights::Sum::add(sums[0][t], part0, x);
    sums[1][t] = Weights::Sum::add(sums[1][t], part1, x);
  }
}

// The sums of a tile: of some panels, each read as a stream of its own, and some tokens. Block after block: whole
// numbers within a block, floats across blocks.
template <class Weights, int Panels, bool Few, int Tokens>
[[gnu::always_inline]] inline void quantized_sums(const Product& p, int64_t panel, int64_t token,
                                                  F (*sums)[2][Tokens]) {
  using Sum = typename Weights::Sum;
  constexpr int kVectorBytes = 4 * kLanes, kScaleBytes = 2 * kLanes;
  constexpr int kBlockBytes = 2 * kScaleBytes + 2 * Weights::kVectors * kVectorBytes;
  const int64_t blocks = p.columns / 32, stride = blocks * static_cast<int64_t>(sizeof(ActivationBlock));
  const uint8_t* w = p.weights + panel * p.panel_bytes;
  const ActivationBlock* x = p.blocks + token * blocks;
  for (int s = 0; s < Panels; ++s) {
    for (int t = 0; t < Tokens; ++t) sums[s][0][t] = sums[s][1][t] = Simd::zero();
  }
  for (int64_t b = 0; b < blocks; ++b, ++x, w += kBlockBytes) {
    const auto at = [&](int t) {
      return reinterpret_cast<const ActivationBlock*>(reinterpret_cast<const uint8_t*>(x) + t * stride);
    };
    for (int s = 0; s < Panels; ++s) {
      const uint8_t *scales = w + s * p.panel_bytes, *codes = scales + 2 * kScaleBytes;
      if constexpr (Few) {
        for (int i = 0; i < kBlockBytes; i += 64) __builtin_prefetch(scales + kPrefetchBytes + i);
      }
      Sum dots[2][Tokens];
      for (int t = 0; t < Tokens; ++t) dots[0][t] = dots[1][t] = Sum::start(at(t)->offset);
#pragma GCC unroll 8
      for (int i = 0; i < Weights::kVectors; ++i, codes += 2 * kVectorBytes) {
        const Simd::Codes w0 = Simd::load_codes(codes), w1 = Simd::load_codes(codes + kVectorBytes);
        add_group<Weights, 0, Tokens>(w0, w1, x->codes + 4 * i, stride, dots);
        if constexpr (Weights::kParts == 2) add_group<Weights, 1, Tokens>(w0, w1, x->codes + 16 + 4 * i, stride, dots);
      }
      const F scale0 = Simd::load_half(scales), scale1 = Simd::load_half(scales + kScaleBytes);
      for (int t = 0; t < Tokens; ++t) {
        const F scale = Simd::all(at(t)->scale);
        const int32_t offset = at(t)->offset;
        sums[s][0][t] = Simd::multiply_add(dots[0][t].finish(offset), Simd::multiply(scale0, scale), sums[s][0][t]);
        sums[s][1][t] = Simd::multiply_add(dots[1][t].finish(offset), Simd::multiply(scale1, scale), sums[s][1][t]);
      }
    }
  }
}

template <class Numbers, int Panels, bool Few, int Tokens>
[[gnu::always_inline]] inline void float_sums(const Product& p, int64_t panel, int64_t token, F (*sums)[2][Tokens]) {
  constexpr int kColumnBytes = 2 * kLanes * Numbers::kBytes;
  const uint8_t* w = p.weights + panel * p.panel_bytes;
  const float* x = p.x + token * p.columns;
  for (int s = 0; s < Panels; ++s) {
    for (int t = 0; t < Tokens; ++t) sums[s][0][t] = sums[s][1][t] = Simd::zero();
  }
  for (int64_t i = 0; i < p.columns; ++i, w += kColumnBytes) {
    for (int s = 0; s < Panels; ++s) {
      const uint8_t* column = w + s * p.panel_bytes;
      if constexpr (Few) __builtin_prefetch(column + kPrefetchBytes);
      const F w0 = Numbers::load(column), w1 = Numbers::load(column + kColumnBytes / 2);
      for (int t = 0; t < Tokens; ++t) {
        const F value = Simd::all(x[t * p.columns + i]);
        sums[s][0][t] = Simd::multiply_add(w0, value, sums[s][0][t]);
        sums[s][1][t] = Simd::multiply_add(w1, value, sums[s][1][t]);
      }
    }
  }
}

// The rows of the last panel may be fewer than its lanes.
[[gnu::always_inline]] inline void store_outputs(float* y, int64_t count, F value, bool add) {
  if (count >= kLanes) {
    Simd::store(y, add ? Simd::add(Simd::load(y), value) : value);
    return;
  }
  float lanes[kLanes];
  Simd::store(lanes, value);
  for (int64_t i = 0; i < count; ++i) y[i] = add ? y[i] + lanes[i] : lanes[i];
}

template <int Tokens>
[[gnu::always_inline]] inline void finish_tile(const Product& p, int64_t panel, int64_t token, F (*sums)[Tokens]) {
  if (p.epilogue == Epilogue::swiglu) {
    const int64_t first = panel * kLanes;
    for (int t = 0; t < Tokens; ++t) {
      store_outputs(p.y + (token + t) * p.y_stride + first, p.outputs - first, swiglu(sums[0][t], sums[1][t]), false);
    }
    return;
  }
  for (int v = 0; v < 2; ++v) {
    const int64_t first = (2 * panel + v) * kLanes;
    for (int t = 0; t < Tokens; ++t) {
      store_outputs(p.y + (token + t) * p.y_stride + first, p.outputs - first, sums[v][t], p.epilogue == Epilogue::add);
    }
  }
}

template <class Weights, bool Quantized>
struct Tiles {
  static constexpr int kTokens = Quantized ? Simd::kQuantizedTokens : Simd::kFloatTokens;
  template <int Panels, bool Few, int Tokens>
  static void run(const Product& p, int64_t panel, int64_t token) {
    F sums[Panels][2][Tokens];
    if constexpr (Quantized) {
      quantized_sums<Weights, Panels, Few, Tokens>(p, panel, token, sums);
    } else {
      float_sums<Weights, Panels, Few, Tokens>(p, panel, token, sums);
    }
    for (int s = 0; s < Panels; ++s) finish_tile<Tokens>(p, panel + s, token, sums[s]);
  }
};

// All panels for no more tokens than a tile has: they are read from memory once, as streams.
template <class T, int Tokens>
void stream_panels(const Product& p, int64_t panel, int64_t end) {
  if constexpr (Tokens > 1) {
    if (p.tokens < Tokens) return stream_panels<T, Tokens - 1>(p, panel, end);
  }
  constexpr int kStreams = streams_of(Tokens);
  for (; panel + kStreams <= end; panel += kStreams) T::template run<kStreams, true, Tokens>(p, panel, 0);
  if constexpr (kStreams > 1) {
    for (; panel < end; ++panel) T::template run<1, true, Tokens>(p, panel, 0);
  }
}

// One panel for `count` tokens, at most as many as a tile has.
template <class T, bool Few, int Tokens>
void tile(const Product& p, int64_t panel, int64_t token, int64_t count) {
  if constexpr (Tokens > 1) {
    if (count < Tokens) return tile<T, Few, Tokens - 1>(p, panel, token, count);
  }
  T::template run<1, Few, Tokens>(p, panel, token);
}

template <class T>
void panels_of(const Product& p, int64_t begin, int64_t end) {
  constexpr int kTokens = T::kTokens;
  if (p.tokens <= kTokens) return stream_panels<T, kTokens>(p, begin, end);
  const int64_t tiles = (p.tokens + kTokens - 1) / kTokens;
  for (int64_t panel = begin; panel < end; ++panel) {
    // Tiles of about the same size. The first of them brings the panel from memory.
    int64_t token = (p.tokens + tiles - 1) / tiles;
    tile<T, true, kTokens>(p, panel, 0, token);
    for (int64_t left = tiles - 1; left > 0; --left) {
      const int64_t count = (p.tokens - token + left - 1) / left;
      tile<T, false, kTokens>(p, panel, token, count);
      token += count;
    }
  }
}

void product(const Product& p, int64_t begin, int64_t end) {
  switch (p.type) {
    case DataType::f32: return panels_of<Tiles<Floats, false>>(p, begin, end);
    case DataType::f16: return panels_of<Tiles<Halves, false>>(p, begin, end);
    case DataType::bf16: return panels_of<Tiles<Bfloats, false>>(p, begin, end);
    case DataType::q8_0: return panels_of<Tiles<ByteWeights, true>>(p, begin, end);
    default: return panels_of<Tiles<NibbleWeights, true>>(p, begin, end);
  }
}
