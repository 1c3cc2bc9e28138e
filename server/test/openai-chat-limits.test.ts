import { once } from 'node:events';
import { createServer, request as httpRequest, type IncomingMessage } from 'node:http';
import OpenAI from 'openai';
import { buildApp } from '../src/server';
import { endless, eventsOf, GREETING, greedy, hello, type Served, serve, weatherTool } from './support/served';

// What chat completions refuse, and what happens when clients go, wait, read slowly or come all at once.

let served: Served;
let client: OpenAI;
beforeAll(async () => {
  served = await serve();
  client = served.client();
});
afterAll(() => served.close());

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
