// OpenAI's own client against the server, many streams at once for as long as is asked: streams and whole answers, greedy and
// with seeds, tools, conversations; and clients that leave at any moment. Each complete answer must be the one that the
// facade gave before, alone, token for token; afterwards nothing may be left in the server, and its memory is where it was.
//
//   npm run -s build:ts && node scripts/server-soak.mjs --minutes 10 [--streams 64] [--seed 1] [--kv-tokens 8192]
//
// Ends with a line of JSON, and with exit code 1 if anything was wrong.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { fromOpenAI, loadModel } from '../dist/esm.mjs';
import { randomOf } from './random.mjs';

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '1' },
    streams: { type: 'string', default: '64' },
    seed: { type: 'string', default: '1' },
    'kv-tokens': { type: 'string', default: '8192' },
  },
});
// It comes with the server's development, and only this needs it.
const { default: OpenAI } = await import('openai');
const minutes = Number(values.minutes);
const streams = Number(values.streams);

// --- Requests, and what the facade says to them.

const weather = {
  name: 'get_weather',
  description: '获取城市的天气',
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
};
const texts = [
  '你好',
  'What is 7 times 8?',
  'What is the capital of France?',
  'Tell me a story about a fox.',
  '帮我写一首诗',
  '晚上睡不着应该怎么办',
  'Write a poem about the moon.',
];
const systems = [undefined, 'Answer briefly.', `You are a helpful assistant. ${'Be kind and precise. '.repeat(20)}`];

function makeCase(random) {
  const isToolCase = random.chance(0.15);
  const system = random.of(systems);
  const messages = system === undefined || isToolCase ? [] : [{ role: 'system', content: system }];
  if (random.chance(0.3)) {
    messages.push({ role: 'user', content: random.of(texts) }, { role: 'assistant', content: random.of(texts) });
  }
  messages.push({ role: 'user', content: isToolCase ? '北京今天天气怎么样？' : random.of(texts) });
  return {
    messages,
    max_tokens: 1 + random.below(160),
    ...(isToolCase && { tools: [{ type: 'function', function: weather }] }),
    // Without these a request has OpenAI's defaults: temperature 1 among all tokens.
    ...(random.chance(0.4) || isToolCase
      ? { temperature: 0 }
      : { seed: random.below(1e6), ...(random.chance(0.3) && { temperature: 0.7, top_p: 0.9 }) }),
    ...(random.chance(0.2) && { presence_penalty: 0.5, frequency_penalty: 0.3 }),
    ...(random.chance(0.2) && { stop: ['。', '\n\n'] }),
  };
}

/** How many tokens there are. Behind a stop text some more may be computed until the engine hears of it. */
const countOf = ({ stop }, tokens) => (stop === undefined ? tokens : 'some');

const random = randomOf(Number(values.seed));
const cases = Array.from({ length: 80 }, () => ({ body: makeCase(random), expected: undefined }));
{
  const model = await loadModel(undefined, { device: 'cpu', prefixCache: false, speculation: false, maxSequences: 1 });
  for (const one of cases) {
    const { messages, tools, max_tokens, temperature, top_p, seed, presence_penalty, frequency_penalty, stop } =
      one.body;
    const history = fromOpenAI(messages);
    const question = history.pop();
    const chat = model.createChat({
      history,
      tools: tools?.map((tool) => tool.function),
      maxTokens: max_tokens,
      temperature: temperature ?? 1,
      topP: top_p ?? 1,
      topK: 0,
      seed,
      presencePenalty: presence_penalty,
      frequencyPenalty: frequency_penalty,
      stop,
    });
    const { text, usage, finishReason, toolCall } = await chat.stream(question).result;
    one.expected = JSON.stringify({
      text,
      tokens: countOf(one.body, usage.generatedTokens),
      prompt: usage.promptTokens,
      end: { tool_call: 'tool_calls', length: 'length' }[finishReason] ?? 'stop',
      call: toolCall && { name: toolCall.name, arguments: toolCall.arguments },
    });
  }
  await model.dispose();
}

console.error(`${cases.length} answers are known`);

// --- The server, in a process of its own.

const main = fileURLToPath(new URL('../server/dist/cli/main.js', import.meta.url));
const server = spawn(
  process.execPath,
  [main, '--port', '0', '--device', 'cpu', '--kv-cache-tokens', values['kv-tokens'], '--log-format', 'json'],
  { stdio: ['ignore', 'pipe', 'inherit'] },
);
const ended = once(server, 'exit');
let url;
const failures = [];
await new Promise((resolve, reject) => {
  server.once('exit', () => reject(new Error('the server ended before it listened')));
  createInterface({ input: server.stdout }).on('line', (line) => {
    const { msg, level, err } = JSON.parse(line);
    url ??= /listening at (\S+)/.exec(msg)?.[1];
    if (msg === 'the model is loaded') resolve();
    if (level >= 50) failures.push(`the server logged: ${msg} ${err?.message ?? ''}`);
  });
});
// As programs use it: it tries again where nothing of an answer has come, such as on a connection that the server has closed
// as it was idle just when the request was sent.
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none' });

/** The sum of a metric over its labels. */
async function metrics() {
  const text = await (await fetch(`${url}/metrics`)).text();
  return (name) =>
    text
      .split('\n')
      .filter((line) => line.startsWith(name) && '{ '.includes(line[name.length]))
      .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
}

// --- The streams.

const counts = { requests: 0, complete: 0, tokens: 0, wrong: 0, left: 0 };
const end = Date.now() + minutes * 60_000;

/** An answer in the shape of what was expected. */
function shapeOf(body, text, usage, end, call) {
  return JSON.stringify({
    text,
    tokens: countOf(body, usage?.completion_tokens),
    prompt: usage?.prompt_tokens,
    end,
    call: call && { name: call.name, arguments: JSON.parse(call.arguments) },
  });
}

async function whole(body, signal) {
  const { choices, usage } = await client.chat.completions.create(body, { signal });
  const [{ message, finish_reason }] = choices;
  return [shapeOf(body, message.content ?? '', usage, finish_reason, message.tool_calls?.[0].function), usage];
}

async function streamed(body, signal, onEvent) {
  const options = { ...body, stream: true, stream_options: { include_usage: true } };
  let text = '';
  let usage;
  let finish;
  let call;
  for await (const chunk of await client.chat.completions.create(options, { signal })) {
    onEvent();
    usage = chunk.usage ?? usage;
    const [choice] = chunk.choices;
    text += choice?.delta.content ?? '';
    finish = choice?.finish_reason ?? finish;
    for (const { function: part } of choice?.delta.tool_calls ?? []) {
      call ??= { name: '', arguments: '' };
      call.name += part.name ?? '';
      call.arguments += part.arguments ?? '';
    }
  }
  // Left while it was running, the iterator just ends.
  if (signal.aborted) throw new OpenAI.APIUserAbortError();
  return [shapeOf(body, text, usage, finish, call), usage];
}

async function run(number) {
  const dice = randomOf(Number(values.seed) * 1000 + number);
  while (Date.now() < end && failures.length < 10) {
    const { body, expected } = dice.of(cases);
    const controller = new AbortController();
    const isStream = dice.chance(0.75);
    // Who leaves does so at any moment: while the request waits, at an event, or in between.
    const leavesAt = dice.chance(0.3) ? dice.below(40) : undefined;
    const timer =
      leavesAt !== undefined && (!isStream || dice.chance(0.3))
        ? setTimeout(() => controller.abort(), dice.below(500))
        : undefined;
    let events = 0;
    const request = { model: 'chatglm-tiny', ...body };
    counts.requests++;
    try {
      const onEvent = () => {
        if (++events === leavesAt) controller.abort();
      };
      const { signal } = controller;
      const asked = isStream ? streamed(request, signal, onEvent) : whole(request, signal);
      // Node's fetch may wait for ever where a stream is left just as its last bytes come, which are then nobody's.
      const isLeft = once(signal, 'abort').then(() => Promise.reject(new OpenAI.APIUserAbortError()));
      const [answer, usage] = await Promise.race([asked, isLeft]);
      counts.complete++;
      counts.tokens += usage?.completion_tokens ?? 0;
      if (answer !== expected) {
        counts.wrong++;
        failures.push(`a wrong answer: ${answer} in place of ${expected}`);
      }
    } catch (error) {
      if (controller.signal.aborted) counts.left++;
      else failures.push(`${error.constructor.name}: ${error.message} (${error.cause ?? ''})`);
    }
    clearTimeout(timer);
  }
}

const memory = [];
const loopMs = [];
const sample = async () => {
  const of = await metrics();
  memory.push(of('process_resident_memory_bytes') / 1e6);
  // Timers of 10 ms: what they are late by.
  loopMs.push(of('nodejs_eventloop_lag_p99_seconds') * 1000 - 10);
};
console.error(`${streams} streams for ${minutes} minutes`);
const sampler = setInterval(() => void sample().catch(() => {}), 2000);
await Promise.all(Array.from({ length: streams }, (_, i) => run(i)));
clearInterval(sampler);

// --- What is left.

const isIdle = (of) =>
  of('chatglm_active_sequences') === 0 &&
  of('chatglm_queue_length') === 0 &&
  of('chatglm_http_requests_in_flight') === 0;
const deadline = Date.now() + 30_000;
let of = await metrics();
while (!isIdle(of) && Date.now() < deadline) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  of = await metrics();
}
for (const name of ['chatglm_active_sequences', 'chatglm_queue_length', 'chatglm_http_requests_in_flight']) {
  if (of(name) > 0) failures.push(`${name} is ${of(name)} at the end`);
}
const preemptions = of('chatglm_preemptions_total');
const cachedShare = of('chatglm_prefix_cache_hit_ratio');
server.kill('SIGTERM');
const [code] = await ended;
if (code !== 0) failures.push(`the server ended with ${code}`);

// The first part fills caches and the allocator's arenas.
const settled = memory.slice(Math.ceil(memory.length / 5));
const mean = (list) => list.reduce((sum, value) => sum + value, 0) / Math.max(1, list.length);
const third = Math.ceil(settled.length / 3);
const [first, last] = [mean(settled.slice(0, third)), mean(settled.slice(-third))];
if (minutes >= 5 && last > first * 1.15 + 20) failures.push(`memory grew from ${first} to ${last} MB`);
const sorted = [...loopMs].sort((a, b) => a - b);
console.log(
  JSON.stringify({
    minutes,
    streams,
    ...counts,
    tokensPerSecond: Math.round(counts.tokens / (minutes * 60)),
    preemptions,
    cachedShare: Number(cachedShare.toFixed(2)),
    eventLoopP99Ms: { median: sorted[sorted.length >> 1]?.toFixed(1), worst: sorted.at(-1)?.toFixed(1) },
    rssFirstThirdMb: Math.round(first),
    rssLastThirdMb: Math.round(last),
    failures: failures.slice(0, 10),
  }),
);
if (failures.length > 0) process.exitCode = 1;
