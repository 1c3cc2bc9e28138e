'use strict';
// Opens checkpoints that were damaged at random, with an eye on their structure: each must be refused with an error of
// this package, or all that it promises must lie within its files; quickly, within bounds of memory, without holding the
// event loop, and without a trace in Object.prototype. A share of what is accepted is loaded and computed with.
//
//   node scripts/fuzz-checkpoints.cjs [--seconds N | --runs N] [--seed S]
//
// Needs a build and dist/. Input i has the seed S + i, so "--runs 1 --seed X" repeats the input of a finding, whose files
// are kept. Files lie in memory (readFromMemory of test/support/hostile.cjs), but those that are computed with.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const Module = require('node:module');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const { openCheckpoint, readTokenizer } = require('../dist/checkpoint/open.js');
const {
  computes,
  errorProblem,
  pollution,
  rangeProblem,
  readFromMemory,
  threadClock,
} = require('../test/support/hostile.cjs');

/** Of one input. Times are those that the thread computes, where the system tells: other processes take theirs. */
const LIMITS = {
  milliseconds: 500,
  /** The longest that the event loop is held; of the best of three tries, as now and then garbage is collected. */
  blockMilliseconds: 20,
  tries: 3,
  /** Bytes of memory: ten times the input, and this. */
  constantBytes: 96 << 20,
};
/** Of so many inputs, by seed, one is computed with where it is accepted. */
const COMPUTE_ONE_OF = 50;
/** Inputs between two looks at the memory that was taken. */
const INPUTS_PER_LOOK = 64;

function main() {
  const options = readArguments(process.argv.slice(2));
  if (options.child) return fuzz(options);
  // In a process of its own, whose end by a signal is a finding, too.
  const state = path.join(scratch(), `fuzz-checkpoints-${process.pid}`);
  const { status, signal } = spawnSync(process.execPath, [__filename, '--child', state, ...process.argv.slice(2)], {
    stdio: 'inherit',
  });
  const seed = fs.existsSync(state) ? fs.readFileSync(state, 'utf8') : undefined;
  fs.rmSync(state, { force: true });
  if (status !== 0 && status !== 1)
    console.error(`the process ended by ${signal ?? status} at --runs 1 --seed ${seed}`);
  process.exitCode = status === 0 ? 0 : 1;
  return undefined;
}

function readArguments(args) {
  const options = { seconds: undefined, runs: undefined, seed: Date.now() % 1_000_000_000, child: undefined };
  for (let i = 0; i < args.length; i += 2) {
    const name = args[i].slice(2);
    const value = name === 'child' ? args[i + 1] : Number(args[i + 1]);
    const isKnown = args[i].startsWith('--') && Object.hasOwn(options, name);
    if (!isKnown || (name !== 'child' && !(Number.isSafeInteger(value) && value >= 0))) {
      console.error('usage: node scripts/fuzz-checkpoints.cjs [--seconds N | --runs N] [--seed S]');
      process.exit(2);
    }
    options[name] = value;
  }
  if (options.seconds === undefined && options.runs === undefined) options.seconds = 60;
  return options;
}

/** A folder in memory, where there is one. */
function scratch() {
  return fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir();
}

async function fuzz({ seconds = Number.POSITIVE_INFINITY, runs = Number.POSITIVE_INFINITY, seed, child }) {
  const folder = fs.mkdtempSync(path.join(scratch(), 'fuzz-checkpoints-'));
  const bases = baseCheckpoints(folder);
  const turns = measureTurns();
  const begin = performance.now();
  const figures = { accepted: 0, computed: 0, findings: 0, longestBlock: 0, slowest: 0 };
  const outcome = { inputs: 0, ...figures, peak: 0, latestBytes: 0 };
  const elapsed = () => (performance.now() - begin) / 1000;
  let told = 0;
  while (outcome.inputs < runs && elapsed() < seconds && outcome.findings === 0) {
    const own = seed + outcome.inputs++;
    const problem = await tryInput(own, bases, folder, turns, outcome, child);
    if (problem !== undefined) {
      outcome.findings++;
      console.error(`finding: ${problem}\nrepeat with --runs 1 --seed ${own}; the files: ${keep(own, bases, folder)}`);
    }
    if (elapsed() - told >= 60) {
      told = elapsed();
      console.log(summary(outcome, told, seed));
    }
  }
  console.log(summary(outcome, elapsed(), seed));
  if (outcome.findings === 0) fs.rmSync(folder, { recursive: true, force: true });
  process.exitCode = outcome.findings === 0 ? 0 : 1;
}

function summary({ inputs, accepted, computed, findings, longestBlock, slowest }, seconds, seed) {
  const found = findings === 0 ? 'no findings' : 'a finding';
  const figures = `${accepted} accepted, ${computed} computed with, longest block ${longestBlock.toFixed(1)} ms`;
  const rest = `slowest ${slowest.toFixed(0)} ms, ${seconds.toFixed(0)} s, seed ${seed}`;
  return `checkpoints: ${inputs} inputs, ${found} (${figures}, ${rest})`;
}

/** Opens the input of a seed. Returns what is wrong, or undefined. */
async function tryInput(seed, bases, folder, turns, outcome, stateFile) {
  const input = makeInput(seed, bases, folder);
  let inputBytes = 0;
  for (const bytes of input.files.values()) inputBytes += bytes.length;
  let checkpoint;
  let best = Number.POSITIVE_INFINITY;
  let bestBlock = Number.POSITIVE_INFINITY;
  for (let i = 0; i < LIMITS.tries && (best > LIMITS.milliseconds || bestBlock > LIMITS.blockMilliseconds); i++) {
    const restore = readFromMemory(input.files);
    turns.begin();
    try {
      checkpoint = await open(input);
    } catch (error) {
      const problem = errorProblem(error);
      if (problem !== undefined) return problem;
    } finally {
      restore();
    }
    const { longest, total } = turns.end();
    bestBlock = Math.min(bestBlock, longest);
    best = Math.min(best, total);
  }
  outcome.longestBlock = Math.max(outcome.longestBlock, bestBlock);
  outcome.slowest = Math.max(outcome.slowest, best);
  if (best > LIMITS.milliseconds) return `it took ${best} ms`;
  if (bestBlock > LIMITS.blockMilliseconds) return `it held the event loop for ${bestBlock} ms`;
  const memory = memoryProblem(inputBytes, outcome);
  if (memory !== undefined) return memory;
  const polluted = pollution();
  if (polluted !== undefined) return `all objects have got a property ${polluted}`;
  if (checkpoint === undefined) return undefined;

  outcome.accepted++;
  if (checkpoint.tensors === undefined) return undefined;
  const outside = rangeProblem(checkpoint, (file) => input.files.get(file).length);
  if (outside !== undefined || seed % COMPUTE_ONE_OF !== 0) return outside;
  if (stateFile !== undefined) fs.writeFileSync(stateFile, String(seed));
  write(input.files);
  try {
    if (await computes(input.target)) outcome.computed++;
    return undefined;
  } catch (error) {
    return `loading it failed: ${error.stack}`;
  } finally {
    for (const file of input.files.keys()) fs.rmSync(file, { force: true });
  }
}

/** Whether memory has grown more than the latest inputs explain. Asking for the peak takes longer than most inputs. */
function memoryProblem(inputBytes, outcome) {
  outcome.latestBytes += inputBytes;
  if (outcome.inputs % INPUTS_PER_LOOK !== 0) return undefined;
  const { latestBytes, peak } = outcome;
  outcome.peak = process.resourceUsage().maxRSS * 1024;
  outcome.latestBytes = 0;
  const grown = outcome.peak - peak;
  if (peak === 0 || grown <= 10 * latestBytes + LIMITS.constantBytes) return undefined;
  return `one of the latest ${INPUTS_PER_LOOK} inputs took ${grown} bytes of memory for ${latestBytes}`;
}

function open({ target, what, family }) {
  return what === 'tokenizer' ? readTokenizer(target) : openCheckpoint(target, { family });
}

function write(files) {
  for (const [file, bytes] of files) {
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, bytes);
  }
}

function keep(seed, bases, folder) {
  const { files, target } = makeInput(seed, bases, folder);
  write(files);
  return target;
}

/** Measures the longest time between two turns of the event loop. Reading from memory gives none, only Pace.rest() does. */
function measureTurns() {
  const clock = threadClock();
  const timers = require('node:timers/promises');
  const { setImmediate: real } = timers;
  let begin = 0;
  let last = 0;
  let longest = 0;
  const look = () => {
    const now = clock();
    longest = Math.max(longest, now - last);
    last = now;
  };
  timers.setImmediate = async (...args) => {
    look();
    await real(...args);
    last = clock();
  };
  return {
    begin() {
      longest = 0;
      begin = clock();
      last = begin;
    },
    end() {
      look();
      return { longest, total: last - begin };
    },
  };
}

/** Valid checkpoints, as maps of the names of files to their bytes, made by the tests' own writers. */
function baseCheckpoints(folder) {
  const small = requireTypeScript(path.join(root, 'test', 'support', 'small-checkpoints.ts'));
  const made = (name, options) => {
    const directory = path.join(folder, name);
    small.writeSmallDirectory(directory, options);
    return filesOf(directory);
  };
  const gguf = (options) => {
    const file = path.join(folder, 'model.gguf');
    small.writeSmallGguf(file, options);
    return new Map([['model.gguf', fs.readFileSync(file)]]);
  };
  const withText = (files, texts) => new Map([...files, ...Object.entries(texts).map(([k, v]) => [k, Buffer.from(v)])]);
  const tokenizerTexts = {
    'tokenizer_config.json': '{"name_or_path": "THUDM/chatglm3-6b", "remove_space": false}',
    'tokenization_chatglm.py': 'role_special_tokens = ["<|system|>", "<|user|>"]',
  };
  const adapter = {
    'adapter_config.json': '{"peft_type": "LORA", "base_model_name_or_path": "/data/chatglm3-6b", "r": 8}',
    'adapter_model.bin': 'x',
  };
  const plain = made('a', {});
  const bases = [
    plain,
    made('b', { shards: 2 }),
    made('c', { container: 'torch' }),
    made('d', { container: 'torch', shards: 2, quantizationBit: 4 }),
    made('e', { quantizationBit: 8 }),
    withText(made('f', { tokenizer: false }), tokenizerTexts),
    withText(new Map([['config.json', plain.get('config.json')]]), adapter),
    new Map([...made('g', { container: 'torch', tokenizer: false }), ...made('h', { shards: 2 })]),
    gguf({}),
    gguf({ type: 'q8_0' }),
    gguf({ type: 'q4_0' }),
    new Map([['tokenizer.model', plain.get('tokenizer.model')]]),
  ];
  fs.rmSync(folder, { recursive: true });
  fs.mkdirSync(folder);
  return bases;
}

function filesOf(directory) {
  return new Map(fs.readdirSync(directory).map((name) => [name, fs.readFileSync(path.join(directory, name))]));
}

/** Requires a TypeScript file of test/support, whose imports of lib/ become those of dist/. */
function requireTypeScript(file) {
  const { transformSync } = require('@babel/core');
  const { _resolveFilename: resolveFilename } = Module;
  Module._resolveFilename = (request, ...rest) => {
    const lib = /^\.\.\/\.\.\/lib\/(.*)$/.exec(request)?.[1];
    return resolveFilename(lib === undefined ? request : path.join(root, 'dist', `${lib}.js`), ...rest);
  };
  require.extensions['.ts'] = (module, name) => {
    const { code } = transformSync(fs.readFileSync(name, 'utf8'), {
      filename: name,
      babelrc: false,
      configFile: false,
      presets: ['@babel/preset-typescript'],
      plugins: ['@babel/plugin-transform-modules-commonjs'],
    });
    module._compile(code, name);
  };
  return require(file);
}

// Inputs.

/** The input of a seed: files by absolute path, what is opened, and how. */
function makeInput(seed, bases, folder) {
  const random = randomOf(seed);
  const directory = path.join(folder, 'chatglm3-input');
  const files = new Map(random.of(bases));
  for (let i = 1 + random.below(3); i > 0; i--) mutateFiles(files, bases, random);
  const all = new Map([...files].map(([name, bytes]) => [path.join(directory, name), bytes]));
  const isLone = files.size === 1;
  const target = all.size > 0 && (isLone || random.chance(4)) ? random.of([...all.keys()]) : directory;
  const isTokenizer = target.endsWith('tokenizer.model') || random.chance(10);
  const families = ['chatglm2', 'chatglm3', 'codegeex2'];
  const family = random.chance(4) ? random.of(families) : undefined;
  return { files: all, target, what: isTokenizer ? 'tokenizer' : 'checkpoint', family };
}

/** Numbers from a seed: mulberry32. */
function randomOf(seed) {
  let state = Math.imul(seed ^ Math.floor(seed / 2 ** 32), 0x9e3779b1) | 0;
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
  const below = (limit) => (limit <= 0 ? 0 : next() % limit);
  return { below, chance: (of) => below(of) === 0, of: (list) => list[below(list.length)], next };
}

const POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12487168064\n';
const CONTENTS = ['', 'x', POINTER, '{}', '[]', '<html>', 'ggml', 'lmgg', '\x80\x02}.', 'PK\x05\x06', 'GGUF', '\x00'];
const NAMES = [
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
  'my.safetensors',
  'config.json',
  'adapter_config.json',
  'adapter_model.safetensors',
  'tokenizer.model',
  'tokenizer_config.json',
  'tokenization_chatglm.py',
  'optimizer.pt',
  'model.onnx',
  'x.gguf',
  'chatglm3-ggml.bin',
];

/** Changes one file, or which files there are. */
function mutateFiles(files, bases, random) {
  const names = [...files.keys()];
  const name = random.of(names);
  const whole = random.below(24);
  if (name === undefined || whole === 0) files.set(random.of(NAMES), Buffer.from(random.of(CONTENTS), 'latin1'));
  else if (whole === 1) files.delete(name);
  else if (whole === 2) files.set(name, Buffer.from(random.of(CONTENTS), 'latin1'));
  else if (whole === 3) files.set(random.of(NAMES), files.get(name));
  else if (whole === 4) files.set(name, random.of([...random.of(bases).values()]));
  else files.set(name, mutateBytes(name, files.get(name), random));
}

function mutateBytes(name, bytes, random) {
  if (random.chance(3)) return mutateAnywhere(bytes, bytes.length, random);
  if (name.endsWith('.json')) return Buffer.from(mutateJson(bytes.toString('utf8'), random));
  const begin = bytes.toString('latin1', 0, 4);
  if (begin === 'GGUF') return mutateGguf(bytes, random);
  if (begin === 'PK\x03\x04') return mutateZip(bytes, random);
  if (bytes[8] === 0x7b) return mutateSafetensors(bytes, random);
  return name === 'tokenizer.model' ? mutateProtobuf(bytes, random) : mutateAnywhere(bytes, bytes.length, random);
}

/** Numbers that readers stumble over. */
const NUMBERS = [
  0,
  1,
  2,
  3,
  7,
  8,
  31,
  32,
  33,
  127,
  128,
  255,
  256,
  2 ** 15,
  2 ** 16 - 1,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
];
const WIDE = [
  ...NUMBERS.map(BigInt),
  2n ** 32n,
  2n ** 40n,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 1n,
];

/** Changes bytes within the first `limit` ones, whatever they mean. */
function mutateAnywhere(bytes, limit, random) {
  const at = random.below(limit);
  const changed = Buffer.from(bytes);
  switch (random.below(9)) {
    case 0:
      changed[at] ^= 1 << random.below(8);
      return changed;
    case 1:
      changed[at] = random.next();
      return changed;
    case 2:
      if (at + 4 <= changed.length) changed.writeUInt32LE(random.of(NUMBERS), at);
      return changed;
    case 3:
      if (at + 8 <= changed.length) changed.writeBigUInt64LE(random.of(WIDE), at);
      return changed;
    case 4:
      return changed.subarray(0, at);
    case 5:
      return Buffer.concat([changed.subarray(0, at), changed.subarray(at + 1 + random.below(16))]);
    case 6: {
      const from = random.below(limit);
      const copied = changed.subarray(from, from + 1 + random.below(64));
      return Buffer.concat([changed.subarray(0, at), copied, changed.subarray(at)]);
    }
    case 7: {
      const filled = Buffer.alloc(1 + random.below(4096), random.next() & 0xff);
      return Buffer.concat([changed.subarray(0, at), filled, changed.subarray(at)]);
    }
    default:
      for (let i = random.below(8); i >= 0; i--) changed[random.below(limit)] = random.next();
      return changed;
  }
}

const VALUES = [
  null,
  true,
  false,
  0,
  -1,
  0.5,
  1e308,
  5e-324,
  2 ** 31,
  2 ** 53,
  '',
  'x',
  '\u001b[31m',
  '../x',
  '__proto__',
  'toString',
  [],
  [[]],
  {},
  { toString: 1, valueOf: 1 },
  { __proto__: null, length: -1 },
  'x'.repeat(5000),
];
const KEYS = [
  '__proto__',
  'constructor',
  'toString',
  'length',
  '',
  'weight_map',
  'dtype',
  'shape',
  'quantization_config',
];

/** Changes a value or key somewhere in the JSON, or its text. */
function mutateJson(text, random) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return mutateAnywhere(Buffer.from(text), text.length, random);
  }
  if (random.chance(12))
    return text.replace('{', `{"a":${'['.repeat(random.below(200))}1${']'.repeat(random.below(200))},`);
  if (random.chance(12)) return text.replace(/"(\w+)":/, (member, key) => `"${key}":${random.below(99)},${member}`);
  if (random.chance(12)) return text.replace('{', `{"__proto__":{"polluted":1},`);
  if (random.chance(12))
    return text.replace(/\d+/, () => random.of(['-0', '01', '1.', '1e9', '1e999', 'NaN', '-', '0x1']));
  const places = [];
  const walk = (node) => {
    if (typeof node !== 'object' || node === null) return;
    for (const key of Object.keys(node)) {
      places.push([node, key]);
      walk(node[key]);
    }
  };
  walk(value);
  if (places.length === 0) return JSON.stringify(random.of(VALUES));
  const [node, key] = random.of(places);
  const action = random.below(4);
  if (action === 0) delete node[key];
  else if (action === 1) node[key] = random.of(VALUES);
  else if (action === 2)
    node[key] = typeof node[key] === 'number' ? node[key] + random.below(5) - 2 : random.of(VALUES);
  else if (Array.isArray(node)) node.push(random.of(VALUES));
  else Object.defineProperty(node, random.of(KEYS), { value: random.of(VALUES), enumerable: true, configurable: true });
  return JSON.stringify(value) ?? 'null';
}

/** Changes the header, and mostly says its new length rightly. */
function mutateSafetensors(bytes, random) {
  const end = 8 + Number(bytes.readBigUInt64LE(0));
  if (end > bytes.length || random.chance(5)) return mutateAnywhere(bytes, Math.min(end, bytes.length), random);
  const header = Buffer.from(mutateJson(bytes.toString('utf8', 8, end), random));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(random.chance(8) ? random.of(WIDE) : BigInt(header.length));
  return Buffer.concat([length, header, bytes.subarray(end)]);
}

/** Where the fields of a GGUF file's header lie: lengths, counts, types, offsets. Undefined for one that is damaged. */
function ggufFields(bytes) {
  const fields = [];
  let at = 8;
  const u32 = () => {
    fields.push({ at, bytes: 4 });
    at += 4;
    return bytes.readUInt32LE(at - 4);
  };
  const u64 = () => {
    fields.push({ at, bytes: 8 });
    at += 8;
    return Number(bytes.readBigUInt64LE(at - 8));
  };
  const text = () => {
    at += u64();
  };
  const sizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
  const value = (type) => {
    if (type === 8) return text();
    if (type !== 9) {
      fields.push({ at, bytes: sizes[type] });
      at += sizes[type];
      return undefined;
    }
    const itemType = u32();
    const count = u64();
    for (let i = 0; i < count; i++) value(itemType);
    return undefined;
  };
  try {
    const tensors = u64();
    const values = u64();
    const entries = [];
    for (let i = 0; i < values; i++) {
      const begin = at;
      text();
      value(u32());
      entries.push({ begin, end: at });
    }
    for (let i = 0; i < tensors; i++) {
      text();
      const dimensions = u32();
      for (let j = 0; j < dimensions; j++) u64();
      u32();
      u64();
    }
    return { fields, entries, end: at };
  } catch {
    return undefined;
  }
}

function mutateGguf(bytes, random) {
  const found = ggufFields(bytes);
  if (found === undefined) return mutateAnywhere(bytes, Math.min(bytes.length, 9000), random);
  const { fields, entries, end } = found;
  if (random.chance(4)) return mutateAnywhere(bytes, end, random);
  if (random.chance(3) && entries.length > 0) {
    // An entry less, or one twice; the count of entries follows, mostly.
    const { begin, end: entryEnd } = random.of(entries);
    const isTwice = random.chance(2);
    const kept = isTwice ? bytes.subarray(begin, entryEnd) : Buffer.alloc(0);
    const changed = Buffer.concat([bytes.subarray(0, begin), kept, kept, bytes.subarray(entryEnd)]);
    if (!random.chance(4)) changed.writeBigUInt64LE(BigInt(entries.length + (isTwice ? 1 : -1)), 16);
    return changed;
  }
  const changed = Buffer.from(bytes);
  const { at, bytes: width } = random.of(fields);
  if (width === 8)
    changed.writeBigUInt64LE(random.chance(3) ? BigInt(random.below(bytes.length)) : random.of(WIDE), at);
  else if (width === 4) changed.writeUInt32LE(random.chance(3) ? random.below(14) : random.of(NUMBERS), at);
  else changed[at] = random.next();
  return changed;
}

/** Pickle opcodes, with arguments where they need some. */
const OPCODES = [
  '(',
  ')',
  '.',
  'N',
  'Q',
  'R',
  ']',
  'a',
  'b',
  'e',
  's',
  't',
  'u',
  '}',
  '\x85',
  '\x86',
  '\x87',
  '\x88',
  '\x89',
  '\x93',
  '\x94',
  'K\x01',
  'M\x01\x00',
  'J\xff\xff\xff\xff',
  'h\x00',
  'h\x01',
  'h\x05',
  'q\x00',
  'q\x01',
  'X\x01\x00\x00\x00a',
  'X\x00\x00\x00\x00',
  '\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f',
  'ccollections\nOrderedDict\n',
  'ctorch._utils\n_rebuild_tensor_v2\n',
  'cos\nsystem\n',
  'ctorch\nHalfStorage\n',
  '0',
  '1',
  '\x80\x04',
  '\x95\x00\x00\x00\x00\x00\x00\x00\x00',
];

/** Changes the pickle, or the structure of the zip file: all but the tensors' bytes. */
function mutateZip(bytes, random) {
  const pickle = bytes.indexOf('data.pkl') + 'data.pkl'.length;
  const pickleEnd = bytes.indexOf('PK\x03\x04', pickle, 'latin1');
  if (random.chance(2) && pickleEnd > pickle) {
    const changed = Buffer.from(bytes);
    let at = pickle + random.below(pickleEnd - pickle);
    for (let i = 1 + random.below(4); i > 0; i--) {
      const opcode = Buffer.from(random.of(OPCODES), 'latin1');
      opcode.copy(changed, at);
      at = Math.min(at + opcode.length, pickleEnd);
    }
    return changed;
  }
  const directory = bytes.indexOf('PK\x01\x02', 0, 'latin1');
  if (directory < 0 || random.chance(3)) return mutateAnywhere(bytes, Math.min(bytes.length, pickleEnd + 100), random);
  const tail = mutateAnywhere(bytes.subarray(directory), bytes.length - directory, random);
  return Buffer.concat([bytes.subarray(0, directory), tail]);
}

/** Changes a piece, or adds fields. */
function mutateProtobuf(bytes, random) {
  if (random.chance(2)) return mutateAnywhere(bytes, bytes.length, random);
  const fields = [
    '\n\x00',
    '\x12\x02\x18\x01',
    '\x1a\x02\x18\x00',
    '\n\x03\n\x01x',
    ' \x00',
    '\x0d\x00\x00\x00\x00',
    '\xff\xff\xff\xff\x0f',
    '\x09',
    '\n\xff\xff\xff\xff\x0f',
    '\n\x09\n\x01\xff\x15\x00\x00\xc0\x7f',
    '\x0b',
  ];
  const added = Buffer.from(random.of(fields).repeat(1 + random.below(random.chance(20) ? 5000 : 5)), 'latin1');
  return random.chance(2) ? Buffer.concat([bytes, added]) : Buffer.concat([added, bytes]);
}

main();
