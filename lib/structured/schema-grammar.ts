import { invalidArgument } from '../common/errors.js';
import { choiceOption, readOptions, show } from '../common/options.js';
import { Automaton, isWellFormed, TooLarge } from './automaton.js';
import { ALL_CHARS, type CharSet } from './char-set.js';
import { type Dialect, JSON_DIALECT, PYTHON_DIALECT } from './dialect.js';
import {
  alt,
  automatonExpression,
  cls,
  EMPTY,
  type Expression,
  Grammar,
  lit,
  NEVER,
  opt,
  regexExpression,
  rep,
  seq,
} from './grammar.js';
import { ANY_NUMBER, boundedNumbers, integerRange, integers } from './numbers.js';
import { patternExpression } from './regex.js';
import {
  ARRAY,
  BOOLEAN,
  type Constraint,
  isObject,
  type Json,
  MOST_COUNT,
  NULL,
  NUMBER,
  OBJECT,
  type Place,
  SchemaDocument,
  STRING,
} from './schema.js';

/** Options of {@link schemaToGrammar}. */
export interface SchemaGrammarOptions {
  /**
   * `json`: JSON text. `python-call`: the arguments of a Python call, `city='北京', days=2`, as ChatGLM3 writes them; the
   * schema is that of an object. Default: `json`.
   */
  dialect?: 'json' | 'python-call' | undefined;
  /** What errors call the schema. Default: `schema`. */
  name?: string | undefined;
}

/**
 * The grammar, in GBNF, of answers that a JSON Schema (draft 2020-12) accepts. Every text of the grammar is valid; not every
 * valid text is one of the grammar: properties come in the order in which they are declared, and a schema that declares
 * properties has no others unless it says `additionalProperties`. docs/structured.md lists the keywords.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT for what is no schema, for keywords that no grammar can hold an answer to, for
 *   a schema that no finite answer meets, and for one whose grammar is too large.
 */
export function schemaToGrammar(schema: unknown, options: SchemaGrammarOptions = {}): string {
  const set = readOptions<SchemaGrammarOptions>(options, ['dialect', 'name'], 'schemaToGrammar()');
  const dialect = choiceOption('dialect', set.dialect, ['json', 'python-call'], 'json');
  const name = set.name ?? 'schema';
  try {
    const document = new SchemaDocument(schema, name);
    const compiler = new Compiler(document, dialect === 'json' ? JSON_DIALECT : PYTHON_DIALECT);
    return dialect === 'json' ? compiler.value() : compiler.callArguments();
  } catch (error) {
    // A RangeError: more alternatives than a call has arguments, or an expression deeper than the stack.
    if (!(error instanceof TooLarge) && !(error instanceof RangeError)) throw error;
    throw invalidArgument(`${name}: the patterns, ranges and alternatives together are too large for a grammar`, error);
  }
}

/** Distinct patterns of properties in one object: each set of them that a name may match has keys of its own. */
const MOST_PATTERNS = 3;
/** Strings of an `enum` beyond which they are read by an automaton, so that not each of them is tried by itself. */
const MOST_LISTED = 16;
/** Parts of an expression of properties beyond which it is a rule. */
const MOST_ITEMS = 100;
/** Classes of more ranges are rules of their own. */
const LONG_CLASS = 24;
/** Multiples that are listed one by one. */
const MOST_MULTIPLES = 2000;

const SEPARATOR = seq(lit(','), opt(lit(' ')));
const COLON = seq(lit(':'), opt(lit(' ')));
/** As `parseToolCall()` reads a name; words of Python's own, such as `from`, are fine there. */
const IDENTIFIER = /^[\p{L}_][\p{L}\p{N}_]*$/u;

/** What may be repeated so often is repeated without a limit, or at most as often as a grammar can count. */
function limited(most: number): number {
  return most === Number.POSITIVE_INFINITY ? most : Math.min(most, MOST_COUNT);
}

/** Numbers beyond what doubles hold stay as they are: no multiple of them but 0 is within any range. */
function leastCommonMultiple(a: number, b: number): number {
  let [divisor, rest] = [a, b];
  while (rest !== 0) [divisor, rest] = [rest, divisor % rest];
  return (a / divisor) * b;
}

interface Entry {
  isRequired: boolean;
  /** The key and the value. */
  expression: Expression;
}

class Compiler {
  readonly #grammar: Grammar;
  readonly #values = new Map<string, Expression>();
  readonly #scalars = new Map<string, Expression>();
  readonly #classes = new Map<string, Expression>();
  readonly #waiting: { name: string; places: readonly Place[] }[] = [];

  constructor(
    readonly document: SchemaDocument,
    readonly dialect: Dialect,
  ) {
    this.#grammar = new Grammar(document.name);
  }

  /** The grammar of one value. */
  value(): string {
    return this.#finish(this.#value([this.document.root]));
  }

  /** The grammar of a call's arguments, without the parentheses. */
  callArguments(): string {
    const alternatives = this.document.normal([this.document.root]).map((constraint) => {
      this.document.checkAlternative(constraint);
      if ((constraint.types & OBJECT) === 0) return NEVER;
      if (constraint.values !== undefined) {
        const values = constraint.values.filter((it) => isObject(it) && this.document.accepts(constraint, it));
        return alt(...values.map((value) => this.#argumentsOf(value as { [key: string]: Json })));
      }
      return this.#entries(constraint, true);
    });
    return this.#finish(alt(...alternatives.filter((it) => it !== NEVER)));
  }

  #finish(root: Expression): string {
    for (let next = this.#waiting.pop(); next !== undefined; next = this.#waiting.pop()) {
      this.#grammar.define(next.name, this.#alternatives(next.places));
    }
    const text = this.#grammar.text(root);
    if (text !== undefined) return text;
    throw invalidArgument(`${this.document.name}: there is no finite answer that meets the schema`);
  }

  /** A value that meets all of the places: a rule where it is an array or an object, so that schemas may name themselves. */
  #value(places: readonly Place[]): Expression {
    const simple = this.document.simplified(places);
    if (simple === 'never') return NEVER;
    if (simple.length === 0) return this.#anyValue();
    const key = simple.map(({ pointer }) => pointer).join(' ');
    const known = this.#values.get(key);
    if (known !== undefined) return known;
    const isScalar = this.document
      .normal(simple)
      .every((it) => it.values === undefined && (this.document.writtenTypes(it) & (ARRAY | OBJECT)) === 0);
    let expression: Expression;
    if (isScalar) {
      expression = this.#alternatives(simple);
    } else {
      const name = this.#grammar.reserve('v');
      expression = { kind: 'rule', name };
      this.#waiting.push({ name, places: simple });
    }
    this.#values.set(key, expression);
    return expression;
  }

  #alternatives(places: readonly Place[]): Expression {
    const alternatives = this.document.normal(places).map((constraint) => {
      this.document.checkAlternative(constraint);
      return this.#constraint(constraint);
    });
    return alt(...new Set(alternatives.filter((it) => it !== NEVER)));
  }

  #constraint(constraint: Constraint): Expression {
    const { values } = constraint;
    if (values !== undefined) return this.#listed(values.filter((value) => this.document.accepts(constraint, value)));
    const types = this.document.writtenTypes(constraint);
    const { yes, no, nothing } = this.dialect;
    const parts: Expression[] = [];
    if (types & OBJECT) parts.push(this.#object(constraint));
    if (types & ARRAY) parts.push(this.#array(constraint));
    if (types & STRING) parts.push(this.#string(constraint));
    if (types & NUMBER) parts.push(this.#number(constraint));
    if (types & BOOLEAN) parts.push(this.#grammar.shared('boolean', () => alt(lit(yes), lit(no))));
    if (types & NULL) parts.push(lit(nothing));
    return alt(...parts.filter((it) => it !== NEVER));
  }

  #listed(values: readonly Json[]): Expression {
    const strings = values.filter((it) => typeof it === 'string');
    if (strings.length <= MOST_LISTED) return alt(...values.map((value) => this.#literal(value)));
    // Halves of surrogate pairs are no characters of an automaton.
    const whole = strings.filter(isWellFormed);
    const others = values.filter((it) => typeof it !== 'string' || !isWellFormed(it));
    const automaton = Automaton.ofTexts(whole, this.document.budget);
    return alt(
      this.#quoted(automatonExpression(automaton, this.#grammar, this.#encode)),
      ...others.map((it) => this.#literal(it)),
    );
  }

  #literal(value: Json): Expression {
    const { yes, no, nothing } = this.dialect;
    if (value === null) return lit(nothing);
    if (typeof value === 'boolean') return lit(value ? yes : no);
    if (typeof value === 'number') return lit(JSON.stringify(value));
    if (typeof value === 'string') return this.#key(value);
    if (Array.isArray(value)) {
      return seq(lit('['), ...value.flatMap((it, at) => [at > 0 ? SEPARATOR : EMPTY, this.#literal(it)]), lit(']'));
    }
    const entries = Object.entries(value).flatMap(([name, it], at) => [
      at > 0 ? SEPARATOR : EMPTY,
      seq(this.#key(name), COLON, this.#literal(it)),
    ]);
    return seq(lit('{'), ...entries, lit('}'));
  }

  #argumentsOf(value: { [key: string]: Json }): Expression {
    const entries = Object.entries(value).flatMap(([name, it], at) => [
      at > 0 ? SEPARATOR : EMPTY,
      seq(this.#argumentName(name), this.#literal(it)),
    ]);
    return seq(...entries);
  }

  #key(name: string): Expression {
    const { quote } = this.dialect;
    return lit(quote + this.dialect.inQuotes(name) + quote);
  }

  #argumentName(name: string): Expression {
    if (IDENTIFIER.test(name)) return lit(`${name}=`);
    throw invalidArgument(
      `${this.document.name}: ${show(name)} is no name that an argument of a call can have: letters, digits and _ only`,
    );
  }

  #quoted(content: Expression): Expression {
    return content === NEVER ? NEVER : seq(lit(this.dialect.quote), content, lit(this.dialect.quote));
  }

  readonly #encode = (set: CharSet): Expression => {
    if (set.join() === ALL_CHARS.join()) return this.#grammar.shared('char', () => this.dialect.encode(ALL_CHARS));
    if (set.length < 2 * LONG_CLASS) return this.dialect.encode(set);
    const key = set.join();
    let found = this.#classes.get(key);
    if (found === undefined) {
      found = this.#grammar.define(this.#grammar.reserve('c'), this.dialect.encode(set));
      this.#classes.set(key, found);
    }
    return found;
  };

  #anyString(): Expression {
    return this.#grammar.shared('string', () => this.#quoted(rep(this.#encode(ALL_CHARS), 0)));
  }

  #anyNumber(): Expression {
    return this.#grammar.shared('number', () => regexExpression(ANY_NUMBER, cls) as Expression);
  }

  #anyValue(): Expression {
    return this.#grammar.shared('value', () => {
      const value: Expression = { kind: 'rule', name: 'value' };
      const list = (item: Expression) => opt(seq(item, rep(seq(SEPARATOR, item), 0)));
      const { yes, no, nothing } = this.dialect;
      return alt(
        seq(lit('{'), list(seq(this.#anyString(), COLON, value)), lit('}')),
        seq(lit('['), list(value), lit(']')),
        this.#anyString(),
        this.#anyNumber(),
        this.#grammar.shared('boolean', () => alt(lit(yes), lit(no))),
        lit(nothing),
      );
    });
  }

  /** The expression of strings or numbers, which is a rule of its own if it is wanted again. */
  #scalar(key: string, make: () => Expression): Expression {
    let found = this.#scalars.get(key);
    if (found === undefined) {
      const made = make();
      found = made.kind === 'rule' || made === NEVER ? made : this.#grammar.define(this.#grammar.reserve('t'), made);
      this.#scalars.set(key, found);
    }
    return found;
  }

  #string(constraint: Constraint): Expression {
    const { minLength, maxLength, patterns, pointer } = constraint;
    const isLimited = minLength > 0 || maxLength !== Number.POSITIVE_INFINITY;
    if (patterns.length === 0 && !isLimited) return this.#anyString();
    const key = `string ${minLength} ${maxLength} ${JSON.stringify(patterns.map(({ source }) => source))}`;
    return this.#scalar(key, () => {
      if (patterns.length === 0) {
        return this.#quoted(rep(this.#encode(ALL_CHARS), minLength, limited(maxLength)));
      }
      const [first, ...others] = patterns;
      const { document } = this;
      if (first !== undefined && others.length === 0 && !isLimited) {
        const pattern = document.pattern(first.source, first.where);
        const written = patternExpression(pattern, this.#grammar, this.#encode, document.budget);
        if (written !== undefined) return this.#quoted(written);
        throw document.refuse(pointer, 'pattern', 'whose grammar would be too large');
      }
      try {
        return this.#quoted(automatonExpression(document.strings(constraint), this.#grammar, this.#encode));
      } catch (error) {
        if (!(error instanceof TooLarge)) throw error;
        const together = isLimited ? 'minLength or maxLength' : 'another pattern or format';
        throw document.refuse(pointer, 'pattern', `together with ${together}: the grammar of both would be too large`);
      }
    });
  }

  #number(constraint: Constraint): Expression {
    const { formatRange, divisors, pointer } = constraint;
    let { least, most, isInteger } = constraint;
    const { above, below } = constraint;
    if (formatRange !== undefined) {
      isInteger = true;
      least = Math.max(least ?? formatRange[0], formatRange[0]);
      most = Math.min(most ?? formatRange[1], formatRange[1]);
    }
    const hasBounds = [least, most, above, below].some((it) => it !== undefined);
    if (!isInteger && divisors.length === 0) {
      if (!hasBounds) return this.#anyNumber();
      return this.#scalar(`number ${least} ${most} ${above} ${below}`, () =>
        automatonExpression(boundedNumbers(constraint, this.document.budget), this.#grammar, cls),
      );
    }
    const range = integerRange({ least, most, above, below });
    if (range === undefined) return NEVER;
    return this.#scalar(`integer ${range.join()} ${divisors.join()}`, () => {
      const factor = divisors.reduce(leastCommonMultiple, 1);
      return factor === 1
        ? (regexExpression(integers(range), cls) as Expression)
        : this.#multiples(range, factor, pointer);
    });
  }

  #multiples([first, last]: readonly [number, number], factor: number, pointer: string): Expression {
    const { budget } = this.document;
    const [least, most] = [Math.ceil(first / factor), Math.floor(last / factor)];
    if (most - least < MOST_MULTIPLES) {
      const texts: string[] = [];
      for (let count = least; count <= most; count++) texts.push(String(count === 0 ? 0 : count * factor));
      return automatonExpression(Automaton.ofTexts(texts, budget), this.#grammar, cls);
    }
    if (factor % 10 === 0) {
      // What is behind the zeros at the end is the same in fewer digits; 0 has no zeros behind it.
      const tenth: [number, number] = [Math.ceil(first / 10), Math.floor(last / 10)];
      const parts = [[tenth[0], Math.min(tenth[1], -1)] as const, [Math.max(tenth[0], 1), tenth[1]] as const]
        .filter(([low, high]) => low <= high)
        .map((part) => seq(this.#multiplesOrAll(part, factor / 10, pointer), lit('0')));
      return alt(...(first <= 0 && last >= 0 ? [lit('0')] : []), ...parts);
    }
    try {
      const all = Automaton.of(integers([first, last]), budget);
      return automatonExpression(all.and(Automaton.ofMultiples(factor, budget), budget), this.#grammar, cls);
    } catch (error) {
      if (!(error instanceof TooLarge)) throw error;
      throw this.document.refuse(pointer, 'multipleOf', 'with a number whose multiples are too large a grammar');
    }
  }

  #multiplesOrAll(range: readonly [number, number], factor: number, pointer: string): Expression {
    if (factor === 1) return regexExpression(integers(range), cls) as Expression;
    return this.#multiples(range, factor, pointer);
  }

  #array(constraint: Constraint): Expression {
    const { document } = this;
    const least = document.leastItems(constraint);
    const most = document.mostItems(constraint);
    if (most < least) return NEVER;
    const fixed = Math.max(0, ...constraint.arrays.map(({ prefix }) => prefix.length));
    const item = (index: number) => this.#value(document.item(constraint.arrays, index));
    // From the end: what may follow when `index` items have been written.
    let tail: Expression = EMPTY;
    if (most > fixed) {
      const room = limited(most);
      const others = item(fixed);
      if (fixed > 0) {
        tail = rep(seq(SEPARATOR, others), Math.max(0, least - fixed), room - fixed);
      } else {
        const all = seq(others, rep(seq(SEPARATOR, others), Math.max(0, least - 1), room - 1));
        tail = least === 0 ? opt(all) : all;
      }
    }
    for (let index = Math.min(fixed, most) - 1; index >= 0; index--) {
      const one = seq(index === 0 ? EMPTY : SEPARATOR, item(index), tail);
      tail = index >= least ? opt(one) : one;
      // Optional items nest; as rules, they do so without a depth.
      if (index >= least && index % 16 === 15) tail = this.#grammar.define(this.#grammar.reserve('i'), tail);
    }
    return seq(lit('['), tail, lit(']'));
  }

  #object(constraint: Constraint): Expression {
    return seq(lit('{'), this.#entries(constraint, false), lit('}'));
  }

  /**
   * Properties in their order, then others. An expression says what may follow when the properties before `index` have had
   * their turn and `count` of them were written: a chain, not the subsets of what is optional.
   */
  #entries(constraint: Constraint, isCall: boolean): Expression {
    const { document } = this;
    const { minProperties: least, required, objects, pointer } = constraint;
    const names = [...new Set([...objects.flatMap(({ properties }) => [...properties.keys()]), ...required])];
    const entries: Entry[] = [];
    const needed = new Set(required);
    for (const name of names) {
      const isRequired = needed.has(name);
      const isNamed = document.meets(constraint.names, name);
      const value = isNamed ? this.#value(document.property(objects, name)) : NEVER;
      if (value === NEVER) {
        if (isRequired) return NEVER;
        continue;
      }
      const key = isCall ? this.#argumentName(name) : seq(this.#key(name), COLON);
      entries.push({ isRequired, expression: seq(key, value) });
    }
    const other = isCall ? NEVER : this.#otherEntries(constraint, names);
    if (other !== NEVER && least > entries.length + 1) {
      throw document.refuse(
        pointer,
        'minProperties',
        'with more properties than are declared: a grammar cannot tell that two others differ',
      );
    }
    const most =
      other === NEVER && constraint.maxProperties >= entries.length
        ? Number.POSITIVE_INFINITY
        : constraint.maxProperties;
    return this.#chain(entries, other, least, most);
  }

  #chain(entries: readonly Entry[], other: Expression, least: number, most: number): Expression {
    // Without a limit it makes no difference how many more than `least` there are.
    const top = most === Number.POSITIVE_INFINITY ? Math.max(1, least) : most;
    const after = (count: number) => Math.min(count + 1, top);
    // How often each state is asked for: those that are asked for once have no rule.
    const uses: Map<number, number>[] = entries.map(() => new Map());
    uses.push(new Map());
    uses[0]?.set(0, 1);
    for (const [index, { isRequired }] of entries.entries()) {
      for (const count of (uses[index] as Map<number, number>).keys()) {
        const next = uses[index + 1] as Map<number, number>;
        if (count < most) next.set(after(count), (next.get(after(count)) ?? 0) + 1);
        if (!isRequired && (count >= most || after(count) !== count)) next.set(count, (next.get(count) ?? 0) + 1);
      }
    }
    const ruled = (expression: Expression, index: number, count: number): Expression => {
      if (expression.kind === 'rule' || expression === EMPTY || expression === NEVER) return expression;
      // Long expressions are rules, too: each state before would copy them.
      const isLong = 'items' in expression && expression.items.length > MOST_ITEMS;
      if ((uses[index]?.get(count) ?? 0) < 2 && !isLong) return expression;
      return this.#grammar.define(this.#grammar.reserve('o'), expression);
    };
    let states = new Map<number, Expression>();
    for (const count of uses[entries.length]?.keys() ?? []) {
      states.set(count, ruled(this.#end(other, least, most, count), entries.length, count));
    }
    for (let index = entries.length - 1; index >= 0; index--) {
      const { isRequired, expression } = entries[index] as Entry;
      const before = new Map<number, Expression>();
      for (const count of uses[index]?.keys() ?? []) {
        const separated = seq(count > 0 ? SEPARATOR : EMPTY, expression);
        const rest = states.get(after(count)) ?? NEVER;
        let state: Expression;
        if (count >= most) state = isRequired ? NEVER : (states.get(count) as Expression);
        else if (isRequired) state = seq(separated, rest);
        else if (after(count) === count) state = seq(opt(separated), rest);
        else state = alt(...[seq(separated, rest), states.get(count) as Expression].filter((it) => it !== NEVER));
        before.set(count, ruled(state, index, count));
      }
      states = before;
    }
    return states.get(0) as Expression;
  }

  /** What may follow the declared properties, of which `count` were written. */
  #end(other: Expression, least: number, most: number, count: number): Expression {
    const missing = Math.max(0, least - count);
    if (other === NEVER) return missing === 0 ? EMPTY : NEVER;
    // Others may have the same name: more than one of them need not count as two.
    if (missing > 1) return NEVER;
    const room = limited(most - count);
    if (room < missing) return NEVER;
    if (count > 0) return rep(seq(SEPARATOR, other), missing, room);
    if (room === 0) return EMPTY;
    const all = seq(other, rep(seq(SEPARATOR, other), 0, room - 1));
    return missing === 0 ? opt(all) : all;
  }

  /** A property that is not declared: its name differs from all that are, lest it took the value of one of them. */
  #otherEntries(constraint: Constraint, names: readonly string[]): Expression {
    const { document } = this;
    const { objects } = constraint;
    const { budget } = document;
    const patterns = new Map(objects.flatMap((it) => it.patterns.map(({ source, place }) => [source, place.pointer])));
    const isOpen = document.isOpen(constraint);
    if (!isOpen && patterns.size === 0) return NEVER;
    if (patterns.size > MOST_PATTERNS) {
      throw document.refuse(constraint.pointer, 'patternProperties', `with more than ${MOST_PATTERNS} patterns`);
    }
    const sources = [...patterns];
    const result: Expression[] = [];
    for (let mask = isOpen ? 0 : 1; mask < 1 << sources.length; mask++) {
      const matched = new Set(sources.filter((_, bit) => mask & (1 << bit)).map(([source]) => source));
      const places = objects.flatMap(({ patterns: own, additional }) => {
        const found = own.filter(({ source }) => matched.has(source)).map(({ place }) => place);
        return found.length === 0 && additional !== undefined ? [additional] : found;
      });
      if (document.simplified(places) === 'never') continue;
      let key: Expression;
      if (sources.length === 0 && constraint.names.length === 0 && names.length === 0) {
        key = this.#anyString();
      } else {
        let automaton = Automaton.ofTexts(names, budget, true);
        for (const [source, where] of sources) {
          const other = document.patternAutomaton(source, where);
          automaton = matched.has(source) ? automaton.and(other, budget) : automaton.without(other, budget);
        }
        for (const place of constraint.names) automaton = automaton.and(document.stringsOf([place]), budget);
        if (automaton.isEmpty) continue;
        key = this.#quoted(automatonExpression(automaton, this.#grammar, this.#encode));
      }
      const value = this.#value(places);
      if (value !== NEVER) result.push(seq(key, COLON, value));
    }
    const expression = alt(...result);
    if (expression === NEVER || expression.kind === 'rule') return expression;
    return this.#grammar.define(this.#grammar.reserve('p'), expression);
  }
}
