// Shows how an answer is streamed: each piece is written as soon as it is certain, and `result` tells afterwards what the
// answer took.
//
// Run:    node examples/stream.mjs [CHECKPOINT]
// Prints: the answer, piece by piece, then one line with its tokens and its speed.
import { loadModel } from 'node-chatglm';

const model = await loadModel(process.argv[2]); // without a path: the small model that comes with the package
const chat = model.createChat({ temperature: 0 });

const answer = chat.stream('What is the capital of France?');
for await (const { text } of answer) process.stdout.write(text);
process.stdout.write('\n');

const { finishReason, usage, timings } = await answer.result;
console.log(`${finishReason}: ${usage.promptTokens} tokens of prompt, ${usage.generatedTokens} generated`);
console.log(`${timings.decodeTokensPerSecond.toFixed(0)} tokens/s`);
await model.dispose();
