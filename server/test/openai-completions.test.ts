import OpenAI from 'openai';
import { endless, eventsOf, type Served, serve } from './support/served';

let served: Served;
let client: OpenAI;
beforeAll(async () => {
  served = await serve();
  client = served.client();
});
afterAll(() => served.close());

const greedy = { model: 'chatglm-tiny', temperature: 0 } as const;
const HELLO = '👋！我是人工智能助手 ChatGLM-Tiny，很高兴见到你，欢迎问我任何问题。';

async function refusal(body: object): Promise<InstanceType<typeof OpenAI.APIError>> {
  try {
    await client.completions.create({ ...greedy, prompt: '你好', ...body } as never);
  } catch (error) {
    if (error instanceof OpenAI.APIError) return error;
    throw error;
  }
  throw new Error(`${JSON.stringify(body)} was answered`);
}

describe('a completion', () => {
  test('goes on with a text, for 16 tokens unless told otherwise', async () => {
    const completion = await client.completions.create({ ...greedy, prompt: '你好' });
    expect(completion).toMatchObject({
      object: 'text_completion',
      model: 'chatglm-tiny',
      choices: [{ index: 0, text: HELLO, finish_reason: 'stop', logprobs: null }],
      usage: { prompt_tokens: 3, completion_tokens: 11, total_tokens: 14 },
    });
    expect(completion.id).toMatch(/^cmpl-\w{24}$/);
    const cut = await client.completions.create({ ...greedy, prompt: '你好', logit_bias: endless(served.model) });
    expect(cut).toMatchObject({ choices: [{ finish_reason: 'length' }], usage: { completion_tokens: 16 } });
  });

  test('of a text is that of its token ids, with the prefix that texts get', async () => {
    const { body } = await served.post('/tokenize', { content: '你好', add_special: true });
    for (const prompt of [body.tokens, [body.tokens]]) {
      const { choices } = await client.completions.create({ ...greedy, prompt });
      expect(choices[0]?.text).toBe(HELLO);
    }
  });

  test('of several prompts with several choices: each at its index', async () => {
    const prompts = ['你好', 'What is your name?'];
    const alone = await Promise.all(
      prompts.map((prompt) => client.completions.create({ ...greedy, prompt, max_tokens: 8 })),
    );
    const { choices, usage } = await client.completions.create({ ...greedy, prompt: prompts, n: 2, max_tokens: 8 });
    expect(choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
    const texts = alone.map((each) => each.choices[0]?.text);
    expect(choices.map(({ text }) => text)).toEqual([texts[0], texts[0], texts[1], texts[1]]);
    // A prompt counts once, its choices each for itself.
    const sum = (of: (usage: OpenAI.CompletionUsage) => number) =>
      alone.reduce((total, each) => total + of(each.usage as OpenAI.CompletionUsage), 0);
    expect(usage?.prompt_tokens).toBe(sum((each) => each.prompt_tokens));
    expect(usage?.completion_tokens).toBe(2 * sum((each) => each.completion_tokens));
  });

  test('streams as the same text, with stop and usage', async () => {
    const stream = await client.completions.create({
      ...greedy,
      prompt: ['你好', '你好'],
      stop: ['，很高兴'],
      max_tokens: 64,
      stream: true,
      stream_options: { include_usage: true },
    });
    const texts = ['', ''];
    const ends: unknown[] = [];
    let usage: OpenAI.CompletionUsage | null | undefined;
    for await (const chunk of stream) {
      for (const { index, text, finish_reason: end } of chunk.choices) {
        texts[index] += text;
        if (end) ends[index] = end;
      }
      usage = chunk.usage;
    }
    expect(texts).toEqual(['👋！我是人工智能助手 ChatGLM-Tiny', '👋！我是人工智能助手 ChatGLM-Tiny']);
    expect(ends).toEqual(['stop', 'stop']);
    expect(usage?.prompt_tokens).toBe(6);
  });

  test('follows a grammar, a schema, an expression', async () => {
    const ask = async (fields: object) => {
      const { body } = await served.post('/v1/completions', { ...greedy, prompt: '你好', max_tokens: 40, ...fields });
      return body.choices[0].text as string;
    };
    expect(await ask({ grammar: 'root ::= "yes" | "no"' })).toMatch(/^(yes|no)$/);
    expect(JSON.parse(await ask({ json_schema: { enum: [1, 2] } }))).toBeLessThan(3);
    expect(await ask({ response_format: { type: 'regex', pattern: '[ab]{3}' } })).toMatch(/^[ab]{3}$/);
  });
});

describe('echo and log-probabilities', () => {
  test('of the answer: tokens, joined, are the text; offsets count characters', async () => {
    const { choices } = await client.completions.create({ ...greedy, prompt: '你好', logprobs: 2 });
    const { text, logprobs } = choices[0] as OpenAI.CompletionChoice;
    const {
      tokens = [],
      token_logprobs: chosen = [],
      top_logprobs: top = [],
      text_offset: offsets = [],
    } = logprobs ?? {};
    expect(tokens.join('')).toBe(text);
    tokens.forEach((token, i) => {
      expect([...text].slice(offsets[i]).join('').startsWith(token)).toBe(true);
      expect(top[i]?.[token]).toBe(chosen[i]);
      expect(Object.keys(top[i] ?? {})).toHaveLength(2);
    });
  });

  test('of the prompt: what model.score() says of its tokens', async () => {
    const prompt = '我是人工智能助手';
    for (const max_tokens of [0, 4]) {
      const { choices, usage } = await client.completions.create({
        ...greedy,
        prompt,
        echo: true,
        logprobs: 0,
        max_tokens,
      });
      const { text, logprobs, finish_reason } = choices[0] as OpenAI.CompletionChoice;
      expect(text.startsWith(prompt)).toBe(true);
      expect(logprobs?.tokens?.join('')).toBe(text);
      if (max_tokens === 0) expect({ text, finish_reason }).toEqual({ text: prompt, finish_reason: 'length' });
      expect(usage?.completion_tokens).toBe(max_tokens);
      const ids = served.model.tokenizer.encodePrompt(prompt);
      const scored = await served.model.score(ids, { from: 2 });
      expect(logprobs?.token_logprobs?.slice(0, scored.length)).toEqual(scored.map(({ logprob }) => logprob));
    }
  });

  test('of token ids: nobody can say how likely the first one is', async () => {
    const tokens = served.model.tokenizer.encode('我是人工智能助手');
    const { choices } = await client.completions.create({
      ...greedy,
      prompt: tokens,
      echo: true,
      logprobs: 1,
      max_tokens: 1,
    });
    expect(choices[0]?.logprobs?.token_logprobs?.[0]).toBeNull();
    expect(choices[0]?.logprobs?.top_logprobs?.[0]).toBeNull();
    expect(choices[0]?.logprobs?.token_logprobs?.[1]).toBeLessThan(0);
  });

  test('bytes that are no text have names of their own', async () => {
    const { choices } = await client.completions.create({
      ...greedy,
      prompt: 'a🦋',
      echo: true,
      logprobs: 0,
      max_tokens: 0,
    });
    expect(choices[0]?.text).toBe('a🦋');
    expect(choices[0]?.logprobs?.tokens).toEqual(expect.arrayContaining(['bytes:\\xf0', 'bytes:\\x9f']));
    expect(choices[0]?.logprobs?.text_offset?.at(-1)).toBe(2);
  });

  test('a stream begins with the prompt and has the same ones', async () => {
    const options = { ...greedy, prompt: '我是 a 🦋', echo: true, logprobs: 1, max_tokens: 6 };
    const whole = (await client.completions.create(options)).choices[0];
    const { body } = await served.post('/v1/completions', { ...options, stream: true });
    const choices = eventsOf(body).flatMap((event) => event.choices ?? []);
    expect(choices.map(({ text }) => text).join('')).toBe(whole?.text);
    expect(choices.flatMap(({ logprobs }) => logprobs?.tokens ?? [])).toEqual(whole?.logprobs?.tokens);
    expect(choices.flatMap(({ logprobs }) => logprobs?.text_offset ?? [])).toEqual(whole?.logprobs?.text_offset);
  });
});

describe('what is refused', () => {
  test.each<[what: string, body: object, param: string, message: RegExp]>([
    ['a suffix', { suffix: 'end' }, 'suffix', /not supported/],
    ['best_of above n', { best_of: 2 }, 'best_of', /not supported/],
    ['best_of below n', { best_of: 1, n: 2 }, 'best_of', /at least n/],
    ['no prompt', { prompt: undefined }, 'prompt', /Missing/],
    ['an empty list', { prompt: [] }, 'prompt', /none of them empty/],
    ['an empty list of ids', { prompt: [[]] }, 'prompt', /none of them empty/],
    ['a mixture', { prompt: ['a', 1] }, 'prompt', /array/],
    ['a number', { prompt: 5 }, 'prompt', /got a number/],
    ['an id of no token', { prompt: [1e6] }, 'prompt[0]', /token id/],
    ['too many choices in all', { prompt: Array(65).fill('a'), n: 2 }, 'prompt', /128/],
    ['too many logprobs', { logprobs: 21 }, 'logprobs', /<= 20/],
    ['negative max_tokens', { max_tokens: -1 }, 'max_tokens', />= 0/],
    ['messages', { messages: [] }, 'messages', /Unrecognized/],
    ['what does not fit', { prompt: 'a b '.repeat(1000) }, 'prompt', /context/],
  ])('%s', async (_what, body, param, message) => {
    const error = await refusal(body);
    expect(error).toBeInstanceOf(OpenAI.BadRequestError);
    expect(error).toMatchObject({ param, message: expect.stringMatching(message), type: 'invalid_request_error' });
  });

  test('what makes no difference is taken', async () => {
    const body = { ...greedy, prompt: '你好', suffix: '', best_of: 1, user: 'anna', cache_prompt: true };
    expect((await served.post('/v1/completions', body)).status).toBe(200);
  });
});

test('a client that goes ends all choices', async () => {
  const controller = new AbortController();
  const stream = await client.completions.create(
    { ...greedy, prompt: ['a', 'b'], n: 2, max_tokens: 900, logit_bias: endless(served.model), stream: true },
    { signal: controller.signal },
  );
  for await (const { choices } of stream) {
    if (choices.length > 0) break; // the client closes the connection
  }
  await served.idle();
  controller.abort();
  expect(served.model.stats().activeSequences).toBe(0);
});
