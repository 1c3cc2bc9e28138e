// Shows three ways to end an answer early: a time limit, a signal, and leaving the loop.
//
// Run:    node examples/abort.mjs [CHECKPOINT]
// Prints: the code of each error; an aborted answer leaves the history as it was, one whose loop is left is kept.
import { loadModel } from 'node-chatglm';

const model = await loadModel(process.argv[2]);

// A time limit. Without stop tokens this continuation goes on until the context is full.
try {
  const signal = AbortSignal.timeout(20); // milliseconds
  await model.generate('Once upon a time', { stopTokens: [], signal }).result;
} catch (error) {
  console.log('time limit:', error.code, error.name, error.cause.name);
}

// A signal of the caller's. AbortSignal.any([…]) puts several into one.
const chat = model.createChat({ temperature: 0 });
const controller = new AbortController();
try {
  for await (const { text } of chat.stream('What should I do if I cannot sleep?', { signal: controller.signal })) {
    if (text !== '') controller.abort(new Error('the user has seen enough'));
  }
} catch (error) {
  console.log('signal:', error.code, error.cause.message);
}
console.log('messages after abort():', chat.history.length);

// break stops the generation, too, but is no error: what was generated until then is the answer.
const answer = chat.stream('What should I do if I cannot sleep?');
for await (const { text } of answer) if (text !== '') break;
const { finishReason } = await answer.result;
console.log('break:', finishReason);
console.log('messages after break:', chat.history.length);

await model.dispose();
