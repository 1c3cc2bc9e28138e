import { isUtf8 } from 'node:buffer';
import { invalid, shown } from '../../common/invalid.js';
import type { Work } from '../../common/turns.js';

export type JsonObject = Readonly<Record<string, unknown>>;

/** A checkpoint's JSON nests five deep. */
const DEPTH_LIMIT = 64;
/** Values in one file. The header of a model with 1,024 quantized layers has some 100,000. */
const VALUE_LIMIT = 1 << 18;
/** Longer numbers have no use here. */
const NUMBER_LIMIT = 400;
/** Bytes of a text, or of white space, that are looked at between two turns of the event loop. */
const STRIDE = 16 << 10;
/** Values between two looks at the clock. */
const VALUES_PER_YIELD = 512;

const BYTE_ORDER_MARK = Buffer.from('\ufeff');
const NUMBER = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/;

const Char = {
  quote: 0x22,
  comma: 0x2c,
  colon: 0x3a,
  openArray: 0x5b,
  backslash: 0x5c,
  closeArray: 0x5d,
  openObject: 0x7b,
  closeObject: 0x7d,
} as const;

const NUMBER_BYTES: ReadonlySet<number | undefined> = new Set(Buffer.from('0123456789+-.eE'));

const LITERALS = [
  { text: Buffer.from('true'), value: true },
  { text: Buffer.from('false'), value: false },
  { text: Buffer.from('null'), value: null },
] as const;

/**
 * Parses a JSON object from a file. A key that occurs twice is an error: readers would disagree about which one counts.
 *
 * JSON.parse would hold the event loop for a header of 16 MB, know no duplicates, and take memory before any limit could
 * be looked at.
 */
export function* parseJsonObject(bytes: Uint8Array, file: string, what = 'it'): Work<JsonObject> {
  const value = yield* new JsonParser(bytes, file, what).parse();
  if (!isObject(value)) throw invalid(file, `${what} is no JSON object`);
  return value;
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

type Container = unknown[] | Record<string, unknown>;

class JsonParser {
  private readonly bytes: Buffer;
  private at = 0;

  constructor(
    bytes: Uint8Array,
    private readonly file: string,
    private readonly what: string,
  ) {
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  *parse(): Work<unknown> {
    if (BYTE_ORDER_MARK.equals(this.bytes.subarray(0, BYTE_ORDER_MARK.length))) this.at = BYTE_ORDER_MARK.length;
    const open: Container[] = [];
    let root: unknown;
    /** Whether a container has just begun, so that it may end without a member. */
    let mayEnd = false;
    for (let values = 1; ; values++) {
      if (values % VALUES_PER_YIELD === 0) yield;
      if (values > VALUE_LIMIT) throw this.refused(`has more than ${VALUE_LIMIT} values`);
      while (this.skipsSpace()) yield;
      const container = open.at(-1);
      if (mayEnd && container !== undefined && this.takes(closingOf(container))) {
        open.pop();
      } else {
        const key = container === undefined || Array.isArray(container) ? undefined : yield* this.key(container);
        const value = yield* this.begin();
        if (container === undefined) root = value;
        else if (Array.isArray(container)) container.push(value);
        else setMember(container, key ?? '', value);
        mayEnd = typeof value === 'object' && value !== null;
        if (mayEnd && open.push(value as Container) > DEPTH_LIMIT) {
          throw this.refused(`nests deeper than ${DEPTH_LIMIT}`);
        }
        if (mayEnd) continue;
      }
      mayEnd = false;
      // Behind a value: a comma and the next member, or the ends of any number of containers.
      for (;;) {
        while (this.skipsSpace()) yield;
        const around = open.at(-1);
        if (around === undefined) {
          if (this.at < this.bytes.length) throw this.unexpected();
          return root;
        }
        if (this.takes(Char.comma)) break;
        if (!this.takes(closingOf(around))) throw this.unexpected();
        open.pop();
      }
    }
  }

  /** The key of an object's next member, and the colon behind it. */
  private *key(object: Record<string, unknown>): Work<string> {
    if (this.bytes[this.at] !== Char.quote) throw this.unexpected();
    const key = yield* this.text();
    if (Object.hasOwn(object, key)) throw this.refused(`has the key "${shown(key)}" twice`);
    while (this.skipsSpace()) yield;
    if (!this.takes(Char.colon)) throw this.unexpected();
    while (this.skipsSpace()) yield;
    return key;
  }

  /** A value; of an object or array only its beginning. */
  private *begin(): Work<unknown> {
    if (this.takes(Char.openObject)) return {};
    if (this.takes(Char.openArray)) return [];
    if (this.bytes[this.at] === Char.quote) return yield* this.text();
    for (const { text, value } of LITERALS) {
      if (text.equals(this.bytes.subarray(this.at, this.at + text.length))) {
        this.at += text.length;
        return value;
      }
    }
    return this.number();
  }

  private number(): number {
    let end = this.at;
    while (end < this.at + NUMBER_LIMIT && NUMBER_BYTES.has(this.bytes[end])) end++;
    const text = this.bytes.toString('latin1', this.at, end);
    if (!NUMBER.test(text)) throw this.unexpected();
    this.at = end;
    return Number(text);
  }

  private *text(): Work<string> {
    this.at++;
    let text = this.part();
    while (!this.takes(Char.quote)) {
      yield;
      text += this.part();
    }
    return text;
  }

  /** The next part of a text, of whole characters and escape sequences: up to its end or, of a long one, a stride. */
  private part(): string {
    const { bytes } = this;
    const begin = this.at;
    let at = begin;
    let hasEscapes = false;
    let isAscii = true;
    for (; ; at++) {
      const byte = bytes[at];
      if (byte === undefined || byte < 0x20) {
        this.at = at;
        throw this.unexpected();
      }
      if (byte === Char.quote) break;
      if (byte >= 0x80) isAscii = false;
      // A character has four bytes at most.
      const taken = at - begin;
      if (taken >= STRIDE && ((byte & 0xc0) !== 0x80 || taken > STRIDE + 4)) break;
      if (byte === Char.backslash) {
        hasEscapes = true;
        at += bytes[at + 1] === 0x75 ? 5 : 1;
      }
    }
    this.at = at;
    if (!isAscii && !isUtf8(bytes.subarray(begin, at))) {
      throw this.refused('is not valid JSON: a text in it is not UTF-8');
    }
    return hasEscapes ? this.unescaped(begin) : bytes.toString(isAscii ? 'latin1' : 'utf8', begin, at);
  }

  /** What the escape sequences between `begin` and the present place stand for. */
  private unescaped(begin: number): string {
    try {
      return JSON.parse(`"${this.bytes.toString('utf8', begin, this.at)}"`) as string;
    } catch {
      this.at = begin;
      throw this.unexpected();
    }
  }

  /** Goes on over white space; true where there may be more of it, after a stride. */
  private skipsSpace(): boolean {
    const end = this.at + STRIDE;
    for (;;) {
      const byte = this.bytes[this.at];
      if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) return false;
      if (++this.at === end) return true;
    }
  }

  private takes(char: number): boolean {
    if (this.bytes[this.at] !== char) return false;
    this.at++;
    return true;
  }

  private unexpected() {
    return this.refused(`is not valid JSON: byte ${this.at} of ${this.bytes.length} is not what may stand there`);
  }

  private refused(problem: string) {
    return invalid(this.file, `${this.what} ${problem}`);
  }
}

function closingOf(container: Container): number {
  return Array.isArray(container) ? Char.closeArray : Char.closeObject;
}

/** Sets a member as JSON.parse does: `__proto__` is a key like any other. */
function setMember(object: Record<string, unknown>, key: string, value: unknown): void {
  if (key === '__proto__') {
    Object.defineProperty(object, key, { value, writable: true, enumerable: true, configurable: true });
  } else {
    object[key] = value;
  }
}
