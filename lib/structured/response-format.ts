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
      readonly json_schema: { readonly schema: SchemaOption; readonly name?: string; readonly strict?: boolean | null };
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
    switch (value.type) {
      case 'text':
        return undefined;
      case 'json':
      case 'json_object':
        return ofSchema({ type: ['object', 'array'] });
      case 'json_schema': {
        const wrapped = value.json_schema;
        return ofSchema(isPlainObject(wrapped) ? wrapped.schema : value.schema);
      }
      case 'regex': {
        const { pattern } = value;
        const source = pattern instanceof RegExp ? pattern.source : pattern;
        if (typeof source !== 'string') {
          throw invalidArgument(`responseFormat.pattern must be a regular expression, got ${show(pattern)}`);
        }
        return { grammar: regexToGrammar(source, { anchored: true }), beginsWithSpace: undefined };
      }
      case 'grammar': {
        const { grammar } = value;
        if (typeof grammar !== 'string') {
          throw invalidArgument(`responseFormat.grammar must be a text in GBNF, got ${show(grammar)}`);
        }
        return { grammar, beginsWithSpace: undefined };
      }
      default:
        throw invalidArgument(
          `responseFormat.type must be one of text, json, json_schema, regex, grammar, got ${show(value.type)}`,
        );
    }
  });
}

function ofSchema(schema: unknown): ParsedFormat {
  if (isStandardSchema(schema)) {
    const parse = (text: string) => validated(schema, JSON.parse(text), 'the answer');
    return { grammar: grammarOf(toJsonSchema(schema, 'responseFormat.schema')), beginsWithSpace: false, parse };
  }
  return { grammar: grammarOf(schema), beginsWithSpace: false, parse: (text) => JSON.parse(text) };
}

function grammarOf(schema: unknown): string {
  let key: string | undefined;
  try {
    key = JSON.stringify(schema);
  } catch {
    // A cycle, say: the compiler tells what is wrong.
  }
  const known = key === undefined ? undefined : compiled.get(key);
  if (known !== undefined) return known;
  const grammar = schemaToGrammar(schema, { dialect: 'json', name: 'responseFormat.schema' });
  if (key !== undefined) {
    compiled.set(key, grammar);
    for (const oldest of compiled.keys()) {
      if (compiled.size <= MOST_COMPILED) break;
      compiled.delete(oldest);
    }
  }
  return grammar;
}
