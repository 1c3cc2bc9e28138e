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

/** What an answer may be besides text for people. */
export interface ExpectedCalls {
  /** The names of the tools that the model was told about. */
  readonly tools: ReadonlySet<string>;
  /** Whether the model may write code for the interpreter. */
  readonly interpreter: boolean;
}

/** A segment that is text for people, stripped as THUDM's process_response() strips it. */
export class TextSegment implements Segment {
  /** The pieces of the segment, joined once at the end. */
  readonly #all: string[] = [];
  /** White space at the end of what came: shown once something follows. Pieces, so that none is looked at twice. */
  #spaces: string[] = [];
  /** What may be the beginning of a placeholder: shorter than one. Only one of this and `#spaces` has something. */
  #beginning = '';
  #started = false;

  push(text: string): string {
    this.#all.push(text);
    let come = text;
    if (!this.#started) {
      come = stripStart(text);
      if (come === '') return '';
      this.#started = true;
    }
    if (this.#beginning === '' && stripEnd(come) === '') {
      this.#spaces.push(come);
      return '';
    }
    const held = this.#beginning + come;
    const length = beginningOfPlaceholder(held);
    this.#beginning = held.slice(held.length - length);
    const certain = held.slice(0, held.length - length);
    const visible = length > 0 ? certain : stripEnd(certain);
    const shown = this.#spaces.join('') + visible;
    this.#spaces = [certain.slice(visible.length)];
    return fillIn(shown);
  }

  end(): string {
    // Held back was either white space, which nothing follows now, or the beginning of a placeholder that is none.
    const text = this.#beginning === '' ? '' : this.#spaces.join('') + this.#beginning;
    this.#spaces = [];
    this.#beginning = '';
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

/** How much of the text's end is the beginning of a placeholder, if more text makes it one. */
function beginningOfPlaceholder(text: string): number {
  for (let length = Math.min(placeholder.length - 1, text.length); length > 0; length--) {
    if (text.endsWith(placeholder.slice(0, length))) return length;
  }
  return 0;
}
