// What is not computed again: the first token of a conversation that was restored from a file, beside the one when its
// whole prompt is computed; the first token behind a system prompt that another request has computed; and the pages that
// forks take. On random weights, whose tokens are given by id; the file is what chat.save() writes.
//
//   node benchmark/sessions.mjs [--shape 6b] [--tokens 8192] [--system 2000] [--device auto]
import { rm, stat } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { loadSyntheticModel } from '../dist/esm.mjs';

const { openSession, saveSession } = createRequire(import.meta.url)('../dist/chat/session.js');
const { values } = parseArgs({
  options: {
    shape: { type: 'string', default: '6b' },
    tokens: { type: 'string', default: '8192' },
    system: { type: 'string', default: '2000' },
    device: { type: 'string', default: 'auto' },
  },
});
const tokens = Number(values.tokens);
const system = Number(values.system);
const model = await loadSyntheticModel({
  shape: values.shape,
  device: values.device,
  contextLength: tokens + 64,
  kvCacheTokens: 2 * tokens + 256,
});
const numbers = (first, count) => Array.from({ length: count }, (_, i) => 100 + ((first + 7919 * i) % 60_000));
const firstToken = async (ids) => {
  const { usage, timings } = await model.generate(ids, { maxTokens: 1, stopTokens: [] }).result;
  return { cached: usage.cachedTokens, ms: timings.firstTokenMs };
};

await firstToken(numbers(5, 64)); // so that the first measurement is not of fresh memory
const shared = numbers(1, system);
const alone = await firstToken([...shared, ...numbers(2, 16)]);
const second = await firstToken([...shared, ...numbers(3, 16)]);
console.log(
  `behind a system prompt of ${system} tokens: first token after ${alone.ms.toFixed(0)} ms, for the second chat after ` +
    `${second.ms.toFixed(1)} ms (${second.cached} tokens kept): ${(alone.ms / second.ms).toFixed(0)} times sooner`,
);
model.clearCache();

const conversation = numbers(7, tokens);
const whole = await firstToken([...conversation, 9]);
const before = model.stats().usedPages;
const file = path.join(tmpdir(), `session-${process.pid}.chat`);
let began = performance.now();
await saveSession(file, { store: model.kv, ids: conversation, chat: {} }, {});
const { size } = await stat(file);
console.log(
  `saved ${tokens} tokens: ${(size / 2 ** 20).toFixed(0)} MiB in ${(performance.now() - began).toFixed(0)} ms`,
);
model.clearCache();
began = performance.now();
await openSession(file, model.kv, {});
const restored = performance.now() - began;
const after = await firstToken([...conversation, 9]);
console.log(
  `a conversation of ${tokens} tokens: first token after ${whole.ms.toFixed(0)} ms when it is computed, after ` +
    `${(restored + after.ms).toFixed(0)} ms when it is restored (${restored.toFixed(0)} of them for the file, ${after.cached} tokens kept): ` +
    `${(whole.ms / (restored + after.ms)).toFixed(0)} times sooner`,
);
await rm(file);

// 64 forks that each go on with a token of their own.
const forks = Array.from(
  { length: 64 },
  (_, i) => model.generate([...conversation, 100 + i], { maxTokens: 1, stopTokens: [] }).result,
);
await Promise.all(forks);
const { usedPages } = model.stats();
console.log(
  `64 forks of it that were continued: ${usedPages} pages, ${before} without; 64 copies would take ${64 * before}`,
);
await model.dispose();
