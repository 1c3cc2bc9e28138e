/** Writes a result as one line or more, and nothing but results: everything else goes to stderr. */
export function print(text: string): void {
  write(`${text}\n`);
}

/** Writes a piece of a result. */
export function write(text: string): void {
  send(process.stdout, text);
}

/** Writes one line of JSON. */
export function printJson(value: unknown): void {
  print(jsonText(value));
}

/**
 * JSON that a terminal shows as it is. JSON.stringify leaves some characters alone that terminals obey: the control
 * characters from U+007F on, and changes of the writing direction. A checkpoint's metadata may hold any.
 */
export function jsonText(value: unknown, indent?: number): string {
  const escaped = (char: string) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`;
  return JSON.stringify(value, null, indent).replace(
    /[\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
    escaped,
  );
}

/** Tells people something that is no result. */
export function note(text: string): void {
  send(process.stderr, `${text}\n`);
}

function send(stream: NodeJS.WriteStream, text: string): void {
  stream.write(stream.isTTY ? forTerminal(text) : text);
}

/**
 * Text of a file or a model as a terminal gets it. Control characters, with which a text could move the cursor, hide lines
 * or type commands, become U+FFFD; tabs and line breaks stay, and carriage returns are left out. Pipes and files get every
 * text as it is.
 */
export function forTerminal(text: string): string {
  return text.replaceAll('\r', '').replace(/(?![\t\n])\p{Cc}/gu, '\ufffd');
}
