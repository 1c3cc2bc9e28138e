/// <reference lib="dom" />
import { defineTool } from 'node-chatglm';
import type { Page } from 'playwright-core';
import { answered, ask, visits } from './support/page';
import { type Served, serve } from './support/served';

// The page with the real server and the embedded model, in Chromium.

let served: Served;
/** The tool `get_time` gives its answer once this was called. */
let openGate: () => void = () => {};
let gate: Promise<void> | undefined;
const aborted: string[] = [];

beforeAll(async () => {
  const city = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } as const;
  const tools = [
    defineTool({
      name: 'get_weather',
      description: '查询某个城市的天气',
      parameters: city,
      execute: () => ({ weather: '晴', temperature: 21 }),
    }),
    defineTool({
      name: 'get_time',
      description: '查询某个城市现在的时间',
      parameters: city,
      execute: async (_, { signal }) => {
        signal.addEventListener('abort', () => aborted.push('get_time'));
        await gate;
        return { time: '15:42' };
      },
    }),
  ];
  served = await serve({ tools });
});
afterAll(async () => {
  await served?.close();
});

const { visit } = visits(() => served.url);
afterEach(() => {
  openGate();
  gate = undefined;
});

const close = () => {
  gate = new Promise((resolve) => {
    openGate = resolve;
  });
};
const titles = (page: Page) => page.locator('.chats .chat-title').allInnerTexts();
describe('conversations with the model', () => {
  it('names the conversation to balancers', async () => {
    const page = await visit();
    const named: (string | null)[] = [];
    page.on('request', (request) => {
      if (request.method() === 'POST') named.push(request.headers()['x-conversation-id'] ?? null);
    });
    for (const question of ['What is the capital of France?', '你好']) {
      await ask(page, question);
    }
    expect(named).toHaveLength(2);
    expect(named[0]).toMatch(/./);
    expect(named[1]).toBe(named[0]);
  });

  it('answers the first question, and tells what it took', async () => {
    const page = await visit();
    expect(await page.locator('.examples button').count()).toBe(4);
    expect(await ask(page, 'What is the capital of France?')).toBe('The capital of France is Paris.');
    expect(await page.locator('.statistics').innerText()).toMatch(/^\d+ tokens · [\d.,]+ tokens\/s$/);
    expect(await titles(page)).toEqual(['What is the capital of France?']);
    expect(await page.title()).toBe('What is the capital of France? · ChatGLM');
    expect(page.url()).toMatch(/#\/c\/\w+$/);
    // The question before is part of the conversation.
    await ask(page, '晚上睡不着应该怎么办');
    expect(await page.locator('.answer ol > li').count()).toBe(5);
  });

  it('has examples that the model answers', async () => {
    const page = await visit();
    for (const [name, answer] of [
      ['Calculate', '144'],
      ['Learn a fact', 'Paris'],
      ['Look up the weather', '21'],
      ['Get advice', '医生'],
    ] as const) {
      await page.getByRole('button', { name: 'New chat' }).first().click();
      await page.getByRole('button', { name }).click();
      await page.locator('.answer').waitFor();
      expect(await answered(page)).toContain(answer);
    }
  });

  it('shows an answer while it is written', async () => {
    const page = await visit();
    await page.evaluate(() => {
      const seen = new Set<number>();
      Object.assign(window, { seen });
      const look = () => {
        const text = document.querySelector('.answer[aria-busy=true] .markdown')?.textContent;
        if (text) seen.add(text.length);
        requestAnimationFrame(look);
      };
      look();
    });
    const text = await ask(page, 'Tell me a story');
    const lengths = await page.evaluate(() => [...(window as unknown as { seen: Set<number> }).seen]);
    expect(lengths.length).toBeGreaterThan(1);
    expect(lengths).toEqual([...lengths].sort((a, b) => a - b));
    expect(Math.max(...lengths)).toBeLessThanOrEqual(text.length);
  });

  it('stops, keeps what there is, and the server hears of it', async () => {
    const page = await visit();
    close();
    await page.fill('#question', '现在北京几点了？');
    await page.press('#question', 'Enter');
    await page.locator('.step.is-running').waitFor();
    await page.getByRole('button', { name: 'Stop' }).click();
    await page.getByText('You stopped this answer.').waitFor();
    expect(await page.locator('.step').count()).toBe(1);
    await served.idle();
    expect(aborted.length).toBe(1);
    // The conversation goes on; the call that was cut off is no part of it.
    openGate();
    expect(await ask(page, 'What is the capital of France?')).toContain('Paris');
  });

  it('stops with Escape', async () => {
    const page = await visit();
    close();
    await page.fill('#question', '现在北京几点了？');
    await page.press('#question', 'Enter');
    await page.locator('.step.is-running').waitFor();
    await page.keyboard.press('Escape');
    await page.getByText('You stopped this answer.').waitFor();
  });

  it('keeps a question whose answer a reload cuts off', async () => {
    const page = await visit();
    close();
    await page.fill('#question', '现在北京几点了？');
    await page.press('#question', 'Enter');
    await page.locator('.step.is-running').waitFor();
    await page.reload();
    await page.getByText('This answer was cut off.').waitFor();
    expect(await page.locator('.bubble').innerText()).toBe('现在北京几点了？');
    expect(await page.locator('.step').innerText()).toContain('get_time');
    openGate();
    await page.getByRole('button', { name: 'Answer again' }).click();
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    expect(await answered(page)).toContain('15:42');
  });

  it('answers again beside the answer that there is', async () => {
    const page = await visit({}, { temperature: 1.2, topP: 1, seed: 7 });
    const first = await ask(page, 'Tell me a story');
    // Another seed, another story.
    await page.evaluate(() => {
      const name = 'chatglm.settings';
      const newValue = JSON.stringify({ ...JSON.parse(localStorage[name]), seed: 8 });
      localStorage[name] = newValue;
      dispatchEvent(new StorageEvent('storage', { key: name, newValue }));
    });
    await page.getByRole('button', { name: 'Answer again' }).click();
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    const second = await answered(page);
    expect(second).not.toBe(first);
    await page.getByRole('button', { name: 'Previous version' }).click();
    await page.getByRole('group', { name: 'Version 1 of 2' }).waitFor();
    expect(await answered(page)).toBe(first);
    await page.getByRole('button', { name: 'Next version' }).click();
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    expect(await answered(page)).toBe(second);
  });

  it('branches where a question is edited, and each branch keeps what follows', async () => {
    const page = await visit();
    await ask(page, 'What is the capital of France?');
    await ask(page, 'Hello');
    await page.locator('.question').first().hover();
    await page.getByRole('button', { name: 'Edit' }).first().click();
    const field = page.getByRole('textbox', { name: 'Edit the question' });
    expect(await field.inputValue()).toBe('What is the capital of France?');
    await field.fill('What is the capital of Japan?');
    await field.press('Enter');
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    expect(await answered(page)).toBe('The capital of Japan is Tokyo.');
    expect(await page.locator('.question').count()).toBe(1);
    await page.getByRole('button', { name: 'Previous version' }).click();
    await page.locator('.question').nth(1).waitFor();
    expect(await page.locator('.bubble').allInnerTexts()).toEqual(['What is the capital of France?', 'Hello']);
    // A reload shows the branch that was shown.
    await page.reload();
    await page.locator('.question').nth(1).waitFor();
    expect(await page.locator('.bubble').first().innerText()).toBe('What is the capital of France?');
  });

  it('shows tools as steps that can be opened', async () => {
    const page = await visit();
    close();
    await page.fill('#question', '现在北京几点了？');
    await page.press('#question', 'Enter');
    await page.getByText('Using get_time…').waitFor();
    openGate();
    expect(await answered(page)).toContain('15:42');
    const step = page.locator('.step');
    expect(await step.locator('.step-title').innerText()).toBe('Used get_time');
    expect(await step.locator('.step-detail').innerText()).toBe('北京');
    expect(await step.locator('pre').first().isVisible()).toBe(false);
    await step.locator('summary').click();
    expect(await step.locator('pre').allInnerTexts()).toEqual(['{\n  "city": "北京"\n}', '{\n  "time": "15:42"\n}']);
    // What the tool gave is part of the conversation.
    expect(await ask(page, '北京今天天气怎么样？')).toContain('21');
    // Without tools the model is told of none.
    await page.getByRole('button', { name: 'Tools' }).click();
    await ask(page, '上海今天天气怎么样？');
    expect(await page.locator('.answer').last().locator('.step').count()).toBe(0);
  });
});
