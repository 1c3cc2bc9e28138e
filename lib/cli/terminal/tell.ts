import { forTerminal, note } from '../output.js';
import { hasColors, type Style, styled } from './style.js';
import { cutToWidth } from './width.js';
import { WordWrap } from './word-wrap.js';

/** Tells people something that is no answer: on a terminal in lines of whole words. */
export function tell(text: string): void {
  tellRow('', text);
}

/** As `tell()`, in two columns: what does not fit goes on in the second one. */
export function tellRow(left: string, right: string): void {
  if (process.stderr.isTTY) process.stderr.write(wrapped(left, right));
  else note(left + right);
}

/** Lines of whole words, each with its end, as wide as the screen. */
export function wrapped(left: string, right: string): string {
  let text = '';
  const write = (piece: string) => {
    text += piece;
  };
  const wrap = new WordWrap(write, screenColumns, false);
  for (const line of forTerminal(right).split('\n')) {
    wrap.push(left);
    wrap.indent = left.length > screenColumns() / 2 ? 2 : left.length;
    wrap.push(line);
    wrap.newline();
  }
  return text;
}

/** One line in a style of its own, cut to the screen. */
export function tellLine(text: string, style: Style = 'plain'): void {
  const { stderr } = process;
  const line = text.replace(/\s+/g, ' ');
  const shown = stderr.isTTY ? cutToWidth(forTerminal(line), screenColumns()) : line;
  stderr.write(`${styled(shown, style, hasColors(stderr))}\n`);
}

/** Code of the model's, as it is. */
export function tellCode(code: string): void {
  const { stderr } = process;
  const shown = stderr.isTTY ? forTerminal(code) : code;
  for (const line of shown.trimEnd().split('\n')) stderr.write(`${styled(`→ ${line}`, 'dim', hasColors(stderr))}\n`);
}

/** Columns of the screen but the last, which stays free: what a terminal does with a cursor behind it differs. */
export function screenColumns(): number {
  return Math.max(2, (process.stderr.columns || 80) - 1);
}
