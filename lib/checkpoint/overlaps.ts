import { invalidTensor, shown } from '../common/invalid.js';

/** A tensor's bytes in a file. */
export interface TensorPlace {
  name: string;
  file: string;
  offset: number;
  length: number;
}

/** Neither safetensors nor GGUF let tensors share bytes, so an overlap is damage. */
export function checkOverlaps(tensors: readonly TensorPlace[]): void {
  const sorted = tensors.toSorted((a, b) => a.offset - b.offset);
  sorted.forEach((tensor, i) => {
    const before = sorted[i - 1];
    if (before !== undefined && before.offset + before.length > tensor.offset) {
      throw invalidTensor(tensor.file, tensor.name, `overlaps ${shown(before.name)}`);
    }
  });
}
