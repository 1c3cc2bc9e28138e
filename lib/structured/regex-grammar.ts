import { invalidArgument } from '../common/errors.js';
import { booleanOption, readOptions, show } from '../common/options.js';
import { Budget } from './automaton.js';
import { cls, Grammar } from './grammar.js';
import { patternExpression, readPattern } from './regex.js';

/** Options of {@link regexToGrammar}. */
export interface RegexGrammarOptions {
  /** Whether the pattern must match the whole text, not just some of it. Default: true. */
  anchored?: boolean | undefined;
  /** What errors call the pattern. Default: `pattern`. */
  name?: string | undefined;
}

/**
 * The grammar, in GBNF, of the texts that a regular expression matches: of ECMAScript, with the flag u.
 *
 * Quantifiers that are lazy are as others: which part of a text a group takes makes no difference. Lookbehinds, backreferences
 * and word boundaries are refused.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT for what is no such pattern, for one that no text matches, and for one whose
 *   grammar is too large.
 */
export function regexToGrammar(pattern: string, options: RegexGrammarOptions = {}): string {
  const set = readOptions<RegexGrammarOptions>(options, ['anchored', 'name'], 'regexToGrammar()');
  const name = set.name ?? 'pattern';
  if (typeof pattern !== 'string') throw invalidArgument(`${name} must be a string, got ${show(pattern)}`);
  const grammar = new Grammar(name);
  const read = readPattern(pattern, name);
  const isWhole = booleanOption('anchored', set.anchored, true);
  const expression = patternExpression(read, grammar, cls, new Budget(), isWhole);
  if (expression === undefined) throw grammar.tooLarge();
  const text = grammar.text(expression);
  if (text === undefined) throw invalidArgument(`${name} matches no text at all: ${show(pattern)}`);
  return text;
}
