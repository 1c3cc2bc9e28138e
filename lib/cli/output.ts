/** Writes a result, and nothing but results: everything else goes to stderr. */
export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** Writes one line of JSON. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** Tells people something that is no result. */
export function note(text: string): void {
  process.stderr.write(`${text}\n`);
}
