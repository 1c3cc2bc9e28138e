// Damages files byte by byte. In plain JavaScript, since it runs in worker threads: Jest's sandbox makes it three times
// slower, and Jest does not compile what a worker loads.
const fs = require('node:fs');
const path = require('node:path');
const { isMainThread, parentPort, workerData } = require('node:worker_threads');
const { computes, errorProblem, rangeProblem, readAtOnce } = require('./hostile.cjs');

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
  const { openCheckpoint } = require(path.join(__dirname, '..', '..', 'dist', 'checkpoint', 'open.js'));
  const outcome = { refused: 0, computed: 0, largestBuffer: 0, failures: [] };
  const { allocUnsafe } = Buffer;
  Buffer.allocUnsafe = (size) => {
    outcome.largestBuffer = Math.max(outcome.largestBuffer, size);
    return allocUnsafe(size);
  };
  await forEachDamage(file, positions, async (damage) => {
    const fail = (problem) => outcome.failures.push(`${damage}: ${problem}`);
    try {
      const checkpoint = await openCheckpoint(target);
      const outside = rangeProblem(checkpoint, (name) => fs.statSync(name).size);
      if (outside !== undefined) fail(outside);
    } catch (error) {
      outcome.refused++;
      const problem = errorProblem(error);
      if (problem !== undefined) fail(problem);
      return;
    }
    try {
      if (await computes(target)) outcome.computed++;
      else outcome.refused++;
    } catch (error) {
      fail(error.stack);
    }
  });
  return outcome;
}

if (!isMainThread && workerData?.task === 'openDamaged') {
  readAtOnce();
  openDamaged(workerData).then((outcome) => parentPort.postMessage(outcome));
}

module.exports = { forEachDamage };
