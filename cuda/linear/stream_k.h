#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "cuda/linear/layout.h"

// How the output tiles of a matrix product are dealt out to the blocks of a grid that fills the GPU once. Each tile
// takes `steps` iterations over the columns. Tiles that come in full waves are done by one block each; the iterations
// of the remaining tiles form one long line, which is cut into equal ranges, one a block, wherever the cuts fall (Osama
// et al., "Stream-K", 2023, arXiv:2301.03598). So all blocks finish together, whatever the number of tiles, and a block
// shares at most two tiles with others: the first and the last of its range.
namespace chatglm::cuda {

struct StreamK {
  int32_t blocks = 0;  // of the grid
  int32_t steps = 0;   // iterations of a tile
  int32_t whole = 0;   // the first so many tiles are done by one block each
  int32_t shared = 0;  // the tiles behind them, whose iterations are dealt out

  // Unsigned, 32 bits: GPUs divide those quickly. split_stream_k sees to it that line() * blocks fits.
  CHATGLM_HD uint32_t line() const { return static_cast<uint32_t>(shared) * static_cast<uint32_t>(steps); }
  /// Where block's range of the line begins; it ends where the next block's begins.
  CHATGLM_HD uint32_t begin(int32_t block) const {
    return line() * static_cast<uint32_t>(block) / static_cast<uint32_t>(blocks);
  }
  /// The block in whose range iteration `i` of the line lies: the last one with begin(block) <= i.
  CHATGLM_HD int32_t owner(uint32_t i) const {
    return static_cast<int32_t>(((i + 1) * static_cast<uint32_t>(blocks) - 1) / line());
  }
};

/// `most_blocks` run at the same time; fewer are used if a block would get less than `least_steps` iterations.
inline StreamK split_stream_k(int32_t tiles, int32_t steps, int32_t most_blocks, int32_t least_steps) {
  StreamK k;
  k.steps = steps;
  const int64_t blocks = most_blocks, waves = (tiles + blocks - 1) / blocks;
  const bool too_long = std::min<int64_t>(tiles, 2 * blocks) * steps * blocks > std::numeric_limits<uint32_t>::max();
  if (int64_t{tiles} * 10 >= waves * blocks * 9 || too_long) {
    // A tenth of the last wave's blocks idle costs less than the adding up of shared tiles.
    k.whole = tiles;
    k.blocks = std::min(tiles, most_blocks);
    return k;
  }
  // One full wave goes into the line with the remainder: ranges between one and two tiles long. Were the line the
  // remainder alone, a tile would be shared by many.
  k.whole = std::max(0, tiles / most_blocks - 1) * most_blocks;
  k.shared = tiles - k.whole;
  const int64_t useful = std::max<int64_t>(tiles, k.line() / static_cast<uint32_t>(std::max(1, least_steps)));
  k.blocks = static_cast<int32_t>(std::min(blocks, useful));  // <= line(): no range is empty
  return k;
}

/// Iterations [first, first + count) of a tile.
struct StreamKSegment {
  int32_t tile = 0, first = 0, count = 0;
};

/// The segments of a block, one after the other: its range of the line, then its whole tiles, so that the parts that
/// other blocks wait for come first and the blocks' last tiles, which lie side by side, share their operands in L2.
class StreamKBlock {
 public:
  CHATGLM_HD StreamKBlock(const StreamK& split, int32_t block)
      : steps_(split.steps),
        whole_(split.whole),
        blocks_(split.blocks),
        next_whole_(block),
        position_(split.shared > 0 ? split.begin(block) : 0),
        end_(split.shared > 0 ? split.begin(block + 1) : 0) {}

  CHATGLM_HD bool next(StreamKSegment& segment) {
    if (position_ < end_) {
      const int32_t tile = static_cast<int32_t>(position_ / static_cast<uint32_t>(steps_));
      const int32_t left = static_cast<int32_t>(end_ - position_);
      segment.tile = whole_ + tile;
      segment.first = static_cast<int32_t>(position_) - tile * steps_;
      segment.count = steps_ - segment.first < left ? steps_ - segment.first : left;
      position_ += static_cast<uint32_t>(segment.count);
      return true;
    }
    if (next_whole_ >= whole_) return false;
    segment.tile = next_whole_;
    segment.first = 0;
    segment.count = steps_;
    next_whole_ += blocks_;
    return true;
  }

 private:
  int32_t steps_, whole_, blocks_, next_whole_;
  uint32_t position_, end_;  // of the line
};

/// Where a tile lies. Tiles that run at the same time have successive numbers; they form a patch of at most 8 tiles of
/// tokens by as many tiles of rows as there are blocks for, so that each operand is fetched from memory by few.
struct TileGrid {
  static constexpr int32_t kBand = 8;

  int32_t row_blocks = 0, token_blocks = 0;

  CHATGLM_HD void place(int32_t tile, int32_t& row_block, int32_t& token_block) const {
    const int32_t band = tile / (kBand * row_blocks);
    const int32_t in_band = tile - band * kBand * row_blocks;
    const int32_t left = token_blocks - band * kBand;
    const int32_t width = left < kBand ? left : kBand;
    row_block = in_band / width;
    token_block = band * kBand + in_band % width;
  }
};

}  // namespace chatglm::cuda
