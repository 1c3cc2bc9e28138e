import { defineTool, pythonExecutor } from 'node-chatglm';
import type OpenAI from 'openai';
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { eventsOf, GREETING, greedy, hello, type Served, serve, weatherTool } from './support/served';

// What chat completions answer. What they refuse, and how they behave under load, is in openai-chat-limits.test.ts.

let served: Served;
let client: OpenAI;
beforeAll(async () => {
  served = await serve();
  client = served.client();
});
afterAll(() => served.close());

const weather = [
  { role: 'user', content: '北京今天天气怎么样？' },
] as const satisfies OpenAI.ChatCompletionMessageParam[];

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
