import { type CommandSpec, helpText, parseArguments, UsageError } from '../lib/cli/arguments.js';
import { formatBytes, formatFacts, formatMilliseconds, formatTable, significant } from '../lib/cli/format.js';

import { generateOptions, loadOptions, toGenerateOptions, toLoadOptions } from '../lib/cli/model-options.js';
import { forTerminal, note, print, printJson } from '../lib/cli/output.js';
import { checkGenerateOptions } from '../lib/generation/options.js';
import { checkLoadOptions } from '../lib/model/load-options.js';

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
    part: { kind: 'number', least: 0, most: 1, about: 'a part' },
    counts: { kind: 'integers', least: 1, about: 'counts' },
    device: { kind: 'text', pattern: { matches: /^(cpu|gpu)$/, expected: 'cpu or gpu' }, about: 'a device' },
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
  [['a', '--part', '0', '--counts', '1,9', '--device', 'gpu'], { part: 0, counts: [1, 9], device: 'gpu' }, ['a']],
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
  [['a', '--part', '1.01'], '--part must be a number from 0 to 1, got "1.01"'],
  [['a', '--part', '-1'], '--part must be a number from 0 to 1, got "-1"'],
  [['a', '--counts', '3,0'], '--counts must be a whole number of at least 1, got "0"'],
  [['a', '--device', 'tpu'], '--device must be cpu or gpu, got "tpu"'],
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
      --top-p X      a number
  -s, --seed N       a whole number
      --depth N,N    whole numbers
      --type TYPE    one of two
      --stop TEXT    texts
      --part X       a part
      --counts N,N   counts
      --device TEXT  a device
      --json         a flag
  -h, --help         Show this help

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

describe('the command line allows what the API allows', () => {
  const checks = [
    ...Object.entries(generateOptions).map(([name, option]) => {
      return { name, option, check: (value: number) => checkGenerateOptions(toGenerateOptions({ [name]: value })) };
    }),
    ...Object.entries(loadOptions).map(([name, option]) => {
      return { name, option, check: (value: number) => checkLoadOptions(toLoadOptions({ [name]: value })) };
    }),
  ].filter(({ option }) => option.kind === 'number' || option.kind === 'integer');

  test('of all numbers', () => {
    expect(checks.length).toBeGreaterThan(8);
  });

  test.each(checks)('$name', ({ option, check }) => {
    const { kind, least, most } = option as { kind: string; least?: number; most?: number };
    const step = kind === 'integer' ? 1 : 1e-6;
    expect(least).toBeDefined();
    check(least as number);
    expect(() => check((least as number) - step)).toThrow();
    if (most === undefined) return check(Number.MAX_SAFE_INTEGER);
    check(most);
    expect(() => check(most + step)).toThrow();
  });

  test('of devices, types and families', () => {
    for (const device of ['auto', 'cpu', 'cuda', 'cuda:0', 'cuda:15', 'gpu', 'cuda:01', 'cuda:', 'CPU', 'cuda:0\n']) {
      const isAllowed = loadOptions.device.pattern.matches.test(device);
      const check = () => checkLoadOptions(toLoadOptions({ device }));
      if (isAllowed) check();
      else expect(check).toThrow(/device/);
    }
    for (const name of ['quantization', 'kv-cache-type', 'family'] as const) {
      for (const value of loadOptions[name].choices) checkLoadOptions(toLoadOptions({ [name]: value }));
    }
  });
});

describe('a terminal gets no control characters of a file or a model', () => {
  const evil = 'a\x1b]0;title\x07b\x9b2Jc\r\n\td\x7f\u0085你好👋';
  const clean = 'a\ufffd]0;title\ufffdb\ufffd2Jc\n\td\ufffd\ufffd你好👋';

  test('they are replaced', () => {
    expect(forTerminal(evil)).toBe(clean);
  });

  test.each([true, false])('where stdout and stderr are a terminal: %s', (isTTY) => {
    for (const [name, send] of [
      ['stdout', print],
      ['stderr', note],
    ] as const) {
      const stream = process[name];
      const before = stream.isTTY;
      const written = jest.spyOn(stream, 'write').mockImplementation(() => true);
      stream.isTTY = isTTY;
      send(evil);
      if (name === 'stdout') printJson(evil);
      stream.isTTY = before;
      const texts = written.mock.calls.map(([text]) => text);
      written.mockRestore();
      expect(texts[0]).toBe(`${isTTY ? clean : evil}\n`);
      if (name === 'stdout' && !isTTY) expect(JSON.parse(texts[1] as string)).toBe(evil);
    }
  });
});
