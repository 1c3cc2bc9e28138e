// What llama.cpp's server is tested for (tools/server/tests/unit), case by case, here. docs/server-compat.md has the table of
// what is done otherwise, and why.
import OpenAI from 'openai';
import { endless, eventsOf, type Json, type Served, serve } from './support/served';

let served: Served;
let client: OpenAI;
beforeAll(async () => {
  served = await serve();
  client = served.client();
});
afterAll(() => served.close());

const book = [
  { role: 'system', content: 'Book' },
  { role: 'user', content: 'What is the best book' },
] as const satisfies OpenAI.ChatCompletionMessageParam[];
const chat = (body: object) => served.post('/chat/completions', body);
const lifeIs = 'I believe the meaning of life is';

describe('chat completion', () => {
  test.each([
    ['a text', 'What is the best book'],
    [
      'parts',
      [
        { type: 'text', text: 'What is' },
        { type: 'text', text: 'the best book' },
      ],
    ],
  ])('answers %s, within max_tokens, with its usage', async (_what, content) => {
    const { status, body } = await chat({
      max_tokens: 8,
      messages: [book[0], { role: 'user', content }],
      ignore_eos: true,
    });
    expect(status).toBe(200);
    expect(body.id).toContain('cmpl');
    expect(body.system_fingerprint).toMatch(/^fp_[0-9a-f]{10}$/);
    expect(body.usage.completion_tokens).toBe(8);
    expect(body.usage.prompt_tokens).toBeGreaterThan(8);
    expect(body.choices[0]).toMatchObject({ message: { role: 'assistant' }, finish_reason: 'length' });
  });

  test('streams: who speaks first, the same id and model all along, the reason last, then the usage', async () => {
    const { body } = await chat({
      max_tokens: 8,
      messages: book,
      stream: true,
      stream_options: { include_usage: true },
      ignore_eos: true,
    });
    const events = eventsOf(body);
    expect(events.pop()).toBe('[DONE]');
    const usage = events.pop();
    expect(usage).toMatchObject({ choices: [], usage: { completion_tokens: 8 } });
    expect(
      new Set([...events, usage].map(({ id, model, system_fingerprint: print }) => `${id} ${model} ${print}`)).size,
    ).toBe(1);
    const deltas = events.map(({ choices }) => choices[0].delta);
    expect(deltas[0].role).toBe('assistant');
    for (const delta of deltas.slice(1)) expect(delta).not.toHaveProperty('role');
    expect(events.map(({ choices }) => choices[0].finish_reason).filter(Boolean)).toEqual(['length']);
    expect(deltas.at(-1)).toEqual({});
  });

  test("OpenAI's client, with a seed and a temperature", async () => {
    const { system_fingerprint: print, choices } = await client.chat.completions.create({
      model: 'chatglm-tiny',
      messages: [...book],
      max_tokens: 8,
      seed: 42,
      temperature: 0.8,
    });
    expect(print).toMatch(/^fp_/);
    expect(choices[0]?.message.content).not.toBeNull();
  });

  test.each<[format: object, expected: RegExp | 400]>([
    [{ type: 'json_object', schema: { const: '42' } }, /^"42"$/],
    [{ type: 'json_object', schema: { type: 'array', items: { type: 'integer' }, maxItems: 3 } }, /^\[[\s\d,-]*\]$/],
    [{ type: 'json_schema', json_schema: { schema: { const: 'foooooo' } } }, /^"foooooo"$/],
    [{ type: 'json_object' }, /^\{/],
    [{ type: 'sound' }, 400],
    [{ type: 'json_object', schema: 123 }, 400],
    [{ type: 'json_object', schema: { type: 123 } }, 400],
    [{ type: 'json_object', schema: { type: 'hiccup' } }, 400],
  ])('response_format %j', async (response_format, expected) => {
    const { status, body } = await chat({ max_tokens: 48, messages: book, response_format });
    if (expected === 400)
      expect({ status, error: typeof body.error.message }).toEqual({ status: 400, error: 'string' });
    else expect(body.choices[0].message.content).toMatch(expected);
  });

  test('json_schema and grammar as fields of their own', async () => {
    const ask = async (fields: object) =>
      (await chat({ max_tokens: 12, messages: book, ...fields })).body.choices[0].message.content;
    expect(await ask({ json_schema: { const: '42' } })).toBe('"42"');
    expect(await ask({ grammar: 'root ::= "a"{5,5}' })).toBe('aaaaa');
  });

  test.each<[messages: unknown]>([
    [null],
    ['string'],
    [[123]],
    [[{}]],
    [[{ role: 123 }]],
    [[{ role: 'system', content: 123 }]],
    [[{ content: 'hello' }]],
    [[{ role: 'system', content: 'test' }, {}]],
    [
      [
        { role: 'user', content: 'test' },
        { role: 'assistant', content: 'test' },
        { role: 'assistant', content: 'test' },
      ],
    ],
  ])('messages that are none: %j', async (messages) => {
    const { status, body } = await chat({ messages });
    expect({ status, type: body.error.type }).toEqual({ status: 400, type: 'invalid_request_error' });
  });

  test('timings_per_token: how long it took, behind the answer', async () => {
    const { body } = await chat({
      max_tokens: 10,
      messages: book,
      stream: true,
      stream_options: { include_usage: true },
      timings_per_token: true,
    });
    const events = eventsOf(body);
    expect(events[0]).not.toHaveProperty('timings');
    const { timings } = events.at(-2);
    expect(timings).toMatchObject({ prompt_per_second: expect.any(Number), predicted_per_second: expect.any(Number) });
    expect(timings.predicted_n).toBeLessThanOrEqual(10);
  });

  test.each([false, true])('log-probabilities: the tokens, joined, are the text; stream %s', async (stream) => {
    const options = { messages: book, temperature: 0, max_tokens: 5, logprobs: true, top_logprobs: 10, stream };
    const { body } = await chat(options);
    const choices: Json[] = stream ? eventsOf(body).flatMap((event) => event.choices ?? []) : body.choices;
    const content = choices.flatMap(({ logprobs }) => logprobs?.content ?? []);
    expect(content.length).toBeGreaterThan(0);
    expect(content.map(({ token }) => token).join('')).toBe(
      choices.map((choice) => (stream ? choice.delta : choice.message).content ?? '').join(''),
    );
    for (const { logprob, bytes, top_logprobs: top } of content) {
      expect(logprob).toBeLessThanOrEqual(0);
      expect(bytes.length).toBeGreaterThan(0);
      expect(top).toHaveLength(10);
    }
  });

  test('logit_bias: what is banned does not come', async () => {
    const words = ['I', 'the', 'The', 'to', 'a', 'an', 'is', 'was', 'and', 'you', 'he', 'she', 'we', 'they', 'it'];
    const { body } = await served.post('/tokenize', { content: ` ${words.join(' ')} ` });
    const logit_bias = Object.fromEntries(body.tokens.map((id: number) => [id, -100]));
    const { choices } = await client.chat.completions.create({
      model: 'chatglm-tiny',
      temperature: 0,
      messages: [...book],
      max_tokens: 64,
      logit_bias,
    });
    const text = choices[0]?.message.content as string;
    expect(text).not.toBe('');
    expect(words.filter((word) => text.includes(` ${word} `))).toEqual([]);
  });

  test.each([false, true])('a context that is exceeded: 400 with the numbers; stream %s', async (stream) => {
    const messages = Array.from({ length: 200 }, () => book[1]);
    const { status, body } = await chat({ messages, stream });
    expect(status).toBe(400);
    expect(body.error).toMatchObject({ code: 'context_length_exceeded', param: 'messages' });
    expect(body.error.message).toMatch(/prompt has \d+ tokens; the context holds 1024/);
  });

  test('several choices', async () => {
    const { body } = await chat({ max_tokens: 8, n: 2, messages: book, ignore_eos: true });
    expect(body.choices).toMatchObject(
      [0, 1].map((index) => ({ index, message: { role: 'assistant' }, finish_reason: 'length' })),
    );
  });

  test('return_progress, cache_prompt, id_slot and the like are taken', async () => {
    const { status } = await chat({
      max_tokens: 2,
      messages: book,
      return_progress: true,
      cache_prompt: false,
      id_slot: 0,
      reasoning_format: 'none',
    });
    expect(status).toBe(200);
  });
});

describe('completion', () => {
  const complete = async (fields: object): Promise<Json> =>
    (await served.post('/v1/completions', { prompt: lifeIs, ...fields })).body;

  test('so many tokens as were asked for, at most', async () => {
    const { choices, timings } = await complete({ n_predict: 8, ignore_eos: true, timings_per_token: true });
    expect(choices[0].finish_reason).toBe('length');
    expect(timings.predicted_n).toBe(8);
    expect(timings.prompt_n + timings.cache_n).toBeGreaterThan(4);
  });

  test('a stream has the text of the whole', async () => {
    const options = { max_tokens: 24, temperature: 0 };
    const { body } = await served.post('/v1/completions', { prompt: lifeIs, stream: true, ...options });
    const texts = eventsOf(body).flatMap((event) => event.choices?.map(({ text }: Json) => text) ?? []);
    expect(texts.join('')).toBe((await complete(options)).choices[0].text);
  });

  test("OpenAI's client, whole and streamed", async () => {
    const options = { model: 'chatglm-tiny', prompt: lifeIs, max_tokens: 8, temperature: 0 };
    const whole = await client.completions.create(options);
    let text = '';
    for await (const { choices } of await client.completions.create({ ...options, stream: true }))
      text += choices[0]?.text ?? '';
    expect(text).toBe(whole.choices[0]?.text);
  });

  test('ends before the texts in stop, which are not part of a stream either', async () => {
    const options = { prompt: '你好', stop: ['没有\n', 'ChatGLM'], max_tokens: 64, temperature: 0, stream: true };
    const { body } = await served.post('/v1/completions', options);
    expect(
      eventsOf(body)
        .flatMap((event) => event.choices?.map(({ text }: Json) => text) ?? [])
        .join(''),
    ).toBe('👋！我是人工智能助手 ');
  });

  test('the same seed, the same text: alone, in company, from the cache or computed', async () => {
    const options = { seed: 42, temperature: 1.2, max_tokens: 16 };
    const alone = (await complete(options)).choices[0].text;
    served.model.clearCache();
    const together = await Promise.all(Array.from({ length: 6 }, () => complete(options)));
    expect(together.map(({ choices }) => choices[0].text)).toEqual(Array(6).fill(alone));
    const cached = await complete(options);
    expect(cached.choices[0].text).toBe(alone);
    expect(cached.usage.prompt_tokens_details.cached_tokens).toBeGreaterThan(0);
  });

  test('other seeds, other texts', async () => {
    const texts = await Promise.all(
      [0, 1, 2, 3].map(async (seed) => (await complete({ seed, temperature: 1.5 })).choices[0].text),
    );
    expect(new Set(texts).size).toBeGreaterThan(1);
  });

  test('a prompt that is too long: 400', async () => {
    const { status, body } = await served.post('/v1/completions', { prompt: lifeIs.repeat(256) });
    expect({ status, code: body.error.code, param: body.error.param }).toEqual({
      status: 400,
      code: 'context_length_exceeded',
      param: 'prompt',
    });
  });

  test('token ids: alone, several, and beside a text', async () => {
    const { body } = await served.post('/tokenize', { content: lifeIs, add_special: true });
    const options = { temperature: 0, max_tokens: 8 };
    const text = (await complete(options)).choices[0].text;
    for (const prompt of [body.tokens, [body.tokens, body.tokens], [body.tokens, lifeIs]]) {
      const { choices } = await complete({ prompt, ...options });
      for (const choice of choices) expect(choice.text).toBe(text);
    }
  });

  test('more requests than sequences: all are answered', async () => {
    const small = await serve({}, { maxSequences: 2 });
    try {
      const ask = (prompt: string) => small.post('/v1/completions', { prompt, max_tokens: 16, ignore_eos: true });
      const answers = await Promise.all(
        ['a very long book', 'a poem', 'What is LLM?', 'The sky', 'music', 'a joke'].map(ask),
      );
      expect(answers.map(({ status, body }) => [status, body.usage.completion_tokens])).toEqual(
        Array(6).fill([200, 16]),
      );
    } finally {
      await small.close();
    }
  });

  test('log-probabilities of so many of the likeliest tokens', async () => {
    const { choices } = await complete({ logprobs: 10, temperature: 0, max_tokens: 5, ignore_eos: true });
    const { tokens, token_logprobs: chosen, top_logprobs: top } = choices[0].logprobs;
    expect(tokens.length).toBeGreaterThan(0);
    for (const logprob of chosen) expect(logprob).toBeLessThanOrEqual(0);
    for (const each of top) expect(Object.keys(each).length).toBeGreaterThanOrEqual(10);
  });

  test('ignore_eos: the answer goes on; without it, it ends', async () => {
    const body = { prompt: '你好', temperature: 0, max_tokens: 40 };
    expect((await complete({ ...body, ignore_eos: true })).choices[0].finish_reason).toBe('length');
    expect((await complete({ ...body, ignore_eos: false })).choices[0].finish_reason).toBe('stop');
  });

  test('a client that does not wait frees its sequence', async () => {
    const left = fetch(`${served.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ prompt: lifeIs, max_tokens: 900, logit_bias: endless(served.model) }),
      signal: AbortSignal.timeout(50),
    });
    await expect(left).rejects.toThrow(/timeout|aborted/);
    await served.idle();
  });
});

describe('context', () => {
  test('without max_tokens an answer ends where the context does', async () => {
    const small = await serve({}, { contextLength: 128 });
    try {
      const { body } = await small.post('/v1/completions', {
        prompt: 'Hi how are you',
        n_predict: -1,
        ignore_eos: true,
      });
      expect(body.choices[0].finish_reason).toBe('length');
      expect(body.usage.total_tokens).toBe(128);
      const fits = await small.post('/v1/completions', { prompt: 'Hi how are you', n_predict: 64, ignore_eos: true });
      expect(fits.body.usage.completion_tokens).toBe(64);
      const streamed = await small.post('/v1/completions', {
        prompt: 'Once',
        n_predict: 256,
        stream: true,
        ignore_eos: true,
      });
      const choices = eventsOf(streamed.body).flatMap((event) => event.choices ?? []);
      expect(choices.at(-1).finish_reason).toBe('length');
      // Nothing is cut out of a conversation that is too long: it is refused.
      const long = await small.post('/v1/completions', {
        prompt: 'Lorem ipsum dolor sit amet. '.repeat(40),
        n_predict: 64,
      });
      expect(long.status).toBe(400);
      expect(long.body.error.message).toMatch(/the context holds 128/);
    } finally {
      await small.close();
    }
  });
});

describe('security', () => {
  const key = 'sk-this-is-the-secret-key';
  let locked: Served;
  beforeAll(async () => {
    locked = await serve({ keys: [{ name: 'anna', key }] });
  });
  afterAll(() => locked.close());
  const body = { prompt: lifeIs, max_tokens: 2 };

  test('/health is there for everybody; /v1/models and the page ask for no more than they need', async () => {
    expect((await fetch(`${locked.url}/health`)).status).toBe(200);
    expect((await fetch(`${locked.url}/v1/models`)).status).toBe(401);
    expect((await fetch(`${locked.url}/v1/models`, { headers: { authorization: `Bearer ${key}` } })).status).toBe(200);
  });

  test.each([[{}], [{ authorization: 'Bearer invalid-key' }], [{ authorization: key }], [{ 'x-api-key': `${key}x` }]])(
    'without the key: %j',
    async (headers) => {
      const { status, body: answer } = await locked.post('/v1/completions', body, headers as Record<string, string>);
      expect({ status, type: answer.error.type }).toEqual({ status: 401, type: 'authentication_error' });
    },
  );

  test("with the key, in OpenAI's header and in Anthropic's", async () => {
    for (const headers of [{ authorization: `Bearer ${key}` }, { 'x-api-key': key }]) {
      expect((await locked.post('/v1/completions', body, headers as Record<string, string>)).status).toBe(200);
    }
    const own = locked.client({ apiKey: key, baseURL: locked.url });
    const { choices } = await own.chat.completions.create({
      model: 'chatglm-tiny',
      messages: [...book],
      max_tokens: 4,
    });
    expect(choices).toHaveLength(1);
    await expect(locked.client({ apiKey: 'x' }).models.list()).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
  });

  test('pages of other origins get nothing unless they were named', async () => {
    const preflight = (url: string) =>
      fetch(`${url}/v1/completions`, {
        method: 'OPTIONS',
        headers: {
          origin: 'https://web.example.com',
          'access-control-request-method': 'POST',
          'access-control-request-headers': 'authorization',
        },
      });
    expect((await preflight(locked.url)).headers.get('access-control-allow-origin')).toBeNull();
    const open = await serve({ cors: ['https://web.example.com'] });
    try {
      const { headers } = await preflight(open.url);
      expect(headers.get('access-control-allow-origin')).toBe('https://web.example.com');
      expect(headers.get('access-control-allow-methods')).toContain('POST');
      expect(headers.get('access-control-allow-credentials')).toBeNull();
    } finally {
      await open.close();
    }
  });

  test.each(['file:///etc/passwd', 'file://../secret.jpeg', 'https://example.com/x.png'])(
    'no image is fetched: %s',
    async (url) => {
      const { status } = await chat({
        max_tokens: 1,
        messages: [
          {
            role: 'user',
            content: [
              { type: 'text', text: 'test' },
              { type: 'image_url', image_url: { url } },
            ],
          },
        ],
      });
      expect(status).toBe(400);
    },
  );
});

describe('tool calls', () => {
  const test1 = {
    type: 'function',
    function: {
      name: 'test',
      description: '',
      parameters: { type: 'object', properties: { success: { type: 'boolean', const: true } }, required: ['success'] },
    },
  };
  const python = {
    type: 'function',
    function: {
      name: 'python',
      description: 'Runs code.',
      parameters: { type: 'object', properties: { code: { type: 'string', maxLength: 40 } }, required: ['code'] },
    },
  };
  const weather = {
    type: 'function',
    function: {
      name: 'get_weather',
      description: '查询某个城市的天气',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
  };
  const coding = [
    { role: 'system', content: 'You are a coding assistant.' },
    { role: 'user', content: 'Write an example' },
  ];

  /** The message of an answer, put together where it was streamed. */
  async function message(body: object, stream: boolean): Promise<Json> {
    const { status, body: answer } = await chat({ temperature: 0, max_tokens: 200, stream, ...body });
    expect(status).toBe(200);
    if (!stream) return { ...answer.choices[0].message, finish_reason: answer.choices[0].finish_reason };
    const whole: Json = { content: null };
    for (const { choices } of eventsOf(answer).filter((event) => event !== '[DONE]')) {
      const { delta, finish_reason: reason } = choices[0];
      if (delta.content) whole.content = (whole.content ?? '') + delta.content;
      for (const { index, id, function: called } of delta.tool_calls ?? []) {
        whole.tool_calls ??= [];
        whole.tool_calls[index] ??= { id, function: { name: '', arguments: '' } };
        const call = whole.tool_calls[index];
        call.function.name += called.name ?? '';
        call.function.arguments += called.arguments ?? '';
      }
      whole.finish_reason = reason ?? whole.finish_reason;
    }
    return whole;
  }

  describe.each([false, true])('stream %s', (stream) => {
    test.each([
      ['a constant', test1, { success: true }],
      ['a text', python, { code: expect.any(String) }],
    ])('a call that is required: %s', async (_what, tool, expected) => {
      const {
        content,
        tool_calls: calls,
        finish_reason,
      } = await message(
        { messages: coding, tools: [tool], tool_choice: 'required', parallel_tool_calls: false },
        stream,
      );
      expect(finish_reason).toBe('tool_calls');
      expect(calls).toHaveLength(1);
      expect(content ?? '').toBe('');
      expect(calls[0]).toMatchObject({ id: expect.stringMatching(/^call_/), function: { name: tool.function.name } });
      expect(JSON.parse(calls[0].function.arguments)).toEqual(expected);
    });

    test.each<[what: string, tools: unknown, choice: unknown]>([
      ['no tools', [], undefined],
      ['tools that are null', null, null],
      ['tool_choice none', [python], 'none'],
    ])('no call: %s', async (_what, tools, tool_choice) => {
      const { content, tool_calls: calls } = await message({ messages: coding, tools, tool_choice }, stream);
      expect(calls).toBeUndefined();
      expect(content).not.toBe('');
    });

    test('the weather', async () => {
      const { tool_calls: calls } = await message(
        { messages: [{ role: 'user', content: '上海今天天气怎么样？' }], tools: [weather] },
        stream,
      );
      expect(calls).toMatchObject([{ function: { name: 'get_weather', arguments: '{"city":"上海"}' } }]);
    });

    test('the result of a call, with the name of its tool', async () => {
      const { content, tool_calls: calls } = await message(
        {
          tools: [weather],
          messages: [
            { role: 'user', content: '上海今天天气怎么样？' },
            {
              role: 'assistant',
              content: null,
              tool_calls: [
                { id: 'call_6789', type: 'function', function: { name: 'get_weather', arguments: '{"city":"上海"}' } },
              ],
            },
            {
              role: 'tool',
              name: 'get_weather',
              content: '{"weather": "雨", "temperature": 18}',
              tool_call_id: 'call_6789',
            },
          ],
        },
        stream,
      );
      expect(calls).toBeUndefined();
      expect(content).toMatch(/^上海现在的天气是.*气温18度。$/);
    });
  });
});

describe('models', () => {
  test('the list has the model that was named, and its aliases', async () => {
    const { data } = (await (await fetch(`${served.url}/v1/models`)).json()) as Json;
    expect(data).toHaveLength(1);
    expect(data[0].id).toBe('chatglm-tiny');
  });

  test('what is not there says so', async () => {
    for (const path of ['/v1/embeddings', '/infill', '/v1/rerank', '/slots', '/props']) {
      const { status, body } = await served.post(path, {});
      expect({ path, status, code: body.error.code }).toEqual({ path, status: 404, code: 'unknown_url' });
    }
  });
});
