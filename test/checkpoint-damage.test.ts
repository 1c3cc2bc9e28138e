import { once } from 'node:events';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { openCheckpoint } from '../lib/checkpoint/open';
import { temporaryDirectory } from './support/checkpoints';
import { safetensorsHeaderBytes, writeSmallDirectory, writeSmallGguf } from './support/small-checkpoints';

const directory = temporaryDirectory();
afterAll(() => directory.remove());

/** What reading may allocate at once beyond the file itself: a window on the header of a GGUF file is the most. */
const ALLOCATION_LIMIT = 512 << 10;

function upTo(end: number, begin = 0): number[] {
  return Array.from({ length: end - begin }, (_, i) => begin + i);
}

interface Outcome {
  refused: number;
  computed: number;
  largestBuffer: number;
  failures: string[];
}

/** Opens the checkpoint with its file damaged at each position. The work is done in a thread: see damage.cjs. */
async function expectSafe(target: string, positions: readonly number[], file: string): Promise<Outcome> {
  const worker = new Worker(join(__dirname, 'support', 'damage.cjs'), {
    workerData: { task: 'openDamaged', target, file, positions },
  });
  const [outcome] = (await once(worker, 'message')) as [Outcome];
  await worker.terminate();
  expect(outcome.failures).toEqual([]);
  expect(outcome.refused + outcome.computed).toBe(3 * positions.length);
  expect(outcome.largestBuffer).toBeLessThan(ALLOCATION_LIMIT);
  return outcome;
}

test.concurrent('a GGUF file with any byte of its header damaged', async () => {
  const { path, headerBytes } = writeSmallGguf(join(directory.path, 'small.gguf'));
  const { refused, computed } = await expectSafe(path, upTo(headerBytes), path);
  expect(refused).toBeGreaterThan(headerBytes * 1.5);
  expect(computed).toBeGreaterThan(headerBytes * 0.1);
  await openCheckpoint(path);
}, 120_000);

test.concurrent('a safetensors file with any byte of its header damaged', async () => {
  const path = join(directory.path, 'safetensors');
  const files = writeSmallDirectory(path, { tokenizer: false });
  const headerBytes = safetensorsHeaderBytes(files[0] ?? '');
  const { refused } = await expectSafe(path, upTo(headerBytes), files[0] ?? '');
  expect(refused).toBeGreaterThan(headerBytes * 2.5);
}, 120_000);

test.concurrent('a torch file with any byte of its pickle or zip structure damaged', async () => {
  const path = join(directory.path, 'torch');
  const files = writeSmallDirectory(path, { container: 'torch', tokenizer: false });
  const size = statSync(files[0] ?? '').size;
  const { tensors } = await openCheckpoint(path);
  const inTensor = new Set(tensors.flatMap(({ data }) => upTo(data.offset + data.length, data.offset)));
  const { refused } = await expectSafe(
    path,
    upTo(size).filter((position) => !inTensor.has(position)),
    files[0] ?? '',
  );
  expect(refused).toBeGreaterThan(4000);
}, 120_000);

test.concurrent('a quantized torch file with any byte of its pickle damaged', async () => {
  const path = join(directory.path, 'torch-int4');
  const files = writeSmallDirectory(path, { container: 'torch', quantizationBit: 4, tokenizer: false });
  const pickle = readFileSync(files[0] ?? '').indexOf('X\x07\0\0\0storage');
  await expectSafe(path, upTo(pickle + 300, pickle - 100), files[0] ?? '');
}, 120_000);

test.concurrent.each(['config.json', 'model.safetensors.index.json'])(
  '%s with any byte damaged',
  async (name) => {
    const path = join(directory.path, name);
    writeSmallDirectory(path, { shards: 2, tokenizer: false });
    const file = join(path, name);
    await expectSafe(path, upTo(statSync(file).size), file);
  },
  120_000,
);

test.concurrent('a tokenizer.model with any byte of its first and last pieces damaged', async () => {
  const path = join(directory.path, 'tokenizer');
  writeSmallDirectory(path);
  const file = join(path, 'tokenizer.model');
  const { size } = statSync(file);
  await expectSafe(path, [...upTo(150), ...upTo(size, size - 150)], file);
}, 120_000);
