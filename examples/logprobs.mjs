// Shows log-probabilities: how sure the model was of each token, and what it might have said instead.
//
// Run:    node examples/logprobs.mjs [CHECKPOINT]
// Prints: one line a token: its probability, its text, and the likeliest tokens with theirs.
import { loadModel } from 'node-chatglm';

const model = await loadModel(process.argv[2]);
const chat = model.createChat({ temperature: 0 });
const { text, logprobs = [] } = await chat.send('What is the capital of France?', { logprobs: 3 });

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)}%`; // natural logarithms
const show = (token) => JSON.stringify(model.tokenizer.decode([token], { special: true }));
for (const { token, logprob, top } of logprobs) {
  const others = top.map((other) => `${show(other.token)} ${percent(other.logprob)}`);
  console.log(`${percent(logprob).padStart(6)} ${show(token)}  (${others.join(', ')})`);
}
console.log('answer:', text);
await model.dispose();
