import { randomUUID } from 'node:crypto';
import type { Stats } from 'node:fs';
import { type FileHandle, link, lstat, open, realpath, rename, rm, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { ChatGLMError, invalidArgument, throwIfAborted } from './errors.js';
import { isSystemError, systemError } from './system-errors.js';
import type { WrittenFile } from './written-file.js';

interface WholeOptions {
  /** Default: false, an existing file is an error. */
  overwrite?: boolean | undefined;
  /** The file's permissions, less what the process's umask takes. Default: 0666. */
  mode?: number | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Writes a file that is seen only as a whole. It grows under a name of its own beside the target and gets the target's name
 * when it is complete and on the disk, so that whoever sees the target sees all of it, whoever else writes to it meanwhile. A
 * target that is a symbolic link stays one: the file that it leads to is replaced.
 *
 * @param write Writes the content, and gives its length. `path` is for messages.
 */
export async function writeWhole(
  target: string,
  options: WholeOptions,
  write: (handle: FileHandle, path: string) => Promise<number>,
): Promise<WrittenFile> {
  const given = resolve(target);
  try {
    await refuseExisting(given, options);
    throwIfAborted(options.signal);
    const path = await followed(given);
    const part = `${path}.${randomUUID()}.part`;
    const handle = await open(part, 'wx', options.mode);
    try {
      let bytes: number;
      try {
        bytes = await write(handle, given);
        // Some file systems tell only now that the disk is full.
        await handle.sync();
      } finally {
        await handle.close();
      }
      await publish(part, path, given, options);
      await syncDirectory(dirname(path));
      return { path: given, bytes };
    } finally {
      await rm(part, { force: true });
    }
  } catch (error) {
    throw writeError(given, error);
  }
}

/** Puts names on the disk that files of a directory have got or lost, where the system has a way to. */
export async function syncDirectory(path: string): Promise<void> {
  try {
    const handle = await open(path, 'r');
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    // Windows opens no directories, and some file systems sync none: what has been written is whole all the same.
    if (!isSystemError(error) || error.code === 'EIO') throw error;
  }
}

/** Writes all of `data` at `offset`, however little the system takes at once. */
export async function writeBytes(handle: FileHandle, data: Uint8Array, offset: number, path: string): Promise<void> {
  for (let done = 0; done < data.length; ) {
    const { bytesWritten } = await handle.write(data, done, data.length - done, offset + done);
    if (bytesWritten === 0) throw new ChatGLMError('ERR_IO', `${path}: the system wrote nothing`, { file: path });
    done += bytesWritten;
  }
}

/** Gives the complete file its name. Without `overwrite`, a file of this name that has appeared meanwhile stays. */
async function publish(part: string, path: string, given: string, options: WholeOptions): Promise<void> {
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

/** Refuses a target that may not be replaced: any without `overwrite`, and what is no file in any case. */
async function refuseExisting(path: string, { overwrite = false }: WholeOptions): Promise<void> {
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
