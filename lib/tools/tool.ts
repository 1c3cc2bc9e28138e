import { invalidArgument } from '../common/errors.js';
import type { FromSchema } from '../common/from-schema.js';
import {
  booleanOption,
  functionOption,
  integerOption,
  type Nullable,
  reading,
  readOptions,
  show,
} from '../common/options.js';
import { isStandardSchema, type StandardSchema, toJsonSchema } from '../common/standard-schema.js';
import { type ToolDefinition, validateTools } from '../families/messages.js';

/** What `execute()` of a tool is told about the call, besides the arguments. */
export interface ToolContext {
  /** Fires when the conversation is aborted or the tool's time is over. What the tool gives afterwards is not used. */
  signal: AbortSignal;
  /** Which round of calls and observations this is, from 0, since the user's message. */
  round: number;
  /** The call as the model wrote it: the arguments are those from before a validator changed them. */
  call: { name: string; arguments: Record<string, unknown> };
}

/** A tool that the model may call: what the model is told about it, and what the program does. {@link defineTool} makes one. */
export interface Tool<Args = Record<string, unknown>> {
  /** What the model writes to call it: one line of text. */
  name: string;
  /** What it is good for. */
  description?: string;
  /** JSON schema of its arguments, against which they are checked. */
  parameters?: Readonly<Record<string, unknown>>;
  /**
   * Does what the tool is for. What it gives is told to the model: a text as it is, other values as JSON, `ok` where it is
   * undefined. Absent: the program answers the model's calls itself.
   */
  execute?(args: Args, context: ToolContext): unknown | Promise<unknown>;
  /** After so many milliseconds the tool has failed. Default: the limit of whoever runs the tools. */
  timeoutMs?: number;
  /** Whether the arguments are held to the schema while the model writes them. Default: false. */
  strict?: boolean;
}

/** What the parameters of a tool may be: a JSON schema, or a validator of any library that implements Standard Schema. */
export type ToolParameters = StandardSchema | Readonly<Record<string, unknown>>;

/** The type of the arguments that `execute()` gets. */
export type ToolArguments<P> = P extends StandardSchema
  ? FromSchema<P>
  : unknown extends FromSchema<P>
    ? Record<string, unknown>
    : FromSchema<P>;

/** What {@link defineTool} takes. */
export interface ToolOptions<P extends ToolParameters> {
  /** What the model writes to call it: one line of text. */
  name: string;
  /** What it is good for, for the model. Default: nothing. */
  description?: string | undefined;
  /** What its arguments are. Default: any. */
  parameters?: P | undefined;
  /** JSON schema of the arguments for the model, where the validator's library offers none. Default: the validator's own. */
  jsonSchema?: Readonly<Record<string, unknown>> | undefined;
  /** Does what the tool is for. Default: the program answers the model's calls itself. */
  execute?: ((args: ToolArguments<P>, context: ToolContext) => unknown | Promise<unknown>) | undefined;
  /** After so many milliseconds the tool has failed. Default: the limit of whoever runs the tools. */
  timeoutMs?: number | undefined;
  /** Whether the arguments are held to the schema while the model writes them. Default: false. */
  strict?: boolean | undefined;
}

const TOOL_OPTIONS = ['name', 'description', 'parameters', 'jsonSchema', 'execute', 'timeoutMs', 'strict'] as const;

/** The longest time that Node's timers take. */
export const MOST_TIMEOUT = 2 ** 31 - 1;

/**
 * Where a tool keeps who checks its arguments. By a symbol, so that copies of the tool (`{ ...tool, name }`) keep it and JSON
 * leaves it out.
 */
export const CHECKER = Symbol('checks arguments');

/** A Standard Schema validator; `elsewhere` where the other end of a connection checks. Absent: the tool's JSON schema. */
export type Checker = StandardSchema | 'elsewhere';

/** A result whose text for the model is not what the program gets as its value. */
export class ToolResult {
  constructor(
    readonly text: string,
    readonly value: unknown,
  ) {}
}

/**
 * A tool whose arguments are typed by its parameters: by a JSON schema, or by a validator of zod, valibot, arktype or another
 * library that implements Standard Schema. Before `execute()` is called, the arguments are checked; a validator's defaults
 * and conversions apply.
 *
 * The model sees name, description and the JSON schema. That of a validator comes from its own library; where that offers
 * none, give `jsonSchema` beside it.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming what is wrong.
 *
 * @example
 * ```ts
 * const getWeather = defineTool({
 *   name: 'get_weather',
 *   description: '查询某个城市的天气',
 *   parameters: {
 *     type: 'object',
 *     properties: { city: { type: 'string' }, days: { type: 'integer', minimum: 1 } },
 *     required: ['city'],
 *   },
 *   execute: async ({ city, days = 1 }, { signal }) => {
 *     const response = await fetch(`https://weather.example/${encodeURIComponent(city)}?days=${days}`, { signal });
 *     return response.json();
 *   },
 * });
 * ```
 */
export function defineTool<const P extends ToolParameters = Readonly<Record<string, unknown>>>(
  options: ToolOptions<P>,
): Tool<ToolArguments<P>> {
  const set = readOptions<ToolOptions<P>>(options, TOOL_OPTIONS, 'defineTool()');
  const { name, description, parameters, jsonSchema, execute, timeoutMs, strict } = set;
  const validator = isStandardSchema(parameters) ? parameters : undefined;
  if (jsonSchema !== undefined && validator === undefined) {
    throw invalidArgument('jsonSchema belongs to a validator: parameters is a JSON schema already, or absent');
  }
  const shown = validator ? schemaOf(validator, jsonSchema, 'parameters') : plainSchema(parameters, 'parameters');
  const checked = validateTools([{ name, description, parameters: shown }], 'tools') as ToolDefinition[];
  const tool: Tool<ToolArguments<P>> & { [CHECKER]?: Checker } = { ...(checked[0] as ToolDefinition) };
  Object.assign(tool, programFields({ execute, timeoutMs, strict }, 'the tool'));
  if (validator) tool[CHECKER] = validator;
  return tool;
}

/** The fields that are for the program, checked. */
export function programFields(
  fields: Nullable<{ execute?: unknown; timeoutMs?: unknown; strict?: unknown }>,
  name: string,
): Pick<Tool<never>, 'execute' | 'timeoutMs' | 'strict'> {
  const execute = functionOption(`${name}.execute`, (fields.execute ?? undefined) as Tool<never>['execute']);
  const timeoutMs = integerOption(`${name}.timeoutMs`, fields.timeoutMs ?? undefined, undefined, {
    least: 1,
    most: MOST_TIMEOUT,
  });
  const strict = booleanOption(`${name}.strict`, fields.strict ?? undefined, false);
  return { ...(execute && { execute }), ...(timeoutMs && { timeoutMs }), ...(strict && { strict }) };
}

/** The JSON schema that stands for a validator: the one that is given beside it, or that of the validator's own library. */
export function schemaOf(validator: StandardSchema, jsonSchema: unknown, name: string): unknown {
  if (jsonSchema !== undefined) return plainSchema(jsonSchema, name.replace(/parameters$/, 'jsonSchema'));
  let converted: unknown;
  try {
    converted = toJsonSchema(validator, name);
  } catch (error) {
    throw invalidArgument(`${(error as Error).message}; or give the JSON schema as jsonSchema beside it`, error);
  }
  return plainSchema(converted, name);
}

/** A schema without what a model need not read: that it is written in the latest draft. */
function plainSchema(schema: unknown, name: string): unknown {
  if (schema === undefined) return undefined;
  return reading(name, () => {
    if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) {
      throw invalidArgument(`${name} must be a JSON schema or a Standard Schema validator, got ${show(schema)}`);
    }
    const { $schema, ...rest } = schema as Record<string, unknown>;
    if (rest.type !== undefined && rest.type !== 'object') {
      throw invalidArgument(`${name} must describe an object with the arguments, got the type ${show(rest.type)}`);
    }
    // An older draft means other things by some keywords, which whoever checks the arguments needs to know.
    return typeof $schema === 'string' && !$schema.includes('2020-12') ? { $schema, ...rest } : rest;
  });
}
