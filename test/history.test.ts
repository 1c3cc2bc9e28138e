import { MessageTokens } from '../lib/chat/message-tokens.js';
import { fromOpenAI, type OpenAIMessage, toOpenAI } from '../lib/chat/openai.js';
import { toPairs } from '../lib/chat/pairs.js';
import { dropOldestRounds } from '../lib/chat/trim.js';
import { ChatGLMError } from '../lib/common/errors.js';
import { CHAT_FAMILIES, type ChatFamily, chatPrompt } from '../lib/families/index.js';
import { type ChatMessage, validateMessages } from '../lib/families/messages.js';
import { parseToolCall } from '../lib/families/python-call.js';
import { writeToolCall } from '../lib/families/python-literal.js';
import { embeddedModelPath, loadTokenizer } from '../lib/index.js';

function errorOf(action: () => unknown): ChatGLMError {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(ChatGLMError);
    return error as ChatGLMError;
  }
  throw new Error('there was no error');
}

/** Numbers from 0 up to 1 that are the same in each run (mulberry32). */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Makes histories of OpenAI's kind. */
class Generator {
  readonly #random: () => number;
  #calls = 0;

  constructor(seed: number) {
    this.#random = randomOf(seed);
  }

  below(count: number): number {
    return Math.floor(this.#random() * count);
  }

  chance(probability: number): boolean {
    return this.#random() < probability;
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)] as T;
  }

  text(): string {
    const pieces = ['你好', '北京', "it's", '"quoted"', '\n', '\\', '\t', '👋🏽', '```', ' ', 'tool_call(a=1)', '<|user|>', 'é', '\u2028', '#', 'x']; // biome-ignore format: one line
    return Array.from({ length: 1 + this.below(5) }, () => this.pick(pieces)).join('');
  }

  json(depth = 0): unknown {
    const kind = this.below(depth > 3 ? 5 : 7);
    if (kind === 0) return this.text();
    if (kind === 1) return this.below(1000) - 500;
    if (kind === 2) return this.pick([0.5, -1.25e-7, 1e21, 123456789.125, 5e-5, 1e15, 0.001]);
    if (kind === 3) return this.chance(0.5);
    if (kind === 4) return null;
    if (kind === 5) return Array.from({ length: this.below(4) }, () => this.json(depth + 1));
    return Object.fromEntries(Array.from({ length: this.below(4) }, () => [this.text(), this.json(depth + 1)]));
  }

  arguments(): string {
    const odd = ['', '{', '北京', '[1]', '{"id": 110101199003071234}', '{"a": 1.0, "b": 1e5}', '{"code":"print(1)"}', '{"a-b": 1, "class": "x"}', '{ "a" : [ 1 , 2 ] }', '{"a":1,"a":2}', '{"x":1e999}', 'tool_call(a=1)', '```python\nprint(1)\n```']; // biome-ignore format: one line
    if (this.chance(0.3)) return this.pick(odd);
    const entries = Array.from({ length: this.below(4) }, () => [
      this.pick(['city', '城市', 'days', '__proto__', 'a b', 'from']),
      this.json(),
    ]);
    return JSON.stringify(Object.fromEntries(entries), null, this.pick([0, 1]));
  }

  content(): string | { type: 'text'; text: string }[] {
    if (this.chance(0.7)) return this.text();
    if (this.chance(0.1)) return '';
    return Array.from({ length: this.below(4) }, () => ({
      type: 'text' as const,
      text: this.chance(0.1) ? '' : this.text(),
    }));
  }

  name(): { name?: string } {
    return this.chance(0.15) ? { name: this.pick(['Anna', '小明']) } : {};
  }

  tool(): string {
    return this.pick(['get_weather', 'interpreter', '查询', 'search']);
  }

  id(): string {
    // Also ids that look like those that toOpenAI() gives.
    return this.chance(0.3)
      ? `call_${this.below(6)}`
      : this.chance(0.3)
        ? `call_${this.#calls++}`
        : `id-${this.below(1e6)}`;
  }

  call(): { name: string; arguments: string } {
    return { name: this.tool(), arguments: this.arguments() };
  }

  answer(): OpenAIMessage[] {
    const refused = this.chance(0.1) ? { refusal: this.text() } : {};
    const said = { role: 'assistant' as const, ...this.name(), ...refused };
    if (this.chance(0.1)) Object.assign(said, { annotations: [{ type: 'url_citation', url: 'x' }] });
    const content = this.chance(0.5) ? null : this.content();
    if (this.chance(0.4)) return [{ ...said, content }];
    if (this.chance(0.2)) {
      const call = this.call();
      const name = this.chance(0.9) ? call.name : 'other';
      const result: OpenAIMessage = { role: 'function', name, content: this.chance(0.2) ? null : this.text() };
      return [{ ...said, content, function_call: call }, ...(this.chance(0.9) ? [result] : [])];
    }
    const calls = Array.from({ length: 1 + this.below(3) }, () => ({
      id: this.id(),
      type: 'function' as const,
      function: this.call(),
    }));
    const results = calls.map(({ id }): OpenAIMessage => {
      const answered = this.chance(0.95) ? id : 'nobody';
      return { role: 'tool', tool_call_id: answered, content: this.content(), ...this.name() };
    });
    if (this.chance(0.3)) results.reverse();
    if (this.chance(0.1)) results.pop();
    return [{ ...said, content, tool_calls: calls }, ...results];
  }

  history(): OpenAIMessage[] {
    const messages: OpenAIMessage[] = [];
    if (this.chance(0.6)) {
      messages.push({ role: this.pick(['system', 'developer'] as const), content: this.content(), ...this.name() });
    }
    const turns = this.below(6);
    for (let turn = 0; turn < turns; turn++) {
      if (this.chance(0.9)) messages.push({ role: 'user', content: this.content(), ...this.name() });
      do messages.push(...this.answer());
      while (this.chance(0.4));
    }
    return messages;
  }

  /** A history as ChatGLM3 writes it, with whatever a model may have written for a call. */
  plain(): ChatMessage[] {
    const messages: ChatMessage[] = [];
    if (this.chance(0.5)) {
      const tools = this.chance(0.5) ? { tools: [{ name: 'get_weather', parameters: { type: 'object' } }] } : {};
      messages.push({ role: 'system', content: this.text(), ...tools });
    }
    for (let left = this.below(12); left > 0; left--) {
      const kind = this.below(4);
      const call = this.pick(["```python\ntool_call(city='北京')\n```", ' ```python\ntool_call(r=(0, 1.0))\n```', 'tool_call(a="x")', '```python\nprint(1)\n```', 'import os\n', '{"a": 1}', this.text()]); // biome-ignore format: one line
      if (kind === 0) messages.push({ role: 'user', content: this.text() });
      if (kind === 1) messages.push({ role: 'assistant', metadata: '', content: this.chance(0.1) ? '' : this.text() });
      if (kind === 2) messages.push({ role: 'assistant', metadata: this.tool(), content: call });
      if (kind === 3) messages.push({ role: 'observation', content: this.text() });
      if (this.chance(0.05)) messages.push({ role: 'user', metadata: 'odd', content: 'x' });
    }
    return messages;
  }
}

const range = (count: number) => Array.from({ length: count }, (_, index) => index);
const call = (id: string, name: string, given: string) => ({
  id,
  type: 'function' as const,
  function: { name, arguments: given },
});
const fenced = (code: string) => `\`\`\`python\n${code}\n\`\`\``;

describe('OpenAI messages', () => {
  test('200 random histories come back as they were, both ways, also through JSON', () => {
    let calls = 0;
    for (const seed of range(200)) {
      const given = new Generator(seed).history();
      const imported = fromOpenAI(given);
      expect(toOpenAI(imported)).toStrictEqual(given);
      const stored = JSON.parse(JSON.stringify(imported)) as ChatMessage[];
      expect(validateMessages(stored)).toStrictEqual(imported);
      expect(fromOpenAI(JSON.parse(JSON.stringify(toOpenAI(stored))))).toStrictEqual(imported);
      if (imported.length > 0) expect(chatPrompt('chatglm3', imported).length).toBe(3 + 3 * imported.length);
      calls += imported.filter(({ metadata }) => metadata).length;
    }
    expect(calls).toBeGreaterThan(500);
  });

  test('200 random histories of this package come back as they were', () => {
    for (const seed of range(200)) {
      const given = new Generator(1000 + seed).plain();
      expect(fromOpenAI(JSON.parse(JSON.stringify(toOpenAI(given))))).toStrictEqual(given);
      const strict = JSON.stringify(toOpenAI(given, { lossless: false }));
      expect(strict).not.toContain('"chatglm":');
      expect(toOpenAI(fromOpenAI(JSON.parse(strict)))).toStrictEqual(JSON.parse(strict));
    }
  });

  test('what the model writes at once is one message; calls and observations take turns', () => {
    const messages: OpenAIMessage[] = [
      { role: 'developer', content: 'Be brief.' },
      { role: 'user', content: '天气？', name: 'Anna' },
      {
        role: 'assistant',
        content: '好的',
        tool_calls: [call('x', 'weather', '{"city": "北京"}'), call('y', 'weather', '{"city":"上海"}')],
      },
      { role: 'tool', tool_call_id: 'y', content: '20' },
      { role: 'tool', tool_call_id: 'x', content: '21' },
    ];
    const history = fromOpenAI(messages);
    expect(history.map(({ openai: _, ...rest }) => rest)).toEqual([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: '天气？' },
      { role: 'assistant', metadata: '', content: '好的' },
      { role: 'assistant', metadata: 'weather', content: fenced("tool_call(city='北京')") },
      { role: 'observation', content: '21' },
      { role: 'assistant', metadata: 'weather', content: fenced("tool_call(city='上海')") },
      { role: 'observation', content: '20' },
    ]);
    expect(toOpenAI(history)).toEqual(messages);
    // An edit counts, and what was kept of the old text does not.
    (history[3] as ChatMessage).content = fenced("tool_call(city='天津')");
    (history[2] as ChatMessage).content = 'OK';
    expect(toOpenAI(history)[2]).toMatchObject({
      content: 'OK',
      tool_calls: [{ function: { arguments: '{"city":"天津"}' } }, { function: { arguments: '{"city":"上海"}' } }],
    });
    history.splice(3, 2);
    expect(toOpenAI(history).slice(2)).toEqual([
      { role: 'assistant', content: 'OK', tool_calls: [call('y', 'weather', '{"city":"上海"}')] },
      { role: 'tool', tool_call_id: 'y', content: '20' },
    ]);
  });

  test('a history of this package has no fields that OpenAI does not know, as far as that goes', () => {
    const history: ChatMessage[] = [
      { role: 'user', content: '天气？' },
      { role: 'assistant', metadata: 'weather', content: fenced("tool_call(city='北京')") },
      { role: 'observation', content: '21' },
      { role: 'assistant', metadata: 'interpreter', content: fenced('print(1)') },
      { role: 'observation', content: '1' },
      { role: 'assistant', metadata: '', content: '21°' },
    ];
    expect(toOpenAI(history)).toStrictEqual([
      { role: 'user', content: '天气？' },
      { role: 'assistant', content: null, tool_calls: [call('call_0', 'weather', '{"city":"北京"}')] },
      { role: 'tool', tool_call_id: 'call_0', content: '21' },
      { role: 'assistant', content: null, tool_calls: [call('call_1', 'interpreter', '{"code":"print(1)"}')] },
      { role: 'tool', tool_call_id: 'call_1', content: '1' },
      { role: 'assistant', content: '21°' },
    ]);
    expect(fromOpenAI(toOpenAI(history))).toStrictEqual(history);
  });

  test('null and empty lists are as good as absent, and parts that were edited become a text', () => {
    const [message] = fromOpenAI([
      { role: 'assistant', content: 'a', refusal: null, tool_calls: [], function_call: null, annotations: [] },
    ]);
    expect(message).toStrictEqual({ role: 'assistant', metadata: '', content: 'a' });
    const parts = ['one', 'two'].map((text) => ({ type: 'text', text }));
    const [user] = fromOpenAI([{ role: 'user', content: parts }]) as [ChatMessage];
    expect(user.content).toBe('one\ntwo');
    expect(toOpenAI([user])).toEqual([{ role: 'user', content: parts }]);
    expect(toOpenAI([{ ...user, content: 'one two' }])).toEqual([{ role: 'user', content: 'one two' }]);
    expect(toOpenAI([{ ...user, content: 'one\ntwo!' }])).toEqual([{ role: 'user', content: 'one\ntwo!' }]);
  });

  test.each<[unknown, RegExp]>([
    ['x', /^messages must be an array/],
    [[7], /^messages\[0\] must be an object, got 7/],
    [
      [{ role: 'observation', content: 'x' }],
      /^messages\[0\]\.role must be one of system, developer, .* got "observation"/,
    ],
    [[{ role: 'user', content: null }], /^messages\[0\]\.content must be a string or an array of parts, got undefined/],
    [
      [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }],
      /^messages\[0\]\.content\[0\]\.type must be text, .* got "image_url"/,
    ],
    [[{ role: 'user', content: [{ type: 'text', text: 5 }] }], /^messages\[0\]\.content\[0\]\.text must be a string/],
    [[{ role: 'assistant', audio: { id: 'x' } }], /^messages\[0\]\.audio is not a field/],
    [[{ role: 'user', content: 'x', tool_calls: [{}] }], /^messages\[0\]\.tool_calls is not a field/],
    [[{ role: 'assistant', tool_calls: [{ type: 'custom' }] }], /tool_calls\[0\]\.type must be function, got "custom"/],
    [[{ role: 'assistant', tool_calls: [{ id: 'a' }] }], /tool_calls\[0\]\.function must be an object/],
    [[{ role: 'assistant', tool_calls: [call('a', '', '')] }], /function\.name must not be empty/],
    [
      [{ role: 'assistant', tool_calls: [call('a', 'b', '')], function_call: { name: 'c', arguments: '' } }],
      /has both tool_calls and function_call/,
    ],
    [[{ role: 'tool', content: 'x' }], /^messages\[0\]\.tool_call_id must be a string/],
    [[{ role: 'function', content: 'x' }], /^messages\[0\]\.name must be a string/],
    [[{ get role() { throw new Error('mine'); } }], /^messages cannot be read: mine/], // biome-ignore format: one line
  ])('what cannot be said is refused, naming the place, %#', (messages, message) => {
    const error = errorOf(() => fromOpenAI(messages));
    expect(error.code).toBe('ERR_INVALID_ARGUMENT');
    expect(error.message).toMatch(message);
  });

  test('whatever stands in the field openai, a history can be written', () => {
    for (const value of [null, 5, 'x', {}, [], true, -1, ['x'], [{ type: 'text', text: '' }], [-1, 1e9]]) {
      const keys = ['role', 'name', 'parts', 'content', 'refusal', 'annotations', 'id', 'arguments', 'old', 'joined', 'apart', 'place']; // biome-ignore format: one line
      for (const key of keys) {
        const openai = { [key]: value };
        const history: ChatMessage[] = [
          { role: 'user', content: 'x', openai },
          { role: 'assistant', metadata: 'f', content: 'y', openai },
          { role: 'observation', content: '', openai },
          { role: 'assistant', metadata: '', content: '', openai },
        ];
        const written = toOpenAI(history);
        expect(written[0]).toMatchObject({ role: 'user', content: 'x' });
        expect(fromOpenAI(written)).toHaveLength(4);
      }
    }
    expect(errorOf(() => toOpenAI([{ role: 'user', content: '', openai: [] as never }])).message).toBe(
      'messages[0].openai must be an object, got an array',
    );
  });
});

describe('Python calls', () => {
  test.each<[string, string | undefined]>([
    ['{"city":"北京","days":2,"ok":true,"no":false,"none":null}', "city='北京', days=2, ok=True, no=False, none=None"],
    ['{}', ''],
    [' { "a" : [ 1 , { "b c" : [ ] } ] } ', "a=[1, {'b c': []}]"],
    ['{"a":110101199003071234,"b":-9007199254740993}', 'a=110101199003071234, b=-9007199254740993'],
    [
      '{"a":1.0,"b":1e5,"c":1E-7,"d":0.0001,"e":1e16,"f":-2.5}',
      'a=1.0, b=100000.0, c=1e-07, d=0.0001, e=1e+16, f=-2.5',
    ],
    ['{"a":123456789.125,"b":1e15,"c":1.5e300,"d":-0.0,"e":-0}', 'a=123456789.125, b=1000000000000000.0, c=1.5e+300, d=-0.0, e=0'], // biome-ignore format: one line
    ['{"a":"it\'s","b":"\\"","c":"\'\\"","d":"\\\\ \\n\\r\\t\\u0000\\u3000\\ud83d\\udc4b\\ud83d"}', 'a="it\'s", b=\'"\', c=\'\\\'"\', d=\'\\\\ \\n\\r\\t\\x00\\u3000👋\\ud83d\''], // biome-ignore format: one line
    ['{"a-b":1,"x":2,"1":[]}', "x=2, **{'a-b': 1, '1': []}"],
    ['{"a":1,"b":2,"a":3}', 'a=3, b=2'],
    ['{"__proto__":{"x":1}}', "__proto__={'x': 1}"],
    ['[1]', undefined],
    ['"x"', undefined],
    ['{', undefined],
    ['{"a":1e999}', undefined],
    [`{"a":${'['.repeat(65)}${']'.repeat(65)}}`, undefined],
  ])('%s', (json, text) => {
    const written = writeToolCall(json);
    expect(written).toBe(text === undefined ? undefined : `tool_call(${text})`);
  });

  test('what is written is read as it was', () => {
    const deep = JSON.parse(`{"a":${'['.repeat(64)}${']'.repeat(64)}}`) as unknown;
    expect(parseToolCall(writeToolCall(JSON.stringify(deep)) as string)).toEqual(deep);
    expect(parseToolCall(writeToolCall('{"a":110101199003071234}') as string)).toEqual({ a: '110101199003071234' });
    const generator = new Generator(7);
    for (let i = 0; i < 1000; i++) {
      const value = { a: generator.json(), 城市: generator.json(), from: generator.text() };
      const written = writeToolCall(JSON.stringify(value)) as string;
      expect(parseToolCall(written)).toEqual(value);
      expect(parseToolCall(fenced(written))).toEqual(value);
    }
  });
});

describe('toPairs()', () => {
  test('gives what validateMessages() takes', () => {
    const pairs: [string, string][] = [
      ['你好', '你好！'],
      ['', 'x'],
    ];
    expect(toPairs(validateMessages(pairs))).toEqual(pairs);
    expect(toPairs([])).toEqual([]);
    expect(toPairs(fromOpenAI(toOpenAI(validateMessages(pairs))))).toEqual(pairs);
  });

  test.each<[ChatMessage[], string]>([
    [
      [{ role: 'system', content: 'x' }],
      'messages[0].role is system, expected user: pairs are user and assistant in turn',
    ],
    [[{ role: 'user', content: 'x' }], 'messages[0] is a question without an answer: pairs have both'],
    [
      [
        { role: 'user', content: 'x' },
        { role: 'assistant', metadata: 'f', content: 'y' },
      ],
      'messages[1].metadata is "f": pairs have texts alone',
    ],
    [
      [...validateMessages([['a', 'b']]), { role: 'observation', content: 'y' }],
      'messages[2].role is observation, expected user: pairs are user and assistant in turn',
    ],
  ])('refuses what pairs cannot say, %#', (messages, message) => {
    expect(errorOf(() => toPairs(messages)).message).toBe(message);
  });
});

/** As a tokenizer counts: a token for each two characters, and one for the beginning. */
const count = (text: string) => (text === '' ? 0 : 1 + Math.ceil(text.length / 2));

function tokensOf(family: ChatFamily, counted: (text: string) => number = count): MessageTokens {
  return new MessageTokens({
    prompt: (messages) => chatPrompt(family, messages),
    count: counted,
    atLeast: (length) => Math.ceil(length / 2),
  });
}

const round = (index: number): ChatMessage[] => [
  { role: 'user', content: `question ${index}` },
  { role: 'assistant', metadata: 'weather', content: `tool_call(n=${index})` },
  { role: 'observation', content: `result ${index}` },
  { role: 'assistant', metadata: '', content: `answer ${index}` },
];
const system: ChatMessage = { role: 'system', content: 'Be brief.', tools: [{ name: 'weather' }] };
const question: ChatMessage = { role: 'user', content: 'And now?' };

describe('dropOldestRounds()', () => {
  const tokens = tokensOf('chatglm3');
  const ofPrompt = (messages: readonly ChatMessage[]) => tokens.ofPrompt(messages);
  const history = [system, ...range(50).flatMap(round), question];

  test('drops whole rounds, as few as fit, and keeps the system message and the last question', () => {
    const all = ofPrompt(history);
    for (let limit = ofPrompt([system, question]); limit <= all; limit += 7) {
      const { messages, dropped, fits } = dropOldestRounds(history, ofPrompt, limit);
      expect(fits).toBe(true);
      expect(dropped % 4).toBe(0);
      expect(messages).toEqual([system, ...history.slice(1 + dropped)]);
      expect(messages.at(-1)).toBe(question);
      expect(ofPrompt(messages)).toBeLessThanOrEqual(limit);
      if (dropped > 0) expect(ofPrompt([system, ...history.slice(1 + dropped - 4)])).toBeGreaterThan(limit);
    }
    expect(dropOldestRounds(history, ofPrompt, all)).toEqual({ messages: history, dropped: 0, fits: true });
  });

  test('the last round stays whole, also when it does not fit', () => {
    const last = round(3).slice(0, 3);
    const messages = [system, ...round(1), ...round(2), ...last];
    const limit = ofPrompt([system, ...last]);
    expect(dropOldestRounds(messages, ofPrompt, limit)).toEqual({
      messages: [system, ...last],
      dropped: 8,
      fits: true,
    });
    expect(dropOldestRounds(messages, ofPrompt, limit - 1)).toEqual({
      messages: [system, ...last],
      dropped: 8,
      fits: false,
    });
    expect(dropOldestRounds([system, question], ofPrompt, 1)).toEqual({
      messages: [system, question],
      dropped: 0,
      fits: false,
    });
    expect(dropOldestRounds([], () => 5, 1)).toEqual({ messages: [], dropped: 0, fits: false });
  });

  test('what stands before the first question is dropped as a round', () => {
    const greeting: ChatMessage = { role: 'assistant', metadata: '', content: 'Hello, what can I do for you?' };
    const messages = [system, greeting, question];
    expect(dropOldestRounds(messages, ofPrompt, ofPrompt(messages) - 1).messages).toEqual([system, question]);
  });

  test('ChatGLM2, whose prompt is one text with numbered rounds', () => {
    const chatglm2 = tokensOf('chatglm2');
    const pairs = validateMessages(range(30).map((index) => [`question ${index}`, `answer ${index}`]));
    const messages = [{ role: 'system' as const, content: 'Be brief.' }, ...pairs, question];
    const { messages: kept, fits } = dropOldestRounds(messages, (some) => chatglm2.ofPrompt(some), 200);
    expect(fits).toBe(true);
    expect(kept[0]).toBe(messages[0]);
    expect(chatglm2.ofPrompt(kept)).toBeLessThanOrEqual(200);
    expect(chatglm2.ofPrompt(kept)).toBeGreaterThan(170);
  });
});

describe('MessageTokens', () => {
  test('counts a prompt exactly, and each text once', () => {
    const counted: string[] = [];
    const tokens = tokensOf('chatglm3', (text) => {
      counted.push(text);
      return count(text);
    });
    const history = [system, ...range(20).flatMap(round)];
    const exact = (messages: readonly ChatMessage[]) =>
      chatPrompt('chatglm3', messages).reduce((sum, part) => sum + (typeof part === 'string' ? count(part) : 1), 0);
    expect(tokens.ofPrompt(history)).toBe(exact(history));
    expect(new Set(counted).size).toBe(counted.length);
    counted.length = 0;
    expect(tokens.ofPrompt([...history, question])).toBe(exact([...history, question]));
    expect(counted).toEqual([question.content]);
    // Edited in place.
    (history[3] as ChatMessage).content = 'another result';
    expect(tokens.ofPrompt(history)).toBe(exact(history));
    expect(counted).toEqual([question.content, 'another result']);
  });

  test('texts that cannot fit are not encoded', () => {
    const tokens = tokensOf('chatglm3', () => {
      throw new Error('encoded');
    });
    expect(tokens.ofPrompt([{ role: 'user', content: 'x'.repeat(1e6) }], 8192)).toBeGreaterThan(8192);
  });

  test('what is remembered is bounded', () => {
    const tokens = tokensOf('chatglm3');
    for (let i = 0; i < 20_000; i++) tokens.ofPrompt([{ role: 'user', content: `text ${i}` }]);
    expect(tokens.size).toBeLessThanOrEqual(1 << 14);
    for (let i = 0; i < 100; i++) tokens.ofPrompt([{ role: 'user', content: `${i}${'x'.repeat(1 << 17)}` }]);
    expect(tokens.size).toBeLessThanOrEqual(32);
  });

  test.each(CHAT_FAMILIES)('with the tokenizer, %s', async (family) => {
    const tokenizer = await loadTokenizer(embeddedModelPath());
    const tokens = new MessageTokens({
      prompt: (messages) => chatPrompt(family, messages),
      count: (text) => tokenizer.encode(text).length,
      atLeast: (length) => tokenizer.leastTokens(length),
    });
    const pairs = validateMessages([
      ['你好', '你好！'],
      ['What is 7 times 8?', '56, of course.'],
    ]);
    const messages: ChatMessage[] = [{ role: 'system', content: 'Be brief.' }, ...pairs, question];
    const prompt = tokens.ofPrompt(messages);
    expect(prompt).toBe(tokenizer.encodeChat(messages, { family }).length);
    const sum = messages.reduce((total, message) => total + tokens.ofMessage(message), 0);
    // Besides, [gMASK] and sop, and of ChatGLM3 the answer's <|assistant|>.
    const frame = tokens.ofPrompt([question]) - tokens.ofMessage(question);
    expect(frame).toBeGreaterThanOrEqual(family === 'chatglm3' ? 3 : 0);
    if (family === 'chatglm3') expect(sum + frame).toBe(prompt);
    else expect(Math.abs(sum + 2 - prompt)).toBeLessThanOrEqual(messages.length);
    // Also what the family cannot say has a number.
    const long = 'x y '.repeat(100);
    for (const role of ['observation', 'system', 'assistant'] as const) {
      expect(tokens.ofMessage({ role, content: long })).toBeGreaterThanOrEqual(tokenizer.encode(long).length - 2);
    }
  });
});
