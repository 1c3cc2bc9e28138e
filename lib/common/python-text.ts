// What THUDM's Python code does to text where JavaScript's own functions differ a little.

/** The characters that Python's `str.strip()` strips: not those of `trim()`, which takes U+FEFF and leaves U+001C…1F. */
const whitespace = new Set(
  '\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000',
);

/** Python's `text.lstrip()`. */
export function stripStart(text: string): string {
  let start = 0;
  while (start < text.length && whitespace.has(text.charAt(start))) start++;
  return text.slice(start);
}

/** Python's `text.rstrip()`. */
export function stripEnd(text: string): string {
  let end = text.length;
  while (end > 0 && whitespace.has(text.charAt(end - 1))) end--;
  return text.slice(0, end);
}

/** Python's `text.strip()`. */
export function strip(text: string): string {
  return stripEnd(stripStart(text));
}

/** Python's `json.dumps(value, indent=4, ensure_ascii=False)`, of a value that came from JSON. */
export function dumpJson(value: unknown, indentation = ''): string {
  if (typeof value === 'number') return dumpNumber(value);
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const inner = `${indentation}    `;
  const [open, close] = Array.isArray(value) ? '[]' : '{}';
  const entries = Array.isArray(value)
    ? value.map((entry: unknown) => dumpJson(entry, inner))
    : Object.entries(value).map(([key, entry]) => `${JSON.stringify(key)}: ${dumpJson(entry, inner)}`);
  if (entries.length === 0) return `${open}${close}`;
  return `${open}\n${inner}${entries.join(`,\n${inner}`)}\n${indentation}${close}`;
}

/** Python's `json.dumps(value, ensure_ascii=False)`, of a value that came from JSON. */
export function dumpJsonLine(value: unknown): string {
  if (typeof value === 'number') return dumpNumber(value);
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(dumpJsonLine).join(', ')}]`;
  const entries = Object.entries(value).map(([key, entry]) => `${JSON.stringify(key)}: ${dumpJsonLine(entry)}`);
  return `{${entries.join(', ')}}`;
}

function dumpNumber(value: number): string {
  // Python goes over to exponents below 1e-4 (JavaScript: below 1e-6) and writes them with two digits at least.
  if (value === 0 || Math.abs(value) >= 1e-4) return JSON.stringify(value);
  return value.toExponential().replace(/e-(\d)$/, 'e-0$1');
}
