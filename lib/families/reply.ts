import { strip, stripEnd, stripStart } from '../common/python-text.js';
import type { Literal } from './python-call.js';

/** What a part of an answer turned out to be. `content` is what the history keeps. */
export type Outcome =
  | { kind: 'text'; content: string }
  /** A call of a tool; `arguments` are absent where what the model wrote is no call with literals. */
  | { kind: 'call'; name: string; content: string; arguments?: Record<string, Literal> }
  /** Python for the code interpreter; `code` is without its fence. */
  | { kind: 'code'; name: string; content: string; code: string };

/** One part of an answer while it is being generated. push() and end() return the text that may be shown. */
export interface Segment {
  push(text: string): string;
  end(): string;
  /** After end(). */
  outcome(): Outcome;
}

/** A segment that is text for people, stripped as THUDM's process_response() strips it. */
export class TextSegment implements Segment {
  /** The pieces of the segment, joined once at the end. */
  readonly #all: string[] = [];
  #held = '';
  #started = false;

  push(text: string): string {
    this.#all.push(text);
    this.#held += text;
    if (!this.#started) {
      this.#held = stripStart(this.#held);
      if (this.#held === '') return '';
      this.#started = true;
    }
    const certain = this.#held.length - uncertainEnd(this.#held);
    const shown = this.#held.slice(0, certain);
    this.#held = this.#held.slice(certain);
    return fillIn(shown);
  }

  end(): string {
    // Held back was either white space, which nothing follows now, or the beginning of a placeholder that is none.
    const text = stripEnd(this.#held);
    this.#held = '';
    return text;
  }

  outcome(): Outcome {
    return { kind: 'text', content: strip(this.#all.join('')) };
  }
}

/** THUDM's placeholder for the date of training, which process_response() fills in. */
const placeholder = '[[训练时间]]';

export function fillIn(text: string): string {
  return text.replaceAll(placeholder, '2023年');
}

/** How much of the text's end may be stripped, or be the beginning of a placeholder, once more text has come. */
function uncertainEnd(text: string): number {
  for (let length = Math.min(placeholder.length - 1, text.length); length > 0; length--) {
    if (text.endsWith(placeholder.slice(0, length))) return length;
  }
  return text.length - stripEnd(text).length;
}
