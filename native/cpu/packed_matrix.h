#pragma once
#include <cstdint>

#include "base/memory.h"
#include "cpu/kernels/kernels.h"
#include "model/model.h"

namespace chatglm::cpu {

/// A matrix of weights in the order in which the kernels read it: in panels of two vectors of rows. A vector has as
/// many rows as the instruction set's vectors have lanes.
///
/// A panel of q8_0 or q4_0 holds, for each block of 32 columns, the rows' f16 scales and then words of four codes: word
/// 0 of each row, word 1 of each row, and so on. Word i of q8_0 holds columns 4 i to 4 i + 3; word i of q4_0 holds
/// columns 4 i to 4 i + 3 in the low and 16 + 4 i to 16 + 4 i + 3 in the high halves of its bytes. A panel of another
/// type holds, for each column, the rows' numbers. The panels take the bytes that the rows take in GGUF, except that
/// the last panel is filled up with zeros.
struct PackedMatrix {
  /// How rows go to lanes. plain: in their order. gated: the first vector of panel p has the gates, rows p * lanes on
  /// of the matrix's first half, and the second vector has the same rows of the second half.
  enum class Order { plain, gated };

  DataType type = DataType::f32;
  int64_t rows = 0, columns = 0;
  Order order = Order::plain;
  int64_t outputs = 0;  // rows, or rows / 2 of a gated matrix
  int64_t panels = 0, panel_bytes = 0;
  Buffer data;  // (panels, panel_bytes)

  PackedMatrix() = default;
  /// Room for a matrix of this shape. Throws ERR_OUT_OF_MEMORY.
  PackedMatrix(const Tensor& shape, Order order, const Kernels& kernels);

  /// Packs the rows from `begin` to `end`; `source` holds them in their order. Threads may pack different rows at the
  /// same time.
  void pack(int64_t begin, int64_t end, const uint8_t* source);

  int64_t outputs_of_panel() const { return order == Order::gated ? lanes_ : 2 * lanes_; }

 private:
  void pack_run(int64_t panel, int64_t first_lane, int64_t count, const uint8_t* source);

  int64_t lanes_ = 0;
  uint32_t flip_ = 0;  // xor-ed with each word: adds Kernels::q8_0_zero_point to its four codes
};

}  // namespace chatglm::cpu
