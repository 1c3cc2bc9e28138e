import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ChatGLMError, type Model } from 'node-chatglm';
import type { NativeEvent, NativeModel } from '../lib/addon/native';
import { SupervisedModel } from '../lib/model/supervisor';
import { device, loadModel, onGpu } from './support/device';

const sampled = { temperature: 1, topK: 0, topP: 1, seed: 4, maxTokens: 40, logprobs: 2, stopTokens: [] };
const long = { temperature: 0, maxTokens: 900, stopTokens: [] };
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Processes that run a model for the process `parent`. */
function childrenOf(parent: number | undefined): number[] {
  if (parent === undefined) return [];
  const list = readFileSync(`/proc/${parent}/task/${parent}/children`, 'utf8').trim();
  return list
    .split(' ')
    .filter((pid) => pid !== '')
    .map(Number)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('isolated-child');
      } catch {
        return false; // it has ended meanwhile
      }
    });
}
const linuxTest = process.platform === 'linux' ? test : test.skip;

/** Kills the one process that runs a model for this one. */
function kill(): void {
  const [child, ...others] = childrenOf(process.pid);
  expect(others).toEqual([]);
  process.kill(child as number, 'SIGKILL');
}
const crashed = { code: 'ERR_RUNTIME_CRASHED', details: { signal: 'SIGKILL' } };

describe('an isolated model', () => {
  let model: Model;
  let here: Model;
  let folder: string;
  beforeAll(async () => {
    [here, model] = await Promise.all([loadModel(), loadModel(undefined, { isolate: true })]);
    folder = mkdtempSync(join(tmpdir(), 'isolated-'));
  });
  afterAll(async () => {
    await Promise.all([here.dispose(), model.dispose()]);
    rmSync(folder, { recursive: true });
  });

  test('is the same model', async () => {
    expect(model.info).toEqual(here.info);
    const [one, other] = [await here.generate('Hello', sampled).result, await model.generate('Hello', sampled).result];
    expect(other.tokens).toEqual(one.tokens);
    expect(other.logprobs).toEqual(one.logprobs);
    const ids = [100, 200, 300, 400];
    expect(await model.score(ids, { logprobs: 1 })).toEqual(await here.score(ids, { logprobs: 1 }));
    expect(await model.logits(ids)).toEqual(await here.logits(ids));
    expect(model.stats()).toMatchObject({ activeSequences: 0, queuedRequests: 0, totalPages: 64 });
    expect(model.stats().cachedTokens).toBeGreaterThan(0);
    model.clearCache();
    while (model.stats().cachedTokens > 0) await sleep(5);
  });

  test('streams, ends early, and refuses with the same codes', async () => {
    const generation = model.generate('Hello', long);
    let count = 0;
    for await (const _ of generation) if (++count === 5) break;
    expect((await generation.result).finishReason).toBe('cancelled');
    const signal = AbortSignal.timeout(30);
    await expect(model.generate('Hello', { ...long, signal }).result).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    await expect(model.generate('Hello', { ...long, timeoutMs: 30 }).result).rejects.toMatchObject({
      code: 'ERR_TIMEOUT',
    });
    const small = await loadModel(undefined, { isolate: true, maxSequences: 1, maxQueue: 1 });
    const all = Array.from({ length: 4 }, () => small.generate('Hello', { ...long, maxTokens: 50 }).result);
    const outcomes = await Promise.allSettled(all);
    const refused = outcomes.filter(({ status }) => status === 'rejected') as PromiseRejectedResult[];
    expect(refused.map(({ reason }) => reason.code)).toEqual(['ERR_QUEUE_FULL', 'ERR_QUEUE_FULL']);
    await small.dispose();
    await expect(small.generate('Hello').result).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  });

  test('saves and restores chats, and pins prompts', async () => {
    const chat = model.createChat({ temperature: 0, maxTokens: 30 });
    await chat.send('你好');
    const file = join(folder, 'chat');
    await chat.save(file);
    const restored = await model.restoreChat(file, { temperature: 0, maxTokens: 30 });
    const [a, b] = await Promise.all([chat.send('What is 7 times 8?'), restored.send('What is 7 times 8?')]);
    if (!onGpu) expect(a.text).toBe(b.text);
    const kept = await model.cachePrompt('# language: Python\n');
    kept.release();
  });

  linuxTest('that is killed ends what runs with the cause, and answers again', async () => {
    const failures: ChatGLMError[] = [];
    const listener = (error: ChatGLMError) => failures.push(error);
    model.on('failed', listener);
    const expected = (await here.generate('Hello', sampled).result).tokens;
    // While it generates, while it computes a prompt, and while it has nothing to do.
    const generating = Array.from({ length: 3 }, () => model.generate('Hello', long));
    await generating[0]?.next();
    kill();
    for (const { result } of generating) await expect(result).rejects.toMatchObject(crashed);
    const waiting = model.generate('Hello', sampled).result; // for the model to be loaded again
    const cancelled = model.generate('Hello', long);
    await cancelled.return();
    expect((await cancelled.result).finishReason).toBe('cancelled');
    expect((await waiting).tokens).toEqual(expected);
    const prompt = Array.from({ length: 900 }, (_, i) => 100 + ((i * i) % 5000));
    const scoring = model.score(prompt);
    kill();
    await expect(scoring).rejects.toMatchObject(crashed);
    expect((await model.generate('Hello', sampled).result).tokens).toEqual(expected);
    kill();
    while (failures.length < 3) await sleep(5);
    expect((await model.generate('Hello', sampled).result).tokens).toEqual(expected);
    expect(failures).toHaveLength(3);
    expect(failures[0]).toBeInstanceOf(ChatGLMError);
    expect(failures[0]).toMatchObject(crashed);
    model.off('failed', listener);
  });
});

linuxTest('after too many crashes everything gets the cause', async () => {
  const model = await loadModel(undefined, { isolate: true, restart: { most: 1 } });
  const failures: ChatGLMError[] = [];
  model.on('failed', (error) => failures.push(error));
  kill();
  while (failures.length < 1) await sleep(5);
  await model.generate('Hello', sampled).result;
  const running = model.generate('Hello', long);
  await running.next();
  kill();
  await expect(running.result).rejects.toMatchObject(crashed);
  await expect(model.generate('Hello').result).rejects.toMatchObject(crashed);
  await expect(model.score([5, 6])).rejects.toMatchObject(crashed);
  await expect(model.cachePrompt('Hello')).rejects.toMatchObject(crashed);
  expect(failures).toHaveLength(2);
  await model.dispose();
  await expect(model.generate('Hello').result).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
});

linuxTest('a crash while loading is the error of loadModel()', async () => {
  const loading = loadModel(undefined, { isolate: true });
  while (childrenOf(process.pid).length === 0) await sleep(1);
  kill();
  await expect(loading).rejects.toMatchObject(crashed);
});

test('options of a restart are checked', async () => {
  await expect(loadModel(undefined, { restart: { most: -1 } })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  await expect(loadModel(undefined, { restart: 3 as never })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  await expect(loadModel(undefined, { isolate: 'yes' as never })).rejects.toMatchObject({
    code: 'ERR_INVALID_ARGUMENT',
  });
});

/** Runs a program that loads an isolated model. */
function program(body: string): ReturnType<typeof spawn> {
  const source = `const { loadModel } = require('node-chatglm'); (async () => { const model = await loadModel(undefined, { isolate: true, device: '${device}' }); ${body} })();`;
  return spawn(process.execPath, ['-e', source], { cwd: join(__dirname, '..'), stdio: ['ignore', 'pipe', 'inherit'] });
}

test('an idle isolated model keeps no process alive, and writes nothing', () => {
  const source = `require('node-chatglm').loadModel(undefined, { isolate: true, device: '${device}' }).then((model) =>
    model.generate('Hello', { maxTokens: 3 }).result.then(({ tokens }) => console.log(tokens.length)))`;
  const output = execFileSync(process.execPath, ['-e', source], { cwd: join(__dirname, '..'), timeout: 30_000 });
  expect(output.toString()).toBe('3\n');
});

linuxTest('signals of a terminal, which reach the child as well, do not end it', async () => {
  const model = await loadModel(undefined, { isolate: true });
  const [child] = childrenOf(process.pid);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.kill(child as number, signal);
  expect((await model.generate('Hello', sampled).result).tokens).toHaveLength(40);
  expect(childrenOf(process.pid)).toEqual([child]);
  await model.dispose();
  expect(childrenOf(process.pid)).toEqual([]);
});

linuxTest('a model that nobody holds any more gives its process back', () => {
  const source = `const { loadModel } = require('node-chatglm');
    const fs = require('node:fs');
    const children = () => fs.readFileSync('/proc/self/task/' + process.pid + '/children', 'utf8').trim();
    (async () => {
      await (async () => {
        const model = await loadModel(undefined, { isolate: true, device: '${device}' });
        await model.generate('Hello', { maxTokens: 2 }).result;
      })();
      for (let i = 0; i < 500 && children() !== ''; i++) {
        global.gc();
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      console.log(children() === '');
    })();`;
  const options = { cwd: join(__dirname, '..'), timeout: 30_000 };
  expect(execFileSync(process.execPath, ['--expose-gc', '-e', source], options).toString()).toBe('true\n');
});

linuxTest('a parent that is killed leaves no child behind', async () => {
  const parent = program(
    "console.log('loaded'); await model.generate('Hello', { maxTokens: 900, stopTokens: [] }).result;",
  );
  await new Promise((resolve) => parent.stdout?.once('data', resolve));
  const children = childrenOf(parent.pid);
  expect(children).toHaveLength(1);
  parent.kill('SIGKILL');
  const isThere = (pid: number) => {
    try {
      return !readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z ');
    } catch {
      return false;
    }
  };
  while (children.some(isThere)) await sleep(10);
});

describe('drain()', () => {
  test('completes what was taken, and takes nothing new', async () => {
    const model = await loadModel(undefined, { maxSequences: 1 });
    const taken = [1, 2, 3].map(() => model.generate('Hello', { ...long, maxTokens: 40 }).result);
    const encoding = model
      .generate('word '.repeat(900).slice(0, 1500), { maxTokens: 1 })
      .result.catch((error) => error.code);
    const drained = model.drain();
    await expect(model.generate('Hello').result).rejects.toMatchObject({ code: 'ERR_DRAINING' });
    await expect(model.createChat().send('Hello')).rejects.toMatchObject({ code: 'ERR_DRAINING' });
    await drained;
    expect((await Promise.all(taken)).map(({ tokens }) => tokens.length)).toEqual([40, 40, 40]);
    await encoding;
    await model.drain(); // once more, with nothing left
    await model.dispose();
  });

  test('ends after its time limit, and so does what was not complete', async () => {
    const model = await loadModel();
    const running = [1, 2].map(() => model.generate('Hello', long).result);
    const drained = model.drain({ timeoutMs: 50 });
    for (const result of running) await expect(result).rejects.toMatchObject({ code: 'ERR_DRAINING' });
    await drained;
    while (model.stats().activeSequences > 0) await sleep(5);
    await expect(model.drain({ timeoutMs: -1 })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    await model.dispose();
  });
});

// Failures of the runtime within this process, which no test can bring about from outside: the seam is the native model.
describe('supervision', () => {
  const failure = { code: 'ERR_INTERNAL' as const, message: 'CUDA: an illegal address', details: {} };

  function supervised(limit = { most: 2, withinMs: 60_000, mostWaiting: 2 }) {
    const told: NativeEvent[] = [];
    const loads: { tell: (events: NativeEvent[]) => void; submitted: number[]; released: number[] }[] = [];
    const model = new SupervisedModel(
      (tell) => {
        const load = { tell, submitted: [] as number[], released: [] as number[] };
        loads.push(load);
        // Every load counts its requests from 1.
        return {
          submit: () => {
            load.submitted.push(load.submitted.length + 1);
            return load.submitted.length;
          },
          release: (pin: number) => load.released.push(pin),
          cancel: () => {},
          dispose: () => tell([{ type: 'disposed' }]),
        } as unknown as NativeModel;
      },
      limit,
      (events) => told.push(...events),
    );
    const ready = () => loads.at(-1)?.tell([{ type: 'ready', info: {} as never }]);
    const fail = (running: number[]) =>
      loads
        .at(-1)
        ?.tell([
          ...running.map((request): NativeEvent => ({ type: 'error', request, error: failure })),
          { type: 'failed', error: failure },
          { type: 'disposed' },
        ]);
    return { model, told, loads, ready, fail };
  }
  const request = (pin = false) => ({ pin }) as never;

  test('numbers stay unique over loads, and requests wait for the next one', () => {
    const { model, told, loads, ready, fail } = supervised();
    ready();
    expect([model.submit(request()), model.submit(request())]).toEqual([1, 2]);
    fail([1, 2]);
    expect(told.filter(({ type }) => type === 'ready')).toHaveLength(1);
    expect(told.filter(({ type }) => type === 'error')).toMatchObject([{ request: 1 }, { request: 2 }]);
    expect(loads).toHaveLength(2);
    const waiting = model.submit(request());
    expect(waiting).toBe(3);
    expect(loads[1]?.submitted).toEqual([]);
    ready();
    expect(loads[1]?.submitted).toEqual([1]);
    loads[1]?.tell([{ type: 'token', request: 1, id: 7 }]);
    expect(told.at(-1)).toMatchObject({ type: 'token', request: waiting });
    loads[0]?.tell([{ type: 'token', request: 1, id: 8 }]); // an earlier load says nothing any more
    expect(told.at(-1)).toMatchObject({ id: 7 });
    expect(told.some(({ type }) => type === 'disposed')).toBe(false);
  });

  test('no more requests wait for a load than the model would take', () => {
    const { model, ready, fail } = supervised();
    ready();
    fail([]);
    model.submit(request());
    model.submit(request());
    expect(() => model.submit(request())).toThrow('2 requests are waiting already for the model to be loaded');
    ready();
    model.submit(request());
  });

  test('pins of an earlier load are gone', async () => {
    const { model, told, loads, ready, fail } = supervised();
    ready();
    const pin = model.submit(request(true));
    loads[0]?.tell([{ type: 'finish', request: 1, finish: {} as never }]);
    fail([]);
    ready();
    model.release(pin);
    expect(loads[1]?.released).toEqual([]);
    const call = model.readPages(pin, 0, 1);
    await null;
    expect(told.at(-1)).toMatchObject({ type: 'pages', request: call, error: { code: 'ERR_RUNTIME_CRASHED' } });
  });

  test('after the limit waiting and later requests get the cause, and dispose() ends', () => {
    const { model, told, loads, ready, fail } = supervised({ most: 1, withinMs: 60_000, mostWaiting: 2 });
    ready();
    fail([]);
    const waiting = model.submit(request());
    fail([]); // while it is loaded again
    expect(loads).toHaveLength(2);
    expect(told).toContainEqual({ type: 'error', request: waiting, error: failure });
    expect(told.at(-1)).toEqual({ type: 'disposed' });
    expect(() => model.submit(request())).toThrow(failure.message);
    model.dispose();
  });

  test('disposal while it is loaded again ends what waits', () => {
    const { model, told, ready, fail } = supervised();
    ready();
    fail([]);
    const waiting = model.submit(request());
    model.dispose();
    expect(told.at(-2)).toMatchObject({ type: 'error', request: waiting, error: { code: 'ERR_DISPOSED' } });
    expect(told.at(-1)).toEqual({ type: 'disposed' });
  });
});
