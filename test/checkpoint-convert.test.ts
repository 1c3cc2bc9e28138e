import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { convertCheckpoint } from '../lib/checkpoint/convert';
import { writeGguf } from '../lib/checkpoint/gguf/writer';
import { openCheckpoint } from '../lib/checkpoint/open';
import { type SyntheticType, synthesize, syntheticConfig, syntheticTensors } from '../lib/checkpoint/synth';
import type { Checkpoint } from '../lib/checkpoint/types';
import { loadTokenizer } from '../lib/model/load';
import { temporaryDirectory } from './support/checkpoints';
import { smallConfig, smallTokenizer, writeSmallDirectory, writeSmallGguf } from './support/small-checkpoints';

const directory = temporaryDirectory();
afterAll(() => directory.remove());

let count = 0;
const fresh = (ending = '') => join(directory.path, `${count++}${ending}`);

function bytesOf(checkpoint: Checkpoint, name: string, part: 'data' | 'scale' = 'data'): Buffer {
  const range = checkpoint.tensors.find((tensor) => tensor.name === name)?.[part];
  if (range === undefined) throw new Error(`no ${part} of ${name}`);
  return readFileSync(checkpoint.files[range.file] ?? '').subarray(range.offset, range.offset + range.length);
}

const typeOf = (checkpoint: Checkpoint, name: string) =>
  checkpoint.tensors.find((tensor) => tensor.name === name)?.type;
const MATRIX = 'blk.0.ffn_up.weight';

describe('convert', () => {
  test.each(['f16', 'q8_0', 'q4_0'] as const)('a directory to %s', async (type) => {
    const source = fresh();
    writeSmallDirectory(source, { json: { _name_or_path: 'THUDM/chatglm3-6b' } });
    const target = fresh('.gguf');
    const written = await convertCheckpoint(source, target, { type });
    const [before, after] = [await openCheckpoint(source), await openCheckpoint(target)];
    expect(written).toEqual({ path: target, bytes: readFileSync(target).length });
    expect(after.config).toEqual(before.config);
    expect(after.tokenizer).toEqual(before.tokenizer);
    expect(after.tensors.map((tensor) => tensor.type)).toEqual(
      after.tensors.map(({ shape }) => (shape.length === 1 ? 'f32' : type)),
    );
    if (type === 'f16') expect(bytesOf(after, MATRIX)).toEqual(bytesOf(before, MATRIX));
  });

  test('keeps a tokenizer without a dummy prefix', async () => {
    const tokenizer = { ...smallTokenizer, addDummyPrefix: false };
    const source = fresh();
    writeSmallDirectory(source, { tokenizer });
    const [target, again] = [fresh('.gguf'), fresh('.gguf')];
    await convertCheckpoint(source, target, { type: 'q8_0' });
    await convertCheckpoint(target, again, { type: 'q4_0' });
    for (const path of [source, target, again]) expect((await openCheckpoint(path)).tokenizer).toEqual(tokenizer);
    expect((await openCheckpoint(target)).metadata).toMatchObject({ 'tokenizer.ggml.add_space_prefix': false });
    const loaded = await loadTokenizer(target);
    expect(loaded.decode(loaded.encode(' a b'))).toBe(' a b');
    expect(loaded.encode('')).toEqual([]);
  });

  test('keeps family and rope scaling of a ChatGLM2-32k', async () => {
    const source = fresh();
    const config = { ...smallConfig, family: 'chatglm2', ropeScale: 8 } as const;
    writeSmallDirectory(source, { config });
    const target = fresh('.gguf');
    await convertCheckpoint(await openCheckpoint(source), target, { type: 'q8_0' });
    expect((await openCheckpoint(target)).config).toMatchObject({ family: 'chatglm2', ropeScale: 8, ropeBase: 10_000 });
  });

  test('bfloat16 norms become exact f32', async () => {
    const source = fresh('.gguf');
    writeSmallGguf(source, { type: 'bf16' });
    const target = fresh('.gguf');
    await convertCheckpoint(source, target, { type: 'q4_0' });
    const [before, after] = [await openCheckpoint(source), await openCheckpoint(target)];
    expect(bytesOf(after, 'output_norm.weight')).toEqual(bytesOf(before, 'output_norm.weight'));
    expect(typeOf(after, MATRIX)).toBe('q4_0');
  });

  test.each([
    [4, 'q4_0', 'q4_0'],
    [4, 'q8_0', 'q4_0'],
    [4, 'f16', 'f16'],
    [8, 'q8_0', 'q8_0'],
    [8, 'q4_0', 'q4_0'],
    [8, 'f16', 'f16'],
  ] as const)('%i-bit rows to %s become %s', async (quantizationBit, type, expected) => {
    const source = fresh();
    writeSmallDirectory(source, { quantizationBit });
    const target = fresh('.gguf');
    await convertCheckpoint(source, target, { type });
    const after = await openCheckpoint(target);
    expect(typeOf(after, MATRIX)).toBe(expected);
    expect(typeOf(after, 'token_embd.weight')).toBe(type);
  });

  test('int4 codes and scales are carried into q4_0 as they are', async () => {
    const source = fresh();
    writeSmallDirectory(source, { quantizationBit: 4 });
    const target = fresh('.gguf');
    await convertCheckpoint(source, target, { type: 'q4_0' });
    const [before, after] = [await openCheckpoint(source), await openCheckpoint(target)];
    const codes = bytesOf(before, MATRIX); // (64, 32 / 2), the even column in the high half
    const scales = bytesOf(before, MATRIX, 'scale'); // (64)
    const blocks = bytesOf(after, MATRIX); // (64, 18)
    for (let row = 0; row < 64; row++) {
      const block = blocks.subarray(18 * row, 18 * row + 18);
      expect(block.readUInt16LE(0)).toBe(scales.readUInt16LE(2 * row));
      for (let column = 0; column < 32; column++) {
        const packed = codes[16 * row + (column >> 1)] ?? 0;
        const signed = ((column % 2 === 0 ? packed >> 4 : packed & 15) << 28) >> 28;
        const byte = block[2 + (column % 16)] ?? 0;
        expect((column < 16 ? byte & 15 : byte >> 4) - 8).toBe(signed);
      }
    }
  });

  test('int8 codes and scales are carried into q8_0 as they are', async () => {
    const source = fresh();
    writeSmallDirectory(source, { quantizationBit: 8 });
    const target = fresh('.gguf');
    await convertCheckpoint(source, target, { type: 'q8_0' });
    const [before, after] = [await openCheckpoint(source), await openCheckpoint(target)];
    const blocks = bytesOf(after, MATRIX); // (64, 34)
    for (let row = 0; row < 64; row++) {
      expect(blocks.readUInt16LE(34 * row)).toBe(bytesOf(before, MATRIX, 'scale').readUInt16LE(2 * row));
      const codes = bytesOf(before, MATRIX).subarray(32 * row, 32 * row + 32);
      expect(blocks.subarray(34 * row + 2, 34 * row + 34)).toEqual(codes);
    }
  });

  test('what has the type already is copied', async () => {
    const source = fresh('.gguf');
    writeSmallGguf(source, { type: 'q4_0' });
    const target = fresh('.gguf');
    await convertCheckpoint(source, target, { type: 'q4_0' });
    expect(readFileSync(target)).toEqual(readFileSync(source));
  });

  test('reports progress up to the whole file', async () => {
    const source = fresh('.gguf');
    writeSmallGguf(source);
    const progress: { bytes: number; totalBytes: number }[] = [];
    const { bytes } = await convertCheckpoint(source, fresh('.gguf'), {
      type: 'f16',
      onProgress: (p) => progress.push(p),
    });
    expect(progress.at(-1)).toEqual({ bytes, totalBytes: bytes });
    expect(progress.every((p, i) => p.totalBytes === bytes && p.bytes > (progress[i - 1]?.bytes ?? 0))).toBe(true);
  });

  test('an existing file stays, unless it may be replaced', async () => {
    const source = fresh('.gguf');
    writeSmallGguf(source);
    const target = fresh('.gguf');
    writeFileSync(target, 'mine');
    await expect(convertCheckpoint(source, target, { type: 'f16' })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
    expect(readFileSync(target, 'utf8')).toBe('mine');
    await convertCheckpoint(source, target, { type: 'f16', overwrite: true });
    expect((await openCheckpoint(target)).format).toBe('gguf');
    await convertCheckpoint(target, target, { type: 'q8_0', overwrite: true });
    expect(typeOf(await openCheckpoint(target), MATRIX)).toBe('q8_0');
  });

  const source = () => {
    const path = fresh('.gguf');
    writeSmallGguf(path);
    return path;
  };
  const refused = (target: string, message: RegExp) =>
    expect(convertCheckpoint(source(), target, { type: 'f16', overwrite: true })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });

  test('what is no file is never replaced', async () => {
    const folder = fresh();
    mkdirSync(folder);
    await refused(folder, /is a directory, and stays what it is/);
    if (process.platform === 'win32') return;
    await refused('/dev/null', /is a device/);
    spawnSync('mkfifo', [join(folder, 'pipe')]);
    await refused(join(folder, 'pipe'), /is a named pipe/);
    symlinkSync('/dev/null', join(folder, 'link'));
    await refused(join(folder, 'link'), /is a device/);
    symlinkSync(join(folder, 'nowhere'), join(folder, 'broken'));
    await refused(join(folder, 'broken'), /is a symbolic link to nothing/);
    symlinkSync(join(folder, 'loop'), join(folder, 'loop'));
    await refused(join(folder, 'loop'), /lead back to each other/);
    expect(lstatSync(join(folder, 'broken')).isSymbolicLink()).toBe(true);
    expect(statSync('/dev/null').isCharacterDevice()).toBe(true);
    expect(readdirSync(folder).sort()).toEqual(['broken', 'link', 'loop', 'pipe']);
  });

  test('a link stays one: the file that it leads to is replaced', async () => {
    const [folder, target, link] = [fresh(), fresh('.gguf'), fresh('.gguf')];
    mkdirSync(folder);
    writeFileSync(target, 'old');
    symlinkSync(target, link);
    await expect(convertCheckpoint(source(), link, { type: 'f16' })).rejects.toThrow(/exists already/);
    await convertCheckpoint(source(), link, { type: 'f16', overwrite: true });
    expect(lstatSync(link).isSymbolicLink()).toBe(true);
    expect((await openCheckpoint(target)).format).toBe('gguf');
  });

  test("somebody's file of a similar name stays", async () => {
    const target = fresh('.gguf');
    writeFileSync(`${target}.part`, 'mine');
    await convertCheckpoint(source(), target, { type: 'f16' });
    expect(readFileSync(`${target}.part`, 'utf8')).toBe('mine');
    expect(readdirSync(directory.path).filter((name) => name.startsWith(basename(target)))).toHaveLength(2);
  });

  test.each([false, true])('two at once to one target leave a whole file (overwrite %s)', async (overwrite) => {
    const target = fresh('.gguf');
    const path = source();
    const types = ['f16', 'q8_0'] as const;
    const results = await Promise.allSettled(types.map((type) => convertCheckpoint(path, target, { type, overwrite })));
    const succeeded = results.filter(({ status }) => status === 'fulfilled');
    expect(succeeded).toHaveLength(overwrite ? 2 : 1);
    const type = typeOf(await openCheckpoint(target), MATRIX);
    if (!overwrite) {
      expect(type).toBe(types[results.findIndex(({ status }) => status === 'fulfilled')]);
      const reason = results.find((result) => result.status === 'rejected')?.reason as Error;
      expect(reason).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringMatching(/exists already/) });
    }
    expect(readdirSync(directory.path).filter((name) => name.startsWith(basename(target)))).toHaveLength(1);
  });

  test('a file that appears meanwhile stays, without overwrite', async () => {
    const target = fresh('.gguf');
    const onProgress = () => {
      if (!existsSync(target)) writeFileSync(target, 'mine');
    };
    await expect(convertCheckpoint(source(), target, { type: 'f16', onProgress })).rejects.toThrow(/exists already/);
    expect(readFileSync(target, 'utf8')).toBe('mine');
  });

  const onLinux = process.platform === 'linux' ? test : test.skip;
  onLinux('errors of the system while writing have codes of their own', async () => {
    const target = fresh('.gguf');
    const failing = (fail: () => void) =>
      writeGguf(target, { metadata: [], tensors: [{ name: 'a', type: 'f32', shape: [1] }], fill: async () => fail() });
    const full = openSync('/dev/full', 'w');
    await expect(failing(() => writeSync(full, 'x'))).rejects.toMatchObject({
      code: 'ERR_DISK_FULL',
      message: expect.stringMatching(/cannot be written: the disk is full \(ENOSPC\)/),
      details: { file: target },
    });
    closeSync(full);
    expect(readdirSync(directory.path).filter((name) => name.startsWith(basename(target)))).toEqual([]);
    for (const [code, expected] of [
      ['EDQUOT', 'ERR_DISK_FULL'],
      ['EACCES', 'ERR_PERMISSION_DENIED'],
      ['EPERM', 'ERR_PERMISSION_DENIED'],
      ['EROFS', 'ERR_PERMISSION_DENIED'],
      ['EMFILE', 'ERR_TOO_MANY_FILES'],
      ['ENFILE', 'ERR_TOO_MANY_FILES'],
      ['ENOMEM', 'ERR_OUT_OF_MEMORY'],
      ['EIO', 'ERR_IO'],
      ['EFBIG', 'ERR_IO'],
    ]) {
      const error = Object.assign(new Error(`${code}: no`), { code, syscall: 'write' });
      const fail = () => {
        throw error;
      };
      await expect(failing(fail)).rejects.toMatchObject({ code: expected, cause: error });
    }
  });

  onLinux('a larger file than the system allows, and a folder that is closed', () => {
    const target = fresh('.gguf');
    const closed = fresh();
    mkdirSync(closed, { mode: 0o555 });
    const run = (limit: string, to: string) => {
      const asNobody = process.getuid?.() === 0 ? 'process.seteuid(65534);' : '';
      const code = `const { convertCheckpoint } = require('./dist'); ${asNobody}
        convertCheckpoint(${JSON.stringify(readable)}, ${JSON.stringify(to)}, { type: 'f16' })
          .then(() => console.log('written'), (e) => console.log(e.code))`;
      const options = { cwd: join(__dirname, '..'), encoding: 'utf8' } as const;
      return spawnSync('sh', ['-c', `${limit}; exec "$0" -e "$1"`, process.execPath, code], options).stdout.trim();
    };
    const readable = source();
    chmodSync(directory.path, 0o777);
    expect(run('ulimit -f 8', target)).toBe('ERR_IO');
    expect(run(':', join(closed, 'x.gguf'))).toBe('ERR_PERMISSION_DENIED');
    expect(existsSync(target)).toBe(false);
  });

  test.each([1, 5])('aborted after %i pieces, it leaves nothing behind', async (pieces) => {
    const source = fresh('.gguf');
    writeSmallGguf(source);
    const target = fresh('.gguf');
    const controller = new AbortController();
    let seen = 0;
    const onProgress = () => {
      if (++seen === pieces) controller.abort();
    };
    const { signal } = controller;
    await expect(convertCheckpoint(source, target, { type: 'f16', signal, onProgress })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
    });
    expect(readdirSync(directory.path).filter((name) => name.startsWith(basename(target)))).toEqual([]);
  });

  test('fails without a tokenizer, or where it cannot write', async () => {
    const source = fresh();
    writeSmallDirectory(source, { tokenizer: false });
    const target = fresh('.gguf');
    await expect(convertCheckpoint(source, target, { type: 'f16' })).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_INVALID',
      message: expect.stringMatching(/no tokenizer/),
    });
    writeSmallGguf(target);
    await expect(convertCheckpoint(target, join(fresh(), 'x.gguf'), { type: 'f16' })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(/cannot be written/),
    });
  });
});

describe('synthesize', () => {
  test.each(['f32', 'f16', 'q8_0', 'q4_0'] as const)('a micro file of %s', async (type: SyntheticType) => {
    const target = fresh('.gguf');
    const { bytes } = await synthesize(target, { shape: 'micro', type, seed: 7 });
    const checkpoint = await openCheckpoint(target);
    expect(readFileSync(target)).toHaveLength(bytes);
    expect(checkpoint.config).toEqual(syntheticConfig('micro'));
    expect(checkpoint.tensors.map(({ name, type, shape }) => ({ name, type, shape }))).toEqual(
      syntheticTensors(syntheticConfig('micro'), type),
    );
    expect(checkpoint.tokenizer?.types).toHaveLength(384 - 9);
  });

  test('the same seed gives the same file, another seed another', async () => {
    const files = [fresh(), fresh(), fresh()];
    for (const [i, file] of files.entries()) await synthesize(file, { shape: 'micro', type: 'q8_0', seed: i >> 1 });
    const [a, b, c] = files.map((file) => readFileSync(file));
    expect(b).toEqual(a);
    expect(c).not.toEqual(a);
  });

  test('norms are about 1, biases and matrices about 0', async () => {
    const target = fresh('.gguf');
    await synthesize(target, { shape: 'micro', type: 'f32' });
    const checkpoint = await openCheckpoint(target);
    const moments = (name: string) => {
      const bytes = bytesOf(checkpoint, name);
      const values = Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i));
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      return {
        mean,
        deviation: Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length),
      };
    };
    expect(moments('blk.0.attn_norm.weight').mean).toBeCloseTo(1, 1);
    expect(moments('blk.0.attn_qkv.bias').deviation).toBeCloseTo(0.2, 1);
    expect(moments('token_embd.weight').deviation).toBeCloseTo(1, 1);
    expect(moments(MATRIX).deviation).toBeCloseTo(1.28 / 8, 1);
  });

  test("the tensors of the 6B shape have ChatGLM3-6B's size", () => {
    const tensors = syntheticTensors(syntheticConfig('6b'), 'q4_0');
    const parameters = tensors.reduce((sum, { shape }) => sum + shape.reduce((product, size) => product * size, 1), 0);
    expect(tensors).toHaveLength(3 + 28 * 7);
    expect(parameters).toBe(6_243_584_000);
  });

  test.each<[object, RegExp]>([
    [{ shape: '7b' }, /shape must be one of 6b, tiny, micro, got "7b"/],
    [{ shape: 'toString' }, /got "toString"/],
    [{ shape: { ...smallConfig, heads: 3 } }, /heads 3 times headSize 16 is 48/],
    [{ shape: { ...smallConfig, vocabSize: 100 } }, /vocabSize is 100/],
    [{ shape: 'micro', type: 'q6_k' }, /type must be one of f32, f16, q8_0, q4_0, got "q6_k"/],
    [{ shape: 'micro', seed: 0.5 }, /seed must be a whole number of at least 0, got 0.5/],
  ])('%p is refused', async (options, message) => {
    const target = fresh('.gguf');
    await expect(synthesize(target, options)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
    expect(existsSync(target)).toBe(false);
  });
});
