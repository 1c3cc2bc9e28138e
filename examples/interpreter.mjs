// Shows the code interpreter: the model writes Python, the code runs in a process that sees neither your files nor the
// network, and the model answers with what the code printed. Needs Python and, on Linux, bubblewrap.
//
// Run:    node examples/interpreter.mjs [CHECKPOINT]
// Prints: the code, what it printed, and the answer.
import { loadModel, pythonExecutor } from 'node-chatglm';

const model = await loadModel(process.argv[2]);
const chat = model.createChat({ interpreter: pythonExecutor({ timeoutMs: 10_000 }), temperature: 0 });

const answer = chat.stream('求1到100的和');
for await (const chunk of answer) {
  if (chunk.type === 'code') console.log(`code:\n${chunk.code}`);
  if (chunk.type === 'code-result') console.log(`${chunk.result.status}: ${chunk.result.text.trim()}`);
}
console.log('answer:', (await answer.result).text);

await chat.dispose(); // ends the process
await model.dispose();
