// What HTTP costs: tokens per second of N streams over HTTP, by turns with the same N streams through the facade of the same
// model in the same process, and the median of the pairs' ratios. First tokens, gaps between pieces, the server's event loop and
// processor time stand beside them; then what idle connections take of memory.
//
//   node benchmark/server.mjs [--streams 64,256] [--tokens 128] [--rounds 5] [--sampling openai|greedy] [--device auto]
//     [--model FILE | --shape 6b --tokenizer FILE] [--clients N] [--idle 2000] [--bar 0.9] [--openai]
//   node benchmark/server.mjs --url http://127.0.0.1:8000 [--key KEY] …    a server that runs: no facade, no ratio
//
// Without --model and --shape the embedded model is measured. The clients are processes of their own that do as little as they
// can (benchmark/server-client.mjs); with --openai it is OpenAI's own client instead. Exits with 1 where the ratio is
// below the bar, or the 99th percentile of the event loop is above 15 ms.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { median, percentile, printTable, verdict, watchNeighbours } from './common.mjs';

const MOST_LOOP_P99_MS = 15;
const MOST_IDLE_BYTES = 100e6 / 2000;

const { values } = parseArgs({
  options: {
    streams: { type: 'string', default: '64' },
    tokens: { type: 'string', default: '128' },
    rounds: { type: 'string', default: '5' },
    sampling: { type: 'string', default: 'openai' },
    device: { type: 'string', default: 'auto' },
    model: { type: 'string' },
    shape: { type: 'string' },
    tokenizer: { type: 'string' },
    clients: { type: 'string', default: String(Math.max(1, Math.min(8, availableParallelism() >> 1))) },
    idle: { type: 'string', default: '0' },
    bar: { type: 'string', default: '0.9' },
    openai: { type: 'boolean', default: false },
    url: { type: 'string' },
    key: { type: 'string' },
    profile: { type: 'string' },
  },
});
const counts = values.streams.split(',').map(Number);
const tokens = Number(values.tokens);
const rounds = Number(values.rounds);
const most = Math.max(...counts);
const contextLength = Math.ceil((tokens + 128) / 64) * 64;
if (values.shape && !values.tokenizer) {
  console.error('--shape needs --tokenizer: a tokenizer.model, or a GGUF file that has one');
  process.exit(2);
}

// --- The processes.

let nextId = 1;
/** A process that answers messages, one at a time or several by their ids. */
function start(file, args = [], execArgv = []) {
  const child = fork(new URL(file, import.meta.url), args, { execArgv: ['--expose-gc', ...execArgv] });
  const waiting = new Map();
  child.on('message', ({ id, ...answer }) => {
    const settle = waiting.get(id);
    waiting.delete(id);
    settle?.(answer);
  });
  child.on('exit', (code, signal) => {
    if (waiting.size > 0) {
      console.error(`${file} ended: ${signal ?? code}`);
      process.exit(1);
    }
  });
  const wait = (id) => new Promise((resolve) => waiting.set(id, resolve));
  return {
    ready: wait('ready'),
    ended: once(child, 'exit'),
    async ask(message) {
      const id = nextId++;
      child.send({ id, ...message });
      const { error, result } = await wait(id);
      if (error !== undefined) throw new Error(error);
      return result;
    },
    end: () => child.disconnect(),
  };
}

const neighbours = watchNeighbours();
let host;
let target;
let banned;
if (values.url) {
  const { hostname, port } = new URL(values.url);
  target = { host: hostname, port: Number(port || 80) };
} else {
  const load = {
    device: values.device,
    contextLength,
    kvCacheTokens: (most + 1) * contextLength,
    maxQueue: 2 * most,
    ...(values.shape ? { speculation: false } : {}),
  };
  const { model: checkpoint, shape, tokenizer } = values;
  host = start(
    './server-host.mjs',
    [JSON.stringify({ checkpoint, shape, tokenizer, load })],
    values.profile ? ['--cpu-prof', `--cpu-prof-dir=${values.profile}`] : [],
  );
  await host.ready;
  const { name, device, kernels, threads, port, special } = await host.ask({ act: 'info' });
  console.log(`${name}, ${device}, ${kernels}, ${threads} threads; ${values.clients} processes of clients`);
  target = { host: '127.0.0.1', port };
  // An answer of random weights hardly ever ends by itself. The embedded model's would, sooner than in so many tokens.
  if (!shape && !checkpoint) banned = Object.fromEntries(special.map((id) => [id, -100]));
}
const clients = Array.from({ length: Number(values.clients) }, () => start('./server-client.mjs'));
await Promise.all(clients.map(({ ready }) => ready));

// --- One run of N streams, over HTTP or through the facade.

/** No two prompts are the same, or the prefix cache would answer the later one. */
let prompts = 0;
const question = () => `[${prompts++}] Tell me a story about a fox and a crow.`;
const sampling = values.sampling === 'greedy' ? { temperature: 0 } : {};

const ways = {
  async http(count) {
    const shares = clients.map((_, i) => Math.floor((count + i) / clients.length));
    const began = performance.now();
    const answers = await Promise.all(
      clients.map((client, i) =>
        client.ask({
          ...target,
          key: values.key,
          openai: values.openai,
          streams: Array.from({ length: shares[i] }, () => ({
            model: values.url ? undefined : 'benchmark',
            messages: [{ role: 'user', content: question() }],
            stream: true,
            stream_options: { include_usage: true },
            max_tokens: tokens,
            seed: prompts,
            ...sampling,
            ...(banned && { logit_bias: banned }),
          })),
        }),
      ),
    );
    return { ms: performance.now() - began, results: answers.flat() };
  },
  async facade(count) {
    const streams = Array.from({ length: count }, () => ({
      question: question(),
      options: {
        maxTokens: tokens,
        seed: prompts,
        temperature: 1,
        topP: 1,
        topK: 0,
        ...sampling,
        ...(banned && { logitBias: banned }),
      },
    }));
    return host.ask({ act: 'facade', streams });
  },
};
const compared = host ? ['facade', 'http'] : ['http'];

async function clientsCpuMs() {
  const each = await Promise.all(clients.map((client) => client.ask({ act: 'cpu' })));
  return each.reduce((sum, ms) => sum + ms, 0);
}

async function run(way, count) {
  await host?.ask({ act: 'watch' });
  const clientsBefore = await clientsCpuMs();
  const { ms, results } = await ways[way](count);
  const loop = (await host?.ask({ act: 'watched' })) ?? { p99Ms: Number.NaN, maxMs: Number.NaN, cpuMs: Number.NaN };
  const clientMs = (await clientsCpuMs()) - clientsBefore;
  const failed = results.find(({ error }) => error !== undefined);
  if (failed) throw new Error(`a stream failed: ${failed.error}`);
  const generated = results.reduce((sum, result) => sum + result.tokens, 0);
  return {
    speed: (1000 * generated) / ms,
    clientUs: (1000 * clientMs) / generated,
    hostUs: (1000 * loop.cpuMs) / generated,
    firstMs: results.map(({ firstMs }) => firstMs),
    gapsMs: results.flatMap(({ gapsMs }) => gapsMs),
    pieces: results.reduce((sum, { gapsMs }) => sum + gapsMs.length + 1, 0) / generated,
    ...loop,
  };
}

const rows = [
  [
    'streams',
    '',
    'tokens/s',
    'first ms p50',
    'p99',
    'gap ms p50',
    'p99',
    'pieces/token',
    'loop ms p99',
    'max',
    'loop busy',
    'CPU us/token',
    'clients',
  ],
];
const verdicts = [];
for (const count of counts) {
  const runs = Object.fromEntries(compared.map((way) => [way, []]));
  for (const way of compared) await run(way, count);
  for (let round = 0; round < rounds; round++) {
    // Who comes first changes: the one after the other would have the warmer machine.
    for (const way of round % 2 === 0 ? compared : [...compared].reverse()) runs[way].push(await run(way, count));
  }
  for (const way of compared) {
    const all = (what) => runs[way].flatMap((each) => each[what]);
    const of = (what) => median(runs[way].map((each) => each[what]));
    rows.push([
      count,
      way,
      of('speed').toFixed(0),
      percentile(all('firstMs'), 50).toFixed(1),
      percentile(all('firstMs'), 99).toFixed(1),
      percentile(all('gapsMs'), 50).toFixed(2),
      percentile(all('gapsMs'), 99).toFixed(2),
      of('pieces').toFixed(2),
      of('p99Ms').toFixed(2),
      Math.max(...all('maxMs')).toFixed(2),
      `${(100 * of('utilization')).toFixed(0)}%`,
      of('hostUs').toFixed(0),
      of('clientUs').toFixed(0),
    ]);
  }
  if (host) {
    const speeds = (way) => runs[way].map(({ speed }) => speed);
    // Of runs that followed each other: what else a machine does changes from minute to minute, and is the same for both.
    const pairs = speeds('http').map((speed, i) => speed / speeds('facade')[i]);
    const ratio = median(pairs);
    const span = `${(100 * Math.min(...pairs)).toFixed(1)} to ${(100 * Math.max(...pairs)).toFixed(1)}%`;
    verdicts.push(
      `${count} streams: HTTP gives ${(100 * ratio).toFixed(1)}% of the facade's tokens/s (${span}), ` +
        `at least ${100 * values.bar}%: ${verdict(ratio >= Number(values.bar))}`,
    );
    const cpu = (way) => median(runs[way].map(({ hostUs }) => hostUs));
    verdicts.push(
      `${count} streams: the server's process takes ${((100 * cpu('http')) / cpu('facade')).toFixed(1)}% of the facade's ` +
        'processor time for a token',
    );
    const p99 = median(runs.http.map(({ p99Ms }) => p99Ms));
    verdicts.push(
      `${count} streams: event loop's 99th percentile ${p99.toFixed(2)} ms, below ${MOST_LOOP_P99_MS}: ` +
        verdict(p99 < MOST_LOOP_P99_MS),
    );
  }
}
printTable(rows);
for (const line of verdicts) console.log(line);

// --- Idle connections.

const idle = Number(values.idle);
if (idle > 0 && host) {
  const before = await host.ask({ act: 'memory' });
  const kept = await clients[0].ask({ ...target, idle });
  const after = await host.ask({ act: 'memory' });
  const each = (after.rss - before.rss) / kept;
  console.log(
    `${kept} of ${idle} idle connections take ${((after.rss - before.rss) / 1e6).toFixed(1)} MB, ${(each / 1000).toFixed(1)} kB each, ` +
      `at most ${MOST_IDLE_BYTES / 1000} kB: ${verdict(kept === idle && each < MOST_IDLE_BYTES)}`,
  );
}
console.log(neighbours());
const processes = host ? [...clients, host] : clients;
for (const each of processes) each.end();
await Promise.all(processes.map(({ ended }) => ended));
