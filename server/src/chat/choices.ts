import { randomBytes } from 'node:crypto';
import { availableParallelism } from 'node:os';
import type { GenerationResult } from 'node-chatglm';
import type { Caller } from '../access/caller.js';
import { errorBody } from '../http/error-handler.js';
import { type ApiError, badRequest, toApiError } from '../http/errors.js';
import type { EventStream } from '../http/event-stream.js';
import type { ModelLease } from '../models/pool.js';
import type { ServerSettings } from '../options.js';
import { inRequestNames } from './facade-errors.js';

/** The most choices of one request, of all of its prompts together. */
export const MOST_CHOICES = 128;

/**
 * Refuses more choices than the model would ever take: with 429 a client would try again for nothing.
 *
 * @throws {ApiError} 400.
 */
export function checkChoices(count: number, { id }: ModelLease, { models }: ServerSettings): void {
  const { load } = models.find((model) => model.id === id) ?? {};
  const most = (load?.maxSequences ?? DEFAULT_SEQUENCES) + (load?.maxQueue ?? DEFAULT_QUEUE);
  if (count <= most) return;
  throw badRequest(
    `Invalid 'n': this server takes ${most} choices at a time, and ${count} were asked for.`,
    'n',
    'integer_above_max_value',
  );
}

/** Defaults of `loadModel()`. */
const [DEFAULT_SEQUENCES, DEFAULT_QUEUE] = [256, 256];

/** What gives an answer piece by piece: a ChatStream or a Generation. */
export interface PieceSource<Piece, Result> {
  readonly result: Promise<Result>;
  next(): Promise<IteratorResult<Piece, unknown>>;
  return(): Promise<unknown>;
}

/** Writes one choice as server-sent events. */
export interface ChoiceWriter<Piece, Result> {
  /** Takes a piece of the answer: it is written with the next {@link flush}. */
  push(piece: Piece): void;
  /** The events for all pieces since the last time; `''` where there is nothing to tell. */
  flush(): string;
  /** The last events of the choice, what {@link push} took included. */
  end(result: Result): string;
}

/** A choice on its way. */
export interface Choice<Piece, Result> {
  source: PieceSource<Piece, Result>;
  writer: ChoiceWriter<Piece, Result>;
}

/**
 * Writing takes this part of the event loop's time at most: with many streams at once, tokens that would be an event each are
 * joined into fewer. One stream's tokens are sent as they come, since to write an event takes some 20 us. Where the model
 * computes on the same few cores, what is written slows the model down: on two of them 64 streams keep 84%, 89% and 94% of
 * the facade's speed with 1/12, 1/25 and 1/50. With cores to spare, tokens come more evenly.
 */
const MOST_SHARE = availableParallelism() > 4 ? 1 / 4 : 1 / 50;
/** What a token waits for others at most, in milliseconds: less than anyone sees. */
const MOST_WAIT_MS = 50;

/** Flushes that are due, of all streams. */
const due = new Set<() => void>();
/** When the next flushes may be made. */
let nextMs = 0;

function flushAll(): void {
  const beganMs = performance.now();
  const flushes = [...due];
  due.clear();
  for (const flush of flushes) flush();
  // Node hands what was written to the system once the functions that wrote it are done.
  process.nextTick(() => {
    const endedMs = performance.now();
    nextMs = endedMs + Math.min(MOST_WAIT_MS, (endedMs - beganMs) / MOST_SHARE);
  });
}

/**
 * Calls the function once what has come in this turn of the event loop has been taken, or a little later where writing takes
 * too much of the time. To ask again does nothing.
 */
function flushSoon(flush: () => void): void {
  if (due.size === 0) {
    const waitMs = nextMs - performance.now();
    // Timers wait for a millisecond at least.
    if (waitMs < 1) setImmediate(flushAll);
    else setTimeout(flushAll, waitMs);
  }
  due.add(flush);
}

/** What {@link streamChoices} needs to know of the request. */
export interface StreamSetup<Result> {
  gone: AbortSignal;
  /** The field that holds the prompt. */
  field: string;
  requestId: string;
  /** What is sent once all choices are complete. */
  lastEvents(results: Result[]): string;
  /** What is sent of a failure behind the first event. Default: the error in OpenAI's shape. */
  failure?: ((error: ApiError) => string) | undefined;
}

/**
 * Sends the choices as they come, mixed. Pieces that come within one turn of the event loop are one event, and those that
 * come while the client does not read are one, too. A failure before the first event is thrown; a later one is an event, and
 * the stream ends. When the client goes, all choices end.
 */
export async function streamChoices<Piece, Result>(
  events: EventStream,
  choices: readonly Choice<Piece, Result>[],
  { gone, field, requestId, lastEvents, failure = openAIFailure(requestId) }: StreamSetup<Result>,
): Promise<void> {
  const flush = () => {
    let text = '';
    for (const { writer } of choices) text += writer.flush();
    if (text !== '') events.write(text);
  };
  const pump = async ({ source, writer }: Choice<Piece, Result>): Promise<Result> => {
    for (;;) {
      const next = await source.next();
      if (next.done) break;
      writer.push(next.value);
      flushSoon(flush);
      if (!events.isWritable) await events.drained();
    }
    const result = await source.result;
    const rest = writer.end(result);
    if (rest !== '') events.write(rest);
    return result;
  };
  try {
    const results = await allOrNone(choices, pump, gone);
    events.write(lastEvents(results));
    events.end();
  } catch (thrown) {
    if (!events.hasBegun) {
      events.abandon();
      throw inRequestNames(thrown, field);
    }
    const error = toApiError(inRequestNames(thrown, field));
    events.write(failure(error));
    events.end();
    if (error.status >= 500) throw thrown;
  } finally {
    due.delete(flush);
  }
}

function openAIFailure(requestId: string): (error: ApiError) => string {
  return (error) => `data: ${JSON.stringify(errorBody(error, 'openai', requestId))}\n\n`;
}

/** What the choices gave, once all of them are complete. When the client goes, they end. */
export async function collectChoices<Result>(
  sources: readonly PieceSource<unknown, Result>[],
  { gone, field }: Pick<StreamSetup<Result>, 'gone' | 'field'>,
): Promise<Result[]> {
  try {
    const choices = sources.map((source) => ({ source }));
    return await allOrNone(choices, ({ source }) => source.result, gone);
  } catch (error) {
    throw inRequestNames(error, field);
  }
}

/** Runs all choices. With the first that fails, and when the client goes, the others end as well. */
async function allOrNone<Each extends { source: PieceSource<unknown, Result> }, Result>(
  choices: readonly Each[],
  run: (choice: Each) => Promise<Result>,
  gone: AbortSignal,
): Promise<Result[]> {
  const leave = () => {
    for (const { source } of choices) void source.return();
  };
  if (gone.aborted) leave();
  else gone.addEventListener('abort', leave, { once: true });
  const running = choices.map(run);
  try {
    return await Promise.all(running);
  } catch (error) {
    leave();
    await Promise.allSettled(running);
    throw error;
  } finally {
    gone.removeEventListener('abort', leave);
  }
}

/** Tells the caller's account what each choice took. Choices of one prompt share it: it counts with the first. */
export function account(caller: Caller, prompts: readonly (readonly Accountable[])[]): void {
  for (const choices of prompts) {
    for (const [index, { usage, finishReason, timings }] of choices.entries()) {
      const prompt = index === 0 ? usage.promptTokens : 0;
      const cached = index === 0 ? usage.cachedTokens : 0;
      caller.used({ prompt, cached, generated: usage.generatedTokens, finishReason, timings });
    }
  }
}

type Accountable = Pick<GenerationResult, 'usage' | 'finishReason' | 'timings'>;

/** A fresh id with OpenAI's prefix for its kind, such as `chatcmpl-…`. */
export function freshId(prefix: string): string {
  return prefix + randomBytes(18).toString('base64url').replaceAll(/[-_]/g, 'x');
}
