import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { loadModel, type Model } from 'node-chatglm';
import OpenAI, { toFile } from 'openai';
import { buildApp } from '../src/server';
import {
  batchOver,
  contentOf,
  echoLine,
  expectEchoes,
  type Program,
  type RedisProcess,
  startBatch,
  startProgram,
  startRedis,
  until,
  upload,
} from './support/batches';

const MAIN = path.join(__dirname, '..', 'dist', 'cli', 'main.js');

let model: Model;
let directory: string;
let redis: RedisProcess;
const programs: Program[] = [];
const closing: (() => Promise<unknown>)[] = [];

beforeAll(async () => {
  model = await loadModel(null, { device: 'cpu' });
});

afterAll(async () => {
  await model.dispose();
});

beforeEach(async () => {
  directory = mkdtempSync(path.join(tmpdir(), 'chatglm-batch-redis-test-'));
  redis = await startRedis(directory);
});

afterEach(async () => {
  for (const close of closing.splice(0)) await close();
  await Promise.all(programs.splice(0).map((program) => program.kill('SIGKILL')));
  await redis.kill();
  rmSync(directory, { recursive: true, force: true });
});

/** A server in this process. */
async function serve(batch: object = {}): Promise<OpenAI> {
  const app = buildApp({ models: [{ id: 'chatglm-tiny', model }], batch: { redis: redis.url, ...batch } });
  const url = await app.listen({ port: 0, host: '127.0.0.1' });
  closing.push(() => app.close());
  return connect(url);
}

function connect(url: string): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
}

async function program(args: readonly string[], ready: RegExp): Promise<Program> {
  const common = ['--redis', redis.url, '--device', 'cpu', '--threads', '1', '--log-format', 'json'];
  const started = await startProgram(process.execPath, [MAIN, ...args, ...common], ready);
  programs.push(started);
  return started;
}

const startServer = () => program(['--port', '0'], /(http:\/\/127\.0\.0\.1:\d+)/);
const startWorker = () => program(['worker', '--concurrency', '8'], /the worker takes lines/);

const lines = (count: number, body: object = {}) =>
  Array.from({ length: count }, (_, i) => echoLine(i, { model: 'chatglm-tiny', ...body }));

const answeredAtLeast = (client: OpenAI, id: string, count: number) =>
  until(
    () => client.batches.retrieve(id),
    ({ request_counts: counts }) => (counts?.completed ?? 0) >= count,
  );

test('any server has the files and batches of all; workers answer', async () => {
  const [one, other] = [await serve(), await serve({ fileBytes: 1_000_000 })];
  await startWorker();
  const { id } = await startBatch(one, lines(100));
  const batch = await batchOver(other, id);
  expect(batch.request_counts).toEqual({ total: 100, completed: 100, failed: 0 });
  expect(batch.status).toBe('completed');
  expectEchoes(await contentOf(other, batch.output_file_id), 100);
  expect((await other.batches.list()).data.map((each) => each.id)).toEqual([id]);
  const files = await other.files.list({ order: 'asc' });
  expect(files.data.map((each) => each.id)).toEqual([batch.input_file_id, batch.output_file_id]);
  expect((await other.files.list({ purpose: 'batch_output' })).data).toHaveLength(1);

  // Files of several pieces come back as they are.
  const text = Array.from({ length: 100_000 }, (_, i) => `第${i}行\n`).join('');
  const large = await one.files.create({ purpose: 'batch', file: await toFile(Buffer.from(text), 'large.jsonl') });
  expect(await (await other.files.content(large.id)).text()).toBe(text);
  await other.files.delete(large.id);
  await expect(one.files.content(large.id)).rejects.toMatchObject({ status: 404 });
  const tooLarge = other.files.create({ purpose: 'batch', file: await toFile(Buffer.from(text), 'large.jsonl') });
  await expect(tooLarge).rejects.toMatchObject({ status: 413 });

  const unknown = await batchOver(one, (await startBatch(one, [echoLine(0, { model: 'nobody' })])).id);
  expect(unknown.errors?.data?.[0]?.code).toBe('model_not_found');
  const withErrors = await batchOver(
    one,
    (await startBatch(one, [echoLine(0), { ...echoLine(1), body: { prompt: 7 } }])).id,
  );
  expect(withErrors.request_counts).toEqual({ total: 2, completed: 1, failed: 1 });
  expect((await contentOf(one, withErrors.error_file_id))[0].response.status_code).toBe(400);
});

test('a batch that nobody answers is cancelled, or waits for a worker', async () => {
  const client = await serve();
  const waiting = await startBatch(client, lines(40));
  const cancelled = await startBatch(client, lines(40));
  await until(
    () => client.batches.retrieve(cancelled.id),
    ({ status }) => status === 'in_progress',
  );
  await expect(client.files.delete(waiting.input_file_id)).rejects.toMatchObject({ status: 409 });
  await client.batches.cancel(cancelled.id);
  const over = await batchOver(client, cancelled.id);
  expect(over.status).toBe('cancelled');
  expect(over.output_file_id).toBeNull();
  const notAnswered = await contentOf(client, over.error_file_id);
  expect(notAnswered.map(({ error }) => error.code)).toEqual(new Array(40).fill('batch_cancelled'));
  await startWorker();
  const batch = await batchOver(client, waiting.id);
  expectEchoes(await contentOf(client, batch.output_file_id), 40);
});

test('a batch survives kill -9 of a worker, of Redis and of the server that took it', async () => {
  const first = await startServer();
  const client = await serve();
  const workers = [await startWorker(), await startWorker()] as const;
  const { id } = await startBatch(connect(first.found), lines(400, { max_tokens: 24, logit_bias: { 2: -100 } }));
  await answeredAtLeast(client, id, 40);
  await workers[0].kill('SIGKILL');
  await startWorker();
  await answeredAtLeast(client, id, 120);
  await redis.kill();
  await expect(client.batches.retrieve(id)).rejects.toMatchObject({ status: 503 });
  await redis.start();
  await answeredAtLeast(client, id, 200);
  await first.kill('SIGKILL');
  const batch = await batchOver(client, id);
  expect(batch.request_counts).toEqual({ total: 400, completed: 400, failed: 0 });
  expectEchoes(await contentOf(client, batch.output_file_id), 400);
  // What was needed for the batch alone is gone.
  expect(await upload(client, lines(1))).toMatch(/^file-/);
});
