import { displayWidth, splitGraphemes } from './width.js';

/** What the cursor steps over at once: a character as people count them, a line break, or a folded paste. */
export interface Cell {
  /** What is sent. */
  readonly text: string;
  /** What the screen shows: one line. */
  readonly shown: string;
  /** Columns of `shown`. */
  readonly width: number;
  readonly isFolded: boolean;
}

/** A paste of more than this is shown folded: it would push the conversation off the screen. */
const FOLDED_CHARACTERS = 1000;
const FOLDED_LINES = 8;

const words = new Intl.Segmenter(undefined, { granularity: 'word' });

/** A message that is being typed. */
export class LineBuffer {
  #cells: Cell[] = [];
  #cursor = 0;
  #undo: { cells: Cell[]; cursor: number }[] = [];
  #killed: Cell[] = [];

  get cells(): readonly Cell[] {
    return this.#cells;
  }

  /** How many cells stand before the cursor. */
  get cursor(): number {
    return this.#cursor;
  }

  get isEmpty(): boolean {
    return this.#cells.length === 0;
  }

  get text(): string {
    return this.#cells.map(({ text }) => text).join('');
  }

  get textBeforeCursor(): string {
    return textOf(this.#cells.slice(0, this.#cursor));
  }

  /** Replaces everything, folded if it is long; the cursor stands at the end. */
  set(text: string): void {
    this.#remember();
    this.#cells = isLong(text) ? [folded(text)] : toCells(text);
    this.#cursor = this.#cells.length;
  }

  /** Types a text at the cursor. What joins with the character before, an accent say, becomes one with it. */
  insert(text: string): void {
    this.#remember();
    const before = this.#cells[this.#cursor - 1];
    const joins = before !== undefined && !before.isFolded && before.text !== '\n';
    const from = joins ? this.#cursor - 1 : this.#cursor;
    const cells = toCells((joins ? before.text : '') + text);
    this.#cells.splice(from, this.#cursor - from, ...cells);
    this.#cursor = from + cells.length;
  }

  /** Inserts a paste, folded if it is long. */
  paste(text: string): void {
    const lines = text.replace(/\r\n?/g, '\n');
    if (!isLong(lines)) {
      if (lines !== '') this.insert(lines);
      return;
    }
    this.#remember();
    this.#cells.splice(this.#cursor, 0, folded(lines));
    this.#cursor++;
  }

  /** Replaces `length` characters of text before the cursor, as completion does. */
  replaceBefore(length: number, text: string): void {
    this.#remember();
    let from = this.#cursor;
    for (let left = length; left > 0 && from > 0; from--) left -= (this.#cells[from - 1] as Cell).text.length;
    const cells = toCells(text);
    this.#cells.splice(from, this.#cursor - from, ...cells);
    this.#cursor = from + cells.length;
  }

  /** Shows what is folded, so that it can be edited. */
  unfold(): void {
    if (!this.#cells.some(({ isFolded }) => isFolded)) return;
    this.#remember();
    const left = this.#cells.length - this.#cursor;
    this.#cells = this.#cells.flatMap((cell) => (cell.isFolded ? toCells(cell.text) : [cell]));
    this.#cursor = this.#cells.length - left;
  }

  moveTo(cell: number): void {
    this.#cursor = Math.max(0, Math.min(cell, this.#cells.length));
  }

  /** Where the line of the cursor begins. */
  get lineStart(): number {
    return this.#cells.findLastIndex(({ text }, index) => index < this.#cursor && text === '\n') + 1;
  }

  /** Where the line of the cursor ends. */
  get lineEnd(): number {
    const end = this.#cells.findIndex(({ text }, index) => index >= this.#cursor && text === '\n');
    return end < 0 ? this.#cells.length : end;
  }

  /** Where the word to the left of the cursor begins. Words of Chinese are told by a dictionary. */
  get wordLeft(): number {
    return this.#wordEdges().starts.findLast((start) => start < this.#cursor) ?? 0;
  }

  /** Where the word to the right of the cursor ends. */
  get wordRight(): number {
    return this.#wordEdges().ends.find((end) => end > this.#cursor) ?? this.#cells.length;
  }

  /** Deletes up to a cell, without a way to paste what was there. */
  deleteTo(cell: number): void {
    const [from, to] = this.#range(cell);
    if (from === to) return;
    this.#remember();
    this.#cells.splice(from, to - from);
    this.#cursor = from;
  }

  /** Cuts up to a cell: `yank()` pastes what was there. */
  killTo(cell: number): void {
    const [from, to] = this.#range(cell);
    if (from < to) this.#killed = this.#cells.slice(from, to);
    this.deleteTo(cell);
  }

  killAll(): void {
    this.#cursor = 0;
    this.killTo(this.#cells.length);
  }

  yank(): void {
    if (this.#killed.length === 0) return;
    this.#remember();
    this.#cells.splice(this.#cursor, 0, ...this.#killed);
    this.#cursor += this.#killed.length;
  }

  undo(): void {
    const last = this.#undo.pop();
    if (last) [this.#cells, this.#cursor] = [last.cells, last.cursor];
  }

  #range(cell: number): [from: number, to: number] {
    const other = Math.max(0, Math.min(cell, this.#cells.length));
    return [Math.min(this.#cursor, other), Math.max(this.#cursor, other)];
  }

  #remember(): void {
    this.#undo.push({ cells: [...this.#cells], cursor: this.#cursor });
    // A cell is some tens of bytes, and nobody takes back more.
    if (this.#undo.length > 100) this.#undo.shift();
  }

  #wordEdges(): { starts: number[]; ends: number[] } {
    // A folded paste is one letter of a word here.
    const texts = this.#cells.map(({ text, isFolded }) => (isFolded ? '\ue000' : text));
    const cellAt = new Map<number, number>();
    let length = 0;
    for (const [index, text] of texts.entries()) {
      cellAt.set(length, index);
      length += text.length;
    }
    cellAt.set(length, texts.length);
    const edges: { starts: number[]; ends: number[] } = { starts: [], ends: [] };
    for (const { index, segment, isWordLike } of words.segment(texts.join(''))) {
      if (!isWordLike && !segment.includes('\ue000')) continue;
      edges.starts.push(cellAt.get(index) ?? 0);
      edges.ends.push(cellAt.get(index + segment.length) ?? texts.length);
    }
    return edges;
  }
}

function textOf(cells: readonly Cell[]): string {
  return cells.map(({ text }) => text).join('');
}

function isLong(text: string): boolean {
  return text.length > FOLDED_CHARACTERS || text.split('\n', FOLDED_LINES + 1).length > FOLDED_LINES;
}

function folded(text: string): Cell {
  const lines = text.split('\n').length;
  const shown = `[pasted ${lines} ${lines === 1 ? 'line' : 'lines'}, ${text.length} characters]`;
  return { text, shown, width: shown.length, isFolded: true };
}

function toCells(text: string): Cell[] {
  return splitGraphemes(text.replace(/\r\n?/g, '\n')).map((grapheme) => {
    if (grapheme === '\n') return { text: grapheme, shown: '', width: 0, isFolded: false };
    // A tab's width depends on its place; nothing of what was pasted may move the cursor.
    const shown = grapheme === '\t' ? '    ' : grapheme.replace(/\p{Cc}/gu, '\ufffd');
    return { text: grapheme, shown, width: displayWidth(shown), isFolded: false };
  });
}

/** A buffer as the screen shows it. */
export interface Layout {
  rows: { text: string; width: number }[];
  cursorRow: number;
  cursorColumn: number;
  /** The cells at whose left each row begins. */
  firstCells: number[];
}

/** Breaks a buffer into rows of at most `columns` columns. */
export function layOut(
  { cells, cursor }: Pick<LineBuffer, 'cells' | 'cursor'>,
  prompts: { first: string; more: string },
  columns: number,
): Layout {
  let row = { text: prompts.first, width: displayWidth(prompts.first) };
  const layout: Layout = { rows: [row], cursorRow: 0, cursorColumn: row.width, firstCells: [0] };
  const begin = (text: string, cell: number) => {
    row = { text, width: displayWidth(text) };
    layout.rows.push(row);
    layout.firstCells.push(cell);
  };
  for (const [index, cell] of cells.entries()) {
    if (cell.text !== '\n' && row.width + cell.width > columns && row.width > 0) begin('', index);
    if (index === cursor) [layout.cursorRow, layout.cursorColumn] = [layout.rows.length - 1, row.width];
    if (cell.text === '\n') {
      begin(prompts.more, index + 1);
    } else if (cell.width > columns) {
      // Only a folded paste is so wide: its label goes on row by row.
      for (const char of cell.shown) {
        if (row.width + displayWidth(char) > columns) begin('', index + 1);
        row.text += char;
        row.width += displayWidth(char);
      }
    } else {
      row.text += cell.shown;
      row.width += cell.width;
    }
  }
  if (cursor === cells.length) {
    // The cursor needs a column, too.
    if (row.width >= columns) begin('', cells.length);
    [layout.cursorRow, layout.cursorColumn] = [layout.rows.length - 1, row.width];
  }
  return layout;
}
