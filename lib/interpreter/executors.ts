import type { CodeExecutor, SandboxProtections } from './executor.js';
import { findNode, findPython, type Interpreter } from './interpreter.js';
import { JAVASCRIPT_RUNNER } from './javascript-runner.js';
import { type JavaScriptExecutorOptions, type PythonExecutorOptions, readSettings, type Settings } from './options.js';
import { findSandbox } from './probe.js';
import { PYTHON_RUNNER } from './python-runner.js';
import type { Command } from './sandbox.js';
import { InterpreterSession, type Plan } from './session.js';

/** A code executor that runs processes of this machine. */
export interface ProcessExecutor extends CodeExecutor {
  /**
   * What the executor protects on this system. The sandbox is tried for it once, as for the first session.
   *
   * @throws {ChatGLMError} ERR_UNSUPPORTED: the interpreter or the sandbox cannot be used here.
   */
  protections(): Promise<SandboxProtections>;
}

const MEBIBYTE = 2 ** 20;

function executor(language: string, makePlan: () => Promise<Plan>): ProcessExecutor {
  let found: Promise<Plan> | undefined;
  // What could not be used may be there later: only what was found is kept.
  const plan = () => {
    found ??= makePlan().catch((error) => {
      found = undefined;
      throw error;
    });
    return found;
  };
  return {
    language,
    open: async () => InterpreterSession.open(await plan()),
    protections: async () => {
      const { sandbox } = await plan();
      const isHeld = sandbox.kind !== 'none';
      return {
        sandbox: sandbox.kind,
        network: sandbox.hidesNetwork,
        files: isHeld,
        processes: isHeld,
        memory: process.platform === 'linux' && sandbox.hasLimits,
        systemCalls: sandbox.hasFilter,
      };
    },
  };
}

async function planOf(
  settings: Settings,
  interpreter: Interpreter,
  command: Omit<Command, 'interpreter'>,
  env: Readonly<Record<string, string>>,
): Promise<Plan> {
  const sandbox = await findSandbox(settings, interpreter, command.filterArgument !== undefined);
  return { settings, interpreter, sandbox, command: { ...command, interpreter }, env };
}

/**
 * Runs Python code, as ChatGLM3's code interpreter writes it: definitions stay from piece to piece, the value of a last
 * expression is shown, and figures of matplotlib come back as PNG files where it is installed. The code runs in a sandbox
 * without network, in which it sees nothing of the user's files; its working directory is `/mnt/data`.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT. `open()` throws ERR_UNSUPPORTED where this system has no sandbox or no Python.
 *
 * @example
 * ```ts
 * const executor = pythonExecutor({ timeoutMs: 30_000, files: { 'numbers.csv': new TextEncoder().encode('1\n2\n') } });
 * await using session = await executor.open();
 * const { status, text } = await session.run('sum(int(line) for line in open("numbers.csv"))');
 * console.log(status, text); // ok 3
 * ```
 */
export function pythonExecutor(options: PythonExecutorOptions = {}): ProcessExecutor {
  const settings = readSettings(options, 'python', 'pythonExecutor()');
  return executor('python', async () => {
    const interpreter = await findPython(settings.interpreter);
    // No user's own modules, no settings from variables, no files of compiled modules.
    const args = ['-I', '-B', '-u', '-X', 'utf8', '-c', PYTHON_RUNNER];
    const env = {
      MPLBACKEND: 'Agg',
      // Libraries of linear algebra would start a thread for each core.
      OMP_NUM_THREADS: '4',
      OPENBLAS_NUM_THREADS: '4',
      MKL_NUM_THREADS: '4',
    };
    return planOf(settings, interpreter, { args, filterArgument: 'filter', ownThreads: 8, ownBytes: 0 }, env);
  });
}

/**
 * Runs JavaScript code as Node.js's REPL does: declarations stay from piece to piece, `await` may stand at the top, and the
 * value of a last expression is shown. The code runs in a sandbox without network, in which it sees nothing of the user's
 * files; its working directory is `/mnt/data`.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT. `open()` throws ERR_UNSUPPORTED where this system has no sandbox.
 *
 * @example
 * ```ts
 * await using session = await javascriptExecutor().open();
 * await session.run('const squares = [1, 2, 3].map((n) => n * n)');
 * console.log((await session.run('squares')).text); // [ 1, 4, 9 ]
 * ```
 */
export function javascriptExecutor(options: JavaScriptExecutorOptions = {}): ProcessExecutor {
  const settings = readSettings(options, 'node', 'javascriptExecutor()');
  return executor('javascript', async () => {
    const interpreter = await findNode(settings.interpreter);
    const heapMebibytes = Math.floor((settings.memoryBytes * 0.75) / MEBIBYTE);
    const args = [`--max-old-space-size=${heapMebibytes}`, '-e', JAVASCRIPT_RUNNER];
    // V8's own threads, their stacks among its own memory.
    return planOf(
      settings,
      interpreter,
      { args, filterArgument: undefined, ownThreads: 24, ownBytes: 192 * MEBIBYTE },
      {},
    );
  });
}
