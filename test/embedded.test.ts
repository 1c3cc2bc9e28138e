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

test("answers at least 17 of 18 conversations with THUDM's text, though its weights are rounded to 4 bits", async () => {
  const answers = await Promise.all(
    conversations.map(({ prompt_ids }) => model.generate(prompt_ids, { ...greedy, maxTokens: 200 }).result),
  );
  const right = answers.filter(({ text, tokens }, i) => {
    const expected = conversations[i] as ExpectedConversation;
    return text === expected.text && tokens.at(-1) === expected.stop_id;
  });
  expect(right.length).toBeGreaterThanOrEqual(17);
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
  expect(reply.toolCall).toMatchObject({ name: expect.any(String), arguments: expect.any(Object) });
  expect(reply.text).toBe('');
  const answer = await chat.send((messages[before] as ChatMessage).content, { role: 'observation' });
  expect(answer.text).toBe(text.trim());
  expect(answer.usage.cachedTokens).toBeGreaterThan(100);
});
