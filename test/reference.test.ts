import type { LoadOptions, Model } from 'node-chatglm';
import {
  type ReferenceCheckpoint,
  referenceCheckpoint,
  referenceCheckpoints,
  referenceExpectation,
  referenceLogits,
} from './support/checkpoints';
import { largestDifference, loadModel, onGpu, relativeError } from './support/device';

// What THUDM's own code computes in float32 on small checkpoints, in every layout that they have published.

// On a GPU activations are f16, and batches of different sizes take different kernels: what is exact on the CPU is so up
// to rounding there.
const kvCacheTypes = onGpu ? (['f16', 'q8_0'] as const) : (['f16', 'f32', 'q8_0'] as const);

const quantized = (name: string) => /int[48]$/.test(name);

async function withModel(
  name: ReferenceCheckpoint,
  options: LoadOptions,
  body: (model: Model) => Promise<void>,
): Promise<void> {
  const model = await loadModel(referenceCheckpoint(name), options);
  try {
    await body(model);
  } finally {
    await model.dispose();
  }
}

/**
 * The same bits; on a GPU the same numbers up to rounding. There, what differs by a rounding may get another code in
 * q8_0.
 */
function expectSame(actual: Float32Array, expected: Float32Array, kvCacheType: string): void {
  if (onGpu) expect(relativeError(actual, expected)).toBeLessThan(kvCacheType === 'q8_0' ? 3e-2 : 1e-2);
  else expect(largestDifference(actual, expected)).toBe(0);
}

describe.each(referenceCheckpoints)('%s', (name) => {
  const { input_ids: ids, greedy_continuation: greedy } = referenceExpectation(name);

  test('logits', async () => {
    await withModel(name, {}, async (model) => {
      const logits = await model.logits(ids);
      if (onGpu) {
        expect(relativeError(logits, referenceLogits(name))).toBeLessThan(1e-2);
      } else if (quantized(name)) {
        // Activations are rounded to 8 bits where they are multiplied with weights of as many or fewer.
        expect(relativeError(logits, referenceLogits(name))).toBeLessThan(2e-2);
      } else {
        expect(largestDifference(logits, referenceLogits(name))).toBeLessThan(5e-4);
      }
    });
  });

  test('greedy continuation', async () => {
    await withModel(name, {}, async (model) => {
      if (onGpu || quantized(name)) {
        // Random weights: two tokens may be as likely as rounding tells. Each is the likeliest, or nearly so.
        const { vocabSize } = model.info;
        const logits = await model.logits([...ids, ...greedy.slice(0, -1)], { from: ids.length - 1 });
        greedy.forEach((token, i) => {
          const row = logits.subarray(i * vocabSize, (i + 1) * vocabSize);
          expect(Math.max(...row) - (row[token] as number)).toBeLessThan(0.02 * (Math.max(...row) - Math.min(...row)));
        });
        return;
      }
      const options = { temperature: 0, maxTokens: greedy.length, stopTokens: [] };
      expect((await model.generate(ids, options).result).tokens).toEqual(greedy);
    });
  });

  test.each(kvCacheTypes)('the same logits however they are computed, %s keys and values', async (kvCacheType) => {
    await withModel(name, { kvCacheType }, async (model) => {
      const { vocabSize } = model.info;
      const long = [...ids, ...ids, ...ids];
      const whole = await model.logits(long);
      const last = (count: number) => whole.subarray((count - 1) * vocabSize, count * vocabSize);

      // After a hit in the prefix cache, at a page's edge and beside it.
      for (const from of [1, 63, 64, 65, 100, long.length - 1]) {
        expectSame(await model.logits(long, { from }), whole.subarray(from * vocabSize), kvCacheType);
      }
      // Token by token: each prompt goes on from the one before.
      model.clearCache();
      for (let count = 1; count <= long.length; count += 1) {
        const row = await model.logits(long.slice(0, count), { from: count - 1 });
        expectSame(row, last(count), kvCacheType);
      }
      // In one batch with others, which begin alike or not at all.
      model.clearCache();
      const others = [long.slice(5), long.slice(0, 70), [...long].reverse()];
      const answers = others.map((prompt) => model.generate(prompt, { maxTokens: 40, stopTokens: [] }).result);
      expectSame(await model.logits(long), whole, kvCacheType);
      await Promise.all(answers);
    });
  });
});

test('quantization of what is quantized already: the same is no change, another is refused', async () => {
  const name = 'chatglm2-int4';
  const { input_ids: ids } = referenceExpectation(name);
  await withModel(name, { quantization: 'int4' }, async (model) => {
    expect(relativeError(await model.logits(ids), referenceLogits(name))).toBeLessThan(onGpu ? 1e-2 : 2e-2);
  });
  await expect(loadModel(referenceCheckpoint(name), { quantization: 'int8' })).rejects.toMatchObject({
    code: 'ERR_INVALID_ARGUMENT',
  });
});
