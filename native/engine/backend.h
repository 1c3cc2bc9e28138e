#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace chatglm {

/// Consecutive tokens of one sequence, as part of a batch.
struct Segment {
  std::span<const int32_t> tokens;
  int32_t position = 0;            // of tokens[0] in its sequence; what lies before is in the pages
  std::span<const int32_t> pages;  // position p is in pages[p / page_tokens]; there are enough for all tokens
  int32_t logits = 0;              // of the last so many tokens the logits are wanted
  bool top = false;                // of the logits, which are one row then, only the largest (if max_top() is not 0)
};

/// The largest logits of a row, the largest first, of equal ones the lowest id first.
struct TopLogits {
  static constexpr int32_t kMost = 64;

  int32_t finite = 0;  // 1: all logits of the row are; else nothing here is to be relied on
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
  uint64_t bytes_per_token = 0;                  // of the weights, those that are read to generate one token
  uint64_t mapped_bytes = 0;                     // of weight_bytes, those that are the system's page cache
  std::string kv_type;                           // of keys and values: "f16", "f32", "q8_0"
  uint64_t kv_bytes = 0;
  uint64_t device_bytes = 0;  // that a GPU gave for weights, keys and values, and what computing needs; 0 on the CPU
};

/// A model on a device, with its key/value memory. Used by the engine's thread alone.
///
/// The result for a token depends on the tokens before it and on nothing else: neither on how a prompt is cut into
/// segments nor on what else is in the batch. On the CPU that holds for every bit; on a GPU up to rounding, because
/// batches of different sizes take different kernels. The same calls give the same bits on both.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual BackendInfo info() const = 0;
  /// Most tokens of one batch; and most rows of logits of what is not `top`, besides one row of each sequence (a
  /// generating sequence wants one, whatever the others want).
  virtual int32_t max_batch_tokens() const = 0;
  virtual int32_t max_batch_logits() const = 0;
  /// How many of the largest logits it can give instead of whole rows: 0 (none) or TopLogits::kMost.
  virtual int32_t max_top() const { return 0; }

  /// Runs a batch of segments, each of another sequence, through the model: writes the keys and values of all their
  /// tokens and the wanted logits, in the segments' order: logits (sum of Segment::logits of those without `top`,
  /// vocabulary), top (segments with `top`). Returns false, with nothing to rely on, if `abort` became true before the
  /// end; the same batch can be run again.
  virtual bool forward(std::span<const Segment> batch, float* logits, TopLogits* top,
                       const std::atomic<bool>& abort) = 0;

  /// Copies the keys and values of the first `tokens` tokens of a page.
  virtual void copy_page(int32_t from, int32_t to, int32_t tokens) = 0;
};

constexpr int32_t kPageTokens = 64;

}  // namespace chatglm
