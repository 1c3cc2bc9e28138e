import { invalidArgument } from '../common/errors.js';
import type { FromSchema } from '../common/from-schema.js';
import { booleanOption, functionOption, isPlainObject, numberOption, readOptions, show } from '../common/options.js';
import { type InferOutput, isStandardSchema, type StandardSchema, toJsonSchema } from '../common/standard-schema.js';

/** What `execute()` of a tool is told beside the arguments. */
export interface ToolContext {
  /** Fires when the answer is aborted or left, and when the tool's time is over. */
  signal: AbortSignal;
  /** How many rounds of tools the answer has had before. */
  round: number;
  /** The call as the model wrote it, before a validator has changed anything. */
  call: { name: string; arguments: Record<string, unknown> };
}

/** A tool that the model may call. */
export interface Tool<Args = Record<string, unknown>> {
  /** What the model writes to call it: one line of text. */
  name: string;
  /** What it is good for: the model reads this. */
  description?: string;
  /** JSON schema of its arguments. */
  parameters?: Readonly<Record<string, unknown>>;
  /** Does what the tool does. What it returns is told to the model: a text as it is, other values as JSON. Absent: the call is given to the caller. */
  execute?(args: Args, context: ToolContext): unknown;
  /** The time that `execute()` has, in milliseconds. Default: `toolTimeoutMs` of the chat. */
  timeoutMs?: number;
  /** Whether the model can write no other arguments than the schema allows. Default: false. */
  strict?: boolean;
  /** The validator that the arguments go through, if `parameters` were given as one. */
  validator?: StandardSchema<unknown, unknown>;
}

/** The arguments that a tool of these parameters gets. */
export type ToolArguments<P> =
  P extends StandardSchema<unknown, unknown>
    ? InferOutput<P>
    : unknown extends FromSchema<P>
      ? Record<string, unknown>
      : FromSchema<P>;

/** What `defineTool()` takes. */
export interface ToolOptions<P> {
  /** What the model writes to call the tool: one line of text. */
  name: string;
  /** What the tool is good for: the model reads this. Default: none. */
  description?: string | undefined;
  /** JSON schema of the arguments, or a validator of zod, valibot, arktype or another library of Standard Schema. Default: none; then any arguments will do. */
  parameters?: P;
  /** The JSON schema that the model is shown, where a validator's library gives none. Default: the validator's own. */
  jsonSchema?: Readonly<Record<string, unknown>> | undefined;
  /** Does what the tool does. What it returns is told to the model: a text as it is, other values as JSON. Default: none; the call is given to the caller. */
  execute?: ((args: ToolArguments<P>, context: ToolContext) => unknown) | undefined;
  /** The time that `execute()` has, in milliseconds. Default: `toolTimeoutMs` of the chat. */
  timeoutMs?: number | undefined;
  /** Whether the model can write no other arguments than the schema allows. Default: false. */
  strict?: boolean | undefined;
}

/** The schema as the model is shown it: which version of JSON Schema it follows is nothing to the model. */
function shownSchema(validator: StandardSchema<unknown, unknown>): Record<string, unknown> {
  const { $schema: _, ...schema } = toJsonSchema(validator, 'parameters') as Record<string, unknown>;
  return schema;
}

const OPTIONS = [
  'name',
  'description',
  'parameters',
  'jsonSchema',
  'execute',
  'timeoutMs',
  'strict',
  'validator',
] as const;

/**
 * Makes a tool whose `execute()` gets checked and typed arguments.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the option.
 *
 * @example
 * ```ts
 * const weather = defineTool({
 *   name: 'get_weather',
 *   description: '查询某个城市的天气',
 *   parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
 *   execute: async ({ city }) => ({ city, celsius: 21 }), // city is a string
 * });
 * const chat = model.createChat({ tools: [weather] });
 * console.log((await chat.send('北京今天天气怎么样？')).text);
 * ```
 */
export function defineTool<const P = undefined>(options: ToolOptions<P>): Tool<ToolArguments<P>> {
  const set = readOptions<ToolOptions<P> & Pick<Tool, 'validator'>>(options, OPTIONS, 'defineTool()');
  const { name, description, parameters, jsonSchema, execute, timeoutMs, strict } = set;
  if (typeof name !== 'string') throw invalidArgument(`name must be a string, got ${show(name)}`);
  const tool: Tool<ToolArguments<P>> = { name };
  if (description !== undefined) tool.description = description;
  if (isStandardSchema(parameters)) {
    tool.validator = parameters;
    tool.parameters = jsonSchema ?? shownSchema(parameters);
  } else if (parameters !== undefined) {
    if (!isPlainObject(parameters)) {
      throw invalidArgument(`parameters must be a JSON schema or a validator, got ${show(parameters)}`);
    }
    tool.parameters = parameters;
    if (set.validator) tool.validator = set.validator;
  }
  if (execute !== undefined) tool.execute = functionOption('execute', execute) as NonNullable<typeof tool.execute>;
  if (timeoutMs !== undefined)
    tool.timeoutMs = numberOption('timeoutMs', timeoutMs, 0, { least: 1, most: 2 ** 31 - 1 });
  if (strict !== undefined) tool.strict = booleanOption('strict', strict, false);
  return tool;
}
