// JSON Schemas as this package reads them: what a place in a schema asks for, with references followed and with `allOf`,
// `anyOf` and `oneOf` written out as alternatives, each of which is one set of constraints.
import { invalidArgument } from '../common/errors.js';
import { shown } from '../common/invalid.js';
import { reading, show } from '../common/options.js';
import { plainCopy } from '../common/plain-copy.js';
import { Automaton, Budget, chars, choice, repeat, TooLarge } from './automaton.js';
import { ALL_CHARS } from './char-set.js';
import { formatOf } from './formats.js';
import { type Bounds, isWithin } from './numbers.js';
import { type Pattern, patternAutomaton, readPattern } from './regex.js';

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
type JsonObject = { [key: string]: Json };

/** A schema and where it stands: a JSON pointer that begins with `#`. */
export interface Place {
  schema: boolean | JsonObject;
  pointer: string;
}

export const NULL = 1;
export const BOOLEAN = 2;
export const NUMBER = 4;
export const STRING = 8;
export const ARRAY = 16;
export const OBJECT = 32;
const EVERY_TYPE = NULL | BOOLEAN | NUMBER | STRING | ARRAY | OBJECT;

const TYPES: Readonly<Record<string, number>> = {
  null: NULL,
  boolean: BOOLEAN,
  integer: NUMBER,
  number: NUMBER,
  string: STRING,
  array: ARRAY,
  object: OBJECT,
};

/** What one schema says of properties. */
export interface ObjectSource {
  properties: ReadonlyMap<string, Place>;
  patterns: readonly { source: string; place: Place }[];
  /** Absent where the schema does not say. */
  additional: Place | undefined;
  /** Whether the schema declares properties, be it none. */
  declares: boolean;
}

/** What one schema says of items. */
export interface ArraySource {
  prefix: readonly Place[];
  rest: Place | undefined;
}

/** Whether a value is surely valid, for all that is known of formats, or may be. */
type Certainty = 'surely' | 'perhaps';

/** Constraints that a value must all meet; those of other types than the value's do not count. */
export interface Constraint extends Bounds {
  /** The types that a value may be of. */
  types: number;
  /** The types that some keyword is about. */
  touched: number;
  isInteger: boolean;
  /** Values that are possible, where `enum` or `const` lists them, and the place of that list. */
  values: readonly Json[] | undefined;
  /** `keyOf()` of each of them. */
  valueKeys: ReadonlySet<string> | undefined;
  divisors: readonly number[];
  minLength: number;
  maxLength: number;
  /**
   * Patterns, by their place. That of a format is not exact: there are texts of the format that the pattern does not match,
   * and validators that take no notice of formats.
   */
  patterns: readonly { source: string; where: string; isExact: boolean }[];
  /** Whole numbers from the first to the second, which formats of numbers ask for. */
  formatRange: readonly [number, number] | undefined;
  minItems: number | undefined;
  maxItems: number;
  arrays: readonly ArraySource[];
  objects: readonly ObjectSource[];
  required: readonly string[];
  minProperties: number;
  maxProperties: number;
  names: readonly Place[];
  /** Alternatives of a `oneOf`: a value must meet none of the others. */
  against: readonly { others: readonly Place[]; pointer: string }[];
  /** Where the constraints come from, for messages: a pointer. */
  pointer: string;
}

const ANY: Constraint = {
  types: EVERY_TYPE,
  touched: 0,
  isInteger: false,
  values: undefined,
  valueKeys: undefined,
  divisors: [],
  minLength: 0,
  maxLength: Number.POSITIVE_INFINITY,
  patterns: [],
  formatRange: undefined,
  minItems: undefined,
  maxItems: Number.POSITIVE_INFINITY,
  arrays: [],
  objects: [],
  required: [],
  minProperties: 0,
  maxProperties: Number.POSITIVE_INFINITY,
  names: [],
  against: [],
  pointer: '#',
};

/** Keywords that say nothing of which values are valid. */
const ANNOTATIONS = new Set([
  '$schema',
  '$id',
  '$comment',
  '$defs',
  'definitions',
  '$anchor',
  '$dynamicAnchor',
  '$vocabulary',
  'title',
  'description',
  'default',
  'example',
  'examples',
  'deprecated',
  'readOnly',
  'writeOnly',
  'contentEncoding',
  'contentMediaType',
  'contentSchema',
]);

const KEYWORDS = new Set([
  ...['type', 'enum', 'const', '$ref', 'allOf', 'anyOf', 'oneOf', 'uniqueItems'],
  ...['properties', 'patternProperties', 'additionalProperties', 'required', 'propertyNames'],
  ...['minProperties', 'maxProperties', 'items', 'prefixItems', 'minItems', 'maxItems'],
  ...['minLength', 'maxLength', 'pattern', 'format'],
  ...['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf'],
]);

/** Counts beyond it are cut to it where they are the most, and refused where they are the least. */
export const MOST_COUNT = 65_535;
/** Longer schemas are refused: no grammar of them would be short enough. In UTF-16 units of their JSON. */
const MOST_TEXT = 4_000_000;
/** Alternatives of one place, with those of `allOf` multiplied. */
const MOST_ALTERNATIVES = 2000;
/** References and combinations within each other, without a property or an item in between. */
const MOST_STEPS = 300;
/** How deep alternatives of a `oneOf` are looked into for what tells them apart. */
const MOST_DEPTH_APART = 3;

/** A schema, read once. */
export class SchemaDocument {
  readonly root: Place;
  readonly budget = new Budget();
  readonly #normal = new Map<string, Constraint[]>();
  readonly #patterns = new Map<string, Pattern>();
  readonly #automata = new Map<string, Automaton>();

  /** @param name What errors call the schema. */
  constructor(
    schema: unknown,
    readonly name: string,
  ) {
    const copy = reading(name, () => plainCopy(schema, name, MOST_TEXT));
    this.root = this.place(copy as Json, '#');
  }

  /** The error that a keyword cannot be held to. `why` ends the sentence. */
  refuse(pointer: string, keyword: string, why = 'which no grammar can hold an answer to'): Error {
    return invalidArgument(`${this.name}: ${shown(pointer)} uses ${shown(keyword)}, ${why}`);
  }

  #wrong(pointer: string, keyword: string, what: string, got: unknown): Error {
    return invalidArgument(
      `${this.name}: ${shown(`${pointer}/${escaped(keyword)}`)} must be ${what}, got ${show(got)}`,
    );
  }

  place(schema: Json | undefined, pointer: string): Place {
    if (typeof schema === 'boolean' || isObject(schema)) return { schema, pointer };
    throw invalidArgument(
      `${this.name}: ${shown(pointer)} must be a JSON schema, an object or true or false, got ${show(schema)}`,
    );
  }

  /** Whether the places ask for nothing, are met by nothing, or are what remains of them: without what is said twice. */
  simplified(places: readonly Place[]): Place[] | 'never' {
    const found = new Map<string, Place>();
    for (let place of places) {
      for (let steps = 0; isObject(place.schema) && Object.keys(place.schema).length === 1; steps++) {
        if (typeof place.schema.$ref !== 'string') break;
        if (steps > MOST_STEPS) throw this.refuse(place.pointer, '$ref', 'which leads back to itself');
        place = this.#target(place);
      }
      if (place.schema === false) return 'never';
      if (place.schema === true || Object.keys(place.schema).length === 0) continue;
      found.set(place.pointer, place);
    }
    return [...found.values()].sort((a, b) => (a.pointer < b.pointer ? -1 : 1));
  }

  /** The alternatives that meet all of the places. */
  normal(places: readonly Place[]): Constraint[] {
    const simple = this.simplified(places);
    if (simple === 'never') return [];
    const key = simple.map(({ pointer }) => pointer).join(' ');
    let found = this.#normal.get(key);
    if (found === undefined) {
      found = [{ ...ANY, pointer: simple[0]?.pointer ?? '#' }];
      for (const place of simple) found = this.#expand(place, found, []);
      this.#normal.set(key, found);
    }
    return found;
  }

  #expand(place: Place, bases: Constraint[], trail: readonly string[]): Constraint[] {
    const { schema, pointer } = place;
    if (schema === true || bases.length === 0) return bases;
    if (schema === false) return [];
    if (trail.includes(pointer)) throw this.refuse(pointer, '$ref', 'which leads back to itself without an end');
    if (trail.length > MOST_STEPS) throw this.refuse(pointer, '$ref', `more than ${MOST_STEPS} steps deep`);
    const inner = [...trail, pointer];
    let found = bases.flatMap((base) => this.#own(place, base));
    if (schema.$ref !== undefined) found = this.#expand(this.#target(place), found, inner);
    for (const branch of this.#list(place, 'allOf')) found = this.#expand(branch, found, inner);
    const limit = (count: number, keyword: string) => {
      if (count <= MOST_ALTERNATIVES) return;
      throw this.refuse(pointer, keyword, `with more than ${MOST_ALTERNATIVES} alternatives in all`);
    };
    if (schema.anyOf !== undefined) {
      const branches = this.#list(place, 'anyOf');
      limit(found.length * branches.length, 'anyOf');
      found = branches.flatMap((branch) => this.#expand(branch, found, inner));
      limit(found.length, 'anyOf');
    }
    if (schema.oneOf !== undefined) {
      const branches = this.#list(place, 'oneOf');
      limit(found.length * branches.length, 'oneOf');
      if (branches.length > 500) throw this.refuse(pointer, 'oneOf', 'with more than 500 alternatives');
      const before = found;
      found = branches.flatMap((branch) => {
        const others = branches.filter((it) => it !== branch);
        return this.#expand(branch, before, inner).map((it) => ({
          ...it,
          against: others.length === 0 ? it.against : [...it.against, { others, pointer }],
        }));
      });
      limit(found.length, 'oneOf');
    }
    return found;
  }

  /** The keywords of one schema, without those that combine schemas. Empty where they contradict what there is. */
  #own(place: Place, base: Constraint): Constraint[] {
    const { pointer } = place;
    const schema = place.schema as JsonObject;
    const next: Constraint = { ...base };
    for (const keyword of Object.keys(schema)) {
      if (KEYWORDS.has(keyword) || ANNOTATIONS.has(keyword) || keyword.startsWith('x-')) continue;
      throw this.refuse(pointer, keyword);
    }
    if (schema.$id !== undefined && pointer !== '#') {
      throw this.refuse(pointer, '$id', 'which only the whole schema may have: references would mean something else');
    }
    if (schema.uniqueItems !== undefined && schema.uniqueItems !== false) throw this.refuse(pointer, 'uniqueItems');
    this.#types(schema, pointer, next);
    this.#values(schema, pointer, next);
    this.#numbers(schema, pointer, next);
    this.#strings(schema, pointer, next);
    this.#arrays(schema, pointer, next);
    this.#objects(schema, pointer, next);
    return next.types === 0 ? [] : [next];
  }

  #types(schema: JsonObject, pointer: string, next: Constraint): void {
    const { type } = schema;
    if (type === undefined) return;
    const names = Array.isArray(type) ? type : [type];
    let types = 0;
    for (const name of names) {
      if (typeof name !== 'string' || !Object.hasOwn(TYPES, name)) {
        throw this.#wrong(pointer, 'type', `of ${Object.keys(TYPES).join(', ')}`, name);
      }
      types |= TYPES[name] as number;
    }
    next.types &= types;
    if (names.includes('integer') && !names.includes('number')) next.isInteger = true;
  }

  #values(schema: JsonObject, pointer: string, next: Constraint): void {
    const lists: (readonly Json[])[] = [];
    if (schema.const !== undefined) lists.push([schema.const]);
    if (schema.enum !== undefined) {
      if (!Array.isArray(schema.enum)) throw this.#wrong(pointer, 'enum', 'an array of values', schema.enum);
      lists.push(schema.enum);
    }
    for (const list of lists) {
      const keys = new Set(list.map(keyOf));
      const before = next.values ?? list;
      const known = new Set<string>();
      next.values = before.filter((value) => {
        const key = keyOf(value);
        if (!keys.has(key) || known.has(key)) return false;
        known.add(key);
        return true;
      });
      next.valueKeys = known;
    }
  }

  #numbers(schema: JsonObject, pointer: string, next: Constraint): void {
    const bound = (keyword: string): number | undefined => {
      const value = schema[keyword];
      if (value === undefined) return undefined;
      if (typeof value !== 'number') throw this.#wrong(pointer, keyword, 'a number', value);
      next.touched |= NUMBER;
      return value;
    };
    next.least = larger(next.least, bound('minimum'));
    next.above = larger(next.above, bound('exclusiveMinimum'));
    next.most = smaller(next.most, bound('maximum'));
    next.below = smaller(next.below, bound('exclusiveMaximum'));
    const divisor = bound('multipleOf');
    if (divisor === undefined) return;
    if (divisor <= 0) throw this.#wrong(pointer, 'multipleOf', 'a number above 0', divisor);
    if (!Number.isSafeInteger(divisor)) throw this.refuse(pointer, 'multipleOf', 'with a number that is not whole');
    next.divisors = [...next.divisors, divisor];
  }

  #count(schema: JsonObject, pointer: string, keyword: string): number | undefined {
    const value = schema[keyword];
    if (value === undefined) return undefined;
    if (typeof value === 'number' && Number.isInteger(value) && value >= 0) {
      if (!keyword.startsWith('min') || value <= MOST_COUNT) return value;
      throw this.refuse(pointer, keyword, `which may be ${MOST_COUNT} at most`);
    }
    throw this.#wrong(pointer, keyword, 'a whole number that is not negative', value);
  }

  #strings(schema: JsonObject, pointer: string, next: Constraint): void {
    const least = this.#count(schema, pointer, 'minLength');
    const most = this.#count(schema, pointer, 'maxLength');
    if (least !== undefined || most !== undefined) next.touched |= STRING;
    next.minLength = Math.max(next.minLength, least ?? 0);
    next.maxLength = Math.min(next.maxLength, most ?? Number.POSITIVE_INFINITY);
    const { pattern, format } = schema;
    if (pattern !== undefined) {
      if (typeof pattern !== 'string') throw this.#wrong(pointer, 'pattern', 'a string', pattern);
      this.#addPattern(next, pattern, `${pointer}/pattern`, true);
    }
    if (format === undefined) return;
    if (typeof format !== 'string') throw this.#wrong(pointer, 'format', 'a string', format);
    const found = formatOf(format);
    if (found.kind === 'string') {
      this.#addPattern(next, found.pattern, `${pointer}/format`, false);
    } else if (found.kind === 'number') {
      next.touched |= NUMBER;
      const [least, most] = next.formatRange ?? [found.least, found.most];
      next.formatRange = [Math.max(least, found.least), Math.min(most, found.most)];
    } else if (found.kind === 'refused' || (found.kind === 'unknown' && pattern === undefined)) {
      throw this.refuse(pointer, 'format', `${show(format)}, which no grammar can hold an answer to`);
    }
  }

  #addPattern(next: Constraint, source: string, where: string, isExact: boolean): void {
    next.touched |= STRING;
    if (next.patterns.some((it) => it.source === source)) return;
    this.pattern(source, where);
    next.patterns = [...next.patterns, { source, where, isExact }];
  }

  #arrays(schema: JsonObject, pointer: string, next: Constraint): void {
    const least = this.#count(schema, pointer, 'minItems');
    const most = this.#count(schema, pointer, 'maxItems');
    if (least !== undefined) next.minItems = Math.max(next.minItems ?? 0, least);
    if (most !== undefined) next.maxItems = Math.min(next.maxItems, most);
    const { items, prefixItems } = schema;
    if (Array.isArray(items))
      throw this.refuse(pointer, 'items', 'as a list, as drafts before 2020-12 did: use prefixItems');
    if (least !== undefined || most !== undefined || items !== undefined || prefixItems !== undefined) {
      next.touched |= ARRAY;
    }
    if (items === undefined && prefixItems === undefined) return;
    const prefix = this.#list({ schema, pointer }, 'prefixItems');
    const rest = items === undefined ? undefined : this.place(items, `${pointer}/items`);
    next.arrays = [...next.arrays, { prefix, rest }];
  }

  #objects(schema: JsonObject, pointer: string, next: Constraint): void {
    const least = this.#count(schema, pointer, 'minProperties');
    const most = this.#count(schema, pointer, 'maxProperties');
    next.minProperties = Math.max(next.minProperties, least ?? 0);
    next.maxProperties = Math.min(next.maxProperties, most ?? Number.POSITIVE_INFINITY);
    if (least !== undefined || most !== undefined) next.touched |= OBJECT;
    const { properties, patternProperties, additionalProperties, required, propertyNames } = schema;
    if (required !== undefined) {
      if (!Array.isArray(required) || !required.every((it) => typeof it === 'string')) {
        throw this.#wrong(pointer, 'required', 'an array of names', required);
      }
      next.touched |= OBJECT;
      next.required = [...new Set([...next.required, ...required])];
    }
    if (propertyNames !== undefined) {
      next.touched |= OBJECT;
      next.names = [...next.names, this.place(propertyNames, `${pointer}/propertyNames`)];
    }
    if (properties === undefined && patternProperties === undefined && additionalProperties === undefined) return;
    next.touched |= OBJECT;
    const map = (keyword: string, value: Json | undefined): [string, Place][] => {
      if (value === undefined) return [];
      if (!isObject(value)) throw this.#wrong(pointer, keyword, 'an object of schemas', value);
      return Object.entries(value).map(([key, inner]) => [
        key,
        this.place(inner, `${pointer}/${keyword}/${escaped(key)}`),
      ]);
    };
    const patterns = map('patternProperties', patternProperties).map(([source, place]) => {
      this.pattern(source, place.pointer);
      return { source, place };
    });
    const source: ObjectSource = {
      properties: new Map(map('properties', properties)),
      patterns,
      additional:
        additionalProperties === undefined
          ? undefined
          : this.place(additionalProperties, `${pointer}/additionalProperties`),
      declares: properties !== undefined || patternProperties !== undefined,
    };
    next.objects = [...next.objects, source];
  }

  #list({ schema, pointer }: Place, keyword: string): Place[] {
    const list = (schema as JsonObject)[keyword];
    if (list === undefined) return [];
    if (!Array.isArray(list) || list.length === 0) throw this.#wrong(pointer, keyword, 'an array of schemas', list);
    return list.map((branch, index) => this.place(branch, `${pointer}/${keyword}/${index}`));
  }

  /** Where a `$ref` leads. */
  #target({ schema, pointer }: Place): Place {
    const reference = (schema as JsonObject).$ref;
    if (typeof reference !== 'string') throw this.#wrong(pointer, '$ref', 'a string', reference);
    if (reference !== '#' && !reference.startsWith('#/')) {
      throw this.refuse(pointer, '$ref', `${show(reference)}: references lead to #, or to #/… in the same schema`);
    }
    const missing = () => this.refuse(pointer, '$ref', `${show(reference)}, where the schema has nothing`);
    let at: Json = this.root.schema;
    let steps: string[];
    try {
      steps = decodeURIComponent(reference).split('/').slice(1);
    } catch {
      throw missing();
    }
    const names: string[] = [];
    for (const step of steps) {
      const key = step.replaceAll('~1', '/').replaceAll('~0', '~');
      if (typeof at !== 'object' || at === null || !Object.hasOwn(at, key)) throw missing();
      at = (at as JsonObject)[key] as Json;
      names.push(escaped(key));
      if (isObject(at) && typeof at.$id === 'string') {
        throw this.refuse(['#', ...names].join('/'), '$id', 'which only the whole schema may have');
      }
    }
    return this.place(at, ['#', ...names].join('/'));
  }

  /** A pattern, read once. */
  pattern(source: string, where: string): Pattern {
    let found = this.#patterns.get(source);
    if (found === undefined) {
      this.budget.spend(source.length);
      found = readPattern(source, `${this.name}: ${shown(where)}`);
      this.#patterns.set(source, found);
    }
    return found;
  }

  /** The strings that have a match of the pattern. */
  patternAutomaton(source: string, where: string): Automaton {
    let found = this.#automata.get(source);
    if (found === undefined) {
      try {
        found = patternAutomaton(this.pattern(source, where), this.budget);
      } catch (error) {
        if (!(error instanceof TooLarge)) throw error;
        throw invalidArgument(`${this.name}: ${shown(where)} is too large for what else must hold of the string`);
      }
      this.#automata.set(source, found);
    }
    return found;
  }

  /** The strings that meet a constraint. */
  strings(constraint: Constraint): Automaton {
    if (constraint.values !== undefined) {
      const texts = constraint.values.filter((it) => typeof it === 'string' && this.accepts(constraint, it));
      return Automaton.ofTexts(texts as string[], this.budget);
    }
    let result: Automaton | undefined;
    for (const { source, where } of constraint.patterns) {
      const next = this.patternAutomaton(source, where);
      result = result === undefined ? next : result.and(next, this.budget);
    }
    const { minLength, maxLength } = constraint;
    const needsLeast = minLength > 0 && (result === undefined || result.shortest < minLength);
    const needsMost = Number.isFinite(maxLength) && (result === undefined || result.longest > maxLength);
    if (result !== undefined && !needsLeast && !needsMost) return result;
    if (maxLength < minLength) return Automaton.of(choice(), this.budget);
    const least = needsLeast || result === undefined ? minLength : 0;
    const lengths = Automaton.of(repeat(chars(ALL_CHARS), least, maxLength), this.budget);
    return result === undefined ? lengths : result.and(lengths, this.budget);
  }

  /** The strings that meet all of the places. */
  stringsOf(places: readonly Place[]): Automaton {
    let result = Automaton.of(choice(), this.budget);
    for (const constraint of this.normal(places)) {
      if ((constraint.types & STRING) === 0) continue;
      if (constraint.against.length > 0) throw this.refuse(constraint.against[0]?.pointer ?? '#', 'oneOf');
      result = result.or(this.strings(constraint), this.budget);
    }
    return result;
  }

  /** The schemas that a property's value must meet, whether or not it may be there at all. */
  property(objects: readonly ObjectSource[], name: string): Place[] {
    return objects.flatMap(({ properties, patterns, additional }) => {
      const own = properties.get(name);
      const matched = patterns.filter(({ source, place }) =>
        this.patternAutomaton(source, place.pointer).accepts(name),
      );
      const places = [...(own === undefined ? [] : [own]), ...matched.map(({ place }) => place)];
      return places.length === 0 && additional !== undefined ? [additional] : places;
    });
  }

  /** The schemas that an item must meet. */
  item(arrays: readonly ArraySource[], index: number): Place[] {
    return arrays.flatMap(({ prefix, rest }) => prefix[index] ?? rest ?? []);
  }

  /** Whether a value meets all of the places, or may do so: what a format asks for is known in one direction only. */
  meets(places: readonly Place[], value: Json, how: Certainty = 'surely'): boolean {
    return this.normal(places).some((constraint) => this.accepts(constraint, value, how));
  }

  /** Whether JSON Schema lets the value pass, or may do so. */
  accepts(constraint: Constraint, value: Json, how: Certainty = 'surely'): boolean {
    const opposite = how === 'surely' ? 'perhaps' : 'surely';
    if (constraint.against.some(({ others }) => others.some((it) => this.meets([it], value, opposite)))) return false;
    return this.#fits(constraint, value, how);
  }

  /** Whether the value meets what the constraint says itself, whatever other alternatives of a `oneOf` do. */
  #fits(constraint: Constraint, value: Json, how: Certainty): boolean {
    const { valueKeys, formatRange } = constraint;
    const type = typeOf(value);
    this.budget.spend(1);
    if ((constraint.types & type) === 0) return false;
    if (valueKeys !== undefined && !valueKeys.has(keyOf(value))) return false;
    if (typeof value === 'number') {
      if (constraint.isInteger && !Number.isInteger(value)) return false;
      if (how === 'surely' && formatRange !== undefined) {
        if (!Number.isInteger(value) || value < formatRange[0] || value > formatRange[1]) return false;
      }
      return isWithin(value, constraint) && constraint.divisors.every((divisor) => value % divisor === 0);
    }
    if (typeof value === 'string') {
      const length = Array.from(value).length;
      if (length < constraint.minLength || length > constraint.maxLength) return false;
      return constraint.patterns.every(
        ({ source, where, isExact }) =>
          (how === 'perhaps' && !isExact) || this.patternAutomaton(source, where).accepts(value),
      );
    }
    if (Array.isArray(value)) {
      if (value.length < (constraint.minItems ?? 0) || value.length > constraint.maxItems) return false;
      return value.every((item, index) => this.meets(this.item(constraint.arrays, index), item, how));
    }
    if (!isObject(value)) return true;
    const names = Object.keys(value);
    if (names.length < constraint.minProperties || names.length > constraint.maxProperties) return false;
    if (!constraint.required.every((name) => Object.hasOwn(value, name))) return false;
    return names.every(
      (name) =>
        this.meets(constraint.names, name, how) &&
        this.meets(this.property(constraint.objects, name), value[name] as Json, how),
    );
  }

  /** The types of the values that are written: where a schema names none, those that its keywords are about. */
  writtenTypes({ types, touched }: Constraint): number {
    return types === EVERY_TYPE && touched !== 0 ? touched : types;
  }

  /** Whether extra properties are written: where the schemas say nothing, only if they declare none. */
  isOpen({ objects }: Constraint): boolean {
    return objects.some(({ additional }) => additional !== undefined) || !objects.some(({ declares }) => declares);
  }

  /** Whether no answer that is written for `a` meets `b`. */
  areApart(a: Constraint, b: Constraint, depth = 0): boolean {
    this.budget.spend(2);
    if (a.values !== undefined)
      return a.values.every((value) => !this.accepts(a, value) || !this.accepts(b, value, 'perhaps'));
    let common = this.writtenTypes(a) & b.types;
    if (b.values !== undefined) {
      const types = b.values.reduce<number>(
        (all, value) => (this.#fits(a, value, 'surely') ? all | typeOf(value) : all),
        0,
      );
      common &= types;
    }
    if (common === 0) return true;
    if (common & (NULL | BOOLEAN)) return false;
    if (common & NUMBER && !areNumbersApart(a, b)) return false;
    if (common & STRING && !this.#areStringsApart(a, b)) return false;
    if (common & ARRAY && !this.#areArraysApart(a, b, depth)) return false;
    return (common & OBJECT) === 0 || this.#areObjectsApart(a, b, depth);
  }

  #areStringsApart(a: Constraint, b: Constraint): boolean {
    if (a.maxLength < b.minLength || b.maxLength < a.minLength) return true;
    const patterns = b.patterns.filter(({ isExact }) => isExact);
    if (a.patterns.length === 0 || patterns.length === 0) return false;
    try {
      return this.strings(a).and(this.strings({ ...b, patterns }), this.budget).isEmpty;
    } catch (error) {
      if (error instanceof TooLarge) return false;
      throw error;
    }
  }

  #areArraysApart(a: Constraint, b: Constraint, depth: number): boolean {
    const least = this.leastItems(a);
    if (least > b.maxItems || this.mostItems(a) < (b.minItems ?? 0)) return true;
    if (depth >= MOST_DEPTH_APART) return false;
    for (let index = 0; index < Math.min(least, 16); index++) {
      if (this.#arePlacesApart(this.item(a.arrays, index), this.item(b.arrays, index), depth)) return true;
    }
    return false;
  }

  /** Items that an answer has at least: all of a tuple, where nothing says otherwise. */
  leastItems({ arrays, minItems, maxItems }: Constraint): number {
    if (minItems !== undefined) return minItems;
    const tuples = arrays.filter(({ prefix, rest }) => prefix.length > 0 && isClosing(rest));
    return tuples.length === 0 ? 0 : Math.min(maxItems, ...tuples.map(({ prefix }) => prefix.length));
  }

  mostItems({ arrays, maxItems }: Constraint): number {
    const tuples = arrays.filter(({ prefix, rest }) => prefix.length > 0 && isClosing(rest));
    return Math.min(maxItems, ...tuples.map(({ prefix }) => prefix.length));
  }

  #areObjectsApart(a: Constraint, b: Constraint, depth: number): boolean {
    // A property that `b` must have, and that answers for `a` never do.
    for (const name of b.required) {
      const isWritten = a.required.includes(name) || a.objects.some(({ properties }) => properties.has(name));
      const isMatched = a.objects.some(({ patterns }) => patterns.length > 0);
      if (!isWritten && !isMatched && !this.isOpen(a)) return true;
      if (this.simplified(this.property(a.objects, name)) === 'never') return true;
    }
    // A property that answers for `a` always have, and that `b` does not let pass.
    if (depth >= MOST_DEPTH_APART) return false;
    for (const name of a.required) {
      if (this.#arePlacesApart(this.property(a.objects, name), this.property(b.objects, name), depth)) return true;
    }
    return a.required.length > b.maxProperties;
  }

  #arePlacesApart(a: readonly Place[], b: readonly Place[], depth: number): boolean {
    const others = this.normal(b);
    return this.normal(a).every((one) => others.every((other) => this.areApart(one, other, depth + 1)));
  }

  /** Refuses alternatives of a `oneOf` of which an answer could meet two. */
  checkAlternative(constraint: Constraint): void {
    if (constraint.values !== undefined) return; // Each value has been looked at.
    for (const { others, pointer } of constraint.against) {
      for (const other of others) {
        if (this.normal([other]).every((it) => this.areApart(constraint, it))) continue;
        throw this.refuse(
          pointer,
          'oneOf',
          'with alternatives that one answer could meet two of: use anyOf, or a required property with another const in each',
        );
      }
    }
  }
}

function isClosing(rest: Place | undefined): boolean {
  return rest === undefined || rest.schema === false;
}

function areNumbersApart(a: Constraint, b: Constraint): boolean {
  const range = (it: Constraint) => ({
    low: Math.max(it.least ?? Number.NEGATIVE_INFINITY, it.above ?? Number.NEGATIVE_INFINITY),
    high: Math.min(it.most ?? Number.POSITIVE_INFINITY, it.below ?? Number.POSITIVE_INFINITY),
  });
  const isApart = (lower: Constraint, upper: Constraint) => {
    const [{ high }, { low }] = [range(lower), range(upper)];
    if (high < low) return true;
    return high === low && Number.isFinite(low) && !(isWithin(low, lower) && isWithin(low, upper));
  };
  return isApart(a, b) || isApart(b, a);
}

function larger(a: number | undefined, b: number | undefined): number | undefined {
  return a === undefined ? b : b === undefined ? a : Math.max(a, b);
}

function smaller(a: number | undefined, b: number | undefined): number | undefined {
  return a === undefined ? b : b === undefined ? a : Math.min(a, b);
}

export function typeOf(value: Json): number {
  if (value === null) return NULL;
  if (typeof value === 'boolean') return BOOLEAN;
  if (typeof value === 'number') return NUMBER;
  if (typeof value === 'string') return STRING;
  return Array.isArray(value) ? ARRAY : OBJECT;
}

/** A text that is the same for values that JSON Schema calls equal: the order of properties does not count. */
function keyOf(value: Json): string {
  if (Array.isArray(value)) return `[${value.map(keyOf).join()}]`;
  if (!isObject(value)) return JSON.stringify(value === 0 ? 0 : value);
  const names = Object.keys(value).sort();
  return `{${names.map((name) => `${JSON.stringify(name)}:${keyOf(value[name] as Json)}`).join()}}`;
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A step of a JSON pointer. */
function escaped(name: string): string {
  return name.replaceAll('~', '~0').replaceAll('/', '~1');
}
