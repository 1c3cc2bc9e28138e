// How values are written: as JSON, or as the literals of a Python call.
import { type CharSet, charSet, charsOf, includes, intersect, pairs, subtract } from './char-set.js';
import { alt, cls, type Expression, lit, seq } from './grammar.js';

/** How one notation writes values. */
export interface Dialect {
  quote: string;
  yes: string;
  no: string;
  nothing: string;
  /** A string as it stands between quotes, in the one way in which this dialect writes it. */
  inQuotes(text: string): string;
  /** One of the characters, as it stands between quotes. */
  encode(set: CharSet): Expression;
}

const CONTROLS = charSet([[0, 0x1f]]);
const HEX = '0123456789abcdef';

/** Characters that are written as they are, as a backslash and a letter, or as a backslash, a prefix and two hex digits. */
function encoder(letters: Readonly<Record<string, string>>, hexPrefix: string): (set: CharSet) => Expression {
  const short = charsOf(Object.keys(letters).join(''));
  const escaped = pairs(short).concat(pairs(CONTROLS));
  return (set) => {
    const names = Object.entries(letters).filter(([char]) => includes(set, char.codePointAt(0) as number));
    const others = subtract(intersect(set, CONTROLS), short);
    const hex: Expression[] = [];
    for (const high of [0, 1]) {
      const low = Array.from(HEX).filter((_, digit) => includes(others, high * 16 + digit));
      if (low.length > 0) hex.push(seq(lit(`${hexPrefix}${high}`), cls(charsOf(low.join('')))));
    }
    const escapes = alt(cls(charsOf(names.map(([, letter]) => letter).join(''))), ...hex);
    return alt(cls(subtract(set, charSet(escaped))), seq(lit('\\'), escapes));
  };
}

export const JSON_DIALECT: Dialect = {
  quote: '"',
  yes: 'true',
  no: 'false',
  nothing: 'null',
  inQuotes: (text) => JSON.stringify(text).slice(1, -1),
  encode: encoder({ '"': '"', '\\': '\\', '\b': 'b', '\f': 'f', '\n': 'n', '\r': 'r', '\t': 't' }, 'u00'),
};

const PYTHON_LETTERS: Readonly<Record<string, string>> = { "'": "'", '\\': '\\', '\n': 'n', '\r': 'r', '\t': 't' };

export const PYTHON_DIALECT: Dialect = {
  quote: "'",
  yes: 'True',
  no: 'False',
  nothing: 'None',
  inQuotes: (text) =>
    text.replace(/['\\\p{Cc}\p{Cs}]/gu, (char) => {
      const letter = PYTHON_LETTERS[char];
      if (letter !== undefined) return `\\${letter}`;
      const code = char.charCodeAt(0).toString(16);
      return code.length > 2 ? `\\u${code.padStart(4, '0')}` : `\\x${code.padStart(2, '0')}`;
    }),
  encode: encoder(PYTHON_LETTERS, 'x'),
};
