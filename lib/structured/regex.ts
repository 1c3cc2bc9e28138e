// ECMAScript's regular expressions, with the flag u, as expressions of this package.
import type { AST } from '@eslint-community/regexpp';
import { invalidArgument } from '../common/errors.js';
import { shown } from '../common/invalid.js';
import { messageOf } from '../common/options.js';
import { ANYTHING, Automaton, type Budget, chars, choice, type Regex, repeat, sequence } from './automaton.js';
import { ALL_CHARS, type CharSet, charSet, charsOf, complement, DOT_CHARS, pairs, union } from './char-set.js';
import {
  automatonExpression,
  type Encode,
  type Expression,
  type Grammar,
  regexExpression,
  unlessTooLarge,
} from './grammar.js';

/** A pattern that was read. */
export interface Pattern {
  body: Regex;
  /** The error that something in the pattern cannot be said by a grammar. */
  refused: (raw: string, what: string) => Error;
}

/** Longer patterns are refused, in UTF-16 units. */
const MOST_LENGTH = 20_000;
/** Groups within each other. */
const MOST_LEVELS = 200;

/**
 * Reads a pattern.
 *
 * @param name What errors call the pattern.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT for what is no pattern, and for what a regular language cannot say.
 */
export function readPattern(source: string, name: string): Pattern {
  if (source.length > MOST_LENGTH)
    throw invalidArgument(`${name} has ${source.length} characters, and may have ${MOST_LENGTH}`);
  let ast: AST.Pattern;
  try {
    // Loaded when the first pattern is read.
    const { RegExpParser } = require('@eslint-community/regexpp') as typeof import('@eslint-community/regexpp');
    ast = new RegExpParser().parsePattern(source, 0, source.length, { unicode: true });
  } catch (error) {
    throw invalidArgument(`${name} is no regular expression with the flag u: ${messageOf(error)}`, error);
  }
  const reader = new PatternReader(name);
  return { body: reader.alternatives(ast.alternatives, 0), refused: (raw, what) => reader.refused(raw, what) };
}

class PatternReader {
  constructor(readonly name: string) {}

  alternatives(alternatives: readonly AST.Alternative[], depth: number): Regex {
    if (depth > MOST_LEVELS)
      throw invalidArgument(`${this.name} has groups nested more than ${MOST_LEVELS} levels deep`);
    const items = alternatives.map(({ elements }) => this.elements(elements, depth));
    return items.length === 1 ? (items[0] as Regex) : choice(...items);
  }

  elements(elements: readonly AST.Element[], depth: number): Regex {
    const items = elements.map((element) => this.#element(element, depth));
    return items.length === 1 ? (items[0] as Regex) : sequence(...items);
  }

  #element(element: AST.Element | AST.QuantifiableElement, depth: number): Regex {
    switch (element.type) {
      case 'Character':
        return chars(pointSet(element.value));
      case 'CharacterSet':
        return chars(this.#characterSet(element));
      case 'CharacterClass': {
        let set: CharSet = [];
        const ranges: [number, number][] = [];
        for (const part of element.elements) {
          if (part.type === 'Character') ranges.push([part.value, part.value]);
          else if (part.type === 'CharacterClassRange') ranges.push([part.min.value, part.max.value]);
          else if (part.type === 'CharacterSet') set = union(set, this.#characterSet(part));
          else throw this.refused(part.raw, 'a class of the flag v');
        }
        set = union(set, charSet(ranges));
        return chars(element.negate ? complement(set) : set);
      }
      case 'Group':
        if (element.modifiers !== null) throw this.refused(element.raw, 'modifiers');
        return this.alternatives(element.alternatives, depth + 1);
      case 'CapturingGroup':
        return this.alternatives(element.alternatives, depth + 1);
      case 'Quantifier':
        return repeat(this.#element(element.element, depth), element.min, element.max);
      case 'Assertion':
        if (element.kind === 'start' || element.kind === 'end') return { kind: element.kind };
        if (element.kind === 'lookahead') {
          return { kind: 'ahead', body: this.alternatives(element.alternatives, depth + 1), isNegated: element.negate };
        }
        throw this.refused(element.raw, element.kind === 'word' ? 'a word boundary' : 'a lookbehind');
      case 'Backreference':
        throw this.refused(element.raw, 'a backreference');
      default:
        throw this.refused(element.raw, 'a class of the flag v');
    }
  }

  #characterSet(element: AST.CharacterSet): CharSet {
    switch (element.kind) {
      case 'any':
        return DOT_CHARS;
      case 'digit':
        return negated(DIGITS, element.negate);
      case 'word':
        return negated(WORD, element.negate);
      case 'space':
        return negated(SPACE, element.negate);
      case 'property':
        if (element.strings) throw this.refused(element.raw, 'a property of strings');
        return propertySet(element.raw);
    }
  }

  refused(raw: string, what: string): Error {
    return invalidArgument(`${this.name} uses ${shown(raw)}, ${what}, which no grammar can hold an answer to`);
  }
}

const DIGITS = charsOf('0123456789');
const WORD = charSet([
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
]);
const SPACE = charsOf(
  '\t\n\v\f\r \xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff',
);

const negated = (set: CharSet, isNegated: boolean) => (isNegated ? complement(set) : set);
const pointSet = (point: number) => charSet([[point, point]]);

const properties = new Map<string, CharSet>();

/** The characters of `\p{…}`: those that the engine of JavaScript says have the property. */
function propertySet(raw: string): CharSet {
  const known = properties.get(raw);
  if (known !== undefined) return known;
  allText ??= joined(ALL_CHARS);
  const ranges: [number, number][] = [];
  for (const { 0: run } of allText.matchAll(new RegExp(`${raw}+`, 'gu'))) {
    // A run may leap over the surrogates; charSet() takes them out again.
    ranges.push([run.codePointAt(0) as number, lastPoint(run)]);
  }
  const set = charSet(ranges);
  if (properties.size < 100) properties.set(raw, set);
  return set;
}

/** Every character once, in the order of code points. */
let allText: string | undefined;

function joined(set: CharSet): string {
  const units: number[] = [];
  for (const [first, last] of pairs(set)) {
    for (let point = first; point <= last; point++) {
      if (point <= 0xffff) units.push(point);
      else units.push(0xd800 + ((point - 0x1_0000) >> 10), 0xdc00 + ((point - 0x1_0000) & 0x3ff));
    }
  }
  return Buffer.from(Uint16Array.from(units).buffer).toString('utf16le');
}

function lastPoint(run: string): number {
  const last = run.charCodeAt(run.length - 1);
  const isPair = last >= 0xdc00 && last <= 0xdfff;
  return isPair ? (run.codePointAt(run.length - 2) as number) : last;
}

/** The texts that have a match of the pattern somewhere; with `isWhole`, that are one. */
export function patternAutomaton(pattern: Pattern, budget: Budget, isWhole = false): Automaton {
  const { body } = pattern;
  const searched: Regex[] = isWhole ? [body] : [ANYTHING, body, { kind: 'rest' }];
  return Automaton.of(withoutLookaheads(sequence(...searched), sequence(), pattern, budget), budget);
}

/** Whether the expression has a part of the kind. */
function has(regex: Regex, kind: 'ahead' | 'start'): boolean {
  if (regex.kind === kind) return true;
  if (regex.kind === 'repeat') return has(regex.item, kind);
  if (regex.kind === 'ahead') return has(regex.body, kind);
  return (regex.kind === 'sequence' || regex.kind === 'choice') && regex.items.some((item) => has(item, kind));
}

/** Repetitions of what has a lookahead are written out, at most so often. */
const MOST_REPEATS = 20;

/**
 * An expression followed by another, up to the text's end. A lookahead is what follows, without what may not follow, or as far
 * as that begins as it must.
 */
function withoutLookaheads(regex: Regex, then: Regex, pattern: Pattern, budget: Budget): Regex {
  const on = (item: Regex, next: Regex) => withoutLookaheads(item, next, pattern, budget);
  budget.spend(1);
  if (!has(regex, 'ahead')) return sequence(regex, then);
  switch (regex.kind) {
    case 'sequence':
      return regex.items.reduceRight((next, item) => on(item, next), then);
    case 'choice':
      return choice(...regex.items.map((item) => on(item, then)));
    case 'repeat': {
      const { item, least, most } = regex;
      if (most > MOST_REPEATS) throw pattern.refused('(?', 'a lookahead in a repetition');
      let result = then;
      for (let count = most - 1; count >= 0; count--) {
        result = count >= least ? choice(then, on(item, result)) : on(item, result);
      }
      return result;
    }
    case 'ahead': {
      if (has(then, 'start') || has(regex.body, 'start')) throw pattern.refused('(?', 'a lookahead before ^');
      const following = Automaton.of(then, budget);
      const ahead = Automaton.of(on(regex.body, { kind: 'rest' }), budget);
      const automaton = regex.isNegated ? following.without(ahead, budget) : following.and(ahead, budget);
      return { kind: 'automaton', automaton };
    }
    default:
      return sequence(regex, then);
  }
}

/**
 * The pattern as it is written, where grammars can say that: with anchors at its ends only. What is not anchored may have
 * any text around it.
 */
export function writtenPattern(pattern: Pattern, encode: Encode, isWhole = false): Expression | undefined {
  const alternatives = pattern.body.kind === 'choice' ? pattern.body.items : [pattern.body];
  const framed = alternatives.map((alternative) => {
    let items = alternative.kind === 'sequence' ? alternative.items : [alternative];
    const isAnchored = { start: items[0]?.kind === 'start', end: items.length > 0 && items.at(-1)?.kind === 'end' };
    items = items.slice(isAnchored.start ? 1 : 0, isAnchored.end ? -1 : undefined);
    if (!isWhole && !isAnchored.start) items = [ANYTHING, ...items];
    if (!isWhole && !isAnchored.end) items = [...items, ANYTHING];
    return sequence(...items);
  });
  return regexExpression(choice(...framed), encode);
}

/** Whether every alternative of the pattern begins with ^ and ends with $. */
function isAnchored({ body }: Pattern): boolean {
  const alternatives = body.kind === 'choice' ? body.items : [body];
  return alternatives.every(
    (it) => it.kind === 'sequence' && it.items[0]?.kind === 'start' && it.items.at(-1)?.kind === 'end',
  );
}

/**
 * A pattern as an expression of a grammar. What is anchored stays as it is written; else an automaton goes through the text
 * without guessing where the match begins, unless that gets too large.
 */
export function patternExpression(
  pattern: Pattern,
  grammar: Grammar,
  encode: Encode,
  budget: Budget,
  isWhole = false,
): Expression | undefined {
  if (isWhole || isAnchored(pattern)) {
    const written = writtenPattern(pattern, encode, isWhole);
    if (written !== undefined) return written;
  }
  return unlessTooLarge<Expression | undefined>(
    () => automatonExpression(patternAutomaton(pattern, budget, isWhole), grammar, encode),
    () => writtenPattern(pattern, encode, isWhole),
  );
}
