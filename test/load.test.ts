import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { convertCheckpoint, loadTokenizer, openCheckpoint, synthesize } from 'node-chatglm';
import { referenceCheckpoint, temporaryDirectory } from './support/checkpoints';
import { loadModel, loadSyntheticModel, onGpu } from './support/device';
import { smallConfig, type TensorBytes, writeSmallDirectory, writeSmallGguf } from './support/small-checkpoints';

const directory = temporaryDirectory();
afterAll(() => directory.remove());
const at = (name: string) => join(directory.path, name);

const prompt = [1, 2, 3, 200, 100, 50, 25, 12];

async function logitsOf(path: string): Promise<Buffer> {
  const model = await loadModel(path);
  try {
    const logits = await model.logits(prompt);
    expect(logits.every(Number.isFinite)).toBe(true);
    return Buffer.from(logits.buffer);
  } finally {
    await model.dispose();
  }
}

test('progress grows up to the total, and what is mapped is told', async () => {
  const steps: number[] = [];
  let total = 0;
  const path = referenceCheckpoint('chatglm3-safetensors-f16');
  const model = await loadModel(path, {
    onProgress: ({ bytes, totalBytes }) => {
      steps.push(bytes);
      total = totalBytes;
    },
  });
  expect(steps).toEqual([...steps].sort((a, b) => a - b));
  expect(steps.at(-1)).toBe(total);
  const { tensors } = await openCheckpoint(path);
  expect(total).toBe(tensors.reduce((sum, { data }) => sum + data.length, 0));
  // Embeddings stay in the file; matrices get another order, norms and biases become f32. A GPU has its own memory.
  const embeddings = tensors.find(({ name }) => name === 'token_embd.weight');
  expect(model.info.mappedBytes).toBe(onGpu ? 0 : embeddings?.data.length);
  expect(model.info.weightTypes.f16).toBeGreaterThan(0.99 * model.info.bytes);
  await model.dispose();
});

test('paths are text, file: URLs or bytes, wherever a path is taken', async () => {
  const forms = (path: string) => [path, pathToFileURL(path), pathToFileURL(path).href, Buffer.from(path)];
  for (const [i, target] of forms(at('模型 1.gguf')).entries()) {
    const { path } = await synthesize(target, { shape: 'micro', type: 'f16', overwrite: true, seed: i });
    expect(path).toBe(at('模型 1.gguf'));
  }
  for (const source of forms(at('模型 1.gguf'))) {
    expect((await openCheckpoint(source)).path).toBe(at('模型 1.gguf'));
    await loadTokenizer(source);
    await convertCheckpoint(source, pathToFileURL(at('url.gguf')), { type: 'f16', overwrite: true });
    const model = await loadModel(source);
    expect(model.info.path).toBe(at('模型 1.gguf'));
    await model.dispose();
  }
});

test('the option family overrides what the files tell', async () => {
  const directory = referenceCheckpoint('chatglm3-32k-f16');
  const rotary = async (path: string) => {
    const { family, ropeBase, ropeScale } = (await openCheckpoint(path)).config;
    return { family, ropeBase, ropeScale };
  };
  const third = await rotary(directory);
  expect(third).toMatchObject({ family: 'chatglm3', ropeScale: 1 });
  // rope_ratio divides positions in the second generation.
  const second = { family: 'chatglm2', ropeBase: 10_000, ropeScale: third.ropeBase / 10_000 };
  const opened = await openCheckpoint(directory, { family: 'chatglm2' });
  expect(opened.config).toMatchObject(second);

  const { path } = writeSmallGguf(at('family.gguf'), {});
  await convertCheckpoint(path, at('family-2.gguf'), { type: 'f16', family: 'chatglm2', name: 'mine' });
  expect((await openCheckpoint(at('family-2.gguf'))).config).toMatchObject({ family: 'chatglm2', name: 'mine' });
  await convertCheckpoint(await openCheckpoint(path, { family: 'codegeex2' }), at('family-3.gguf'), { type: 'f16' });
  expect((await openCheckpoint(at('family-3.gguf'))).config.family).toBe('codegeex2');

  expect((await loadTokenizer(path)).special.roles).toBeDefined();
  expect((await loadTokenizer(path, { family: 'chatglm2' })).special.roles).toBeUndefined();
  const model = await loadSyntheticModel({ shape: 'micro', family: 'chatglm2' });
  expect(model.info.family).toBe('chatglm2');
  await model.dispose();
});

const hasPrebuilds = existsSync(join(__dirname, '..', 'prebuilds'));
(hasPrebuilds ? test.skip : test)('without the addon there is a sentence that says what to do', () => {
  const script = `try { require('node-chatglm').systemInfo(); } catch (e) { console.log(JSON.stringify(e)); }`;
  const { stdout } = spawnSync(process.execPath, ['-e', script], {
    cwd: join(__dirname, '..'),
    env: { ...process.env, PREBUILDS_ONLY: '1' },
    encoding: 'utf8',
  });
  expect(JSON.parse(stdout)).toMatchObject({
    code: 'ERR_UNSUPPORTED',
    message: expect.stringMatching(/native addon for .* is missing or does not load; `npm rebuild node-chatglm`/),
  });
});

// Rows of 256 for the K types.
const wide = { ...smallConfig, hiddenSize: 256, headSize: 128, ropeDimension: 64, ffnHiddenSize: 256 };

test.each(['q4_1', 'q5_0', 'q5_1', 'q4_k', 'q5_k', 'q6_k'] as const)('%s becomes q8_0 while loading', async (type) => {
  const { path } = writeSmallGguf(at(`${type}.gguf`), { config: wide, type });
  const model = await loadModel(path);
  expect(Object.keys(model.info.weightTypes).sort()).toEqual(['f32', 'q8_0']);
  await model.dispose();
  await convertCheckpoint(path, at(`${type}-q8_0.gguf`), { type: 'q8_0' });
  expect((await logitsOf(path)).equals(await logitsOf(at(`${type}-q8_0.gguf`)))).toBe(true);
});

test.each(['f32', 'f16', 'bf16', 'q8_0', 'q4_0'] as const)('%s is computed with as it is', async (type) => {
  const { path } = writeSmallGguf(at(`${type}.gguf`), { type });
  const model = await loadModel(path);
  // A GPU computes with f16 where the CPU computes with f32 and bf16; embeddings stay as they are.
  const { weightTypes, bytes } = model.info;
  const floats = onGpu && type !== 'f16' && !type.startsWith('q') ? (weightTypes.f16 ?? 0) : 0;
  expect((weightTypes[type] ?? 0) + floats).toBeGreaterThan(0.9 * bytes);
  const { tokens } = await model.generate(prompt, { maxTokens: 10, stopTokens: [] }).result;
  expect(tokens).toHaveLength(10);
  await model.dispose();
});

test.each(['safetensors', 'torch'] as const)('%s: one file and shards compute the same', async (container) => {
  for (const shards of [1, 3]) writeSmallDirectory(at(`${container}-${shards}`), { container, shards });
  expect((await logitsOf(at(`${container}-1`))).equals(await logitsOf(at(`${container}-3`)))).toBe(true);
});

describe('NaN and infinite weights are refused, naming file and tensor', () => {
  const poison = (name: string, bits: number) => (tensors: TensorBytes[]) =>
    tensors.map((tensor) => {
      if (!tensor.name.endsWith(name)) return tensor;
      const data = Buffer.from(tensor.data);
      data.writeUInt16LE(bits, data.length - 2);
      return { ...tensor, data };
    });

  test.each([
    ['word_embeddings.weight', 0x7e00],
    ['output_layer.weight', 0xfc00],
    ['final_layernorm.weight', 0x7c00],
    ['query_key_value.bias', 0x7e01],
  ])('%s', async (name, bits) => {
    const [file] = writeSmallDirectory(at(`nan-${name}`), { tensors: poison(name, bits) });
    await expect(loadModel(at(`nan-${name}`))).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_INVALID',
      message: expect.stringMatching(/NaN or infinite/),
      details: { file, tensor: expect.any(String) },
    });
  });

  test('while quantizing, and in the scales of quantized rows', async () => {
    writeSmallDirectory(at('nan-q'), { tensors: poison('dense_4h_to_h.weight', 0x7e00) });
    await expect(loadModel(at('nan-q'), { quantization: 'int4' })).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_INVALID',
    });
    writeSmallDirectory(at('nan-scale'), { quantizationBit: 4, tensors: poison('dense_4h_to_h.weight_scale', 0x7e00) });
    await expect(loadModel(at('nan-scale'))).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_INVALID' });
  });

  test('in the blocks of a GGUF file', async () => {
    for (const type of ['q4_0', 'q8_0'] as const) {
      const { path } = writeSmallGguf(at(`nan-${type}.gguf`), { type });
      const { tensors } = await openCheckpoint(path);
      const tensor = tensors.find(({ name }) => name === 'blk.0.ffn_up.weight');
      const bytes = readFileSync(path);
      bytes.writeUInt16LE(0x7e00, tensor?.data.offset as number);
      writeFileSync(path, bytes);
      await expect(loadModel(path)).rejects.toMatchObject({
        code: 'ERR_CHECKPOINT_INVALID',
        details: { tensor: 'blk.0.ffn_up.weight' },
      });
    }
  });
});

test('a directory without a config, and one without weights', async () => {
  mkdirSync(at('empty'));
  await expect(loadModel(at('empty'))).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT_INVALID',
    message: expect.stringContaining('config.json'),
  });
});

test('a checkpoint without a tokenizer takes ids and says why it takes no text', async () => {
  const model = await loadModel(referenceCheckpoint('chatglm3-bf16'));
  expect((await model.generate([1, 2], { maxTokens: 2, stopTokens: [] }).result).text).toBe('');
  expect(() => model.generate('text')).toThrow(/no tokenizer/);
  expect(() => model.createChat().stream('text')).toThrow(/tokenizer/);
  await model.dispose();
});

test('what can never fit is ERR_OUT_OF_MEMORY with wanted and free bytes', async () => {
  const wanted = loadSyntheticModel({ shape: 'tiny', contextLength: 1024, kvCacheTokens: 2 ** 32 });
  await expect(wanted).rejects.toMatchObject({
    code: 'ERR_OUT_OF_MEMORY',
    details: { wantedBytes: expect.any(Number), freeBytes: expect.any(Number) },
  });
});

test('random weights in memory are those of a file that synthesize() writes', async () => {
  await synthesize(at('synth.gguf'), { shape: 'micro', type: 'q4_0', seed: 5 });
  const inMemory = await loadSyntheticModel({ shape: 'micro', type: 'q4_0', seed: 5 });
  const logits = Buffer.from((await inMemory.logits(prompt)).buffer);
  await inMemory.dispose();
  expect(logits.equals(await logitsOf(at('synth.gguf')))).toBe(true);
});
