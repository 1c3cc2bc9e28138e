import { once } from 'node:events';
import net from 'node:net';
import { loadModel, type Model } from 'node-chatglm';
import { createServer, type Server, type ServerOptions } from '../src/index';
import { exchange, json, post, type ServerProcess, startProcess, until } from './support/infra';
import { endless } from './support/served';

let model: Model;
const servers: Server[] = [];
const processes: ServerProcess[] = [];

beforeAll(async () => {
  model = await loadModel(null, { device: 'cpu' });
});
afterEach(async () => {
  for (const { child } of processes.splice(0)) child.kill('SIGKILL');
  await Promise.all(servers.splice(0).map((server) => server.close()));
});
afterAll(async () => {
  await model.dispose();
});

async function start(options: ServerOptions = {}): Promise<{ server: Server; url: string }> {
  const server = createServer({ model, ...options });
  servers.push(server);
  return { server, url: await server.listen({ port: 0 }) };
}

async function spawnServer(...args: string[]): Promise<ServerProcess> {
  const started = await startProcess(args);
  processes.push(started);
  return started;
}

/** An answer that goes on for so many tokens, and what has come of it. */
function ask(url: string, tokens: number) {
  const gone = new AbortController();
  let text = '';
  const answered = (async () => {
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        messages: [{ role: 'user', content: '你好' }],
        max_tokens: tokens,
        logit_bias: endless(model),
        stream: true,
      }),
      signal: gone.signal,
    });
    const decoder = new TextDecoder();
    for await (const part of response.body as unknown as AsyncIterable<Uint8Array>) text += decoder.decode(part);
    return text;
  })();
  answered.catch(() => {});
  return { answered, hasBegun: () => text !== '', leave: () => gone.abort() };
}

/** A connection that is kept without a request. */
async function idleConnection(url: string): Promise<net.Socket> {
  const { port, hostname } = new URL(url);
  const socket = net.connect(Number(port), hostname);
  socket.on('error', () => {}).resume();
  socket.write('GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n');
  await once(socket, 'data');
  return socket;
}

test('a server that closes answers what it began, refuses the rest, and tells so', async () => {
  const { server, url } = await start();
  const running = ask(url, 600);
  await until(running.hasBegun);
  const idle = await idleConnection(url);
  const isGone = once(idle, 'close');
  const closed = server.close();
  const ready = await fetch(`${url}/ready`);
  expect([ready.status, (await json(ready)).status]).toEqual([503, 'draining']);
  expect((await fetch(`${url}/health`)).status).toBe(200);
  const refused = await post(`${url}/v1/chat/completions`, { messages: [{ role: 'user', content: '你好' }] });
  expect([refused.status, refused.body.error.code]).toEqual([503, 'shutting_down']);
  expect(refused.headers.get('connection')).toBe('close');
  expect(refused.headers.get('retry-after')).toBe('1');
  expect(await running.answered).toMatch(/data: \[DONE\]\s*$/);
  await Promise.all([closed, isGone]);
  await expect(fetch(`${url}/health`)).rejects.toThrow();
});

test('answers that take too long are cut off', async () => {
  const { server, url } = await start({ shutdownMs: 30 });
  const running = ask(url, 1000);
  await until(running.hasBegun);
  await server.close();
  await expect(running.answered).rejects.toThrow();
  await until(() => model.stats().activeSequences === 0);
});

test('clients that go end their sequences, whether they wait, stream, or have not got anything yet', async () => {
  const { url } = await start();
  const streams = Array.from({ length: 8 }, () => ask(url, 900));
  await until(() => streams.every(({ hasBegun }) => hasBegun()));
  expect(model.stats().activeSequences).toBe(8);
  for (const { leave } of streams) leave();
  await until(() => model.stats().activeSequences === 0);
  const gone = new AbortController();
  const body = { messages: [{ role: 'user', content: '你好' }], max_tokens: 900, logit_bias: endless(model) };
  const whole = post(`${url}/v1/chat/completions`, body, { signal: gone.signal });
  await until(() => model.stats().activeSequences === 1);
  gone.abort();
  await expect(whole).rejects.toThrow();
  await until(() => model.stats().activeSequences === 0);
});

test('closing twice is closing once, and a server that never listened closes too', async () => {
  const { server } = await start();
  await Promise.all([server.close(), server.close()]);
  await createServer({ model }).close();
});

test.each(['SIGTERM', 'SIGINT'] as const)(
  'a process that gets %s answers what it began and ends with 0',
  async (signal) => {
    const { child, url, ended } = await spawnServer();
    const idle = await idleConnection(url);
    const running = ask(url, 400);
    await until(running.hasBegun);
    child.kill(signal);
    await until(async () => (await fetch(`${url}/ready`).catch(() => undefined))?.status !== 200);
    expect(await running.answered).toMatch(/data: \[DONE\]\s*$/);
    expect(await ended).toMatchObject({ code: 0, signal: null });
    idle.destroy();
  },
);

test('a second signal ends the process at once', async () => {
  const { child, url, ended } = await spawnServer('--shutdown-timeout', '600');
  // A request whose body never comes keeps the server from ending by itself.
  const never = exchange(
    url,
    'POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{',
  );
  await until(async () => (await (await fetch(`${url}/metrics`)).text()).includes('requests_in_flight 1'));
  child.kill('SIGTERM');
  await until(async () => (await fetch(`${url}/ready`)).status === 503);
  child.kill('SIGTERM');
  expect((await ended).code).toBe(143);
  await never;
});

test('SIGHUP without keys is nothing', async () => {
  const { child, url } = await spawnServer();
  child.kill('SIGHUP');
  expect((await fetch(`${url}/health`)).status).toBe(200);
});
