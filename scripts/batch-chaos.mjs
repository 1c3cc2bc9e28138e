/**
 * A large batch on several servers and workers that share a Redis, while processes are killed at random: are all lines
 * answered, each once, in order, and right?
 *
 *     npm run -s build:ts && node scripts/batch-chaos.mjs [--lines 10000] [--servers 3] [--workers 3] [--seed 1]
 *
 * Needs redis-server. Every few seconds a worker or a server is killed with SIGKILL and started again, and now and then
 * Redis is, with its append-only file; others stand still until their work is another's. At the end each answer is compared with what the facade says in this process.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { loadModel } from '../dist/esm.mjs';
import { randomOf } from './random.mjs';

const { values } = parseArgs({
  options: {
    lines: { type: 'string', default: '10000' },
    servers: { type: 'string', default: '3' },
    workers: { type: 'string', default: '3' },
    seed: { type: 'string', default: '1' },
  },
});
const lineCount = Number(values.lines);
const MAIN = fileURLToPath(new URL('../server/dist/cli/main.js', import.meta.url));
const MODEL = 'chatglm-tiny';
const directory = mkdtempSync(path.join(tmpdir(), 'chatglm-batch-chaos-'));
const kills = { worker: 0, server: 0, redis: 0 };
let pauses = 0;

const { next: random, of: pick } = randomOf(Number(values.seed));

/** A process that is started again and again. */
class Program {
  found = undefined;
  #child;

  constructor(kind, command, args, ready) {
    Object.assign(this, { kind, command, args, ready });
  }

  async start() {
    const child = spawn(this.command, this.args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    const output = [];
    child.stderr.on('data', (text) => output.push(String(text)));
    this.found = await new Promise((resolve, reject) => {
      createInterface({ input: child.stdout }).on('line', (line) => {
        if (output.length < 100) output.push(line);
        const match = this.ready.exec(line);
        if (match) resolve(match[1] ?? match[0]);
      });
      child.once('exit', () => reject(new Error(`${this.kind} ended: ${output.join('\n')}`)));
    });
  }

  async pause(ms) {
    const child = this.#child;
    child.kill('SIGSTOP');
    await sleep(ms);
    child.kill('SIGCONT');
  }

  async kill() {
    const child = this.#child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    this.found = undefined;
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

const promptOf = (i) => `第${i}行：${pick(['你好', '今天', 'hello', '一二三', 'why'])}`;
const OPTIONS = { max_tokens: 4, temperature: 0 };
const prompts = Array.from({ length: lineCount }, (_, i) => promptOf(i));

const port = await freePort();
const redis = new Program(
  'redis',
  'redis-server',
  ['--port', port, '--bind', '127.0.0.1', '--dir', directory, '--save', '', '--appendonly', 'yes'].map(String),
  /Ready to accept connections/,
);
const common = ['--redis', `redis://127.0.0.1:${port}`, '--device', 'cpu', '--threads', '1', '--log-format', 'json'];
const servers = Array.from(
  { length: Number(values.servers) },
  () => new Program('server', process.execPath, [MAIN, '--port', '0', ...common], /(http:\/\/127\.0\.0\.1:\d+)/),
);
const workers = Array.from(
  { length: Number(values.workers) },
  () => new Program('worker', process.execPath, [MAIN, 'worker', ...common], /the worker takes lines/),
);

/** Asks any server that is there, until one answers. */
async function ask(url, init) {
  for (;;) {
    const { found } = pick(servers);
    try {
      if (found === undefined) throw new Error('killed');
      const response = await fetch(`${found}${url}`, { ...init, signal: AbortSignal.timeout(20_000) });
      if (response.ok) return response;
      if (response.status < 500) throw Object.assign(new Error(await response.text()), { isFinal: true });
    } catch (error) {
      if (error.isFinal) throw error;
    }
    await sleep(100);
  }
}

let isOver = false;

/** Kills something every few seconds. */
async function makeChaos() {
  for (let round = 1; !isOver; round++) {
    await sleep(1000 + random() * 3000);
    if (isOver) return;
    const victim = round % 5 === 0 ? redis : random() < 0.6 ? pick(workers) : pick(servers);
    if (victim !== redis && random() < 0.15) {
      // A process that stands still, and goes on when others have its work.
      pauses++;
      void victim.pause(11_000 + random() * 4000);
      continue;
    }
    await victim.kill();
    kills[victim.kind]++;
    await sleep(random() * 2000);
    await victim.start();
  }
}

const began = performance.now();
const seconds = () => (performance.now() - began) / 1000;
try {
  await redis.start();
  await Promise.all([...servers, ...workers].map((program) => program.start()));
  const input = prompts
    .map((prompt, i) => {
      const body = { model: MODEL, prompt, echo: true, ...OPTIONS };
      return `${JSON.stringify({ custom_id: `line-${i}`, method: 'POST', url: '/v1/completions', body })}\n`;
    })
    .join('');
  const form = new FormData();
  form.append('purpose', 'batch');
  form.append('file', new Blob([input]), 'chaos.jsonl');
  const file = await (await ask('/v1/files', { method: 'POST', body: form })).json();
  const order = { input_file_id: file.id, endpoint: '/v1/completions', completion_window: '24h' };
  const headers = { 'content-type': 'application/json' };
  const started = seconds();
  let batch = await (await ask('/v1/batches', { method: 'POST', body: JSON.stringify(order), headers })).json();
  console.log(`${lineCount} lines, ${servers.length} servers, ${workers.length} workers, batch ${batch.id}`);
  const chaos = makeChaos();
  let told = 0;
  let moved = { count: 0, at: seconds() };
  let longestPause = 0;
  let wentBack = 0;
  while (!['completed', 'failed', 'expired', 'cancelled'].includes(batch.status)) {
    await sleep(500);
    batch = await (await ask(`/v1/batches/${batch.id}`)).json();
    const { completed, failed } = batch.request_counts;
    if (completed + failed < moved.count) {
      wentBack++;
      console.log(`progress went back from ${moved.count} to ${completed + failed}`);
    }
    if (completed + failed !== moved.count) {
      longestPause = Math.max(longestPause, seconds() - moved.at);
      moved = { count: completed + failed, at: seconds() };
    }
    if (seconds() - told > 15) {
      told = seconds();
      console.log(
        `${(told - started).toFixed(0)} s: ${batch.status}, ${completed} answered, ${failed} failed`,
        JSON.stringify(kills),
      );
    }
  }
  const taken = seconds() - started;
  isOver = true;
  await chaos;
  console.log(`${batch.status} after ${taken.toFixed(1)} s (${(lineCount / taken).toFixed(1)} lines/s)`);
  console.log(
    `killed: ${JSON.stringify(kills)}; stood still: ${pauses}; longest time without progress: ${longestPause.toFixed(1)} s`,
  );
  const text = await (await ask(`/v1/files/${batch.output_file_id}/content`)).text();
  const answers = text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line));
  await Promise.all([...servers, ...workers].map((program) => program.kill()));

  const ids = new Set(answers.map(({ id }) => id));
  const inOrder = answers.every(({ custom_id: id }, i) => id === `line-${i}`);
  const model = await loadModel(null, { device: 'cpu' });
  let wrong = 0;
  let next = 0;
  await Promise.all(
    Array.from({ length: 64 }, async () => {
      for (let i = next++; i < lineCount; i = next++) {
        const options = { maxTokens: OPTIONS.max_tokens, temperature: 0, topP: 1, topK: 0 };
        const { text: right } = await model.generate(prompts[i], options).result;
        const given = answers[i]?.response?.body?.choices?.[0]?.text;
        if (given === prompts[i] + right) continue;
        if (wrong++ < 5)
          console.log(`line ${i}: ${JSON.stringify(given)} in place of ${JSON.stringify(prompts[i] + right)}`);
      }
    }),
  );
  await model.dispose();
  const isRight =
    batch.status === 'completed' &&
    batch.request_counts.completed === lineCount &&
    answers.length === lineCount &&
    ids.size === lineCount &&
    inOrder &&
    wrong === 0 &&
    wentBack === 0;
  console.log(
    `${answers.length} answers, ${ids.size} distinct, ${inOrder ? 'in order' : 'NOT in order'}, ${wrong} wrong: ` +
      `${isRight ? 'as it should be' : 'FAILED'} (${seconds().toFixed(0)} s altogether)`,
  );
  if (!isRight) process.exitCode = 1;
} finally {
  isOver = true;
  await Promise.all([...servers, ...workers, redis].map((program) => program.kill()));
  rmSync(directory, { recursive: true, force: true });
}
