import { join } from 'node:path';
import { type Model, shapes, synthesize } from 'node-chatglm';
import { temporaryDirectory } from './support/checkpoints';
import { loadModel } from './support/device';

// Prompts that are encoded on a thread before they are submitted: the answer is the same, and each way to end one early
// works while the text is still being encoded.

const directory = temporaryDirectory();
let model: Model;
beforeAll(async () => {
  const path = join(directory.path, 'long.gguf');
  await synthesize(path, { shape: { ...shapes.micro, contextLength: 65_536 }, type: 'f32' });
  model = await loadModel(path, { contextLength: 65_536, maxSequences: 2 });
});
afterAll(async () => {
  await model.dispose();
  directory.remove();
});

const text = 'the '.repeat(10_000); // more UTF-16 units than are encoded at once

test('a long text gives what its ids give', async () => {
  const ids = model.tokenizer.encodePrompt(text);
  const options = { temperature: 0, maxTokens: 3, stopTokens: [] };
  const [ofText, ofIds] = [model.generate(text, options), model.generate(ids, options)];
  expect((await ofText.result).tokens).toEqual((await ofIds.result).tokens);
  expect((await ofText.result).usage.promptTokens).toBe(ids.length);
});

test('a chat with a long message', async () => {
  const chat = model.createChat();
  const { usage } = await chat.send(text, { maxTokens: 1 });
  const [message] = chat.history;
  expect(usage.promptTokens).toBe(model.tokenizer.encodeChat(chat.history.slice(0, 1), { family: 'chatglm3' }).length);
  expect(message).toEqual({ role: 'user', content: text });
});

test('while a text is encoded, other work goes on, and a signal or leaving the loop ends the request', async () => {
  const controller = new AbortController();
  const aborted = model.generate(text, { signal: controller.signal, maxTokens: 1 });
  const left = model.generate(text, { maxTokens: 1000 });
  let turns = 0;
  const timer = setInterval(() => turns++, 0);
  await new Promise((resolve) => setTimeout(resolve, 5));
  clearInterval(timer);
  expect(turns).toBeGreaterThan(0);
  controller.abort();
  await expect(aborted.result).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  await left.return?.();
  expect((await left.result).finishReason).toBe('cancelled');
});

test('a text that cannot fit is refused without being encoded', async () => {
  const result = model.generate('字'.repeat(5_000_000), { maxTokens: 1 }).result;
  await expect(result).rejects.toMatchObject({ code: 'ERR_CONTEXT_OVERFLOW' });
});

test('a model that is disposed of meanwhile ends the request', async () => {
  const other = await loadModel(model.info.path, { contextLength: 65_536, maxSequences: 1 });
  const { result } = other.generate(text, { maxTokens: 1 });
  await other.dispose();
  await expect(result).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
});
