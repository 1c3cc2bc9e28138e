import { once } from 'node:events';
import { createServer, request as httpRequest, type IncomingMessage } from 'node:http';
import { defineTool, pythonExecutor } from 'node-chatglm';
import OpenAI from 'openai';
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { buildApp } from '../src/server';
import { endless, eventsOf, type Served, serve, weatherTool } from './support/served';

let served: Served;
let client: OpenAI;
beforeAll(async () => {
  served = await serve();
  client = served.client();
});
afterAll(() => served.close());

const GREETING = '你好👋！我是人工智能助手 ChatGLM-Tiny，很高兴见到你，欢迎问我任何问题。';
const greedy = { model: 'chatglm-tiny', temperature: 0 } as const;
const hello = [{ role: 'user', content: '你好' }] as const satisfies OpenAI.ChatCompletionMessageParam[];
const weather = [
  { role: 'user', content: '北京今天天气怎么样？' },
] as const satisfies OpenAI.ChatCompletionMessageParam[];

/** What the client throws. */
async function refusal(body: object): Promise<InstanceType<typeof OpenAI.APIError>> {
  try {
    await client.chat.completions.create({ ...greedy, messages: [...hello], ...body } as never);
  } catch (error) {
    if (error instanceof OpenAI.APIError) return error;
    throw error;
  }
  throw new Error(`${JSON.stringify(body)} was answered`);
}

describe('an answer', () => {
  test('is what the facade gives, with its tokens counted', async () => {
    const completion = await client.chat.completions.create({ ...greedy, messages: [...hello] });
    expect(completion).toMatchObject({
      object: 'chat.completion',
      model: 'chatglm-tiny',
      choices: [
        {
          index: 0,
          message: { role: 'assistant', content: GREETING, refusal: null },
          finish_reason: 'stop',
          logprobs: null,
        },
      ],
    });
    expect(completion.id).toMatch(/^chatcmpl-\w{24}$/);
    const reply = await served.model.createChat({ temperature: 0 }).send('你好');
    expect(reply.text).toBe(GREETING);
    expect(completion.usage).toMatchObject({
      prompt_tokens: reply.usage.promptTokens,
      completion_tokens: reply.usage.generatedTokens,
      total_tokens: reply.usage.promptTokens + reply.usage.generatedTokens,
      prompt_tokens_details: { cached_tokens: expect.any(Number) },
      completion_tokens_details: { reasoning_tokens: 0 },
    });
  });

  test('streams as the same text, with the usage last', async () => {
    const stream = await client.chat.completions.create({
      ...greedy,
      messages: [...hello],
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks: OpenAI.ChatCompletionChunk[] = [];
    for await (const chunk of stream) chunks.push(chunk);
    expect(chunks[0]?.choices[0]?.delta).toEqual({ role: 'assistant', content: '', refusal: null });
    expect(chunks.map(({ choices }) => choices[0]?.delta.content ?? '').join('')).toBe(GREETING);
    expect(chunks.length).toBeGreaterThan(3);
    expect(chunks.at(-2)).toMatchObject({ choices: [{ delta: {}, finish_reason: 'stop' }], usage: null });
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: 7, completion_tokens: 14 } });
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
  });

  test('as raw events: a content type, one chunk a line, [DONE] last', async () => {
    const { status, headers, body } = await served.post('/v1/chat/completions', {
      ...greedy,
      messages: hello,
      stream: true,
    });
    expect(status).toBe(200);
    expect(headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    const events = eventsOf(body);
    expect(events.at(-1)).toBe('[DONE]');
    for (const event of events.slice(0, -1)) expect(event).not.toHaveProperty('usage');
  });

  test('ends at max_completion_tokens, or before it at max_tokens of older clients', async () => {
    for (const limit of [
      { max_completion_tokens: 5 },
      { max_tokens: 5 },
      { max_tokens: 200, max_completion_tokens: 5 },
    ]) {
      const { choices, usage } = await client.chat.completions.create({ ...greedy, messages: [...hello], ...limit });
      expect(choices[0]?.finish_reason).toBe('length');
      expect(usage?.completion_tokens).toBe(5);
      expect(GREETING.startsWith(choices[0]?.message.content as string)).toBe(true);
    }
  });

  test('ends before a stop sequence, in a stream as well', async () => {
    for (const stop of ['，很高兴', ['没有', '，很高兴']]) {
      const { choices } = await client.chat.completions.create({ ...greedy, messages: [...hello], stop });
      expect(choices[0]).toMatchObject({
        message: { content: '你好👋！我是人工智能助手 ChatGLM-Tiny' },
        finish_reason: 'stop',
      });
    }
    const stream = client.chat.completions.stream({ ...greedy, messages: [...hello], stop: '，很高兴' });
    expect(await stream.finalContent()).toBe('你好👋！我是人工智能助手 ChatGLM-Tiny');
  });

  test('takes developer and system messages, parts, null contents and names', async () => {
    const { choices } = await client.chat.completions.create({
      ...greedy,
      messages: [
        { role: 'developer', content: 'Answer briefly.' },
        { role: 'user', name: 'anna', content: [{ type: 'text', text: '你好' }] },
        { role: 'assistant', content: null, refusal: 'no' },
        {
          role: 'user',
          content: [
            { type: 'text', text: '你' },
            { type: 'text', text: '好' },
          ],
        },
      ],
      max_tokens: 40,
    });
    expect(choices[0]?.message.content).not.toBe('');
    // Who only instructs the model is answered, too.
    const only = await client.chat.completions.create({
      ...greedy,
      messages: [{ role: 'system', content: '你好' }],
      max_tokens: 5,
    });
    expect(only.usage?.completion_tokens).toBeGreaterThan(0);
  });

  test('fields that make no difference are taken: of OpenAI, of vLLM, of llama.cpp', async () => {
    const { choices } = await client.chat.completions.create({
      ...greedy,
      messages: [...hello],
      user: 'anna',
      metadata: { a: 'b' },
      store: true,
      reasoning_effort: 'low',
      parallel_tool_calls: true,
      verbosity: 'low',
      prompt_cache_key: 'x',
      service_tier: 'auto',
      logit_bias: null,
      tools: [],
      ...({ cache_prompt: true, chat_template_kwargs: { enable_thinking: false }, top_k: -1, min_p: 0 } as object),
    });
    expect(choices[0]?.message.content).toBe(GREETING);
  });

  test('a seed gives the same answer again, and another seed another', async () => {
    const ask = async (seed: number) => {
      const { choices } = await client.chat.completions.create({
        messages: [{ role: 'user', content: `[seeds] ${'今天天气很好。'.repeat(20)}` }],
        model: 'chatglm-tiny',
        temperature: 2,
        seed,
        max_tokens: 30,
      });
      return choices[0]?.message.content;
    };
    const [a, b, c, negative] = [await ask(7), await ask(7), await ask(8), await ask(-7)];
    expect(a).toBe(b);
    expect(new Set([a, c, negative]).size).toBe(3);
  });

  test('logit_bias and penalties reach the sampling', async () => {
    const [first] = served.model.tokenizer.encode('你好');
    const { choices } = await client.chat.completions.create({
      ...greedy,
      messages: [...hello],
      logit_bias: { [String(first)]: -100 },
      presence_penalty: 0.5,
      frequency_penalty: 0.5,
      max_tokens: 10,
    });
    expect(choices[0]?.message.content).not.toMatch(/^你好/);
  });
});

describe('several choices', () => {
  test('come in their order, with seeds of their own, and share the prompt', async () => {
    const messages = [{ role: 'user' as const, content: `[choices] ${'今天天气很好。'.repeat(20)}` }];
    const sampling = { model: 'chatglm-tiny', messages, temperature: 1.5, max_tokens: 12 };
    const { choices, usage } = await client.chat.completions.create({ ...sampling, n: 4, seed: 11 });
    expect(choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
    expect(new Set(choices.map(({ message }) => message.content)).size).toBeGreaterThan(1);
    const alone = await client.chat.completions.create({ ...sampling, seed: 13 });
    expect(choices[2]?.message.content).toBe(alone.choices[0]?.message.content);
    // The prompt counts once, and nobody had computed it before.
    expect(usage?.prompt_tokens).toBe(alone.usage?.prompt_tokens);
    expect(usage?.prompt_tokens_details?.cached_tokens).toBeLessThan(32);
    expect(usage?.completion_tokens).toBeGreaterThan(alone.usage?.completion_tokens as number);
  });

  test('stream mixed, each with its end', async () => {
    const stream = await client.chat.completions.create({
      model: 'chatglm-tiny',
      messages: [...hello],
      n: 3,
      seed: 1,
      temperature: 1.5,
      stream: true,
    });
    const texts = ['', '', ''];
    const ends: (string | null)[] = [null, null, null];
    const order: number[] = [];
    for await (const { choices } of stream) {
      for (const { index, delta, finish_reason: end } of choices) {
        expect(ends[index]).toBeNull();
        texts[index] += delta.content ?? '';
        ends[index] = end;
        order.push(index);
      }
    }
    expect(ends).toEqual(['stop', 'stop', 'stop']);
    const whole = await client.chat.completions.create({
      model: 'chatglm-tiny',
      messages: [...hello],
      n: 3,
      seed: 1,
      temperature: 1.5,
    });
    expect(texts).toEqual(whole.choices.map(({ message }) => message.content));
    // Not one after the other.
    expect(order.lastIndexOf(0)).toBeGreaterThan(order.indexOf(2));
  });
});

describe('log-probabilities', () => {
  test('the tokens, joined, are the text, and so are their bytes', async () => {
    const { choices } = await client.chat.completions.create({
      ...greedy,
      messages: [...hello],
      logprobs: true,
      top_logprobs: 3,
    });
    const content = choices[0]?.logprobs?.content ?? [];
    expect(content.map(({ token }) => token).join('')).toBe(GREETING);
    expect(Buffer.from(content.flatMap(({ bytes }) => bytes ?? [])).toString()).toBe(GREETING);
    for (const { token, logprob, top_logprobs: top } of content) {
      expect(top).toHaveLength(3);
      // The greedy choice is the likeliest.
      expect(top[0]).toMatchObject({ token, logprob });
      expect(logprob).toBeLessThanOrEqual(0);
    }
  });

  test('a stream has the same ones, with a stop sequence as well', async () => {
    for (const stop of [undefined, '人工智能助手 Chat']) {
      const options = { ...greedy, messages: [...hello], logprobs: true, ...(stop && { stop }) };
      const whole = (await client.chat.completions.create(options)).choices[0];
      const tokens: unknown[] = [];
      let text = '';
      for await (const { choices } of await client.chat.completions.create({ ...options, stream: true })) {
        tokens.push(...(choices[0]?.logprobs?.content ?? []));
        text += choices[0]?.delta.content ?? '';
      }
      expect(tokens).toEqual(whole?.logprobs?.content);
      expect(text).toBe(whole?.message.content);
    }
  });

  test('bytes of a character that no piece has come one by one', async () => {
    const { choices } = await client.chat.completions.create({
      ...greedy,
      messages: [...hello],
      logprobs: true,
      ...({ response_format: { type: 'regex', pattern: 'a🦋b' } } as object),
    });
    expect(choices[0]?.message.content).toBe('a🦋b');
    const content = choices[0]?.logprobs?.content ?? [];
    expect(content.flatMap(({ bytes }) => bytes ?? [])).toEqual([...Buffer.from('a🦋b')]);
    expect(content.length).toBeGreaterThan(4);
  });
});

describe('tools', () => {
  test('to the end: the call, its result, the answer', async () => {
    const tools = [weatherTool] as unknown as OpenAI.ChatCompletionTool[];
    const first = await client.chat.completions.create({ ...greedy, messages: [...weather], tools });
    const { message, finish_reason } = first.choices[0] as OpenAI.ChatCompletion.Choice;
    expect(finish_reason).toBe('tool_calls');
    expect(message.content).toBeNull();
    expect(message.tool_calls).toMatchObject([
      { id: expect.stringMatching(/^call_\w{24}$/), type: 'function', function: { name: 'get_weather' } },
    ]);
    const call = message.tool_calls?.[0] as OpenAI.ChatCompletionMessageFunctionToolCall;
    expect(JSON.parse(call.function.arguments)).toEqual({ city: '北京' });
    const second = await client.chat.completions.create({
      ...greedy,
      tools,
      messages: [
        ...weather,
        message,
        { role: 'tool', tool_call_id: call.id, content: '{"weather": "晴", "temperature": 21}' },
      ],
    });
    expect(second.choices[0]).toMatchObject({
      finish_reason: 'stop',
      message: { content: '北京现在的天气是晴，气温21度。' },
    });
  });

  test('results of several calls of one message go to their calls, in any order', async () => {
    const call = (id: string, city: string) => ({
      id,
      type: 'function' as const,
      function: { name: 'get_weather', arguments: JSON.stringify({ city }) },
    });
    const { choices } = await client.chat.completions.create({
      ...greedy,
      tools: [weatherTool] as unknown as OpenAI.ChatCompletionTool[],
      messages: [
        { role: 'user', content: '北京和上海今天天气怎么样？' },
        { role: 'assistant', tool_calls: [call('a', '北京'), call('b', '上海')] },
        { role: 'tool', tool_call_id: 'b', content: '{"weather": "雨", "temperature": 18}' },
        { role: 'tool', tool_call_id: 'a', content: [{ type: 'text', text: '{"weather": "晴", "temperature": 21}' }] },
      ],
      max_tokens: 60,
    });
    expect(choices[0]?.finish_reason).toMatch(/stop|tool_calls|length/);
  });

  test('a streamed call comes as deltas, which the client puts together', async () => {
    const stream = client.chat.completions.stream({
      ...greedy,
      messages: [...weather],
      tools: [weatherTool] as unknown as OpenAI.ChatCompletionTool[],
    });
    const deltas: OpenAI.ChatCompletionChunk.Choice.Delta.ToolCall[] = [];
    for await (const { choices } of stream) deltas.push(...(choices[0]?.delta.tool_calls ?? []));
    expect(deltas[0]).toMatchObject({
      index: 0,
      id: expect.stringMatching(/^call_/),
      type: 'function',
      function: { name: 'get_weather', arguments: '' },
    });
    expect(deltas.slice(1).every(({ id, index }) => id === undefined && index === 0)).toBe(true);
    expect(JSON.parse(deltas.map(({ function: f }) => f?.arguments).join(''))).toEqual({ city: '北京' });
    const { choices } = await stream.finalChatCompletion();
    expect(choices[0]?.finish_reason).toBe('tool_calls');
  });

  test('the client runs the loop by itself', async () => {
    const asked: string[] = [];
    const runner = client.chat.completions.runTools({
      ...greedy,
      messages: [...weather],
      tools: [
        zodFunction({
          name: 'get_weather',
          description: '查询某个城市的天气',
          parameters: z.object({ city: z.string() }),
          function: ({ city }) => {
            asked.push(city);
            return { weather: '晴', temperature: 21 };
          },
        }),
      ],
    });
    expect(await runner.finalContent()).toBe('北京现在的天气是晴，气温21度。');
    expect(asked).toEqual(['北京']);
  });

  test('tool_choice: none, required, by name, among those that are allowed', async () => {
    const tools = [weatherTool] as unknown as OpenAI.ChatCompletionTool[];
    const other = {
      type: 'function',
      function: {
        name: 'get_time',
        parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
      },
    } as const;
    const ask = async (
      tool_choice: OpenAI.ChatCompletionToolChoiceOption,
      messages: OpenAI.ChatCompletionMessageParam[] = [...hello],
    ) =>
      (
        await client.chat.completions.create({
          ...greedy,
          messages,
          tools: [...tools, other],
          tool_choice,
          max_tokens: 60,
        })
      ).choices[0]?.message;
    expect((await ask('none', [...weather]))?.tool_calls).toBeUndefined();
    expect((await ask('required'))?.tool_calls).toHaveLength(1);
    const byName = await ask({ type: 'function', function: { name: 'get_time' } });
    expect(byName?.tool_calls).toMatchObject([{ function: { name: 'get_time' } }]);
    const allowed = await ask({
      type: 'allowed_tools',
      allowed_tools: { mode: 'required', tools: [{ type: 'function', function: { name: 'get_time' } }] },
    });
    expect(allowed?.tool_calls).toMatchObject([{ function: { name: 'get_time' } }]);
  });

  test('functions of older clients', async () => {
    const functions = [weatherTool.function] as unknown as OpenAI.ChatCompletionCreateParams.Function[];
    const first = await client.chat.completions.create({ ...greedy, messages: [...weather], functions });
    const { message, finish_reason } = first.choices[0] as OpenAI.ChatCompletion.Choice;
    expect(finish_reason).toBe('function_call');
    expect(message.function_call).toEqual({ name: 'get_weather', arguments: '{"city":"北京"}' });
    const second = await client.chat.completions.create({
      ...greedy,
      functions,
      messages: [
        ...weather,
        message,
        { role: 'function', name: 'get_weather', content: '{"weather": "晴", "temperature": 21}' },
      ],
    });
    expect(second.choices[0]?.message.content).toBe('北京现在的天气是晴，气温21度。');
    const { body } = await served.post('/v1/chat/completions', {
      ...greedy,
      messages: weather,
      functions,
      stream: true,
    });
    const deltas = eventsOf(body).flatMap((event) => event.choices?.[0]?.delta.function_call ?? []);
    expect(deltas).toEqual([{ name: 'get_weather', arguments: '' }, { arguments: '{"city":"北京"}' }]);
  });
});

describe('structured output', () => {
  const person = z.object({ name: z.string(), age: z.number().int(), tags: z.array(z.string()).max(2) });

  test('the parsed value of a zod schema, whole and streamed', async () => {
    const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: 'Anna is 30 years old.' }];
    const format = zodResponseFormat(person, 'person');
    const { choices } = await client.chat.completions.parse({
      ...greedy,
      messages,
      response_format: format,
      max_tokens: 200,
    });
    expect(person.parse(choices[0]?.message.parsed)).toEqual(choices[0]?.message.parsed);
    const stream = client.chat.completions.stream({ ...greedy, messages, response_format: format, max_tokens: 200 });
    const final = await stream.finalChatCompletion();
    expect(final.choices[0]?.message.parsed).toEqual(choices[0]?.message.parsed);
  });

  test('json_object, regular expressions and grammars', async () => {
    const ask = async (fields: object) =>
      (
        (await client.chat.completions.create({
          ...greedy,
          messages: [...hello],
          max_tokens: 60,
          ...fields,
        } as never)) as OpenAI.ChatCompletion
      ).choices[0]?.message.content as string;
    const object = JSON.parse(await ask({ response_format: { type: 'json_object' } }));
    expect(typeof object).toBe('object');
    expect(await ask({ response_format: { type: 'regex', pattern: '[0-9]{3}-[a-f]{2}' } })).toMatch(
      /^[0-9]{3}-[a-f]{2}$/,
    );
    expect(await ask({ response_format: { type: 'grammar', grammar: 'root ::= "yes" | "no"' } })).toMatch(/^(yes|no)$/);
    // llama.cpp's own fields.
    expect(await ask({ grammar: 'root ::= "yes" | "no"' })).toMatch(/^(yes|no)$/);
    expect(JSON.parse(await ask({ json_schema: { const: 5 } }))).toBe(5);
    expect(await ask({ response_format: { type: 'text' } })).toBe(GREETING);
  });
});

describe('tools that the server runs', () => {
  let own: Served;
  beforeAll(async () => {
    const tool = defineTool({
      ...weatherTool.function,
      execute: () => ({ weather: '晴', temperature: 21 }),
    } as never);
    own = await serve({ tools: [tool] });
  });
  afterAll(() => own.close());

  test('each step is told as it happens, and the messages last', async () => {
    const { body } = await own.post('/v1/chat/completions', {
      ...greedy,
      messages: weather,
      stream: true,
      stream_options: { include_usage: true },
      chatglm: { run_tools: true, timings: true },
    });
    const events = eventsOf(body);
    const steps = events.flatMap((event) => event.chatglm ?? []);
    expect(steps).toMatchObject([
      { type: 'tool-call', index: 0, call: { name: 'get_weather', arguments: '{"city":"北京"}' } },
      { type: 'tool-result', index: 0, result: { name: 'get_weather', ok: true } },
      { type: 'messages', index: 0 },
    ]);
    expect(events.map((event) => event.choices?.[0]?.delta.content ?? '').join('')).toBe(
      '北京现在的天气是晴，气温21度。',
    );
    expect(events.at(-2)).toMatchObject({
      choices: [],
      timings: { predicted_n: expect.any(Number), predicted_per_second: expect.any(Number) },
    });
    // The messages go on where the answer ended.
    const { messages, context_tokens: taken } = steps.at(-1);
    expect(taken).toBeLessThan(events.at(-2).usage.total_tokens);
    expect(messages.map(({ role }: { role: string }) => role)).toEqual(['assistant', 'tool', 'assistant']);
    const next = await own.post('/v1/chat/completions', {
      ...greedy,
      messages: [...weather, ...messages, { role: 'user', content: '谢谢' }],
      max_tokens: 20,
    });
    expect(next.status).toBe(200);
    // The next prompt has what was taken, a question, and what the model is told of the tools.
    expect(next.body.usage.prompt_tokens).toBeGreaterThan(50);
  });

  test('code for the interpreter runs, and its steps are told', async () => {
    const coding = await serve({ interpreter: pythonExecutor() });
    try {
      const body = { ...greedy, messages: [{ role: 'user', content: '求1到100的和' }], chatglm: { run_tools: true } };
      const whole = await coding.post('/v1/chat/completions', body);
      expect(whole.body.choices[0].message).toMatchObject({
        content: expect.stringContaining('1到100的和是5050。'),
        chatglm: { steps: [{ type: 'code', result: { status: 'ok', text: expect.stringMatching(/5050/) } }] },
      });
      const streamed = await coding.post('/v1/chat/completions', { ...body, stream: true });
      const steps = eventsOf(streamed.body).flatMap((event) => event.chatglm ?? []);
      expect(steps.map(({ type }) => type)).toEqual(['code', 'code-result', 'messages']);
      expect(steps[0].code).toContain('range');
    } finally {
      await coding.close();
    }
  });

  test('without the field the caller runs tools, and nothing runs here', async () => {
    const { body } = await own.post('/v1/chat/completions', { ...greedy, messages: weather, tools: [weatherTool] });
    expect(body.choices[0].finish_reason).toBe('tool_calls');
    expect(body.choices[0].message).not.toHaveProperty('chatglm');
  });
});

describe('what is refused', () => {
  const call = { id: 'call_1', type: 'function', function: { name: 'get_weather', arguments: '{}' } };
  test.each<[what: string, body: object, param: string | null, message: RegExp]>([
    ['a temperature out of range', { temperature: 3 }, 'temperature', /<= 2, got 3/],
    ['a number as a text', { temperature: '1' }, 'temperature', /expected a number, got a string/],
    ['top_p', { top_p: -0.1 }, 'top_p', />= 0/],
    ['penalties', { presence_penalty: 2.1 }, 'presence_penalty', /<= 2/],
    ['no tokens', { max_tokens: 0 }, 'max_tokens', />= 1/],
    ['no choice', { n: 0 }, 'n', />= 1/],
    ['too many choices', { n: 129 }, 'n', /<= 128/],
    ['a bias out of range', { logit_bias: { 5: 101 } }, 'logit_bias[5]', /<= 100/],
    ['a bias of no token', { logit_bias: { 999999: 1 } }, 'logit_bias', /token id/],
    ['a bias of no number', { logit_bias: { x: 1 } }, 'logit_bias', /token id/],
    ['too many logprobs', { logprobs: true, top_logprobs: 21 }, 'top_logprobs', /<= 20/],
    ['top_logprobs alone', { top_logprobs: 2 }, 'top_logprobs', /logprobs/],
    ['stream_options alone', { stream_options: { include_usage: true } }, 'stream_options', /stream/],
    ['a stop of numbers', { stop: [1] }, 'stop', /strings/],
    ['an unknown field', { temperatur: 1 }, 'temperatur', /Unrecognized request argument supplied: temperatur/],
    ['no messages', { messages: [] }, 'messages', /messages/],
    ['messages that are none', { messages: 'x' }, 'messages', /expected an array/],
    ['an unknown role', { messages: [{ role: 'bot', content: 'x' }] }, 'messages[0].role', /role/],
    [
      'an image',
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:' } }] }] },
      'messages[0].content[0].type',
      /text/,
    ],
    [
      'sound in',
      { messages: [{ role: 'user', content: [{ type: 'input_audio', input_audio: {} }] }] },
      'messages[0].content[0].type',
      /text/,
    ],
    ['sound out', { modalities: ['text', 'audio'] }, 'modalities', /audio/],
    ['a voice', { audio: { voice: 'alloy' } }, 'audio', /audio/],
    ['web search', { web_search_options: {} }, 'web_search_options', /search/],
    [
      'an answer to go on with',
      { messages: [...hello, { role: 'assistant', content: 'x' }] },
      'messages[1].role',
      /assistant/,
    ],
    [
      'a result without a call',
      { messages: [...hello, { role: 'tool', tool_call_id: 'call_1', content: 'x' }] },
      'messages[1].tool_call_id',
      /answers no call/,
    ],
    [
      'a result of another call',
      {
        messages: [
          ...hello,
          { role: 'assistant', tool_calls: [call] },
          { role: 'tool', tool_call_id: 'call_2', content: 'x' },
        ],
      },
      'messages[2].tool_call_id',
      /"call_1"/,
    ],
    [
      'two results of a call',
      {
        messages: [
          ...hello,
          { role: 'assistant', tool_calls: [call] },
          ...[1, 2].map(() => ({ role: 'tool', tool_call_id: 'call_1', content: 'x' })),
        ],
      },
      'messages[3].tool_call_id',
      /already/,
    ],
    [
      'a call without a result',
      { messages: [...hello, { role: 'assistant', tool_calls: [call] }, ...hello] },
      'messages[1].tool_calls',
      /"call_1"/,
    ],
    [
      'a call without a result at the end',
      { messages: [...hello, { role: 'assistant', tool_calls: [call] }] },
      'messages[1].tool_calls',
      /"call_1"/,
    ],
    ['a tool of another type', { tools: [{ type: 'custom', custom: { name: 'x' } }] }, 'tools[0].type', /function/],
    ['a tool without a name', { tools: [{ type: 'function', function: {} }] }, 'tools[0].function.name', /Missing/],
    [
      'a choice of no tool',
      { tools: [weatherTool], tool_choice: { type: 'function', function: { name: 'x' } } },
      'tool_choice',
      /"x"/,
    ],
    ['a choice that is none', { tools: [weatherTool], tool_choice: 'always' }, 'tool_choice', /"always"/],
    ['required without tools', { tool_choice: 'required' }, 'tool_choice', /tools/],
    [
      'a schema that is none',
      { response_format: { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'nope' } } } },
      'response_format.json_schema.schema',
      /nope/,
    ],
    ['a format that is none', { response_format: { type: 'xml' } }, 'response_format.type', /xml/],
    ['a grammar that is none', { grammar: 'root ::= (' }, null, /./],
    ['a field of the extension', { chatglm: { run: 1 } }, 'chatglm.run', /Unrecognized/],
  ])('%s', async (_what, body, param, message) => {
    const error = await refusal(body);
    expect(error).toBeInstanceOf(OpenAI.BadRequestError);
    expect(error).toMatchObject({
      status: 400,
      type: 'invalid_request_error',
      message: expect.stringMatching(message),
    });
    if (param !== null) expect(error.param).toBe(param);
  });

  test('a model that there is not', async () => {
    const error = await refusal({ model: 'gpt-4' });
    expect(error).toBeInstanceOf(OpenAI.NotFoundError);
    expect(error).toMatchObject({ code: 'model_not_found', param: 'model' });
  });

  test('a conversation that does not fit, also where a stream was asked for', async () => {
    for (const stream of [false, true]) {
      const error = await refusal({ messages: [{ role: 'user', content: 'too long '.repeat(2000) }], stream });
      expect(error).toBeInstanceOf(OpenAI.BadRequestError);
      expect(error).toMatchObject({ code: 'context_length_exceeded', param: 'messages' });
    }
  });

  test('what is no JSON', async () => {
    const response = await fetch(`${served.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"messages": [',
    });
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { type: 'invalid_request_error' } });
  });
});

describe('when the client goes', () => {
  /** Steps of the model from the moment at which the server learned that a client had gone. */
  function stepsAfterClose(on: Served): { count(): number | undefined } {
    let atClose: number | undefined;
    on.app.server.once('request', (_request, response) => {
      response.once('close', () => setImmediate(() => (atClose = on.model.stats().steps)));
    });
    return { count: () => (atClose === undefined ? undefined : on.model.stats().steps - atClose) };
  }

  test.each(['streamed', 'whole'])('its sequence ends within a step: %s', async (kind) => {
    const watch = stepsAfterClose(served);
    const controller = new AbortController();
    const body = { ...greedy, messages: [...hello], logit_bias: endless(served.model), max_tokens: 900 };
    if (kind === 'streamed') {
      const stream = await client.chat.completions.create({ ...body, stream: true }, { signal: controller.signal });
      let count = 0;
      for await (const { choices } of stream) if (choices[0]?.delta.content && ++count === 5) controller.abort();
    } else {
      const answer = client.chat.completions.create(body, { signal: controller.signal });
      answer.catch(() => {});
      while (served.model.stats().activeSequences === 0) await new Promise(setImmediate);
      controller.abort();
      await expect(answer).rejects.toBeInstanceOf(OpenAI.APIUserAbortError);
    }
    while (watch.count() === undefined) await new Promise(setImmediate);
    await served.idle();
    expect(watch.count()).toBeLessThanOrEqual(3);
  });

  test('choices and a request that waits end as well', async () => {
    const small = await serve({}, { maxSequences: 1 });
    try {
      const controller = new AbortController();
      const body = { ...greedy, messages: [...hello], logit_bias: endless(small.model), max_tokens: 900 };
      const running = small.client().chat.completions.create({ ...body, n: 3 }, { signal: controller.signal });
      running.catch(() => {});
      while (small.model.stats().queuedRequests < 2) await new Promise(setImmediate);
      controller.abort();
      await small.idle();
      await expect(running).rejects.toBeInstanceOf(OpenAI.APIUserAbortError);
      const { choices } = await small.client().chat.completions.create({ ...greedy, messages: [...hello] });
      expect(choices[0]?.message.content).toBe(GREETING);
    } finally {
      await small.close();
    }
  });

  test("the client's own time limit", async () => {
    const slow = served.client({ timeout: 50 });
    const answer = slow.chat.completions.create({
      ...greedy,
      messages: [...hello],
      logit_bias: endless(served.model),
      max_tokens: 900,
      n: 8,
    });
    // Jest's realm hides from the client that it was its own time limit: it is APIConnectionTimeoutError elsewhere.
    await expect(answer).rejects.toBeInstanceOf(OpenAI.APIConnectionError);
    await served.idle();
  });
});

test('a client that reads slowly gets all of it, and holds nobody up', async () => {
  const [n, max_tokens] = [8, 160];
  const request = httpRequest(`${served.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
  });
  const body = { ...greedy, messages: hello, n, max_tokens, logprobs: true, top_logprobs: 20, ignore_eos: true };
  request.end(JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }));
  const [response] = (await once(request, 'response')) as [IncomingMessage];
  response.pause();
  // Others are answered meanwhile, and the model finishes what nobody reads.
  const { choices } = await client.chat.completions.create({ ...greedy, messages: [...hello] });
  expect(choices[0]?.message.content).toBe(GREETING);
  await served.idle();
  const parts: Buffer[] = [];
  for await (const part of response) parts.push(part as Buffer);
  const events = eventsOf(Buffer.concat(parts).toString());
  expect(events.at(-1)).toBe('[DONE]');
  expect(events.at(-2).usage.completion_tokens).toBe(n * max_tokens);
  const texts = Array<string>(n).fill('');
  const tokens = Array<string>(n).fill('');
  for (const { index, delta, logprobs } of events.flatMap((event) => event.choices ?? [])) {
    texts[index] += delta.content ?? '';
    for (const { token, top_logprobs: top } of logprobs?.content ?? []) {
      tokens[index] += token;
      expect(top).toHaveLength(20);
    }
  }
  expect(new Set(texts).size).toBe(1);
  expect(texts[0]?.startsWith(GREETING)).toBe(true);
  expect(tokens).toEqual(texts);
});

test('a failure behind the first event is an event, which the client throws', async () => {
  const lost = await serve();
  try {
    const body = { ...greedy, messages: [...hello], logit_bias: endless(lost.model), max_tokens: 900 };
    const stream = await lost.client().chat.completions.create({ ...body, stream: true });
    let count = 0;
    const read = async () => {
      for await (const _ of stream) if (++count === 3) void lost.model.dispose();
    };
    await expect(read()).rejects.toMatchObject({ code: 'shutting_down', type: 'server_error' });
    // Those that come later learn of it by their status.
    await expect(lost.client().chat.completions.create({ ...greedy, messages: [...hello] })).rejects.toMatchObject({
      status: 503,
    });
  } finally {
    await lost.close();
  }
});

describe('a server that is busy', () => {
  test('more choices than ever fit are no reason to try again', async () => {
    const app = buildApp({ models: [{ id: 'small', load: { device: 'cpu', maxSequences: 2, maxQueue: 1 } }] });
    const ask = async (n: number) =>
      await app.inject({ method: 'POST', url: '/v1/chat/completions', payload: { messages: hello, n, max_tokens: 2 } });
    try {
      expect((await ask(3)).statusCode).toBe(200);
      const refused = await ask(4);
      expect(refused.statusCode).toBe(400);
      expect(refused.json().error).toMatchObject({ param: 'n', message: expect.stringContaining('takes 3 choices') });
    } finally {
      await app.close();
    }
  });

  test('429 with a time to wait, and the client tries again until there is room', async () => {
    const small = await serve({}, { maxSequences: 1, maxQueue: 0 });
    try {
      const controller = new AbortController();
      const long = { ...greedy, messages: [...hello], logit_bias: endless(small.model), max_tokens: 900 };
      const stream = await small
        .client()
        .chat.completions.create({ ...long, stream: true }, { signal: controller.signal });
      const iterator = stream[Symbol.asyncIterator]();
      await iterator.next();
      const busy = small.client().chat.completions.create({ ...greedy, messages: [...hello] });
      await expect(busy).rejects.toMatchObject({ status: 429, code: 'queue_full', type: 'rate_limit_error' });
      await expect(busy).rejects.toBeInstanceOf(OpenAI.RateLimitError);
      // The other client goes as soon as this one has been refused once.
      let refused = 0;
      const patient = small.client({
        maxRetries: 5,
        fetch: async (url, init) => {
          const response = await fetch(url, init);
          if (response.status === 429 && refused++ === 0) {
            expect(response.headers.get('retry-after')).toBe('1');
            controller.abort();
          }
          return response;
        },
      });
      const { choices } = await patient.chat.completions.create({ ...greedy, messages: [...hello] });
      expect(choices[0]?.message.content).toBe(GREETING);
      expect(refused).toBeGreaterThan(0);
    } finally {
      await small.close();
    }
  });

  test('503 from a balancer before the server, then the answer', async () => {
    let failures = 2;
    const proxy = createServer((request, response) => {
      if (failures-- > 0) {
        response.writeHead(503, { 'retry-after': '0' }).end('{}');
        return;
      }
      response.writeHead(307, { location: served.url + request.url }).end();
    });
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    try {
      const { port } = proxy.address() as { port: number };
      const patient = served.client({ baseURL: `http://127.0.0.1:${port}/v1`, maxRetries: 3 });
      const { choices } = await patient.chat.completions.create({ ...greedy, messages: [...hello] });
      expect(choices[0]?.message.content).toBe(GREETING);
      expect(failures).toBeLessThan(0);
    } finally {
      proxy.closeAllConnections();
      proxy.close();
    }
  });
});

test('64 streams at once are each what they would be alone', async () => {
  const questions = [
    '你好',
    '北京今天天气怎么样？',
    '求1到100的和',
    'Hello',
    '谢谢',
    '再见',
    'What is your name?',
    '你叫什么名字？',
  ];
  const ask = async (question: string) => {
    const stream = client.chat.completions.stream({
      ...greedy,
      messages: [{ role: 'user', content: question }],
      max_tokens: 64,
    });
    return await stream.finalContent();
  };
  const alone = new Map<string, unknown>();
  for (const question of questions) alone.set(question, await ask(question));
  const asked = Array.from({ length: 64 }, (_, i) => questions[i % questions.length] as string);
  const together = await Promise.all(asked.map(ask));
  expect(together).toEqual(asked.map((question) => alone.get(question)));
});
