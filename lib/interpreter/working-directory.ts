import { execFile } from 'node:child_process';
import { rmSync } from 'node:fs';
import {
  chown,
  constants,
  type FileHandle,
  lstat,
  mkdir,
  mkdtemp,
  open,
  readdir,
  rm,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { plainText } from '../common/invalid.js';
import { systemError } from '../common/system-errors.js';
import type { ExecutionFile } from './executor.js';

/** How many files a piece of code gives back at most, and how many bytes they have together. */
export const MOST_FILES = 20;
export const MOST_FILE_BYTES = 2 ** 24;
/** How many files and folders a working directory may have. Each takes space that no file's size tells of. */
export const MOST_ENTRIES = 4096;
/** How deep folders are looked into. */
const MOST_DEPTH = 16;
/** Folders of caches, whose files are no results. */
const IGNORED = new Set(['__pycache__', 'node_modules']);

const MEDIA_TYPES: Readonly<Record<string, string>> = {
  bmp: 'image/bmp',
  csv: 'text/csv',
  gif: 'image/gif',
  html: 'text/html',
  jpeg: 'image/jpeg',
  jpg: 'image/jpeg',
  json: 'application/json',
  md: 'text/markdown',
  mp3: 'audio/mpeg',
  mp4: 'video/mp4',
  pdf: 'application/pdf',
  png: 'image/png',
  svg: 'image/svg+xml',
  txt: 'text/plain',
  wav: 'audio/wav',
  webp: 'image/webp',
  xlsx: 'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet',
  xml: 'application/xml',
  zip: 'application/zip',
};

function mediaTypeOf(name: string): string {
  const ending = path.extname(name).slice(1).toLowerCase();
  return (Object.hasOwn(MEDIA_TYPES, ending) ? MEDIA_TYPES[ending] : undefined) ?? 'application/octet-stream';
}

/** Directories that are there now: a process that ends without dispose() takes them away. */
const directories = new Set<string>();

function removeAll(): void {
  for (const directory of directories) {
    try {
      rmSync(directory, { recursive: true, force: true });
    } catch {
      // The process ends; nobody is left to be told.
    }
  }
}

async function removeDirectory(directory: string): Promise<void> {
  const remove = () => rm(directory, { recursive: true, force: true, maxRetries: 3 });
  try {
    await remove();
  } catch (error) {
    if (process.platform === 'win32') throw error;
    // Folders without permissions, and paths that are longer than any system call takes.
    const run = (program: string, args: string[]) =>
      new Promise<void>((resolve) => execFile(program, args, () => resolve()));
    await run('chmod', ['-R', 'u+rwx', '--', directory]);
    await run('rm', ['-rf', '--', directory]);
    await remove();
  }
}

/** What tells a file's state from a later one. The time of change is the system's; code cannot set it. */
type Mark = string;

interface FoundFile {
  name: string;
  mark: Mark;
  bytes: number;
}

/**
 * The working directory of a session, and the private directory around it.
 *
 * Code may still run in it while it is read: folders are opened without following links, and what is in them is reached
 * through the open folder, so that no exchange of a folder for a link leads elsewhere.
 */
export class WorkingDirectory {
  readonly outer: string;
  readonly data: string;
  /** An empty directory for a sandbox to build in. */
  readonly root: string;
  #marks = new Map<string, Mark>();

  private constructor(outer: string) {
    this.outer = outer;
    this.data = path.join(outer, 'data');
    this.root = path.join(outer, 'root');
  }

  /** @param user Whose the working directory is to be, where it is not this process's own user. */
  static async create(files: ReadonlyMap<string, Uint8Array>, user: number | undefined): Promise<WorkingDirectory> {
    const parent = tmpdir();
    try {
      const directory = new WorkingDirectory(await mkdtemp(path.join(parent, `node-chatglm-code-${process.pid}-`)));
      if (directories.size === 0) process.on('exit', removeAll);
      directories.add(directory.outer);
      try {
        await mkdir(directory.root, { mode: 0o700 });
        await directory.fill(files, user);
      } catch (error) {
        await directory.remove();
        throw error;
      }
      return directory;
    } catch (error) {
      throw systemError(parent, 'written', error);
    }
  }

  /** Makes the working directory anew, with nothing but these files. No code may run in it meanwhile. */
  async fill(files: ReadonlyMap<string, Uint8Array>, user: number | undefined): Promise<void> {
    await removeDirectory(this.data);
    await mkdir(this.data, { mode: 0o700 });
    for (const [name, bytes] of files) {
      const file = path.join(this.data, name);
      await writeFile(file, bytes, { mode: 0o600, flag: 'wx' });
      if (user !== undefined) await chown(file, user, user);
    }
    if (user !== undefined) await chown(this.data, user, user);
    await this.mark();
  }

  /** Takes the files as they are for those that were there before. */
  async mark(): Promise<void> {
    this.#marks = new Map();
    await this.#walk(async ({ name, mark }) => void this.#marks.set(name, mark));
  }

  /** The files that are new or changed since the last time, as many as may be given back; the others by name. */
  async takeChanges(): Promise<{ files: ExecutionFile[]; left: string[] }> {
    const files: ExecutionFile[] = [];
    const left: string[] = [];
    const marks = new Map<string, Mark>();
    let bytes = 0;
    await this.#walk(async ({ name, mark, bytes: size }, handle) => {
      marks.set(name, mark);
      if (this.#marks.get(name) === mark) return;
      const shown = plainText(name);
      if (files.length >= MOST_FILES || bytes + size > MOST_FILE_BYTES) {
        left.push(shown);
        return;
      }
      const buffer = Buffer.alloc(size);
      let length = 0;
      while (length < size) {
        const { bytesRead } = await handle.read(buffer, length, size - length, length);
        if (bytesRead === 0) break;
        length += bytesRead;
      }
      bytes += length;
      files.push({ name: shown, mediaType: mediaTypeOf(shown), data: new Uint8Array(buffer.subarray(0, length)) });
    });
    this.#marks = marks;
    return { files, left };
  }

  /** Calls `visit` with each regular file, in the order of their names. */
  async #walk(visit: (file: FoundFile, handle: FileHandle) => Promise<void>): Promise<void> {
    let entries = 0;
    const { O_RDONLY, O_NOFOLLOW = 0, O_NONBLOCK = 0, O_DIRECTORY = 0 } = constants;
    // Only Linux reaches files through an open folder by a path. The other systems have no sandbox that would be left.
    const inside = (folder: FileHandle | undefined, at: string, name: string) =>
      folder !== undefined ? `/proc/self/fd/${folder.fd}/${name}` : path.join(at, name);
    const enter = async (file: string, prefix: string, depth: number): Promise<void> => {
      const folder =
        process.platform === 'linux'
          ? await open(file, O_RDONLY | O_NOFOLLOW | O_DIRECTORY).catch(() => null)
          : undefined;
      if (folder === null) return; // gone, or no longer a folder
      try {
        const list = await readdir(folder === undefined ? file : `/proc/self/fd/${folder.fd}`, { withFileTypes: true });
        list.sort((a, b) => (a.name < b.name ? -1 : 1));
        for (const entry of list) {
          if (++entries > MOST_ENTRIES) return;
          if (entry.name.startsWith('.') || IGNORED.has(entry.name)) continue;
          const place = inside(folder, file, entry.name);
          const name = `${prefix}${entry.name}`;
          if (entry.isDirectory() && depth < MOST_DEPTH) await enter(place, `${name}/`, depth + 1);
          if (!entry.isFile()) continue;
          const handle = await open(place, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch(() => undefined);
          if (handle === undefined) continue;
          try {
            const stats = await handle.stat({ bigint: true });
            if (!stats.isFile()) continue;
            const mark = `${stats.ino} ${stats.size} ${stats.mtimeNs} ${stats.ctimeNs}`;
            await visit({ name, mark, bytes: Number(stats.size) }, handle);
          } finally {
            await handle.close();
          }
        }
      } catch {
        // The folder was taken away or closed meanwhile: what can no longer be read is not given back.
      } finally {
        await folder?.close();
      }
    };
    await enter(this.data, '', 0);
  }

  /** Whether more lies in the working directory than may. Only sizes are looked at, and links are not followed. */
  async isOver(mostBytes: number): Promise<boolean> {
    let entries = 0;
    let bytes = 0;
    const waiting: { folder: string; depth: number }[] = [{ folder: this.data, depth: 0 }];
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
      const { folder, depth } = next;
      const list = await readdir(folder, { withFileTypes: true }).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENAMETOOLONG') entries = MOST_ENTRIES;
        return [];
      });
      entries += list.length;
      if (entries > MOST_ENTRIES) return true;
      for (const entry of list) {
        const file = path.join(folder, entry.name);
        if (entry.isDirectory()) {
          if (depth >= 4 * MOST_DEPTH) return true;
          waiting.push({ folder: file, depth: depth + 1 });
          continue;
        }
        const stats = await lstat(file).catch(() => undefined);
        // Blocks, so that a file with holes counts with what it takes.
        if (stats !== undefined) bytes += process.platform === 'win32' ? stats.size : stats.blocks * 512;
        if (bytes > mostBytes) return true;
      }
    }
    return false;
  }

  /**
   * Removes everything. No code may run in it any more.
   *
   * @throws {ChatGLMError} ERR_PERMISSION_DENIED, ERR_IO.
   */
  async remove(): Promise<void> {
    try {
      await removeDirectory(this.outer);
    } catch (error) {
      throw systemError(this.outer, 'written', error);
    }
    directories.delete(this.outer);
    if (directories.size === 0) process.off('exit', removeAll);
  }
}
