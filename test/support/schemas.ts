// JSON schemas for tests of structured answers: by hand over every keyword, and random ones; and what checks answers.
import Ajv2020 from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';

export type Schema = boolean | { [key: string]: unknown };

const text = { type: 'string' };
const whole = { type: 'integer' };

/** Schemas over every keyword that grammars hold answers to. */
export const SCHEMAS: readonly Schema[] = [
  true,
  {},
  { title: 'a title', description: 'what it is', $schema: 'https://json-schema.org/draft/2020-12/schema', $id: 'x:y' },
  ...['null', 'boolean', 'integer', 'number', 'string', 'array', 'object'].map((type) => ({ type })),
  { type: ['string', 'null'] },
  { type: ['integer', 'boolean', 'array'], items: text, minimum: 3 },
  { type: ['integer', 'number'], maximum: 4 },
  // enum, const
  { enum: ['red', 'green', 'blue'] },
  { enum: ['a"b', 'c\\d', '\n', '你好', '\u0001', '😀', ''] },
  { enum: [1, -2, 1.5, 1e21, 1e-7, null, true, [], {}, [1, [2]], { a: { b: [null] } }] },
  { const: { b: 1, a: [true, 'x'] } },
  { const: null },
  { const: 0 },
  { type: 'string', enum: ['a', 'bb', 3, 'ccc'], minLength: 2 },
  { enum: [1, 2, 3, 4, 5.5], type: 'integer', minimum: 2 },
  { enum: Array.from({ length: 300 }, (_, index) => `value ${index * 7}`) },
  { enum: [{ kind: 'a', n: 1 }, { kind: 'b' }, { n: 'x' }], properties: { n: whole }, required: ['kind'] },
  // strings
  { type: 'string', minLength: 3 },
  { type: 'string', maxLength: 4 },
  { type: 'string', minLength: 2, maxLength: 2 },
  { type: 'string', maxLength: 0 },
  { type: 'string', minLength: 10, maxLength: 1000 },
  { type: 'integer', minLength: 3 },
  { minLength: 3 },
  ...[
    '^[a-z]+$',
    '^[A-Z]{2}-\\d{4}$',
    'b',
    '^x',
    'y$',
    '^$',
    'a|^b|c$',
    '^(?:ab|cd){2,3}$',
    '^(?<year>\\d{4})-(\\d\\d)$',
    '^[^a-z"\\\\]*$',
    '^"\\\\\\n\\t$',
    '^\\S+\\s\\S+$',
    '^\\w+\\W\\D$',
    '^.{3}$',
    '^\\u4f60\\u{1f600}?$',
    '^\\p{Lu}\\p{Ll}+$',
    '^\\P{L}+$',
    '^[\\p{Script=Han}x]+$',
    '^[\\b\\cA\\0\\x41-\\x43]+$',
    '^a*?b+?c??$',
    '(ab){2}',
    '^(a*)*$',
    '^(?!no)[a-z]{2,4}$',
    '^(?=.*\\d)(?!.*--)[\\d-]{1,6}$',
    'x(?!y)',
    '^(a$|b)',
    '^[\\s\\S]{2}$',
    '',
  ].map((pattern) => ({ type: 'string', pattern })),
  { type: 'string', pattern: '[a-c]+', minLength: 3, maxLength: 5 },
  { type: 'string', pattern: '^(ab)*$', minLength: 3 },
  { type: 'string', pattern: '^\\d+$', maxLength: 255 },
  { type: 'string', pattern: '^[a-z]{2,3}$', maxLength: 100 },
  { allOf: [{ type: 'string', pattern: 'a' }, { pattern: 'b' }, { maxLength: 3 }] },
  ...[
    'date',
    'time',
    'iso-time',
    'date-time',
    'iso-date-time',
    'duration',
    'uuid',
    'email',
    'hostname',
    'ipv4',
    'ipv6',
    'uri',
    'url',
    'uri-reference',
    'json-pointer',
    'relative-json-pointer',
    'byte',
    'password',
    'binary',
  ].map((format) => ({ type: 'string', format })),
  { type: 'string', format: 'date', pattern: '^20' },
  { type: 'string', format: 'email', maxLength: 12 },
  { type: 'string', format: 'made-up', pattern: '^m' },
  { type: 'number', format: 'float' },
  { type: 'integer', format: 'int32' },
  { type: 'integer', format: 'int64' },
  // numbers
  ...[
    { minimum: 0 },
    { maximum: 0 },
    { minimum: 1, maximum: 10 },
    { minimum: -17, maximum: 1234 },
    { exclusiveMinimum: 0, exclusiveMaximum: 3 },
    { minimum: -1000, maximum: -10 },
    { minimum: 2.5, maximum: 7.25 },
    { minimum: 999_999 },
    { maximum: -5 },
    { minimum: -9007199254740991, maximum: 9007199254740991 },
    { minimum: 0, exclusiveMinimum: 0, maximum: 1, exclusiveMaximum: 2 },
    { multipleOf: 5 },
    { multipleOf: 3, minimum: 10, maximum: 99 },
    { multipleOf: 7 },
    { multipleOf: 1000, minimum: 0 },
    { multipleOf: 1_000_000, minimum: 5_000_000, maximum: 20_000_000 },
    { allOf: [{ multipleOf: 4 }, { multipleOf: 6 }], minimum: -100, maximum: 100 },
    { minimum: 1e15, maximum: 2e15 },
  ].flatMap((bounds) => [
    { type: 'integer', ...bounds },
    ...('multipleOf' in bounds || 'allOf' in bounds || (bounds.minimum ?? 0) >= 1e15
      ? []
      : [{ type: 'number', ...bounds }]),
  ]),
  ...[
    { minimum: 0, maximum: 1 },
    { exclusiveMinimum: 0, exclusiveMaximum: 1 },
    { minimum: -0.125, maximum: 0.0625 },
    { exclusiveMinimum: 0.1, exclusiveMaximum: 0.3 },
    { minimum: 1e-7, maximum: 2e-7 },
    { exclusiveMinimum: 0.30000000000000004, maximum: 0.5 },
    { minimum: -3.5, exclusiveMaximum: -0.001 },
    { minimum: 123.456, maximum: 1e21 },
    { minimum: 5e-324 },
    { exclusiveMaximum: -99999.99999 },
    { minimum: 1.5, maximum: 1.5 },
    { exclusiveMinimum: 1, exclusiveMaximum: 1.0000000000001 },
  ].map((bounds) => ({ type: 'number', ...bounds })),
  { type: 'number', multipleOf: 25 },
  // arrays
  { type: 'array', items: whole },
  { type: 'array', items: text, minItems: 2 },
  { type: 'array', items: whole, maxItems: 3 },
  { type: 'array', items: whole, minItems: 2, maxItems: 4 },
  { type: 'array', items: whole, minItems: 3, maxItems: 3, uniqueItems: false },
  { type: 'array', maxItems: 0 },
  { type: 'array', items: false },
  { type: 'array', items: { type: 'array', items: { type: 'array', items: whole, maxItems: 2 } } },
  { type: 'array', prefixItems: [text, whole] },
  { type: 'array', prefixItems: [text, whole], items: false },
  { type: 'array', prefixItems: [text, whole], items: { type: 'boolean' } },
  { type: 'array', prefixItems: [text, whole], items: { type: 'boolean' }, minItems: 3, maxItems: 5 },
  { type: 'array', prefixItems: [text, whole, text], minItems: 1 },
  { type: 'array', prefixItems: [text, whole, text], minItems: 0, maxItems: 2 },
  { type: 'array', prefixItems: Array.from({ length: 40 }, () => whole), minItems: 0 },
  { allOf: [{ prefixItems: [text] }, { items: { maxLength: 2 } }], type: 'array' },
  { items: whole },
  // objects
  { type: 'object', properties: { a: text, b: whole } },
  { type: 'object', properties: { a: text, b: whole }, required: ['a', 'b'] },
  { type: 'object', properties: { a: text, b: whole, c: { type: 'boolean' } }, required: ['b'] },
  { type: 'object', properties: {}, additionalProperties: false },
  { type: 'object', properties: {} },
  { type: 'object', properties: { a: text, b: false, c: true }, required: ['a'] },
  { type: 'object', additionalProperties: whole },
  { type: 'object', properties: { a: text, ab: whole, '': whole }, additionalProperties: { type: 'null' } },
  {
    type: 'object',
    properties: { 'a"\\\n': text, 你好: whole, '😀': whole },
    additionalProperties: true,
    required: ['你好'],
  },
  { type: 'object', required: ['x', 'y'] },
  { type: 'object', required: ['x'], properties: { y: text } },
  { type: 'object', required: ['x'], additionalProperties: whole },
  { type: 'object', properties: { __proto__x: text, constructor: whole, toString: text }, required: ['constructor'] },
  JSON.parse(
    '{"type":"object","properties":{"__proto__":{"type":"integer"},"b":{"type":"string"}},"required":["__proto__"]}',
  ),
  { type: 'object', properties: { a: text, b: text, c: text, d: text }, minProperties: 2 },
  { type: 'object', properties: { a: text, b: text, c: text, d: text }, maxProperties: 2 },
  {
    type: 'object',
    properties: { a: text, b: text, c: text, d: text },
    minProperties: 2,
    maxProperties: 3,
    required: ['c'],
  },
  { type: 'object', properties: { a: text, b: text }, additionalProperties: whole, minProperties: 3 },
  { type: 'object', properties: { a: text, b: text }, additionalProperties: whole, minProperties: 1, maxProperties: 3 },
  { type: 'object', additionalProperties: whole, minProperties: 1, maxProperties: 2 },
  { type: 'object', maxProperties: 0 },
  { type: 'object', propertyNames: { pattern: '^[a-z]{1,3}$' } },
  { type: 'object', propertyNames: { enum: ['a', 'b'] }, additionalProperties: whole },
  { type: 'object', propertyNames: { maxLength: 2 }, properties: { abc: text, ab: text }, additionalProperties: whole },
  { type: 'object', patternProperties: { '^x-': whole } },
  { type: 'object', patternProperties: { '^x-': whole, '-y$': { minimum: 3 } }, additionalProperties: text },
  {
    type: 'object',
    properties: { 'x-a': { maximum: 5 }, b: text },
    patternProperties: { '^x-': whole },
    additionalProperties: false,
  },
  { properties: { a: text } },
  { required: ['a'] },
  {
    type: 'object',
    properties: Object.fromEntries(Array.from({ length: 60 }, (_, index) => [`p${index}`, index % 2 ? text : whole])),
    additionalProperties: { type: 'boolean' },
    required: ['p7', 'p30'],
  },
  // anyOf, oneOf, allOf
  { anyOf: [text, whole] },
  {
    anyOf: [
      { type: 'object', properties: { a: text }, required: ['a'] },
      { type: 'object', properties: { b: whole } },
    ],
  },
  { type: 'object', properties: { a: text, b: whole }, anyOf: [{ required: ['a'] }, { required: ['b'] }] },
  { anyOf: [{ minimum: 5 }, { maxLength: 2 }] },
  { anyOf: [{ enum: ['a', 1] }, { const: null }, { type: 'array', items: { anyOf: [whole, { type: 'null' }] } }] },
  { oneOf: [text, whole, { type: 'null' }] },
  { oneOf: [{ type: 'integer', maximum: 5 }, { type: 'integer', exclusiveMinimum: 5 }, { type: 'string' }] },
  { oneOf: [{ const: 'a' }, { const: 'b' }, { enum: ['c', 'd'] }] },
  { oneOf: [{ enum: ['a', 'b'] }, { enum: ['b', 'c'] }] },
  {
    oneOf: [
      { type: 'string', pattern: '^a' },
      { type: 'string', pattern: '^b' },
    ],
  },
  {
    oneOf: [
      { type: 'string', maxLength: 2 },
      { type: 'string', minLength: 4 },
    ],
  },
  {
    oneOf: [
      {
        type: 'object',
        properties: { kind: { const: 'circle' }, radius: { type: 'number', minimum: 0 } },
        required: ['kind', 'radius'],
      },
      {
        type: 'object',
        properties: { kind: { const: 'square' }, side: { type: 'number', minimum: 0 } },
        required: ['kind', 'side'],
      },
    ],
  },
  {
    oneOf: [
      { type: 'object', properties: { a: text }, required: ['a'] },
      { type: 'object', properties: { b: text }, required: ['b'] },
    ],
  },
  {
    type: 'object',
    properties: { kind: { enum: ['a', 'b'] } },
    required: ['kind'],
    oneOf: [{ properties: { kind: { const: 'a' } } }, { properties: { kind: { const: 'b' } } }],
  },
  {
    oneOf: [
      { type: 'array', maxItems: 1 },
      { type: 'array', minItems: 2, items: whole },
    ],
  },
  {
    oneOf: [
      { type: 'array', prefixItems: [{ const: 1 }, text] },
      { type: 'array', prefixItems: [{ const: 2 }, text] },
    ],
  },
  {
    allOf: [
      { type: 'object', properties: { a: text }, required: ['a'] },
      { properties: { b: whole }, required: ['b'] },
    ],
  },
  {
    allOf: [{ properties: { a: { minimum: 3 } } }, { properties: { a: { type: 'integer', maximum: 5 } } }],
    type: 'object',
    required: ['a'],
  },
  { allOf: [{ type: ['string', 'number'] }, { type: ['number', 'null'] }] },
  { allOf: [{ anyOf: [{ minimum: 3 }, { maximum: -3 }] }, { type: 'integer' }] },
  { allOf: [{ enum: [1, 2, 3] }, { enum: [2, 3, 4] }, { not2: undefined }] },
  { allOf: [{ additionalProperties: whole }, { properties: { a: { minimum: 2 } }, type: 'object' }] },
  // references
  { $ref: '#/$defs/name', $defs: { name: text } },
  { $ref: '#/definitions/a~1b~0c%25', definitions: { 'a/b~c%': whole } },
  { type: 'object', properties: { value: whole, next: { $ref: '#' } }, required: ['value'] },
  {
    $defs: {
      tree: {
        type: 'object',
        properties: { left: { $ref: '#/$defs/tree' }, right: { $ref: '#/$defs/tree' }, v: whole },
        required: ['v'],
      },
    },
    $ref: '#/$defs/tree',
  },
  {
    $defs: {
      expression: {
        anyOf: [
          { type: 'number' },
          {
            type: 'array',
            prefixItems: [{ enum: ['+', '*'] }, { $ref: '#/$defs/expression' }, { $ref: '#/$defs/expression' }],
            items: false,
          },
        ],
      },
    },
    $ref: '#/$defs/expression',
  },
  {
    $defs: { positive: { minimum: 1 } },
    $ref: '#/$defs/positive',
    type: 'integer',
    maximum: 3,
    description: 'both count',
  },
  {
    type: 'array',
    items: { $ref: '#/$defs/a' },
    $defs: { a: { $ref: '#/$defs/b' }, b: { type: ['boolean', 'null'] } },
  },
  { type: 'object', properties: { a: whole, copy: { $ref: '#/properties/a' } }, required: ['copy'] },
  { type: 'array', items: { anyOf: [{ $ref: '#' }, { type: 'boolean' }] } },
  // What has no answer is left out where there are others.
  {
    anyOf: [
      { type: 'string', minLength: 3, maxLength: 2 },
      { enum: ['x'], type: 'null' },
      false,
      { const: 'only this' },
    ],
  },
  {
    type: 'object',
    properties: { a: text, endless: { $ref: '#/$defs/endless' } },
    $defs: { endless: { type: 'object', required: ['x'], properties: { x: { $ref: '#/$defs/endless' } } } },
  },
];

/** A random schema of the keywords that grammars hold answers to. */
export function randomSchema(random: () => number, depth = 3): Schema {
  const below = (count: number) => Math.floor(random() * count);
  const pick = <T>(list: readonly T[]): T => list[below(list.length)] as T;
  const maybe = (chance: number) => random() < chance;
  const bounds = (keywords: [string, string], most: number): Schema => {
    const least = below(most);
    return {
      ...(maybe(0.5) ? { [keywords[0]]: least } : {}),
      ...(maybe(0.5) ? { [keywords[1]]: least + below(most) } : {}),
    };
  };
  const inner = () => randomSchema(random, depth - 1);
  const number = () => pick([below(20) - 10, (below(2000) - 1000) / 8, Math.round(random() * 1e6) / 1e4, -random()]);
  const scalars = [
    (): Schema => pick([{ type: 'null' }, { type: 'boolean' }, { type: 'number' }, { type: 'string' }, true]),
    (): Schema => ({
      enum: Array.from({ length: 1 + below(4) }, () => pick(['a', 'b"', 1, 2.5, null, true, [1], { a: 'x' }])),
    }),
    (): Schema => ({ type: 'string', ...(bounds(['minLength', 'maxLength'], 6) as object) }),
    (): Schema => ({
      type: 'string',
      pattern: pick(['a', '^b', '^[a-f]{2,}$', '\\d$', '^\\S*$', 'x|y']),
      ...(maybe(0.3) ? { maxLength: 3 + below(9) } : {}),
    }),
    (): Schema => ({ type: 'string', format: pick(['date', 'time', 'uuid', 'ipv4', 'email']) }),
    (): Schema => {
      const low = number();
      return {
        type: pick(['integer', 'number']),
        ...(maybe(0.6) ? { [pick(['minimum', 'exclusiveMinimum'])]: low } : {}),
        ...(maybe(0.6) ? { [pick(['maximum', 'exclusiveMaximum'])]: low + 1 + below(5000) } : {}),
      };
    },
    (): Schema => ({ type: 'integer', multipleOf: 1 + below(20), minimum: -below(100) }),
  ];
  if (depth === 0) return pick(scalars)();
  const nested = [
    (): Schema => ({ type: 'array', items: inner(), ...(bounds(['minItems', 'maxItems'], 3) as object) }),
    (): Schema => ({
      type: 'array',
      prefixItems: Array.from({ length: 1 + below(3) }, inner),
      ...(maybe(0.5) ? { items: maybe(0.5) ? false : inner() } : {}),
      ...(maybe(0.3) ? { minItems: below(3) } : {}),
    }),
    (): Schema => {
      const names = ['a', 'ab', 'b', 'name', '值', 'x y', '"'].filter(() => maybe(0.5));
      return {
        type: 'object',
        properties: Object.fromEntries(names.map((name) => [name, inner()])),
        required: names.filter(() => maybe(0.4)),
        ...(maybe(0.4) ? { additionalProperties: maybe(0.3) ? maybe(0.5) : inner() } : {}),
        ...(maybe(0.15) ? { maxProperties: Math.max(1, names.length - below(3)) } : {}),
        ...(maybe(0.15) ? { minProperties: below(3) } : {}),
        ...(maybe(0.1) ? { patternProperties: { [pick(['^x', 'b', '\\d'])]: inner() } } : {}),
      };
    },
    (): Schema => ({ anyOf: Array.from({ length: 1 + below(3) }, inner) }),
    (): Schema => ({ oneOf: Array.from({ length: 1 + below(3) }, inner) }),
    (): Schema => ({ allOf: Array.from({ length: 1 + below(2) }, inner), ...(maybe(0.5) ? (inner() as object) : {}) }),
  ];
  return maybe(0.7) ? pick(nested)() : pick(scalars)();
}

/** What ajv says of values. */
export function validatorOf(schema: Schema): (value: unknown) => boolean {
  const ajv = new Ajv2020({ strict: false, logger: false, validateSchema: false, ownProperties: true });
  addFormats(ajv);
  const validate = ajv.compile(schema);
  return (value) => validate(value) as boolean;
}

/** A value in the style of the grammars: with or without blanks behind `:` and `,`, and small numbers in all their digits. */
export function written(value: unknown, blank: string): string {
  if (value === 1e-7) return '0.0000001';
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map((item) => written(item, blank)).join(`,${blank}`)}]`;
  const entries = Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}:${blank}${written(item, blank)}`);
  return `{${entries.join(`,${blank}`)}}`;
}
