#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "engine/page.h"

namespace chatglm {

/// Consecutive tokens of one sequence, as part of a batch.
struct Segment {
  std::span<const int32_t> tokens;
  int32_t position = 0;            // of tokens[0] in its sequence; the tokens before it have their keys in the pages
  std::span<const int32_t> pages;  // the page table: position p is in pages[p / kPageTokens]; it covers all tokens
  int32_t logits = 0;              // of the last so many tokens the logits are wanted
  bool top = false;                // logits is 1, and only the row's largest are wanted; only if max_top() is not 0
};

/// The largest logits of a row, in falling order; of equal logits the lowest id comes first.
struct TopLogits {
  static constexpr int32_t kMost = 64;

  int32_t finite = 0;  // 1: all logits of the row are finite; else the other fields mean nothing
  int32_t count = 0;   // min(kMost, vocabulary)
  float log_sum = 0;   // ln(sum of exp(logit)) of the whole row
  int32_t ids[kMost];
  float logits[kMost];
};

struct BackendInfo {
  std::string device;   // "cpu", "cuda:0"
  std::string kernels;  // which of the device's kernels, e.g. "avx512"
  int32_t threads = 0;
  uint64_t weight_bytes = 0;
  std::map<std::string, uint64_t> weight_types;  // weight_bytes by type
  uint64_t bytes_per_token = 0;                  // bytes of weights that are read to generate one token
  uint64_t mapped_bytes = 0;                     // the part of weight_bytes that lies in the system's page cache
  std::string kv_type;                           // of keys and values: "f16", "f32", "q8_0"
  uint64_t kv_bytes = 0;
  uint64_t device_bytes = 0;  // of a GPU: weights, keys and values, and the workspace; 0 on the CPU
};

/// A model on a device, with its key/value memory. Only the engine's thread uses it.
///
/// The result for a token depends on the token and on those before it alone: neither on how chunked prefill cuts a
/// prompt into segments nor on the other sequences of the batch. On the CPU results are equal in every bit; on a GPU
/// they are equal up to rounding, because batches of different sizes take different kernels. On either device the same
/// calls give the same bits again.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual BackendInfo info() const = 0;
  /// The most tokens of one batch, and the most rows of logits of its segments that are not `top`. Each sequence may
  /// have one row beyond the latter, as a generating sequence wants one whatever the other sequences want.
  virtual int32_t max_batch_tokens() const = 0;
  virtual int32_t max_batch_logits() const = 0;
  /// How many of the largest logits the backend can give instead of whole rows: 0 (none) or TopLogits::kMost.
  virtual int32_t max_top() const { return 0; }

  /// Runs a batch of segments, each of another sequence, through the model: writes the keys and values of all tokens to
  /// the pages, and the wanted logits in the segments' order: logits (sum of Segment::logits over the segments without
  /// `top`, vocabulary), top (segments with `top`). Returns false if `abort` became true before the end: then the
  /// results mean nothing, and the same batch can be run again.
  virtual bool forward(std::span<const Segment> batch, float* logits, TopLogits* top,
                       const std::atomic<bool>& abort) = 0;

  /// Copies the keys and values of the first `tokens` tokens of a page.
  virtual void copy_page(int32_t from, int32_t to, int32_t tokens) = 0;
};

}  // namespace chatglm
