// The measured process of benchmark/server.mjs: one model, which the facade's streams and the server's share, so that nothing
// but HTTP is between the two. Options come as JSON in the first argument; what to do comes from the parent.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { loadModel, loadSyntheticModel } from '../dist/esm.mjs';
import { createServer } from '../server/dist/index.js';

const { checkpoint, shape, tokenizer, load } = JSON.parse(process.argv[2]);
const model = shape ? await loadSyntheticModel({ shape, tokenizer, ...load }) : await loadModel(checkpoint, load);
const server = createServer({ model: { id: 'benchmark', model }, logger: false, batch: false });
const { port } = new URL(await server.listen({ port: 0 }));

/** The same as benchmark/server-client.mjs does over HTTP: what there is of an answer is looked at as it comes. */
async function stream({ question, options }) {
  const began = performance.now();
  const gapsMs = [];
  let firstMs = 0;
  let last = 0;
  const answer = model.createChat(options).stream(question);
  for await (const { text } of answer) {
    if (text === '') continue;
    const now = performance.now();
    if (last === 0) firstMs = now - began;
    else gapsMs.push(now - last);
    last = now;
  }
  const { usage } = await answer.result;
  return { tokens: usage.generatedTokens, firstMs, gapsMs };
}

const delay = monitorEventLoopDelay({ resolution: 1 });
let utilization = performance.eventLoopUtilization();
let cpu = process.cpuUsage();

const acts = {
  info: () => {
    const { name, device, kernels, threads } = model.info;
    return { name, device, kernels, threads, port, special: specialTokens() };
  },
  facade: async ({ streams }) => {
    const began = performance.now();
    const results = await Promise.all(streams.map(stream));
    return { ms: performance.now() - began, results };
  },
  /** From here on the event loop is watched. */
  watch: () => {
    delay.reset();
    delay.enable();
    utilization = performance.eventLoopUtilization();
    cpu = process.cpuUsage();
  },
  watched: () => {
    delay.disable();
    const { user, system } = process.cpuUsage(cpu);
    return {
      // Timers of 1 ms: what they are late by.
      p99Ms: Math.max(0, delay.percentile(99) / 1e6 - 1),
      maxMs: Math.max(0, delay.max / 1e6 - 1),
      utilization: performance.eventLoopUtilization(utilization).utilization,
      cpuMs: (user + system) / 1000,
    };
  },
  memory: () => {
    for (let i = 0; i < 3; i++) globalThis.gc?.();
    return { rss: process.memoryUsage.rss() };
  },
};

/** Ids of special tokens: with one of them an answer may end. */
function specialTokens() {
  const { roles, ...others } = model.tokenizer.special;
  return [...Object.values(others), ...Object.values(roles ?? {})];
}

process.on('message', async ({ id, act, ...rest }) => {
  try {
    process.send({ id, result: (await acts[act](rest)) ?? null });
  } catch (error) {
    process.send({ id, error: error.stack ?? String(error) });
  }
});
process.on('disconnect', () => process.exit());
process.send({ id: 'ready' });
