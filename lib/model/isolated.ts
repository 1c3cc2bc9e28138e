import { type ChildProcess, fork } from 'node:child_process';
import path from 'node:path';
import type {
  NativeError,
  NativeEvent,
  NativeGrammar,
  NativeModel,
  NativeModelSpec,
  NativeModelStats,
  NativeRequest,
} from '../addon/native.js';
import type { TokenizerData } from '../tokenizer/data.js';
import { endOf, type IsolatedCall, type IsolatedReport } from './isolated-messages.js';

/** A process that runs one model: Node's, or Electron's kind for what the main process must not do itself. */
interface Child {
  send(call: IsolatedCall): void;
  /** Whether the process of the parent stays for its sake. */
  hold(isHeld: boolean): void;
  kill(): void;
}

interface ChildListener {
  onReport(report: IsolatedReport): void;
  /** @param reason Why the process was not even started. */
  onExit(exitCode: number | null, signal: string | null, reason?: string): void;
}

const CHILD = path.join(__dirname, 'isolated-child.js');

/** A debugger's port belongs to the parent. */
function environment(): NodeJS.ProcessEnv {
  const { NODE_OPTIONS: options, ...rest } = process.env;
  const kept = options?.split(/\s+/).filter((option) => !option.startsWith('--inspect'));
  return kept === undefined ? rest : { ...rest, NODE_OPTIONS: kept.join(' ') };
}

function startNode(listener: ChildListener): Child {
  const child: ChildProcess = fork(CHILD, [], {
    serialization: 'advanced',
    execArgv: [],
    env: environment(),
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
  child.on('message', (report) => listener.onReport(report as IsolatedReport));
  child.once('exit', (exitCode, signal) => listener.onExit(exitCode, signal));
  child.once('error', ({ message }) => {
    // The process was not started; there is no exit to follow.
    if (child.pid === undefined) listener.onExit(null, null, message);
  });
  return {
    send: (call) => {
      // What cannot be sent any more is answered by the exit.
      if (child.connected) child.send(call, () => {});
    },
    hold: (isHeld) => {
      if (isHeld) {
        child.ref();
        child.channel?.ref();
      } else {
        child.unref();
        child.channel?.unref();
      }
    },
    kill: () => void child.kill('SIGKILL'),
  };
}

/** Electron's `utilityProcess`, as far as it is used here: its module is there in Electron only. */
interface UtilityProcess {
  fork(
    file: string,
    args: string[],
    options: object,
  ): {
    postMessage(message: unknown): void;
    on(event: 'message', listener: (message: unknown) => void): void;
    once(event: 'exit', listener: (code: number) => void): void;
    kill(): boolean;
  };
}

function startInElectron(utilityProcess: UtilityProcess, listener: ChildListener): Child {
  const child = utilityProcess.fork(CHILD, [], { serviceName: 'node-chatglm', env: environment(), stdio: 'ignore' });
  child.on('message', (report) => listener.onReport(report as IsolatedReport));
  child.once('exit', (code) => listener.onExit(code, null));
  return { send: (call) => child.postMessage(call), hold: () => {}, kill: () => void child.kill() };
}

function startChild(listener: ChildListener): Child {
  const { type } = process as { type?: string };
  if (process.versions.electron !== undefined && type === 'browser') {
    const { utilityProcess } = require('electron') as { utilityProcess: UtilityProcess };
    return startInElectron(utilityProcess, listener);
  }
  return startNode(listener);
}

/** How long a child may take to end after its model was disposed of, in milliseconds. */
const MOST_EXIT_MS = 10_000;

/** A native model in a process of its own, which may crash without the parent. */
export class IsolatedModel implements NativeModel {
  readonly #child: Child;
  readonly #tell: (events: NativeEvent[]) => void;
  /** Requests and calls that have not ended. */
  readonly #pending = new Map<number, 'request' | 'pages'>();
  #isLoading = true;
  #isDisposing = false;
  #hasFailed = false;
  #hasEnded = false;
  #next = 1;
  #stats: NativeModelStats | undefined;

  constructor(spec: NativeModelSpec, tokenizer: TokenizerData | undefined, onEvents: (events: NativeEvent[]) => void) {
    this.#tell = onEvents;
    this.#child = startChild({
      onReport: (report) => this.#report(report),
      onExit: (exitCode, signal, reason) => this.#exit(exitCode, signal, reason),
    });
    this.#child.send({ call: 'load', spec, tokenizer });
  }

  #report({ events, stats }: IsolatedReport): void {
    this.#stats = stats ?? this.#stats;
    const told: NativeEvent[] = [];
    for (const event of events) {
      if (event.type === 'ready' || event.type === 'failed') this.#isLoading = false;
      if (event.type === 'failed') this.#hasFailed = true;
      if (event.type === 'finish' || event.type === 'error' || event.type === 'pages')
        this.#pending.delete(event.request);
      // The memory is free when the process has ended.
      if (event.type !== 'disposed') told.push(event);
    }
    this.#hold();
    if (told.length > 0) this.#tell(told);
  }

  #exit(exitCode: number | null, signal: string | null, reason: string | undefined): void {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    const told: NativeEvent[] = [];
    const how =
      signal !== null
        ? `by ${signal}`
        : exitCode !== null
          ? `with exit code ${exitCode}`
          : `before it began: ${reason}`;
    const error: NativeError = this.#isDisposing
      ? { code: 'ERR_DISPOSED', message: 'the model was disposed', details: {} }
      : {
          code: 'ERR_RUNTIME_CRASHED',
          message: `the process that ran the model ended ${how}`,
          details: { ...(signal === null ? {} : { signal }), ...(exitCode === null ? {} : { exitCode }) },
        };
    for (const [number, kind] of this.#pending) told.push(endOf(number, kind, error));
    this.#pending.clear();
    if (!this.#isDisposing && !this.#hasFailed) told.push({ type: 'failed', error });
    told.push({ type: 'disposed' });
    this.#tell(told);
  }

  #hold(): void {
    this.#child.hold(this.#isLoading || this.#isDisposing || this.#pending.size > 0);
  }

  #begin(kind: 'request' | 'pages'): number {
    const number = this.#next++;
    this.#pending.set(number, kind);
    this.#hold();
    return number;
  }

  prepareGrammar(_grammar: NativeGrammar, onEnd: (error?: NativeError) => void): void {
    // The child compiles the grammar with the request, which holds up nobody here.
    queueMicrotask(() => onEnd());
  }

  submit(request: NativeRequest): number {
    const number = this.#begin('request');
    this.#child.send({ call: 'submit', number, request });
    return number;
  }

  cancel(number: number): void {
    this.#child.send({ call: 'cancel', number });
  }

  clearCache(): void {
    this.#child.send({ call: 'clearCache' });
  }

  stats(): NativeModelStats {
    if (this.#stats === undefined) throw Object.assign(new Error('the model is loading'), { code: 'ERR_INTERNAL' });
    // The child told them with its last events: what has been asked since then waits, as far as anybody knows.
    const known = this.#stats.activeSequences + this.#stats.queuedRequests;
    return { ...this.#stats, queuedRequests: this.#stats.queuedRequests + Math.max(0, this.#pending.size - known) };
  }

  readPages(pin: number, first: number, count: number): number {
    const number = this.#begin('pages');
    this.#child.send({ call: 'readPages', number, pin, first, count });
    return number;
  }

  writePages(pin: number, first: number, data: Uint8Array): number {
    const number = this.#begin('pages');
    this.#child.send({ call: 'writePages', number, pin, first, data });
    return number;
  }

  importPages(tokens: Uint32Array): number {
    const number = this.#next++;
    this.#child.send({ call: 'importPages', number, tokens });
    return number;
  }

  release(number: number): void {
    this.#child.send({ call: 'release', number });
  }

  dispose(): void {
    if (this.#isDisposing) return;
    this.#isDisposing = true;
    this.#hold();
    this.#child.send({ call: 'dispose' });
    setTimeout(() => {
      if (!this.#hasEnded) this.#child.kill();
    }, MOST_EXIT_MS).unref();
  }
}
