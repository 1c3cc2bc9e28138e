import { parseToolCall } from '../lib/families/python-call.js';
import { regexToGrammar } from '../lib/structured/regex-grammar.js';
import { schemaToGrammar } from '../lib/structured/schema-grammar.js';
import { parseGbnf, randomOf, recognizer, sentences } from './support/gbnf.js';
import { randomSchema, SCHEMAS, type Schema, validatorOf, written } from './support/schemas.js';

/** Schemas of a run; more of them on request, to look for what none of the usual ones shows. */
const RANDOM_SCHEMAS = Number(process.env.CHATGLM_TEST_SCHEMAS ?? 150);

/** Answers that belong to the grammar: short ones and long ones. */
function answersOf(grammar: string, count: number, seed: number): string[] {
  const sentence = sentences(parseGbnf(grammar), randomOf(seed));
  return Array.from({ length: count }, (_, index) => sentence(index * index));
}

function codeOf(run: () => unknown): string {
  try {
    run();
    return 'nothing thrown';
  } catch (error) {
    return String((error as { code?: unknown }).code);
  }
}

describe('answers of a grammar are valid', () => {
  test.each(SCHEMAS.map((schema, index) => [index, JSON.stringify(schema).slice(0, 150), schema] as const))(
    '%i: %s',
    (index, _, schema) => {
      const isValid = validatorOf(schema);
      for (const answer of answersOf(schemaToGrammar(schema), 25, index)) {
        if (!isValid(JSON.parse(answer))) throw new Error(`not valid: ${answer}`);
      }
    },
  );

  test('of random schemas', () => {
    const random = randomOf(20_261_128);
    let accepted = 0;
    for (let index = 0; index < RANDOM_SCHEMAS; index++) {
      const schema = randomSchema(random);
      let grammar: string;
      try {
        grammar = schemaToGrammar(schema);
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
        expect(String(error)).toMatch(/there is no finite answer|oneOf|minProperties|together with|multipleOf/);
        continue;
      }
      accepted++;
      const isValid = validatorOf(schema);
      for (const answer of answersOf(grammar, 15, index)) {
        if (!isValid(JSON.parse(answer))) throw new Error(`${JSON.stringify(schema)}: not valid: ${answer}`);
      }
    }
    expect(accepted).toBeGreaterThan(RANDOM_SCHEMAS / 2);
  });
});

test('a grammar has no white space but one blank behind : and ,', () => {
  const accepts = recognizer(parseGbnf(schemaToGrammar(true)));
  for (const text of ['{"a":1}', '{"a": 1}', '[1,2]', '[1, 2]', '{}', '[]'])
    expect([text, accepts(text)]).toEqual([text, true]);
  for (const text of ['{"a":  1}', ' 1', '1 ', '[ 1]', '[1 ,2]', '{ }', '[1,\n2]', '{"a" :1}']) {
    expect([text, accepts(text)]).toEqual([text, false]);
  }
});

describe('answers that a grammar takes and does not take', () => {
  const cases: [Schema, unknown[], unknown[]][] = [
    [true, [null, 0, -1.5, 'x', [], {}, [{ a: [] }], { a: { b: 1 } }, '\u0000"\\\u001f你😀'], []],
    [{ type: 'string', maxLength: 2 }, ['', 'ab', '😀😀', '\n"', '\u0007\u007f'], ['abc', '😀😀😀']],
    [{ type: 'string', pattern: '^\\d{3}$' }, ['123'], ['12', '1234', 'a']],
    [{ type: 'string', pattern: 'b+c' }, ['bc', 'abbcd', 'bbbc'], ['b', 'cb', '']],
    [{ type: 'string', pattern: '^(ab)*$', minLength: 3, maxLength: 6 }, ['abab', 'ababab'], ['ab', '', 'abababab']],
    [{ type: 'string', pattern: '^"\\\\\\n$' }, ['"\\\n'], ['"', '\\']],
    [
      { type: 'string', format: 'date' },
      ['2024-02-29', '2000-02-29', '1999-12-31'],
      ['2023-02-29', '1900-02-29', '2024-13-01', '2024-04-31'],
    ],
    [
      { type: 'string', format: 'ipv6' },
      ['::1', '1:2:3:4:5:6:7:8', '::', '1::8', 'fe80::a:b'],
      ['1', ':::', '1:2:3', '1::2::3'],
    ],
    [{ type: 'string', format: 'duration' }, ['P1Y', 'P1Y2M3DT4H5M6S', 'PT5M', 'P2W'], ['P', 'PT', 'P1Y2D', '1Y']],
    [{ type: 'integer', minimum: -12, maximum: 345 }, [-12, -1, 0, 7, 10, 99, 100, 299, 345], [-13, 346, 1000, -100]],
    [{ type: 'integer', exclusiveMinimum: 99, exclusiveMaximum: 1001 }, [100, 999, 1000], [99, 1001, 9]],
    [{ type: 'integer', minimum: 9 }, [9, 10, 999_999_999_999_999], [8, -9, 1e15, 0]],
    [{ type: 'integer', multipleOf: 7 }, [0, 7, -14, 700], [1, 8, -15]],
    [
      { type: 'number', minimum: 0.5, exclusiveMaximum: 2 },
      [0.5, 0.51, 1, 1.999, 1.99999999999999],
      [0.49, 2, 2.1, 0, -1, 0.4999999],
    ],
    [{ type: 'number', minimum: -1.25, maximum: 0 }, [-1.25, -0.001, 0, -1], [-1.26, 0.1, -2, 1]],
    [{ type: 'number', exclusiveMinimum: 0 }, [0.1, 1e-7, 5, 123456789], [0, -1]],
    [{ type: ['string', 'null'] }, ['x', null], [1, true]],
    [
      { type: 'array', items: { type: 'integer' }, minItems: 1, maxItems: 3 },
      [[1], [1, 2, 3]],
      [[], [1, 2, 3, 4], ['a']],
    ],
    [{ type: 'array', prefixItems: [{ const: 1 }, { const: 2 }] }, [[1, 2]], [[1, 3], [2], [1, 2, 3]]],
    [
      { type: 'array', prefixItems: [{ const: 1 }, { const: 2 }], minItems: 0, items: { const: 3 } },
      [[], [1], [1, 2], [1, 2, 3, 3]],
      [[2], [1, 3]],
    ],
    [
      { type: 'object', properties: { a: { const: 1 }, b: { const: 2 }, c: { const: 3 } }, required: ['b'] },
      [{ b: 2 }, { a: 1, b: 2 }, { b: 2, c: 3 }, { a: 1, b: 2, c: 3 }],
      [{}, { a: 1 }, { a: 1, c: 3 }, { b: 3 }, { b: 2, d: 4 }],
    ],
    [
      { type: 'object', properties: { ab: { const: 1 } }, additionalProperties: { type: 'boolean' } },
      [{}, { ab: 1 }, { a: true }, { ab: 1, abc: true, '': false }, { b: true, ba: false }],
      [{ ab: true }, { ab: 1, c: 2 }],
    ],
    [
      { type: 'object', patternProperties: { '^x': { const: 1 } } },
      [{}, { x: 1 }, { xy: 1, x: 1 }],
      [{ x: 2 }, { y: 1 }],
    ],
    [
      { type: 'object', additionalProperties: { const: 1 }, minProperties: 1, maxProperties: 2 },
      [{ a: 1 }, { a: 1, b: 1 }],
      [{}, { a: 1, b: 1, c: 1 }],
    ],
    [
      JSON.parse('{"type":"object","properties":{"__proto__":{"const":1}},"additionalProperties":{"const":2}}'),
      [{}, JSON.parse('{"__proto__":1,"a":2}'), { __prot: 2, __proto__x: 2 }],
      [JSON.parse('{"__proto__":2}'), { a: 1 }],
    ],
    [{ enum: ['a', 1, null, { k: [1] }] }, ['a', 1, null, { k: [1] }], ['b', 2, { k: [2] }, {}]],
    [{ allOf: [{ enum: [1, 2, 3] }, { enum: [2, 3, 4] }] }, [2, 3], [1, 4]],
    [{ oneOf: [{ enum: ['a', 'b'] }, { enum: ['b', 'c'] }] }, ['a', 'c'], ['b']],
    [
      {
        $defs: {
          tree: {
            type: 'object',
            properties: { v: { type: 'integer' }, l: { $ref: '#/$defs/tree' } },
            required: ['v'],
          },
        },
        $ref: '#/$defs/tree',
      },
      [{ v: 1 }, { v: 1, l: { v: 2, l: { v: 3 } } }],
      [{}, { v: 1, l: {} }],
    ],
    [
      { type: 'object', properties: { a: true, b: { $ref: '#' } }, maxProperties: 1 },
      [{}, { a: [1] }, { b: { b: {} } }],
      [{ a: 1, b: {} }],
    ],
  ];
  test.each(cases.map(([schema, ...rest]) => [JSON.stringify(schema).slice(0, 120), schema, ...rest] as const))(
    '%s',
    (_, schema, yes, no) => {
      const accepts = recognizer(parseGbnf(schemaToGrammar(schema)));
      for (const value of yes) {
        const texts = [written(value, ''), written(value, ' ')];
        for (const text of texts) expect([text, accepts(text)]).toEqual([text, true]);
      }
      for (const value of no) expect([value, accepts(written(value, ''))]).toEqual([value, false]);
    },
  );
});

describe('what no grammar can hold an answer to is refused by its name', () => {
  test.each<[Schema, string | RegExp]>([
    [
      { properties: { tags: { uniqueItems: true } } },
      'responseFormat.schema: #/properties/tags uses uniqueItems, which no grammar can hold an answer to',
    ],
    [{ not: {} }, '# uses not,'],
    [{ if: {} }, '# uses if,'],
    [{ anyOf: [{ else: true }] }, '#/anyOf/0 uses else,'],
    [{ type: 'array', contains: {} }, 'uses contains,'],
    [{ dependentRequired: { a: ['b'] } }, 'uses dependentRequired,'],
    [{ dependentSchemas: {} }, 'uses dependentSchemas,'],
    [{ unevaluatedProperties: false }, 'uses unevaluatedProperties,'],
    [{ unevaluatedItems: false }, 'uses unevaluatedItems,'],
    [{ $dynamicRef: '#x' }, 'uses $dynamicRef,'],
    [{ typ: 'string' }, '# uses typ,'],
    [{ type: 'text' }, '#/type must be of null, boolean'],
    [{ type: 'string', format: 'regex' }, '# uses format, "regex", which no grammar'],
    [{ type: 'string', format: 'made-up' }, '# uses format, "made-up"'],
    [{ type: 'string', pattern: '(a)\\1' }, '#/pattern uses \\1, a backreference'],
    [{ type: 'string', pattern: '(?<=a)b' }, 'a lookbehind'],
    [{ type: 'string', pattern: 'a\\b' }, 'a word boundary'],
    [{ type: 'string', pattern: '(?i:a)' }, 'modifiers'],
    [{ type: 'string', pattern: '(' }, '#/pattern is no regular expression with the flag u: '],
    [{ type: 'string', pattern: 'a.{9}b', minLength: 100, maxLength: 3000 }, 'together with minLength or maxLength'],
    [{ type: 'number', multipleOf: 0.01 }, '# uses multipleOf, with a number that is not whole'],
    [{ type: 'integer', multipleOf: 99_991 }, 'uses multipleOf, with a number whose multiples'],
    [{ type: 'integer', multipleOf: 0 }, '#/multipleOf must be a number above 0'],
    [{ type: 'integer', minimum: '3' }, '#/minimum must be a number, got "3"'],
    [{ minLength: -1 }, '#/minLength must be a whole number'],
    [{ items: [true] }, '# uses items, as a list'],
    [
      { oneOf: [{ type: 'string' }, { type: 'string', maxLength: 3 }] },
      '# uses oneOf, with alternatives that one answer could meet two of',
    ],
    [{ oneOf: [{ type: 'integer' }, { type: 'number' }] }, 'uses oneOf'],
    [{ oneOf: [{ properties: { a: {} } }, { properties: { b: {} } }], type: 'object' }, 'uses oneOf'],
    [{ $ref: 'https://example.com/x' }, '# uses $ref, "https://example.com/x": references lead to #'],
    [{ $ref: '#/$defs/missing' }, '# uses $ref, "#/$defs/missing", where the schema has nothing'],
    [{ $ref: '#' }, '$ref, which leads back to itself'],
    [{ anyOf: [{ $ref: '#' }, { type: 'string' }] }, '$ref, which leads back to itself'],
    [{ properties: { a: { $id: 'other' } } }, '#/properties/a uses $id'],
    [
      { patternProperties: { a: true, b: true, c: true, d: true } },
      'uses patternProperties, with more than 3 patterns',
    ],
    [{ type: 'object', minProperties: 2 }, 'uses minProperties, with more properties than are declared'],
    [{ type: 'array', minItems: 1e6 }, 'uses minItems, which may be 65535 at most'],
    [{ allOf: [] }, '#/allOf must be an array of schemas'],
    [{ properties: [] }, '#/properties must be an object of schemas'],
    [{ required: 'a' }, '#/required must be an array of names'],
    [{ properties: { a: 3 } }, '#/properties/a must be a JSON schema'],
    [false, 'there is no finite answer'],
    [{ enum: [] }, 'there is no finite answer'],
    [{ type: 'integer', minimum: 3, maximum: 2 }, 'there is no finite answer'],
    [{ type: 'integer', minimum: 0.1, maximum: 0.9 }, 'there is no finite answer'],
    [{ type: 'integer', minimum: 1e300 }, 'there is no finite answer'],
    [{ allOf: [{ type: 'string' }, { type: 'null' }] }, 'there is no finite answer'],
    [{ type: 'object', properties: { a: { $ref: '#' } }, required: ['a'] }, 'there is no finite answer'],
    [{ type: 'string', pattern: '^a', enum: ['b'] }, 'there is no finite answer'],
    [{ type: 'string', pattern: 'a^' }, 'there is no finite answer'],
    [{ type: 'object', required: ['a'], additionalProperties: false }, 'there is no finite answer'],
  ])('%j', (schema, message) => {
    const run = () => schemaToGrammar(schema, { name: 'responseFormat.schema' });
    expect(run).toThrow(message);
    expect(codeOf(run)).toBe('ERR_INVALID_ARGUMENT');
  });

  test.each<[string, () => unknown]>([
    ['nothing', () => undefined],
    ['a number', () => 3],
    ['a text', () => '{}'],
    ['a list', () => []],
    ['a function', () => () => 3],
    [
      'a cycle',
      () =>
        Object.assign(
          {},
          {
            get self() {
              return this;
            },
          },
        ),
    ],
    [
      'a getter that throws',
      () => ({
        get type() {
          throw new Error('no');
        },
      }),
    ],
    [
      'a proxy that throws',
      () =>
        new Proxy(
          {},
          {
            ownKeys() {
              throw new Error('no');
            },
          },
        ),
    ],
    ['a bigint', () => ({ const: 3n })],
    ['10 MB', () => ({ enum: Array.from({ length: 100_000 }, (_, index) => `${index}`.padStart(100, 'x')) })],
    [
      'a grammar that is too large',
      () => ({ enum: Array.from({ length: 40 }, (_, index) => `${index}`.repeat(40_000)) }),
    ],
    ['half a million alternatives', () => ({ enum: Array.from({ length: 500_000 }, (_, index) => index) })],
    ['lists in a list of values, too many', () => ({ enum: Array.from({ length: 200_000 }, (_, index) => [index]) })],
    ['nesting', () => JSON.parse(`${'{"items":'.repeat(5000)}true${'}'.repeat(5000)}`)],
    [
      'nesting that JSON.stringify() gives up at',
      () => {
        let schema: object = {};
        for (let i = 0; i < 100_000; i++) schema = { items: schema };
        return schema;
      },
    ],
    [
      'alternatives of alternatives',
      () => ({ allOf: Array.from({ length: 20 }, (_, i) => ({ anyOf: [{ minimum: i }, { maximum: -i }] })) }),
    ],
    ['an automaton that explodes', () => ({ type: 'string', pattern: '(a|b)*a(a|b){18}', minLength: 5 })],
    [
      'many of them',
      () => ({
        type: 'object',
        properties: Object.fromEntries(
          Array.from({ length: 3000 }, (_, i) => [`p${i}`, { pattern: `(a|b)*a(a|b){8}${i}`, minLength: 20 }]),
        ),
      }),
    ],
    ['a long pattern', () => ({ pattern: '('.repeat(5000) + ')'.repeat(5000) })],
    ['a pattern that counts to the sky', () => ({ pattern: '^((a{1000}){1000}){1000}$', minLength: 3 })],
    [
      'references in a long row',
      () => ({
        $ref: '#/$defs/d0',
        $defs: Object.fromEntries(
          Array.from({ length: 5000 }, (_, i) => [
            `d${i}`,
            i === 4999 ? { typ: 1 } : { $ref: `#/$defs/d${i + 1}`, title: 'x' },
          ]),
        ),
      }),
    ],
  ])('hostile: %s', (_, make) => {
    expect(codeOf(() => schemaToGrammar(make()))).toBe('ERR_INVALID_ARGUMENT');
  });

  test('a getter is asked once', () => {
    let asked = 0;
    const schema = {
      get type() {
        return asked++ === 0 ? 'string' : 'integer';
      },
    };
    expect(schemaToGrammar(schema)).toBe(schemaToGrammar({ type: 'string' }));
    expect(asked).toBe(1);
  });
});

test('grammars of many optional properties stay small', () => {
  const properties = Object.fromEntries(
    Array.from({ length: 100 }, (_, index) => [`property_${index}`, { type: 'string' }]),
  );
  const closed = schemaToGrammar({ type: 'object', properties });
  const open = schemaToGrammar({ type: 'object', properties, additionalProperties: true });
  expect(closed.length).toBeLessThan(20_000);
  expect(open.length).toBeLessThan(40_000);
  const accepts = recognizer(parseGbnf(open));
  expect(accepts('{"property_3":"a","property_77": "b","property_100":1}')).toBe(true);
  expect(accepts('{"property_77":"b","property_3":"a"}')).toBe(false);
});

describe('arguments of a Python call', () => {
  const named = SCHEMAS.filter((schema) => typeof schema === 'object' && schema.type === 'object');

  test('are read, and valid', () => {
    let accepted = 0;
    for (const [index, schema] of named.entries()) {
      let grammar: string;
      try {
        grammar = schemaToGrammar(schema, { dialect: 'python-call' });
      } catch (error) {
        expect(String(error)).toMatch(/no name that an argument|there is no finite answer|minProperties/);
        continue;
      }
      accepted++;
      const isValid = validatorOf(schema);
      for (const answer of answersOf(grammar, 25, index)) {
        const parsed = parseToolCall(`tool_call(${answer})`);
        if (parsed === undefined || !isValid(parsed)) throw new Error(`${JSON.stringify(schema)}: ${answer}`);
      }
    }
    expect(accepted).toBeGreaterThan(15);
  });

  test('have Python literals', () => {
    const schema = {
      type: 'object',
      properties: {
        city: { type: 'string' },
        days: { type: 'integer' },
        ok: { type: 'boolean' },
        x: { type: 'null' },
        tags: { type: 'array', items: { type: 'string' } },
        o: { type: 'object', properties: { k: { enum: [1, "it's", '\n\u0001'] } } },
        from: { const: [null, true, { a: false }] },
      },
    };
    const accepts = recognizer(parseGbnf(schemaToGrammar(schema, { dialect: 'python-call' })));
    const yes = [
      '',
      "city='北京', days=2, ok=True, x=None, tags=['a', 'b'], o={'k': 1}",
      "city='',days=-20,tags=[]",
      "city='it\\'s \\\\ \\n\\t\\r\\x07\"'",
      "o={'k':'it\\'s'}",
      "o={'k': '\\n\\x01'}",
      "from=[None, True, {'a': False}]",
    ];
    for (const text of yes) expect([text, accepts(text)]).toEqual([text, true]);
    for (const text of [
      'city="a"',
      "city='a\n'",
      'ok=true',
      'x=null',
      "days='2'",
      'o={k: 1}',
      "days=2, city='a'",
      'days = 2',
    ]) {
      expect([text, accepts(text)]).toEqual([text, false]);
    }
  });

  test('have names', () => {
    const schema = { type: 'object', properties: { 'not a name': {} } };
    expect(() => schemaToGrammar(schema, { dialect: 'python-call' })).toThrow(
      '"not a name" is no name that an argument',
    );
    expect(() => schemaToGrammar({ type: 'string' }, { dialect: 'python-call' })).toThrow('there is no finite answer');
  });

  test('of alternatives, and of values that are listed', () => {
    const schema = {
      anyOf: [{ const: { a: 1, b: 'x' } }, { type: 'object', properties: { c: { type: 'null' } }, required: ['c'] }],
    };
    const accepts = recognizer(parseGbnf(schemaToGrammar(schema, { dialect: 'python-call' })));
    expect(["a=1, b='x'", 'c=None', '', 'a=1'].map(accepts)).toEqual([true, true, false, false]);
  });
});

describe('regular expressions', () => {
  const texts = [
    '',
    'a',
    'b',
    'ab',
    'ba',
    'abc',
    'aab',
    'abab',
    'a1',
    '1',
    '12',
    'a-b',
    ' ',
    'a b',
    '你',
    '😀',
    '\n',
    'a\nb',
    '_',
    'A',
    'É',
    '--',
    'x',
  ];
  const patterns = [
    'a',
    '^a',
    'a$',
    '^a$',
    'ab|ba',
    '^(ab|ba)$',
    '^a|b$',
    '(^a|b$)',
    '^(?:a|b)*$',
    'a+b*',
    '^(a?){3}$',
    '^(a*)*$',
    '^(a|b){2,3}$',
    '^.$',
    '^..$',
    '[^a]',
    '^[^a]$',
    '\\d',
    '^\\D+$',
    '\\s',
    '^\\S+$',
    '^\\w+$',
    '\\W',
    '^[a-c\\d]+$',
    '^\\p{Lu}$',
    '^\\P{L}$',
    '^[\\p{L}\\d]+$',
    '^\\u{1f600}$',
    '\\n',
    '^[\\s\\S]$',
    '',
    '^',
    '$',
    '^$',
    'x^',
    '$x',
    '^(?=a)',
    'a(?!b)',
    '^(?!.*-)[ab-]+$',
    '^(?=.*1)(?=.*a)',
    'a(?=b)b',
    '(a(?!b)|b)$',
    '^(?:a(?=b)|b){2}$',
    '^[\\-_]+$',
    '^\\x61\\u0062?$',
    '^a{0}$',
    '^a{2,}',
    'a??b',
    '^(?<n>a)b$',
  ];
  test.each(patterns)('%s', (pattern) => {
    const outcomes = (isWhole: boolean) => {
      let accepts: (text: string) => boolean;
      try {
        accepts = recognizer(parseGbnf(regexToGrammar(pattern, { anchored: isWhole })));
      } catch (error) {
        expect(String(error)).toContain('matches no text at all');
        accepts = () => false;
      }
      return texts.map((text) => [text, accepts(text)]);
    };
    expect(outcomes(false)).toEqual(texts.map((text) => [text, new RegExp(pattern, 'u').test(text)]));
    expect(outcomes(true)).toEqual(texts.map((text) => [text, new RegExp(`^(?:${pattern})$`, 'u').test(text)]));
  });

  test('that grammars cannot say', () => {
    for (const pattern of ['(a)\\1', '\\ba', '(?<!a)b', '(?:a(?=b)|b)*', '(', 'a{2,1}']) {
      expect(codeOf(() => regexToGrammar(pattern))).toBe('ERR_INVALID_ARGUMENT');
    }
    expect(codeOf(() => regexToGrammar(3 as never))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => regexToGrammar('a', { anchord: true } as never))).toBe('ERR_INVALID_ARGUMENT');
  });
});
