/** Writes a result, and nothing but results: everything else goes to stderr. */
export function print(text: string): void {
  process.stdout.write(`${text}\n`);
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
  process.stderr.write(`${text}\n`);
}
