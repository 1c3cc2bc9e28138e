import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import type { Duplex, Readable } from 'node:stream';
import { childrenOf, descendantsOf, hiddenFiles, processState, proportionalBytes } from './processes.js';

/** What is known of a child's end. `reason` where this side ended it. */
export type EndReason =
  | 'start'
  | 'timeout'
  | 'aborted'
  | 'disposed'
  | 'memory'
  | 'processes'
  | 'disk'
  | 'output'
  | 'garbage';

/** A reply of the runner: only data, whoever wrote it. */
export interface Reply {
  status: 'ok' | 'error' | 'memory';
  /** Whether the process ends after it. */
  isLast: boolean;
}

export interface ChildOptions {
  command: string[];
  env: Record<string, string>;
  cwd: string;
  /** What descriptor 4 is to be: a file that is open here. */
  descriptor: number | undefined;
  /** Whether the process is the first of a namespace, whose end ends all in it, one or more levels below the command. */
  hasNamespace: boolean;
  memoryBytes: number;
  /** Tasks that there may be, the interpreter's own included. */
  tasks: number;
  outputBytes: number;
  /** What may lie in the working directory, in bytes, with files that processes hold though they were removed. */
  fileBytes: number;
  /** Whether the working directory holds more than so many bytes. */
  isDiskOver: (mostBytes: number) => Promise<boolean>;
}

/** A reply is shorter than this, in bytes. */
const MOST_REPLY = 4096;
/** How often processes and memory are looked at, and how often the working directory, in milliseconds. */
const BUSY_LOOK_MS = 50;
const IDLE_LOOK_MS = 500;
const DISK_LOOKS = 4;
/** How many removed files there may be that are mapped and not open. */
const MOST_MAPPED = 8;
/** How long the end of a killed process is waited for before it is killed another way, in milliseconds. */
const MOST_END_MS = 2000;
/** File descriptors above this one are not looked for. */
const MOST_DESCRIPTOR = 4096;

/**
 * The descriptors of this process that a child would inherit because whoever started this process left them open, as the
 * `stdio` of spawn() closes them: by /dev/null in their place. Code in a sandbox must not hold a folder of the host.
 */
function closedDescriptors(first: number, devNull: number): ('ignore' | number)[] {
  const stdio: ('ignore' | number)[] = [];
  let names: string[] = [];
  try {
    names = readdirSync('/proc/self/fd');
  } catch {
    return stdio; // no Linux
  }
  for (const fd of names.map(Number)) {
    if (fd < first || fd > MOST_DESCRIPTOR) continue;
    try {
      const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1];
      const O_CLOEXEC = 0o2000000;
      if (flags === undefined || (Number.parseInt(flags, 8) & O_CLOEXEC) !== 0) continue;
    } catch {
      continue; // it was the listing's own
    }
    while (stdio.length <= fd - first) stdio.push('ignore');
    stdio[fd - first] = devNull;
  }
  return stdio;
}

/** One interpreter's process with what holds it, from its start to the end of all that it started. */
export class Child {
  readonly #options: ChildOptions;
  readonly #process: ChildProcess;
  readonly #channel: Duplex;
  readonly #streams: Readable[];
  /** What was printed and not taken yet. */
  #output: Buffer[] = [];
  #outputBytes = 0;
  #line = Buffer.alloc(0);
  #expected: { id: string; marker: Buffer; reply?: Reply; resolve: (reply: Reply | undefined) => void } | undefined;
  #onReady: (() => void) | undefined;
  #reason: EndReason | undefined;
  #hasExited = false;
  #isEnding = false;
  /** How the process ended, in words. */
  #how = 'ended';
  #timer: NodeJS.Timeout | undefined;
  #looks = 0;
  #isLookingAtDisk = false;
  readonly #exited: Promise<void>;
  readonly #ready: Promise<void>;
  #ended: Promise<void> | undefined;
  /** The namespace's first process, as soon as it is known. */
  #first: number | undefined;

  constructor(options: ChildOptions) {
    this.#options = options;
    const isWindows = process.platform === 'win32';
    // One stream for both, so that what is printed has one order.
    const [program, ...args] = isWindows ? options.command : ['sh', '-c', 'exec "$@" 2>&1', 'sh', ...options.command];
    const devNull = isWindows ? undefined : openSync('/dev/null', 'r+');
    try {
      const third = options.descriptor === undefined ? [] : [options.descriptor];
      const closed = devNull === undefined ? [] : closedDescriptors(4 + third.length, devNull);
      this.#process = spawn(program as string, args, {
        cwd: options.cwd,
        env: options.env,
        stdio: ['ignore', 'pipe', 'pipe', 'pipe', ...third, ...closed],
        detached: !isWindows,
        windowsHide: true,
      });
    } finally {
      if (devNull !== undefined) closeSync(devNull);
    }
    this.#channel = this.#process.stdio[3] as Duplex;
    this.#streams = [this.#process.stdout as Readable, this.#process.stderr as Readable];
    // Writing to a process that has ended fails; its end is told otherwise.
    this.#channel?.on('error', () => {});
    this.#channel?.on('data', (data: Buffer) => this.#receive(data));
    for (const stream of this.#streams) {
      stream?.on('error', () => {});
      stream?.on('data', (data: Buffer) => this.#print(data));
    }
    this.#ready = new Promise((resolve) => {
      this.#onReady = resolve;
    });
    this.#exited = new Promise((resolve) => {
      this.#process.once('error', ({ message }) => {
        this.#how = `did not start: ${message}`;
        if (this.#process.pid === undefined) resolve();
      });
      // "close" comes when the streams have ended as well: everything that was printed is here. A process that left the
      // group may hold them, where nothing else holds it: after the exit they are waited for only so long.
      this.#process.once('exit', (code, signal) => {
        this.#how = signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`;
        if (!options.hasNamespace) this.#killGroup();
        setTimeout(resolve, MOST_END_MS).unref();
      });
      this.#process.once('close', () => resolve());
    });
    this.#exited.then(() => {
      this.#hasExited = true;
      clearTimeout(this.#timer);
      this.#settle(this.#expected?.reply);
      this.#onReady?.();
    });
    this.#watch(true);
    this.#hold(false);
  }

  /** Why this side ended the process, if it did. */
  get reason(): EndReason | undefined {
    return this.#reason;
  }

  /** How the process ended, in words. */
  get how(): string {
    return this.#how;
  }

  /** Whether the process has ended or is about to. */
  get isGone(): boolean {
    return this.#hasExited || this.#reason !== undefined || this.#isEnding;
  }

  /** Resolves when the runner waits for code: true; or has ended: false. */
  async start(): Promise<boolean> {
    this.#hold(true);
    await this.#ready;
    this.#hold(false);
    return !this.isGone;
  }

  /** Gives code to the runner. Resolves with its reply, or with undefined when the process has ended without one. */
  async ask(id: string, marker: string, code: string): Promise<Reply | undefined> {
    if (this.#hasExited) return undefined;
    this.#hold(true);
    this.#watch(true);
    try {
      return await new Promise((resolve) => {
        this.#expected = { id, marker: Buffer.from(marker), resolve };
        this.#channel.write(`${JSON.stringify({ id, marker, code })}\n`);
      });
    } finally {
      this.#watch(false);
      this.#hold(false);
    }
  }

  /** What was printed since the last time, without the marker; at most so many bytes as may be printed. */
  takeOutput(): Buffer {
    const all = Buffer.concat(this.#output);
    this.#output = [];
    this.#outputBytes = 0;
    return all;
  }

  /** Whether this process of Node waits for the child. */
  #hold(isHeld: boolean): void {
    const handles = [this.#process, this.#channel, ...this.#streams] as {
      destroyed?: boolean;
      ref?(): void;
      unref?(): void;
    }[];
    for (const handle of handles) {
      if (handle?.destroyed) continue; // it would wait for a connection
      if (isHeld) handle?.ref?.();
      else handle?.unref?.();
    }
  }

  #settle(reply: Reply | undefined): void {
    const expected = this.#expected;
    this.#expected = undefined;
    expected?.resolve(reply);
  }

  #print(data: Buffer): void {
    // What ends a sandbox may say so itself; that is not the code's.
    if (this.#reason !== undefined) return;
    this.#output.push(data);
    this.#outputBytes += data.length;
    this.#findMarker();
    // A marker may be part of what has come.
    if (this.#outputBytes > this.#options.outputBytes + (this.#expected?.marker.length ?? 0)) void this.end('output');
  }

  /** A piece is done when its reply has come and everything that was printed before it. */
  #findMarker(): void {
    const expected = this.#expected;
    if (expected?.reply === undefined) return;
    const all = Buffer.concat(this.#output);
    const at = all.lastIndexOf(expected.marker);
    if (at < 0) return;
    const rest = Buffer.concat([all.subarray(0, at), all.subarray(at + expected.marker.length)]);
    this.#output = [rest];
    this.#outputBytes = rest.length;
    this.#settle(expected.reply);
  }

  #receive(data: Buffer): void {
    if (this.#reason !== undefined) return;
    this.#line = Buffer.concat([this.#line, data]);
    for (let end = this.#line.indexOf(10); end >= 0; end = this.#line.indexOf(10)) {
      const line = this.#line.subarray(0, end);
      this.#line = this.#line.subarray(end + 1);
      if (!this.#understand(line)) {
        void this.end('garbage');
        return;
      }
    }
    if (this.#line.length > MOST_REPLY) void this.end('garbage');
  }

  /** Whether the line is what a runner writes now. */
  #understand(line: Buffer): boolean {
    if (line.length > MOST_REPLY) return false;
    let message: unknown;
    try {
      message = JSON.parse(line.toString());
    } catch {
      return false;
    }
    if (typeof message !== 'object' || message === null) return false;
    const { ready, id, status, ending } = message as Record<string, unknown>;
    if (ready === true && this.#onReady !== undefined) {
      this.#onReady();
      this.#onReady = undefined;
      return true;
    }
    const expected = this.#expected;
    if (expected === undefined || expected.reply !== undefined || id !== expected.id) return false;
    if (status !== 'ok' && status !== 'error' && status !== 'memory') return false;
    this.#isEnding = ending === true || status === 'memory';
    expected.reply = { status, isLast: this.#isEnding };
    this.#findMarker();
    return true;
  }

  /** Looks at what the kernel's limits do not hold: the sums over all processes, and the working directory. */
  #watch(isBusy: boolean): void {
    clearTimeout(this.#timer);
    if (this.#hasExited) return;
    const look = () => {
      this.#look();
      this.#watch(isBusy);
    };
    this.#timer = setTimeout(look, isBusy ? BUSY_LOOK_MS : IDLE_LOOK_MS).unref();
  }

  #look(): void {
    const { pid } = this.#process;
    if (this.#reason !== undefined || pid === undefined) return;
    const { memoryBytes, tasks, fileBytes, isDiskOver } = this.#options;
    const states = descendantsOf(pid, tasks + 1);
    const own = processState(pid);
    if (own !== undefined) states.push(own);
    if (states.reduce((sum, { threads }) => sum + threads, 0) > tasks) {
      void this.end('processes');
      return;
    }
    // What processes share is counted once for each of them at first; where that is too much, it is looked at closely.
    if (states.reduce((sum, { residentBytes }) => sum + residentBytes, 0) > memoryBytes) {
      const exact = states.reduce((sum, it) => sum + (proportionalBytes(it.pid) ?? it.residentBytes), 0);
      if (exact > memoryBytes) {
        void this.end('memory');
        return;
      }
    }
    if (this.#looks++ % DISK_LOOKS !== 0 || this.#isLookingAtDisk) return;
    // The size of a file that is only mapped is not told.
    const hidden = hiddenFiles(
      states.map((it) => it.pid),
      fileBytes / MOST_MAPPED,
    );
    const left = fileBytes - [...hidden.values()].reduce((sum, bytes) => sum + bytes, 0);
    if (left < 0) {
      void this.end('disk');
      return;
    }
    this.#isLookingAtDisk = true;
    isDiskOver(left).then(
      (isOver) => {
        this.#isLookingAtDisk = false;
        if (isOver) void this.end('disk');
      },
      () => {
        this.#isLookingAtDisk = false;
      },
    );
  }

  /** The namespace's first process: the one whose parent is not in the namespace. */
  #findFirst(): number | undefined {
    const { pid } = this.#process;
    if (!this.#options.hasNamespace || pid === undefined) return undefined;
    return childrenOf(pid)[0];
  }

  /** Ends what is left of the process group, which has the command's number. */
  #killGroup(): void {
    const { pid } = this.#process;
    if (pid === undefined || process.platform === 'win32') return;
    try {
      process.kill(-pid, 'SIGKILL');
    } catch {
      // Nothing is left.
    }
  }

  #endCommand(): void {
    this.#process.kill('SIGKILL');
    this.#killGroup();
  }

  /** Ends the process and all in its namespace, and waits until they are gone. */
  end(reason: EndReason): Promise<void> {
    if (!this.#hasExited) this.#reason ??= reason;
    this.#ended ??= this.#end();
    return this.#ended;
  }

  async #end(): Promise<void> {
    const { pid } = this.#process;
    if (pid !== undefined && !this.#hasExited) {
      this.#hold(true);
      await this.#kill(pid);
      this.#hold(false);
    }
    for (const stream of [this.#channel, ...this.#streams]) stream?.destroy();
    clearTimeout(this.#timer);
  }

  async #kill(pid: number): Promise<void> {
    const kill = (target: number) => {
      try {
        process.kill(target, 'SIGKILL');
      } catch {
        // It has ended.
      }
    };
    const isRunning = () => this.#process.exitCode === null && this.#process.signalCode === null;
    this.#first = this.#findFirst();
    const first = this.#first;
    const below = this.#options.hasNamespace ? [] : descendantsOf(pid, this.#options.tasks + 1);
    if (isRunning()) {
      // The kernel ends a namespace with its first process. The command outside ends by itself when that is gone, and
      // takes it away, which an orphan's new parent might not.
      if (first !== undefined && processState(first)?.parent === pid) kill(first);
      else this.#endCommand();
    }
    for (const { pid: other } of below) kill(other);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, MOST_END_MS);
    });
    await Promise.race([this.#exited, late]);
    clearTimeout(timer);
    if (isRunning()) this.#endCommand();
    await this.#exited;
    // Killed from above before it was known, the namespace ends on its own; its first process is seen until it has.
    while (first !== undefined && processState(first)?.isZombie === false) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
}
