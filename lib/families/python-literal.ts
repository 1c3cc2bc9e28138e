// Writes what python-call.ts reads: the arguments of a tool as ChatGLM3 was trained to write them. The way goes from JSON's
// text, not from JavaScript's values, in which 1.0 and 1 are one number and an id of 18 digits is rounded.

/** As deep as parseToolCall() reads. */
const MOST_LEVELS = 64;

/**
 * The call of a tool in Python: `tool_call(city='北京', days=2)`. Keys that cannot be keywords stand in a dictionary behind
 * the others: `tool_call(a=1, **{'b-c': 2})`. Words that Python reserves are keywords here, as parseToolCall() reads them.
 *
 * @param json The text of a JSON object.
 * @returns undefined for any other text, for numbers that only infinity could stand for, and for what is nested too deeply.
 */
export function writeToolCall(json: string): string | undefined {
  if (!isObjectText(json)) return undefined;
  try {
    const reader = new JsonReader(json);
    const keywords: string[] = [];
    const others: string[] = [];
    for (const [key, value] of reader.object(0)) {
      if (/^[\p{L}_][\p{L}\p{N}_]*$/u.test(key)) keywords.push(`${key}=${value}`);
      else others.push(`${pythonString(key)}: ${value}`);
    }
    if (others.length > 0) keywords.push(`**{${others.join(', ')}}`);
    return `tool_call(${keywords.join(', ')})`;
  } catch (error) {
    if (error instanceof NotWritable) return undefined;
    throw error;
  }
}

/** Code in the Markdown fence that ChatGLM3 writes around code and calls. */
export function fencedPython(code: string): string {
  return `\`\`\`python\n${code}\n\`\`\``;
}

function isObjectText(json: string): boolean {
  try {
    const value: unknown = JSON.parse(json);
    return typeof value === 'object' && value !== null && !Array.isArray(value);
  } catch {
    return false;
  }
}

class NotWritable extends Error {}

/** Reads a text that is known to be JSON, and gives each value as Python writes it. */
class JsonReader {
  readonly #text: string;
  #position = 0;

  constructor(text: string) {
    this.#text = text;
  }

  /** The entries of an object at the position; of a key that comes twice the last value, in the place of the first. */
  object(level: number): Map<string, string> {
    const entries = new Map<string, string>();
    this.#take(/\s*\{\s*/y);
    while (!this.#accept(/\}\s*/y)) {
      const key = JSON.parse(this.#string()) as string;
      this.#take(/\s*:\s*/y);
      entries.set(key, this.#value(level + 1));
      this.#accept(/,\s*/y);
    }
    return entries;
  }

  /** The value at the position, with the white space behind. */
  #value(level: number): string {
    if (level > MOST_LEVELS) throw new NotWritable();
    const next = this.#text.charAt(this.#position);
    if (next === '{') {
      const entries = [...this.object(level)].map(([key, value]) => `${pythonString(key)}: ${value}`);
      return `{${entries.join(', ')}}`;
    }
    if (next === '[') {
      const items: string[] = [];
      this.#take(/\[\s*/y);
      while (!this.#accept(/\]\s*/y)) {
        items.push(this.#value(level + 1));
        this.#accept(/,\s*/y);
      }
      return `[${items.join(', ')}]`;
    }
    const value = next === '"' ? pythonString(JSON.parse(this.#string()) as string) : this.#word();
    this.#accept(/\s+/y);
    return value;
  }

  #string(): string {
    return this.#take(/"(?:[^"\\]|\\.)*"/y);
  }

  #word(): string {
    const word = this.#take(/[-+.\w]+/y);
    if (word === 'true') return 'True';
    if (word === 'false') return 'False';
    if (word === 'null') return 'None';
    return pythonNumber(word);
  }

  #take(pattern: RegExp): string {
    const match = this.#accept(pattern);
    if (match === undefined) throw new NotWritable();
    return match;
  }

  #accept(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#position;
    const match = pattern.exec(this.#text)?.[0];
    if (match !== undefined) this.#position = pattern.lastIndex;
    return match;
  }
}

/** Python's `repr()` of what its json module reads: integers as they are, floats with the fewest digits. */
function pythonNumber(token: string): string {
  if (/^-?\d+$/.test(token)) return token === '-0' ? '0' : token;
  const value = Number(token);
  if (!Number.isFinite(value)) throw new NotWritable();
  if (value === 0) return token.startsWith('-') ? '-0.0' : '0.0';
  const [mantissa = '', exponentText = ''] = value.toExponential().split('e');
  const exponent = Number(exponentText);
  if (exponent < -4 || exponent >= 16) {
    const digits = String(Math.abs(exponent)).padStart(2, '0');
    return `${mantissa}e${exponent < 0 ? '-' : '+'}${digits}`;
  }
  const sign = value < 0 ? '-' : '';
  const digits = mantissa.replace(/[-.]/g, '');
  if (exponent < 0) return `${sign}0.${'0'.repeat(-exponent - 1)}${digits}`;
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, '0');
  return `${sign}${whole}.${digits.slice(exponent + 1) || '0'}`;
}

const ESCAPES: Readonly<Record<string, string>> = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' };

/** Python's `repr()` of a string: what cannot be printed is escaped. */
function pythonString(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = text.replace(/[\\'\p{C}\p{Z}]/gu, (character) => {
    if (character === ' ') return character;
    if (character === "'") return quote === "'" ? "\\'" : character;
    const known = ESCAPES[character];
    if (known !== undefined) return known;
    const code = character.codePointAt(0) as number;
    const hex = code.toString(16);
    if (code <= 0xff) return `\\x${hex.padStart(2, '0')}`;
    return code <= 0xffff ? `\\u${hex.padStart(4, '0')}` : `\\U${hex.padStart(8, '0')}`;
  });
  return quote + escaped + quote;
}
