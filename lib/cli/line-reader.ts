import { createInterface, type Interface } from 'node:readline';

/** Reads stdin line by line. The prompt goes to stderr: stdout is for answers. */
export class LineReader {
  /** Whether somebody sits at a terminal. */
  readonly isInteractive = process.stdin.isTTY === true;

  readonly #interface: Interface;
  readonly #lines: string[] = [];
  #isClosed = false;
  #wake: (() => void) | undefined;

  constructor() {
    this.#interface = createInterface({
      input: process.stdin,
      output: process.stderr,
      // Without a terminal nothing is echoed.
      terminal: this.isInteractive && process.stderr.isTTY === true,
    });
    // Lines that are typed, or come through a pipe, while nobody waits for one are kept.
    this.#interface.on('line', (line) => {
      this.#lines.push(line);
      this.#wake?.();
    });
    this.#interface.on('close', () => {
      this.#isClosed = true;
      this.#wake?.();
    });
    this.redirectInterrupts(false);
  }

  /** The next line, or undefined when there is none any more: end of input, or Ctrl-C at the prompt. */
  async next(prompt: string): Promise<string | undefined> {
    if (this.isInteractive && this.#lines.length === 0 && !this.#isClosed) {
      this.#interface.setPrompt(prompt);
      this.#interface.prompt();
    }
    while (this.#lines.length === 0 && !this.#isClosed) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#lines.shift();
  }

  /**
   * A terminal in readline's hands gives Ctrl-C to readline. While an answer runs it shall be the process's again, as it
   * is without a terminal.
   */
  redirectInterrupts(toProcess: boolean): void {
    this.#interface.removeAllListeners('SIGINT');
    this.#interface.on('SIGINT', () => {
      if (toProcess) process.kill(process.pid, 'SIGINT');
      else this.#interface.close();
    });
  }

  close(): void {
    this.#interface.close();
  }
}
