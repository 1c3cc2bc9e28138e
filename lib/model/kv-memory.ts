import { callNative, type NativeModel } from '../addon/native.js';
import type { FilledPages, HeldPages, KvStore } from '../chat/session.js';
import type { PinRequest } from '../generation/value-request.js';
import type { Requests } from './requests.js';

/** A model's key/value memory, as those see it who keep what was computed: by way of the native model. */
export class KvMemory implements KvStore {
  readonly pageTokens: number;
  readonly pageBytes: number;
  readonly layout: string;
  readonly fingerprint: () => Promise<string>;
  readonly #native: NativeModel;
  readonly #requests: Requests;
  readonly #pin: (ids: ArrayLike<number>, signal: AbortSignal | undefined) => PinRequest;

  constructor(
    parts: { native: NativeModel; requests: Requests } & Pick<
      KvStore,
      'pageTokens' | 'pageBytes' | 'layout' | 'fingerprint'
    >,
    pin: (ids: ArrayLike<number>, signal: AbortSignal | undefined) => PinRequest,
  ) {
    this.pageTokens = parts.pageTokens;
    this.pageBytes = parts.pageBytes;
    this.layout = parts.layout;
    this.#native = parts.native;
    this.#requests = parts.requests;
    this.#pin = pin;
    let name: Promise<string> | undefined;
    this.fingerprint = () => {
      name ??= parts.fingerprint();
      return name;
    };
  }

  async hold(ids: ArrayLike<number>, signal: AbortSignal | undefined): Promise<HeldPages> {
    const { pin } = await this.#pin(ids, signal).result;
    return {
      pages: Math.ceil(ids.length / this.pageTokens),
      read: (page) => this.#requests.pages(callNative(() => this.#native.readPages(pin, page, 1))),
      release: () => this.#release(pin),
    };
  }

  fill(ids: Uint32Array): FilledPages {
    const pin = callNative(() => this.#native.importPages(ids));
    return {
      write: async (page, bytes) => {
        await this.#requests.pages(callNative(() => this.#native.writePages(pin, page, bytes)));
      },
      release: () => this.#release(pin),
    };
  }

  #release(pin: number): void {
    try {
      this.#native.release(pin);
    } catch {
      // A model that has ended holds no pages.
    }
  }
}
