import { invalidArgument } from '../common/errors.js';
import type { FromSchema } from '../common/from-schema.js';
import { isPlainObject, reading, show } from '../common/options.js';
import {
  type InferOutput,
  isStandardSchema,
  type StandardSchema,
  toJsonSchema,
  validated,
} from '../common/standard-schema.js';
import { regexToGrammar } from './regex-grammar.js';
import { schemaToGrammar } from './schema-grammar.js';

/** A JSON schema, best `as const`, or a validator of zod, arktype or another library of Standard Schema. */
export type SchemaOption = Readonly<Record<string, unknown>> | StandardSchema<unknown, unknown>;

/**
 * The form that an answer has to have: free text; any JSON; JSON of a schema, also in OpenAI's shape; what a regular expression
 * matches from end to end; or a grammar in GBNF, whose rule `root` is the whole answer.
 */
export type ResponseFormat =
  | { readonly type: 'text' }
  | { readonly type: 'json' | 'json_object' }
  | { readonly type: 'json_schema'; readonly schema: SchemaOption }
  | {
      readonly type: 'json_schema';
      readonly json_schema: {
        readonly schema: SchemaOption;
        readonly name?: string;
        readonly description?: string;
        readonly strict?: boolean | null;
      };
    }
  | { readonly type: 'regex'; readonly pattern: string | RegExp }
  | { readonly type: 'grammar'; readonly grammar: string };

/** The type of the value that an answer of a schema has. */
type ValueOf<S> = S extends StandardSchema<unknown, unknown> ? InferOutput<S> : FromSchema<S>;

/** The type of `reply.parsed` for a response format. */
export type ParsedAs<F> = F extends { readonly type: 'json_schema'; readonly schema: infer S }
  ? ValueOf<S>
  : F extends { readonly json_schema: { readonly schema: infer S } }
    ? ValueOf<S>
    : unknown;

/** What an answer has to follow. */
export interface ResponseGrammar {
  /** GBNF. */
  grammar: string;
  /** Whether an answer may begin with a space; undefined where nobody knows. */
  beginsWithSpace: boolean | undefined;
}

/** A response format that was read. */
export interface ParsedFormat extends ResponseGrammar {
  /** The value of a complete answer. Absent: the answer is no JSON. Throws ChatGLMError for what the format's validator refuses. */
  parse?: (text: string) => unknown;
}

/** Grammars of schemas that were compiled, by the schema's JSON: the same schema comes with every request. */
const compiled = new Map<string, string>();
const MOST_COMPILED = 100;

/**
 * Reads a response format; undefined for free text.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, with the keyword and its place for a schema that no grammar can hold an answer to.
 */
export function readResponseFormat(value: unknown): ParsedFormat | undefined {
  if (value === undefined || value === null) return undefined;
  return reading('responseFormat', () => {
    if (!isPlainObject(value))
      throw invalidArgument(`responseFormat must be an object with a type, got ${show(value)}`);
    const { type, ...fields } = value;
    if (typeof type !== 'string' || !Object.hasOwn(FIELDS, type)) {
      throw invalidArgument(`responseFormat.type must be one of ${Object.keys(FIELDS).join(', ')}, got ${show(type)}`);
    }
    const set = checkedFields(fields, FIELDS[type] as readonly string[], `responseFormat of the type ${type}`);
    switch (type) {
      case 'text':
        return undefined;
      case 'json':
        return ofSchema(true, 'responseFormat');
      case 'json_object':
        return ofSchema({ type: 'object' }, 'responseFormat');
      case 'json_schema': {
        const { schema, json_schema: wrapped } = set;
        if (wrapped === undefined) return ofSchema(schema, 'responseFormat.schema');
        if (schema !== undefined)
          throw invalidArgument('responseFormat has both schema and json_schema: one is enough');
        const where = 'responseFormat.json_schema';
        if (!isPlainObject(wrapped))
          throw invalidArgument(`${where} must be an object with a schema, got ${show(wrapped)}`);
        return ofSchema(checkedFields(wrapped, WRAPPED_FIELDS, where).schema, `${where}.schema`);
      }
      case 'regex': {
        const source = set.pattern instanceof RegExp ? set.pattern.source : set.pattern;
        const pattern = textOf(source, 'responseFormat.pattern');
        return { grammar: regexToGrammar(pattern, { name: 'responseFormat.pattern' }), beginsWithSpace: undefined };
      }
      default:
        return { grammar: grammarText(set.grammar), beginsWithSpace: undefined };
    }
  });
}

const FIELDS: Readonly<Record<string, readonly string[]>> = {
  text: [],
  json: [],
  json_object: [],
  json_schema: ['schema', 'json_schema'],
  regex: ['pattern'],
  grammar: ['grammar'],
};
const WRAPPED_FIELDS = ['name', 'description', 'schema', 'strict'];

/** The fields that are set; others than those that are known are refused. */
function checkedFields(fields: object, known: readonly string[], what: string): Record<string, unknown> {
  const set = Object.entries(fields).filter(([, value]) => value !== undefined && value !== null);
  const unknown = set.find(([field]) => !known.includes(field));
  if (unknown) {
    const there = known.length === 0 ? 'there are none' : `there are ${known.join(', ')}`;
    throw invalidArgument(`${what} has no field ${show(unknown[0])}; ${there}`);
  }
  return Object.fromEntries(set);
}

/** Longer grammars are refused, in UTF-16 units. */
const MOST_GRAMMAR = 2_000_000;

function grammarText(value: unknown): string {
  const grammar = textOf(value, 'responseFormat.grammar');
  if (grammar.length <= MOST_GRAMMAR) return grammar;
  throw invalidArgument(`responseFormat.grammar has ${grammar.length} characters, and may have ${MOST_GRAMMAR}`);
}

function textOf(value: unknown, name: string): string {
  if (typeof value === 'string' && value !== '') return value;
  throw invalidArgument(`${name} must be a string that is not empty, got ${show(value)}`);
}

function ofSchema(schema: unknown, name: string): ParsedFormat {
  if (schema === undefined) throw invalidArgument(`${name} must be a JSON schema or a validator, got ${show(schema)}`);
  if (isStandardSchema(schema)) {
    const parse = (text: string) => validated(schema, JSON.parse(text), 'the answer');
    return { grammar: grammarOf(toJsonSchema(schema, name), name), beginsWithSpace: false, parse };
  }
  return { grammar: grammarOf(schema, name), beginsWithSpace: false, parse: (text) => JSON.parse(text) };
}

function grammarOf(schema: unknown, name: string): string {
  let key: string | undefined;
  try {
    key = JSON.stringify(schema);
  } catch {
    // A cycle, say: the compiler tells what is wrong.
  }
  const known = key === undefined ? undefined : compiled.get(key);
  if (known !== undefined) return known;
  const grammar = schemaToGrammar(schema, { name });
  if (key !== undefined) {
    compiled.set(key, grammar);
    for (const oldest of compiled.keys()) {
      if (compiled.size <= MOST_COMPILED) break;
      compiled.delete(oldest);
    }
  }
  return grammar;
}
