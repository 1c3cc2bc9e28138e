import { invalidArgument } from '../common/errors.js';
import { shown } from '../common/invalid.js';
import { booleanOption, type Nullable, reading, readOptions, show } from '../common/options.js';
import { INTERPRETER, unfence } from '../families/chatglm3.js';
import { type ChatMessage, type ListedTools, validateMessages, validateTools } from '../families/messages.js';
import { parseToolCall } from '../families/python-call.js';
import { fencedPython, writeToolCall } from '../families/python-literal.js';

/** A part of a message's content. Parts of other types, such as `image_url`, are refused. */
export interface OpenAITextPart {
  /** The only type there is here. */
  type: 'text';
  /** The text. */
  text: string;
}

/** What a message is made of: a text, or parts, between which the model sees line breaks. */
export type OpenAIContent = string | OpenAITextPart[];

/** What ChatGLM's format says of a message and OpenAI's has no field for. */
export interface ChatGLMFields {
  /** The message's `metadata`, where its role does not tell it. */
  metadata?: string;
  /** The tools that a system message lists. */
  tools?: ListedTools;
}

/** A called function. */
export interface OpenAIFunctionCall {
  /** The function's name. */
  name: string;
  /** Its arguments as the text of a JSON object; or whatever else the model wrote. */
  arguments: string;
  /** What the model wrote, where the arguments do not tell it. Not of OpenAI. */
  chatglm?: { content: string };
}

/** A call of a tool. */
export interface OpenAIToolCall {
  /** What the tool's answer is found by. */
  id: string;
  /** The only type there is here. */
  type: 'function';
  /** What is called. */
  function: OpenAIFunctionCall;
}

/** What the model is told about its task. */
export interface OpenAISystemMessage {
  /** Newer models call it `developer`. */
  role: 'system' | 'developer';
  /** What is said. */
  content: OpenAIContent;
  /** Who speaks. The model does not see it. */
  name?: string;
  /** Not of OpenAI. */
  chatglm?: ChatGLMFields;
}

/** What a user said. */
export interface OpenAIUserMessage {
  /** A user speaks. */
  role: 'user';
  /** What is said. */
  content: OpenAIContent;
  /** Who speaks. The model does not see it. */
  name?: string;
  /** Not of OpenAI. */
  chatglm?: ChatGLMFields;
}

/** What the model said, and the tools that it called. */
export interface OpenAIAssistantMessage {
  /** The model speaks. */
  role: 'assistant';
  /** What is said; null where nothing is. */
  content?: OpenAIContent | null;
  /** Who speaks. The model does not see it. */
  name?: string;
  /** What was said instead of an answer. */
  refusal?: string | null;
  /** Called tools. */
  tool_calls?: OpenAIToolCall[];
  /** A called function, as it was written before there were `tool_calls`. */
  function_call?: OpenAIFunctionCall | null;
  /** Sources and the like, which are kept. The model does not see them. */
  annotations?: unknown[];
}

/** What a tool gave. */
export interface OpenAIToolMessage {
  /** A tool speaks. */
  role: 'tool';
  /** What it gave. */
  content: OpenAIContent;
  /** The call that this answers. */
  tool_call_id: string;
  /** The tool's name, as some servers want it. */
  name?: string;
  /** Not of OpenAI. */
  chatglm?: ChatGLMFields;
}

/** What a function gave, as it was written before there were tools. */
export interface OpenAIFunctionMessage {
  /** A function speaks. */
  role: 'function';
  /** What it gave. */
  content: string | null;
  /** The function's name. */
  name: string;
  /** Not of OpenAI. */
  chatglm?: ChatGLMFields;
}

/** A message of OpenAI's chat completions. */
export type OpenAIMessage =
  | OpenAISystemMessage
  | OpenAIUserMessage
  | OpenAIAssistantMessage
  | OpenAIToolMessage
  | OpenAIFunctionMessage;

/** Options of `toOpenAI()`. */
export interface ToOpenAIOptions {
  /**
   * Whether what OpenAI's format has no field for is kept in fields `chatglm`: tools of a system message, metadata, a call
   * that the model did not write as it is usually written. Servers may refuse fields that they do not know: with false the
   * messages have OpenAI's fields only. Default: true.
   */
  lossless?: boolean | undefined;
}

/** ChatMessage.openai: what is to be found again, where it does not follow from the message itself. All of it is optional. */
interface Extra {
  role?: string;
  name?: string;
  /** UTF-16 units of each part of the content. */
  parts?: number[];
  /** The content as it was given, where it has no text: null, '' or empty parts. */
  content?: unknown;
  /** true: the message's content is the refusal. */
  refusal?: true | string;
  annotations?: unknown[];
  /** The id of a call, or the one that an observation names, where it is not that of the call before. */
  id?: string;
  arguments?: string;
  /** A call in the old field function_call. */
  old?: true;
  /** A call that stands in one message with the call before. */
  joined?: true;
  /** A call that does not stand in one message with the text before. */
  apart?: true;
  /** Where an observation stands among those of its message. */
  place?: number;
}

type Fields = Record<string, unknown>;

interface Entry {
  message: ChatMessage;
  extra: Extra;
}

const FIELDS: Readonly<Record<string, readonly string[]>> = {
  system: ['content', 'name'],
  developer: ['content', 'name'],
  user: ['content', 'name'],
  assistant: ['content', 'name', 'refusal', 'tool_calls', 'function_call', 'annotations'],
  tool: ['content', 'tool_call_id', 'name'],
  function: ['content', 'name'],
};

/**
 * Messages of OpenAI's chat completions as a history of this package. A message that says something and calls tools becomes
 * one message for the text and one for each call; what a tool gave follows its call, as the model calls one tool at a time.
 * {@link toOpenAI} gives the messages back as they were. Fields that are null, and empty lists, are as good as absent. The
 * model does not see the speakers' names. OpenAI's `tools` go to the chat's option of that name.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the message and the field, for what the model cannot see, such as images
 *   and sound, and for fields that are unknown.
 *
 * @example
 * ```ts
 * const history = fromOpenAI([
 *   { role: 'developer', content: 'Answer briefly.' },
 *   { role: 'user', content: [{ type: 'text', text: '北京今天天气怎么样？' }] },
 *   {
 *     role: 'assistant',
 *     content: null,
 *     tool_calls: [{ id: 'call_1', type: 'function', function: { name: 'weather', arguments: '{"city":"北京"}' } }],
 *   },
 *   { role: 'tool', tool_call_id: 'call_1', content: '{"celsius": 21}' },
 * ]);
 * console.log(history[2]); // { role: 'assistant', metadata: 'weather', content: "```python\ntool_call(city='北京')\n```", … }
 * ```
 */
export function fromOpenAI(messages: unknown): ChatMessage[] {
  return reading('messages', () => {
    if (!Array.isArray(messages)) throw invalidArgument(`messages must be an array of messages, got ${show(messages)}`);
    const checked = Array.from(messages, (entry: unknown, index) => checkedFields(entry, `messages[${index}]`));
    const entries: Entry[] = [];
    for (let index = 0; index < checked.length; index++) {
      const { fields, name } = checked[index] as Checked;
      if (fields.role !== 'assistant') {
        entries.push(isResult(fields) ? resultEntry(fields, name) : textEntry(fields, name));
        continue;
      }
      const { said, calls } = assistantEntries(fields, name, entries.at(-1)?.message);
      const results: Entry[] = [];
      for (
        let next = checked[index + 1];
        calls.length > 0 && next && isResult(next.fields);
        next = checked[index + 1]
      ) {
        results.push(resultEntry(next.fields, next.name));
        index++;
      }
      entries.push(...said, ...interleaved(calls, results));
    }
    forgetDefaults(entries);
    return entries.map(({ message, extra }) => {
      if (Object.keys(extra).length > 0) message.openai = { ...extra };
      return message;
    });
  });
}

interface Checked {
  fields: Fields;
  name: string;
}

/** The fields of a message that are set. */
function checkedFields(value: unknown, name: string): Checked {
  const fields = setFields(value, name);
  const { role } = fields;
  const known = typeof role === 'string' && Object.hasOwn(FIELDS, role) ? FIELDS[role] : undefined;
  if (known === undefined) {
    throw invalidArgument(`${name}.role must be one of ${Object.keys(FIELDS).join(', ')}, got ${show(role)}`);
  }
  refuseOthers(fields, ['role', 'chatglm', ...known], name, `a message of the role ${String(role)}`);
  if (fields.name !== undefined) text(fields.name, `${name}.name`);
  return { fields, name };
}

function isResult({ role }: Fields): boolean {
  return role === 'tool' || role === 'function';
}

function textEntry(fields: Fields, name: string): Entry {
  const { text: content, extra } = readContent(fields.content, `${name}.content`);
  const message: ChatMessage = { role: fields.role === 'user' ? 'user' : 'system', content };
  if (fields.role === 'developer') extra.role = 'developer';
  if (fields.name !== undefined) extra.name = fields.name as string;
  readChatGLM(fields.chatglm, message, `${name}.chatglm`);
  return { message, extra };
}

/** What a tool gave, with the id and the name that it says of itself. */
function resultEntry(fields: Fields, name: string): Entry {
  const isOld = fields.role === 'function';
  const given = isOld && fields.content === undefined ? null : fields.content;
  const { text: content, extra } = readContent(given, `${name}.content`, isOld);
  extra.role = fields.role as string;
  if (isOld) text(fields.name, `${name}.name`);
  else extra.id = text(fields.tool_call_id, `${name}.tool_call_id`);
  if (fields.name !== undefined) extra.name = fields.name as string;
  const message: ChatMessage = { role: 'observation', content };
  readChatGLM(fields.chatglm, message, `${name}.chatglm`);
  return { message, extra };
}

function assistantEntries(
  fields: Fields,
  name: string,
  before: ChatMessage | undefined,
): { said: Entry[]; calls: Entry[] } {
  const calls = readCalls(fields, name);
  const { text: content, extra } = readContent(fields.content ?? null, `${name}.content`, true);
  const entry: Entry = { message: { role: 'assistant', metadata: '', content }, extra };
  if (fields.chatglm !== undefined) throw invalidArgument(`${name}.chatglm is no field of an assistant's message`);
  const refusal = text(fields.refusal ?? '', `${name}.refusal`);
  if (refusal !== '') {
    extra.refusal = content === '' ? true : refusal;
    if (content === '') entry.message.content = refusal;
    if (content === '' && extra.content === undefined && fields.content !== undefined) extra.content = fields.content;
    if (extra.content === null) delete extra.content;
  }
  if (fields.name !== undefined) extra.name = fields.name as string;
  if (fields.annotations !== undefined) {
    if (!Array.isArray(fields.annotations)) {
      throw invalidArgument(`${name}.annotations must be an array, got ${show(fields.annotations)}`);
    }
    extra.annotations = plain(fields.annotations, `${name}.annotations`) as unknown[];
  }
  const first = calls[0];
  if (first === undefined) return { said: [entry], calls };
  if (isSaying(entry.message)) return { said: [entry], calls };
  // Nothing was said: the model would see an empty answer. What the message is besides is kept with its first call.
  const { content: given = '', ...rest } = extra;
  Object.assign(first.extra, rest);
  if (given !== null) first.extra.content = given;
  if (isSaying(before)) first.extra.apart = true;
  return { said: [], calls };
}

function readCalls(fields: Fields, name: string): Entry[] {
  const { tool_calls: list, function_call: old } = fields;
  if (old !== undefined) {
    if (list !== undefined) throw invalidArgument(`${name} has both tool_calls and function_call`);
    const entry = readCall(old, `${name}.function_call`);
    entry.extra.old = true;
    return [entry];
  }
  if (list === undefined) return [];
  if (!Array.isArray(list)) throw invalidArgument(`${name}.tool_calls must be an array, got ${show(list)}`);
  return Array.from(list, (value: unknown, index) => {
    const where = `${name}.tool_calls[${index}]`;
    const call = setFields(value, where);
    if ((call.type ?? 'function') !== 'function') {
      throw invalidArgument(`${where}.type must be function, got ${show(call.type)}`);
    }
    refuseOthers(call, ['id', 'type', 'function'], where, 'a call');
    const entry = readCall(call.function, `${where}.function`);
    if (call.id !== undefined) entry.extra.id = text(call.id, `${where}.id`);
    if (index > 0) entry.extra.joined = true;
    return entry;
  });
}

function readCall(value: unknown, name: string): Entry {
  const call = setFields(value, name);
  refuseOthers(call, ['name', 'arguments', 'chatglm'], name, 'a called function');
  const metadata = text(call.name, `${name}.name`);
  if (metadata === '') throw invalidArgument(`${name}.name must not be empty`);
  const given = text(call.arguments ?? '', `${name}.arguments`);
  const extra: Extra = {};
  const written = call.chatglm === undefined ? undefined : setFields(call.chatglm, `${name}.chatglm`).content;
  let content = contentOf(metadata, given);
  // Whoever changed the arguments means them, and not what the model once wrote.
  if (written !== undefined && argumentsOf(metadata, text(written, `${name}.chatglm.content`)) === given) {
    content = written as string;
  }
  if (argumentsOf(metadata, content) !== given) extra.arguments = given;
  return { message: { role: 'assistant', metadata, content }, extra };
}

/** Each call with what its tool gave behind it, and last what answers none of the calls. */
function interleaved(calls: Entry[], results: Entry[]): Entry[] {
  const left = new Set(results);
  const entries: Entry[] = [];
  for (const call of calls) {
    entries.push(call);
    const result = [...left].find(({ extra }) =>
      extra.role === 'tool'
        ? call.extra.id !== undefined && extra.id === call.extra.id
        : extra.name === call.message.metadata,
    );
    if (result === undefined) continue;
    left.delete(result);
    entries.push(result);
    delete result.extra.id;
  }
  entries.push(...left);
  const inOrder = entries.filter(({ message }) => message.role === 'observation');
  if (inOrder.some((result, index) => result !== results[index])) {
    for (const result of inOrder) result.extra.place = results.indexOf(result);
  }
  return entries;
}

/** Leaves out ids, roles and names that toOpenAI() would give by itself. */
function forgetDefaults(entries: readonly Entry[]): void {
  const taken = countOf(entries.flatMap(({ extra }) => extra.id ?? []));
  let ordinal = 0;
  for (const [index, { message, extra }] of entries.entries()) {
    const before = entries[index - 1];
    const answered = message.role === 'observation' && isCall(before?.message) ? before : undefined;
    if (message.role === 'observation') {
      const defaultRole = answered?.extra.old ? 'function' : 'tool';
      if (extra.role === 'function' && extra.name === answered?.message.metadata) delete extra.name;
      if (extra.role === defaultRole) delete extra.role;
    }
    if (!takesId(message, before?.message)) continue;
    const { id } = extra;
    const number = ordinal++;
    if (id === undefined) continue;
    // The others' ids are what defaultId() must keep clear of.
    const count = taken.get(id) ?? 0;
    if (count === 1) taken.delete(id);
    if (defaultId(number, taken) === id) delete extra.id;
    taken.set(id, count);
  }
}

/**
 * A history of this package as messages of OpenAI's chat completions. What one answer said and called becomes one message;
 * calls that have no ids are numbered. {@link fromOpenAI} gives the history back as it was, but for metadata that is `''` or
 * absent, which makes no difference to a prompt: it comes back as `''` in answers and absent elsewhere.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the message and the field.
 *
 * @example
 * ```ts
 * const messages = toOpenAI(chat.history, { lossless: false });
 * console.log(JSON.stringify({ model: 'chatglm3-6b', messages }));
 * ```
 */
export function toOpenAI(messages: readonly ChatMessage[], options: Nullable<ToOpenAIOptions> = {}): OpenAIMessage[] {
  const set = readOptions<ToOpenAIOptions>(options, ['lossless'], 'toOpenAI()');
  const lossless = booleanOption('lossless', set.lossless, true);
  const checked = validateMessages(messages, 'messages');
  const ids = idsOf(checked);
  const written: OpenAIMessage[] = [];
  let group: Group | undefined;
  for (const [index, message] of checked.entries()) {
    const before = checked[index - 1];
    const extra = extraOf(message);
    if (isCall(message)) {
      const call = functionCall(message, extra, lossless);
      const toolCall: OpenAIToolCall = { id: ids[index] as string, type: 'function', function: call };
      if (extra.joined && !extra.old && group?.calls) {
        group.calls.push(toolCall);
        continue;
      }
      group?.end(written);
      const isApart = extra.apart === true || !isSaying(before);
      const owner = isApart ? silentMessage(extra) : (written.pop() as OpenAIAssistantMessage);
      written.push(owner);
      if (extra.old) owner.function_call = call;
      else owner.tool_calls = [toolCall];
      group = new Group(owner.tool_calls);
      continue;
    }
    if (message.role === 'observation') {
      const result = resultMessage(message, extra, { before, id: ids[index] as string, lossless });
      if (group) group.add(result, extra.place);
      else written.push(result);
      continue;
    }
    group?.end(written);
    group = undefined;
    written.push(message.role === 'assistant' ? answerMessage(message, extra) : plainMessage(message, extra, lossless));
  }
  group?.end(written);
  return written;
}

/** The calls of one message, and what the tools gave, which follows the message. */
class Group {
  readonly calls: OpenAIToolCall[] | undefined;
  readonly #results: { message: OpenAIMessage; place: number }[] = [];

  constructor(calls: OpenAIToolCall[] | undefined) {
    this.calls = calls;
  }

  add(message: OpenAIMessage, place = this.#results.length): void {
    this.#results.push({ message, place });
  }

  end(written: OpenAIMessage[]): void {
    this.#results.sort((a, b) => a.place - b.place);
    written.push(...this.#results.map(({ message }) => message));
  }
}

function functionCall({ metadata = '', content }: ChatMessage, extra: Extra, lossless: boolean): OpenAIFunctionCall {
  // The message may have been edited since: only what still says the same is taken.
  const isSame = extra.arguments !== undefined && contentOf(metadata, extra.arguments) === content;
  const call: OpenAIFunctionCall = {
    name: metadata,
    arguments: isSame ? (extra.arguments as string) : argumentsOf(metadata, content),
  };
  if (lossless && contentOf(metadata, call.arguments) !== content) call.chatglm = { content };
  return call;
}

/** The message of calls that nothing was said with. */
function silentMessage(extra: Extra): OpenAIAssistantMessage {
  const content = isEmptyContent(extra.content) ? extra.content : null;
  return { role: 'assistant', content, ...besides(extra) };
}

function answerMessage({ content }: ChatMessage, extra: Extra): OpenAIAssistantMessage {
  if (extra.refusal === true) {
    const given = isEmptyContent(extra.content) ? extra.content : null;
    return { role: 'assistant', content: given, refusal: content, ...besides(extra) };
  }
  const message: OpenAIAssistantMessage = { role: 'assistant', content: givenContent(content, extra) };
  if (extra.refusal !== undefined) message.refusal = extra.refusal;
  return { ...message, ...besides(extra) };
}

function plainMessage(message: ChatMessage, extra: Extra, lossless: boolean): OpenAIMessage {
  const content = givenContent(message.content, extra) ?? '';
  const rest = { ...named(extra), ...(lossless ? chatglmFields(message) : {}) };
  if (message.role === 'user') return { role: 'user', content, ...rest };
  return { role: extra.role === 'developer' ? 'developer' : 'system', content, ...rest };
}

function resultMessage(
  message: ChatMessage,
  extra: Extra,
  { before, id, lossless }: { before: ChatMessage | undefined; id: string; lossless: boolean },
): OpenAIMessage {
  const call = isCall(before) ? before : undefined;
  const role = extra.role ?? (call && extraOf(call).old ? 'function' : 'tool');
  const rest = lossless ? chatglmFields(message) : {};
  if (role === 'function') {
    const content = message.content === '' && extra.content === null ? null : message.content;
    return { role: 'function', name: extra.name ?? call?.metadata ?? 'function', content, ...rest };
  }
  const content = givenContent(message.content, extra) ?? '';
  return { role: 'tool', tool_call_id: extra.id ?? id, content, ...named(extra), ...rest };
}

function named({ name }: Extra): { name?: string } {
  return name === undefined ? {} : { name };
}

function besides(extra: Extra): { name?: string; annotations?: unknown[] } {
  return extra.annotations === undefined ? named(extra) : { ...named(extra), annotations: extra.annotations };
}

function chatglmFields({ metadata, tools }: ChatMessage): { chatglm?: ChatGLMFields } {
  const chatglm: ChatGLMFields = {};
  if (metadata) chatglm.metadata = metadata;
  if (tools) chatglm.tools = tools;
  return Object.keys(chatglm).length === 0 ? {} : { chatglm };
}

function readChatGLM(value: unknown, message: ChatMessage, name: string): void {
  if (value === undefined) return;
  const fields = setFields(value, name);
  refuseOthers(fields, message.role === 'system' ? ['metadata', 'tools'] : ['metadata'], name, 'it');
  if (fields.metadata !== undefined) message.metadata = text(fields.metadata, `${name}.metadata`);
  if (fields.tools !== undefined) message.tools = validateTools(fields.tools, `${name}.tools`);
}

/** A content with text in it, as a text and what is left to tell. */
function readContent(value: unknown, name: string, mayBeNull = false): { text: string; extra: Extra } {
  if (typeof value === 'string') return { text: value, extra: {} };
  if (mayBeNull && value === null) return { text: '', extra: { content: null } };
  if (!Array.isArray(value)) {
    throw invalidArgument(
      `${name} must be a string${mayBeNull ? ', null' : ''} or an array of parts, got ${show(value)}`,
    );
  }
  const texts = Array.from(value, (part: unknown, index) => {
    const where = `${name}[${index}]`;
    const fields = setFields(part, where);
    if (fields.type !== 'text') {
      throw invalidArgument(`${where}.type must be text, which is all that the model reads, got ${show(fields.type)}`);
    }
    refuseOthers(fields, ['type', 'text'], where, 'a part');
    return text(fields.text, `${where}.text`);
  });
  const joined = texts.join(PART_SEPARATOR);
  if (joined === '') return { text: '', extra: { content: texts.map(textPart) } };
  return { text: joined, extra: { parts: texts.map(({ length }) => length) } };
}

const PART_SEPARATOR = '\n';

function textPart(content: string): OpenAITextPart {
  return { type: 'text', text: content };
}

/** The content as it was given, unless the text has been edited so that its parts are not found any more. */
function givenContent(content: string, { parts, content: given }: Extra): OpenAIContent | null {
  if (content === '' && (given === null || isEmptyContent(given))) return given;
  if (!Array.isArray(parts)) return content;
  const cut: OpenAITextPart[] = [];
  let position = 0;
  for (const length of parts) {
    if (!Number.isSafeInteger(length) || length < 0) return content;
    if (cut.length > 0 && content.charAt(position++) !== PART_SEPARATOR) return content;
    cut.push(textPart(content.slice(position, position + length)));
    position += length;
  }
  return position === content.length ? cut : content;
}

/** Whether the value is a content without text that is not null. */
function isEmptyContent(value: unknown): value is OpenAIContent {
  if (value === '') return true;
  return Array.isArray(value) && value.length <= 1 && value.every((part) => isEmptyPart(part));
}

function isEmptyPart(part: unknown): boolean {
  const { type, text: content } = (part ?? {}) as Partial<OpenAITextPart>;
  return type === 'text' && content === '';
}

/** What stands in the history for a call with these arguments. */
function contentOf(name: string, given: string): string {
  const code = name === INTERPRETER ? codeOf(given) : undefined;
  if (code !== undefined) return fencedPython(code);
  const call = writeToolCall(given.trim() === '' ? '{}' : given);
  // A model's arguments need not be JSON. What they are is the best that there is to show.
  return call === undefined ? given : fencedPython(call);
}

/** The arguments of a call that stands in the history. */
function argumentsOf(name: string, content: string): string {
  const parsed = parseToolCall(content);
  if (name === INTERPRETER && !(parsed && /^\s*(?:```\w*\s)?\s*tool_call\b/.test(content))) {
    return JSON.stringify({ code: unfence(content) });
  }
  return parsed ? JSON.stringify(parsed) : content;
}

/** The code of `{"code": "…"}`, which is what servers with a code interpreter give. */
function codeOf(json: string): string | undefined {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    return undefined;
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined;
  const { code, ...rest } = value as Fields;
  return typeof code === 'string' && Object.keys(rest).length === 0 ? code : undefined;
}

/** The id of each call, and of each observation the id of the call that it answers. */
function idsOf(messages: readonly ChatMessage[]): string[] {
  const taken = countOf(messages.flatMap((message) => extraOf(message).id ?? []));
  const ids: string[] = [];
  let ordinal = 0;
  for (const [index, message] of messages.entries()) {
    const isNumbered = takesId(message, messages[index - 1]);
    const byDefault = isNumbered ? defaultId(ordinal++, taken) : (ids[index - 1] ?? '');
    ids.push(extraOf(message).id ?? byDefault);
  }
  return ids;
}

/** Whether the message has an id of its own: a call, and an observation that does not follow one. */
function takesId(message: ChatMessage, before: ChatMessage | undefined): boolean {
  return isCall(message) || (message.role === 'observation' && !isCall(before));
}

/** The id of a call that has none, clear of those that others have. */
function defaultId(ordinal: number, taken: ReadonlyMap<string, number>): string {
  let id = `call_${ordinal}`;
  while (taken.has(id)) id += '_';
  return id;
}

function countOf(ids: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const id of ids) counts.set(id, (counts.get(id) ?? 0) + 1);
  return counts;
}

function isCall(message: ChatMessage | undefined): message is ChatMessage & { metadata: string } {
  return message?.role === 'assistant' && message.metadata !== undefined && message.metadata !== '';
}

/** Whether the message is a text that calls behind it belong to. */
function isSaying(message: ChatMessage | undefined): boolean {
  return message?.role === 'assistant' && !message.metadata && message.content !== '';
}

const EXTRA_TYPES = {
  role: 'string',
  name: 'string',
  id: 'string',
  arguments: 'string',
  place: 'number',
  old: 'boolean',
  joined: 'boolean',
  apart: 'boolean',
} as const satisfies Partial<Record<keyof Extra, string>>;

/** What a message keeps for OpenAI's format. Anybody may have written it: fields of another type are as good as absent. */
function extraOf({ openai }: ChatMessage): Extra {
  if (openai === undefined) return {};
  const extra = { ...openai };
  for (const [key, type] of Object.entries(EXTRA_TYPES)) if (typeof extra[key] !== type) delete extra[key];
  if (extra.refusal !== true && typeof extra.refusal !== 'string') delete extra.refusal;
  if (!Array.isArray(extra.annotations)) delete extra.annotations;
  return extra as Extra;
}

/** The fields of an object that are set; empty lists count as not set, but for those of a message's content. */
function setFields(value: unknown, name: string): Fields {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalidArgument(`${name} must be an object, got ${show(value)}`);
  }
  const fields: Fields = {};
  for (const [key, field] of Object.entries(value)) {
    const isEmptyList = Array.isArray(field) && field.length === 0 && key !== 'content';
    if (field !== undefined && field !== null && !isEmptyList) fields[key] = field;
  }
  return fields;
}

function refuseOthers(fields: Fields, known: readonly string[], name: string, what: string): void {
  for (const field of Object.keys(fields)) {
    if (!known.includes(field)) {
      throw invalidArgument(`${name}.${shown(field)} is not a field of ${what}: those are ${known.join(', ')}`);
    }
  }
}

function text(value: unknown, name: string): string {
  if (typeof value !== 'string') throw invalidArgument(`${name} must be a string, got ${show(value)}`);
  return value;
}

function plain(value: unknown, name: string): unknown {
  try {
    return JSON.parse(JSON.stringify(value));
  } catch (cause) {
    throw invalidArgument(`${name} cannot be written as JSON`, cause);
  }
}
