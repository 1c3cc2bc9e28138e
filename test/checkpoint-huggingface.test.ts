import { copyFileSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint, readTokenizer } from '../lib/checkpoint/open';
import { MODEL_FAMILIES } from '../lib/families/index';
import { syntheticTokenizer } from '../lib/tokenizer/synthetic';
import { temporaryDirectory } from './support/checkpoints';
import {
  type SmallDirectoryOptions,
  smallConfig,
  tokenizerModel,
  writeSmallDirectory,
} from './support/small-checkpoints';

const directory = temporaryDirectory();
afterAll(() => directory.remove());

let count = 0;
function fresh(options: SmallDirectoryOptions = {}, name = `model-${count++}`): string {
  const path = join(directory.path, name);
  writeSmallDirectory(path, options);
  return path;
}

async function refusal(path: string, message: RegExp, details: object = {}) {
  await expect(openCheckpoint(path)).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT_INVALID',
    message: expect.stringMatching(message),
    details: expect.objectContaining(details),
  });
}

describe('the family', () => {
  const family = async (path: string) => (await openCheckpoint(path)).config.family;
  const noName = { _name_or_path: undefined };

  test('must be named where nothing tells', async () => {
    const path = fresh({ json: noName });
    await refusal(path, new RegExp(`nothing in this directory tells .*--family.*${MODEL_FAMILIES.join(', ')}`));
    expect((await openCheckpoint(path, { family: 'chatglm2' })).config.family).toBe('chatglm2');
  });

  // Fine-tunes keep the tokenizer's code of their base, and often a path of the machine that they were trained on.
  const plainCode = 'special_tokens = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]\nclass ChatGLMTokenizer: ...';
  test.each([
    ['/root/models/base-model', 'merged-out'],
    ['/root/models/glm2-6b', 'checkpoint-3000'],
    [undefined, 'no-name'],
    ['/root/models/chatglm3-6b', 'named-after-what-it-is-not'],
  ])('is chatglm2 by the code of a tokenizer without role tokens, named %s in %s', async (name, directory) => {
    const path = fresh({ json: { _name_or_path: name } }, directory);
    writeFileSync(join(path, 'tokenization_chatglm.py'), plainCode);
    expect(await family(path)).toBe('chatglm2');
  });

  test('is codegeex2 by the name, beside such code', async () => {
    const path = fresh({ json: { _name_or_path: 'THUDM/codegeex2-6b' } });
    writeFileSync(join(path, 'tokenization_chatglm.py'), plainCode);
    expect(await family(path)).toBe('codegeex2');
  });

  test('is in the name that tokenizer_config.json gives', async () => {
    const path = fresh({ json: { _name_or_path: '/root/models/base-model' } });
    writeFileSync(join(path, 'tokenizer_config.json'), '{"name_or_path": "THUDM/chatglm2-6b", "remove_space": false}');
    expect(await family(path)).toBe('chatglm2');
  });

  test('decides what rope_ratio means', async () => {
    const path = fresh({ json: { _name_or_path: '/root/models/base-model', rope_ratio: 16 } }, 'v2-32k');
    writeFileSync(join(path, 'tokenization_chatglm.py'), plainCode);
    expect((await openCheckpoint(path)).config).toMatchObject({ ropeBase: 10_000, ropeScale: 16 });
    expect((await openCheckpoint(path, { family: 'chatglm3' })).config).toMatchObject({
      ropeBase: 160_000,
      ropeScale: 1,
    });
  });

  test.each([
    ['THUDM/chatglm2-6b-int4', 'chatglm2'],
    ['/data/ChatGLM3-6B-32k', 'chatglm3'],
    ['THUDM/codegeex2-6b', 'codegeex2'],
    ['codegeex2-from-chatglm2', 'codegeex2'],
  ])('of _name_or_path %s is %s', async (name, expected) => {
    expect(await family(fresh({ json: { _name_or_path: name } }))).toBe(expected);
  });

  test("is in the directory's name otherwise", async () => {
    expect(await family(fresh({ json: noName }, 'my-chatglm2-6b-tuned'))).toBe('chatglm2');
  });

  test('is in the tokenizer before all names', async () => {
    for (const file of ['tokenizer_config.json', 'tokenization_chatglm.py']) {
      const path = fresh({ json: { _name_or_path: 'THUDM/chatglm2-6b' } });
      writeFileSync(join(path, file), 'role_special_tokens = ["<|system|>", "<|user|>", "<|assistant|>"]');
      expect(await family(path)).toBe('chatglm3');
      expect((await readTokenizer(path)).family).toBe('chatglm3');
    }
  });

  test('is what the caller says, before all', async () => {
    const { config } = await openCheckpoint(fresh(), { family: 'codegeex2' });
    expect(config.family).toBe('codegeex2');
  });
});

test('a name without an owner, or a path, gives way to the name of the directory', async () => {
  const { config } = await openCheckpoint(fresh({ json: { _name_or_path: '/root/x/y' } }, 'chatglm3-tuned'));
  expect(config.name).toBe('chatglm3-tuned');
});

test('names without the prefix "transformer." are accepted', async () => {
  expect((await openCheckpoint(fresh({ prefix: '' }))).tensors).toHaveLength(10);
});

test('both names of one tensor are not', async () => {
  const path = fresh({
    tensors: (all) => [...all, { ...(all[1] ?? never()), name: 'embedding.word_embeddings.weight' }],
  });
  await refusal(path, /embedding\.word_embeddings\.weight is in/);
});

test('safetensors are preferred', async () => {
  const path = fresh({ container: 'torch' });
  writeSmallDirectory(path, { container: 'safetensors' });
  expect((await openCheckpoint(path)).format).toBe('safetensors');
});

test('tied embeddings serve as the output matrix', async () => {
  const tensors: SmallDirectoryOptions['tensors'] = (all) => all.filter(({ name }) => !name.includes('output_layer'));
  const { tensors: found } = await openCheckpoint(fresh({ tensors, json: { tie_word_embeddings: true } }));
  const place = (name: string) => found.find((tensor) => tensor.name === name)?.data;
  expect(place('output.weight')).toEqual(place('token_embd.weight'));
  await refusal(fresh({ tensors }), /transformer\.output_layer\.weight is missing/);
});

test('without tokenizer.model there is no tokenizer', async () => {
  const path = fresh({ tokenizer: false });
  expect((await openCheckpoint(path)).tokenizer).toBeUndefined();
  await expect(readTokenizer(path)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_INVALID' });
});

test('a tokenizer of another model is refused', async () => {
  const path = fresh({ config: { ...smallConfig, vocabSize: 4096 } });
  await refusal(path, /the tokenizer does not belong to this model/, { pieces: 266, vocabSize: 4096 });
  const larger = fresh();
  writeFileSync(join(larger, 'tokenizer.model'), tokenizerModel(syntheticTokenizer(268)));
  await refusal(larger, /the tokenizer does not belong to this model/);
});

describe('what is missing is named:', () => {
  test('the path', async () => {
    await expect(openCheckpoint(join(directory.path, 'nowhere'))).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_NOT_FOUND',
    });
  });

  test('config.json', async () => {
    const path = fresh();
    rmSync(join(path, 'config.json'));
    await refusal(path, /no config\.json/);
  });

  test('the weights', async () => {
    const path = fresh();
    rmSync(join(path, 'model.safetensors'));
    await refusal(path, /no weights.*model\.safetensors/);
  });

  test.each(['safetensors', 'torch'] as const)('a shard (%s)', async (container) => {
    const path = fresh({ container, shards: 2 });
    const shard = container === 'safetensors' ? 'model-00002-of-00002.safetensors' : 'pytorch_model-00002-of-00002.bin';
    rmSync(join(path, shard));
    await refusal(path, new RegExp(`the shard ${shard} is missing`), { shard });
  });

  test('a tensor', async () => {
    const path = fresh({ tensors: (all) => all.filter(({ name }) => !name.endsWith('dense.weight')) });
    await refusal(path, /dense\.weight is missing/, {
      tensor: 'transformer.encoder.layers.0.self_attention.dense.weight',
      file: join(path, 'model.safetensors'),
    });
  });

  test('a tensor that the index promises', async () => {
    const path = fresh({ shards: 2 });
    copyFileSync(join(path, 'model-00001-of-00002.safetensors'), join(path, 'model-00002-of-00002.safetensors'));
    await refusal(path, /is missing, although|is in .*too/);
  });

  test('scales', async () => {
    const path = fresh({ quantizationBit: 8, tensors: (all) => all.filter(({ name }) => !name.includes('_scale')) });
    await refusal(path, /weight_scale is missing/);
  });
});

describe('what does not fit is named:', () => {
  const reshape = (part: string, shape: number[]): SmallDirectoryOptions['tensors'] => {
    return (all) =>
      all.map((tensor) => {
        if (!tensor.name.includes(part)) return tensor;
        return { ...tensor, shape, data: new Uint8Array(2 * shape.reduce((product, size) => product * size, 1)) };
      });
  };

  test('a wrong shape', async () => {
    const path = fresh({ tensors: reshape('word_embeddings', [270, 32]) });
    await refusal(path, /word_embeddings\.weight has the shape 270 x 32; the config asks for 276 x 32/);
  });

  test('a transposed matrix', async () => {
    await refusal(fresh({ tensors: reshape('query_key_value.weight', [32, 64]) }), /has the shape 32 x 64/);
  });

  test('scales of another length', async () => {
    await refusal(fresh({ quantizationBit: 4, tensors: reshape('weight_scale', [16]) }), /one scale a row/);
  });

  test('int8 tensors without quantization_bit', async () => {
    const path = fresh({ quantizationBit: 8, json: { quantization_bit: null } });
    await refusal(path, /dtype I8, but config\.json names no quantization_bit/);
  });

  test('4-bit columns under 8 bits', async () => {
    await refusal(fresh({ quantizationBit: 4, json: { quantization_bit: 8 } }), /has the shape/);
  });

  test('an unknown tensor, or a P-tuning prefix', async () => {
    const extra = (name: string): SmallDirectoryOptions['tensors'] => {
      return (all) => [...all, { name, dtype: 'F16', shape: [1], data: new Uint8Array(2) }];
    };
    await refusal(fresh({ tensors: extra('transformer.encoder.layers.1.x') }), /not part of a model/);
    await refusal(fresh({ tensors: extra('transformer.prefix_encoder.embedding.weight') }), /P-tuning/);
  });

  test('a shard outside of the directory', async () => {
    const path = fresh({ shards: 2 });
    const index = { weight_map: { a: '../x.safetensors' } };
    writeFileSync(join(path, 'model.safetensors.index.json'), JSON.stringify(index));
    await refusal(path, /names \.\.\/x\.safetensors as a shard/);
  });

  test('a directory where a file should be', async () => {
    const path = fresh();
    rmSync(join(path, 'model.safetensors'));
    mkdirSync(join(path, 'model.safetensors'));
    await refusal(path, /not a regular file/);
  });
});

describe('config.json', () => {
  test.each<[Record<string, unknown>, RegExp]>([
    [{ model_type: 'llama' }, /type llama/],
    [{ position_encoding_2d: true }, /ChatGLM-6B, the first generation/],
    [{ vocab_size: 130528 }, /ChatGLM-6B, the first generation/],
    [{ padded_vocab_size: 151552 }, /GLM-4/],
    [{ rmsnorm: false }, /rmsnorm to false/],
    [{ post_layer_norm: false }, /post_layer_norm to false/],
    [{ add_bias_linear: true }, /add_bias_linear to true/],
    [{ multi_query_attention: false }, /multi_query_attention to false/],
    [{ pre_seq_len: 128 }, /P-tuning/],
    [{ quantization_bit: 3 }, /quantization_bit is 3/],
    [{ num_layers: undefined }, /has no num_layers/],
    [{ num_layers: '28' }, /num_layers is no number/],
    [{ num_layers: 0 }, /num_layers is 0/],
    [{ num_layers: 1e9 }, /num_layers is 1000000000/],
    [{ num_layers: 1.5 }, /num_layers is 1.5/],
    [{ multi_query_group_num: 3 }, /no multiple of multi_query_group_num 3/],
    [{ hidden_size: 64 }, /hidden_size 64 is not 2 heads of 16/],
    [{ kv_channels: 17 }, /kv_channels is 17|ropeDimension|kv_channels is 8.5/],
    [{ ffn_hidden_size: 33 }, /ffn_hidden_size is 33/],
    [{ layernorm_epsilon: 0 }, /layernorm_epsilon/],
    [{ rope_ratio: -1 }, /rope_ratio/],
    [{ seq_length: 2 ** 40 }, /seq_length/],
  ])('with %p is refused', async (json, message) => {
    await refusal(fresh({ json }), message);
  });

  test('that is no object, or no JSON, is refused', async () => {
    const path = fresh();
    for (const text of ['[]', '1', '{"a":1,}', '', '\xff']) {
      writeFileSync(join(path, 'config.json'), Buffer.from(text, 'latin1'));
      await refusal(path, /JSON/);
    }
  });
});

test('an aborted signal ends it', async () => {
  await expect(openCheckpoint(fresh(), { signal: AbortSignal.abort('enough') })).rejects.toMatchObject({
    code: 'ERR_ABORTED',
    cause: 'enough',
  });
});

function never(): never {
  throw new Error('unreachable');
}
