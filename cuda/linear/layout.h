#pragma once
#include <cstdint>

#include "base/data_type.h"
#include "engine/page.h"

#ifdef __CUDACC__
#define CHATGLM_HD __host__ __device__
#else
#define CHATGLM_HD
#endif

// The layouts of the GPU's memory. Every layout serves the tensor cores' fragments, so that no kernel has to shuffle:
// weights have the order of registers, activations and f16 keys and values that of swizzled shared memory.
namespace chatglm::cuda {

// --- Weights: blocks of 16 rows x 64 columns, ordered (row tile, column chunk), each block in one piece.
//
// A block serves one warp: lane l holds rows g = l / 4 and g + 8, and with t = l % 4 in each of the four steps of 16
// columns the columns 2t, 2t + 1, 2t + 8, 2t + 9: the A fragment of mma.m16n8k16 (PTX ISA, "Matrix fragments for
// mma.m16n8k16") and of a warp's quarter of wgmma.m64nNk16. The fragment's eight numbers, in the order of its
// registers:
//   0, 1: (g, 2t), (g, 2t + 1)          2, 3: (g + 8, 2t), (g + 8, 2t + 1)
//   4, 5: (g, 2t + 8), (g, 2t + 9)      6, 7: (g + 8, 2t + 8), (g + 8, 2t + 9)
//
//   q4_0  32 lanes x 16 bytes: one 32-bit word a step, steps in order. In a word number 2p of the fragment is the
//         nibble at bit 4p and number 2p + 1 the one at bit 16 + 4p (p = 0..3): weight = scale * (nibble - 8).
//         Then the scales, f16: 8 x {(g, block 0), (g + 8, block 0), (g, block 1), (g + 8, block 1)}, where a block is
//         32 columns.
//   q8_0  2 x 32 lanes x 16 bytes: steps 0 and 1, then steps 2 and 3; a step is 8 bytes, the fragment's numbers in
//         order, each code + 128: weight = scale * (byte - 128). Then the scales, as above.
//   f16   4 x 32 lanes x 16 bytes: a step each, the fragment's numbers in order.
//
// Rows are filled up to a multiple of 128 and columns to a multiple of 64, with zeros (scale 0).

constexpr int kTileRows = 16;
constexpr int kChunkColumns = 64;
constexpr int kRowPadding = 128;

/// Chunks of so many columns.
CHATGLM_HD constexpr int32_t chunks_of(int32_t columns) { return (columns + kChunkColumns - 1) / kChunkColumns; }

CHATGLM_HD constexpr int code_bytes(DataType type) {  // of a block
  return type == DataType::q4_0 ? 512 : type == DataType::q8_0 ? 1024 : 2048;
}
CHATGLM_HD constexpr int block_bytes(DataType type) { return code_bytes(type) + (type == DataType::f16 ? 0 : 64); }

/// The type that a tensor has on the GPU: f16 for all floating-point types.
constexpr DataType packed_type(DataType type) {
  return type == DataType::q4_0 || type == DataType::q8_0 ? type : DataType::f16;
}

/// A matrix (rows, columns) in blocks.
struct PackedMatrix {
  DataType type = DataType::f16;  // f16, q8_0 or q4_0
  int32_t rows = 0;               // of the model; packed ones: 16 * row_tiles
  int32_t columns = 0;
  int32_t row_tiles = 0;  // a multiple of 8
  int32_t chunks = 0;
  bool gate_up = false;           // the rows are those of ffn_up, reordered: see source_row
  const uint8_t* data = nullptr;  // (row_tiles, chunks, block_bytes), device memory

  CHATGLM_HD int64_t bytes() const { return static_cast<int64_t>(row_tiles) * chunks * block_bytes(type); }
};

/// The shape of a packed matrix, still without data.
inline PackedMatrix packed_shape(DataType type, int64_t rows, int64_t columns, bool gate_up) {
  PackedMatrix m;
  m.type = packed_type(type);
  m.rows = static_cast<int32_t>(rows);
  m.columns = static_cast<int32_t>(columns);
  m.row_tiles = static_cast<int32_t>((rows + kRowPadding - 1) / kRowPadding * (kRowPadding / kTileRows));
  m.chunks = chunks_of(m.columns);
  m.gate_up = gate_up;
  return m;
}

/// The model's row behind a packed row, or -1 for filling. In ffn_up each tile has 8 rows of the gate and below them
/// the 8 rows that they gate, so that both lie in one lane's registers.
CHATGLM_HD inline int32_t source_row(bool gate_up, int32_t rows, int32_t packed_row) {
  if (!gate_up) return packed_row < rows ? packed_row : -1;
  const int32_t ffn = rows / 2, in_tile = packed_row % kTileRows;
  const int32_t i = packed_row / kTileRows * 8 + in_tile % 8;
  if (i >= ffn) return -1;
  return in_tile < 8 ? i : ffn + i;
}

// --- Activations: f16 (chunks, stride, 64): for each chunk of 64 columns the tokens' rows of 128 bytes, whose 16-byte
// pieces are swapped about (piece ^ token % 8): wgmma's 128-byte swizzle, with which ldmatrix, too, reads without bank
// conflicts. A tile of tokens of one chunk is one contiguous run of bytes. Columns beyond the matrix's are zero and
// never written.

/// The least stride of so many tokens: a multiple of 8, for the swizzle.
CHATGLM_HD constexpr int32_t least_stride(int32_t tokens) { return (tokens + 7) / 8 * 8; }

/// Tiles of tokens are read up to so many tokens past the last one, into memory that must be there.
constexpr int32_t kTokenSlack = 128;

/// The stride of activations that have this slack in every chunk.
CHATGLM_HD constexpr int32_t stride_with_slack(int32_t tokens) { return least_stride(tokens) + kTokenSlack; }

/// Numbers in the activations of so many columns.
CHATGLM_HD constexpr int64_t activation_count(int32_t columns, int32_t stride) {
  return int64_t{chunks_of(columns)} * stride * kChunkColumns;
}

CHATGLM_HD inline int64_t activation_index(int64_t token, int32_t column, int64_t stride) {
  const int64_t chunk = column / kChunkColumns;
  const int piece = (column % kChunkColumns / 8) ^ static_cast<int>(token % 8);
  return (chunk * stride + token) * kChunkColumns + piece * 8 + column % 8;
}

/// Where in an array (columns / 64, rows, 64) of f16, swizzled like activations and f16 keys and values, 8 columns of a
/// row begin: `piece` is the first of these columns / 8. In bytes.
CHATGLM_HD constexpr int swizzled_offset(int rows, int row, int piece) {
  return (piece / 8 * rows + row) * 128 + ((piece % 8) ^ (row % 8)) * 16;
}

// --- Keys and values. Memory order: (layers, groups, pages) of head pages. D is the head size filled up to 64 or 128;
// the filling is zero.
//
//   f16    keys: (D / 64, 64 tokens, 64 dimensions), the 16-byte pieces of a row swapped about by token % 8;
//          values, transposed: (D, 64 tokens), the 16-byte pieces of a row swapped about by dimension % 8.
//   q8_0   keys: codes (64 tokens, D) int8, scales (64 tokens, D / 32) f16;
//          values, transposed: codes (D, 64 tokens) int8, scales (D / 32, 64 tokens) f16: a block is still 32
//          dimensions of one token.

static_assert(kPageTokens == 64);  // a page's values of a dimension are one row of 128 bytes, which the swizzle needs

enum class KvType : int32_t { f16, q8_0 };

constexpr int kMaxHeadSize = 128;

struct KvCache {
  uint8_t* data = nullptr;
  KvType type = KvType::f16;
  int32_t layers = 0, groups = 0, pages = 0;
  int32_t head_size = 0;
  int32_t padded_head = 0;  // D

  CHATGLM_HD int64_t keys_bytes() const {
    const int64_t n = kPageTokens * padded_head;
    return type == KvType::f16 ? 2 * n : n + n / 32 * 2;
  }
  CHATGLM_HD int64_t head_page_bytes() const { return 2 * keys_bytes(); }
  CHATGLM_HD int64_t bytes() const { return static_cast<int64_t>(layers) * groups * pages * head_page_bytes(); }
  /// The keys of a head page; its values lie keys_bytes() further.
  CHATGLM_HD uint8_t* head_page(int32_t layer, int32_t group, int32_t page) const {
    return data + ((static_cast<int64_t>(layer) * groups + group) * pages + page) * head_page_bytes();
  }
};

CHATGLM_HD constexpr int padded_head_size(int head_size) { return head_size <= 64 ? 64 : 128; }

// Indexes of numbers (f16: halves; q8_0: codes) from the start of a head page's keys or values.
CHATGLM_HD inline int key_index(KvType type, int padded_head, int token, int dimension) {
  if (type == KvType::q8_0) return token * padded_head + dimension;
  return ((dimension / 64) * kPageTokens + token) * 64 + (((dimension % 64 / 8) ^ (token % 8)) * 8) + dimension % 8;
}
CHATGLM_HD inline int value_index(KvType type, int token, int dimension) {
  if (type == KvType::q8_0) return dimension * kPageTokens + token;
  return dimension * kPageTokens + (((token / 8) ^ (dimension % 8)) * 8) + token % 8;
}
// q8_0: indexes of f16 scales, which lie behind the 64 * D codes.
CHATGLM_HD inline int key_scale_index(int padded_head, int token, int dimension) {
  return token * (padded_head / 32) + dimension / 32;
}
CHATGLM_HD inline int value_scale_index(int token, int dimension) { return dimension / 32 * kPageTokens + token; }

}  // namespace chatglm::cuda
