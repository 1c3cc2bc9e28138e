import { deviceOption, integerOption } from '../common/options.js';
import { callNative, loadNative } from './native.js';

/** A GPU that models can be computed on. */
export interface GpuInfo {
  /** As the driver calls it, such as `NVIDIA H100 80GB HBM3`. */
  name: string;
  /** NVIDIA's number for what it can do, such as `9.0`. */
  computeCapability: string;
  /** Bytes of its memory. */
  totalBytes: number;
  /** Of these, those that no program has taken: this one's models and CUDA's own needs count as taken. */
  freeBytes: number;
}

/** What this package can use on this machine. */
export interface SystemInfo {
  /** The kernels that this CPU gets: `avx512`, `avxvnni`, `avx2`, `neon` or `portable`. */
  kernels: string;
  /** Cores, not hardware threads, that this process may use: how many threads a model computes with by default. */
  cores: number;
  /** The GPUs `cuda:0`, `cuda:1` and so on; empty where none can be used. */
  gpus: GpuInfo[];
  /** `available`, or why no GPU can be used. */
  cuda: string;
  /** Tokens of one page of the key/value cache: the unit in which sequences take memory, and `model.stats()` counts. */
  pageTokens: number;
}

/**
 * What there is to compute on. Where there are GPUs, it takes some tenths of a second and blocks meanwhile.
 *
 * @example
 * ```ts
 * const { kernels, cores, gpus, cuda } = systemInfo();
 * console.log(kernels, cores); // avx512 8
 * console.log(gpus.map(({ name }) => name), cuda); // [] 'there is no NVIDIA driver …'
 * ```
 */
export function systemInfo(): SystemInfo {
  return callNative(() => ({ ...loadNative().system(), pageTokens: loadNative().pageTokens }));
}

/**
 * Measures how fast memory is read, in bytes a second: what bounds the speed of generation. Blocks for some tenths of a
 * second.
 *
 * @param threads The threads that read the CPU's memory. Default: one for each core that the process may use.
 * @param bytes How many bytes to read. Default: 1 GiB.
 * @param device The device whose memory is read: `cpu`, `cuda` or `cuda:1`. Default: `cpu`.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY, ERR_DEVICE_UNAVAILABLE.
 *
 * @example
 * ```ts
 * const bytesPerSecond = measureBandwidth();
 * // No token is generated in less time than reading the weights takes.
 * console.log(`at most ${(bytesPerSecond / model.info.bytesPerToken).toFixed(1)} tokens/s`);
 * ```
 */
export function measureBandwidth(
  threads?: number | null,
  bytes?: number | null,
  device?: 'cpu' | 'cuda' | `cuda:${number}` | null,
): number {
  const wanted = integerOption('threads', threads ?? undefined, undefined, { least: 1, most: 1024 });
  const size = integerOption('bytes', bytes ?? undefined, 2 ** 30, { least: 2 ** 20, most: 2 ** 40 });
  const where = deviceOption(device ?? undefined, ['cpu'], 'cpu');
  return callNative(() => {
    const native = loadNative();
    return native.measureBandwidth(wanted ?? native.physicalCores(), size, where);
  });
}
