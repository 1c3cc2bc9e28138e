// ChatGLM3 writes a tool's arguments as a Python call with literals, `tool_call(city='北京', days=2)`, and THUDM's code
// gives that to eval(). What a model wrote must never run: this reads the literals and nothing else.

const maxDepth = 64;

/** Numbers, strings and the like: what a call's arguments become, ready for JSON. */
export type Literal = string | number | boolean | null | Literal[] | { [key: string]: Literal };

/**
 * Reads the keyword arguments of the first call in `text`, which may stand in a Markdown fence. Tuples become arrays,
 * and keys that are not strings what Python's json module makes of them. Integers that a JavaScript number cannot hold
 * exactly become strings of their digits: an 18-digit id must not change on the way.
 *
 * @returns undefined when the text is anything else than such a call; never throws.
 */
export function parseToolCall(text: string): Record<string, Literal> | undefined {
  const opening = /^\s*(?:```(?:[ \t]*(?:python|py)(?=\s))?)?\s*/i.exec(text);
  const parser = new LiteralParser(text, opening?.[0].length ?? 0);
  try {
    const result = parser.call();
    const rest = text.slice(parser.position).trimStart();
    return rest === '' || rest.startsWith('```') ? result : undefined;
  } catch (error) {
    if (error instanceof NotALiteral) return undefined;
    throw error;
  }
}

class NotALiteral extends Error {}

class LiteralParser {
  position: number;
  readonly #text: string;
  #depth = 0;

  constructor(text: string, position: number) {
    this.#text = text;
    this.position = position;
  }

  /** `name(key=value, …)` */
  call(): Record<string, Literal> {
    this.#take(/[\p{L}_][\p{L}\p{N}_]*/uy);
    this.#space();
    this.#expect('(');
    const result: Record<string, Literal> = {};
    this.#list(')', () => {
      const [key] = this.#take(/[\p{L}_][\p{L}\p{N}_]*/uy);
      this.#space();
      this.#expect('=');
      if (Object.hasOwn(result, key)) throw new NotALiteral();
      setOwn(result, key, this.#value());
    });
    return result;
  }

  #value(): Literal {
    if (++this.#depth > maxDepth) throw new NotALiteral();
    this.#space();
    const value = this.#valueHere();
    this.#space();
    this.#depth--;
    return value;
  }

  #valueHere(): Literal {
    const next = this.#text.charAt(this.position);
    if (this.#accept('[')) return this.#items(']').items;
    if (this.#accept('(')) {
      const { items, separated } = this.#items(')');
      // Python: (x) is x in parentheses, (x,) is a tuple.
      return items.length === 1 && !separated ? (items[0] as Literal) : items;
    }
    if (this.#accept('{')) return this.#dict();
    if (this.#isString()) return this.#strings();
    if (/[-+.0-9]/.test(next)) return this.#number();
    return this.#word();
  }

  #items(close: string): { items: Literal[]; separated: boolean } {
    const items: Literal[] = [];
    const separated = this.#list(close, () => {
      items.push(this.#value());
    });
    return { items, separated };
  }

  #dict(): Record<string, Literal> {
    const result: Record<string, Literal> = {};
    this.#list('}', () => {
      const key = this.#value();
      this.#expect(':');
      const value = this.#value();
      if (typeof key === 'object' && key !== null) throw new NotALiteral();
      setOwn(result, String(key), value);
    });
    return result;
  }

  /** Reads what `item` reads, separated by commas, up to `close`. Returns whether there was a comma. */
  #list(close: string, item: () => void): boolean {
    let separated = false;
    this.#space();
    while (!this.#accept(close)) {
      item();
      this.#space();
      if (this.#accept(',')) {
        separated = true;
        this.#space();
      } else if (this.#text.charAt(this.position) !== close) {
        throw new NotALiteral();
      }
    }
    return separated;
  }

  #word(): boolean | null {
    const [word] = this.#take(/[A-Za-z]+(?![\p{L}\p{N}_])/uy);
    // JSON's spelling too: models mix them up, and it cannot mean anything else.
    if (word === 'True' || word === 'true') return true;
    if (word === 'False' || word === 'false') return false;
    if (word === 'None' || word === 'null') return null;
    throw new NotALiteral();
  }

  #number(): number | string {
    const [signs] = this.#take(/[-+\s]*/y);
    const isNegative = signs.replaceAll(/[^-]/g, '').length % 2 === 1;
    const [token] = this.#take(
      /0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+|(?:[0-9](?:_?[0-9])*\.?(?:[0-9](?:_?[0-9])*)?|\.[0-9](?:_?[0-9])*)(?:[eE][-+]?[0-9](?:_?[0-9])*)?/y,
    );
    if (/[\p{L}\p{N}_.]/u.test(this.#text.charAt(this.position))) throw new NotALiteral();
    const digits = token.replaceAll('_', '');
    const isInteger = /^(?:[0-9]+|0[xXoObB].*)$/.test(digits);
    if (isInteger && /^0+[1-9]/.test(digits)) throw new NotALiteral();
    const value = Number(digits);
    if (isInteger && !Number.isSafeInteger(value)) return (isNegative ? '-' : '') + BigInt(digits);
    // Python reads 1e999 as infinity, which JSON cannot say.
    if (!Number.isFinite(value)) throw new NotALiteral();
    return isNegative && value !== 0 ? -value : value;
  }

  #isString(): boolean {
    return /^[rRuU]?["']/.test(this.#text.slice(this.position, this.position + 2));
  }

  /** One or more string literals: Python joins those that stand next to each other. */
  #strings(): string {
    let result = '';
    do {
      result += this.#string();
      this.#space();
    } while (this.#isString());
    return result;
  }

  #string(): string {
    const [, prefix, quote] = this.#take(/([rRuU]?)("""|'''|"|')/y) as RegExpExecArray & [string, string, string];
    const raw = prefix.toLowerCase() === 'r';
    // A line break in a string of single quotes is an error in Python, but models write it, and it is clear.
    const parts: string[] = [];
    for (;;) {
      const start = this.position;
      let end = start;
      while (end < this.#text.length && this.#text.charAt(end) !== '\\' && !this.#text.startsWith(quote, end)) end++;
      if (end >= this.#text.length) throw new NotALiteral();
      parts.push(this.#text.slice(start, end));
      this.position = end;
      if (this.#accept(quote)) return parts.join('');
      if (raw) {
        parts.push(this.#text.slice(end, end + 2));
        this.position += 2;
      } else {
        parts.push(this.#escape());
      }
    }
  }

  #escape(): string {
    const [sequence, octal, ...hex] = this.#take(
      /\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|\r\n|[\s\S])/y,
    );
    if (octal) return String.fromCodePoint(Number.parseInt(octal, 8));
    const code = hex.find((digits) => digits !== undefined);
    if (code) {
      const point = Number.parseInt(code, 16);
      if (point > 0x10ffff) throw new NotALiteral();
      return String.fromCodePoint(point);
    }
    const letter = sequence.slice(1);
    // Truncated \x, \u, \U are errors in Python; \N{…} needs a table of all names.
    if (/[xuUN]/.test(letter)) throw new NotALiteral();
    return simpleEscapes[letter] ?? sequence;
  }

  /** White space, comments, and lines joined by a backslash. */
  #space(): void {
    this.#take(/(?:\s|#[^\n]*|\\\r?\n)*/y);
  }

  #take(pattern: RegExp): RegExpExecArray {
    pattern.lastIndex = this.position;
    const match = pattern.exec(this.#text);
    if (!match) throw new NotALiteral();
    this.position = pattern.lastIndex;
    return match;
  }

  #accept(text: string): boolean {
    if (!this.#text.startsWith(text, this.position)) return false;
    this.position += text.length;
    return true;
  }

  #expect(text: string): void {
    if (!this.#accept(text)) throw new NotALiteral();
  }
}

const simpleEscapes: Readonly<Record<string, string>> = {
  '\n': '',
  '\r\n': '',
  '\\': '\\',
  "'": "'",
  '"': '"',
  a: '\x07',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  v: '\v',
};

/** Plain assignment of a key `__proto__` would set the object's prototype instead. */
function setOwn(target: Record<string, Literal>, key: string, value: Literal): void {
  Object.defineProperty(target, key, { value, writable: true, enumerable: true, configurable: true });
}
