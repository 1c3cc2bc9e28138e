import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import path from 'node:path';
import type { FastifyInstance } from 'fastify';
import type { Server } from '../../src/index';
import type { ModelPool } from '../../src/models/pool';

/** The compiled program: `npm run build:ts` makes it. */
export const MAIN = path.join(__dirname, '..', '..', 'dist', 'cli', 'main.js');

/** A route that generates, as the APIs do, and tells what it took. */
export function addGenerateRoute(app: FastifyInstance, models: ModelPool): void {
  app.post<{ Body: { model?: string; tokens?: number; prompt?: string } }>(
    '/v1/chat/completions/test',
    async (request) => {
      const { model: name, tokens = 8, prompt = '你好' } = request.body;
      const lease = await models.acquire(name, request.gone);
      try {
        const options = { maxTokens: tokens, temperature: 0, stopTokens: [], ...request.engineOptions(lease) };
        const { usage, timings, finishReason } = await lease.model.generate(prompt, options).result;
        request.caller.used({
          prompt: usage.promptTokens,
          generated: usage.generatedTokens,
          cached: usage.cachedTokens,
          finishReason,
          timings,
        });
        return { model: lease.id, usage };
      } finally {
        lease.release();
      }
    },
  );
}

export const GENERATE = '/v1/chat/completions/test';

export async function post(
  url: string,
  body: unknown,
  { headers = {}, signal }: { headers?: Record<string, string>; signal?: AbortSignal } = {},
  // biome-ignore lint/suspicious/noExplicitAny: what comes back is for the test to look at.
): Promise<{ status: number; headers: Headers; body: any }> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify(body),
    ...(signal && { signal }),
  });
  const text = await response.text();
  return { status: response.status, headers: response.headers, body: text === '' ? undefined : JSON.parse(text) };
}

// biome-ignore lint/suspicious/noExplicitAny: what comes back is for the test to look at.
export async function json(response: Response): Promise<any> {
  return await response.json();
}

/** Sends bytes, and gives all that came back until the connection was closed. */
export async function exchange(url: string, bytes: string | Buffer): Promise<string> {
  const { hostname, port } = new URL(url);
  const socket = net.connect(Number(port), hostname);
  let answer = '';
  socket.setEncoding('utf8').on('data', (text) => {
    answer += text;
  });
  socket.on('error', () => {});
  socket.write(bytes);
  await new Promise((resolve) => socket.once('close', resolve));
  return answer;
}

/** Resolves once the condition holds; it is looked at with each turn of the event loop. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 5));
}

export async function metric(server: Server, name: string, labels: Record<string, string> = {}): Promise<number> {
  const { body } = await server.app.inject({ url: '/metrics', headers: { host: 'localhost' } });
  return metricOf(body, name, labels);
}

export function metricOf(text: string, name: string, labels: Record<string, string> = {}): number {
  const wanted = Object.entries(labels).map(([label, value]) => `${label}="${value}"`);
  for (const line of text.split('\n')) {
    const [, found, given = '', value] = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (found === name && wanted.every((each) => given.includes(each))) return Number(value);
  }
  return Number.NaN;
}

/** A process of chatglm-server. */
export interface ServerProcess {
  child: ChildProcess;
  url: string;
  /** All that it wrote so far. */
  output(): string;
  ended: Promise<{ code: number | null; signal: NodeJS.Signals | null; stdout: string; stderr: string }>;
}

export function run(args: readonly string[], env: NodeJS.ProcessEnv = {}): Omit<ServerProcess, 'url'> {
  const child = spawn(process.execPath, [MAIN, ...args], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [stdout, stderr] = ['', ''];
  child.stdout?.setEncoding('utf8').on('data', (text) => {
    stdout += text;
  });
  child.stderr?.setEncoding('utf8').on('data', (text) => {
    stderr += text;
  });
  const ended = once(child, 'close').then(([code, signal]) => ({ code, signal, stdout, stderr }));
  return { child, output: () => stdout + stderr, ended };
}

/** Starts a server on a free port, and resolves when it is ready. */
export async function startProcess(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<ServerProcess> {
  const started = run(['--port', '0', '--device', 'cpu', ...args], env);
  let hasEnded = false;
  void started.ended.then(() => {
    hasEnded = true;
  });
  const address = () => /listening at (http:\/\/[^\s"]+)/.exec(started.output())?.[1];
  await until(() => hasEnded || address() !== undefined);
  const url = address();
  if (url === undefined) throw new Error(`the server did not start: ${started.output()}`);
  await until(async () => (await fetch(`${url}/ready`)).ok);
  return { ...started, url };
}
