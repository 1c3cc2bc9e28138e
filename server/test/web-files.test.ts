/// <reference lib="dom" />
import { request } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gunzipSync, gzipSync } from 'node:zlib';
import axe from 'axe-core';
import express from 'express';
import Fastify from 'fastify';
import type { Browser } from 'playwright-core';
import { fastifyChatGLM, requestHandler } from '../src/index';
import { CONTENT_SECURITY_POLICY } from '../src/web';
import { ask, importAnswer, launchBrowser, Visitor } from './support/page';
import { type Served, serve } from './support/served';

// The page's files as the server gives them, the page under a path, and what axe says of it.

let browser: Browser;
let served: Served;
beforeAll(async () => {
  [browser, served] = await Promise.all([launchBrowser(), serve()]);
});
afterAll(async () => {
  await browser?.close();
  await served?.close();
});

interface Raw {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  body: Buffer;
}

/** A request whose path is sent as it is, which fetch() would tidy up. */
function get(path: string, headers: Record<string, string> = {}, method = 'GET'): Promise<Raw> {
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(served.url);
    const sent = request({ hostname, port, path, headers, method }, async (response) => {
      const chunks: Buffer[] = [];
      for await (const chunk of response) chunks.push(chunk as Buffer);
      resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) });
    });
    sent.on('error', reject);
    sent.end();
  });
}

/** The files that index.html names. */
async function named(): Promise<string[]> {
  const { body } = await get('/');
  return [...body.toString().matchAll(/(?:href|src)="([^"]+)"/g)].map(([, name]) => `/${name}`);
}

describe('files', () => {
  it('come with a strict policy', async () => {
    const { status, headers, body } = await get('/');
    expect(status).toBe(200);
    expect(headers['content-type']).toBe('text/html; charset=utf-8');
    const policy = headers['content-security-policy'] as string;
    expect(policy).toBe(CONTENT_SECURITY_POLICY);
    expect(policy).toContain("default-src 'none'");
    expect(policy).toContain("require-trusted-types-for 'script'");
    expect(policy).not.toMatch(/unsafe|\*|https?:/);
    expect(headers['x-content-type-options']).toBe('nosniff');
    expect(headers['referrer-policy']).toBe('no-referrer');
    // Nothing that the policy would stop, and nothing from elsewhere.
    expect(body.toString()).not.toMatch(/<script>|<style|style=|\son\w+=|https?:\/\//);
  });

  it('are compressed, and kept for as long as they do not change', async () => {
    const page = await get('/', { 'accept-encoding': 'gzip' });
    expect(page.headers['content-encoding']).toBe('gzip');
    expect(page.headers['cache-control']).toBe('no-cache');
    expect(page.headers.vary).toBe('accept-encoding');
    const etag = page.headers.etag as string;
    const again = await get('/', { 'accept-encoding': 'gzip', 'if-none-match': `"other", W/${etag}` });
    expect(again.status).toBe(304);
    expect(again.body.length).toBe(0);
    // Another form is another thing.
    expect((await get('/', { 'if-none-match': etag })).status).toBe(200);
    const names = await named();
    expect(names.length).toBeGreaterThanOrEqual(4);
    for (const name of names) {
      const plain = await get(name);
      expect(plain.status).toBe(200);
      expect(plain.headers['cache-control']).toBe('public, max-age=31536000, immutable');
      expect(plain.headers['content-encoding']).toBeUndefined();
      expect(name).toMatch(/-[A-Z0-9]{8}\.\w+$/);
      const packed = await get(name, { 'accept-encoding': 'br;q=0, gzip' });
      expect(packed.headers['content-encoding']).toBe('gzip');
      expect(gunzipSync(packed.body).equals(plain.body)).toBe(true);
      expect((await get(name, { 'accept-encoding': 'gzip, br' })).headers['content-encoding']).toBe('br');
      expect((await get(name, {}, 'HEAD')).headers['content-length']).toBe(String(plain.body.length));
    }
  });

  it('are those of the list: no path opens another', async () => {
    const [name] = (await named()).filter((each) => each.endsWith('.js'));
    for (const path of [
      '/index.html',
      '/files.json',
      '/assets',
      '/assets/',
      '/assets/..',
      '/assets/../files.json',
      '/assets/%2e%2e/files.json',
      '/assets/..%2ffiles.json',
      '/assets/..%5cfiles.json',
      '//etc/passwd',
      '/assets//etc/passwd',
      '/../../../../etc/passwd',
      '/assets/%00',
      `${name}.gzip`,
      `${name}.br`,
      `${name}%00`,
      `${name}/`,
      '/web/../package.json',
    ]) {
      const { status, body } = await get(path);
      expect([path, status, body.toString().includes('root:')]).toEqual([path, expect.any(Number), false]);
      expect([400, 404]).toContain(status);
    }
  });

  it('are at most 250 KB for a first visit, with code and formulas too', async () => {
    const visitor = await Visitor.create(browser);
    // What the network carried, as gzip would: Chromium takes brotli, which is smaller.
    const sizes = new Map<string, number>();
    const page = await visitor.window();
    page.on('response', async (response) => {
      const { pathname } = new URL(response.url());
      if (response.request().method() !== 'GET' || response.status() !== 200) return;
      const body = await response.body();
      const isFont = pathname.endsWith('.woff2');
      sizes.set(pathname, isFont ? body.length : gzipSync(body).length);
    });
    await page.goto(served.url);
    await page.locator('#question').waitFor();
    await page.waitForLoadState('networkidle');
    const total = () => [...sizes.values()].reduce((sum, size) => sum + size, 0);
    const first = total();
    expect(first).toBeGreaterThan(30_000);
    expect(first).toBeLessThanOrEqual(100_000);
    // What is lazy: the highlighter with the first code, KaTeX with the first formula, fonts as letters need them.
    expect([...sizes.keys()].filter((name) => /katex|languages|KaTeX|math/.test(name))).toEqual([]);
    await importAnswer(page, 'The roots: $x^2$\n\n```js\nconst a = 1;\n```');
    await page.locator('.math.is-set').waitFor();
    await page.locator('.hljs-keyword').waitFor();
    await page.evaluate(() => document.fonts.ready);
    await page.waitForLoadState('networkidle');
    expect([...sizes.keys()].some((name) => /katex/.test(name))).toBe(true);
    expect(total()).toBeLessThanOrEqual(250_000);
    expect(visitor.complaints).toEqual([]);
    await visitor.context.close();
  });

  it('tells of tools to those who may ask only', async () => {
    const locked = await serve({ keys: [{ name: 'anna', key: 'sk-chatglm-0123456789abcdef' }] });
    try {
      expect((await fetch(locked.url)).status).toBe(200);
      expect((await fetch(`${locked.url}/web/config.json`)).status).toBe(401);
      const headers = { authorization: 'Bearer sk-chatglm-0123456789abcdef' };
      const config = await fetch(`${locked.url}/web/config.json`, { headers });
      expect(await config.json()).toEqual({ tools: [], interpreter: null });
    } finally {
      await locked.close();
    }
    const without = await serve({ web: false });
    try {
      expect((await fetch(without.url)).status).toBe(404);
    } finally {
      await without.close();
    }
  });
});

describe('under a path', () => {
  const tryIt = async (url: string) => {
    const visitor = await Visitor.create(browser);
    // Without its slash the address leads to the one with it.
    const page = await visitor.open(url);
    expect(page.url()).toMatch(/\/llm\/(#\/)?$/);
    expect(await ask(page, 'What is the capital of France?')).toMatch(/Paris/);
    await importAnswer(page, '$x$ and\n\n```js\nconst a = 1;\n```');
    await page.locator('.math.is-set').waitFor();
    await page.locator('.hljs-keyword').waitFor();
    expect(visitor.complaints).toEqual([]);
    await visitor.context.close();
  };

  it('of an Express application', async () => {
    const handler = requestHandler({ model: served.model });
    const app = express();
    app.use('/llm', handler);
    const http = app.listen(0, '127.0.0.1');
    await new Promise((resolve) => http.once('listening', resolve));
    try {
      await tryIt(`http://127.0.0.1:${(http.address() as AddressInfo).port}/llm`);
    } finally {
      await handler.close();
      http.closeAllConnections();
      await new Promise((resolve) => http.close(resolve));
    }
  });

  it('of a Fastify application', async () => {
    const app = Fastify();
    await app.register(fastifyChatGLM, { prefix: '/llm', model: served.model });
    try {
      await tryIt(`${await app.listen({ port: 0, host: '127.0.0.1' })}/llm`);
    } finally {
      await app.close();
    }
  });
});

describe('accessibility', () => {
  it.each(['light', 'dark'] as const)('axe finds nothing in any view, %s', async (colorScheme) => {
    const visitor = await Visitor.create(browser, { colorScheme, bypassCSP: true });
    const page = await visitor.open(served.url);
    const check = async (view: string) => {
      await page.evaluate(`if (!window.axe) { ${axe.source} }`);
      const violations = await page.evaluate(async () => {
        const { violations: found } = await (
          window as unknown as { axe: { run(): Promise<{ violations: { id: string; nodes: { html: string }[] }[] }> } }
        ).axe.run();
        return found.map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html.slice(0, 120))].join('\n'));
      });
      expect([view, ...violations]).toEqual([view]);
    };
    await check('empty');
    await page.keyboard.press('Control+k');
    await page.getByRole('combobox').waitFor();
    await check('palette');
    await page.keyboard.press('Escape');
    await page.locator('.sidebar-bottom button').click();
    await page.getByRole('dialog').waitFor();
    await check('settings');
    await page.keyboard.press('Escape');
    await ask(page, 'What is the capital of France?');
    await page.getByRole('button', { name: 'Answer again' }).click();
    await page.getByRole('group', { name: 'Version 2 of 2' }).waitFor();
    await page.locator('.answer[aria-busy=false]').waitFor();
    await check('conversation');
    await page.locator('.question').hover();
    await page.getByRole('button', { name: 'Edit' }).click();
    await check('editing');
    await page.keyboard.press('Escape');
    await importAnswer(
      page,
      '# Title\n\n- a\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\n# comment\ndef f(a: int = 1):\n    return "text"\n```\n\n> quote [link](https://example.com) `code` $x$',
    );
    await page.locator('.hljs-keyword').first().waitFor();
    await page.locator('.math.is-set').waitFor();
    await check('answer');
    await page.getByRole('navigation').getByRole('button', { name: 'More for' }).first().click();
    await page.getByRole('menu').waitFor();
    await check('menu');
    await page.keyboard.press('Escape');
    await page.setViewportSize({ width: 360, height: 740 });
    await page.getByRole('button', { name: 'Show conversations' }).click();
    await page.getByRole('complementary', { name: 'Conversations' }).waitFor();
    await check('drawer');
    await visitor.context.close();
  });
});
