/** What somebody typed: a message, or perhaps a command. */
export interface Typed {
  text: string;
  /** The text stood between `"""`: it is a message, whatever it says. */
  isQuoted: boolean;
}

const mark = '"""';

/** Whether `"""` has begun a message and not ended it yet. */
export function isOpenQuote(text: string): boolean {
  const trimmed = text.trim();
  return trimmed.startsWith(mark) && !(trimmed.length >= 2 * mark.length && trimmed.endsWith(mark));
}

/** A message without the `"""` around it, and without the line breaks next to those. */
export function unquote(text: string): Typed {
  const trimmed = text.trim();
  if (!trimmed.startsWith(mark)) return { text, isQuoted: false };
  const end = isOpenQuote(text) ? trimmed.length : -mark.length;
  return { text: trimmed.slice(mark.length, end).replace(/^\n/, '').replace(/\n$/, ''), isQuoted: true };
}
