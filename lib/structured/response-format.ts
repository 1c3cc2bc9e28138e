import { invalidArgument } from '../common/errors.js';
import { isPlainObject, reading, show } from '../common/options.js';
import { isStandardSchema, type StandardSchema, toJsonSchema } from '../common/standard-schema.js';
import { regexToGrammar } from './regex-grammar.js';
import { schemaToGrammar } from './schema-grammar.js';

/** A JSON Schema (draft 2020-12), or a validator that can be said as one. docs/structured.md lists the keywords. */
export type AnswerSchema = Readonly<Record<string, unknown>> | boolean | StandardSchema;

/** What an answer's text must be. */
export type ResponseFormat<S = AnswerSchema> =
  | {
      /** Any text, which is the default. */
      readonly type: 'text';
    }
  | {
      /** Any JSON value with `json`, and a JSON object with `json_object`, which is OpenAI's. */
      readonly type: 'json' | 'json_object';
    }
  | {
      /** JSON that a schema lets pass. */
      readonly type: 'json_schema';
      /** The schema. */
      readonly schema: S;
    }
  | {
      /** JSON that a schema lets pass, in OpenAI's shape. */
      readonly type: 'json_schema';
      /** OpenAI's wrapping. Only `schema` counts: an answer always meets the schema, as with `strict`. */
      readonly json_schema: {
        readonly name?: string | undefined;
        readonly description?: string | undefined;
        readonly schema: S;
        readonly strict?: boolean | null | undefined;
      };
    }
  | {
      /** Text that a regular expression matches as a whole. */
      readonly type: 'regex';
      /** ECMAScript's notation, with the flag u. */
      readonly pattern: string;
    }
  | {
      /** Text that belongs to a grammar. */
      readonly type: 'grammar';
      /** GBNF, the notation of llama.cpp; the rule `root` is where it begins. */
      readonly grammar: string;
    };

/** A response format that was read. */
export interface ReadResponseFormat {
  /** What the grammar was made of. */
  kind: 'json' | 'json_schema' | 'regex' | 'grammar';
  /** GBNF. */
  grammar: string;
  /** Whether the answer is JSON, and is to be parsed. */
  parses: boolean;
  /** The validator whose schema it is, for what it makes of the parsed answer. */
  validator?: StandardSchema;
}

/** Longer grammars are refused, in UTF-16 units. */
const MOST_GRAMMAR = 2_000_000;

const FIELDS: Readonly<Record<string, readonly string[]>> = {
  text: [],
  json: [],
  json_object: [],
  json_schema: ['schema', 'json_schema'],
  regex: ['pattern'],
  grammar: ['grammar'],
};

/**
 * Reads a response format. Grammars of the type `grammar` are taken as they are: what reads them checks them.
 *
 * @param name What errors call the value. Default: `responseFormat`.
 * @returns undefined where any text will do.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the field, or the keyword of a schema that no answer can be held to.
 */
export function readResponseFormat(value: unknown, name = 'responseFormat'): ReadResponseFormat | undefined {
  if (value === undefined || value === null) return undefined;
  return reading(name, () => {
    if (!isPlainObject(value)) throw invalidArgument(`${name} must be an object with a type, got ${show(value)}`);
    const { type, ...fields } = value;
    if (typeof type !== 'string' || !Object.hasOwn(FIELDS, type)) {
      throw invalidArgument(`${name}.type must be one of ${Object.keys(FIELDS).join(', ')}, got ${show(type)}`);
    }
    const set = checkedFields(fields, FIELDS[type] as readonly string[], `${name} of the type ${type}`);
    switch (type) {
      case 'text':
        return undefined;
      case 'json':
        return { kind: 'json', grammar: schemaToGrammar(true, { name }), parses: true };
      case 'json_object':
        return { kind: 'json', grammar: schemaToGrammar({ type: 'object' }, { name }), parses: true };
      case 'json_schema':
        return readSchema(set, name);
      case 'regex': {
        const pattern = textOf(set.pattern, `${name}.pattern`);
        return { kind: 'regex', grammar: regexToGrammar(pattern, { name: `${name}.pattern` }), parses: false };
      }
      default: {
        const grammar = textOf(set.grammar, `${name}.grammar`);
        if (grammar.length <= MOST_GRAMMAR) return { kind: 'grammar', grammar, parses: false };
        throw invalidArgument(`${name}.grammar has ${grammar.length} characters, and may have ${MOST_GRAMMAR}`);
      }
    }
  });
}

function readSchema(fields: Record<string, unknown>, name: string): ReadResponseFormat {
  let { schema } = fields;
  let where = `${name}.schema`;
  const { json_schema: wrapped } = fields;
  if (wrapped !== undefined) {
    if (schema !== undefined) throw invalidArgument(`${name} has both schema and json_schema: one of them is enough`);
    where = `${name}.json_schema`;
    if (!isPlainObject(wrapped))
      throw invalidArgument(`${where} must be an object with a schema, got ${show(wrapped)}`);
    ({ schema } = checkedFields(wrapped, ['name', 'description', 'schema', 'strict'], where));
    where += '.schema';
  }
  if (schema === undefined) throw invalidArgument(`${where} must be a JSON schema or a validator, got ${show(schema)}`);
  if (!isStandardSchema(schema)) {
    return { kind: 'json_schema', grammar: schemaToGrammar(schema, { name: where }), parses: true };
  }
  const grammar = schemaToGrammar(toJsonSchema(schema, where), { name: where });
  return { kind: 'json_schema', grammar, parses: true, validator: schema };
}

/** The fields that are set; others than those that are known are refused. */
function checkedFields(
  fields: Record<string, unknown>,
  known: readonly string[],
  what: string,
): Record<string, unknown> {
  const set: Record<string, unknown> = {};
  for (const [field, value] of Object.entries(fields)) {
    if (value === undefined || value === null) continue;
    if (!known.includes(field)) {
      const there = known.length === 0 ? 'there are none' : `there are ${known.join(', ')}`;
      throw invalidArgument(`${what} has no field ${show(field)}; ${there}`);
    }
    set[field] = value;
  }
  return set;
}

function textOf(value: unknown, name: string): string {
  if (typeof value === 'string' && value !== '') return value;
  throw invalidArgument(`${name} must be a string that is not empty, got ${show(value)}`);
}
