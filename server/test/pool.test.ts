import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import Fastify from 'fastify';
import { embeddedModelPath, type Model } from 'node-chatglm';
import { createServer, type Server, type ServerOptions } from '../src/index';
import { Pool } from '../src/models/model-pool';
import { readServerOptions } from '../src/options';
import { addGenerateRoute, GENERATE, post, until } from './support/infra';

const load = { device: 'cpu', contextLength: 256, maxSequences: 4 } as const;
const { log } = Fastify();
let directory: string;
let oneModel: number;
const pools: Pool[] = [];
const servers: Server[] = [];

beforeAll(async () => {
  directory = mkdtempSync(path.join(tmpdir(), 'chatglm-pool-'));
  const pool = new Pool(readServerOptions({ model: { load } }), log);
  const { model, release } = await pool.acquire(undefined);
  oneModel = model.info.bytes + model.info.kvCacheBytes;
  release();
  await pool.close(1000);
});
afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.close(1000)));
  await Promise.all(servers.splice(0).map((server) => server.close()));
});
afterAll(() => rmSync(directory, { recursive: true }));

function poolOf(ids: readonly string[], options: ServerOptions = {}) {
  const loads: string[] = [];
  const unloads: string[] = [];
  const model = ids.map((id) => ({ id, load, ...(id.startsWith('broken') && { path: path.join(directory, id) }) }));
  const pool = new Pool(readServerOptions({ model, ...options }), log, {
    onLoaded: (id) => loads.push(id),
    onUnloading: (id) => unloads.push(id),
  });
  pools.push(pool);
  const states = () => Object.fromEntries(pool.list().map(({ id, state }) => [id, state]));
  return { pool, loads, unloads, states };
}

const isUsable = async (model: Model) =>
  (await model.generate('你好', { maxTokens: 1, stopTokens: [] }).result).usage.generatedTokens === 1;

test('a model is loaded when it is first asked for, once for all who ask', async () => {
  const { pool, loads, states } = poolOf(['a', 'b']);
  expect(states()).toEqual({ a: 'unloaded', b: 'unloaded' });
  const leases = await Promise.all([pool.acquire('b'), pool.acquire('b'), pool.acquire('b')]);
  expect(loads).toEqual(['b']);
  expect(new Set(leases.map(({ model }) => model)).size).toBe(1);
  expect(states()).toEqual({ a: 'unloaded', b: 'loaded' });
  expect(pool.list()[1]?.contextLength).toBe(256);
  for (const { release } of leases) release();
});

test('names, aliases and the default', async () => {
  const options = {
    model: [
      { id: 'a', aliases: ['gpt-4', 'default'], load },
      { id: 'b', load },
    ],
  };
  const strict = new Pool(readServerOptions(options), log);
  const open = new Pool(readServerOptions({ ...options, anyModel: true }), log);
  expect([undefined, '', 'a', 'gpt-4', 'b'].map((name) => strict.resolve(name))).toEqual(['a', 'a', 'a', 'a', 'b']);
  expect(() => strict.resolve('c')).toThrow(expect.objectContaining({ status: 404, code: 'model_not_found' }));
  await expect(strict.acquire('c')).rejects.toMatchObject({ status: 404, param: 'model' });
  expect(open.resolve('c')).toBe('a');
});

test('idle models make room, the least recently used first', async () => {
  const { pool, loads, unloads } = poolOf(['a', 'b', 'c'], { maxMemory: Math.round(2.5 * oneModel) });
  (await pool.acquire('a')).release();
  (await pool.acquire('b')).release();
  (await pool.acquire('a')).release();
  (await pool.acquire('c')).release();
  expect([loads, unloads]).toEqual([['a', 'b', 'c'], ['b']]);
  (await pool.acquire('b')).release();
  expect(unloads).toEqual(['b', 'a']);
});

test('a model in use is not unloaded: a load waits for it, and later requests wait behind that', async () => {
  const { pool, loads, unloads } = poolOf(['a', 'b'], { maxMemory: Math.round(1.5 * oneModel) });
  const first = await pool.acquire('a');
  const order: string[] = [];
  const other = pool.acquire('b').then((lease) => {
    order.push('b');
    return lease;
  });
  await until(() => pool.list()[1]?.state === 'loading');
  await new Promise((resolve) => setTimeout(resolve, 20));
  const late = pool.acquire('a').then((lease) => {
    order.push('a');
    return lease;
  });
  expect(await isUsable(first.model)).toBe(true);
  expect(unloads).toEqual([]);
  first.release();
  first.release();
  const lease = await other;
  expect(await isUsable(lease.model)).toBe(true);
  lease.release();
  const again = await late;
  expect(await isUsable(again.model)).toBe(true);
  again.release();
  expect(order).toEqual(['b', 'a']);
  expect([loads, unloads]).toEqual([
    ['a', 'b', 'a'],
    ['a', 'b'],
  ]);
});

test('many requests for more models than fit are all answered', async () => {
  const { pool } = poolOf(['a', 'b', 'c'], { maxMemory: Math.round(1.5 * oneModel) });
  const answered = await Promise.all(
    Array.from({ length: 30 }, async (_, i) => {
      const lease = await pool.acquire('abc'[i % 3]);
      try {
        return await isUsable(lease.model);
      } finally {
        lease.release();
      }
    }),
  );
  expect(answered).toEqual(new Array(30).fill(true));
});

test('a model that does not fit at all is refused, without its size', async () => {
  const { pool, states } = poolOf(['a'], { maxMemory: Math.round(oneModel / 2) });
  await expect(pool.acquire('a')).rejects.toMatchObject({ status: 503, code: 'out_of_memory' });
  expect(states()).toEqual({ a: 'failed' });
});

test('who goes away while a model loads takes nothing from those who wait', async () => {
  const { pool, loads } = poolOf(['a']);
  const gone = new AbortController();
  const left = pool.acquire('a', gone.signal);
  const stays = pool.acquire('a');
  gone.abort(new Error('gone'));
  await expect(left).rejects.toThrow('gone');
  const lease = await stays;
  expect(await isUsable(lease.model)).toBe(true);
  lease.release();
  expect(loads).toEqual(['a']);
  await expect(pool.acquire('a', gone.signal)).rejects.toThrow('gone');
});

test('a load that waits for room is given up when nobody waits for it', async () => {
  const { pool, loads, states } = poolOf(['a', 'b'], { maxMemory: Math.round(1.5 * oneModel) });
  const lease = await pool.acquire('a');
  const gone = new AbortController();
  const left = pool.acquire('b', gone.signal);
  await until(() => states().b === 'loading');
  gone.abort(new Error('gone'));
  await expect(left).rejects.toThrow('gone');
  await until(() => states().b === 'unloaded');
  const again = await pool.acquire('a');
  lease.release();
  again.release();
  expect(loads).toEqual(['a']);
});

test('a load that fails is told without paths, and the next request tries again', async () => {
  const { pool, states } = poolOf(['broken.gguf']);
  const file = path.join(directory, 'broken.gguf');
  for (const content of [undefined, 'no checkpoint']) {
    if (content) writeFileSync(file, content);
    const error = await pool.acquire('broken.gguf').catch((thrown) => thrown);
    expect(error).toMatchObject({ status: 500, code: 'model_load_failed' });
    expect(error.message).not.toContain(directory);
    expect(states()).toEqual({ 'broken.gguf': 'failed' });
  }
  copyFileSync(embeddedModelPath(), file);
  const lease = await pool.acquire('broken.gguf');
  expect(await isUsable(lease.model)).toBe(true);
  lease.release();
  expect(states()).toEqual({ 'broken.gguf': 'loaded' });
});

/** The processes of isolated models. */
function childrenOf(pid: number): number[] {
  return execFileSync('ps', ['--ppid', String(pid), '-o', 'pid=,args='], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => line.includes('isolated-child'))
    .map((line) => Number.parseInt(line, 10));
}

test('a model whose process ends is not ready until it is loaded again', async () => {
  const server = createServer({ model: { id: 'a', load: { ...load, isolate: true } } });
  servers.push(server);
  addGenerateRoute(server.app, server.models);
  const url = await server.listen({ port: 0 });
  await server.preload();
  const ready = async () => (await fetch(`${url}/ready`)).status;
  expect(await ready()).toBe(200);
  const [child] = childrenOf(process.pid);
  process.kill(child as number, 'SIGKILL');
  await until(async () => (await ready()) === 503);
  const answer = await post(url + GENERATE, { tokens: 3 });
  expect([answer.status, answer.body.usage?.generatedTokens]).toEqual([200, 3]);
  await until(async () => (await ready()) === 200);
});

test('a model that fails for good is loaded anew by the server', async () => {
  const server = createServer({ model: { id: 'a', load: { ...load, isolate: true, restart: false } } });
  servers.push(server);
  addGenerateRoute(server.app, server.models);
  const url = await server.listen({ port: 0 });
  await server.preload();
  const [first] = [...server.models.loaded()];
  process.kill(childrenOf(process.pid)[0] as number, 'SIGKILL');
  await until(() => [...server.models.loaded()].some(({ model }) => model !== first?.model));
  await until(async () => (await fetch(`${url}/ready`)).ok);
  expect((await post(url + GENERATE, { tokens: 3 })).status).toBe(200);
});

test('a pool that closes takes no requests, and frees what it loaded', async () => {
  const { pool, states } = poolOf(['a']);
  const { model, release } = await pool.acquire('a');
  release();
  await pool.close(1000);
  expect(states()).toEqual({ a: 'unloaded' });
  await expect(pool.acquire('a')).rejects.toMatchObject({ status: 503, code: 'shutting_down' });
  await expect(model.generate('你好').result).rejects.toMatchObject({
    code: expect.stringMatching(/DISPOSED|DRAINING/),
  });
});

test('a pool that closes while it loads does not finish loading', async () => {
  const { pool } = poolOf(['a']);
  const waiting = pool.acquire('a');
  const outcome = expect(waiting).rejects.toMatchObject({ status: 503, code: 'shutting_down' });
  await pool.close(1000);
  await outcome;
});
