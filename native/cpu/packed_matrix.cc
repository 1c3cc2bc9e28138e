#include "cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>

namespace chatglm::cpu {

namespace {

// Packs `count` rows of blocks into the panel's lanes from first_lane on. The 32 codes of a block are `Words` words.
template <int Words>
void pack_blocks(const uint8_t* source, int64_t row_bytes, int64_t count, int64_t first_lane, int64_t lanes,
                 int64_t blocks, uint32_t flip, uint8_t* target) {
  constexpr int64_t kBlockBytes = 2 + 4 * Words;
  for (int64_t b = 0; b < blocks; ++b, source += kBlockBytes, target += lanes * kBlockBytes) {
    for (int64_t r = 0; r < count; ++r) {
      const uint8_t* block = source + r * row_bytes;
      std::memcpy(target + 2 * (first_lane + r), block, 2);
      for (int64_t i = 0; i < Words; ++i) {
        uint32_t word;
        std::memcpy(&word, block + 2 + 4 * i, 4);
        word ^= flip;
        std::memcpy(target + 2 * lanes + 4 * (i * lanes + first_lane + r), &word, 4);
      }
    }
  }
}

template <class Number>
void pack_numbers(const uint8_t* source, int64_t row_bytes, int64_t count, int64_t lanes, int64_t columns,
                  uint8_t* target) {
  constexpr int64_t kStrip = 32;  // columns: their part of the panel stays in the cache while all rows write to it
  constexpr auto kSize = static_cast<int64_t>(sizeof(Number));
  for (int64_t begin = 0; begin < columns; begin += kStrip) {
    const int64_t end = std::min(columns, begin + kStrip);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = begin; i < end; ++i) {
        std::memcpy(target + (i * lanes + r) * kSize, source + r * row_bytes + i * kSize, sizeof(Number));
      }
    }
  }
}

}  // namespace

PackedMatrix::PackedMatrix(const Tensor& shape, Order order, const Kernels& kernels)
    : type(shape.type), rows(shape.rows), columns(shape.columns), order(order), lanes_(kernels.lanes) {
  outputs = order == Order::gated ? rows / 2 : rows;
  panels = (outputs + outputs_of_panel() - 1) / outputs_of_panel();
  panel_bytes = 2 * lanes_ * shape.row_bytes();
  if (type == DataType::q8_0 && kernels.q8_0_zero_point != 0) flip_ = 0x80808080u;
  data = Buffer(static_cast<size_t>(panels * panel_bytes), "a tensor of the model", Buffer::Pages::huge);
}

void PackedMatrix::pack(int64_t begin, int64_t end, const uint8_t* source) {
  for (int64_t row = begin; row < end;) {
    // `output`: the number of y that the row computes, alone or as one half of a gated pair. `count`: the rows that
    // follow it in the same vector, this one included.
    const int64_t output = order == Order::gated ? row % outputs : row;
    const int64_t vector = order == Order::gated ? row / outputs : row / lanes_ % 2;
    const int64_t lane = output % lanes_;
    const int64_t count = std::min({lanes_ - lane, outputs - output, end - row});
    pack_run(output / outputs_of_panel(), vector * lanes_ + lane, count, source);
    row += count;
    source += count * row_bytes(type, columns);
  }
}

void PackedMatrix::pack_run(int64_t panel, int64_t first_lane, int64_t count, const uint8_t* source) {
  const int64_t all = 2 * lanes_, source_row = row_bytes(type, columns);
  uint8_t* target = data.data() + panel * panel_bytes;
  switch (type) {
    case DataType::q4_0: return pack_blocks<4>(source, source_row, count, first_lane, all, columns / 32, 0, target);
    case DataType::q8_0: return pack_blocks<8>(source, source_row, count, first_lane, all, columns / 32, flip_, target);
    case DataType::f32: return pack_numbers<uint32_t>(source, source_row, count, all, columns, target + 4 * first_lane);
    default: return pack_numbers<uint16_t>(source, source_row, count, all, columns, target + 2 * first_lane);
  }
}

}  // namespace chatglm::cpu
