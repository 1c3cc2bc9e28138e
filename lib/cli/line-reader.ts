import type { ChatInput } from './terminal/input.js';
import { isOpenQuote, type Typed, unquote } from './terminal/quoted.js';

/** The most characters of one message: more is no message, and would fill the memory. */
const MOST_CHARACTERS = 16 << 20;

/**
 * Reads messages from stdin, one a line, where no terminal can be drawn on. Nothing is read ahead of who asks but what the
 * pipe gives at once, so that an endless input takes no memory.
 */
export class LineReader implements ChatInput {
  readonly isInteractive = process.stdin.isTTY === true;

  readonly #chunks = process.stdin.setEncoding('utf8')[Symbol.asyncIterator]() as AsyncIterator<string>;
  #rest = '';
  #isEnded = false;

  async next(prompt: string): Promise<Typed | undefined> {
    if (this.isInteractive) process.stderr.write(prompt);
    let text = await this.#line();
    if (text === undefined) return undefined;
    while (isOpenQuote(text)) {
      const line = await this.#line();
      if (line === undefined) break;
      text += `\n${line}`;
      if (text.length > MOST_CHARACTERS) throw tooLong();
    }
    return unquote(text);
  }

  async confirm(question: string): Promise<boolean> {
    if (!this.isInteractive) return false;
    process.stderr.write(`${question} [y/N] `);
    return /^\s*y(es)?\s*$/i.test((await this.#line()) ?? '');
  }

  close(): void {
    // Ends the iterator's stream, so that the process does not wait for more.
    process.stdin.destroy();
  }

  async #line(): Promise<string | undefined> {
    let searched = 0;
    for (;;) {
      const found = this.#rest.slice(searched).match(/\r\n|\n|\r(?!$)/);
      if (found?.index !== undefined || (this.#isEnded && this.#rest !== '')) {
        const at = found?.index === undefined ? this.#rest.length : searched + found.index;
        const line = this.#rest.slice(0, at);
        this.#rest = this.#rest.slice(at + (found?.[0].length ?? 0));
        return line.replace(/\r$/, '');
      }
      if (this.#isEnded) return undefined;
      if (this.#rest.length > MOST_CHARACTERS) throw tooLong();
      // A carriage return at the end may be half of a line break.
      searched = Math.max(0, this.#rest.length - 1);
      const { value, done } = await this.#chunks.next();
      if (done) this.#isEnded = true;
      else this.#rest += value;
    }
  }
}

function tooLong(): Error {
  return new Error(`a message of more than ${MOST_CHARACTERS} characters was piped in`);
}
