import type { ChatFormat } from '../families/family.js';
import { type ChatFamily, chatFormat } from '../families/index.js';
import type { ChatMessage } from '../families/messages.js';
import type { ExpectedCalls, Outcome, Segment } from '../families/reply.js';

/** A tool that the model wants to be called. Send what the tool gives back with the role `observation`. */
export interface ToolCall {
  /** One of the names that the model was told about, as it was declared, or what else it wrote in a name's place. */
  name: string;
  /**
   * The arguments of `tool_call(city='北京', days=1 + 2)` or of `{"city": "北京"}`: Python's literals or JSON, in a fence or
   * not, with comments around them. Of several calls in one answer's part these are the first one's. Nothing is evaluated:
   * absent when what the model wrote is anything else, such as a variable among the values; see `raw`.
   */
  arguments?: Record<string, unknown>;
  /** What the model wrote. */
  raw: string;
}

/** What an answer may have beside text. */
export interface ReplyParserOptions {
  /** Names of the tools that the model was told about. Default: none. */
  tools?: Iterable<string>;
  /** Whether a part that begins with the line `interpreter` is code. Default: true. */
  interpreter?: boolean;
  /** Reads a part in another way than the family does. Default: as the family does. */
  openSegment?: (() => Segment) | undefined;
}

/** What an answer turned out to be. */
export interface ParsedReply {
  /** The last of the visible text, which was held back until now. */
  text: string;
  /** The answer as it belongs in the history: one message for each part. */
  messages: ChatMessage[];
  /** The answer ends with a call of a tool. */
  toolCall?: ToolCall;
  /** The answer ends with Python for the code interpreter: the code, without its fence. */
  code?: string;
}

/**
 * Tells the visible text of an answer from calls of tools while the answer is being generated.
 *
 * An answer has one or more parts, which the family's `partToken` separates. What a part is, the family's segment tells;
 * whatever is no call that the model was told about, or may believe that there is, is shown: no text is ever lost. Visible text comes as early as it is certain,
 * with a line break between the texts of two parts. Pieces must be whole characters.
 */
export class ReplyParser {
  readonly #format: ChatFormat;
  readonly #openSegment: () => Segment;
  readonly #outcomes: Outcome[] = [];
  #segment: Segment;
  #hasText = false;
  #segmentHasText = false;

  /** @param options Without tools and interpreter, an answer is text whatever it looks like. */
  constructor(family: ChatFamily, options: ReplyParserOptions = {}) {
    this.#format = chatFormat(family);
    const expected: ExpectedCalls = { tools: new Set(options.tools), interpreter: options.interpreter ?? true };
    this.#openSegment = options.openSegment ?? (() => this.#format.openSegment(expected));
    this.#segment = this.#openSegment();
  }

  /** The next piece of the answer. Returns the visible text that has become certain. */
  push(text: string): string {
    return this.#visible(this.#segment.push(text));
  }

  /** The token that separates parts came. Returns visible text that was held back. */
  newSegment(): string {
    const text = this.#visible(this.#segment.end());
    this.#outcomes.push(this.#segment.outcome());
    this.#segment = this.#openSegment();
    this.#segmentHasText = false;
    return text;
  }

  /** The answer has ended. */
  finish(): ParsedReply {
    const text = this.#visible(this.#segment.end());
    const outcomes = [...this.#outcomes, this.#segment.outcome()];
    const filled = outcomes.filter(({ kind, content }) => kind !== 'text' || content !== '');
    const kept = filled.length > 0 ? filled : outcomes.slice(-1);
    const parsed: ParsedReply = { text, messages: kept.map((outcome) => this.#format.toMessage(outcome)) };
    const last = filled.at(-1);
    if (last?.kind === 'code') parsed.code = last.code;
    if (last?.kind === 'call') {
      parsed.toolCall = { name: last.name, raw: last.content };
      if (last.arguments) parsed.toolCall.arguments = last.arguments;
    }
    return parsed;
  }

  #visible(text: string): string {
    if (text === '') return '';
    const separated = this.#hasText && !this.#segmentHasText ? `\n${text}` : text;
    this.#segmentHasText = true;
    this.#hasText = true;
    return separated;
  }
}
