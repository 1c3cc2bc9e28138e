// THUDM's 18 conversations: the same greedy tokens from a checkpoint, and what is left of them in its quantized forms?
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { convertCheckpoint, loadModel } from '../dist/esm.mjs';
import {
  commandLine,
  expectedConversations,
  firstDifference,
  printTable,
  refuse,
  verdict,
  withTemporaryDirectory,
} from './common.mjs';

const MOST_LOGIT_ERROR = 5e-4;

const usage = 'node conversations.mjs CHECKPOINT';
const [checkpoint] = commandLine(usage).positionals;
if (checkpoint === undefined) refuse(usage, 'Which checkpoint?');
const conversations = expectedConversations();

async function answer(path, options) {
  const model = await loadModel(path, { device: 'cpu', ...options });
  const result = {
    ids: 0,
    texts: 0,
    logitError: 0,
    different: [],
    weights: Object.keys(model.info.weightTypes).join(' '),
  };
  for (const [
    index,
    { prompt_ids: prompt, greedy_ids: expected, text, first_token_top5: top },
  ] of conversations.entries()) {
    const logits = await model.logits(prompt, { from: prompt.length - 1 });
    for (const [i, id] of top.ids.entries()) {
      const error = Math.abs(logits[id] - top.logits[i]);
      // A NaN must not pass.
      if (!(error <= result.logitError)) result.logitError = error;
    }
    const generation = await model.generate(prompt, { temperature: 0, maxTokens: expected.length + 64 }).result;
    const at = firstDifference(generation.tokens, expected);
    result.ids += at < 0;
    result.texts += generation.text === text;
    if (at >= 0) result.different.push(`${index}@${at}`);
  }
  await model.dispose();
  return result;
}

await withTemporaryDirectory(async (directory) => {
  const results = { 'as it is': await answer(checkpoint) };
  if (statSync(checkpoint).isDirectory()) {
    for (const quantization of ['int8', 'int4']) {
      results[`quantization: ${quantization}`] = await answer(checkpoint, { quantization });
    }
  }
  for (const type of ['f16', 'q8_0', 'q4_0']) {
    const path = join(directory, `${type}.gguf`);
    await convertCheckpoint(checkpoint, path, { type });
    results[`converted to ${type}`] = await answer(path);
  }
  printTable([
    ['checkpoint', 'weights', 'same ids', 'same texts', 'first logits differ by', 'conversation@step'],
    ...Object.entries(results).map(([name, { weights, ids, texts, logitError, different }]) => [
      name,
      weights,
      `${ids}/${conversations.length}`,
      `${texts}/${conversations.length}`,
      logitError.toPrecision(2),
      different.join(' '),
    ]),
  ]);
  const { ids, logitError } = results['as it is'];
  const met = ids === conversations.length && logitError <= MOST_LOGIT_ERROR;
  console.log(`As it is: all ids the same, first logits within ${MOST_LOGIT_ERROR}: ${verdict(met)}`);
});
