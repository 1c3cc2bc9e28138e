#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "engine/page.h"
#include "engine/sampling.h"

namespace chatglm {

/// Consecutive tokens of one sequence, as part of a batch.
struct Segment {
  std::span<const int32_t> tokens;
  int32_t position = 0;            // of tokens[0] in its sequence; the tokens before it have their keys in the pages
  std::span<const int32_t> pages;  // the page table: position p is in pages[p / kPageTokens]; it covers all tokens
  std::span<const Row> rows;       // what is wanted of the logits of the last rows.size() tokens, in the tokens' order
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
  int32_t pages = 0;                             // of the key/value cache
  uint64_t page_bytes = 0;                       // of keys and values in one page, as read_page() gives them
  std::string page_layout;    // names the order and type of these bytes: pages of equal layout can be exchanged
  uint64_t device_bytes = 0;  // of a GPU: weights, keys and values, and the workspace; 0 on the CPU
};

/// A model on a device, with its key/value memory. Only the engine's thread uses it.
///
/// The result for a token depends on the token and on those before it alone: neither on how chunked prefill cuts a
/// prompt into segments nor on the other sequences of the batch. On the CPU results are equal in every bit; on a GPU
/// they are equal up to rounding, because batches of different sizes take different kernels. On either device the same
/// calls give the same bits again. From the same logits all devices draw the same tokens.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual BackendInfo info() const = 0;
  /// The most tokens of one batch, and the most of its rows whose use is `logits`. Rows of other uses have no limit
  /// beyond their number of tokens.
  virtual int32_t max_batch_tokens() const = 0;
  virtual int32_t max_batch_logits() const = 0;

  /// Runs a batch of segments, each of another sequence, through the model: writes the keys and values of all tokens to
  /// the pages, and what the rows want, in the segments' order: logits (rows of the use `logits`, vocabulary), outcomes
  /// (rows of the other uses). Returns false if `abort` became true before the end: then the results mean nothing, and
  /// the same batch can be run again.
  virtual bool forward(std::span<const Segment> batch, float* logits, Outcome* outcomes,
                       const std::atomic<bool>& abort) = 0;

  /// Copies the keys and values of the first `tokens` tokens of a page.
  virtual void copy_page(int32_t from, int32_t to, int32_t tokens) = 0;
  /// Copies a page's keys and values to or from the host: BackendInfo::page_bytes.
  virtual void read_page(int32_t page, uint8_t* target) = 0;
  virtual void write_page(int32_t page, const uint8_t* source) = 0;
};

}  // namespace chatglm
