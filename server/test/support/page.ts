/// <reference lib="dom" />
import { existsSync } from 'node:fs';
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type Browser, type BrowserContext, type BrowserContextOptions, chromium, type Page } from 'playwright-core';

/** A browser as people have it: Chromium of the system, or the one that CHROMIUM names. */
export async function launchBrowser(): Promise<Browser> {
  const executablePath = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/google-chrome'].find(
    (file) => file !== undefined && existsSync(file),
  );
  if (executablePath === undefined) throw new Error('these tests need Chromium: install it, or name it by CHROMIUM');
  // Chromium's own sandbox is not for root.
  const args = process.getuid?.() === 0 ? ['--no-sandbox'] : [];
  return await chromium.launch({ executablePath, args });
}

/** Opens the page in windows of its own stores, and hears of everything that browsers complain about. */
export class Visitor {
  /** What the console, the page and its policy complained of. */
  readonly complaints: string[] = [];
  readonly context: BrowserContext;

  private constructor(context: BrowserContext) {
    this.context = context;
  }

  static async create(browser: Browser, options: BrowserContextOptions = {}): Promise<Visitor> {
    const context = await browser.newContext({
      locale: 'en-US',
      viewport: { width: 1200, height: 800 },
      reducedMotion: 'reduce',
      ...options,
    });
    context.setDefaultTimeout(30_000);
    const visitor = new Visitor(context);
    await context.addInitScript(() => {
      addEventListener('securitypolicyviolation', ({ violatedDirective, blockedURI, sample }) => {
        console.error(`policy: ${violatedDirective} ${blockedURI} ${sample}`);
      });
    });
    return visitor;
  }

  /** A window that shows nothing yet. */
  async window(): Promise<Page> {
    const page = await this.context.newPage();
    page.on('console', (message) => {
      if (['error', 'warning'].includes(message.type())) this.complaints.push(message.text());
    });
    page.on('pageerror', (error) => this.complaints.push(String(error.stack)));
    page.on('dialog', (dialog) => {
      this.complaints.push(`a dialog: ${dialog.message()}`);
      void dialog.dismiss();
    });
    return page;
  }

  async open(url: string): Promise<Page> {
    const page = await this.window();
    await page.goto(url);
    await page.locator('#question').waitFor();
    return page;
  }
}

/** Asks, and waits until the answer is complete. */
export async function ask(page: Page, question: string): Promise<string> {
  const count = await page.locator('.answer').count();
  await page.fill('#question', question);
  await page.getByRole('button', { name: /^(Send|发送)$/ }).click();
  await page.locator('.answer').nth(count).waitFor();
  return await answered(page);
}

/** Waits until no answer is on its way, and gives the text of the last one. */
export async function answered(page: Page): Promise<string> {
  await page.locator('.answer[aria-busy=false]').last().waitFor();
  await page.locator('.composer button[type=submit]').waitFor();
  return (await page.locator('.answer .markdown').allInnerTexts()).at(-1) ?? '';
}

/** Imports messages, as a file that a person chooses: text that the model would not write. */
export async function importAnswer(page: Page, text: string, question = 'Show me'): Promise<void> {
  const messages = [
    { role: 'user', content: question },
    { role: 'assistant', content: text },
  ];
  await importJson(page, { messages });
  await page.locator('.answer').waitFor();
}

export async function importJson(page: Page, content: unknown): Promise<void> {
  await page.locator('.sidebar-bottom button').click();
  const text = typeof content === 'string' ? content : JSON.stringify(content);
  await page.setInputFiles('#import', { name: 'chats.json', mimeType: 'application/json', buffer: Buffer.from(text) });
}

/** What is between the page and its server. */
export interface Front {
  url: string;
  /** Answers chat completions in the server's place. Default: the server does. */
  onChat: ((request: IncomingMessage, response: ServerResponse, body: Record<string, unknown>) => void) | undefined;
  /** What the page asked. */
  readonly bodies: Record<string, unknown>[];
  /** Takes no connections any more, and breaks those that there are. */
  stop(): Promise<void>;
  /** Takes connections again, at the same address. */
  start(): Promise<void>;
}

/** A proxy before a server, which can be gone, and say of one request what the server cannot be made to say. */
export async function front(target: string): Promise<Front> {
  let server: Server;
  let port = 0;
  const answer = async (incoming: IncomingMessage, response: ServerResponse) => {
    const chunks: Buffer[] = [];
    for await (const chunk of incoming) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    if (incoming.url === '/v1/chat/completions') {
      const json = JSON.parse(body.toString()) as Record<string, unknown>;
      it.bodies.push(json);
      if (it.onChat) {
        it.onChat(incoming, response, json);
        return;
      }
    }
    const { host: _, origin: __, ...headers } = incoming.headers;
    const out = request(target + incoming.url, { method: incoming.method ?? 'GET', headers }, (came) => {
      response.writeHead(came.statusCode ?? 500, came.headers);
      came.pipe(response);
    });
    out.on('error', () => response.destroy());
    response.on('close', () => out.destroy());
    out.end(body);
  };
  const it: Front = {
    url: '',
    onChat: undefined,
    bodies: [],
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
    async start() {
      server = createServer((incoming, response) => void answer(incoming, response).catch(() => response.destroy()));
      await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
      port = (server.address() as AddressInfo).port;
      it.url = `http://127.0.0.1:${port}`;
    },
  };
  await it.start();
  return it;
}

/** An answer that a test writes piece by piece, as the server's events. */
export class Writer {
  readonly #response: ServerResponse;

  constructor(response: ServerResponse) {
    this.#response = response;
    response.writeHead(200, { 'content-type': 'text/event-stream' });
  }

  text(content: string): void {
    this.#send({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });
  }

  end(finish = 'stop', usage?: { prompt_tokens: number; completion_tokens: number }): void {
    this.#send({ choices: [{ index: 0, delta: {}, finish_reason: finish }] });
    if (usage) this.#send({ choices: [], usage });
    this.#response.end('data: [DONE]\n\n');
  }

  #send(chunk: object): void {
    this.#response.write(`data: ${JSON.stringify(chunk)}\n\n`);
  }
}

/** What the tests of a file visit the page with. */
export interface Visits {
  /** Who visits in the test that runs. */
  visitor(): Visitor;
  /** Opens the page anew, with settings that are kept already. */
  visit(options?: BrowserContextOptions, settings?: object): Promise<Page>;
}

/** Gives each test of a file a visitor of its own, who may not have complained at the test's end. */
export function visits(url: () => string): Visits {
  let browser: Browser | undefined;
  let visitor: Visitor | undefined;
  beforeAll(async () => {
    browser = await launchBrowser();
  });
  afterEach(async () => {
    const left = visitor;
    visitor = undefined;
    expect(left?.complaints ?? []).toEqual([]);
    await left?.context.close();
  });
  afterAll(async () => {
    await browser?.close();
  });
  return {
    visitor: () => visitor as Visitor,
    async visit(options = {}, settings = {}) {
      visitor = await Visitor.create(browser as Browser, options);
      await visitor.context.addInitScript((some) => {
        localStorage['chatglm.settings'] ??= JSON.stringify({ temperature: 0, topP: 1, ...some });
      }, settings);
      return await visitor.open(url());
    },
  };
}
