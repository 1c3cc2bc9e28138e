/// <reference lib="dom" />
import { answered, importAnswer, importJson, visits } from './support/page';
import { type Served, serve } from './support/served';

// How answers are shown, whatever a model writes. Texts come into the page by its own import.

let served: Served;
beforeAll(async () => {
  served = await serve();
});
afterAll(() => served?.close());

const { visit } = visits(() => served.url);

describe('Markdown', () => {
  it('has headings, lists, quotes, emphasis and links', async () => {
    const page = await visit();
    await importAnswer(
      page,
      [
        '# One\n\nSome **bold** and *slanted* text,\na new line, `code` and ~~gone~~.',
        '- a\n  - b\n- [x] done\n- [ ] to do',
        '3. three\n4. four',
        '> quoted',
        '[a link](https://example.com "title"), <https://example.org>, [mail](mailto:a@example.com), [ref]',
        '[ref]: https://example.net',
      ].join('\n\n'),
    );
    const found = await page.locator('.markdown').evaluate((root) => ({
      heading: root.querySelector('h3.h1')?.textContent,
      bold: root.querySelector('strong')?.textContent,
      breaks: root.querySelectorAll('p br').length,
      nested: root.querySelector('ul ul li')?.textContent,
      tasks: [...root.querySelectorAll('li.task')].map((item) => item.textContent?.trim()),
      start: root.querySelector('ol')?.start,
      quote: root.querySelector('blockquote')?.textContent?.trim(),
      links: [...root.querySelectorAll('a')].map(({ href, rel, target }) => [href, rel, target].join(' ')),
    }));
    expect(found).toEqual({
      heading: 'One',
      bold: 'bold',
      breaks: 1,
      nested: 'b',
      tasks: ['☑ done', '☐ to do'],
      start: 3,
      quote: 'quoted',
      links: ['https://example.com/', 'https://example.org/', 'mailto:a@example.com', 'https://example.net/'].map(
        (href) => `${href} noopener noreferrer nofollow _blank`,
      ),
    });
  });

  it('is bold beside Chinese letters', async () => {
    const page = await visit({ locale: 'zh-CN' });
    await importAnswer(page, '**注意：**请先备份。他说**“你好”**然后走了。');
    expect(await page.locator('.markdown strong').allInnerTexts()).toEqual(['注意：', '“你好”']);
  });

  it('colours code, and copies it', async () => {
    const page = await visit({ permissions: ['clipboard-read', 'clipboard-write'] });
    const code = 'def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a';
    await importAnswer(
      page,
      `\`\`\`python\n${code}\n\`\`\`\n\n\`\`\`rust\nfn main() {}\n\`\`\`\n\n\`\`\`nothing-known\na < b\n\`\`\``,
    );
    await page.locator('.code').first().locator('.hljs-keyword', { hasText: 'while' }).waitFor();
    // A language that is loaded when it is needed.
    await page.locator('.code').nth(1).locator('.hljs-keyword', { hasText: 'fn' }).waitFor();
    expect(await page.locator('.code').nth(2).locator('code').innerText()).toBe('a < b');
    await page.getByRole('button', { name: 'Copy' }).nth(1).click();
    await page.getByRole('button', { name: 'Copied' }).waitFor();
    expect(await page.evaluate(() => navigator.clipboard.readText())).toBe(code);
  });

  it('has tables, aligned, that scroll by themselves on a phone', async () => {
    const page = await visit({ viewport: { width: 360, height: 700 } });
    await page.getByRole('button', { name: 'Show conversations' }).click();
    const cells = Array.from({ length: 12 }, (_, i) => `a long word ${i}`).join(' | ');
    await importAnswer(page, `| ${cells} |\n|${':-:|'.repeat(12)}\n| ${cells} |\n| a<br>b | 2 |`);
    const table = page.getByRole('region', { name: 'Table' });
    expect(await table.evaluate((element) => element.scrollWidth > element.clientWidth)).toBe(true);
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(360);
    expect(
      await table
        .locator('td')
        .first()
        .evaluate((cell) => getComputedStyle(cell).textAlign),
    ).toBe('center');
    expect(await table.locator('tr').nth(2).locator('td').first().innerText()).toBe('a\nb');
  });

  it('sets formulas, and leaves money alone', async () => {
    const page = await visit();
    const loaded: string[] = [];
    page.on('request', (request) => loaded.push(new URL(request.url()).pathname));
    await importAnswer(
      page,
      'Inline $e^{i\\pi}=-1$ and \\(\\sqrt{2}\\).\n\n$$\n\\frac{a}{b}\n$$\n\n\\[ \\sum_i x_i \\]\n\nIt costs $5 or $10. `$x$` Bad: $\\nothing{$',
    );
    await page.locator('.math.is-set').nth(3).waitFor();
    await page.locator('.math.as-written').waitFor();
    expect(await page.locator('.math.is-set annotation').allTextContents()).toEqual([
      'e^{i\\pi}=-1',
      '\\sqrt{2}',
      '\\frac{a}{b}',
      '\\sum_i x_i',
    ]);
    expect(await page.locator('.katex-display').count()).toBe(2);
    expect(await page.locator('.markdown > p').last().innerText()).toBe('It costs $5 or $10. $x$ Bad: $\\nothing{$');
    // KaTeX, its style and its fonts came from this server, when there was a formula.
    expect(loaded.some((name) => /^\/assets\/katex-\w+\.js$/.test(name))).toBe(true);
    await page.evaluate(() => document.fonts.ready);
    expect(await page.evaluate(() => document.fonts.check('16px KaTeX_Main'))).toBe(true);
  });
});

describe('hostile Markdown', () => {
  /** What would tell that something ran, or was fetched. */
  const HOSTILE = [
    '<script>alert(1)</script>',
    '<img src=x onerror=alert(1)>',
    '<svg onload=alert(1)><script>alert(1)</script><a xlink:href="javascript:alert(1)"><text>x</text></a></svg>',
    '<iframe src="javascript:alert(1)" srcdoc="<script>alert(1)</script>"></iframe>',
    '<a href="javascript:alert(1)" onmouseover=alert(1)>click</a>',
    '[click](javascript:alert(1)) [click](JaVaScRiPt:alert(1)) [click](java\nscript:alert(1)) [click](vbscript:x)',
    '[click](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==) <javascript:alert(1)>',
    '[a](https://example.com" onmouseover="alert(1)) ![b](https://example.com/x.png" onerror="alert(1))',
    '![spy](https://example.com/spy.png) ![spy](//example.com/spy.png) ![spy](/v1/models)',
    '![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+) ![x](data:text/html,<script>alert(1)</script>)',
    '<style>* { display: none }</style><link rel=stylesheet href=https://example.com/x.css>',
    '<div style="position:fixed;inset:0;background:red" class="composer" id="question">over everything</div>',
    '<form action="https://example.com"><input name="key"><button>Send</button></form>',
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(1)&gt;">',
    '<base href="https://example.com/"><meta http-equiv="refresh" content="0;url=https://example.com">',
    '<object data="https://example.com"></object><embed src="https://example.com"><video src=x onerror=alert(1)>',
    '`<img src=x onerror=alert(1)>` $<img src=x onerror=alert(1)>$',
    '$\\href{javascript:alert(1)}{x}$ $\\htmlData{x=y}{x}$ $\\includegraphics{https://example.com/x.png}$',
    '```html\n<script>alert(1)</script>\n```',
    '```"><img src=x onerror=alert(1)>\nx\n```',
    '| <img src=x onerror=alert(1)> |\n|---|\n| <script>alert(1)</script> |',
    '<details open ontoggle=alert(1)><template><script>alert(1)</script></template>',
    '[ref]\n\n[ref]: javascript:alert(1) "x" onmouseover="alert(1)"',
    '<span class="math" data-display="true">\\alpha</span><div class="code"><button class="copy-code">Copy</button></div>',
  ];

  it('is text: nothing runs, nothing is fetched, and the policy has nothing to stop', async () => {
    const page = await visit();
    const asked: string[] = [];
    page.on('request', (request) => asked.push(request.url()));
    await importAnswer(page, HOSTILE.join('\n\n'), HOSTILE[1]);
    await page.locator('.code').nth(1).waitFor();
    const found = await page.evaluate(() => {
      const root = document.querySelector('.turns') as HTMLElement;
      const all = [...root.querySelectorAll('*')];
      return {
        tags: all
          .map(({ localName }) => localName)
          .filter((name) =>
            /^(script|img|iframe|style|link|form|input|object|embed|video|base|meta|details|template)$/.test(name),
          ),
        handlers: all
          .flatMap(({ attributes }) => [...attributes].map(({ name }) => name))
          .filter((name) => /^on/.test(name)),
        links: [...root.querySelectorAll('a')]
          .map(({ protocol }) => protocol)
          .filter((each) => !/^https?:$/.test(each)),
        styled: all.filter((each) => each.matches('.markdown [style]:not(.katex *)')).length,
        questions: document.querySelectorAll('#question').length,
        over: document.querySelectorAll('.markdown .composer').length,
      };
    });
    expect(found).toEqual({ tags: [], handlers: [], links: [], styled: 0, questions: 1, over: 0 });
    const text = await page.locator('.markdown').innerText();
    expect(text).toContain('<script>alert(1)</script>');
    expect(text).toContain('<img src=x onerror=alert(1)>');
    // Links with a real address are the only thing to click on; all that was loaded came from the server.
    expect(asked.filter((url) => !url.startsWith(served.url))).toEqual([]);
    expect(asked.filter((url) => url.includes('/v1/'))).toEqual([]);
    for (const link of await page.locator('.markdown a').all()) {
      expect(await link.getAttribute('href')).toMatch(/^https?:/);
      expect(await link.getAttribute('rel')).toContain('noopener');
    }
  });

  it('is harmless in titles, names of files, tools and images', async () => {
    const page = await visit();
    const bad = '<img src=x onerror=alert(1)>';
    const turns = {
      a: {
        id: 'a',
        parent: '',
        role: 'user',
        created: 1,
        parts: [{ type: 'text', text: bad }],
        files: [{ name: bad, text: bad }],
      },
      b: {
        id: 'b',
        parent: 'a',
        role: 'assistant',
        created: 2,
        model: bad,
        parts: [
          { type: 'tool', id: 'c', name: bad, arguments: bad, result: { content: bad, ok: false } },
          {
            type: 'code',
            id: 'd',
            code: bad,
            result: {
              status: 'ok',
              text: bad,
              files: [
                { name: bad, mediaType: 'text/html', url: 'javascript:alert(1)' },
                { name: 'b.html', mediaType: 'text/html', url: 'data:text/html,<script>alert(1)</script>' },
                {
                  name: 'c.svg',
                  mediaType: 'image/svg+xml',
                  url: `data:image/svg+xml;base64,${Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(1)</script></svg>').toString('base64')}`,
                },
              ],
            },
          },
          { type: 'text', text: 42 },
          { type: 'unknown' },
          null,
        ],
      },
      // A circle, and a name that every object has.
      e: { id: 'e', parent: 'e', role: 'user', created: 3, parts: [] },
      f: { id: '__proto__', parent: 'constructor', role: 'assistant', created: 4, parts: [] },
    };
    await importJson(page, {
      conversations: [{ id: '../../x', title: bad, turns, chosen: { '': 'a', __proto__: 'b' } }],
    });
    await page.locator('.step').nth(1).waitFor();
    for (const summary of await page.locator('.step summary').all()) await summary.click();
    expect(
      await page.locator('.turns img').evaluateAll((images) => images.map((image) => image.getAttribute('alt'))),
    ).toEqual(['c.svg']);
    expect(
      await page
        .locator('.result-files a')
        .evaluateAll((links) => links.map((link) => (link as HTMLAnchorElement).download)),
    ).toEqual(['b.html']);
    expect(await page.locator('.header h1').innerText()).toBe(bad);
    expect(await page.locator('.chats .chat-title').innerText()).toBe(bad);
  });

  it('cannot hang the page with nesting, or with signs without end', async () => {
    const page = await visit();
    const bombs = [
      `${'>'.repeat(20_000)} deep`,
      `${'- '.repeat(5_000)}deep`,
      Array.from({ length: 200 }, (_, level) => `${'  '.repeat(level)}- level`).join('\n'),
      '['.repeat(20_000),
      '*a_'.repeat(20_000),
      '**中，'.repeat(5_000),
      `$${'{'.repeat(3_000)}x${'}'.repeat(3_000)}$`,
      '$\\def\\a{\\a\\a}\\a$ $\\rule{9999999em}{9999999em}$',
      '<a '.repeat(10_000),
      `x${'`'.repeat(10_000)}x`,
      '\\['.repeat(5_000),
      `|${'|'.repeat(2_000)}\n|${'-|'.repeat(2_000)}\n`,
      'x'.repeat(200_000),
    ];
    await importAnswer(page, `${bombs.join('\n\n')}\n\nThe end.`);
    await page.locator('.markdown > p', { hasText: 'The end.' }).waitFor();
    const depth = await page.evaluate(() => {
      const depthOf = (element: Element): number => 1 + Math.max(0, ...[...element.children].map(depthOf));
      return depthOf(document.querySelector('.markdown') as Element);
    });
    expect(depth).toBeLessThan(120);
    // It is one conversation among others: what is asked next is answered.
    await page.getByRole('button', { name: 'New chat' }).first().click();
    await page.getByRole('button', { name: 'Learn a fact' }).click();
    await page.locator('.answer').waitFor();
    expect(await answered(page)).toContain('Paris');
  });
});
