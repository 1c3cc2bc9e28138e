import path from 'node:path';
import { type IPty, spawn } from '@lydell/node-pty';
import { Terminal } from '@xterm/headless';

const main = path.join(__dirname, '..', '..', 'dist', 'cli', 'main.js');

const wide =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6]|(?!\p{Regional_Indicator})\p{Emoji_Presentation}/u;

function widthOf(code: number): 0 | 1 | 2 {
  const char = String.fromCodePoint(code);
  if (code < 0x20 || /[\p{Mn}\p{Me}\p{Cf}]/u.test(char)) return 0;
  return wide.test(char) ? 2 : 1;
}

export interface ScreenOptions {
  columns?: number;
  rows?: number;
  env?: Record<string, string>;
}

/** A program on a terminal: keystrokes in, a screen out. */
export class Screen {
  /** Everything that the program has written. */
  raw = '';
  /** The exit code, once the screen shows all that the program has written. */
  readonly ended: Promise<number>;
  readonly #terminal: Terminal;
  readonly #pty: IPty;
  #isEnded = false;
  #waiting: (() => void)[] = [];

  /** Starts the command line. */
  constructor(args: readonly string[], { columns = 60, rows = 20, env = {} }: ScreenOptions) {
    this.#terminal = new Terminal({ cols: columns, rows, scrollback: 5000, allowProposedApi: true });
    // The screen's own table of widths is that of Unicode 6, in which an emoji is narrow.
    this.#terminal.unicode.register({
      version: 'today',
      wcwidth: widthOf,
      charProperties: (code, preceding) => {
        const before = (preceding >> 1) & 3;
        const joins = widthOf(code) === 0 && before > 0;
        return ((joins ? before : widthOf(code)) << 1) | (joins ? 1 : 0);
      },
    });
    this.#terminal.unicode.activeVersion = 'today';
    const base = { PATH: process.env.PATH ?? '', TERM: 'xterm-256color' };
    this.#pty = spawn(process.execPath, [main, ...args], {
      cols: columns,
      rows,
      name: env.TERM ?? 'xterm-256color',
      env: { ...base, ...env },
    });
    this.#pty.onData((data) => {
      this.raw += data;
      this.#terminal.write(data, () => this.#wake());
    });
    this.ended = new Promise((resolve) => {
      this.#pty.onExit(({ exitCode, signal }) => {
        // Behind everything that was written before: then the screen is complete.
        this.#terminal.write('', () => {
          this.#isEnded = true;
          this.#wake();
          resolve(signal ? 128 + signal : exitCode);
        });
      });
    });
  }

  type(keys: string): void {
    this.#pty.write(keys);
  }

  resize(columns: number, rows: number): void {
    this.#terminal.resize(columns, rows);
    this.#pty.resize(columns, rows);
  }

  kill(signal: string): void {
    this.#pty.kill(signal);
  }

  /** All lines, those that have scrolled off the screen included. */
  get lines(): string[] {
    const { active } = this.#terminal.buffer;
    const lines = Array.from({ length: active.length }, (_, y) => active.getLine(y)?.translateToString(true) ?? '');
    return lines.slice(0, lines.findLastIndex((line) => line !== '') + 1);
  }

  get text(): string {
    return this.lines.join('\n');
  }

  /** The last line, which is where messages are typed. */
  get lastLine(): string {
    return this.lines.at(-1) ?? '';
  }

  /** Where the cursor is: the column, and the line counted from the first one that was ever written. */
  get cursor(): { column: number; line: number } {
    const { active } = this.#terminal.buffer;
    return { column: active.cursorX, line: active.baseY + active.cursorY };
  }

  /** Whether a cell is bold or dim. */
  styleAt(line: number, column: number): { isBold: boolean; isDim: boolean } {
    const cell = this.#terminal.buffer.active.getLine(line)?.getCell(column);
    return { isBold: Boolean(cell?.isBold()), isDim: Boolean(cell?.isDim()) };
  }

  /** Resolves once the screen shows something. */
  async until(isShown: (text: string) => boolean): Promise<void> {
    while (!isShown(this.text)) {
      if (this.#isEnded) throw new Error(`the program has ended; on the screen:\n${this.text}`);
      await new Promise<void>((resolve, reject) => {
        // A screen on which nothing happens any more is told in the error.
        const timer = setTimeout(() => reject(new Error(`not shown; on the screen:\n${this.text}`)), 60_000);
        this.#waiting.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }

  async untilLastLine(line: string): Promise<void> {
    await this.until(() => this.lastLine === line);
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }
}
