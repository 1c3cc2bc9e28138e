// Passes over a row of logits. Part of impl.h.

// Writes the largest logit of each chunk of kSampleChunk. Returns whether all logits are finite.
bool chunk_maxima(const float* logits, int64_t count, float* maxima) {
  F zeros = Simd::zero();  // 0 * x is NaN for infinite and NaN x, else 0
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
          zeros = Simd::add(zeros, Simd::multiply(x, Simd::zero()));
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
  return Simd::sum(zeros) + rest == 0.0f;
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

// Writes the sum of weight_of() of each chunk of kSampleChunk. Sums of whole numbers below 2^53 are exact in doubles.
void chunk_weights(const float* logits, int64_t count, float largest, float inverse_temperature, double* sums) {
  constexpr double kUnit = static_cast<double>(kWholeWeight);
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding and subtracting it rounds to a whole number
  constexpr int kSums = 8;
  for (int64_t begin = 0; begin < count; begin += kSampleChunk) {
    const int64_t end = begin + kSampleChunk < count ? begin + kSampleChunk : count;
    float values[kSampleChunk];
    for (int64_t i = 0; i < kSampleChunk; i += kLanes) {
      F x;
      if (begin + i + kLanes <= end) {
        x = Simd::load(logits + begin + i);
      } else {
        float few[kLanes];
        for (int j = 0; j < kLanes; ++j) few[j] = begin + i + j < end ? logits[begin + i + j] : -__builtin_inff();
        x = Simd::load(few);
      }
      const F scaled = Simd::multiply(Simd::add(x, Simd::all(-largest)), Simd::all(inverse_temperature));
      Simd::store(values + i, exact_exponential(scaled));
    }
    double partial[kSums] = {};
    for (int64_t i = 0; i < kSampleChunk; i += kSums) {
      for (int j = 0; j < kSums; ++j) {
        const double scaled = static_cast<double>(values[i + j]) * kUnit + kRound;
        partial[j] += scaled - kRound;
      }
    }
    double sum = 0;
    for (const double one : partial) sum += one;
    sums[begin / kSampleChunk] = sum;
  }
}
