// Speed beside llama.cpp on one GGUF file: prefill and decode, by turns, so that a busy neighbour disturbs both.
import { basename } from 'node:path';
import { embeddedModelPath, loadModel } from '../dist/esm.mjs';
import { commandLine, defaultThreads, median, pause, printTable, randomIds, watchNeighbours } from './common.mjs';
import { openLlama } from './llama-cpp.mjs';

const usage = 'node compare-llama-cpp.mjs [FILE.gguf] [--prompt 512] [--depth 32] [--gen 64] [--runs 3] [--threads N]';
const option = { type: 'string' };
const { values, positionals } = commandLine(usage, {
  prompt: option,
  depth: option,
  gen: option,
  runs: option,
  threads: option,
});
const {
  prompt = 512,
  depth = 32,
  gen = 64,
  runs = 3,
  threads = defaultThreads,
} = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, Number(value)]));
const path = positionals[0] ?? embeddedModelPath();

const neighbours = watchNeighbours();

// Both give tokens through their streaming interface; the clock is the one of JavaScript. Greedy, through stop tokens.
const model = await loadModel(path, { threads, device: 'cpu', prefixCache: false });
const contextSize = Math.ceil((Math.max(prompt, depth + gen) + 1) / 256) * 256;
const peer = await openLlama(path, { threads, contextSize });

async function* ownTokens(ids, maxTokens) {
  for await (const { tokens } of model.generate(ids, { temperature: 0, maxTokens, stopTokens: [] }))
    yield tokens.length;
}

async function* peerTokens(ids, maxTokens) {
  await peer.sequence.clearHistory();
  let count = 0;
  for await (const _ of peer.sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
    yield 1;
    count += 1;
    if (count === maxTokens) return;
  }
}

/** Tokens per second of a prompt's evaluation, its first answer token included; and of the tokens after that one. */
async function speed(tokens, ids, maxTokens) {
  const began = performance.now();
  let first;
  let last;
  let later = 0;
  for await (const count of tokens(ids, maxTokens)) {
    last = performance.now();
    if (first === undefined) first = last;
    else later += count;
  }
  return maxTokens === 1 ? (ids.length * 1000) / (first - began) : (later * 1000) / (last - first);
}

const measurements = { prefill: { tokens: prompt, maxTokens: 1 }, decode: { tokens: depth, maxTokens: gen + 1 } };
const rows = [['tokens/s', 'here', 'llama.cpp', 'ratio', 'runs here', 'runs llama.cpp']];
for (const [name, { tokens, maxTokens }] of Object.entries(measurements)) {
  const own = [];
  const other = [];
  // The first run of each warms up.
  for (let run = 0; run <= runs; run++) {
    const ids = randomIds(tokens, model.info.vocabSize, run + 1);
    for (const [list, stream] of [
      [own, ownTokens],
      [other, peerTokens],
    ]) {
      // Threads of the one that still spin for work would take the other's time.
      await pause(200);
      list.push(await speed(stream, ids, maxTokens));
    }
  }
  own.shift();
  other.shift();
  const list = (values) => values.map((value) => value.toPrecision(3)).join(' ');
  rows.push([
    name === 'prefill' ? `prefill ${tokens}` : `decode at ${tokens}`,
    median(own).toPrecision(3),
    median(other).toPrecision(3),
    `${(median(own) / median(other)).toFixed(2)} x`,
    list(own),
    list(other),
  ]);
}
printTable(rows);
console.log(
  `${basename(path)}, ${model.info.kernels}, ${model.info.threads} threads (llama.cpp ${peer.threads}); ${neighbours()}`,
);
await model.dispose();
await peer.dispose();
