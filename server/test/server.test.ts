import { once } from 'node:events';
import net from 'node:net';
import { loadModel, type Model } from 'node-chatglm';
import { createServer, type Server, type ServerOptions } from '../src/index';
import { exchange, json, post } from './support/infra';

let model: Model;
const servers: Server[] = [];

beforeAll(async () => {
  model = await loadModel(null, { device: 'cpu' });
});
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()));
});
afterAll(async () => {
  await model.dispose();
});

async function start(options: ServerOptions = {}): Promise<{ server: Server; url: string }> {
  const server = createServer({ model, ...options });
  servers.push(server);
  server.app.post('/test/echo', async ({ body }) => ({ body }));
  server.app.get('/test/fail', async () => {
    throw new Error('/home/anna/secret.txt could not be read');
  });
  return { server, url: await server.listen({ port: 0 }) };
}

const get = async (url: string, headers: Record<string, string> = {}) => {
  // fetch() writes its own Host.
  const { pathname, host } = new URL(url);
  const lines = Object.entries({ host, connection: 'close', ...headers }).map(([name, value]) => `${name}: ${value}`);
  const answer = await exchange(url, `GET ${pathname} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`);
  const [head = '', body = ''] = answer.split('\r\n\r\n');
  return { status: Number(head.split(' ')[1]), head: head.toLowerCase(), body };
};

describe('a server', () => {
  test('answers with its health, its models and safe headers', async () => {
    const { url } = await start();
    const health = await fetch(`${url}/health`);
    expect([health.status, await json(health)]).toEqual([200, { status: 'ok' }]);
    expect(health.headers.get('x-content-type-options')).toBe('nosniff');
    expect(health.headers.get('x-powered-by')).toBeNull();
    const list = (await json(await fetch(`${url}/v1/models`))) as { data: { id: string }[] };
    expect(list.data.map(({ id }) => id)).toEqual(['chatglm-tiny']);
    expect((await fetch(`${url}/v1/models/chatglm-tiny`)).status).toBe(200);
    const missing = await fetch(`${url}/v1/models/gpt-4`);
    expect([missing.status, (await json(missing)).error.code]).toEqual([404, 'model_not_found']);
  });

  test('tells of unknown URLs and wrong bodies in the shape of errors, and of its own failures nothing', async () => {
    const { url } = await start();
    const unknown = await fetch(`${url}/v1/nothing`);
    expect([unknown.status, (await json(unknown)).error.code]).toEqual([404, 'unknown_url']);
    const response = await fetch(`${url}/test/echo`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"a":',
    });
    expect([response.status, (await json(response)).error.type]).toEqual([400, 'invalid_request_error']);
    const failed = await fetch(`${url}/test/fail`);
    const text = await failed.text();
    expect(failed.status).toBe(500);
    expect(text).not.toMatch(/secret|\bat\b .*:\d+/);
    expect(JSON.parse(text).error.code).toBe('internal_error');
  });

  test('takes a request id that is well-formed, and makes one else', async () => {
    const { url } = await start();
    const idFor = async (given: string) =>
      (await fetch(`${url}/health`, { headers: { 'x-request-id': given } })).headers.get('x-request-id');
    expect(await idFor('trace-42.a:b')).toBe('trace-42.a:b');
    expect(await idFor('<script>')).toMatch(/^req_[\da-f]{32}$/);
    expect(await idFor('x'.repeat(129))).toMatch(/^req_/);
  });

  test('has the readiness of its models', async () => {
    const server = createServer({ model: '/nowhere/model-of-nobody.gguf' });
    servers.push(server);
    const url = await server.listen({ port: 0 });
    await expect(server.preload()).rejects.toMatchObject({ status: 500, code: 'model_load_failed' });
    const ready = await fetch(`${url}/ready`);
    expect([ready.status, await json(ready)]).toEqual([
      503,
      { status: 'failed', models: [{ id: 'model-of-nobody', state: 'failed' }] },
    ]);
    expect((await fetch(`${url}/health`)).status).toBe(200);
  });

  test('leaves a model that it was given as it is', async () => {
    const { server } = await start();
    await server.close();
    const { usage } = await model.generate('你好', { maxTokens: 2, temperature: 0, stopTokens: [] }).result;
    expect(usage.generatedTokens).toBe(2);
  });

  test('refuses to listen twice on a port', async () => {
    const { url } = await start();
    const second = createServer({ model });
    servers.push(second);
    await expect(second.listen({ port: Number(new URL(url).port) })).rejects.toMatchObject({ code: 'EADDRINUSE' });
  });
});

describe('limits', () => {
  test('a body that is too large gets 413, headers 431', async () => {
    const { url } = await start({ limits: { bodyBytes: 1000, headerBytes: 2048 } });
    expect((await post(`${url}/test/echo`, { text: 'x'.repeat(900) })).status).toBe(200);
    const large = await post(`${url}/test/echo`, { text: 'x'.repeat(1000) });
    expect([large.status, large.body.error.type]).toEqual([413, 'invalid_request_error']);
    const chunked = await exchange(
      url,
      `POST /test/echo HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n` +
        `transfer-encoding: chunked\r\n\r\n${`3e8\r\n${'x'.repeat(1000)}\r\n`.repeat(3)}0\r\n\r\n`,
    );
    expect(chunked).toMatch(/^HTTP\/1.1 413 /);
    expect((await get(`${url}/health`, { 'x-long': 'x'.repeat(3000) })).status).toBe(431);
  });

  test('what is no HTTP gets 400', async () => {
    const { url } = await start();
    for (const text of ['hello\r\n\r\n', 'GET / HTTP/9.9\r\n\r\n', '\0\0\0\0\r\n\r\n']) {
      expect(await exchange(url, text)).toMatch(/^HTTP\/1.1 400 /);
    }
  });

  test('headers and bodies that arrive too slowly get 408, and the connection is closed', async () => {
    const { url } = await start({ limits: { headersTimeoutMs: 200, requestTimeoutMs: 400, checkIntervalMs: 50 } });
    expect(await exchange(url, 'GET /health HTTP/1.1\r\nhost: localhost\r\n')).toMatch(/^HTTP\/1.1 408 /);
    const body =
      'POST /test/echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{';
    expect(await exchange(url, body)).toMatch(/^HTTP\/1.1 408 /);
  });

  test('more connections than there may be are closed', async () => {
    const { url } = await start({ limits: { connections: 2 } });
    const { port, hostname } = new URL(url);
    const sockets = [0, 1].map(() => net.connect(Number(port), hostname));
    await Promise.all(sockets.map((socket) => once(socket, 'connect')));
    for (const socket of sockets) socket.on('error', () => {});
    expect(await exchange(url, 'GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n')).toBe('');
    expect(sockets.map(({ destroyed }) => destroyed)).toEqual([false, false]);
    for (const socket of sockets) socket.destroy();
  });
});

describe('pages of others', () => {
  test('names that lead to loopback from elsewhere are refused', async () => {
    const { url } = await start({ hosts: ['models.test'] });
    for (const host of ['localhost', 'localhost:8000', '127.0.0.1', '[::1]:80', 'app.localhost', 'models.test:1']) {
      expect([host, (await get(`${url}/v1/models`, { host })).status]).toEqual([host, 200]);
    }
    for (const host of ['evil.test', 'localhost.evil.test', '127.0.0.1.evil.test', '8.8.8.8', '']) {
      expect([host, (await get(`${url}/v1/models`, { host })).status]).toEqual([host, 403]);
    }
  });

  test('origins must be the own one, or named', async () => {
    const { url } = await start({ cors: ['https://page.test'] });
    const statusOf = async (headers: Record<string, string>) => (await get(`${url}/v1/models`, headers)).status;
    expect(await statusOf({ origin: url })).toBe(200);
    expect(await statusOf({ origin: 'https://page.test' })).toBe(200);
    expect(await statusOf({ origin: 'https://evil.test' })).toBe(403);
    expect(await statusOf({ origin: 'http://127.0.0.1:1' })).toBe(403);
    expect(await statusOf({ origin: 'null' })).toBe(403);
    const preflight = (origin: string) =>
      fetch(`${url}/v1/chat/completions`, {
        method: 'OPTIONS',
        headers: { origin, 'access-control-request-method': 'POST' },
      });
    const good = await preflight('https://page.test');
    expect([good.status, good.headers.get('access-control-allow-origin')]).toEqual([204, 'https://page.test']);
    const bad = await preflight('https://evil.test');
    expect([bad.status, bad.headers.get('access-control-allow-origin')]).toEqual([403, null]);
  });

  test('without named origins, what a browser sends for another page is refused', async () => {
    const { url } = await start();
    const statusOf = async (headers: Record<string, string>) => (await get(`${url}/health`, headers)).status;
    expect(await statusOf({ 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'no-cors' })).toBe(403);
    expect(await statusOf({ 'sec-fetch-site': 'same-site', 'sec-fetch-mode': 'no-cors' })).toBe(403);
    expect(await statusOf({ 'sec-fetch-site': 'same-origin', 'sec-fetch-mode': 'cors' })).toBe(200);
    // A link, or an address that was typed.
    expect(await statusOf({ 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'navigate' })).toBe(200);
    expect(await statusOf({ 'sec-fetch-site': 'none', 'sec-fetch-mode': 'navigate' })).toBe(200);
    const preflight = await fetch(`${url}/v1/chat/completions`, {
      method: 'OPTIONS',
      headers: { origin: 'https://evil.test', 'access-control-request-method': 'POST' },
    });
    expect(preflight.headers.get('access-control-allow-origin')).toBeNull();
  });
});

describe('options', () => {
  test.each<[object, RegExp]>([
    [{ modle: 'x' }, /has no option "modle"; there are model, /],
    [{ model: 1 }, /^model must be a path, a model of loadModel\(\) or \{ id, path, load \}, got 1$/],
    [{ model: [] }, /at least one model/],
    [{ model: [{ id: 'a' }, { id: 'b', aliases: ['a'] }] }, /two models have the name "a"/],
    [{ model: ['./x/a.gguf', './y/a.gguf'] }, /two models have the name "a"/],
    [{ model: [{ id: 'a b' }] }, /model\[0\]\.id must be a name of 1 to 200 characters without spaces/],
    [{ preload: ['b'] }, /preload names "b"; there are chatglm-tiny/],
    [{ maxMemory: -1 }, /^maxMemory must be a whole number of at least 1, got -1$/],
    [{ limits: { bodyBytes: 0 } }, /^limits\.bodyBytes must be a whole number from 1 to/],
    [{ limits: { body: 0 } }, /^limits has no option "body"/],
    [{ cors: ['example.com'] }, /^cors must have origins such as https:\/\/example\.com/],
    [{ cors: ['https://example.com/path'] }, /^cors must have origins/],
    [{ keys: [{ name: 'a', key: 'short' }] }, /^keys\[0\]: key must be 16 to 512 visible ASCII characters$/],
    [{ keys: [{ name: 'a' }] }, /must have either key/],
    [{ keys: '/nowhere/keys' }, /keys \/nowhere\/keys cannot be read: there is no such file/],
    [{ logger: { level: 'loud' } }, /^logger\.level must be one of silent, error, warn, info, debug, got "loud"$/],
    [{ metrics: 'closed' }, /^metrics must be true or false/],
    [{ interpreter: {} }, /^interpreter must be an executor/],
    [{ batch: { redis: 'localhost' } }, /^batch\.redis must be a URL/],
    [{ shutdownMs: 1.5 }, /^shutdownMs must be a whole number/],
  ])('%j is refused', (options, message) => {
    expect(() => createServer(options)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringMatching(message) }),
    );
  });

  test('models are named by their files, their directories, or as they are told', () => {
    const ids = (given: ServerOptions['model']) =>
      createServer({ model: given })
        .models.list()
        .map(({ id }) => id);
    expect(ids(undefined)).toEqual(['chatglm-tiny']);
    expect(ids('./models/chatglm3-6b.gguf')).toEqual(['chatglm3-6b']);
    expect(ids(['./a/chatglm2-6b-v1.1', { path: './b/model.gguf' }, { id: 'mine' }])).toEqual([
      'chatglm2-6b-v1.1',
      'b',
      'mine',
    ]);
    expect(ids({ one: './a', two: { path: './b' }, three: model })).toEqual(['one', 'two', 'three']);
  });
});
