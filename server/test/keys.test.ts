import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { loadModel, type Model } from 'node-chatglm';
import { duration } from '../src/access/access';
import { Bucket } from '../src/access/bucket';
import { createKey, hashOfKey } from '../src/access/key';
import { keyLine, parseKeys } from '../src/access/key-file';
import { createServer, type KeyOptions, type Server, type ServerOptions } from '../src/index';
import { addGenerateRoute, GENERATE, json, post } from './support/infra';

let model: Model;
let directory: string;
const servers: Server[] = [];

beforeAll(async () => {
  model = await loadModel(null, { device: 'cpu' });
  directory = mkdtempSync(path.join(tmpdir(), 'chatglm-keys-'));
});
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()));
});
afterAll(async () => {
  await model.dispose();
  rmSync(directory, { recursive: true });
});

async function start(options: ServerOptions) {
  const server = createServer({ model, ...options });
  servers.push(server);
  addGenerateRoute(server.app, server.models);
  const url = await server.listen({ port: 0 });
  const generate = (key: string | undefined, body: object = {}) =>
    post(url + GENERATE, body, { headers: key === undefined ? {} : { authorization: `Bearer ${key}` } });
  return { server, url, generate };
}

const keyed = (name: string, limits: Partial<KeyOptions> = {}): KeyOptions & { key: string } => ({
  ...limits,
  name,
  key: createKey(),
});

test('a key is asked for, in either header, and health is for everybody', async () => {
  const anna = keyed('anna');
  const { url } = await start({ keys: [anna] });
  const statusOf = async (headers: Record<string, string>, where = '/v1/models') =>
    (await fetch(url + where, { headers })).status;
  expect(await statusOf({})).toBe(401);
  expect(await statusOf({ authorization: `Bearer ${anna.key}` })).toBe(200);
  expect(await statusOf({ authorization: `bearer ${anna.key}` })).toBe(200);
  expect(await statusOf({ 'x-api-key': anna.key })).toBe(200);
  expect(await statusOf({ authorization: `Basic ${anna.key}` })).toBe(401);
  expect(await statusOf({ authorization: `Bearer ${anna.key}x` })).toBe(401);
  expect(await statusOf({ authorization: `Bearer ${hashOfKey(anna.key).toString('hex')}` })).toBe(401);
  expect(await statusOf({}, '/health')).toBe(200);
  expect(await statusOf({}, '/ready')).toBe(200);
  expect(await statusOf({}, '/metrics')).toBe(401);
  expect(await statusOf({}, '/v1/nothing')).toBe(401);
  const refused = await json(await fetch(`${url}/v1/models`));
  expect(refused.error).toMatchObject({ type: 'authentication_error', code: 'invalid_api_key' });
});

test('the metrics may be for everybody', async () => {
  const { url } = await start({ keys: [keyed('anna')], metrics: 'open' });
  expect((await fetch(`${url}/metrics`)).status).toBe(200);
});

test('a key ends, and is for some models only', async () => {
  const [old, new_, other] = [
    keyed('old', { expires: '2020-01-01' }),
    keyed('new', { expires: new Date(Date.now() + 1e6) }),
    keyed('other', { models: ['big'] }),
  ];
  const { url, generate } = await start({ model: { small: model, big: model }, keys: [old, new_, other] });
  expect((await generate(old.key)).status).toBe(401);
  expect((await generate(new_.key)).status).toBe(200);
  expect((await generate(other.key, { model: 'big' })).status).toBe(200);
  for (const body of [{ model: 'small' }, {}]) {
    const { status, body: answer } = await generate(other.key, body);
    expect([status, answer.error.code]).toEqual([403, 'model_not_found']);
  }
  const list = await json(await fetch(`${url}/v1/models`, { headers: { 'x-api-key': other.key } }));
  expect(list.data.map(({ id }: { id: string }) => id)).toEqual(['big']);
});

test('requests a minute', async () => {
  const [few, many] = [keyed('few', { requestsPerMinute: 2 }), keyed('many')];
  const { generate } = await start({ keys: [few, many] });
  const first = await generate(few.key);
  expect(first.headers.get('x-ratelimit-limit-requests')).toBe('2');
  expect(first.headers.get('x-ratelimit-remaining-requests')).toBe('1');
  expect(first.headers.get('x-ratelimit-reset-requests')).toMatch(/^\d+(\.\d)?s$/);
  expect((await generate(few.key)).status).toBe(200);
  const refused = await generate(few.key);
  expect([refused.status, refused.body.error.code]).toEqual([429, 'rate_limit_exceeded']);
  expect(Number(refused.headers.get('retry-after'))).toBeGreaterThan(0);
  expect((await generate(many.key)).headers.get('x-ratelimit-limit-requests')).toBeNull();
});

test('tokens a minute are counted when they are known', async () => {
  const few = keyed('few', { tokensPerMinute: 100 });
  const { generate } = await start({ keys: [few] });
  expect((await generate(few.key, { tokens: 150 })).status).toBe(200);
  const refused = await generate(few.key);
  expect([refused.status, refused.body.error.code]).toEqual([429, 'rate_limit_exceeded']);
  expect(refused.headers.get('x-ratelimit-remaining-tokens')).toBe('0');
});

test('requests at a time', async () => {
  const one = keyed('one', { parallel: 1 });
  const { server, generate } = await start({ keys: [one] });
  let open: () => void = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  const lease = await server.models.acquire(undefined);
  const acquire = jest.spyOn(server.models, 'acquire').mockImplementationOnce(async () => {
    await opened;
    return lease;
  });
  const first = generate(one.key);
  while (acquire.mock.calls.length === 0) await new Promise(setImmediate);
  expect((await generate(one.key)).status).toBe(429);
  open();
  expect((await first).status).toBe(200);
  expect((await generate(one.key)).status).toBe(200);
});

test('requests of one address at a time, where there are no keys', async () => {
  const { server, generate } = await start({ limits: { parallelPerAddress: 1 } });
  let open: () => void = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  const lease = await server.models.acquire(undefined);
  const acquire = jest.spyOn(server.models, 'acquire').mockImplementationOnce(async () => {
    await opened;
    return lease;
  });
  const first = generate(undefined);
  while (acquire.mock.calls.length === 0) await new Promise(setImmediate);
  expect((await generate(undefined)).status).toBe(429);
  open();
  expect((await first).status).toBe(200);
});

test('the file of keys is read again; one that is wrong changes nothing', async () => {
  const file = path.join(directory, 'keys.txt');
  const [anna, ben] = [createKey(), createKey()];
  writeFileSync(file, `# keys\n\n${keyLine('anna', hashOfKey(anna), { requests: 1 })}\n`);
  const { server, generate } = await start({ keys: file });
  expect((await generate(anna)).status).toBe(200);
  expect((await generate(ben)).status).toBe(401);
  writeFileSync(
    file,
    `${keyLine('anna', hashOfKey(anna), { requests: 1 })}\r\n${keyLine('ben', hashOfKey(ben), {})}\n`,
  );
  server.reload();
  expect((await generate(ben)).status).toBe(200);
  // What was used stays used.
  expect((await generate(anna)).status).toBe(429);
  writeFileSync(file, 'nonsense');
  server.reload();
  expect((await generate(ben)).status).toBe(200);
  writeFileSync(file, keyLine('anna', hashOfKey(anna), {}));
  server.reload();
  expect((await generate(ben)).status).toBe(401);
});

test('lines of a file', () => {
  const hash = 'ab'.repeat(32);
  const line = `anna sha256:${hash} weight=0.5 requests=60 tokens=1000 parallel=4 models=a,b expires=2030-12-31`;
  expect(parseKeys(line, 'f')).toEqual([
    {
      name: 'anna',
      hash: Buffer.from(hash, 'hex'),
      weight: 0.5,
      requestsPerMinute: 60,
      tokensPerMinute: 1000,
      parallel: 4,
      models: ['a', 'b'],
      expires: Date.parse('2030-12-31'),
    },
  ]);
  const plain = parseKeys('ben sk-0123456789abcdef', 'f')[0];
  expect(plain?.hash).toEqual(hashOfKey('sk-0123456789abcdef'));
});

test.each<[string, RegExp]>([
  ['anna', /^f, line 1: key must be 16 to 512 visible ASCII characters$/],
  ['anna sha256:12', /hash must be the 64 hexadecimal digits/],
  ['a/b sk-0123456789abcdef', /name must be 1 to 100 letters/],
  ['a sk-0123456789abcdef weight', /a word without =; there are weight, /],
  ['a sk-0123456789abcdef size=1', /no field "size"; there are weight, requests/],
  ['a sk-0123456789abcdef requests=many', /requestsPerMinute must be a whole number/],
  ['a sk-0123456789abcdef expires=soon', /expires must be a date such as 2030-12-31, got "soon"/],
  ['# x\na sk-0123456789abcdef\na sk-0123456789abcdeg', /^f, line 3: the name a is there already$/],
])('%j is refused', (text, message) => {
  expect(() => parseKeys(text, 'f')).toThrow(message);
});

test('a bucket is filled evenly, and owes what was taken beyond it', () => {
  const bucket = new Bucket(60, 0);
  bucket.take(70, 0);
  expect(bucket.left(0)).toBe(-10);
  expect(bucket.msUntil(1, 0)).toBe(11_000);
  expect(bucket.left(11_000)).toBeCloseTo(1);
  expect(bucket.left(1e9)).toBe(60);
  bucket.take(20, 1e9);
  bucket.resize(120);
  expect(bucket.left(1e9)).toBe(100);
});

test('durations as OpenAI writes them', () => {
  expect([0, 20.2, 999, 1000, 59_940, 60_000, 359_001].map(duration)).toEqual([
    '0ms',
    '21ms',
    '999ms',
    '1s',
    '59.9s',
    '1m0s',
    '6m0s',
  ]);
});
