import type { FileRange, ModelShape, TensorType } from '../addon/native.js';
import type { ModelFamily } from '../families/index.js';
import type { TokenizerData } from '../tokenizer/data.js';

/** One tensor as it lies in the checkpoint's files. */
export interface TensorEntry {
  /** GGUF's name, whatever the container: `token_embd.weight`, `blk.0.attn_qkv.bias`, … */
  name: string;
  /** How its numbers are stored. */
  type: TensorType;
  /** (rows, columns) of a matrix, (length) of a vector. For `int4`, columns counts weights, not bytes. */
  shape: readonly number[];
  /** Where its numbers lie. */
  data: FileRange;
  /** `int8` and `int4` only: the scales, one a row. */
  scale?: FileRange & { type: 'f32' | 'f16' | 'bf16' };
}

/** What is known of a model without its weights. */
export interface ModelConfig extends ModelShape {
  /** What decides the special tokens, the meaning of rope_ratio and the format of prompts. */
  family: ModelFamily;
  /** A name for people, such as `THUDM/chatglm3-6b`. */
  name: string;
  /** seq_length: tokens the model was made for. */
  contextLength: number;
}

/** What a checkpoint holds, read without its weights. */
export interface Checkpoint {
  /** What holds the weights: a GGUF file, safetensors, or files of torch.save(). */
  format: 'gguf' | 'safetensors' | 'torch';
  /** The file or directory that was opened. */
  path: string;
  /** Absolute paths of the files that hold weights. */
  files: string[];
  /** The model's shape, family and name. */
  config: ModelConfig;
  /** All tensors of the model, each exactly once and of the right shape. */
  tensors: TensorEntry[];
  /** Absent when a directory holds no tokenizer.model: such a model takes and gives token ids only. */
  tokenizer: TokenizerData | undefined;
  /** config.json, or GGUF's metadata without the arrays of the tokenizer. */
  metadata: Readonly<Record<string, unknown>>;
}
