import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { type } from 'arktype';
import * as v from 'valibot';
import { z } from 'zod';
import { ChatGLMError } from '../lib/common/errors.js';
import type { FromSchema } from '../lib/common/from-schema.js';
import { dumpJsonLine } from '../lib/common/python-text.js';
import { parseToolCall } from '../lib/families/python-call.js';
import type { ToolCall, ToolDefinition } from '../lib/index.js';
import { parseTextToolCall, textToolPrompt } from '../lib/tools/text-prompting.js';
import { defineTool, type Tool, type ToolContext } from '../lib/tools/tool.js';
import { type RunOptions, ToolSet, type ToolsInput } from '../lib/tools/tool-set.js';
import { loadModel } from './support/device';

/** Fails to compile unless the two types are the same. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function holds<T extends true>(..._proof: T[]): void {}

type Arguments<T> = T extends Tool<infer Args> ? Args : never;

const weather = defineTool({
  name: 'get_weather',
  description: '查询某个城市的天气',
  parameters: {
    type: 'object',
    properties: {
      city: { type: 'string' },
      days: { type: 'number' },
      unit: { enum: ['celsius', 'fahrenheit'] },
    },
    required: ['city'],
    additionalProperties: false,
  },
  execute: ({ city, days = 1 }) => ({ city, weather: '晴', temperature: 20 + days }),
});

const cityOnly = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } as const;

function run(tools: ToolsInput, name: string, args?: Record<string, unknown>, options: Partial<RunOptions> = {}) {
  const call = args === undefined ? { name, raw: 'raw' } : { name, arguments: args, raw: 'raw' };
  return ToolSet.read(tools).run(call, { round: 0, ...options });
}

/** A tool that gives what the function gives. */
function giving(execute: (args: Record<string, unknown>, context: ToolContext) => unknown, name = 'f') {
  return [{ name, execute }];
}

function messageOf(read: () => unknown): string {
  try {
    read();
  } catch (error) {
    expect(error).toBeInstanceOf(ChatGLMError);
    expect((error as ChatGLMError).code).toBe('ERR_INVALID_ARGUMENT');
    return (error as ChatGLMError).message;
  }
  throw new Error('nothing was thrown');
}

describe('types of arguments', () => {
  test('of a JSON schema', () => {
    holds<Same<Arguments<typeof weather>, { city: string; days?: number; unit?: 'celsius' | 'fahrenheit' }>>();
    const schema = {
      type: 'object',
      properties: {
        list: { type: 'array', items: { type: 'integer' } },
        pair: { type: 'array', prefixItems: [{ type: 'string' }, { type: 'boolean' }], items: false },
        rest: { type: 'array', prefixItems: [{ type: 'string' }], items: { type: 'null' } },
        either: { anyOf: [{ type: 'string' }, { const: { a: [1] } }] },
        one: { oneOf: [{ type: 'null' }, { enum: [1, 2] }] },
        types: { type: ['string', 'null'] },
        nested: { type: 'object', properties: { x: { type: 'number' } }, required: ['x'] },
        map: { type: 'object', additionalProperties: { type: 'number' } },
        open: { type: 'object' },
        referred: { $ref: '#/$defs/x' },
        anything: {},
      },
      required: ['list', 'pair', 'rest', 'either', 'one', 'types', 'nested', 'map', 'open', 'referred', 'anything'],
    } as const;
    interface Expected {
      list: number[];
      pair: [string, boolean];
      rest: (string | null)[];
      either: string | { a: [1] };
      one: null | 1 | 2;
      types: string | null;
      nested: { x: number };
      map: Record<string, number>;
      open: Record<string, unknown>;
      referred: unknown;
      anything: unknown;
    }
    holds<Same<FromSchema<typeof schema>, { [K in keyof Expected]: Expected[K] }>>();
    const tool = defineTool({ name: 'f', parameters: schema, execute: ({ pair: [text] }) => text.length });
    expect(tool.parameters).toEqual(schema);
  });

  test('of validators, whose output they are', () => {
    const byZod = defineTool({ name: 'f', parameters: z.object({ a: z.string(), n: z.number().default(3) }) });
    holds<Same<Arguments<typeof byZod>, { a: string; n: number }>>();
    const byValibot = defineTool({
      name: 'f',
      parameters: v.object({ a: v.pipe(v.string(), v.transform(Number)) }),
      jsonSchema: { type: 'object' },
    });
    holds<Same<Arguments<typeof byValibot>, { a: number }>>();
    const byArktype = defineTool({ name: 'f', parameters: type({ a: 'string', 'b?': 'number' }) });
    holds<Same<Arguments<typeof byArktype>, { a: string; b?: number }>>();
    const byNothing = defineTool({ name: 'f' });
    holds<Same<Arguments<typeof byNothing>, Record<string, unknown>>>();
    const byAnySchema = defineTool({ name: 'f', parameters: JSON.parse('{}') as Record<string, unknown> });
    holds<Same<Arguments<typeof byAnySchema>, Record<string, unknown>>>();
    // Tools of any arguments go into one list.
    expect(ToolSet.read([byZod, { ...byArktype, name: 'g' }] satisfies ToolsInput).size).toBe(2);
  });
});

describe('the schema that the model sees', () => {
  const expected = {
    type: 'object',
    properties: { city: { type: 'string' }, days: { type: 'number' } },
    required: ['city'],
  };

  test.each([
    ['JSON schema', expected],
    ['zod', z.object({ city: z.string(), days: z.number().optional() })],
    ['arktype', type({ city: 'string', 'days?': 'number' })],
  ])('%s', (_, parameters) => {
    expect(defineTool({ name: 'f', parameters }).parameters).toEqual(expected);
    // Without defineTool(), too.
    expect(ToolSet.read([{ name: 'f', parameters: parameters as object as Record<string, unknown> }]).shown).toEqual([
      { name: 'f', parameters: expected },
    ]);
  });

  test('says its draft only where that is an older one', () => {
    const of = ($schema: string) => defineTool({ name: 'f', parameters: { $schema, ...expected } }).parameters;
    expect(of('https://json-schema.org/draft/2020-12/schema')).toEqual(expected);
    expect(of('http://json-schema.org/draft-07/schema#')).toHaveProperty('$schema');
  });

  test('is that of the input, where a validator changes it', () => {
    const parameters = z.object({ n: z.string().transform(Number) });
    expect(defineTool({ name: 'f', parameters }).parameters).toMatchObject({ properties: { n: { type: 'string' } } });
  });

  test('stands beside a validator whose library offers none', () => {
    const parameters = v.object({ city: v.string() });
    expect(messageOf(() => defineTool({ name: 'f', parameters }))).toMatch(/"valibot".*jsonSchema beside it/);
    expect(messageOf(() => ToolSet.read([{ name: 'f', parameters: parameters as never }]))).toMatch(
      /tools\[0\]\.parameters .*"valibot".*jsonSchema/,
    );
    expect(defineTool({ name: 'f', parameters, jsonSchema: expected }).parameters).toEqual(expected);
  });

  test.each<[string, object, RegExp]>([
    ['no name', {}, /tools\[0\]\.name must be a string/],
    ['a name of two lines', { name: 'a\nb' }, /must be one line/],
    ['a description that is no text', { name: 'f', description: 1 }, /description must be a string/],
    ['parameters that are no schema', { name: 'f', parameters: 3 }, /parameters must be a JSON schema .* got 3/],
    [
      'parameters that are no object',
      { name: 'f', parameters: { type: 'string' } },
      /must describe an object.*"string"/,
    ],
    ['a validator of something else', { name: 'f', parameters: z.string() }, /must describe an object/],
    ['a schema that cannot be said', { name: 'f', parameters: z.object({ d: z.date() }) }, /cannot say it as a JSON/],
    ['a schema beside a schema', { name: 'f', parameters: {}, jsonSchema: {} }, /jsonSchema belongs to a validator/],
    ['execute that is no function', { name: 'f', execute: 1 }, /execute must be a function, got 1/],
    ['no time', { name: 'f', timeoutMs: 0 }, /timeoutMs must be a whole number from 1/],
    ['more time than timers have', { name: 'f', timeoutMs: 2 ** 31 }, /timeoutMs must be a whole number/],
    ['strict that is no boolean', { name: 'f', strict: 'yes' }, /strict must be true or false/],
    ['a misspelt option', { name: 'f', timeout: 1 }, /no option timeout; there are name,/],
    [
      'a getter that throws',
      Object.defineProperty({ name: 'f' }, 'description', { enumerable: true, get: trap }),
      /boo/,
    ],
  ])('%s is refused', (_, options, message) => {
    expect(messageOf(() => defineTool(options as { name: string }))).toMatch(message);
  });
});

function trap(): never {
  throw new Error('boo');
}

describe('shapes', () => {
  const flat = { name: 'flat', description: 'd', extra: [1] };
  const inner = { name: 'wrapped', parameters: { type: 'object' } };

  test('may be mixed in a list', () => {
    const program = { execute: () => 1, timeoutMs: 7, strict: true };
    const set = ToolSet.read([weather, flat, { type: 'function', function: inner, ...program }]);
    const { name, description, parameters } = weather;
    expect(set.shown).toEqual([{ name, description, parameters }, flat, inner]);
    expect(JSON.parse(JSON.stringify(set.shown))).toEqual(set.shown);
    expect([...set.names]).toEqual(['get_weather', 'flat', 'wrapped']);
    expect(set.size).toBe(3);
    expect(set.get('wrapped')).toMatchObject({ ...inner, timeoutMs: 7, strict: true });
    expect(set.get('flat')?.execute).toBeUndefined();
    expect(set.get('toString')).toBeUndefined();
    expect(ToolSet.read(set)).toBe(set);
    expect(ToolSet.read(null).size).toBe(0);
    expect(ToolSet.read({}).size).toBe(0);
  });

  test('a registry is shown as it is, and its params are checked', async () => {
    const params = [
      { name: 'city_name', description: 'The city', type: 'str', required: true },
      { name: 'when', description: 'When', type: 'datetime', required: false },
    ];
    const registry = { get_weather: { name: 'get_weather', description: '天气', params } };
    const execute = ({ city_name }: Record<string, unknown>) => `${city_name}: 晴`;
    const set = ToolSet.read({ get_weather: { ...registry.get_weather, execute } });
    expect(set.shown).toEqual(registry);
    expect([...set.names]).toEqual(['get_weather']);
    const call = (args: Record<string, unknown>) =>
      set.run({ name: 'get_weather', arguments: args, raw: '' }, { round: 0 });
    expect((await call({ city_name: '北京', when: 3 })).content).toBe('北京: 晴');
    expect((await call({ city_name: 1 })).content).toBe(
      'Error: get_weather: arguments.city_name must be a string (got 1)',
    );
    expect((await call({})).content).toBe('Error: get_weather: arguments.city_name is missing: a string');
  });

  test.each<[string, unknown, RegExp]>([
    [
      'two of one name',
      [{ name: 'a' }, { name: 'b' }, { name: 'a' }],
      /tools\[2\]\.name is "a", as that of tools\[0\]/,
    ],
    ['a name with a line break', [{ name: 'a\nb' }], /tools\[0\]\.name must be one line/],
    ['a registry name with a line break', { 'a\rb': {} }, /must be one line/],
    ['a registry whose names disagree', { a: { name: 'b' } }, /tools\.a\.name must be "a"/],
    ['one tool instead of a list', { name: 'a', description: 'd' }, /tools must be an array .* one tool/],
    ['a wrapped tool instead of a list', { type: 'function', function: { name: 'a' } }, /one tool/],
    ['no tools at all', 'get_weather', /tools must be an array of tools, .* got "get_weather"/],
    ['an instance of a class', new Map(), /tools must be an array .* got an instance of Map/],
    ['an entry that is none', [null], /tools\[0\] must be an object with a name/],
    ['execute that is no function', [{ name: 'a', execute: 'x' }], /tools\[0\]\.execute must be a function/],
    ['execute of a registry', { a: { execute: 'x' } }, /tools\.a\.execute must be a function/],
    ['a getter that throws', [Object.defineProperty({ name: 'a' }, 'execute', { get: trap })], /tools\[0\] .*boo/],
    ['a proxy that throws', new Proxy([], { get: trap }), /tools cannot be read: boo/],
  ])('%s: refused', (_, value, message) => {
    expect(messageOf(() => ToolSet.read(value))).toMatch(message);
  });

  test('a thousand tools', async () => {
    const many = Array.from({ length: 1000 }, (_, i) => ({ name: `tool_${i}`, execute: () => i }));
    const set = ToolSet.read(many);
    expect(set.size).toBe(1000);
    expect(await set.run({ name: 'tool_999', arguments: {}, raw: '' }, { round: 0 })).toEqual({
      ok: true,
      content: '999',
      value: 999,
    });
    const { content } = await set.run({ name: 'tool_1000', arguments: {}, raw: '' }, { round: 0 });
    expect(content).toMatch(/^Error: there is no tool "tool_1000"; the tools are tool_0, .*, tool_49 and 950 more$/);
  });

  test('a tool may be an object with a state', async () => {
    class Counter {
      name = 'count';
      calls = 0;
      execute() {
        return ++this.calls;
      }
    }
    const set = ToolSet.read([new Counter()]);
    await set.run({ name: 'count', arguments: {}, raw: '' }, { round: 0 });
    expect((await set.run({ name: 'count', arguments: {}, raw: '' }, { round: 0 })).value).toBe(2);
  });
});

describe('what the model is told', () => {
  test('of a result in the form that the models were trained with', async () => {
    expect(await run([weather], 'get_weather', { city: '北京' })).toEqual({
      ok: true,
      content: '{"city": "北京", "weather": "晴", "temperature": 21}',
      value: { city: '北京', weather: '晴', temperature: 21 },
    });
  });

  test.each<[unknown, string]>([
    ['text\nof two lines', 'text\nof two lines'],
    ['', ''],
    [undefined, 'ok'],
    [null, 'null'],
    [true, 'true'],
    [0.00001, '1e-05'],
    [[], '[]'],
    [{}, '{}'],
    [[1, 'a', [null, { b: 2 }]], '[1, "a", [null, {"b": 2}]]'],
    [{ gone: undefined, at: new Date(0) }, '{"at": "1970-01-01T00:00:00.000Z"}'],
    [Promise.resolve('later'), 'later'],
    [{ toJSON: () => undefined }, 'ok'],
  ])('%p', async (value, content) => {
    expect(
      await run(
        giving(() => value),
        'f',
        {},
      ),
    ).toMatchObject({ ok: true, content });
  });

  test("Python's json.dumps(value, ensure_ascii=False) writes the same", () => {
    expect(dumpJsonLine({ a: [], b: {}, c: [1, 2.5, 'x"\n天'], d: null })).toBe(
      '{"a": [], "b": {}, "c": [1, 2.5, "x\\"\\n天"], "d": null}',
    );
  });

  test('of a long result, its beginning', async () => {
    const { content } = await run(
      giving(() => 'a'.repeat(30_000)),
      'f',
      {},
    );
    expect(content).toBe(`${'a'.repeat(20_000)}\n[cut: the result has 30000 characters, these are the first 20000]`);
    const pair = await run(
      giving(() => '😀😀'),
      'f',
      {},
      { maxCharacters: 3 },
    );
    expect(pair.content).toMatch(/^😀\n\[cut/u);
    const failure = await run(
      giving(() => Promise.reject(new Error('b'.repeat(1000)))),
      'f',
      {},
      { maxCharacters: 9 },
    );
    expect(failure.content).toMatch(/^Error: bb\n\[cut: the result has 1007/);
  });

  const cycle: Record<string, unknown> = {};
  cycle.self = cycle;
  let deep: unknown = [];
  for (let level = 0; level < 100_000; level++) deep = [deep];
  const revoked = Proxy.revocable({}, {});
  revoked.revoke();
  test.each<[string, unknown]>([
    ['a cycle', cycle],
    ['a bigint', { n: 5n }],
    ['a function', trap],
    ['a function within', { trap }],
    ['a symbol', Symbol('x')],
    ['a map', { map: new Map([[1, 2]]) }],
    ['a set', new Set()],
    ['a getter that throws', Object.defineProperty({}, 'x', { enumerable: true, get: trap })],
    ['toJSON() that throws', { toJSON: trap }],
    ['what is nested too deep', deep],
  ])('of %s: that it cannot be written', async (_, value) => {
    const { ok, content, error } = await run(
      giving(() => value),
      'f',
      {},
    );
    expect(ok).toBe(false);
    expect(content).toMatch(/^Error: f gave a result that cannot be written as JSON: ./);
    expect(error).toMatchObject({ code: 'ERR_TOOL_FAILED', details: { tool: 'f' } });
    expect(error?.cause).toBeInstanceOf(Error);
  });

  test.each<[string, unknown, string]>([
    ['an error', new Error('no such city'), 'no such city'],
    ['an error of many words', new Error('w'.repeat(500)), 'w'.repeat(500)],
    ['an error without words', new TypeError(), 'an instance of TypeError'],
    ['a text', 'just text', 'just text'],
    ['nothing', undefined, 'undefined'],
    ['a number', 7, '7'],
    ['an object', { message: 'like an error' }, 'like an error'],
    ['a getter that throws', Object.defineProperty({}, 'message', { get: trap }), 'an object'],
    ['a revoked proxy', revoked.proxy, 'an object'],
    ['another time-out', new ChatGLMError('ERR_TIMEOUT', 'of a model within'), 'of a model within'],
    ['another abort', new ChatGLMError('ERR_ABORTED', 'of something else'), 'of something else'],
  ])('of %s that is thrown', async (_, thrown, reason) => {
    const sync = () => {
      throw thrown;
    };
    for (const execute of [sync, async () => sync()]) {
      const { ok, content, error } = await run(giving(execute), 'f', {});
      expect({ ok, content }).toEqual({ ok: false, content: `Error: ${reason}` });
      expect(error).toMatchObject({ code: 'ERR_TOOL_FAILED', details: { tool: 'f' } });
      expect(error?.cause).toBe(thrown);
    }
  });

  test('of a result that pretends to be a promise', async () => {
    const thenable = Object.defineProperty({}, 'then', { get: trap });
    expect(
      (
        await run(
          giving(() => thenable),
          'f',
          {},
        )
      ).content,
    ).toBe('Error: boo');
  });

  test('of a tool that there is not', async () => {
    for (const name of ['get_time', '__proto__', 'constructor']) {
      const { ok, content, error } = await run([weather], name, {});
      expect(ok).toBe(false);
      expect(content).toBe(`Error: there is no tool "${name}"; the tools are get_weather`);
      expect(error).toMatchObject({ code: 'ERR_TOOL_CALL_INVALID', details: { tool: name } });
    }
    expect((await run([], 'f', {})).content).toBe('Error: there is no tool "f"; there are no tools');
  });

  test('of a tool that the program has no function for', async () => {
    const { content, error } = await run([{ name: 'f' }], 'f', {});
    expect(content).toMatch(/^Error: f cannot be run here/);
    expect(error?.code).toBe('ERR_TOOL_FAILED');
  });

  test('of a call that cannot be read: how it is written', async () => {
    const tool = defineTool({
      name: 'f',
      parameters: {
        type: 'object',
        properties: {
          text: { type: 'string' },
          'not an identifier': { type: 'string' },
          on: { type: 'boolean' },
          unit: { enum: ["it's", 'b'] },
          n: { type: ['integer', 'null'] },
        },
      },
      execute: () => 1,
    });
    const { content, error } = await run([tool], 'f');
    const example = content.replace('Error: f: the call cannot be read; write it like this: ', '');
    expect(example).toBe("tool_call(text='…', on=True, unit='it\\'s', n=1)");
    expect(parseToolCall(example)).toEqual({ text: '…', on: true, unit: "it's", n: 1 });
    expect(error?.code).toBe('ERR_TOOL_CALL_INVALID');
    const json = (await run([tool], 'f', undefined, { callForm: 'json' })).content.replace(/^.*this: /, '');
    expect(parseTextToolCall(json, new Set(['f']))?.arguments).toMatchObject({ 'not an identifier': '…' });
  });
});

describe('arguments', () => {
  test.each<[Record<string, unknown>, string]>([
    [{ city: '北京', days: 'two' }, 'arguments.days must be a number (got "two")'],
    [{ city: '北京', days: '3' }, 'arguments.days must be a number (got "3")'],
    [{ days: 1 }, 'arguments.city is missing: a string'],
    [{ city: null }, 'arguments.city must be a string (got null)'],
    [{ city: 'a', unit: 'kelvin' }, 'arguments.unit must be one of "celsius", "fahrenheit" (got "kelvin")'],
    [{ city: 'a', town: 'b' }, 'arguments.town does not exist: the arguments are city, days, unit'],
    [
      { days: [], unit: 1 },
      'arguments.city is missing: a string; arguments.days must be a number (got []); ' +
        'arguments.unit must be one of "celsius", "fahrenheit" (got 1)',
    ],
  ])('%j', async (args, problem) => {
    const { ok, content, error } = await run([weather], 'get_weather', args);
    expect({ ok, content }).toEqual({ ok: false, content: `Error: get_weather: ${problem}` });
    expect(error).toMatchObject({ code: 'ERR_TOOL_CALL_INVALID', details: { tool: 'get_weather' } });
  });

  test.each<[string, object, unknown, string]>([
    ['minimum', { minimum: 1 }, 0, 'arguments.x must be at least 1 (got 0)'],
    ['exclusiveMaximum', { exclusiveMaximum: 1 }, 1, 'arguments.x must be below 1 (got 1)'],
    ['integer', { type: 'integer' }, 1.5, 'arguments.x must be an integer (got 1.5)'],
    ['types', { type: ['string', 'null'] }, 1, 'arguments.x must be a string or null (got 1)'],
    ['const', { const: 'a' }, 'b', 'arguments.x must be "a" (got "b")'],
    [
      'anyOf',
      { anyOf: [{ type: 'string' }, { enum: [1, 2] }] },
      3,
      'arguments.x must be a string or one of 1, 2 (got 3)',
    ],
    [
      'oneOf',
      { oneOf: [{ required: ['a'] }, { required: ['b'] }] },
      {},
      'arguments.x has none of the allowed forms (got {})',
    ],
    ['pattern', { pattern: '^a' }, 'b', 'arguments.x must match the regular expression ^a (got "b")'],
    ['not', { not: { const: 1 } }, 1, 'arguments.x has a form that is not allowed (got 1)'],
    ['a long value', { type: 'string' }, Array(99).fill(1), 'arguments.x must be a string (got an array)'],
    ['format', { format: 'date' }, 'b', 'arguments.x must be of the format date (got "b")'],
    ['items', { items: { type: 'string' } }, ['a', 2], 'arguments.x[1] must be a string (got 2)'],
    ['nested', { properties: { 'a b': { type: 'null' } } }, { 'a b': 1 }, 'arguments.x["a b"] must be null (got 1)'],
    ['nested false', { additionalProperties: false }, { y: 1 }, 'arguments.x.y must be left out'],
    ['$ref', { $ref: '#/$defs/n' }, 'a', 'arguments.x must be a number (got "a")'],
    ['minItems', { minItems: 1 }, [], 'arguments.x: Array has too few items (0 < 1). (got [])'],
  ])('%s', async (_, schema, x, problem) => {
    const parameters = { type: 'object', properties: { x: schema }, $defs: { n: { type: 'number' } } };
    const execute = () => 'done';
    expect((await run([{ name: 'f', parameters, execute }], 'f', { x })).content).toBe(`Error: f: ${problem}`);
  });

  test('an integer may be written with a fraction of zero, as JSON Schema says', async () => {
    const parameters = { type: 'object', properties: { x: { type: 'integer' } } };
    expect((await run([{ name: 'f', parameters, execute: () => 'done' }], 'f', { x: 3.0 })).content).toBe('done');
  });

  test('of an older draft', async () => {
    const $schema = 'http://json-schema.org/draft-04/schema#';
    const properties = { x: { minimum: 1, exclusiveMinimum: true } };
    const tool = defineTool({ name: 'f', parameters: { $schema, type: 'object', properties }, execute: () => 'done' });
    expect((await run([tool], 'f', { x: 2 })).content).toBe('done');
    expect((await run([tool], 'f', { x: 1 })).ok).toBe(false);
  });

  test('many problems are a few and a number', async () => {
    const names = Array.from({ length: 20 }, (_, i) => `a${i}`);
    const parameters = { type: 'object', required: names };
    const { content } = await run([{ name: 'f', parameters, execute: () => 1 }], 'f', {});
    expect(content).toMatch(/^Error: f: arguments\.a0 is missing; .*arguments\.a4 is missing; and 15 more problems$/);
  });

  test.each([
    ['zod', z.object({ city: z.string(), days: z.coerce.number().default(2) }), /arguments\.city: .*string/],
    ['arktype', type({ city: 'string', days: 'number = 2' }), /arguments\.city: .*string/],
    [
      'valibot',
      v.objectAsync({ city: v.string(), days: v.optional(v.number(), 2) }),
      /arguments\.city: Invalid type: Expected string but received 5/,
    ],
  ])('by %s', async (_, parameters, problem) => {
    let seen: ToolContext | undefined;
    const tool = defineTool({
      name: 'f',
      parameters,
      jsonSchema: { type: 'object' },
      execute: (args, context) => {
        seen = context;
        return args;
      },
    });
    // A copy is as good as the tool.
    const tools = [{ ...tool, name: 'g' }];
    expect((await run(tools, 'g', { city: '北京' })).value).toEqual({ city: '北京', days: 2 });
    expect(seen).toMatchObject({ round: 0, call: { name: 'g', arguments: { city: '北京' } } });
    expect(seen?.call.arguments).not.toHaveProperty('days');
    const { content, error } = await run(tools, 'g', { city: 5 });
    expect(content).toMatch(/^Error: g: /);
    expect(content).toMatch(problem);
    expect(error?.code).toBe('ERR_TOOL_CALL_INVALID');
  });

  test('schemas and validators that fail are no fault of the model', async () => {
    const execute = () => 1;
    const broken = { '~standard': { version: 1, vendor: 'x', validate: trap } } as const;
    const tools = [
      { name: 'a', parameters: { $ref: '#/nowhere' }, execute },
      { name: 'b', parameters: { $ref: '#' }, execute },
      defineTool({ name: 'c', parameters: broken, jsonSchema: {}, execute }),
    ];
    for (const { name } of tools) {
      const { content, error } = await run(tools, name, {});
      expect(content).toMatch(/^Error: .: the arguments cannot be checked: ./);
      expect(error?.code).toBe('ERR_TOOL_FAILED');
    }
  });

  test('that mean the prototype are refused at any depth, with any schema', async () => {
    const execute = (args: object) => Object.keys(args);
    const tools = [{ name: 'a', execute }, defineTool({ name: 'b', parameters: z.looseObject({}), execute })];
    for (const json of ['{"__proto__": {"polluted": 1}}', '{"x": [{"__proto__": 1}]}']) {
      for (const name of ['a', 'b']) {
        const { ok, content } = await run(tools, name, JSON.parse(json));
        expect(ok).toBe(false);
        expect(content).toMatch(/arguments.*__proto__ is not allowed$/);
      }
    }
    // Other names are names.
    expect((await run(tools, 'a', { constructor: 1, hasOwnProperty: 2 })).content).toBe(
      '["constructor", "hasOwnProperty"]',
    );
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
  });

  test('that are nested too deep for anybody fail the call only', async () => {
    const deep = `${'['.repeat(200_000)}${']'.repeat(200_000)}`;
    const parsed = parseTextToolCall(`{"tool": "f", "arguments": {"x": ${deep}}}`, new Set(['f']));
    expect(
      (
        await run(
          giving(() => 'done'),
          'f',
          parsed?.arguments,
        )
      ).ok,
    ).toBe(false);
    expect(
      (
        await run(
          giving(() => 'done'),
          'f',
          { x: trap },
        )
      ).ok,
    ).toBe(false);
  });

  test('with names of Object.prototype are missing where they are not given', async () => {
    const parameters = { type: 'object', required: ['constructor', 'toString'] };
    const { content } = await run([{ name: 'f', parameters, execute: () => 1 }], 'f', {});
    expect(content).toBe('Error: f: arguments.constructor is missing; arguments.toString is missing');
  });

  test('tools may be called as what every object has', async () => {
    for (const name of ['__proto__', 'constructor', 'toString']) {
      const registry = JSON.parse(`{"${name}": {}}`);
      for (const tools of [giving(() => 'done', name), registry]) {
        const set = ToolSet.read(tools);
        expect([...set.names]).toEqual([name]);
        expect(set.get(name)?.name).toBe(name);
      }
      expect(
        (
          await run(
            giving(() => 'done', name),
            name,
            {},
          )
        ).content,
      ).toBe('done');
    }
    expect(Object.keys(Object.prototype)).toEqual([]);
  });

  test("the tool's own: changing them changes nothing else", async () => {
    const given = { list: [1] };
    const execute = ({ list }: Record<string, unknown>, { call }: ToolContext) => {
      (list as number[]).push(2);
      return call.arguments;
    };
    expect((await run(giving(execute), 'f', given)).content).toBe('{"list": [1]}');
    expect(given).toEqual({ list: [1] });
  });

  test('are checked without generating code', () => {
    const script = `
      const { ToolSet } = require('./dist/tools/tool-set.js');
      const parameters = { type: 'object', properties: { x: { type: 'string', pattern: '^a' } } };
      const set = ToolSet.read([{ name: 'f', parameters, execute: () => 'done' }]);
      (async () => {
        for (const x of ['a', 'b']) console.log((await set.run({ name: 'f', arguments: { x }, raw: '' }, { round: 0 })).ok);
      })();`;
    const args = ['--disallow-code-generation-from-strings', '-e', script];
    const output = execFileSync(process.execPath, args, { cwd: join(__dirname, '..'), encoding: 'utf8' });
    expect(output).toBe('true\nfalse\n');
  });
});

test('the built-in model calls a tool and puts its result into words', async () => {
  const model = await loadModel();
  const execute = () => ({ weather: '晴', temperature: 21 });
  const set = ToolSet.read([{ ...weather, parameters: cityOnly, execute }]);
  const chat = model.createChat({ tools: set.shown as ToolDefinition[], temperature: 0 });
  const { toolCall } = await chat.send('北京今天天气怎么样？');
  const { content } = await set.run(toolCall as ToolCall, { round: 0 });
  expect(content).toBe('{"weather": "晴", "temperature": 21}');
  expect((await chat.send(content, { role: 'observation' })).text).toMatch(/北京.*晴.*21/);
  await model.dispose();
});

describe('time', () => {
  const never = () => new Promise<never>(() => {});

  test('a tool that never ends has failed when its time is over', async () => {
    let seen: AbortSignal | undefined;
    const execute = (_: unknown, { signal }: ToolContext) => {
      seen = signal;
      return never();
    };
    const own = await run([{ name: 'f', execute, timeoutMs: 5 }], 'f', {}, { timeoutMs: 2 ** 40 });
    expect(own).toMatchObject({ ok: false, content: 'Error: f took longer than 5 ms' });
    expect(own.error).toMatchObject({ code: 'ERR_TIMEOUT', details: { timeoutMs: 5, tool: 'f' } });
    expect(seen?.aborted).toBe(true);
    expect(seen?.reason).toBe(own.error);
    expect((await run(giving(execute), 'f', {}, { timeoutMs: 6 })).content).toBe('Error: f took longer than 6 ms');
  });

  test("what comes afterwards, an error too, is nobody's", async () => {
    let fail: (error: Error) => void = trap;
    const late = () => new Promise((_, reject) => (fail = reject));
    expect((await run(giving(late), 'f', {}, { timeoutMs: 5 })).error?.code).toBe('ERR_TIMEOUT');
    fail(new Error('late'));
    await new Promise((resolve) => setImmediate(resolve)); // an unhandled rejection would fail the test
  });

  test('a validator that never ends, too; the tool does not run then', async () => {
    let calls = 0;
    let pass: (value: { value: object }) => void = trap;
    const validate = () => new Promise<{ value: object }>((resolve) => (pass = resolve));
    const parameters = { '~standard': { version: 1, vendor: 'x', validate } } as const;
    const tool = defineTool({ name: 'f', parameters, jsonSchema: {}, execute: () => calls++ });
    expect((await run([tool], 'f', {}, { timeoutMs: 5 })).error?.code).toBe('ERR_TIMEOUT');
    pass({ value: {} });
    await new Promise((resolve) => setImmediate(resolve));
    expect(calls).toBe(0);
  });

  test('the signal ends the wait, and fires for the tool', async () => {
    const controller = new AbortController();
    let seen: AbortSignal | undefined;
    const execute = (_: unknown, { signal }: ToolContext) => {
      seen = signal;
      queueMicrotask(() => controller.abort('enough'));
      return never();
    };
    const { signal } = controller;
    await expect(run(giving(execute), 'f', {}, { signal })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
      name: 'AbortError',
      cause: 'enough',
    });
    expect(seen?.reason).toBe('enough');
    let calls = 0;
    await expect(
      run(
        giving(() => calls++),
        'f',
        {},
        { signal },
      ),
    ).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expect(calls).toBe(0);
  });

  test('a tool that throws because the signal fired is an abort, not a failure', async () => {
    const controller = new AbortController();
    const execute = (_: unknown, { signal }: ToolContext) => {
      controller.abort();
      signal.throwIfAborted();
    };
    await expect(run(giving(execute), 'f', {}, { signal: controller.signal })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
    });
  });
});

describe('tools by text', () => {
  const names = new Set(['get_weather', '__proto__']);
  const call = '{"tool": "get_weather", "arguments": {"city": "北京"}}';
  const expected = { name: 'get_weather', arguments: { city: '北京' } };

  test('the prompt lists the tools as JSON and shows how a call is written', () => {
    const prompt = textToolPrompt(ToolSet.read([weather]).shown);
    expect(prompt).toContain('"name": "get_weather"');
    const [form] = /^\{"tool".*$/m.exec(prompt) ?? [];
    expect(parseTextToolCall(form ?? '', new Set(['name']))).toEqual({
      name: 'name',
      arguments: { argument: 'value' },
    });
  });

  test.each([
    call,
    ` \n${call}\n`,
    `\`\`\`json\n${call}\n\`\`\``,
    `\`\`\`\n${call}\n\`\`\``,
    `\`\`\`JSON ${call}\`\`\``,
    '{"arguments": {"city": "北京"}, "tool": "get_weather"}',
  ])('%s is a call', (text) => {
    expect(parseTextToolCall(text, names)).toEqual(expected);
  });

  test.each([
    '',
    'Hello',
    `Sure: ${call}`,
    `${call} There you are.`,
    `${call}\n${call}`,
    `[${call}]`,
    `\`\`\`json\n${call}`,
    '```',
    '``````',
    'null',
    '"get_weather"',
    '{"tool": "get_time", "arguments": {}}',
    '{"tool": "toString", "arguments": {}}',
    '{"tool": "get_weather"}',
    '{"tool": "get_weather", "arguments": null}',
    '{"tool": "get_weather", "arguments": []}',
    '{"tool": "get_weather", "arguments": "{}"}',
    '{"tool": ["get_weather"], "arguments": {}}',
    '{"tool": "get_weather", "arguments": {}, "reason": "x"}',
    '{"tool": "get_weather", "__proto__": {"arguments": {}}}',
    "{'tool': 'get_weather', 'arguments': {}}",
    '{"tool": "get_weather", "arguments": {"city": process.exit()}}',
    `{"tool": "get_weather", "arguments": {"city": "${'x'.repeat(1_000_000)}"}}`,
    '['.repeat(500_000),
  ])('%.60s is an answer in words', (text) => {
    expect(parseTextToolCall(text, names)).toBeUndefined();
  });

  test('large integers stay exact, as text', () => {
    const text =
      '{"tool": "get_weather", "arguments": {"id": 123456789012345678, "n": [-12345678901234567890, 9007199254740991],' +
      ' "s": "123456789012345678 \\" 1", "f": 0.1234567890123456789, "e": 1234567890123456789e-2}}';
    expect(parseTextToolCall(text, names)?.arguments).toEqual({
      id: '123456789012345678',
      n: ['-12345678901234567890', 9007199254740991],
      s: '123456789012345678 " 1',
      f: 0.12345678901234568,
      e: 12345678901234568,
    });
  });

  test('a tool may be called as the prototype is; nothing is polluted', async () => {
    const text = '{"tool": "__proto__", "arguments": {"__proto__": {"polluted": 1}}}';
    const parsed = parseTextToolCall(text, names);
    expect(parsed?.name).toBe('__proto__');
    expect(
      (
        await run(
          giving(() => 1, '__proto__'),
          '__proto__',
          parsed?.arguments,
        )
      ).ok,
    ).toBe(false);
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
  });
});
