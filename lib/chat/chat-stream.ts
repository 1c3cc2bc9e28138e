import type { ChatGLMError } from '../common/errors.js';
import type { ChatMessage } from '../families/messages.js';
import type { GenerationChunk, GenerationResult, TokenLogprobs } from '../generation/options.js';
import { PieceStream } from '../generation/piece-stream.js';
import type { ExecutionResult } from '../interpreter/executor.js';
import type { Answer, AnswerResult } from './answer.js';
import type { ToolCall } from './reply.js';

/** What a tool that the model called has given. */
export interface ToolResult {
  /** The tool's name, as the model wrote it. */
  name: string;
  /** What the model is told. */
  content: string;
  /** Whether the tool did its work; else `content` tells the model what went wrong, and `error` tells you. */
  ok: boolean;
  /** What `execute()` returned. */
  value?: unknown;
  /** Why the tool did not do its work. Its `cause` is what the tool threw. */
  error?: ChatGLMError;
}

/** One thing that happened between the question and the answer. */
export type ChatStep =
  | { type: 'tool'; call: ToolCall; result: ToolResult }
  | { type: 'code'; code: string; result: ExecutionResult };

/**
 * A piece of an answer. `text` is what is to be shown, and empty for all but text: the texts, joined, are the reply's text.
 * `tool-call` and `code` come before a tool or the model's code runs, `tool-result` and `code-result` after that.
 */
export type ChatChunk =
  | (GenerationChunk & { type: 'text' })
  | (StepChunk & { type: 'tool-call'; call: ToolCall })
  | (StepChunk & { type: 'tool-result'; result: ToolResult })
  | (StepChunk & { type: 'code'; code: string })
  | (StepChunk & { type: 'code-result'; result: ExecutionResult });

/** What a piece has that is no text: nothing to show. */
interface StepChunk {
  text: '';
  tokens: [];
  logprobs?: undefined;
}

/** A complete answer. */
export interface ChatReply<Parsed = unknown> extends GenerationResult {
  /** The text for people: without calls of tools, and without the spaces and line breaks around it. */
  text: string;
  /**
   * The messages that the history got for the answer: one for each of its parts, and for what tools gave; none with
   * `maxTokens: 0`.
   */
  messages: ChatMessage[];
  /** The tool that the model wants to be called, when `finishReason` is `tool_call`: it has no `execute()` here, or `maxToolRounds` is used up. */
  toolCall?: ToolCall;
  /** Python for the code interpreter, when `finishReason` is `tool_call` and the chat has no interpreter. */
  code?: string;
  /** The tools and the code that ran on the way to the answer. */
  steps: ChatStep[];
  /** With a `responseFormat` of JSON: the answer's value, if the answer is complete. */
  parsed?: Parsed;
  /** Why there is no `parsed`: the validator of `responseFormat` refused the value. */
  parseError?: ChatGLMError;
  /** How many of the oldest messages of the history the prompt went without: see `contextOverflow`. */
  droppedMessages: number;
}

/** What a step of a conversation does about a call: it gives the observation, or nothing where the caller is to act. */
export interface StepRunner {
  /** Begins the next generation, behind the messages that the answer has so far. */
  begin(added: readonly ChatMessage[], round: number, onChunk: (chunk: GenerationChunk) => void): Answer;
  /** Whether somebody here acts on the call or code with which a generation ended. */
  handles(answer: AnswerResult, round: number): boolean;
  /** Runs the tool. Rejects only when the signal fires. */
  runTool(call: ToolCall, round: number, signal: AbortSignal): Promise<ToolResult>;
  runCode(code: string, signal: AbortSignal): Promise<ExecutionResult>;
  /**
   * Called once, with the complete answer, before anybody else learns of it; what it returns is the result.
   *
   * @param isLeft Whether the consumer had left before the answer came to its own end.
   */
  complete(reply: ChatReply, isLeft: boolean): ChatReply | Promise<ChatReply>;
  /** Called once, when nothing runs any more, whatever the outcome. */
  onEnd(): void;
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
export class ChatStream<Parsed = unknown> extends PieceStream<ChatChunk, ChatReply<Parsed>> {
  readonly #runner: StepRunner;
  readonly #stopping = new AbortController();
  #answer: Answer;
  #hasText = false;

  /** @internal Use `chat.stream()`. */
  constructor(runner: StepRunner) {
    super();
    this.#runner = runner;
    this.#answer = this.#begin([], 0);
    this.#run().then(
      (reply) => {
        runner.onEnd();
        this.end(reply as ChatReply<Parsed>);
      },
      (error) => {
        runner.onEnd();
        this.fail(error, error?.code === 'ERR_ABORTED');
      },
    );
  }

  protected override stop(): void {
    this.#stopping.abort();
    void this.#answer.return();
  }

  #begin(added: readonly ChatMessage[], round: number): Answer {
    let isFirst = true;
    const hadText = this.#hasText;
    return this.#runner.begin(added, round, ({ text, ...rest }) => {
      // The texts of two rounds are as far apart as those of two parts of one answer.
      const visible = isFirst && hadText && text !== '' ? `\n${text}` : text;
      if (text !== '') {
        isFirst = false;
        this.#hasText = true;
      }
      this.#texts.push(visible);
      this.push({ type: 'text', text: visible, ...rest });
    });
  }

  readonly #texts: string[] = [];

  async #run(): Promise<ChatReply> {
    const { signal } = this.#stopping;
    const messages: ChatMessage[] = [];
    const steps: ChatStep[] = [];
    const answers: AnswerResult[] = [];
    for (let round = 0; ; round++) {
      const answer = await this.#answer.result;
      answers.push(answer);
      messages.push(...answer.messages);
      if (!this.#runner.handles(answer, round) || signal.aborted) break;
      const { toolCall: call, code } = answer;
      let content: string;
      if (call) {
        this.push({ type: 'tool-call', text: '', tokens: [], call });
        const result = await this.#runner.runTool(call, round, signal);
        steps.push({ type: 'tool', call, result });
        this.push({ type: 'tool-result', text: '', tokens: [], result });
        content = result.content;
      } else {
        this.push({ type: 'code', text: '', tokens: [], code: code as string });
        const result = await this.#runner.runCode(code as string, signal);
        steps.push({ type: 'code', code: code as string, result });
        this.push({ type: 'code-result', text: '', tokens: [], result });
        content = result.text;
      }
      messages.push({ role: 'observation', content });
      if (signal.aborted) {
        // Left while the tool ran: what the tool gave is kept, and nothing more is said.
        const { toolCall: _, code: __, ...last } = answers.pop() as AnswerResult;
        answers.push({ ...last, finishReason: 'cancelled' });
        break;
      }
      this.#answer = this.#begin(messages, round + 1);
    }
    const reply: ChatReply = { ...joined(answers), text: this.#texts.join(''), messages, steps, droppedMessages: 0 };
    return await this.#runner.complete(reply, signal.aborted && reply.finishReason !== 'stop');
  }
}

/** The generations of one answer as one. */
function joined(answers: readonly AnswerResult[]): AnswerResult {
  const last = answers.at(-1) as AnswerResult;
  if (answers.length === 1) return last;
  const sum = (of: (answer: AnswerResult) => number) => answers.reduce((total, answer) => total + of(answer), 0);
  const first = answers[0] as AnswerResult;
  const [prefillMs, decodeMs] = [sum(({ timings }) => timings.prefillMs), sum(({ timings }) => timings.decodeMs)];
  const computed = sum(({ usage }) => usage.promptTokens - usage.cachedTokens);
  const decoded = sum(({ usage }) => Math.max(0, usage.generatedTokens - 1));
  const result: AnswerResult = {
    ...last,
    tokens: answers.flatMap(({ tokens }) => tokens),
    usage: {
      promptTokens: sum(({ usage }) => usage.promptTokens),
      cachedTokens: sum(({ usage }) => usage.cachedTokens),
      generatedTokens: sum(({ usage }) => usage.generatedTokens),
      speculatedTokens: sum(({ usage }) => usage.speculatedTokens),
    },
    timings: {
      queueMs: sum(({ timings }) => timings.queueMs),
      firstTokenMs: first.timings.firstTokenMs,
      prefillMs,
      decodeMs,
      prefillTokensPerSecond: prefillMs > 0 ? (computed * 1000) / prefillMs : 0,
      decodeTokensPerSecond: decodeMs > 0 ? (decoded * 1000) / decodeMs : 0,
    },
  };
  const logprobs = answers.flatMap((answer): TokenLogprobs[] => answer.logprobs ?? []);
  if (logprobs.length > 0) result.logprobs = logprobs;
  return result;
}
