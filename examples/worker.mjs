// Shows a model in a worker thread. A model has a thread of its own anyway, and the event loop of whoever loads it stays
// free; a worker is for programs whose main thread is busy with other things, or must be able to end the work at once.
//
// Run:    node examples/worker.mjs [CHECKPOINT]
// Prints: the answer, whose pieces come from the worker as messages, and how the worker ended.
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { loadModel } from 'node-chatglm';

if (isMainThread) {
  const worker = new Worker(new URL(import.meta.url), { workerData: { checkpoint: process.argv[2] } });
  worker.on('message', (message) => {
    if (message.text !== undefined) process.stdout.write(message.text);
    if (message.reply !== undefined) console.log(`\n${message.reply.finishReason}`);
  });
  worker.on('error', (error) => console.error(error));
  worker.on('exit', (code) => console.log(`worker ended with ${code}`));
  worker.postMessage('What is the capital of France?');
} else {
  const model = await loadModel(workerData.checkpoint);
  const chat = model.createChat({ temperature: 0 });
  // A listener keeps the worker alive; after `once` nothing does, and it ends by itself.
  parentPort?.once('message', async (question) => {
    const answer = chat.stream(question);
    for await (const { text } of answer) parentPort?.postMessage({ text });
    const { finishReason, usage } = await answer.result; // plain objects can be posted
    parentPort?.postMessage({ reply: { finishReason, usage } });
    await model.dispose();
  });
}
