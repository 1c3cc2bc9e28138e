/** A result of code that is no text: an image, or another file that the code wrote. */
export interface ExecutionFile {
  /** The file's name within the working directory, such as `plot.png`. */
  name: string;
  /** By the file's ending, such as `image/png`; else `application/octet-stream`. */
  mediaType: string;
  /** What the file holds. */
  data: Uint8Array;
}

/** What the model's code gave. */
export interface ExecutionResult {
  /**
   * `ok`; `error`: the code threw, or ended with an error; `timeout`, `memory` and `output`: a limit was met, and what the code
   * had defined is lost, as after `crashed`: the process ended otherwise.
   */
  status: 'ok' | 'error' | 'timeout' | 'memory' | 'output' | 'crashed';
  /** What was printed, and the value of the last expression or the error's text: what the model is told. */
  text: string;
  /** Files that the code wrote or changed, images among them. */
  files: ExecutionFile[];
  /** How long the code ran, in milliseconds. */
  tookMs: number;
}

/** Runs code that a model wrote, one piece after the other; later pieces see what earlier ones defined. */
export interface ExecutorSession extends AsyncDisposable {
  /**
   * Runs a piece of code, after those that were given before. Whatever the code does is told in the result. A process that a
   * limit ended, or that crashed, is replaced at the next piece; the working directory stays as it is.
   *
   * @throws {ChatGLMError} ERR_ABORTED when `signal` fires; the running code has ended by then. ERR_DISPOSED.
   */
  run(code: string, options?: { signal?: AbortSignal | undefined }): Promise<ExecutionResult>;
  /** Ends the process and all that the code started, and removes the working directory. A piece under way ends with ERR_DISPOSED. */
  dispose(): Promise<void>;
}

/** What runs the code of the code interpreter. Each conversation has a session of its own. */
export interface CodeExecutor {
  /** `python` or `javascript`, say: what the model is to write. */
  readonly language: string;
  /**
   * Begins a session.
   *
   * @throws {ChatGLMError} ERR_UNSUPPORTED: the interpreter or the sandbox cannot be used here.
   */
  open(): Promise<ExecutorSession>;
}

/** What a sandbox keeps from the code. */
export interface SandboxProtections {
  /** What holds the code: `none` is no sandbox. */
  sandbox: 'bubblewrap' | 'unshare' | 'none';
  /** Whether the code reaches no network. */
  network: boolean;
  /** Whether the code sees no files but the system's programs, the interpreter and its working directory. */
  files: boolean;
  /** Whether the code sees no processes but its own, and all of them end with the session. */
  processes: boolean;
  /** Whether memory is limited. */
  memory: boolean;
  /** Whether system calls that programs do not need, such as those for namespaces and for virtual machines' sockets, are refused. */
  systemCalls: boolean;
}
