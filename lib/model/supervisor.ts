import type {
  NativeError,
  NativeEvent,
  NativeGrammar,
  NativeModel,
  NativeModelStats,
  NativeRequest,
} from '../addon/native.js';
import { fromNative } from '../addon/native.js';

/** How often a model that failed is loaded again. */
export interface RestartLimit {
  /** So many failures within `withinMs` are followed by another load. */
  most: number;
  withinMs: number;
}

/** Begins to load a model, whose events go to `onEvents`. */
export type StartModel = (onEvents: (events: NativeEvent[]) => void) => NativeModel;

const NO_STATS: NativeModelStats = {
  activeSequences: 0,
  queuedRequests: 0,
  cachedTokens: 0,
  usedPages: 0,
  totalPages: 0,
  steps: 0,
  prefillTokens: 0,
  generatedTokens: 0,
  draftedTokens: 0,
  acceptedTokens: 0,
  preemptions: 0,
};

const CANCELLED = {
  reason: 'cancelled',
  promptTokens: 0,
  cachedTokens: 0,
  generatedTokens: 0,
  draftedTokens: 0,
  acceptedTokens: 0,
  preemptions: 0,
  queueMs: 0,
  firstTokenMs: 0,
  prefillMs: 0,
  decodeMs: 0,
} as const;

const DISPOSED: NativeError = { code: 'ERR_DISPOSED', message: 'the model was disposed', details: {} };

/** An error as native code throws it, of which fromNative() makes a ChatGLMError. */
function thrown({ code, message, details }: NativeError): Error {
  return Object.assign(new Error(message), { code, details });
}

/**
 * A native model that is loaded again when it fails. Its numbers of requests, calls and pins stay unique over all loads. Requests
 * that run when it fails end with the cause; those that come before it is loaded again wait.
 */
export class SupervisedModel implements NativeModel {
  readonly #start: StartModel;
  readonly #limit: RestartLimit & { mostWaiting: number };
  readonly #tell: (events: NativeEvent[]) => void;
  #inner: NativeModel | undefined;
  /** Which load this is; numbers of earlier ones mean nothing any more. */
  #load = 0;
  #isReady = false;
  #wasReady = false;
  #isDisposing = false;
  /** What ended the last load, until the next one begins. */
  #failure: NativeError | undefined;
  /** The failure after which nothing is loaded any more. */
  #cause: NativeError | undefined;
  readonly #failures: number[] = [];
  #next = 1;
  /** Own numbers by the inner model's, and the other way round. */
  readonly #outer = new Map<number, number>();
  readonly #innerOf = new Map<number, { load: number; number: number }>();
  /** Requests whose numbers stay those of their pins after the end. */
  readonly #pinning = new Set<number>();
  /** Requests that wait for a load, by their own numbers. */
  readonly #waiting = new Map<number, NativeRequest>();

  /** @param mostWaiting Requests that wait for a load; one more is refused with ERR_QUEUE_FULL. */
  constructor(
    start: StartModel,
    limit: RestartLimit & { mostWaiting: number },
    onEvents: (events: NativeEvent[]) => void,
  ) {
    this.#start = start;
    this.#limit = limit;
    this.#tell = onEvents;
    this.#begin();
  }

  #begin(): void {
    const load = ++this.#load;
    this.#failure = undefined;
    this.#outer.clear();
    this.#inner = this.#start((events) => {
      if (load === this.#load) this.#handle(events);
    });
  }

  #handle(events: NativeEvent[]): void {
    const told: NativeEvent[] = [];
    for (const event of events) {
      switch (event.type) {
        case 'progress':
        case 'warning':
          if (!this.#wasReady) told.push(event);
          break;
        case 'ready':
          this.#isReady = true;
          if (!this.#wasReady) told.push(event);
          this.#wasReady = true;
          for (const [number, request] of this.#waiting) this.#pass(number, request, told);
          this.#waiting.clear();
          break;
        case 'failed':
          this.#isReady = false;
          this.#failure = event.error;
          // A first load that fails is the caller's to know; there is nothing to restart.
          if (!this.#wasReady) this.#cause = event.error;
          told.push(event);
          break;
        case 'disposed':
          this.#inner = undefined;
          this.#ended(told);
          break;
        default: {
          const number = this.#outer.get(event.request);
          if (number === undefined) break;
          told.push({ ...event, request: number });
          if (
            event.type === 'error' ||
            event.type === 'pages' ||
            (event.type === 'finish' && !this.#pinning.has(number))
          ) {
            this.#forget(event.request, number);
          }
        }
      }
    }
    if (told.length > 0) this.#tell(told);
  }

  /** The inner model's memory is free. */
  #ended(told: NativeEvent[]): void {
    if (this.#isDisposing || this.#cause !== undefined || this.#failure === undefined) {
      this.#giveUp(told);
      told.push({ type: 'disposed' });
      return;
    }
    const now = performance.now();
    this.#failures.push(now);
    while (now - (this.#failures[0] as number) > this.#limit.withinMs) this.#failures.shift();
    if (this.#failures.length <= this.#limit.most) {
      try {
        this.#begin();
        return;
      } catch (error) {
        // Not even a beginning, such as where the system gives no thread.
        const { code, message, details } = fromNative(error);
        this.#failure = { code, message, details };
      }
    }
    this.#cause = this.#failure;
    this.#giveUp(told);
    told.push({ type: 'disposed' });
  }

  #giveUp(told: NativeEvent[]): void {
    const error = this.#cause ?? DISPOSED;
    for (const request of this.#waiting.keys()) told.push({ type: 'error', request, error });
    this.#waiting.clear();
  }

  #forget(inner: number, outer: number): void {
    this.#pinning.delete(outer);
    this.#outer.delete(inner);
    this.#innerOf.delete(outer);
  }

  #enter(outer: number, inner: number): void {
    this.#outer.set(inner, outer);
    this.#innerOf.set(outer, { load: this.#load, number: inner });
  }

  #pass(number: number, request: NativeRequest, told: NativeEvent[]): void {
    try {
      this.#enter(number, (this.#inner as NativeModel).submit(request));
      if (request.pin) this.#pinning.add(number);
    } catch (error) {
      const { code, message, details } = error as NativeError;
      told.push({ type: 'error', request: number, error: { code, message, details } });
    }
  }

  /** The inner number of a pin or request of the load that there is; undefined for one of an earlier load. */
  #current(number: number): number | undefined {
    const inner = this.#innerOf.get(number);
    return this.#isReady && inner?.load === this.#load ? inner.number : undefined;
  }

  /** Once there will be no load any more. */
  #refuse(): void {
    if (this.#isDisposing) throw thrown(DISPOSED);
    if (this.#cause) throw thrown(this.#cause);
  }

  prepareGrammar(grammar: NativeGrammar, onEnd: (error?: NativeError) => void): void {
    // A model that is being loaded compiles the grammar with the first request that has it.
    if (this.#isReady && this.#inner) this.#inner.prepareGrammar(grammar, onEnd);
    else queueMicrotask(() => onEnd());
  }

  submit(request: NativeRequest): number {
    this.#refuse();
    const { mostWaiting: limit } = this.#limit;
    if (!this.#isReady && this.#waiting.size >= limit) {
      const message = `${limit} requests are waiting already for the model to be loaded`;
      throw thrown({ code: 'ERR_QUEUE_FULL', message, details: { limit } });
    }
    const number = this.#next++;
    if (this.#isReady) {
      this.#enter(number, (this.#inner as NativeModel).submit(request));
      if (request.pin) this.#pinning.add(number);
    } else {
      this.#waiting.set(number, request);
    }
    return number;
  }

  cancel(request: number): void {
    if (this.#waiting.delete(request)) {
      queueMicrotask(() => this.#tell([{ type: 'finish', request, finish: CANCELLED }]));
      return;
    }
    const inner = this.#current(request);
    if (inner !== undefined) this.#inner?.cancel(inner);
  }

  clearCache(): void {
    if (this.#isReady) this.#inner?.clearCache();
  }

  stats(): NativeModelStats {
    const stats = (this.#isReady && this.#inner?.stats()) || NO_STATS;
    return { ...stats, queuedRequests: stats.queuedRequests + this.#waiting.size };
  }

  readPages(pin: number, first: number, count: number): number {
    return this.#callPages(pin, (inner, model) => model.readPages(inner, first, count));
  }

  writePages(pin: number, first: number, data: Uint8Array): number {
    return this.#callPages(pin, (inner, model) => model.writePages(inner, first, data));
  }

  importPages(tokens: Uint32Array): number {
    this.#refuse();
    const number = this.#next++;
    if (this.#isReady && this.#inner) {
      this.#innerOf.set(number, { load: this.#load, number: this.#inner.importPages(tokens) });
    }
    return number;
  }

  release(pin: number): void {
    const inner = this.#current(pin);
    this.#pinning.delete(pin);
    this.#innerOf.delete(pin);
    if (inner === undefined) return;
    this.#outer.delete(inner);
    this.#inner?.release(inner);
  }

  dispose(): void {
    if (this.#isDisposing) return;
    this.#isDisposing = true;
    if (this.#inner) this.#inner.dispose();
  }

  #callPages(pin: number, call: (inner: number, model: NativeModel) => number): number {
    this.#refuse();
    const number = this.#next++;
    const inner = this.#current(pin);
    if (inner !== undefined && this.#inner) {
      this.#enter(number, call(inner, this.#inner));
      return number;
    }
    const message = 'the pages are gone: the model failed and was loaded again';
    const error: NativeError = { code: 'ERR_RUNTIME_CRASHED', message, details: {} };
    queueMicrotask(() => this.#tell([{ type: 'pages', request: number, data: new Uint8Array(), error }]));
    return number;
  }
}
