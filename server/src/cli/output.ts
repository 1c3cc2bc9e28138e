/** Writes a result to stdout. */
export function print(text: string): void {
  process.stdout.write(`${process.stdout.isTTY ? plain(text) : text}\n`);
}

/** Tells people something that is no result, on stderr. */
export function note(text: string): void {
  process.stderr.write(`${process.stderr.isTTY ? plain(text) : text}\n`);
}

/** Without what a terminal would obey instead of showing it. */
function plain(text: string): string {
  return text.replace(/(?![\t\n])\p{Cc}/gu, '\ufffd');
}
