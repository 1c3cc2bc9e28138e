// Grammars before they are text: expressions, rules, and the texts of GBNF.
import { invalidArgument } from '../common/errors.js';
import { type Automaton, type Regex, TooLarge } from './automaton.js';
import { ALL_CHARS, type CharSet, classText, literalText } from './char-set.js';

/** What a rule may be made of. A choice of nothing is what no text can be. */
export type Expression =
  | { readonly kind: 'literal'; readonly text: string }
  | { readonly kind: 'class'; readonly set: CharSet }
  | { readonly kind: 'sequence'; readonly items: readonly Expression[] }
  | { readonly kind: 'choice'; readonly items: readonly Expression[] }
  | { readonly kind: 'repeat'; readonly item: Expression; readonly least: number; readonly most: number }
  | { readonly kind: 'rule'; readonly name: string };

export const NEVER: Expression = { kind: 'choice', items: [] };
export const EMPTY: Expression = { kind: 'sequence', items: [] };

/** Code points to an expression: as they are, or as a dialect writes them within a string. */
export type Encode = (set: CharSet) => Expression;

export const lit = (text: string): Expression => (text === '' ? EMPTY : { kind: 'literal', text });
export const cls: Encode = (set) => {
  if (set.length === 0) return NEVER;
  return set.length === 2 && set[0] === set[1] ? lit(String.fromCodePoint(set[0] as number)) : { kind: 'class', set };
};

export function seq(...items: Expression[]): Expression {
  const flat: Expression[] = [];
  for (const item of items) {
    if (item === NEVER) return NEVER;
    for (const part of item.kind === 'sequence' ? item.items : [item]) {
      const before = flat.at(-1);
      if (part.kind === 'literal' && before?.kind === 'literal') flat[flat.length - 1] = lit(before.text + part.text);
      else flat.push(part);
    }
  }
  return flat.length === 1 ? (flat[0] as Expression) : flat.length === 0 ? EMPTY : { kind: 'sequence', items: flat };
}

export function alt(...items: Expression[]): Expression {
  const flat = items.flatMap((item) => (item.kind === 'choice' ? item.items : [item]));
  return flat.length === 1 ? (flat[0] as Expression) : flat.length === 0 ? NEVER : { kind: 'choice', items: flat };
}

export function rep(item: Expression, least: number, most = Number.POSITIVE_INFINITY): Expression {
  if (most < least) return NEVER;
  if (most === 0 || item === EMPTY) return EMPTY;
  if (item === NEVER) return least === 0 ? EMPTY : NEVER;
  return least === 1 && most === 1 ? item : { kind: 'repeat', item, least, most };
}

export const opt = (item: Expression): Expression => rep(item, 0, 1);

/** Longer grammars are refused, in characters. */
const MOST_TEXT = 2_000_000;
/** Rules before they are written. Each has ten characters at least. */
const MOST_RULES = 100_000;

/** The rules of a grammar. */
export class Grammar {
  readonly #rules = new Map<string, Expression>();
  #reserved = 0;

  /** @param what How errors call what the grammar is made of. */
  constructor(readonly what: string) {}

  /** A name that no rule has, to be defined later. */
  reserve(prefix: string): string {
    if (++this.#reserved > MOST_RULES) throw this.tooLarge();
    return `${prefix}${this.#reserved}`;
  }

  define(name: string, expression: Expression): Expression {
    this.#rules.set(name, expression);
    return { kind: 'rule', name };
  }

  /** A rule of a fixed name, made when it is wanted first. */
  shared(name: string, make: () => Expression): Expression {
    if (!this.#rules.has(name)) {
      this.#rules.set(name, NEVER); // for rules that name themselves
      this.#rules.set(name, make());
    }
    return { kind: 'rule', name };
  }

  tooLarge(): Error {
    return invalidArgument(`${this.what}: the grammar would be larger than ${MOST_TEXT} characters`);
  }

  /**
   * The text of what `root` leads to. Undefined where no finite text fits. Alternatives that cannot end are left out.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT for a grammar that is too large.
   */
  text(root: Expression): string | undefined {
    this.#rules.set('root', root);
    const ends = this.#rulesThatEnd();
    if (!ends.has('root')) return undefined;
    const lines: string[] = [];
    let length = 0;
    const wanted = ['root'];
    const seen = new Set(wanted);
    for (let name = wanted.shift(); name !== undefined; name = wanted.shift()) {
      const found: string[] = [];
      const body = write(pruned(this.#rules.get(name) as Expression, ends), 'choice', found);
      const line = `${name} ::= ${body === '' ? '""' : body}\n`;
      length += line.length;
      if (length > MOST_TEXT) throw this.tooLarge();
      lines.push(line);
      for (const next of found) {
        if (seen.has(next)) continue;
        seen.add(next);
        wanted.push(next);
      }
    }
    return lines.join('');
  }

  /** The names of the rules that have a finite text. */
  #rulesThatEnd(): Set<string> {
    const ends = new Set<string>();
    const users = new Map<string, string[]>();
    for (const [name, expression] of this.#rules) {
      for (const used of rulesIn(expression)) {
        const list = users.get(used);
        if (list === undefined) users.set(used, [name]);
        else list.push(name);
      }
    }
    const waiting = [...this.#rules.keys()];
    for (let name = waiting.pop(); name !== undefined; name = waiting.pop()) {
      if (ends.has(name) || !canEnd(this.#rules.get(name) as Expression, ends)) continue;
      ends.add(name);
      waiting.push(...(users.get(name) ?? []));
    }
    return ends;
  }
}

function rulesIn(expression: Expression, names = new Set<string>()): Set<string> {
  if (expression.kind === 'rule') names.add(expression.name);
  else if (expression.kind === 'repeat') rulesIn(expression.item, names);
  else if ('items' in expression) for (const item of expression.items) rulesIn(item, names);
  return names;
}

function canEnd(expression: Expression, ends: ReadonlySet<string>): boolean {
  switch (expression.kind) {
    case 'rule':
      return ends.has(expression.name);
    case 'sequence':
      return expression.items.every((item) => canEnd(item, ends));
    case 'choice':
      return expression.items.some((item) => canEnd(item, ends));
    case 'repeat':
      return expression.least === 0 || canEnd(expression.item, ends);
    default:
      return true;
  }
}

function pruned(expression: Expression, ends: ReadonlySet<string>): Expression {
  switch (expression.kind) {
    case 'rule':
      return ends.has(expression.name) ? expression : NEVER;
    case 'sequence':
      return seq(...expression.items.map((item) => pruned(item, ends)));
    case 'choice':
      return alt(...expression.items.map((item) => pruned(item, ends)).filter((item) => item !== NEVER));
    case 'repeat':
      return rep(pruned(expression.item, ends), expression.least, expression.most);
    default:
      return expression;
  }
}

type Surroundings = 'choice' | 'sequence' | 'repeat';

/** The text of an expression, in parentheses where its surroundings need them; the names of its rules go to `names`. */
function write(expression: Expression, within: Surroundings, names: string[]): string {
  const grouped = (text: string, needs: boolean) => (needs ? `(${text})` : text);
  switch (expression.kind) {
    case 'literal':
      return literalText(expression.text);
    case 'class':
      return classText(expression.set);
    case 'rule':
      names.push(expression.name);
      return expression.name;
    case 'sequence': {
      const text = expression.items.map((item) => write(item, 'sequence', names)).join(' ');
      return text === '' ? '""' : grouped(text, within === 'repeat');
    }
    case 'choice':
      return grouped(expression.items.map((item) => write(item, 'choice', names)).join(' | '), within !== 'choice');
    case 'repeat': {
      const item = write(expression.item, 'repeat', names);
      return grouped(`${item}${countText(expression.least, expression.most)}`, within === 'repeat');
    }
  }
}

function countText(least: number, most: number): string {
  if (most === Number.POSITIVE_INFINITY) return least === 0 ? '*' : least === 1 ? '+' : `{${least},}`;
  if (least === 0 && most === 1) return '?';
  return least === most ? `{${least}}` : `{${least},${most}}`;
}

/** Whether the expression may match the empty text; anchors always do. */
function isNullable(regex: Regex): boolean {
  switch (regex.kind) {
    case 'chars':
      return false;
    case 'sequence':
      return regex.items.every(isNullable);
    case 'choice':
      return regex.items.some(isNullable);
    case 'repeat':
      return regex.least === 0 || isNullable(regex.item);
    default:
      return true;
  }
}

/**
 * A regular expression as it is written. Undefined where only an automaton can say it: an anchor within, or a repetition of
 * what may be empty, which would be left recursion.
 */
export function regexExpression(regex: Regex, encode: Encode): Expression | undefined {
  switch (regex.kind) {
    case 'chars':
      return encode(regex.set);
    case 'sequence':
    case 'choice': {
      const items: Expression[] = [];
      for (const item of regex.items) {
        const part = regexExpression(item, encode);
        if (part === undefined) return undefined;
        items.push(part);
      }
      return regex.kind === 'sequence' ? seq(...items) : alt(...items.filter((item) => item !== NEVER));
    }
    case 'repeat': {
      if (regex.most > 1 && isNullable(regex.item)) return undefined;
      const item = regexExpression(regex.item, encode);
      return item === undefined ? undefined : rep(item, regex.least, regex.most);
    }
    case 'rest':
      return rep(encode(ALL_CHARS), 0);
    default:
      return undefined;
  }
}

/** An automaton as rules: each state reads a character and goes on. Where only one way leads to a state, it has no rule. */
export function automatonExpression(automaton: Automaton, grammar: Grammar, encode: Encode): Expression {
  const { states } = automaton;
  if (automaton.isEmpty) return NEVER;
  const ways = new Array<number>(states.length).fill(0);
  for (const [at, { edges }] of states.entries())
    for (const { to } of edges) if (to !== at) ways[to] = (ways[to] ?? 0) + 1;
  const hasRule = (at: number) => at !== 0 && (ways[at] as number) > 1;
  const names = new Map<number, string>();
  const isFinal = (at: number) => states[at]?.accepts === true && states[at].edges.length === 0;
  // A chain of states is one expression, unless it gets so long that walking through it would exhaust the stack.
  const waiting: number[] = [];
  const reference = (at: number): Expression => {
    let name = names.get(at);
    if (name === undefined) {
      name = grammar.reserve('s');
      names.set(at, name);
      waiting.push(at);
    }
    return { kind: 'rule', name };
  };
  const body = (at: number, depth: number): Expression => {
    const { accepts, edges } = states[at] as (typeof states)[number];
    const loop = edges.find(({ to }) => to === at);
    const on = edges.filter(({ to }) => to !== at);
    const choices = on.map(({ set, to }) => {
      if (isFinal(to)) return encode(set);
      return seq(encode(set), hasRule(to) || to === 0 || depth > 40 ? reference(to) : body(to, depth + 1));
    });
    const rest = choices.length === 0 ? EMPTY : accepts ? opt(alt(...choices)) : alt(...choices);
    return loop === undefined ? rest : seq(rep(encode(loop.set), 0), rest);
  };
  const start = ways[0] === 0 ? body(0, 0) : reference(0);
  for (let at = waiting.pop(); at !== undefined; at = waiting.pop()) {
    grammar.define(names.get(at) as string, body(at, 0));
  }
  return start;
}

/** What `make` gives, or what `otherwise` gives where an automaton gets too large. */
export function unlessTooLarge<T>(make: () => T, otherwise: () => T): T {
  try {
    return make();
  } catch (error) {
    if (error instanceof TooLarge) return otherwise();
    throw error;
  }
}
