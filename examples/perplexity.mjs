// Shows the scores of a text's tokens, from which its perplexity follows: exp of the mean of -ln p(token | tokens before
// it). The lower it is, the less the text surprises the model.
//
// Run:    node examples/perplexity.mjs [CHECKPOINT]
// Prints: the perplexity of a sentence, and the higher one of the same words in disorder.
import { loadModel } from 'node-chatglm';

const model = await loadModel(process.argv[2]);

async function perplexity(text) {
  const ids = model.tokenizer.encodePrompt(text); // [gMASK], sop, and the text's tokens
  const from = ids.length - model.tokenizer.encode(text).length;
  const scores = await model.score(ids, { from });
  return Math.exp(-scores.reduce((sum, { logprob }) => sum + logprob, 0) / scores.length);
}

for (const text of ['Paris is the capital of France.', 'the France. of Paris capital is']) {
  console.log(`${text} ${(await perplexity(text)).toFixed(1)}`);
}
await model.dispose();
