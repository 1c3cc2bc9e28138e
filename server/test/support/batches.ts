import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { createInterface } from 'node:readline';
import type OpenAI from 'openai';
import { toFile } from 'openai';
import type { Batch } from 'openai/resources/batches';
import type { Json } from './served';

/** A line for `/v1/completions` whose answer tells which line it is for. */
export function echoLine(index: number, body: object = {}): object {
  return {
    custom_id: `request-${index}`,
    method: 'POST',
    url: '/v1/completions',
    body: { prompt: `第${index}行：你好`, max_tokens: 2, temperature: 0, echo: true, ...body },
  };
}

export async function upload(client: OpenAI, lines: readonly object[]): Promise<string> {
  const text = lines.map((line) => `${JSON.stringify(line)}\n`).join('');
  const { id } = await client.files.create({ purpose: 'batch', file: await toFile(Buffer.from(text), 'lines.jsonl') });
  return id;
}

export async function startBatch(
  client: OpenAI,
  lines: readonly object[],
  endpoint: '/v1/completions' | '/v1/chat/completions' | '/v1/responses' = '/v1/completions',
): Promise<Batch> {
  return await client.batches.create({
    input_file_id: await upload(client, lines),
    endpoint,
    completion_window: '24h',
  });
}

/** Asks until something is so, whatever a server that is away answers meanwhile. */
export async function until<T>(ask: () => Promise<T>, isSo: (value: T) => boolean): Promise<T> {
  for (;;) {
    const value = await ask().catch(() => undefined);
    if (value !== undefined && isSo(value)) return value;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const OVER = ['completed', 'failed', 'expired', 'cancelled'];

export async function batchOver(client: OpenAI, id: string): Promise<Batch> {
  return await until(
    () => client.batches.retrieve(id),
    ({ status }) => OVER.includes(status),
  );
}

export async function contentOf(client: OpenAI, id: string | null | undefined): Promise<Json[]> {
  const text = await (await client.files.content(id as string)).text();
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line));
}

/** Fails unless a file has the answers to so many lines of {@link echoLine}, each once and in order. */
export function expectEchoes(answers: readonly Json[], count: number): void {
  expect(answers.map(({ custom_id: id }) => id)).toEqual(Array.from({ length: count }, (_, i) => `request-${i}`));
  answers.forEach(({ response, error }, i) => {
    expect(error).toBeNull();
    expect(response.status_code).toBe(200);
    const { text } = response.body.choices[0];
    if (!text.startsWith(`第${i}行：你好`)) throw new Error(`line ${i} has the answer ${text}`);
  });
  expect(new Set(answers.map(({ id }) => id)).size).toBe(count);
}

/** A program of this package in a process of its own. */
export interface Program {
  process: ChildProcess;
  /** What `ready` found in its output. */
  found: string;
  kill(signal: NodeJS.Signals): Promise<void>;
}

/** Starts a process, and waits until a line of its output has what is looked for. */
export async function startProgram(command: string, args: readonly string[], ready: RegExp): Promise<Program> {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const gone = once(child, 'exit');
  const kill = async (signal: NodeJS.Signals) => {
    child.kill(signal);
    await gone;
  };
  const output: string[] = [];
  child.stderr.on('data', (text) => output.push(String(text)));
  const found = await new Promise<string>((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      output.push(line);
      const match = ready.exec(line);
      if (match) resolve(match[1] ?? match[0]);
    });
    child.once('error', reject);
    child.once('exit', () => reject(new Error(`${command} ended: ${output.join('\n')}`)));
  });
  return { process: child, found, kill };
}

/** A Redis whose data is in a directory, and outlives the process. */
export interface RedisProcess {
  url: string;
  kill(): Promise<void>;
  start(): Promise<void>;
}

export async function startRedis(directory: string): Promise<RedisProcess> {
  const port = await freePort();
  const args = ['--port', String(port), '--bind', '127.0.0.1', '--dir', directory, '--save', '', '--appendonly', 'yes'];
  const start = () => startProgram('redis-server', args, /Ready to accept connections/);
  let program = await start();
  return {
    url: `redis://127.0.0.1:${port}`,
    kill: () => program.kill('SIGKILL'),
    async start() {
      program = await start();
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
