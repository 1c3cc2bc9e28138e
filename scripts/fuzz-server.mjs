// Hostile HTTP requests against a server in a process of its own: JSON that is mutated or none, wrong types, huge numbers,
// deep nesting, headers and paths that try something, bodies in strange pieces, pipelines, requests that come too slowly or
// stop half-way, clients that go early.
//
//   node scripts/fuzz-server.mjs --requests 1000000 [--seconds 600] [--seed 1] [--connections 32] [--idle 2000]
//
// Fails, with exit code 1, where the server ends, answers with a 5xx that it does not mean (500, 502 and the like), shows a
// stack trace or a path, does not answer at all, keeps a sequence, a request or a connection, takes more memory at the end
// than after its first tenth, or answers a plain question otherwise than before. Ends with a line of JSON.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { randomOf } from './random.mjs';

const script = fileURLToPath(import.meta.url);
const root = path.dirname(path.dirname(script));

/** The server's side: it tells its address, and at each message what it holds. */
async function serve() {
  const { createServer } = await import(path.join(root, 'server', 'dist', 'index.js'));
  const load = { device: 'cpu', contextLength: 192, maxSequences: 16, maxQueue: 64 };
  const server = createServer({
    model: { 'chatglm-tiny': { load }, second: { load } },
    limits: {
      headersTimeoutMs: 2000,
      requestTimeoutMs: 4000,
      checkIntervalMs: 500,
      bodyBytes: 2 ** 20,
      answerTimeoutMs: 15_000,
    },
    logger: { level: 'error', pretty: false },
    metrics: true,
  });
  const lag = monitorEventLoopDelay({ resolution: 5 });
  const url = await server.listen({ port: 0 });
  await server.preload();
  lag.enable();
  process.on('message', async (message) => {
    if (message === 'resetLag') lag.reset();
    global.gc?.();
    const models = [...server.models.loaded()].map(({ model }) => model.stats());
    const connections = await new Promise((resolve) => server.app.server.getConnections((_, count) => resolve(count)));
    const { body } = await server.app.inject({ url: '/metrics', headers: { host: 'localhost' } });
    process.send({
      ...process.memoryUsage(),
      cpuSeconds: process.cpuUsage().user / 1e6 + process.cpuUsage().system / 1e6,
      active: models.reduce((sum, { activeSequences, queuedRequests }) => sum + activeSequences + queuedRequests, 0),
      inFlight: Number(/^chatglm_http_requests_in_flight (\d+)/m.exec(body)?.[1]),
      connections,
      lagP99Ms: lag.percentile(99) / 1e6,
      lagMaxMs: lag.max / 1e6,
    });
  });
  process.on('disconnect', () => void server.close());
  process.send({ url });
}

async function main() {
  const { values } = parseArgs({
    options: {
      requests: { type: 'string', default: '20000' },
      seconds: { type: 'string', default: '3600' },
      seed: { type: 'string', default: String(Date.now() % 1e9) },
      connections: { type: 'string', default: '32' },
      idle: { type: 'string', default: '0' },
      verbose: { type: 'boolean', default: false },
    },
  });
  const most = Number(values.requests);
  const connections = Number(values.connections);
  const random = randomOf(Number(values.seed));
  console.error(`seed ${values.seed}`);

  let log = '';
  const child = fork(script, ['serve'], { execArgv: ['--expose-gc'], stdio: ['ignore', 'pipe', 'pipe', 'ipc'] });
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      log = (log + text).slice(-200_000);
    });
  }
  let hasEnded = false;
  child.on('exit', () => {
    hasEnded = true;
  });
  const [{ url }] = await once(child, 'message');
  const port = Number(new URL(url).port);
  const stateOf = async (message = 'state') => {
    child.send(message);
    const [state] = await once(child, 'message');
    return state;
  };

  const failures = [];
  const fail = (what, sent, got) => {
    if (failures.length < 20) failures.push({ what, sent: clip(sent), got: clip(got) });
  };
  const counts = { sent: 0, statuses: {}, kinds: {}, closedUnanswered: 0 };
  const before = await answerOf(url);

  const idle = Number(values.idle) > 0 ? await measureIdle(Number(values.idle), port, stateOf, url) : undefined;

  const began = performance.now();
  const end = began + 1000 * Number(values.seconds);
  let warm;
  let isOver = false;
  const check = (response, sent) => {
    const { status, body } = response;
    counts.statuses[status] = (counts.statuses[status] ?? 0) + 1;
    if (status >= 500) {
      let code;
      try {
        const { error } = JSON.parse(body);
        code = error.code ?? error.type;
      } catch {}
      const isMeant = (status === 503 || status === 501) && typeof code === 'string';
      if (!isMeant) fail(`status ${status}`, sent, body);
    }
    const leak = LEAKS.find((pattern) => pattern.test(body));
    if (leak) fail(`the answer has ${leak}`, sent, body);
  };
  const context = { port, random, counts, check, fail, isOver: () => isOver || hasEnded };
  const workers = Array.from({ length: connections }, () => framedWorker(context));
  const loose = Array.from({ length: Math.ceil(connections / 4) }, () => looseWorker(context));
  const slow = Array.from({ length: 8 }, () => slowWorker(context));

  while (!hasEnded && counts.sent < most && performance.now() < end) {
    await sleep(250);
    if (warm === undefined && (counts.sent > most / 10 || performance.now() > began + (end - began) / 10)) {
      warm = await stateOf('resetLag');
    }
    if (values.verbose) console.error(Math.round((performance.now() - began) / 1000), counts.sent, failures.length);
    if (failures.length >= 20) break;
  }
  const seconds = (performance.now() - began) / 1000;
  isOver = true;
  await Promise.all([...workers, ...loose, ...slow]);

  let last;
  if (hasEnded) {
    fail(`the server ended with ${child.exitCode ?? child.signalCode}`, '', log.slice(-3000));
  } else {
    // What was left half-way ends by the server's own limits.
    for (let i = 0; i < 150; i++) {
      last = await stateOf();
      if (last.active === 0 && last.inFlight === 0 && last.connections === 0) break;
      await sleep(100);
    }
    for (const name of ['active', 'inFlight', 'connections']) {
      if (last[name] !== 0) fail(`${last[name]} ${name} are left`, '', '');
    }
    const after = await answerOf(url);
    if (after !== before) fail('a plain question has another answer', before, after);
    last = await stateOf();
    warm ??= last;
    const grown = last.rss - warm.rss;
    const heapGrown = last.heapUsed - warm.heapUsed;
    if (heapGrown > 24e6) fail(`the heap has grown by ${heapGrown} bytes`, '', '');
    if (grown > 100e6) fail(`the process has grown by ${grown} bytes`, '', '');
  }
  if (child.connected) child.disconnect();
  if (!hasEnded) await once(child, 'exit');
  for (const { what, sent, got } of failures) console.error(`\n== ${what}\n-- sent\n${sent}\n-- got\n${got}`);
  if (failures.length > 0 && log !== '') console.error(`\n== the server's log\n${log.slice(-6000)}`);
  const megabytes = (bytes) => bytes && Math.round(bytes / 1e5) / 10;
  console.log(
    JSON.stringify({
      seed: Number(values.seed),
      requests: counts.sent,
      seconds: Math.round(seconds),
      perSecond: Math.round(counts.sent / seconds),
      statuses: counts.statuses,
      kinds: counts.kinds,
      closedUnanswered: counts.closedUnanswered,
      rssMB: [megabytes(warm?.rss), megabytes(last?.rss)],
      heapMB: [megabytes(warm?.heapUsed), megabytes(last?.heapUsed)],
      serverCpuSeconds: last && Math.round(last.cpuSeconds),
      lagP99Ms: last && Math.round(last.lagP99Ms * 10) / 10,
      ...(idle && { idle }),
      failures: failures.length,
    }),
  );
  process.exitCode = failures.length === 0 ? 0 : 1;
}

/** What no answer may have. The requests have nothing of the kind that an answer could give back. */
const LEAKS = [
  /\n\s+at .+:\d+:\d+/,
  /\\n\s+at /,
  /node:internal/,
  /node_modules/,
  /root:x:0/,
  /ENOENT|EACCES|EISDIR/,
  new RegExp(root.replace(/[^\w]/g, '\\$&')),
  new RegExp(`${os.homedir().replace(/[^\w]/g, '\\$&')}/`),
  /model\.gguf/,
];

function clip(value) {
  const text = Buffer.isBuffer(value) ? value.toString('latin1') : String(value);
  return text.length > 1500 ? `${text.slice(0, 1500)}… (${text.length})` : text;
}

async function answerOf(url) {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', connection: 'close' },
    body: JSON.stringify({ messages: [{ role: 'user', content: '你好' }], temperature: 0, max_tokens: 40 }),
  });
  return (await response.json()).choices?.[0].message.content ?? `status ${response.status}`;
}

/** What connections cost that do nothing, and how late the event loop is with them. */
async function measureIdle(count, port, stateOf, url) {
  await answerOf(url);
  const empty = await stateOf();
  const sockets = [];
  for (let i = 0; i < count; i++) {
    const socket = net.connect(port, '127.0.0.1').on('error', () => {});
    sockets.push(socket);
    socket.write('GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n');
    await once(socket, 'data');
    socket.resume();
  }
  const full = await stateOf('resetLag');
  for (let i = 0; i < 20; i++) await answerOf(url);
  const { lagP99Ms, lagMaxMs, connections } = await stateOf();
  for (const socket of sockets) socket.destroy();
  return {
    connections,
    rssMB: Math.round((full.rss - empty.rss) / 1e5) / 10,
    heapMB: Math.round((full.heapUsed - empty.heapUsed) / 1e5) / 10,
    lagP99Ms: Math.round(lagP99Ms * 10) / 10,
    lagMaxMs: Math.round(lagMaxMs * 10) / 10,
  };
}

// --- Requests that are whole, in one piece: nearly all of them. Each gets an answer. ---

const user = (content) => [{ role: 'user', content }];
const tool = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'The weather',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
};
const picture = { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } };

/** Bodies that the endpoints take, which answer with a few tokens at most. */
const BODIES = {
  '/v1/chat/completions': [
    { model: 'chatglm-tiny', messages: user('hi'), max_tokens: 1 },
    { messages: user('你好'), max_tokens: 2, stream: true, stream_options: { include_usage: true } },
    { messages: user('x'), max_completion_tokens: 1, n: 2, logprobs: true, top_logprobs: 2, seed: 1, user: 'u' },
    { messages: user('x'), max_tokens: 1, tools: [tool], tool_choice: 'auto', parallel_tool_calls: false },
    {
      messages: user('x'),
      max_tokens: 1,
      tools: [tool],
      tool_choice: { type: 'function', function: { name: 'get_weather' } },
    },
    { messages: user('x'), max_tokens: 1, response_format: { type: 'json_object' } },
    {
      messages: user('x'),
      max_tokens: 1,
      response_format: {
        type: 'json_schema',
        json_schema: {
          name: 'a',
          strict: true,
          schema: {
            type: 'object',
            properties: { a: { type: 'integer' } },
            required: ['a'],
            additionalProperties: false,
          },
        },
      },
    },
    {
      messages: user('x'),
      max_tokens: 1,
      temperature: 0.5,
      top_p: 0.9,
      presence_penalty: 1,
      frequency_penalty: -1,
      logit_bias: { 5: 1 },
      stop: ['a', 'b'],
    },
    {
      model: 'second',
      max_tokens: 1,
      messages: [
        { role: 'system', content: 's' },
        { role: 'user', content: [{ type: 'text', text: 'a' }, picture] },
        {
          role: 'assistant',
          content: null,
          tool_calls: [{ id: 'c1', type: 'function', function: { name: 'get_weather', arguments: '{"city":"x"}' } }],
        },
        { role: 'tool', tool_call_id: 'c1', content: 'warm' },
      ],
    },
  ],
  '/v1/completions': [
    { prompt: 'hi', max_tokens: 1 },
    { prompt: ['a', 'b'], max_tokens: 1, logprobs: 1, echo: true },
    { prompt: [1, 2, 3], max_tokens: 1, stream: true, stop: 'x', seed: 3 },
    { prompt: [[1, 2], [3]], max_tokens: 0, echo: true, logprobs: 0, best_of: 1, suffix: null },
  ],
  '/v1/responses': [
    { input: 'hi', max_output_tokens: 16 },
    {
      input: [{ role: 'user', content: [{ type: 'input_text', text: 'a' }] }],
      max_output_tokens: 16,
      stream: true,
      instructions: 'i',
    },
    {
      input: 'x',
      max_output_tokens: 16,
      previous_response_id: 'resp_1',
      store: false,
      tools: [{ type: 'function', name: 'f', parameters: {} }],
    },
    { input: [{ type: 'function_call_output', call_id: 'c', output: 'o' }], text: { format: { type: 'json_object' } } },
  ],
  '/v1/messages': [
    { model: 'chatglm-tiny', messages: user('hi'), max_tokens: 1 },
    { model: 'chatglm-tiny', messages: user([{ type: 'text', text: 'a' }]), max_tokens: 1, stream: true, system: 's' },
    {
      model: 'chatglm-tiny',
      max_tokens: 1,
      messages: user('x'),
      tools: [{ name: 'f', description: 'd', input_schema: { type: 'object' } }],
      tool_choice: { type: 'any' },
      stop_sequences: ['x'],
      metadata: { user_id: 'u' },
    },
  ],
  '/v1/messages/count_tokens': [{ model: 'chatglm-tiny', messages: user('hi') }],
  '/tokenize': [
    { content: 'hello 你好', with_pieces: true },
    { prompt: 'x', add_special: true },
  ],
  '/detokenize': [{ tokens: [1, 2, 3, 8000] }],
  '/v1/embeddings': [{ model: 'chatglm-tiny', input: 'x' }],
  '/v1/files': [{ purpose: 'batch' }],
  '/v1/batches': [{ input_file_id: 'file-1', endpoint: '/v1/chat/completions', completion_window: '24h' }],
};
const ENDPOINTS = Object.keys(BODIES);

const PATHS = [
  '/',
  '/health',
  '/ready',
  '/metrics',
  '/v1/models',
  '/v1/models/chatglm-tiny',
  '/v1/models/%00',
  '/v1/models/%ff',
  '/v1/models/%zz',
  '/../../../../etc/passwd',
  '/..%2f..%2f..%2fetc%2fpasswd',
  '/%2e%2e/%2e%2e/etc/passwd',
  '/.%00./etc/passwd',
  '//etc/passwd',
  '/assets/../../package.json',
  '/assets/..%5c..%5cpackage.json',
  '/static/%252e%252e/package.json',
  '/index.html/../../src/server.ts',
  '/v1/files/../../etc/passwd',
  '/v1/files/..%2f..%2fetc%2fpasswd',
  '/v1/files/file-1/content',
  '/v1/batches/x',
  '/v1/responses/x',
  '/v1/responses/%2e%2e',
  '/v1/responses/x/input_items?limit=1e9&order=x',
  '/v1/batches?limit=-1&after=%00',
  '/v1/files?purpose=__proto__',
  '/v1/models?constructor=1',
  '/V1/MODELS',
  '/v1//models',
  '/v1/models/',
  '/;/v1/models',
  '/v1/models;x=1',
  '/v1/models#x',
  '/?%',
  '/%',
  '/%E0%A4%A',
  '/favicon.ico',
  '/.env',
  '/.git/config',
  '/package.json',
  '/proc/self/environ',
  '/C:/Windows/win.ini',
  '/\\..\\..',
  '/__proto__',
  '/constructor',
  '/toString',
  '/api/chat',
  '/metrics/../health',
  '/v1/chat/completions/..',
  '/main.js',
  '/main.css',
  `/${'a'.repeat(3000)}`,
  `/v1/models/${'b'.repeat(600)}`,
  `/${'../'.repeat(500)}`,
  `/v1/models?${'a=1&'.repeat(800)}`,
];
const METHODS = [
  'GET',
  'GET',
  'GET',
  'HEAD',
  'POST',
  'PUT',
  'DELETE',
  'PATCH',
  'OPTIONS',
  'TRACE',
  'PROPFIND',
  'SEARCH',
  'QUERY',
  'PURGE',
];

const deep = (depth, open, close, inner) => open.repeat(depth) + inner + close.repeat(depth);
/** Stands for text that goes into the JSON as it is. */
const raw = (text) => `@@RAW:${text}@@`;
const HOSTILE = [
  null,
  true,
  false,
  0,
  -1,
  1,
  0.5,
  1e308,
  -1e308,
  2 ** 31,
  2 ** 32,
  2 ** 53,
  -(2 ** 53),
  1e-320,
  '',
  ' ',
  'x',
  'null',
  'NaN',
  '1',
  '-1',
  '1e999',
  raw('1e999'),
  raw('-1e999'),
  raw('123456789012345678901234567890'),
  raw('-0'),
  raw('0.1e-400'),
  raw('1E+2'),
  [],
  {},
  [[]],
  [null],
  [{}],
  { a: 1 },
  [1, 'a', null],
  new Array(200).fill(0),
  new Array(50).fill('x'),
  'a'.repeat(5000),
  '你好'.repeat(2000),
  '\ud800',
  '\udfff\ud800',
  '\u0000',
  '\u0000'.repeat(50),
  '\u202e\u2066',
  '👨‍👩‍👧‍👦'.repeat(50),
  '[gMASK]',
  '<|user|>',
  '<|assistant|>\n',
  '</s>',
  '<script>alert(1)</script>',
  '$'.concat('{7*7}'),
  '{{7*7}}',
  "' OR 1=1 --",
  '../../etc/passwd',
  'file:///etc/passwd',
  'http://127.0.0.1:1/',
  'data:text/plain,x',
  '%s%n%x',
  '\r\nx: y',
  '__proto__',
  'constructor',
  'toString',
  'hasOwnProperty',
  { toString: 1 },
  { valueOf: null, length: -1 },
  { length: 1e9 },
  Object.fromEntries([['then', 1]]),
  { toJSON: 1 },
  { constructor: { prototype: { x: 1 } } },
  { type: 'object' },
  { $ref: '#' },
  { $ref: 'http://127.0.0.1:1/s' },
  { type: 'string', pattern: '(a+)+$' },
  { type: 'string', pattern: '(' },
  { anyOf: [] },
  { enum: [] },
  { const: null },
  { type: 'array', minItems: 1e9 },
  { type: 'string', minLength: 1e9 },
  { type: 'integer', minimum: 5, maximum: 1 },
  { allOf: [{ $ref: '#/allOf/0' }] },
  raw(deep(200, '[', ']', '1')),
  raw(deep(200, '{"a":', '}', '1')),
  raw(deep(200, '{"type":"array","items":', '}', '{}')),
  raw(deep(200, '{"not":', '}', '{}')),
  raw('{"__proto__":{"x":1}}'),
  raw('{"constructor":{"prototype":{"x":1}}}'),
  raw('{"a":1,"a":2}'),
  raw('"\\ud83d"'),
  raw('"\\u0000\\uffff"'),
];
const EXPENSIVE = [
  raw(deep(20_000, '[', ']', '1')),
  raw(deep(20_000, '{"a":', '}', '1')),
  raw(deep(5000, '{"type":"array","items":', '}', '{}')),
  'a'.repeat(300_000),
  new Array(20_000).fill(1),
];
const NAMES = [
  'model',
  'messages',
  'prompt',
  'input',
  'stream',
  'n',
  'max_tokens',
  'tools',
  'stop',
  'seed',
  'role',
  'content',
  'name',
  'type',
  '__proto__',
  'constructor',
  '',
  'a.b[0]',
  'x'.repeat(300),
  '\u0000',
  'top_k',
  'min_p',
  'guided_json',
  'grammar',
  'response_format',
  'json_schema',
  'schema',
  'id_slot',
  'cache_prompt',
  'user',
];

/** Changes a few places of a value. */
function mutate(value, random) {
  const changed = structuredClone(value);
  const hostile = () => structuredClone(random.of(random.chance(0.004) ? EXPENSIVE : HOSTILE));
  for (let i = random.below(3); i >= 0; i--) {
    let place = changed;
    for (;;) {
      const keys = Object.keys(place);
      if (keys.length === 0 || random.chance(0.1)) {
        if (Array.isArray(place)) place.push(hostile());
        else
          Object.defineProperty(place, random.of(NAMES), {
            value: hostile(),
            enumerable: true,
            writable: true,
            configurable: true,
          });
        break;
      }
      const key = random.of(keys);
      const inner = place[key];
      if (typeof inner === 'object' && inner !== null && random.chance(0.7)) {
        place = inner;
        continue;
      }
      if (random.chance(0.15)) delete place[key];
      else if (random.chance(0.1)) place[key] = [inner];
      else if (random.chance(0.05) && Array.isArray(inner)) place[key] = Array.from({ length: 40 }, () => inner).flat();
      else place[key] = hostile();
      break;
    }
  }
  return changed;
}

function textOf(value) {
  return JSON.stringify(value)?.replace(/"@@RAW:((?:[^"\\]|\\.)*?)@@"/g, (_, text) => JSON.parse(`"${text}"`)) ?? '';
}

/** Changes a text, so that it is hardly any JSON any more. */
function damage(text, random) {
  const at = random.below(text.length + 1);
  switch (random.below(9)) {
    case 0:
      return text.slice(0, at);
    case 1:
      return (
        text.slice(0, at) +
        random.of(['"', '}', '[', ',', ':', '\\', '\0', '\u2028', '//', "'", 'NaN', '1e']) +
        text.slice(at)
      );
    case 2:
      return text + text;
    case 3:
      return `\ufeff${text}`;
    case 4:
      return Buffer.concat([
        Buffer.from(text.slice(0, at)),
        Buffer.from([0xff, 0xfe, 0x80, 0xc3]),
        Buffer.from(text.slice(at)),
      ]);
    case 5:
      return random.of([
        '',
        ' ',
        'null',
        '0',
        '"x"',
        '[]',
        '[[[[',
        '{',
        '{}',
        '{"',
        'true',
        '-',
        '\0',
        '<xml/>',
        'a=1&b=2',
        '--x\r\n\r\n--x--',
      ]);
    case 6:
      return text.replaceAll('"', "'");
    case 7:
      return Buffer.from(text, 'utf16le');
    default:
      return Buffer.from(Array.from({ length: random.below(200) }, () => random.below(256)));
  }
}

const line = (endpoint) => `{"custom_id":"a","method":"POST","url":"${endpoint}","body":{"messages":[]}}\n`;
const part = (about, content) => `--x\r\ncontent-disposition: form-data; ${about}\r\n\r\n${content}\r\n`;
const FORMS = [
  `${part('name="purpose"', 'batch')}${part('name="file"; filename="a.jsonl"', line('/v1/chat/completions'))}--x--\r\n`,
  `${part('name="file"; filename="../../etc/passwd"', line('/v1/x'))}${part('name="purpose"', 'batch')}--x--\r\n`,
  `${part('name="purpose"', 'assistants')}${part('name="file"; filename=""', '')}--x--\r\n`,
  `${part('name="purpose"', 'batch'.repeat(500))}--x--\r\n`,
  `${part('name="file"; filename="a"', 'x'.repeat(10_000))}--x--\r\n`,
  `${part('name="__proto__"', 'x')}${part('', 'x')}--x--\r\n`,
  part('name="file"; filename="a"', 'it does not end'),
  `${part('name="a"', 'b').repeat(300)}--x--\r\n`,
  '--x--\r\n',
  '--x\r\n\r\n--x\r\n--x--',
  `--x\r\n${'h: v\r\n'.repeat(3000)}\r\n--x--\r\n`,
];
const TYPES = [
  'application/json',
  'application/json',
  'application/json',
  'application/json; charset=utf-8',
  'application/json;charset=x',
  'text/plain',
  'application/x-www-form-urlencoded',
  'multipart/form-data',
  'multipart/form-data; boundary=x',
  'application/xml',
  'x',
  '',
  ';',
  'application/json, text/plain',
  'a/b/c',
  `application/json; ${'x'.repeat(500)}`,
];
const HEADERS = [
  'x-request-id: <script>',
  'x-request-id: ../../x',
  `x-request-id: ${'y'.repeat(400)}`,
  'authorization: Bearer',
  'authorization: Bearer x',
  `authorization: Bearer ${'z'.repeat(2000)}`,
  'authorization: Basic AAAA',
  'x-api-key: x',
  'x-api-key:',
  'origin: null',
  'origin: https://evil.example',
  'origin: http://localhost',
  'origin: ://',
  'sec-fetch-site: cross-site',
  'traceparent: 00-0-0-0',
  'traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
  'accept: application/x-nothing',
  'accept-encoding: gzip, br, x',
  'content-encoding: gzip',
  'x-forwarded-for: 1.2.3.4, x, ::1',
  'x-forwarded-host: evil.example',
  'x-forwarded-proto: javascript',
  'forwarded: for=x',
  'range: bytes=0-18446744073709551615',
  'if-none-match: "x"',
  'if-modified-since: x',
  'cookie: a=b; __proto__=1',
  'te: trailers',
  'x-http-method-override: DELETE',
  'anthropic-version: x',
  'anthropic-beta: x,y',
  'openai-beta: x',
  'content-language: \u00e9',
  'accept: text/event-stream',
  'prefer: wait=x',
  'expect: nothing',
  'last-event-id: 1',
  'user-agent:',
  'referer: javascript:alert(1)',
  '__proto__: x',
  'constructor: x',
  Array.from({ length: 60 }, (_, i) => `x-${i}: y`).join('\r\n'),
];

/** A whole request, its method and what it is. */
function framedRequest(random) {
  const kind = random.next();
  const headers = random.chance(0.2) ? `${random.of(HEADERS)}\r\n` : '';
  if (kind < 0.15) {
    const method = random.of(METHODS);
    const where = random.chance(0.8)
      ? random.of(PATHS)
      : random.of(ENDPOINTS) + random.of(['', '/', '?x=1', '/..', '%00']);
    const body = method === 'GET' || method === 'HEAD' || random.chance(0.7) ? '' : '{}';
    return request(method, where, headers, random.of(TYPES), body, 'path');
  }
  if (kind < 0.18) {
    const form = random.of(FORMS);
    const body = random.chance(0.5) ? form : damage(form, random);
    return request(
      'POST',
      '/v1/files',
      headers,
      `multipart/form-data; boundary=${random.of(['x', 'x', 'x', '"x"', 'y', ''])}`,
      body,
      'form',
    );
  }
  const endpoint = random.of(ENDPOINTS);
  const value = random.of(BODIES[endpoint]);
  if (kind < 0.22) return request('POST', endpoint, headers, random.of(TYPES), textOf(mutate(value, random)), 'type');
  if (kind < 0.4)
    return request('POST', endpoint, headers, 'application/json', damage(textOf(value), random), 'damaged');
  if (kind < 0.42) return request('POST', endpoint, headers, 'application/json', textOf(value), 'plain');
  if (kind < 0.46) {
    const text = textOf(mutate(value, random));
    const chunks = [];
    for (let at = 0, next; at < text.length; at = next) {
      next = at + 1 + random.below(text.length);
      const part = Buffer.from(text.slice(at, next));
      const extension = random.chance(0.1) ? ';a="b"' : '';
      chunks.push(Buffer.from(`${part.length.toString(16)}${extension}\r\n`), part, Buffer.from('\r\n'));
    }
    chunks.push(Buffer.from(random.chance(0.1) ? '0\r\nx-trailer: y\r\n\r\n' : '0\r\n\r\n'));
    const head = `POST ${endpoint} HTTP/1.1\r\nhost: localhost\r\n${headers}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n`;
    return { bytes: Buffer.concat([Buffer.from(head, 'latin1'), ...chunks]), method: 'POST', kind: 'chunked' };
  }
  return request('POST', endpoint, headers, 'application/json', textOf(mutate(value, random)), 'mutated');
}

function request(method, where, headers, type, body, kind) {
  const data = Buffer.isBuffer(body) ? body : Buffer.from(body);
  const hasBody = data.length > 0 || method === 'POST';
  const about = hasBody ? `content-type: ${type}\r\ncontent-length: ${data.length}\r\n` : '';
  // A path as it is, with what no client would send; only what ends the line is taken out.
  const head = `${method} ${where.replace(/[\s#]/g, '')} HTTP/1.1\r\nhost: localhost\r\n${headers}${about}\r\n`;
  return { bytes: Buffer.concat([Buffer.from(head, 'latin1'), data]), method, kind };
}

/** Takes answers out of what a socket gives. */
class AnswerReader {
  #data = Buffer.alloc(0);
  /** Methods of requests whose answers are to come. */
  pending = [];
  constructor(onAnswer) {
    this.onAnswer = onAnswer;
  }
  push(data) {
    this.#data = this.#data.length === 0 ? data : Buffer.concat([this.#data, data]);
    while (this.#take());
  }
  #take() {
    const end = this.#data.indexOf('\r\n\r\n');
    if (end < 0) return false;
    const head = this.#data.toString('latin1', 0, end);
    const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(head)?.[1]);
    if (!status) throw new Error(`no answer: ${head.slice(0, 200)}`);
    if (status < 200) {
      this.#data = this.#data.subarray(end + 4);
      return true;
    }
    const length = /^content-length: *(\d+)/im.exec(head)?.[1];
    let at = end + 4;
    let body = '';
    if (this.pending[0] === 'HEAD' || status === 204 || status === 304) {
      // No body.
    } else if (/^transfer-encoding: *chunked/im.test(head)) {
      for (;;) {
        const line = this.#data.indexOf('\r\n', at);
        if (line < 0) return false;
        const size = Number.parseInt(this.#data.toString('latin1', at, line), 16);
        if (this.#data.length < line + 2 + size + 2) return false;
        body += this.#data.toString('utf8', line + 2, line + 2 + size);
        at = line + 2 + size + 2;
        if (size === 0) break;
      }
    } else {
      const size = Number(length ?? 0);
      if (this.#data.length < at + size) return false;
      body = this.#data.toString('utf8', at, at + size);
      at += size;
    }
    this.#data = this.#data.subarray(at);
    this.pending.shift();
    this.onAnswer({ status, body, head });
    return true;
  }
}

const PATIENCE_MS = 60_000;

async function framedWorker({ port, random, counts, check, fail, isOver }) {
  while (!isOver()) {
    const socket = net.connect(port, '127.0.0.1');
    socket.setNoDelay(true);
    let wake = () => {};
    let isClosed = false;
    let sent = [];
    let willClose = false;
    const reader = new AnswerReader((answer) => {
      check(answer, sent[sent.length - reader.pending.length - 1] ?? '');
      willClose ||= /^connection: *close/im.test(answer.head);
      if (reader.pending.length === 0) wake();
    });
    socket.on('data', (data) => {
      try {
        reader.push(data);
      } catch (error) {
        fail(error.message, Buffer.concat(sent), data);
        socket.destroy();
      }
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      isClosed = true;
      wake();
    });
    for (let i = 0; i < 200 && !isClosed && !willClose && !isOver(); i++) {
      const requests = Array.from({ length: random.chance(0.3) ? 2 + random.below(8) : 1 }, () =>
        framedRequest(random),
      );
      sent = requests.map(({ bytes }) => bytes);
      reader.pending = requests.map(({ method }) => method);
      counts.sent += requests.length;
      for (const { kind } of requests) counts.kinds[kind] = (counts.kinds[kind] ?? 0) + 1;
      const answered = new Promise((resolve) => {
        wake = resolve;
      });
      const timer = setTimeout(() => {
        fail(`no answer within ${PATIENCE_MS} ms`, Buffer.concat(sent), '');
        socket.destroy();
      }, PATIENCE_MS);
      socket.write(Buffer.concat(sent));
      const leaves = random.chance(0.01);
      if (leaves) {
        // A client that goes before, or while, it is answered.
        setTimeout(() => socket.destroy(), random.below(30));
        counts.kinds.left = (counts.kinds.left ?? 0) + 1;
      }
      await answered;
      clearTimeout(timer);
      if (leaves) break;
      // A server may close behind an error; what stood behind that in the pipeline is not answered.
      if (isClosed) {
        counts.closedUnanswered += reader.pending.length;
        if (!willClose && reader.pending.length > 0)
          fail('the connection was closed without an answer', Buffer.concat(sent.slice(-reader.pending.length)), '');
      }
    }
    socket.destroy();
  }
}

// --- Requests whose frame is broken: each on a connection of its own, which the server may close. ---

const json = '{"messages":[{"role":"user","content":"x"}],"max_tokens":1}';
const chat = 'POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n';
const LOOSE = [
  () => `${chat}content-length: -1\r\n\r\n${json}`,
  () => `${chat}content-length: 99999999999999999999\r\n\r\n${json}`,
  () => `${chat}content-length: 1e3\r\n\r\n${json}`,
  () => `${chat}content-length: 5\r\ncontent-length: 6\r\n\r\n${json}`,
  () =>
    `${chat}content-type: application/json\r\ncontent-length: 10\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\n\r\n`,
  () => `${chat}transfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n`,
  () => `${chat}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n`,
  () => `${chat}transfer-encoding : chunked\r\n\r\n0\r\n\r\n`,
  () => `${chat}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{`,
  () => `${chat}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n`,
  () => `${chat}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n`,
  () =>
    `${chat}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n2;${'a'.repeat(20_000)}\r\n{}\r\n0\r\n\r\n`,
  () =>
    `${chat}content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: ${json.length}\r\n\r\n${json}`,
  () => `${chat}content-type: application/json\r\ncontent-length: ${json.length + 10}\r\n\r\n${json}`,
  () => `${chat}x: ${'a'.repeat(20_000)}\r\n\r\n`,
  () => `${chat}${Array.from({ length: 3000 }, (_, i) => `h${i}: v`).join('\r\n')}\r\n\r\n`,
  () => `${chat}x:\0y\r\n\r\n`,
  () => `${chat}x y: z\r\n\r\n`,
  () => `${chat} folded: y\r\n\r\n`,
  () => 'GET /health HTTP/1.1\r\n\r\n',
  () => 'GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n',
  () => 'GET /health HTTP/1.0\r\n\r\n',
  () => 'GET /health HTTP/2.0\r\n\r\n',
  () => 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
  () => 'GET http://evil.example/v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n',
  () => 'GET //evil.example/v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n',
  () => 'GET * HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n',
  () => 'OPTIONS * HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n',
  () => 'CONNECT evil.example:443 HTTP/1.1\r\nhost: localhost\r\n\r\n',
  () =>
    'GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: AAAA\r\nsec-websocket-version: 13\r\n\r\n',
  () =>
    'GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAAA\r\n\r\n',
  () => 'BREW /pot HTTP/1.1\r\nhost: localhost\r\n\r\n',
  () => 'get /health http/1.1\r\nhost: localhost\r\n\r\n',
  () => 'GET /a b HTTP/1.1\r\nhost: localhost\r\n\r\n',
  () => 'GET\t/health\tHTTP/1.1\r\n\r\n',
  () => 'GET /\u00ff\u0001 HTTP/1.1\r\nhost: localhost\r\n\r\n',
  () => `GET /${'a'.repeat(30_000)} HTTP/1.1\r\nhost: localhost\r\n\r\n`,
  () => 'GET /health HTTP/1.1\nhost: localhost\n\n',
  () => '\r\n\r\n\r\nGET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n',
  () => '\u0016\u0003\u0001\u0002\0\u0001\0\u0001\u00fc\u0003\u0003',
  () => `${chat}host: evil.example\r\n\r\n`,
  () => 'GET /v1/models HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n',
  () => 'GET /v1/models HTTP/1.1\r\nhost: localhost:99999999\r\nconnection: close\r\n\r\n',
  () => 'GET /v1/models HTTP/1.1\r\nhost: [::1\r\nconnection: close\r\n\r\n',
  () => `${chat}content-type: application/json\r\ncontent-length: 3000000\r\n\r\n${'x'.repeat(3_000_000)}`,
  () => `${chat}content-type: application/json\r\ncontent-length: ${json.length}\r\nconnection: close\r\n\r\n${json}`,
];

async function looseWorker({ port, random, counts, check, isOver }) {
  while (!isOver()) {
    let text = random.of(LOOSE)();
    // Some of any request, whole or not, with a change somewhere in its head.
    if (random.chance(0.5)) text = framedRequest(random).bytes.toString('latin1');
    if (random.chance(0.4)) {
      const at = random.below(Math.min(text.length, 300));
      text =
        text.slice(0, at) +
        random.of(['\0', '\r', '\n', '\r\n', ' ', ':', '\u00ff', 'HTTP/1.1', '']) +
        text.slice(at + random.below(3));
    }
    if (random.chance(0.2)) text = text.slice(0, random.below(text.length));
    counts.sent++;
    counts.kinds.loose = (counts.kinds.loose ?? 0) + 1;
    const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    socket.on('error', () => {});
    const reader = new AnswerReader((answer) => check(answer, text));
    socket.on('data', (data) => {
      try {
        reader.push(data);
      } catch {
        // An answer's end is not known where nobody knows which request it is for.
      }
    });
    const closed = new Promise((resolve) => socket.once('close', resolve));
    socket.write(Buffer.from(text, 'latin1'));
    if (random.chance(0.3)) socket.end();
    // The server may wait for more; that is not waited for.
    const timer = setTimeout(() => socket.destroy(), 20 + random.below(200));
    socket.once('end', () => socket.destroy());
    await closed;
    clearTimeout(timer);
  }
}

// --- Requests that come byte by byte: the server's limits end them. ---

async function slowWorker({ port, random, counts, fail, isOver }) {
  while (!isOver()) {
    const text = random.of([
      `GET /health HTTP/1.1\r\nhost: localhost\r\nx: ${'a'.repeat(3000)}`,
      `${chat}content-type: application/json\r\ncontent-length: 3000\r\n\r\n${' '.repeat(2900)}`,
      `${chat}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n${'1\r\n \r\n'.repeat(1000)}`,
    ]);
    counts.sent++;
    counts.kinds.slow = (counts.kinds.slow ?? 0) + 1;
    const socket = net.connect(port, '127.0.0.1').on('error', () => {});
    socket.resume();
    const closed = new Promise((resolve) => socket.once('close', () => resolve(true)));
    let at = 0;
    const timer = setInterval(() => socket.write(text[at++ % text.length]), 20);
    const isClosed = await Promise.race([closed, sleep(40_000, false, { ref: false })]);
    clearInterval(timer);
    if (!isClosed) fail('a request that comes byte by byte was not ended', text, '');
    socket.destroy();
  }
}

if (process.send && process.argv[2] === 'serve') await serve();
else await main();
