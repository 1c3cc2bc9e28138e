// Speed of the tokenizer: encoding of texts of many kinds and sizes, which has to be linear in each, decoding, streaming
// decoding, and how long encodeAsync() holds the event loop.
import { readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { commandLine, printTable, verdict, watchNeighbours } from './common.mjs';

const MOST_RATIO = 1.5;
const MOST_TURN_MS = 20;

const usage = 'node tokenizer.mjs [TOKENIZER] [--package ../dist/esm.mjs] [--sizes 1e3,1e5,1e7] [--only KIND]';
const { values, positionals } = commandLine(usage, {
  package: { type: 'string' },
  sizes: { type: 'string' },
  only: { type: 'string' },
});
const { embeddedModelPath, loadTokenizer } = await import(values.package ?? '../dist/esm.mjs');
const sizes = (values.sizes ?? '1e3,1e5,1e7').split(',').map(Number);
const neighbours = watchNeighbours();
const tokenizer = await loadTokenizer(positionals[0] ?? embeddedModelPath());

function randomWords(seed) {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state >>> 8;
  };
}

/** `bytes` bytes of what `part` gives, piece by piece. */
function textOf(bytes, part) {
  const parts = [];
  for (let length = 0; length < bytes; ) {
    const next = part();
    length += Buffer.byteLength(next);
    parts.push(next);
  }
  return parts.join('');
}

function pick(list) {
  const random = randomWords(7);
  return (bytes) => textOf(bytes, () => list[random() % list.length]);
}

const repeat = (part) => (bytes) => part.repeat(Math.ceil(bytes / Buffer.byteLength(part)));
const english = `It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of
foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light. `;
const chinese =
  '人工智能是计算机科学的一个分支，它企图了解智能的实质，并生产出一种新的能以人类智能相似的方式做出反应的智能机器。';
const code = `def bubble_sort(numbers):\n    for i in range(len(numbers)):\n        for j in range(0, len(numbers) - i - 1):
            if numbers[j] > numbers[j + 1]:\n                numbers[j], numbers[j + 1] = numbers[j + 1], numbers[j]\n`;

/** Pieces of the vocabulary one after the other: many others can be merged across their ends. */
function pieces(bytes) {
  const random = randomWords(11);
  return textOf(bytes, () => tokenizer.decode([30_910 % tokenizer.size, 259 + (random() % (tokenizer.size - 259))]));
}

function randomBytes(bytes) {
  const random = randomWords(5);
  const buffer = Buffer.allocUnsafe(bytes >> 1);
  for (let i = 0; i < buffer.length; i++) buffer[i] = random();
  return buffer.toString();
}

const kinds = {
  english: pick(english.match(/.{1,40}/gs)),
  chinese: pick(chinese.match(/.{1,5}/gs)),
  code: repeat(code),
  mixed: pick(['人工智能 and deep learning. ', 'é', '😀', '\n', '    ', 'ß', '1234', 'Привет мир ', english]),
  spaces: repeat(' '),
  newlines: repeat('\n'),
  'one letter': repeat('a'),
  'one CJK character': repeat('中'),
  'one emoji': repeat('😀'),
  'two letters': repeat('ab'),
  digits: pick([...'0123456789']),
  'random letters': pick([...'etaoinshrdlu']),
  'random letters, spaces': pick([...'etaoin    ']),
  'random bytes': randomBytes,
  'random pieces': pieces,
};

/** The least of several times of the processor, in ms: a busy machine makes others of the clock's. */
function time(body, budget = 300) {
  let least = Number.POSITIVE_INFINITY;
  const end = performance.now() + budget;
  // Of a short body many, as the processor's time comes in microseconds.
  let calls = 1;
  for (let runs = 0; runs < 3 || performance.now() < end; runs++) {
    const before = process.cpuUsage();
    for (let i = 0; i < calls; i++) body();
    const { user, system } = process.cpuUsage(before);
    least = Math.min(least, (user + system) / 1000 / calls);
    if (user + system < 2000) calls *= 2;
  }
  return least;
}

let missed = 0;
const rows = [];
for (const [kind, make] of Object.entries(kinds)) {
  if (values.only !== undefined && values.only !== kind) continue;
  const perByte = sizes.map((size) => {
    const text = make(size);
    const bytes = Buffer.byteLength(text);
    return (time(() => tokenizer.encode(text)) * 1e6) / bytes;
  });
  const ratio = perByte.at(-1) / perByte.at(-2);
  if (ratio > MOST_RATIO) missed++;
  const text = make(1e6);
  const ids = Uint32Array.from(tokenizer.encode(text));
  const bytes = Buffer.byteLength(text);
  const decode = bytes / 1e3 / time(() => tokenizer.decode(ids));
  const some = ids.subarray(0, 50_000);
  const stream = time(() => {
    const decoder = tokenizer.createDecoder();
    for (const id of some) decoder.push(id);
    decoder.flush();
  });
  rows.push([
    kind,
    ...perByte.map((ns) => ns.toFixed(1)),
    ratio.toFixed(2),
    (1e3 / perByte.at(-1)).toFixed(1),
    decode.toFixed(0),
    ((stream * 1e6) / some.length).toFixed(0),
  ]);
}
const names = sizes.map((size) => `ns/byte, ${size / 1e3} kB`);
printTable([['text', ...names, 'last two', 'MB/s', 'decode MB/s', 'stream ns/token'], ...rows]);

/** Milliseconds that this thread has had of the processor, which Linux tells; elsewhere the clock's. */
function ownTime() {
  try {
    return Number(readFileSync('/proc/thread-self/schedstat', 'utf8').split(' ')[0]) / 1e6;
  } catch {
    return performance.now();
  }
}

/** The longest turn of the event loop while `body` runs, by this thread's time and by the clock; and the whole time. */
async function longestTurn(body) {
  const longest = [0, 0];
  let last = [ownTime(), performance.now()];
  let running = true;
  const tick = () => {
    const now = [ownTime(), performance.now()];
    now.forEach((time, i) => {
      longest[i] = Math.max(longest[i], time - last[i]);
    });
    last = now;
    if (running) setImmediate(tick);
  };
  setImmediate(tick);
  const begin = performance.now();
  await body();
  const elapsed = performance.now() - begin;
  running = false;
  await new Promise((resolve) => setImmediate(resolve));
  return [...longest, elapsed];
}

if (tokenizer.encodeAsync !== undefined) {
  const turns = [];
  for (const [kind, make] of Object.entries(kinds)) {
    if (values.only !== undefined && values.only !== kind) continue;
    const text = make(sizes.at(-1));
    const runs = [];
    for (let i = 0; i < 3; i++) runs.push(await longestTurn(() => tokenizer.encodeAsync(text)));
    const least = [0, 1, 2].map((i) => Math.min(...runs.map((run) => run[i])));
    if (least[0] > MOST_TURN_MS) missed++;
    turns.push([kind, ...least.map((ms) => ms.toFixed(1))]);
  }
  printTable([['encodeAsync()', 'longest turn, own ms', 'by the clock', 'in all'], ...turns]);
}
console.log(
  `ns/byte of the last two sizes within ${MOST_RATIO}, turns below ${MOST_TURN_MS} ms: ${verdict(missed === 0)} (${neighbours()})`,
);
