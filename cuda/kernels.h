#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/linear/layout.h"

// The kernels that the backend calls. All functions enqueue kernels in a stream and return; none allocates or waits, so
// all can be captured into a graph. They throw Error("ERR_INTERNAL") if a launch is refused.
namespace chatglm::cuda {

/// Which kernels this GPU gets, and how many of its multiprocessors there are to fill.
struct Device {
  int32_t index = 0;
  int32_t multiprocessors = 0;
  int32_t arch = 0;         // __CUDA_ARCH__ of the code that runs: 750, 800, ...; not the GPU's own, which may be newer
  bool wgmma = false;       // the code that runs was compiled for sm_90a
  size_t shared_bytes = 0;  // most dynamic shared memory of a block
  int32_t clusters_of_8 = 0;  // of 8 blocks, one block a multiprocessor: so many run at a time; 0 before sm_90
};

struct Launch {
  cudaStream_t stream = nullptr;
  const Device* device = nullptr;
};

/// f16 activations, in the order that layout.h describes. Writers clamp to +-65504; NaN stays NaN.
struct Activations {
  half* data = nullptr;
  int32_t stride = 0;  // tokens: a multiple of 8, beyond which kTokenSlack more may be read
};

/// The tokens of a batch, in device memory.
struct Batch {
  int32_t tokens = 0;
  const int32_t* ids = nullptr;        // (tokens)
  const int32_t* positions = nullptr;  // (tokens)
  const int32_t* tables = nullptr;     // (tokens): where in `pages` the page table of the token's sequence begins
  const int32_t* pages = nullptr;      // page tables, one after the other
  const float2* rotations = nullptr;   // (tokens, rope_dimension / 2): cosine and sine; written by embed()
};

/// What a linear layer does with its result y (tokens, rows).
enum class Epilogue : int32_t {
  store,   // y[t][r] = x . w
  add,     // y[t][r] += x . w
  swiglu,  // activated[t][i] = silu(gate_i) * up_i, for a matrix with gate_up
};
struct LinearOutput {
  Epilogue epilogue = Epilogue::store;
  float* y = nullptr;  // (tokens, y_stride): store and add
  int64_t y_stride = 0;
  Activations activated;  // swiglu
};

/// A linear layer on at most kGemvTokens tokens: bound by the reading of the weights.
constexpr int32_t kGemvTokens = 8;
struct GemvInput {
  // Either activations (f16),
  Activations x;
  // or rows of floats that are normalized on the way: x / sqrt(mean(x^2) + epsilon) * norm.
  const float* residual = nullptr;  // (some tokens, columns)
  const float* norm = nullptr;      // (columns)
  const int32_t* gather = nullptr;  // (tokens): the residual's row of each token; null: 0, 1, 2, ...
  float epsilon = 0;
};
/// Whether gemv() can compute this: the activations of so many tokens must fit into shared memory.
bool gemv_fits(const Device& device, const PackedMatrix& weights, int32_t tokens);
void gemv(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const GemvInput& input,
          const LinearOutput& output);

/// A linear layer on any number of tokens, on tensor cores: wgmma where the device has it, else mma.sync.
struct GemmWorkspace {
  float* partial = nullptr;      // gemm_workspace_bytes()
  uint32_t* counters = nullptr;  // (kGemmCounters), zero before the first use; every launch leaves zeros
};
constexpr int32_t kGemmCounters = 65536;
size_t gemm_workspace_bytes(const Device& device);
void gemm(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
          const LinearOutput& output, const GemmWorkspace& workspace);
// The two kernels among which gemm chooses, for tests.
void gemm_mma(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
              const LinearOutput& output, const GemmWorkspace& workspace);
void gemm_wgmma(const Launch& launch, const PackedMatrix& weights, int32_t tokens, const Activations& x,
                const LinearOutput& output, const GemmWorkspace& workspace);
size_t gemm_mma_workspace_bytes(const Device& device);
size_t gemm_wgmma_workspace_bytes(const Device& device);

/// y[t] = x[gather[t]] / sqrt(mean(x^2) + epsilon) * weight. gather may be null: 0, 1, 2, ...
void rms_norm(const Launch& launch, const float* x, const float* weight, float epsilon, int32_t columns, int32_t tokens,
              const int32_t* gather, const Activations& y);

/// Rows of the embedding as the model file has them (f32, f16, bf16, q8_0 or q4_0; (vocabulary, columns)) to
/// residual (tokens, columns) f32; and the rotations of the tokens' positions:
/// angle = position / scale / base^(2j / dimension), j = 0 .. dimension / 2 - 1.
struct EmbeddingTable {
  DataType type = DataType::f16;
  const uint8_t* data = nullptr;
  int32_t columns = 0;
};
struct Rope {
  int32_t dimension = 0;
  const float* frequencies = nullptr;  // (dimension / 2), device memory: 1 / base^(2j / dimension)
  float scale = 1;
};
void embed(const Launch& launch, const EmbeddingTable& table, const Rope& rope, const Batch& batch, float* residual,
           float2* rotations);

/// A layer's product of the QKV matrix, not yet with its bias: all query heads, then the key heads, then the value
/// heads.
struct QkvRows {
  const float* data = nullptr;  // (tokens, (heads + 2 groups) * head_size)
  const float* bias = nullptr;  // ((heads + 2 groups) * head_size)
  int32_t heads = 0, groups = 0, head_size = 0;
  int32_t rope_dimension = 0;
};

/// Attention of tokens of which each is the last of its sequence (batch.tokens of them): adds the bias, rotates,
/// appends key and value to the cache, attends, and writes (tokens, heads * head_size) to `out`. The keys are split
/// among blocks; the last block of a token and group to finish merges them.
struct AttendDecodeWorkspace {
  float* partial = nullptr;      // attend_decode_workspace_bytes()
  uint32_t* counters = nullptr;  // attend_decode_counters(), zero before the first use; every launch leaves zeros
};
int32_t attend_decode_counters(int32_t heads, int32_t groups, int32_t max_tokens);
size_t attend_decode_workspace_bytes(const Device& device, int32_t heads, int32_t groups, int32_t head_size,
                                     int32_t max_tokens);
/// `read_ahead`: the batch's positions and page tables, and the keys and values of earlier positions, may be read while
/// the kernel before is still running, which hides their latency: nothing that is launched since the host last waited
/// for the stream writes them, but copies, memsets and kernels that do not let the next one start.
void attend_decode(const Launch& launch, const QkvRows& qkv, const Batch& batch, const KvCache& cache, int32_t layer,
                   const Activations& out, const AttendDecodeWorkspace& workspace, bool read_ahead = false);

/// For the tokens [first, first + count) of a batch, any mix of sequences: adds the bias, rotates, appends keys and
/// values to the cache, and writes the queries, times log2(e) / sqrt(head_size) (so that a weight of the softmax is
/// 2^(score - largest), with nothing to multiply), as f16
/// (tokens of the batch, heads, padded head size) with zeros behind head_size: token t of the batch is row t, so rows
/// outside of [first, first + count) are left alone.
void rotate_append(const Launch& launch, const QkvRows& qkv, const Batch& batch, int32_t first, int32_t count,
                   const KvCache& cache, int32_t layer, half* queries);

/// Causal attention of a segment: tokens [first, first + count) of the batch, which are the positions
/// [position, position + count) of one sequence, over all keys of that sequence up to each token's own. Run after
/// rotate_append; `queries` is the array that it wrote, (tokens of the batch, heads, padded head size).
struct PrefillSegment {
  int32_t first = 0, count = 0, position = 0;
  int32_t table = 0;  // where in batch.pages its page table begins
};
void attend_prefill(const Launch& launch, const half* queries, int32_t heads, const Batch& batch,
                    const PrefillSegment& segment, const KvCache& cache, int32_t layer, const Activations& out);
// The two kernels among which attend_prefill chooses, for tests. The second one needs device.wgmma, f16 and a head size
// above 64: attend_prefill_wgmma_fits.
void attend_prefill_mma(const Launch& launch, const half* queries, int32_t heads, const Batch& batch,
                        const PrefillSegment& segment, const KvCache& cache, int32_t layer, const Activations& out);
void attend_prefill_wgmma(const Launch& launch, const half* queries, int32_t heads, const Batch& batch,
                          const PrefillSegment& segment, const KvCache& cache, int32_t layer, const Activations& out);
bool attend_prefill_wgmma_fits(const Device& device, const KvCache& cache);

/// Orders rows [first_row, first_row + rows) of a matrix as the model file has them (type, row_bytes each, at `source`
/// in device memory) into `target`, whose shape is packed_shape's. Rows of gate_up matrices go where source_row says.
/// Filling is not written: zero the memory first. `overflow` is set to 1 if a number is too large for f16.
void pack(const Launch& launch, DataType source_type, const uint8_t* source, int64_t row_bytes, int32_t first_row,
          int32_t rows, const PackedMatrix& target, uint8_t* target_data, uint32_t* overflow);

}  // namespace chatglm::cuda
