import { statSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint } from '../lib/checkpoint/open';
import { ChatGLMError } from '../lib/errors';
import { temporaryDirectory } from './support/checkpoints';
import {
  forEachDamage,
  safetensorsHeaderBytes,
  writeSmallDirectory,
  writeSmallGguf,
} from './support/small-checkpoints';

const directory = temporaryDirectory();
afterAll(() => directory.remove());

/** What reading may allocate at once beyond the file itself: a window on the header of a GGUF file is the most. */
const ALLOCATION_LIMIT = 512 << 10;

function upTo(end: number, begin = 0): number[] {
  return Array.from({ length: end - begin }, (_, i) => begin + i);
}

/** Opens the damaged file again and again: it must be refused properly, or every range must lie in it. */
async function expectSafe(path: string, positions: readonly number[], files: () => string[]) {
  const { allocUnsafe } = Buffer;
  let largest = 0;
  // No jest.spyOn: it would keep every buffer.
  Buffer.allocUnsafe = (size) => {
    largest = Math.max(largest, size);
    return allocUnsafe(size);
  };
  const outcomes = { refused: 0, opened: 0 };
  try {
    await forEachDamage(files()[0] ?? '', positions, async (damage) => {
      try {
        const checkpoint = await openCheckpoint(path);
        for (const { name, data, scale } of checkpoint.tensors) {
          for (const range of scale === undefined ? [data] : [data, scale]) {
            const { size } = statSync(checkpoint.files[range.file] ?? '');
            if (range.offset < 0 || range.offset + range.length > size)
              throw new Error(`${damage}: ${name} is outside`);
          }
        }
        outcomes.opened++;
      } catch (error) {
        if (!(error instanceof ChatGLMError && error.code === 'ERR_CHECKPOINT_INVALID')) {
          throw new Error(`${damage}: ${String(error)}`, { cause: error });
        }
        outcomes.refused++;
      }
    });
    expect(largest).toBeLessThan(ALLOCATION_LIMIT);
  } finally {
    Buffer.allocUnsafe = allocUnsafe;
  }
  return outcomes;
}

test('a GGUF file with any byte of its header damaged', async () => {
  const { path, headerBytes } = writeSmallGguf(join(directory.path, 'small.gguf'));
  const { refused, opened } = await expectSafe(path, upTo(headerBytes), () => [path]);
  expect(refused + opened).toBe(3 * headerBytes);
  expect(refused).toBeGreaterThan(headerBytes * 1.5);
  await openCheckpoint(path);
}, 120_000);

test('a safetensors file with any byte of its header damaged', async () => {
  const path = join(directory.path, 'safetensors');
  const files = writeSmallDirectory(path, { tokenizer: false });
  const headerBytes = safetensorsHeaderBytes(files[0] ?? '');
  const { refused } = await expectSafe(path, upTo(headerBytes), () => files);
  expect(refused).toBeGreaterThan(headerBytes * 2.5);
}, 120_000);

test('a torch file with any byte of its pickle or zip structure damaged', async () => {
  const path = join(directory.path, 'torch');
  const files = writeSmallDirectory(path, { container: 'torch', tokenizer: false });
  const size = statSync(files[0] ?? '').size;
  const { tensors } = await openCheckpoint(path);
  const inTensor = new Set(tensors.flatMap(({ data }) => upTo(data.offset + data.length, data.offset)));
  const { refused } = await expectSafe(
    path,
    upTo(size).filter((position) => !inTensor.has(position)),
    () => files,
  );
  expect(refused).toBeGreaterThan(4000);
}, 120_000);

test.each([4, 8] as const)(
  'a quantized torch file with any byte of its pickle damaged (%i bits)',
  async (bits) => {
    const path = join(directory.path, `torch-${bits}`);
    const files = writeSmallDirectory(path, { container: 'torch', quantizationBit: bits, tokenizer: false });
    await expectSafe(path, upTo(1000, 100), () => files);
  },
  120_000,
);

test.each(['config.json', 'model.safetensors.index.json'])(
  '%s with any byte damaged',
  async (name) => {
    const path = join(directory.path, name);
    writeSmallDirectory(path, { shards: 2, tokenizer: false });
    const file = join(path, name);
    await expectSafe(path, upTo(statSync(file).size), () => [file]);
  },
  120_000,
);

test('a tokenizer.model with any byte of its first and last pieces damaged', async () => {
  const path = join(directory.path, 'tokenizer');
  writeSmallDirectory(path);
  const file = join(path, 'tokenizer.model');
  const { size } = statSync(file);
  await expectSafe(path, [...upTo(400), ...upTo(size, size - 400)], () => [file]);
}, 120_000);
