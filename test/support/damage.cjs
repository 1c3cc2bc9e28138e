// Damages files byte by byte. In plain JavaScript, since it runs in worker threads: Jest's sandbox makes it three times
// slower, and Jest does not compile what a worker loads.
const fs = require('node:fs');
const path = require('node:path');
const { isMainThread, parentPort, workerData } = require('node:worker_threads');

/**
 * Damages a file at each of the positions in turn: all bits of the byte, one bit of it, and at last the file cut there.
 * `check` sees the damaged file; its argument says what was done.
 */
async function forEachDamage(file, positions, check) {
  const original = fs.readFileSync(file);
  const fd = fs.openSync(file, 'r+');
  try {
    for (const position of positions) {
      const right = original[position];
      for (const mask of [0xff, 1 << ((position * 5 + 3) % 8)]) {
        fs.writeSync(fd, Buffer.from([right ^ mask]), 0, 1, position);
        await check(`byte ${position} ^ 0x${mask.toString(16)}`);
      }
      fs.writeSync(fd, Buffer.from([right]), 0, 1, position);
    }
    for (const position of positions.toSorted((a, b) => b - a)) {
      fs.ftruncateSync(fd, position);
      await check(`cut at ${position}`);
    }
  } finally {
    fs.closeSync(fd);
    fs.writeFileSync(file, original);
  }
}

/**
 * Opens a damaged checkpoint again and again: it must be refused properly, or every range must lie in its file, and then
 * the runtime must load it, or refuse it, and compute.
 */
async function openDamaged({ target, file, positions }) {
  const dist = path.join(__dirname, '..', '..', 'dist');
  const { openCheckpoint } = require(path.join(dist, 'checkpoint', 'open.js'));
  const { loadModel } = require(dist);
  const outcome = { refused: 0, computed: 0, largestBuffer: 0, failures: [] };
  const { allocUnsafe } = Buffer;
  Buffer.allocUnsafe = (size) => {
    outcome.largestBuffer = Math.max(outcome.largestBuffer, size);
    return allocUnsafe(size);
  };
  await forEachDamage(file, positions, async (damage) => {
    try {
      const checkpoint = await openCheckpoint(target);
      const sizes = checkpoint.files.map((name) => fs.statSync(name).size);
      for (const { name, data, scale } of checkpoint.tensors) {
        for (const { file: index, offset, length } of scale === undefined ? [data] : [data, scale]) {
          const inside = offset >= 0 && length > 0 && offset + length <= sizes[index];
          if (!inside) outcome.failures.push(`${damage}: ${name} lies outside`);
        }
      }
      const model = await loadModel(target, { threads: 1, maxSequences: 1 });
      try {
        // Damaged weights may well overflow; that is an error of its own.
        await model.logits([1, 2, 3]).catch(({ code }) => {
          if (code !== 'ERR_INVALID_LOGITS') throw code;
        });
        outcome.computed++;
      } finally {
        await model.dispose();
      }
    } catch (error) {
      outcome.refused++;
      if (error.code !== 'ERR_CHECKPOINT_INVALID') outcome.failures.push(`${damage}: ${error.stack}`);
    }
  });
  return outcome;
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

if (!isMainThread && workerData?.task === 'openDamaged') {
  readAtOnce();
  openDamaged(workerData).then((outcome) => parentPort.postMessage(outcome));
}

module.exports = { forEachDamage };
