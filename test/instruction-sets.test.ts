import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  referenceCheckpoint,
  referenceCheckpoints,
  referenceExpectation,
  referenceLogits,
} from './support/checkpoints';
import { largestDifference, relativeError, testOnCpu } from './support/device';

// The kernels of every instruction set that this CPU has, each in a process of its own. For those of another kind of CPU,
// CHATGLM_TEST_NODE is the command that runs Node there, such as an emulator (scripts/test-arm64.sh).

const root = join(__dirname, '..');
const [node = process.execPath, ...nodeArguments] = (process.env.CHATGLM_TEST_NODE ?? process.execPath).split(' ');
const instructionSets = process.env.CHATGLM_TEST_NODE
  ? ['portable', 'neon']
  : ['portable', 'avx2', 'avxvnni', 'avx512'];

/**
 * Of chatglm-tiny in 4 bits for its 18 conversations: the middle of what the instruction sets compute, 130.19 to 130.41. Any
 * two that are within 0.25% of it differ by less than 0.5%. It is so high for the users' words, which the model was not
 * trained to write; its own answers alone would give 1, whatever the kernels lose.
 */
const PERPLEXITY = 130.3;

const { conversations } = JSON.parse(
  readFileSync(join(__dirname, 'fixtures', 'chatglm-tiny', 'expected.json'), 'utf8'),
) as { conversations: { prompt_ids: number[]; greedy_ids: number[] }[] };

interface Result {
  error?: string;
  kernels: string;
  results: { logits: string; tokens: number[] }[];
  perplexity: number;
  response: string;
}

const isQuantized = (name: string) => /int[48]$/.test(name);
const cases = referenceCheckpoints.flatMap((name) =>
  isQuantized(name)
    ? [
        { name, options: {} },
        { name, options: { kvCacheType: 'q8_0' } },
      ]
    : [{ name, options: {} }],
);

testOnCpu.each(instructionSets)("%s: THUDM's logits and answers, and the same perplexity", (kernels) => {
  const task = {
    checkpoints: cases.map(({ name, options }) => ({
      path: referenceCheckpoint(name),
      ids: referenceExpectation(name).input_ids,
      continuation: referenceExpectation(name).greedy_continuation.length,
      options,
    })),
    texts: conversations.map(({ prompt_ids, greedy_ids }) => [...prompt_ids, ...greedy_ids]),
  };
  const script = join(__dirname, 'support', 'instruction-set.cjs');
  const { stdout, stderr } = spawnSync(node, [...nodeArguments, script, JSON.stringify(task)], {
    cwd: root,
    env: { ...process.env, CHATGLM_KERNELS: kernels },
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  expect(stderr).toBe('');
  const result = JSON.parse(stdout) as Result;
  if (result.error === 'ERR_DEVICE_UNAVAILABLE') return expect(kernels).not.toBe(instructionSets[0]);
  expect(result.error).toBeUndefined();
  expect(result.kernels).toBe(kernels);
  expect(result.response).toBe('The capital of France is Paris.');
  cases.forEach(({ name, options }, i) => {
    const { logits, tokens } = result.results[i] as Result['results'][number];
    const bytes = Buffer.from(logits, 'base64');
    const actual = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    if (isQuantized(name)) {
      // Keys and values in 8 bits add an error of their own.
      const bar = 'kvCacheType' in options ? 3e-2 : 2e-2;
      expect(relativeError(actual, referenceLogits(name))).toBeLessThan(bar);
    } else {
      expect(largestDifference(actual, referenceLogits(name))).toBeLessThan(5e-4);
      expect(tokens).toEqual(referenceExpectation(name).greedy_continuation);
    }
  });
  expect(Math.abs(result.perplexity / PERPLEXITY - 1)).toBeLessThan(0.0025);
});
