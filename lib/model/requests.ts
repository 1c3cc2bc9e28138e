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
  #resolveReady!: (info: NativeModelInfo) => void;
  #rejectReady!: (error: unknown) => void;
  #resolveDisposed!: () => void;

  constructor(onProgress: LoadOptions['onProgress']) {
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
          this.#resolveReady(event.info);
          break;
        case 'failed':
          this.failLoading(fromNative(event.error));
          break;
        case 'token':
          this.handlers.get(event.request)?.onToken(event.id, event.logprobs);
          break;
        case 'logits':
          this.handlers.get(event.request)?.onLogits(event.row, event.values);
          break;
        case 'finish':
          this.#take(event.request)?.onFinish(event.finish);
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

  #take(request: number): RequestHandler | undefined {
    const handler = this.handlers.get(request);
    this.handlers.delete(request);
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
