/** So many things at a time. Those who wait take turns by their owners, and the things of an owner by their arrival. */
export class Slots {
  #free: number;
  readonly #waiting = new Map<string, (() => void)[]>();

  constructor(count: number) {
    this.#free = count;
  }

  async take(owner: string): Promise<void> {
    if (this.#free > 0) {
      this.#free--;
      return;
    }
    await new Promise<void>((resolve) => {
      const queue = this.#waiting.get(owner);
      if (queue) queue.push(resolve);
      else this.#waiting.set(owner, [resolve]);
    });
  }

  give(): void {
    for (const [owner, queue] of this.#waiting) {
      // Behind the others, if more of it wait.
      this.#waiting.delete(owner);
      const next = queue.shift() as () => void;
      if (queue.length > 0) this.#waiting.set(owner, queue);
      next();
      return;
    }
    this.#free++;
  }
}
