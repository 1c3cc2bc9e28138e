import { availableParallelism } from 'node:os';
import { callNative, native } from './native.js';
import { integerOption } from './options.js';

/** What this package can use on this machine. */
export interface SystemInfo {
  /** The kernels that this CPU gets: `avx512`, `avx2` or `portable`. */
  kernels: string;
  /** Whether a GPU can be used, or why not. */
  cuda: string;
}

export function systemInfo(): SystemInfo {
  return callNative(() => native.system());
}

/**
 * Measures how fast memory is read, in bytes a second: what bounds the speed of generation. Blocks for some tenths of a
 * second.
 *
 * @param threads Default: as many as the process may use at once.
 * @param bytes How much to read. Default: 1 GiB.
 */
export function measureBandwidth(threads?: number, bytes?: number): number {
  const count = integerOption('threads', threads, availableParallelism(), { least: 1, most: 1024 });
  const size = integerOption('bytes', bytes, 2 ** 30, { least: 2 ** 20 });
  return callNative(() => native.measureBandwidth(count, size));
}
