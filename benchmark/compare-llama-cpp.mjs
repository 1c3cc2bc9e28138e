// Speed beside llama.cpp on one GGUF file: prefill and decode, by turns with a plain read of memory, so that busy neighbours
// and the memory's own moods disturb all alike.
import { basename } from 'node:path';
import { embeddedModelPath, loadModel, measureBandwidth } from '../dist/esm.mjs';
import { commandLine, defaultThreads, median, pause, printTable, randomIds, watchNeighbours } from './common.mjs';
import { llamaBench, openLlama } from './llama-cpp.mjs';

const usage =
  'node compare-llama-cpp.mjs [FILE.gguf] [--prompt 512] [--depth 32,2048] [--gen 32] [--runs 5] [--threads N] [--llama-bench PROGRAM]';
const option = { type: 'string' };
const { values, positionals } = commandLine(usage, {
  prompt: option,
  depth: option,
  gen: option,
  runs: option,
  threads: option,
  'llama-bench': option,
});
const prompt = Number(values.prompt ?? 512);
const depths = (values.depth ?? '32').split(',').map(Number);
const gen = Number(values.gen ?? 32);
const runs = Number(values.runs ?? 5);
const threads = Number(values.threads ?? defaultThreads);
const program = values['llama-bench'];
const path = positionals[0] ?? embeddedModelPath();

const neighbours = watchNeighbours();
const longest = Math.max(prompt + 1, ...depths.map((depth) => depth + gen + 1));
const model = await loadModel(path, { threads, device: 'cpu', contextLength: longest, maxSequences: 2 });
const { vocabSize } = model.info;
const greedy = { temperature: 0, stopTokens: [] };

// Each: tokens per second of a prompt's evaluation, its first answer token included, and of `gen` single tokens behind so
// many. The clock is JavaScript's; llama-bench has its own.
const own = {
  async prefill(ids) {
    const began = performance.now();
    await model.generate(ids, { ...greedy, maxTokens: 1 }).result;
    return (ids.length * 1000) / (performance.now() - began);
  },
  async decode(ids) {
    let first;
    let last;
    // The prompt is found in the prefix cache from the second run on.
    for await (const _ of model.generate(ids, { ...greedy, maxTokens: gen + 1 })) {
      last = performance.now();
      first ??= last;
    }
    return (gen * 1000) / (last - first);
  },
};

async function nodeLlamaCpp() {
  const {
    sequence,
    dispose,
    threads: used,
  } = await openLlama(path, { threads, contextSize: Math.ceil(longest / 256) * 256 });
  const evaluateOptions = { temperature: 0, yieldEogToken: true };
  return {
    name: 'node-llama-cpp',
    threads: used,
    dispose,
    async prefill(ids) {
      await sequence.clearHistory();
      const began = performance.now();
      for await (const _ of sequence.evaluate(ids, evaluateOptions)) break;
      return (ids.length * 1000) / (performance.now() - began);
    },
    async decode(ids) {
      // All but the last token of the prompt stay, if they are there already.
      if (sequence.nextTokenIndex < ids.length || sequence.contextTokens[ids.length - 2] !== ids.at(-2)) {
        await sequence.clearHistory();
        await sequence.evaluateWithoutGeneratingNewTokens(ids.slice(0, -1));
      } else {
        await sequence.eraseContextTokenRanges([{ start: ids.length - 1, end: sequence.nextTokenIndex }]);
      }
      let first;
      let count = -1;
      for await (const _ of sequence.evaluate(ids.slice(-1), evaluateOptions)) {
        first ??= performance.now();
        if (++count === gen) break;
      }
      return (gen * 1000) / (performance.now() - first);
    },
  };
}

const peer = program
  ? {
      name: 'llama-bench',
      threads,
      dispose() {},
      prefill: (ids) => llamaBench(program, path, { threads, prompt: ids.length }),
      decode: (ids) => llamaBench(program, path, { threads, gen, depth: ids.length }),
    }
  : await nodeLlamaCpp();

const rows = [['tokens/s', 'here', peer.name, 'ratio', 'GB/s read', 'runs here', `runs ${peer.name}`, 'runs GB/s']];
const measurements = [
  { name: `prefill ${prompt}`, kind: 'prefill', tokens: prompt },
  ...depths.map((depth) => ({ name: `decode at ${depth}`, kind: 'decode', tokens: depth })),
];
for (const { name, kind, tokens } of measurements) {
  const results = { own: [], peer: [], read: [] };
  // The first run of each warms up.
  for (let run = 0; run <= runs; run++) {
    const ids = randomIds(tokens, vocabSize, kind === 'prefill' ? run + 1 : 1000 + tokens);
    results.read.push(measureBandwidth(threads) / 1e9);
    results.own.push(await own[kind](ids));
    // Threads of the one that still spin for work would take the other's time.
    await pause(200);
    // A program that is started anew each time has nothing to warm up.
    results.peer.push(run === 0 && program ? Number.NaN : await peer[kind](ids));
    await pause(200);
  }
  for (const list of Object.values(results)) list.shift();
  const list = (numbers) => numbers.map((value) => value.toPrecision(3)).join(' ');
  const middle = Object.fromEntries(Object.entries(results).map(([key, numbers]) => [key, median(numbers)]));
  rows.push([
    name,
    middle.own.toPrecision(3),
    middle.peer.toPrecision(3),
    `${(middle.own / middle.peer).toFixed(2)} x`,
    middle.read.toPrecision(3),
    list(results.own),
    list(results.peer),
    list(results.read),
  ]);
}
printTable(rows);
console.log(
  `${basename(path)}, ${model.info.kernels}, ${model.info.threads} threads (${peer.name} ${peer.threads}); ${neighbours()}`,
);
await model.dispose();
await peer.dispose();
