import { ChatGLMError } from '../lib/common/errors.js';
import { StopSequences } from '../lib/generation/stop-sequences.js';

function run(stop: string | string[], pieces: readonly string[]) {
  const filter = new StopSequences(stop);
  const shown = pieces.map((piece) => filter.push(piece));
  shown.push(filter.flush());
  return { shown, text: shown.join(''), matched: filter.matched };
}

// Every way to cut a short text in pieces.
function cuts(text: string): string[][] {
  const result: string[][] = [];
  for (let mask = 0; mask < 2 ** Math.max(0, text.length - 1); mask++) {
    const pieces: string[] = [];
    let start = 0;
    for (let end = 1; end <= text.length; end++) {
      if (end === text.length || mask & (1 << (end - 1))) pieces.push(text.slice(start, end));
      if (end === text.length || mask & (1 << (end - 1))) start = end;
    }
    result.push(pieces);
  }
  return result;
}

test.each<[string | string[], string, string, string | undefined]>([
  ['END', 'abENDcd', 'ab', 'END'],
  ['END', 'abENcd', 'abENcd', undefined],
  ['END', 'abEN', 'abEN', undefined],
  ['END', 'EENDND', 'E', 'END'],
  ['aab', 'aaabx', 'a', 'aab'],
  [['ab', 'abc'], 'xabc', 'x', 'ab'],
  [['abcd', 'bc'], 'xabcd', 'x', 'abcd'],
  [['abcd', 'bc'], 'xabce', 'xa', 'bc'],
  [['abcd', 'bc'], 'xabc', 'xa', 'bc'],
  [['abcde', 'cd', 'bcx'], 'abcd', 'ab', 'cd'],
  [['\n\n', '。'], '你好\n世界。', '你好\n世界', '。'],
  [['\n\n', '。'], '你好\n\n世界。', '你好', '\n\n'],
  ['👋', 'hi👋', 'hi', '👋'],
  [[], 'abc', 'abc', undefined],
  ['a', '', '', undefined],
])('%j in %j, however it is cut', (stop, text, expected, matched) => {
  for (const pieces of cuts(text)) {
    expect({ pieces, ...run(stop, pieces) }).toMatchObject({ pieces, text: expected, matched });
  }
});

test('as much is shown as can be', () => {
  expect(run(['END', 'DEN'], ['abE', 'D', 'E', 'x', 'yz']).shown).toEqual(['ab', 'E', '', 'DEx', 'yz', '']);
});

test('nothing is shown after a match', () => {
  const filter = new StopSequences('.');
  expect(filter.push('a.b')).toBe('a');
  expect(filter.push('c')).toBe('');
  expect(filter.flush()).toBe('');
  expect(filter.matched).toBe('.');
});

test('flushed text begins anew', () => {
  const filter = new StopSequences('END');
  expect(filter.push('aEN')).toBe('a');
  expect(filter.flush()).toBe('EN');
  expect(filter.push('D')).toBe('D');
  expect(filter.matched).toBeUndefined();
});

test('a long text goes through quickly', () => {
  const text = 'ab'.repeat(200_000);
  expect(run(['abc', 'bb'], [text]).text).toBe(text);
});

test.each<[unknown]>([[''], [['a', '']], [[1]], [null], [5]])('%j is refused', (stop) => {
  expect(() => new StopSequences(stop as string)).toThrow(ChatGLMError);
});
