// Passes over a row of logits. Part of impl.h.

// Writes the largest logit of each chunk of kSampleChunk. Returns whether all logits are finite.
bool chunk_maxima(const float* logits, int64_t count, float* maxima) {
  F zeros[2] = {Simd::zero(), Simd::zero()};  // 0 * x is NaN for infinite and NaN x, else 0
  float rest = 0;
  for (int64_t begin = 0; begin < count; begin += kSampleChunk) {
    const int64_t end = begin + kSampleChunk < count ? begin + kSampleChunk : count;
    int64_t i = begin;
    float most = logits[begin];
    if (end - begin == kSampleChunk) {
      F largest[2] = {Simd::load(logits + i), Simd::load(logits + i + kLanes)};
      for (; i < end; i += 2 * kLanes) {
        for (int j = 0; j < 2; ++j) {
          const F x = Simd::load(logits + i + j * kLanes);
          largest[j] = Simd::max(largest[j], x);
          zeros[j] = Simd::add(zeros[j], Simd::multiply(x, Simd::zero()));
        }
      }
      most = Simd::largest(Simd::max(largest[0], largest[1]));
    }
    for (; i < end; ++i) {
      most = logits[i] > most ? logits[i] : most;
      rest += logits[i] * 0.0f;
    }
    maxima[begin / kSampleChunk] = most;
  }
  return Simd::sum(Simd::add(zeros[0], zeros[1])) + rest == 0.0f;
}

// exp_of() of engine/sampling_math.h, the same steps, so the same bits; but what is 0 there is a number here that a
// weight rounds to 0.
F exact_exponential(F x) {
  x = Simd::max(x, Simd::all(ExpSteps::kLeast));
  const F n = Simd::round(Simd::multiply(x, Simd::all(ExpSteps::kLog2e)));
  const F r = Simd::add(Simd::add(x, Simd::multiply(n, Simd::all(-ExpSteps::kLn2High))),
                        Simd::multiply(n, Simd::all(-ExpSteps::kLn2Low)));
  F p = Simd::all(ExpSteps::kC5);
  constexpr float kCoefficients[] = {ExpSteps::kC4, ExpSteps::kC3, ExpSteps::kC2, ExpSteps::kC1, ExpSteps::kC0};
  for (const float coefficient : kCoefficients) p = Simd::add(Simd::multiply(p, r), Simd::all(coefficient));
  p = Simd::add(Simd::add(Simd::multiply(p, Simd::multiply(r, r)), r), Simd::all(1.0f));
  return Simd::scale_by_power_of_two(p, n);
}

// A number below 2^51 is rounded to a whole one, halves to even, where it is added to 1.5 * 2^52: the low bits of the
// sum are the whole number.
constexpr double kRoundToWhole = 6755399441055744.0;
uint64_t bits_of_whole(float exponential) {
  return __builtin_bit_cast(uint64_t,
                            static_cast<double>(exponential) * static_cast<double>(kWholeWeight) + kRoundToWhole);
}
constexpr uint64_t kBitsOfZero = __builtin_bit_cast(uint64_t, kRoundToWhole);

// exact_exponential() of the scaled distances to the largest logit, of kSampleChunk logits or of the `count` that are
// left; beyond these, numbers that a weight rounds to 0.
void exponentials_of_chunk(const float* logits, int64_t count, float largest, float inverse_temperature,
                           float* exponentials) {
  float padded[kSampleChunk];
  if (count < kSampleChunk) {
    for (int64_t i = 0; i < kSampleChunk; ++i) padded[i] = i < count ? logits[i] : -__builtin_inff();
    logits = padded;
  }
  for (int i = 0; i < kSampleChunk; i += kLanes) {
    const F distance = Simd::add(Simd::load(logits + i), Simd::all(-largest));
    const F exponential = exact_exponential(Simd::multiply(distance, Simd::all(inverse_temperature)));
    Simd::store(exponentials + i, exponential);
  }
}

void chunk_weights(const float* logits, int64_t count, float largest, float inverse_temperature, int64_t* sums) {
  constexpr int kSums = 8;
  for (int64_t begin = 0; begin < count; begin += kSampleChunk) {
    float exponentials[kSampleChunk];
    exponentials_of_chunk(logits + begin, count - begin, largest, inverse_temperature, exponentials);
    uint64_t partial[kSums] = {};
    for (int i = 0; i < kSampleChunk; i += kSums) {
      for (int j = 0; j < kSums; ++j) partial[j] += bits_of_whole(exponentials[i + j]);
    }
    uint64_t sum = 0;  // modulo 2^64, as the partial sums are
    for (const uint64_t one : partial) sum += one;
    sums[begin / kSampleChunk] = static_cast<int64_t>(sum - kSampleChunk * kBitsOfZero);
  }
}

void weights(const float* logits, int64_t count, float largest, float inverse_temperature, int64_t* result) {
  for (int64_t begin = 0; begin < count; begin += kSampleChunk) {
    float exponentials[kSampleChunk];
    exponentials_of_chunk(logits + begin, count - begin, largest, inverse_temperature, exponentials);
    const int64_t here = count - begin < kSampleChunk ? count - begin : kSampleChunk;
    for (int64_t i = 0; i < here; ++i) {
      result[begin + i] = static_cast<int64_t>(bits_of_whole(exponentials[i]) - kBitsOfZero);
    }
  }
}
