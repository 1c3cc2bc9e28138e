#pragma once
#include <cstdint>

#include "cpu/kernels.h"
#include "runtime/memory.h"
#include "runtime/model.h"

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

  /// Packs some panels of the matrix. Panels can be packed at the same time.
  void pack(const Tensor& matrix, const Kernels& kernels, int64_t panel_begin, int64_t panel_end);

  int64_t outputs_of_panel() const { return panels == 0 ? 0 : outputs_per_panel_; }

 private:
  int64_t outputs_per_panel_ = 0;
};

}  // namespace chatglm::cpu
