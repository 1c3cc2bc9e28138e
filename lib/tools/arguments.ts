// Checks the arguments of a call, and says what is wrong so that the model that wrote them can mend the call.
import type { OutputUnit, Schema, SchemaDraft, Validator } from '@cfworker/json-schema';
import { show } from '../common/options.js';
import { dumpJsonLine } from '../common/python-text.js';
import type { StandardSchema } from '../common/standard-schema.js';
import type { Checker, Tool } from './tool.js';

/** The arguments as `execute()` gets them, or what is wrong with them. */
export type CheckedArguments = { value: unknown } | { problem: string };

/** More would not help a model, and cost it its context. */
const MOST_PROBLEMS = 5;

/** By schema. */
const validators = new WeakMap<object, Validator>();

/**
 * @param args Not shared with anybody: they may go to the tool as they are.
 * @throws where the schema or the validator is unusable, which is no fault of the arguments.
 */
export async function checkArguments(
  tool: Tool<never>,
  checker: Checker | undefined,
  args: Record<string, unknown>,
): Promise<CheckedArguments> {
  const trap = findPrototypeKey(args, 'arguments');
  if (trap !== undefined) return { problem: `${trap} is not allowed` };
  if (checker === 'elsewhere') return { value: args };
  if (checker !== undefined) return checkByStandard(checker, args);
  if (tool.parameters === undefined) return { value: args };
  return checkBySchema(tool.parameters, args);
}

/**
 * A key that means the prototype where a tool assigns it. JSON can hold it as any other key, but whatever copies or merges
 * objects key by key would change the object's prototype.
 */
function findPrototypeKey(value: unknown, where: string): string | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  for (const [key, entry] of Object.entries(value)) {
    const path = pathOf(where, Array.isArray(value) ? Number(key) : key);
    const found = key === '__proto__' ? path : findPrototypeKey(entry, path);
    if (found !== undefined) return found;
  }
  return undefined;
}

async function checkByStandard(validator: StandardSchema, args: unknown): Promise<CheckedArguments> {
  const result = await validator['~standard'].validate(args);
  if (result.issues === undefined) return { value: result.value };
  const problems = [...result.issues].map(({ message, path }) => {
    const keys = (path ?? []).map((step) => (typeof step === 'object' ? step.key : step));
    return `${keys.reduce(pathOf, 'arguments')}: ${message}`;
  });
  return { problem: joined(problems) };
}

function checkBySchema(schema: object, args: unknown): CheckedArguments {
  const validator = validators.get(schema) ?? compile(schema);
  validators.set(schema, validator);
  const { valid, errors } = validator.validate(args);
  return valid ? { value: args } : { problem: joined(problemsOf(errors, schema, args)) };
}

/** The validator interprets the schema: no code is generated, which Node and Electron can be told to refuse. */
function compile(schema: object): Validator {
  // Loaded when it is needed: most programs have no tools.
  const { Validator } = require('@cfworker/json-schema') as typeof import('@cfworker/json-schema');
  // A copy, because the validator marks the schemas that it has seen.
  const copy = structuredClone(schema) as Schema;
  return new Validator(copy, draftOf(copy.$schema), false);
}

function draftOf(uri: unknown): SchemaDraft {
  const known: [RegExp, SchemaDraft][] = [
    [/draft-04/, '4'],
    [/draft-0[67]/, '7'],
    [/2019-09/, '2019-09'],
  ];
  return known.find(([pattern]) => pattern.test(String(uri)))?.[1] ?? '2020-12';
}

/** Keywords whose errors only say that something within them is wrong, which has an error of its own. */
const OUTER_KEYWORDS = new Set([
  'properties',
  'patternProperties',
  'additionalProperties',
  'unevaluatedProperties',
  'items',
  'prefixItems',
  'additionalItems',
  'unevaluatedItems',
  'allOf',
  'if',
  'dependentSchemas',
  '$ref',
  '$recursiveRef',
]);

function problemsOf(errors: readonly OutputUnit[], schema: object, args: unknown): string[] {
  const problems: string[] = [];
  // What is wrong in each branch of a choice does not help: the model may have meant any of them.
  const choices = errors.filter(({ keyword }) => keyword === 'anyOf' || keyword === 'oneOf');
  for (const error of errors) {
    if (OUTER_KEYWORDS.has(error.keyword)) continue;
    const { keywordLocation, instanceLocation } = error;
    // The validator does not say where in the schema a `false` stands.
    const isInChoice = choices.some((choice) =>
      error.keyword === 'false'
        ? isWithin(instanceLocation, choice.instanceLocation)
        : isWithin(keywordLocation, choice.keywordLocation),
    );
    if (!isInChoice) problems.push(problemOf(error, schema, args));
  }
  return problems.length > 0 ? problems : errors.map(({ error }) => error);
}

function isWithin(pointer: string, outer: string): boolean {
  return pointer.startsWith(`${outer}/`);
}

function problemOf({ keyword, keywordLocation, instanceLocation, error }: OutputUnit, schema: object, args: unknown) {
  const steps = stepsOf(instanceLocation);
  let value: unknown = args;
  let where = 'arguments';
  for (const step of steps) {
    where = pathOf(where, Array.isArray(value) ? Number(step) : step);
    value = (value as Record<string, unknown> | undefined)?.[step];
  }
  const node = schemaAt(schema, stepsOf(keywordLocation).slice(0, -1)) ?? {};
  const rule = node[keyword];
  const got = `(got ${brief(value)})`;
  switch (keyword) {
    case 'required': {
      const missing = /property "(.*)"\.$/s.exec(error)?.[1];
      if (missing === undefined) break;
      const expected = describe((node.properties as Record<string, unknown> | undefined)?.[missing]);
      return `${pathOf(where, missing)} is missing${expected ? `: ${expected}` : ''}`;
    }
    case 'false': {
      const names = schemaAt(schema, [])?.properties;
      return steps.length === 1 && names
        ? `${where} does not exist: the arguments are ${Object.keys(names).join(', ') || 'none'}`
        : `${where} must be left out`;
    }
    case 'type':
    case 'enum':
    case 'const':
    case 'anyOf':
    case 'oneOf': {
      const expected = describe(keyword === 'type' ? { type: rule } : { [keyword]: rule });
      return expected ? `${where} must be ${expected} ${got}` : `${where} has none of the allowed forms ${got}`;
    }
    case 'minimum':
      return `${where} must be at least ${rule} ${got}`;
    case 'maximum':
      return `${where} must be at most ${rule} ${got}`;
    case 'exclusiveMinimum':
      return `${where} must be above ${rule} ${got}`;
    case 'exclusiveMaximum':
      return `${where} must be below ${rule} ${got}`;
    case 'not':
      return `${where} has a form that is not allowed ${got}`;
    case 'pattern':
      return `${where} must match the regular expression ${rule} ${got}`;
    case 'format':
      return `${where} must be of the format ${rule} ${got}`;
  }
  return `${where}: ${error} ${got}`;
}

const TYPE_NAMES: Readonly<Record<string, string>> = {
  string: 'a string',
  number: 'a number',
  integer: 'an integer',
  boolean: 'a boolean',
  array: 'an array',
  object: 'an object',
  null: 'null',
};

/** What a schema wants, in a few words; undefined where they do not say it. */
function describe(schema: unknown): string | undefined {
  if (typeof schema !== 'object' || schema === null) return undefined;
  const { type, enum: values, const: only, anyOf, oneOf } = schema as Record<string, unknown>;
  if (Object.hasOwn(schema, 'const')) return brief(only);
  if (Array.isArray(values)) return `one of ${values.slice(0, 20).map(brief).join(', ')}`;
  const branches = anyOf ?? oneOf;
  const alternatives = Array.isArray(branches) ? branches.map(describe) : [type].flat().map(nameOfType);
  return alternatives.includes(undefined) ? undefined : alternatives.join(' or ');
}

function nameOfType(type: unknown): string | undefined {
  return typeof type === 'string' && Object.hasOwn(TYPE_NAMES, type) ? TYPE_NAMES[type] : undefined;
}

/** Characters of JSON that a message shows of a value. */
const MOST_SHOWN = 60;

/** A value as the model reads it: JSON, not longer than a line. */
function brief(value: unknown): string {
  if (typeof value === 'string') return show(value);
  const json = dumpJsonLine(value ?? null);
  if (json.length <= MOST_SHOWN) return json;
  return Array.isArray(value) ? 'an array' : 'an object';
}

/** The schema to which the steps of a keyword's location lead. References within the document are followed. */
function schemaAt(root: object, steps: readonly string[]): Record<string, unknown> | undefined {
  let node: unknown = root;
  for (const step of steps) {
    if (typeof node !== 'object' || node === null || !Object.hasOwn(node, step)) return undefined;
    node = (node as Record<string, unknown>)[step];
    if (step === '$ref' && typeof node === 'string') {
      // The path within a document has no reference of its own, or the validator would have ended here.
      node = node.startsWith('#') ? schemaAt(root, stepsOf(node)) : undefined;
    }
  }
  return typeof node === 'object' && node !== null ? (node as Record<string, unknown>) : undefined;
}

/** The keys of a JSON pointer that is written as a fragment: `#/properties/city`. */
function stepsOf(pointer: string): string[] {
  const [, ...steps] = pointer.split('/');
  return steps.map((step) => decoded(step).replaceAll('~1', '/').replaceAll('~0', '~'));
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a percent sign that encodes nothing
  }
}

function pathOf(where: string, key: PropertyKey): string {
  if (typeof key === 'number') return `${where}[${key}]`;
  const name = String(key);
  return /^[\p{L}_$][\p{L}\p{N}_$]*$/u.test(name) ? `${where}.${name}` : `${where}[${show(name)}]`;
}

function joined(problems: readonly string[]): string {
  const shown = problems.slice(0, MOST_PROBLEMS);
  if (problems.length > MOST_PROBLEMS) shown.push(`and ${problems.length - MOST_PROBLEMS} more problems`);
  return shown.join('; ');
}
