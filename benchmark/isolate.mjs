// Many streams of the embedded model in a process of its own, beside the same in this process, by turns.
//
//   node benchmark/isolate.mjs [--streams 64] [--tokens 100] [--rounds 5]
import { parseArgs } from 'node:util';
import { loadModel } from '../dist/esm.mjs';

const { values } = parseArgs({
  options: {
    streams: { type: 'string', default: '64' },
    tokens: { type: 'string', default: '100' },
    rounds: { type: 'string', default: '5' },
  },
});
const [streams, maxTokens, rounds] = [values.streams, values.tokens, values.rounds].map(Number);
const options = { device: 'cpu', prefixCache: false, contextLength: 256, kvCacheTokens: 256 * (streams + 1) };
const models = {
  here: await loadModel(undefined, options),
  apart: await loadModel(undefined, { ...options, isolate: true }),
};

async function speed(model, seed) {
  const run = async (stream) => {
    const ids = Array.from({ length: 32 }, (_, i) => 100 + ((7919 * (i + 1) * (stream + 1) + seed) % 8000));
    let count = 0;
    for await (const { tokens } of model.generate(ids, { maxTokens, stopTokens: [], seed: seed + stream }))
      count += tokens.length;
    return count;
  };
  const begin = performance.now();
  const counts = await Promise.all(Array.from({ length: streams }, (_, stream) => run(stream)));
  return (counts.reduce((a, b) => a + b) * 1000) / (performance.now() - begin);
}

const results = { here: [], apart: [] };
for (const model of Object.values(models)) await speed(model, 1);
for (let round = 0; round < rounds; round++) {
  for (const [name, model] of Object.entries(models)) results[name].push(await speed(model, 10 + round));
}
const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const [here, apart] = [median(results.here), median(results.apart)];
console.log(
  `${streams} streams: ${here.toFixed(0)} tokens/s in this process, ${apart.toFixed(0)} in one of its own: ${((100 * apart) / here).toFixed(1)}%`,
);
await Promise.all(Object.values(models).map((model) => model.dispose()));
