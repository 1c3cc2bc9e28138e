// Ranges of numbers as regular expressions over their digits.
import { Automaton, type Budget, chars, choice, optional, type Regex, repeat, sequence, text } from './automaton.js';
import { charsOf } from './char-set.js';

/** Bounds of a number; `above` and `below` exclude the bound itself. */
export interface Bounds {
  least?: number | undefined;
  most?: number | undefined;
  above?: number | undefined;
  below?: number | undefined;
}

/** Digits before the point, and behind it. All decimals of so many significant digits are different doubles. */
const DIGITS = 15;
const MOST_UNBOUNDED = 10 ** DIGITS - 1;

const DIGIT = chars(charsOf('0123456789'));
const NOT_ZERO = chars(charsOf('123456789'));
const digit = (first: number, last: number): Regex => chars(charsOf('0123456789'.slice(first, last + 1)));

/** Any number: a model must come to an end, so that digits and exponents have bounds. There is no -0. */
export const ANY_NUMBER: Regex = (() => {
  const whole = sequence(NOT_ZERO, repeat(DIGIT, 0, DIGITS - 1));
  const fraction = optional(sequence(text('.'), repeat(DIGIT, 1, DIGITS)));
  const exponent = optional(sequence(chars(charsOf('eE')), optional(chars(charsOf('+-'))), repeat(DIGIT, 1, 2)));
  const small = sequence(text('0.'), repeat(DIGIT, 0, DIGITS - 1), NOT_ZERO);
  return choice(
    sequence(choice(text('0'), whole), fraction, exponent),
    sequence(text('-'), choice(sequence(whole, fraction), small), exponent),
  );
})();

export function isWithin(value: number, { least, most, above, below }: Bounds): boolean {
  return (
    !(least !== undefined && value < least) &&
    !(most !== undefined && value > most) &&
    !(above !== undefined && value <= above) &&
    !(below !== undefined && value >= below)
  );
}

/** The first and the last whole number within the bounds, as far as doubles hold each. Undefined where there is none. */
export function integerRange({ least, most, above, below }: Bounds): [number, number] | undefined {
  const first = Math.max(
    least === undefined ? Number.NEGATIVE_INFINITY : Math.ceil(least),
    above === undefined ? Number.NEGATIVE_INFINITY : Math.floor(above) + 1,
  );
  const last = Math.min(
    most === undefined ? Number.POSITIVE_INFINITY : Math.floor(most),
    below === undefined ? Number.POSITIVE_INFINITY : Math.ceil(below) - 1,
  );
  const isHigh = first > MOST_UNBOUNDED;
  const isLow = last < -MOST_UNBOUNDED;
  const highest = Math.min(
    last === Number.POSITIVE_INFINITY && !isHigh ? MOST_UNBOUNDED : last,
    Number.MAX_SAFE_INTEGER,
  );
  const lowest = Math.max(
    first === Number.NEGATIVE_INFINITY && !isLow ? -MOST_UNBOUNDED : first,
    Number.MIN_SAFE_INTEGER,
  );
  return lowest > highest ? undefined : [lowest, highest];
}

/** The whole numbers of a range. */
export function integers([lowest, highest]: readonly [number, number]): Regex {
  const parts: Regex[] = [];
  if (highest >= 0) parts.push(naturals(Math.max(lowest, 0), highest));
  if (lowest < 0) parts.push(sequence(text('-'), naturals(Math.max(-highest, 1), -lowest)));
  return choice(...parts);
}

/** Whole numbers from `first`, which is not negative, to `last`. */
function naturals(first: number, last: number): Regex {
  const parts: Regex[] = [];
  const [low, high] = [String(first), String(last)];
  for (let length = low.length; length <= high.length; length++) {
    const from = length === low.length ? low : `1${'0'.repeat(length - 1)}`;
    const to = length === high.length ? high : '9'.repeat(length);
    // Lengths in between are taken together.
    if (length > low.length && length < high.length) {
      parts.push(sequence(NOT_ZERO, repeat(DIGIT, length - 1, high.length - 2)));
      length = high.length - 1;
    } else {
      parts.push(sameLength(from, to));
    }
  }
  return choice(...parts);
}

/** Numbers of as many digits as both bounds have; zeros may lead. */
function sameLength(from: string, to: string): Regex {
  if (from === '') return sequence();
  if (/^0*$/.test(from) && /^9*$/.test(to)) return repeat(DIGIT, from.length, from.length);
  const [low, high] = [Number(from[0]), Number(to[0])];
  const [fromRest, toRest] = [from.slice(1), to.slice(1)];
  if (low === high) return sequence(digit(low, low), sameLength(fromRest, toRest));
  const parts: Regex[] = [];
  let [first, last] = [low, high];
  const hasLow = !/^0*$/.test(fromRest);
  const hasHigh = !/^9*$/.test(toRest);
  if (hasLow) {
    parts.push(sequence(digit(low, low), sameLength(fromRest, '9'.repeat(fromRest.length))));
    first++;
  }
  if (hasHigh) last--;
  if (first <= last) parts.push(sequence(digit(first, last), repeat(DIGIT, fromRest.length, fromRest.length)));
  if (hasHigh) parts.push(sequence(digit(high, high), sameLength('0'.repeat(toRest.length), toRest)));
  return choice(...parts);
}

/** A number that is not negative, in decimal digits without an exponent. */
interface Decimal {
  whole: string;
  /** Without zeros at its end. */
  fraction: string;
}

function decimalOf(value: number): Decimal {
  const [, whole = '', fraction = '', exponent = '0'] = /^(\d+)(?:\.(\d+))?(?:e([+-]\d+))?$/.exec(String(value)) ?? [];
  const shift = Number(exponent);
  const digits = whole + fraction;
  const point = whole.length + shift;
  const padded = point < 0 ? '0'.repeat(-point) + digits : digits.padEnd(point, '0');
  const at = Math.max(point, 0);
  return { whole: padded.slice(0, at).replace(/^0+(?=.)/, '') || '0', fraction: padded.slice(at).replace(/0+$/, '') };
}

/** Decimals of at most 15 significant digits that are not negative. */
const SHAPE: Regex = (() => {
  const fraction = (most: number) => (most === 0 ? sequence() : optional(sequence(text('.'), repeat(DIGIT, 1, most))));
  const parts = [sequence(text('0'), fraction(DIGITS))];
  for (let whole = 1; whole <= DIGITS; whole++) {
    parts.push(sequence(NOT_ZERO, repeat(DIGIT, whole - 1, whole - 1), fraction(DIGITS - whole)));
  }
  return choice(...parts);
})();

const FRACTION = optional(sequence(text('.'), repeat(DIGIT, 1)));

function atLeast({ whole, fraction }: Decimal, isExcluded: boolean): Regex {
  const larger = sequence(wholesAbove(whole), FRACTION);
  const parts: Regex[] = [larger];
  for (const [index, char] of Array.from(fraction).entries()) {
    const next = Number(char) + 1;
    if (next > 9) continue;
    parts.push(sequence(text(`${whole}.${fraction.slice(0, index)}`), digit(next, 9), repeat(DIGIT, 0)));
  }
  const zeros = fraction === '' ? sequence(text('.'), repeat(DIGIT, 1)) : repeat(DIGIT, 0);
  const equal = text(fraction === '' ? whole : `${whole}.${fraction}`);
  if (!isExcluded) parts.push(sequence(equal, fraction === '' ? optional(zeros) : zeros));
  else {
    const behind = sequence(repeat(text('0'), 0), NOT_ZERO, repeat(DIGIT, 0));
    parts.push(sequence(equal, fraction === '' ? sequence(text('.'), behind) : behind));
  }
  return choice(...parts);
}

/** Whole numbers of up to 15 digits that are larger than `digits`. */
function wholesAbove(digits: string): Regex {
  const first = Number(digits) + 1;
  return first > MOST_UNBOUNDED ? choice() : naturals(first, MOST_UNBOUNDED);
}

/** Decimals in the bounds, which both are at least 0. */
function decimals(least: number, isAbove: boolean, most: number, isBelow: boolean, budget: Budget): Automaton {
  let result = Automaton.of(SHAPE, budget);
  if (least > 0 || isAbove) result = result.and(Automaton.of(atLeast(decimalOf(least), isAbove), budget), budget);
  // What is not more than the bound is not (more than the bound); what is less is not (at least as much).
  if (most <= MOST_UNBOUNDED + 1) {
    result = result.without(Automaton.of(atLeast(decimalOf(most), !isBelow), budget), budget);
  }
  return result;
}

/**
 * Decimals within the bounds, without exponents. A decimal beyond a bound that is excluded could be read as the very double
 * that the bound is; with at most 15 digits on both sides it cannot, so that a longer excluded bound is rounded inwards.
 */
export function boundedNumbers(bounds: Bounds, budget: Budget): Automaton {
  let { value: low, isExcluded: isAbove } = tighter(bounds.least, bounds.above, -1);
  let { value: high, isExcluded: isBelow } = tighter(bounds.most, bounds.below, 1);
  if (isAbove) ({ value: low, isExcluded: isAbove } = inwards(low, 1));
  if (isBelow) ({ value: high, isExcluded: isBelow } = inwards(high, -1));
  let result = Automaton.of(choice(), budget);
  if (high >= 0) result = decimals(Math.max(low, 0), low >= 0 && isAbove, high, isBelow, budget);
  if (low < 0) {
    // Magnitudes of what is negative, without -0.
    const from = Math.max(-high, 0);
    const magnitudes = decimals(from, from === 0 || isBelow, -low, isAbove, budget);
    result = result.or(magnitudes.after('-'), budget);
  }
  return result;
}

function tighter(
  included: number | undefined,
  excluded: number | undefined,
  side: -1 | 1,
): { value: number; isExcluded: boolean } {
  const fallback = side * Number.POSITIVE_INFINITY;
  const [a, b] = [included ?? fallback, excluded ?? fallback];
  const isExcluded = excluded !== undefined && (side === 1 ? b <= a : b >= a);
  return { value: isExcluded ? b : a, isExcluded };
}

function inwards(bound: number, side: -1 | 1): { value: number; isExcluded: boolean } {
  const { whole, fraction } = decimalOf(Math.abs(bound));
  const significant = `${whole}${fraction}`.replace(/^0+/, '').replace(/0+$/, '').length;
  if (significant <= DIGITS || !Number.isFinite(bound)) return { value: bound, isExcluded: true };
  let value = Number(bound.toPrecision(DIGITS));
  const step = 10 ** (Math.floor(Math.log10(Math.abs(bound))) - DIGITS + 1);
  while (side === 1 ? value <= bound : value >= bound) value = Number((value + side * step).toPrecision(DIGITS));
  return { value, isExcluded: false };
}
