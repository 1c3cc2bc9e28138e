import { invalidArgument } from '../common/errors.js';
import { functionOption, integerOption, numberOption, show } from '../common/options.js';
import type { ChatFamily } from '../families/index.js';
import type { ChatMessage } from '../families/messages.js';
import { GENERATE_OPTIONS, type GenerateOptions } from '../generation/options.js';
import type { CodeExecutor } from '../interpreter/executor.js';
import type { ToolsInput } from '../tools/tool-set.js';
import type { ToolChoice } from './answer-grammar.js';
import type { ChatChunk } from './chat-stream.js';

/** What the model is told about tools when `system` says nothing: the sentence that ChatGLM3 was trained with. */
export const TOOLS_PROMPT =
  'Answer the following questions as best as you can. You have access to the following tools:';

/** What the model is told about its interpreter when `system` says nothing: the beginning of the text of ChatGLM3's demo. */
export const INTERPRETER_PROMPT =
  '你是一位智能AI助手，你叫ChatGLM，你连接着一台电脑，但请注意不能联网。在使用Python解决任务时，你可以运行代码并得到结果，如果运行结果有错误，你需要尽可能对代码进行改进。';

/** What `contextOverflow` is told of a conversation whose prompt is too long. */
export interface Overflow {
  /** The most tokens that the prompt may have, so that there is room for an answer. */
  limit: number;
  /** The tokens that the prompt has. */
  tokens: number;
  /** Counts the tokens of the prompt that other messages make. */
  count(messages: readonly ChatMessage[]): number;
}

/** What to do where the conversation leaves no room for an answer. */
export type ContextOverflow =
  | 'error'
  | 'drop-oldest-rounds'
  | ((messages: readonly ChatMessage[], overflow: Overflow) => readonly ChatMessage[]);

/** Options of an answer that a chat can have for all of its answers. */
export interface AnswerOptions extends GenerateOptions {
  /**
   * Tools that the model may call: of `defineTool()`, in OpenAI's shape, in THUDM's flat one or as THUDM's registry object,
   * or of `toolsFromMcp()`; no two have the same name. Those that have `execute()` are run, the model is told what they gave,
   * and the answer goes on. Default: none.
   */
  tools?: ToolsInput | undefined;
  /**
   * `auto`: the model decides; `none`: it is told of no tools; `required`: it calls one; `{ name }`: it calls this one. What is
   * asked of the model holds until the first call. Default: `auto`.
   */
  toolChoice?: ToolChoice | undefined;
  /** So many times in one answer are tools, or the model's code, run; the next call is the caller's to act on. Default: 8. */
  maxToolRounds?: number | undefined;
  /** The time that a tool has which says nothing itself, in milliseconds. Default: 30,000. */
  toolTimeoutMs?: number | undefined;
  /**
   * How the model is told of tools: in its family's own format, which ChatGLM3 has, or in a text that asks for calls as
   * JSON. Default: `native`.
   */
  toolPrompting?: 'native' | 'text' | undefined;
  /**
   * What to do where prompt and history leave no room for an answer: `error` throws ERR_CONTEXT_OVERFLOW;
   * `drop-oldest-rounds` leaves the oldest questions out of the prompt, with all that followed them, and keeps the system
   * message and its tools; a function gives the messages to use. The chat's history stays whole. A quarter of the context is
   * kept for the answer, or `maxTokens` if that is less. Default: `error`.
   */
  contextOverflow?: ContextOverflow | undefined;
  /** Hears of each call and each result, as the stream's parts that are no text tell them. Default: none. */
  onStep?: ((step: Exclude<ChatChunk, { type: 'text' }>) => void) | undefined;
}

/** Options of `model.createChat()`. Those of an answer hold for every answer that is not given others. */
export interface ChatOptions extends AnswerOptions {
  /**
   * The system message. Default: none, or {@link TOOLS_PROMPT} where there are tools, or {@link INTERPRETER_PROMPT} where there
   * is an interpreter that runs code.
   */
  system?: string | undefined;
  /**
   * Runs the code that the model writes for its code interpreter (ChatGLM3). A session begins with the first code of the
   * chat; `chat.dispose()` ends it. With `manual` the code is given to you as `reply.code`, and what it printed is sent with
   * the role `observation`; the model learns of its interpreter from a system message such as {@link INTERPRETER_PROMPT}.
   * Default: none; then what looks like code for it is text.
   */
  interpreter?: CodeExecutor | 'manual' | undefined;
  /**
   * The conversation so far: messages, or THUDM's pairs `[query, response]`, which are copied. A history that begins with a
   * system message leaves no room for `system`; `tools` replace those that it lists. Default: empty.
   */
  history?: readonly (ChatMessage | readonly [query: string, response: string])[] | undefined;
  /** The family whose prompt format is used. Default: `auto`, the model's own family. CodeGeeX2 has no format. */
  family?: 'auto' | ChatFamily | undefined;
}

/** Options of one answer. */
export interface SendOptions extends AnswerOptions {
  /** The role of a message that is given as text; `observation` is what a called tool has given. Default: `user`. */
  role?: 'user' | 'observation' | undefined;
}

export const ANSWER_OPTIONS = [
  ...GENERATE_OPTIONS,
  'tools',
  'toolChoice',
  'maxToolRounds',
  'toolTimeoutMs',
  'toolPrompting',
  'contextOverflow',
  'onStep',
] as const satisfies readonly (keyof AnswerOptions)[];

export const CHAT_OPTIONS = [
  ...ANSWER_OPTIONS,
  'system',
  'interpreter',
  'history',
  'family',
] as const satisfies readonly (keyof ChatOptions)[];

/** The options of answers that are numbers and the like, with their defaults. */
export function readToolOptions(options: AnswerOptions): {
  maxToolRounds: number;
  toolTimeoutMs: number;
  contextOverflow: ContextOverflow;
  onStep: AnswerOptions['onStep'];
} {
  const { contextOverflow = 'error' } = options;
  if (
    typeof contextOverflow !== 'function' &&
    contextOverflow !== 'error' &&
    contextOverflow !== 'drop-oldest-rounds'
  ) {
    throw invalidArgument(
      `contextOverflow must be error, drop-oldest-rounds or a function, got ${show(contextOverflow)}`,
    );
  }
  return {
    maxToolRounds: integerOption('maxToolRounds', options.maxToolRounds, 8, { most: 1000 }),
    toolTimeoutMs: numberOption('toolTimeoutMs', options.toolTimeoutMs, 30_000, { least: 1, most: 2 ** 31 - 1 }),
    contextOverflow,
    onStep: functionOption('onStep', options.onStep),
  };
}

/** Refuses what is no executor. */
export function readInterpreter(value: unknown): CodeExecutor | 'manual' | undefined {
  if (value === undefined || value === 'manual') return value;
  const { open, language } = (value ?? {}) as Partial<CodeExecutor>;
  if (typeof open === 'function' && typeof language === 'string') return value as CodeExecutor;
  throw invalidArgument(`interpreter must be an executor, such as pythonExecutor(), or 'manual', got ${show(value)}`);
}
