import { invalidArgument } from '../common/errors.js';
import { shown } from '../common/invalid.js';
import { isPlainObject, reading, show } from '../common/options.js';
import { plainCopy } from '../common/plain-copy.js';

/** Who speaks. `observation` is what a tool or the code interpreter gave back (ChatGLM3). */
export type Role = 'system' | 'user' | 'assistant' | 'observation';

/** A tool that the model may call, in the flat shape that ChatGLM3 was trained on. */
export interface ToolDefinition {
  /** What the model writes to call it: one line of text. */
  name: string;
  /** What it is good for. */
  description?: string;
  /** JSON schema of its arguments. */
  parameters?: Readonly<Record<string, unknown>>;
}

/**
 * Tools as the demos of ChatGLM3 register them: `{ get_weather: { name, description, params: [{ name, type, … }] } }`. The
 * keys are the tools' names, and the prompt shows the object as it is.
 */
export type ToolRegistry = { readonly [name: string]: Readonly<Record<string, unknown>> };

/** What a prompt lists: tools, or a registry of them. */
export type ListedTools = readonly ToolDefinition[] | ToolRegistry;

/** OpenAI's wrapping of the same, which is unwrapped wherever tools are taken. */
export interface WrappedToolDefinition {
  /** The only kind there is. */
  type: 'function';
  /** The tool itself. */
  function: ToolDefinition;
}

/** One entry of a conversation: plain JSON, as in THUDM's `history`. */
export interface ChatMessage {
  /** Who speaks. */
  role: Role;
  /** What is said; of an `observation`, what the tool gave. */
  content: string;
  /** What stands between the role and the content: a called tool's name, `interpreter`, or nothing. */
  metadata?: string;
  /** Only of `system` messages: a list, or an object of tools by their names, as THUDM's demos pass it. */
  tools?: ListedTools;
  /**
   * What OpenAI's format says of the message besides, such as a speaker's name and the id of a call: plain JSON, which
   * `fromOpenAI()` writes and `toOpenAI()` reads. No part of the prompt.
   */
  openai?: Readonly<Record<string, unknown>>;
}

const roles: readonly string[] = ['system', 'user', 'assistant', 'observation'] satisfies Role[];
const fields = ['role', 'content', 'metadata', 'tools', 'openai'];

/**
 * Checks a conversation that comes from outside, and returns a copy of it that shares nothing with it. THUDM's older
 * histories, `[[query, response], …]`, become messages.
 *
 * @param value What should be a list of messages.
 * @param name How errors call it. Default: `messages`.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the message and the field.
 */
export function validateMessages(value: unknown, name = 'messages'): ChatMessage[] {
  return reading(name, () => {
    if (!Array.isArray(value)) throw invalidArgument(`${name} must be an array of messages, got ${show(value)}`);
    const messages: ChatMessage[] = [];
    // By index: the methods of arrays skip holes.
    for (let index = 0; index < value.length; index++) {
      const entry: unknown = value[index];
      const where = `${name}[${index}]`;
      if (Array.isArray(entry)) messages.push(...fromPair(entry, where));
      else messages.push(validateMessage(entry, where));
    }
    return messages;
  });
}

/**
 * Checks one message, as {@link validateMessages} does with each. Fields that are undefined or null, which is how JSON says
 * that there is nothing, are as good as absent.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the field.
 */
export function validateMessage(value: unknown, name = 'message'): ChatMessage {
  return reading(name, () => {
    if (!isObject(value)) throw invalidArgument(`${name} must be an object with role and content, got ${show(value)}`);
    const { role, content, metadata, tools, openai } = value;
    if (!isRole(role)) throw invalidArgument(`${name}.role must be one of ${roles.join(', ')}, got ${show(role)}`);
    if (typeof content !== 'string') throw invalidArgument(`${name}.content must be a string, got ${show(content)}`);
    for (const field of Object.keys(value)) {
      // Dropping what another format says in a field of its own (tool_calls, say) would change the conversation unseen.
      if (!fields.includes(field) && isSet(value[field])) {
        throw invalidArgument(`${name}.${shown(field)} is not a field of a message: those are ${fields.join(', ')}`);
      }
    }
    const message: ChatMessage = { role, content };
    if (isSet(metadata)) {
      if (typeof metadata !== 'string') {
        throw invalidArgument(`${name}.metadata must be a string, got ${show(metadata)}`);
      }
      message.metadata = metadata;
    }
    if (isSet(tools)) {
      if (role !== 'system') throw invalidArgument(`${name}.tools belongs to a system message, not to one of ${role}`);
      message.tools = validateTools(tools, `${name}.tools`);
    }
    if (isSet(openai)) {
      const copy = plainCopy(openai, `${name}.openai`);
      if (!isObject(copy)) throw invalidArgument(`${name}.openai must be an object, got ${show(openai)}`);
      message.openai = copy;
    }
    return message;
  });
}

/** What a program does with a tool: the model never sees these fields. */
const HIDDEN_FIELDS = ['execute', 'timeoutMs', 'strict'];

/**
 * Checks a list of tools and unwraps OpenAI's `{ type: 'function', function }`, or checks a registry. Fields that this package
 * does not know stay, in their order: the model sees them as THUDM's code would show them. Those of a list that are null
 * are left out, and so are `execute`, `timeoutMs` and `strict`, which are for the program.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the tool and the field.
 */
export function validateTools(value: unknown, name = 'tools'): ToolDefinition[] | ToolRegistry {
  return reading(name, () => {
    if (!Array.isArray(value)) {
      if (isPlainObject(value)) return validateRegistry(value, name);
      throw invalidArgument(
        `${name} must be an array of tools, or an object with a tool for each name, got ${show(value)}`,
      );
    }
    const indices = new Map<string, number>();
    // Array.from() visits holes, which the methods of arrays skip.
    return Array.from(value, (entry: unknown, index) => {
      const tool = validateTool(plainCopy(entry, `${name}[${index}]`), `${name}[${index}]`);
      const before = indices.get(tool.name);
      if (before !== undefined) {
        throw invalidArgument(`${name}[${index}].name is ${show(tool.name)}, as that of ${name}[${before}]`);
      }
      indices.set(tool.name, index);
      return tool;
    });
  });
}

/** The names by which the model calls the tools. */
export function toolNames(tools: ListedTools): string[] {
  return Array.isArray(tools) ? tools.map(({ name }: ToolDefinition) => name) : Object.keys(tools);
}

function validateRegistry(value: Record<string, unknown>, name: string): ToolRegistry {
  // One tool that stands where a list of tools belongs would be read as a registry of its fields.
  if (typeof value.name === 'string' || value.type === 'function') {
    throw invalidArgument(`${name} must be an array of tools, got one tool: [tool]`);
  }
  const entries = Object.keys(value).map((key): [string, Readonly<Record<string, unknown>>] => {
    const where = `${name}.${shown(key)}`;
    const tool = plainCopy(value[key], where);
    if (!isObject(tool)) throw invalidArgument(`${where} must be an object that describes the tool, got ${show(tool)}`);
    checkToolName(key, `the name of ${where}`);
    if (isSet(tool.name) && tool.name !== key) {
      throw invalidArgument(`${where}.name must be ${show(key)}, as the registry says, got ${show(tool.name)}`);
    }
    checkToolFields(tool, where);
    return [key, Object.fromEntries(Object.entries(tool).filter(([field]) => !HIDDEN_FIELDS.includes(field)))];
  });
  return Object.fromEntries(entries);
}

function validateTool(value: unknown, name: string): ToolDefinition {
  if (!isObject(value)) throw invalidArgument(`${name} must be an object with a name, got ${show(value)}`);
  if (value.type === 'function' && isSet(value.function)) return validateTool(value.function, `${name}.function`);
  const tool = Object.fromEntries(
    Object.entries(value).filter(([field, content]) => isSet(content) && !HIDDEN_FIELDS.includes(field)),
  );
  checkToolName(tool.name, `${name}.name`);
  checkToolFields(tool, name);
  return tool as Record<string, unknown> & ToolDefinition;
}

function checkToolName(value: unknown, name: string): void {
  if (typeof value !== 'string' || value === '') {
    throw invalidArgument(`${name} must be a string that is not empty, got ${show(value)}`);
  }
  // The name is the first line of a call.
  if (/[\r\n]/.test(value)) throw invalidArgument(`${name} must be one line, got ${show(value)}`);
}

function checkToolFields({ description, parameters }: Record<string, unknown>, name: string): void {
  if (isSet(description) && typeof description !== 'string') {
    throw invalidArgument(`${name}.description must be a string, got ${show(description)}`);
  }
  if (isSet(parameters) && !isObject(parameters)) {
    throw invalidArgument(`${name}.parameters must be an object (a JSON schema), got ${show(parameters)}`);
  }
}

function fromPair(pair: readonly unknown[], name: string): ChatMessage[] {
  const [query, response] = pair;
  if (pair.length !== 2 || typeof query !== 'string' || typeof response !== 'string') {
    throw invalidArgument(`${name} must be a message, or a pair of two strings: [query, response]`);
  }
  return [
    { role: 'user', content: query },
    { role: 'assistant', content: response },
  ];
}

function isRole(value: unknown): value is Role {
  return typeof value === 'string' && roles.includes(value);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isSet(value: unknown): boolean {
  return value !== undefined && value !== null;
}
