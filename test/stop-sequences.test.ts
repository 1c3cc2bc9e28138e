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

/** The rule in its plain form: at each place the shortest sequence that is there. */
function plainly(sequences: readonly string[], text: string) {
  for (let start = 0; start < text.length; start++) {
    const here = sequences.filter((sequence) => text.startsWith(sequence, start));
    const [matched] = here.sort((a, b) => a.length - b.length);
    if (matched !== undefined) return { text: text.slice(0, start), matched };
  }
  return { text, matched: undefined };
}

/** What must be held back: the longest end that begins a sequence. */
function heldPlainly(sequences: readonly string[], text: string): string {
  for (let start = 0; start < text.length; start++) {
    const end = text.slice(start);
    if (sequences.some((sequence) => sequence.length > end.length && sequence.startsWith(end))) return end;
  }
  return '';
}

test('any sequences in any text, as the plain rule has it', () => {
  let state = 7;
  const random = (below: number) => {
    state = (state * 48271) % 2147483647;
    return state % below;
  };
  const word = (longest: number) => Array.from({ length: 1 + random(longest) }, () => 'ab字'[random(3)]).join('');
  for (let round = 0; round < 20_000; round++) {
    const sequences = Array.from({ length: 1 + random(5) }, () => word(6));
    const text = word(20);
    const expected = plainly(sequences, text);
    const filter = new StopSequences(sequences);
    let shown = '';
    let come = '';
    for (let at = 0; at < text.length; ) {
      const piece = text.slice(at, at + 1 + random(4));
      at += piece.length;
      come += piece;
      shown += filter.push(piece);
      if (filter.matched !== undefined) break;
      expect([sequences, come, come.slice(shown.length)]).toEqual([sequences, come, heldPlainly(sequences, come)]);
    }
    shown += filter.flush();
    expect([sequences, text, shown, filter.matched]).toEqual([sequences, text, expected.text, expected.matched]);
  }
});

// What compares each place with each sequence, or goes over held text again for each piece, does not come to an end here.
test.each<[string, string[], string]>([
  ['a long text', ['abc', 'bb'], 'ab'.repeat(500_000)],
  ['a long sequence that almost is there', [`${'a'.repeat(100_000)}b`], 'a'.repeat(1_000_000)],
  ['text that is held for long', [`${'a'.repeat(1_000_000)}b`], 'a'.repeat(1_000_000)],
  [
    'many sequences with one beginning',
    Array.from({ length: 1000 }, (_, index) => `${'a'.repeat(index + 1)}b`),
    'a'.repeat(1_000_000),
  ],
  [
    'many sequences with one end',
    Array.from({ length: 1000 }, (_, index) => `b${'a'.repeat(index + 1)}c`),
    `b${'a'.repeat(1000)}`.repeat(1000),
  ],
])('%s, at once and a character at a time', (_, sequences, text) => {
  for (const pieces of [[text], [...text]]) {
    const { shown, matched } = run(sequences, pieces);
    expect(shown.join('') === text).toBe(true);
    expect(matched).toBeUndefined();
  }
});

test.each<[unknown]>([[''], [['a', '']], [[1]], [null], [5]])('%j is refused', (stop) => {
  expect(() => new StopSequences(stop as string)).toThrow(ChatGLMError);
});
