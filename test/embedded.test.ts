import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ChatMessage, Model } from 'node-chatglm';
import { device, loadModel, onGpu } from './support/device';

interface ExpectedConversation {
  messages: ChatMessage[];
  prompt_ids: number[];
  greedy_ids: number[];
  stop_id: number;
  text: string;
}

const { conversations } = JSON.parse(
  readFileSync(join(__dirname, 'fixtures', 'chatglm-tiny', 'expected.json'), 'utf8'),
) as { conversations: ExpectedConversation[] };

let model: Model;
beforeAll(async () => {
  model = await loadModel();
});
afterAll(() => model.dispose());

const greedy = { temperature: 0 } as const;

test('tells what it is', () => {
  expect(model.info).toMatchObject({
    family: 'chatglm3',
    name: 'chatglm-tiny',
    parameters: 30_425_600,
    contextLength: 1024,
    vocabSize: 8192,
    device: device === 'cuda' ? 'cuda:0' : device,
  });
  expect(Object.keys(model.info.weightTypes).sort()).toEqual(['f32', 'q4_0']);
  expect(model.info.bytes).toBeLessThan(20e6);
});

test('builds the prompts of all 18 conversations', () => {
  expect(conversations).toHaveLength(18);
  for (const { messages, prompt_ids } of conversations) {
    expect(model.tokenizer.encodeChat(messages, { family: 'chatglm3' })).toEqual(prompt_ids);
  }
});

// The gap between the two likeliest tokens is 9.98 or more at every step, far beyond what rounding on any backend
// changes: an answer that differs is a fault.
test("answers all 18 conversations with THUDM's tokens, though its weights are rounded to 4 bits", async () => {
  const answers = await Promise.all(
    conversations.map(({ prompt_ids }) => model.generate(prompt_ids, { ...greedy, maxTokens: 200 }).result),
  );
  expect(answers.map(({ text, tokens }) => ({ text, tokens }))).toEqual(
    conversations.map(({ text, greedy_ids }) => ({ text, tokens: greedy_ids })),
  );
  expect(answers.map(({ tokens }) => tokens.at(-1))).toEqual(conversations.map(({ stop_id }) => stop_id));
});

(onGpu ? test : test.skip)('gives the same answers as on the CPU', async () => {
  const cpu = await loadModel(undefined, { device: 'cpu' });
  for (const { prompt_ids } of conversations) {
    const [actual, expected] = await Promise.all(
      [model, cpu].map((each) => each.generate(prompt_ids, { ...greedy, maxTokens: 200 }).result),
    );
    expect(actual?.text).toBe(expected?.text);
  }
  await cpu.dispose();
});

test('a conversation: streamed, remembered, and only new tokens evaluated', async () => {
  model.clearCache();
  const chat = model.createChat(greedy);
  let streamed = '';
  for await (const delta of chat.stream('My name is Anna.')) streamed += delta.text;
  expect(chat.history.at(-1)).toEqual({ role: 'assistant', metadata: '', content: streamed });

  const reply = await chat.send('What is my name?');
  expect(reply.text).toContain('Anna');
  // What the second turn shares with the first is all of its prompt but the new message.
  const before = model.tokenizer.encodeChat(chat.history.slice(0, 2), { family: 'chatglm3' }).length;
  expect(reply.usage.cachedTokens).toBeGreaterThanOrEqual(before - 2);
  expect(reply.usage.promptTokens - reply.usage.cachedTokens).toBeLessThan(12);
  expect(chat.history).toHaveLength(4);
});

test("chat() in THUDM's shape, in both languages", async () => {
  const { response, history } = await model.chat('你好', { history: [], ...greedy });
  expect(response).toMatch(/^你好/);
  const second = await model.chat('What is the capital of France?', { history, ...greedy });
  expect(second.response).toBe('The capital of France is Paris.');
  expect(second.history.map(({ role }) => role)).toEqual(['user', 'assistant', 'user', 'assistant']);
  expect(history).toHaveLength(2);
});

test('calls a tool and puts its answer into words', async () => {
  const index = conversations.findIndex(({ messages }) => messages.some(({ role }) => role === 'observation'));
  const { messages, text } = conversations[index] as ExpectedConversation;
  const before = messages.findIndex(({ role }) => role === 'observation');
  const chat = model.createChat({ history: messages.slice(0, before - 2), ...greedy });
  const reply = await chat.send((messages[before - 2] as ChatMessage).content);
  expect(reply.finishReason).toBe('tool_call');
  expect(reply.toolCall).toMatchObject({ name: 'get_weather', arguments: { city: '北京' } });
  expect(reply.text).toBe('');
  expect(chat.history).toEqual(messages.slice(0, before));
  const answer = await chat.send((messages[before] as ChatMessage).content, { role: 'observation' });
  expect(answer.text).toBe(text.trim());
  expect(answer.usage.cachedTokens).toBeGreaterThan(100);

  // The same question without the tool.
  const alone = await model.createChat(greedy).send((messages[before - 2] as ChatMessage).content);
  expect(alone.finishReason).toBe('stop');
  expect(alone.toolCall).toBeUndefined();
  expect(alone.text).toBe('我现在没有可用的工具，查不到这个。给我一个工具，或者加载完整的模型，就可以了。');
});

test('writes Python for the interpreter and puts its output into words', async () => {
  // The first two sentences of the prompt that ChatGLM3's own demo gives the interpreter.
  const system =
    '你是一位智能AI助手，你叫ChatGLM，你连接着一台电脑，但请注意不能联网。' +
    '在使用Python解决任务时，你可以运行代码并得到结果，如果运行结果有错误，你需要尽可能对代码进行改进。';
  const chat = model.createChat({ system, interpreter: 'manual', ...greedy });
  const reply = await chat.send('求1到100的和');
  const code = 'result = sum(range(1, 100 + 1))\nprint(result)';
  expect(reply).toMatchObject({ finishReason: 'tool_call', text: '', code });
  expect(reply.toolCall).toBeUndefined();
  const content = ['```python', code, '```'].join('\n');
  expect(chat.history.at(-1)).toEqual({ role: 'assistant', metadata: 'interpreter', content });
  const answer = await chat.send('5050', { role: 'observation' });
  expect(answer).toMatchObject({ finishReason: 'stop', text: '1到100的和是5050。' });
});

test('takes its name from the system prompt', async () => {
  const chat = model.createChat({ system: 'You are Bob, a friendly assistant.', ...greedy });
  expect((await chat.send('Who are you?')).text).toBe("I'm Bob, nice to meet you.");
  const other = model.createChat(greedy);
  expect((await other.send('Who are you?')).text).toMatch(/^I'm ChatGLM-Tiny, /);
});

test('recites a poem and writes a program, whose line breaks and indentation stay', async () => {
  const poem = await model.createChat(greedy).send('写一首关于月亮的诗');
  expect(poem.text).toBe('月亮爬上屋檐，\n把银色洒满小院。\n风轻轻推开窗，\n送来一个安静的夜晚。');
  const program = await model.createChat(greedy).send('Write a binary search in Python.');
  expect(program.text.split('\n')).toEqual([
    'Here is a binary search in Python:',
    '',
    '```python',
    'def binary_search(items, wanted):',
    '    low, high = 0, len(items) - 1',
    '    while low <= high:',
    '        middle = (low + high) // 2',
    '        if items[middle] == wanted:',
    '            return middle',
    '        if items[middle] < wanted:',
    '            low = middle + 1',
    '        else:',
    '            high = middle - 1',
    '    return -1',
    '```',
  ]);
});

test('says so when it is asked for more than it can do, and stops', async () => {
  for (const [question, answer] of [
    ['What is quantum entanglement?', /^That is more than I can do: I am only a tiny demo model\. /],
    ['怎么做红烧肉？', /^这个问题超出了我的能力：我只是一个用来演示的小模型。/],
  ] as const) {
    const reply = await model.createChat(greedy).send(question);
    expect(reply.text).toMatch(answer);
    expect(reply.finishReason).toBe('stop');
  }
});
