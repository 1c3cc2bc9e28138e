// ChatGLM3 writes a tool's arguments as a Python call with literals, `tool_call(city='北京', days=2)`, and THUDM's code
// gives that to eval(). What a model wrote must never run: this reads the literals and nothing else. Every function here
// takes time in proportion to the text that it reads, whatever stands there.

const maxDepth = 64;

/** The most digits of a number: Python's own limit of an integer's digits (`sys.get_int_max_str_digits()`). */
const maxDigits = 4300;
const integerBound = 10n ** BigInt(maxDigits);

/** Numbers, strings and the like: what a call's arguments become, ready for JSON. */
export type Literal = string | number | boolean | null | Literal[] | { [key: string]: Literal };

/** A literal within an expression: of Python's numbers, integers are `bigint` and floats are `number`. */
type Operand = Literal | bigint;

/**
 * Reads the arguments of the first call in `text`, which may stand in a Markdown fence, with comments around it:
 * `tool_call(city='北京', days=1 + 2)`, `get_weather(**{'city': '北京'})`, or the arguments alone as a dict or as JSON,
 * `{"city": "北京"}`. The call's name says nothing: any will do.
 *
 * Literals are those of Python, and JSON's `true`, `false` and `null`. `+`, `-`, `*` and `/` compute with numbers, `+` joins
 * strings. Tuples and sets become arrays, and keys that are not strings what Python's json module makes of them. Integers
 * that a JavaScript number cannot hold exactly become strings of their digits: an 18-digit id must not change on the way.
 *
 * Text behind the closing fence is ignored. So are further calls, as long as they are calls with literals, too: a model
 * gets one result at a time, and asks for the next one when it has seen the first.
 *
 * @param name The tool's name, which the call may have even where Python would not take it for a name (`text-to-speech`).
 * @returns undefined when the text is anything else: names, attributes and calls among the values, arguments without names,
 *   bytes, f-strings with fields, numbers that are not finite, or more than 64 levels of brackets. Never throws.
 */
export function parseToolCall(text: string, name?: string): Record<string, Literal> | undefined {
  try {
    return new LiteralParser(text, name).first();
  } catch (error) {
    if (error instanceof NotALiteral) return undefined;
    throw error;
  }
}

class NotALiteral extends Error {}

const fence = '```';
const identifier = /[\p{L}_][\p{L}\p{N}_]*/uy;

class LiteralParser {
  #position = 0;
  readonly #text: string;
  readonly #name: string | undefined;
  #isJson = false;
  #depth = 0;

  constructor(text: string, name: string | undefined) {
    this.#text = text;
    this.#name = name;
  }

  first(): Record<string, Literal> {
    this.#space();
    const isFenced = this.#accept(fence);
    if (isFenced) {
      // The fence's language. Without a space behind, `python` may be how the call's own name begins.
      this.#take(/(?:[ \t]*(?:python3?|py|json)(?=\s))?/iy);
      this.#space();
    }
    if (this.#next() === '{') {
      this.#isJson = true;
      const result = this.#namedArguments();
      this.#space();
      if (!this.#isAtEnd()) throw new NotALiteral();
      return result;
    }
    const result = this.#call();
    while (this.#separator()) this.#call();
    return result;
  }

  #isAtEnd(): boolean {
    return this.#position >= this.#text.length || this.#text.startsWith(fence, this.#position);
  }

  /** Goes to the next call, past a line's end or a semicolon. Returns whether there is more to read. */
  #separator(): boolean {
    const start = this.#position;
    this.#space();
    const isSeparated = this.#text.slice(start, this.#position).includes('\n') || this.#accept(';');
    this.#space();
    if (this.#isAtEnd()) return false;
    if (!isSeparated) throw new NotALiteral();
    return true;
  }

  /** `name(key=value, **{'key': value}, …)` */
  #call(): Record<string, Literal> {
    this.#callee();
    const result: Record<string, Literal> = {};
    const add = (key: string, value: Literal) => {
      if (Object.hasOwn(result, key)) throw new NotALiteral();
      setOwn(result, key, value);
    };
    this.#list(')', () => {
      if (this.#accept('**')) {
        this.#space();
        for (const [key, value] of Object.entries(this.#namedArguments())) add(key, value);
        return;
      }
      const [key] = this.#take(identifier);
      this.#space();
      this.#expect('=');
      add(key, finished(this.#value()));
    });
    return result;
  }

  /** The name of what is called, and the bracket behind it. */
  #callee(): void {
    const start = this.#position;
    if (this.#name && this.#accept(this.#name)) {
      this.#space();
      if (this.#accept('(')) return;
      this.#position = start;
    }
    this.#take(identifier);
    this.#space();
    this.#expect('(');
  }

  /** A dict whose keys are all strings. */
  #namedArguments(): Record<string, Literal> {
    this.#expect('{');
    const result: Record<string, Literal> = {};
    this.#list('}', () => {
      const key = this.#value();
      if (typeof key !== 'string') throw new NotALiteral();
      this.#expect(':');
      setOwn(result, key, finished(this.#value()));
    });
    return result;
  }

  /** A sum with all that stands around it. */
  #value(): Operand {
    if (++this.#depth > maxDepth) throw new NotALiteral();
    this.#space();
    let sum = this.#product();
    for (;;) {
      if (this.#accept('+')) sum = add(sum, this.#product());
      else if (this.#accept('-')) sum = add(sum, negated(this.#product()));
      else break;
    }
    this.#depth--;
    return sum;
  }

  #product(): Operand {
    let product = this.#factor();
    for (;;) {
      if (this.#accept('*')) product = multiply(product, this.#factor());
      else if (this.#accept('/')) product = divide(product, this.#factor());
      else return product;
    }
  }

  /** A literal behind any number of signs. */
  #factor(): Operand {
    let isSigned = false;
    let isNegative = false;
    this.#space();
    for (;;) {
      if (this.#accept('-')) isNegative = !isNegative;
      else if (!this.#accept('+')) break;
      isSigned = true;
      this.#space();
    }
    const value = this.#literal();
    this.#space();
    if (isSigned && !isNumber(value)) throw new NotALiteral();
    return isNegative ? negated(value) : value;
  }

  #literal(): Operand {
    if (this.#accept('[')) return this.#items(']').items.map(finished);
    if (this.#accept('(')) {
      const { items, separated } = this.#items(')');
      // Python: (x) is x in parentheses, (x,) is a tuple.
      return items.length === 1 && !separated ? (items[0] as Operand) : items.map(finished);
    }
    if (this.#accept('{')) return this.#dictOrSet();
    if (this.#isString()) return this.#strings();
    if (/[.0-9]/.test(this.#next())) return this.#number();
    return this.#word();
  }

  #items(close: string): { items: Operand[]; separated: boolean } {
    const items: Operand[] = [];
    const separated = this.#list(close, () => {
      items.push(this.#value());
    });
    return { items, separated };
  }

  #dictOrSet(): Literal {
    const dict: Record<string, Literal> = {};
    const set = new Set<Literal>();
    this.#list('}', () => {
      const key = this.#value();
      if (typeof key === 'object' && key !== null) throw new NotALiteral();
      // The first entry tells what the braces are.
      if (set.size === 0 && this.#accept(':')) setOwn(dict, keyText(key), finished(this.#value()));
      else if (Object.keys(dict).length === 0) set.add(finished(key));
      else throw new NotALiteral();
    });
    return set.size > 0 ? [...set] : dict;
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
      } else if (this.#next() !== close) {
        throw new NotALiteral();
      }
    }
    return separated;
  }

  #word(): boolean | null {
    // No longer than the longest of them, so that a failed look ahead has little to go back over.
    const [word] = this.#take(/[A-Za-z]{4,5}(?![\p{L}\p{N}_])/uy);
    // JSON's spelling too: models mix them up, and it cannot mean anything else.
    if (word === 'True' || word === 'true') return true;
    if (word === 'False' || word === 'false') return false;
    if (word === 'None' || word === 'null') return null;
    throw new NotALiteral();
  }

  #number(): bigint | number {
    const start = this.#position;
    let end = start;
    const isFloat = /[eE]/; // of the character before a sign
    const isHex = /^0[xX]/.test(this.#text.slice(start, start + 2));
    for (; end < this.#text.length; end++) {
      const character = this.#text.charAt(end);
      if (/[0-9A-Za-z_.]/.test(character)) continue;
      if (!/[-+]/.test(character) || isHex || end === start || !isFloat.test(this.#text.charAt(end - 1))) break;
    }
    if (end - start > maxDigits + 2 || /[\p{L}\p{N}]/u.test(this.#text.charAt(end))) throw new NotALiteral();
    this.#position = end;
    const token = this.#text.slice(start, end);
    const digits = token.replaceAll('_', '');
    if (/^(?:0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+|0(?:_?0)*|[1-9](?:_?[0-9])*)$/.test(token)) {
      return bounded(BigInt(digits));
    }
    if (
      !/^(?:[0-9](?:_?[0-9])*(?:\.(?:[0-9](?:_?[0-9])*)?|(?=[eE]))|\.[0-9](?:_?[0-9])*)(?:[eE][-+]?[0-9](?:_?[0-9])*)?$/.test(
        token,
      )
    ) {
      throw new NotALiteral();
    }
    return finite(Number(digits));
  }

  #isString(): boolean {
    return /^(?:[rRuU]|[fF][rR]?|[rR][fF])?["']/.test(this.#text.slice(this.#position, this.#position + 3));
  }

  /** One or more string literals: Python joins those that stand next to each other. */
  #strings(): string {
    const parts: string[] = [];
    do {
      this.#string(parts);
      this.#space();
    } while (this.#isString());
    return parts.join('');
  }

  #string(parts: string[]): void {
    const [, prefix, quote] = this.#take(/([rRuUfF]{0,2})("""|'''|"|')/y) as RegExpExecArray & [string, string, string];
    const isRaw = /r/i.test(prefix);
    const isFormat = /f/i.test(prefix);
    // A line break in a string of single quotes is an error in Python, but models write it, and it is clear.
    const special = quote.startsWith('"') ? /["\\]/g : /['\\]/g;
    let start = this.#position;
    const add = (end: number) => {
      if (end > start)
        parts.push(isFormat ? withoutFields(this.#text.slice(start, end)) : this.#text.slice(start, end));
    };
    special.lastIndex = start;
    for (let match = special.exec(this.#text); match; match = special.exec(this.#text)) {
      const end = match.index;
      this.#position = end;
      if (match[0] === '\\') {
        add(end);
        // In an f-string a backslash before a brace stands for itself, and the brace still belongs to a field.
        const isBrace = isFormat && /[{}]/.test(this.#text.charAt(end + 1));
        if (isRaw || isBrace) {
          this.#position += isBrace ? 1 : 2;
          parts.push(this.#text.slice(end, this.#position));
        } else {
          parts.push(this.#escape());
        }
        start = this.#position;
        special.lastIndex = start;
      } else if (this.#accept(quote)) {
        add(end);
        return;
      }
    }
    throw new NotALiteral();
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
    // Python would keep the backslash, which no one who writes JSON means.
    if (letter === '/' && this.#isJson) return letter;
    return simpleEscapes[letter] ?? sequence;
  }

  /** White space, comments, and lines joined by a backslash. */
  #space(): void {
    const text = this.#text;
    for (;;) {
      const next = text.charAt(this.#position);
      if (next !== '' && /\s/.test(next)) this.#position++;
      else if (next === '#') this.#position = indexOrEnd(text, '\n', this.#position);
      else if (next !== '\\' || !(this.#accept('\\\n') || this.#accept('\\\r\n'))) return;
    }
  }

  #next(): string {
    return this.#text.charAt(this.#position);
  }

  #take(pattern: RegExp): RegExpExecArray {
    pattern.lastIndex = this.#position;
    const match = pattern.exec(this.#text);
    if (!match) throw new NotALiteral();
    this.#position = pattern.lastIndex;
    return match;
  }

  #accept(text: string): boolean {
    if (!this.#text.startsWith(text, this.#position)) return false;
    this.#position += text.length;
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

/** The text of an f-string, whose fields would have to be evaluated: there may be doubled braces only. */
function withoutFields(text: string): string {
  if (/[{}]/.test(text.replaceAll(/\{\{|\}\}/g, ''))) throw new NotALiteral();
  return text.replaceAll('{{', '{').replaceAll('}}', '}');
}

function indexOrEnd(text: string, wanted: string, from: number): number {
  const index = text.indexOf(wanted, from);
  return index < 0 ? text.length : index;
}

function isNumber(value: Operand): value is bigint | number {
  return typeof value === 'bigint' || typeof value === 'number';
}

/** Python computes with what is infinite or no number, too; JSON cannot say either. */
function finite(value: number): number {
  if (!Number.isFinite(value)) throw new NotALiteral();
  return value;
}

function bounded(value: bigint): bigint {
  if (value >= integerBound || value <= -integerBound) throw new NotALiteral();
  return value;
}

function negated(value: Operand): Operand {
  if (!isNumber(value)) throw new NotALiteral();
  return -value;
}

function add(a: Operand, b: Operand): Operand {
  if (typeof a === 'string' && typeof b === 'string') return a + b;
  if (typeof a === 'bigint' && typeof b === 'bigint') return bounded(a + b);
  if (isNumber(a) && isNumber(b)) return finite(Number(a) + Number(b));
  throw new NotALiteral();
}

function multiply(a: Operand, b: Operand): Operand {
  if (typeof a === 'bigint' && typeof b === 'bigint') return bounded(a * b);
  if (isNumber(a) && isNumber(b)) return finite(Number(a) * Number(b));
  throw new NotALiteral();
}

/** Python's true division: always a float. */
function divide(a: Operand, b: Operand): Operand {
  if (!isNumber(a) || !isNumber(b)) throw new NotALiteral();
  // A quotient of integers is rounded once in Python; rounded operands would make it twice.
  for (const value of [a, b]) {
    if (typeof value !== 'bigint') continue;
    const rounded = Number(value);
    if (!Number.isFinite(rounded) || BigInt(rounded) !== value) throw new NotALiteral();
  }
  return finite(Number(a) / Number(b));
}

function finished(value: Operand): Literal {
  if (typeof value === 'number') return value === 0 ? 0 : value; // JSON has no negative zero
  if (typeof value !== 'bigint') return value;
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : String(value);
}

/** A dict's key as Python's json module writes it. */
function keyText(key: Exclude<Operand, object>): string {
  return typeof key === 'number' && Number.isInteger(key) && Math.abs(key) < 1e16 ? `${key}.0` : String(key);
}

/** Plain assignment of a key `__proto__` would set the object's prototype instead. */
function setOwn(target: Record<string, Literal>, key: string, value: Literal): void {
  Object.defineProperty(target, key, { value, writable: true, enumerable: true, configurable: true });
}
