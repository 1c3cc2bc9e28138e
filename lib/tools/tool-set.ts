import { aborted, ChatGLMError, invalidArgument } from '../common/errors.js';
import { isPlainObject, messageOf, reading, show } from '../common/options.js';
import { dumpJsonLine } from '../common/python-text.js';
import { validated } from '../common/standard-schema.js';
import {
  type ToolDefinition,
  type ToolList,
  toolNames,
  validateTools,
  type WrappedToolDefinition,
} from '../families/messages.js';
import { defineTool, type Tool } from './tool.js';

/** Tools in the shapes that people have: see `ChatOptions.tools`. */
export type ToolsOption =
  // biome-ignore lint/suspicious/noExplicitAny: a list holds tools of different arguments, which `never` would refuse to call.
  readonly (Tool<any> | ToolDefinition | WrappedToolDefinition)[] | Readonly<Record<string, object>>;

/** What became of a call. */
export interface ToolOutcome {
  /** Whether the tool did its work. */
  ok: boolean;
  /** What the model is told. */
  content: string;
  /** What `execute()` returned. */
  value?: unknown;
  /** Why the tool did not do its work. Its `cause` is what was thrown. */
  error?: ChatGLMError;
}

/** What runs a call. */
export interface ToolCallContext {
  signal?: AbortSignal | undefined;
  round: number;
  /** For tools that say nothing themselves, in milliseconds. */
  timeoutMs: number;
}

/** The most characters of an observation: a tool that returns a book must not push the question out of the context. */
const MOST_CHARACTERS = 20_000;

/** The tools of a chat or of an answer: what the model is shown of them, and what runs when the model calls one. */
export class ToolSet {
  static readonly NONE = new ToolSet([], new Map());

  /** What the prompt lists: plain JSON. */
  readonly shown: ToolList;
  readonly names: ReadonlySet<string>;
  readonly #tools: ReadonlyMap<string, Tool>;

  private constructor(shown: ToolList, tools: ReadonlyMap<string, Tool>) {
    this.shown = shown;
    this.names = new Set(toolNames(shown));
    this.#tools = tools;
  }

  /**
   * Reads tools of any shape.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the place.
   */
  static read(value: unknown, name = 'tools'): ToolSet {
    const entries = entriesOf(value, name);
    // What a tool does and how is nothing that the model is shown.
    const shown = validateTools(
      Array.isArray(value) ? entries.map(([entry]) => visible(entry)) : mapValues(value, visible),
      name,
    );
    const tools = new Map<string, Tool>();
    for (const [index, listed] of toolNames(shown).entries()) {
      const [entry, where] = entries[index] as [unknown, string];
      const inner = isPlainObject(entry) && isPlainObject(entry.function) ? { ...entry, ...entry.function } : entry;
      const { parameters } = Array.isArray(shown) ? (shown[index] as ToolDefinition) : { parameters: undefined };
      const { execute, timeoutMs, strict, validator } = inner as Partial<Tool>;
      const tool = reading(where, () =>
        defineTool({ name: listed, parameters, execute, timeoutMs, strict, validator } as Parameters<
          typeof defineTool
        >[0]),
      );
      tools.set(listed, tool as Tool);
    }
    return new ToolSet(shown, tools);
  }

  get size(): number {
    return this.names.size;
  }

  /** Whether any of the tools is run here. */
  get isExecutable(): boolean {
    return [...this.#tools.values()].some(({ execute }) => execute !== undefined);
  }

  get(name: string): Tool | undefined {
    return this.#tools.get(name);
  }

  /** These tools, as {@link read} takes them. */
  get all(): ToolsOption {
    if (Array.isArray(this.shown))
      return this.shown.map((tool: ToolDefinition) => ({ ...tool, ...this.#tools.get(tool.name) }));
    return Object.fromEntries(
      Object.entries(this.shown).map(([name, tool]) => [name, { ...tool, ...runs(this.#tools.get(name)) }]),
    );
  }

  /** What is shown here, run as other tools of the same names are. */
  with(others: ToolSet | undefined): ToolSet {
    if (others === undefined) return this;
    const tools = new Map(this.#tools);
    for (const name of this.names) {
      const other = others.get(name);
      if (other) tools.set(name, other);
    }
    return new ToolSet(this.shown, tools);
  }

  /**
   * Checks the arguments of a call and runs the tool. What goes wrong is an outcome, which the model can be told.
   *
   * @throws {ChatGLMError} ERR_ABORTED when the signal fires; nothing else.
   */
  async run(
    call: { name: string; arguments?: Record<string, unknown>; raw: string },
    { signal, round, timeoutMs }: ToolCallContext,
  ): Promise<ToolOutcome> {
    const tool = this.#tools.get(call.name);
    if (tool?.execute === undefined) {
      return failed(`there is no tool ${call.name}; the tools are ${[...this.names].join(', ')}`);
    }
    const { arguments: given } = call;
    if (given === undefined) {
      return failed(
        `the call of ${call.name} cannot be read; its arguments must be literals, as in tool_call(name='value')`,
      );
    }
    if (signal?.aborted) throw aborted(signal);
    const limit = tool.timeoutMs ?? timeoutMs;
    const stopping = new AbortController();
    let giveUp: (error: ChatGLMError) => void = () => {};
    // A tool that does not heed its signal is not waited for.
    const over = new Promise<never>((_, reject) => {
      giveUp = reject;
    });
    over.catch(() => {});
    const timer = setTimeout(() => {
      giveUp(new ChatGLMError('ERR_TIMEOUT', `${call.name} took longer than ${limit} ms`, { timeoutMs: limit }));
      stopping.abort();
    }, limit);
    const onAbort = () => {
      giveUp(aborted(signal as AbortSignal));
      stopping.abort(signal?.reason);
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    const work = async () => {
      const args = await checked(tool, given);
      if (stopping.signal.aborted) return await over;
      // In a promise of its own, so that what is thrown at once is treated as what is thrown later.
      return await tool.execute?.(args, {
        signal: stopping.signal,
        round,
        call: { name: call.name, arguments: given },
      });
    };
    try {
      const value = await Promise.race([work(), over]);
      return { ok: true, content: told(value, call.name), value };
    } catch (cause) {
      if (signal?.aborted) throw aborted(signal);
      if (cause instanceof ChatGLMError) return failed(cause.message, cause);
      const message = messageOf(cause);
      return failed(
        message,
        new ChatGLMError('ERR_TOOL_FAILED', `${call.name}: ${message}`, { tool: call.name }, cause),
      );
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
    }
  }
}

function failed(message: string, error = invalidArgument(message)): ToolOutcome {
  return { ok: false, content: short(`Error: ${message}`), error };
}

function short(text: string): string {
  if (text.length <= MOST_CHARACTERS) return text;
  return `${text.slice(0, MOST_CHARACTERS)}\n[cut after ${MOST_CHARACTERS} of ${text.length} characters]`;
}

/** What the model is told of a value: a text as it is, and JSON as Python writes it, which is what models were trained with. */
function told(value: unknown, name: string): string {
  if (typeof value === 'string') return short(value);
  if (value === undefined) return 'ok';
  let json: string | undefined;
  try {
    json = JSON.stringify(value);
  } catch (cause) {
    throw new ChatGLMError(
      'ERR_TOOL_FAILED',
      `${name} returned what is no JSON: ${messageOf(cause)}`,
      { tool: name },
      cause,
    );
  }
  if (json === undefined) throw new ChatGLMError('ERR_TOOL_FAILED', `${name} returned ${show(value)}`, { tool: name });
  return short(dumpJsonLine(JSON.parse(json)));
}

/** The arguments, if they are what the tool takes. */
async function checked(tool: Tool, given: Record<string, unknown>): Promise<Record<string, unknown>> {
  if (tool.validator) return (await validated(tool.validator, given, 'arguments')) as Record<string, unknown>;
  if (tool.parameters === undefined) return given;
  // Loaded when a call is checked: nobody else pays for the validator.
  const { Validator } = require('@cfworker/json-schema') as typeof import('@cfworker/json-schema');
  const { valid, errors } = new Validator(tool.parameters, '2020-12', false).validate(given);
  if (valid) return given;
  // The innermost places say what is wrong; the others only that something within them is.
  const inner = errors.filter(({ keyword }) => !['properties', 'items', '$ref', 'allOf'].includes(keyword));
  const problems = (inner.length > 0 ? inner : errors).slice(0, 5).map(({ instanceLocation, error }) => {
    const path = instanceLocation.replace(/^#/, '').replaceAll('/', '.');
    return `arguments${path}: ${error}`;
  });
  throw invalidArgument(`${tool.name}: ${problems.join('; ')}`);
}

/** Each tool and where it stands. */
function entriesOf(value: unknown, name: string): [entry: unknown, where: string][] {
  return reading(name, () => {
    if (Array.isArray(value)) return Array.from(value, (entry: unknown, index) => [entry, `${name}[${index}]`]);
    if (isPlainObject(value)) return Object.entries(value).map(([key, entry]) => [entry, `${name}.${key}`]);
    throw invalidArgument(`${name} must be an array of tools, or an object of tools by name, got ${show(value)}`);
  });
}

function visible(entry: unknown): unknown {
  if (!isPlainObject(entry)) return entry;
  const { execute: _, timeoutMs: __, strict: ___, validator: ____, ...rest } = entry;
  return isPlainObject(rest.function) ? { ...rest, function: visible(rest.function) } : rest;
}

function runs(tool: Tool | undefined): Partial<Tool> {
  const { execute, timeoutMs, strict, validator } = tool ?? {};
  return Object.fromEntries(
    Object.entries({ execute, timeoutMs, strict, validator }).filter(([, value]) => value !== undefined),
  );
}

function mapValues(value: unknown, map: (entry: unknown) => unknown): Record<string, unknown> {
  return Object.fromEntries(Object.entries(value as object).map(([key, entry]) => [key, map(entry)]));
}
