import type { GenerationResult, TokenLogprobs } from './generation.js';
import type { ChatMessage } from './messages.js';
import type { ChatFamily } from './prompt.js';
import { ReplyParser, type ToolCall } from './reply.js';
import type { StopSequences } from './stop-sequences.js';

/** A piece of an answer. All texts of a stream, joined, are the reply's text. */
export interface ChatDelta {
  text: string;
  /** Ids generated since the last delta: those of withheld text and special tokens too. */
  tokens: number[];
  /** One entry a token, where `logprobs` was asked for. */
  logprobs?: TokenLogprobs[];
}

/** A complete answer. */
export interface ChatReply extends GenerationResult {
  /** The text for people: without calls of tools, and without the spaces and line breaks around it. */
  text: string;
  /** What was added to the history: one message for each part of the answer. */
  messages: ChatMessage[];
  /** The tool that the model wants to be called, when `finishReason` is `tool_call`. */
  toolCall?: ToolCall;
  /** Python for the code interpreter, when `finishReason` is `tool_call`. This package never runs it. */
  code?: string;
}

/** One generated token, as the model gives it. Special tokens have no text. */
export interface RawToken {
  token: number;
  text: string;
  logprobs?: TokenLogprobs;
}

/** How a raw generation ended: its `finishReason` is `stop` or `length`. */
export type RawResult = Pick<GenerationResult, 'finishReason' | 'usage' | 'timings' | 'seed'>;

/** Tokens as they are generated. After `return()` the generation stops, and `result` tells what it took until then. */
export interface RawGeneration extends AsyncIterableIterator<RawToken, unknown, undefined> {
  readonly result: Promise<RawResult>;
}

/** What {@link ChatStream} needs to know of the conversation. */
export interface ChatStreamSetup {
  raw: RawGeneration;
  family: ChatFamily;
  /** The token that separates parts of an answer. ChatGLM2 has none. */
  assistantToken: number | undefined;
  /** Names of the tools that the model was told about. */
  tools: Iterable<string>;
  stops: StopSequences;
  /** Called once, when the answer is complete, and before anybody else learns of it. */
  onReply: (reply: ChatReply) => void;
  /** Called once, when nothing runs any more, whatever the outcome. */
  onEnd: () => void;
}

/**
 * An answer on its way: iterate over it for its deltas, or await {@link result}, or both. Generation begins at once and
 * does not wait for the consumer. Leaving a loop early (`break`, `return()`) stops it; what was generated until then is
 * kept as the answer.
 */
export class ChatStream implements AsyncIterableIterator<ChatDelta, ChatReply | undefined, undefined> {
  /** The whole answer, once there is one. Rejects with what went wrong otherwise. */
  readonly result: Promise<ChatReply>;

  readonly #raw: RawGeneration;
  readonly #deltas: ChatDelta[] = [];
  #isLeft = false;
  #isOver = false;
  #wake: (() => void)[] = [];

  /** @internal */
  constructor(setup: ChatStreamSetup) {
    this.#raw = setup.raw;
    this.result = this.#run(setup).finally(() => {
      this.#isOver = true;
      setup.onEnd();
      this.#wakeAll();
    });
    // Whoever only iterates gets the error from next(): it must not count as unhandled here as well.
    this.result.catch(() => {});
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<ChatDelta, ChatReply | undefined>> {
    for (;;) {
      if (this.#isLeft) return { done: true, value: undefined };
      const delta = this.#deltas.shift();
      if (delta) return { done: false, value: delta };
      if (this.#isOver) return { done: true, value: await this.result };
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
  }

  /** Stops the generation. Resolves when the history is up to date. */
  async return(): Promise<IteratorResult<ChatDelta, ChatReply | undefined>> {
    if (!this.#isOver) {
      this.#isLeft = true;
      this.#wakeAll();
      await this.#raw.return?.();
    }
    const reply = await this.result.catch(() => undefined);
    this.#isLeft = true;
    return { done: true, value: reply };
  }

  async #run({ raw, family, assistantToken, tools, stops, onReply }: ChatStreamSetup): Promise<ChatReply> {
    const parser = new ReplyParser(family, tools);
    const tokens: number[] = [];
    const logprobs: TokenLogprobs[] = [];
    let text = '';
    let given = 0;
    const give = (visible: string, isEnd = false) => {
      text += visible;
      if (visible === '' && !(isEnd && given < tokens.length)) return;
      const delta: ChatDelta = { text: visible, tokens: tokens.slice(given) };
      if (logprobs.length > 0) delta.logprobs = logprobs.slice(given);
      given = tokens.length;
      this.#deltas.push(delta);
      this.#wakeAll();
    };

    for (;;) {
      const next = await raw.next();
      if (next.done) break;
      const { value } = next;
      tokens.push(value.token);
      if (value.logprobs) logprobs.push(value.logprobs);
      let visible = parser.push(stops.push(value.text));
      if (value.token === assistantToken && stops.matched === undefined) {
        visible += parser.push(stops.flush());
        if (stops.matched === undefined) visible += parser.newSegment();
      }
      give(visible);
      if (stops.matched !== undefined || this.#isLeft) {
        await raw.return?.();
        break;
      }
    }

    const last = parser.push(stops.flush());
    const parsed = parser.finish();
    give(last + parsed.text, true);
    const { finishReason, usage, timings, seed } = await raw.result;
    const reply: ChatReply = { text, tokens, messages: parsed.messages, finishReason, usage, timings, seed };
    if (logprobs.length > 0) reply.logprobs = logprobs;
    if (stops.matched !== undefined) {
      reply.finishReason = 'stop_sequence';
    } else if (finishReason === 'stop' && !this.#isLeft) {
      // Only a call that the model itself brought to an end may be carried out.
      if (parsed.toolCall) reply.toolCall = parsed.toolCall;
      if (parsed.code !== undefined) reply.code = parsed.code;
      if (parsed.toolCall || parsed.code !== undefined) reply.finishReason = 'tool_call';
    }
    onReply(reply);
    return reply;
  }

  #wakeAll(): void {
    const waiting = this.#wake;
    this.#wake = [];
    for (const resolve of waiting) resolve();
  }
}
