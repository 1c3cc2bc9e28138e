#include "cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>

namespace chatglm::cpu {

namespace {

uint32_t load_u32(const uint8_t* p) {
  uint32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Blocks of 32 columns, whose codes are so many words of four bytes. `flip` turns signed codes into unsigned ones.
void pack_blocks(const uint8_t* const* rows, int64_t count, int64_t blocks, int64_t words, uint32_t flip,
                 uint8_t* target) {
  const int64_t block_bytes = 2 + 4 * words;
  for (int64_t b = 0; b < blocks; ++b, target += count * block_bytes) {
    for (int64_t r = 0; r < count; ++r) {
      if (!rows[r]) continue;  // the memory is zero
      const uint8_t* source = rows[r] + b * block_bytes;
      std::memcpy(target + 2 * r, source, 2);
      for (int64_t i = 0; i < words; ++i) {
        const uint32_t word = load_u32(source + 2 + 4 * i) ^ flip;
        std::memcpy(target + 2 * count + 4 * (i * count + r), &word, 4);
      }
    }
  }
}

template <class Number>
void pack_numbers(const uint8_t* const* rows, int64_t count, int64_t columns, uint8_t* target) {
  constexpr int64_t kStrip = 32;  // columns: so that what is written stays in the cache
  for (int64_t begin = 0; begin < columns; begin += kStrip) {
    const int64_t end = std::min(columns, begin + kStrip);
    for (int64_t r = 0; r < count; ++r) {
      if (!rows[r]) continue;
      for (int64_t i = begin; i < end; ++i) {
        std::memcpy(target + (i * count + r) * static_cast<int64_t>(sizeof(Number)),
                    rows[r] + i * static_cast<int64_t>(sizeof(Number)), sizeof(Number));
      }
    }
  }
}

}  // namespace

PackedMatrix::PackedMatrix(const Tensor& shape, Order order, const Kernels& kernels)
    : type(shape.type), rows(shape.rows), columns(shape.columns), order(order) {
  outputs = order == Order::gated ? rows / 2 : rows;
  outputs_per_panel_ = order == Order::gated ? kernels.lanes : 2 * kernels.lanes;
  panels = (outputs + outputs_per_panel_ - 1) / outputs_per_panel_;
  panel_bytes = 2 * kernels.lanes * shape.row_bytes();
  data = Buffer(static_cast<size_t>(panels * panel_bytes), "a tensor of the model", Buffer::Pages::huge);
}

void PackedMatrix::pack(const Tensor& matrix, const Kernels& kernels, int64_t panel_begin, int64_t panel_end) {
  const int64_t count = 2 * kernels.lanes;
  const uint8_t* sources[64] = {};
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t vector = r / kernels.lanes, lane = r % kernels.lanes;
      const int64_t output = order == Order::gated ? panel * kernels.lanes + lane : panel * count + r;
      const int64_t row = order == Order::gated ? vector * outputs + output : output;
      sources[r] = output < outputs ? matrix.row(row) : nullptr;
    }
    uint8_t* target = data.data() + panel * panel_bytes;
    const uint32_t flip = type == DataType::q8_0 && kernels.q8_0_zero_point != 0 ? 0x80808080u : 0;
    switch (type) {
      case DataType::q4_0: pack_blocks(sources, count, columns / 32, 4, 0, target); break;
      case DataType::q8_0: pack_blocks(sources, count, columns / 32, 8, flip, target); break;
      case DataType::f32: pack_numbers<uint32_t>(sources, count, columns, target); break;
      default: pack_numbers<uint16_t>(sources, count, columns, target); break;
    }
  }
}

}  // namespace chatglm::cpu
