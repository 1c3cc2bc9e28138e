import { isPlainObject } from '../common/options.js';
import { dumpJsonLine } from '../common/python-text.js';
import type { Tool } from './tool.js';

/** More arguments would cost a model its context. */
const MOST_ARGUMENTS = 8;

const EXAMPLES: Readonly<Record<string, unknown>> = {
  string: '…',
  integer: 1,
  number: 1.5,
  boolean: true,
  array: [],
  object: {},
  null: null,
};

/** How a call of the tool is written, for a model that wrote one that cannot be read. */
export function exampleCall({ name, parameters }: Tool<never>, form: 'python' | 'json'): string {
  const args = exampleArguments(parameters);
  if (form === 'json') return dumpJsonLine({ tool: name, arguments: Object.fromEntries(args) });
  // Python has no way to write another name before an equals sign.
  const keywords = args.filter(([key]) => /^[\p{L}_][\p{L}\p{N}_]*$/u.test(key));
  return `tool_call(${keywords.map(([key, value]) => `${key}=${pythonLiteral(value)}`).join(', ')})`;
}

function exampleArguments(schema: Tool['parameters']): [string, unknown][] {
  const { properties, required } = schema ?? {};
  if (!isPlainObject(properties)) return [];
  const names = Array.isArray(required) && required.length > 0 ? required : Object.keys(properties);
  return names.slice(0, MOST_ARGUMENTS).map((name) => [String(name), exampleValue(properties[name])]);
}

function exampleValue(schema: unknown): unknown {
  if (!isPlainObject(schema)) return '…';
  if (Object.hasOwn(schema, 'const')) return schema.const;
  if (Array.isArray(schema.enum) && schema.enum.length > 0) return schema.enum[0];
  const [type] = [schema.type].flat();
  return typeof type === 'string' && Object.hasOwn(EXAMPLES, type) ? EXAMPLES[type] : '…';
}

function pythonLiteral(value: unknown): string {
  if (value === null) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (typeof value === 'string')
    return `'${JSON.stringify(value).slice(1, -1).replaceAll('\\"', '"').replaceAll("'", "\\'")}'`;
  return dumpJsonLine(value);
}
