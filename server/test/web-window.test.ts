/// <reference lib="dom" />
import { readFileSync } from 'node:fs';
import { defineTool } from 'node-chatglm';
import type { Page } from 'playwright-core';
import { answered, ask, importJson, visits } from './support/page';
import { type Served, serve } from './support/served';

// What the page keeps, and for whom it is: conversations, windows, languages, themes, sizes, keyboards.

let served: Served;
beforeAll(async () => {
  const city = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } as const;
  const tools = [
    defineTool({
      name: 'get_weather',
      description: '查询某个城市的天气',
      parameters: city,
      execute: () => ({ weather: '晴', temperature: 21 }),
    }),
  ];
  served = await serve({ tools });
});
afterAll(async () => {
  await served?.close();
});

const { visit, visitor } = visits(() => served.url);

const titles = (page: Page) => page.locator('.chats .chat-title').allInnerTexts();
const menu = async (page: Page, title: string, item: string) => {
  await page
    .getByRole('navigation')
    .getByRole('button', { name: `More for “${title}”` })
    .click();
  await page.getByRole('menuitem', { name: item }).click();
};
const saved = async (page: Page, act: () => Promise<void>): Promise<string> => {
  const [download] = await Promise.all([page.waitForEvent('download'), act()]);
  return readFileSync(await download.path(), 'utf8');
};

describe('what the browser keeps', () => {
  it('renames, finds, deletes and brings back', async () => {
    const page = await visit();
    await ask(page, 'What is the capital of France?');
    await page.getByRole('button', { name: 'New chat' }).first().click();
    await ask(page, 'Hello');
    expect(await titles(page)).toEqual(['Hello', 'What is the capital of France?']);
    await menu(page, 'Hello', 'Rename');
    const field = page.getByRole('textbox', { name: 'Title' });
    await field.fill('Greetings');
    await field.press('Enter');
    await page.locator('.chat-title', { hasText: 'Greetings' }).waitFor();
    // Words of an answer are found, with what stands around them.
    await page.fill('.sidebar input[type=search]', 'paris');
    await page.locator('.excerpt', { hasText: 'Paris.' }).waitFor();
    expect(await titles(page)).toEqual(['What is the capital of France?']);
    await page.fill('.sidebar input[type=search]', 'nothing of the kind');
    await page.getByText('Nothing found').waitFor();
    await page.fill('.sidebar input[type=search]', '');
    await menu(page, 'Greetings', 'Delete');
    await page.getByText('“Greetings” was deleted.').waitFor();
    expect(await titles(page)).toEqual(['What is the capital of France?']);
    expect(await page.locator('.empty').count()).toBe(1);
    await page.getByRole('button', { name: 'Undo' }).click();
    await page.locator('.bubble', { hasText: 'Hello' }).waitFor();
    expect(await titles(page)).toEqual(['Greetings', 'What is the capital of France?']);
    // Without undo it stays deleted.
    await menu(page, 'What is the capital of France?', 'Delete');
    await page.getByText('was deleted').waitFor();
    await page.reload();
    await page.locator('.bubble').waitFor();
    expect(await titles(page)).toEqual(['Greetings']);
  });

  it('exports and imports without loss', async () => {
    const page = await visit();
    await ask(page, '北京今天天气怎么样？');
    await page.getByRole('button', { name: 'Answer again' }).click();
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    await answered(page);
    const json = await saved(page, () => menu(page, '北京今天天气怎么样？', 'Export as JSON'));
    const markdown = await saved(page, () => menu(page, '北京今天天气怎么样？', 'Export as Markdown'));
    expect(markdown).toContain(
      '# 北京今天天气怎么样？\n\n## You\n\n北京今天天气怎么样？\n\n## ChatGLM\n\n`get_weather`',
    );
    expect(markdown).toContain('北京现在的天气是晴，气温21度。');
    await menu(page, '北京今天天气怎么样？', 'Delete');
    await page.locator('.empty').waitFor();
    await importJson(page, json);
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    expect(await answered(page)).toBe('北京现在的天气是晴，气温21度。');
    const again = await saved(page, () => menu(page, '北京今天天气怎么样？', 'Export as JSON'));
    expect(JSON.parse(again)).toEqual(JSON.parse(json));
    // A second time it is a copy, and what is no export is refused.
    await importJson(page, json);
    await page.locator('.chats li').nth(1).waitFor();
    await importJson(page, '{"format":');
    await page.getByText('This file has no conversations that can be read.').waitFor();
    expect(await page.locator('.chats li').count()).toBe(2);
  });

  it('keeps everything over a reload', async () => {
    const page = await visit();
    await ask(page, 'What is the capital of France?');
    await page.fill('#question', 'a question that was not sent');
    await page.locator('.sidebar-bottom button').click();
    await page.getByRole('radio', { name: 'Creative' }).check();
    await page.getByLabel('Seed').fill('42');
    await page.getByLabel('System prompt').fill('Be brief.');
    await page.keyboard.press('Escape');
    await page.reload();
    await page.locator('.answer').waitFor();
    expect(await answered(page)).toBe('The capital of France is Paris.');
    expect(await page.locator('.statistics').innerText()).toContain('tokens/s');
    expect(await page.inputValue('#question')).toBe('a question that was not sent');
    await page.locator('.sidebar-bottom button').click();
    expect(await page.getByLabel('Creative').isChecked()).toBe(true);
    expect(await page.getByLabel('Seed').inputValue()).toBe('42');
    expect(await page.getByLabel('System prompt').inputValue()).toBe('Be brief.');
  });

  it('shows in two windows what each of them does', async () => {
    const page = await visit();
    const other = await visitor().open(served.url);
    await ask(page, 'What is the capital of France?');
    await other.locator('.chats .chat').click();
    expect(await answered(other)).toBe('The capital of France is Paris.');
    expect(await ask(other, 'Hello')).toContain('ChatGLM-Tiny');
    await page.locator('.question').nth(1).waitFor();
    expect(await answered(page)).toContain('ChatGLM-Tiny');
    // Settings and deletions are those of both.
    await other.locator('.sidebar-bottom button').click();
    await other.getByRole('radio', { name: 'Dark' }).check();
    await page.locator('html[data-theme=dark]').waitFor();
    await other.keyboard.press('Escape');
    await menu(other, 'What is the capital of France?', 'Delete');
    await page.locator('.empty').waitFor();
    expect(await titles(page)).toEqual([]);
  });
});

describe('languages, themes and sizes', () => {
  it('is Chinese for those whose browser is, and English for those who want', async () => {
    const page = await visit({ locale: 'zh-CN' });
    await page.getByRole('heading', { name: '想了解些什么？' }).waitFor();
    expect(await page.getAttribute('html', 'lang')).toBe('zh-CN');
    expect(await page.getAttribute('#question', 'placeholder')).toBe('输入你的问题');
    await page.getByRole('button', { name: '寻求建议' }).click();
    await page.locator('.answer').waitFor();
    await answered(page);
    expect(await page.locator('.statistics').innerText()).toMatch(/个 token · 每秒/);
    await page.getByRole('button', { name: '设置' }).click();
    await page.getByRole('radio', { name: 'English' }).check();
    await page.getByRole('heading', { name: 'Settings' }).waitFor();
    expect(await page.getAttribute('html', 'lang')).toBe('en');
    await page.reload();
    await page.getByRole('button', { name: 'Settings' }).waitFor();
  });

  it('is dark for those whose system is, and light for those who want', async () => {
    const page = await visit({ colorScheme: 'dark' });
    const ground = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    const dark = await ground();
    await page.emulateMedia({ colorScheme: 'light' });
    const light = await ground();
    expect(light).not.toBe(dark);
    await page.locator('.sidebar-bottom button').click();
    await page.getByRole('radio', { name: 'Dark' }).check();
    expect(await ground()).toBe(dark);
    await page.emulateMedia({ colorScheme: 'dark' });
    await page.getByRole('radio', { name: 'Light' }).check();
    expect(await ground()).toBe(light);
    // The theme is there before the first paint: the script that sets it is no module.
    await page.reload();
    expect(await ground()).toBe(light);
  });

  it('fits a phone: conversations are a drawer', async () => {
    const page = await visit({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
    // Enter is for a new line there.
    await page.locator('#question').press('Enter');
    await ask(page, 'What is the capital of France?');
    const sidebar = page.getByRole('complementary', { name: 'Conversations' });
    expect(await sidebar.isVisible()).toBe(false);
    await page.getByRole('button', { name: 'Show conversations' }).tap();
    await sidebar.waitFor();
    await page.waitForFunction(() => document.activeElement?.closest('#sidebar'));
    await page.keyboard.press('Escape');
    await sidebar.waitFor({ state: 'hidden' });
    await page.getByRole('button', { name: 'Show conversations' }).tap();
    await sidebar.getByRole('button', { name: 'New chat' }).tap();
    await sidebar.waitFor({ state: 'hidden' });
    await page.locator('.empty').waitFor();
    // Nothing is wider than the window.
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(360);
  });
});

describe('keyboard', () => {
  it('does everything without a mouse', async () => {
    const page = await visit();
    expect(await page.evaluate(() => document.activeElement?.id)).toBe('question');
    await page.keyboard.type('Hello');
    await page.keyboard.press('Shift+Enter');
    await page.keyboard.type('again');
    expect(await page.inputValue('#question')).toBe('Hello\nagain');
    await page.fill('#question', 'What is the capital of France?');
    await page.keyboard.press('Enter');
    await page.locator('.answer').waitFor();
    await answered(page);
    expect(await page.evaluate(() => document.activeElement?.id)).toBe('question');
    // Arrow up edits the last question; Escape leaves it.
    await page.keyboard.press('ArrowUp');
    await page.getByRole('textbox', { name: 'Edit the question' }).waitFor();
    await page.keyboard.press('Escape');
    await page.waitForFunction(() => document.activeElement?.id === 'question');
    await page.keyboard.press('ArrowUp');
    await page.getByRole('textbox', { name: 'Edit the question' }).waitFor();
    await page.keyboard.press('Control+a');
    await page.keyboard.type('What is the capital of Italy?');
    await page.keyboard.press('Enter');
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    expect(await answered(page)).toContain('Rome');
    // Ctrl+K begins a new conversation, or finds one.
    await page.keyboard.press('Control+k');
    await page.getByRole('combobox').waitFor();
    await page.keyboard.press('Enter');
    await page.locator('.empty').waitFor();
    await page.keyboard.press('Control+k');
    await page.keyboard.type('rome');
    await page.getByRole('option', { name: 'What is the capital of France?' }).waitFor();
    await page.keyboard.press('Enter');
    await page.locator('.answer').waitFor();
    await page.waitForFunction(() => document.activeElement?.id === 'question');
    // The list's menu, with arrows.
    const item = page.getByRole('navigation').getByRole('button', { name: 'More for' });
    await item.focus();
    await page.keyboard.press('Enter');
    await page.getByRole('menuitem', { name: 'Rename' }).waitFor();
    await page.keyboard.press('End');
    expect(await page.evaluate(() => document.activeElement?.textContent)).toBe('Delete');
    await page.keyboard.press('Enter');
    await page.locator('.empty').waitFor();
    // The first stop of the tab key leads to the question.
    await page.locator('#sidebar button').first().focus();
    await page.keyboard.press('Shift+Tab');
    expect(await page.evaluate(() => document.activeElement?.textContent)).toBe('Skip to the question field');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.activeElement?.id === 'question');
  });

  it('does not send while an input method composes', async () => {
    const page = await visit();
    const session = await visitor().context.newCDPSession(page);
    await page.focus('#question');
    await session.send('Input.imeSetComposition', { text: 'ni hao', selectionStart: 6, selectionEnd: 6 });
    // The Enter of an input method is a key of code 229.
    await session.send('Input.dispatchKeyEvent', {
      type: 'rawKeyDown',
      key: 'Enter',
      code: 'Enter',
      windowsVirtualKeyCode: 229,
    });
    await session.send('Input.insertText', { text: '你好' });
    expect(await page.inputValue('#question')).toBe('你好');
    expect(await page.locator('.question').count()).toBe(0);
    // Browsers tell of a composition in the event, too.
    await page.evaluate(() => {
      const event = new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true });
      document.querySelector('#question')?.dispatchEvent(event);
    });
    expect(await page.locator('.question').count()).toBe(0);
    await page.keyboard.press('Enter');
    await page.locator('.answer').waitFor();
    expect(await answered(page)).toContain('ChatGLM-Tiny');
  });
});
