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
  'tool_call(**{"a": 1})',
  'tool_call(a=b)',
  'tool_call(a=Truely)',
  'tool_call(a=1+2)',
  'tool_call(a=1j)',
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
  'tool_call(a={1, 2})',
  'tool_call(a={[]: 1})',
  'tool_call(a={"x" 1})',
  'tool_call(a=[1, 2)',
  "tool_call(a=__import__('os').system('true'))",
  'tool_call(a=1).b',
  'tool_call(a=1); tool_call(b=2)',
  'os.system(a=1)',
  'print(tool_call(a=1))',
  '```json\n{"a": 1}\n```',
  'just text',
])('%s is no call with literals', (text) => {
  expect(parseToolCall(text)).toBeUndefined();
});

test('a key called __proto__ is a key', () => {
  const result = parseToolCall("f(__proto__={'a': 1}, b={'__proto__': 2})");
  expect(JSON.stringify(result)).toBe('{"__proto__":{"a":1},"b":{"__proto__":2}}');
  expect(Object.getPrototypeOf(result)).toBe(Object.prototype);
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

test('long arguments take time in proportion', () => {
  const text = 'x\\n'.repeat(300_000);
  expect(parseToolCall(`f(a='${text}')`)).toEqual({ a: 'x\n'.repeat(300_000) });
});
