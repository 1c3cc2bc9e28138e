// Does llama.cpp read the files of convertCheckpoint(), and does it give the same greedy tokens as this package?
import { join } from 'node:path';
import { convertCheckpoint, loadModel } from '../dist/esm.mjs';
import {
  commandLine,
  defaultThreads,
  expectedConversations,
  firstDifference,
  printTable,
  refuse,
  verdict,
  withTemporaryDirectory,
} from './common.mjs';
import { greedySteps, openLlama } from './llama-cpp.mjs';

const usage = 'node greedy-llama-cpp.mjs CHECKPOINT [--types f16,q8_0,q4_0] [--threads N]';
const { values, positionals } = commandLine(usage, { types: { type: 'string' }, threads: { type: 'string' } });
const [checkpoint] = positionals;
if (checkpoint === undefined) refuse(usage, 'Which checkpoint?');
const types = (values.types ?? 'f16,q8_0,q4_0').split(',');
const threads = Number(values.threads ?? defaultThreads);
const conversations = expectedConversations();

/** The same as greedySteps() of llama.cpp: differences of log-probabilities are differences of logits. */
async function ownSteps(model, prompt, count) {
  const options = { temperature: 0, maxTokens: count, stopTokens: [], logprobs: 2 };
  const { tokens, logprobs } = await model.generate(prompt, options).result;
  return { ids: tokens, gaps: logprobs.map(({ top }) => top[0].logprob - top[1].logprob) };
}

async function compare(path, type) {
  const model = await loadModel(path, { threads, device: 'cpu' });
  const peer = await openLlama(path, { threads, contextSize: model.info.contextLength, flashAttention: false });
  const same = { peer: 0, ownThudm: 0, peerThudm: 0 };
  let steps = 0;
  let smallestGap = Number.POSITIVE_INFINITY;
  let largestChange = 0;
  for (const [index, { prompt_ids: prompt, greedy_ids: expected }] of conversations.entries()) {
    const own = await ownSteps(model, prompt, expected.length);
    const other = await greedySteps(peer.sequence, prompt, expected.length);
    same.ownThudm += firstDifference(own.ids, expected) < 0;
    same.peerThudm += firstDifference(other.ids, expected) < 0;
    const at = firstDifference(own.ids, other.ids);
    same.peer += at < 0;
    if (at >= 0) {
      const describe = ({ ids, gaps }) => `token ${ids[at]}, gap ${gaps[at].toFixed(4)}`;
      console.log(
        `${type}, conversation ${index}, step ${at} of ${expected.length}: here ${describe(own)}; llama.cpp ${describe(other)}; THUDM token ${expected[at]}`,
      );
    }
    // As long as both have seen the same tokens, their gaps can be compared.
    for (let i = 0; i < (at < 0 ? expected.length : at); i++) {
      steps += 1;
      smallestGap = Math.min(smallestGap, own.gaps[i], other.gaps[i]);
      largestChange = Math.max(largestChange, Math.abs(own.gaps[i] - other.gaps[i]));
    }
  }
  await peer.dispose();
  await model.dispose();
  const of = (count) => `${count}/${conversations.length}`;
  return [
    type,
    of(same.peer),
    of(same.ownThudm),
    of(same.peerThudm),
    steps,
    smallestGap.toFixed(4),
    largestChange.toFixed(4),
    verdict(same.peer === conversations.length),
  ];
}

await withTemporaryDirectory(async (directory) => {
  const rows = [
    ['file', 'same ids', 'here = THUDM', 'llama.cpp = THUDM', 'steps', 'least gap', 'gaps differ by', 'bar'],
  ];
  for (const type of types) {
    const path = join(directory, `${type}.gguf`);
    await convertCheckpoint(checkpoint, path, { type });
    rows.push(await compare(path, type));
  }
  printTable(rows);
});
