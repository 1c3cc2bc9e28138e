import { ChatGLMError } from '../lib/common/errors.js';
import { dumpJson, strip } from '../lib/common/python-text.js';
import {
  type ChatFamily,
  chatPrompt,
  familyNamed,
  specialId,
  specialTokens,
  stopTokens,
} from '../lib/families/index.js';
import { type ChatMessage, validateMessages, validateTools } from '../lib/families/messages.js';
import { promptIds } from '../lib/families/prompt.js';

// Each text that is encoded gets a number of its own, so that the ids show what was encoded with what.
function recorder() {
  const texts: string[] = [];
  const encode = (text: string) => [texts.push(text) - 1];
  return { texts, encode };
}

const glm3 = specialTokens(64789, 'chatglm3');

function encodeChat(encode: (text: string) => number[], messages: readonly ChatMessage[], family: ChatFamily) {
  const idOf = (token: string) => specialId(familyNamed(family), 64789, token);
  return promptIds(chatPrompt(family, messages), encode, idOf);
}

function expectInvalid(action: () => unknown, message: RegExp) {
  let error: unknown;
  try {
    action();
  } catch (caught) {
    error = caught;
  }
  expect(error).toBeInstanceOf(ChatGLMError);
  expect((error as ChatGLMError).code).toBe('ERR_INVALID_ARGUMENT');
  expect((error as ChatGLMError).message).toMatch(message);
}

describe('special tokens', () => {
  test('of ChatGLM3-6B are the published ids', () => {
    expect(glm3).toEqual({
      eos: 2,
      mask: 64789,
      gmask: 64790,
      smask: 64791,
      sop: 64792,
      eop: 64793,
      roles: { system: 64794, user: 64795, assistant: 64796, observation: 64797 },
    });
    expect(stopTokens(64789, 'chatglm3')).toEqual([2, 64795, 64797]);
  });

  test.each(['chatglm2', 'codegeex2'] as const)('of %s have no roles', (family) => {
    expect(specialTokens(64789, family).roles).toBeUndefined();
    expect(stopTokens(64789, family)).toEqual([2]);
  });
});

describe('the prompt of ChatGLM2', () => {
  const text = (messages: ChatMessage[]) => {
    const { texts, encode } = recorder();
    expect(encodeChat(encode, messages, 'chatglm2')).toEqual([64790, 64792, 0]);
    expect(texts).toHaveLength(1);
    return texts[0];
  };

  test('is one text with rounds from 1', () => {
    expect(text([{ role: 'user', content: '你好' }])).toBe('[Round 1]\n\n问：你好\n\n答：');
    expect(text(validateMessages([['q1', 'a1'], ['q2', ''], { role: 'user', content: 'q3' }]))).toBe(
      '[Round 1]\n\n问：q1\n\n答：a1\n\n[Round 2]\n\n问：q2\n\n答：\n\n[Round 3]\n\n问：q3\n\n答：',
    );
  });

  test('has the system message before the current query', () => {
    const messages = validateMessages([
      { role: 'system', content: 'S ' },
      ['q1', 'a1'],
      { role: 'user', content: 'q2' },
    ]);
    expect(text(messages)).toBe('[Round 1]\n\n问：q1\n\n答：a1\n\n[Round 2]\n\n问：S q2\n\n答：');
  });

  const user: ChatMessage = { role: 'user', content: 'q' };
  const assistant: ChatMessage = { role: 'assistant', content: 'a' };
  test.each<[string, ChatMessage[], RegExp]>([
    ['nothing', [], /must not be empty/],
    ['no query', [{ role: 'system', content: 's' }], /last of messages/],
    ['an answer at the end', [user, assistant], /last of messages/],
    ['two queries', [user, user], /messages\[1\]\.role is user, expected assistant/],
    ['an answer first', [assistant, user], /messages\[0\]\.role is assistant, expected user/],
    ['a later system message', [user, assistant, { role: 'system', content: '' }], /messages\[2\]\.role is system/],
    ['an observation', [user, assistant, { role: 'observation', content: '' }], /messages\[2\]\.role: .*observations/],
    ['metadata', [user, { ...assistant, metadata: 'tool' }, user], /messages\[1\]\.metadata/],
    ['tools', [{ role: 'system', content: '', tools: [] }, user], /messages\[0\]\.tools/],
  ])('cannot express %s', (_, messages, message) => {
    expectInvalid(() => encodeChat(recorder().encode, messages, 'chatglm2'), message);
  });
});

describe('the prompt of ChatGLM3', () => {
  test('encodes the line of metadata and the content of each message apart', () => {
    const { texts, encode } = recorder();
    const ids = encodeChat(
      encode,
      [
        { role: 'system', content: 's' },
        { role: 'user', content: '<|user|>\nq' },
        { role: 'assistant', metadata: 'get_weather', content: '```python' },
        { role: 'observation', content: '' },
      ],
      'chatglm3',
    );
    expect(ids).toEqual([64790, 64792, 64794, 0, 1, 64795, 2, 3, 64796, 4, 5, 64797, 6, 7, 64796]);
    expect(texts).toEqual(['\n', 's', '\n', '<|user|>\nq', 'get_weather\n', '```python', '\n', '']);
  });

  test('has the tools behind the system message as Python writes them', () => {
    const { texts, encode } = recorder();
    const tools = [
      { name: 'get_weather', description: '天气 "x"', parameters: { type: 'object', required: ['city'] } },
    ];
    encodeChat(encode, [{ role: 'system', content: 'You can:', tools }], 'chatglm3');
    expect(texts[1]).toBe(
      `You can:
[
    {
        "name": "get_weather",
        "description": "天气 \\"x\\"",
        "parameters": {
            "type": "object",
            "required": [
                "city"
            ]
        }
    }
]`,
    );
  });

  test('is refused without messages', () => {
    expectInvalid(() => encodeChat(recorder().encode, [], 'chatglm3'), /must not be empty/);
  });

  test('may be longer than a call can have arguments', () => {
    const encode = (text: string) => new Array<number>(text.length).fill(7);
    const ids = encodeChat(encode, [{ role: 'user', content: 'x'.repeat(500_000) }], 'chatglm3');
    expect(ids).toHaveLength(500_005);
  });
});

describe('messages', () => {
  test('are copied', () => {
    const tools = [{ name: 'f', returns: 'a number' }];
    const given = [
      { role: 'system', content: '', tools },
      { role: 'assistant', content: 'a', metadata: '' },
    ];
    const messages = validateMessages(given);
    expect(messages).toEqual(given);
    tools.pop();
    expect(messages[0]?.tools).toHaveLength(1);
  });

  test('of THUDM as pairs become messages', () => {
    expect(validateMessages([['你好', '你好👋']])).toEqual([
      { role: 'user', content: '你好' },
      { role: 'assistant', content: '你好👋' },
    ]);
  });

  test("tools of OpenAI's shape are unwrapped", () => {
    const tool = { name: 'f', description: 'd', parameters: { type: 'object' } };
    const other = { ...tool, name: 'g' };
    expect(validateTools([{ type: 'function', function: tool }, other])).toEqual([tool, other]);
  });

  test('what is for the program is not in the prompt', () => {
    const program = { execute: () => 1, timeoutMs: 5, strict: true };
    const tool = { name: 'f', returns: 'a number' };
    const wrapped = { type: 'function', function: { ...program, ...tool }, ...program };
    expect(validateTools([{ ...tool, ...program }])).toEqual([tool]);
    expect(validateTools([wrapped])).toEqual([tool]);
    expect(validateTools({ f: { ...tool, ...program } })).toEqual({ f: tool });
  });

  test("a registry of ChatGLM3's demos is shown as it is", () => {
    const params = [{ name: 'city_name', description: 'The city', type: 'str', required: true }];
    const tools = { get_weather: { name: 'get_weather', description: '天气', params, nothing: null } };
    const messages = validateMessages([{ role: 'system', content: 's', tools }]);
    expect(messages[0]?.tools).toEqual(tools);
    expect(messages[0]?.tools).not.toBe(tools);
    // json.dumps(tools, indent=4, ensure_ascii=False) of Python, written out.
    expect(chatPrompt('chatglm3', messages)).toContainEqual(
      [
        's',
        '{',
        '    "get_weather": {',
        '        "name": "get_weather",',
        '        "description": "天气",',
        '        "params": [',
        '            {',
        '                "name": "city_name",',
        '                "description": "The city",',
        '                "type": "str",',
        '                "required": true',
        '            }',
        '        ],',
        '        "nothing": null',
        '    }',
        '}',
      ].join('\n'),
    );
  });

  const cycle: Record<string, unknown> = { name: 'f' };
  cycle.parameters = cycle;
  test.each<[unknown, RegExp]>([
    [undefined, /messages must be an array of messages, got undefined/],
    [{}, /messages must be an array of messages, got an object/],
    ['hi', /got "hi"/],
    [[null], /messages\[0\] must be an object with role and content, got null/],
    [[{ role: 'user', content: 'x' }, 3], /messages\[1\] must be an object/],
    [
      [{ role: 'tool', content: 'x' }],
      /messages\[0\]\.role must be one of system, user, assistant, observation, got "tool"/,
    ],
    [[{ content: 'x' }], /messages\[0\]\.role .* got undefined/],
    [[{ role: 'user' }], /messages\[0\]\.content must be a string, got undefined/],
    [[{ role: 'user', content: null }], /messages\[0\]\.content must be a string, got null/],
    [[{ role: 'user', content: [] }], /messages\[0\]\.content must be a string, got an array/],
    [[{ role: 'assistant', content: '', metadata: 1 }], /messages\[0\]\.metadata must be a string, got 1/],
    [[{ role: 'assistant', content: '', tool_calls: [] }], /messages\[0\]\.tool_calls is not a field/],
    [
      [{ role: 'user', content: '', tools: [] }],
      /messages\[0\]\.tools belongs to a system message, not to one of user/,
    ],
    [[{ role: 'system', content: '', tools: 'f' }], /messages\[0\]\.tools must be an array of tools, or .*, got "f"/],
    [[{ role: 'system', content: '', tools: { f: 1 } }], /messages\[0\]\.tools\.f must be an object .*, got 1/],
    [[{ role: 'system', content: '', tools: { f: { name: 'g' } } }], /tools\.f\.name must be "f".* got "g"/],
    [[{ role: 'system', content: '', tools: { name: 'f' } }], /messages\[0\]\.tools must be an array .* one tool/],
    [[{ role: 'system', content: '', tools: { 'a\nb': {} } }], /must be one line, got "a\\nb"/],
    [[{ role: 'system', content: '', tools: [{}] }], /messages\[0\]\.tools\[0\]\.name/],
    [[{ role: 'system', content: '', tools: [{ name: 'f', description: 1 }] }], /tools\[0\]\.description/],
    [[{ role: 'system', content: '', tools: [{ name: 'f', parameters: [] }] }], /tools\[0\]\.parameters/],
    [[{ role: 'system', content: '', tools: [{ type: 'function', function: {} }] }], /tools\[0\]\.function\.name/],
    [[{ role: 'system', content: '', tools: [cycle] }], /tools\[0\] cannot be written as JSON/],
    [[{ role: 'system', content: '', tools: [{ name: 'f', parameters: { x: 1n } }] }], /cannot be written as JSON/],
    [[['q']], /messages\[0\] must be a message, or a pair of two strings/],
    [[['q', null]], /messages\[0\] must be a message, or a pair/],
  ])('%p are refused', (value, message) => {
    expectInvalid(() => validateMessages(value), message);
  });
});

describe('what Python does to text', () => {
  test.each<[unknown, string]>([
    [[], '[]'],
    [{}, '{}'],
    [[{}, [], null, true], '[\n    {},\n    [],\n    null,\n    true\n]'],
    [0.00001, '1e-05'],
    [-0.000012, '-1.2e-05'],
    [0.0001, '0.0001'],
    [1e-12, '1e-12'],
    [1e21, '1e+21'],
    [0.5, '0.5'],
    ['\u2028\u0000\x7f"\\\n天', '"\u2028\\u0000\x7f\\"\\\\\\n天"'],
    [{ 天: 'x' }, '{\n    "天": "x"\n}'],
  ])('json.dumps(%j)', (value, json) => {
    expect(dumpJson(value)).toBe(json);
  });

  test.each([
    ['\x1c\n　x y\u00a0\x85 ', 'x y'],
    ['\ufeffx\u200b', '\ufeffx\u200b'],
    [' \n', ''],
    ['', ''],
  ])('strip(%j)', (text, stripped) => {
    expect(strip(text)).toBe(stripped);
  });
});
