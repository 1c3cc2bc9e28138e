import { createHash } from 'node:crypto';
import type { NativeTensor } from '../addon/native.js';
import { CheckpointFile } from './file.js';
import type { ModelConfig } from './types.js';

/** Bytes that are read of each tensor's beginning, middle and end. */
const SAMPLE_BYTES = 256;

/**
 * A name for a model's weights, which others, such as a fine-tune's, do not have: a hash of its shape, its table of tensors
 * and of some numbers of each tensor. It reads less than a megabyte.
 *
 * @param more What else decides the numbers that the model computes with, such as quantization while loading.
 */
export async function fingerprintOf(
  {
    files,
    tensors,
    config,
    seed,
  }: {
    files: readonly string[];
    tensors: readonly NativeTensor[];
    config: ModelConfig;
    seed: number;
  },
  more: readonly unknown[],
): Promise<string> {
  const { name: _, ...shape } = config;
  const hash = createHash('sha256').update(JSON.stringify([shape, seed, more]));
  const opened = await Promise.all(files.map((path) => CheckpointFile.open(path)));
  try {
    for (const { name, type, shape: sizes, data } of tensors) {
      hash.update(JSON.stringify([name, type, sizes]));
      if (data === undefined) continue;
      const bytes = Math.min(SAMPLE_BYTES, data.length);
      for (const part of [0, 0.5, 1]) {
        const offset = data.offset + Math.floor((data.length - bytes) * part);
        hash.update(await (opened[data.file] as CheckpointFile).read(offset, bytes));
      }
    }
  } finally {
    await Promise.all(opened.map((file) => file.close()));
  }
  return hash.digest('hex');
}
