import { type Style, styled } from './style.js';
import { displayWidth, isWide, splitGraphemes } from './width.js';

/** What must not begin a line of Chinese or Japanese, and what must not end one. */
const nonStarters = /^[、。，．：；？！…’”）〕］｝〉》」』】〙〗ー々〜～·,.:;?!)\]}%]/u;
const openers = /[‘“（〔［｛〈《「『【〘〖([{]$/u;

/**
 * Breaks text into lines of a screen, piece by piece. A word is written once it is known to be complete, or too long for
 * any line; what was written is never changed.
 */
export class WordWrap {
  readonly #write: (text: string) => void;
  readonly #columns: () => number;
  readonly #hasColors: boolean;
  /** Columns of the current line that are taken. */
  #column = 0;
  /** Spaces behind them, which are written only if a word follows on the line. */
  #spaces = '';
  /** The word that is not known to be complete, in pieces of one style. */
  #word: { text: string; style: Style }[] = [];
  #wordWidth = 0;
  #last = '';

  /** Columns that lines begin with when a line was broken: those of a list's item stand below its text. */
  indent = 0;

  /** @param columns The width of a line; asked each time, since a terminal may be resized. Infinity: no line is broken. */
  constructor(write: (text: string) => void, columns: () => number, hasColors: boolean) {
    this.#write = write;
    this.#columns = columns;
    this.#hasColors = hasColors;
  }

  /** Text without line breaks. */
  push(text: string, style: Style = 'plain'): void {
    if (this.#columns() === Number.POSITIVE_INFINITY) {
      this.#write(styled(text, style, this.#hasColors));
      return;
    }
    for (const grapheme of splitGraphemes(text)) {
      if (grapheme === ' ' || grapheme === '\t') {
        this.#flushWord();
        this.#spaces += grapheme === '\t' ? '    ' : ' ';
      } else {
        if (this.#last !== '' && mayBreak(this.#last, grapheme)) this.#flushWord();
        this.#append(grapheme, style);
      }
      this.#last = grapheme;
    }
  }

  /** Text that is written as it is, whatever its width. */
  pushRaw(text: string, style: Style = 'plain'): void {
    this.flush();
    this.#write(styled(text, style, this.#hasColors));
    const columns = this.#columns();
    this.#column += displayWidth(text);
    if (Number.isFinite(columns)) this.#column %= columns + 1;
  }

  /** Ends the line. */
  newline(): void {
    this.flush();
    this.#write('\n');
    this.#column = 0;
    this.#last = '';
    this.indent = 0;
  }

  /** Writes what was held back. */
  flush(): void {
    this.#flushWord();
    if (this.#spaces !== '' && this.#column + this.#spaces.length <= this.#columns()) {
      this.#write(this.#spaces);
      this.#column += this.#spaces.length;
    }
    this.#spaces = '';
  }

  #append(grapheme: string, style: Style): void {
    const width = displayWidth(grapheme);
    const last = this.#word.at(-1);
    if (last?.style === style) last.text += grapheme;
    else this.#word.push({ text: grapheme, style });
    this.#wordWidth += width;
    const columns = Math.max(2, this.#columns());
    if (this.#wordWidth <= columns - this.indent) return;
    // No line has room for the word: it is broken where the line ends.
    const [kept] = splitGraphemes(grapheme);
    const tail = this.#word.at(-1) as { text: string; style: Style };
    tail.text = tail.text.slice(0, -grapheme.length);
    this.#wordWidth -= width;
    this.#flushWord();
    this.#word = [{ text: kept ?? grapheme, style }];
    this.#wordWidth = width;
  }

  #flushWord(): void {
    if (this.#word.length === 0) return;
    const columns = Math.max(2, this.#columns());
    // The screen has become narrower, and the terminal has broken the line.
    if (this.#column > columns) this.#column %= columns;
    if (this.#column > 0 && this.#column + this.#spaces.length + this.#wordWidth > columns) {
      const indent = Math.min(this.indent, columns - 2);
      this.#write(`\n${' '.repeat(indent)}`);
      this.#column = indent;
    } else {
      this.#write(this.#spaces);
      this.#column += this.#spaces.length;
    }
    this.#spaces = '';
    for (const { text, style } of this.#word) if (text !== '') this.#write(styled(text, style, this.#hasColors));
    this.#column += this.#wordWidth;
    this.#word = [];
    this.#wordWidth = 0;
  }
}

/** Whether a line may end between two characters that no space separates: next to a wide one, say of Chinese. */
function mayBreak(left: string, right: string): boolean {
  if (left === ' ' || left === '\t' || nonStarters.test(right) || openers.test(left)) return false;
  return isWide(firstOf(left)) || isWide(firstOf(right));
}

function firstOf(grapheme: string): string {
  return String.fromCodePoint(grapheme.codePointAt(0) as number);
}
