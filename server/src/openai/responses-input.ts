import { randomUUID } from 'node:crypto';
import type { ResponseFormat, ToolChoice, WrappedToolDefinition } from 'node-chatglm';
import { ApiError, badRequest } from '../http/errors.js';
import {
  arrayAt,
  booleanAt,
  cut,
  type Fields,
  nameAt,
  objectAt,
  optionalAt,
  stringAt,
  wrongValue,
} from '../http/fields.js';

/** A part of a message's content. */
export type ContentPart =
  | { type: 'input_text'; text: string }
  | { type: 'output_text'; text: string; annotations: unknown[]; logprobs: unknown[] }
  | { type: 'refusal'; refusal: string };

type Status = 'in_progress' | 'completed' | 'incomplete';

/** One entry of a conversation, as the Responses API has them. */
export type Item =
  | {
      id: string;
      type: 'message';
      status: Status;
      role: 'user' | 'assistant' | 'system' | 'developer';
      content: ContentPart[];
    }
  | { id: string; type: 'function_call'; status: Status; call_id: string; name: string; arguments: string }
  | { id: string; type: 'function_call_output'; status: Status; call_id: string; output: string };

/** An id as OpenAI writes them: what the thing is, and letters that nobody can guess. */
export function newId(kind: 'resp' | 'msg' | 'fc' | 'fco' | 'call'): string {
  return `${kind}_${randomUUID().replaceAll('-', '')}`;
}

const ROLES = ['user', 'assistant', 'system', 'developer'] as const;

/**
 * Reads `input`.
 *
 * @throws {ApiError} 400, naming the item and the field.
 */
export function readInput(value: unknown): Item[] {
  if (value === undefined || value === null) return [];
  if (typeof value === 'string') {
    return [
      {
        id: newId('msg'),
        type: 'message',
        status: 'completed',
        role: 'user',
        content: [{ type: 'input_text', text: value }],
      },
    ];
  }
  if (!Array.isArray(value)) {
    throw badRequest("Invalid type for 'input': expected a string or an array of items.", 'input', 'invalid_type');
  }
  return value.flatMap((entry, index) => readItem(entry, `input[${index}]`));
}

function readItem(value: unknown, place: string): Item[] {
  const item = objectAt(value, place);
  const type = item.type ?? (item.role === undefined ? undefined : 'message');
  switch (type) {
    case 'message':
      return [readMessage(item, place)];
    case 'function_call':
      return [
        {
          id: idOf(item, place) ?? newId('fc'),
          type: 'function_call',
          status: 'completed',
          call_id: nameAt(item.call_id, `${place}.call_id`),
          name: nameAt(item.name, `${place}.name`),
          arguments: stringAt(item.arguments, `${place}.arguments`),
        },
      ];
    case 'function_call_output':
      return [
        {
          id: idOf(item, place) ?? newId('fco'),
          type: 'function_call_output',
          status: 'completed',
          call_id: nameAt(item.call_id, `${place}.call_id`),
          output: readOutput(item.output, `${place}.output`),
        },
      ];
    case 'reasoning':
      // What another model thought: there is nothing here that could read it.
      return [];
    case 'item_reference':
      throw badRequest(
        `${place} refers to an item by its id, which this server does not look up: send the item itself, or previous_response_id.`,
        `${place}.type`,
        'unsupported_value',
      );
    default:
      throw wrongValue(`${place}.type`, type, ['message', 'function_call', 'function_call_output', 'reasoning']);
  }
}

function idOf(item: Fields, place: string): string | undefined {
  return optionalAt(item.id, `${place}.id`, nameAt);
}

function readMessage(item: Fields, place: string): Item {
  const role = ROLES.find((each) => each === item.role);
  if (role === undefined) throw wrongValue(`${place}.role`, item.role, ROLES);
  const where = `${place}.content`;
  const isAnswer = role === 'assistant';
  const textPart = (text: string): ContentPart =>
    isAnswer ? { type: 'output_text', text, annotations: [], logprobs: [] } : { type: 'input_text', text };
  const content =
    typeof item.content === 'string'
      ? [textPart(item.content)]
      : arrayAt(item.content, where).map((value, index): ContentPart => {
          const at = `${where}[${index}]`;
          const part = objectAt(value, at);
          if (part.type === 'refusal' && isAnswer) {
            return { type: 'refusal', refusal: stringAt(part.refusal, `${at}.refusal`) };
          }
          return textPart(readText(part, at));
        });
  return { id: idOf(item, place) ?? newId('msg'), type: 'message', status: 'completed', role, content };
}

/** The text of a part. Which of the two types it has is no matter: clients mix them up. */
function readText(part: Fields, place: string): string {
  const { type } = part;
  if (type === 'input_text' || type === 'output_text' || type === 'text') return stringAt(part.text, `${place}.text`);
  if (type === 'input_image' || type === 'input_file' || type === 'input_audio') {
    throw badRequest(
      `${place} is of the type ${type}: the models of this server read text only.`,
      `${place}.type`,
      'unsupported_value',
    );
  }
  throw wrongValue(`${place}.type`, type, ['input_text', 'output_text']);
}

function readOutput(value: unknown, place: string): string {
  if (typeof value === 'string') return value;
  return arrayAt(value, place)
    .map((part, index) => readText(objectAt(part, `${place}[${index}]`), `${place}[${index}]`))
    .join('\n');
}

/**
 * The conversation as OpenAI's chat completions have it. Instructions and the system messages that follow them at the
 * beginning become one: models know one system message, which also lists the tools.
 *
 * @throws {ApiError} 400 for a call that has no output, and an output that has no call.
 */
export function toChatMessages(items: readonly Item[], instructions: string | undefined): unknown[] {
  checkCalls(items);
  const isInstruction = (item: Item) =>
    item.type === 'message' && (item.role === 'system' || item.role === 'developer');
  const firstOther = items.findIndex((item) => !isInstruction(item));
  const leading = firstOther < 0 ? items : items.slice(0, firstOther);
  const system = [...(instructions === undefined ? [] : [instructions]), ...leading.map(textOf)];
  const messages: unknown[] = system.length === 0 ? [] : [{ role: 'system', content: system.join('\n\n') }];
  /** The last message, if it is an answer that calls can still belong to. */
  let answer: { role: 'assistant'; content: string | null; tool_calls?: unknown[] } | undefined;
  for (const item of items.slice(leading.length)) {
    if (item.type === 'function_call') {
      if (answer === undefined) {
        answer = { role: 'assistant', content: null };
        messages.push(answer);
      }
      answer.tool_calls ??= [];
      answer.tool_calls.push({
        id: item.call_id,
        type: 'function',
        function: { name: item.name, arguments: item.arguments },
      });
      continue;
    }
    answer = undefined;
    if (item.type === 'function_call_output') {
      messages.push({ role: 'tool', tool_call_id: item.call_id, content: item.output });
    } else if (item.role === 'assistant') {
      answer = { role: 'assistant', content: textOf(item) };
      messages.push(answer);
    } else {
      messages.push({ role: item.role === 'user' ? 'user' : 'system', content: textOf(item) });
    }
  }
  return messages;
}

function textOf(item: Item): string {
  if (item.type !== 'message') return '';
  return item.content.map((part) => (part.type === 'refusal' ? part.refusal : part.text)).join('\n');
}

function checkCalls(items: readonly Item[]): void {
  const open = new Set<string>();
  for (const item of items) {
    if (item.type === 'function_call') open.add(item.call_id);
    if (item.type === 'function_call_output' && !open.delete(item.call_id)) {
      throw badRequest(`No tool call found for function call output with call_id ${cut(item.call_id)}.`, 'input');
    }
  }
  for (const id of open) throw badRequest(`No tool output found for function call ${cut(id)}.`, 'input');
}

/** A function as the Responses API tells of it, with what OpenAI answers for fields that were left out. */
export interface FunctionTool {
  type: 'function';
  name: string;
  description: string | null;
  parameters: Fields | null;
  strict: boolean;
}

/**
 * Reads `tools`.
 *
 * @throws {ApiError} 400, also for tools that OpenAI runs itself.
 */
export function readTools(value: unknown): FunctionTool[] {
  return (optionalAt(value, 'tools', arrayAt) ?? []).map((entry, index) => {
    const place = `tools[${index}]`;
    const tool = objectAt(entry, place);
    const { type } = tool;
    if (type !== 'function') {
      const kind = stringAt(type, `${place}.type`);
      throw badRequest(
        `${place} is of the type ${cut(kind)}: this server has no tools of its own. Functions, which you run yourself, are of the type function.`,
        `${place}.type`,
        'unsupported_value',
      );
    }
    return {
      type,
      name: nameAt(tool.name, `${place}.name`),
      description: optionalAt(tool.description, `${place}.description`, stringAt) ?? null,
      parameters: optionalAt(tool.parameters, `${place}.parameters`, objectAt) ?? null,
      strict: optionalAt(tool.strict, `${place}.strict`, booleanAt) ?? false,
    };
  });
}

/** The tools as chat completions have them. */
export function toChatTools(tools: readonly FunctionTool[]): WrappedToolDefinition[] {
  return tools.map(({ name, description, parameters, strict }) => ({
    type: 'function',
    function: {
      name,
      ...(description !== null && { description }),
      parameters: parameters ?? { type: 'object', properties: {} },
      ...(strict && { strict }),
    },
  }));
}

/** Which tools the model is told of, and whether it has to call one. */
export interface ReadToolChoice {
  choice: ToolChoice;
  tools: readonly FunctionTool[];
}

/** Reads `tool_choice`. */
export function readToolChoice(value: unknown, tools: readonly FunctionTool[]): ReadToolChoice {
  const place = 'tool_choice';
  if (value === undefined || value === null) return { choice: 'auto', tools };
  if (typeof value === 'string') {
    if (value !== 'auto' && value !== 'none' && value !== 'required') {
      throw wrongValue(place, value, ['none', 'auto', 'required']);
    }
    if (value === 'required' && tools.length === 0) throw missingTools();
    return { choice: value, tools };
  }
  const choice = objectAt(value, place);
  switch (choice.type) {
    case 'function':
      return { choice: { name: knownName(choice.name, `${place}.name`, tools) }, tools };
    case 'allowed_tools': {
      const { mode } = choice;
      if (mode !== 'auto' && mode !== 'required') throw wrongValue(`${place}.mode`, mode, ['auto', 'required']);
      const names = arrayAt(choice.tools, `${place}.tools`).map((entry, index) => {
        const at = `${place}.tools[${index}]`;
        return knownName(objectAt(entry, at).name, `${at}.name`, tools);
      });
      if (names.length === 0 && mode === 'required') throw missingTools();
      return { choice: mode, tools: tools.filter(({ name }) => names.includes(name)) };
    }
    default:
      throw wrongValue(`${place}.type`, choice.type, ['function', 'allowed_tools']);
  }
}

function knownName(value: unknown, place: string, tools: readonly FunctionTool[]): string {
  const name = nameAt(value, place);
  if (tools.some((tool) => tool.name === name)) return name;
  throw badRequest(`Tool choice '${cut(name)}' not found in 'tools' parameter.`, 'tool_choice', 'invalid_value');
}

function missingTools(): ApiError {
  return badRequest("Tool choice 'required' must be specified with 'tools' parameter.", 'tool_choice', 'invalid_value');
}

/** The `text` of a response, and the form that it asks for. */
export interface ReadText {
  text: Fields;
  format: ResponseFormat | undefined;
}

/** Reads `text`. */
export function readTextOptions(value: unknown): ReadText {
  const text = optionalAt(value, 'text', objectAt) ?? {};
  const verbosity = optionalAt(text.verbosity, 'text.verbosity', stringAt) ?? 'medium';
  const place = 'text.format';
  const format = optionalAt(text.format, place, objectAt) ?? { type: 'text' };
  switch (format.type) {
    case 'text':
      return { text: { format: { type: 'text' }, verbosity }, format: undefined };
    case 'json_object':
      return { text: { format: { type: 'json_object' }, verbosity }, format: { type: 'json_object' } };
    case 'json_schema': {
      const schema = objectAt(format.schema, `${place}.schema`);
      const name = nameAt(format.name, `${place}.name`);
      const description = optionalAt(format.description, `${place}.description`, stringAt) ?? null;
      const strict = optionalAt(format.strict, `${place}.strict`, booleanAt) ?? false;
      return {
        text: { format: { type: 'json_schema', description, name, schema, strict }, verbosity },
        format: { type: 'json_schema', schema },
      };
    }
    default:
      throw wrongValue(`${place}.type`, format.type, ['text', 'json_object', 'json_schema']);
  }
}

/** Reads `metadata`: 16 texts at most, as OpenAI has it. */
export function readMetadata(value: unknown): Record<string, string> {
  const fields = optionalAt(value, 'metadata', objectAt) ?? {};
  const entries = Object.entries(fields);
  if (entries.length > 16) {
    throw badRequest(`Invalid 'metadata': it has ${entries.length} entries, and may have 16.`, 'metadata');
  }
  for (const [key, entry] of entries) {
    const text = stringAt(entry, `metadata.${cut(key)}`);
    if (key.length > 64 || text.length > 512) {
      throw badRequest(
        "Invalid 'metadata': keys may have 64 characters, and values 512.",
        'metadata',
        'string_above_max_length',
      );
    }
  }
  return fields as Record<string, string>;
}

/** What a failure is called in this API, where it names a field of chat completions. */
export function inResponsesNames(error: ApiError): ApiError {
  const { param, status, code, retryAfter, cause, message } = error;
  if (param === null) return error;
  const renamed = param
    .replace(/^messages\b.*/, 'input')
    .replace(/^response_format(\.json_schema)?/, 'text.format')
    .replace(/^max_tokens\b/, 'max_output_tokens');
  if (renamed === param) return error;
  const told = message.startsWith(param) ? renamed + message.slice(param.length) : message;
  return new ApiError(told, { status, code, param: renamed, retryAfter, cause });
}
