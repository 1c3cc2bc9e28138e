#pragma once
#include <cstdint>

#include "base/memory.h"
#include "cpu/kernels/kernels.h"
#include "model/model.h"

namespace chatglm::cpu {

/// A matrix of weights in the order in which the kernels read it: in panels of two vectors of rows, each with as many
/// rows as the instruction set's vectors have lanes.
///
/// A panel holds, for each block of 32 columns (q8_0, q4_0): the rows' f16 scales; then, several times, four codes of
/// each row. For q8_0 the time number i holds columns 4 i to 4 i + 3; for q4_0 it holds columns 4 i to 4 i + 3 in the
/// low and 16 + 4 i to 16 + 4 i + 3 in the high halves of its bytes. For the other types: for each column the rows'
/// numbers. All of it takes the bytes that the rows take in GGUF, but the last panel is filled up with zeros.
struct PackedMatrix {
  /// How rows go to lanes. plain: one after the other. gated: the first vector of panel p has rows p * lanes on of the
  /// first half, the gate's, and the second the same rows of the second half.
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

  /// Packs rows of the matrix, which lie one after the other. Different rows can be packed at the same time.
  void pack(int64_t begin, int64_t end, const uint8_t* source);

  int64_t outputs_of_panel() const { return order == Order::gated ? lanes_ : 2 * lanes_; }

 private:
  void pack_run(int64_t panel, int64_t first_lane, int64_t count, const uint8_t* source);

  int64_t lanes_ = 0;
  uint32_t flip_ = 0;  // what turns four codes into those that the kernels want
};

}  // namespace chatglm::cpu
