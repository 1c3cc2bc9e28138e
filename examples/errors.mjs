// Shows how errors are told apart: every one is a ChatGLMError with a stable `code`, and `details` that hold the numbers
// of its message. docs/errors.md lists the codes.
//
// Run:    node examples/errors.mjs [CHECKPOINT]
// Prints: one line for each of six mistakes: its code, and what a program makes of it.
import { ChatGLMError, loadModel } from 'node-chatglm';

function explain(error) {
  if (!(error instanceof ChatGLMError)) throw error; // a mistake of this program's own
  const { code, details, message } = error;
  switch (code) {
    case 'ERR_CHECKPOINT_NOT_FOUND':
      return `there is nothing at ${details.file}`;
    case 'ERR_CONTEXT_OVERFLOW':
      return `shorten the text: it has ${details.tokens} tokens, and there is room for ${details.limit}`;
    case 'ERR_QUEUE_FULL':
      return `busy: ${details.limit} requests are waiting already, try again later`;
    case 'ERR_ABORTED':
      return 'nobody is waiting for the answer any more';
    case 'ERR_DISPOSED':
      return 'the model is gone';
    default:
      return message; // for people; it names the argument, the file or the tensor
  }
}
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    console.log(`${error.code}: ${explain(error)}`);
  }
}

const model = await loadModel(process.argv[2], { maxSequences: 1, maxQueue: 1, contextLength: 256 });
await attempt(() => loadModel('./no-such-checkpoint'));
await attempt(() => model.generate('Hello', { temperature: -1 }).result); // thrown at once, before the loop
await attempt(() => model.generate('Hello '.repeat(1000)).result);
await attempt(() => model.generate('Hello', { signal: AbortSignal.abort() }).result);

const requests = [1, 2, 3].map(() => model.generate('Hello', { maxTokens: 20 }).result); // one runs, one waits
await attempt(() => Promise.all(requests));
await Promise.allSettled(requests);

await model.dispose();
await attempt(() => model.generate('Hello').result);
