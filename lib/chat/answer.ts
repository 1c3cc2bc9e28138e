import type { ChatFamily } from '../families/index.js';
import type { GenerationChunk, GenerationResult } from '../generation/options.js';
import type { StopSequences } from '../generation/stop-sequences.js';
import { type RawGeneration, TextStream } from '../generation/text-stream.js';
import { type ParsedReply, ReplyParser, type ReplyParserOptions } from './reply.js';

/** What {@link Answer} needs to know of the conversation. */
export interface AnswerSetup {
  raw: RawGeneration;
  stops: StopSequences;
  family: ChatFamily;
  /** The token that separates parts of an answer, in families that have one. */
  partToken: number | undefined;
  /** What the answer may have beside text. */
  expected: ReplyParserOptions;
  /** Takes each piece of the answer. */
  onChunk: (chunk: GenerationChunk) => void;
}

/** What the model wrote in one go: text, and at its end perhaps a call. */
export interface AnswerResult extends GenerationResult, Pick<ParsedReply, 'messages' | 'toolCall' | 'code'> {}

/** One generation of a conversation. Its pieces go to `onChunk`; nobody iterates over them. */
export class Answer extends TextStream<AnswerResult> {
  readonly #setup: AnswerSetup;
  readonly #parser: ReplyParser;
  #parsed: ParsedReply | undefined;

  constructor(setup: AnswerSetup) {
    super(setup.raw, setup.stops);
    this.#setup = setup;
    this.#parser = new ReplyParser(setup.family, setup.expected);
    this.start();
  }

  protected override push(chunk: GenerationChunk): void {
    if (!this.isOver && !this.isLeft) this.#setup.onChunk(chunk);
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

  protected override toResult(result: GenerationResult): AnswerResult {
    // Where no token was asked for, the prompt was computed ahead of time and nothing was said.
    if (result.tokens.length === 0 && result.finishReason === 'length') return { ...result, messages: [] };
    const { messages, toolCall, code } = this.#parsed as ParsedReply;
    const answer: AnswerResult = { ...result, messages };
    // Only a call that the model itself brought to an end may be carried out.
    if (result.finishReason === 'stop' && (toolCall || code !== undefined)) {
      answer.finishReason = 'tool_call';
      if (toolCall) answer.toolCall = toolCall;
      if (code !== undefined) answer.code = code;
    }
    return answer;
  }
}
