// Shows plain continuation without a chat format, as base models and CodeGeeX2 are used: a text goes in, and what follows
// it comes out, until one of the stop texts comes up.
//
// Run:    node examples/continuation.mjs [CHECKPOINT]
// Prints: the text, its continuation on a line of its own, why that ended, and the seed with which it can be had again.
import { loadModel } from 'node-chatglm';

const model = await loadModel(process.argv[2]);
const prompt = 'Once upon a time there was';

console.log(`${prompt} …`);
const options = { temperature: 0.7, topP: 0.9, maxTokens: 60, stop: ['.', '!', '?', '\n'] };
const generation = model.generate(prompt, options);
for await (const { text } of generation) process.stdout.write(text); // never a part of a stop text
process.stdout.write('\n');

const { finishReason, text, seed } = await generation.result;
console.log(`ended by: ${finishReason}`); // stop_sequence, length (maxTokens) or stop (the model's own end)

// The same seed, prompt and options give the same tokens.
const again = await model.generate(prompt, { ...options, seed }).result;
console.log(`seed ${seed} gives the same again: ${again.text === text}`);
await model.dispose();
