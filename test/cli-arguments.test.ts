import { type CommandSpec, helpText, parseArguments, UsageError } from '../lib/cli/arguments.js';
import { formatBytes, formatFacts, formatMilliseconds, formatTable, significant } from '../lib/cli/format.js';

const spec = {
  name: 'try',
  positionals: '<source> [target]',
  about: 'Try it.',
  options: {
    'top-p': { kind: 'number', about: 'a number' },
    seed: { kind: 'integer', short: 's', about: 'a whole number' },
    depth: { kind: 'integers', about: 'whole numbers' },
    type: { kind: 'text', value: 'TYPE', choices: ['f16', 'q4_0'], about: 'one of two' },
    stop: { kind: 'texts', about: 'texts' },
    json: { kind: 'flag', about: 'a flag' },
  },
  examples: [['chatglm try a', 'the usual']],
} as const satisfies CommandSpec;

test.each<[string[], unknown, string[]]>([
  [['a'], {}, ['a']],
  [['a', '--top-p', '0.5', 'b', '--json'], { 'top-p': 0.5, json: true }, ['a', 'b']],
  [['--top-p=-1e-3', 'a'], { 'top-p': -0.001 }, ['a']],
  [['a', '--seed', '-1'], { seed: -1 }, ['a']],
  [['a', '-s7'], { seed: 7 }, ['a']],
  [['a', '-s', '7', '-s', '8'], { seed: 8 }, ['a']],
  [['a', '--depth', '0,2048'], { depth: [0, 2048] }, ['a']],
  [['a', '--stop', 'x', '--stop', '', '--stop=--y'], { stop: ['x', '', '--y'] }, ['a']],
  [['a', '--type', 'f16'], { type: 'f16' }, ['a']],
  [['--', '--json', '-'], {}, ['--json', '-']],
])('%j', (args, options, positionals) => {
  expect(parseArguments(spec, args)).toEqual({ options, positionals, wantsHelp: false });
});

test.each<[string[], string]>([
  [[], '<source> is missing'],
  [['a', 'b', 'c'], 'unexpected argument "c"'],
  [['a', '--tpo-p', '1'], 'unknown option --tpo-p: did you mean --top-p?'],
  [['a', '--jsn'], 'unknown option --jsn: did you mean --json?'],
  [['a', '--temperature', '1'], 'unknown option --temperature'],
  [['a', '--constructor'], 'unknown option --constructor'],
  [['a', '-x'], 'unknown option -x'],
  [['a', '--json=yes'], '--json takes no value'],
  [['a', '--seed'], '--seed needs a value'],
  [['a', '--stop', '--json'], '--stop needs a value: write --stop=--json if that is the value'],
  [['a', '--seed', '1.5'], '--seed must be a whole number, got "1.5"'],
  [['a', '--seed='], '--seed must be a whole number, got ""'],
  [['a', '--top-p', 'much'], '--top-p must be a number, got "much"'],
  [['a', '--top-p', 'Infinity'], '--top-p must be a number, got "Infinity"'],
  [['a', '--depth', '1,,2'], '--depth must be a whole number, got ""'],
  [['a', '--type', 'q5'], '--type must be one of f16, q4_0, got "q5"'],
])('%j is not understood', (args, message) => {
  expect(() => parseArguments(spec, args)).toThrow(new UsageError(message));
});

test('help needs nothing else', () => {
  expect(parseArguments(spec, ['-h']).wantsHelp).toBe(true);
  expect(parseArguments(spec, ['a', 'b', 'c', '--help']).wantsHelp).toBe(true);
  expect(helpText(spec)).toBe(`Usage: chatglm try <source> [target] [options]

Try it.

Options:
      --top-p X    a number
  -s, --seed N     a whole number
      --depth N,N  whole numbers
      --type TYPE  one of two
      --stop TEXT  texts
      --json       a flag
  -h, --help       Show this help

Examples:
  # the usual
  chatglm try a`);
});

test('numbers for people', () => {
  expect([0, 999, 1000, 12_345, 999_499, 999_500, 3_500_000_000].map(formatBytes)).toEqual([
    '0 B',
    '999 B',
    '1.00 kB',
    '12.3 kB',
    '999 kB',
    '1.00 MB',
    '3.50 GB',
  ]);
  expect([0.123, 9.876, 12.34, 1234.5, Number.NaN].map(significant)).toEqual(['0.12', '9.88', '12.3', '1235', '-']);
  expect([0.4, 850, 12_500].map(formatMilliseconds)).toEqual(['0 ms', '850 ms', '12.5 s']);
});

test('columns line up', () => {
  expect(
    formatTable([
      ['Name', 'n'],
      ['x', '100'],
    ]),
  ).toBe('Name    n\nx     100');
  expect(
    formatFacts([
      ['A', '1'],
      ['Unknown', undefined],
      ['Long', '2'],
    ]),
  ).toBe('A     1\nLong  2');
});
