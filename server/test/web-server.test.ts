/// <reference lib="dom" />
import type { ServerResponse } from 'node:http';
import type { CodeExecutor } from 'node-chatglm';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { answered, ask, type Front, front, importAnswer, launchBrowser, Visitor, Writer } from './support/page';
import { type Served, serve } from './support/served';

// What the page does when its server is slow, busy, gone, or wants a key; what it sends; and how it shows what comes.

const KEY = 'sk-chatglm-0123456789abcdef';
const PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';

/** An interpreter that knows one answer, and draws a picture. */
const interpreter: CodeExecutor = {
  language: 'python',
  async open() {
    const dispose = async () => {};
    return {
      run: async () => ({
        status: 'ok',
        text: '5050\n',
        files: [{ name: 'plot.png', mediaType: 'image/png', data: Buffer.from(PIXEL, 'base64') }],
        tookMs: 3,
      }),
      dispose,
      [Symbol.asyncDispose]: dispose,
    };
  },
};

let browser: Browser;
let served: Served;
let locked: Served;
let proxy: Front;
beforeAll(async () => {
  [browser, served] = await Promise.all([launchBrowser(), serve({ interpreter })]);
  locked = await serve({ keys: [{ name: 'anna', key: KEY }] });
  proxy = await front(served.url);
});
afterAll(async () => {
  await browser?.close();
  await proxy?.stop();
  await Promise.all([served?.close(), locked?.close()]);
});

let visitor: Visitor;
/** Complaints that a test expects: browsers write every request that failed to the console. */
let expected: RegExp | undefined;
const visit = async (url = proxy.url, options: BrowserContextOptions = {}, settings: object = {}): Promise<Page> => {
  visitor = await Visitor.create(browser, options);
  await visitor.context.addInitScript((some) => {
    localStorage['chatglm.settings'] ??= JSON.stringify({ temperature: 0, topP: 1, ...some });
  }, settings);
  return await visitor.open(url);
};
afterEach(async () => {
  proxy.onChat = undefined;
  proxy.bodies.length = 0;
  expect(visitor.complaints.filter((text) => !expected?.test(text))).toEqual([]);
  expected = undefined;
  await visitor.context.close();
});

/** Answers the next questions by hand. */
function byHand(): Promise<Writer> {
  return new Promise((resolve) => {
    proxy.onChat = (_request, response) => resolve(new Writer(response));
  });
}

function refuse(response: ServerResponse, status: number, code: string, headers: Record<string, string> = {}): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(JSON.stringify({ error: { message: `refused: ${code}`, type: 'error', param: null, code } }));
}

const send = async (page: Page, question: string) => {
  await page.fill('#question', question);
  await page.press('#question', 'Enter');
};

describe('answers on their way', () => {
  it('shows each piece when it comes, and is not chatty for screen readers', async () => {
    const page = await visit();
    const writing = byHand();
    await send(page, 'Count');
    const writer = await writing;
    await page.locator('.waiting').waitFor();
    expect(await page.getByRole('button', { name: 'Stop' }).isVisible()).toBe(true);
    for (const [piece, shown] of [
      ['One', 'One'],
      [', **two', 'One, **two'],
      ['**, three', 'One, two, three'],
    ] as const) {
      writer.text(piece);
      await page.waitForFunction((text) => document.querySelector('.markdown')?.textContent === text, shown);
      expect(await page.locator('[role=status].unseen').innerText()).toBe('');
    }
    writer.end();
    expect(await answered(page)).toBe('One, two, three');
    expect(await page.locator('[role=status].unseen').innerText()).toBe('One, **two**, three');
    expect(await page.getByRole('article', { name: 'ChatGLM' }).getAttribute('aria-busy')).toBe('false');
  });

  it('writes a long answer without touching what is complete', async () => {
    const page = await visit();
    const writing = byHand();
    await send(page, 'Write a lot');
    const writer = await writing;
    writer.text('# First\n\n```js\nconst a = 1;\n```\n\nThe second ');
    await page.locator('.hljs-keyword').waitFor();
    await page.locator('.markdown > p').waitFor();
    await page.evaluate(() => {
      const root = document.querySelector('.markdown') as HTMLElement;
      const seen = { first: root.children[0], code: root.children[1], most: 0, removed: 0 };
      Object.assign(window, { seen });
      new MutationObserver((records) => {
        const touched = records.flatMap(({ removedNodes }) => [...removedNodes]);
        seen.most = Math.max(seen.most, touched.length);
        if (touched.includes(seen.first as Node) || touched.includes(seen.code as Node)) seen.removed++;
      }).observe(root, { childList: true });
    });
    for (let i = 0; i < 300; i++) writer.text(`word ${i}${i % 3 === 0 ? '.\n\n- point\n\nNext ' : ' '}`);
    await page.locator('.markdown > p', { hasText: 'word 299' }).waitFor();
    writer.text('\n\nThe end.');
    writer.end();
    await answered(page);
    const seen = await page.evaluate(() => {
      const { first, code, most, removed } = (
        window as unknown as { seen: { first: Element; code: Element; most: number; removed: number } }
      ).seen;
      return { isFirst: first.isConnected, isCode: code.isConnected, most, removed };
    });
    // One block is written anew at a time, however long the answer is.
    expect(seen).toEqual({ isFirst: true, isCode: true, most: 1, removed: 0 });
    expect(await page.locator('.markdown > *').count()).toBe(204);
    // Who reads further up is left alone; a button leads back.
    const second = byHand();
    await page.locator('.scroller').evaluate((element) => {
      element.scrollTop = 0;
    });
    await page.getByRole('button', { name: 'Jump to the latest' }).waitFor();
    await page.getByRole('button', { name: 'Jump to the latest' }).click();
    await page.getByRole('button', { name: 'Jump to the latest' }).waitFor({ state: 'detached' });
    await send(page, 'More');
    const more = await second;
    more.text(Array.from({ length: 40 }, (_, i) => `line ${i}\n\n`).join(''));
    await page.locator('.markdown > p', { hasText: 'line 39' }).waitFor();
    await page.waitForFunction(() => {
      const { scrollTop, scrollHeight, clientHeight } = document.querySelector('.scroller') as HTMLElement;
      return scrollHeight - scrollTop - clientHeight < 60;
    });
    await page.locator('.scroller').evaluate((element) => {
      element.scrollTop = 100;
    });
    await page.getByRole('button', { name: 'Jump to the latest' }).waitFor();
    more.text('the last line');
    await page.locator('.markdown > p', { hasText: 'the last line' }).waitFor();
    expect(await page.locator('.scroller').evaluate((element) => element.scrollTop)).toBe(100);
    more.end();
    await answered(page);
  });

  it('is the same whether it came at once or letter by letter', async () => {
    const text = [
      '## Title\n\nA paragraph with **bold**, `code` and $x^2$.\n\n- one\n- two\n  1. inner\n\n',
      '```js\nconst a = 1;\n\nconst b = "```";\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> quote\n\n',
      '$$\na+b\n$$\n\n[link][x] **中文：**文字\n\n<i>text</i>\n\n[x]: https://example.com\n\nEnd<b>not bold</b>',
    ].join('');
    const page = await visit();
    const html = async () => {
      await page.locator('.math.is-set').nth(1).waitFor();
      await page.locator('.hljs-keyword').nth(1).waitFor();
      return await page.locator('.markdown').evaluate((element) => element.innerHTML);
    };
    await importAnswer(page, text);
    const whole = await html();
    await page.getByRole('button', { name: 'New chat' }).first().click();
    await page.locator('.empty').waitFor();
    const writing = byHand();
    await send(page, 'Write');
    const writer = await writing;
    for (const letter of text) {
      writer.text(letter);
      // Some letters share a frame, as it happens with a model.
      if (letter === '\n' || letter === ' ') await new Promise(setImmediate);
    }
    writer.end();
    await answered(page);
    expect(await html()).toBe(whole);
  });

  it('shows code that the model runs, and the picture that the code drew', async () => {
    const page = await visit();
    const text = await ask(page, '求1到100的和');
    expect(text).toContain('5050');
    const step = page.locator('.step');
    expect(await step.locator('.step-title').innerText()).toBe('Ran code');
    await step.locator('summary').click();
    expect(await step.locator('pre').first().innerText()).toContain('sum');
    expect(await step.locator('pre').nth(1).innerText()).toBe('5050\n');
    const image = page.getByRole('img', { name: 'plot.png' });
    expect(await image.evaluate((element) => (element as HTMLImageElement).naturalWidth)).toBe(1);
    // What code ran is part of the conversation that the model sees.
    await ask(page, 'Hello');
    expect(proxy.bodies[1]).toMatchObject({
      messages: [
        { role: 'user' },
        { role: 'assistant', tool_calls: [{ function: { name: 'interpreter' } }] },
        { role: 'tool', content: '5050\n' },
        { role: 'assistant' },
        { role: 'user', content: 'Hello' },
      ],
    });
  });
});

describe('what is sent', () => {
  it('is the conversation with its instructions and parameters', async () => {
    const page = await visit();
    await page.locator('.sidebar-bottom button').click();
    await page.getByLabel('System prompt').fill('Be brief.');
    await page.getByRole('radio', { name: 'Balanced' }).check();
    await page.getByLabel('Maximum tokens').fill('20');
    await page.getByLabel('Seed').fill('5');
    await page.keyboard.press('Escape');
    await ask(page, 'Hello');
    expect(proxy.bodies).toEqual([
      {
        model: 'chatglm-tiny',
        messages: [
          { role: 'system', content: 'Be brief.' },
          { role: 'user', content: 'Hello' },
        ],
        stream: true,
        stream_options: { include_usage: true },
        temperature: 0.8,
        top_p: 0.8,
        max_tokens: 20,
        seed: 5,
        chatglm: { run_tools: true, timings: true },
      },
    ]);
    // Instructions are of a conversation, and a new one has none.
    await page.getByRole('button', { name: 'New chat' }).first().click();
    await ask(page, 'Hello');
    expect(proxy.bodies[1]).toMatchObject({ messages: [{ role: 'user', content: 'Hello' }] });
    await page.getByText('limit of tokens').waitFor();
  });

  it('has the text files that are attached', async () => {
    const page = await visit();
    const file = (name: string, content: string | Buffer) => ({
      name,
      mimeType: 'text/plain',
      buffer: Buffer.from(content),
    });
    const choose = page.locator('.composer input[type=file]');
    await choose.setInputFiles([file('notes.txt', 'one\r\ntwo'), file('other.md', '```js\n1\n```')]);
    await page.locator('.chip').nth(1).waitFor();
    expect(await page.locator('.chip').first().innerText()).toMatch(/notes\.txt\s*2 lines/);
    await choose.setInputFiles(file('large.txt', 'x'.repeat(256 * 1024 + 1)));
    await page.getByText('large.txt is larger than 256 KB.').waitFor();
    await choose.setInputFiles(file('image.png', Buffer.from(PIXEL, 'base64')));
    await page.getByText('image.png is no text file.').waitFor();
    await page.getByRole('button', { name: 'Remove other.md' }).click();
    // A file that is dropped, and a long text that is pasted.
    await page.evaluate(() => {
      const data = new DataTransfer();
      data.items.add(new File(['```\ndropped\n```'], 'dropped.csv'));
      const event = (name: string) => new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event('dragover'));
      document.body.dispatchEvent(event('drop'));
    });
    await page.locator('.chip', { hasText: 'dropped.csv' }).waitFor();
    await page.evaluate(() => {
      const clipboardData = new DataTransfer();
      clipboardData.setData('text/plain', 'line\n'.repeat(1000));
      const event = new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true });
      document.querySelector('#question')?.dispatchEvent(event);
    });
    await page.locator('.chip', { hasText: 'Pasted text' }).waitFor();
    await page.getByRole('button', { name: 'Remove Pasted text.txt' }).click();
    await ask(page, 'Hello');
    expect(proxy.bodies).toMatchObject([
      {
        messages: [
          {
            role: 'user',
            content: 'Hello\n\nnotes.txt\n```\none\ntwo\n```\n\ndropped.csv\n````\n```\ndropped\n```\n````',
          },
        ],
      },
    ]);
    expect(await page.locator('.question .chip').count()).toBe(2);
    expect(await page.locator('.composer .chip').count()).toBe(0);
  });

  it('names the model that was chosen', async () => {
    const two = await serve({
      models: [
        { id: 'small', model: served.model },
        { id: 'other', model: served.model },
      ],
    });
    try {
      const page = await visit(two.url);
      const asked: unknown[] = [];
      page.on('request', (request) => {
        if (request.method() === 'POST') asked.push((request.postDataJSON() as { model: unknown }).model);
      });
      await ask(page, 'Hello');
      await page.getByRole('combobox', { name: 'Model' }).selectOption('other');
      await ask(page, 'Hello');
      await page.reload();
      await page.locator('.answer').first().waitFor();
      expect(await page.getByRole('combobox', { name: 'Model' }).inputValue()).toBe('other');
      await page.getByRole('button', { name: 'New chat' }).first().click();
      await ask(page, 'Hello');
      expect(asked).toEqual(['small', 'other', 'other']);
    } finally {
      await two.close();
    }
  });
});

describe('when something is wrong', () => {
  it('asks for the key, and answers the question then', async () => {
    expected = /401/;
    const page = await visit(locked.url);
    const dialog = page.getByRole('dialog', { name: 'This server needs a key' });
    await dialog.waitFor();
    await dialog.getByRole('button', { name: 'Cancel' }).click();
    await send(page, 'What is the capital of France?');
    await page.getByText('The server did not accept the key.').waitFor();
    await dialog.getByLabel('API key').fill('sk-wrong');
    await dialog.getByRole('button', { name: 'Continue' }).click();
    await dialog.getByText('The server did not accept this key.').waitFor();
    await dialog.getByLabel('API key').fill(KEY);
    await dialog.getByRole('button', { name: 'Continue' }).click();
    await page.locator('.answer .markdown').waitFor();
    expect(await answered(page)).toContain('Paris');
    // It is kept, and shown to nobody who looks over a shoulder.
    await page.reload();
    expect(await ask(page, 'Hello')).toContain('ChatGLM-Tiny');
    await page.locator('.sidebar-bottom button').click();
    expect(await page.getByLabel('API key').getAttribute('type')).toBe('password');
  });

  it('says that the server is gone, and goes on when it is back', async () => {
    expected = /ERR_|Failed to load/;
    const page = await visit();
    await ask(page, 'Hello');
    await proxy.stop();
    await send(page, 'What is the capital of France?');
    await page.getByText('The server could not be reached. Your question is kept.').waitFor();
    await page.getByText('The server cannot be reached. Trying again…').waitFor();
    expect(await page.getByRole('button', { name: 'Try again' }).isDisabled()).toBe(true);
    await proxy.start();
    await page.getByText('The server cannot be reached.').waitFor({ state: 'detached' });
    await page.getByRole('button', { name: 'Try again' }).click();
    await page.locator('.problem').waitFor({ state: 'detached' });
    expect(await answered(page)).toContain('Paris');
    expect(await page.locator('.answer').count()).toBe(2);
  });

  it('keeps what came before a connection broke', async () => {
    expected = /ERR_|Failed to load/;
    const page = await visit();
    proxy.onChat = (_request, response) => {
      const writer = new Writer(response);
      writer.text('The beginning');
      setImmediate(() => response.destroy());
    };
    await send(page, 'What is the capital of France?');
    await page.getByText('The connection broke before the answer was complete.').waitFor();
    proxy.onChat = undefined;
    await page.getByRole('button', { name: 'Try again' }).click();
    await page.locator('.problem').waitFor({ state: 'detached' });
    expect(await answered(page)).toContain('Paris');
  });

  it('waits where the server is busy, and tries again by itself', async () => {
    expected = /429/;
    const page = await visit();
    proxy.onChat = (_request, response) => {
      proxy.onChat = undefined;
      refuse(response, 429, 'queue_full', { 'retry-after': '1' });
    };
    await send(page, 'What is the capital of France?');
    await page.getByText('The server is busy').waitFor();
    await page.locator('.answer .markdown').waitFor();
    expect(await answered(page)).toContain('Paris');
    expect(proxy.bodies.length).toBe(2);
  });

  it('tells what a server says that refuses or fails', async () => {
    expected = /400|500/;
    const page = await visit();
    for (const [status, text] of [
      [400, 'The server refused the request.'],
      [500, 'The server failed to answer.'],
    ] as const) {
      proxy.onChat = (_request, response) => refuse(response, status, 'some_reason');
      await send(page, 'Hello');
      await page.getByText(text).waitFor();
      expect(await page.locator('.problem-message').last().innerText()).toBe('refused: some_reason');
    }
    // A failure in the middle of a stream is an event.
    proxy.onChat = (_request, response) => {
      new Writer(response).text('Half');
      response.end(`data: ${JSON.stringify({ error: { message: 'no memory', code: 'out_of_memory' } })}\n\n`);
    };
    await send(page, 'Hello');
    await page.locator('.problem-message', { hasText: 'no memory' }).waitFor();
    expect(await page.locator('.answer .markdown').last().innerText()).toBe('Half');
  });

  it('shows how full the context is, and leaves out the oldest questions when it is', async () => {
    expected = /400/;
    const page = await visit();
    const long = `Hello. ${'The little rabbit lived in an orchard. '.repeat(18)}`;
    await ask(page, `${long} Tell me a story`);
    const gauge = page.locator('.gauge');
    expect(await gauge.getAttribute('aria-label')).toMatch(/^Context: \d+ of 1,024 tokens \(\d+%\)$/);
    const share = async () => Number(/(\d+)%/.exec(await gauge.innerText())?.[1]);
    let before = await share();
    expect(before).toBeGreaterThan(10);
    const drop = page.getByRole('button', { name: 'Leave out the oldest and try again' });
    for (;;) {
      await ask(page, `${long} Hello`);
      if (await drop.isVisible()) break;
      expect(await share()).toBeGreaterThan(before);
      before = await share();
    }
    await page.getByText('This conversation is too long for the model’s context.').waitFor();
    const questions = await page.locator('.question').count();
    await drop.click();
    await page.locator('.left-out').waitFor();
    await answered(page);
    expect(await page.locator('.problem').count()).toBe(0);
    const { messages } = proxy.bodies.at(-1) as { messages: { role: string }[] };
    expect(messages.filter(({ role }) => role === 'user').length).toBeLessThan(questions);
    // What was left out stays so for the questions that follow, and is still there to read.
    expect(await page.locator('.question').count()).toBe(questions);
    // A question that is too long alone cannot be helped so.
    await page.getByRole('button', { name: 'New chat' }).first().click();
    await ask(page, 'word '.repeat(2000));
    await page.getByText('This question alone is too long').waitFor();
    expect(await drop.count()).toBe(0);
    // It does not stand in the way of the next one.
    expect(await ask(page, 'What is the capital of France?')).toContain('Paris');
  });

  it('offers the same where an answer came to the end of the context', async () => {
    const page = await visit();
    await ask(page, 'Hello');
    const writing = byHand();
    await send(page, 'What is the capital of France?');
    const writer = await writing;
    proxy.onChat = undefined;
    writer.text('The capital of');
    writer.end('length', { prompt_tokens: 1000, completion_tokens: 24 });
    await page.getByText('The answer was cut off: the model’s context is full.').waitFor();
    expect(await page.locator('.gauge').innerText()).toBe('100%');
    await page.getByRole('button', { name: 'Leave out the oldest and try again' }).click();
    await page.locator('.left-out').waitFor();
    expect(await answered(page)).toContain('Paris');
    expect(proxy.bodies.at(-1)).toMatchObject({ messages: [{ content: 'What is the capital of France?' }] });
  });
});
