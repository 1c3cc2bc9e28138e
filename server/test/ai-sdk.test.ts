import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, generateObject, generateText, Output, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';
import { type Listening, LONG_LIST, listen } from './support/listen';

let server: Listening;
beforeAll(async () => {
  server = await listen();
});
afterAll(() => server.close());

function modelOf({ address }: Listening, id = 'chatglm-tiny', fetchWith = fetch) {
  const provider = createOpenAICompatible({
    name: 'chatglm',
    baseURL: `${address}/v1`,
    includeUsage: true,
    supportsStructuredOutputs: true,
    fetch: fetchWith,
  });
  return provider(id);
}

const greedy = { temperature: 0, maxRetries: 0 } as const;
const question = '北京今天天气怎么样？';

/** The weather of each city, and the cities that were asked for. */
function weather() {
  const asked: string[] = [];
  const get_weather = tool({
    description: '查询某个城市的天气',
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      asked.push(city);
      return { weather: '晴', temperature: 21 };
    },
  });
  return { asked, get_weather };
}

test('generateText answers, with usage and the reason of the end', async () => {
  const answer = await generateText({ model: modelOf(server), ...greedy, prompt: '你好' });
  expect(answer.text).toContain('你好');
  expect(answer.finishReason).toBe('stop');
  expect(answer.response.modelId).toBe('chatglm-tiny');
  const { inputTokens = 0, outputTokens = 0, totalTokens } = answer.usage;
  expect(outputTokens).toBeGreaterThan(1);
  expect(totalTokens).toBe(inputTokens + outputTokens);
  const cut = await generateText({ model: modelOf(server), ...greedy, prompt: '你好', maxOutputTokens: 3 });
  expect([cut.finishReason, cut.usage.outputTokens]).toEqual(['length', 3]);
});

test('streamText gives the same text in pieces, and its usage', async () => {
  const request = { model: modelOf(server), ...greedy, system: '你是一个助手。', prompt: '你好' };
  const whole = await generateText(request);
  const stream = streamText(request);
  const pieces: string[] = [];
  for await (const piece of stream.textStream) pieces.push(piece);
  expect(pieces.join('')).toBe(whole.text);
  expect(await stream.finishReason).toBe('stop');
  expect(await stream.usage).toMatchObject({
    inputTokens: whole.usage.inputTokens,
    outputTokens: whole.usage.outputTokens,
  });
});

test('tools are called and answered, in one step after the other', async () => {
  const { asked, get_weather } = weather();
  const answer = await generateText({
    model: modelOf(server),
    ...greedy,
    prompt: question,
    tools: { get_weather },
    stopWhen: stepCountIs(5),
  });
  expect(asked).toEqual(['北京']);
  expect(answer.text).toBe('北京现在的天气是晴，气温21度。');
  expect(answer.steps.map(({ finishReason }) => finishReason)).toEqual(['tool-calls', 'stop']);
  expect(answer.steps[0]?.toolCalls).toMatchObject([{ toolName: 'get_weather', input: { city: '北京' } }]);
  // The conversation goes on with what the steps were made of.
  const next = await generateText({
    model: modelOf(server),
    ...greedy,
    messages: [
      { role: 'user', content: question },
      ...answer.response.messages,
      { role: 'user', content: '上海今天天气怎么样？' },
    ],
    tools: { get_weather },
    stopWhen: stepCountIs(5),
  });
  expect(asked).toEqual(['北京', '上海']);
  expect(next.text).toContain('21');
});

test('tools are called and answered while the answer is streamed', async () => {
  const { asked, get_weather } = weather();
  const stream = streamText({
    model: modelOf(server),
    ...greedy,
    prompt: question,
    tools: { get_weather },
    stopWhen: stepCountIs(5),
  });
  const types: string[] = [];
  for await (const { type } of stream.fullStream) if (type !== types.at(-1)) types.push(type);
  expect(asked).toEqual(['北京']);
  expect(await stream.text).toBe('北京现在的天气是晴，气温21度。');
  const order = ['tool-call', 'tool-result', 'finish-step', 'text-delta', 'finish'].map((type) => types.indexOf(type));
  expect(order).toEqual([...order].sort((a, b) => a - b));
  expect(order).not.toContain(-1);
});

test('a tool can be forced, and left out', async () => {
  const { get_weather } = weather();
  const request = { model: modelOf(server), ...greedy, prompt: question, tools: { get_weather } };
  const forced = await generateText({ ...request, prompt: '你好', toolChoice: 'required' });
  expect(forced.toolCalls).toMatchObject([{ toolName: 'get_weather' }]);
  const named = await generateText({ ...request, toolChoice: { type: 'tool', toolName: 'get_weather' } });
  expect(named.toolCalls).toMatchObject([{ toolName: 'get_weather' }]);
  const none = await generateText({ ...request, toolChoice: 'none' });
  expect([none.toolCalls, none.finishReason]).toEqual([[], 'stop']);
});

test('objects of a schema, whole and as they come', async () => {
  const schema = z.object({ city: z.enum(['北京', '上海']), celsius: z.number().int() });
  const { object } = await generateObject({ model: modelOf(server), ...greedy, schema, prompt: question });
  expect(schema.parse(object)).toEqual(object);
  const request = { model: modelOf(server), ...greedy, prompt: question, output: Output.object({ schema }) };
  expect((await generateText(request)).output).toEqual(object);
  const stream = streamText(request);
  const partial: unknown[] = [];
  for await (const each of stream.partialOutputStream) partial.push(each);
  expect(partial.at(-1)).toEqual(object);
});

test('aborting ends the answer on the server', async () => {
  const leaving = new AbortController();
  const used = server.nextUsed();
  const stream = streamText({
    model: modelOf(server),
    ...greedy,
    prompt: '你好',
    providerOptions: {
      chatglm: { response_format: { type: 'json_schema', json_schema: { name: 'list', schema: LONG_LIST } } },
    },
    abortSignal: leaving.signal,
  });
  const types: string[] = [];
  let deltas = 0;
  for await (const { type } of stream.fullStream) {
    types.push(type);
    if (type === 'text-delta' && ++deltas === 3) leaving.abort();
  }
  expect(types.at(-1)).toBe('abort');
  expect((await used).generated).toBeLessThan(150);
});

test('errors have their status and message, and what may pass is tried again', async () => {
  const refused = await generateText({ model: modelOf(server, 'gpt-5'), ...greedy, prompt: '你好' }).catch(
    (thrown: unknown) => thrown,
  );
  expect(refused).toBeInstanceOf(APICallError);
  expect(refused).toMatchObject({ statusCode: 404, isRetryable: false, message: expect.stringContaining('gpt-5') });
  const long = { model: modelOf(server), ...greedy, prompt: 'x'.repeat(20_000) };
  await expect(generateText(long)).rejects.toMatchObject({ statusCode: 400, isRetryable: false });
  const errors: unknown[] = [];
  const stream = streamText({ ...long, onError: ({ error }) => void errors.push(error) });
  await stream.consumeStream();
  expect(errors).toMatchObject([{ statusCode: 400, message: expect.stringContaining('context') }]);

  // One answer at a time, and none that waits: a second request is told to come again.
  const small = await listen({ models: [{ load: { maxSequences: 1, maxQueue: 0 } }] });
  try {
    const leaving = new AbortController();
    const running = streamText({
      model: modelOf(small),
      ...greedy,
      prompt: '你好',
      providerOptions: {
        chatglm: { response_format: { type: 'json_schema', json_schema: { name: 'list', schema: LONG_LIST } } },
      },
      abortSignal: leaving.signal,
      onAbort: () => {},
    }).textStream[Symbol.asyncIterator]();
    await running.next();
    const busy = { model: modelOf(small), temperature: 0, prompt: '你好' };
    await expect(generateText({ ...busy, maxRetries: 0 })).rejects.toMatchObject({
      statusCode: 429,
      isRetryable: true,
    });
    const tries: number[] = [];
    const watched: typeof fetch = async (...given) => {
      const response = await fetch(...given);
      tries.push(response.status);
      if (response.status === 429) leaving.abort();
      return response;
    };
    const answer = await generateText({ ...busy, model: modelOf(small, 'chatglm-tiny', watched), maxRetries: 2 });
    expect(answer.text).toContain('你好');
    expect(tries).toEqual([429, 200]);
  } finally {
    await small.close();
  }
});
