#pragma once
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "test/cuda/support.h"

// Keys, values and attention as the host computes them, for the tests of the attention kernels.
namespace chatglm::test {

/// The pages of one sequence after the other, taken from the cache in a shuffled order.
class TestPages {
 public:
  TestPages(int32_t pages, Random& random) : free_(static_cast<size_t>(pages)) {
    std::iota(free_.begin(), free_.end(), 0);
    for (size_t i = free_.size(); i > 1; --i) {
      std::swap(free_[i - 1], free_[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i) - 1))]);
    }
  }
  /// Where in `tables` the page table of a new sequence of `tokens` tokens begins, whose first `shared` pages are those
  /// of the sequence whose table begins at `with`.
  int32_t add(int32_t tokens, int32_t shared = 0, int32_t with = 0) {
    const auto begin = static_cast<int32_t>(tables.size());
    for (int32_t i = 0; i < (tokens + kPageTokens - 1) / kPageTokens; ++i) {
      if (i < shared) {
        tables.push_back(tables[static_cast<size_t>(with + i)]);
      } else {
        tables.push_back(free_.at(free_.size() - 1));
        free_.pop_back();
      }
    }
    return begin;
  }

  std::vector<int32_t> tables;

 private:
  std::vector<int32_t> free_;
};

/// The cache in the layout of cuda/linear/layout.h, on the host and on the device. Until they are set, all tokens are
/// NaN, as a page may be that another sequence used before; the filling behind head_size is zero.
class TestKv {
 public:
  TestKv(cuda::KvType type, int32_t layers, int32_t groups, int32_t pages, int32_t head_size) {
    shape_ = {nullptr, type, layers, groups, pages, head_size, cuda::padded_head_size(head_size)};
    bytes_.assign(static_cast<size_t>(shape_.bytes()), 0);
    const std::vector<float> nan(static_cast<size_t>(head_size), std::numeric_limits<float>::quiet_NaN());
    for (int32_t layer = 0; layer < layers; ++layer) {
      for (int32_t group = 0; group < groups; ++group) {
        for (int32_t page = 0; page < pages; ++page) {
          for (int32_t slot = 0; slot < kPageTokens; ++slot) set(layer, group, page, slot, nan.data(), nan.data());
        }
      }
    }
  }

  /// Writes the key and value (head_size each) of a token.
  void set(int32_t layer, int32_t group, int32_t page, int32_t slot, const float* key, const float* value) {
    uint8_t* keys = host().head_page(layer, group, page);
    set_head(keys, slot, key, false);
    set_head(keys + shape_.keys_bytes(), slot, value, true);
  }
  double key(int32_t layer, int32_t group, int32_t page, int32_t slot, int32_t dimension) const {
    return number(host().head_page(layer, group, page), slot, dimension, false);
  }
  double value(int32_t layer, int32_t group, int32_t page, int32_t slot, int32_t dimension) const {
    return number(host().head_page(layer, group, page) + shape_.keys_bytes(), slot, dimension, true);
  }

  void upload() { memory_ = DeviceArray<uint8_t>(bytes_); }
  void download() { bytes_ = memory_.read(); }
  /// Of the device's memory.
  cuda::KvCache view() const {
    cuda::KvCache cache = shape_;
    cache.data = memory_.data();
    return cache;
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }  // of the host

 private:
  cuda::KvCache host() const {
    cuda::KvCache cache = shape_;
    cache.data = const_cast<uint8_t*>(bytes_.data());
    return cache;
  }
  uint8_t* scale(uint8_t* head, int32_t slot, int32_t dimension, bool is_value) const {
    const int index = is_value ? cuda::value_scale_index(slot, dimension)
                               : cuda::key_scale_index(shape_.padded_head, slot, dimension);
    return head + kPageTokens * shape_.padded_head + 2 * index;
  }
  int index(int32_t slot, int32_t dimension, bool is_value) const {
    return is_value ? cuda::value_index(shape_.type, slot, dimension)
                    : cuda::key_index(shape_.type, shape_.padded_head, slot, dimension);
  }

  // As the kernels store numbers: f16 clamped to its range; q8_0 as quantize.cc, clamped so that 127 times the scale is
  // still f16. A NaN makes the scale of its block NaN; the codes are then of no account, zeros here.
  void set_head(uint8_t* head, int32_t slot, const float* x, bool is_value) {
    const auto clamp = [](float v, float most) { return v > most ? most : v < -most ? -most : v; };
    if (shape_.type == cuda::KvType::f16) {
      for (int32_t d = 0; d < shape_.head_size; ++d) {
        store_u16(head + 2 * index(slot, d, is_value), float_to_half(clamp(x[d], 65504)));
      }
      return;
    }
    for (int32_t begin = 0; begin < shape_.head_size; begin += 32) {
      const int32_t count = std::min(32, shape_.head_size - begin);
      float block[32] = {};
      bool nan = false;
      for (int32_t d = 0; d < count; ++d) {
        block[d] = clamp(x[begin + d], 127 * 515.5f);
        nan = nan || std::isnan(block[d]);
      }
      BlockQ8_0 packed = {};
      if (nan) {
        store_u16(packed.scale, 0x7fff);
      } else {
        from_float(DataType::q8_0, block, 32, reinterpret_cast<uint8_t*>(&packed));
      }
      std::memcpy(scale(head, slot, begin, is_value), packed.scale, 2);
      for (int32_t d = 0; d < count; ++d) {
        head[index(slot, begin + d, is_value)] = static_cast<uint8_t>(packed.codes[d]);
      }
    }
  }
  double number(uint8_t* head, int32_t slot, int32_t dimension, bool is_value) const {
    const int i = index(slot, dimension, is_value);
    if (shape_.type == cuda::KvType::f16) return half_to_float(load_u16(head + 2 * i));
    return static_cast<double>(half_to_float(load_u16(scale(head, slot, dimension, is_value)))) *
           static_cast<int8_t>(head[i]);
  }

  cuda::KvCache shape_;
  std::vector<uint8_t> bytes_;  // (layers, groups, pages) of head pages
  DeviceArray<uint8_t> memory_;
};

/// Keys and values of the first `length` positions of a sequence, decoded: (length, head_size) each.
struct TestContext {
  TestContext(const TestKv& kv, int32_t layer, int32_t group, const int32_t* table, int32_t length)
      : head_size(kv.view().head_size) {
    for (int32_t p = 0; p < length; ++p) {
      const int32_t page = table[p / kPageTokens], slot = p % kPageTokens;
      for (int32_t d = 0; d < head_size; ++d) {
        keys.push_back(kv.key(layer, group, page, slot, d));
        values.push_back(kv.value(layer, group, page, slot, d));
      }
    }
  }
  /// softmax(query . key) values over the first `length` positions; `query` (head_size) has its scale already.
  std::vector<double> attend(const double* query, int32_t length) const {
    std::vector<double> scores, result(static_cast<size_t>(head_size));
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int32_t p = 0; p < length; ++p) {
      const double* key = keys.data() + static_cast<int64_t>(p) * head_size;
      scores.push_back(std::inner_product(query, query + head_size, key, 0.0));
      largest = std::max(largest, scores.back());
    }
    for (int32_t p = 0; p < length; ++p) {
      const double weight = std::exp(scores[static_cast<size_t>(p)] - largest);
      const double* value = values.data() + static_cast<int64_t>(p) * head_size;
      sum += weight;
      for (int32_t d = 0; d < head_size; ++d) result[static_cast<size_t>(d)] += weight * value[d];
    }
    for (double& x : result) x /= sum;
    return result;
  }

  int32_t head_size;
  std::vector<double> keys, values;
};

/// A query as the kernels have it, f16 times log2(e), for softmax with powers of e.
inline std::vector<double> natural_query(std::span<const uint16_t> query) {
  std::vector<double> result;
  for (const uint16_t x : query) result.push_back(half_to_float(x) * std::log(2.0));
  return result;
}

/// A head of the product of the QKV matrix (head_size) with its bias, and its first `rope_dimension` numbers rotated
/// (0: none); `rotations` has a cosine and a sine a pair. Rounds as the kernels do, so that caches compare bit for bit.
inline std::vector<float> complete_head(const float* product, const float* bias, int32_t head_size,
                                        int32_t rope_dimension, const float* rotations) {
  std::vector<float> x(static_cast<size_t>(head_size));
  for (size_t d = 0; d < x.size(); ++d) x[d] = product[d] + bias[d];
  for (size_t j = 0; j < static_cast<size_t>(rope_dimension) / 2; ++j) {
    const float a = x[2 * j], b = x[2 * j + 1], cosine = rotations[2 * j], sine = rotations[2 * j + 1];
    x[2 * j] = std::fma(a, cosine, -(b * sine));
    x[2 * j + 1] = std::fma(b, cosine, a * sine);
  }
  return x;
}

/// The QKV product of a batch, random, and what else the kernels between it and attention read.
class TestQkv {
 public:
  /// Token i is at `positions`[i] of the sequence whose page table begins at `tables`[i] of `pages`.
  TestQkv(int32_t heads, int32_t groups, int32_t head_size, int32_t rope_dimension, std::vector<int32_t> positions,
          std::vector<int32_t> tables, std::vector<int32_t> pages, Random& random, float deviation = 1)
      : heads_(heads),
        groups_(groups),
        head_size_(head_size),
        rope_dimension_(rope_dimension),
        positions_(std::move(positions)),
        tables_(std::move(tables)),
        pages_(std::move(pages)),
        product_(random.normals(static_cast<int64_t>(positions_.size()) * rows(), deviation)),
        bias_(random.normals(rows(), 0.5f * deviation)) {
    for (size_t i = 0; i < positions_.size() * static_cast<size_t>(rope_dimension) / 2; ++i) {
      const double angle = 6.3 * random.uniform();
      rotations_.push_back(static_cast<float>(std::cos(angle)));
      rotations_.push_back(static_cast<float>(std::sin(angle)));
    }
  }

  int32_t tokens() const { return static_cast<int32_t>(positions_.size()); }
  /// Of the queries, then of the keys, then of the values.
  int32_t rows() const { return (heads_ + 2 * groups_) * head_size_; }
  float& at(int32_t token, int32_t head, int32_t dimension) {
    return product_[static_cast<size_t>(token) * rows() + head * head_size_ + dimension];
  }
  /// Head `head` of the product, with everything done to it.
  std::vector<float> head(int32_t token, int32_t head) const {
    return complete_head(product_.data() + static_cast<int64_t>(token) * rows() + head * head_size_,
                         bias_.data() + head * head_size_, head_size_, head < heads_ + groups_ ? rope_dimension_ : 0,
                         rotations_.data() + static_cast<int64_t>(token) * rope_dimension_);
  }
  /// Query head `head` as f16, times log2(e) / sqrt(head_size).
  std::vector<uint16_t> query(int32_t token, int32_t head) const {
    const float scale = 1.44269504f / std::sqrt(static_cast<float>(head_size_));
    std::vector<uint16_t> result;
    for (const float x : this->head(token, head)) {
      const float scaled = x * scale;
      result.push_back(float_to_half(scaled > 65504 ? 65504 : scaled < -65504 ? -65504 : scaled));
    }
    return result;
  }
  /// Where in `pages` the page table of a token's sequence begins.
  const int32_t* table(int32_t token) const { return pages_.data() + tables_[static_cast<size_t>(token)]; }
  int32_t position(int32_t token) const { return positions_[static_cast<size_t>(token)]; }
  /// Writes the token's keys and values into the host's cache.
  void append(TestKv& kv, int32_t layer, int32_t token) const {
    const int32_t page = table(token)[position(token) / kPageTokens];
    for (int32_t group = 0; group < groups_; ++group) {
      kv.set(layer, group, page, position(token) % kPageTokens, head(token, heads_ + group).data(),
             head(token, heads_ + groups_ + group).data());
    }
  }

  void upload() {
    device_ = {DeviceArray<float>(product_), DeviceArray<float>(bias_), DeviceArray<float>(rotations_)};
    indexes_ = {DeviceArray<int32_t>(positions_), DeviceArray<int32_t>(tables_), DeviceArray<int32_t>(pages_)};
  }
  cuda::QkvRows view() const {
    return {device_.product.data(), device_.bias.data(), heads_, groups_, head_size_, rope_dimension_};
  }
  cuda::Batch batch() const {
    cuda::Batch batch;
    batch.tokens = tokens();
    batch.positions = indexes_.positions.data();
    batch.tables = indexes_.tables.data();
    batch.pages = indexes_.pages.data();
    batch.rotations = reinterpret_cast<const float2*>(device_.rotations.data());
    return batch;
  }

 private:
  struct Floats {
    DeviceArray<float> product, bias, rotations;
  };
  struct Indexes {
    DeviceArray<int32_t> positions, tables, pages;
  };

  int32_t heads_, groups_, head_size_, rope_dimension_;
  std::vector<int32_t> positions_, tables_, pages_;
  std::vector<float> product_, bias_;  // (tokens, rows), (rows)
  std::vector<float> rotations_;       // (tokens, rope_dimension / 2, 2)
  Floats device_;
  Indexes indexes_;
};

}  // namespace chatglm::test
