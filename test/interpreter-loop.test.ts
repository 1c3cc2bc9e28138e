import { type Chat, type ChatOptions, type CodeExecutor, loadModel, type Model, pythonExecutor } from 'node-chatglm';

let model: Model;
beforeAll(async () => {
  model = await loadModel();
});
afterAll(() => model.dispose());

const chats: Chat[] = [];
afterEach(async () => {
  for (const chat of chats.splice(0)) await chat.dispose();
});

/** A chat whose session ends with the test. */
function createChat(options: ChatOptions = {}): Chat {
  const chat = model.createChat({ ...greedy, interpreter: pythonExecutor(), ...options });
  chats.push(chat);
  return chat;
}

const greedy = { temperature: 0, maxTokens: 120 } as const;

test('20 sums are computed by the code that the model writes', async () => {
  const sumTo = (n: number) => (n * (n + 1)) / 2;
  const wordings: ((a: number, b: number) => [question: string, result: number])[] = [
    (a) => [`求1到${a}的和`, sumTo(a)],
    (a) => [`Sum the numbers from 1 to ${a}`, sumTo(a)],
    (a, b) => [`用Python计算 ${a} + ${b}`, a + b],
    (a, b) => [`Use Python to compute ${a} * ${b}`, a * b],
  ];
  const wrong: string[] = [];
  for (let i = 0; i < 20; i++) {
    const [question, result] = (wordings[i % 4] as (typeof wordings)[number])(10 + 5 * i, 31 + 5 * i);
    const chat = createChat();
    const { text, steps } = await chat.send(question);
    const [step] = steps;
    const isRight = step?.type === 'code' && step.result.text.trim() === `${result}` && text.includes(`${result}`);
    if (!isRight) wrong.push(`${question}: ${text}`);
  }
  expect({ wrong, tooMany: wrong.length > 2 }).toEqual({ wrong, tooMany: false });
});

test('the steps are parts of the stream, and messages of the history', async () => {
  const chat = createChat();
  const types: string[] = [];
  const stream = chat.stream('求1到100的和');
  for await (const { type } of stream) if (type !== types.at(-1)) types.push(type);
  expect(types).toEqual(['text', 'code', 'code-result', 'text']);
  const reply = await stream.result;
  expect(reply).toMatchObject({ text: '1到100的和是5050。', finishReason: 'stop' });
  expect(chat.history.map(({ role, metadata }) => metadata || role)).toEqual([
    'system',
    'user',
    'interpreter',
    'observation',
    'assistant',
  ]);
  // The same session runs the next piece.
  chat.undo();
  const { steps } = await chat.send('Sum the numbers from 1 to 50');
  expect(steps).toMatchObject([{ type: 'code', result: { status: 'ok', text: expect.stringMatching(/^1275\s*$/) } }]);
});

test('code that fails is told to the model, and a session that cannot begin is an error', async () => {
  const chat = createChat({ interpreter: pythonExecutor({ timeoutMs: 10_000 }), maxToolRounds: 1 });
  const { steps } = await chat.send('计算 12 * 34'); // the embedded model writes ×, which is no Python
  expect(steps).toMatchObject([
    { type: 'code', result: { status: 'error', text: expect.stringContaining('SyntaxError') } },
  ]);

  let opened = 0;
  const broken: CodeExecutor = {
    language: 'python',
    open: async () => {
      opened += 1;
      throw new Error('no sandbox');
    },
  };
  const other = createChat({ interpreter: broken });
  const before = structuredClone(other.history);
  for (const times of [1, 2]) {
    await expect(other.send('求1到100的和')).rejects.toThrow('no sandbox');
    expect(opened).toBe(times);
  }
  expect(other.history).toEqual(before);
});

test('leaving the loop ends the code', async () => {
  const chat = createChat();
  const stream = chat.stream('求1到100的和');
  for await (const { type } of stream) if (type === 'code') break;
  expect((await stream.result).finishReason).toBe('cancelled');
  chat.undo();
  const { steps } = await chat.send('Sum the numbers from 1 to 100');
  expect(steps).toMatchObject([{ result: { text: '5050' } }]);
});
