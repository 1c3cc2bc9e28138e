/** What runs, and whether the server is on its way out. */
export class Lifecycle {
  #isDraining = false;
  #inFlight = 0;
  readonly #listeners: (() => void)[] = [];
  #onIdle: (() => void) | undefined;

  get isDraining(): boolean {
    return this.#isDraining;
  }

  /** Requests that are being answered; those that look after the server do not count. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Hears once that the server takes no new requests. */
  onDrain(listener: () => void): void {
    this.#listeners.push(listener);
  }

  enter(): void {
    this.#inFlight++;
  }

  leave(): void {
    this.#inFlight--;
    if (this.#inFlight === 0) this.#onIdle?.();
  }

  /** Takes no new requests. Resolves when those that run are answered, or after so many milliseconds: to whether all were. */
  async drain(timeoutMs: number): Promise<boolean> {
    if (!this.#isDraining) {
      this.#isDraining = true;
      for (const listener of this.#listeners) listener();
    }
    if (this.#inFlight === 0) return true;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.#onIdle = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    return this.#inFlight === 0;
  }
}
