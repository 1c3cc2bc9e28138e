import { invalidArgument } from '../common/errors.js';
import { reading, show } from '../common/options.js';

/**
 * Looks for stop sequences in a text that comes piece by piece. Of each piece it lets through what is safe to show and
 * holds back the longest end that may turn out to begin a stop sequence. The match that begins first wins; of two that
 * begin at the same character, the shorter one, which is complete first.
 */
export class StopSequences {
  readonly #sequences: readonly string[];
  #held = '';
  #matched: string | undefined;

  /**
   * @param sequences The stop sequences; none of them may be empty.
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT
   */
  constructor(sequences: string | readonly string[]) {
    const list: unknown = typeof sequences === 'string' ? [sequences] : sequences;
    const checked = reading('stop', () => {
      if (!Array.isArray(list)) throw refused(list);
      // An array's own iterator gives undefined for a hole, which the methods of arrays skip.
      return Array.from(list, (sequence: unknown) => {
        if (typeof sequence === 'string' && sequence !== '') return sequence;
        throw refused(sequence);
      });
    });
    this.#sequences = checked.sort((a, b) => a.length - b.length);
  }

  /** The stop sequence that was found, if any. Nothing is let through after it. */
  get matched(): string | undefined {
    return this.#matched;
  }

  /** Takes the next piece. Returns the text that no stop sequence can reach any more. */
  push(text: string): string {
    return this.#scan(this.#held + text, false);
  }

  /** Returns what was held back: the text has ended, or something has come that no stop sequence spans. */
  flush(): string {
    return this.#scan(this.#held, true);
  }

  #scan(text: string, isEnd: boolean): string {
    this.#held = '';
    if (this.#matched !== undefined) return '';
    for (let start = 0; start < text.length; start++) {
      this.#matched = this.#sequences.find((sequence) => text.startsWith(sequence, start));
      if (this.#matched !== undefined) return text.slice(0, start);
      // Further on there may be a complete match already, but what begins here is the earlier one if it comes to be.
      if (!isEnd && this.#mayBeginAt(text, start)) {
        this.#held = text.slice(start);
        return text.slice(0, start);
      }
    }
    return text;
  }

  #mayBeginAt(text: string, start: number): boolean {
    const length = text.length - start;
    return this.#sequences.some((sequence) => sequence.length > length && sequence.startsWith(text.slice(start)));
  }
}

function refused(value: unknown): Error {
  return invalidArgument(`stop must be a string or an array of strings, none of them empty, got ${show(value)}`);
}
