import { Chat, type ChatModel } from '../lib/chat/chat.js';
import { chatOnce } from '../lib/chat/chat-once.js';
import { type ChatOptions, type SendOptions, TOOLS_PROMPT } from '../lib/chat/chat-options.js';
import { ChatGLMError } from '../lib/common/errors.js';
import { familyNamed, type ModelFamily, specialId, specialTokens } from '../lib/families/index.js';
import type { ChatMessage } from '../lib/families/messages.js';
import { promptIds } from '../lib/families/prompt.js';
import type { GenerateOptions } from '../lib/generation/options.js';
import type { RawGeneration, RawResult, RawToken } from '../lib/generation/text-stream.js';

const pieceCount = 1_200_000; // Above all code points: the fake tokenizer's ids are code points.
const { gmask, sop, roles } = specialTokens(pieceCount, 'chatglm3') as Required<ReturnType<typeof specialTokens>>;
const fence = '```';
const call = `get_weather\n ${fence}python\ntool_call(city='北京')\n${fence}`;
const tools = [{ name: 'get_weather', description: '天气', parameters: { type: 'object' } }];

type Step = string | number | Error;

interface Request {
  prompt: number[];
  options: GenerateOptions;
  stopped: boolean;
  given: number;
}

/**
 * Generates what it is told: text character by character, special tokens by id, and errors. At the end of a script it
 * has run into maxTokens; a stop token ends it earlier.
 */
class FakeModel implements ChatModel {
  readonly info: { family: ModelFamily; contextLength: number };
  readonly tokenizer: ChatModel['tokenizer'];
  readonly kv = {} as ChatModel['kv']; // for sessions, which are tested with a real model
  readonly requests: Request[] = [];
  readonly #scripts: Step[][];

  constructor(scripts: Step[][], family: ModelFamily = 'chatglm3') {
    this.info = { family, contextLength: 1_000_000 };
    this.#scripts = scripts;
    const encode = (text: string) => [...text].map((character) => character.codePointAt(0) as number);
    this.tokenizer = {
      size: pieceCount,
      addsDummyPrefix: false,
      encode,
      leastTokens: (length) => length / 2,
      encodePrompted: (parts, name) =>
        promptIds(parts, encode, (token) => specialId(familyNamed(name), pieceCount, token)),
    };
  }

  overflowOf(): undefined {}

  generateIds(
    prompt: readonly number[] | ChatGLMError | Promise<readonly number[]>,
    options: GenerateOptions,
  ): RawGeneration {
    if (prompt instanceof ChatGLMError || prompt instanceof Promise) throw prompt;
    const request: Request = { prompt: [...prompt], options, stopped: false, given: 0 };
    this.requests.push(request);
    const steps: Step[] = (this.#scripts.shift() ?? []).flatMap((step): Step[] =>
      typeof step === 'string' ? [...step] : [step],
    );
    let finish: (result: RawResult) => void = () => {};
    const result = new Promise<RawResult>((resolve) => {
      finish = resolve;
    });
    const end = (finishReason: RawResult['finishReason']) => {
      finish({
        finishReason,
        usage: { promptTokens: prompt.length, cachedTokens: 0, generatedTokens: request.given, speculatedTokens: 0 },
        timings: {
          queueMs: 0,
          firstTokenMs: 1,
          prefillMs: 1,
          decodeMs: 1,
          prefillTokensPerSecond: 1,
          decodeTokensPerSecond: 1,
        },
        seed: 7,
      });
      return { done: true as const, value: undefined };
    };
    let isOver = false;
    const over = (reason: RawResult['finishReason']) => {
      isOver = true;
      return end(reason);
    };
    return {
      result,
      [Symbol.asyncIterator]() {
        return this;
      },
      flush: () => '',
      async next(): Promise<IteratorResult<RawToken, undefined>> {
        await new Promise(setImmediate);
        if (options.signal?.aborted) throw new ChatGLMError('ERR_ABORTED', 'The operation was aborted');
        if (isOver) return { done: true, value: undefined };
        const step = steps.shift();
        if (step === undefined) return over('length');
        if (step instanceof Error) throw step;
        request.given++;
        const token = typeof step === 'number' ? step : (step.codePointAt(0) as number);
        const value: RawToken = { token, text: typeof step === 'number' ? '' : step };
        if (options.logprobs !== undefined) value.logprobs = { token, logprob: -1, top: [] };
        if (options.stopTokens?.includes(token)) {
          isOver = true;
          end('stop');
        }
        return { done: false, value };
      },
      async return() {
        request.stopped = true;
        return isOver ? { done: true, value: undefined } : over('cancelled');
      },
    };
  }
}

const user = (content: string): ChatMessage => ({ role: 'user', content });
const assistant = (content: string, metadata = ''): ChatMessage => ({ role: 'assistant', metadata, content });
const ids = (text: string) => [...text].map((character) => character.codePointAt(0) as number);

async function codeOf(action: () => unknown): Promise<[string, string]> {
  try {
    await action();
  } catch (error) {
    expect(error).toBeInstanceOf(ChatGLMError);
    return [(error as ChatGLMError).code, (error as ChatGLMError).message];
  }
  throw new Error('there was no error');
}

test('two turns', async () => {
  const model = new FakeModel([
    ['\n 你好👋！', roles.user],
    ['\n 再见', 2],
  ]);
  const chat = new Chat(model, { temperature: 0.5, maxTokens: 9, stopTokens: [5] });
  const deltas: string[] = [];
  const tokens: number[] = [];
  const stream = chat.stream('你好');
  for await (const delta of stream) {
    deltas.push(delta.text);
    tokens.push(...delta.tokens);
  }
  expect(deltas).toEqual(['你', '好', '👋', '！', '']);
  expect(tokens).toEqual([...ids('\n 你好👋！'), roles.user]);
  const reply = await stream.result;
  expect(reply).toMatchObject({
    text: '你好👋！',
    tokens,
    messages: [assistant('你好👋！')],
    finishReason: 'stop',
    usage: { generatedTokens: 7 },
    seed: 7,
  });
  expect(reply).not.toHaveProperty('toolCall');
  expect(reply).not.toHaveProperty('logprobs');
  expect(chat.history).toEqual([user('你好'), assistant('你好👋！')]);
  expect(model.requests[0]?.prompt).toEqual([gmask, sop, roles.user, 10, ...ids('你好'), roles.assistant]);
  expect(model.requests[0]?.options).toEqual({
    temperature: 0.5,
    maxTokens: 9,
    stopTokens: [2, roles.user, roles.observation, 5],
  });

  const second = await chat.send(user('走了'), { temperature: 1, maxTokens: undefined as unknown as number });
  expect(second.text).toBe('再见');
  expect(chat.history).toEqual([user('你好'), assistant('你好👋！'), user('走了'), assistant('再见')]);
  expect(model.requests[1]?.options).toMatchObject({ temperature: 1, maxTokens: 9 });
  expect(model.requests[1]?.prompt).toHaveLength(2 + 4 + 6 + 4 + 1);
});

test('a tool, what it gives, and the answer', async () => {
  const model = new FakeModel([
    ['\n 我查一下。', roles.assistant, ` ${call}`, roles.observation],
    ['\n 晴', roles.user],
  ]);
  const chat = new Chat(model, { tools });
  const deltas: string[] = [];
  const stream = chat.stream('北京天气？');
  for await (const delta of stream) deltas.push(delta.text);
  expect(deltas.join('')).toBe('我查一下。');
  const content = `${fence}python\ntool_call(city='北京')\n${fence}`;
  expect(await stream.result).toMatchObject({
    finishReason: 'tool_call',
    toolCall: { name: 'get_weather', arguments: { city: '北京' }, raw: content },
  });
  const reply = await chat.send('{"weather": "晴"}', { role: 'observation' });
  expect(reply).toMatchObject({ text: '晴', finishReason: 'stop' });
  expect(chat.history).toEqual([
    { role: 'system', content: TOOLS_PROMPT, tools },
    user('北京天气？'),
    assistant('我查一下。'),
    assistant(content, 'get_weather'),
    { role: 'observation', content: '{"weather": "晴"}' },
    assistant('晴'),
  ]);
});

test('code for the interpreter', async () => {
  const model = new FakeModel([[`interpreter\n ${fence}python\nprint(1)\n${fence}`, roles.observation]]);
  const reply = await new Chat(model, { interpreter: 'manual' }).send('1');
  expect(reply).toMatchObject({ text: '', code: 'print(1)', finishReason: 'tool_call' });
});

test('a call that was cut off is none', async () => {
  const model = new FakeModel([[call], [call, roles.observation]]);
  const chat = new Chat(model, { tools });
  const cut = await chat.send('天气？');
  expect(cut.finishReason).toBe('length');
  expect(cut).not.toHaveProperty('toolCall');
  expect(cut.messages[0]?.metadata).toBe('get_weather');
  const stopped = await chat.send('天气？', { stop: '北京' });
  expect(stopped.finishReason).toBe('stop_sequence');
  expect(stopped).not.toHaveProperty('toolCall');
});

test('stop sequences', async () => {
  const model = new FakeModel([['\n 一二三四五']]);
  const chat = new Chat(model, { stop: ['三四', 'x'] });
  const reply = await chat.send('数');
  expect(reply).toMatchObject({ text: '一二', finishReason: 'stop_sequence', messages: [assistant('一二')] });
  expect(model.requests[0]).toMatchObject({ stopped: true, given: 6 });
  expect(model.requests[0]?.options).not.toHaveProperty('stop');
});

test('log-probabilities, one a token', async () => {
  const model = new FakeModel([['\n ab', roles.user]]);
  const chat = new Chat(model);
  const stream = chat.stream('x', { logprobs: 0 });
  const tokens: number[] = [];
  for await (const delta of stream) {
    expect(delta.logprobs?.map(({ token }) => token)).toEqual(delta.tokens);
    tokens.push(...delta.tokens);
  }
  expect((await stream.result).logprobs?.map(({ token }) => token)).toEqual(tokens);
});

test('leaving the loop keeps the question and what there was of the answer', async () => {
  const model = new FakeModel([
    ['\n 你好吗', roles.user],
    ['\n 好', roles.user],
  ]);
  const chat = new Chat(model);
  const stream = chat.stream('你好');
  for await (const delta of stream) if (delta.text === '你') break;
  expect(model.requests[0]?.stopped).toBe(true);
  const { text, finishReason } = await stream.result;
  expect(finishReason).toBe('cancelled');
  expect(['你', '你好']).toContain(text);
  expect(chat.history).toEqual([user('你好'), assistant(text)]);
  expect(await stream.next()).toEqual({ done: true, value: undefined });
  expect((await chat.send('在？')).text).toBe('好');
});

test('leaving before the first token', async () => {
  const model = new FakeModel([['\n 你好']], 'chatglm2');
  const chat = new Chat(model);
  await chat.stream('你好').return();
  expect(chat.history).toMatchObject([user('你好'), { role: 'assistant' }]);
});

describe('an error leaves the history as it was', () => {
  test('of the model', async () => {
    const model = new FakeModel([
      ['\n 你', new ChatGLMError('ERR_INVALID_LOGITS', 'NaN')],
      ['\n 好', roles.user],
    ]);
    const chat = new Chat(model, { history: [['q', 'a']] });
    const before = structuredClone(chat.history);
    const deltas: string[] = [];
    const read = async () => {
      for await (const delta of chat.stream('x')) deltas.push(delta.text);
    };
    expect(await codeOf(read)).toEqual(['ERR_INVALID_LOGITS', 'NaN']);
    expect(deltas).toEqual(['你']);
    expect(chat.history).toEqual(before);
    expect((await chat.send('x')).text).toBe('好');
  });

  test('of an aborted signal', async () => {
    const chat = new Chat(new FakeModel([['\n 你好', roles.user], []]));
    const controller = new AbortController();
    const read = async () => {
      for await (const _ of chat.stream('x', { signal: controller.signal })) controller.abort();
    };
    expect((await codeOf(read))[0]).toBe('ERR_ABORTED');
    expect(chat.history).toEqual([]);
    expect((await codeOf(() => chat.send('x', { signal: controller.signal })))[0]).toBe('ERR_ABORTED');
    expect(chat.history).toEqual([]);
  });

  test('that nobody waits for', async () => {
    const chat = new Chat(new FakeModel([[new Error('lost')]]));
    chat.stream('x');
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(chat.history).toEqual([]);
  });
});

test('one answer at a time', async () => {
  const chat = new Chat(
    new FakeModel([
      ['\n a', 2],
      ['\n b', 2],
    ]),
  );
  const first = chat.stream('1');
  const busy = ['ERR_BUSY', 'this chat is answering already; wait for its answer, or fork() it'];
  expect(await codeOf(() => chat.stream('2'))).toEqual(busy);
  expect(await codeOf(() => chat.send('2'))).toEqual(busy);
  expect(await codeOf(() => chat.regenerate())).toEqual(busy);
  expect(
    await codeOf(() => {
      chat.history = [];
    }),
  ).toEqual(busy);
  await first.result;
  expect((await chat.send('2')).text).toBe('b');
});

test('regenerate() replaces the last answer, all its parts', async () => {
  const model = new FakeModel([
    ['\n 查', roles.assistant, ` ${call}`, roles.observation],
    ['\n 不知道', new Error('broken')],
    ['\n 晴', roles.user],
  ]);
  const chat = new Chat(model, { tools });
  await chat.send('天气？');
  expect(chat.history).toHaveLength(4);
  const before = structuredClone(chat.history);
  await expect(chat.regenerate().result).rejects.toThrow('broken');
  expect(chat.history).toEqual(before);
  const deltas: string[] = [];
  for await (const delta of chat.regenerate({ seed: 3 })) deltas.push(delta.text);
  expect(deltas.join('')).toBe('晴');
  expect(chat.history.slice(1)).toEqual([user('天气？'), assistant('晴')]);
  expect(model.requests[2]?.prompt).toEqual(model.requests[0]?.prompt);
  expect(model.requests[2]?.options.seed).toBe(3);
});

test('there must be a message to answer again', async () => {
  for (const options of [{}, { system: 's' }, { history: [assistant('a')] }]) {
    const chat = new Chat(new FakeModel([]), options);
    expect(await codeOf(() => chat.regenerate())).toEqual([
      'ERR_INVALID_ARGUMENT',
      'the history has no message to answer again',
    ]);
  }
});

test('fork() goes its own way with the same options', async () => {
  const model = new FakeModel([
    ['\n a', 2],
    ['\n b', 2],
  ]);
  const chat = new Chat(model, { system: 's', temperature: 0.3 });
  const fork = chat.fork();
  await chat.send('1');
  await fork.send('2');
  expect(chat.history).toEqual([{ role: 'system', content: 's' }, user('1'), assistant('a')]);
  expect(fork.history).toEqual([{ role: 'system', content: 's' }, user('2'), assistant('b')]);
  expect(model.requests[1]?.options.temperature).toBe(0.3);
});

test('the history can be edited, saved and restored', async () => {
  const model = new FakeModel([
    ['\n a', 2],
    ['\n b', 2],
  ]);
  const chat = new Chat(model, { tools });
  await chat.send('1');
  (chat.history[1] as ChatMessage).content = 'one';
  const saved = JSON.parse(JSON.stringify(chat)) as ChatOptions;
  expect(saved).toEqual({
    family: 'chatglm3',
    history: [{ role: 'system', content: TOOLS_PROMPT, tools }, user('one'), assistant('a')],
  });
  const restored = new Chat(model, saved);
  await restored.send('2');
  expect(restored.history).toHaveLength(5);
  restored.history = [['q', 'a']];
  expect(restored.history).toEqual([user('q'), { role: 'assistant', content: 'a' }]);
  restored.history.push({ role: 'user' } as ChatMessage);
  expect((await codeOf(() => restored.send('3')))[1]).toMatch(/history\[2\]\.content must be a string/);
});

test('ChatGLM2', async () => {
  const model = new FakeModel([[' 你好\n[[训练时间]]', 2]], 'chatglm2');
  const chat = new Chat(model, { history: [['q', 'a']] });
  expect((await chat.send('你好')).text).toBe('你好\n2023年');
  expect(chat.history.at(-1)).toEqual({ role: 'assistant', content: '你好\n2023年' });
  expect(model.requests[0]?.prompt).toEqual([
    gmask,
    sop,
    ...ids('[Round 1]\n\n问：q\n\n答：a\n\n[Round 2]\n\n问：你好\n\n答：'),
  ]);
  expect(model.requests[0]?.options.stopTokens).toEqual([2]);
});

describe('families', () => {
  test('without a chat format need to be told one', async () => {
    expect(await codeOf(() => new Chat(new FakeModel([], 'codegeex2')))).toEqual([
      'ERR_INVALID_ARGUMENT',
      "CodeGeeX2 has no chat format: use generate(), or say which one with the chat's option family (--format)",
    ]);
    const model = new FakeModel([['好', 2]], 'codegeex2');
    expect((await new Chat(model, { family: 'chatglm2' }).send('x')).text).toBe('好');
  });

  test('must be known', async () => {
    const family = 'glm4' as 'chatglm3';
    expect((await codeOf(() => new Chat(new FakeModel([]), { family })))[1]).toMatch(
      /family must be one of auto, .*"glm4"/,
    );
  });
});

test('maxTokens: 0 computes the prompt and leaves the history as it was', async () => {
  const model = new FakeModel([[], ['\n 好', roles.user]]);
  const chat = new Chat(model, { history: [user('q'), assistant('a')] });
  expect(await chat.send('你好', { maxTokens: 0 })).toMatchObject({ text: '', messages: [], finishReason: 'length' });
  expect(chat.history).toEqual([user('q'), assistant('a')]);
  await chat.send('你好');
  expect(chat.history).toHaveLength(4);
  expect(model.requests[1]?.prompt).toEqual(model.requests[0]?.prompt);
});

describe('what is null or undefined is as good as absent', () => {
  const nothing = { temperature: null, maxTokens: null, stop: null, seed: null, signal: null, stopTokens: undefined };

  test('in the options of chats and answers', async () => {
    const model = new FakeModel([
      ['\n a', 2],
      ['\n b', 2],
      ['\n c', 2],
    ]);
    const chat = new Chat(model, { ...nothing, system: null, tools: null, history: null, family: null, topK: 5 });
    await chat.send('1', { ...nothing, role: null, topK: null });
    await chat.regenerate(nothing).result;
    expect(chat.history).toEqual([user('1'), assistant('b')]);
    expect(model.requests.map(({ options }) => options)).toEqual(
      Array(2).fill({ topK: 5, stopTokens: [2, roles.user, roles.observation] }),
    );
    expect((await chatOnce(model, '2', { ...nothing, role: undefined, history: null, tools: null })).response).toBe(
      'c',
    );
  });

  test('in messages and tools, also for fields that there are not', async () => {
    const model = new FakeModel([['\n a', 2]]);
    const noise = { name: null, tool_calls: undefined, function_call: null };
    const history = [
      { role: 'system', content: 's', metadata: null, tools: null, ...noise },
      { role: 'user', content: 'q', metadata: undefined, tools: null, ...noise },
      { role: 'assistant', content: 'a', metadata: null },
    ] as unknown as ChatMessage[];
    const chat = new Chat(model, { history });
    expect(chat.history).toEqual([{ role: 'system', content: 's' }, user('q'), { role: 'assistant', content: 'a' }]);
    const [tool] = tools;
    const noisy = [
      { ...tool, strict: null, title: undefined },
      { type: 'function', function: { name: 'b' }, strict: null },
    ];
    const other = new Chat(model, { tools: noisy as unknown as typeof tools });
    expect(other.history[0]?.tools).toEqual([tool, { name: 'b' }]);
  });

  test('a field with a value stays an error', async () => {
    const history = [{ role: 'assistant', content: '', tool_calls: [] }] as unknown as ChatMessage[];
    expect((await codeOf(() => new Chat(new FakeModel([]), { history })))[1]).toMatch(/history\[0\]\.tool_calls/);
    const options = { temprature: 0 } as ChatOptions;
    expect((await codeOf(() => new Chat(new FakeModel([]), options)))[1]).toMatch(/no option temprature/);
  });

  test('no tools are none', () => {
    expect(new Chat(new FakeModel([]), { tools: [] }).history).toEqual([]);
    expect(new Chat(new FakeModel([], 'chatglm2'), { tools: [] }).history).toEqual([]);
  });
});

test.each<[string, (model: FakeModel) => unknown, RegExp]>([
  ['input that is no text', (model) => new Chat(model).stream(5 as unknown as string), /input must be an object/],
  [
    'input of the assistant',
    (model) => new Chat(model).stream(assistant('a')),
    /input\.role must be one of user, observation, got "assistant"/,
  ],
  [
    'an unknown role',
    (model) => new Chat(model).stream('a', { role: 'tool' as 'user' }),
    /role must be one of user, observation, got "tool"/,
  ],
  ['an empty stop sequence', (model) => new Chat(model).stream('a', { stop: '' }), /stop must be/],
  [
    'a system message twice',
    (model) => new Chat(model, { system: 's', history: [{ role: 'system', content: '' }] }),
    /history begins/,
  ],
  [
    'a system message that is no text',
    (model) => new Chat(model, { system: 1 as unknown as string }),
    /system must be a string/,
  ],
  ['a misspelt option', (model) => new Chat(model, { temprature: 1 } as ChatOptions), /no option temprature/],
  [
    'a misspelt option of an answer',
    (model) => new Chat(model).stream('a', { maxtokens: 1 } as SendOptions),
    /no option maxtokens/,
  ],
  ['a history that is none', (model) => new Chat(model, { history: {} as [] }), /history must be an array/],
  [
    'a history with a hole',
    (model) => new Chat(model, { history: Object.assign([user('a')], { 2: user('b') }) }),
    /history\[1\] must be an object with role and content, got undefined/,
  ],
  [
    'two tools of one name',
    (model) => new Chat(model, { tools: [{ name: 'a' }, { name: 'b' }, { name: 'a' }] }),
    /tools\[2\]\.name is "a", as that of tools\[0\]/,
  ],
  [
    'a name of two lines',
    (model) => new Chat(model, { tools: [{ name: 'a\nb' }] }),
    /tools\[0\]\.name must be one line, got "a\\nb"/,
  ],
  [
    'a tool that is nested too deep',
    (model) => {
      let parameters = {};
      for (let level = 0; level < 200; level++) parameters = { parameters };
      return new Chat(model, { tools: [{ name: 'a', parameters }] });
    },
    /tools\[0\] is nested more than 100 levels deep/,
  ],
  ['a query that is no text', (model) => chatOnce(model, 5 as unknown as string), /query must be a string, got 5/],
  ['tools without names', (model) => new Chat(model, { tools: [{} as { name: string }] }), /tools\[0\]\.name/],
])('%s is refused, and nothing is generated', async (_, action, message) => {
  const model = new FakeModel([]);
  const [code, text] = await codeOf(() => action(model));
  expect(code).toBe('ERR_INVALID_ARGUMENT');
  expect(text).toMatch(message);
  expect(model.requests).toHaveLength(0);
});

describe("THUDM's chat()", () => {
  test('text', async () => {
    const history = [user('q'), assistant('a')];
    const model = new FakeModel([['\n 你好', roles.user]]);
    const result = await chatOnce(model, '你好', { history, temperature: 0.1 });
    expect(result).toMatchObject({
      response: '你好',
      history: [...history, user('你好'), assistant('你好')],
      finishReason: 'stop',
    });
    expect(history).toHaveLength(2);
    expect(model.requests[0]?.options.temperature).toBe(0.1);
  });

  test.each<[string, Step[], unknown]>([
    ['a call', [call, roles.observation], { name: 'get_weather', parameters: { city: '北京' } }],
    ['a call that cannot be read', ['get_weather\n city', roles.observation], { name: 'get_weather', content: 'city' }],
    ['code', ['interpreter\n print(1)', roles.observation], { name: 'interpreter', content: 'print(1)' }],
  ])('%s', async (_, script, response) => {
    expect((await chatOnce(new FakeModel([script]), 'x', { tools })).response).toEqual(response);
  });

  test('an observation', async () => {
    const model = new FakeModel([['\n 晴', roles.user]]);
    const { history } = await chatOnce(model, '{}', { role: 'observation', history: [user('q'), assistant('', 'f')] });
    expect(history[2]).toEqual({ role: 'observation', content: '{}' });
  });
});
