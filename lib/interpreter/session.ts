import { randomBytes } from 'node:crypto';
import { delimiter, dirname } from 'node:path';
import { onAbort } from '../common/abort.js';
import { aborted, ChatGLMError, invalidArgument, throwIfAborted } from '../common/errors.js';
import { readOptions, show, signalOption } from '../common/options.js';
import { Child, type EndReason, type Reply } from './child.js';
import type { ExecutionResult, ExecutorSession } from './executor.js';
import type { Interpreter } from './interpreter.js';
import type { Settings } from './options.js';
import { baseEnv, openFilter, someUser } from './probe.js';
import { type Command, SANDBOX_PATH, type Sandbox, sandboxed } from './sandbox.js';
import { MOST_ENTRIES, MOST_FILE_BYTES, MOST_FILES, WorkingDirectory } from './working-directory.js';

/** What every session of an executor shares. */
export interface Plan {
  settings: Settings;
  interpreter: Interpreter;
  sandbox: Sandbox;
  command: Command;
  /** Variables of the language's own. */
  env: Readonly<Record<string, string>>;
}

/** How long an interpreter may take to start, in milliseconds. */
const MOST_START_MS = 60_000;

/** Processes that build the sandbox and wait for its end. */
const SANDBOX_TASKS = 4;

/** Variables that Windows' programs do not start without. */
const WINDOWS_NAMES = ['SystemRoot', 'TEMP', 'TMP'];

function environment({ settings, sandbox, interpreter, env }: Plan, data: string): Record<string, string> {
  const all: Record<string, string> = {};
  const take = (names: readonly string[]) => {
    for (const name of names) {
      const value = process.env[name];
      if (value !== undefined) all[name] = value;
    }
  };
  if (sandbox.kind === 'none') {
    take(['PATH', 'LANG', ...(process.platform === 'win32' ? WINDOWS_NAMES : [])]);
    all.HOME = data;
  } else {
    Object.assign(all, baseEnv(), { HOME: '/tmp', TMPDIR: '/tmp', MPLCONFIGDIR: '/tmp' });
    all.PATH = `${dirname(interpreter.program)}${delimiter}${SANDBOX_PATH}`;
  }
  Object.assign(all, env, interpreter.env);
  take(settings.env);
  return all;
}

/** What the model is told of a limit. */
function noteOf(reason: EndReason | undefined, how: string, { settings }: Plan): string {
  const lost = 'What the code had defined is lost.';
  switch (reason) {
    case 'timeout':
      return `[The code ran longer than ${settings.timeoutMs} ms and was ended. ${lost}]`;
    case 'memory':
      return `[The code took more than ${settings.memoryBytes} bytes of memory and was ended. ${lost}]`;
    case 'processes':
      return `[The code had more than ${settings.processes} processes and was ended. ${lost}]`;
    case 'disk':
      return `[The code wrote more than ${settings.fileBytes} bytes or ${MOST_ENTRIES} files and was ended. ${lost} The working directory was emptied.]`;
    case 'output':
      return `[The output was cut after ${settings.outputBytes} bytes, and the code was ended. ${lost}]`;
    case 'start':
      return '[The interpreter did not start again.]';
    case 'garbage':
      return `[The code disturbed the interpreter, which was ended. ${lost}]`;
    default:
      return `[The interpreter ${how}. ${lost}]`;
  }
}

const STATUS_OF: Readonly<Partial<Record<EndReason, ExecutionResult['status']>>> = {
  timeout: 'timeout',
  memory: 'memory',
  output: 'output',
  disk: 'output',
};

/** As V8 says that it found no memory before it ends the process. */
const V8_OUT_OF_MEMORY = /heap out of memory|Fatal process out of memory|Fatal JavaScript out of memory/;

/** The first bytes as text, without half a character at the end. */
function textOf(bytes: Buffer, most: number): string {
  let end = Math.min(bytes.length, most);
  if (end < bytes.length) while (end > 0 && ((bytes[end] as number) & 0xc0) === 0x80) end--;
  return bytes.toString('utf8', 0, end);
}

/** A conversation's interpreter: a working directory, and a process that is replaced when it has ended. */
export class InterpreterSession implements ExecutorSession {
  readonly #plan: Plan;
  readonly #directory: WorkingDirectory;
  readonly #user: number | undefined;
  #child: Child | undefined;
  /** Pieces run one after the other. */
  #turn: Promise<unknown> = Promise.resolve();
  #isDisposed = false;
  #disposal: Promise<void> | undefined;

  private constructor(plan: Plan, directory: WorkingDirectory, user: number | undefined) {
    this.#plan = plan;
    this.#directory = directory;
    this.#user = user;
  }

  static async open(plan: Plan): Promise<InterpreterSession> {
    const user = plan.sandbox.isRoot ? someUser() : undefined;
    const session = new InterpreterSession(plan, await WorkingDirectory.create(plan.settings.files, user), user);
    try {
      const child = await session.#start();
      const timer = setTimeout(() => child.end('start'), MOST_START_MS);
      const hasStarted = await child.start();
      clearTimeout(timer);
      if (hasStarted) return session;
      const text = textOf(child.takeOutput(), 1000).trim();
      await child.end('disposed');
      throw new ChatGLMError(
        'ERR_UNSUPPORTED',
        `the interpreter ${show(plan.interpreter.program)} ${child.how}${text === '' ? '' : `: ${show(text)}`}`,
      );
    } catch (error) {
      await session.dispose();
      throw error;
    }
  }

  async #start(): Promise<Child> {
    const { sandbox, settings, command } = this.#plan;
    const directory = this.#directory;
    const places = { data: directory.data, root: directory.root, user: this.#user ?? 0 };
    const filter = await openFilter(sandbox, directory);
    try {
      this.#child = new Child({
        command: await sandboxed(sandbox, places, settings, command),
        env: environment(this.#plan, directory.data),
        cwd: directory.data,
        descriptor: filter?.fd,
        hasNamespace: sandbox.kind !== 'none',
        memoryBytes: settings.memoryBytes + command.ownBytes,
        tasks: settings.processes + command.ownThreads + SANDBOX_TASKS,
        outputBytes: settings.outputBytes,
        fileBytes: settings.fileBytes,
        isDiskOver: (mostBytes) => directory.isOver(mostBytes),
      });
      return this.#child;
    } finally {
      await filter?.close();
    }
  }

  async run(code: string, options: { signal?: AbortSignal | undefined } = {}): Promise<ExecutionResult> {
    if (typeof code !== 'string') throw invalidArgument(`code must be a text, got ${show(code)}`);
    const signal = signalOption(readOptions<{ signal?: AbortSignal }>(options, ['signal'], 'run()').signal);
    const turn = this.#turn.then(() => this.#run(code, signal));
    this.#turn = turn.catch(() => {});
    return turn;
  }

  #throwIfDisposed(): void {
    if (this.#isDisposed) throw new ChatGLMError('ERR_DISPOSED', 'the session of the interpreter was disposed');
  }

  async #run(code: string, signal: AbortSignal | undefined): Promise<ExecutionResult> {
    this.#throwIfDisposed();
    throwIfAborted(signal);
    const notes: string[] = [];
    let child = this.#child;
    if (child === undefined || child.isGone) {
      // A process that ended while no code ran: it is told, since the model believes its definitions to be there.
      if (child !== undefined) notes.push(noteOf(child.reason, child.how, this.#plan));
      await child?.end('disposed');
      if (child?.reason === 'disk') await this.#directory.fill(this.#plan.settings.files, this.#user);
      child = await this.#start();
    }
    this.#throwIfDisposed();
    let began = performance.now();
    let timer = setTimeout(() => child.end('start'), MOST_START_MS);
    const forget = onAbort(signal, () => void child.end('aborted'));
    // A signal may have fired while a process was started.
    if (signal?.aborted) void child.end('aborted');
    let reply: Reply | undefined;
    try {
      if (await child.start()) {
        clearTimeout(timer);
        began = performance.now();
        timer = setTimeout(() => child.end('timeout'), this.#plan.settings.timeoutMs);
        const secret = randomBytes(16).toString('hex');
        reply = await child.ask(randomBytes(16).toString('hex'), `\u0001${secret}\u0001`, code);
      }
    } finally {
      clearTimeout(timer);
      forget();
    }
    const tookMs = performance.now() - began;
    const isOver = child.reason === undefined && (await this.#directory.isOver(this.#plan.settings.fileBytes));
    if (isOver) await child.end('disk');
    if (reply === undefined || reply.isLast || child.isGone) {
      await child.end('disposed');
      this.#child = undefined;
    }
    if (child.reason === 'aborted' && signal !== undefined) throw aborted(signal);
    this.#throwIfDisposed();
    return this.#result(child, reply, tookMs, notes);
  }

  async #result(child: Child, reply: Reply | undefined, tookMs: number, notes: string[]): Promise<ExecutionResult> {
    const printed = child.takeOutput();
    let text = textOf(printed, this.#plan.settings.outputBytes).replace(/\n+$/, '');
    const { reason } = child;
    let status: ExecutionResult['status'];
    if (reason !== undefined && reason !== 'disposed') {
      status = STATUS_OF[reason] ?? 'crashed';
      notes.push(noteOf(reason, child.how, this.#plan));
    } else if (reply !== undefined) {
      status = reply.status;
      if (reply.isLast) {
        notes.push(noteOf(status === 'memory' ? 'memory' : undefined, 'ended as the code asked', this.#plan));
      }
    } else {
      status = V8_OUT_OF_MEMORY.test(text) ? 'memory' : 'crashed';
      // Pages of V8's own stack follow.
      if (status === 'memory') text = text.replace(/\n?<--- Last few GCs --->[\s\S]*$/, '');
      notes.push(noteOf(status === 'memory' ? 'memory' : undefined, child.how, this.#plan));
    }
    if (reason === 'disk') await this.#directory.fill(this.#plan.settings.files, this.#user);
    const { files, left } = await this.#directory.takeChanges();
    if (left.length > 0) {
      const some = left.slice(0, MOST_FILES).map((name) => show(name));
      const others = left.length > some.length ? ` and ${left.length - some.length} others` : '';
      notes.push(
        `[Files that are not given back, as there are more than ${MOST_FILES} or ${MOST_FILE_BYTES} bytes: ${some.join(', ')}${others}]`,
      );
    }
    return { status, text: [text, ...notes].filter((it) => it !== '').join('\n'), files, tookMs };
  }

  dispose(): Promise<void> {
    this.#isDisposed = true;
    this.#disposal ??= this.#dispose();
    return this.#disposal;
  }

  async #dispose(): Promise<void> {
    await this.#child?.end('disposed');
    await this.#turn;
    await this.#child?.end('disposed');
    await this.#directory.remove();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}
