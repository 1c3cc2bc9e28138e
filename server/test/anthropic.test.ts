import Anthropic, {
  APIError,
  APIUserAbortError,
  AuthenticationError,
  BadRequestError,
  NotFoundError,
  RateLimitError,
} from '@anthropic-ai/sdk';
import { betaZodTool } from '@anthropic-ai/sdk/helpers/beta/zod';
import { zodOutputFormat } from '@anthropic-ai/sdk/helpers/zod';
import { loadModel } from 'node-chatglm';
import { z } from 'zod';
import { stopSequence } from '../src/anthropic/messages-answer';
import { type Listening, LONG_LIST, listen, nested } from './support/listen';

let server: Listening;
let client: Anthropic;
beforeAll(async () => {
  server = await listen();
  client = clientOf(server);
});
afterAll(() => server.close());

function clientOf({ address }: Listening, options: object = {}): Anthropic {
  return new Anthropic({ baseURL: address, apiKey: 'none', maxRetries: 0, ...options });
}

const greedy = { model: 'chatglm-tiny', temperature: 0, max_tokens: 200 } as const;
const hello = [{ role: 'user', content: '你好' }] as const satisfies Anthropic.MessageParam[];
const question = '北京今天天气怎么样？';
const observed = '{"weather": "晴", "temperature": 21}';
const weather: Anthropic.Tool = {
  name: 'get_weather',
  description: '查询某个城市的天气',
  input_schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
};
const clock: Anthropic.Tool = { ...weather, name: 'get_time', description: '查询某个城市现在的时间' };
const longAnswer = {
  ...greedy,
  max_tokens: 900,
  messages: [...hello],
  output_config: { format: { type: 'json_schema', schema: LONG_LIST } },
} satisfies Anthropic.MessageCreateParams;

function useOf({ content }: Anthropic.Message): Anthropic.ToolUseBlock {
  const block = content.find(({ type }) => type === 'tool_use');
  if (block?.type !== 'tool_use') throw new Error(`no tool_use in ${JSON.stringify(content)}`);
  return block;
}

function textOf({ content }: { content: { type: string; text?: string }[] }): string {
  return content.map(({ text = '' }) => text).join('');
}

test('answers a message', async () => {
  const system = [{ type: 'text' as const, text: '你是一个助手。', cache_control: { type: 'ephemeral' as const } }];
  const message = await client.messages.create({ ...greedy, messages: [...hello], system });
  expect(message).toMatchObject({
    type: 'message',
    role: 'assistant',
    model: 'chatglm-tiny',
    stop_reason: 'end_turn',
    stop_sequence: null,
    content: [{ type: 'text' }],
  });
  expect(textOf(message)).toContain('你好');
  expect(message._request_id).toEqual(expect.any(String));
  const { input_tokens, cache_read_input_tokens } = message.usage;
  const counted = await client.messages.countTokens({ model: greedy.model, messages: [...hello], system });
  expect(input_tokens + (cache_read_input_tokens ?? 0)).toBe(counted.input_tokens);
  const whole = await client.messages.create({ ...greedy, messages: [...hello], system: '你是一个助手。' });
  expect(whole.content).toEqual(message.content);
});

test('a conversation goes on; messages of a user in a row are one turn', async () => {
  const said: Anthropic.MessageParam[] = [
    { role: 'user', content: [{ type: 'text', text: '我叫小明' }] },
    {
      role: 'assistant',
      content: [
        { type: 'thinking', thinking: 'hm', signature: '' },
        { type: 'text', text: '好' },
      ],
    },
  ];
  const count = async (last: Anthropic.MessageParam[]) =>
    await client.messages.countTokens({ model: greedy.model, messages: [...said, ...last] });
  const apart = await count([
    { role: 'user', content: '你好' },
    { role: 'user', content: '再见' },
  ]);
  expect(apart).toEqual(await count([{ role: 'user', content: '你好\n再见' }]));
  const message = await client.messages.create({ ...greedy, messages: [...said, ...hello] });
  expect(message.usage.output_tokens).toBeGreaterThan(1);
});

test('the stream has each event once and in its order, and makes the same message', async () => {
  const whole = await client.messages.create({ ...greedy, messages: [...hello] });
  const events: Anthropic.MessageStreamEvent[] = [];
  const stream = client.messages.stream({ ...greedy, messages: [...hello] });
  const texts: string[] = [];
  stream.on('text', (text) => texts.push(text));
  for await (const event of stream) events.push(event);
  const types = events.map(({ type }) => type).filter((type, i, all) => type !== all[i - 1]);
  expect(types).toEqual([
    'message_start',
    'content_block_start',
    'content_block_delta',
    'content_block_stop',
    'message_delta',
    'message_stop',
  ]);
  const message = await stream.finalMessage();
  expect(texts.join('')).toBe(textOf(whole));
  expect(message.content).toMatchObject(whole.content);
  expect([message.stop_reason, message.usage.output_tokens]).toEqual(['end_turn', whole.usage.output_tokens]);
  // What the first event tells of the prompt is what the last one tells.
  const [start] = events;
  const delta = events.at(-2);
  if (start?.type !== 'message_start' || delta?.type !== 'message_delta') throw new Error('no usage');
  const { input_tokens, cache_read_input_tokens } = delta.usage;
  expect(start.message.usage).toMatchObject({ input_tokens, cache_read_input_tokens });
});

test.each([false, true])('a tool is called, and the answer told what it gave; streamed: %s', async (isStreamed) => {
  const messages: Anthropic.MessageParam[] = [{ role: 'user', content: question }];
  const answer = async () => {
    const request = { ...greedy, messages, tools: [weather, clock] };
    return isStreamed ? await client.messages.stream(request).finalMessage() : await client.messages.create(request);
  };
  const asked = await answer();
  expect(asked.stop_reason).toBe('tool_use');
  const use = useOf(asked);
  expect(use).toMatchObject({ name: 'get_weather', input: { city: '北京' } });
  messages.push(
    { role: 'assistant', content: asked.content },
    {
      role: 'user',
      content: [{ type: 'tool_result', tool_use_id: use.id, content: [{ type: 'text', text: observed }] }],
    },
  );
  const answered = await answer();
  expect(textOf(answered)).toBe('北京现在的天气是晴，气温21度。');
  expect(answered.stop_reason).toBe('end_turn');
  messages.push({ role: 'assistant', content: answered.content }, { role: 'user', content: '现在上海几点了？' });
  expect(useOf(await answer())).toMatchObject({ name: 'get_time', input: { city: '上海' } });
});

test('the arguments of a call come as JSON', async () => {
  const stream = client.messages.stream({
    ...greedy,
    messages: [{ role: 'user', content: question }],
    tools: [weather],
  });
  let json = '';
  let index: number | undefined;
  for await (const event of stream) {
    if (event.type === 'content_block_start') {
      expect(event.content_block).toMatchObject({ type: 'tool_use', name: 'get_weather', input: {} });
      index = event.index;
    }
    if (event.type === 'content_block_delta' && event.delta.type === 'input_json_delta') {
      expect(event.index).toBe(index);
      json += event.delta.partial_json;
    }
  }
  expect(JSON.parse(json)).toEqual({ city: '北京' });
});

test('the tool runner comes to the answer, also past a tool that fails', async () => {
  const cities: string[] = [];
  const tool = betaZodTool({
    name: 'get_weather',
    description: '查询某个城市的天气',
    inputSchema: z.object({ city: z.string() }),
    run: ({ city }) => {
      cities.push(city);
      if (city !== '北京') throw new Error('the station is closed');
      return observed;
    },
  });
  const run = async (content: string) =>
    await client.beta.messages.toolRunner({
      ...greedy,
      messages: [{ role: 'user', content }],
      tools: [tool],
      max_iterations: 3,
    });
  expect(textOf(await run(question))).toBe('北京现在的天气是晴，气温21度。');
  await run('上海今天天气怎么样？');
  expect(cities.slice(0, 2)).toEqual(['北京', '上海']);
});

test('an error of a tool is told to the model as one', async () => {
  const count = async (result: object) => {
    const { input_tokens } = await client.messages.countTokens({
      model: greedy.model,
      tools: [weather],
      messages: [
        { role: 'user', content: question },
        { role: 'assistant', content: [{ type: 'tool_use', id: 'a', name: 'get_weather', input: { city: '北京' } }] },
        { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'a', ...result }] },
      ],
    });
    return input_tokens;
  };
  const told = await count({ content: 'Error: no such city' });
  expect(await count({ content: 'no such city', is_error: true })).toBe(told);
  expect(await count({ content: 'Error: no such city', is_error: true })).toBe(told);
  expect(await count({ content: 'no such city' })).toBeLessThan(told);
  expect(await count({})).toBeLessThan(told);
});

test('tool_choice forces one tool, any, or none', async () => {
  const request = { ...greedy, messages: [{ role: 'user' as const, content: question }], tools: [weather, clock] };
  const forced = await client.messages.create({ ...request, tool_choice: { type: 'tool', name: 'get_time' } });
  expect(useOf(forced).name).toBe('get_time');
  const any = await client.messages.create({
    ...request,
    messages: [...hello],
    tool_choice: { type: 'any', disable_parallel_tool_use: true },
  });
  expect(any.stop_reason).toBe('tool_use');
  const none = await client.messages.create({ ...request, tool_choice: { type: 'none' } });
  expect(none.content.map(({ type }) => type)).toEqual(['text']);
});

test('messages.parse gives the value of a schema', async () => {
  const answer = z.object({ city: z.enum(['北京', '上海']), celsius: z.number().int() });
  const { parsed_output } = await client.messages.parse({
    ...greedy,
    messages: [{ role: 'user', content: question }],
    output_config: { format: zodOutputFormat(answer) },
  });
  expect(answer.parse(parsed_output)).toEqual(parsed_output);
});

test('stop sequences and limits end the answer, and the message says which', async () => {
  const whole = textOf(await client.messages.create({ ...greedy, messages: [...hello] }));
  const [first, second] = ['人工', '很高兴'];
  const at = whole.indexOf(first as string);
  expect(at).toBeGreaterThan(0);
  expect(whole.indexOf(second as string)).toBeGreaterThan(at);
  const stop_sequences = [second as string, first as string];
  const stopped = await client.messages.create({ ...greedy, messages: [...hello], stop_sequences });
  expect(stopped).toMatchObject({ stop_reason: 'stop_sequence', stop_sequence: first });
  expect(textOf(stopped)).toBe(whole.slice(0, at));
  const streamed = await client.messages.stream({ ...greedy, messages: [...hello], stop_sequences }).finalMessage();
  expect(streamed).toMatchObject({ stop_reason: 'stop_sequence', stop_sequence: first });
  const cut = await client.messages.create({ ...greedy, messages: [...hello], max_tokens: 3 });
  expect(cut).toMatchObject({ stop_reason: 'max_tokens', usage: { output_tokens: 3 } });
  const long = {
    ...longAnswer,
    max_tokens: 100_000,
    messages: [{ role: 'user' as const, content: '你好'.repeat(430) }],
  };
  const full = await client.messages.stream(long).finalMessage();
  expect(full.stop_reason).toBe('model_context_window_exceeded');
  expect(stopSequence('abcde', ['cd', 'bcd', 'bc', 'x'])).toBe('bc');
});

test('models are told in Anthropic’s shape to its clients', async () => {
  const models: string[] = [];
  for await (const { id, type } of client.models.list()) models.push(`${type} ${id}`);
  expect(models).toEqual(['model chatglm-tiny']);
  expect(await client.models.retrieve('chatglm-tiny')).toMatchObject({ id: 'chatglm-tiny', type: 'model' });
  await expect(client.models.retrieve('other')).rejects.toBeInstanceOf(NotFoundError);
});

test('what is wrong, and what there is not, is told', async () => {
  const user = (content: unknown) => ({ messages: [{ role: 'user', content }] });
  const cases: [request: object, message: RegExp][] = [
    [{ max_tokens: undefined }, /max_tokens/],
    [{ max_tokens: 0 }, /max_tokens.*>= 1/],
    [{ temperature: 1.5 }, /temperature.*<= 1/],
    [{ unknown: 1 }, /unknown/],
    [{ messages: [] }, /messages/],
    [{ stop_sequences: [''] }, /stop_sequences\[0\]/],
    [{ thinking: { type: 'enabled', budget_tokens: 1024 } }, /thinking/],
    [{ tools: [{ type: 'web_search_20250305', name: 'web_search' }] }, /tools\[0\].*web_search_20250305/],
    [{ tools: [{ name: 'f' }] }, /tools\[0\]\.input_schema/],
    [{ tool_choice: { type: 'any' } }, /needs tools/],
    [{ tools: [weather], tool_choice: { type: 'tool', name: 'f' } }, /no tool f/],
    [{ container: 'c' }, /runs no code/],
    [{ system: 3 }, /system/],
    [user([]), /must have content/],
    [user([{ type: 'image', source: { type: 'url', url: 'http://localhost/x.png' } }]), /messages\[0\].*no image/],
    [user([{ type: 'document', source: { type: 'text', data: 'x' } }]), /no document/],
    [user([{ type: 'tool_result', tool_use_id: 'x' }]), /no `tool_use` block/],
    [user('今天天气怎么样'.repeat(600)), /context/],
    [{ messages: [...hello, { role: 'assistant', content: '你' }] }, /last message must be of the role user/],
    [{ messages: [...hello, { role: 'tool', content: '你' }] }, /messages\[1\]\.role/],
    [
      {
        messages: [
          ...hello,
          { role: 'assistant', content: [{ type: 'tool_use', id: 'a', name: 'f', input: {} }] },
          ...hello,
        ],
      },
      /no `tool_result` block/,
    ],
  ];
  for (const [request, message] of cases) {
    const error = await client.messages
      .create({ ...greedy, messages: [...hello], ...request } as Anthropic.MessageCreateParamsNonStreaming)
      .catch((thrown: unknown) => thrown);
    expect([request, error]).toEqual([request, expect.any(BadRequestError)]);
    const { type, apiMessage, requestID, error: body } = error as APIError;
    expect({ request, type, apiMessage }).toEqual({
      request,
      type: 'invalid_request_error',
      apiMessage: expect.stringMatching(message),
    });
    expect(body).toMatchObject({ type: 'error', request_id: requestID });
  }
  const missing = client.messages.create({ ...greedy, model: 'claude', messages: [...hello] });
  await expect(missing).rejects.toBeInstanceOf(NotFoundError);
  // A stream that cannot begin is refused with its status, too.
  const streamed = client.messages.stream({ ...greedy, messages: [{ role: 'user', content: 'x'.repeat(20_000) }] });
  await expect(streamed.finalMessage()).rejects.toMatchObject({ status: 400, type: 'invalid_request_error' });
});

test('JSON that no client means is refused, and nothing falls over', async () => {
  const begin = '"model": "chatglm-tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}';
  const use = `{"type": "tool_use", "id": "a", "name": "f", "input": {"a": ${nested(100_000)}}}`;
  const bodies = [
    `{${begin}], "tools": [{"name": "f", "input_schema": {"a": ${nested(100_000)}}}]}`,
    `{${begin}], "tool_choice": {"type": ${nested(100_000)}}}`,
    `{${begin}, {"role": "assistant", "content": [${use}]}]}`,
    `{${begin}, {"role": "user", "content": [{"type": "${'t'.repeat(100_000)}"}]}]}`,
    `{${begin}, null]}`,
    `{${begin}], "__proto__": {"stream": true}}`,
    '[]',
    '',
  ];
  for (const body of bodies) {
    const response = await fetch(`${server.address}/v1/messages`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'anthropic-version': '2023-06-01' },
      body,
    });
    const answer = await response.text();
    expect([body.slice(0, 60), response.status]).toEqual([body.slice(0, 60), 400]);
    expect(answer.length).toBeLessThan(1000);
    expect(JSON.parse(answer)).toMatchObject({ type: 'error', error: { type: 'invalid_request_error' } });
  }
});

test('keys are asked for by the header of Anthropic’s clients', async () => {
  const key = 'sk-chatglm-0123456789abcdef';
  const guarded = await listen({ keys: [{ name: 'anna', key }] });
  try {
    const counting = { model: greedy.model, messages: [...hello] };
    await expect(clientOf(guarded, { apiKey: 'wrong' }).messages.countTokens(counting)).rejects.toMatchObject({
      constructor: AuthenticationError,
      type: 'authentication_error',
      requestID: expect.any(String),
    });
    const { input_tokens } = await clientOf(guarded, { apiKey: key }).messages.countTokens(counting);
    expect(input_tokens).toBeGreaterThan(0);
  } finally {
    await guarded.close();
  }
});

test('a client that goes ends its answer, streamed or not', async () => {
  const leaving = new AbortController();
  const came = server.nextRequest();
  const whole = client.messages.create(longAnswer, { signal: leaving.signal });
  await came;
  const left = server.nextUsed();
  let deltas = 0;
  // When some of the stream has come, both answers are on their way.
  for await (const { type } of client.messages.stream(longAnswer)) {
    if (type === 'content_block_delta' && ++deltas === 3) break;
  }
  expect((await left).generated).toBeLessThan(150);
  const used = server.nextUsed();
  leaving.abort();
  await expect(whole).rejects.toBeInstanceOf(APIUserAbortError);
  const { generated } = await used;
  expect(generated).toBeGreaterThan(0);
  expect(generated).toBeLessThan(300);
});

describe('a server with room for one answer at a time', () => {
  let small: Listening;
  beforeAll(async () => {
    small = await listen({ models: [{ load: { maxSequences: 1, maxQueue: 1 } }] });
  });
  afterAll(() => small.close());

  /** A stream that is being answered, so that others wait. */
  async function occupy() {
    const stream = clientOf(small).messages.stream(longAnswer);
    stream.on('error', () => {});
    stream.on('abort', () => {});
    await new Promise<void>((resolve) => {
      stream.once('text', () => resolve());
    });
    return stream;
  }

  test('who waits hears pings, and the whole message after them', async () => {
    const running = await occupy();
    jest.useFakeTimers({
      doNotFake: ['Date', 'hrtime', 'nextTick', 'performance', 'queueMicrotask', 'setImmediate', 'setTimeout'],
    });
    try {
      let isThere = false;
      const waiting = fetch(`${small.address}/v1/messages`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'anthropic-version': '2023-06-01' },
        body: JSON.stringify({ ...greedy, messages: hello, stream: true }),
      }).finally(() => {
        isThere = true;
      });
      while (!isThere) {
        jest.advanceTimersByTime(10_000);
        await new Promise(setImmediate);
      }
      running.abort();
      const events = await (await waiting).text();
      const types = [...events.matchAll(/^event: (.*)$/gm)].map(([, type]) => type);
      expect(types[0]).toBe('ping');
      const others = types.filter((type) => type !== 'ping');
      expect([others[0], others.at(-1)]).toEqual(['message_start', 'message_stop']);
    } finally {
      jest.useRealTimers();
    }
  });

  test('who finds the queue full is told to come again, and the client does', async () => {
    const running = await occupy();
    const request = { ...greedy, messages: [...hello] };
    const came = small.nextRequest();
    const queued = clientOf(small).messages.create(request);
    await came;
    const refused = await clientOf(small)
      .messages.create(request)
      .catch((thrown: unknown) => thrown);
    expect(refused).toBeInstanceOf(RateLimitError);
    expect((refused as APIError).headers?.get('retry-after')).toBe('1');
    const tries: number[] = [];
    const retrying = clientOf(small, {
      maxRetries: 5,
      fetch: async (...given: Parameters<typeof fetch>) => {
        const response = await fetch(...given);
        tries.push(response.status);
        if (response.status === 429) running.abort();
        return response;
      },
    }).messages.create(request);
    expect(textOf(await retrying)).toBe(textOf(await queued));
    expect(tries).toEqual([429, 200]);
  });
});

test('a failure behind the first event is an event', async () => {
  const model = await loadModel();
  const failing = await listen({ models: [{ id: 'chatglm-tiny', model }] });
  try {
    const stream = clientOf(failing).messages.stream(longAnswer);
    stream.once('text', () => void model.dispose());
    const error = await stream.finalMessage().catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(APIError);
    expect(error).toMatchObject({ status: undefined, type: 'overloaded_error' });
  } finally {
    await failing.close();
    await model.dispose();
  }
});
