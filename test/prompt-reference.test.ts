import { type ChatMessage, loadTokenizer, type Tokenizer } from 'node-chatglm';
import { referenceLines, referenceTokenizer } from './support/checkpoints.js';

// The prompts of 125 conversations as THUDM's own code builds them, with ChatGLM's tokenizer.
let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await loadTokenizer(referenceTokenizer());
});

test('ChatGLM2: all ids are those of THUDM', () => {
  const lines = referenceLines<{ query: string; history: [string, string][]; ids: number[] }>('chatglm2_prompts');
  expect(lines).toHaveLength(60);
  for (const { query, history, ids } of lines) {
    const messages = history.flatMap(([question, answer]): ChatMessage[] => [
      { role: 'user', content: question },
      { role: 'assistant', content: answer },
    ]);
    messages.push({ role: 'user', content: query });
    expect(tokenizer.encodeChat(messages, { family: 'chatglm2' })).toEqual(ids);
  }
});

test('ChatGLM3: all ids are those of THUDM', () => {
  const lines = referenceLines<{ messages: ChatMessage[]; ids: number[] }>('chatglm3_prompts');
  expect(lines).toHaveLength(65);
  for (const { messages, ids } of lines) {
    expect(tokenizer.encodeChat(messages, { family: 'chatglm3' })).toEqual(ids);
  }
  // Among them: tools, a call of one and what it gave, and text that looks like special tokens.
  expect(lines.some(({ messages }) => messages.some(({ tools }) => tools))).toBe(true);
  expect(lines.some(({ messages }) => messages.some(({ role }) => role === 'observation'))).toBe(true);
});
