import { EventEmitter } from 'node:events';
import { fromNative, type NativeEvent, type NativeModelInfo } from '../addon/native.js';
import { ChatGLMError } from '../common/errors.js';
import { throttled } from '../common/progress.js';
import type { RequestHandler } from '../generation/token-stream.js';
import type { LoadOptions, LoadProgress } from './load-options.js';

/** The requests of one model that are under way, and where its events go. It must not hold the model itself. */
export class Requests {
  readonly handlers = new Map<number, RequestHandler>();
  onProgress: LoadOptions['onProgress'];
  readonly ready: Promise<NativeModelInfo>;
  readonly disposed: Promise<void>;
  readonly #pageCalls = new Map<
    number,
    { resolve: (data: Uint8Array) => void; reject: (error: ChatGLMError) => void }
  >();
  #resolveReady!: (info: NativeModelInfo) => void;
  #rejectReady!: (error: unknown) => void;
  #resolveDisposed!: () => void;

  /** Emits 'failed' with the cause when the model fails after it was loaded. */
  readonly failures = new EventEmitter();
  #isReady = false;
  readonly #onWarning: LoadOptions['onWarning'];
  /** Requests that were taken and have not ended, those included whose prompt is still being encoded. */
  #open = 0;
  readonly #whenIdle: (() => void)[] = [];

  constructor({ onProgress, onWarning }: Pick<LoadOptions, 'onProgress' | 'onWarning'>) {
    this.#onWarning = onWarning;
    this.onProgress = onProgress && throttled(onProgress);
    this.ready = new Promise((resolve, reject) => {
      this.#resolveReady = resolve;
      this.#rejectReady = reject;
    });
    this.ready.catch(() => {});
    this.disposed = new Promise((resolve) => {
      this.#resolveDisposed = resolve;
    });
  }

  /** A request was taken; end() has to follow. */
  begin(): void {
    this.#open += 1;
  }

  end(): void {
    this.#open -= 1;
    if (this.#open === 0) for (const resolve of this.#whenIdle.splice(0)) resolve();
  }

  /** Resolves when no request is open. */
  async idle(): Promise<void> {
    if (this.#open > 0) await new Promise<void>((resolve) => this.#whenIdle.push(resolve));
  }

  /** Ends all requests that native code has, which is told by `cancel`, with an error. */
  abandon(error: ChatGLMError, cancel: (request: number) => void): void {
    for (const request of [...this.handlers.keys()]) {
      cancel(request);
      this.#take(request)?.onError(error);
    }
  }

  #warn(warning: ChatGLMError): void {
    if (this.#onWarning === undefined) {
      process.emitWarning(`the CPU is taken: ${warning.message}`, { type: 'ChatGLMWarning', code: warning.code });
      return;
    }
    try {
      this.#onWarning(warning);
    } catch (error) {
      this.failLoading(error);
    }
  }

  failLoading(error: unknown): void {
    this.onProgress = undefined;
    this.#rejectReady(error);
  }

  handle = (events: NativeEvent[]): void => {
    for (const event of events) {
      switch (event.type) {
        case 'progress':
          this.#progress(event);
          break;
        case 'ready':
          this.onProgress = undefined;
          this.#isReady = true;
          this.#resolveReady(event.info);
          break;
        case 'warning':
          this.#warn(fromNative(event.error));
          break;
        case 'failed':
          if (this.#isReady) this.failures.emit('failed', fromNative(event.error));
          else this.failLoading(fromNative(event.error));
          break;
        case 'token':
          this.handlers.get(event.request)?.onToken?.(event.id, event.logprobs);
          break;
        case 'logits':
          this.handlers.get(event.request)?.onLogits?.(event.position, event.values);
          break;
        case 'scores':
          this.handlers.get(event.request)?.onScores?.(event.position, event.scores);
          break;
        case 'admitted':
          this.handlers.get(event.request)?.onAdmitted?.();
          break;
        case 'trace':
          this.handlers.get(event.request)?.onTrace?.(event.request, event.trace);
          break;
        case 'pages':
          this.#endPages(event);
          break;
        case 'finish':
          this.#take(event.request)?.onFinish(event.finish, event.request);
          break;
        case 'error':
          this.#take(event.request)?.onError(fromNative(event.error));
          break;
        case 'disposed':
          this.failLoading(new ChatGLMError('ERR_DISPOSED', 'the model was disposed'));
          this.#resolveDisposed();
      }
    }
  };

  /** The bytes of the pages that a call of `readPages()` or `writePages()`, whose number this is, reads or has written. */
  pages(call: number): Promise<Uint8Array> {
    return new Promise((resolve, reject) => this.#pageCalls.set(call, { resolve, reject }));
  }

  #endPages({ request, data, error }: Extract<NativeEvent, { type: 'pages' }>): void {
    const call = this.#pageCalls.get(request);
    this.#pageCalls.delete(request);
    if (error) call?.reject(fromNative(error));
    else call?.resolve(data);
  }

  #take(request: number): RequestHandler | undefined {
    const handler = this.handlers.get(request);
    if (this.handlers.delete(request)) this.end();
    return handler;
  }

  /** An error in the caller's function ends loading; it must not end the process. */
  #progress({ bytes, totalBytes }: LoadProgress): void {
    try {
      this.onProgress?.({ bytes, totalBytes });
    } catch (error) {
      this.failLoading(error);
    }
  }
}
