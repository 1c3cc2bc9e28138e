import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TensorType } from '../lib/addon/native';
import { ggufMetadata } from '../lib/checkpoint/gguf/metadata';
import { encodeHeader, type GgufTensor } from '../lib/checkpoint/gguf/writer';
import { openCheckpoint, readTokenizer } from '../lib/checkpoint/open';
import { tensorLayout } from '../lib/checkpoint/tensor-table';
import type { ModelConfig } from '../lib/checkpoint/types';
import { temporaryDirectory } from './support/checkpoints';
import { smallConfig, smallTokenizer, writeSmallGguf } from './support/small-checkpoints';

const directory = temporaryDirectory();
afterAll(() => directory.remove());
const path = join(directory.path, 'x.gguf');

async function refusal(message: RegExp) {
  await expect(openCheckpoint(path)).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT_INVALID',
    message: expect.stringMatching(message),
  });
}

interface Header {
  config?: ModelConfig;
  metadata?(entries: Buffer[]): Buffer[];
  tensors?(tensors: GgufTensor[]): GgufTensor[];
  type?: TensorType;
}

/** Writes a file of the header, with room for all tensors. */
function write({ config = smallConfig, metadata = (all) => all, tensors = (all) => all, type = 'f16' }: Header) {
  const layout = tensorLayout(config).map(({ name, shape }): GgufTensor => {
    return { name, shape, type: shape.length === 1 ? 'f32' : type };
  });
  const header = encodeHeader(metadata(ggufMetadata(config, smallTokenizer, 'f16')), tensors(layout));
  writeFileSync(path, Buffer.concat([header, Buffer.alloc(1 << 20)]));
}

/** A copy of the entries with the one of the given key replaced, or left out. */
function replaced(key: string, value?: (encoded: Buffer) => Buffer) {
  return (entries: Buffer[]) =>
    entries.flatMap((entry) => {
      if (entry.toString('utf8', 8, 8 + key.length) !== key) return [entry];
      return value === undefined ? [] : [value(Buffer.from(entry))];
    });
}

test.each(['f32', 'f16', 'bf16', 'q8_0', 'q4_0'] as const)('matrices of type %s', async (type) => {
  writeSmallGguf(path, { type });
  const checkpoint = await openCheckpoint(path);
  expect(checkpoint.config).toEqual(smallConfig);
  expect(checkpoint.tokenizer).toEqual(smallTokenizer);
  expect(new Set(checkpoint.tensors.map((tensor) => tensor.type))).toEqual(new Set(['f32', type]));
  expect(checkpoint.metadata['chatglm.block_count']).toBe(1);
  expect(checkpoint.metadata).not.toHaveProperty(['tokenizer.ggml.tokens']);
});

test.each(['q4_1', 'q5_0', 'q5_1'] as const)('matrices of type %s', async (type) => {
  write({ type });
  expect((await openCheckpoint(path)).tensors[0]?.type).toBe(type);
});

test.each(['q4_k', 'q5_k', 'q6_k'] as const)('type %s wants rows of 256', async (type) => {
  const config = { ...smallConfig, heads: 16, headSize: 16, hiddenSize: 256, ffnHiddenSize: 256 };
  write({ config, type });
  expect((await openCheckpoint(path)).tensors[0]?.type).toBe(type);
});

test('rope scaling and family are read back', async () => {
  const config = { ...smallConfig, family: 'chatglm2', ropeScale: 4 } as const;
  write({ config });
  expect((await openCheckpoint(path)).config).toEqual(config);
});

describe('the family of a file without our key', () => {
  const withoutKey = replaced('chatglm.family');
  test('is chatglm3 with role tokens, else chatglm2', async () => {
    write({ metadata: withoutKey });
    expect((await openCheckpoint(path)).config.family).toBe('chatglm3');
    expect((await readTokenizer(path)).family).toBe('chatglm3');
    write({ metadata: withoutKey, config: { ...smallConfig, family: 'chatglm2' } });
    expect((await openCheckpoint(path)).config.family).toBe('chatglm2');
    expect((await openCheckpoint(path, { family: 'codegeex2' })).config.family).toBe('codegeex2');
  });

  test('is codegeex2 by name', async () => {
    write({ metadata: withoutKey, config: { ...smallConfig, name: 'CodeGeeX2-6B' } });
    expect((await openCheckpoint(path)).config.family).toBe('codegeex2');
  });
});

test('version 2 is read, 1 and 4 and big-endian are not', async () => {
  const withVersion = (version: Buffer) => {
    writeSmallGguf(path);
    const bytes = readFileSync(path);
    version.copy(bytes, 4);
    writeFileSync(path, bytes);
  };
  withVersion(Buffer.from([2, 0, 0, 0]));
  expect((await openCheckpoint(path)).config).toEqual(smallConfig);
  withVersion(Buffer.from([1, 0, 0, 0]));
  await refusal(/version 1/);
  withVersion(Buffer.from([4, 0, 0, 0]));
  await refusal(/version 4/);
  withVersion(Buffer.from([0, 0, 0, 3]));
  await refusal(/big-endian/);
});

test('without output.weight the embedding is the output matrix', async () => {
  write({ tensors: (all) => all.filter(({ name }) => name !== 'output.weight') });
  const { tensors } = await openCheckpoint(path);
  expect(tensors.at(-1)).toEqual({ ...tensors[0], name: 'output.weight' });
});

test('a file without a tokenizer opens', async () => {
  const keys = ['model', 'pre', 'tokens', 'scores', 'token_type'].map((key) => `tokenizer.ggml.${key}`);
  write({ metadata: (all) => keys.reduce((entries, key) => replaced(key)(entries), all) });
  expect((await openCheckpoint(path)).tokenizer).toBeUndefined();
  await expect(readTokenizer(path)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_INVALID' });
});

describe('metadata', () => {
  /** Writes over the text at the end of an entry. */
  const ending = (text: string) => (entry: Buffer) => {
    entry.write(text, entry.length - Buffer.byteLength(text));
    return entry;
  };

  test.each<[string, (entries: Buffer[]) => Buffer[], RegExp]>([
    ['of another architecture', replaced('general.architecture', ending('chatxyz')), /architecture chatxyz/],
    ['without an architecture', replaced('general.architecture'), /architecture undefined/],
    ['of another tokenizer', replaced('tokenizer.ggml.model', ending('bert!')), /kind bert!/],
    ['of an unknown family', replaced('chatglm.family', ending('chatglm9')), /chatglm\.family is chatglm9/],
    ['without the number of layers', replaced('chatglm.block_count'), /has no chatglm\.block_count/],
    ['with a key twice', (all) => [...all, all[0] ?? Buffer.alloc(0)], /general\.architecture twice/],
    ['without scores', replaced('tokenizer.ggml.scores'), /tokenizer\.ggml\.scores/],
  ])('%s is refused', async (_, metadata, message) => {
    write({ metadata });
    await refusal(message);
  });

  test.each<[string, (entry: Buffer) => void]>([
    ['more items than the file has bytes', (entry) => entry.writeBigUInt64LE(2n ** 40n, entry.length - 4 * 276 - 8)],
    ['2^64 - 1 items', (entry) => entry.writeBigUInt64LE(2n ** 64n - 1n, entry.length - 4 * 276 - 8)],
    ['an unknown item type', (entry) => entry.writeUInt32LE(77, entry.length - 4 * 276 - 12)],
  ])('an array of %s is refused', async (_, change) => {
    const metadata = replaced('tokenizer.ggml.scores', (entry) => {
      change(entry);
      return entry;
    });
    write({ metadata });
    await refusal(/damaged/);
  });
});

describe('a tensor', () => {
  const change = (name: string, changes: Partial<GgufTensor>) => (all: GgufTensor[]) =>
    all.map((tensor) => (tensor.name === name ? { ...tensor, ...changes } : tensor));

  test.each<[string, (all: GgufTensor[]) => GgufTensor[], RegExp]>([
    [
      'that is missing',
      (all) => all.filter(({ name }) => name !== 'blk.0.ffn_up.weight'),
      /blk\.0\.ffn_up\.weight is missing/,
    ],
    ['that occurs twice', (all) => [...all, ...all.slice(0, 1)], /token_embd\.weight occurs twice/],
    [
      'of a wrong shape',
      change('blk.0.ffn_up.weight', { shape: [32, 32] }),
      /has the shape 32 x 32; the config asks for 64 x 32/,
    ],
    ['with three dimensions', change('blk.0.ffn_up.weight', { shape: [64, 32, 1] }), /3 dimensions/],
    [
      'called attn_q',
      (all) => [...all, { name: 'blk.0.attn_q.weight', type: 'f16', shape: [32, 32] }],
      /separate query/,
    ],
    ['that is unknown', (all) => [...all, { name: 'blk.0.x', type: 'f16', shape: [32] }], /not part of a model/],
    ['of quantized norms', change('output_norm.weight', { type: 'q8_0' }), /vector of type q8_0/],
    ['larger than the file', change('output.weight', { shape: [2 ** 40, 32] }), /outside of the file|shape/],
  ])('%s is refused', async (_, tensors, message) => {
    write({ tensors });
    await refusal(message);
  });

  test.each<[string, (bytes: Buffer, info: number) => void, RegExp]>([
    ['rows of no whole blocks', (bytes, info) => bytes.writeBigUInt64LE(33n, info), /no whole blocks of q8_0/],
    ['a dimension of 0', (bytes, info) => bytes.writeBigUInt64LE(0n, info), /shape/],
    ['dimensions that overflow', (bytes, info) => bytes.writeBigUInt64LE(2n ** 52n, info), /shape/],
    ['an unsupported type', (bytes, info) => bytes.writeUInt32LE(10, info + 16), /type Q2_K/],
    ['an unknown type', (bytes, info) => bytes.writeUInt32LE(99, info + 16), /type 99/],
    ['an unaligned offset', (bytes, info) => bytes.writeBigUInt64LE(8n, info + 20), /no multiple of 32/],
    ['an offset past the file', (bytes, info) => bytes.writeBigUInt64LE(2n ** 40n, info + 20), /outside of the file/],
    ['the bytes of another', (bytes, info) => bytes.writeBigUInt64LE(64n, info + 20), /overlaps/],
  ])('with %s is refused', async (_, damage, message) => {
    write({ type: 'q8_0' });
    const bytes = readFileSync(path);
    const name = 'blk.0.ffn_up.weight';
    damage(bytes, bytes.indexOf(name) + name.length + 4);
    writeFileSync(path, bytes);
    await refusal(message);
  });
});

test('other kinds of files are named', async () => {
  writeFileSync(path, 'lmgg and so on');
  await refusal(/GGML file/);
  writeFileSync(path, 'hello');
  await refusal(/no checkpoint/);
  writeFileSync(path, '');
  await refusal(/no checkpoint/);
});
