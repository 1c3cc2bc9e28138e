import { ChatGLMError } from '../../common/errors.js';
import { shown } from '../../common/invalid.js';
import { familyNamed } from '../../families/index.js';
import { PieceType, type TokenizerData } from '../../tokenizer/data.js';
import { pieceTexts } from '../../tokenizer/pieces.js';
import type { ModelConfig } from '../types.js';
import { ARCHITECTURE, FAMILY_KEY, KEYS } from './checkpoint.js';
import { ValueType } from './format.js';
import { ADD_SPACE_PREFIX } from './tokenizer.js';

/** GGUF's number for "mostly this type", llama.h's llama_ftype. */
export const FILE_TYPES = { f32: 0, f16: 1, q4_0: 2, q8_0: 7 } as const;
export type GgufFileType = keyof typeof FILE_TYPES;

const QUANTIZATION_VERSION = 2;
const UNKNOWN_ID = 0;
const END_ID = 2;

/** The metadata that llama.cpp's loader wants of a ChatGLM, and this package's own key for the family. */
export function ggufMetadata(config: ModelConfig, tokenizer: TokenizerData, fileType: GgufFileType): Buffer[] {
  const { tokens, scores, types } = vocabulary(config, tokenizer);
  const entries = [
    string('general.architecture', ARCHITECTURE),
    string('general.type', 'model'),
    string('general.name', config.name),
    u32('general.file_type', FILE_TYPES[fileType]),
    u32('general.quantization_version', QUANTIZATION_VERSION),
    string(FAMILY_KEY, config.family),
    u32(KEYS.contextLength, config.contextLength),
    u32(KEYS.hiddenSize, config.hiddenSize),
    u32(KEYS.ffnHiddenSize, config.ffnHiddenSize),
    u32(KEYS.layers, config.layers),
    u32(KEYS.heads, config.heads),
    u32(KEYS.kvGroups, config.kvGroups),
    f32(KEYS.normEpsilon, config.normEpsilon),
    u32(KEYS.ropeDimension, config.ropeDimension),
    f32(KEYS.ropeBase, config.ropeBase),
  ];
  if (config.ropeScale !== 1) {
    entries.push(string(KEYS.ropeScalingType, 'linear'), f32(KEYS.ropeScale, config.ropeScale));
  }
  entries.push(
    string('tokenizer.ggml.model', 'llama'),
    string('tokenizer.ggml.pre', 'chatglm-spm'),
    array('tokenizer.ggml.tokens', ValueType.string, tokens.length, Buffer.concat(tokens.map(sized))),
    array('tokenizer.ggml.scores', ValueType.f32, scores.length, littleEndian(scores, 'writeFloatLE')),
    array('tokenizer.ggml.token_type', ValueType.i32, types.length, littleEndian(types, 'writeInt32LE')),
    u32('tokenizer.ggml.eos_token_id', END_ID),
    u32('tokenizer.ggml.padding_token_id', UNKNOWN_ID),
    bool('tokenizer.ggml.add_bos_token', false),
    bool(ADD_SPACE_PREFIX, tokenizer.addDummyPrefix),
  );
  const template = familyNamed(config.family).chat?.jinjaTemplate;
  if (template !== undefined) entries.push(string('tokenizer.chat_template', template));
  return entries;
}

/** Pieces, special tokens and padding up to the rows of the embedding, as llama.cpp's converter lays them out. */
function vocabulary(config: ModelConfig, tokenizer: TokenizerData) {
  const tokens = pieceTexts(tokenizer);
  const scores = [...tokenizer.scores];
  const types: number[] = [...tokenizer.types];
  tokens[1] = Buffer.from('<bos>');
  tokens[END_ID] = Buffer.from('<eos>');
  const add = (text: string, type: number) => {
    tokens.push(Buffer.from(text));
    scores.push(0);
    types.push(type);
  };
  for (const token of familyNamed(config.family).specialTokens) add(token, PieceType.control);
  while (tokens.length < config.vocabSize) add(`[PAD${tokens.length}]`, PieceType.unused);
  // llama.cpp ends the process at a file in which two tokens have one text.
  const texts = new Set<string>();
  for (const token of tokens) {
    const text = Buffer.from(token).toString();
    if (texts.has(text)) {
      throw new ChatGLMError(
        'ERR_CHECKPOINT_INVALID',
        `The tokenizer has a piece "${shown(text)}" beside the special token`,
      );
    }
    texts.add(text);
  }
  return { tokens, scores, types };
}

function entry(key: string, type: number, value: Buffer): Buffer {
  return Buffer.concat([sized(Buffer.from(key)), u32Bytes(type), value]);
}

function string(key: string, value: string): Buffer {
  return entry(key, ValueType.string, sized(Buffer.from(value)));
}

function u32(key: string, value: number): Buffer {
  return entry(key, ValueType.u32, u32Bytes(value));
}

function bool(key: string, value: boolean): Buffer {
  return entry(key, ValueType.bool, Buffer.from([value ? 1 : 0]));
}

function f32(key: string, value: number): Buffer {
  return entry(key, ValueType.f32, littleEndian([value], 'writeFloatLE'));
}

function array(key: string, itemType: number, count: number, items: Buffer): Buffer {
  return entry(key, ValueType.array, Buffer.concat([u32Bytes(itemType), u64Bytes(count), items]));
}

/** A string: its length, then its bytes. */
export function sized(bytes: Uint8Array): Buffer {
  return Buffer.concat([u64Bytes(bytes.length), bytes]);
}

export function u32Bytes(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

export function u64Bytes(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function littleEndian(values: readonly number[], write: 'writeFloatLE' | 'writeInt32LE'): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  values.forEach((value, i) => {
    bytes[write](value, 4 * i);
  });
  return bytes;
}
