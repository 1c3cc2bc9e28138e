// Shows many conversations at once on one model: their tokens are computed together, in batches, and what does not fit
// waits in a queue. An answer does not depend on what else is being computed.
//
// Run:    node examples/many-chats.mjs [CHECKPOINT]
// Prints: each question with its answer in the order in which the answers are complete, then what the model is doing.
import { loadModel } from 'node-chatglm';

const questions = [
  'What is the capital of France?',
  'What is the capital of Japan?',
  '中国的首都是哪里？',
  '法国的首都是哪里？',
  'What is 7 times 8?',
  '17+25等于多少？',
  'Hello',
  '你好',
];

// Four answers are computed at a time, four wait. A request that finds maxQueue others waiting fails with ERR_QUEUE_FULL.
const model = await loadModel(process.argv[2], { maxSequences: 4, maxQueue: 100 });

const answers = questions.map(async (question) => {
  const { text } = await model.createChat({ temperature: 0 }).send(question);
  console.log(`${question} -> ${text}`);
});
const { activeSequences, queuedRequests } = model.stats();
console.log(`under way: ${activeSequences + queuedRequests}`);
await Promise.all(answers);

const stats = model.stats();
console.log(`under way: ${stats.activeSequences + stats.queuedRequests}, kept for later: ${stats.cachedTokens} tokens`);
await model.dispose();
