import { type ParsedReply, ReplyParser } from '../lib/chat/reply.js';
import type { ChatFamily } from '../lib/families/index.js';

const fence = '```';

interface Outcome extends ParsedReply {
  deltas: string[];
}

// Segments as the decoder gives them, each as a list of pieces.
function run(
  segments: readonly (readonly string[])[],
  tools: string[] = [],
  family: ChatFamily = 'chatglm3',
  interpreter?: boolean,
): Outcome {
  const parser = new ReplyParser(family, interpreter === undefined ? { tools } : { tools, interpreter });
  const deltas: string[] = [];
  segments.forEach((pieces, index) => {
    if (index > 0) deltas.push(parser.newSegment());
    for (const piece of pieces) deltas.push(parser.push(piece));
  });
  const parsed = parser.finish();
  deltas.push(parsed.text);
  return { ...parsed, text: deltas.join(''), deltas };
}

const chat = (content: string) => ({ role: 'assistant', metadata: '', content });
const weather = `${fence}python\ntool_call(city='北京')\n${fence}`;

interface Case {
  name: string;
  segments: string[];
  tools?: string[];
  family?: ChatFamily;
  interpreter?: boolean;
  text: string;
  messages: unknown[];
  toolCall?: unknown;
  code?: string;
}

const cases: Case[] = [
  { name: 'chat', segments: ['\n 你好👋！'], text: '你好👋！', messages: [chat('你好👋！')] },
  { name: 'chat with line breaks', segments: ['\n a\n\n b \n '], text: 'a\n\n b', messages: [chat('a\n\n b')] },
  { name: 'chat without a line break', segments: [' 你好'], text: '你好', messages: [chat('你好')] },
  { name: 'two words without a line break', segments: ['hi there'], text: 'hi there', messages: [chat('hi there')] },
  { name: 'nothing', segments: [''], text: '', messages: [chat('')] },
  { name: 'white space', segments: [' \n \n\n'], text: '', messages: [chat('')] },
  {
    name: 'text where metadata would stand',
    segments: ['你好，世界\n第二行'],
    text: '你好，世界\n第二行',
    messages: [chat('你好，世界\n第二行')],
  },
  {
    name: 'a name that is no call',
    segments: ['你好\n 世界'],
    tools: ['get_weather'],
    text: '你好\n 世界',
    messages: [chat('你好\n 世界')],
  },
  { name: 'a name and nothing', segments: ['你好\n \n'], text: '你好', messages: [chat('你好')] },
  { name: 'a name and half a fence', segments: ['x\n ``'], text: 'x\n ``', messages: [chat('x\n ``')] },
  {
    name: 'a name and something like a call',
    segments: ['x\n tool_c'],
    text: 'x\n tool_c',
    messages: [chat('x\n tool_c')],
  },
  { name: "a tool's name alone", segments: ['f'], tools: ['f'], text: 'f', messages: [chat('f')] },
  {
    name: 'a line too long for a name',
    segments: [`${'x'.repeat(65)}\n${fence}`],
    text: `${'x'.repeat(65)}\n${fence}`,
    messages: [chat(`${'x'.repeat(65)}\n${fence}`)],
  },
  {
    name: 'a fence in chat',
    segments: [`\n ${fence}python\ntool_call(city='x')\n${fence}`],
    tools: ['get_weather'],
    text: `${fence}python\ntool_call(city='x')\n${fence}`,
    messages: [chat(`${fence}python\ntool_call(city='x')\n${fence}`)],
  },
  {
    name: 'a call of a tool',
    segments: [`get_weather\n ${weather}`],
    tools: ['get_weather'],
    text: '',
    messages: [{ role: 'assistant', metadata: 'get_weather', content: weather }],
    toolCall: { name: 'get_weather', arguments: { city: '北京' }, raw: weather },
  },
  {
    name: 'a call of a tool that was not given',
    segments: [` 查天气 \n ${weather}`],
    tools: ['get_weather'],
    text: '',
    messages: [{ role: 'assistant', metadata: '查天气', content: weather }],
    toolCall: { name: '查天气', arguments: { city: '北京' }, raw: weather },
  },
  {
    name: 'a call without a fence and its space',
    segments: ['random.number-1\ntool_call(seed=42, range=(0, 100))'],
    tools: ['random.number-1'],
    text: '',
    messages: [{ role: 'assistant', metadata: 'random.number-1', content: 'tool_call(seed=42, range=(0, 100))' }],
    toolCall: {
      name: 'random.number-1',
      arguments: { seed: 42, range: [0, 100] },
      raw: 'tool_call(seed=42, range=(0, 100))',
    },
  },
  {
    name: "a given tool's call that cannot be read",
    segments: ['get_weather\n  city: 北京 '],
    tools: ['get_weather'],
    text: '',
    messages: [{ role: 'assistant', metadata: 'get_weather', content: ' city: 北京 ' }],
    toolCall: { name: 'get_weather', raw: ' city: 北京 ' },
  },
  {
    name: 'text, then a call',
    segments: ['\n 好的，让我查一下。 ', ` get_weather\n ${weather}`],
    tools: ['get_weather'],
    text: '好的，让我查一下。',
    messages: [chat('好的，让我查一下。'), { role: 'assistant', metadata: 'get_weather', content: weather }],
    toolCall: { name: 'get_weather', arguments: { city: '北京' }, raw: weather },
  },
  ...['/text-to-speech', 'search web', '天气:查询', 'x'.repeat(65), 'a "quoted" {name}', '#', '🔧🔧', ' spaced '].map(
    (name): Case => ({
      name: `a call of ${name}`,
      segments: [`${name}\n ${fence}python\ntool_call(text='你好')\n${fence}`],
      tools: ['get_weather', name, `${name}2`],
      text: '',
      messages: [{ role: 'assistant', metadata: name, content: `${fence}python\ntool_call(text='你好')\n${fence}` }],
      toolCall: { name, arguments: { text: '你好' }, raw: `${fence}python\ntool_call(text='你好')\n${fence}` },
    }),
  ),
  {
    name: 'a declared name with white space around it',
    segments: [' \t search web  \u3000\r\n city'],
    tools: ['search web'],
    text: '',
    messages: [{ role: 'assistant', metadata: 'search web', content: 'city' }],
    toolCall: { name: 'search web', raw: 'city' },
  },
  {
    name: 'of two names that white space tells apart the plain one',
    segments: [' a\n x'],
    tools: [' a', 'a'],
    text: '',
    messages: [{ role: 'assistant', metadata: 'a', content: 'x' }],
    toolCall: { name: 'a', raw: 'x' },
  },
  {
    name: 'the call by a name that Python does not take',
    segments: [`text-to-speech\n ${fence}python\ntext-to-speech(text='a')\n${fence}`],
    tools: ['text-to-speech'],
    text: '',
    messages: [
      {
        role: 'assistant',
        metadata: 'text-to-speech',
        content: `${fence}python\ntext-to-speech(text='a')\n${fence}`,
      },
    ],
    toolCall: {
      name: 'text-to-speech',
      arguments: { text: 'a' },
      raw: `${fence}python\ntext-to-speech(text='a')\n${fence}`,
    },
  },
  ...['search', 'search  web', 'search web!', 'search web s', ' ', 'Search web'].map(
    (line): Case => ({
      name: `${line} is not search web`,
      segments: [`${line}\n a`],
      tools: ['search web', ' '],
      text: `${line}\n a`.trim(),
      messages: [chat(`${line}\n a`.trim())],
    }),
  ),
  {
    name: 'another language behind a name is an answer',
    segments: [`Example\n ${fence}js\nf()\n${fence}`],
    tools: ['f'],
    text: `Example\n ${fence}js\nf()\n${fence}`,
    messages: [chat(`Example\n ${fence}js\nf()\n${fence}`)],
  },
  {
    name: 'no call without tools',
    segments: [`get_weather\n ${weather}`],
    text: `get_weather\n ${weather}`,
    messages: [chat(`get_weather\n ${weather}`)],
  },
  {
    name: 'no code without an interpreter',
    interpreter: false,
    segments: [`interpreter\n ${fence}python\nprint(1)\n${fence}`],
    text: `interpreter\n ${fence}python\nprint(1)\n${fence}`,
    messages: [chat(`interpreter\n ${fence}python\nprint(1)\n${fence}`)],
  },
  {
    name: 'with tools and no interpreter, code for one is a program to look at',
    interpreter: false,
    segments: [`interpreter\n ${fence}python\nprint(1)\n${fence}`],
    tools: ['f'],
    text: `interpreter\n ${fence}python\nprint(1)\n${fence}`,
    messages: [{ role: 'assistant', metadata: '', content: `interpreter\n ${fence}python\nprint(1)\n${fence}` }],
  },
  {
    name: 'code and what is said of it',
    segments: [`interpreter\n ${fence}python\na = 1\n${fence} \n\n这是代码。`],
    text: '',
    messages: [
      { role: 'assistant', metadata: 'interpreter', content: `${fence}python\na = 1\n${fence} \n\n这是代码。` },
    ],
    code: 'a = 1',
  },
  {
    name: 'code with a fence in it',
    segments: [`interpreter\n ${fence}python\na = '''\n${fence}\nx\n${fence}\n'''\n${fence}`],
    text: '',
    messages: [
      {
        role: 'assistant',
        metadata: 'interpreter',
        content: `${fence}python\na = '''\n${fence}\nx\n${fence}\n'''\n${fence}`,
      },
    ],
    code: `a = '''\n${fence}\nx\n${fence}\n'''`,
  },
  {
    name: 'code right before its closing fence',
    segments: [`interpreter\n ${fence}python\nprint(1)  ${fence}`],
    text: '',
    messages: [{ role: 'assistant', metadata: 'interpreter', content: `${fence}python\nprint(1)  ${fence}` }],
    code: 'print(1)',
  },
  {
    name: 'a call, then text',
    segments: [`get_weather\n ${weather}`, ' \n 晴'],
    tools: ['get_weather'],
    text: '晴',
    messages: [{ role: 'assistant', metadata: 'get_weather', content: weather }, chat('晴')],
  },
  {
    name: 'two calls',
    segments: [`f\n ${weather}`, `g\n ${weather}`],
    tools: ['f'],
    text: '',
    messages: [
      { role: 'assistant', metadata: 'f', content: weather },
      { role: 'assistant', metadata: 'g', content: weather },
    ],
    toolCall: { name: 'g', arguments: { city: '北京' }, raw: weather },
  },
  {
    name: 'two texts and empty segments',
    segments: ['', '\n a ', ' \n ', '\n b', ''],
    text: 'a\nb',
    messages: [chat('a'), chat('b')],
  },
  {
    name: 'a call and an empty segment',
    segments: [`f\n ${weather}`, ''],
    tools: ['f'],
    text: '',
    messages: [{ role: 'assistant', metadata: 'f', content: weather }],
    toolCall: { name: 'f', arguments: { city: '北京' }, raw: weather },
  },
  {
    name: 'code',
    segments: ['\n 好的', `interpreter\n ${fence}python\nimport math\n\nif 1:\n    print(2)\n${fence}`],
    text: '好的',
    messages: [
      chat('好的'),
      {
        role: 'assistant',
        metadata: 'interpreter',
        content: `${fence}python\nimport math\n\nif 1:\n    print(2)\n${fence}`,
      },
    ],
    code: 'import math\n\nif 1:\n    print(2)',
  },
  {
    name: 'code without a fence',
    segments: ['interpreter\n print(1)\n'],
    text: '',
    messages: [{ role: 'assistant', metadata: 'interpreter', content: 'print(1)\n' }],
    code: 'print(1)',
  },
  {
    name: 'code whose fence stays open',
    segments: [`interpreter\n ${fence}python\nprint(1)`],
    text: '',
    messages: [{ role: 'assistant', metadata: 'interpreter', content: `${fence}python\nprint(1)` }],
    code: 'print(1)',
  },
  {
    name: 'a tool called interpreter',
    segments: ['interpreter\n tool_call(a=1)'],
    tools: ['interpreter'],
    text: '',
    messages: [{ role: 'assistant', metadata: 'interpreter', content: 'tool_call(a=1)' }],
    toolCall: { name: 'interpreter', arguments: { a: 1 }, raw: 'tool_call(a=1)' },
  },
  {
    name: "THUDM's placeholder",
    segments: ['\n [[训练时间]]我[[[训练时间]]、[[训练时间] [[训练时间]]'],
    text: '2023年我[2023年、[[训练时间] 2023年',
    messages: [chat('[[训练时间]]我[[[训练时间]]、[[训练时间] [[训练时间]]')],
  },
  { name: 'half a placeholder at the end', segments: ['\n a [[训练'], text: 'a [[训练', messages: [chat('a [[训练')] },
  {
    name: 'a placeholder at the end of metadata-like text',
    segments: ['[[训练时间]]'],
    text: '2023年',
    messages: [chat('[[训练时间]]')],
  },
  {
    name: 'a ChatGLM2 answer',
    family: 'chatglm2',
    segments: [` f\n ${weather} [[训练时间]]\n`],
    tools: ['f'],
    text: `f\n ${weather} 2023年`,
    messages: [{ role: 'assistant', content: `f\n ${weather} 2023年` }],
  },
  {
    name: 'an empty ChatGLM2 answer',
    family: 'chatglm2',
    segments: [' '],
    text: '',
    messages: [{ role: 'assistant', content: '' }],
  },
];

describe.each(cases)('$name', ({ name, segments, tools, family, interpreter, ...expected }) => {
  const check = (pieces: string[][]) => {
    const { deltas, ...outcome } = run(pieces, tools, family, interpreter);
    expect({ name, pieces, ...outcome }).toEqual({ name, pieces, ...expected });
  };

  test('at once', () => check(segments.map((text) => [text])));
  test('character by character', () => check(segments.map((text) => [...text])));
  test('cut at every place', () => {
    segments.forEach((text, index) => {
      const characters = [...text];
      for (let at = 0; at <= characters.length; at++) {
        const cut = [characters.slice(0, at).join(''), '', characters.slice(at).join('')];
        check(segments.map((other, place) => (place === index ? cut : [other])));
      }
    });
  });
  test('cut at random', () => {
    // A fixed sequence of numbers, so that a failure can be repeated.
    let state = 1;
    const random = () => {
      state = (state * 48271) % 2147483647;
      return state / 2147483647;
    };
    for (let round = 0; round < 50; round++) {
      check(
        segments.map((text) => {
          const pieces = [''];
          for (const character of text) {
            if (random() < 0.4) pieces.push(character);
            else pieces.push(pieces.pop() + character);
          }
          return pieces;
        }),
      );
    }
  });
});

describe('text is shown early', () => {
  test.each<[string, string[], string[], string[]]>([
    ['after the line of metadata', ['\n', ' ', '你', '好', '！'], [], ['', '', '你', '好', '！', '']],
    ['before white space', ['\n', ' a', ' ', '\n', 'b', '\n'], [], ['', 'a', '', '', ' \nb', '', '']],
    ['before half a placeholder', ['\na[', '[', '训练', 'x'], [], ['a', '', '', '[[训练x', '']],
    ['at once where nothing can be called', ['他', '说', '：', '好'], [], ['他', '说', '：', '好', '']],
    ['as soon as it cannot be the interpreter', ['in', 'ter', 'n', '\n'], [], ['', '', 'intern', '', '']],
    ['as soon as it cannot be a name', ['他', '说', '：', '好'], ['f'], ['', '', '他说：', '好', '']],
    ['as soon as it is no name that was given', ['他', '：', '说', '好'], ['他：好'], ['', '', '他：说', '好', '']],
    ['as soon as it cannot be a call', ['x', '\n', ' t', 'o', 'y'], ['f'], ['', '', '', '', 'x\n toy', '']],
    ['never when it is a call', ['f', '\n', ' x', 'yz'], ['f'], ['', '', '', '', '']],
  ])('%s', (_, pieces, tools, deltas) => {
    expect(run([pieces], tools).deltas).toEqual(deltas);
  });
});

/** The pieces of a long reply. */
function many(count: number, piece: string, before: string[] = [], after: string[] = []): string[] {
  return [...before, ...Array.from({ length: count }, () => piece), ...after];
}

// What looks again at all that came before would take hours here.
describe('a reply of any length', () => {
  const count = 1_000_000;
  test.each<[string, string[], string[], string]>([
    ['white space behind text', many(count, '\n', ['a']), [], 'a'],
    ['white space within text', many(count, '\n', ['a'], ['b']), [], `a${'\n'.repeat(count)}b`],
    ['white space before text', many(count, ' ', [], ['b']), [], 'b'],
    ['a character at a time', many(count, '字', ['。']), [], `。${'字'.repeat(count)}`],
    ['the beginning of placeholders', many(count, '[[', []), [], '[['.repeat(count)],
    ['white space behind a name', many(count, ' ', ['x'], ['!']), ['f'], `x${' '.repeat(count)}!`],
    ['white space behind the line of a name', many(count, ' ', ['x\n'], ['!']), ['f'], `x\n${' '.repeat(count)}!`],
    ['white space in place of a name', many(count, ' ', [], ['!']), ['f'], '!'],
    ['letters in place of a name', many(count, '字'), ['f'], '字'.repeat(count)],
    ['a name that is almost it', many(count, 'n'), ['n'.repeat(count + 1)], 'n'.repeat(count)],
    ['a call and white space', many(count, ' ', ['f\n tool_call()']), ['f'], ''],
    ['code and white space', many(count, ' ', ['interpreter\n```\n1']), [], ''],
    ['code and white space before its end', many(count, ' ', ['interpreter\n```\n1'], ['x```']), [], ''],
  ])('%s', (_, pieces, tools, text) => {
    expect(run([pieces], tools).text === text).toBe(true);
    expect(run([[pieces.join('')]], tools).text === text).toBe(true);
  });
});
