import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ggufMetadata } from '../../lib/checkpoint/gguf/metadata';
import { encodeHeader } from '../../lib/checkpoint/gguf/writer';
import { type TensorSpec, tensorLayout } from '../../lib/checkpoint/tensor-table';
import { rowsAndColumns, TYPE_LAYOUTS, tensorBytes } from '../../lib/checkpoint/tensor-types';
import type { ModelConfig } from '../../lib/checkpoint/types';
import type { TokenizerData } from '../../lib/tokenizer/data';
import { pieceTexts } from '../../lib/tokenizer/pieces';
import { syntheticTokenizer } from '../../lib/tokenizer/synthetic';
import { dtypeBytes, torchFile } from './torch-file';

// The smallest valid checkpoints: headers of a few kB, so that a test can damage every byte of them.

export const smallConfig: ModelConfig = {
  family: 'chatglm3',
  name: 'small',
  layers: 1,
  hiddenSize: 32,
  heads: 2,
  kvGroups: 1,
  headSize: 16,
  ffnHiddenSize: 32,
  vocabSize: 276,
  normEpsilon: 1e-5,
  ropeDimension: 8,
  ropeBase: 10_000,
  ropeScale: 1,
  contextLength: 64,
};

const SMALL_PIECES = 266;

export const smallTokenizer: TokenizerData = syntheticTokenizer(SMALL_PIECES);

/** A tensor for a safetensors or torch file. */
export interface TensorBytes {
  name: string;
  dtype: string;
  shape: readonly number[];
  data: Uint8Array;
}

export interface SmallGgufOptions {
  config?: ModelConfig;
  /** Of the matrices. */
  type?: keyof typeof TYPE_LAYOUTS;
}

export interface SmallFile {
  path: string;
  /** Everything before this is header. */
  headerBytes: number;
}

/** Writes a GGUF file that loads and generates. */
export function writeSmallGguf(path: string, { config = smallConfig, type = 'f16' }: SmallGgufOptions = {}): SmallFile {
  const tensors = tensorLayout(config).map((spec) => {
    return { ...spec, type: spec.shape.length === 1 ? ('f32' as const) : type };
  });
  const fileType = type === 'f32' || type === 'q8_0' || type === 'q4_0' ? type : 'f16';
  const header = encodeHeader(ggufMetadata(config, smallTokenizer, fileType), tensors);
  const parts = [header];
  for (const tensor of tensors) {
    const data = randomBytes(tensor.type, tensor);
    parts.push(data, Buffer.alloc((32 - (data.length % 32)) % 32));
  }
  writeFileSync(path, Buffer.concat(parts));
  return { path, headerBytes: header.length };
}

export interface SmallDirectoryOptions {
  config?: ModelConfig;
  container?: 'safetensors' | 'torch';
  shards?: number;
  quantizationBit?: 0 | 4 | 8;
  /** Default: 'transformer.' */
  prefix?: string;
  /** Merged into config.json. */
  json?: Readonly<Record<string, unknown>>;
  /** Changes the tensors before they are written. */
  tensors?: ((tensors: TensorBytes[]) => TensorBytes[]) | undefined;
  /** Default: true, a `tokenizer.model` of `smallTokenizer`. */
  tokenizer?: boolean | TokenizerData;
}

/** Writes a Hugging Face directory as THUDM publishes it; it loads and generates. Returns its files of weights. */
export function writeSmallDirectory(directory: string, options: SmallDirectoryOptions = {}): string[] {
  const { config = smallConfig, container = 'safetensors', shards = 1, tokenizer = true } = options;
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, 'config.json'), JSON.stringify(configJson(config, options)));
  if (tokenizer) {
    const data = tokenizer === true ? smallTokenizer : tokenizer;
    writeFileSync(join(directory, 'tokenizer.model'), tokenizerModel(data));
  }
  const all = thudmTensors(config, options);
  const tensors = options.tensors?.(all) ?? all;
  const [stem, ending] = container === 'safetensors' ? ['model', 'safetensors'] : ['pytorch_model', 'bin'];
  const encode = container === 'safetensors' ? safetensorsFile : torchFile;
  if (shards === 1) {
    writeFileSync(join(directory, `${stem}.${ending}`), encode(tensors));
    return [join(directory, `${stem}.${ending}`)];
  }
  const weightMap: Record<string, string> = {};
  const files = Array.from({ length: shards }, (_, i) => {
    const number = (value: number) => String(value).padStart(5, '0');
    const file = `${stem}-${number(i + 1)}-of-${number(shards)}.${ending}`;
    const part = tensors.filter((_, at) => at % shards === i);
    for (const { name } of part) weightMap[name] = file;
    writeFileSync(join(directory, file), encode(part));
    return join(directory, file);
  });
  writeFileSync(
    join(directory, `${stem}.${ending}.index.json`),
    JSON.stringify({ metadata: { total_size: 0 }, weight_map: weightMap }),
  );
  return files;
}

export function safetensorsFile(tensors: readonly TensorBytes[]): Buffer {
  let end = 0;
  const entries = tensors.map(({ name, dtype, shape, data }) => {
    end += data.length;
    return [name, { dtype, shape, data_offsets: [end - data.length, end] }] as const;
  });
  return safetensorsBytes(Object.fromEntries(entries), Buffer.concat(tensors.map(({ data }) => data)));
}

/** A safetensors file of any header; `header` may be text that JSON.stringify would not make. */
export function safetensorsBytes(header: unknown, data: Uint8Array): Buffer {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, data]);
}

/** Where a safetensors file's data begins. */
export function safetensorsHeaderBytes(path: string): number {
  return 8 + Number(readFileSync(path).readBigUInt64LE(0));
}

/** A SentencePiece ModelProto of the pieces. */
export function tokenizerModel(
  data: TokenizerData,
  {
    modelType = 2,
    normalizer = protobuf([
      [3, data.addDummyPrefix ? 1 : 0],
      [4, 0],
    ]),
  }: { modelType?: number; normalizer?: Buffer } = {},
): Buffer {
  const pieces = pieceTexts(data).map((text, id) => {
    const score = Buffer.alloc(4);
    score.writeFloatLE(data.scores[id] ?? 0);
    const fields: ProtobufField[] = [
      [1, text],
      [2, { fixed32: score }],
      [3, data.types[id] ?? 1],
    ];
    return [1, protobuf(fields)] as ProtobufField;
  });
  return protobuf([...pieces, [2, protobuf([[3, modelType]])], [3, normalizer]]);
}

export type ProtobufField = [number: number, value: number | Uint8Array | { fixed32: Uint8Array }];

export function protobuf(fields: readonly ProtobufField[]): Buffer {
  return Buffer.concat(
    fields.map(([number, value]) => {
      if (typeof value === 'number') return Buffer.concat([varint(number * 8), varint(value)]);
      if (value instanceof Uint8Array) return Buffer.concat([varint(number * 8 + 2), varint(value.length), value]);
      return Buffer.concat([varint(number * 8 + 5), value.fixed32]);
    }),
  );
}

function configJson(config: ModelConfig, { quantizationBit = 0, json = {} }: SmallDirectoryOptions) {
  const chatglm3 = config.family === 'chatglm3';
  return {
    _name_or_path: `THUDM/${config.family}-6b`,
    model_type: 'chatglm',
    num_layers: config.layers,
    hidden_size: config.hiddenSize,
    num_attention_heads: config.heads,
    multi_query_group_num: config.kvGroups,
    kv_channels: config.headSize,
    ffn_hidden_size: config.ffnHiddenSize,
    padded_vocab_size: config.vocabSize,
    layernorm_epsilon: config.normEpsilon,
    seq_length: config.contextLength,
    rope_ratio: chatglm3 ? config.ropeBase / 10_000 : config.ropeScale,
    rmsnorm: true,
    post_layer_norm: true,
    add_bias_linear: false,
    add_qkv_bias: true,
    multi_query_attention: true,
    original_rope: true,
    apply_residual_connection_post_layernorm: false,
    tie_word_embeddings: false,
    ...(quantizationBit === 0 ? {} : { quantization_bit: quantizationBit }),
    ...json,
  };
}

function thudmTensors(config: ModelConfig, options: SmallDirectoryOptions): TensorBytes[] {
  const { quantizationBit = 0, prefix = 'transformer.' } = options;
  const half = (name: string, spec: Pick<TensorSpec, 'name' | 'shape' | 'role'>): TensorBytes => {
    return { name, dtype: 'F16', shape: spec.shape, data: randomBytes('f16', spec) };
  };
  const inverseFrequencies = new Uint8Array(config.ropeDimension);
  const tensors: TensorBytes[] = [
    {
      name: `${prefix}rotary_pos_emb.inv_freq`,
      dtype: 'F16',
      shape: [inverseFrequencies.length / dtypeBytes('F16')],
      data: inverseFrequencies,
    },
  ];
  for (const spec of tensorLayout(config)) {
    const name = prefix + spec.thudmName;
    if (spec.role !== 'linear' || quantizationBit === 0) {
      tensors.push(half(name, spec));
      continue;
    }
    const [rows, columns] = rowsAndColumns(spec.shape);
    const shape = [rows, quantizationBit === 4 ? columns / 2 : columns];
    tensors.push({ name, dtype: 'I8', shape, data: randomBytes(quantizationBit === 4 ? 'int4' : 'int8', spec) });
    tensors.push(half(`${name}_scale`, { name: `${spec.name}_scale`, shape: [rows], role: 'norm' }));
  }
  return tensors;
}

/** Numbers of moderate size: the same for the same tensor. */
function randomBytes(
  type: keyof typeof TYPE_LAYOUTS,
  { name, shape, role }: Pick<TensorSpec, 'name' | 'shape' | 'role'>,
) {
  const [rows, columns] = rowsAndColumns(shape);
  const bytes = Buffer.alloc(tensorBytes(type, rows, columns) ?? 0);
  const random = randomWords(name);
  for (let i = 0; i < bytes.length; i++) bytes[i] = random() & 0xff;
  // From 1/16 to 1, or about 1 for norms; either sign for the rest.
  const exponent = () => (role === 'norm' ? 0 : random() % 4);
  const sign = () => (role === 'norm' ? 0 : random() & 1);
  if (type === 'f16') {
    for (let i = 0; i < bytes.length; i += 2) {
      bytes.writeUInt16LE((sign() << 15) | ((15 - exponent()) << 10) | (random() & 0x1ff), i);
    }
  } else if (type === 'bf16') {
    for (let i = 0; i < bytes.length; i += 2) {
      bytes.writeUInt16LE((sign() << 15) | ((127 - exponent()) << 7) | (random() & 0x3f), i);
    }
  } else if (type === 'f32') {
    for (let i = 0; i < bytes.length; i += 4) {
      bytes.writeFloatLE((sign() === 0 ? 1 : -1) * 2 ** -exponent() * (1 + (random() % 256) / 512), i);
    }
  } else if (type !== 'int8' && type !== 'int4') {
    // 2^-4 for codes of few bits, less for larger ones and for those that have scales of their own.
    const scale = { q8_0: 0x1400, q4_k: 0x1000, q5_k: 0x0c00, q6_k: 0x0800 }[type as string] ?? 0x2c00;
    const at = type === 'q6_k' ? [208] : /^q._(1|k)$/.test(type) ? [0, 2] : [0];
    for (let i = 0; i < bytes.length; i += TYPE_LAYOUTS[type].bytes) {
      for (const place of at) bytes.writeUInt16LE(scale, i + place);
    }
  }
  return bytes;
}

function randomWords(seed: string): () => number {
  let state = [...seed].reduce((hash, letter) => (Math.imul(hash, 31) + letter.charCodeAt(0)) | 0, 1);
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return (state >>> 8) & 0xffff;
  };
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return Buffer.from([...bytes, rest]);
    bytes.push((rest % 128) + 128);
  }
}
