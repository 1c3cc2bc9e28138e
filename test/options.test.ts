import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { ChatGLMError, ERROR_CODES } from '../lib/common/errors.js';
import { isSupported } from '../lib/common/node-version.js';
import { allocated, integerOption, readOptions, show, signalOption, toPath } from '../lib/common/options.js';
import { throttled } from '../lib/common/progress.js';
import { LogitsRequest } from '../lib/generation/value-request.js';

function errorOf(action: () => unknown): ChatGLMError {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(ChatGLMError);
    return error as ChatGLMError;
  }
  throw new Error('there was no error');
}

class Foo {}

test.each<[unknown, string]>([
  [null, 'null'],
  [undefined, 'undefined'],
  [-0.5, '-0.5'],
  [Number.NaN, 'NaN'],
  ['a"b', '"a\\"b"'],
  [5n, '5n (a bigint)'],
  [2n ** 1_000_000n, 'a bigint'],
  [Symbol('x'.repeat(1e6)), 'a symbol'],
  [() => 'x'.repeat(1000), 'a function'],
  [Foo, 'a function'],
  [[1, 2], 'an array'],
  [{ a: 1 }, 'an object'],
  [Object.create(null), 'an object'],
  [new Foo(), 'an instance of Foo'],
  [new Map(), 'an instance of Map'],
  [Promise.resolve(), 'an instance of Promise'],
  [new (class {})(), 'an object'],
])('a value in a message, %#', (value, text) => {
  expect(show(value)).toBe(text);
});

test('a message stays short and runs no code of the value', () => {
  const long = show('a'.repeat(1e7));
  expect(long).toBe(`"${'a'.repeat(100)}…" (10000000 characters)`);
  const evil = new Proxy({}, { getPrototypeOf: () => { throw new Error('mine'); } }); // biome-ignore format: one line
  expect(show(evil)).toBe('an object');
  const { proxy, revoke } = Proxy.revocable([], {});
  revoke();
  expect(show(proxy)).toBe('an object');
  expect(errorOf(() => integerOption('seed', 5n, 0)).message).toBe(
    'seed must be a whole number of at least 0, got 5n (a bigint)',
  );
});

describe('readOptions()', () => {
  const read = (options: unknown) => readOptions<{ a?: number; b?: number }>(options, ['a', 'b'], 'f()');

  test('gives what is set', () => {
    expect(read({ a: 1, b: null, c: undefined, d: null })).toEqual({ a: 1 });
    expect(read(Object.assign(Object.create(null), { b: 0 }))).toEqual({ b: 0 });
    expect(read({})).toEqual({});
  });

  test('reads each option once', () => {
    let reads = 0;
    const options = {
      get a() {
        return ++reads;
      },
    };
    expect(read(options)).toEqual({ a: 1 });
    expect(reads).toBe(1);
  });

  test.each<[unknown, string]>([
    [null, 'the options of f() must be an object, got null'],
    [[], 'the options of f() must be an object, got an array'],
    [new Foo(), 'the options of f() must be an object, got an instance of Foo'],
    [{ c: false }, 'f() has no option c; there are a, b'],
    [{ [`c\u001b${'d'.repeat(1e6)}`]: 1 }, `f() has no option c?${'d'.repeat(98)}…; there are a, b`],
    [JSON.parse('{"__proto__": 1}'), 'f() has no option __proto__; there are a, b'],
  ])('refuses, %#', (options, message) => {
    expect(errorOf(() => read(options))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message });
  });

  test('names the options whose getter throws, with its error as the cause', () => {
    const cause = new Error('mine');
    const options = {
      get a() {
        throw cause;
      },
    };
    expect(errorOf(() => read(options))).toMatchObject({ message: 'the options of f() cannot be read: mine', cause });
  });
});

describe('paths', () => {
  const path = '/tmp/模型 1/model.gguf';

  test.each<[string, unknown]>([
    ['text', path],
    ['a URL', pathToFileURL(path)],
    ['the text of a URL', pathToFileURL(path).href],
    ['bytes', Buffer.from(path)],
  ])('%s', (_, value) => {
    expect(toPath('path', value)).toBe(path);
  });

  test('a relative path stays one', () => {
    expect(toPath('path', './a:b')).toBe('./a:b');
    expect(toPath('path', 'C:\\models')).toBe('C:\\models');
  });

  test.each<[unknown, RegExp]>([
    ['', /^path must be the path of a file or directory, got ""$/],
    [5, /got 5$/],
    [null, /got null$/],
    [{}, /got an object$/],
    ['a\0b', /^path has a null character/],
    [new URL('https://huggingface.co/THUDM/chatglm3-6b'), /a file: URL, got "https:.*: download it first$/],
    ['https://huggingface.co/THUDM/chatglm3-6b', /download it first$/],
    ['file://host/a', /^path cannot be read: /],
    [Buffer.from([0x61, 0xff]), /^path cannot be read: /],
    [Promise.resolve('a'), /got an instance of Promise$/],
  ])('%p is none', (value, message) => {
    expect(errorOf(() => toPath('path', value))).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
  });
});

test('what looks like a signal and throws', () => {
  const signal = {
    get aborted() {
      throw new Error('mine');
    },
  };
  expect(errorOf(() => signalOption(signal)).message).toBe('signal cannot be read: mine');
});

test('an array that cannot be had is ERR_OUT_OF_MEMORY', () => {
  const error = errorOf(() => new LogitsRequest(2 ** 31, 0, 65_024, () => {}, undefined));
  expect(error).toMatchObject({ code: 'ERR_OUT_OF_MEMORY', details: { wantedBytes: 2 ** 31 * 65_024 * 4 } });
  expect(() => allocated(1, () => JSON.parse('{'))).toThrow(SyntaxError);
});

test('progress is told ten times a second at most, at first and at the end', async () => {
  const told: number[] = [];
  const report = throttled(({ bytes }: { bytes: number; totalBytes: number }) => told.push(bytes));
  const began = performance.now();
  for (let bytes = 0; bytes < 250; bytes++) {
    report({ bytes, totalBytes: 250 });
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  report({ bytes: 250, totalBytes: 250 });
  report({ bytes: 250, totalBytes: 250 });
  expect(told[0]).toBe(0);
  expect(told.filter((bytes) => bytes === 250)).toHaveLength(1);
  expect(told.length).toBeLessThanOrEqual(2 + (performance.now() - began) / 100);
  expect(told.length).toBeGreaterThan(2);
});

test('the versions of Node are those that package.json asks for', () => {
  const { engines } = JSON.parse(readFileSync(join(__dirname, '..', 'package.json'), 'utf8'));
  expect(engines.node).toBe('^20.17.0 || >=22.9.0');
  for (const version of ['20.17.0', '20.20.2', '22.9.0', '23.0.0', '26.1.0']) expect(isSupported(version)).toBe(true);
  for (const version of ['14.21.3', '18.20.8', '20.16.0', '21.7.0', '22.8.0']) expect(isSupported(version)).toBe(false);
});

describe('errors', () => {
  const error = new ChatGLMError('ERR_QUEUE_FULL', 'too many', { limit: 3 }, new Error('cause'));

  test('JSON and back', () => {
    const text = JSON.stringify(error);
    expect(JSON.parse(text)).toEqual({
      name: 'ChatGLMError',
      code: 'ERR_QUEUE_FULL',
      message: 'too many',
      details: { limit: 3 },
    });
    const again = ChatGLMError.fromJSON(JSON.parse(text));
    expect(again).toBeInstanceOf(ChatGLMError);
    expect(again.toJSON()).toEqual(error.toJSON());
    expect(ChatGLMError.fromJSON(new ChatGLMError('ERR_ABORTED', '').toJSON()).name).toBe('AbortError');
  });

  test('from a worker', async () => {
    const source = `
      const { ChatGLMError, loadModel } = require('node-chatglm');
      const { parentPort } = require('node:worker_threads');
      loadModel('nowhere').catch((error) => parentPort.postMessage(error.toJSON()));`;
    const worker = new Worker(source, { eval: true });
    const value = await new Promise<never>((resolve) => worker.once('message', resolve));
    expect(ChatGLMError.fromJSON(value)).toMatchObject({
      code: 'ERR_CHECKPOINT_NOT_FOUND',
      details: { file: expect.stringMatching(/nowhere$/) },
    });
    await worker.terminate();
  });

  test.each([null, 5, 'x', {}, [], { code: 'ERR_X', message: '', details: {} }, { code: 'ERR_IO', message: '' }])(
    '%j is none',
    (value) => {
      expect(errorOf(() => ChatGLMError.fromJSON(value as never)).code).toBe('ERR_INVALID_ARGUMENT');
    },
  );

  test('the guide has a row for every code', () => {
    const guide = readFileSync(join(__dirname, '..', 'docs', 'errors.md'), 'utf8');
    const rows = [...guide.matchAll(/^\| `(ERR_\w+)` \|/gm)].map(([, code]) => code);
    expect(rows.sort()).toEqual([...ERROR_CODES].sort());
  });
});
