import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';

/** A process below another one, as Linux tells of it. */
interface ProcessState {
  pid: number;
  parent: number;
  isZombie: boolean;
  threads: number;
  /** Bytes in memory, those that other processes share included. */
  residentBytes: number;
}

function read(file: string): string | undefined {
  try {
    return readFileSync(file, 'latin1');
  } catch {
    return undefined; // the process has ended, or the system has no /proc
  }
}

/** The state of a process; undefined where it is gone. */
export function processState(pid: number): ProcessState | undefined {
  const status = read(`/proc/${pid}/status`);
  if (status === undefined) return undefined;
  // The name, which the code may choose, stands in the first line with its line feeds escaped.
  const field = (name: string) => new RegExp(`^${name}:\\s*(\\S+)`, 'm').exec(status)?.[1];
  return {
    pid,
    parent: Number(field('PPid')),
    isZombie: /^[ZX]/.test(field('State') ?? ''),
    threads: Number(field('Threads') ?? 1),
    residentBytes: Number(field('VmRSS') ?? 0) * 1024,
  };
}

/** The children that the process has now. Linux lists them by the thread that made them. */
export function childrenOf(pid: number): number[] {
  let threads: string[];
  try {
    threads = readdirSync(`/proc/${pid}/task`);
  } catch {
    return [];
  }
  return threads.flatMap((thread) => {
    const list = read(`/proc/${pid}/task/${thread}/children`);
    return list === undefined ? [] : list.split(' ').filter(Boolean).map(Number);
  });
}

/** The processes below `pid`, at most `most` of them. In a process namespace those are all: orphans go to its first process. */
export function descendantsOf(pid: number, most: number): ProcessState[] {
  const found: ProcessState[] = [];
  const waiting = childrenOf(pid);
  for (let next = waiting.pop(); next !== undefined && found.length < most; next = waiting.pop()) {
    const state = processState(next);
    if (state === undefined) continue;
    found.push(state);
    waiting.push(...childrenOf(next));
  }
  return found;
}

/** The memory of a process in bytes, with what is shared divided among those that share it; undefined where it is not told. */
export function proportionalBytes(pid: number): number | undefined {
  const kib = /^Pss:\s+(\d+) kB/m.exec(read(`/proc/${pid}/smaps_rollup`) ?? '')?.[1];
  return kib === undefined ? undefined : Number(kib) * 1024;
}

/**
 * The files that processes hold though no folder has them any more, which no look at a working directory finds: their bytes by their
 * inodes.
 *
 * @param mappedBytes What a file counts with that is only mapped, whose size is not told.
 */
export function hiddenFiles(pids: readonly number[], mappedBytes: number): Map<string, number> {
  const found = new Map<string, number>();
  for (const pid of pids) {
    for (const line of (read(`/proc/${pid}/maps`) ?? '').split('\n')) {
      // proc(5): address, permissions, offset, device, inode, path. Memory that processes share has a path of /dev/zero.
      const match = /^\S+ \S+ \S+ \S+ (\d+) +(.*) \(deleted\)$/.exec(line);
      if (match !== null && match[2] !== '/dev/zero') found.set(match[1] as string, mappedBytes);
    }
  }
  for (const pid of pids) {
    let descriptors: string[] = [];
    try {
      descriptors = readdirSync(`/proc/${pid}/fd`);
    } catch {
      // The process has ended.
    }
    for (const descriptor of descriptors) {
      const file = `/proc/${pid}/fd/${descriptor}`;
      try {
        if (!readlinkSync(file).endsWith(' (deleted)')) continue;
        const { ino, blocks } = statSync(file);
        found.set(`${ino}`, blocks * 512);
      } catch {
        // It was closed meanwhile.
      }
    }
  }
  return found;
}
