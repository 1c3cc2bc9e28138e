/**
 * A limit of so many units within a minute: a bucket that is full at first, and that is filled again evenly. What is only
 * known afterwards, such as the tokens of an answer, may take more than there is; then nothing is given until that is made
 * up for.
 */
export class Bucket {
  #limit: number;
  #left: number;
  #at: number;

  constructor(limit: number, now: number) {
    this.#limit = limit;
    this.#left = limit;
    this.#at = now;
  }

  get limit(): number {
    return this.#limit;
  }

  /** Changes the limit, and keeps what was taken. */
  resize(limit: number): void {
    this.#left += limit - this.#limit;
    this.#limit = limit;
  }

  left(now: number): number {
    this.#left = Math.min(this.#limit, this.#left + ((now - this.#at) * this.#limit) / 60_000);
    this.#at = now;
    return this.#left;
  }

  take(units: number, now: number): void {
    this.#left = this.left(now) - units;
  }

  /** Milliseconds until there are so many units. */
  msUntil(units: number, now: number): number {
    return Math.max(0, ((Math.min(units, this.#limit) - this.left(now)) * 60_000) / this.#limit);
  }
}
