import { ChatGLMError, invalidArgument } from '../common/errors.js';
import {
  choiceOption,
  type FilePath,
  type Nullable,
  readOptions,
  show,
  signalOption,
  toPath,
} from '../common/options.js';
import type { WrittenFile } from '../common/written-file.js';
import {
  CHAT_FAMILIES,
  type ChatFamily,
  chatFormat,
  chatPrompt,
  familyNamed,
  type ModelFamily,
  specialId,
  stopTokens,
} from '../families/index.js';
import {
  type ChatMessage,
  type ToolDefinition,
  type ToolRegistry,
  toolNames,
  validateMessage,
  validateMessages,
  validateTools,
  type WrappedToolDefinition,
} from '../families/messages.js';
import { type PromptPart, promptLength } from '../families/prompt.js';
import {
  checkGenerateOptions,
  GENERATE_OPTIONS,
  type GenerateOptions,
  readGenerateOptions,
} from '../generation/options.js';
import { StopSequences } from '../generation/stop-sequences.js';
import type { RawGeneration } from '../generation/text-stream.js';
import { type ChatReply, ChatStream } from './chat-stream.js';
import { type KvStore, openSession, saveSession } from './session.js';

/** What the model is told about tools when `system` says nothing: the sentence that ChatGLM3 was trained with. */
export const TOOLS_PROMPT =
  'Answer the following questions as best as you can. You have access to the following tools:';

/** Options of `model.createChat()`. Those of a generation hold for every answer that is not given others. */
export interface ChatOptions extends GenerateOptions {
  /** The system message. Default: none, or {@link TOOLS_PROMPT} where there are tools. */
  system?: string | undefined;
  /** Tools that the model may call, also in OpenAI's shape; no two have the same name. ChatGLM3 only. Default: none. */
  tools?: readonly (ToolDefinition | WrappedToolDefinition)[] | ToolRegistry | undefined;
  /**
   * The conversation so far: messages, or THUDM's pairs `[query, response]`, which are copied. A history that begins with a
   * system message leaves no room for `system` and `tools`. Default: empty.
   */
  history?: readonly (ChatMessage | readonly [query: string, response: string])[] | undefined;
  /** The family whose prompt format is used. Default: `auto`, the model's own family. CodeGeeX2 has no format. */
  family?: 'auto' | ChatFamily | undefined;
}

/** Options of one answer. */
export interface SendOptions extends GenerateOptions {
  /** The role of a message that is given as text; `observation` is what a called tool has given. Default: `user`. */
  role?: 'user' | 'observation' | undefined;
}

const CHAT_OPTIONS = [
  ...GENERATE_OPTIONS,
  'system',
  'tools',
  'history',
  'family',
] as const satisfies readonly (keyof ChatOptions)[];

/** What `toJSON()` of a chat gives. With it `createChat()` goes on with the conversation. */
export interface SavedChat {
  /** The format of the prompts. */
  family: ChatFamily;
  /** The conversation. */
  history: ChatMessage[];
}

/** Options of `chat.save()`. */
export interface SaveOptions {
  /** Ends writing with ERR_ABORTED; nothing is left behind. Default: none. */
  signal?: AbortSignal | undefined;
}

/** Options of `model.restoreChat()`. Those of a generation hold for every answer that is not given others; `signal` is for reading the file. */
export interface RestoreOptions extends GenerateOptions {
  /**
   * What to do with a file of another model, or of keys and values of another type or device, or for which other requests leave
   * no room: `error` throws ERR_SESSION_MISMATCH, or ERR_OUT_OF_MEMORY; `history` goes on with the conversation's text, whose prompt is computed again. Default: `error`.
   */
  onMismatch?: 'error' | 'history' | undefined;
}

/** What a chat needs of a model. */
export interface ChatModel {
  readonly info: { readonly family: ModelFamily };
  readonly tokenizer: {
    /** How many pieces there are. Ids of special tokens follow. */
    readonly size: number;
    /** The ids of a prompt, or of a long one a promise of them. */
    encodePrompted(
      parts: readonly PromptPart[],
      family: ChatFamily,
      signal: AbortSignal | undefined,
    ): number[] | Promise<number[]>;
  };
  /** Where the keys and values of prompts are kept. */
  readonly kv: KvStore;
  /** The error for texts that are so long in all that they cannot fit the context. */
  overflowOf(length: number): ChatGLMError | undefined;
  generateIds(
    prompt: readonly number[] | ChatGLMError | Promise<readonly number[]>,
    options: GenerateOptions,
  ): RawGeneration;
}

/** The roles of messages that an answer follows. */
const SPEAKERS = ['user', 'observation'] as const;

/**
 * A conversation with a model. It answers one message at a time; a model can have any number of chats.
 *
 * @example
 * ```ts
 * const chat = model.createChat({ temperature: 0 });
 * await chat.send('My name is Anna.');
 * console.log((await chat.send('What is my name?')).text);
 * ```
 */
export class Chat {
  /** The format of the prompts. */
  readonly family: ChatFamily;

  readonly #model: ChatModel;
  readonly #defaults: GenerateOptions;
  #history: ChatMessage[];
  #isAnswering = false;

  /** @internal Use `model.createChat()`. */
  constructor(model: ChatModel, options: Nullable<ChatOptions> = {}) {
    const set = readOptions<ChatOptions>(options, CHAT_OPTIONS, 'createChat()');
    const { system, tools: given, history = [], family = 'auto', ...defaults } = set;
    this.#model = model;
    this.family = chatFamily(family, model.info.family);
    checkGenerateOptions(defaults);
    this.#defaults = defaults;
    this.#history = validateMessages(history, 'history');
    if (system !== undefined && typeof system !== 'string') {
      throw invalidArgument(`system must be a string, got ${show(system)}`);
    }
    const tools = given && validateTools(given);
    const hasTools = tools !== undefined && toolNames(tools).length > 0;
    if (system === undefined && !hasTools) return;
    if (this.#history[0]?.role === 'system') {
      throw invalidArgument('history begins with a system message: system and tools must be left out');
    }
    const message: ChatMessage = { role: 'system', content: system ?? TOOLS_PROMPT };
    if (hasTools) {
      if (!chatFormat(this.family).hasTools) {
        throw invalidArgument(`tools: ${familyNamed(this.family).title} has none`);
      }
      message.tools = tools;
    }
    this.#history.unshift(message);
  }

  /**
   * The conversation: plain JSON, the chat's own array. Edit it between answers, save it, or assign another one, which is
   * checked and copied. The history changes only when an answer is complete; an error leaves it as it was.
   *
   * @example
   * ```ts
   * chat.history.splice(-2); // takes the last question and its answer back
   * chat.history = [{ role: 'user', content: '你好' }, { role: 'assistant', content: '你好！' }];
   * ```
   */
  get history(): ChatMessage[] {
    return this.#history;
  }

  set history(history: NonNullable<ChatOptions['history']>) {
    this.#refuseWhileAnswering();
    this.#history = validateMessages(history, 'history');
  }

  /**
   * Sends a message and gives the answer as it is being generated. The history gets the message and the answer once
   * the answer is complete, or, as far as it has come, when the loop is left early. An error, one from an aborted
   * `signal` included, is thrown and leaves the history as it was.
   *
   * @param input A text, or a message of the role `user` or `observation`.
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT; ERR_BUSY while the chat is answering another message; while iterating
   *   ERR_CONTEXT_OVERFLOW, ERR_QUEUE_FULL, ERR_ABORTED, ERR_DISPOSED and others of the model.
   *
   * @example
   * ```ts
   * const answer = chat.stream('晚上睡不着应该怎么办', { maxTokens: 300, signal: AbortSignal.timeout(10_000) });
   * for await (const { text } of answer) process.stdout.write(text);
   * const { finishReason, toolCall } = await answer.result;
   * console.log(finishReason, toolCall?.name);
   * ```
   */
  stream(input: string | ChatMessage, options: Nullable<SendOptions> = {}): ChatStream {
    const set = readOptions<SendOptions>(options, [...GENERATE_OPTIONS, 'role'], 'an answer');
    const { role: asked, ...generation } = set;
    const role = choiceOption('role', asked, SPEAKERS, 'user');
    const message = validateMessage(typeof input === 'string' ? { role, content: input } : input, 'input');
    choiceOption('input.role', message.role, SPEAKERS, 'user');
    checkGenerateOptions(generation);
    return this.#answer(this.#history.length, [message], generation);
  }

  /**
   * As {@link stream}, but gives the whole answer at its end.
   *
   * @example
   * ```ts
   * const chat = model.createChat({ tools: [{ name: 'get_weather', parameters: { type: 'object' } }] });
   * const { toolCall } = await chat.send('北京今天天气怎么样？');
   * if (toolCall) console.log((await chat.send('{"celsius": 21}', { role: 'observation' })).text);
   * ```
   */
  async send(input: string | ChatMessage, options: Nullable<SendOptions> = {}): Promise<ChatReply> {
    return await this.stream(input, options).result;
  }

  /**
   * Answers the last message again: the answer that follows it in the history is replaced once the new one is complete.
   * Without another `seed` or other options than before, a seeded answer comes out the same.
   *
   * @throws {ChatGLMError} as {@link stream}; ERR_INVALID_ARGUMENT when there is no message to answer.
   *
   * @example
   * ```ts
   * const { text } = await chat.regenerate({ temperature: 1 }).result;
   * console.log(text, chat.history.length); // as long as before
   * ```
   */
  regenerate(options: Nullable<GenerateOptions> = {}): ChatStream {
    const set = readGenerateOptions(options);
    this.#refuseWhileAnswering();
    // The history is the user's to edit.
    const messages = validateMessages(this.#history, 'history');
    const last = messages.findLastIndex(({ role }) => role !== 'assistant');
    const role = messages[last]?.role;
    if (role !== 'user' && role !== 'observation') throw invalidArgument('the history has no message to answer again');
    return this.#answer(last + 1, [], set);
  }

  /**
   * Makes another chat with the same history and options: what is said in one does not change the other.
   *
   * @example
   * ```ts
   * const other = chat.fork();
   * const [here, there] = await Promise.all([chat.send('Hello'), other.send('你好')]);
   * console.log(here.text, there.text);
   * ```
   */
  fork(): Chat {
    return new Chat(this.#model, { ...this.#defaults, family: this.family, history: this.#history });
  }

  /**
   * The chat as plain data, to go on later: `model.createChat(JSON.parse(JSON.stringify(chat)))`.
   *
   * @example
   * ```ts
   * const saved = JSON.stringify(chat); // calls toJSON()
   * const restored = model.createChat(JSON.parse(saved));
   * console.log(restored.history.length);
   * ```
   */
  toJSON(): SavedChat {
    return { family: this.family, history: validateMessages(this.#history, 'history') };
  }

  /**
   * Writes the chat to a file, with the keys and values that were computed for it: `model.restoreChat()` goes on with it
   * without computing the history again. A file of this name is replaced, once the new one is whole and on the disk. It is as
   * large as `model.info.kvBytesPerToken` times the tokens of the history. What is no longer kept of the history, as other
   * requests needed its memory, is computed again first.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, also for an empty history; ERR_BUSY while the chat is answering;
   *   ERR_ABORTED, ERR_DISPOSED and others of the model; the codes of the system.
   *
   * @example
   * ```ts
   * const { bytes } = await chat.save('./anna.chat');
   * console.log(`${(bytes / 1e6).toFixed(0)} MB`);
   * ```
   */
  async save(path: FilePath, options: Nullable<SaveOptions> = {}): Promise<WrittenFile> {
    const file = toPath('path', path);
    const { signal } = readOptions<SaveOptions>(options, ['signal'], 'save()');
    signalOption(signal);
    this.#refuseWhileAnswering();
    const chat = this.toJSON();
    if (chat.history.length === 0) throw invalidArgument('the chat has no history to save');
    const ids = await this.promptIds(signal);
    return await saveSession(file, { store: this.#model.kv, ids, chat }, { signal });
  }

  /** @internal The ids of the history, as the next prompt begins. */
  async promptIds(signal: AbortSignal | undefined): Promise<number[]> {
    const parts = chatPrompt(this.family, validateMessages(this.#history, 'history'));
    const tooLong = this.#model.overflowOf(promptLength(parts));
    if (tooLong) throw tooLong;
    return await this.#model.tokenizer.encodePrompted(parts, this.family, signal);
  }

  /** @internal Use `model.restoreChat()`. */
  static async restore(model: ChatModel, path: FilePath, options: Nullable<RestoreOptions>): Promise<Chat> {
    const file = toPath('path', path);
    const set = readOptions<RestoreOptions>(options, [...GENERATE_OPTIONS, 'onMismatch'], 'restoreChat()');
    const { onMismatch, ...defaults } = set;
    const wanted = choiceOption('onMismatch', onMismatch, ['error', 'history'], 'error');
    checkGenerateOptions(defaults);
    const { chat, mismatch } = await openSession(file, model.kv, { signal: defaults.signal });
    if (mismatch && wanted === 'error') {
      const { what, reason } = mismatch;
      const message = `${file} ${reason}; onMismatch: 'history' takes its text alone`;
      if (what === 'memory') throw new ChatGLMError('ERR_OUT_OF_MEMORY', message, { file });
      throw new ChatGLMError('ERR_SESSION_MISMATCH', message, { file, what });
    }
    // The signal was for reading the file.
    const { signal: _, ...rest } = defaults;
    return new Chat(model, { ...rest, ...(chat as SavedChat) });
  }

  /** Answers `added` behind the first `kept` messages of the history. */
  #answer(kept: number, added: ChatMessage[], options: GenerateOptions): ChatStream {
    this.#refuseWhileAnswering();
    const { tokenizer } = this.#model;
    // The history is the user's to edit, so it is checked each time.
    const messages = [...validateMessages(this.#history, 'history').slice(0, kept), ...added];
    const parts = chatPrompt(this.family, messages);
    const { stop = [], stopTokens: more = [], ...rest } = { ...this.#defaults, ...options };
    const stops = new StopSequences(stop);
    const prompt =
      this.#model.overflowOf(promptLength(parts)) ?? tokenizer.encodePrompted(parts, this.family, rest.signal);
    const raw = this.#model.generateIds(prompt, {
      ...rest,
      stopTokens: [...stopTokens(tokenizer.size, this.family), ...more],
    });
    const stream = new ChatStream({
      raw,
      family: this.family,
      partToken: partTokenOf(this.family, tokenizer.size),
      tools: messages.flatMap(({ tools }) => (tools ? toolNames(tools) : [])),
      stops,
      onReply: (reply) => {
        this.#history.splice(kept, this.#history.length, ...added, ...structuredClone(reply.messages));
      },
      onEnd: () => {
        this.#isAnswering = false;
      },
    });
    this.#isAnswering = true;
    return stream;
  }

  #refuseWhileAnswering(): void {
    if (this.#isAnswering)
      throw new ChatGLMError('ERR_BUSY', 'this chat is answering already; wait for its answer, or fork() it');
  }
}

/** Options of `model.chat()`. */
export interface ChatOnceOptions extends SendOptions, Pick<ChatOptions, 'history' | 'system' | 'tools' | 'family'> {}

/** What `model.chat()` gives: THUDM's `response, history`, and how the answer came about. */
export interface ChatOnceResult extends Pick<ChatReply, 'finishReason' | 'usage' | 'timings' | 'seed' | 'logprobs'> {
  /**
   * The text. When a tool is to be called: its name and `parameters`. When those cannot be read, or for the code
   * interpreter: the name and the `content` that the model wrote.
   */
  response: string | { name: string; parameters: Record<string, unknown> } | { name: string; content: string };
  /** The conversation with the question and the answer. The one that was given is left as it was. */
  history: ChatMessage[];
}

/** One question and its answer in the shape of THUDM's `chat()`. */
export async function chatOnce(
  model: ChatModel,
  query: string,
  options: Nullable<ChatOnceOptions> = {},
): Promise<ChatOnceResult> {
  const { role, ...rest } = readOptions<ChatOnceOptions>(options, [...CHAT_OPTIONS, 'role'], 'chat()');
  if (typeof query !== 'string') throw invalidArgument(`query must be a string, got ${show(query)}`);
  const chat = new Chat(model, rest);
  const reply = await chat.send(query, { role });
  const { finishReason, usage, timings, seed, logprobs } = reply;
  const result: ChatOnceResult = {
    response: response(reply),
    history: chat.history,
    finishReason,
    usage,
    timings,
    seed,
  };
  if (logprobs) result.logprobs = logprobs;
  return result;
}

function response({ text, toolCall, code, messages }: ChatReply): ChatOnceResult['response'] {
  if (toolCall?.arguments) return { name: toolCall.name, parameters: toolCall.arguments };
  if (toolCall) return { name: toolCall.name, content: toolCall.raw };
  const last = messages.at(-1);
  if (code !== undefined && last) return { name: last.metadata ?? '', content: last.content };
  return text;
}

function partTokenOf(name: ChatFamily, pieceCount: number): number | undefined {
  const { partToken } = chatFormat(name);
  return partToken === undefined ? undefined : specialId(familyNamed(name), pieceCount, partToken);
}

function chatFamily(asked: unknown, ofModel: ModelFamily): ChatFamily {
  const family = asked === 'auto' ? ofModel : asked;
  if (CHAT_FAMILIES.includes(family as ChatFamily)) return family as ChatFamily;
  if (asked === 'auto') {
    throw invalidArgument(
      `${familyNamed(ofModel).title} has no chat format: use generate(), or say which one with the chat's option family (--format)`,
    );
  }
  throw invalidArgument(`family must be one of auto, ${CHAT_FAMILIES.join(', ')}, got ${show(asked)}`);
}
