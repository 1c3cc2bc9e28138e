import { parseArgs } from 'node:util';

/** The command line was not understood: exit code 2. */
export class UsageError extends Error {}

/** An option of a command. */
export interface OptionSpec {
  /** `flag` takes no value; `integers` are separated by commas; `texts` may be given again and again. */
  kind: 'flag' | 'text' | 'texts' | 'number' | 'integer' | 'integers';
  /** One letter. */
  short?: string;
  /** What the help calls the value. Default: by kind. */
  value?: string;
  /** The values that are allowed. Default: all. */
  choices?: readonly string[];
  /** The least and the most that a number, or each of several, may be. Default: any. */
  least?: number;
  most?: number;
  /** What a text must match, and what an error calls that. Default: any text. */
  pattern?: { matches: RegExp; expected: string };
  about: string;
}

export type OptionSpecs = Readonly<Record<string, OptionSpec>>;

/** What a command takes, and what its help says. */
export interface CommandSpec {
  name: string;
  /** What stands behind the command's name, such as `<source> [target]`: required and optional arguments. */
  positionals?: string;
  /** The first line is the summary in the list of commands. */
  about: string;
  options: OptionSpecs;
  /** Commands as typed, each with a remark. */
  examples: readonly (readonly [command: string, remark: string])[];
}

interface ValueOfKind {
  flag: boolean;
  text: string;
  texts: string[];
  number: number;
  integer: number;
  integers: number[];
}

/** The values that were given, by option: what was not given is absent. */
export type OptionValues<O extends OptionSpecs> = { -readonly [K in keyof O]?: ValueOfKind[O[K]['kind']] };

export interface ParsedArguments<O extends OptionSpecs> {
  options: OptionValues<O>;
  positionals: string[];
  wantsHelp: boolean;
}

const help: OptionSpec = { kind: 'flag', short: 'h', about: 'Show this help' };

/**
 * Reads a command's arguments.
 *
 * @throws {UsageError} naming the option, with a suggestion where one comes close.
 */
export function parseArguments<S extends CommandSpec>(spec: S, args: readonly string[]): ParsedArguments<S['options']> {
  const specs: OptionSpecs = { ...spec.options, help };
  const { tokens } = parseArgs({
    args: [...args],
    options: Object.fromEntries(
      Object.entries(specs).map(([name, { kind, short }]) => {
        const type: 'boolean' | 'string' = kind === 'flag' ? 'boolean' : 'string';
        return [name, short === undefined ? { type } : { type, short }];
      }),
    ),
    // What is wrong is told here, with a suggestion, and a value may begin with a minus.
    strict: false,
    allowPositionals: true,
    tokens: true,
  });

  const values: Record<string, ValueOfKind[OptionSpec['kind']]> = {};
  const positionals: string[] = [];
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value);
    if (token.kind !== 'option') continue;
    const option = specs[token.name];
    if (!option || !Object.hasOwn(specs, token.name)) {
      throw new UsageError(`unknown option ${token.rawName}${suggestion(token.name, Object.keys(specs), '--')}`);
    }
    const name = `--${token.name}`;
    if (option.kind === 'flag') {
      if (token.value !== undefined) throw new UsageError(`${name} takes no value`);
      values[token.name] = true;
      continue;
    }
    const { value } = token;
    const looksLikeOption = !token.inlineValue && value !== undefined && /^-[^\d.]/.test(value);
    if (value === undefined || looksLikeOption) {
      const hint = looksLikeOption ? `: write ${name}=${value} if that is the value` : '';
      throw new UsageError(`${name} needs a value${hint}`);
    }
    const read = readOption(name, option, value);
    const before = values[token.name];
    values[token.name] = Array.isArray(before) && option.kind === 'texts' ? [...(before as string[]), value] : read;
  }

  const wantsHelp = values.help === true;
  delete values.help;
  if (!wantsHelp) checkPositionals(spec, positionals);
  return { options: values as OptionValues<S['options']>, positionals, wantsHelp };
}

/**
 * Reads the value of an option that takes one.
 *
 * @param name What an error calls the option.
 * @throws {UsageError} for a value that is not allowed.
 */
export function readOption(name: string, option: OptionSpec, value: string): ValueOfKind[OptionSpec['kind']] {
  if (option.choices && !option.choices.includes(value)) {
    throw new UsageError(`${name} must be one of ${option.choices.join(', ')}, got ${JSON.stringify(value)}`);
  }
  if (option.pattern && !option.pattern.matches.test(value)) {
    throw new UsageError(`${name} must be ${option.pattern.expected}, got ${JSON.stringify(value)}`);
  }
  return readValue(option, name, value);
}

/** `: did you mean …?`, or nothing when no candidate comes close. */
export function suggestion(given: string, candidates: readonly string[], prefix = ''): string {
  const [best] = candidates
    .map((candidate) => ({ candidate, distance: editDistance(given.toLowerCase(), candidate) }))
    .filter(({ candidate, distance }) => distance <= Math.max(1, Math.floor(candidate.length / 3)))
    .sort((a, b) => a.distance - b.distance);
  return best ? `: did you mean ${prefix}${best.candidate}?` : '';
}

/** The help of one command. */
export function helpText({ name, positionals, about, options, examples }: CommandSpec): string {
  const rows = Object.entries({ ...options, help }).map(([option, spec]): [string, string] => {
    const short = spec.short === undefined ? '    ' : `-${spec.short}, `;
    const value = spec.kind === 'flag' ? '' : ` ${spec.value ?? defaultPlaceholder[spec.kind]}`;
    return [`  ${short}--${option}${value}`, spec.about];
  });
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  const usage = ['chatglm', name, positionals, '[options]'].filter(Boolean).join(' ');
  return [
    `Usage: ${usage}`,
    '',
    about,
    '',
    'Options:',
    ...rows.map(([left, right]) => `${left.padEnd(width)}${right}`),
    '',
    'Examples:',
    ...examples.flatMap(([command, remark]) => [`  # ${remark}`, `  ${command}`]),
  ].join('\n');
}

const defaultPlaceholder = { text: 'TEXT', texts: 'TEXT', number: 'X', integer: 'N', integers: 'N,N' };

function readValue(option: OptionSpec, name: string, value: string): ValueOfKind[OptionSpec['kind']] {
  switch (option.kind) {
    case 'number':
    case 'integer':
      return readNumber(option, name, value);
    case 'integers':
      return value.split(',').map((part) => readNumber(option, name, part));
    case 'texts':
      return [value];
    default:
      return value;
  }
}

function readNumber({ kind, least, most }: OptionSpec, name: string, value: string): number {
  const number = Number(value);
  const isOfKind = kind === 'number' ? Number.isFinite(number) : Number.isSafeInteger(number);
  const isInRange = number >= (least ?? number) && number <= (most ?? number);
  if (value.trim() !== '' && isOfKind && isInRange) return number;
  const what = kind === 'number' ? 'a number' : 'a whole number';
  throw new UsageError(`${name} must be ${what}${describeRange(least, most)}, got ${JSON.stringify(value)}`);
}

function describeRange(least: number | undefined, most: number | undefined): string {
  if (least === undefined) return most === undefined ? '' : ` of at most ${most}`;
  return most === undefined ? ` of at least ${least}` : ` from ${least} to ${most}`;
}

function checkPositionals(spec: CommandSpec, given: readonly string[]): void {
  const expected = spec.positionals?.split(' ') ?? [];
  const missing = expected.filter((part) => part.startsWith('<'))[given.length];
  if (missing !== undefined) throw new UsageError(`${missing} is missing`);
  const extra = given[expected.length];
  if (extra !== undefined) throw new UsageError(`unexpected argument ${JSON.stringify(extra)}`);
}

/** How many letters to change, add, drop or swap with their neighbour. */
function editDistance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, index) => index)];
  const at = (i: number, j: number) => rows[i]?.[j] ?? Number.POSITIVE_INFINITY;
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    rows.push(row);
    for (let j = 1; j <= b.length; j++) {
      const change = at(i - 1, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1);
      const isSwap = a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      const swap = isSwap ? at(i - 2, j - 2) + 1 : Number.POSITIVE_INFINITY;
      row.push(Math.min(change, swap, at(i - 1, j) + 1, at(i, j - 1) + 1));
    }
  }
  return at(a.length, b.length);
}
