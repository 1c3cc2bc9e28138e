import { join } from 'node:path';
import {
  type Chat,
  ChatGLMError,
  convertCheckpoint,
  defineTool,
  embeddedModelPath,
  loadTokenizer,
  type Model,
  measureBandwidth,
  openCheckpoint,
  synthesize,
  toolsFromMcp,
} from 'node-chatglm';
import { ERROR_CODES } from '../lib/common/errors.js';
import { temporaryDirectory } from './support/checkpoints';
import { loadModel, loadSyntheticModel } from './support/device';

// Every public function with everything that JavaScript can give it, as an argument, an option and an element. Whatever a
// function does not take is a ChatGLMError with a message of readable length; nothing else is ever thrown, and nothing hangs.

class Foo {
  readonly role = 'user';
}
const failing = () => {
  throw new Error('trap');
};
/** A proxy whose every trap throws. */
const trap = () => new Proxy({}, new Proxy({}, { get: failing }));
const revoked = () => {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
};
const deep = () => {
  let value: unknown = [];
  for (let level = 0; level < 20_000; level++) value = [value];
  return value;
};

const hostile: readonly (readonly [name: string, make: () => unknown])[] = [
  ['undefined', () => undefined],
  ['null', () => null],
  ['true', () => true],
  ['0', () => 0],
  ['5', () => 5],
  ['-1', () => -1],
  ['0.5', () => 0.5],
  ['1e300', () => 1e300],
  ['NaN', () => Number.NaN],
  ['Infinity', () => Number.POSITIVE_INFINITY],
  ['an empty text', () => ''],
  ['a text', () => 'x'],
  ['a null character', () => 'a\0b'],
  ['a lone surrogate', () => '\ud800'],
  ['a long text', () => 'a'.repeat(2e6)],
  ['a String', () => new String('x')],
  ['a bigint', () => 5n],
  ['a huge bigint', () => 1n << 100_000n],
  ['a symbol', () => Symbol('x')],
  ['a function', () => () => 'x'],
  ['a class', () => Foo],
  ['an instance', () => new Foo()],
  ['a Map', () => new Map([['role', 'user']])],
  ['a Date', () => new Date(Number.NaN)],
  ['a Promise', () => Promise.resolve('x')],
  ['an Error', () => new Error('x')],
  ['an empty array', () => []],
  ['an array', () => [1, 'x', null, {}, []]],
  ['an array with holes', () => Object.assign([], { 3: 'x' })],
  ['a huge sparse array', () => new Array(2 ** 32 - 1)],
  ['a deep array', deep],
  ['an array of a trap', () => [trap()]],
  ['floats', () => Float64Array.of(1, 0.5, Number.NaN)],
  ['bytes', () => Buffer.from([0x61, 0xff])],
  ['an ArrayBuffer', () => new ArrayBuffer(8)],
  ['an object', () => ({})],
  ['an object without a prototype', () => Object.create(null)],
  ['an unknown option', () => ({ noSuchOption: 1 })],
  ['a negative length', () => ({ length: -1 })],
  ['a lying length', () => ({ length: 2 ** 31 })],
  ['an endless length', () => ({ length: Number.POSITIVE_INFINITY })],
  ['an object of a getter that throws', () => Object.defineProperty({}, 'signal', { get: failing, enumerable: true })],
  ['an object whose toString throws', () => ({ toString: failing, toJSON: failing, valueOf: failing })],
  ['a trap', trap],
  ['a revoked proxy', revoked],
  ['a URL', () => new URL('https://example.com/')],
  ['what looks like a signal', () => ({ aborted: false, addEventListener: failing })],
];

const directory = temporaryDirectory();
const nowhere = join(directory.path, 'missing', 'x.gguf');
let model: Model;
let chat: Chat;
beforeAll(async () => {
  model = await loadModel();
});
beforeEach(() => {
  chat = model.createChat({ maxTokens: 1 });
});
afterAll(async () => {
  await model.dispose();
  directory.remove();
});

/** What a call gave is brought to its end. */
async function settle(value: unknown): Promise<void> {
  const given = await (value as Promise<unknown>);
  if (typeof given !== 'object' || given === null) return;
  const { result, dispose } = given as { result?: Promise<unknown>; dispose?: () => Promise<void> };
  if (result instanceof Promise) {
    const stream = given as AsyncIterableIterator<unknown>;
    await stream.return?.();
    await result;
  }
  if (typeof dispose === 'function') await dispose.call(given);
}

/** How a call ended: undefined, or what is wrong with its error. */
async function problemOf(call: () => unknown): Promise<string | undefined> {
  try {
    await settle(call());
    return undefined;
  } catch (error) {
    if (!(error instanceof ChatGLMError)) return `a raw error: ${String(error)}`;
    const { code, message } = error;
    if (!ERROR_CODES.includes(code) || code === 'ERR_INTERNAL') return `the code ${code}: ${message}`;
    if (message.length > 600 || message.includes('[object')) return `the message ${message.slice(0, 200)}`;
    return undefined;
  }
}

type Call = (value: never) => unknown;

async function expectNoProblem(call: Call, isLeftOut: (value: unknown) => boolean = () => false): Promise<void> {
  const problems: string[] = [];
  for (const [name, make] of hostile) {
    const value = make();
    if (isLeftOut(value)) continue;
    const problem = await problemOf(() => call(value as never));
    if (problem !== undefined) problems.push(`${name}: ${problem}`);
  }
  expect(problems).toEqual([]);
}

// What is internal comes from where the package's own modules come from: its errors are of the same class.
const { ToolSet } = require('../dist/tools/tool-set.js') as typeof import('../lib/tools/tool-set.js');

const one = { maxTokens: 1 };
const mcpClientGiving = (list: never) => ({ listTools: async () => list, callTool: async () => ({}) });
const mcpClient = mcpClientGiving({ tools: [{ name: 'f', inputSchema: {} }] } as never);
const user = { role: 'user', content: 'x' } as const;

describe('arguments', () => {
  test.each<[string, Call]>([
    ['loadModel(VALUE)', (value) => loadModel(value)],
    ['loadModel(path, VALUE)', (value) => require('node-chatglm').loadModel(nowhere, value)],
    ['loadTokenizer(VALUE)', (value) => loadTokenizer(value)],
    ['loadTokenizer(path, VALUE)', (value) => loadTokenizer(embeddedModelPath(), value)],
    ['openCheckpoint(VALUE)', (value) => openCheckpoint(value)],
    ['openCheckpoint(path, VALUE)', (value) => openCheckpoint(embeddedModelPath(), value)],
    ['convertCheckpoint(VALUE, target)', (value) => convertCheckpoint(value, nowhere, { type: 'f16' })],
    ['convertCheckpoint(source, VALUE)', (value) => convertCheckpoint(nowhere, value, { type: 'f16' })],
    ['convertCheckpoint(source, target, VALUE)', (value) => convertCheckpoint(nowhere, nowhere, value)],
    ['synthesize(target, VALUE)', (value) => synthesize(nowhere, value)],
    ['measureBandwidth(VALUE)', (value) => measureBandwidth(value, 2 ** 20)],
    ['measureBandwidth(threads, VALUE)', (value) => measureBandwidth(1, value)],
    ['measureBandwidth(threads, bytes, VALUE)', (value) => measureBandwidth(1, 2 ** 20, value)],
    ['defineTool(VALUE)', (value) => defineTool(value)],
    ['defineTool({ name: VALUE })', (value) => defineTool({ name: value })],
    ['defineTool({ description: VALUE })', (value) => defineTool({ name: 'f', description: value })],
    ['defineTool({ parameters: VALUE })', (value) => defineTool({ name: 'f', parameters: value })],
    ['defineTool({ jsonSchema: VALUE })', (value) => defineTool({ name: 'f', jsonSchema: value })],
    ['defineTool({ execute: VALUE })', (value) => defineTool({ name: 'f', execute: value })],
    ['defineTool({ timeoutMs: VALUE })', (value) => defineTool({ name: 'f', timeoutMs: value })],
    ['defineTool({ strict: VALUE })', (value) => defineTool({ name: 'f', strict: value })],
    ['toolsFromMcp(VALUE)', (value) => toolsFromMcp(value)],
    ['toolsFromMcp(client, VALUE)', (value) => toolsFromMcp(mcpClient, value)],
    ['toolsFromMcp(a client that gives VALUE)', (value) => toolsFromMcp(mcpClientGiving(value))],
    ['ToolSet.read(VALUE)', (value) => ToolSet.read(value)],
    ['ToolSet.read([VALUE])', (value) => ToolSet.read([value])],
    ['ToolSet.read({ f: VALUE })', (value) => ToolSet.read({ f: value })],
    ['ToolSet.read([{ execute: VALUE }])', (value) => ToolSet.read([{ name: 'f', execute: value }])],
    ['ToolSet.read([{ parameters: VALUE }])', (value) => ToolSet.read([{ name: 'f', parameters: value }])],
    ['ToolSet.read([{ function: VALUE }])', (value) => ToolSet.read([{ type: 'function', function: value }])],
    ['ChatGLMError.fromJSON(VALUE)', (value) => ChatGLMError.fromJSON(value)],
    ['model.generate(VALUE)', (value) => model.generate(value, one)],
    ['model.generate(prompt, VALUE)', (value) => model.generate('x', value)],
    ['model.logits(VALUE)', (value) => model.logits(value)],
    ['model.logits(ids, VALUE)', (value) => model.logits([1, 2], value)],
    ['model.chat(VALUE)', (value) => model.chat(value, one)],
    ['model.chat(query, VALUE)', (value) => model.chat('Hello', value)],
    ['model.createChat(VALUE)', (value) => model.createChat(value)],
    ['chat.send(VALUE)', (value) => chat.send(value)],
    ['chat.send(input, VALUE)', (value) => chat.send('x', value)],
    ['chat.stream(VALUE)', (value) => chat.stream(value)],
    ['chat.stream(input, VALUE)', (value) => chat.stream('x', value)],
    [
      'chat.regenerate(VALUE)',
      (value) => {
        chat.history = [user];
        return chat.regenerate(value);
      },
    ],
    [
      'chat.history = VALUE',
      (value) => {
        chat.history = value;
      },
    ],
    ['tokenizer.encode(VALUE)', (value) => model.tokenizer.encode(value)],
    ['tokenizer.encodePrompt(VALUE)', (value) => model.tokenizer.encodePrompt(value)],
    ['tokenizer.encodeChat(VALUE)', (value) => model.tokenizer.encodeChat(value, { family: 'chatglm3' })],
    ['tokenizer.encodeChat(messages, VALUE)', (value) => model.tokenizer.encodeChat([user], value)],
    ['tokenizer.decode(VALUE)', (value) => model.tokenizer.decode(value)],
    ['tokenizer.decode(ids, VALUE)', (value) => model.tokenizer.decode([1, 2], value)],
    ['decoder.push(VALUE)', (value) => model.tokenizer.createDecoder().push(value)],
  ])('%s', async (_, call) => {
    await expectNoProblem(call);
  });

  test('loadSyntheticModel(VALUE)', async () => {
    // What is taken as no options would load six billion weights.
    const isEmpty = (value: unknown) => {
      try {
        return value === undefined || JSON.stringify(value) === '{}';
      } catch {
        return false;
      }
    };
    await expectNoProblem((value) => require('node-chatglm').loadSyntheticModel(value), isEmpty);
  });

  test('synthesize(VALUE)', async () => {
    // What is taken as a path would be written.
    const isPath = (value: unknown) => typeof value === 'string' && value !== '' && !value.includes('\0');
    await expectNoProblem((value) => synthesize(value, { shape: 'micro' }), isPath);
  });
});

describe('options', () => {
  const sampling = ['doSample', 'temperature', 'topK', 'topP', 'minP', 'repetitionPenalty', 'presencePenalty'];
  const generation = [...sampling, 'frequencyPenalty', 'logitBias', 'seed', 'logprobs', 'stop', 'stopTokens', 'signal'];
  const loading = ['device', 'quantization', 'contextLength', 'maxSequences', 'maxQueue', 'threads', 'kvCacheType'];
  const writing = ['overwrite', 'onProgress', 'signal'];

  test.each(generation)('of a generation: %s', async (option) => {
    await expectNoProblem((value) => model.generate('x', { maxTokens: 1, [option]: value }));
  });

  test.each(['system', 'tools', 'history', 'family', 'temperature', 'stop'])('of a chat: %s', async (option) => {
    await expectNoProblem((value) => model.createChat({ ...one, [option]: value }).send('x'));
    await expectNoProblem((value) => model.chat('x', { ...one, [option]: value }));
  });

  test.each(['role', 'maxTokens', 'signal'])('of an answer: %s', async (option) => {
    await expectNoProblem((value) => chat.stream('x', { ...one, [option]: value }));
  });

  test.each([...loading, 'prefixCache', 'family', 'signal'])('of loading: %s', async (option) => {
    // A function of the caller's, as onProgress is, may throw what it likes.
    await expectNoProblem((value) => loadSyntheticModel({ shape: 'micro', maxSequences: 1, [option]: value }));
  });

  test.each(['shape', 'type', 'seed'])('of random weights: %s', async (option) => {
    const isEmpty = (value: unknown) => option === 'shape' && (value === undefined || value === null);
    await expectNoProblem((value) => loadSyntheticModel({ shape: 'micro', [option]: value }), isEmpty);
    await expectNoProblem((value) => synthesize(nowhere, { shape: 'micro', [option]: value }));
  });

  test.each(['family', 'signal'])('of reading: %s', async (option) => {
    await expectNoProblem((value) => openCheckpoint(embeddedModelPath(), { [option]: value }));
    await expectNoProblem((value) => loadTokenizer(embeddedModelPath(), { [option]: value }));
  });

  test.each([...writing, 'type', 'name', 'family'])('of converting: %s', async (option) => {
    await expectNoProblem((value) =>
      convertCheckpoint(embeddedModelPath(), nowhere, { type: 'f16', ...{ [option]: value } }),
    );
  });
});

describe('elements', () => {
  test.each<[string, Call]>([
    ['a token id', (value) => model.generate([1, value], one)],
    ['a stop text', (value) => model.generate('x', { ...one, stop: ['a', value] })],
    ['a stop token', (value) => model.generate('x', { ...one, stopTokens: [1, value] })],
    ['a bias', (value) => model.generate('x', { ...one, logitBias: { 5: value } })],
    ['a message', (value) => model.createChat({ history: [user, value] })],
    ['a message of a pair', (value) => model.createChat({ history: [['q', value]] })],
    [
      'a message in an edited history',
      async (value) => {
        chat.history = [user];
        (chat.history as unknown[]).push(value);
        const calls = [() => chat.send('x'), () => chat.regenerate(), () => chat.fork(), () => chat.toJSON()];
        for (const call of calls) expect(await problemOf(call)).toBeUndefined();
      },
    ],
    ['the role of a message', (value) => chat.send({ ...user, role: value })],
    ['the content of a message', (value) => chat.send({ ...user, content: value })],
    ['the metadata of a message', (value) => chat.send({ ...user, metadata: value })],
    [
      'the tools of a message',
      (value) => model.createChat({ history: [{ role: 'system', content: '', tools: value }] }),
    ],
    ['a field of a message', (value) => chat.send({ ...user, [Symbol.iterator]: value, extra: value } as typeof user)],
    ['a tool', (value) => model.createChat({ ...one, tools: [value] }).send('x')],
    ['the name of a tool', (value) => model.createChat({ ...one, tools: [{ name: value }] }).send('x')],
    [
      'the parameters of a tool',
      (value) => model.createChat({ ...one, tools: [{ name: 'f', parameters: value }] }).send('x'),
    ],
    [
      'a parameter of a tool',
      (value) => model.createChat({ ...one, tools: [{ name: 'f', parameters: { a: value } }] }).send('x'),
    ],
    ['a field of a shape', (value) => synthesize(nowhere, { shape: { ...microShape, layers: value } })],
    ['the family of a shape', (value) => synthesize(nowhere, { shape: { ...microShape, family: value } })],
    ['the name of a shape', (value) => synthesize(nowhere, { shape: { ...microShape, name: value } })],
    [
      'the config of a checkpoint',
      async (value) => {
        const checkpoint = await openCheckpoint(embeddedModelPath());
        return await convertCheckpoint({ ...checkpoint, config: value }, nowhere, { type: 'f16' });
      },
    ],
  ])('%s', async (_, call) => {
    await expectNoProblem(call);
  });
});

const { micro: microShape } = require('node-chatglm').shapes;

test('after dispose() everything says so', async () => {
  const other = await loadModel();
  const session = other.createChat();
  await other.dispose();
  const disposed = { code: 'ERR_DISPOSED' };
  await expect(other.generate('x').result).rejects.toMatchObject(disposed);
  await expect(other.logits([1])).rejects.toMatchObject(disposed);
  await expect(other.chat('x')).rejects.toMatchObject(disposed);
  await expect(session.send('x')).rejects.toMatchObject(disposed);
  expect(other.stats()).toMatchObject({ activeSequences: 0, queuedRequests: 0 });
  other.clearCache();
  await other.dispose();
});
