// Shows logits, from which the perplexity of a text follows: exp of the mean of -ln p(token | tokens before it). The
// lower it is, the less the text surprises the model.
//
// Run:    node examples/perplexity.mjs [CHECKPOINT]
// Prints: the perplexity of a sentence, and the higher one of the same words in disorder.
import { loadModel } from 'node-chatglm';

const model = await loadModel(process.argv[2]);
const { vocabSize } = model.info;

async function perplexity(text) {
  const ids = model.tokenizer.encodePrompt(text); // [gMASK], sop, and the text's tokens
  const prefix = ids.length - model.tokenizer.encode(text).length;
  // Row i of the logits (positions, vocabulary) tells what follows ids[i]: the text's first token is told by the row
  // before it. `from` leaves out the rows that nobody asks for.
  const first = prefix - 1;
  const logits = await model.logits(ids, { from: first });
  let sum = 0;
  for (let i = prefix; i < ids.length; i++) {
    const row = logits.subarray((i - 1 - first) * vocabSize, (i - first) * vocabSize);
    sum -= logSoftmax(row, ids[i]);
  }
  return Math.exp(sum / (ids.length - prefix));
}

/** ln(softmax(row)[index]), without overflow. */
function logSoftmax(row, index) {
  const largest = row.reduce((a, b) => Math.max(a, b));
  const sum = row.reduce((total, logit) => total + Math.exp(logit - largest), 0);
  return row[index] - largest - Math.log(sum);
}

for (const text of ['Paris is the capital of France.', 'the France. of Paris capital is']) {
  console.log(`${text} ${(await perplexity(text)).toFixed(1)}`);
}
await model.dispose();
