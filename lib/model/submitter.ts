import {
  callNative,
  fromNative,
  type NativeError,
  type NativeGrammar,
  type NativeModel,
  type NativeRequest,
} from '../addon/native.js';
import { ChatGLMError, throwIfAborted } from '../common/errors.js';
import type { RequestHandler } from '../generation/token-stream.js';
import type { Requests } from './requests.js';

function draining(): ChatGLMError {
  return new ChatGLMError('ERR_DRAINING', 'the model takes no new requests: drain() was called');
}

/** Gives requests to a native model until it is drained or disposed of. */
export class Submitter {
  readonly #native: NativeModel;
  readonly #requests: Requests;
  #isDisposed = false;
  /** Which requests are refused: those that are new, or those as well that wait for their prompt's tokens. */
  #drains: 'new' | 'all' | undefined;

  constructor(native: NativeModel, requests: Requests) {
    this.#native = native;
    this.#requests = requests;
  }

  /** Begins a request; an error in its place is what the request ends with. `create` makes what hears of it. */
  submit<H extends RequestHandler>(
    request: NativeRequest | ChatGLMError | Promise<NativeRequest | ChatGLMError>,
    signal: AbortSignal | undefined,
    create: (cancel: () => void) => H,
  ): H {
    let id: number | undefined;
    let isCancelled = false;
    const cancel = () => {
      isCancelled = true;
      // A request that has ended is no longer known, and a disposed model has none.
      if (id !== undefined && this.#requests.handlers.has(id) && !this.#isDisposed) this.#native.cancel(id);
    };
    const handler = create(cancel);
    this.#requests.begin();
    const fail = (error: unknown) => {
      handler.onError(error as ChatGLMError);
      this.#requests.end();
    };
    const isTaken = this.#drains === undefined;
    const submit = (ready: NativeRequest | ChatGLMError) => {
      try {
        throwIfAborted(signal);
        if (!isTaken || this.#drains === 'all') throw draining();
        if (ready instanceof ChatGLMError) throw ready;
        id = callNative(() => this.#native.submit(ready));
        this.#requests.handlers.set(id, handler);
        if (isCancelled) cancel();
      } catch (error) {
        fail(error);
      }
    };
    if (isPromise(request)) request.then(submit, fail);
    else submit(request);
    return handler;
  }

  /** Compiles a grammar on a thread. */
  async prepared(given: NativeGrammar | Promise<NativeGrammar>): Promise<NativeGrammar> {
    const grammar = await given;
    await new Promise<void>((resolve, reject) => {
      const onEnd = (error?: NativeError) => (error ? reject(fromNative(error)) : resolve());
      // A request to a model that was disposed of ends with an error of its own.
      if (this.#isDisposed) resolve();
      else callNative(() => this.#native.prepareGrammar(grammar, onEnd));
    });
    return grammar;
  }

  /** Takes no new requests, and resolves when all have ended. After `limitMs` those that have not ended do so with an error. */
  async drain(limitMs: number | undefined): Promise<void> {
    this.#drains = 'new';
    const abandon = () => {
      this.#drains = 'all';
      this.#requests.abandon(draining(), (request) => this.#native.cancel(request));
    };
    const timer = limitMs === undefined ? undefined : setTimeout(abandon, limitMs);
    await this.#requests.idle();
    clearTimeout(timer);
  }

  /** Ends all requests, and resolves when the model's memory is free. */
  async dispose(): Promise<void> {
    if (!this.#isDisposed) {
      this.#isDisposed = true;
      this.#native.dispose();
    }
    await this.#requests.disposed;
  }
}

export function isPromise<T>(value: T | Promise<T>): value is Promise<T> {
  // By its shape: a promise of another realm is no instance of this one's Promise.
  return typeof (value as Partial<Promise<T>>).then === 'function';
}
