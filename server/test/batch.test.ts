import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { loadModel, type Model } from 'node-chatglm';
import OpenAI, { toFile } from 'openai';
import { DiskStore } from '../src/batch/disk-store';
import { buildApp } from '../src/server';
import {
  batchOver,
  contentOf,
  echoLine,
  expectEchoes,
  startBatch,
  startProgram,
  until,
  upload,
} from './support/batches';
import { listening, type Served } from './support/served';

const MAIN = path.join(__dirname, '..', 'dist', 'cli', 'main.js');

let model: Model;
let directory: string;
const started: { close(): Promise<void> }[] = [];

beforeAll(async () => {
  model = await loadModel(null, { device: 'cpu' });
});

afterAll(async () => {
  await model.dispose();
});

beforeEach(() => {
  directory = mkdtempSync(path.join(tmpdir(), 'chatglm-batch-test-'));
});

afterEach(async () => {
  for (const each of started.splice(0)) await each.close();
  rmSync(directory, { recursive: true, force: true });
});

/** A server whose data is in the test's directory. */
async function serve(settings: object = {}, batch: object = {}): Promise<Served> {
  const app = buildApp({
    models: [{ id: 'chatglm-tiny', model, aliases: ['tiny'] }],
    batch: { directory, ...batch },
    ...settings,
  });
  const served = await listening(app, model);
  const close = async () => await app.close();
  started.push({ close });
  return { ...served, close };
}

const lines = (count: number, body: object = {}) => Array.from({ length: count }, (_, i) => echoLine(i, body));

/** Lines that take long enough to be interrupted. */
const slowLines = (count: number) => lines(count, { max_tokens: 64, logit_bias: { 2: -100 } });

test('a batch is answered in the order of its input', async () => {
  const { client: connect } = await serve();
  const client = connect();
  const { id, status, request_counts: none } = await startBatch(client, lines(200));
  expect(status).toBe('validating');
  expect(none).toEqual({ total: 0, completed: 0, failed: 0 });
  const batch = await batchOver(client, id);
  expect(batch).toMatchObject({
    object: 'batch',
    status: 'completed',
    endpoint: '/v1/completions',
    completion_window: '24h',
    request_counts: { total: 200, completed: 200, failed: 0 },
    error_file_id: null,
    errors: null,
  });
  expect(batch.expires_at).toBe(batch.created_at + 86_400);
  expectEchoes(await contentOf(client, batch.output_file_id), 200);
  const file = await client.files.retrieve(batch.output_file_id as string);
  expect(file).toMatchObject({ purpose: 'batch_output', filename: `${id}_output.jsonl` });
});

test('answers are those of the endpoint', async () => {
  const { client: connect } = await serve();
  const client = connect();
  const body = { messages: [{ role: 'user' as const, content: '你好' }], temperature: 0, max_tokens: 8 };
  const direct = await client.chat.completions.create({ model: 'chatglm-tiny', ...body });
  const line = (id: string, over: object = {}) => ({
    custom_id: id,
    method: 'POST',
    url: '/v1/chat/completions',
    body: { model: 'chatglm-tiny', ...body, ...over },
  });
  const given = [
    line('good'),
    line('wrong type', { temperature: 'hot' }),
    line('no messages', { messages: [] }),
    line('streamed', { stream: true }),
    line('also good'),
  ];
  const { id } = await startBatch(client, given, '/v1/chat/completions');
  const batch = await batchOver(client, id);
  expect(batch.request_counts).toEqual({ total: 5, completed: 2, failed: 3 });
  const answers = await contentOf(client, batch.output_file_id);
  expect(answers.map((each) => each.custom_id)).toEqual(['good', 'also good']);
  for (const { response } of answers) expect(response.body.choices).toEqual(direct.choices);
  const errors = await contentOf(client, batch.error_file_id);
  expect(errors.map((each) => each.custom_id)).toEqual(['wrong type', 'no messages', 'streamed']);
  const refused = await client.chat.completions
    .create({ model: 'chatglm-tiny', ...body, temperature: 'hot' as never })
    .catch((error) => error);
  expect(errors[0].response).toMatchObject({ status_code: 400, body: { error: refused.error } });
  expect(errors[1].response.status_code).toBe(400);
  expect(errors[2].response.body.error.param).toBe('body.stream');
});

test('responses can be asked for', async () => {
  const { client: connect } = await serve();
  const client = connect();
  const body = { model: 'chatglm-tiny', input: '你好', max_output_tokens: 16, temperature: 0 };
  const { id } = await startBatch(
    client,
    [{ custom_id: 'a', method: 'POST', url: '/v1/responses', body }],
    '/v1/responses',
  );
  const { output_file_id: output } = await batchOver(client, id);
  const [answer] = await contentOf(client, output);
  expect(answer.response.body.object).toBe('response');
});

test('an input file that is wrong fails, with what is wrong in which line', async () => {
  const { client: connect } = await serve();
  const client = connect();
  const text = [
    JSON.stringify(echoLine(0, { model: 'tiny' })),
    '{"custom_id": "half',
    '',
    JSON.stringify({ ...echoLine(0), custom_id: 7 }),
    JSON.stringify({ ...echoLine(1), method: 'GET' }),
    JSON.stringify({ ...echoLine(2), url: '/v1/chat/completions' }),
    JSON.stringify({ ...echoLine(3), body: [] }),
    JSON.stringify(echoLine(0, { model: 'tiny' })),
    JSON.stringify(echoLine(8, { model: 'other' })),
    '[]',
  ].join('\r\n');
  const file = await client.files.create({ purpose: 'batch', file: await toFile(Buffer.from(text), 'x.jsonl') });
  const { id } = await client.batches.create({
    input_file_id: file.id,
    endpoint: '/v1/completions',
    completion_window: '24h',
  });
  const batch = await batchOver(client, id);
  expect(batch.status).toBe('failed');
  expect(batch.output_file_id).toBeNull();
  expect(batch.errors?.data?.map(({ line, code }) => [line, code])).toEqual([
    [2, 'invalid_json_line'],
    [4, 'invalid_custom_id'],
    [5, 'invalid_method'],
    [6, 'invalid_url'],
    [7, 'invalid_body'],
    [8, 'duplicate_custom_id'],
    [9, 'mismatched_model'],
    [10, 'invalid_json_line'],
  ]);
  for (const [given, code] of [
    [[], 'empty_file'],
    [[echoLine(0, { model: 'nobody' })], 'model_not_found'],
  ] as const) {
    const failed = await batchOver(client, (await startBatch(client, given)).id);
    expect(failed.errors?.data?.[0]?.code).toBe(code);
  }
});

test('requests that are wrong are refused', async () => {
  const { client: connect, post, url } = await serve({}, { fileBytes: 1000 });
  const client = connect();
  const form = (parts: [string, string | Blob, string?][]) => {
    const data = new FormData();
    for (const [name, value, filename] of parts) {
      if (typeof value === 'string') data.append(name, value);
      else data.append(name, value, filename);
    }
    return fetch(`${url}/v1/files`, { method: 'POST', body: data });
  };
  const statuses = [
    await form([['purpose', 'batch']]),
    await form([['file', new Blob(['{}']), 'a']]),
    await form([
      ['file', new Blob(['{}']), 'a'],
      ['purpose', 'fine-tune'],
    ]),
    await form([
      ['file', new Blob(['x'.repeat(1001)]), 'a'],
      ['purpose', 'batch'],
    ]),
    await form([
      ['file', new Blob(['{}']), 'a'],
      ['purpose', 'batch'],
      ['expires_after[anchor]', 'created_at'],
      ['expires_after[seconds]', '5'],
    ]),
    await fetch(`${url}/v1/files`, {
      method: 'POST',
      body: '--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhalf',
      headers: { 'content-type': 'multipart/form-data; boundary=x' },
    }),
    await fetch(`${url}/v1/files`, { method: 'POST', body: '{}', headers: { 'content-type': 'application/json' } }),
  ].map(({ status }) => status);
  expect(statuses).toEqual([400, 400, 400, 413, 400, 400, 400]);
  // Nothing of them is left.
  expect(readdirSync(path.join(directory, 'files'))).toEqual([]);
  const input = await upload(client, [echoLine(0)]);
  const order = { input_file_id: input, endpoint: '/v1/completions', completion_window: '24h' };
  for (const [wrong, param] of [
    [{ input_file_id: 'file-nothing' }, 'input_file_id'],
    [{ input_file_id: '../../etc/passwd' }, 'input_file_id'],
    [{ endpoint: '/v1/models' }, 'endpoint'],
    [{ endpoint: '/health' }, 'endpoint'],
    [{ completion_window: 'soon' }, 'completion_window'],
    [{ metadata: { a: 1 } }, 'metadata.a'],
  ] as const) {
    const { status, body } = await post('/v1/batches', { ...order, ...wrong });
    expect([status, body.error.param]).toEqual([400, param]);
  }
  expect((await post('/v1/batches/batch_nothing/cancel', {})).status).toBe(404);
  await expect(client.files.retrieve('file-nothing')).rejects.toMatchObject({ status: 404 });
  await expect(client.batches.retrieve('batch_nothing')).rejects.toMatchObject({ status: 404 });
});

test('files are listed, read and deleted', async () => {
  const { client: connect } = await serve();
  const client = connect();
  const contents = ['', 'one\n', '三\n'.repeat(100_000)];
  const ids: string[] = [];
  for (const [i, text] of contents.entries()) {
    const name = `../../${i}"é\\.jsonl`;
    const file = await client.files.create({
      file: await toFile(Buffer.from(text), name),
      purpose: 'batch',
      expires_after: { anchor: 'created_at', seconds: 7200 },
    });
    expect(file).toMatchObject({ object: 'file', bytes: Buffer.byteLength(text), purpose: 'batch' });
    expect(file.expires_at).toBe(file.created_at + 7200);
    expect(file.filename).not.toContain('/');
    ids.push(file.id);
    expect(await (await client.files.content(file.id)).text()).toBe(text);
  }
  expect(readdirSync(path.join(directory, 'files')).sort()).toEqual([...ids].sort());
  for (const name of ['batches.db', ...ids.map((id) => `files/${id}`)]) {
    expect(statSync(path.join(directory, name)).mode & 0o777).toBe(0o600);
  }
  const page = await client.files.list({ limit: 2, order: 'asc' });
  expect(page.data.map(({ id }) => id)).toEqual(ids.slice(0, 2));
  expect(page.has_more).toBe(true);
  const all: string[] = [];
  for await (const { id } of client.files.list({ limit: 1 })) all.push(id);
  expect(all).toEqual([...ids].reverse());
  expect((await client.files.list({ purpose: 'batch_output' })).data).toEqual([]);
  await expect(client.files.list({ after: 'file-none' })).rejects.toMatchObject({ status: 400 });
  expect(await client.files.delete(ids[0] as string)).toMatchObject({ deleted: true });
  await expect(client.files.content(ids[0] as string)).rejects.toMatchObject({ status: 404 });
  expect(existsSync(path.join(directory, 'files', ids[0] as string))).toBe(false);
});

test('what a key made is there for that key alone', async () => {
  const { client: connect } = await serve({
    keys: [
      { name: 'anna', key: 'sk-chatglm-anna-0123456789', tokensPerMinute: 100_000 },
      { name: 'bert', key: 'sk-chatglm-bert-0123456789', models: ['another'] },
    ],
  });
  const anna = connect({ apiKey: 'sk-chatglm-anna-0123456789' });
  const bert = connect({ apiKey: 'sk-chatglm-bert-0123456789' });
  const { id, input_file_id: input } = await startBatch(anna, lines(3));
  const batch = await batchOver(anna, id);
  expect(batch.status).toBe('completed');
  expectEchoes(await contentOf(anna, batch.output_file_id), 3);
  for (const attempt of [
    () => bert.batches.retrieve(id),
    () => bert.batches.cancel(id),
    () => bert.files.retrieve(input),
    () => bert.files.content(batch.output_file_id as string),
    () => bert.files.delete(input),
  ]) {
    await expect(attempt()).rejects.toMatchObject({ status: 404 });
  }
  const stolen = { input_file_id: input, endpoint: '/v1/completions', completion_window: '24h' } as const;
  await expect(bert.batches.create(stolen)).rejects.toMatchObject({ status: 400, param: 'input_file_id' });
  expect((await bert.files.list()).data).toEqual([]);
  expect((await bert.batches.list()).data).toEqual([]);
  expect((await anna.batches.list()).data.map((each) => each.id)).toEqual([id]);
  const refused = await batchOver(bert, (await startBatch(bert, lines(1))).id);
  expect(refused.errors?.data?.[0]?.code).toBe('model_not_found');
});

test('a batch is cancelled; what was answered until then stays', async () => {
  const { client: connect, url } = await serve({}, { concurrency: 4 });
  const client = connect();
  const { id, input_file_id: input } = await startBatch(client, slowLines(300));
  await until(
    () => client.batches.retrieve(id),
    ({ request_counts: counts }) => (counts?.completed ?? 0) >= 4,
  );
  await expect(client.files.delete(input)).rejects.toMatchObject({ status: 409 });
  const metrics = await (await fetch(`${url}/metrics`)).text();
  expect(metrics).toMatch(/^chatglm_batches_unfinished 1$/m);
  expect(Number(/^chatglm_batch_lines_left (\d+)$/m.exec(metrics)?.[1])).toBeGreaterThan(100);
  expect((await client.batches.cancel(id)).status).toBe('cancelling');
  const batch = await batchOver(client, id);
  expect(batch.status).toBe('cancelled');
  const { completed = 0, failed, total } = batch.request_counts ?? {};
  expect(total).toBe(300);
  expect(failed).toBe(0);
  expect(completed).toBeGreaterThanOrEqual(4);
  expect(completed).toBeLessThan(300);
  const answered = await contentOf(client, batch.output_file_id);
  const others = await contentOf(client, batch.error_file_id);
  expect(answered).toHaveLength(completed);
  expect(others.every(({ error }) => error.code === 'batch_cancelled')).toBe(true);
  const ids = [...answered, ...others].map(({ custom_id: each }) => each);
  expect(new Set(ids).size).toBe(300);
  expect(ids).toHaveLength(300);
  await expect(
    client.batches.cancel((await batchOver(client, (await startBatch(client, lines(1))).id)).id),
  ).rejects.toMatchObject({ status: 409 });
  expect((await client.batches.cancel(id)).status).toBe('cancelled');
});

test('a batch goes on where it was when its server starts again', async () => {
  const first = await serve({}, { concurrency: 4 });
  const { id } = await startBatch(first.client(), slowLines(60));
  await until(
    () => first.client().batches.retrieve(id),
    ({ request_counts: counts }) => (counts?.completed ?? 0) >= 4,
  );
  await first.close();
  const second = await serve();
  const client = second.client();
  const batch = await batchOver(client, id);
  expect(batch.status).toBe('completed');
  expectEchoes(await contentOf(client, batch.output_file_id), 60);
});

test('a batch whose time is over ends as far as it came', async () => {
  const first = await serve({}, { concurrency: 2 });
  const { id } = await startBatch(first.client(), slowLines(60));
  await until(
    () => first.client().batches.retrieve(id),
    ({ request_counts: counts }) => (counts?.completed ?? 0) >= 2,
  );
  await first.close();
  const store = new DiskStore(directory, 1e9);
  await store.update(id, (batch) => ({ ...batch, expires: batch.created }));
  await store.close();
  const client = (await serve()).client();
  const batch = await batchOver(client, id);
  expect(batch.status).toBe('expired');
  expect(batch.expired_at).not.toBeNull();
  const answered = await contentOf(client, batch.output_file_id);
  const others = await contentOf(client, batch.error_file_id);
  expect(answered).toHaveLength(batch.request_counts?.completed ?? 0);
  expect(answered.length + others.length).toBe(60);
  expect(others.every(({ error }) => error.code === 'batch_expired')).toBe(true);
});

test('interactive requests come before lines of batches', async () => {
  const small = await loadModel(null, { device: 'cpu', maxSequences: 2 });
  const app = buildApp({ models: [{ id: 'chatglm-tiny', model: small }], batch: { directory, concurrency: 40 } });
  const served = await listening(app, small);
  started.push({ close: () => served.close() });
  const client = served.client();
  const { id } = await startBatch(client, slowLines(100));
  const completed = async () => (await client.batches.retrieve(id)).request_counts?.completed ?? 0;
  await until(completed, (count) => count >= 4);
  const before = await completed();
  await client.completions.create({ model: 'chatglm-tiny', prompt: '你好', max_tokens: 1 });
  // 38 lines wait for one of the two places; without priorities they would all have come first.
  expect((await completed()) - before).toBeLessThan(20);
  await client.batches.cancel(id);
  await batchOver(client, id);
});

test('an upload that is too large is told so, and the server goes on', async () => {
  const { client: connect } = await serve({}, { fileBytes: 100_000 });
  const client = connect();
  const file = await toFile(Buffer.alloc(50_000_000, 'x'), 'large.jsonl');
  await expect(client.files.create({ purpose: 'batch', file })).rejects.toMatchObject({
    status: 413,
    code: 'file_too_large',
  });
  expect(readdirSync(path.join(directory, 'files'))).toEqual([]);
  expect(await upload(client, lines(1))).toMatch(/^file-/);
});

test('an upload whose client goes away leaves nothing', async () => {
  const { url } = await serve();
  const socket = createConnection(Number(new URL(url).port), '127.0.0.1');
  await once(socket, 'connect');
  const head = 'POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n';
  const part = 'content-disposition: form-data; name="file"; filename="a"';
  socket.write(`${head}content-type: multipart/form-data; boundary=b\r\n\r\n--b\r\n${part}\r\n\r\n{"half": `);
  const left = async () => readdirSync(path.join(directory, 'files')).length;
  await until(left, (count) => count === 1);
  socket.destroy();
  await until(left, (count) => count === 0);
});

test('two servers do not share a directory', async () => {
  await serve();
  const second = buildApp({ models: [{ model }], batch: { directory } });
  await expect(second.ready()).rejects.toThrow(/in use by another server/);
  await second.close();
});

test('a batch survives kill -9 of its server, again and again', async () => {
  const start = () =>
    startProgram(
      process.execPath,
      [MAIN, '--port', '0', '--data', directory, '--device', 'cpu', '--log-format', 'json'],
      /(http:\/\/127\.0\.0\.1:\d+)/,
    );
  const connect = (url: string) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
  let server = await start();
  let id: string | undefined;
  try {
    ({ id } = await startBatch(connect(server.found), slowLines(120)));
    for (const count of [20, 60, 100]) {
      const client = connect(server.found);
      await until(
        () => client.batches.retrieve(id as string),
        ({ request_counts: counts }) => (counts?.completed ?? 0) >= count,
      );
      await server.kill('SIGKILL');
      server = await start();
    }
    const client = connect(server.found);
    const batch = await batchOver(client, id);
    expect(batch.request_counts).toEqual({ total: 120, completed: 120, failed: 0 });
    expectEchoes(await contentOf(client, batch.output_file_id), 120);
  } finally {
    await server.kill('SIGKILL');
  }
});
