// Many clients at once, for as long as is asked: random prompts, options, forks, sessions, cancels, time limits,
// priorities, and a key/value cache that is too small for all, so that sequences are preempted. Each answer must be the
// one that the same request got alone, before; no page may be lost; memory and the event loop are watched.
//
//   npm run soak -- --minutes 10 [--clients 64] [--device cpu] [--synthetic 6b] [--seed 1] [--kv-tokens 4096]
//
// Ends with a line of JSON, and with exit code 1 if anything was wrong.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { ChatGLMError, loadModel, loadSyntheticModel } from '../dist/esm.mjs';
import { randomOf } from './random.mjs';

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '1' },
    clients: { type: 'string', default: '64' },
    device: { type: 'string', default: 'cpu' },
    synthetic: { type: 'string' },
    seed: { type: 'string', default: '1' },
    'kv-tokens': { type: 'string', default: '4096' },
    isolate: { type: 'boolean', default: false },
  },
});
const minutes = Number(values.minutes);
const clients = Number(values.clients);
const contextLength = 1024;
const common = { device: values.device, contextLength, ...(values.isolate ? { isolate: true } : {}) };
const load = (options) =>
  values.synthetic === undefined
    ? loadModel(undefined, options)
    : loadSyntheticModel({ shape: values.synthetic, ...options });
/** On a GPU, batches of other sizes round otherwise, so an answer may leave the one that was computed alone. */
const isExact = values.device === 'cpu';

const seed = Number(values.seed);
const model = await load({ ...common, kvCacheTokens: Number(values['kv-tokens']), maxQueue: 1000 });
const random = randomOf(seed);
const texts = [
  '你好',
  'What is 7 times 8?',
  '北京今天天气怎么样？',
  'Tell me a story about a fox.',
  '现在几点了？',
  '帮我写一首诗',
];
const systems = [undefined, 'Answer briefly.', `You are a helpful assistant. ${'Be kind and precise. '.repeat(20)}`];

/** Requests whose answers alone are known. */
function makeCase() {
  const greedy = random.chance(0.5);
  const options = {
    maxTokens: 1 + random.below(120),
    ...(greedy
      ? { temperature: 0 }
      : {
          temperature: 0.3 + random.next(),
          topK: random.of([0, 1, 50, 500]),
          topP: random.of([1, 0.8]),
          seed: random.below(1e6),
        }),
    ...(random.chance(0.2) ? { repetitionPenalty: 1.1 } : {}),
    ...(random.chance(0.2) ? { presencePenalty: 0.5, frequencyPenalty: 0.3 } : {}),
    ...(random.chance(0.2) ? { minP: 0.05 } : {}),
    ...(random.chance(0.2) ? { logprobs: random.below(6) } : {}),
    ...(random.chance(0.1) ? { logitBias: { 310: -5, 13: 1 } } : {}),
    ...(random.chance(0.1) ? { badWords: [[13, 13], [310]] } : {}),
  };
  const length = random.chance(0.2) ? 300 + random.below(500) : 5 + random.below(100);
  const vocabulary = Math.min(model.info.vocabSize, 60_000);
  const common = random.chance(0.5) ? Array.from({ length: 130 }, (_, i) => (i * 7919) % vocabulary) : [];
  const ids = [...common, ...Array.from({ length }, () => random.below(vocabulary))];
  return { ids, options, greedy };
}
const cases = Array.from({ length: 60 }, makeCase);
{
  const alone = await load({
    device: values.device,
    contextLength,
    prefixCache: false,
    speculation: false,
    maxSequences: 1,
  });
  for (const one of cases) one.tokens = (await alone.generate(one.ids, one.options).result).tokens;
  await alone.dispose();
}

const counts = {
  requests: 0,
  tokens: 0,
  compared: 0,
  different: 0,
  cancelled: 0,
  timeouts: 0,
  aborted: 0,
  forks: 0,
  sessions: 0,
  scores: 0,
  failures: [],
};
const folder = await mkdtemp(path.join(tmpdir(), 'soak-'));
const delay = monitorEventLoopDelay({ resolution: 1 });
const end = Date.now() + minutes * 60_000;
const memory = [];
const sample = () => memory.push(process.memoryUsage().rss / 2 ** 20);
const sampler = setInterval(sample, 1000);

async function answerOf(client, dice) {
  const one = dice.of(cases);
  const order = { client: `client ${client % 7}`, priority: dice.below(3) };
  const { tokens, finishReason } = await model.generate(one.ids, { ...one.options, ...order }).result;
  counts.tokens += tokens.length;
  counts.compared += 1;
  if (finishReason !== 'cancelled' && tokens.join() !== one.tokens.join()) {
    counts.different += 1;
    if (isExact) counts.failures.push(`an answer is not the one alone: ${JSON.stringify(one.options)}`);
  }
}

async function cancelled(_client, dice) {
  const one = dice.of(cases);
  const stop = dice.below(20);
  const generation = model.generate(one.ids, one.options);
  let seen = 0;
  for await (const { tokens } of generation) {
    seen += tokens.length;
    if (seen >= stop) break;
  }
  counts.cancelled += 1;
}

async function expectError(codes, what) {
  try {
    await what();
  } catch (error) {
    if (error instanceof ChatGLMError && codes.includes(error.code)) return true;
    throw error;
  }
  return false;
}

async function limited(_client, dice) {
  const one = dice.of(cases);
  const timeoutMs = 1 + dice.below(300);
  const limit = dice.chance(0.5) ? { timeoutMs } : { queueTimeoutMs: timeoutMs };
  if (await expectError(['ERR_TIMEOUT'], () => model.generate(one.ids, { ...one.options, ...limit }).result))
    counts.timeouts += 1;
}

async function aborted(_client, dice) {
  const one = dice.of(cases);
  const signal = AbortSignal.timeout(1 + dice.below(200));
  if (await expectError(['ERR_ABORTED'], () => model.generate(one.ids, { ...one.options, signal }).result))
    counts.aborted += 1;
}

async function conversation(_client, dice) {
  const chat = model.createChat({ system: dice.of(systems), temperature: 0, maxTokens: 40 });
  await chat.send(dice.of(texts));
  const fork = chat.fork();
  const question = dice.of(texts);
  // Both see the same prompt: on the CPU both answer the same, whatever runs beside them.
  const [here, there] = await Promise.all([chat.send(question), fork.send(question)]);
  counts.forks += 1;
  if (isExact && here.text !== there.text)
    counts.failures.push(`a fork answered otherwise: ${here.text} / ${there.text}`);
}

async function session(client, dice) {
  const file = path.join(folder, `${client}.chat`);
  const chat = model.createChat({ system: dice.of(systems), temperature: 0, maxTokens: 40 });
  await chat.send(dice.of(texts));
  await chat.save(file);
  const restored = await model.restoreChat(file, { temperature: 0, maxTokens: 40, onMismatch: 'history' });
  const question = dice.of(texts);
  const [here, there] = await Promise.all([chat.send(question), restored.send(question)]);
  counts.sessions += 1;
  if (isExact && here.text !== there.text)
    counts.failures.push(`a restored chat answered otherwise: ${here.text} / ${there.text}`);
}

async function scored(_client, dice) {
  const { ids } = dice.of(cases);
  const from = 1 + dice.below(ids.length - 1);
  const scores = await model.score(ids, { from, logprobs: dice.below(3) });
  counts.scores += 1;
  if (scores.length !== ids.length - from || !scores.every(({ logprob }) => logprob <= 0))
    counts.failures.push('wrong scores');
}

const hasTokenizer = values.synthetic === undefined;
const acts = [
  answerOf,
  answerOf,
  answerOf,
  answerOf,
  answerOf,
  cancelled,
  limited,
  aborted,
  scored,
  ...(hasTokenizer ? [conversation, session] : []),
];

async function run(client) {
  const dice = randomOf(seed * 1000 + client);
  while (Date.now() < end && counts.failures.length < 10) {
    const act = dice.of(acts);
    try {
      await act(client, dice);
    } catch (error) {
      counts.failures.push(`${act.name}: ${error?.code ?? ''} ${error?.message ?? error}`);
    }
    counts.requests += 1;
    if (dice.chance(0.01)) model.clearCache();
    if (dice.chance(0.2)) await new Promise((resolve) => setTimeout(resolve, dice.below(50)));
  }
}

// The first minute, or the first tenth, fills caches and the allocator's arenas.
const settled = setTimeout(
  () => {
    delay.enable();
    memory.length = 0;
  },
  Math.min(60_000, minutes * 6_000),
);
await Promise.all(Array.from({ length: clients }, (_, client) => run(client)));
clearTimeout(settled);
clearInterval(sampler);
delay.disable();
sample();

const deadline = Date.now() + 60_000;
model.clearCache();
let stats = model.stats();
while ((stats.usedPages > 0 || stats.activeSequences > 0 || stats.queuedRequests > 0) && Date.now() < deadline) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  model.clearCache();
  stats = model.stats();
}
if (stats.usedPages > 0) counts.failures.push(`${stats.usedPages} pages are lost`);
if (stats.activeSequences > 0 || stats.queuedRequests > 0) counts.failures.push('sequences are left');
await model.dispose();
await rm(folder, { recursive: true, force: true });

const third = Math.ceil(memory.length / 3);
const mean = (list) => list.reduce((sum, value) => sum + value, 0) / Math.max(1, list.length);
const report = {
  minutes,
  clients,
  device: model.info.device,
  ...counts,
  preemptions: stats.preemptions,
  steps: stats.steps,
  draftedTokens: stats.draftedTokens,
  acceptedTokens: stats.acceptedTokens,
  eventLoopP99Ms: Number((delay.percentile(99) / 1e6).toFixed(1)),
  rssFirstThirdMb: Math.round(mean(memory.slice(0, third))),
  rssLastThirdMb: Math.round(mean(memory.slice(-third))),
};
console.log(JSON.stringify(report));
if (counts.failures.length > 0) process.exitCode = 1;
