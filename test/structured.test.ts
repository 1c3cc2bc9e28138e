import { Ajv2020 } from 'ajv/dist/2020.js';
import { ChatGLMError, type Model, type ResponseFormat } from 'node-chatglm';
import { z } from 'zod';
import { loadModel } from './support/device';

let model: Model;
beforeAll(async () => {
  model = await loadModel();
});
afterAll(() => model.dispose());

/** Whatever the model thinks of the tokens. */
const wild = { temperature: 4, topP: 1, topK: 0, maxTokens: 200 } as const;

const person = {
  type: 'object',
  properties: {
    name: { type: 'string', maxLength: 12 },
    age: { type: 'integer', minimum: 0, maximum: 150 },
    tags: { type: 'array', items: { enum: ['a', 'b', '你好'] }, maxItems: 3 },
    home: {
      anyOf: [{ type: 'null' }, { type: 'object', properties: { zip: { type: 'string', pattern: '^[0-9]{5}$' } } }],
    },
  },
  required: ['name', 'age', 'home'],
} as const;

test('every answer of a schema is valid, whatever is drawn', async () => {
  const validate = new Ajv2020().compile(person);
  const replies = await Promise.all(
    Array.from({ length: 60 }, (_, seed) =>
      model.createChat().send('你好', { ...wild, seed, responseFormat: { type: 'json_schema', schema: person } }),
    ),
  );
  for (const { text, parsed, finishReason } of replies) {
    expect(finishReason).toBe('stop');
    expect(parsed).toEqual(JSON.parse(text));
    expect({ text, valid: validate(parsed), errors: validate.errors }).toEqual({ text, valid: true, errors: null });
  }
  expect(new Set(replies.map(({ text }) => text)).size).toBeGreaterThan(50);
});

test('an answer is complete at maxTokens, for each number of tokens that suffices', async () => {
  const schema = { type: 'array', items: { type: 'string' } };
  for (let maxTokens = 6; maxTokens < 40; maxTokens++) {
    const { parsed, text, tokens } = await model
      .createChat()
      .send('你好', { ...wild, maxTokens, seed: maxTokens, responseFormat: { type: 'json_schema', schema } });
    expect(tokens.length).toBeLessThanOrEqual(maxTokens);
    expect({ text, parsed }).toEqual({ text, parsed: expect.any(Array) });
  }
  const short = await model
    .createChat()
    .send('你好', { maxTokens: 8, responseFormat: { type: 'regex', pattern: 'a{40}' }, temperature: 0 });
  expect(short.finishReason).toBe('length');
});

test('generate() follows grammars too, and streams what it gives', async () => {
  const formats: [ResponseFormat, RegExp][] = [
    [{ type: 'regex', pattern: '[0-9]{3}-[a-z]{2,5}' }, /^[0-9]{3}-[a-z]{2,5}$/],
    [{ type: 'regex', pattern: ' {2}x|y' }, /^( {2}x|y)$/],
    [{ type: 'grammar', grammar: 'root ::= "yes" | "no" | [你-好]{2}' }, /^(yes|no|[你-好]{2})$/u],
  ];
  for (const [responseFormat, expected] of formats) {
    for (let seed = 0; seed < 10; seed++) {
      const generation = model.generate('x', { ...wild, seed, responseFormat });
      let streamed = '';
      for await (const { text } of generation) streamed += text;
      const { text, finishReason } = await generation.result;
      expect(text).toMatch(expected);
      expect(streamed).toBe(text);
      expect(finishReason).toBe('stop');
    }
  }
});

test('in a chat the text is exactly what the grammar has, spaces included', async () => {
  for (const family of ['chatglm3', 'chatglm2'] as const) {
    for (let seed = 0; seed < 10; seed++) {
      const chat = model.createChat({ family });
      const { text } = await chat.send('x', {
        ...wild,
        seed,
        responseFormat: { type: 'regex', pattern: ' {0,2}(a|  b|\\n c) {1,2}' },
      });
      expect(text).toMatch(/^ {0,2}(a| {2}b|\n c) {1,2}$/);
      expect(chat.history.at(-1)?.content).toBe(text);
    }
  }
});

test('validators give typed values, and refuse what no schema tells', async () => {
  const schema = z.object({ n: z.int().min(1).max(9) }).refine(({ n }) => n !== 5, 'five is not allowed');
  const seen = new Set<number>();
  for (let seed = 0; seed < 40; seed++) {
    const reply = await model
      .createChat()
      .send('x', { ...wild, seed, responseFormat: { type: 'json_schema', schema } });
    if (reply.parsed) {
      const { n }: { n: number } = reply.parsed;
      expect(n).not.toBe(5);
      seen.add(n);
    } else {
      expect(JSON.parse(reply.text)).toEqual({ n: 5 });
      expect(reply.parseError?.message).toContain('five is not allowed');
    }
  }
  expect(seen.size).toBeGreaterThan(3);
});

test('the shapes of OpenAI, any JSON, and free text', async () => {
  const wrapped = { type: 'json_schema', json_schema: { name: 'p', strict: true, schema: person } } as const;
  const first = await model.createChat().send('x', { ...wild, seed: 1, responseFormat: wrapped });
  expect(first.parsed?.age).toEqual(expect.any(Number));
  const any = await model.createChat().send('x', { ...wild, seed: 2, responseFormat: { type: 'json_object' } });
  expect(any.parsed).toEqual(JSON.parse(any.text));
  const free = await model.createChat().send('What is the capital of France?', {
    temperature: 0,
    responseFormat: { type: 'text' },
  });
  expect(free.text).toContain('Paris');
});

test('beside tools an answer is a call or of the form', async () => {
  const tools = [{ name: 'get_weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } }];
  let calls = 0;
  for (let seed = 0; seed < 20; seed++) {
    const chat = model.createChat({ tools });
    const reply = await chat.send('北京今天天气怎么样？', {
      ...wild,
      temperature: seed % 2 ? 0.5 : 4,
      seed,
      responseFormat: { type: 'json_schema', schema: person },
    });
    if (reply.toolCall) calls += 1;
    else expect(reply.parsed).toEqual(JSON.parse(reply.text));
  }
  expect(calls).toBeGreaterThan(0);
});

test('what is wrong with a format is said before anything runs', () => {
  const problems: [unknown, RegExp][] = [
    [{ type: 'xml' }, /responseFormat\.type must be one of/],
    [{ type: 'json_schema', schema: { type: 'array', uniqueItems: true } }, /uniqueItems/],
    [{ type: 'json_schema', schema: { not: {} } }, /not/],
    [{ type: 'regex', pattern: '(' }, /pattern|regular/i],
    [{ type: 'regex', pattern: '(a)\\1' }, /responseFormat.pattern/],
    [{ type: 'json', schema: {} }, /has no field "schema"/],
    [{ type: 'json_schema' }, /must be a JSON schema or a validator/],
    ['json', /responseFormat must be an object/],
  ];
  for (const [responseFormat, message] of problems) {
    expect(() => model.createChat().stream('x', { responseFormat: responseFormat as ResponseFormat })).toThrow(message);
    expect(() => model.generate('x', { responseFormat: responseFormat as ResponseFormat })).toThrow(ChatGLMError);
  }
});

test('a grammar that cannot be read ends the answer with its line and column', async () => {
  await expect(
    model.createChat().send('x', { responseFormat: { type: 'grammar', grammar: 'root ::= "a' } }),
  ).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('line 1, column 10') });
  // The model goes on.
  expect((await model.createChat().send('你好', { temperature: 0 })).finishReason).toBe('stop');
});

test('an isolated model and one that is loaded again follow grammars', async () => {
  const isolated = await loadModel(undefined, { isolate: true, restart: true });
  const format: ResponseFormat = { type: 'regex', pattern: '[0-9]{4}' };
  expect((await isolated.createChat().send('x', { ...wild, responseFormat: format })).text).toMatch(/^[0-9]{4}$/);
  await isolated.dispose();
});
