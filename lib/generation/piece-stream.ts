/**
 * A result that comes in pieces: iterate for the pieces, or await {@link result}, or both. What produces it does not wait
 * for the consumer. Leaving a loop early (`break`, `return()`) stops it.
 */
export abstract class PieceStream<Piece, Result>
  implements AsyncIterableIterator<Piece, Result | undefined, undefined>
{
  /** The whole result, once there is one. Rejects with what went wrong otherwise. */
  readonly result: Promise<Result>;

  readonly #pieces: Piece[] = [];
  #waiting: (() => void)[] = [];
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
   * The next piece, as soon as there is one. What went wrong is thrown here, once, after the pieces that came before it.
   *
   * @example
   * ```ts
   * const answer = chat.stream('你好');
   * const { value } = await answer.next(); // resolves with the first piece of text
   * console.log(value);
   * await answer.return(); // no more of it
   * ```
   */
  async next(): Promise<IteratorResult<Piece, Result | undefined>> {
    for (;;) {
      if (this.#isLeft) return { done: true, value: undefined };
      const piece = this.#pieces.shift();
      if (piece !== undefined) return { done: false, value: piece };
      if (this.#isOver) {
        this.#isLeft = true; // an error is told once
        return { done: true, value: await this.result };
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
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
      this.#isLeft = true;
      this.#wake();
      this.stop();
    }
    const result = await this.result.catch(() => undefined);
    this.#isLeft = true;
    return { done: true, value: result };
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
    this.#pieces.push(piece);
    this.#wake();
  }

  protected end(result: Result): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#resolve(result);
    this.#wake();
  }

  /** Pieces that nobody has taken yet come first, unless they are dropped. */
  protected fail(error: unknown, dropPieces = false): void {
    if (this.#isOver) return;
    this.#isOver = true;
    if (dropPieces) this.#pieces.length = 0;
    this.#reject(error);
    this.#wake();
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}
