import { invalidArgument } from '../common/errors.js';
import { reading, show } from '../common/options.js';

/**
 * Looks for stop sequences in a text that comes piece by piece. Of each piece it lets through what is safe to show and
 * holds back the longest end that may turn out to begin a stop sequence. The match that begins first wins; of two that
 * begin at the same character, the shorter one, which is complete first.
 *
 * Takes time in proportion to the text and the sequences: they are looked for at once, by the automaton of Aho and Corasick
 * (Communications of the ACM 18, 1975).
 */
export class StopSequences {
  readonly #sequences: readonly string[];
  /** Made when the first text comes: sequences that are only checked need none. */
  #automaton: Automaton | undefined;
  /** The longest beginning of a sequence that the text so far ends with. */
  #state = 0;
  /** Places in the text, counted in UTF-16 units: of what comes next, and of what is shown next. */
  #position = 0;
  #shown = 0;
  /** The match that begins first of those that are complete. */
  #best: { start: number; sequence: string } | undefined;
  readonly #held = new HeldText();
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
    if (this.#matched !== undefined) return '';
    if (this.#sequences.length === 0) return text;
    this.#automaton ??= new Automaton(this.#sequences);
    this.#held.push(text);
    for (let index = 0; index < text.length; index++) {
      this.#state = this.#automaton.next(this.#state, text.charCodeAt(index));
      this.#position++;
      const sequence = this.#automaton.longestMatch(this.#state);
      if (sequence !== undefined) {
        const start = this.#position - sequence.length;
        // Of two matches with one beginning the shorter one has come first, and stays.
        if (this.#best === undefined || start < this.#best.start) this.#best = { start, sequence };
      }
      // As long as something is on its way that began before the match, that is the earlier one if it comes to be.
      if (this.#best !== undefined && this.#begun() >= this.#best.start) return this.#match(this.#best);
    }
    return this.#show(this.#begun());
  }

  /** Returns what was held back: the text has ended, or something has come that no stop sequence spans. */
  flush(): string {
    if (this.#matched !== undefined) return '';
    if (this.#best !== undefined) return this.#match(this.#best);
    this.#state = 0;
    return this.#show(this.#position);
  }

  /** Where the earliest sequence that may yet be completed begins. */
  #begun(): number {
    return this.#position - (this.#automaton as Automaton).length(this.#state);
  }

  #match({ start, sequence }: { start: number; sequence: string }): string {
    this.#matched = sequence;
    return this.#show(start);
  }

  #show(end: number): string {
    const text = this.#held.take(end - this.#shown);
    this.#shown = end;
    return text;
  }
}

/** Text that comes and goes in pieces. None is copied as a whole each time that a part of it goes. */
class HeldText {
  #pieces: string[] = [];
  /** The first piece that is left, and how much of that has gone. */
  #first = 0;
  #offset = 0;

  push(text: string): void {
    if (text !== '') this.#pieces.push(text);
  }

  /** Takes the first `length` units, which must be there. */
  take(length: number): string {
    const parts: string[] = [];
    for (let left = length; left > 0; ) {
      const piece = this.#pieces[this.#first] as string;
      const part = piece.slice(this.#offset, this.#offset + left);
      parts.push(part);
      left -= part.length;
      this.#offset += part.length;
      if (this.#offset < piece.length) break;
      this.#offset = 0;
      this.#first++;
    }
    if (this.#first * 2 > this.#pieces.length) {
      this.#pieces = this.#pieces.slice(this.#first);
      this.#first = 0;
    }
    return parts.join('');
  }
}

/** The states are the beginnings of sequences, numbered; 0 is the empty one. */
class Automaton {
  /** From a state and the next UTF-16 unit to the beginning that is one unit longer. */
  readonly #longer = new Map<number, number>();
  readonly #lengths: number[] = [0];
  /** The longest beginning of a sequence that is a proper end of this one. */
  readonly #shorter: number[] = [0];
  /** The longest sequence that this beginning ends with. */
  readonly #matches: (string | undefined)[] = [undefined];

  /** @param sequences The shorter ones first. */
  constructor(sequences: readonly string[]) {
    const edges: { from: number; unit: number; to: number }[] = [];
    for (const sequence of sequences) {
      let state = 0;
      // A sequence that begins with another one is never found: the other is complete first.
      for (let index = 0; index < sequence.length && this.#matches[state] === undefined; index++) {
        const unit = sequence.charCodeAt(index);
        let to = this.#longer.get(key(state, unit));
        if (to === undefined) {
          to = this.#lengths.length;
          this.#longer.set(key(state, unit), to);
          this.#lengths.push(index + 1);
          this.#matches.push(undefined);
          edges.push({ from: state, unit, to });
        }
        state = to;
      }
      this.#matches[state] ??= sequence;
    }
    // Shorter beginnings first: each needs what the shorter ones have.
    edges.sort((a, b) => (this.#lengths[a.to] as number) - (this.#lengths[b.to] as number));
    for (const { from, unit, to } of edges) {
      const shorter = from === 0 ? 0 : this.next(this.#shorter[from] as number, unit);
      this.#shorter[to] = shorter;
      this.#matches[to] ??= this.#matches[shorter];
    }
  }

  next(state: number, unit: number): number {
    for (let at = state; ; at = this.#shorter[at] as number) {
      const to = this.#longer.get(key(at, unit));
      if (to !== undefined) return to;
      if (at === 0) return 0;
    }
  }

  length(state: number): number {
    return this.#lengths[state] as number;
  }

  longestMatch(state: number): string | undefined {
    return this.#matches[state];
  }
}

function key(state: number, unit: number): number {
  return state * 0x10000 + unit;
}

function refused(value: unknown): Error {
  return invalidArgument(`stop must be a string or an array of strings, none of them empty, got ${show(value)}`);
}
