import { randomUUID } from 'node:crypto';
import type { Stats } from 'node:fs';
import { type FileHandle, link, lstat, open, realpath, rename, rm, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { ChatGLMError, invalidArgument, throwIfAborted } from '../../common/errors.js';
import { booleanOption, functionOption, signalOption } from '../../common/options.js';
import { isSystemError, systemError } from '../../common/system-errors.js';
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

/** A file that is complete. */
export interface WrittenFile {
  /** Its absolute path. */
  path: string;
  /** Its size. */
  bytes: number;
}

export interface GgufContent<T extends GgufTensor> {
  /** Encoded key-value pairs, in order. */
  metadata: readonly Uint8Array[];
  tensors: readonly T[];
  /** Gives the bytes of one tensor, in any number of pieces. */
  fill(tensor: T, write: (bytes: Uint8Array) => Promise<void>): Promise<void>;
}

/**
 * Writes a GGUF file, version 3. It grows under a name of its own beside the target and gets the target's name when it is
 * complete and on the disk, so that whoever sees the target sees all of it, whoever else writes to it meanwhile. A target
 * that is a symbolic link stays one: the file that it leads to is replaced.
 */
export async function writeGguf<T extends GgufTensor>(
  target: string,
  content: GgufContent<T>,
  options: WriteOptions = {},
): Promise<WrittenFile> {
  const given = resolve(target);
  try {
    await refuseExisting(given, options);
    throwIfAborted(options.signal);
    const path = await followed(given);
    const part = `${path}.${randomUUID()}.part`;
    const handle = await open(part, 'wx');
    try {
      let bytes: number;
      try {
        bytes = await writeContent(handle, content, given, options);
        // Some file systems tell only now that the disk is full.
        await handle.sync();
      } finally {
        await handle.close();
      }
      await publish(part, path, given, options);
      return { path: given, bytes };
    } finally {
      await rm(part, { force: true });
    }
  } catch (error) {
    throw writeError(given, error);
  }
}

/** Gives the complete file its name. Without `overwrite`, a file of this name that has appeared meanwhile stays. */
async function publish(part: string, path: string, given: string, options: WriteOptions): Promise<void> {
  if (options.overwrite) {
    await refuseExisting(given, options);
    await rename(part, path);
    return;
  }
  try {
    await link(part, path);
  } catch (error) {
    if (!isSystemError(error) || error.code === 'ENOENT') throw error;
    // A file system without hard links: an empty file claims the name, unless there is one, and is replaced at once.
    await (await open(path, 'wx')).close();
    await rename(part, path);
  }
}

/** The path that a symbolic link leads to; any other path as it is. */
async function followed(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    if (!isSystemError(error) || error.code !== 'ENOENT') throw error;
    const isThere = await lstat(path).then(
      () => true,
      () => false,
    );
    if (isThere) throw invalidArgument(`target: ${path} is a symbolic link to nothing, and stays what it is`);
    return path;
  }
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
    for (let done = 0; done < data.length; ) {
      const { bytesWritten } = await handle.write(data, done, data.length - done, bytes + done);
      if (bytesWritten === 0) throw new ChatGLMError('ERR_IO', `${path}: the system wrote nothing`, { file: path });
      done += bytesWritten;
    }
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

/** Refuses a target that may not be replaced: any without `overwrite`, and what is no file in any case. */
async function refuseExisting(path: string, { overwrite = false }: WriteOptions): Promise<void> {
  const existing = await stat(path).catch((error: unknown) => {
    if (isSystemError(error) && error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (existing === undefined) return;
  if (!existing.isFile()) throw invalidArgument(`target: ${path} is ${kindOf(existing)}, and stays what it is`);
  if (!overwrite) throw existsAlready(path);
}

function existsAlready(path: string): ChatGLMError {
  return invalidArgument(`target: ${path} exists already; overwrite: true, or --force, replaces it`);
}

function kindOf(stats: Stats): string {
  if (stats.isDirectory()) return 'a directory';
  if (stats.isCharacterDevice() || stats.isBlockDevice()) return 'a device';
  if (stats.isFIFO()) return 'a named pipe';
  return stats.isSocket() ? 'a socket' : 'no regular file';
}

/** What is wrong with the target's path itself is about the argument; the rest is the system's. */
function writeError(path: string, error: unknown): unknown {
  if (error instanceof ChatGLMError || !isSystemError(error)) return error;
  if (error.code === 'EEXIST') return existsAlready(path);
  const refused = (problem: string) =>
    new ChatGLMError('ERR_INVALID_ARGUMENT', `target: ${path} cannot be written: ${problem}`, { file: path }, error);
  if (error.code === 'ENOENT') return refused(`there is no folder ${dirname(path)}`);
  if (error.code === 'ENOTDIR') return refused('a part of the path is no folder');
  if (error.code === 'ENAMETOOLONG') return refused('the name is too long');
  if (error.code === 'ELOOP') return refused('its symbolic links lead back to each other');
  return systemError(path, 'written', error);
}
