/**
 * A result that comes in pieces: iterate for the pieces, or await {@link result}, or both. What produces it does not wait
 * for the consumer. Leaving a loop early (`break`, `return()`) stops it.
 */
export abstract class PieceStream<Piece, Result>
  implements AsyncIterableIterator<Piece, Result | undefined, undefined>
{
  /** The whole result, once there is one. Rejects with what went wrong otherwise. */
  readonly result: Promise<Result>;

  /** Pieces that nobody has asked for yet. Those before `#first` have been taken. */
  #pieces: Piece[] = [];
  #first = 0;
  /** Calls of next() that no piece has come for yet, in their order. There are none while there are pieces. */
  #waiting: Waiting<IteratorResult<Piece, Result | undefined>>[] = [];
  #isLeft = false;
  #isOver = false;
  #resolve!: (result: Result) => void;
  #reject!: (error: unknown) => void;

  constructor() {
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // Whoever only iterates gets the error from next(): it must not count as unhandled here as well.
    this.result.catch(() => {});
  }

  /**
   * The stream itself: it can be gone through once.
   *
   * @example
   * ```ts
   * for await (const { text } of model.generate('Hello')) process.stdout.write(text);
   * ```
   */
  [Symbol.asyncIterator](): this {
    return this;
  }

  /**
   * The next piece, as soon as there is one; calls before the answer to an earlier one get their pieces in the order of the
   * calls. What went wrong is thrown here, once, after the pieces that came before it.
   *
   * @example
   * ```ts
   * const answer = chat.stream('你好');
   * const { value } = await answer.next(); // resolves with the first piece of text
   * console.log(value);
   * await answer.return(); // no more of it
   * ```
   */
  next(): Promise<IteratorResult<Piece, Result | undefined>> {
    // No async function: the promises settle in the order of the calls, whether a piece is there already or not.
    if (this.#isLeft) return Promise.resolve({ done: true, value: undefined });
    if (this.#first < this.#pieces.length) return Promise.resolve({ done: false, value: this.#take() });
    if (this.#isOver) {
      this.#isLeft = true; // an error is told once
      return this.result.then((value) => ({ done: true, value }));
    }
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  /**
   * Stops what produces the pieces. Resolves once it has ended.
   *
   * @example
   * ```ts
   * const answer = chat.stream('你好');
   * setTimeout(() => void answer.return(), 1000); // what has come until then is the answer
   * console.log((await answer.result).finishReason); // 'cancelled', or 'stop' if it was quick
   * ```
   */
  async return(): Promise<IteratorResult<Piece, Result | undefined>> {
    if (!this.#isOver && !this.#isLeft) {
      this.#leave();
      this.stop();
    }
    const result = await this.result.catch(() => undefined);
    this.#leave();
    return { done: true, value: result };
  }

  /**
   * Stops what produces the pieces, as {@link return} does, and rejects with `error` once that has ended: what the protocol of
   * iterators wants of a consumer that gives up.
   *
   * @throws `error`.
   *
   * @example
   * ```ts
   * const answer = chat.stream('你好');
   * await answer.throw(new Error('not needed any more')).catch((error: Error) => console.log(error.message));
   * ```
   */
  async throw(error?: unknown): Promise<IteratorResult<Piece, Result | undefined>> {
    await this.return();
    throw error;
  }

  /**
   * The same as {@link return}: with `await using` nothing goes on once the block is left, whichever way.
   *
   * @example
   * ```ts
   * await using answer = chat.stream('你好');
   * console.log((await answer.next()).value);
   * ```
   */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }

  /**
   * The pieces as a web stream, for a `Response` of `fetch()` and others that take one. A piece is pulled when the reader
   * asks for it; cancelling the stream stops what produces the pieces. What went wrong is the stream's error. Pieces that are
   * taken by another way are not in the stream.
   *
   * @example
   * ```ts
   * const reader = chat.stream('你好').toReadableStream().getReader();
   * const first = await reader.read();
   * if (!first.done) console.log(first.value.text);
   * await reader.cancel(); // no more of it
   * ```
   */
  toReadableStream(): ReadableStream<Piece> {
    return new ReadableStream<Piece>(
      {
        pull: async (controller) => {
          const next = await this.next();
          if (next.done) controller.close();
          else controller.enqueue(next.value);
        },
        cancel: async () => {
          await this.return();
        },
      },
      // Nothing is pulled ahead of time, so that what nobody has read stays for next().
      { highWaterMark: 0 },
    );
  }

  /** Whether the consumer has left. */
  protected get isLeft(): boolean {
    return this.#isLeft;
  }

  protected get isOver(): boolean {
    return this.#isOver;
  }

  /** Asks whatever produces the pieces to come to an end: end() or fail() follows. */
  protected abstract stop(): void;

  protected push(piece: Piece): void {
    if (this.#isOver || this.#isLeft) return;
    const waiting = this.#waiting.shift();
    if (waiting) waiting.resolve({ done: false, value: piece });
    else this.#pieces.push(piece);
  }

  protected end(result: Result): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#resolve(result);
    this.#tell((first) => first.resolve({ done: true, value: result }));
  }

  /** Pieces that nobody has taken yet come first, unless they are dropped. */
  protected fail(error: unknown, dropPieces = false): void {
    if (this.#isOver) return;
    this.#isOver = true;
    if (dropPieces) this.#drop();
    this.#reject(error);
    this.#tell((first) => first.reject(error));
  }

  /** The first who waits learns of the end, and it counts as told. */
  #tell(end: (first: Waiting<IteratorResult<Piece, Result | undefined>>) => void): void {
    const first = this.#waiting.shift();
    if (first === undefined) return;
    end(first);
    this.#leave();
  }

  /** Nobody gets anything any more. */
  #leave(): void {
    this.#isLeft = true;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { resolve } of waiting) resolve({ done: true, value: undefined });
    this.#drop();
  }

  #drop(): void {
    this.#pieces = [];
    this.#first = 0;
  }

  /** Takes the first piece. Arrays move all that is behind it for that, which many pieces make slow. */
  #take(): Piece {
    const piece = this.#pieces[this.#first++] as Piece;
    if (this.#first * 2 > this.#pieces.length) {
      this.#pieces = this.#pieces.slice(this.#first);
      this.#first = 0;
    }
    return piece;
  }
}

/** A promise that something else settles. */
interface Waiting<Value> {
  resolve: (value: Value) => void;
  reject: (error: unknown) => void;
}
