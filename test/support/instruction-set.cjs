'use strict';
// A process of its own, because the kernels are chosen when the process looks for them: computes with those that
// CHATGLM_KERNELS names, and prints one JSON object. The argument is one, too:
// { checkpoints: [{ path, ids, options, continuation }], texts: [ids] }.
const { loadModel } = require('node-chatglm');

const greedy = { temperature: 0, stopTokens: [] };

/** The sum of -ln p of each token of the ids but the first. */
async function surprise(model, ids) {
  const { vocabSize } = model.info;
  const logits = await model.logits(ids);
  let sum = 0;
  for (let i = 1; i < ids.length; i++) {
    const row = logits.subarray((i - 1) * vocabSize, i * vocabSize);
    const largest = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const total = row.reduce((total, logit) => total + Math.exp(logit - largest), 0);
    sum += Math.log(total) + largest - row[ids[i]];
  }
  return sum;
}

async function compute({ checkpoints, texts }) {
  const results = [];
  for (const { path, ids, options, continuation } of checkpoints) {
    const model = await loadModel(path, { device: 'cpu', ...options });
    const logits = await model.logits(ids);
    const { tokens } = await model.generate(ids, { ...greedy, maxTokens: continuation }).result;
    results.push({ logits: Buffer.from(logits.buffer).toString('base64'), tokens });
    await model.dispose();
  }
  const model = await loadModel(undefined, { device: 'cpu' });
  let sum = 0;
  let count = 0;
  for (const ids of texts) {
    sum += await surprise(model, ids);
    count += ids.length - 1;
  }
  const { response } = await model.chat('What is the capital of France?', { temperature: 0 });
  const { kernels } = model.info;
  await model.dispose();
  return { kernels, results, perplexity: Math.exp(sum / count), response };
}

compute(JSON.parse(process.argv[2])).then(
  (result) => process.stdout.write(JSON.stringify(result)),
  (error) => process.stdout.write(JSON.stringify({ error: error.code ?? String(error) })),
);
