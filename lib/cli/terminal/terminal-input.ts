import { emitKeypressEvents, type Key } from 'node:readline';
import { PATIENCE_MS } from '../interrupt.js';
import type { HistoryFile } from './history-file.js';
import type { ChatInput } from './input.js';
import { type Layout, LineBuffer, layOut } from './line-buffer.js';
import { isOpenQuote, type Typed, unquote } from './quoted.js';
import { styled } from './style.js';
import { wrapped } from './tell.js';
import { cutToWidth, displayWidth } from './width.js';

// What this file writes and does not take from node:readline's Interface, it writes because the Interface moves the cursor
// by code points, echoes what is typed while an answer is being printed, knows no pastes and no message of several lines in
// Node 20, and loses its place when a terminal is resized; all of its methods that would have to be replaced are private.
// Keys are told apart by node:readline.

const PASTE_ON = '\x1b[?2004h';
const PASTE_OFF = '\x1b[?2004l';
/** How long a window's size must stay the same before the prompt is drawn anew. */
const SETTLED_MS = 50;
/** Shift-Enter and Alt-Enter of terminals that tell them from Enter (the kitty protocol). */
const lineBreakSequences = new Set(['\x1b[13;2u', '\x1b[13;3u', '\x1b[13;5u']);

/** What completion offers for the text before the cursor. */
export interface Completion {
  /** How many characters before the cursor are replaced. */
  length: number;
  candidates: string[];
}

export interface TerminalInputSetup {
  history: HistoryFile;
  complete: (textBeforeCursor: string) => Promise<Completion>;
  hasColors: boolean;
}

type Event = { key: Key & { char: string | undefined } } | { paste: string };

/** One question to the user, as long as it is open. */
interface Reading {
  prompt: string;
  buffer: LineBuffer;
  /** The entry of the history that is shown; its length: what is being typed. */
  historyIndex: number;
  /** What was typed before an entry of the history was called up. */
  draft: string;
  search: { query: string; index: number } | undefined;
  /** The column that Up and Down keep. */
  column: number | undefined;
  lastWasTab: boolean;
  resolve: (typed: Typed | undefined) => void;
}

/** Reads messages from a terminal, with keys to edit them. Prompts go to stderr: stdout is for answers. */
export class TerminalInput implements ChatInput {
  readonly isInteractive = true;

  readonly #input = process.stdin;
  readonly #output = process.stderr;
  readonly #setup: TerminalInputSetup;
  /** What was typed while nobody asked. */
  #events: Event[] = [];
  #paste: string | undefined;
  #reading: Reading | undefined;
  #confirming: ((isYes: boolean) => void) | undefined;
  #redraw: NodeJS.Timeout | undefined;
  #isHandling = false;
  #isEnded = false;
  #isClosed = false;
  #hasPrompted = false;
  #interruptedAt: number | undefined;
  /** What was typed before this program had the terminal has line feeds for Enter. */
  #isEarly = true;
  /** Ctrl-C was pressed at an empty prompt: the next one ends. */
  #isLeaving = false;
  /** What stands on the screen, and how wide the screen was. */
  #drawn: { rows: { text: string }[]; cursorRow: number; cursorColumn: number; columns: number } | undefined;

  constructor(setup: TerminalInputSetup) {
    this.#setup = setup;
    emitKeypressEvents(this.#input);
    this.#input.on('keypress', this.#onKeypress);
    this.#input.on('end', this.#onEnd).on('error', this.#onEnd);
    this.#output.on('resize', this.#onResize);
    process.on('SIGINT', this.#onInterrupt);
    process.on('SIGTERM', this.#onTerminate).on('SIGHUP', this.#onTerminate);
    process.on('exit', this.#restore);
    if (process.platform !== 'win32') process.on('SIGCONT', this.#onContinue);
    this.#takeTerminal();
    // An immediate comes after what the system had for the program at once.
    setTimeout(() => setImmediate(() => (this.#isEarly = false)), SETTLED_MS).unref();
  }

  async next(prompt: string, initial = ''): Promise<Typed | undefined> {
    if (this.#isEnded || this.#isClosed) return undefined;
    return await new Promise((resolve) => {
      const buffer = new LineBuffer();
      if (initial !== '') {
        buffer.set(initial);
        buffer.unfold();
      }
      this.#reading = {
        prompt,
        buffer,
        historyIndex: this.#setup.history.entries.length,
        draft: '',
        search: undefined,
        column: undefined,
        lastWasTab: false,
        resolve,
      };
      this.#isLeaving = false;
      this.#hasPrompted = true;
      this.#interruptedAt = undefined;
      this.#draw();
      void this.#handleEvents();
    });
  }

  async confirm(question: string): Promise<boolean> {
    if (this.#isEnded || this.#isClosed) return false;
    this.#output.write(`${question} [y/N] `);
    // What was typed before the question was seen answers nothing.
    const isYes = await new Promise<boolean>((resolve) => {
      this.#confirming = resolve;
    });
    this.#confirming = undefined;
    this.#output.write(isYes ? 'y\n' : 'n\n');
    return isYes;
  }

  close(): void {
    if (this.#isClosed) return;
    this.#restore();
    this.#isClosed = true;
    this.#input.off('keypress', this.#onKeypress).off('end', this.#onEnd).off('error', this.#onEnd);
    this.#output.off('resize', this.#onResize);
    clearTimeout(this.#redraw);
    process.off('SIGINT', this.#onInterrupt);
    process.off('SIGTERM', this.#onTerminate).off('SIGHUP', this.#onTerminate);
    process.off('exit', this.#restore).off('SIGCONT', this.#onContinue);
    this.#input.pause();
    this.#finish(undefined);
  }

  #takeTerminal(): void {
    this.#input.setRawMode(true);
    this.#input.resume();
    this.#output.write(PASTE_ON);
  }

  readonly #restore = (): void => {
    if (this.#isClosed) return;
    this.#output.write(PASTE_OFF);
    if (!this.#isEnded) this.#input.setRawMode(false);
  };

  readonly #onEnd = (): void => {
    this.#isEnded = true;
    this.#confirming?.(false);
    this.#finish(undefined);
  };

  readonly #onTerminate = (signal: NodeJS.Signals): void => {
    this.close();
    // With this file's handlers gone, the signal does what it does without them.
    process.kill(process.pid, signal);
  };

  /** SIGINT from outside, or Ctrl-C while no message is being typed. */
  readonly #onInterrupt = (): void => {
    if (this.#confirming) this.#confirming(false);
    else if (this.#reading) this.#enqueue({ key: { name: 'c', ctrl: true, char: undefined } });
    else if (process.listenerCount('SIGINT') === 1) this.#interruptNobody();
  };

  /** Ctrl-C while nothing runs that could be stopped: before the first prompt, or in the moment after an answer. */
  #interruptNobody(): void {
    const now = performance.now();
    if (!this.#hasPrompted || (this.#interruptedAt !== undefined && now - this.#interruptedAt > PATIENCE_MS)) {
      // Nobody listens to the signal, and what runs, such as the start of a server of tools, cannot be stopped. 130 is what a
      // shell gives for Ctrl-C; the listener of 'exit' gives the terminal back.
      process.exit(130);
    }
    if (this.#interruptedAt !== undefined) return;
    this.#interruptedAt = now;
    // The prompt hears of it before what was typed ahead, which it would clear.
    this.#events.unshift({ key: { name: 'c', ctrl: true, char: undefined } });
  }

  readonly #onKeypress = (char: string | undefined, key: Key): void => {
    if (key.name === 'paste-start') {
      this.#paste = '';
    } else if (key.name === 'paste-end') {
      const paste = this.#paste ?? '';
      this.#paste = undefined;
      this.#enqueue({ paste });
    } else if (this.#paste !== undefined) {
      this.#paste += key.sequence ?? char ?? '';
    } else if (key.ctrl && key.name === 'c' && (!this.#reading || this.#confirming)) {
      process.emit('SIGINT', 'SIGINT');
    } else if (this.#confirming) {
      if (char === 'y' || char === 'Y') this.#confirming(true);
      else if (char === 'n' || char === 'N' || key.name === 'return' || key.name === 'escape') this.#confirming(false);
    } else {
      const name = this.#isEarly && key.name === 'enter' ? 'return' : key.name;
      this.#enqueue({ key: { ...key, ...(name === undefined ? {} : { name }), char } });
    }
  };

  readonly #onResize = (): void => {
    // A window that is being dragged has another size with each event: what is drawn for one would meet the next.
    clearTimeout(this.#redraw);
    this.#redraw = setTimeout(() => {
      if (this.#reading) this.#draw();
    }, SETTLED_MS);
  };

  #enqueue(event: Event): void {
    this.#events.push(event);
    void this.#handleEvents();
  }

  /** Handles what was typed, one event after the other, as long as somebody waits for a message. */
  async #handleEvents(): Promise<void> {
    if (this.#isHandling) return;
    this.#isHandling = true;
    try {
      while (this.#reading && this.#events.length > 0) {
        const event = this.#events.shift() as Event;
        if ('paste' in event) {
          this.#edit(this.#reading).paste(event.paste);
        } else {
          await this.#onKey(this.#reading, event.key);
        }
        // A burst of keys is drawn once.
        if (this.#reading && this.#events.length === 0) this.#draw();
      }
    } finally {
      this.#isHandling = false;
    }
  }

  /** The buffer, about to be changed. */
  #edit(reading: Reading): LineBuffer {
    this.#isLeaving = false;
    reading.lastWasTab = false;
    reading.column = undefined;
    if (reading.search) this.#endSearch(reading, true);
    return reading.buffer;
  }

  async #onKey(reading: Reading, key: Key & { char: string | undefined }): Promise<void> {
    const { name, ctrl, meta, sequence, char } = key;
    if (reading.search && this.#onSearchKey(reading, key)) return;
    const isTab = name === 'tab' && !ctrl && !meta;
    if (!ctrl || name !== 'c') this.#isLeaving = false;
    const { lastWasTab } = reading;
    reading.lastWasTab = isTab;
    if (name !== 'up' && name !== 'down') reading.column = undefined;

    const { buffer } = reading;
    const isLineBreak = name === 'enter' || (name === 'return' && meta) || lineBreakSequences.has(sequence ?? '');
    const action = this.#actions(reading)[`${ctrl ? 'ctrl-' : ''}${meta ? 'meta-' : ''}${name}`];
    if (isTab) await this.#complete(reading, lastWasTab);
    else if (isLineBreak) buffer.insert('\n');
    else if (action) action();
    else if (sequence === '\x1f') buffer.undo();
    else if (char !== undefined && !ctrl && !meta && !/\p{Cc}/u.test(char)) buffer.insert(char);
  }

  /** What keys do, by the names that node:readline gives them. */
  #actions(reading: Reading): Record<string, () => void> {
    const { buffer } = reading;
    const wordLeft = () => buffer.moveTo(buffer.wordLeft);
    const wordRight = () => buffer.moveTo(buffer.wordRight);
    const killWordLeft = () => buffer.killTo(buffer.wordLeft);
    const killWordRight = () => buffer.killTo(buffer.wordRight);
    const left = () => buffer.moveTo(buffer.cursor - 1);
    const right = () => buffer.moveTo(buffer.cursor + 1);
    const home = () => buffer.moveTo(buffer.lineStart);
    const end = () => buffer.moveTo(buffer.lineEnd);
    const backspace = () => buffer.deleteTo(buffer.cursor - 1);
    const deleteRight = () => buffer.deleteTo(buffer.cursor + 1);
    const older = () => this.#historyStep(reading, -1);
    const newer = () => this.#historyStep(reading, 1);
    return {
      return: () => this.#submit(reading),
      backspace,
      'ctrl-h': backspace,
      'meta-backspace': killWordLeft,
      'ctrl-backspace': killWordLeft,
      'ctrl-w': killWordLeft,
      delete: deleteRight,
      'meta-delete': killWordRight,
      'ctrl-delete': killWordRight,
      'meta-d': killWordRight,
      'ctrl-d': () => (buffer.isEmpty ? this.#finish(undefined) : deleteRight()),
      left,
      'ctrl-b': left,
      'ctrl-left': wordLeft,
      'meta-left': wordLeft,
      'meta-b': wordLeft,
      right,
      'ctrl-f': right,
      'ctrl-right': wordRight,
      'meta-right': wordRight,
      'meta-f': wordRight,
      home,
      'ctrl-a': home,
      'ctrl-home': () => buffer.moveTo(0),
      end,
      'ctrl-e': end,
      'ctrl-end': () => buffer.moveTo(buffer.cells.length),
      up: () => this.#vertical(reading, -1),
      down: () => this.#vertical(reading, 1),
      'ctrl-o': () => buffer.unfold(),
      'ctrl-p': older,
      pageup: older,
      'ctrl-n': newer,
      pagedown: newer,
      // At a line's end the line break goes.
      'ctrl-k': () => buffer.killTo(buffer.lineEnd === buffer.cursor ? buffer.cursor + 1 : buffer.lineEnd),
      'ctrl-u': () => buffer.killTo(buffer.lineStart),
      'ctrl-y': () => buffer.yank(),
      'ctrl-r': () => {
        reading.draft = buffer.text;
        reading.search = { query: '', index: this.#setup.history.entries.length };
      },
      'ctrl-l': () => {
        this.#output.write('\x1b[H\x1b[2J');
        this.#drawn = undefined;
      },
      'ctrl-c': () => this.#interrupt(reading),
      'ctrl-z': () => this.#suspend(),
    };
  }

  #interrupt(reading: Reading): void {
    if (!reading.buffer.isEmpty) {
      // Ctrl-Y brings the text back.
      reading.buffer.killAll();
      reading.historyIndex = this.#setup.history.entries.length;
    } else if (this.#isLeaving) {
      this.#finish(undefined);
    } else {
      this.#isLeaving = true;
      this.#printAbove(wrapped('', '(press Ctrl-C again or type /exit to leave)'));
    }
  }

  #submit(reading: Reading): void {
    const { text } = reading.buffer;
    if (isOpenQuote(text)) {
      reading.buffer.moveTo(reading.buffer.cells.length);
      reading.buffer.insert('\n');
      return;
    }
    this.#setup.history.add(text);
    this.#finish(unquote(text));
  }

  /** The message is complete, or there will be none any more. */
  #finish(typed: Typed | undefined): void {
    const reading = this.#reading;
    if (!reading) return;
    reading.buffer.moveTo(reading.buffer.cells.length);
    reading.search = undefined;
    if (!this.#isEnded) {
      this.#draw(true);
      this.#output.write('\n');
    }
    this.#drawn = undefined;
    this.#reading = undefined;
    reading.resolve(typed);
  }

  /** Up and Down go from row to row, and from the first and the last one to the history. */
  #vertical(reading: Reading, step: -1 | 1): void {
    const { buffer } = reading;
    const layout = this.#layout(reading);
    const row = layout.cursorRow + step;
    if (row < 0 || row >= layout.rows.length) {
      this.#historyStep(reading, step);
      return;
    }
    const column = reading.column ?? layout.cursorColumn;
    const from = layout.firstCells[row] as number;
    let to = from;
    let width = displayWidth(this.#rowPrefix(reading, row, from));
    const end = layout.firstCells[row + 1] ?? buffer.cells.length + 1;
    for (; to < end - 1; to++) {
      const cell = buffer.cells[to];
      if (!cell || width + cell.width > column) break;
      width += cell.width;
    }
    buffer.moveTo(to);
    reading.column = column;
  }

  #rowPrefix(reading: Reading, row: number, firstCell: number): string {
    const { first, more } = this.#prompts(reading);
    if (row === 0) return first;
    return reading.buffer.cells[firstCell - 1]?.text === '\n' ? more : '';
  }

  #historyStep(reading: Reading, step: -1 | 1): void {
    const { entries } = this.#setup.history;
    const index = reading.historyIndex + step;
    if (index < 0 || index > entries.length) return;
    if (reading.historyIndex === entries.length) reading.draft = reading.buffer.text;
    reading.historyIndex = index;
    reading.buffer.set(entries[index] ?? reading.draft);
  }

  /** Returns whether the key belonged to the search. */
  #onSearchKey(reading: Reading, { name, ctrl, meta, char }: Key & { char: string | undefined }): boolean {
    const search = reading.search as NonNullable<Reading['search']>;
    const { entries } = this.#setup.history;
    const find = (from: number) => {
      const index = entries.findLastIndex((entry, at) => at <= from && entry.includes(search.query));
      if (index < 0) return;
      search.index = index;
      reading.buffer.set(entries[index] as string);
    };
    if (ctrl && name === 'r') {
      find(search.index - 1);
    } else if ((ctrl && (name === 'g' || name === 'c')) || name === 'escape') {
      this.#endSearch(reading, false);
    } else if (name === 'backspace') {
      search.query = search.query.slice(0, -1);
      find(entries.length - 1);
    } else if (char !== undefined && !ctrl && !meta && !/\p{Cc}/u.test(char)) {
      search.query += char;
      find(Math.min(search.index, entries.length - 1));
    } else {
      this.#endSearch(reading, true);
      return false;
    }
    return true;
  }

  #endSearch(reading: Reading, takesIt: boolean): void {
    if (!takesIt) reading.buffer.set(reading.draft);
    else if (reading.search) reading.historyIndex = reading.search.index;
    reading.search = undefined;
  }

  async #complete(reading: Reading, lastWasTab: boolean): Promise<void> {
    const { buffer } = reading;
    const { length, candidates } = await this.#setup.complete(buffer.textBeforeCursor);
    if (this.#reading !== reading || candidates.length === 0) return;
    const typed = length === 0 ? '' : buffer.textBeforeCursor.slice(-length);
    const common = commonPrefix(candidates);
    if (candidates.length === 1) {
      const [only] = candidates as [string];
      buffer.replaceBefore(length, only.endsWith('/') ? only : `${only} `);
    } else if (common.length > typed.length) {
      buffer.replaceBefore(length, common);
    } else if (lastWasTab) {
      this.#printAbove(inColumns(candidates, this.#columns()));
    }
  }

  #suspend(): void {
    if (process.platform === 'win32') return;
    this.#eraseDrawn();
    this.#restore();
    process.kill(process.pid, 'SIGTSTP');
    // Fires once the process goes on; or soon, where there is no shell and the signal does nothing.
    setTimeout(this.#onContinue, SETTLED_MS);
  }

  readonly #onContinue = (): void => {
    if (this.#isClosed || this.#isEnded) return;
    this.#takeTerminal();
    if (this.#reading) this.#draw();
  };

  #columns(): number {
    return this.#output.columns || 80;
  }

  #prompts({ prompt, search }: Reading): { first: string; more: string } {
    const first = search ? `(search ${JSON.stringify(search.query)}) ` : prompt;
    // A row is never wider than the screen; a long query leaves room for a character of what was found.
    return { first: cutToWidth(first, this.#columns() - 4), more: '... '.padStart(displayWidth(prompt)) };
  }

  /** The last column stays free: what a terminal does with a cursor behind it differs. */
  #layout(reading: Reading): Layout {
    return layOut(reading.buffer, this.#prompts(reading), Math.max(2, this.#columns() - 1));
  }

  /** Draws the message that is being typed in the place of what was drawn before. */
  #draw(isWhole = false): void {
    const reading = this.#reading as Reading;
    const { rows, cursorRow, cursorColumn } = this.#layout(reading);
    const { first, more } = this.#prompts(reading);
    // As many rows as the screen has, around the cursor. A message that is complete may scroll: it is not drawn again.
    const height = Math.max(1, (this.#output.rows || 24) - 1);
    const top = isWhole ? 0 : Math.max(0, Math.min(cursorRow - height + 1, rows.length - height));
    const shown = isWhole ? rows : rows.slice(top, top + height);
    const texts = shown.map(({ text }, index) => {
      const lead = index + top === 0 ? first : more;
      if (!this.#setup.hasColors || !text.startsWith(lead)) return text;
      return styled(lead, index + top === 0 ? 'bold' : 'dim', true) + text.slice(lead.length);
    });
    const up = shown.length - 1 - (cursorRow - top);
    this.#output.write(
      `${this.#toStart()}\x1b[J${texts.join('\r\n')}${up > 0 ? `\x1b[${up}A` : ''}\r${cursorColumn > 0 ? `\x1b[${cursorColumn}C` : ''}`,
    );
    this.#drawn = { rows: shown, cursorRow: cursorRow - top, cursorColumn, columns: this.#columns() };
  }

  /** Moves the cursor to where the drawn text begins. */
  #toStart(): string {
    if (!this.#drawn) return '\r';
    const { rows, cursorRow, columns } = this.#drawn;
    const now = this.#columns();
    // A terminal that has become narrower breaks the rows above the cursor anew. What it does with the cursor's own row
    // differs; the row is taken as one, so that nothing of the conversation above is ever erased.
    const above = rows.slice(0, cursorRow).map(({ text }) => (now < columns ? brokenRows(text, now) : 1));
    const up = above.reduce((sum, each) => sum + each, 0);
    return `${up > 0 ? `\x1b[${up}A` : ''}\r`;
  }

  #eraseDrawn(): void {
    this.#output.write(`${this.#toStart()}\x1b[J`);
    this.#drawn = undefined;
  }

  #printAbove(text: string): void {
    this.#eraseDrawn();
    this.#output.write(text);
  }
}

/** How many rows a terminal makes of one that has become too wide: no wide character is cut in two. */
function brokenRows(text: string, columns: number): number {
  let rows = 1;
  let column = 0;
  for (const char of text) {
    const width = displayWidth(char);
    if (column + width > columns) {
      rows++;
      column = 0;
    }
    column += width;
  }
  return rows;
}

function commonPrefix(texts: readonly string[]): string {
  let prefix = texts[0] ?? '';
  for (const text of texts) while (!text.startsWith(prefix)) prefix = prefix.slice(0, -1);
  return prefix;
}

function inColumns(texts: readonly string[], columns: number): string {
  const width = Math.max(...texts.map(displayWidth)) + 2;
  const perLine = Math.max(1, Math.floor(columns / width));
  const lines: string[] = [];
  for (let at = 0; at < texts.length; at += perLine) {
    const line = texts.slice(at, at + perLine).map((text) => text + ' '.repeat(width - displayWidth(text)));
    lines.push(`${line.join('').trimEnd()}\n`);
  }
  return lines.join('');
}
