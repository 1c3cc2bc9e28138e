import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { openCheckpoint, readTokenizer } from '../lib/checkpoint/open';
import { temporaryDirectory } from './support/checkpoints';
import { type SmallDirectoryOptions, writeSmallDirectory, writeSmallGguf } from './support/small-checkpoints';

// What is no checkpoint of this package, but is often taken for one: it is named, and the message says what to do.

const directory = temporaryDirectory();
afterAll(() => directory.remove());

let count = 0;
function fresh(options: SmallDirectoryOptions = {}): string {
  const path = join(directory.path, `chatglm3-${count++}`);
  writeSmallDirectory(path, options);
  return path;
}

/** A directory of the files, by name; a name that ends with a slash is a directory. */
function directoryOf(files: Record<string, string | Buffer>): string {
  const path = join(directory.path, `directory-${count++}`);
  mkdirSync(path);
  for (const [name, content] of Object.entries(files)) {
    if (name.endsWith('/')) mkdirSync(join(path, name));
    else writeFileSync(join(path, name), content);
  }
  return path;
}

function refusal(path: string, message: RegExp | string, details: object = {}) {
  return expect(openCheckpoint(path)).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT_INVALID',
    message: typeof message === 'string' ? expect.stringContaining(message) : expect.stringMatching(message),
    details: expect.objectContaining(details),
  });
}

describe('a Git LFS pointer', () => {
  const pointer =
    'version https://git-lfs.github.com/spec/v1\n' +
    'oid sha256:fe8edeeb98cc6d3b93cf2d57000254b84bd9eba34b4df7ce4b87db8b937b7703\nsize 1018370\n';
  const named = /: is a Git LFS pointer, not the file itself, which has 1018370 bytes; "git lfs pull" .* fetches it$/;

  test.each([
    ['config.json', {}],
    ['tokenizer.model', {}],
    ['tokenizer_config.json', {}],
    ['model.safetensors', {}],
    ['model.safetensors.index.json', { shards: 2 }],
    ['model-00002-of-00002.safetensors', { shards: 2 }],
    ['pytorch_model.bin', { container: 'torch' }],
    ['pytorch_model-00001-of-00002.bin', { container: 'torch', shards: 2 }],
  ] as const)('in place of %s', async (name, options) => {
    const path = fresh(options);
    writeFileSync(join(path, name), pointer);
    const details = { file: join(path, name), lfsBytes: 1018370 };
    await refusal(path, named, details);
    if (/safetensors|bin|index/.test(name)) await refusal(join(path, name), named, details);
  });

  test('in place of a GGUF file or a lone tokenizer.model', async () => {
    const path = directoryOf({ 'x.gguf': pointer, 'tokenizer.model': pointer });
    await refusal(join(path, 'x.gguf'), named);
    await expect(readTokenizer(join(path, 'tokenizer.model'))).rejects.toThrow(named);
    await expect(readTokenizer(path)).rejects.toThrow(named);
  });

  test('without a size', async () => {
    const path = directoryOf({ 'x.gguf': 'version https://git-lfs.github.com/spec/v1\noid sha256:x\n' });
    await refusal(join(path, 'x.gguf'), /a Git LFS pointer, not the file itself; "git lfs pull"/);
  });
});

describe('a directory of another tool is named:', () => {
  const adapterConfig = '{"peft_type": "LORA", "base_model_name_or_path": "/data/chatglm3-6b", "r": 8}';
  const merge = /a peft adapter \(LORA\) of \/data\/chatglm3-6b, not a model.*merge it into its base.*merge_and_unload/;

  test('a peft adapter, with or without a config.json', async () => {
    const files = { 'adapter_config.json': adapterConfig, 'adapter_model.safetensors': 'x' };
    const alone = directoryOf(files);
    await refusal(alone, merge);
    await refusal(join(alone, 'adapter_model.safetensors'), merge);
    const config = readFileSync(join(fresh(), 'config.json'));
    await refusal(directoryOf({ ...files, 'config.json': config }), merge);
    await refusal(directoryOf({ 'adapter_model.bin': 'x' }), /a peft adapter of a base model/);
  });

  test('an adapter beside whole weights does not matter', async () => {
    const path = fresh();
    writeFileSync(join(path, 'adapter_config.json'), adapterConfig);
    expect((await openCheckpoint(path)).format).toBe('safetensors');
  });

  test.each<[string, Record<string, string>, RegExp]>([
    ['GGUF files', { 'a-q4_0.gguf': '', 'b.gguf': '' }, /open one of them by its path: a-q4_0\.gguf, b\.gguf/],
    [
      "chatglm.cpp's file",
      { 'chatglm3-ggml.bin': 'ggml' },
      /holds chatglm3-ggml\.bin, which is a GGML file .*original/,
    ],
    ["chatglm.cpp's file under another name", { 'model.bin': 'ggml\x03' }, /holds model\.bin, which is a GGML file/],
    ['a web page as weights', { 'model-1.bin': '<!DOCTYPE html>' }, /model-1\.bin, which is a web page/],
    ['an ONNX model', { 'model.onnx': '' }, /ONNX model, which is not supported/],
    ['DeepSpeed', { 'global_step500/': '', latest: '', 'zero_to_fp32.py': '' }, /DeepSpeed.*zero_to_fp32\.py/],
    ['Megatron', { 'iter_0000100/': '', 'latest_checkpointed_iteration.txt': '' }, /Megatron/],
    ['TensorFlow', { 'tf_model.h5': '' }, /TensorFlow.*original PyTorch model/],
    ['Flax', { 'flax_model.msgpack': '' }, /Flax or MLX \(flax_model\.msgpack\)/],
    ['a training run', { 'last.ckpt': '' }, /training run \(last\.ckpt\).*save_pretrained/],
    ["a training run's state", { 'optimizer.pt': '', 'trainer_state.json': '{}' }, /not the model's weights/],
    [
      'training runs',
      { 'checkpoint-500/': '', 'checkpoint-1000/': '' },
      /one of them: checkpoint-1000, checkpoint-500/,
    ],
    ['the Hugging Face cache', { 'blobs/': '', 'refs/': '', 'snapshots/': '' }, /cache; open the folder within/],
    ['a download that goes on', { 'model.safetensors.aria2': '' }, /not complete \(model\.safetensors\.aria2\)/],
    ['OpenVINO', { 'openvino_model.xml': '', 'openvino_model.bin': '' }, /OpenVINO/],
    ['TensorRT', { 'rank0.engine': '' }, /TensorRT/],
  ])('%s', async (_, files, message) => {
    await refusal(directoryOf(files), message);
    // A config.json beside it, but no weights, changes nothing.
    await refusal(directoryOf({ ...files, 'config.json': readFileSync(join(fresh(), 'config.json')) }), message);
  });

  test.each([
    ['GPTQ', { quant_method: 'gptq', bits: 4 }],
    ['AWQ', { quant_method: 'awq' }],
    ['bitsandbytes', { quant_method: 'bitsandbytes', load_in_8bit: true }],
    ['bitsandbytes', { load_in_4bit: true }],
    ['x?y', { quant_method: 'x\u001by' }],
    ['an object', { quant_method: { toString: 1 } }],
  ])('a model quantized with %s', async (name, config) => {
    await refusal(
      fresh({ json: { quantization_config: config } }),
      `config.json: says that the model is quantized with ${name}, which is not supported; open the original model`,
    );
  });

  test('a P-Tuning v2 prefix', async () => {
    await refusal(fresh({ json: { pre_seq_len: 128 } }), /P-Tuning v2 prefix.*open the base model/);
  });
});

describe('tensors of other tools are named:', () => {
  const layer = 'transformer.encoder.layers.0';
  test.each([
    [`${layer}.mlp.dense_h_to_4h.qweight`, /GPTQ or AWQ, which is not supported; open the original/],
    [`${layer}.mlp.dense_h_to_4h.qzeros`, /GPTQ or AWQ/],
    [`${layer}.mlp.dense_h_to_4h.SCB`, /bitsandbytes/],
    [`${layer}.mlp.dense_h_to_4h.weight.absmax`, /bitsandbytes/],
    [`${layer}.mlp.dense_h_to_4h.weight.quant_state.bitsandbytes__nf4`, /bitsandbytes/],
    [`base_model.model.${layer}.self_attention.query_key_value.base_layer.weight`, /peft adapter around it; merge/],
    [`base_model.model.${layer}.self_attention.query_key_value.lora_A.weight`, /LoRA adapter.*merge/],
    ['transformer.prefix_encoder.embedding.weight', /P-Tuning v2 prefix.*base model/],
    [`module.${layer}.input_layernorm.weight`, /wrapper/],
  ])('%s', async (name, message) => {
    const tensors: SmallDirectoryOptions['tensors'] = (all) => [
      { name, dtype: 'F16', shape: [1], data: new Uint8Array(2) },
      // Its own tensors are missing then, which is the lesser reason.
      ...all.filter(({ name: other }) => !other.includes('mlp.dense_h_to_4h')),
    ];
    await refusal(fresh({ tensors }), message, { tensor: name });
  });

  test('a training run saved with torch.save', async () => {
    const path = fresh({ container: 'torch' });
    const file = join(path, 'pytorch_model.bin');
    const bytes = readFileSync(file);
    // {"a": {}} instead of the dict of tensors.
    Buffer.from('\x80\x02}X\x01\x00\x00\x00a}s.', 'latin1').copy(bytes, bytes.indexOf('\x80\x02', 0, 'latin1'));
    writeFileSync(file, bytes);
    await refusal(path, /a in it is a dict, no tensor, as in checkpoints of training runs.*save_pretrained/);
  });
});

describe('a file of another kind is named:', () => {
  test.each([
    ['old.bin', 'tjgg', /is a GGML file/],
    ['page.gguf', '<!doctype html><html>', /is a web page, not the file/],
    ['weights.h5', '\x89HDF\r\n\x1a\n', /TensorFlow/],
    ['model.onnx', '\x08\x07\x12\x07pytorch', /ONNX/],
    ['x.tar', `${'x'.repeat(257)}ustar`, /tar archive/],
    ['x.gguf.gz', '\x1f\x8b', /compressed archive/],
    ['tokenizer.model', '\n\x0e\n\x05<unk>', /is a tokenizer; open the directory of its model/],
  ])('%s', async (name, content, message) => {
    await refusal(join(directoryOf({ [name]: Buffer.from(content, 'latin1') }), name), message);
  });

  test('types of GGUF that are not read, with those that are', async () => {
    const { path } = writeSmallGguf(join(directory.path, 'types.gguf'));
    const bytes = readFileSync(path);
    const name = 'blk.0.ffn_up.weight';
    for (const [number, type] of [
      [10, 'Q2_K'],
      [11, 'Q3_K'],
      [20, 'IQ4_NL'],
      [21, 'IQ3_S'],
      [23, 'IQ4_XS'],
      [99, '99'],
    ] as const) {
      bytes.writeUInt32LE(number, bytes.indexOf(name) + name.length + 4 + 16);
      writeFileSync(path, bytes);
      const hint =
        'F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16; open the f16 original, or a file that';
      await refusal(path, `${name} has the type ${type}, which is not supported; read are ${hint} llama-quantize made`);
    }
  });
});

describe('the file that is named is the one that is opened:', () => {
  const filesOf = async (path: string) => (await openCheckpoint(path)).files.map((file) => basename(file));
  /** A directory with two sets of weights. */
  function both(first: SmallDirectoryOptions, second: SmallDirectoryOptions): string {
    const path = fresh(first);
    const other = fresh(second);
    for (const name of readdirSync(other)) {
      if (/\.(bin|safetensors|index\.json)$/.test(name)) renameSync(join(other, name), join(path, name));
    }
    return path;
  }

  test('a set of torch beside safetensors', async () => {
    const path = both({}, { container: 'torch' });
    expect(await filesOf(path)).toEqual(['model.safetensors']);
    expect(await filesOf(join(path, 'pytorch_model.bin'))).toEqual(['pytorch_model.bin']);
    expect((await openCheckpoint(join(path, 'pytorch_model.bin'))).format).toBe('torch');
  });

  test('an index or a shard opens all of its shards', async () => {
    const path = both({}, { container: 'torch', shards: 2 });
    const shards = ['pytorch_model-00001-of-00002.bin', 'pytorch_model-00002-of-00002.bin'];
    expect(await filesOf(join(path, 'pytorch_model.bin.index.json'))).toEqual(shards);
    expect(await filesOf(join(path, 'pytorch_model-00002-of-00002.bin'))).toEqual(shards);
    expect(await filesOf(join(path, 'config.json'))).toEqual(['model.safetensors']);
  });

  test('whatever its name', async () => {
    const path = fresh();
    renameSync(join(path, 'model.safetensors'), join(path, 'my.safetensors'));
    await refusal(path, /holds no weights/);
    expect(await filesOf(join(path, 'my.safetensors'))).toEqual(['my.safetensors']);
    const torch = fresh({ container: 'torch' });
    renameSync(join(torch, 'pytorch_model.bin'), join(torch, 'consolidated.pth'));
    expect(await filesOf(join(torch, 'consolidated.pth'))).toEqual(['consolidated.pth']);
    expect((await readTokenizer(join(torch, 'consolidated.pth'))).family).toBe('chatglm3');
    // By its content.
    renameSync(join(torch, 'consolidated.pth'), join(torch, 'model.safetensors'));
    expect((await openCheckpoint(torch)).format).toBe('torch');
  });

  test('of two sets the complete one is taken, and the reasons against each are told', async () => {
    const path = both({ shards: 2 }, { container: 'torch' });
    rmSync(join(path, 'model-00002-of-00002.safetensors'));
    expect(await filesOf(path)).toEqual(['pytorch_model.bin']);
    await refusal(join(path, 'model.safetensors.index.json'), /the shard model-00002-of-00002\.safetensors is missing/);
    writeFileSync(join(path, 'pytorch_model.bin'), 'version https://git-lfs.github.com/spec/v1\nsize 9\n');
    const shard = 'model-00002-of-00002.safetensors';
    await refusal(
      path,
      `no complete weights: model.safetensors.index.json: the shard ${shard} is missing; pytorch_model`,
    );
  });

  test('a damaged set is no reason to take another', async () => {
    const path = both({}, { container: 'torch' });
    writeFileSync(join(path, 'model.safetensors'), 'damaged');
    await refusal(path, /model\.safetensors/);
  });

  test('one without a config.json beside it', async () => {
    const path = fresh();
    rmSync(join(path, 'config.json'));
    await refusal(join(path, 'model.safetensors'), /has no config\.json/);
  });
});

test('"must be cloned first" is only said of what looks like a name on Hugging Face', async () => {
  const message = async (path: string) => {
    const error = await openCheckpoint(path).catch((reason: Error & { code?: string }) => reason);
    expect(error).toMatchObject({ code: 'ERR_CHECKPOINT_NOT_FOUND' });
    return (error as Error).message;
  };
  expect(await message('THUDM/chatglm3-6b')).toMatch(/must be cloned first/);
  for (const path of ['test/nowhere', 'nowhere/model.gguf', './nowhere/x', join(directory.path, 'no'), 'nowhere']) {
    expect(await message(path)).not.toMatch(/cloned/);
  }
});

test('names from files cannot command a terminal', async () => {
  const { path } = writeSmallGguf(join(directory.path, 'name.gguf'));
  const bytes = readFileSync(path);
  Buffer.from('\u001b[J\u009b').copy(bytes, bytes.indexOf('general.name') + 12 + 4 + 8);
  writeFileSync(path, bytes);
  const { config, metadata } = await openCheckpoint(path);
  expect(config.name).toBe('?[J?');
  // The metadata are data, and as the file has them; what is printed is not.
  expect(metadata['general.name']).toBe('\u001b[J\u009b');
  const main = join(__dirname, '..', 'dist', 'cli', 'main.js');
  for (const option of ['--metadata', '--json']) {
    const { stdout } = spawnSync(process.execPath, [main, 'inspect', path, option], { encoding: 'utf8' });
    expect(stdout).toContain('"general.name":');
    expect(stdout.replaceAll('\n', '')).not.toMatch(/\p{Cc}/u);
    expect(stdout).toContain('\\u001b[J\\u009b');
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: such are looked for.
  const control = /[\u0000-\u001f\u007f-\u009f\u202e]/;
  const evil = '\u001b]0;title\u0007\u202e';
  for (const json of [{ model_type: evil }, { quantization_bit: evil }, { [evil]: 1, num_layers: evil }]) {
    const error = await openCheckpoint(fresh({ json })).catch((reason: Error) => reason);
    expect((error as Error).message).not.toMatch(control);
  }
});
