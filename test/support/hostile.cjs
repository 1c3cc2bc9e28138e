// What holds for every checkpoint, however damaged: it is refused with an error of this package, or all that it promises
// lies within its files. In plain JavaScript, since worker threads and scripts/fuzz-checkpoints.cjs use it without Jest.
const fs = require('node:fs');
const path = require('node:path');

const dist = path.join(__dirname, '..', '..', 'dist');
const { ChatGLMError } = require(path.join(dist, 'common', 'errors.js'));

/** Codes of errors that a file's content may bring about. */
const REFUSALS = ['ERR_CHECKPOINT_INVALID', 'ERR_CHECKPOINT_NOT_FOUND'];

/** What is wrong with an opened checkpoint: a range outside of its file. `sizeOf` gives a file's size. */
function rangeProblem(checkpoint, sizeOf) {
  const sizes = checkpoint.files.map(sizeOf);
  for (const { name, data, scale } of checkpoint.tensors) {
    for (const { file, offset, length } of scale === undefined ? [data] : [data, scale]) {
      const isInside = Number.isSafeInteger(offset) && offset >= 0 && length > 0 && offset + length <= sizes[file];
      if (!isInside) return `${name} lies outside of its file`;
    }
  }
  return undefined;
}

/** What is wrong with an error: it is none of this package, or of a code that no file's content brings about. */
function errorProblem(error) {
  if (!(error instanceof ChatGLMError)) return `a raw error: ${error?.stack ?? error}`;
  if (!REFUSALS.includes(error.code)) return `an error of the code ${error.code}: ${error.stack}`;
  // What a terminal would obey, and texts of any length, stay out of messages.
  if (/[\p{Cc}\p{Cs}]/u.test(error.message.replaceAll('\n', ''))) return 'a message with control characters';
  if (error.message.length > 4000) return `a message of ${error.message.length} characters`;
  return undefined;
}

/** The name of a property that something has given to all objects or arrays; undefined where all is well. */
function pollution() {
  for (const name in {}) return name;
  for (const name in []) return name;
  return undefined;
}

/** Loads what was opened and computes with it. Returns false where it is refused; throws what is no refusal. */
async function computes(target) {
  const { loadModel } = require(dist);
  let model;
  try {
    model = await loadModel(target, { device: 'cpu', threads: 1, maxSequences: 1, contextLength: 8 });
  } catch (error) {
    if (!REFUSALS.includes(error.code)) throw error;
    return false;
  }
  try {
    // Damaged weights may well overflow; that is an error of its own.
    await model.logits([1, 2, 3]).catch((error) => {
      if (error.code !== 'ERR_INVALID_LOGITS') throw error;
    });
    return true;
  } finally {
    await model.dispose();
  }
}

/** Lets node:fs/promises read at once: a hundred thousand trips to the thread pool take a minute, and test nothing. */
function readAtOnce() {
  const promises = require('node:fs/promises');
  promises.stat = async (...args) => fs.statSync(...args);
  promises.readdir = async (...args) => fs.readdirSync(...args);
  promises.open = async (...args) => {
    const fd = fs.openSync(...args);
    return {
      stat: async () => fs.fstatSync(fd),
      read: async (...place) => ({ bytesRead: fs.readSync(fd, ...place) }),
      close: async () => fs.closeSync(fd),
    };
  };
}

/** Lets node:fs/promises see the files of a map, by absolute path, instead of the disk's. They lie in one directory. */
function readFromMemory(files) {
  const promises = require('node:fs/promises');
  const real = { ...promises };
  const missing = (file) => Object.assign(new Error(`ENOENT: no ${file}`), { code: 'ENOENT', syscall: 'open' });
  const isFolder = (file) => [...files.keys()].some((name) => path.dirname(name) === file);
  promises.stat = async (file) => {
    if (!files.has(file) && !isFolder(file)) throw missing(file);
    return { isDirectory: () => !files.has(file) };
  };
  promises.readdir = async (folder) =>
    [...files.keys()].filter((name) => path.dirname(name) === folder).map((name) => path.basename(name));
  promises.open = async (file) => {
    const bytes = files.get(file);
    if (bytes === undefined) throw missing(file);
    return {
      stat: async () => ({ isFile: () => true, size: bytes.length }),
      read: async (target, at, length, position) => ({
        bytesRead: bytes.copy(target, at, position, Math.min(bytes.length, position + length)),
      }),
      close: async () => {},
    };
  };
  return () => Object.assign(promises, real);
}

/** Milliseconds that the main thread has computed; without Linux's /proc, those of the clock. */
function threadClock() {
  const file = `/proc/self/task/${process.pid}/schedstat`;
  if (!fs.existsSync(file)) return () => performance.now();
  const fd = fs.openSync(file);
  const bytes = Buffer.alloc(64);
  return () => Number(bytes.toString('latin1', 0, fs.readSync(fd, bytes, 0, 64, 0)).split(' ')[0]) / 1e6;
}

/** The longest time, by the thread's clock, that the event loop has no turn while `task` runs. */
async function longestTurn(task) {
  const clock = threadClock();
  let last = clock();
  let longest = 0;
  let isOver = false;
  const look = () => {
    const now = clock();
    longest = Math.max(longest, now - last);
    last = now;
    if (!isOver) setImmediate(look);
  };
  setImmediate(look);
  try {
    await task();
  } finally {
    isOver = true;
  }
  await new Promise((resolve) => setImmediate(resolve));
  return longest;
}

module.exports = {
  computes,
  errorProblem,
  longestTurn,
  pollution,
  rangeProblem,
  readAtOnce,
  readFromMemory,
  threadClock,
};
