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
  print(JSON.stringify(value));
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
