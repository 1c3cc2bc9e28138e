// Shows what a service needs: a model in a process of its own, whose crash this one survives; clients that get their shares;
// priorities, time limits, phases for the log; and an end that completes what was begun.
//
// Run:    node examples/service.mjs [CHECKPOINT]
// Prints: the answers as they come, what a request took, and that the service ends.
import { loadModel } from 'node-chatglm';

const model = await loadModel(process.argv[2], { isolate: true, maxQueue: 1000 });
model.on('failed', ({ code, message }) => console.error(`${code}: ${message}; the model is loaded again`));

// Computed once, and kept for all conversations.
const system = 'Answer briefly.';
const kept = await model.cachePrompt([{ role: 'system', content: system }]);

async function answer(client, question, priority = 0) {
  const took = [];
  const { text } = await model.createChat({ system, temperature: 0 }).send(question, {
    client, // who asks much does not keep others waiting
    priority, // urgent requests come first
    queueTimeoutMs: 10_000, // ERR_TIMEOUT rather than an answer that nobody waits for
    timeoutMs: 60_000,
    onTrace: ({ phase, atMs }) => took.push(`${phase} ${atMs.toFixed(0)} ms`),
  });
  console.log(`${client}: ${text}`);
  return took;
}

const [took] = await Promise.all([
  answer('anna', 'What is the capital of France?'),
  answer('anna', '你好'),
  answer('bob', 'What is 7 times 8?', 1),
]);
console.log(`phases: ${took.join(', ')}`);

kept.release();
await model.drain({ timeoutMs: 30_000 }); // no new requests; those that run are completed
await model.dispose();
console.log('ended');
