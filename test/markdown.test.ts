import { MarkdownStream } from '../lib/cli/terminal/markdown.js';

// Markdown as a terminal shows it, whose pieces come one after the other.

describe('Markdown in pieces', () => {
  const text = [
    '# 标题 `x`',
    '你好，这是**重点**内容，以及`inline code`的例子。The quick brown fox（括号）jumps over 2**3 and 3 * 4.',
    '- an item that is so long that it goes on',
    '  * 第二项',
    '12. a `` b`c `` d',
    '| a | b |',
    '|---|---|',
    '---',
    '```python',
    'x = a ** b  # a line that is not broken, however long it may become',
    '``',
    '```',
    'not `closed and **not closed',
    'https://example.com/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa end',
    '~~~',
    'no end',
  ].join('\n');

  function render(columns: number, hasColors: boolean, step: number): string {
    let written = '';
    const write = (piece: string) => {
      written += piece;
    };
    const markdown = new MarkdownStream({ write, columns: () => columns, hasColors });
    const characters = [...text];
    for (let at = 0; at < characters.length; at += step) markdown.push(characters.slice(at, at + step).join(''));
    markdown.end();
    return written;
  }

  test('nothing depends on where the pieces end', () => {
    for (const columns of [20, 30, 79]) {
      for (const hasColors of [false, true]) {
        const whole = render(columns, hasColors, text.length);
        for (const step of [1, 2, 3, 5, 7]) expect(render(columns, hasColors, step)).toBe(whole);
      }
    }
  });

  test('on a screen of 30 columns', () => {
    expect(render(30, false, 1)).toBe(
      [
        '# 标题 `x`',
        '你好，这是**重点**内容，以及',
        '`inline code`的例子。The quick',
        'brown fox（括号）jumps over',
        '2**3 and 3 * 4.',
        '• an item that is so long that',
        '  it goes on',
        '  • 第二项',
        '12. a `` b`c `` d',
        '| a | b |',
        '|---|---|',
        '---',
        '╭─ python ────────────────────',
        'x = a ** b  # a line that is not broken, however long it may become',
        '``',
        '╰─────────────────────────────',
        'not `closed and **not closed',
        'https://example.com/aaaaaaaaaa',
        'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',
        'aaaa end',
        '╭─────────────────────────────',
        'no end',
        '╰─────────────────────────────',
      ].join('\n'),
    );
  });

  test('with colours the marks are gone', () => {
    const colored = render(79, true, 1);
    expect(colored).toContain('\x1b[36minline');
    expect(colored).not.toMatch(/^#/m);
    expect(colored).not.toContain('`inline');
    expect(colored).toContain('2**3');
  });
});
