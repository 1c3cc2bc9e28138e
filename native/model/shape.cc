#include "model/shape.h"

#include <charconv>
#include <cmath>
#include <string>

#include "base/error.h"

namespace chatglm {

namespace {

std::string text_of(float number) {
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, number);
  return std::string(text, end);
}

[[noreturn]] void refuse(const std::string& problem) { throw Error("ERR_CHECKPOINT_INVALID", problem); }

void expect_within(const char* name, int32_t value, int32_t least, int32_t most) {
  if (value >= least && value <= most) return;
  refuse(std::string(name) + " is " + std::to_string(value) + "; it must be an integer from " + std::to_string(least) +
         " to " + std::to_string(most));
}

void expect_multiple(const char* name, int32_t value, int32_t divisor) {
  if (value % divisor == 0) return;
  refuse(std::string(name) + " is " + std::to_string(value) + "; it must be a multiple of " + std::to_string(divisor));
}

void expect_positive(const char* name, float value) {
  if (std::isfinite(value) && value > 0) return;
  refuse(std::string(name) + " gives " + text_of(value) + "; it must be a positive number");
}

}  // namespace

std::vector<float> rope_frequencies(const ModelShape& shape) {
  std::vector<float> frequencies;
  for (int32_t j = 0; j < shape.rope_dimension / 2; ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(shape.rope_dimension);
    frequencies.push_back(1.0f / std::pow(shape.rope_base, exponent));
  }
  return frequencies;
}

// With these limits the bytes of each tensor, of any type, are far from overflowing 64 bits, and query_size() and
// qkv_size() 32 bits.
void check_shape(const ModelShape& s) {
  expect_within("layers", s.layers, 1, 1024);
  expect_within("hiddenSize", s.hidden_size, 1, 1 << 16);
  expect_within("heads", s.heads, 1, 1024);
  expect_within("kvGroups", s.kv_groups, 1, 1024);
  expect_within("headSize", s.head_size, 1, 1024);
  expect_within("ffnHiddenSize", s.ffn_size, 1, 1 << 19);
  expect_within("vocabSize", s.vocabulary, 1, 1 << 20);
  expect_positive("normEpsilon", s.norm_epsilon);
  expect_positive("ropeBase", s.rope_base);
  expect_positive("ropeScale", s.rope_scale);
  if (s.norm_epsilon >= 1) refuse("normEpsilon is " + text_of(s.norm_epsilon) + "; it must be below 1");
  if (s.heads % s.kv_groups != 0) {
    refuse("heads " + std::to_string(s.heads) + " is no multiple of kvGroups " + std::to_string(s.kv_groups));
  }
  expect_multiple("headSize", s.head_size, 16);  // a tile of the attention kernels
  // Quantized types have blocks of 32 columns: of the hidden state, of attention's output and of the FFN.
  expect_multiple("hiddenSize", s.hidden_size, 32);
  if (s.query_size() % 32 != 0) {
    refuse("heads " + std::to_string(s.heads) + " times headSize " + std::to_string(s.head_size) + " is " +
           std::to_string(s.query_size()) + "; it must be a multiple of 32");
  }
  expect_multiple("ffnHiddenSize", s.ffn_size, 32);
  expect_within("ropeDimension", s.rope_dimension, 0, s.head_size);
  expect_multiple("ropeDimension", s.rope_dimension, 2);  // rotated in pairs
}

}  // namespace chatglm
