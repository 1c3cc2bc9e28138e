import { invalidArgument } from '../common/errors.js';

/** Who speaks. `observation` is what a tool or the code interpreter gave back (ChatGLM3). */
export type Role = 'system' | 'user' | 'assistant' | 'observation';

/** A tool that the model may call, in the flat shape that ChatGLM3 was trained on. */
export interface ToolDefinition {
  /** What the model writes to call it. */
  name: string;
  /** What it is good for. */
  description?: string;
  /** JSON schema of its arguments. */
  parameters?: Readonly<Record<string, unknown>>;
}

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
  /** Only of `system` messages. */
  tools?: readonly ToolDefinition[];
}

const roles: readonly string[] = ['system', 'user', 'assistant', 'observation'] satisfies Role[];
const fields = ['role', 'content', 'metadata', 'tools'];

/**
 * Checks a conversation that comes from outside, and returns a copy of it that shares nothing with it. THUDM's older
 * histories, `[[query, response], …]`, become messages.
 *
 * @param value What should be a list of messages.
 * @param name How errors call it. Default: `messages`.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the message and the field.
 */
export function validateMessages(value: unknown, name = 'messages'): ChatMessage[] {
  if (!Array.isArray(value)) throw invalidArgument(`${name} must be an array of messages, got ${kindOf(value)}`);
  return value.flatMap((entry: unknown, index) => {
    const where = `${name}[${index}]`;
    return Array.isArray(entry) ? fromPair(entry, where) : [validateMessage(entry, where)];
  });
}

/**
 * Checks one message, as {@link validateMessages} does with each.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the field.
 */
export function validateMessage(value: unknown, name = 'message'): ChatMessage {
  if (!isObject(value)) throw invalidArgument(`${name} must be an object with role and content, got ${kindOf(value)}`);
  for (const field of Object.keys(value)) {
    // Dropping what another format says in a field of its own (tool_calls, say) would change the conversation unseen.
    if (!fields.includes(field)) {
      throw invalidArgument(`${name}.${field} is not a field of a message: those are ${fields.join(', ')}`);
    }
  }
  const { role, content, metadata, tools } = value;
  if (!isRole(role)) {
    const got = typeof role === 'string' ? JSON.stringify(role) : kindOf(role);
    throw invalidArgument(`${name}.role must be one of ${roles.join(', ')}, got ${got}`);
  }
  if (typeof content !== 'string') throw invalidArgument(`${name}.content must be a string, got ${kindOf(content)}`);
  const message: ChatMessage = { role, content };
  if (metadata !== undefined) {
    if (typeof metadata !== 'string') {
      throw invalidArgument(`${name}.metadata must be a string, got ${kindOf(metadata)}`);
    }
    message.metadata = metadata;
  }
  if (tools !== undefined) {
    if (role !== 'system') throw invalidArgument(`${name}.tools belongs to a system message, not to one of ${role}`);
    message.tools = validateTools(tools, `${name}.tools`);
  }
  return message;
}

/**
 * Checks a list of tools and unwraps OpenAI's `{ type: 'function', function }`. Fields that this package does not know
 * stay, in their order: the model sees them as THUDM's code would show them.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the tool and the field.
 */
export function validateTools(value: unknown, name = 'tools'): ToolDefinition[] {
  if (!Array.isArray(value)) throw invalidArgument(`${name} must be an array of tools, got ${kindOf(value)}`);
  return value.map((entry: unknown, index) => validateTool(plainCopy(entry, `${name}[${index}]`), `${name}[${index}]`));
}

function validateTool(value: unknown, name: string): ToolDefinition {
  if (!isObject(value)) throw invalidArgument(`${name} must be an object with a name, got ${kindOf(value)}`);
  if (value.type === 'function' && value.function !== undefined)
    return validateTool(value.function, `${name}.function`);
  if (typeof value.name !== 'string' || value.name === '') {
    throw invalidArgument(`${name}.name must be a string that is not empty`);
  }
  if (value.description !== undefined && typeof value.description !== 'string') {
    throw invalidArgument(`${name}.description must be a string, got ${kindOf(value.description)}`);
  }
  if (value.parameters !== undefined && !isObject(value.parameters)) {
    throw invalidArgument(`${name}.parameters must be an object (a JSON schema), got ${kindOf(value.parameters)}`);
  }
  return value as Record<string, unknown> & ToolDefinition;
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

function plainCopy(value: unknown, name: string): unknown {
  try {
    const json: string | undefined = JSON.stringify(value);
    return json === undefined ? undefined : JSON.parse(json);
  } catch (cause) {
    // A cycle, a bigint, or nesting that exhausts the stack.
    throw invalidArgument(`${name} cannot be written as JSON: ${cause instanceof Error ? cause.message : cause}`);
  }
}

function isRole(value: unknown): value is Role {
  return typeof value === 'string' && roles.includes(value);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function kindOf(value: unknown): string {
  if (value === null) return 'null';
  return Array.isArray(value) ? 'an array' : typeof value;
}
