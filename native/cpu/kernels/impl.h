// The kernels, written once over a small set of vector operations. Each instruction set's file defines a struct `Simd`
// with the operations of its instruction set in an unnamed namespace and then includes this file.
//
// Nothing here may call an inline function or template of another header: the linker keeps one copy of each, and that
// could be one compiled for an instruction set that the CPU lacks.

#include <cstdint>
#include <cstring>

#include "cpu/kernels/kernels.h"
#include "engine/sampling_math.h"

namespace chatglm::cpu {
namespace {

using F = Simd::F;  // kLanes floats
constexpr int kLanes = Simd::kLanes;
// How far ahead of its use a line of a stream is asked for.
constexpr int64_t kPrefetchBytes = 1024;

// How numbers of weights, keys and values are stored. load() loads kLanes of them.
struct Floats {
  static constexpr int kBytes = 4;
  static F load(const uint8_t* p) { return Simd::load_bytes(p); }
};
struct Halves {
  static constexpr int kBytes = 2;
  static F load(const uint8_t* p) { return Simd::load_half(p); }
};
struct Bfloats {
  static constexpr int kBytes = 2;
  static F load(const uint8_t* p) { return Simd::load_bfloat(p); }
};
struct SignedBytes {  // codes, not multiplied by their scales
  static constexpr int kBytes = 1;
  static F load(const uint8_t* p) { return Simd::load_signed(p); }
};

// exp(x) for x in [-87, 88], beyond that the value at the near end; relative error below 2e-7. NaN stays NaN, because
// min and max give their second operand if one operand is NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, and exp(r) by its Taylor polynomial of degree 7, whose next term is below 6e-9.
F exponential(F x) {
  x = Simd::min(Simd::all(88.0f), Simd::max(Simd::all(-87.0f), x));
  const F n = Simd::round(Simd::multiply(x, Simd::all(1.44269504f)));
  // ln 2 in two parts, the first with few enough bits that n times it is exact.
  F r = Simd::multiply_add(n, Simd::all(-0.693359375f), x);
  r = Simd::multiply_add(n, Simd::all(2.12194440e-4f), r);
  F sum = Simd::all(1.0f / 5040);
  constexpr float kCoefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (const float coefficient : kCoefficients) {
    sum = Simd::multiply_add(sum, r, Simd::all(coefficient));
  }
  return Simd::scale_by_power_of_two(sum, n);
}

float exponential_of(float x) { return Simd::first(exponential(Simd::all(x))); }

// silu(gate) * up
F swiglu(F gate, F up) {
  const F minus = Simd::multiply(gate, Simd::all(-1.0f));
  const F silu = Simd::divide(gate, Simd::add(Simd::all(1.0f), exponential(minus)));
  return Simd::multiply(silu, up);
}

void rms_norm(const float* x, const float* weight, float epsilon, int64_t count, float* y) {
  // Four sums, because each addition to a single sum would wait for the one before.
  F squares[4];
  for (F& sum : squares) sum = Simd::zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    F& sum = squares[i / kLanes % 4];
    sum = Simd::multiply_add(Simd::load(x + i), Simd::load(x + i), sum);
  }
  const float total = Simd::sum(Simd::add(Simd::add(squares[0], squares[1]), Simd::add(squares[2], squares[3])));
  const F scale = Simd::all(1.0f / __builtin_sqrtf(total / static_cast<float>(count) + epsilon));
  for (int64_t i = 0; i < count; i += kLanes) {
    Simd::store(y + i, Simd::multiply(Simd::multiply(Simd::load(x + i), scale), Simd::load(weight + i)));
  }
}

void quantize(const float* x, int64_t count, int32_t zero_point, ActivationBlock* blocks, float* remainder) {
  for (int64_t b = 0; b < count / 32; ++b, x += 32, ++blocks) {
    F largest = Simd::zero();
    for (int i = 0; i < 32; i += kLanes) largest = Simd::max(largest, Simd::magnitude(Simd::load(x + i)));
    const float most = Simd::largest(largest);
    // Numbers so small that the division would overflow count as zero.
    const F inverse = Simd::all(most > 1e-36f ? 127.0f / most : 0.0f);
    const float scale = most / 127.0f;
    F sum = Simd::zero();
    for (int i = 0; i < 32; i += kLanes) {
      const F code = Simd::round(Simd::multiply(Simd::load(x + i), inverse));
      sum = Simd::add(sum, code);  // exact: whole numbers
      Simd::store_signed(blocks->codes + i, code);
      if (remainder)
        Simd::store(remainder + 32 * b + i, Simd::multiply_add(code, Simd::all(-scale), Simd::load(x + i)));
    }
    // A block with NaN or infinity gets the scale NaN, which reaches the logits and is found there.
    const float total = Simd::sum(sum);
    const bool finite = total - total == 0.0f;
    blocks->scale = finite ? scale : total - total;
    blocks->offset = finite ? -zero_point * static_cast<int32_t>(total) : 0;
  }
}

void rotate(const Rotation& r) {
  const auto sum_at = [&](int32_t i) {
    F x = Simd::load(r.sum + i);
    if (r.second_pass) x = Simd::add(Simd::load(r.second_pass + i), x);
    return Simd::add(x, Simd::load(r.bias + i));
  };
  const F scale = Simd::all(r.scale);
  int32_t i = 0;
  for (; r.cosines && i + kLanes <= r.rope_dimension; i += kLanes) {
    const F x = sum_at(i);
    const F turned = Simd::multiply(Simd::swap_pairs(x), Simd::load(r.sines + i));
    Simd::store(r.y + i, Simd::multiply(Simd::multiply_add(x, Simd::load(r.cosines + i), turned), scale));
  }
  const int32_t rotated = i;
  for (; i < r.count; i += kLanes) Simd::store(r.y + i, Simd::multiply(sum_at(i), scale));
  for (i = rotated; r.cosines && i < r.rope_dimension; i += 2) {  // the last pairs, fewer than a vector has
    const float a = r.y[i], b = r.y[i + 1];
    r.y[i] = a * r.cosines[i] + b * r.sines[i];
    r.y[i + 1] = b * r.cosines[i + 1] + a * r.sines[i + 1];
  }
}

// Reads in four streams, as the product of one token reads its weights: the bandwidth that the memory gives to it.
uint64_t read(const uint8_t* data, int64_t bytes) {
  constexpr int64_t kStreams = 4, kLine = 128;
  F sums[kStreams];
  for (F& sum : sums) sum = Simd::zero();
  const int64_t length = bytes / kStreams;
  for (int64_t at = 0; at + kLine <= length; at += kLine) {
    for (int s = 0; s < kStreams; ++s) {
      const uint8_t* line = data + s * length + at;
      __builtin_prefetch(line + kPrefetchBytes);
      __builtin_prefetch(line + kPrefetchBytes + 64);
      for (int64_t i = 0; i < kLine; i += 4 * kLanes) sums[s] = Simd::max(sums[s], Simd::load_bytes(line + i));
    }
  }
  const float largest = Simd::largest(Simd::max(Simd::max(sums[0], sums[1]), Simd::max(sums[2], sums[3])));
  uint32_t bits;
  std::memcpy(&bits, &largest, 4);
  return bits;
}

#include "cpu/kernels/attention.h"
#include "cpu/kernels/product.h"
#include "cpu/kernels/sampling.h"

constexpr Kernels kKernels = {
    Simd::kName, kLanes,   Simd::kByteZeroPoint, product,       attend,  merge, store_kv, rotate,
    rms_norm,    quantize, chunk_maxima,         chunk_weights, weights, read};

}  // namespace
}  // namespace chatglm::cpu
