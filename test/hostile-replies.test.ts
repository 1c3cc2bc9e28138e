import { type ParsedReply, ReplyParser } from '../lib/chat/reply.js';
import { strip } from '../lib/common/python-text.js';

// Whatever a model writes: nothing is thrown, nothing runs, no text is lost, and how the reply is cut into pieces changes
// nothing. What each reply is stands in the table, by hand.

const fence = '```';
const tools = ['get_weather', '/text-to-speech', 'search web', '天气:查询', 'f'];

interface Expected {
  tools?: string[];
  interpreter?: boolean;
  /** What is shown; all of the reply, stripped, where nothing else is said and there is no call. */
  text?: string;
  /** The called tool, and its arguments where they can be read. */
  call?: [name: string, given?: unknown];
  code?: string;
}

const call = (content: string, name = 'f') => `${name}\n ${content}`;
const fenced = (content: string, name = 'f') => call(`${fence}python\n${content}\n${fence}`, name);
const hello = { text: '你好' };

const table: [what: string, reply: string, expected: Expected][] = [
  // nothing, or nearly
  ['nothing', '', { text: '' }],
  ['white space', ' \t\n\u3000\n ', { text: '' }],
  ['line breaks', '\n'.repeat(50), { text: '' }],
  ['a byte order mark', '\ufeff', { text: '\ufeff' }],
  ['zero-width characters', '\u200b\u200d\n\u2060', { text: '\u200b\u200d\n\u2060' }],
  ['a NUL', 'a\0b', {}],
  ['a lone surrogate', 'a\ud83d', {}],
  ['controls', '\x1b[2J\x07', {}],
  ['right-to-left marks', '\u202eabc\u202c', {}],
  ['combining marks', `a${'\u0301'.repeat(300)}`, {}],
  // names
  ['a name alone', 'f', {}],
  ['a name and a line break', 'f\n', { text: '', call: ['f'] }],
  [
    'a declared name with a slash',
    fenced("tool_call(text='你好')", '/text-to-speech'),
    { call: ['/text-to-speech', hello] },
  ],
  ['a declared name with a space', fenced("tool_call(text='你好')", 'search web'), { call: ['search web', hello] }],
  ['a declared name with a colon', fenced("tool_call(text='你好')", '天气:查询'), { call: ['天气:查询', hello] }],
  ['white space around a name', ` \t f \r\n ${fence}python\ntool_call()\n${fence}`, { call: ['f', {}] }],
  ['a line break before a name', `\n${fenced('tool_call()')}`, {}],
  ['a byte order mark before a name', `\ufeff${fenced('tool_call()')}`, {}],
  ['a zero-width space in a name', fenced('tool_call()', 'f\u200b'), {}],
  ['a look-alike of a name', fenced('tool_call()', 'ｆ'), { call: ['ｆ', {}] }],
  ['a name in capitals', fenced('tool_call()', 'GET_WEATHER'), { call: ['GET_WEATHER', {}] }],
  ['a name of the prototype', fenced('tool_call()', '__proto__'), { call: ['__proto__', {}] }],
  ['another one', fenced('tool_call()', 'constructor'), { call: ['constructor', {}] }],
  ['a path for a name', fenced('tool_call()', '../../etc/passwd'), {}],
  ['a name in quotes', fenced('tool_call()', '"f"'), {}],
  ['a very long name', fenced('tool_call()', 'n'.repeat(5000)), {}],
  ['a name and a dot', fenced('tool_call()', '.'), { call: ['.', {}] }],
  ['a name and text', 'f\n你好', { call: ['f'] }],
  ['a name that nobody declared and text', 'g\n你好', {}],
  ['such a name and another fence', `g\n${fence}js\n1\n${fence}`, {}],
  ['such a name and Python that is no call', `g\n${fence}python\nprint(1)\n${fence}`, {}],
  ['such a name and a call', `g\n${fence}python\ntool_call(a=1)\n${fence}`, { call: ['g', { a: 1 }] }],
  ['a call without tools', fenced('tool_call(a=1)'), { tools: [], interpreter: false }],
  ['a call with the interpreter alone', fenced('tool_call(a=1)'), { tools: [] }],
  ['code without an interpreter', 'interpreter\n print(1)', { interpreter: false }],
  ['code without anything', fenced('print(1)', 'interpreter'), { tools: [], interpreter: false }],
  // tokens that are none
  ["a role's token in text", '你好<|user|>\n ', {}],
  ["a role's token before a name", `<|assistant|>${fenced('tool_call()')}`, {}],
  [
    "a role's token within arguments",
    fenced("tool_call(a='<|observation|>')"),
    { call: ['f', { a: '<|observation|>' }] },
  ],
  ['the end of a text', '</s>', {}],
  ['[gMASK]sop', '[gMASK]sop<|system|>\n x', {}],
  ["THUDM's placeholder", '[[训练时间]]', { text: '2023年' }],
  ['half of it', 'a [[训练', {}],
  ['it within arguments', fenced("tool_call(a='[[训练时间]]')"), { call: ['f', { a: '[[训练时间]]' }] }],
  // fences
  ['no closing fence', call(`${fence}python\ntool_call(a=1)`), { call: ['f', { a: 1 }] }],
  ['no opening fence', call(`tool_call(a=1)\n${fence}`), { call: ['f', { a: 1 }] }],
  ['a fence and nothing', call(`${fence}python`), { call: ['f'] }],
  ['fences and nothing', call(`${fence}python\n${fence}`), { call: ['f'] }],
  ['fences of four', call('````python\ntool_call(a=1)\n````'), { call: ['f'] }],
  ['tildes', call('~~~python\ntool_call(a=1)\n~~~'), { call: ['f'] }],
  [
    'a fence in an argument',
    fenced(`tool_call(a='${fence}\\n${fence}python')`),
    { call: ['f', { a: '```\n```python' }] },
  ],
  [
    'lines of fences in an argument',
    fenced(`tool_call(a='''\n${fence}\nx\n${fence}\n''')`),
    { call: ['f', { a: '\n```\nx\n```\n' }] },
  ],
  ['CRLF', 'f\r\n ```python\r\ntool_call(a=1,\r\n b=2)\r\n```\r\n', { call: ['f', { a: 1, b: 2 }] }],
  ['tabs', 'f\n\t```python\n\ttool_call(\ta\t=\t1\t)\n\t```', { call: ['f', { a: 1 }] }],
  ['full-width brackets', fenced('tool_call（a=1）'), { call: ['f'] }],
  ['a zero-width space in a call', fenced('tool_call(\u200ba=1)'), { call: ['f'] }],
  ['no-break spaces', fenced('tool_call(a\u00a0=\u00a01)'), { call: ['f', { a: 1 }] }],
  ['text behind the fence', `${fenced('tool_call(a=1)')}\n好的。`, { call: ['f', { a: 1 }] }],
  ['text before the fence', call(`好的。\n${fence}python\ntool_call(a=1)\n${fence}`), { call: ['f'] }],
  ['text behind the call', call('tool_call(a=1) 好的。'), { call: ['f'] }],
  // quotes
  ['a quote that stays open', fenced("tool_call(a='x)"), { call: ['f'] }],
  ['quotes in quotes', fenced(`tool_call(a="it's", b='"', c="\\"'")`), { call: ['f', { a: "it's", b: '"', c: `"'` }] }],
  ['quotes that are not escaped', fenced("tool_call(a='it's')"), { call: ['f'] }],
  ['curly quotes', fenced('tool_call(a=“x”)'), { call: ['f'] }],
  ['quotes of three', fenced(`tool_call(a="""'x' "y" \\"""z""")`), { call: ['f', { a: `'x' "y" """z` }] }],
  ['a call in a string', fenced("tool_call(a='tool_call(b=1)')"), { call: ['f', { a: 'tool_call(b=1)' }] }],
  ['a backslash at the end', fenced("tool_call(a='\\')"), { call: ['f'] }],
  ['a character beyond all', fenced("tool_call(a='\\U00110000')"), { call: ['f'] }],
  ['half a character', fenced("tool_call(a='\\ud83d')"), { call: ['f', { a: '\ud83d' }] }],
  ['a comment sign in a string', fenced("tool_call(a='#', b=1) # '"), { call: ['f', { a: '#', b: 1 }] }],
  // literals
  ['sums', fenced('tool_call(a=1+2*3, b=-(4-5)/2)'), { call: ['f', { a: 7, b: 0.5 }] }],
  ['strings joined', fenced("tool_call(a='x' 'y' + 'z')"), { call: ['f', { a: 'xyz' }] }],
  ['a huge number', fenced(`tool_call(a=${'9'.repeat(40)})`), { call: ['f', { a: '9'.repeat(40) }] }],
  ['a number too huge', fenced(`tool_call(a=${'9'.repeat(5000)})`), { call: ['f'] }],
  ['a power', fenced('tool_call(a=9**9**9**9)'), { call: ['f'] }],
  ['a float too large', fenced('tool_call(a=1e400)'), { call: ['f'] }],
  ['a tiny float', fenced('tool_call(a=1e-400)'), { call: ['f', { a: 0 }] }],
  ['infinity and no number', fenced("tool_call(a=float('inf'), b=NaN)"), { call: ['f'] }],
  ['a division by zero', fenced('tool_call(a=1/0)'), { call: ['f'] }],
  ['a string many times over', fenced("tool_call(a='x'*1000000000)"), { call: ['f'] }],
  ['digits of another script', fenced('tool_call(a=１２)'), { call: ['f'] }],
  [
    'nested values',
    fenced("tool_call(a={'b': [(1, {'c': None})]})"),
    { call: ['f', { a: { b: [[1, { c: null }]] } }] },
  ],
  ['brackets without an end', fenced(`tool_call(a=${'['.repeat(5000)}`), { call: ['f'] }],
  ['brackets too deep', fenced(`tool_call(a=${'['.repeat(500)}${']'.repeat(500)})`), { call: ['f'] }],
  ['brackets that do not match', fenced('tool_call(a=[1, (2])'), { call: ['f'] }],
  ['JSON for a call', call('{"a": [1, true, null]}'), { call: ['f', { a: [1, true, null] }] }],
  ['JSON in a fence', call(`${fence}json\n{"a": "\\/"}\n${fence}`), { call: ['f', { a: '/' }] }],
  ['a list for a call', call('[1, 2]'), { call: ['f'] }],
  ['bytes', fenced("tool_call(a=b'x')"), { call: ['f'] }],
  ['a field', fenced("tool_call(a=f'{1}')"), { call: ['f'] }],
  ['a trailing comma', fenced('tool_call(a=1,)'), { call: ['f', { a: 1 }] }],
  // keys
  ['a key twice', fenced('tool_call(a=1, a=2)'), { call: ['f'] }],
  ['no key', fenced("tool_call('北京')"), { call: ['f'] }],
  ['a dict of keys', fenced("tool_call(**{'a b': 1}, c=2)"), { call: ['f', { 'a b': 1, c: 2 }] }],
  [
    'keys of the prototype',
    fenced("tool_call(constructor=1, toString={'hasOwnProperty': 2})"),
    {
      call: ['f', { constructor: 1, toString: { hasOwnProperty: 2 } }],
    },
  ],
  ['__proto__', fenced("tool_call(__proto__={'hit': 1})"), { call: ['f', JSON.parse('{"__proto__":{"hit":1}}')] }],
  [
    '__proto__ deeper',
    call('{"a": {"__proto__": {"hit": 1}}}'),
    {
      call: ['f', JSON.parse('{"a":{"__proto__":{"hit":1}}}')],
    },
  ],
  // what would run
  ['an import', fenced("tool_call(a=__import__('os').system('x'))"), { call: ['f'] }],
  ['an import for a call', fenced("__import__('os').system('x')"), { call: ['f'] }],
  ['JavaScript', fenced('tool_call(a=(() => { globalThis.hit = 1 })())'), { call: ['f'] }],
  ['a template', fenced(`tool_call(a=\`\${globalThis.hit = 1}\`)`), { call: ['f'] }],
  ['an assignment among the values', fenced('tool_call(a=globalThis.hit)'), { call: ['f'] }],
  ['a lambda', fenced('tool_call(a=lambda: 1)'), { call: ['f'] }],
  ['a comprehension', fenced('tool_call(a=[x for x in (1, 2)])'), { call: ['f'] }],
  ['an attribute', fenced("tool_call(a=''.__class__)"), { call: ['f'] }],
  ['an index', fenced('tool_call(a=[1][0])'), { call: ['f'] }],
  ['a walrus', fenced('tool_call(a=(b:=1))'), { call: ['f'] }],
  ['another statement', fenced("tool_call(a=1)\nimport os\nos.remove('x')"), { call: ['f'] }],
  [
    'exec with a literal is a call with a literal',
    fenced("exec(code='import os')"),
    { call: ['f', { code: 'import os' }] },
  ],
  // comments
  ['a comment before the call', fenced("# 查询天气\ntool_call(city='北京')"), { call: ['f', { city: '北京' }] }],
  ['a comment behind the call', call("tool_call(city='北京')  # 北京"), { call: ['f', { city: '北京' }] }],
  ['comments alone', fenced('# tool_call(a=1)'), { call: ['f'] }],
  // more than one
  ['two calls', fenced('tool_call(a=1)\ntool_call(b=2)'), { call: ['f', { a: 1 }] }],
  ['two calls in one line', fenced('tool_call(a=1); tool_call(b=2)'), { call: ['f', { a: 1 }] }],
  [
    'two calls in two fences',
    `${fenced('tool_call(a=1)')}\n${fence}python\ntool_call(b=2)\n${fence}`,
    {
      call: ['f', { a: 1 }],
    },
  ],
  [
    'a call and another name',
    `${fenced('tool_call(a=1)')}\n${fenced('tool_call(b=2)', 'get_weather')}`,
    {
      call: ['f', { a: 1 }],
    },
  ],
  ['a call of a call', fenced('tool_call(a=tool_call(b=1))'), { call: ['f'] }],
  // what breaks off
  ['a call that breaks off', call(`${fence}python\ntool_call(city='北`), { call: ['f'] }],
  ['a name and a call that breaks off', 'g\n tool_ca', {}],
  ['a fence that breaks off', 'g\n ```pyth', {}],
  // code
  ['code', fenced("import os\nos.remove('x')", 'interpreter'), { code: "import os\nos.remove('x')" }],
  ['code without a fence', 'interpreter\n print(1)\n', { code: 'print(1)' }],
  ['code without an end', `interpreter\n ${fence}python\nprint(`, { code: 'print(' }],
  ['no code at all', 'interpreter\n', { code: '' }],
  ['fences around no code', `interpreter\n ${fence}python\n${fence}`, { code: '' }],
  [
    'code with a fence in a string',
    fenced(`a = '''\n${fence}\n'''`, 'interpreter'),
    { code: `a = '''\n${fence}\n'''` },
  ],
  ['code and text', `${fenced('a = 1', 'interpreter')}\n这是代码。`, { code: 'a = 1' }],
];

const letters = (text: string) => [...text];

/** A fixed sequence of numbers, so that a failure can be repeated. */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state * 48271) % 2147483647;
    return state % below;
  };
}

/** Cuts between characters, as the decoder does. */
function cut(text: string, random: (below: number) => number): string[] {
  const pieces: string[] = [];
  const longest = 1 + random(random(2) === 0 ? 3 : 40);
  const characters = letters(text);
  for (let at = 0; at < characters.length; ) {
    const end = at + random(longest + 1); // empty ones, too
    pieces.push(characters.slice(at, end).join(''));
    at = end;
  }
  return pieces;
}

interface Setting {
  tools: string[];
  interpreter: boolean;
}

function parse(segments: readonly (readonly string[])[], setting: Setting): ParsedReply {
  const parser = new ReplyParser('chatglm3', setting);
  let text = '';
  segments.forEach((pieces, index) => {
    if (index > 0) text += parser.newSegment();
    for (const piece of pieces) text += parser.push(piece);
  });
  const parsed = parser.finish();
  return { ...parsed, text: text + parsed.text };
}

test('the table is long', () => {
  expect(table.length).toBeGreaterThanOrEqual(80);
  expect(new Set(table.map(([what]) => what)).size).toBe(table.length);
});

test.each(table)('%s', (_, reply, expected) => {
  const setting = { tools: expected.tools ?? tools, interpreter: expected.interpreter ?? true };
  const parsed = parse([[reply]], setting);
  const isText = expected.call === undefined && expected.code === undefined;
  expect(parsed.text).toBe(expected.text ?? (isText ? strip(reply) : ''));
  expect(parsed.code).toBe(expected.code);
  if (expected.call) {
    const [name, given] = expected.call;
    const raw = reply.slice(reply.indexOf('\n') + 1).replace(/^ /, '');
    expect(parsed.toolCall).toEqual(given === undefined ? { name, raw } : { name, raw, arguments: given });
    expect(JSON.stringify(parsed.toolCall?.arguments)).toBe(JSON.stringify(given));
    expect(parsed.messages).toEqual([{ role: 'assistant', metadata: name, content: raw }]);
  } else {
    expect(parsed.toolCall).toBeUndefined();
    if (isText) expect(parsed.messages).toEqual([{ role: 'assistant', metadata: '', content: strip(reply) }]);
  }
  const random = numbers(1 + reply.length);
  for (let round = 0; round < 20; round++) expect(parse([cut(reply, random)], setting)).toEqual(parsed);
  expect(parse([letters(reply)], setting)).toEqual(parsed);
  expect(globalThis).not.toHaveProperty('hit');
  expect({}).not.toHaveProperty('hit');
});

// --- Replies that nobody wrote.

const snippets = [
  ...[
    "'",
    '"',
    "'''",
    '"""',
    '\\',
    '\\x4',
    '\\u4f60',
    '#',
    '\n',
    '\r\n',
    ' ',
    '\t',
    '\u3000',
    '\ufeff',
    '\u200b',
    '\0',
  ],
  ...[
    '(',
    ')',
    '[',
    ']',
    '{',
    '}',
    ',',
    ':',
    '=',
    '+',
    '-',
    '*',
    '**',
    '/',
    ';',
    '.',
    '_',
    '`',
    fence,
    `${fence}python\n`,
  ],
  ...[
    'f\n',
    'g\n',
    'search web',
    'interpreter\n',
    'tool_call(',
    'a=1',
    '**{"a": 1}',
    '9'.repeat(30),
    '1e9',
    '0x',
    'None',
  ],
  ...[
    '[[训练时间]]',
    '[[训',
    '<|user|>',
    '__proto__',
    '👋🏽',
    '字',
    "f'{x}'",
    "b'",
    '[[[',
    '- - -',
    '\ud83d',
    '   \n   ',
  ],
];

function mutated(random: (below: number) => number): string {
  const [, first] = table[random(table.length)] as (typeof table)[number];
  const characters = letters(first.slice(0, 400));
  for (let changes = 1 + random(5); changes > 0; changes--) {
    const at = random(characters.length + 1);
    const kind = random(6);
    if (kind === 0) characters.splice(at, 1 + random(8));
    else if (kind === 1) characters.splice(at, 0, ...characters.slice(at, at + 1 + random(20)));
    else if (kind === 2) characters.length = Math.min(at, characters.length);
    else if (kind === 3) {
      const [, other] = table[random(table.length)] as (typeof table)[number];
      const from = random(other.length + 1);
      characters.splice(at, random(4), ...letters(other.slice(from, from + 1 + random(60))));
    } else characters.splice(at, kind === 4 ? 1 : 0, ...letters(snippets[random(snippets.length)] as string));
  }
  return characters.join('');
}

/** What is wrong with how a reply of one part was taken, if anything is. */
function fault(reply: string, parsed: ParsedReply, setting: Setting): string | undefined {
  const [message, ...more] = parsed.messages;
  if (message === undefined || more.length > 0) return 'not one message';
  const newline = reply.indexOf('\n');
  const line = strip(newline < 0 ? '' : reply.slice(0, newline));
  const isDeclared = line !== '' && [...setting.tools, ...(setting.interpreter ? ['interpreter'] : [])].includes(line);
  if (message.metadata === '') {
    if (isDeclared) return 'a declared name that is no call';
    if (message.content !== strip(reply)) return 'text that is not kept';
    if (parsed.text !== strip(reply).replaceAll('[[训练时间]]', '2023年')) return 'text that is not shown';
    return parsed.toolCall || parsed.code !== undefined ? 'a call of nothing' : undefined;
  }
  if (setting.tools.length === 0 && !(setting.interpreter && line === 'interpreter')) return 'a call without tools';
  if (message.metadata !== line) return 'another name than was written';
  if (message.content !== reply.slice(newline + 1).replace(/^ /, '')) return 'a call that is not kept';
  if (parsed.text !== '') return 'a call that is shown';
  const isCode = line === 'interpreter' && setting.interpreter;
  if (isCode)
    return parsed.code === undefined || !reply.includes(parsed.code) ? 'code that was not written' : undefined;
  if (parsed.toolCall?.name !== line || parsed.toolCall.raw !== message.content) return 'another call';
  const given = parsed.toolCall.arguments;
  if (given === undefined) return undefined;
  const json = JSON.stringify(given);
  if (JSON.stringify(JSON.parse(json)) !== json) return 'arguments that are no JSON';
  return Object.getPrototypeOf(given) === Object.prototype ? undefined : 'a prototype';
}

const settings: Setting[] = [
  { tools, interpreter: true },
  { tools, interpreter: true },
  { tools, interpreter: false },
  { tools: [], interpreter: true },
  { tools: [], interpreter: false },
];

test('100,000 mutations of the table', () => {
  const random = numbers(20_240_101);
  const kinds = { text: 0, call: 0, arguments: 0, code: 0 };
  for (let round = 0; round < 100_000; round++) {
    const setting = settings[random(settings.length)] as Setting;
    const reply = mutated(random);
    const parsed = parse([[reply]], setting);
    const wrong = fault(reply, parsed, setting);
    if (wrong !== undefined) throw new Error(`${wrong}: ${JSON.stringify({ reply, setting, parsed })}`);
    const pieces = cut(reply, random);
    const streamed = parse([pieces], setting);
    if (JSON.stringify(streamed) !== JSON.stringify(parsed)) {
      throw new Error(`pieces change the reply: ${JSON.stringify({ pieces, setting, parsed, streamed })}`);
    }
    // A second part changes neither what is shown of the first one nor what is kept.
    if (round % 10 === 0) {
      const second = mutated(random);
      const other = parse([[second]], setting);
      const both = parse([pieces, cut(second, random)], setting);
      const isKept = ({ content, metadata }: { content: string; metadata?: string }) =>
        content !== '' || metadata !== '';
      const messages = [...parsed.messages, ...other.messages].filter(isKept);
      const text = [parsed.text, other.text].filter((part) => part !== '').join('\n');
      if (both.text !== text || (messages.length > 0 && JSON.stringify(both.messages) !== JSON.stringify(messages))) {
        throw new Error(`two parts: ${JSON.stringify({ reply, second, setting, both })}`);
      }
    }
    if (parsed.code !== undefined) kinds.code++;
    else if (parsed.toolCall?.arguments) kinds.arguments++;
    else if (parsed.toolCall) kinds.call++;
    else kinds.text++;
  }
  // The mutations are of use as long as they reach every outcome.
  for (const [kind, count] of Object.entries(kinds)) expect([kind, count > 1000]).toEqual([kind, true]);
  expect(globalThis).not.toHaveProperty('hit');
});
