import { readFileSync } from 'node:fs';
import path from 'node:path';
import { brotliDecompressSync } from 'node:zlib';
import { parseToolCall } from '../lib/families/python-call.js';

const fence = '```';

test.each<[string, unknown]>([
  ["tool_call(city='北京')", { city: '北京' }],
  ['tool_call()', {}],
  ['tool_call( )', {}],
  ['get_weather(city="a")', { city: 'a' }],
  ['工具(城市="a")', { 城市: 'a' }],
  ['tool_call(seed=42, range=(0, 100))', { seed: 42, range: [0, 100] }],
  [
    "tool_call(city='北京', n=1.5, flag=True, range=(0, 100), d={'a': None})",
    { city: '北京', n: 1.5, flag: true, range: [0, 100], d: { a: null } },
  ],
  ['tool_call(a=1,)', { a: 1 }],
  ['tool_call (\n  a = 1 ,\n  b = [1, 2,\n 3,],  # why\n)', { a: 1, b: [1, 2, 3] }],
  ['tool_call(a=1, \\\n b=2)', { a: 1, b: 2 }],
  // fences, and what stands around the call
  [`${fence}python\ntool_call(city='x')\n${fence}`, { city: 'x' }],
  [` ${fence}python\ntool_call(city='x')\n${fence}`, { city: 'x' }],
  [`${fence}\ntool_call(city='x')\n${fence}\n`, { city: 'x' }],
  [`${fence}py\r\ntool_call(city='x')\r\n${fence}`, { city: 'x' }],
  [`${fence}python tool_call(city='x')${fence}`, { city: 'x' }],
  [`${fence}tool_call(city='x')${fence}`, { city: 'x' }],
  [`${fence}python\ntool_call(city='x')`, { city: 'x' }],
  [`${fence}python\ntool_call(code='${fence}js')\n${fence}\nand more`, { code: `${fence}js` }],
  ['\n  tool_call(a=1)  \n', { a: 1 }],
  // numbers
  ['f(a=0, b=-1, c=+2, d=--3, e=- 4)', { a: 0, b: -1, c: 2, d: 3, e: -4 }],
  ['f(a=1_000, b=0x1F, c=0o17, d=0b101, e=000)', { a: 1000, b: 31, c: 15, d: 5, e: 0 }],
  ['f(a=.5, b=5., c=1e3, d=-1.5E-2, e=1_0.2_5)', { a: 0.5, b: 5, c: 1000, d: -0.015, e: 10.25 }],
  ['f(a=9007199254740991, b=-9007199254740991)', { a: 9007199254740991, b: -9007199254740991 }],
  ['f(a=110101199003071234, b=-9007199254740993)', { a: '110101199003071234', b: '-9007199254740993' }],
  ['f(a=-0)', { a: 0 }],
  // strings
  [`f(a='"', b="'")`, { a: '"', b: "'" }],
  ["f(a='it\\'s', b='\\\\', c='\\n\\t\\x41\\u4f60\\U0001F600\\101\\0')", { a: "it's", b: '\\', c: '\n\tA你😀A\0' }],
  ["f(a='\\ud83d\\ude00')", { a: '😀' }],
  ["f(a='\\d\\.', b='x\\\ny')", { a: '\\d\\.', b: 'xy' }],
  ["f(a=r'\\d\\'', b=R\"\\n\", c=u'x')", { a: "\\d\\'", b: '\\n', c: 'x' }],
  ["f(a='x' 'y'\n \"z\")", { a: 'xyz' }],
  [`f(a="""one\n'two' ""three""", b='''x''')`, { a: `one\n'two' ""three`, b: 'x' }],
  ["f(a='', b='''''', c='a' '')", { a: '', b: '', c: 'a' }],
  ["f(a='line\nline')", { a: 'line\nline' }],
  ["f(a=')', b='# no comment')", { a: ')', b: '# no comment' }],
  ["f(s='👋🏽')", { s: '👋🏽' }],
  // containers
  [
    'f(a=(), b=[], c={}, d=(1,), e=(1), f=((1, 2),), g=[[]])',
    { a: [], b: [], c: {}, d: [1], e: 1, f: [[1, 2]], g: [[]] },
  ],
  [
    "f(a={1: 'x', True: 2, None: 3, 1.5: 4, 'k': {'n': [1]},})",
    { a: { 1: 'x', true: 2, null: 3, 1.5: 4, k: { n: [1] } } },
  ],
  ["f(a={'k': 1, 'k': 2})", { a: { k: 2 } }],
  ['f(a=true, b=false, c=null)', { a: true, b: false, c: null }],
  ['f(a={1, 2, 1}, b={"x",}, c={1 + 1})', { a: [1, 2], b: ['x'], c: [2] }],
  ['f(a={1.0: 1, 1.5: 2, -2: 3, 1 + 1: 4})', { a: { '1.0': 1, 1.5: 2, '-2': 3, 2: 4 } }],
  ["f(a={110101199003071234: 'x'})", { a: { '110101199003071234': 'x' } }],
  // what Python computes with literals alone
  [
    'f(a=1+2, b=-3*2, c=1 - -1, d=7/2, e=2*(3+4), f=-(1+2), g=+(-1))',
    { a: 3, b: -6, c: 2, d: 3.5, e: 14, f: -3, g: -1 },
  ],
  ['f(a=60*60*24, b=1-2-3, c=8/2/2, d=2+3*4, e=.1+.2, f=6/3)', { a: 86400, b: -4, c: 2, d: 14, e: 0.1 + 0.2, f: 2 }],
  ['f(a=9007199254740991+1, b=9007199254740992-1)', { a: '9007199254740992', b: 9007199254740991 }],
  ['f(a=9007199254740993+0.0, b=0*-1, c=-0.0, d=1e308*1)', { a: 9007199254740992, b: 0, c: 0, d: 1e308 }],
  ['f(a=0x1e+1, b=1e+1, c=1_0+1, d=[1+1, (2)*3])', { a: 31, b: 10, c: 11, d: [2, 6] }],
  ["f(a='x' + 'y', b='x' 'y' + \"z\", c=('a'\n 'b'), d=('x' + 'y') + 'z')", { a: 'xy', b: 'xyz', c: 'ab', d: 'xyz' }],
  ["f(a=f'x', b=rf'\\d', c=F'{{}}', d=fR'' 'y', e=f'\\n')", { a: 'x', b: '\\d', c: '{}', d: 'y', e: '\n' }],
  // dicts for arguments
  ['tool_call(**{"a": 1})', { a: 1 }],
  ["tool_call(b=2, ** {'a': 1, 'x y': None}, c=3)", { b: 2, a: 1, 'x y': null, c: 3 }],
  ['tool_call(**{})', {}],
  ["{'city': '北京', \"n\": (1, 2)}", { city: '北京', n: [1, 2] }],
  ['{"city": "\\u5317\\/京", "n": [1.5e3, true, null], "d": {}}', { city: '北/京', n: [1500, true, null], d: {} }],
  [`${fence}json\n{"a": 1}\n${fence}`, { a: 1 }],
  [`${fence}python\n{"a": 1}\n${fence}\n好的`, { a: 1 }],
  [' {} ', {}],
  // comments, and what else stands around
  [`${fence}python\n# 查询天气\ntool_call(city='北京')\n${fence}`, { city: '北京' }],
  [`# it's\n\n${fence}python3\n# (\n#\n  tool_call(city='北京') # )\n# end\n${fence}`, { city: '北京' }],
  ["tool_call(city='北京')  # 北京", { city: '北京' }],
  ["tool_call(  # a\n city='北京', # b\n # c\n)", { city: '北京' }],
  ['\ufefftool_call(a=1)', { a: 1 }],
  // further calls, which are left alone
  ['tool_call(a=1); tool_call(b=2)', { a: 1 }],
  ['tool_call(a=1)\n\n# then\ntool_call(b=2)\nprint()', { a: 1 }],
  [`${fence}python\ntool_call(a=1)\n${fence}\n${fence}python\ntool_call(b=${fence}`, { a: 1 }],
  ['tool_call(a=1);', { a: 1 }],
])('%s', (text, expected) => {
  expect(parseToolCall(text)).toEqual(expected);
});

test.each([
  '',
  'tool_call',
  'tool_call(',
  "tool_call('北京')",
  'tool_call(a)',
  'tool_call(a=)',
  'tool_call(a=1',
  'tool_call(a=1 b=2)',
  'tool_call(,)',
  'tool_call(a=1,,)',
  'tool_call(a=1, a=2)',
  'tool_call(a=b)',
  'tool_call(a=Truely)',
  'tool_call(a=1j)',
  'tool_call(a=1//2)',
  'tool_call(a=2**8)',
  'tool_call(a=2**99999999999)',
  'tool_call(a=5%2)',
  'tool_call(a=1<2)',
  'tool_call(a=~1)',
  'tool_call(a=1 if 2 else 3)',
  'tool_call(a=1/0)',
  'tool_call(a=0.0/0.0)',
  'tool_call(a=1e308*10)',
  'tool_call(a=9007199254740993/3)',
  'tool_call(a=1+)',
  'tool_call(a=*1)',
  'tool_call(a=1 2)',
  "tool_call(a='x' * 3)",
  "tool_call(a='x' + 1)",
  "tool_call(a=-'x')",
  'tool_call(a=-True)',
  'tool_call(a=True+1)',
  'tool_call(a=[1]+[2])',
  'tool_call(a=-[1])',
  'tool_call(a={1, 2: 3})',
  'tool_call(a={1: 2, 3})',
  'tool_call(a={[1]})',
  'tool_call(**{"a": 1}, a=2)',
  'tool_call(**{1: 2})',
  'tool_call(**[1])',
  'tool_call(**a)',
  'tool_call(*[1])',
  '{"a": 1} + 2',
  '{"a": 1}, {"b": 2}',
  '{"a"}',
  '{1: 2}',
  '{"a": b}',
  '{"a": 1',
  '[{"a": 1}]',
  '"a"',
  'tool_call(a=1) tool_call(b=2)',
  'tool_call(a=1)\ntool_call(b=x)',
  'tool_call(a=1)\ntool_call(b=',
  'tool_call(a=1)\n好的',
  'tool_call(a=1)(b=2)',
  'tool_call(a=1)[0]',
  'tool_call(a=1) + 1',
  '# tool_call(a=1)',
  'result = tool_call(a=1)',
  'await tool_call(a=1)',
  '\u200btool_call(a=1)',
  "tool_call(a=rb'x')",
  "tool_call(a='x' b'y')",
  "tool_call(a=f'{{}')",
  "tool_call(a=f'{1+1}')",
  'tool_call(a=f\'{"x"}\')',
  "tool_call(a=rf'\\{x}')",
  "tool_call(a=ur'x')",
  'tool_call(a=lambda: 1)',
  'tool_call(a=[x for x in (1,)])',
  'tool_call(a=(b:=1))',
  'tool_call(a=...)',
  'tool_call(a=007)',
  'tool_call(a=1__0)',
  'tool_call(a=0x)',
  'tool_call(a=1.2.3)',
  'tool_call(a=1e999)',
  'tool_call(a=nan)',
  "tool_call(a='x)",
  "tool_call(a='''x'')",
  "tool_call(a='x\\",
  "tool_call(a=r'x\\",
  "tool_call(a='\\x4')",
  "tool_call(a='\\u12')",
  "tool_call(a='\\U00110000')",
  "tool_call(a='\\N{BULLET}')",
  "tool_call(a=b'x')",
  "tool_call(a=f'{x}')",
  'tool_call(a={[]: 1})',
  'tool_call(a={"x" 1})',
  'tool_call(a=[1, 2)',
  "tool_call(a=__import__('os').system('true'))",
  'tool_call(a=1).b',
  'os.system(a=1)',
  'print(tool_call(a=1))',
  'just text',
])('%s is no call with literals', (text) => {
  expect(parseToolCall(text)).toBeUndefined();
});

test('a key called __proto__ is a key', () => {
  const result = parseToolCall("f(__proto__={'a': 1}, b={'__proto__': 2})");
  expect(JSON.stringify(result)).toBe('{"__proto__":{"a":1},"b":{"__proto__":2}}');
  expect(Object.getPrototypeOf(result)).toBe(Object.prototype);
});

test('a tool may be called by its name, whatever that is', () => {
  expect(parseToolCall('text-to-speech(a=1)', 'text-to-speech')).toEqual({ a: 1 });
  expect(parseToolCall('search web (a=1)', 'search web')).toEqual({ a: 1 });
  expect(parseToolCall('get_weather(a=1)', 'get')).toEqual({ a: 1 });
  expect(parseToolCall('tool_call(a=1)', 'search web')).toEqual({ a: 1 });
  expect(parseToolCall('tool_call(a=1)', '')).toEqual({ a: 1 });
  expect(parseToolCall('text-to-speech(a=1)')).toBeUndefined();
  expect(parseToolCall('search the web(a=1)', 'search web')).toBeUndefined();
});

test('numbers have as many digits as in Python', () => {
  expect(parseToolCall(`f(a=${'9'.repeat(4300)})`)).toEqual({ a: '9'.repeat(4300) });
  expect(parseToolCall(`f(a=${'9'.repeat(4300)}+1)`)).toBeUndefined();
  expect(parseToolCall(`f(a=${'9'.repeat(4301)})`)).toBeUndefined();
  expect(parseToolCall(`f(a=-${'9'.repeat(4000)}*${'9'.repeat(4000)})`)).toBeUndefined();
});

test('nesting is bounded', () => {
  const nested = (depth: number) => `f(a=${'['.repeat(depth)}${']'.repeat(depth)})`;
  expect(parseToolCall(nested(64))).toBeDefined();
  expect(parseToolCall(nested(65))).toBeUndefined();
  expect(parseToolCall(`f(a=${'['.repeat(1_000_000)}`)).toBeUndefined();
});

test('any beginning of a call is no call', () => {
  const call = "tool_call(city='北京', n=-1.5, range=(0, 100), d={'a': None, \"b\": [True]})";
  for (let length = 0; length < call.length; length++) expect(parseToolCall(call.slice(0, length))).toBeUndefined();
  expect(parseToolCall(call)).toBeDefined();
});

test('random expressions are read as Python reads them', () => {
  const file = path.join(__dirname, 'fixtures', 'python-literals', 'calls.jsonl.br');
  const lines = brotliDecompressSync(readFileSync(file)).toString().trimEnd().split('\n');
  let read = 0;
  for (const line of lines) {
    const [call, ...values] = JSON.parse(line) as [string, ...unknown[]];
    if (values.length > 0) read++;
    expect([call, parseToolCall(call)?.a]).toEqual([call, values[0]]);
    expect([call, parseToolCall(call) !== undefined]).toEqual([call, values.length > 0]);
  }
  expect([lines.length, read > 1000]).toEqual([4000, true]);
});

// What goes over a text again and again, or calls itself for each bracket, does not come to an end with these.
describe('a text of any length', () => {
  const count = 1_000_000;
  const literals: [string, string, unknown][] = [
    ['escapes', `'${'x\\n'.repeat(count)}'`, 'x\n'.repeat(count)],
    ['quotes', `'''${`'"`.repeat(count)}x'''`, `${`'"`.repeat(count)}x`],
    ['strings', `('a'${" 'a'".repeat(count)})`, 'a'.repeat(count + 1)],
    ['sums of strings', `'a'${"+'a'".repeat(count)}`, 'a'.repeat(count + 1)],
    ['sums', `1${'+1'.repeat(count)}`, count + 1],
    ['products', `1${'*1'.repeat(count)}`, 1],
    ['signs', `${'- '.repeat(count)}1`, 1],
    ['spaces', `${' '.repeat(count)}1${' '.repeat(count)}`, 1],
    ['comments', `${'#\n'.repeat(count)}1`, 1],
    ['joined lines', `${'\\\n'.repeat(count)}1`, 1],
    ['items', `[${'1,'.repeat(count)}]`, Array(count).fill(1)],
    ['doubled braces', `f'${'{{'.repeat(count)}'`, '{'.repeat(count)],
  ];
  test.each(literals)('%s', (_, literal, expected) => {
    const result = parseToolCall(`f(a=${literal})`)?.a;
    // As text: Jest compares a million entries for many seconds.
    expect(JSON.stringify(result) === JSON.stringify(expected)).toBe(true);
  });

  test.each<[string, string]>([
    ['brackets', `f(a=${'['.repeat(count)}`],
    ['parentheses', `f(a=${'('.repeat(count)}1${')'.repeat(count)})`],
    ['braces', `f(a=${'{1:'.repeat(count)}`],
    ['braces without a call', '{"a":'.repeat(count)],
    ['spaces and no call', ' '.repeat(10 * count)],
    ['spaces behind a call', `f()${' '.repeat(10 * count)}x`],
    ['digits', `f(a=${'9'.repeat(10 * count)})`],
    ['digits of a fraction', `f(a=.${'9'.repeat(10 * count)})`],
    ['hexadecimal digits', `f(a=0x${'f'.repeat(10 * count)})`],
    ['underscores', `f(a=1${'_'.repeat(10 * count)})`],
    ['letters for a name', 'f'.repeat(10 * count)],
    ['letters for a key', `f(${'f'.repeat(10 * count)}`],
    ['letters for a value', `f(a=${'f'.repeat(10 * count)})`],
    ['factors', `f(a=${'9*'.repeat(count)}9)`],
    ['large terms', `f(a=${'9'.repeat(4000)}${'*9'.repeat(count)})`],
    ['a string that stays open', `f(a='${'\\'.repeat(2 * count)}`],
    ['strings that stay open', `f(a=${"''''".repeat(count)}`],
    ['calls', `${'f();'.repeat(count)}x`],
  ])('%s: no call', (_, text) => {
    expect(parseToolCall(text)).toBeUndefined();
  });
});
