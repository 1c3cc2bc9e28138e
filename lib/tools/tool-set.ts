import { onAbort } from '../common/abort.js';
import { aborted, ChatGLMError, type ErrorCode, throwIfAborted } from '../common/errors.js';
import { shown } from '../common/invalid.js';
import { isPlainObject, messageOf, reading, show } from '../common/options.js';
import { isStandardSchema } from '../common/standard-schema.js';
import {
  type ListedTools,
  type ToolDefinition,
  type ToolRegistry,
  toolNames,
  validateTools,
  type WrappedToolDefinition,
} from '../families/messages.js';
import { checkArguments } from './arguments.js';
import { exampleCall } from './example-call.js';
import { limited, MOST_CHARACTERS, observationOf, reasonOf } from './observation.js';
import { CHECKER, type Checker, MOST_TIMEOUT, programFields, schemaOf, type Tool, ToolResult } from './tool.js';

/**
 * Tools in any of the shapes that are taken: a list of tools that {@link defineTool} made, of THUDM's flat definitions and of
 * OpenAI's wrapped ones, each with or without `execute()`; or a registry as in the demos of ChatGLM3.
 */
export type ToolsInput = readonly (Tool<never> | ToolDefinition | WrappedToolDefinition)[] | ToolRegistry;

/** A call as the model wrote it. */
export interface CallToRun {
  /** The tool's name. */
  name: string;
  /** Absent where what the model wrote is no call that can be read. */
  arguments?: Record<string, unknown>;
  /** What the model wrote. */
  raw: string;
}

export interface RunOptions {
  /** Ends the wait for the tool, with ERR_ABORTED. */
  signal?: AbortSignal | undefined;
  /** Rounds of calls and observations before this one. */
  round: number;
  /** Limit for tools without their own. Default: 30 seconds. */
  timeoutMs?: number | undefined;
  /** More characters of an observation are cut. Default: 20,000. */
  maxCharacters?: number | undefined;
  /** How the family writes calls: `tool_call(city='…')`, or `{"tool": …, "arguments": …}`. Default: `python`. */
  callForm?: 'python' | 'json' | undefined;
}

/** How a call ended. */
export interface ToolOutcome {
  /** Whether the tool gave a result. */
  ok: boolean;
  /** What the model is told, as an observation. */
  content: string;
  /** What `execute()` gave. */
  value?: unknown;
  /** Why there is no result. Its `cause` is what was thrown. */
  error?: ChatGLMError;
}

export const DEFAULT_TIMEOUT = 30_000;

/** More names would cost a model its context. */
const MOST_NAMES = 50;

interface Entry {
  readonly tool: Tool<never>;
  readonly checker: Checker | undefined;
}

/** The tools of a conversation: what the prompt lists, and what runs them. */
export class ToolSet {
  /** What the prompt lists: plain JSON, without anything that is for the program. */
  readonly shown: ListedTools;
  /** By these names the model calls the tools. */
  readonly names: ReadonlySet<string>;
  readonly #entries: ReadonlyMap<string, Entry>;

  private constructor(shown: ListedTools, entries: ReadonlyMap<string, Entry>) {
    this.shown = shown;
    this.names = new Set(entries.keys());
    this.#entries = entries;
  }

  /**
   * Reads tools in any shape; null and undefined are none.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the place.
   */
  static read(value: unknown, name = 'tools'): ToolSet {
    if (typeof value === 'object' && value !== null && #entries in value) return value as ToolSet;
    return reading(name, () => {
      const isList = Array.isArray(value ?? []);
      if (!isList && !isPlainObject(value)) validateTools(value, name); // throws
      const given = Object.entries(isList ? Array.from((value ?? []) as unknown[]) : (value as object));
      const where = (key: string) => (isList ? `${name}[${key}]` : `${name}.${shown(key)}`);
      const parts = given.map(([key, entry]) => [key, partsOf(entry, where(key))] as const);
      const definitions = parts.map(([key, { definition }]): [string, unknown] => [key, definition]);
      const list = validateTools(
        isList ? definitions.map(([, definition]) => definition) : Object.fromEntries(definitions),
        name,
      );
      const entries = toolNames(list).map((tool, index): [string, Entry] => {
        const [key, { program, checker }] = parts[index] as (typeof parts)[number];
        const listed = (Array.isArray(list) ? list[index] : (list as ToolRegistry)[tool]) as Record<string, unknown>;
        const { description } = listed;
        const parameters = listed.parameters ?? schemaOfParams(listed.params);
        const complete = {
          name: tool,
          ...(typeof description === 'string' && { description }),
          ...(isPlainObject(parameters) && { parameters }),
          ...programFields(program, where(key)),
        };
        return [tool, { tool: complete, checker }];
      });
      return new ToolSet(list, new Map(entries));
    });
  }

  /** No tools. */
  static readonly NONE = ToolSet.read([]);

  /** These tools; those that `others` has under the same name run as `others` says. */
  with(others: ToolSet | undefined): ToolSet {
    if (others === undefined) return this;
    const entries = [...this.#entries].map(([name, entry]) => [name, others.#entries.get(name) ?? entry] as const);
    return new ToolSet(this.shown, new Map(entries));
  }

  /** Whether any of the tools is run here. */
  get isExecutable(): boolean {
    return [...this.#entries.values()].some(({ tool }) => tool.execute !== undefined);
  }

  /** How many tools there are. */
  get size(): number {
    return this.#entries.size;
  }

  /** The tool of that name. */
  get(name: string): Tool<never> | undefined {
    return this.#entries.get(name)?.tool;
  }

  /**
   * Checks a call and runs its tool. Whatever is wrong with the call, and whatever the tool does, is told in the outcome. A
   * tool that goes on although its signal fired is not waited for.
   *
   * @throws {ChatGLMError} ERR_ABORTED when `options.signal` fires; nothing else.
   */
  async run(call: CallToRun, options: RunOptions): Promise<ToolOutcome> {
    const { signal, maxCharacters = MOST_CHARACTERS } = options;
    throwIfAborted(signal);
    const outcome = await this.#attempt(call, options);
    return { ...outcome, content: limited(outcome.content, maxCharacters) };
  }

  async #attempt(call: CallToRun, options: RunOptions): Promise<ToolOutcome> {
    const { signal, round, timeoutMs = DEFAULT_TIMEOUT, callForm = 'python' } = options;
    const entry = this.#entries.get(call.name);
    if (entry === undefined) {
      return failed('ERR_TOOL_CALL_INVALID', call.name, `there is no tool ${show(call.name)}; ${this.#described()}`);
    }
    const { tool } = entry;
    if (tool.execute === undefined) {
      return failed('ERR_TOOL_FAILED', tool.name, `${tool.name} cannot be run here: it has no execute()`);
    }
    if (call.arguments === undefined) {
      const form = exampleCall(tool, callForm);
      return failed(
        'ERR_TOOL_CALL_INVALID',
        tool.name,
        `${tool.name}: the call cannot be read; write it like this: ${form}`,
      );
    }
    const limit = Math.min(tool.timeoutMs ?? timeoutMs, MOST_TIMEOUT);
    return withinTime(tool.name, limit, signal, (inner) => execute(entry, call, round, inner));
  }

  #described(): string {
    const names = [...this.names];
    if (names.length === 0) return 'there are no tools';
    const more = names.length > MOST_NAMES ? ` and ${names.length - MOST_NAMES} more` : '';
    return `the tools are ${names.slice(0, MOST_NAMES).join(', ')}${more}`;
  }
}

/** A tool's definition, which the model sees, apart from what is for the program. */
interface Parts {
  definition: unknown;
  program: Parameters<typeof programFields>[0];
  checker: Checker | undefined;
}

function partsOf(entry: unknown, name: string): Parts {
  return reading(name, () => {
    if (typeof entry !== 'object' || entry === null) return { definition: entry, program: {}, checker: undefined };
    const outer = entry as Record<string, unknown> & { [CHECKER]?: Checker };
    const { type, function: wrapped } = outer;
    const isWrapped = type === 'function' && typeof wrapped === 'object' && wrapped !== null;
    const inner = (isWrapped ? wrapped : outer) as typeof outer;
    const execute = inner.execute ?? outer.execute;
    const program = {
      // As a method: a tool may be an object with a state.
      execute: typeof execute === 'function' ? (...given: unknown[]) => execute.apply(inner, given) : execute,
      timeoutMs: inner.timeoutMs ?? outer.timeoutMs,
      strict: inner.strict ?? outer.strict,
    };
    const { parameters } = inner;
    if (!isStandardSchema(parameters)) return { definition: entry, program, checker: inner[CHECKER] ?? outer[CHECKER] };
    const { jsonSchema, ...definition } = inner;
    definition.parameters = schemaOf(parameters, jsonSchema, `${name}.parameters`);
    return { definition, program, checker: parameters };
  });
}

const PYTHON_TYPES: Readonly<Record<string, string>> = {
  str: 'string',
  int: 'integer',
  float: 'number',
  bool: 'boolean',
  list: 'array',
  dict: 'object',
};

/** The JSON schema of what a registry says about a tool's arguments, as far as it says something that can be checked. */
function schemaOfParams(params: unknown): Record<string, unknown> | undefined {
  if (!Array.isArray(params)) return undefined;
  const known = params.filter((param): param is Record<string, unknown> => typeof param?.name === 'string');
  const properties = known.map(({ name, type }): [string, object] => {
    const isKnown = typeof type === 'string' && Object.hasOwn(PYTHON_TYPES, type);
    return [String(name), isKnown ? { type: PYTHON_TYPES[type] } : {}];
  });
  const required = known.filter((param) => param.required === true).map(({ name }) => name);
  return { type: 'object', properties: Object.fromEntries(properties), required };
}

async function execute(
  { tool, checker }: Entry,
  call: CallToRun,
  round: number,
  signal: AbortSignal,
): Promise<ToolOutcome> {
  let checked: Awaited<ReturnType<typeof checkArguments>>;
  let written: Record<string, unknown>;
  try {
    // Two copies: what the tool does to its arguments changes neither the history nor what its context says.
    written = structuredClone(call.arguments ?? {});
    checked = await checkArguments(tool, checker, structuredClone(call.arguments ?? {}));
  } catch (thrown) {
    const problem = `${tool.name}: the arguments cannot be checked: ${messageOf(thrown)}`;
    return failed('ERR_TOOL_FAILED', tool.name, problem, thrown);
  }
  if ('problem' in checked) return failed('ERR_TOOL_CALL_INVALID', tool.name, `${tool.name}: ${checked.problem}`);
  let value: unknown;
  try {
    // Checking may have taken all the time there was: nobody waits for the tool any more.
    if (signal.aborted) throw signal.reason;
    value = await tool.execute?.(checked.value as never, {
      signal,
      round,
      call: { name: call.name, arguments: written },
    });
  } catch (thrown) {
    const error = new ChatGLMError(
      'ERR_TOOL_FAILED',
      `${tool.name} failed: ${messageOf(thrown)}`,
      { tool: shown(tool.name) },
      thrown,
    );
    return { ok: false, content: `Error: ${reasonOf(thrown)}`, error };
  }
  if (value instanceof ToolResult) return { ok: true, content: value.text, value: value.value };
  try {
    return { ok: true, content: observationOf(value), value };
  } catch (thrown) {
    const problem = `${tool.name} gave a result that cannot be written as JSON: ${messageOf(thrown)}`;
    return failed('ERR_TOOL_FAILED', tool.name, problem, thrown);
  }
}

function failed(code: ErrorCode, tool: string, problem: string, cause?: unknown): ToolOutcome {
  const error = new ChatGLMError(code, problem, { tool: shown(tool) }, cause);
  return { ok: false, content: `Error: ${problem}`, error };
}

/** What `start` gives; or after `limit` milliseconds a failure; rejects with ERR_ABORTED as soon as the signal fires. */
async function withinTime(
  tool: string,
  limit: number,
  signal: AbortSignal | undefined,
  start: (signal: AbortSignal) => Promise<ToolOutcome>,
): Promise<ToolOutcome> {
  const controller = new AbortController();
  const { promise, resolve, reject } = deferred<ToolOutcome>();
  const timer = setTimeout(() => {
    const problem = `${tool} took longer than ${limit} ms`;
    const error = new ChatGLMError('ERR_TIMEOUT', problem, { timeoutMs: limit, tool: shown(tool) });
    resolve({ ok: false, content: `Error: ${problem}`, error });
    controller.abort(error);
  }, limit);
  const stopWaiting = onAbort(signal, () => {
    const error = aborted(signal as AbortSignal);
    reject(error);
    controller.abort(error.cause);
  });
  try {
    start(controller.signal).then(resolve, reject);
    return await promise;
  } finally {
    clearTimeout(timer);
    stopWaiting();
  }
}

function deferred<T>() {
  let resolve!: (value: T) => void;
  let reject!: (reason: unknown) => void;
  const promise = new Promise<T>((onResolve, onReject) => {
    resolve = onResolve;
    reject = onReject;
  });
  return { promise, resolve, reject };
}
