import { statSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint, readTokenizer } from '../lib/checkpoint/open';
import { PieceType } from '../lib/tokenizer/data';
import { pieceTexts } from '../lib/tokenizer/pieces';
import {
  type ReferenceCheckpoint,
  referenceCheckpoint,
  referenceCheckpoints,
  referenceExpectation,
  referenceLogits,
  referenceTokenizer,
} from './support/checkpoints';

const expected: Record<ReferenceCheckpoint, { format: string; family: string; types: string[]; files: number }> = {
  'chatglm2-bin-f16': { format: 'torch', family: 'chatglm2', types: ['f16'], files: 2 },
  'chatglm2-int4': { format: 'torch', family: 'chatglm2', types: ['f16', 'int4'], files: 1 },
  'chatglm2-int8': { format: 'torch', family: 'chatglm2', types: ['f16', 'int8'], files: 1 },
  'chatglm3-32k-f16': { format: 'safetensors', family: 'chatglm3', types: ['f16'], files: 1 },
  'chatglm3-bf16': { format: 'safetensors', family: 'chatglm3', types: ['bf16'], files: 1 },
  'chatglm3-safetensors-f16': { format: 'safetensors', family: 'chatglm3', types: ['f16'], files: 2 },
};

describe.each(referenceCheckpoints)('%s', (name) => {
  test('opens', async () => {
    const checkpoint = await openCheckpoint(referenceCheckpoint(name));
    expect(checkpoint).toMatchObject({ format: expected[name].format, tokenizer: undefined });
    expect(checkpoint.config).toMatchObject({ family: expected[name].family, layers: 2, vocabSize: 512 });
    expect([...new Set(checkpoint.tensors.map(({ type }) => type))].sort()).toEqual(expected[name].types);
    expect(checkpoint.files).toHaveLength(expected[name].files);
    expect(checkpoint.tensors).toHaveLength(3 + 7 * 2);
    expect(checkpoint.metadata.hidden_size).toBe(checkpoint.config.hiddenSize);
    for (const { data, scale } of checkpoint.tensors) {
      for (const range of scale === undefined ? [data] : [data, scale]) {
        const { size } = statSync(checkpoint.files[range.file] ?? '');
        expect(range.offset + range.length).toBeLessThanOrEqual(size);
      }
    }
  });

  test('has expected values of the right size', () => {
    expect(referenceLogits(name)).toHaveLength(referenceExpectation(name).input_ids.length * 512);
  });
});

test('rope_ratio multiplies the base in ChatGLM3 and divides positions in ChatGLM2', async () => {
  const directory = referenceCheckpoint('chatglm3-32k-f16');
  expect((await openCheckpoint(directory)).config).toMatchObject({ ropeBase: 500_000, ropeScale: 1 });
  const { config } = await openCheckpoint(directory, { family: 'chatglm2' });
  expect(config).toMatchObject({ family: 'chatglm2', ropeBase: 10_000, ropeScale: 50 });
});

test('int4 rows count weights, not bytes', async () => {
  const { tensors } = await openCheckpoint(referenceCheckpoint('chatglm2-int4'));
  expect(tensors.find(({ name }) => name === 'blk.0.attn_qkv.weight')).toMatchObject({
    type: 'int4',
    shape: [512, 256],
    data: { length: (512 * 256) / 2 },
    scale: { length: 2 * 512, type: 'f16' },
  });
});

test('a file in the directory stands for the directory', async () => {
  const directory = referenceCheckpoint('chatglm3-bf16');
  for (const file of ['model.safetensors', 'config.json']) {
    expect((await openCheckpoint(join(directory, file))).path).toBe(directory);
  }
});

test("ChatGLM's tokenizer.model", async () => {
  const { data, family } = await readTokenizer(referenceTokenizer());
  expect(family).toBeUndefined();
  expect(data.types).toHaveLength(64_789);
  const texts = pieceTexts(data).map((text) => Buffer.from(text).toString());
  expect(texts.slice(0, 4)).toEqual(['<unk>', '<s>', '</s>', '<0x00>']);
  expect([texts[36474], texts[54591]]).toEqual(['▁你', '好']);
  expect([...data.types.subarray(0, 4)]).toEqual([2, 3, 3, 6]);
  expect(data.types.subarray(259).every((type) => type === PieceType.normal)).toBe(true);
  // The tokenizer merges by score: they fall from piece to piece.
  expect(data.scores.subarray(260).every((score, i) => score < (data.scores[259 + i] ?? 0))).toBe(true);
});
