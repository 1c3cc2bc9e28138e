// Shows the package's types: options, chunks, replies and errors are typed, and a misspelt option does not compile.
//
// Run:    tsc, then node; or, from Node 22.18 on, which leaves types out by itself: node examples/typescript.mts
// Needs:  "module": "node16" or later, and "lib" with "esnext.disposable", in tsconfig.json
// Prints: the answer, the roles of the conversation, and the code of an error.
import { ChatGLMError, type ChatMessage, type ErrorCode, loadModel, type Model, type SendOptions } from 'node-chatglm';

interface Answer {
  text: string;
  tokensPerSecond: number;
  history: ChatMessage[];
}

async function ask(model: Model, question: string, options: SendOptions = {}): Promise<Answer> {
  const chat = model.createChat({ system: 'Answer briefly.' });
  const { text, timings } = await chat.send(question, options);
  return { text, tokensPerSecond: timings.decodeTokensPerSecond, history: chat.history };
}

async function codeOf(work: () => Promise<unknown>): Promise<ErrorCode | undefined> {
  try {
    await work();
    return undefined;
  } catch (error) {
    if (error instanceof ChatGLMError) return error.code;
    throw error;
  }
}

const model = await loadModel(process.argv[2]);
const { text, history } = await ask(model, 'What is the capital of France?', { temperature: 0, maxTokens: 50 });
console.log(text);
console.log(history.map(({ role }) => role).join(', '));

// @ts-expect-error There is no option of this name, which the types and the function itself refuse.
console.log(await codeOf(() => ask(model, 'Hello', { temprature: 0 })));
await model.dispose();
