/**
 * A set of Unicode code points, without surrogates, which no UTF-8 text has: first and last of each range by turns, ascending,
 * no two ranges adjacent.
 */
export type CharSet = readonly number[];

const LAST = 0x10_ffff;
const SURROGATES = [0xd800, 0xdfff] as const;

export const NO_CHARS: CharSet = [];
/** Every code point that text can have. */
export const ALL_CHARS: CharSet = [0, SURROGATES[0] - 1, SURROGATES[1] + 1, LAST];
/** What `.` stands for in a regular expression: no line terminators. */
export const DOT_CHARS: CharSet = subtract(ALL_CHARS, [0x0a, 0x0a, 0x0d, 0x0d, 0x2028, 0x2029]);

/** The set of ranges in any order, which may overlap and may reach into the surrogates. */
export function charSet(ranges: Iterable<readonly [number, number]>): CharSet {
  const sorted = [...ranges].sort((a, b) => a[0] - b[0]);
  const joined: number[] = [];
  for (const [first, last] of sorted) {
    const before = joined.at(-1);
    if (before !== undefined && first <= before + 1) joined[joined.length - 1] = Math.max(before, last);
    else joined.push(first, last);
  }
  return intersect(joined, ALL_CHARS);
}

/** The set of the characters of a text. */
export function charsOf(text: string): CharSet {
  return charSet(Array.from(text, (char) => [char.codePointAt(0) as number, char.codePointAt(0) as number]));
}

export function union(a: CharSet, b: CharSet): CharSet {
  if (a.length === 0) return b;
  if (b.length === 0) return a;
  const joined: number[] = [];
  for (let i = 0, j = 0; i < a.length || j < b.length; ) {
    const isFromA = j >= b.length || (i < a.length && (a[i] as number) <= (b[j] as number));
    const [first, last] = isFromA ? [a[i], a[i + 1]] : [b[j], b[j + 1]];
    if (isFromA) i += 2;
    else j += 2;
    const before = joined.at(-1);
    if (before !== undefined && (first as number) <= before + 1)
      joined[joined.length - 1] = Math.max(before, last as number);
    else joined.push(first as number, last as number);
  }
  return joined;
}

export function intersect(a: CharSet, b: CharSet): CharSet {
  const common: number[] = [];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    const first = Math.max(a[i] as number, b[j] as number);
    const last = Math.min(a[i + 1] as number, b[j + 1] as number);
    if (first <= last) common.push(first, last);
    if ((a[i + 1] as number) < (b[j + 1] as number)) i += 2;
    else j += 2;
  }
  return common;
}

export function subtract(a: CharSet, b: CharSet): CharSet {
  return b.length === 0 ? a : intersect(a, gaps(b));
}

export function complement(set: CharSet): CharSet {
  return subtract(ALL_CHARS, set);
}

export function includes(set: CharSet, point: number): boolean {
  for (let i = 0; i < set.length; i += 2) {
    if (point < (set[i] as number)) return false;
    if (point <= (set[i + 1] as number)) return true;
  }
  return false;
}

/** The ranges, each as a pair. */
export function pairs(set: CharSet): [number, number][] {
  const result: [number, number][] = [];
  for (let i = 0; i < set.length; i += 2) result.push([set[i] as number, set[i + 1] as number]);
  return result;
}

/** What no range covers, surrogates included. */
function gaps(set: CharSet): number[] {
  const result: number[] = [];
  let next = 0;
  for (const [first, last] of pairs(set)) {
    if (first > next) result.push(next, first - 1);
    next = last + 1;
  }
  if (next <= LAST) result.push(next, LAST);
  return result;
}

/** A set as a class of GBNF, by its members or by what it leaves out, whichever is shorter. */
export function classText(set: CharSet): string {
  // Whether a class has the surrogates makes no difference: text never does.
  const withSurrogates = joinSurrogates(pairs(set));
  const rest = gaps(withSurrogates.flat());
  const isGap = rest.length === 2 && rest[0] === SURROGATES[0] && rest[1] === SURROGATES[1];
  const without = isGap ? [] : pairs(rest);
  const members = rangesText(withSurrogates);
  const others = rangesText(without);
  if (without.length === 0) return '.';
  return others.length < members.length ? `[^${others}]` : `[${members}]`;
}

function joinSurrogates(ranges: [number, number][]): [number, number][] {
  const at = ranges.findIndex(([, last]) => last === SURROGATES[0] - 1);
  const [below, above] = [ranges[at], ranges[at + 1]];
  if (below === undefined || above?.[0] !== SURROGATES[1] + 1) return ranges;
  return [...ranges.slice(0, at), [below[0], above[1]], ...ranges.slice(at + 2)];
}

function rangesText(ranges: [number, number][]): string {
  return ranges
    .map(([first, last]) => {
      if (first === last) return pointText(first);
      return `${pointText(first)}${last === first + 1 ? '' : '-'}${pointText(last)}`;
    })
    .join('');
}

/** A code point in a class or a literal. */
export function pointText(point: number): string {
  if (point === 0x0a) return '\\n';
  if (point === 0x0d) return '\\r';
  if (point === 0x09) return '\\t';
  if ('\\]-^["'.includes(String.fromCodePoint(point))) return `\\${String.fromCodePoint(point)}`;
  if (point < 0x20 || point === 0x7f) return `\\x${point.toString(16).padStart(2, '0')}`;
  if (point < 0x7f) return String.fromCodePoint(point);
  if (point <= 0xffff) return `\\u${point.toString(16).padStart(4, '0').toUpperCase()}`;
  return `\\U${point.toString(16).padStart(8, '0').toUpperCase()}`;
}

/** A text as a literal of GBNF. Its characters stand as they are, except for those that need an escape. */
export function literalText(text: string): string {
  const escaped = text.replace(/["\\\p{Cc}\u2028\u2029]/gu, (char) => pointText(char.codePointAt(0) as number));
  return `"${escaped}"`;
}
