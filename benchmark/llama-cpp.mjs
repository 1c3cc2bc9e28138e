// llama.cpp on the CPU: through node-llama-cpp, or its own program llama-bench.
import { execFileSync } from 'node:child_process';
import { resolve } from 'node:path';

/** Flash attention is llama.cpp's default. It changes its results a little: `false` where these are compared. */
export async function openLlama(path, { threads, contextSize, flashAttention = 'auto' }) {
  const { getLlama, LlamaLogLevel } = await import('node-llama-cpp');
  const llama = await getLlama({
    gpu: false,
    build: 'never',
    progressLogs: false,
    maxThreads: threads,
    logLevel: LlamaLogLevel.error,
  });
  const model = await llama.loadModel({ modelPath: resolve(path), gpuLayers: 0, ignoreMemorySafetyChecks: true });
  const context = await model.createContext({
    contextSize,
    batchSize: 512,
    threads: { ideal: threads, min: threads },
    flashAttention,
    ignoreMemorySafetyChecks: true,
  });
  const sequence = context.getSequence();
  return { llama, model, sequence, threads: context.currentThreads, dispose: () => llama.dispose() };
}

const greedy = { token: true, options: { temperature: 0, topK: 0, topP: 1 }, logits: { filter: { includeTop: 2 } } };

/**
 * Exactly `count` greedy steps behind a prompt, stop tokens included: the ids, and by how much the best logit exceeds the
 * second best at each step.
 */
export async function greedySteps(sequence, prompt, count) {
  await sequence.clearHistory();
  const ids = [];
  const gaps = [];
  const step = async (input) => {
    const last = input.length - 1;
    const items = input.map((id, i) => (i === last ? [id, { generateNext: greedy }] : id));
    const { token, logits } = (await sequence.controlledEvaluate(items))[last].next;
    const [best, second] = [...logits.values()].sort((a, b) => b - a);
    ids.push(token);
    gaps.push(best - second);
  };
  await step(prompt);
  while (ids.length < count) await step([ids.at(-1)]);
  return { ids, gaps };
}

/** Tokens per second of one run of llama-bench, in a process of its own. */
export function llamaBench(program, path, { threads, prompt = 0, gen = 0, depth = 0 }) {
  const numbers = { '-t': threads, '-p': prompt, '-n': gen, '-d': depth, '-r': 1 };
  const args = ['-m', resolve(path), '-ngl', 0, '-o', 'json', ...Object.entries(numbers).flat()].map(String);
  const output = execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  return JSON.parse(output)[0].avg_ts;
}
