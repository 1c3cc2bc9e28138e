import type { Type } from 'arktype';
import * as v from 'valibot';
import { z } from 'zod';
import type { FromSchema } from '../lib/common/from-schema.js';
import { isStandardSchema, type StandardSchema, toJsonSchema } from '../lib/common/standard-schema.js';
import { type ResponseFormat, readResponseFormat } from '../lib/structured/response-format.js';
import { schemaToGrammar } from '../lib/structured/schema-grammar.js';
import { parseGbnf, randomOf, recognizer, sentences } from './support/gbnf.js';

const person = {
  type: 'object',
  properties: { name: { type: 'string' }, age: { type: 'integer', minimum: 0 } },
  required: ['name'],
} as const;

test('any text needs no grammar', () => {
  for (const value of [undefined, null, { type: 'text' }]) expect(readResponseFormat(value)).toBeUndefined();
});

test('JSON', () => {
  const read = readResponseFormat({ type: 'json' });
  expect(read?.grammar).toBe(schemaToGrammar(true));
  expect(read?.parse?.('[1]')).toEqual([1]);
  const object = readResponseFormat({ type: 'json_object' });
  const accepts = recognizer(parseGbnf(object?.grammar ?? ''));
  expect(['{}', '{"a":[1]}', '[]', '1'].map(accepts)).toEqual([true, true, false, false]);
});

test('a schema, also as OpenAI wraps it', () => {
  const grammar = schemaToGrammar(person);
  const formats: ResponseFormat[] = [
    { type: 'json_schema', schema: person },
    { type: 'json_schema', json_schema: { name: 'person', description: 'who', schema: person, strict: true } },
    { type: 'json_schema', json_schema: { schema: person, strict: null } },
  ];
  for (const format of formats) {
    const read = readResponseFormat(format);
    expect(read?.grammar).toBe(grammar);
    expect(read?.parse).toBeDefined();
  }
});

test('a regular expression matches the whole answer', () => {
  const read = readResponseFormat({ type: 'regex', pattern: 'a|b+' });
  expect(read?.parse).toBeUndefined();
  const accepts = recognizer(parseGbnf(read?.grammar ?? ''));
  expect(['a', 'bb', 'ab', 'xa', ''].map(accepts)).toEqual([true, true, false, false, false]);
});

test('a grammar is taken as it is', () => {
  const grammar = 'root ::= "yes" | "no"\n';
  expect(readResponseFormat({ type: 'grammar', grammar })).toEqual({ grammar, beginsWithSpace: undefined });
});

const countdown: StandardSchema<number[], number[]> = Object.assign(() => undefined, {
  '~standard': {
    version: 1 as const,
    vendor: 'by hand',
    validate: (value: unknown) =>
      Array.isArray(value) && value.every((it) => Number.isInteger(it)) && value.length === 3
        ? { value }
        : { issues: [{ message: 'three whole numbers', path: ['a', { key: 0 }] }] },
    jsonSchema: {
      input: ({ target }: { target: string }) => ({
        $schema: `https://json-schema.org/${target.replace('-', '/')}/schema`,
        type: 'array',
        items: { type: 'integer' },
        minItems: 3,
        maxItems: 3,
      }),
      output: () => ({}),
    },
  },
});

describe('validators', () => {
  const validators: [string, StandardSchema][] = [
    ['zod', z.object({ name: z.string(), age: z.int().min(0).optional(), at: z.iso.date(), mail: z.email() })],
    [
      'zod, a union',
      z.discriminatedUnion('kind', [
        z.object({ kind: z.literal('a') }),
        z.object({ kind: z.literal('b'), n: z.number() }),
      ]),
    ],
    ['a function, as those of arktype are', countdown],
  ];
  test.each(validators)('%s', async (_, validator) => {
    const read = readResponseFormat({ type: 'json_schema', schema: validator });
    const sentence = sentences(parseGbnf(read?.grammar ?? ''), randomOf(1));
    for (let size = 0; size < 50; size++) {
      const answer = sentence(size * size);
      await expect(read?.parse?.(answer)).resolves.toBeDefined();
    }
  });

  test('that change what they take are asked for what they take', () => {
    const counted = z.object({ text: z.string().transform((text) => text.length), n: z.number().default(3) });
    const read = readResponseFormat({ type: 'json_schema', schema: counted });
    const accepts = recognizer(parseGbnf(read?.grammar ?? ''));
    expect(['{"text":"abc"}', '{"text":"abc","n":1}', '{"text":3}'].map(accepts)).toEqual([true, true, false]);
  });

  test('that give no JSON schema', () => {
    const schema = v.object({ a: v.string() });
    expect(() => readResponseFormat({ type: 'json_schema', schema })).toThrow(
      'responseFormat.schema is a validator of "valibot" that gives no JSON schema: pass it through toStandardJsonSchema()',
    );
    expect(() => readResponseFormat({ type: 'json_schema', schema: z.date() })).toThrow(
      'responseFormat.schema: "zod" cannot say it as a JSON schema: ',
    );
  });

  test('are told from schemas', () => {
    const throwing = Object.defineProperty({}, '~standard', {
      get() {
        throw new Error('no');
      },
    });
    for (const value of [z.string(), countdown, v.string()]) expect(isStandardSchema(value)).toBe(true);
    for (const value of [undefined, null, 3, {}, person, { '~standard': { version: 2 } }, throwing]) {
      expect(isStandardSchema(value)).toBe(false);
    }
    expect(toJsonSchema(z.string())).toMatchObject({ type: 'string' });
  });
});

test.each<[unknown, string]>([
  [3, 'responseFormat must be an object with a type, got 3'],
  [{}, 'responseFormat.type must be one of text, json, json_object, json_schema, regex, grammar, got undefined'],
  [{ type: 'xml' }, 'got "xml"'],
  [{ type: 'json', schema: {} }, 'responseFormat of the type json has no field "schema"; there are none'],
  [{ type: 'json_schema' }, 'responseFormat.schema must be a JSON schema or a validator, got undefined'],
  [{ type: 'json_schema', schema: {}, json_schema: {} }, 'has both schema and json_schema'],
  [{ type: 'json_schema', json_schema: { name: 'x' } }, 'responseFormat.json_schema.schema must be'],
  [
    { type: 'json_schema', json_schema: { schema: {}, strikt: true } },
    'responseFormat.json_schema has no field "strikt"',
  ],
  [{ type: 'json_schema', json_schema: 'x' }, 'responseFormat.json_schema must be an object with a schema'],
  [{ type: 'json_schema', schema: { uniqueItems: true } }, 'responseFormat.schema: # uses uniqueItems'],
  [{ type: 'regex' }, 'responseFormat.pattern must be a string'],
  [{ type: 'regex', pattern: '(' }, 'responseFormat.pattern is no regular expression'],
  [{ type: 'regex', pattern: 'a\\b' }, 'responseFormat.pattern uses \\b, a word boundary, which no grammar'],
  [{ type: 'grammar', grammar: '' }, 'responseFormat.grammar must be a string that is not empty'],
  [{ type: 'grammar', grammar: 'x'.repeat(2_000_001) }, 'responseFormat.grammar has 2000001 characters'],
])('refused: %p', (value, message) => {
  const run = () => readResponseFormat(value);
  expect(run).toThrow(message);
  expect(run).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
});

test('a getter that throws is an argument that cannot be read', () => {
  const value = {
    get type() {
      throw new Error('no');
    },
  };
  expect(() => readResponseFormat(value)).toThrow('responseFormat cannot be read: no');
});

// Types: what follows is checked by the compiler (npm run typecheck); a wrong one does not compile.
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <A, B>(_: Same<A, B>) => undefined;

test('types of schemas', () => {
  same<FromSchema<typeof person>, { name: string; age?: number }>(true);
  same<FromSchema<true>, unknown>(true);
  same<FromSchema<false>, never>(true);
  same<FromSchema<{ type: string }>, unknown>(true);
  const list = { type: 'array', items: { type: ['string', 'null'] } } as const;
  same<FromSchema<typeof list>, (string | null)[]>(true);
  const tuple = { type: 'array', prefixItems: [{ type: 'string' }, { type: 'boolean' }] } as const;
  same<FromSchema<typeof tuple>, [string, boolean]>(true);
  const longer = { type: 'array', prefixItems: [{ type: 'string' }], items: { type: 'number' } } as const;
  same<FromSchema<typeof longer>, (string | number)[]>(true);
  const colors = { enum: ['red', 'green', 3, null] } as const;
  same<FromSchema<typeof colors>, 'red' | 'green' | 3 | null>(true);
  const constant = { const: { a: [1, 'x'] } } as const;
  same<FromSchema<typeof constant>, { a: [1, 'x'] }>(true);
  const either = { anyOf: [person, { type: 'null' }] } as const;
  same<FromSchema<typeof either>, { name: string; age?: number } | null>(true);
  const shapes = { oneOf: [{ type: 'integer' }, { type: 'boolean' }] } as const;
  same<FromSchema<typeof shapes>, number | boolean>(true);
  const reference = { type: 'object', properties: { next: { $ref: '#' } }, required: ['next'] } as const;
  same<FromSchema<typeof reference>, { next: unknown }>(true);
  const record = { type: 'object', additionalProperties: { type: 'integer' } } as const;
  same<FromSchema<typeof record>, { [name: string]: number }>(true);
  const free = { type: 'object' } as const;
  same<FromSchema<typeof free>, { [name: string]: unknown }>(true);
  const validator = z.object({ text: z.string().transform((text) => text.length) });
  same<FromSchema<typeof validator>, { text: number }>(true);
  same<FromSchema<Type<{ a: string; b?: number }>>, { a: string; b?: number }>(true);
  // @ts-expect-error: a type that does not fit is told apart.
  same<FromSchema<typeof person>, { name: string }>(true);
});
