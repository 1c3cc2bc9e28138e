import type { ChatFamily } from '../families/index.js';
import type { ChatMessage } from '../families/messages.js';
import type { GenerationResult } from '../generation/options.js';
import type { StopSequences } from '../generation/stop-sequences.js';
import { type RawGeneration, TextStream } from '../generation/text-stream.js';
import { type ParsedReply, ReplyParser, type ToolCall } from './reply.js';

/** A complete answer. */
export interface ChatReply extends GenerationResult {
  /** The text for people: without calls of tools, and without the spaces and line breaks around it. */
  text: string;
  /** The messages that the history got for the answer, one for each of its parts; none with `maxTokens: 0`. */
  messages: ChatMessage[];
  /** The tool that the model wants to be called, when `finishReason` is `tool_call`. */
  toolCall?: ToolCall;
  /** Python for the code interpreter, when `finishReason` is `tool_call`. This package never runs it. */
  code?: string;
}

/** What {@link ChatStream} needs to know of the conversation. */
export interface ChatStreamSetup {
  raw: RawGeneration;
  stops: StopSequences;
  family: ChatFamily;
  /** The token that separates parts of an answer, in families that have one. */
  partToken: number | undefined;
  /** Names of the tools that the model was told about. */
  tools: Iterable<string>;
  /** Called once, when there is a complete answer, and before anybody else learns of it. */
  onReply: (reply: ChatReply) => void;
  /** Called once, when nothing runs any more, whatever the outcome. */
  onEnd: () => void;
}

/**
 * An answer on its way: iterate over it for its chunks, or await `result`, or both. Leaving a loop early (`break`) stops
 * it; what was generated until then is kept as the answer.
 *
 * @example
 * ```ts
 * let length = 0;
 * const answer = chat.stream('What should I do if I cannot sleep?');
 * for await (const { text } of answer) {
 *   length += text.length;
 *   if (length > 200) break; // stops the generation; what there is becomes part of the history
 * }
 * console.log((await answer.result).finishReason);
 * ```
 */
export class ChatStream extends TextStream<ChatReply> {
  readonly #setup: ChatStreamSetup;
  readonly #parser: ReplyParser;
  #parsed: ParsedReply | undefined;

  /** @internal Use `chat.stream()`. */
  constructor(setup: ChatStreamSetup) {
    super(setup.raw, setup.stops);
    this.#setup = setup;
    this.#parser = new ReplyParser(setup.family, { tools: setup.tools });
    this.start();
  }

  protected override show(text: string, token?: number): string {
    const visible = this.#parser.push(text);
    if (token !== this.#setup.partToken || token === undefined || this.isStopped) return visible;
    // No stop sequence spans two parts of an answer, and what looked like the beginning of one may yet contain another.
    const held = this.#parser.push(this.flushStops());
    return visible + held + (this.isStopped ? '' : this.#parser.newSegment());
  }

  protected override showRest(): string {
    this.#parsed = this.#parser.finish();
    return this.#parsed.text;
  }

  protected override toResult(result: GenerationResult): ChatReply {
    // Where no token was asked for, the prompt was computed ahead of time and nothing was said.
    if (result.tokens.length === 0 && result.finishReason === 'length') return { ...result, messages: [] };
    const { messages, toolCall, code } = this.#parsed as ParsedReply;
    const reply: ChatReply = { ...result, messages };
    // Only a call that the model itself brought to an end may be carried out.
    if (result.finishReason === 'stop' && (toolCall || code !== undefined)) {
      reply.finishReason = 'tool_call';
      if (toolCall) reply.toolCall = toolCall;
      if (code !== undefined) reply.code = code;
    }
    this.#setup.onReply(reply);
    return reply;
  }

  protected override onEnd(): void {
    this.#setup.onEnd();
  }
}
