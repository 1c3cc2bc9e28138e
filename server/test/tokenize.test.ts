import { type Served, serve, weatherTool } from './support/served';

let served: Served;
beforeAll(async () => {
  served = await serve();
});
afterAll(() => served.close());

const TEXTS = [
  '你好',
  'What is the capital of France?',
  '<|user|>\n </s>',
  '  two  spaces\n\ttab ',
  '👋🦋 mixed 世界',
  '',
];

describe.each(['', '/v1'])('under %s/', (prefix) => {
  test('texts go to tokens and back', async () => {
    for (const content of TEXTS) {
      const { status, body } = await served.post(`${prefix}/tokenize`, { content });
      expect(status).toBe(200);
      expect(body.tokens).toEqual(served.model.tokenizer.encode(content));
      expect(body).toMatchObject({ count: body.tokens.length, max_model_len: 1024 });
      const back = await served.post(`${prefix}/detokenize`, { tokens: body.tokens });
      expect(back.body.content).toBe(content);
    }
  });
});

test('the prefix of a prompt comes when asked for', async () => {
  const { tokenizer } = served.model;
  const asked = await served.post('/tokenize', { content: '你好', add_special: true });
  expect(asked.body.tokens).toEqual(tokenizer.encodePrompt('你好'));
  // vLLM's names and its default.
  const { body } = await served.post('/tokenize', { prompt: '你好', model: 'chatglm-tiny', return_token_strs: true });
  expect(body.tokens).toEqual(tokenizer.encodePrompt('你好'));
  expect(body.token_strs.slice(0, 2)).toEqual(['[gMASK]', 'sop']);
  const back = await served.post('/detokenize', { tokens: body.tokens, special: true });
  expect(back.body.prompt).toBe('[gMASK]sop你好');
});

test('pieces are texts, or bytes where they are none', async () => {
  const { body } = await served.post('/tokenize', { content: 'world 🦋', with_pieces: true });
  expect(body.tokens.map(({ id }: { id: number }) => id)).toEqual(served.model.tokenizer.encode('world 🦋'));
  const pieces = body.tokens.map(({ piece }: { piece: string | number[] }) => piece);
  expect(pieces[0]).toBe(' world');
  expect(pieces.slice(-4)).toEqual([...Buffer.from('🦋')].map((byte) => [byte]));
  expect(Buffer.concat(pieces.map((piece: string | number[]) => Buffer.from(piece as string))).toString()).toBe(
    ' world 🦋',
  );
});

test('messages are counted as a chat counts them, tools included', async () => {
  const messages = [
    { role: 'system', content: 'Answer briefly.' },
    { role: 'user', content: '北京今天天气怎么样？' },
  ];
  for (const tools of [undefined, [weatherTool]]) {
    const { body } = await served.post('/tokenize', { messages, tools });
    const { body: answer } = await served.post('/v1/chat/completions', { messages, tools, max_tokens: 1 });
    expect(body.count).toBe(answer.usage.prompt_tokens);
  }
});

test('a conversation that no context holds is refused with its size', async () => {
  const messages = [{ role: 'user', content: '人工智能 and deep learning. '.repeat(10_000) }];
  const { status, body } = await served.post('/tokenize', { messages });
  expect({ status, code: body.error.code }).toEqual({ status: 400, code: 'context_length_exceeded' });
  expect(body.error.message).toMatch(/about \d{5,} tokens; the context holds 1024/);
});

test('a long text, beside a short one', async () => {
  const content = '人工智能 and deep learning. '.repeat(10_000);
  const long = served.post('/tokenize', { content });
  const short = await served.post('/tokenize', { content: '你好' });
  expect(short.body.count).toBe(1);
  expect((await long).body.tokens).toEqual(served.model.tokenizer.encode(content));
});

test.each<[what: string, path: string, body: unknown, param: string | null]>([
  ['no text', '/tokenize', {}, 'content'],
  ['a text that is none', '/tokenize', { content: 5 }, 'content'],
  ['both', '/tokenize', { content: 'x', messages: [] }, 'messages'],
  ['messages that are none', '/tokenize', { messages: [{ role: 'x' }] }, 'messages[0].role'],
  ['no tokens', '/detokenize', {}, 'tokens'],
  ['tokens that are none', '/detokenize', { tokens: ['a'] }, 'tokens[0]'],
  ['fractions', '/detokenize', { tokens: [1.5] }, 'tokens[0]'],
  ['negative ones', '/detokenize', { tokens: [1, -1] }, 'tokens[1]'],
  ['ids of no token', '/detokenize', { tokens: [99999] }, 'tokens[0]'],
  ['an unknown field', '/detokenize', { tokens: [], x: 1 }, 'x'],
  ['a model that there is not', '/tokenize', { content: 'x', model: 'y' }, 'model'],
])('refused: %s', async (_what, path, body, param) => {
  const { status, body: answer } = await served.post(path, body);
  expect(status).toBe(param === 'model' ? 404 : 400);
  expect(answer.error.param).toBe(param);
});
