// How long does the event loop wait for its turn while the model works? Timers of 1 ms, late by how much.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { loadModel } from '../dist/esm.mjs';
import { commandLine, pause, printTable, verdict, watchNeighbours } from './common.mjs';

const MOST_P99 = 20;
const GENERATIONS = 4;

const usage = 'node event-loop.mjs [CHECKPOINT] [--seconds 5]';
const { values, positionals } = commandLine(usage, { seconds: { type: 'string' } });
const [checkpoint] = positionals;
const duration = Number(values.seconds ?? 5) * 1000;

async function measure(work) {
  const histogram = monitorEventLoopDelay({ resolution: 1 });
  histogram.enable();
  const count = await work(performance.now() + duration);
  histogram.disable();
  const milliseconds = (nanoseconds) => nanoseconds / 1e6;
  return {
    p50: milliseconds(histogram.percentile(50)),
    p99: milliseconds(histogram.percentile(99)),
    max: milliseconds(histogram.max),
    count,
  };
}

/** Four generations that are read as they come, each begun anew when it is at its end. */
async function stream(model, until) {
  let tokens = 0;
  const maxTokens = model.info.contextLength - 32;
  const one = async (seed) => {
    while (performance.now() < until) {
      for await (const chunk of model.generate('The capital of France is', { seed, maxTokens, stopTokens: [] })) {
        tokens += chunk.tokens.length;
        if (performance.now() >= until) break;
      }
    }
  };
  await Promise.all(Array.from({ length: GENERATIONS }, (_, seed) => one(seed)));
  return `${tokens} tokens`;
}

async function load(until) {
  let loads = 0;
  while (performance.now() < until) {
    await (await loadModel(checkpoint)).dispose();
    loads += 1;
  }
  return `${loads} loads`;
}

const neighbours = watchNeighbours();
const model = await loadModel(checkpoint);
await stream(model, performance.now() + 1000);
const results = {
  idle: await measure(async () => void (await pause(duration))),
  'four generations': await measure((until) => stream(model, until)),
};
await model.dispose();
await load(performance.now() + 200);
results.loading = await measure(load);

printTable([
  ['delay in ms', 'p50', 'p99', 'max', 'meanwhile'],
  ...Object.entries(results).map(([name, { p50, p99, max, count }]) => [
    name,
    p50.toFixed(2),
    p99.toFixed(2),
    max.toFixed(2),
    count ?? '',
  ]),
]);
const met = results['four generations'].p99 < MOST_P99;
console.log(`p99 below ${MOST_P99} ms while four generations stream: ${verdict(met)} (${neighbours()})`);
