/** How a tensor's numbers are stored. `int8` and `int4` are THUDM's rows with one scale each; the rest are GGUF's names. */
export type TensorType =
  | 'f32'
  | 'f16'
  | 'bf16'
  | 'q8_0'
  | 'q4_0'
  | 'q4_1'
  | 'q5_0'
  | 'q5_1'
  | 'q4_k'
  | 'q5_k'
  | 'q6_k'
  | 'int8'
  | 'int4';

/** Bytes of a file. `file` indexes {@link Checkpoint.files}. */
export interface FileRange {
  file: number;
  offset: number;
  length: number;
}

/** One tensor as it lies in the checkpoint's files. */
export interface TensorEntry {
  /** GGUF's name, whatever the container: `token_embd.weight`, `blk.0.attn_qkv.bias`, … */
  name: string;
  type: TensorType;
  /** (rows, columns) of a matrix, (length) of a vector. For `int4`, columns counts weights, not bytes. */
  shape: readonly number[];
  data: FileRange;
  /** `int8` and `int4` only: the scales, one a row. */
  scale?: FileRange & { type: 'f32' | 'f16' | 'bf16' };
}

/** The generations of the model that this package knows. CodeGeeX2 is a ChatGLM2 without a chat format. */
export type ModelFamily = 'chatglm2' | 'chatglm3' | 'codegeex2';

/** The shape of a model. Beside each field: its name in THUDM's config.json. */
export interface ModelConfig {
  family: ModelFamily;
  /** A name for people, such as `THUDM/chatglm3-6b`. */
  name: string;
  /** num_layers */
  layers: number;
  /** hidden_size */
  hiddenSize: number;
  /** num_attention_heads */
  heads: number;
  /** multi_query_group_num: heads of the key/value cache. */
  kvGroups: number;
  /** kv_channels */
  headSize: number;
  /** ffn_hidden_size */
  ffnHiddenSize: number;
  /** padded_vocab_size */
  vocabSize: number;
  /** layernorm_epsilon */
  normEpsilon: number;
  /** Dimensions of a head that are rotated: half of headSize. */
  ropeDimension: number;
  /** Base of the rotary frequencies: 10,000, times rope_ratio in ChatGLM3. */
  ropeBase: number;
  /** What positions are divided by before rotation: 1, or rope_ratio in ChatGLM2-32k (position interpolation). */
  ropeScale: number;
  /** seq_length: tokens the model was made for. */
  contextLength: number;
}

/** SentencePiece's piece types, https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto */
export const PieceType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** The pieces of a SentencePiece BPE model, without the special tokens that ChatGLM appends to them. */
export interface TokenizerData {
  /** All pieces' UTF-8 bytes, one after the other. */
  pieces: Uint8Array;
  /** Where each piece begins in `pieces`, and the end of the last: (count + 1). */
  offsets: Uint32Array;
  /** (count) */
  scores: Float32Array;
  /** {@link PieceType} of each: (count). */
  types: Uint8Array;
  /**
   * Whether a space is put before every text, which decoding takes away again: SentencePiece's `add_dummy_prefix`. Of the
   * ChatGLM family only CodeGeeX2's tokenizer.model says no.
   */
  addDummyPrefix: boolean;
}

/** What a checkpoint holds, read without its weights. */
export interface Checkpoint {
  format: 'gguf' | 'safetensors' | 'torch';
  /** The file or directory that was opened. */
  path: string;
  /** Absolute paths of the files that hold weights. */
  files: string[];
  config: ModelConfig;
  /** All tensors of the model, each exactly once and of the right shape. */
  tensors: TensorEntry[];
  /** Absent when a directory holds no tokenizer.model: such a model takes and gives token ids only. */
  tokenizer: TokenizerData | undefined;
  /** config.json, or GGUF's metadata without the arrays of the tokenizer. */
  metadata: Readonly<Record<string, unknown>>;
}
