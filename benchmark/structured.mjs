// What answers that follow a grammar cost: tokens per second of several streams that follow a JSON schema, or a regular
// expression, by turns with free ones, as a share of what free ones give; and how much longer the first answer with a new
// schema of 100 properties waits. Through the facade, as users get it.
//
//   node benchmark/structured.mjs [--shape 6b --tokenizer FILE] [--device auto] [--streams 1,8] [--tokens 64] [--rounds 5]
//
// Without a shape the embedded model is measured.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { loadModel, loadSyntheticModel } from '../dist/esm.mjs';

const { values } = parseArgs({
  options: {
    shape: { type: 'string' },
    tokenizer: { type: 'string' },
    device: { type: 'string', default: 'auto' },
    streams: { type: 'string', default: '1,8' },
    tokens: { type: 'string', default: '64' },
    rounds: { type: 'string', default: '5' },
  },
});
const tokens = Number(values.tokens);
const rounds = Number(values.rounds);
const streams = values.streams.split(',').map(Number);
const most = Math.max(...streams);
const contextLength = 1024;
const options = {
  device: values.device,
  kvCacheTokens: (most + 1) * contextLength,
  maxQueue: most,
  prefixCache: false,
};
const model = values.shape
  ? await loadSyntheticModel({ ...options, shape: values.shape, tokenizer: values.tokenizer, contextLength })
  : await loadModel(undefined, options);
console.log(model.info.name, model.info.device, model.info.kernels, model.info.threads, 'threads');

const person = {
  type: 'object',
  properties: {
    name: { type: 'string' },
    age: { type: 'integer', minimum: 0, maximum: 150 },
    tags: { type: 'array', items: { type: 'string', maxLength: 20 }, maxItems: 5 },
    address: {
      type: 'object',
      properties: { city: { type: 'string' }, zip: { type: 'string', pattern: '^[0-9]{5}$' } },
    },
  },
  required: ['name', 'age'],
};
// Enough of each to generate, and little enough that the shortest end is far within maxTokens.
const kinds = {
  free: undefined,
  'a JSON schema': { type: 'json_schema', schema: { type: 'array', items: person, minItems: 20 } },
  'any JSON': { type: 'json_schema', schema: { type: 'array', items: {}, minItems: 100 } },
  'a regular expression': { type: 'regex', pattern: '([a-z]{3,8}, ){20,}' },
};

/** Tokens per second of all streams together until the slowest has `tokens`. */
async function speed(count, responseFormat, seed) {
  const run = async (stream) => {
    const generation = model.generate(`# ${stream} ${seed}\n`, {
      temperature: 1,
      topP: 1,
      topK: 0,
      seed: seed + stream,
      // Free answers must not end early either.
      ...(responseFormat ? { responseFormat } : { stopTokens: [] }),
      maxTokens: 900,
    });
    let begin;
    let generated = 0;
    for await (const chunk of generation) {
      begin ??= performance.now();
      generated += chunk.tokens.length;
      if (generated >= tokens) break;
    }
    return { begin, end: performance.now(), generated };
  };
  const results = await Promise.all(Array.from({ length: count }, (_, stream) => run(stream)));
  const ms = Math.max(...results.map(({ end }) => end)) - Math.min(...results.map(({ begin }) => begin));
  return (results.reduce((sum, { generated }) => sum + generated, 0) * 1000) / ms;
}

const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
for (const count of streams) {
  const results = Object.fromEntries(Object.keys(kinds).map((kind) => [kind, []]));
  for (const format of Object.values(kinds)) await speed(count, format, 1);
  for (let round = 0; round < rounds; round++) {
    for (const [kind, format] of Object.entries(kinds)) results[kind].push(await speed(count, format, 10 + round));
  }
  for (const kind of Object.keys(kinds)) {
    const shares = results[kind].map((value, round) => value / results.free[round]);
    console.log(
      `${count} streams, ${kind}: ${median(results[kind]).toFixed(1)} tokens/s, ${(100 * median(shares)).toFixed(1)}% of free`,
    );
  }
}

// A new schema each time: its time to the first token beside that of a free answer.
const delay = monitorEventLoopDelay({ resolution: 1 });
const waits = { free: [], schema: [] };
const firstToken = async (responseFormat, seed) => {
  const begin = performance.now();
  const generation = model.generate(`# ${seed}\n`, {
    maxTokens: 1000,
    seed,
    ...(responseFormat && { responseFormat }),
  });
  for await (const _ of generation) break;
  return performance.now() - begin;
};
await firstToken(undefined, 0);
delay.enable();
for (let round = 0; round < 3 * rounds; round++) {
  const kind = ['string', 'integer', 'number', 'boolean', 'null'];
  const properties = Object.fromEntries(
    Array.from({ length: 100 }, (_, i) => [`property_${round}_${i}`, { type: kind[i % kind.length] }]),
  );
  const schema = { type: 'object', properties, required: Object.keys(properties).filter((_, i) => i % 2 === 0) };
  waits.free.push(await firstToken(undefined, 100 + round));
  waits.schema.push(await firstToken({ type: 'json_schema', schema }, 100 + round));
}
delay.disable();
console.log(
  `first token: ${median(waits.free).toFixed(1)} ms free, ${median(waits.schema).toFixed(1)} ms with a new schema of 100 properties ` +
    `(${Math.max(...waits.schema).toFixed(1)} at most); event loop delay at 99%: ${(delay.percentile(99) / 1e6).toFixed(1)} ms`,
);
await model.dispose();
