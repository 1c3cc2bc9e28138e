import type { Style } from './style.js';
import { displayWidth } from './width.js';
import { WordWrap } from './word-wrap.js';

/** The most characters that wait for the end of inline code or bold text. */
const MOST_HELD = 400;

/** What the line that is being read is. */
type LineKind =
  // Too little of it is known.
  | 'unknown'
  | 'text'
  | 'heading'
  // A table, or a line across: as it is.
  | 'raw'
  | 'code';

export interface MarkdownSetup {
  write: (text: string) => void;
  /** The width of a line. */
  columns: () => number;
  hasColors: boolean;
}

/**
 * Shows an answer's Markdown as it comes. Only what is certain is written, and nothing that was written is changed: text
 * waits where a mark may begin, until it is known whether one does. What is no mark, or never ends, is shown as it is.
 * Code is not broken into lines and has nothing at its left, so that it can be copied.
 */
export class MarkdownStream {
  readonly #wrap: WordWrap;
  readonly #columns: () => number;
  readonly #hasColors: boolean;
  #kind: LineKind = 'unknown';
  /** What was not written yet of the current line. */
  #held = '';
  /** The character before it. */
  #before = '';
  /** The marks that began the code which is being read. */
  #fence: string | undefined;

  constructor({ write, columns, hasColors }: MarkdownSetup) {
    this.#wrap = new WordWrap(write, columns, hasColors);
    this.#columns = columns;
    this.#hasColors = hasColors;
  }

  /** The next piece of the answer. */
  push(text: string): void {
    const lines = text.split('\n');
    for (const [index, line] of lines.entries()) {
      this.#held += line;
      if (index < lines.length - 1) this.#endLine();
      else this.#advance(false);
    }
  }

  /** The answer has ended. */
  end(): void {
    const isFenceEnd = this.#fence !== undefined && this.#kind === 'unknown' && this.#isFenceEnd(this.#held);
    const isLineOpen = !isFenceEnd && (this.#held !== '' || this.#kind !== 'unknown');
    if (isFenceEnd) this.#held = '';
    else if (isLineOpen) this.#advance(true);
    this.#wrap.flush();
    if (this.#fence !== undefined) {
      if (isLineOpen) this.#wrap.newline();
      this.#frame('╰');
    }
    this.#fence = undefined;
    this.#kind = 'unknown';
    this.#before = '';
  }

  #endLine(): void {
    if (this.#fence === undefined) {
      const fence = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/.exec(this.#held);
      if (this.#kind === 'unknown' && fence) {
        this.#fence = fence[1] as string;
        this.#held = '';
        this.#frame('╭', (fence[2] ?? '').trim());
        this.#wrap.newline();
        return;
      }
    } else if (this.#kind === 'unknown' && this.#isFenceEnd(this.#held)) {
      this.#fence = undefined;
      this.#held = '';
      this.#frame('╰');
      this.#wrap.newline();
      return;
    }
    this.#advance(true);
    this.#wrap.newline();
    this.#kind = 'unknown';
    this.#before = '';
  }

  /** Writes what has become certain; all that is held if the line has ended. */
  #advance(isEnd: boolean): void {
    if (this.#kind === 'unknown') this.#decide(isEnd);
    if (this.#kind === 'raw' || this.#kind === 'code') {
      if (this.#held !== '') this.#wrap.pushRaw(this.#held);
      this.#held = '';
    } else if (this.#kind !== 'unknown') {
      this.#inline(isEnd);
    }
  }

  /** Tells from its beginning what a line is. */
  #decide(isEnd: boolean): void {
    const held = this.#held;
    if (this.#fence !== undefined) {
      const mayEnd = /^ {0,3}(`*|~*)\s*$/.test(held);
      if (isEnd || !mayEnd) this.#kind = 'code';
      return;
    }
    const heading = /^(#{1,6}) +(?=\S)/.exec(held);
    if (heading) {
      this.#kind = 'heading';
      // Without bold letters the marks are all that shows a heading.
      if (!this.#hasColors) this.#wrap.push(heading[0]);
      this.#held = held.slice(heading[0].length);
      return;
    }
    const item = /^(\s*)([-*+]|\d{1,3}[.)]) +(?=\S)/.exec(held);
    if (item && !/^\s*([-*_])( *\1)*\s*$/.test(held)) {
      const [whole, space, marker] = item as unknown as [string, string, string];
      this.#kind = 'text';
      const isBullet = marker.length === 1;
      this.#wrap.push(space + (isBullet ? '•' : marker));
      this.#wrap.push(' ');
      this.#wrap.indent = displayWidth(`${space}${marker} `);
      this.#held = held.slice(whole.length);
      return;
    }
    if (/^\s*\|/.test(held)) {
      this.#kind = 'raw';
      return;
    }
    const mayBecome = /^\s*(#{0,6} *|[-*+_] *|\d{1,3}[.)]? *|([-*_] *)*|`{1,2}|~{1,2}| {0,3}(`{3,}|~{3,})[^`]*)$/;
    if (!isEnd && mayBecome.test(held)) return;
    this.#kind = /^\s*([-*_])( *\1){2,}\s*$/.test(held) ? 'raw' : 'text';
  }

  /** Writes a line's text up to where a mark begins whose end is not there yet. */
  #inline(isEnd: boolean): void {
    const style: Style = this.#kind === 'heading' ? 'bold' : 'plain';
    for (;;) {
      const at = this.#held.search(/`|\*\*/);
      if (at < 0) break;
      this.#write(this.#held.slice(0, at), style);
      this.#held = this.#held.slice(at);
      const mark = (/^(`+|\*\*)/.exec(this.#held) as RegExpExecArray)[0];
      const isCode = mark.startsWith('`');
      const isTail = mark.length === this.#held.length;
      if (isTail && !isEnd) return;
      // Two asterisks within a word of letters are a power, and ones before a space begin nothing.
      const begins = isCode || (!/[A-Za-z0-9*]$/.test(this.#before) && /^\*\*[^\s*]/.test(this.#held));
      const end = begins ? this.#endOf(mark, isEnd) : -1;
      if (begins && end < 0 && !isEnd && this.#held.length < MOST_HELD) return;
      if (begins && end >= 0) {
        const inner = this.#held.slice(mark.length, end);
        const whole = this.#held.slice(0, end + mark.length);
        this.#held = this.#held.slice(whole.length);
        this.#write(this.#hasColors ? inner : whole, isCode ? 'code' : 'bold');
        this.#before = mark;
      } else {
        this.#write(mark, style);
        this.#held = this.#held.slice(mark.length);
      }
    }
    // A single asterisk may be half of a mark.
    const kept = !isEnd && this.#held.endsWith('*') ? 1 : 0;
    const certain = this.#held.slice(0, this.#held.length - kept);
    this.#write(certain, style);
    this.#held = this.#held.slice(certain.length);
  }

  /** Where the mark that ends what `mark` has begun is, or -1: a run of just as many backticks, or two asterisks. */
  #endOf(mark: string, isEnd: boolean): number {
    const pattern = mark.startsWith('`') ? new RegExp(`(?<!\`)${mark}(?!\`)`, 'g') : /(?<=\S)\*\*/g;
    pattern.lastIndex = mark.length;
    const found = pattern.exec(this.#held);
    if (!found) return -1;
    // More backticks may follow, with which the run would be another one.
    if (mark.startsWith('`') && found.index + mark.length === this.#held.length && !isEnd) return -1;
    return found.index;
  }

  #write(text: string, style: Style): void {
    if (text === '') return;
    this.#wrap.push(text, style);
    this.#before = text.slice(-1);
  }

  #isFenceEnd(line: string): boolean {
    const fence = this.#fence as string;
    const marks = line.trim();
    return (
      /^ {0,3}\S/.test(line) && marks.length >= fence.length && marks === (fence[0] as string).repeat(marks.length)
    );
  }

  /** The upper or the lower edge of a piece of code. */
  #frame(corner: string, language = ''): void {
    const columns = this.#columns();
    const width = Math.max(2, Math.min(Number.isFinite(columns) ? columns : 40, 40));
    const label = language === '' ? '' : ` ${language} `;
    const line = `${corner}─${label}`;
    this.#wrap.pushRaw(line + '─'.repeat(Math.max(0, width - displayWidth(line))), 'dim');
  }
}
