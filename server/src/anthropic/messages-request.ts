import type { GenerateOptions, ResponseFormat, ToolChoice, WrappedToolDefinition } from 'node-chatglm';
import { samplingOptions } from '../chat/sampling.js';
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
import { optional } from '../http/validation.js';

const MOST_TOKENS = 0x7fff_ffff;

/** What a conversation is made of: the fields that answers and counts of tokens share. */
const CONVERSATION = {
  model: { type: 'string' },
  messages: { type: 'array', minItems: 1 },
  system: optional.any,
  tools: optional.array,
  tool_choice: optional.object,
  thinking: optional.object,
  output_config: optional.object,
  // Taken, and without effect.
  cache_control: optional.any,
  context_management: optional.any,
  speed: optional.string,
  user_profile_id: optional.string,
  workspace_id: optional.string,
  // Refused with a reason.
  mcp_servers: optional.array,
} as const;

/** What the body of a message may have. */
export const MESSAGES_SCHEMA = {
  type: 'object',
  additionalProperties: false,
  required: ['model', 'messages', 'max_tokens'],
  properties: {
    ...CONVERSATION,
    max_tokens: { type: 'integer', minimum: 1, maximum: MOST_TOKENS },
    temperature: optional.number(0, 1),
    top_k: optional.integer(0, MOST_TOKENS),
    top_p: optional.number(0, 1),
    stop_sequences: { type: 'array', nullable: true, items: { type: 'string', minLength: 1 } },
    stream: optional.boolean,
    metadata: {
      type: 'object',
      nullable: true,
      additionalProperties: false,
      properties: { user_id: optional.string },
    },
    service_tier: optional.choice('auto', 'standard_only'),
    diagnostics: optional.any,
    inference_geo: optional.string,
    container: optional.any,
    thread: optional.object,
  },
} as const;

/** What the body of a count of tokens may have. */
export const COUNT_SCHEMA = {
  type: 'object',
  additionalProperties: false,
  required: ['model', 'messages'],
  properties: CONVERSATION,
} as const;

/** A body that {@link COUNT_SCHEMA} allows. */
export interface CountBody {
  model: string;
  messages: unknown[];
  system?: unknown;
  tools?: unknown;
  tool_choice?: unknown;
  thinking?: unknown;
  output_config?: unknown;
  mcp_servers?: unknown[] | null;
}

/** A body that {@link MESSAGES_SCHEMA} allows. */
export interface MessagesBody extends CountBody {
  max_tokens: number;
  temperature?: number | null;
  top_k?: number | null;
  top_p?: number | null;
  stop_sequences?: string[] | null;
  stream?: boolean | null;
  metadata?: { user_id?: string | null } | null;
  container?: unknown;
  thread?: object | null;
}

/** A conversation in the shape of OpenAI's chat completions. */
export interface Conversation {
  messages: unknown[];
  tools: WrappedToolDefinition[] | undefined;
  toolChoice: ToolChoice;
  responseFormat: ResponseFormat | undefined;
}

/**
 * Reads a conversation.
 *
 * @throws {ApiError} 400, naming the field.
 */
export function readConversation(body: CountBody): Conversation {
  if (body.mcp_servers?.length) throw badRequest('mcp_servers: this server connects to no others.', 'mcp_servers');
  checkThinking(body.thinking);
  const { tools, toolChoice } = readTools(body);
  const system = optionalAt(body.system, 'system', readTexts);
  const messages: unknown[] = system === undefined || system === '' ? [] : [{ role: 'system', content: system }];
  let calls: ReadonlySet<string> = new Set();
  for (const [index, entry] of body.messages.entries()) {
    const place = `messages[${index}]`;
    const message = objectAt(entry, place);
    const isLast = index === body.messages.length - 1;
    switch (message.role) {
      case 'user':
        addUser(messages, message.content, `${place}.content`, calls);
        calls = new Set();
        break;
      case 'assistant':
        checkAnswered(calls, place);
        if (isLast) {
          throw badRequest(
            `${place}: the last message must be of the role user: an answer that others began is not continued.`,
            `${place}.role`,
          );
        }
        calls = addAnswer(messages, message.content, `${place}.content`);
        break;
      case 'system':
        checkAnswered(calls, place);
        messages.push({ role: 'system', content: readTexts(message.content, `${place}.content`) });
        break;
      default:
        throw wrongValue(`${place}.role`, message.role, ['user', 'assistant', 'system']);
    }
  }
  return { messages, tools, toolChoice, responseFormat: readFormat(body.output_config) };
}

/** A text, or blocks of text, between which the model sees line breaks. */
function readTexts(value: unknown, place: string): string {
  if (typeof value === 'string') return value;
  return arrayAt(value, place)
    .map((entry, index) => {
      const at = `${place}[${index}]`;
      const block = objectAt(entry, at);
      if (block.type !== 'text') throw unreadable(block.type, at, ['text']);
      return stringAt(block.text, `${at}.text`);
    })
    .join('\n');
}

function unreadable(type: unknown, place: string, allowed: readonly string[]) {
  if (type === 'image' || type === 'document' || type === 'search_result' || type === 'container_upload') {
    return badRequest(`${place}: the models of this server read text only, and no ${type}.`, `${place}.type`);
  }
  return wrongValue(`${place}.type`, type, allowed);
}

/** What a user said, behind what the tools gave that the answer before has called. */
function addUser(messages: unknown[], content: unknown, place: string, calls: ReadonlySet<string>): void {
  const open = new Set(calls);
  const texts: string[] = [];
  const blocks = typeof content === 'string' ? [{ type: 'text', text: content }] : arrayAt(content, place);
  if (blocks.length === 0) throw badRequest(`${place}: a message must have content.`, place);
  for (const [index, entry] of blocks.entries()) {
    const at = `${place}[${index}]`;
    const block = objectAt(entry, at);
    if (block.type === 'text') {
      texts.push(stringAt(block.text, `${at}.text`));
      continue;
    }
    if (block.type !== 'tool_result') throw unreadable(block.type, at, ['text', 'tool_result']);
    const id = nameAt(block.tool_use_id, `${at}.tool_use_id`);
    if (!open.delete(id)) {
      throw badRequest(
        `${at}: no \`tool_use\` block of the message before has the id ${cut(id)}, or another \`tool_result\` block answers it already.`,
        `${at}.tool_use_id`,
      );
    }
    messages.push({ role: 'tool', tool_call_id: id, content: readResult(block, at) });
  }
  checkAnswered(open, place);
  if (texts.length === 0) return;
  // Two messages of a user in a row are one turn.
  const text = texts.join('\n');
  const before = messages.at(-1) as { role: string; content: string } | undefined;
  if (before?.role === 'user') before.content += `\n${text}`;
  else messages.push({ role: 'user', content: text });
}

function readResult(block: Fields, place: string): string {
  const content = optionalAt(block.content, `${place}.content`, readTexts) ?? '';
  const isError = optionalAt(block.is_error, `${place}.is_error`, booleanAt) ?? false;
  // Models know errors by this word only.
  return isError && !/^\W*error/i.test(content) ? `Error: ${content}` : content;
}

function checkAnswered(calls: ReadonlySet<string>, place: string): void {
  if (calls.size === 0) return;
  throw badRequest(
    `${place}: these \`tool_use\` ids have no \`tool_result\` block immediately after: ${cut([...calls].join(', '))}.`,
    'messages',
  );
}

/** What the model said, and the tools that it called. Returns the ids of the calls. */
function addAnswer(messages: unknown[], content: unknown, place: string): Set<string> {
  const texts: string[] = [];
  const calls = new Map<string, object>();
  const blocks = typeof content === 'string' ? [{ type: 'text', text: content }] : arrayAt(content, place);
  for (const [index, entry] of blocks.entries()) {
    const at = `${place}[${index}]`;
    const block = objectAt(entry, at);
    switch (block.type) {
      case 'text':
        texts.push(stringAt(block.text, `${at}.text`));
        break;
      case 'tool_use': {
        const id = nameAt(block.id, `${at}.id`);
        if (calls.has(id)) throw badRequest(`${at}: another \`tool_use\` block has the id ${cut(id)}.`, `${at}.id`);
        const input = JSON.stringify(objectAt(block.input, `${at}.input`));
        calls.set(id, {
          id,
          type: 'function',
          function: { name: nameAt(block.name, `${at}.name`), arguments: input },
        });
        break;
      }
      // What another model thought: there is nothing here that could read it.
      case 'thinking':
      case 'redacted_thinking':
        break;
      default:
        throw unreadable(block.type, at, ['text', 'tool_use']);
    }
  }
  const text = texts.join('\n');
  messages.push({
    role: 'assistant',
    content: text === '' && calls.size > 0 ? null : text,
    ...(calls.size > 0 && { tool_calls: [...calls.values()] }),
  });
  return new Set(calls.keys());
}

function readTools({ tools: given, tool_choice }: CountBody): Pick<Conversation, 'tools' | 'toolChoice'> {
  const tools = (optionalAt(given, 'tools', arrayAt) ?? []).map((entry, index): WrappedToolDefinition => {
    const place = `tools[${index}]`;
    const tool = objectAt(entry, place);
    const { type = 'custom' } = tool;
    if (type !== 'custom' && type !== null) {
      throw badRequest(
        `${place}: this server has no tools of its own, such as ${cut(stringAt(type, `${place}.type`))}. Tools that you run yourself have an input_schema and no type.`,
        `${place}.type`,
      );
    }
    const description = optionalAt(tool.description, `${place}.description`, stringAt);
    const strict = optionalAt(tool.strict, `${place}.strict`, booleanAt) ?? false;
    return {
      type: 'function',
      function: {
        name: nameAt(tool.name, `${place}.name`),
        ...(description !== undefined && { description }),
        parameters: objectAt(tool.input_schema, `${place}.input_schema`),
        ...(strict && { strict }),
      },
    };
  });
  const toolChoice = readToolChoice(tool_choice, tools);
  return { tools: tools.length === 0 ? undefined : tools, toolChoice };
}

function readToolChoice(value: unknown, tools: readonly WrappedToolDefinition[]): ToolChoice {
  const choice = optionalAt(value, 'tool_choice', objectAt);
  if (choice === undefined) return 'auto';
  // The models call one tool at a time, whatever is asked for.
  optionalAt(choice.disable_parallel_tool_use, 'tool_choice.disable_parallel_tool_use', booleanAt);
  switch (choice.type) {
    case 'auto':
    case 'none':
      return choice.type;
    case 'any':
      if (tools.length === 0) throw badRequest('tool_choice: `any` needs tools.', 'tool_choice');
      return 'required';
    case 'tool': {
      const name = nameAt(choice.name, 'tool_choice.name');
      if (tools.some((tool) => tool.function.name === name)) return { name };
      throw badRequest(`tool_choice.name: there is no tool ${cut(name)}.`, 'tool_choice.name');
    }
    default:
      throw wrongValue('tool_choice.type', choice.type, ['auto', 'any', 'tool', 'none']);
  }
}

/** Models here do not think aloud. Whoever leaves it to the model gets answers without; whoever asks for it is told. */
function checkThinking(value: unknown): void {
  const thinking = optionalAt(value, 'thinking', objectAt);
  if (thinking === undefined || thinking.type === 'disabled' || thinking.type === 'adaptive') return;
  if (thinking.type === 'enabled') {
    throw badRequest('thinking: the models of this server do not think aloud; leave it out.', 'thinking');
  }
  throw wrongValue('thinking.type', thinking.type, ['disabled', 'adaptive']);
}

function readFormat(value: unknown): ResponseFormat | undefined {
  const place = 'output_config.format';
  const format = optionalAt(optionalAt(value, 'output_config', objectAt)?.format, place, objectAt);
  if (format === undefined) return undefined;
  if (format.type !== 'json_schema') throw wrongValue(`${place}.type`, format.type, ['json_schema']);
  return { type: 'json_schema', schema: objectAt(format.schema, `${place}.schema`) };
}

/** The facade's options for a message. */
export function readOptions(body: MessagesBody): GenerateOptions {
  if (body.thread != null) {
    // By these details Anthropic's tool runner knows that it has to send the whole conversation each time.
    throw new ApiError('thread: this server holds no conversations; send all messages.', {
      status: 400,
      code: 'unsupported_parameter',
      param: 'thread',
      details: { error_code: 'thread_unsupported_request', unsupported: ['thread'] },
    });
  }
  if (body.container != null) throw badRequest('container: this server runs no code.', 'container');
  const options = samplingOptions({
    temperature: body.temperature,
    top_k: body.top_k,
    top_p: body.top_p,
    stop: body.stop_sequences,
  });
  options.maxTokens = body.max_tokens;
  return options;
}
