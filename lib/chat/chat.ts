import type { NativeGrammar } from '../addon/native.js';
import { ChatGLMError, invalidArgument } from '../common/errors.js';
import {
  choiceOption,
  type FilePath,
  integerOption,
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
import { type ChatMessage, validateMessage, validateMessages } from '../families/messages.js';
import { type PromptPart, promptLength } from '../families/prompt.js';
import type { Segment } from '../families/reply.js';
import { checkGenerateOptions, type GenerateOptions } from '../generation/options.js';
import { StopSequences } from '../generation/stop-sequences.js';
import type { RawGeneration } from '../generation/text-stream.js';
import type { CodeExecutor, ExecutorSession } from '../interpreter/executor.js';
import {
  type ParsedAs,
  type ParsedFormat,
  type ResponseFormat,
  readResponseFormat,
} from '../structured/response-format.js';
import { textToolPrompt } from '../tools/text-prompting.js';
import { ToolSet, type ToolsInput } from '../tools/tool-set.js';
import { Answer, type AnswerResult } from './answer.js';
import { answerGrammar, readToolChoice, type ToolChoice } from './answer-grammar.js';
import {
  ANSWER_OPTIONS,
  type AnswerOptions,
  CHAT_OPTIONS,
  type ChatOptions,
  INTERPRETER_PROMPT,
  readInterpreter,
  readToolOptions,
  type SendOptions,
  TOOLS_PROMPT,
} from './chat-options.js';
import { type ChatReply, ChatStream, type StepRunner, type ToolResult } from './chat-stream.js';
import { MessageTokens } from './message-tokens.js';
import type { SavedChat } from './saved-chat.js';
import { TextCallSegment, VerbatimSegment } from './segments.js';
import { type KvStore, openSession, saveSession } from './session.js';
import { dropOldestRounds } from './trim.js';

/** Options of `chat.save()`. */
export interface SaveOptions {
  /** Ends writing with ERR_ABORTED; nothing is left behind. Default: none. */
  signal?: AbortSignal | undefined;
}

/** Options of `model.restoreChat()`. Those of an answer hold for every answer that is not given others; `signal` is for reading the file. */
export interface RestoreOptions extends AnswerOptions, Pick<ChatOptions, 'interpreter'> {
  /**
   * What to do with a file of another model, or of keys and values of another type or device, or for which other requests leave
   * no room: `error` throws ERR_SESSION_MISMATCH, or ERR_OUT_OF_MEMORY; `history` goes on with the conversation's text, whose prompt is computed again. Default: `error`.
   */
  onMismatch?: 'error' | 'history' | undefined;
}

/** What a chat needs of a model. */
export interface ChatModel {
  readonly info: { readonly family: ModelFamily; readonly contextLength: number };
  readonly tokenizer: {
    /** How many pieces there are. Ids of special tokens follow. */
    readonly size: number;
    /** Whether a text is encoded with a space before it. */
    readonly addsDummyPrefix: boolean;
    /** The ids of a text on its own. */
    encode(text: string): number[];
    /** No texts of so many UTF-16 units in all have fewer tokens. */
    leastTokens(length: number): number;
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
    grammar?: NativeGrammar | Promise<NativeGrammar>,
  ): RawGeneration;
}

/** The roles of messages that an answer follows. */
const SPEAKERS = ['user', 'observation'] as const;

/** What the model is told of a tool that ran when the answer was left. */
const LEFT = { content: 'Error: the call was cancelled', ok: false } as const;

/** What decides how an answer is made: the options of the chat and of the answer, read. */
interface AnswerPlan {
  options: GenerateOptions;
  tools: ToolSet;
  choice: ToolChoice;
  prompting: 'native' | 'text';
  format: ParsedFormat | undefined;
  limits: ReturnType<typeof readToolOptions>;
}

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
export class Chat implements AsyncDisposable {
  /** The format of the prompts. */
  readonly family: ChatFamily;

  readonly #model: ChatModel;
  readonly #defaults: AnswerOptions;
  readonly #tools: ToolSet | undefined;
  readonly #interpreter: CodeExecutor | 'manual' | undefined;
  readonly #counts: MessageTokens;
  #session: Promise<ExecutorSession> | undefined;
  #history: ChatMessage[];
  #isAnswering = false;

  /** @internal Use `model.createChat()`. */
  constructor(model: ChatModel, options: Nullable<ChatOptions> = {}) {
    const set = readOptions<ChatOptions>(options, CHAT_OPTIONS, 'createChat()');
    const { system, history = [], family = 'auto', interpreter, tools, ...defaults } = set;
    this.#model = model;
    this.family = chatFamily(family, model.info.family);
    checkGenerateOptions(defaults);
    readToolOptions(defaults);
    this.#defaults = defaults;
    this.#interpreter = readInterpreter(interpreter);
    if (system !== undefined && typeof system !== 'string') {
      throw invalidArgument(`system must be a string, got ${show(system)}`);
    }
    this.#tools = tools === undefined ? undefined : ToolSet.read(tools);
    // A model without a tokenizer has chats, too: it only cannot answer.
    this.#counts = new MessageTokens({
      prompt: (messages) => chatPrompt(this.family, messages),
      count: (text) => model.tokenizer.encode(text).length,
      atLeast: (length) => model.tokenizer.leastTokens(length),
    });
    this.#history = validateMessages(history, 'history');
    this.#begin(system);
    // What is wrong with the options is said here, not with the first answer.
    this.#plan({});
  }

  /** Gives the history its system message. */
  #begin(system: string | undefined): void {
    const first = this.#history[0];
    const tools =
      this.#tools && this.#tools.size > 0 && this.#prompting({}) === 'native' ? this.#tools.shown : undefined;
    if (first?.role === 'system') {
      if (system !== undefined) {
        throw invalidArgument('history begins with a system message: system must be left out');
      }
      if (tools) first.tools = tools;
      return;
    }
    const fallback = tools ? TOOLS_PROMPT : isExecutor(this.#interpreter) ? INTERPRETER_PROMPT : undefined;
    const content = system ?? fallback;
    if (content === undefined) return;
    this.#history.unshift({ role: 'system', content, ...(tools && { tools }) });
  }

  /**
   * The conversation: plain JSON, the chat's own array. Edit it between answers, save it, or assign another one, which is
   * checked and copied. The history changes only when an answer is complete; an error leaves it as it was. What is added to the
   * array while an answer runs stays there, behind the answer.
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
   * The text of the system message, if there is one. Assign another text, or undefined to take the message away; tools that it
   * lists stay.
   *
   * @example
   * ```ts
   * chat.system = 'You are Emma, a friendly assistant.';
   * console.log((await chat.send('Who are you?')).text);
   * ```
   */
  get system(): string | undefined {
    const first = this.#history[0];
    return first?.role === 'system' ? first.content : undefined;
  }

  set system(system: string | undefined | null) {
    this.#refuseWhileAnswering();
    const first = this.#history[0]?.role === 'system' ? this.#history[0] : undefined;
    if (typeof system === 'string') {
      if (first) first.content = system;
      else this.#history.unshift({ role: 'system', content: system });
      return;
    }
    if (system !== undefined && system !== null) throw invalidArgument(`system must be a string, got ${show(system)}`);
    if (first?.tools) first.content = TOOLS_PROMPT;
    else if (first) this.#history.shift();
  }

  /**
   * Sends a message and gives the answer as it is being generated. The history gets the message and the answer once
   * the answer is complete, or, as far as it has come, when the loop is left early. An error, one from an aborted
   * `signal` included, is thrown and leaves the history as it was.
   *
   * Tools that have `execute()` are run when the model calls them, and the answer goes on with what they gave; what a tool
   * throws, a call that cannot be read and arguments that do not fit are told to the model, which can try again.
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
  stream<const F extends ResponseFormat | null | undefined = undefined>(
    input: string | ChatMessage,
    options: Nullable<SendOptions> & { responseFormat?: F } = {},
  ): ChatStream<ParsedAs<F>> {
    const set = readOptions<SendOptions>(options, [...ANSWER_OPTIONS, 'role'], 'an answer');
    const { role: asked, ...rest } = set;
    const role = choiceOption('role', asked, SPEAKERS, 'user');
    const message = validateMessage(typeof input === 'string' ? { role, content: input } : input, 'input');
    choiceOption('input.role', message.role, SPEAKERS, 'user');
    return this.#answer(this.#history.length, [message], rest) as ChatStream<ParsedAs<F>>;
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
  async send<const F extends ResponseFormat | null | undefined = undefined>(
    input: string | ChatMessage,
    options: Nullable<SendOptions> & { responseFormat?: F } = {},
  ): Promise<ChatReply<ParsedAs<F>>> {
    return await this.stream(input, options).result;
  }

  /**
   * Answers the last question again: the answer that follows it in the history, calls of tools included, is replaced once the
   * new one is complete. If the loop is left early the history stays as it was.
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
  regenerate(options: Nullable<AnswerOptions> = {}): ChatStream {
    const set = readOptions<AnswerOptions>(options, ANSWER_OPTIONS, 'an answer');
    this.#refuseWhileAnswering();
    // The history is the user's to edit.
    const messages = validateMessages(this.#history, 'history');
    const last = this.#lastQuestion(messages);
    if (last < 0) throw invalidArgument('the history has no message to answer again');
    return this.#answer(last + 1, [], set);
  }

  /** The index of the message that the last answer follows: an observation that the caller sent counts, one of a loop does not. */
  #lastQuestion(messages: readonly ChatMessage[]): number {
    if (this.#hasRunners()) return messages.findLastIndex(({ role }) => role === 'user');
    return messages.findLastIndex(({ role }) => role === 'user' || role === 'observation');
  }

  #hasRunners(): boolean {
    return isExecutor(this.#interpreter) || this.#tools?.isExecutable === true;
  }

  /**
   * Takes the last question back, with everything that followed it.
   *
   * @returns The messages that were taken, none where there was no question.
   * @throws {ChatGLMError} ERR_BUSY while the chat is answering.
   *
   * @example
   * ```ts
   * const [question] = chat.undo();
   * if (question) console.log((await chat.send(`${question.content} Answer briefly.`)).text);
   * ```
   */
  undo(): ChatMessage[] {
    this.#refuseWhileAnswering();
    const last = this.#history.findLastIndex(({ role }) => role === 'user');
    return last < 0 ? [] : this.#history.splice(last);
  }

  /**
   * Replaces a message, or its text. What follows stays as it is.
   *
   * @param index The message's place in the history; -1 is the last one.
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where there is no such message; ERR_BUSY while the chat is answering.
   *
   * @example
   * ```ts
   * chat.edit(-1, 'What is the capital of Japan?');
   * console.log((await chat.regenerate().result).text);
   * ```
   */
  edit(index: number, message: string | ChatMessage): void {
    this.#refuseWhileAnswering();
    const at = this.#indexOf(index);
    if (typeof message === 'string') (this.#history[at] as ChatMessage).content = message;
    else this.#history[at] = validateMessage(message);
  }

  /**
   * Puts a message into the history.
   *
   * @param index Where the message is to stand, from 0 to the history's length; negative numbers count from the end.
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT; ERR_BUSY while the chat is answering.
   *
   * @example
   * ```ts
   * chat.insert(0, { role: 'system', content: 'You are Emma, a friendly assistant.' });
   * ```
   */
  insert(index: number, message: ChatMessage): void {
    this.#refuseWhileAnswering();
    const { length } = this.#history;
    const at = integerOption('index', index, 0, { least: -length, most: length });
    this.#history.splice(at < 0 ? at + length : at, 0, validateMessage(message));
  }

  /**
   * Takes messages out of the history.
   *
   * @param index The place of the first one; -1 is the last one.
   * @param count How many. Default: 1.
   * @returns The messages that were taken.
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where there is no such message; ERR_BUSY while the chat is answering.
   *
   * @example
   * ```ts
   * chat.delete(-2, 2); // the last question and its answer
   * ```
   */
  delete(index: number, count = 1): ChatMessage[] {
    this.#refuseWhileAnswering();
    return this.#history.splice(this.#indexOf(index), integerOption('count', count, 1));
  }

  #indexOf(index: unknown): number {
    const { length } = this.#history;
    if (length === 0) throw invalidArgument('the history is empty');
    const at = integerOption('index', index, 0, { least: -length, most: length - 1 });
    return at < 0 ? at + length : at;
  }

  /**
   * The tokens of the prompt that the history makes: what an answer's context has no room for any more. What a message has
   * is remembered, so that a long conversation costs what is new.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where the family's format cannot say the history.
   *
   * @example
   * ```ts
   * console.log(`${chat.countTokens()} of ${model.info.contextLength} tokens`);
   * ```
   */
  countTokens(): number {
    return this.#history.length === 0 ? 0 : this.#counts.ofPrompt(this.#nextPrompt());
  }

  /**
   * The tokens that each message of the history takes in a prompt. ChatGLM2 encodes a conversation as one text, so that
   * its figures may be a token off.
   *
   * @example
   * ```ts
   * console.log(chat.messageTokens()); // one number for each message of chat.history
   * ```
   */
  messageTokens(): number[] {
    const messages = this.#said(validateMessages(this.#history, 'history'), this.#prompting({}));
    return messages.map((message) => this.#counts.ofMessage(message));
  }

  /**
   * Makes another chat with the same history and options: what is said in one does not change the other. Code that the model
   * writes runs in a session of its own.
   *
   * @param end The other chat gets the history up to this message; negative numbers count from the end. Default: all of it.
   *
   * @example
   * ```ts
   * const other = chat.fork();
   * const [here, there] = await Promise.all([chat.send('Hello'), other.send('你好')]);
   * console.log(here.text, there.text);
   * ```
   */
  fork(end?: number): Chat {
    const { length } = this.#history;
    const upTo = integerOption('end', end ?? undefined, length, { least: -length, most: length });
    return new Chat(this.#model, {
      ...this.#defaults,
      family: this.family,
      history: this.#history.slice(0, upTo),
      interpreter: this.#interpreter,
      // Tools are listed in the history already.
      // The set itself will do where tools are read.
      ...(this.#tools && { tools: this.#tools as unknown as ToolsInput }),
    });
  }

  /**
   * The chat as plain data, to go on later: `model.createChat(JSON.parse(JSON.stringify(chat)))`. Options that are plain data
   * are part of it; tools that are functions, an interpreter and a signal are to be given again.
   *
   * @example
   * ```ts
   * const saved = JSON.stringify(chat); // calls toJSON()
   * const restored = model.createChat(JSON.parse(saved));
   * console.log(restored.history.length);
   * ```
   */
  toJSON(): SavedChat {
    const { signal: _, onTrace: __, onStep: ___, contextOverflow, responseFormat, ...plain } = this.#defaults;
    return {
      family: this.family,
      history: validateMessages(this.#history, 'history'),
      ...plain,
      ...(typeof contextOverflow === 'string' && { contextOverflow }),
      ...(isPlainFormat(responseFormat) && { responseFormat }),
    };
  }

  /**
   * Ends the session of the code interpreter, if there is one. The chat can go on: its next code begins a new session.
   *
   * @example
   * ```ts
   * const chat = model.createChat({ interpreter: pythonExecutor() });
   * console.log((await chat.send('用Python计算 12 * 12')).text);
   * await chat.dispose();
   * ```
   */
  async dispose(): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    // A session that never began has nothing to end.
    await (await session?.catch(() => undefined))?.dispose();
  }

  /**
   * As {@link dispose}, at the end of the block of an `await using`.
   *
   * @example
   * ```ts
   * await using chat = model.createChat({ interpreter: pythonExecutor() });
   * console.log((await chat.send('用Python计算 12 * 12')).text);
   * ```
   */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
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
    const parts = chatPrompt(this.family, this.#nextPrompt());
    const tooLong = this.#model.overflowOf(promptLength(parts));
    if (tooLong) throw tooLong;
    return await this.#model.tokenizer.encodePrompted(parts, this.family, signal);
  }

  /** @internal Use `model.restoreChat()`. */
  static async restore(model: ChatModel, path: FilePath, options: Nullable<RestoreOptions>): Promise<Chat> {
    const file = toPath('path', path);
    const set = readOptions<RestoreOptions>(options, [...ANSWER_OPTIONS, 'interpreter', 'onMismatch'], 'restoreChat()');
    const { onMismatch, ...defaults } = set;
    const wanted = choiceOption('onMismatch', onMismatch, ['error', 'history'], 'error');
    const { interpreter: _, tools: __, ...generation } = defaults;
    checkGenerateOptions(generation);
    const { chat, mismatch } = await openSession(file, model.kv, { signal: defaults.signal });
    if (mismatch && wanted === 'error') {
      const { what, reason } = mismatch;
      const message = `${file} ${reason}; onMismatch: 'history' takes its text alone`;
      if (what === 'memory') throw new ChatGLMError('ERR_OUT_OF_MEMORY', message, { file });
      throw new ChatGLMError('ERR_SESSION_MISMATCH', message, { file, what });
    }
    // The signal was for reading the file.
    const { signal: ___, ...rest } = defaults;
    return new Chat(model, { ...(chat as SavedChat), ...rest });
  }

  #prompting(options: AnswerOptions): 'native' | 'text' {
    const asked = options.toolPrompting ?? this.#defaults.toolPrompting;
    const prompting = choiceOption('toolPrompting', asked, ['native', 'text'], 'native');
    return prompting;
  }

  /** Reads the options of an answer. */
  #plan(given: AnswerOptions): AnswerPlan {
    const { tools: ofAnswer, ...own } = given;
    const merged: AnswerOptions = { ...this.#defaults, ...own };
    const {
      toolChoice,
      toolPrompting: _,
      maxToolRounds: __,
      toolTimeoutMs: ___,
      contextOverflow: ____,
      onStep: _____,
      ...rest
    } = merged;
    checkGenerateOptions(rest);
    const { responseFormat, ...options } = rest;
    const prompting = this.#prompting(given);
    const tools = this.#toolsOf(ofAnswer);
    if (tools.size > 0 && prompting === 'native' && !chatFormat(this.family).hasTools) {
      throw invalidArgument(
        `tools: ${familyNamed(this.family).title} has none; toolPrompting: 'text' asks for calls in the prompt`,
      );
    }
    return {
      options,
      tools,
      choice: readToolChoice(toolChoice, tools),
      prompting,
      format: readResponseFormat(responseFormat),
      limits: readToolOptions(merged),
    };
  }

  /** The tools of an answer: those that the answer is given, or those of the chat's system message, which is the user's to edit. */
  #toolsOf(given: unknown): ToolSet {
    if (given !== undefined && given !== null) return ToolSet.read(given);
    const listed = this.#history[0]?.role === 'system' ? this.#history[0].tools : undefined;
    if (this.#prompting({}) === 'text') return this.#tools ?? ToolSet.NONE;
    return listed === undefined ? ToolSet.NONE : ToolSet.read(listed, 'history[0].tools').with(this.#tools);
  }

  /** The messages of the prompt: the history, with the tools of the answer. */
  #promptMessages(messages: readonly ChatMessage[], { tools, choice, prompting }: AnswerPlan): ChatMessage[] {
    const first = messages[0]?.role === 'system' ? messages[0] : undefined;
    const others = first ? messages.slice(1) : [...messages];
    const { tools: _, ...system } = first ?? { role: 'system' as const, content: '' };
    const isOffered = tools.size > 0 && choice !== 'none';
    if (!isOffered) {
      // The sentence that announces tools is of no use without them.
      const isBare = first === undefined || (first.tools !== undefined && first.content === TOOLS_PROMPT);
      return isBare ? others : [system, ...others];
    }
    const content = first ? first.content : TOOLS_PROMPT;
    if (prompting === 'native') return [{ ...system, content, tools: tools.shown }, ...others];
    const text = textToolPrompt(tools.shown);
    return [{ ...system, content: first && first.content !== '' ? `${first.content}\n\n${text}` : text }, ...others];
  }

  /**
   * The messages as the family can say them: where tools are told of in a text, and the family has no observations, the user
   * says what a tool gave. The history keeps the observation, which belongs to its question.
   */
  #said(messages: readonly ChatMessage[], prompting: 'native' | 'text'): ChatMessage[] {
    if (prompting === 'native' || chatFormat(this.family).hasTools) return [...messages];
    return messages.map((message) =>
      message.role === 'observation' ? { role: 'user', content: `The tool gave:\n${message.content}` } : message,
    );
  }

  /** The history as the next prompt begins: where a prompt must end with a question, with one that says nothing. */
  #nextPrompt(): ChatMessage[] {
    const messages = this.#said(validateMessages(this.#history, 'history'), this.#prompting({}));
    const needsQuestion = chatFormat(this.family).endsWithQuestion && messages.at(-1)?.role !== 'user';
    return needsQuestion ? [...messages, { role: 'user', content: '' }] : messages;
  }

  /** Leaves out of a prompt that is too long what the caller says. */
  #fitted(messages: ChatMessage[], plan: AnswerPlan): { messages: ChatMessage[]; dropped: number } {
    const { contextOverflow } = plan.limits;
    if (contextOverflow === 'error') return { messages, dropped: 0 };
    const { contextLength } = this.#model.info;
    const room = Math.min(plan.options.maxTokens ?? contextLength, Math.ceil(contextLength / 4));
    const limit = contextLength - Math.max(1, room);
    const count = (some: readonly ChatMessage[], most?: number) =>
      this.#counts.ofPrompt(this.#said(some, plan.prompting), most);
    if (contextOverflow === 'drop-oldest-rounds') {
      return dropOldestRounds(messages, (some) => count(some, limit), limit);
    }
    const tokens = count(messages);
    if (tokens <= limit) return { messages, dropped: 0 };
    const kept = contextOverflow(structuredClone(messages), {
      limit,
      tokens,
      count: (some) => count(validateMessages(some)),
    });
    const checked = validateMessages(kept, 'what contextOverflow returned');
    return { messages: checked, dropped: Math.max(0, messages.length - checked.length) };
  }

  /** Answers `added` behind the first `kept` messages of the history. */
  #answer(kept: number, added: ChatMessage[], given: AnswerOptions): ChatStream {
    this.#refuseWhileAnswering();
    const plan = this.#plan(given);
    // The history is the user's to edit, so it is checked each time.
    const messages = [...validateMessages(this.#history, 'history').slice(0, kept), ...added];
    const before = [...this.#history];
    let droppedMessages = 0;
    const format = chatFormat(this.family);
    const { tokenizer } = this.#model;
    const isOffered = plan.tools.size > 0 && plan.choice !== 'none';
    const expected = {
      tools: isOffered ? plan.tools.names : [],
      interpreter: this.#interpreter !== undefined,
      openSegment: this.#segmentOf(plan, isOffered),
    };
    const { onStep, toolTimeoutMs } = plan.limits;
    /** What was begun; undefined where it ended because the loop was left. */
    const unlessLeft = async <T>(
      left: AbortSignal,
      run: (signal: AbortSignal) => Promise<T>,
    ): Promise<T | undefined> => {
      const { signal } = plan.options;
      try {
        return await run(eitherSignal(signal, left));
      } catch (error) {
        if (left.aborted && !signal?.aborted) return undefined;
        throw error;
      }
    };
    const runner: StepRunner = {
      begin: (answered, round, onChunk) => {
        const { messages: fitting, dropped } = this.#fitted(
          this.#promptMessages([...messages, ...answered], plan),
          plan,
        );
        droppedMessages = Math.max(droppedMessages, dropped);
        const parts = chatPrompt(this.family, this.#said(fitting, plan.prompting));
        const { stop = [], stopTokens: more = [], ...options } = plan.options;
        // What is asked of the model holds until it has called a tool; else it could never answer.
        const choice = round > 0 && plan.choice !== 'none' ? 'auto' : plan.choice;
        const { addsDummyPrefix: dummySpace } = tokenizer;
        const { tools, prompting, format: response } = plan;
        const interpreter = this.#interpreter !== undefined;
        const grammar = answerGrammar({ format, dummySpace, tools, choice, prompting, interpreter, response });
        const prompt =
          this.#model.overflowOf(promptLength(parts)) ?? tokenizer.encodePrompted(parts, this.family, options.signal);
        const raw = this.#model.generateIds(
          prompt,
          { ...options, stopTokens: [...stopTokens(tokenizer.size, this.family), ...more] },
          grammar,
        );
        return new Answer({
          raw,
          family: this.family,
          partToken: partTokenOf(this.family, tokenizer.size),
          expected,
          stops: new StopSequences(stop),
          onChunk,
        });
      },
      handles: (answer, round) => round < plan.limits.maxToolRounds && this.#handles(answer, plan),
      runTool: async (call, round, left) => {
        onStep?.({ type: 'tool-call', text: '', tokens: [], call });
        const outcome = await unlessLeft(left, (signal) =>
          plan.tools.run(call, {
            signal,
            round,
            timeoutMs: toolTimeoutMs,
            callForm: plan.prompting === 'text' ? 'json' : 'python',
          }),
        );
        const result: ToolResult = { name: call.name, ...(outcome ?? LEFT) };
        onStep?.({ type: 'tool-result', text: '', tokens: [], result });
        return result;
      },
      runCode: async (code, left) => {
        onStep?.({ type: 'code', text: '', tokens: [], code });
        const session = await this.#openSession(this.#interpreter as CodeExecutor);
        const ran = await unlessLeft(left, (signal) => session.run(code, { signal }));
        const result = ran ?? { status: 'crashed' as const, text: LEFT.content, files: [], tookMs: 0 };
        onStep?.({ type: 'code-result', text: '', tokens: [], result });
        return result;
      },
      complete: async (reply, isLeft) => {
        const complete = await parsed({ ...reply, droppedMessages }, plan.format);
        // A new answer that was left early is no replacement for the old one.
        const isTorso = added.length === 0 && isLeft && before.length > kept;
        if (!isTorso && (reply.messages.length > 0 || reply.tokens.length > 0)) {
          this.#record(kept, before, [...added, ...structuredClone(reply.messages)]);
        }
        return complete;
      },
      onEnd: () => {
        this.#isAnswering = false;
      },
    };
    const stream = new ChatStream(runner);
    this.#isAnswering = true;
    return stream;
  }

  /** How an answer is read that does not have its family's own form. */
  #segmentOf({ format, tools, prompting }: AnswerPlan, isOffered: boolean): (() => Segment) | undefined {
    if (isOffered && prompting === 'text') return () => new TextCallSegment(tools.names);
    if (format === undefined || isOffered || this.#interpreter !== undefined) return undefined;
    const { answerPrefix } = chatFormat(this.family);
    // Decoding takes the first space away, as it is a dummy prefix; behind the prefix stands another one.
    return () => new VerbatimSegment(answerPrefix === undefined ? '' : `${answerPrefix.replace(/^ /, '')} `);
  }

  async #openSession(interpreter: CodeExecutor): Promise<ExecutorSession> {
    this.#session ??= interpreter.open();
    try {
      return await this.#session;
    } catch (error) {
      // What was missing may be there the next time.
      this.#session = undefined;
      throw error;
    }
  }

  /** Whether a tool or the interpreter of this chat acts on a call. */
  #handles({ toolCall, code }: AnswerResult, { tools }: AnswerPlan): boolean {
    if (code !== undefined) return isExecutor(this.#interpreter);
    if (toolCall === undefined) return false;
    // A tool that was never offered is the model's mistake, which the model can mend if anything is run here at all.
    return tools.names.has(toolCall.name) ? tools.get(toolCall.name)?.execute !== undefined : tools.isExecutable;
  }

  /**
   * Writes what was said into the history: behind the first `kept` messages, in place of those that were there behind them
   * when the answer began. Messages that came since then stay, behind the answer.
   */
  #record(kept: number, before: readonly ChatMessage[], said: readonly ChatMessage[]): void {
    const isWhole = before.every((message, index) => this.#history[index] === message);
    if (isWhole) this.#history.splice(kept, before.length - kept, ...said);
    else this.#history.push(...said); // somebody has rearranged the history meanwhile; nothing is lost
  }

  #refuseWhileAnswering(): void {
    if (this.#isAnswering)
      throw new ChatGLMError('ERR_BUSY', 'this chat is answering already; wait for its answer, or fork() it');
  }
}

function isPlainFormat(format: unknown): boolean {
  try {
    // A validator has functions, which JSON leaves out.
    return format !== undefined && JSON.stringify(format) === JSON.stringify(structuredClone(format));
  } catch {
    return false;
  }
}

function isExecutor(interpreter: CodeExecutor | 'manual' | undefined): interpreter is CodeExecutor {
  return interpreter !== undefined && interpreter !== 'manual';
}

function eitherSignal(signal: AbortSignal | undefined, other: AbortSignal): AbortSignal {
  return signal === undefined ? other : AbortSignal.any([signal, other]);
}

/** The reply, with the value that its text is. */
async function parsed(reply: ChatReply, format: ParsedFormat | undefined): Promise<ChatReply> {
  if (!format?.parse || reply.finishReason === 'tool_call') return reply;
  try {
    return { ...reply, parsed: await format.parse(reply.text) };
  } catch (error) {
    // An answer that was cut, by maxTokens or by leaving the loop, is no JSON.
    return error instanceof ChatGLMError ? { ...reply, parseError: error } : reply;
  }
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
