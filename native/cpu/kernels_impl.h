// The kernels, written once over a small set of vector operations. Each kernels_*.cc defines a struct `Simd` with the
// operations of its instruction set in an unnamed namespace and then includes this file.
//
// Nothing here may call an inline function or template of another header: the linker keeps one copy of each, and that
// could be one compiled for an instruction set that the CPU lacks.

#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

namespace chatglm::cpu {
namespace {

using F = Simd::F;    // kLanes floats
using QF = Simd::QF;  // 8 floats: what the dot product of a quantized block is summed in
constexpr int kLanes = Simd::kLanes;
constexpr int kTile = 4;  // rows, and tokens, that are computed together: each loaded number is used four times

struct FloatWeights {
  static F load(const uint8_t* row, int64_t i) { return Simd::load_bytes(row + 4 * i); }
};
struct HalfWeights {
  static F load(const uint8_t* row, int64_t i) { return Simd::load_half(row + 2 * i); }
};
struct BfloatWeights {
  static F load(const uint8_t* row, int64_t i) { return Simd::load_bfloat(row + 2 * i); }
};

void store_result(const Product& p, int64_t row, int64_t token, float value) {
  float* y = p.y + token * p.y_stride + row;
  if (p.bias) value += p.bias[row];
  *y = p.accumulate ? *y + value : value;
}

template <class Weights, int Rows, int Tokens>
void float_tile(const Product& p, int64_t row, int64_t token) {
  F sums[Rows][Tokens];
  for (int r = 0; r < Rows; ++r) {
    for (int t = 0; t < Tokens; ++t) sums[r][t] = Simd::zero();
  }
  const uint8_t* weights = p.weights + row * p.row_bytes;
  const float* x = p.x + token * p.columns;
  for (int64_t i = 0; i < p.columns; i += kLanes) {
    F xs[Tokens];
    for (int t = 0; t < Tokens; ++t) xs[t] = Simd::load(x + t * p.columns + i);
    for (int r = 0; r < Rows; ++r) {
      const F w = Weights::load(weights + r * p.row_bytes, i);
      for (int t = 0; t < Tokens; ++t) sums[r][t] = Simd::multiply_add(w, xs[t], sums[r][t]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int t = 0; t < Tokens; ++t) store_result(p, row + r, token + t, Simd::sum(sums[r][t]));
  }
}

struct Q8Weights {
  static constexpr int kBlockBytes = 34;
  static Simd::Codes codes(const uint8_t* block) { return Simd::load_signed(block + 2); }
  static QF dot(const Simd::Codes& w, const Simd::Bytes& x, int32_t) { return Simd::dot_signed(w, x); }
};
struct Q4Weights {
  static constexpr int kBlockBytes = 18;
  static Simd::Codes codes(const uint8_t* block) { return Simd::load_nibbles(block + 2); }
  // The codes are 8 too large.
  static QF dot(const Simd::Codes& w, const Simd::Bytes& x, int32_t sum) { return Simd::dot_unsigned(w, x, -8 * sum); }
};

template <class Weights, int Rows, int Tokens>
void quantized_tile(const Product& p, int64_t row, int64_t token) {
  QF sums[Rows][Tokens];
  for (int r = 0; r < Rows; ++r) {
    for (int t = 0; t < Tokens; ++t) sums[r][t] = Simd::quantized_zero();
  }
  const int64_t blocks = p.columns / 32;
  const uint8_t* weights = p.weights + row * p.row_bytes;
  const int8_t* x = p.codes + token * p.columns;
  const float* scales = p.scales + token * blocks;
  const int32_t* code_sums = p.sums + token * blocks;
  for (int64_t b = 0; b < blocks; ++b) {
    Simd::Bytes xs[Tokens];
    for (int t = 0; t < Tokens; ++t) xs[t] = Simd::load_codes(x + t * p.columns + 32 * b);
    for (int r = 0; r < Rows; ++r) {
      const uint8_t* block = weights + r * p.row_bytes + b * Weights::kBlockBytes;
      const float scale = Simd::half(block);
      const Simd::Codes w = Weights::codes(block);
      for (int t = 0; t < Tokens; ++t) {
        const QF dot = Weights::dot(w, xs[t], code_sums[t * blocks + b]);
        sums[r][t] = Simd::quantized_add(dot, scale * scales[t * blocks + b], sums[r][t]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int t = 0; t < Tokens; ++t) store_result(p, row + r, token + t, Simd::quantized_sum(sums[r][t]));
  }
}

template <class Weights>
struct FloatTiles {
  template <int Rows, int Tokens>
  static void run(const Product& p, int64_t row, int64_t token) {
    float_tile<Weights, Rows, Tokens>(p, row, token);
  }
};
template <class Weights>
struct QuantizedTiles {
  template <int Rows, int Tokens>
  static void run(const Product& p, int64_t row, int64_t token) {
    quantized_tile<Weights, Rows, Tokens>(p, row, token);
  }
};

template <class Tiles, int Rows>
void tokens_of(const Product& p, int64_t row) {
  int64_t t = 0;
  for (; t + kTile <= p.tokens; t += kTile) Tiles::template run<Rows, kTile>(p, row, t);
  for (; t + 2 <= p.tokens; t += 2) Tiles::template run<Rows, 2>(p, row, t);
  for (; t < p.tokens; ++t) Tiles::template run<Rows, 1>(p, row, t);
}

template <class Tiles>
void rows_of(const Product& p, int64_t begin, int64_t end) {
  int64_t row = begin;
  for (; row + kTile <= end; row += kTile) tokens_of<Tiles, kTile>(p, row);
  for (; row < end; ++row) tokens_of<Tiles, 1>(p, row);
}

void product(const Product& p, int64_t begin, int64_t end) {
  switch (p.type) {
    case DataType::f32: return rows_of<FloatTiles<FloatWeights>>(p, begin, end);
    case DataType::f16: return rows_of<FloatTiles<HalfWeights>>(p, begin, end);
    case DataType::bf16: return rows_of<FloatTiles<BfloatWeights>>(p, begin, end);
    case DataType::q8_0: return rows_of<QuantizedTiles<Q8Weights>>(p, begin, end);
    default: return rows_of<QuantizedTiles<Q4Weights>>(p, begin, end);
  }
}

// exp(x) for x in [-87, 88], else the value at the end; relative error below 2e-7. NaN stays NaN: min and max give the
// second operand then.
// x = n ln 2 + r with |r| <= ln 2 / 2, and exp(r) by its Taylor polynomial of degree 7, whose next term is below 6e-9.
F exponential(F x) {
  x = Simd::min(Simd::all(88.0f), Simd::max(Simd::all(-87.0f), x));
  const F n = Simd::round(Simd::multiply(x, Simd::all(1.44269504f)));
  // ln 2 in two parts, the first with few enough bits that n times it is exact.
  F r = Simd::multiply_add(n, Simd::all(-0.693359375f), x);
  r = Simd::multiply_add(n, Simd::all(2.12194440e-4f), r);
  F sum = Simd::all(1.0f / 5040);
  for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    sum = Simd::multiply_add(sum, r, Simd::all(coefficient));
  }
  return Simd::scale_by_power_of_two(sum, n);
}

float exponential_of(float x) {
  float lanes[kLanes];
  Simd::store(lanes, exponential(Simd::all(x)));
  return lanes[0];
}

struct HalfPage {
  static constexpr int kBytes = 2;
  static F load(const uint8_t* p) { return Simd::load_half(p); }
};
struct FloatPage {
  static constexpr int kBytes = 4;
  static F load(const uint8_t* p) { return Simd::load_bytes(p); }
};

constexpr int kMostPageTokens = 64;

template <class Page, int Rows, int Keys>
void score_tile(const AttentionPage& p, int row, int key, float (*scores)[kMostPageTokens]) {
  F sums[Rows][Keys];
  for (int r = 0; r < Rows; ++r) {
    for (int k = 0; k < Keys; ++k) sums[r][k] = Simd::zero();
  }
  const uint8_t* keys = static_cast<const uint8_t*>(p.keys) + static_cast<int64_t>(key) * p.head_size * Page::kBytes;
  const float* queries = p.queries + static_cast<int64_t>(row) * p.head_size;
  for (int i = 0; i < p.head_size; i += kLanes) {
    F ks[Keys];
    for (int k = 0; k < Keys; ++k) ks[k] = Page::load(keys + (k * p.head_size + i) * Page::kBytes);
    for (int r = 0; r < Rows; ++r) {
      const F q = Simd::load(queries + r * p.head_size + i);
      for (int k = 0; k < Keys; ++k) sums[r][k] = Simd::multiply_add(q, ks[k], sums[r][k]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int k = 0; k < Keys; ++k) scores[r][key + k] = Simd::sum(sums[r][k]);
  }
}

// scores -> exp(score - largest so far); scales what the row has summed up before to the new largest.
void update_softmax(const AttentionPage& p, int row, float* scores) {
  const int visible = p.visible[row];
  float largest = p.largest[row];
  for (int k = 0; k < visible; ++k) largest = scores[k] > largest ? scores[k] : largest;
  const float rescale = p.sum[row] == 0.0f ? 0.0f : exponential_of(p.largest[row] - largest);
  for (int k = visible; k < kMostPageTokens; ++k) scores[k] = 0.0f;  // whatever there was, it must not make NaN below
  F sum = Simd::zero();
  for (int k = 0; k < visible; k += kLanes) {
    Simd::store(scores + k, exponential(Simd::add(Simd::load(scores + k), Simd::all(-largest))));
  }
  for (int k = visible; k < kMostPageTokens; ++k) scores[k] = 0.0f;
  for (int k = 0; k < kMostPageTokens; k += kLanes) sum = Simd::add(sum, Simd::load(scores + k));
  p.largest[row] = largest;
  p.sum[row] = p.sum[row] * rescale + Simd::sum(sum);
  float* result = p.result + static_cast<int64_t>(row) * p.head_size;
  for (int i = 0; i < p.head_size; i += kLanes) {
    Simd::store(result + i, Simd::multiply(Simd::load(result + i), Simd::all(rescale)));
  }
}

template <class Page, int Rows>
void value_tile(const AttentionPage& p, int row, int keys, float (*weights)[kMostPageTokens]) {
  float* result = p.result + static_cast<int64_t>(row) * p.head_size;
  for (int i = 0; i < p.head_size; i += kLanes) {
    F sums[Rows];
    for (int r = 0; r < Rows; ++r) sums[r] = Simd::load(result + r * p.head_size + i);
    const uint8_t* values = static_cast<const uint8_t*>(p.values) + static_cast<int64_t>(i) * Page::kBytes;
    for (int k = 0; k < keys; ++k, values += static_cast<int64_t>(p.head_size) * Page::kBytes) {
      const F v = Page::load(values);
      for (int r = 0; r < Rows; ++r) sums[r] = Simd::multiply_add(v, Simd::all(weights[r][k]), sums[r]);
    }
    for (int r = 0; r < Rows; ++r) Simd::store(result + r * p.head_size + i, sums[r]);
  }
}

template <class Page, int Rows>
void attend_rows(const AttentionPage& p, int row) {
  int keys = 0;
  for (int r = 0; r < Rows; ++r) keys = p.visible[row + r] > keys ? p.visible[row + r] : keys;
  if (keys == 0) return;
  alignas(64) float scores[Rows][kMostPageTokens];
  int key = 0;
  for (; key + kTile <= keys; key += kTile) score_tile<Page, Rows, kTile>(p, row, key, scores);
  for (; key < keys; ++key) score_tile<Page, Rows, 1>(p, row, key, scores);
  for (int r = 0; r < Rows; ++r) {
    if (p.visible[row + r] > 0) {
      update_softmax(p, row + r, scores[r]);
    } else {
      for (int k = 0; k < kMostPageTokens; ++k) scores[r][k] = 0.0f;
    }
  }
  value_tile<Page, Rows>(p, row, keys, scores);
}

template <class Page>
void attend(const AttentionPage& p) {
  int row = 0;
  for (; row + kTile <= p.rows; row += kTile) attend_rows<Page, kTile>(p, row);
  for (; row < p.rows; ++row) attend_rows<Page, 1>(p, row);
}

void rms_norm(const float* x, const float* weight, float epsilon, int64_t count, float* y) {
  F squares = Simd::zero();
  for (int64_t i = 0; i < count; i += kLanes)
    squares = Simd::multiply_add(Simd::load(x + i), Simd::load(x + i), squares);
  const float mean = Simd::sum(squares) / static_cast<float>(count);
  const F scale = Simd::all(1.0f / __builtin_sqrtf(mean + epsilon));
  for (int64_t i = 0; i < count; i += kLanes) {
    Simd::store(y + i, Simd::multiply(Simd::multiply(Simd::load(x + i), scale), Simd::load(weight + i)));
  }
}

void swiglu(const float* gate_up, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const F gate = Simd::load(gate_up + i);
    const F minus = Simd::multiply(gate, Simd::all(-1.0f));
    const F silu = Simd::divide(gate, Simd::add(Simd::all(1.0f), exponential(minus)));
    Simd::store(y + i, Simd::multiply(silu, Simd::load(gate_up + count + i)));
  }
}

void quantize(const float* x, int64_t count, int8_t* codes, float* scales, int32_t* sums) {
  for (int64_t b = 0; b < count / 32; ++b, x += 32, codes += 32) {
    F largest = Simd::zero();
    for (int i = 0; i < 32; i += kLanes) largest = Simd::max(largest, Simd::magnitude(Simd::load(x + i)));
    const float most = Simd::largest(largest);
    // What is so small that the division would overflow counts as zero.
    const F inverse = Simd::all(most > 1e-36f ? 127.0f / most : 0.0f);
    float rounded[32];
    F sum = Simd::zero();
    for (int i = 0; i < 32; i += kLanes) {
      const F code = Simd::round(Simd::multiply(Simd::load(x + i), inverse));
      sum = Simd::add(sum, code);  // exact: whole numbers
      Simd::store(rounded + i, code);
    }
    // A block with NaN or infinity gets the scale NaN, so that it is found in the logits.
    const float total = Simd::sum(sum);
    const bool finite = total - total == 0.0f;
    scales[b] = finite ? most / 127.0f : total - total;
    for (int i = 0; i < 32; ++i) codes[i] = finite ? static_cast<int8_t>(rounded[i]) : int8_t{0};
    sums[b] = finite ? static_cast<int32_t>(total) : 0;
  }
}

void to_half(const float* x, int64_t count, uint16_t* y) {
  for (int64_t i = 0; i < count; i += kLanes) Simd::store_half(y + i, Simd::load(x + i));
}

uint64_t read(const uint8_t* data, int64_t bytes) {
  F sums[8];
  for (F& sum : sums) sum = Simd::zero();
  constexpr int64_t kStep = 8 * 4 * kLanes;
  for (int64_t at = 0; at + kStep <= bytes; at += kStep) {
    for (int i = 0; i < 8; ++i) sums[i] = Simd::max(sums[i], Simd::load_bytes(data + at + i * 4 * kLanes));
  }
  for (int i = 1; i < 8; ++i) sums[0] = Simd::max(sums[0], sums[i]);
  return static_cast<uint64_t>(Simd::largest(sums[0]));
}

constexpr Kernels kKernels = {Simd::kName, product, attend<HalfPage>, attend<FloatPage>, rms_norm, swiglu, quantize,
                              to_half,     read};

}  // namespace
}  // namespace chatglm::cpu
