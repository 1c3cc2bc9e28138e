import type { FileHandle } from 'node:fs/promises';
import { ChatGLMError, throwIfAborted } from '../../common/errors.js';
import { booleanOption, functionOption, signalOption } from '../../common/options.js';
import { writeBytes, writeWhole } from '../../common/whole-file.js';
import type { WrittenFile } from '../../common/written-file.js';
import { rowsAndColumns, TYPE_LAYOUTS, tensorBytes } from '../tensor-types.js';
import type { TensorEntry } from '../types.js';
import { alignUp, DEFAULT_ALIGNMENT, GGUF_MAGIC, GGUF_VERSION } from './format.js';
import { sized, u32Bytes, u64Bytes } from './metadata.js';

/** A tensor that is to be written. */
export type GgufTensor = Pick<TensorEntry, 'name' | 'type' | 'shape'>;

/** How far writing has come. */
export interface WriteProgress {
  /** Written so far. */
  bytes: number;
  /** The size that the file will have. */
  totalBytes: number;
}

export interface WriteOptions {
  /** Called after each piece with the bytes written and the size that the file will have. */
  onProgress?: ((progress: WriteProgress) => void) | undefined;
  /** Stops the work; nothing is left behind. */
  signal?: AbortSignal | undefined;
  /** Default: false, an existing file is an error. */
  overwrite?: boolean | undefined;
}

/** The names of {@link WriteOptions}. */
export const WRITE_OPTIONS = ['overwrite', 'onProgress', 'signal'] as const satisfies readonly (keyof WriteOptions)[];

/** Refuses values that no such option has. */
export function checkWriteOptions({ overwrite, onProgress, signal }: WriteOptions): void {
  booleanOption('overwrite', overwrite, false);
  functionOption('onProgress', onProgress);
  signalOption(signal);
}

export interface GgufContent<T extends GgufTensor> {
  /** Encoded key-value pairs, in order. */
  metadata: readonly Uint8Array[];
  tensors: readonly T[];
  /** Gives the bytes of one tensor, in any number of pieces. */
  fill(tensor: T, write: (bytes: Uint8Array) => Promise<void>): Promise<void>;
}

/** Writes a GGUF file, version 3, that is seen only as a whole: see {@link writeWhole}. */
export async function writeGguf<T extends GgufTensor>(
  target: string,
  content: GgufContent<T>,
  options: WriteOptions = {},
): Promise<WrittenFile> {
  return await writeWhole(target, options, (handle, path) => writeContent(handle, content, path, options));
}

async function writeContent<T extends GgufTensor>(
  handle: FileHandle,
  { metadata, tensors, fill }: GgufContent<T>,
  path: string,
  { onProgress, signal }: WriteOptions,
): Promise<number> {
  const header = encodeHeader(metadata, tensors);
  const totalBytes = tensors.reduce((end, tensor) => alignUp(end + bytesOf(tensor), DEFAULT_ALIGNMENT), header.length);
  let bytes = 0;
  const write = async (data: Uint8Array): Promise<void> => {
    throwIfAborted(signal);
    await writeBytes(handle, data, bytes, path);
    bytes += data.length;
    onProgress?.({ bytes, totalBytes });
  };
  await write(header);
  for (const tensor of tensors) {
    const end = bytes + bytesOf(tensor);
    await fill(tensor, write);
    if (bytes !== end)
      throw new ChatGLMError('ERR_INTERNAL', `${path}: ${tensor.name} was written with a wrong length`);
    const padding = alignUp(end, DEFAULT_ALIGNMENT) - end;
    if (padding > 0) await write(Buffer.alloc(padding));
  }
  return bytes;
}

/** Magic, version, counts, metadata, tensor table, and padding up to where the first tensor begins. */
export function encodeHeader(metadata: readonly Uint8Array[], tensors: readonly GgufTensor[]): Uint8Array {
  const parts = [
    Buffer.from(GGUF_MAGIC),
    u32Bytes(GGUF_VERSION),
    u64Bytes(tensors.length),
    u64Bytes(metadata.length),
    ...metadata,
  ];
  let offset = 0;
  for (const tensor of tensors) {
    const { ggml } = TYPE_LAYOUTS[tensor.type];
    if (ggml === undefined) throw new ChatGLMError('ERR_INTERNAL', `GGUF has no type ${tensor.type}`);
    parts.push(sized(Buffer.from(tensor.name)), u32Bytes(tensor.shape.length));
    // GGUF lists the fastest dimension first.
    for (const dimension of tensor.shape.toReversed()) parts.push(u64Bytes(dimension));
    parts.push(u32Bytes(ggml), u64Bytes(offset));
    offset = alignUp(offset + bytesOf(tensor), DEFAULT_ALIGNMENT);
  }
  const header = Buffer.concat(parts);
  return Buffer.concat([header, Buffer.alloc(alignUp(header.length, DEFAULT_ALIGNMENT) - header.length)]);
}

function bytesOf({ name, type, shape }: GgufTensor): number {
  const bytes = tensorBytes(type, ...rowsAndColumns(shape));
  if (bytes === undefined) throw new ChatGLMError('ERR_INTERNAL', `${name} has no whole blocks of ${type}`);
  return bytes;
}
