import { parseArgs } from 'node:util';

/** The command line was not understood: exit code 2. */
export class UsageError extends Error {}

/** An option of the command line. */
export interface OptionSpec {
  /** `flag` takes no value; `texts` may be given again and again; `bytes` are numbers such as 8GB. */
  kind: 'flag' | 'text' | 'texts' | 'integer' | 'seconds' | 'bytes';
  short?: string;
  /** What the help calls the value. */
  value?: string;
  choices?: readonly string[];
  least?: number;
  most?: number;
  about: string;
}

export type OptionSpecs = Readonly<Record<string, OptionSpec>>;

interface ValueOfKind {
  flag: boolean;
  text: string;
  texts: string[];
  integer: number;
  seconds: number;
  bytes: number;
}

/** The values that were given: what was not given is absent. `seconds` are milliseconds here. */
export type OptionValues<O extends OptionSpecs> = { -readonly [K in keyof O]?: ValueOfKind[O[K]['kind']] };

const PLACEHOLDERS = { flag: '', text: 'TEXT', texts: 'TEXT', integer: 'N', seconds: 'SECONDS', bytes: 'SIZE' };

/**
 * Reads a command line.
 *
 * @throws {UsageError} naming the option, with a suggestion where one comes close.
 */
export function readArguments<O extends OptionSpecs>(
  specs: O,
  args: readonly string[],
): { options: OptionValues<O>; positionals: string[] } {
  const { tokens } = parseArgs({
    args: [...args],
    options: Object.fromEntries(
      Object.entries(specs).map(([name, { kind, short }]) => {
        const type: 'boolean' | 'string' = kind === 'flag' ? 'boolean' : 'string';
        return [name, short === undefined ? { type } : { type, short }];
      }),
    ),
    // What is wrong is told here, in words of this program.
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  const options: Record<string, unknown> = {};
  const positionals: string[] = [];
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value);
    if (token.kind !== 'option') continue;
    const spec = Object.hasOwn(specs, token.name) ? specs[token.name] : undefined;
    if (!spec) throw new UsageError(`unknown option ${token.rawName}${suggestion(token.name, Object.keys(specs))}`);
    const name = `--${token.name}`;
    if (spec.kind === 'flag') {
      if (token.value !== undefined) throw new UsageError(`${name} takes no value`);
      options[token.name] = true;
      continue;
    }
    const { value } = token;
    if (value === undefined || (!token.inlineValue && /^-[^\d.]/.test(value))) {
      throw new UsageError(
        `${name} needs a value${value === undefined ? '' : `: write ${name}=${value} if that is it`}`,
      );
    }
    const read = readValue(name, spec, value);
    options[token.name] =
      spec.kind === 'texts' ? [...((options[token.name] as string[] | undefined) ?? []), value] : read;
  }
  return { options: options as OptionValues<O>, positionals };
}

/** The options as a help lists them. */
export function optionLines(specs: OptionSpecs): string[] {
  const rows = Object.entries(specs).map(([name, spec]): [string, string] => {
    const short = spec.short === undefined ? '    ' : `-${spec.short}, `;
    const value = spec.kind === 'flag' ? '' : ` ${spec.value ?? PLACEHOLDERS[spec.kind]}`;
    return [`  ${short}--${name}${value}`, spec.about];
  });
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  return rows.map(([left, right]) => `${left.padEnd(width)}${right}`);
}

const UNITS: Readonly<Record<string, number>> = {
  '': 1,
  k: 1e3,
  m: 1e6,
  g: 1e9,
  t: 1e12,
  ki: 2 ** 10,
  mi: 2 ** 20,
  gi: 2 ** 30,
  ti: 2 ** 40,
};

function readValue(name: string, spec: OptionSpec, value: string): unknown {
  const { kind, choices } = spec;
  if (choices && !choices.includes(value)) {
    throw new UsageError(`${name} must be one of ${choices.join(', ')}, got ${JSON.stringify(value)}`);
  }
  if (kind === 'bytes') {
    const [, digits = '', unit = ''] = /^(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?$/i.exec(value) ?? [];
    const bytes = Math.round(Number(digits) * (UNITS[unit.toLowerCase()] ?? Number.NaN));
    if (digits !== '' && Number.isSafeInteger(bytes)) return inRange(name, spec, value, bytes);
    throw new UsageError(`${name} must be a size such as 512MB, 8GB or 8GiB, got ${JSON.stringify(value)}`);
  }
  if (kind === 'seconds') {
    const seconds = Number(value);
    if (value.trim() !== '' && seconds >= 0 && seconds <= 2_000_000) return Math.round(seconds * 1000);
    throw new UsageError(`${name} must be a number of seconds, got ${JSON.stringify(value)}`);
  }
  if (kind === 'integer') {
    const number = Number(value);
    if (value.trim() !== '' && Number.isSafeInteger(number)) return inRange(name, spec, value, number);
    throw new UsageError(`${name} must be a whole number, got ${JSON.stringify(value)}`);
  }
  if (value === '') throw new UsageError(`${name} must not be empty`);
  return value;
}

function inRange(name: string, { least, most }: OptionSpec, value: string, number: number): number {
  if (number >= (least ?? number) && number <= (most ?? number)) return number;
  const range = most === undefined ? `at least ${least}` : `from ${least ?? 0} to ${most}`;
  throw new UsageError(`${name} must be ${range}, got ${JSON.stringify(value)}`);
}

/** `: did you mean --port?`, or nothing where no name comes close. */
function suggestion(given: string, names: readonly string[]): string {
  const [best] = names
    .map((name) => ({ name, distance: editDistance(given, name) }))
    .filter(({ name, distance }) => distance <= Math.max(1, Math.floor(name.length / 3)))
    .sort((a, b) => a.distance - b.distance);
  return best ? `: did you mean --${best.name}?` : '';
}

/** How many letters to change, add, drop or swap with their neighbour. */
function editDistance(a: string, b: string): number {
  const rows = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  const at = (i: number, j: number) => rows[i]?.[j] ?? Number.POSITIVE_INFINITY;
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    rows.push(row);
    for (let j = 1; j <= b.length; j++) {
      const change = at(i - 1, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1);
      const swap = a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] ? at(i - 2, j - 2) + 1 : Number.POSITIVE_INFINITY;
      row.push(Math.min(change, swap, at(i - 1, j) + 1, at(i, j - 1) + 1));
    }
  }
  return at(a.length, b.length);
}
