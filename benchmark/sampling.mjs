// What sampling options cost: tokens per second of several streams with each set of options, by turns with greedy ones, as
// a share of what greedy gives. Through the facade, as users get it.
//
//   node benchmark/sampling.mjs [--shape 6b] [--device auto] [--streams 1,8] [--prompt 128] [--tokens 32] [--rounds 3]
import { parseArgs } from 'node:util';
import { loadSyntheticModel } from '../dist/esm.mjs';

const { values } = parseArgs({
  options: {
    shape: { type: 'string', default: '6b' },
    device: { type: 'string', default: 'auto' },
    streams: { type: 'string', default: '1,8' },
    prompt: { type: 'string', default: '128' },
    tokens: { type: 'string', default: '32' },
    rounds: { type: 'string', default: '3' },
  },
});
const promptTokens = Number(values.prompt);
const maxTokens = Number(values.tokens);
const streams = values.streams.split(',').map(Number);
const openai = { temperature: 1, topP: 1, topK: 0 };
const kinds = {
  greedy: { temperature: 0 },
  "THUDM's defaults": {},
  "OpenAI's defaults": openai,
  'repetitionPenalty 1.1': { repetitionPenalty: 1.1 },
  'all, 5 logprobs': {
    ...openai,
    topP: 0.9,
    topK: 200,
    minP: 0.01,
    repetitionPenalty: 1.1,
    presencePenalty: 0.3,
    frequencyPenalty: 0.2,
    logitBias: { 100: 2, 200: -3 },
    badWords: [[5, 6], [7]],
    logprobs: 5,
  },
};
const contextLength = promptTokens + maxTokens;
const most = Math.max(...streams);
const model = await loadSyntheticModel({
  shape: values.shape,
  device: values.device,
  contextLength,
  kvCacheTokens: (most + 1) * Math.ceil(contextLength / 64) * 64,
  maxQueue: most,
  prefixCache: false,
  speculation: false,
});
console.log(model.info.device, model.info.kernels, model.info.threads, 'threads');

/** Tokens per second of all streams together: while they generate, by the slowest one, and with their prompts. */
async function speed(count, options, seed) {
  const run = (stream) => {
    const ids = Array.from({ length: promptTokens }, (_, i) => (7919 * (i + 1) * (stream + 1) + seed) % 60_000);
    return model.generate(ids, { ...options, maxTokens, stopTokens: [], seed: seed + stream }).result;
  };
  const begin = performance.now();
  const results = await Promise.all(Array.from({ length: count }, (_, stream) => run(stream)));
  const all = (count * maxTokens * 1000) / (performance.now() - begin);
  const decodeMs = Math.max(...results.map(({ timings }) => timings.decodeMs));
  return { all, decode: (count * (maxTokens - 1) * 1000) / decodeMs };
}

const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
for (const count of streams) {
  const results = Object.fromEntries(Object.keys(kinds).map((kind) => [kind, []]));
  await speed(count, kinds.greedy, 1);
  for (let round = 0; round < Number(values.rounds); round++) {
    for (const [kind, options] of Object.entries(kinds)) results[kind].push(await speed(count, options, 10 + round));
  }
  const of = (kind, what) => median(results[kind].map((result) => result[what]));
  for (const kind of Object.keys(kinds)) {
    const share = (what) => `${((100 * of(kind, what)) / of('greedy', what)).toFixed(1)}%`;
    console.log(
      `${count} streams, ${kind}: ${of(kind, 'decode').toFixed(1)} tokens/s decoding (${share('decode')}), ` +
        `${of(kind, 'all').toFixed(1)} with the prompts (${share('all')})`,
    );
  }
}
await model.dispose();
