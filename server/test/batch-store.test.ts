import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Readable } from 'node:stream';
import { pino } from 'pino';
import { DiskStore } from '../src/batch/disk-store';
import { linesOf } from '../src/batch/lines';
import { readForm } from '../src/batch/multipart';
import { inStatus, newId, nowSeconds, type StoredBatch, type StoredFile } from '../src/batch/records';
import { RedisStore } from '../src/batch/redis-store';
import { Slots } from '../src/batch/slots';
import type { Store } from '../src/batch/store';
import { type RedisProcess, startRedis } from './support/batches';

let directory: string;
let redis: RedisProcess;

beforeAll(async () => {
  directory = mkdtempSync(path.join(tmpdir(), 'chatglm-batch-store-test-'));
  redis = await startRedis(directory);
});

afterAll(async () => {
  await redis.kill();
  rmSync(directory, { recursive: true, force: true });
});

const MOST = 2_000_000;
const log = pino({ level: 'silent' });

async function* pieces(...texts: (string | Buffer)[]): AsyncGenerator<Buffer, void, void> {
  for (const text of texts) yield Buffer.from(text);
}

async function textOf(source: AsyncIterable<Buffer>): Promise<string> {
  const read: Buffer[] = [];
  for await (const piece of source) read.push(piece);
  return Buffer.concat(read).toString();
}

async function addFile(store: Store, content: string | Buffer, change: Partial<StoredFile> = {}): Promise<StoredFile> {
  const staged = await store.stage(pieces(content), MOST);
  const created = nowSeconds();
  const file = { ...staged, owner: 'a', filename: 'f', purpose: 'batch', created, expires: created + 3600 } as const;
  await store.addFile({ ...file, ...change });
  return { ...file, ...change };
}

function batchOf(input: string, change: Partial<StoredBatch> = {}): StoredBatch {
  return {
    id: newId('batch_'),
    owner: 'a',
    endpoint: '/v1/completions',
    input,
    window: '24h',
    metadata: { some: '中文' },
    status: 'validating',
    outcome: null,
    created: nowSeconds(),
    expires: nowSeconds() + 3600,
    times: {},
    model: null,
    total: 0,
    counts: { completed: 0, failed: 0 },
    errors: [],
    output: null,
    errorFile: null,
    keepOutput: 3600,
    ...change,
  };
}

describe.each(['disk', 'Redis'])('the store on %s', (kind) => {
  let store: Store;

  beforeEach(() => {
    store =
      kind === 'disk'
        ? new DiskStore(mkdtempSync(path.join(directory, 'store-')), MOST)
        : new RedisStore(redis.url, MOST, log);
  });

  afterEach(async () => {
    await store.close();
  });

  test('gives back the bytes of a file, or some of them', async () => {
    const content = Buffer.from(Array.from({ length: 700_000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff));
    const staged = await store.stage(
      pieces(content.subarray(0, 1), content.subarray(1, 300_000), content.subarray(300_000)),
      MOST,
    );
    expect(staged.bytes).toBe(content.length);
    const now = nowSeconds();
    await store.addFile({ ...staged, owner: 'a', filename: 'x', purpose: 'batch', created: now, expires: now + 60 });
    for (const [start, end] of [
      [0, undefined],
      [0, 1],
      [262_143, 262_145],
      [262_144, 524_288],
      [5, 5],
      [1, 699_999],
    ] as const) {
      const read: Buffer[] = [];
      for await (const piece of store.read(staged.id, start, end)) read.push(piece);
      expect(Buffer.concat(read).equals(content.subarray(start, end))).toBe(true);
    }
    expect(await store.deleteFile(staged.id)).toBe('deleted');
    expect(await store.deleteFile(staged.id)).toBe('absent');
    expect(await store.file(staged.id)).toBeUndefined();
    await expect(textOf(store.read(staged.id))).rejects.toThrow();
  });

  test('takes no more bytes than it has room for', async () => {
    await expect(store.stage(pieces('12345', '6'), 5)).rejects.toMatchObject({ status: 413 });
    const { id } = await addFile(store, Buffer.alloc(1_500_000));
    await expect(store.stage(pieces(Buffer.alloc(600_000)), MOST)).rejects.toMatchObject({ status: 507 });
    await store.deleteFile(id);
    await store.discard(await store.stage(pieces(Buffer.alloc(1_900_000)), MOST));
  });

  test('keeps the first answer to a line, while its batch takes answers', async () => {
    const { id: input } = await addFile(store, 'x');
    const batch = batchOf(input);
    const { id } = batch;
    expect(await store.addBatch(batch)).toBe(true);
    expect(await store.addBatch(batchOf('file-00000000000000000000000000000000'))).toBe(false);
    const answer = (line: number, text: string, isOk = true) => ({ line, isOk, text });
    expect(await store.put(id, [answer(0, 'early')])).toBe(false);
    await store.setChunks(id, [{ first: 0, count: 4, start: 0, end: 1 }]);
    await store.update(id, (now) => inStatus(now, 'in_progress', { total: 4 }));
    expect(await store.put(id, [answer(2, 'two'), answer(0, 'zero'), answer(1, 'one', false)])).toBe(true);
    expect(await store.put(id, [answer(2, 'again', false), answer(2, 'and again')])).toBe(true);
    expect(await store.counts(id)).toEqual({ completed: 2, failed: 1 });
    expect(await store.answered(id, 1, 3)).toEqual([true, true, false]);
    expect(await store.results(id, 0, 4)).toEqual([
      answer(0, 'zero'),
      answer(1, 'one', false),
      answer(2, 'two'),
      undefined,
    ]);
    expect(await store.deleteFile(input)).toBe('in use');
    await store.update(id, (now) => inStatus(now, 'cancelling'));
    expect(await store.put(id, [answer(3, 'late')])).toBe(false);
    expect(await store.counts(id)).toEqual({ completed: 2, failed: 1 });
    expect(await store.unfinished()).toContain(id);

    const staged = await store.stage(pieces('the output'), MOST);
    const ended = inStatus((await store.batch(id)) as StoredBatch, 'cancelled', { output: staged.id });
    const now = nowSeconds();
    const file = {
      ...staged,
      owner: 'a',
      filename: 'o',
      purpose: 'batch_output',
      created: now,
      expires: now + 60,
    } as const;
    expect(await store.finish(ended, 'finalizing', [file])).toBe(false);
    expect(await store.file(staged.id)).toBeUndefined();
    expect(await store.finish(ended, 'cancelling', [file])).toBe(true);
    expect(await textOf(store.read(staged.id))).toBe('the output');
    expect(await store.batch(id)).toEqual(ended);
    expect(await store.unfinished()).not.toContain(id);
    expect(await store.chunks(id)).toEqual([]);
    expect(await store.counts(id)).toEqual({ completed: 0, failed: 0 });
    expect(await store.deleteFile(input)).toBe('deleted');
  });

  test('changes a batch that others change too, each once', async () => {
    const { id: input } = await addFile(store, 'x');
    const batch = batchOf(input);
    await store.addBatch(batch);
    await Promise.all(
      Array.from({ length: 20 }, () => store.update(batch.id, (now) => ({ ...now, total: now.total + 1 }))),
    );
    expect((await store.batch(batch.id))?.total).toBe(20);
    expect((await store.update(batch.id, () => undefined))?.total).toBe(20);
    expect(await store.update('batch_none', (now) => now)).toBeUndefined();
  });

  test('gives a batch to one worker at a time', async () => {
    const lease = await store.lease('batch_x');
    expect(lease).toBeDefined();
    expect(await store.lease('batch_x')).toBeUndefined();
    await lease?.release();
    const next = await store.lease('batch_x');
    expect(next?.lost.aborted).toBe(false);
    await next?.release();
  });

  test('lists what is there, by pages, for each owner', async () => {
    const owner = newId('owner');
    const ids: string[] = [];
    for (let i = 0; i < 5; i++) {
      const purpose = i === 2 ? 'batch_output' : 'batch';
      ids.push((await addFile(store, String(i), { owner, purpose })).id);
    }
    const expired = await addFile(store, 'old', { owner, expires: nowSeconds() - 1 });
    await addFile(store, 'other', { owner: newId('owner') });
    const list = async (query: object) => {
      const page = await store.files(owner, { after: undefined, limit: 10, order: 'asc', ...query });
      return [page.data.map(({ id }) => ids.indexOf(id)), page.hasMore];
    };
    expect(await list({})).toEqual([[0, 1, 2, 3, 4], false]);
    expect(await list({ order: 'desc', limit: 2 })).toEqual([[4, 3], true]);
    expect(await list({ order: 'desc', limit: 3, after: ids[3] })).toEqual([[2, 1, 0], false]);
    expect(await list({ limit: 2, after: ids[0], purpose: 'batch' })).toEqual([[1, 3], true]);
    expect(await list({ after: ids[4] })).toEqual([[], false]);
    await expect(list({ after: 'file-none' })).rejects.toMatchObject({ status: 400 });
    expect(await store.file(expired.id)).toBeUndefined();
    await store.sweep();
    expect(await store.deleteFile(expired.id)).toBe('absent');
  });
});

/** The fields of a form that comes in pieces of so many bytes, and its files. */
async function formIn(body: Buffer, size: number, type: string): Promise<[Record<string, string>, string[][]]> {
  const cut: Buffer[] = [];
  for (let i = 0; i < body.length; i += size) cut.push(body.subarray(i, i + size));
  const files: string[][] = [];
  const fields = await readForm(Readable.from(cut), type, async ({ name, filename, body: content }) => {
    files.push([name, filename, await textOf(content)]);
  });
  return [Object.fromEntries(fields), files];
}

test('a form is read however it is cut', async () => {
  const data = new FormData();
  data.append('purpose', 'batch');
  data.append('file', new Blob(['\r\n--\r\n-----', '\r', '三\r\n']), 'a 名.jsonl');
  data.append('empty', new Blob([]), 'e');
  const request = new Request('http://localhost', { method: 'POST', body: data });
  const type = request.headers.get('content-type') as string;
  const body = Buffer.from(await request.arrayBuffer());
  for (let size = 1; size < 80; size++) {
    expect(await formIn(body, size, type)).toEqual([
      { purpose: 'batch' },
      [
        ['file', 'a 名.jsonl', '\r\n--\r\n-----\r三\r\n'],
        ['empty', 'e', ''],
      ],
    ]);
  }
});

test('what is no form, or too much of one, is refused', async () => {
  const type = 'multipart/form-data; boundary=b';
  const field = (name: string, value: string) =>
    `--b\r\ncontent-disposition: form-data; name="${name}"\r\n\r\n${value}\r\n`;
  const file = '--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n';
  for (const [text, message, given = type] of [
    ['', /no multipart/],
    ['x', /no multipart/],
    [`${field('a', '1')}--b--`, /no multipart/, 'multipart/form-data'],
    [`${file}half`, /no multipart/],
    [`${file}half\r\n--b`, /no multipart/],
    [`${file}half\r\n--bother\r\n`, /no multipart/],
    [`${field('a', 'x'.repeat(20_000))}--b--`, /'a' is too long/],
    [`${field('a', '1').repeat(40)}--b--`, /more than 32 parts/],
  ] as const) {
    await expect(formIn(Buffer.from(text), 1000, given)).rejects.toThrow(message);
  }
  const thrown = new Error('no room');
  const whole = Readable.from([Buffer.from(`${file}${'x'.repeat(200_000)}\r\n--b--`)]);
  await expect(readForm(whole, type, () => Promise.reject(thrown))).rejects.toBe(thrown);
});

test('lines are found however a file is cut', async () => {
  const text = '{"a":1}\n\n  \r\n三\r\n\nlast line';
  const bytes = Buffer.from(text);
  for (let size = 1; size <= bytes.length; size++) {
    const cut: Buffer[] = [];
    for (let i = 0; i < bytes.length; i += size) cut.push(bytes.subarray(i, i + size));
    const found: [number, string][] = [];
    for await (const line of linesOf(pieces(...cut), 9)) {
      found.push([line.number, line.bytes?.toString() ?? 'too long']);
      expect(bytes.subarray(line.start, line.end).toString().trim()).toContain(line.bytes?.toString().trim() ?? '');
    }
    expect(found).toEqual([
      [1, '{"a":1}'],
      [4, '三\r'],
      [6, 'last line'],
    ]);
  }
  const short: (string | undefined)[] = [];
  for await (const { bytes: line } of linesOf(pieces('123456789', '0\n12\n'), 9)) short.push(line?.toString());
  expect(short).toEqual([undefined, '12']);
});

test('owners take turns', async () => {
  const slots = new Slots(1);
  await slots.take('a');
  const order: string[] = [];
  const wait = async (owner: string) => {
    await slots.take(owner);
    order.push(owner);
    slots.give();
  };
  const all = ['a', 'a', 'a', 'b', 'c', 'c'].map(wait);
  slots.give();
  await Promise.all(all);
  expect(order).toEqual(['a', 'b', 'c', 'a', 'c', 'a']);
  await slots.take('d');
});
