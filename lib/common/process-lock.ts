import { randomUUID } from 'node:crypto';
import { rmSync } from 'node:fs';
import { readdir, readFile, readlink, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { isSystemError } from './system-errors.js';

// Whoever wants a lock creates a file of a name that no other has ever had, and then looks for the files of others. Of two
// that do so at the same time, the one that looks last sees both, so that never both of them have the lock; and a file that
// a dead process has left is removed without the danger that somebody has replaced it meanwhile.

/** Who has a lock: the content of its file. */
export interface LockHolder {
  readonly pid: number;
  readonly host: string;
  /** When it was taken: ISO 8601. */
  readonly since: string;
}

interface LockRecord extends LockHolder {
  /** Within which a process id means one process: a boot of a machine, and a namespace of processes in it. */
  readonly space: string;
  /** When the process began, as its system counts: ids are used again. Empty where the system does not tell. */
  readonly started: string;
}

/** A lock that this process has. */
export interface ProcessLock {
  /** Whether the lock is still this process's: another machine may have taken a process for dead that was stopped for long. */
  isHeld(): Promise<boolean>;
  /** Gives the lock back. */
  release(): Promise<void>;
}

/** Whether a process of another machine, or of another container, is alive shows only in that it touches its locks. */
const TOUCHED_EVERY_MS = 15_000;
const DEAD_AFTER_MS = 60_000;
/** A file without content is of a process that is about to write it, or that died right then. */
const WRITTEN_WITHIN_MS = 10_000;
/** Older files are of holders, younger ones maybe of somebody who is about to give way, as this process is. */
const CONTENDS_FOR_MS = 500;
const MOST_ATTEMPTS = 6;

/** Files of locks that this process has; they are removed when it exits. */
const held = new Set<string>();

function removeHeld(): void {
  for (const file of held) rmSync(file, { force: true });
}

/**
 * Takes the lock of a path, or gives who has it. The lock is a file beside the path, `<path>.<id>.lock`; what dead processes
 * have left of that name is removed. Works between processes of one machine, and between machines as far as their clocks and
 * the file system go.
 *
 * @throws errors of the file system.
 */
export async function takeLock(path: string): Promise<ProcessLock | LockHolder> {
  const record = await ownRecord();
  for (let attempt = 1; ; attempt++) {
    const file = `${path}.${randomUUID()}.lock`;
    // Before the file is there: a process that exits in between leaves nothing.
    if (held.size === 0) process.once('exit', removeHeld);
    held.add(file);
    let other: { holder: LockHolder; age: number } | undefined;
    try {
      await writeFile(file, `${JSON.stringify(record)}\n`, { flag: 'wx', mode: 0o600 });
      other = await liveLock(path, file);
      if (other === undefined) return new HeldLock(file);
    } catch (error) {
      await remove(file);
      throw error;
    }
    await remove(file);
    if (other.age > CONTENDS_FOR_MS || attempt === MOST_ATTEMPTS) return other.holder;
    await setTimeout(1 + Math.random() * 2 ** attempt);
  }
}

/** Whether takeLock() gave the lock, and not its holder. */
export function isLock(taken: ProcessLock | LockHolder): taken is ProcessLock {
  return 'release' in taken;
}

class HeldLock implements ProcessLock {
  readonly #file: string;
  readonly #timer: NodeJS.Timeout;

  constructor(file: string) {
    this.#file = file;
    this.#timer = setInterval(() => {
      const now = new Date();
      // A lock that is gone shows in isHeld().
      utimes(file, now, now).catch(() => {});
    }, TOUCHED_EVERY_MS).unref();
  }

  async isHeld(): Promise<boolean> {
    return held.has(this.#file) && (await ageOf(this.#file, Date.now())) !== undefined;
  }

  async release(): Promise<void> {
    clearInterval(this.#timer);
    await remove(this.#file);
  }
}

async function remove(file: string): Promise<void> {
  await rm(file, { force: true });
  held.delete(file);
  if (held.size === 0) process.removeListener('exit', removeHeld);
}

/** A lock of the path that another process has, or another holder in this one. Removes those of dead processes. */
async function liveLock(path: string, own: string): Promise<{ holder: LockHolder; age: number } | undefined> {
  const folder = dirname(path);
  // Some file systems give names back in another normalization.
  const prefix = `${basename(path)}.`.normalize('NFC');
  // The file system's clock, which need not be this machine's.
  const now = (await stat(own)).mtimeMs;
  let live: { holder: LockHolder; age: number } | undefined;
  for (const name of await readdir(folder)) {
    if (!name.endsWith('.lock') || !name.normalize('NFC').startsWith(prefix) || name === basename(own)) continue;
    const file = join(folder, name);
    const [age, record] = [await ageOf(file, now), await recordOf(file)];
    if (age === undefined) continue;
    if (record && (await isAlive(record, age))) live = { holder: record, age };
    else if (record === undefined && age <= WRITTEN_WITHIN_MS) {
      live = { holder: { pid: 0, host: hostname(), since: '' }, age };
    } else await rm(file, { force: true });
  }
  return live;
}

/** Milliseconds since the file was touched; undefined if there is none. */
async function ageOf(file: string, now: number): Promise<number | undefined> {
  try {
    return now - (await stat(file)).mtimeMs;
  } catch (error) {
    if (isSystemError(error) && error.code === 'ENOENT') return undefined;
    throw error;
  }
}

async function recordOf(file: string): Promise<LockRecord | undefined> {
  try {
    const record = JSON.parse(await readFile(file, 'utf8')) as LockRecord | null;
    const isRight =
      Number.isSafeInteger(record?.pid) &&
      (record?.pid ?? 0) > 0 &&
      [record?.host, record?.since, record?.space, record?.started].every((field) => typeof field === 'string');
    return isRight ? (record as LockRecord) : undefined;
  } catch {
    return undefined; // without content as yet, or gone, or damaged
  }
}

async function isAlive({ pid, host, space, started }: LockRecord, age: number): Promise<boolean> {
  const own = await ownRecord();
  if (host !== own.host || space !== own.space) return age <= DEAD_AFTER_MS;
  if (started !== '') return (await startOf(pid)) === started;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it is somebody else's.
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}

async function ownRecord(): Promise<LockRecord> {
  const boot = await readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(() => '');
  const processes = await readlink('/proc/self/ns/pid').catch(() => '');
  return {
    pid: process.pid,
    host: hostname(),
    since: new Date().toISOString(),
    space: `${boot.trim()} ${processes}`.trim(),
    started: (await startOf(process.pid)) ?? '',
  };
}

/** When a process began, in ticks of Linux's clock; undefined if there is no such process, or no /proc. */
async function startOf(pid: number): Promise<string | undefined> {
  const line = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  // The name of the program, in parentheses, may have any characters.
  const fields = line.slice(line.lastIndexOf(')') + 2).split(' ');
  const [state] = fields;
  const isOver = state === 'Z' || state === 'X';
  return line === '' || isOver ? undefined : fields[19];
}
