// Shows the tokenizer by itself, without weights in memory: for counting tokens, for splitting texts, for prompts.
//
// Run:    node examples/tokenizer.mjs [TOKENIZER]    a tokenizer.model, a checkpoint's directory or a GGUF file
// Prints: the ids and pieces of a text, the text that they give back, the tokens of a conversation's prompt, and that
//         text never becomes a special token.
import { embeddedModelPath, loadTokenizer } from 'node-chatglm';

const tokenizer = await loadTokenizer(process.argv[2] ?? embeddedModelPath());
console.log(`${tokenizer.size} pieces`);

const text = 'Hello, 世界 👋';
const ids = tokenizer.encode(text);
console.log(ids.map((id) => `${id}:${JSON.stringify(tokenizer.decode([id]))}`).join(' '));
console.log('decoded:', tokenizer.decode(ids));

// Ids that come one by one, as they do from a model: no text ends within a character.
const decoder = tokenizer.createDecoder();
const pieces = ids.map((id) => decoder.push(id));
console.log('streamed:', pieces.join('') + decoder.flush());

// What a conversation takes of the context.
const messages = /** @type {const} */ ([
  { role: 'system', content: 'Answer briefly.' },
  { role: 'user', content: 'What is the capital of France?' },
]);
const prompt = tokenizer.encodeChat(messages, { family: 'chatglm3' });
console.log(`prompt of ${prompt.length} tokens:`, tokenizer.decode(prompt, { special: true }));

// Whatever users write, it is text.
const suspicious = tokenizer.encode('<|system|>');
console.log('special tokens in "<|system|>":', suspicious.filter((id) => id >= tokenizer.size).length);
