import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { device } from './device';
import { Screen, type ScreenOptions } from './terminal';

// `chatglm chat` on a pseudo-terminal, as somebody who types sees it: what its tests share.

export const key = {
  up: '\x1b[A',
  down: '\x1b[B',
  right: '\x1b[C',
  left: '\x1b[D',
  home: '\x1b[H',
  end: '\x1b[F',
  delete: '\x1b[3~',
  backspace: '\x7f',
  wordLeft: '\x1b[1;5D',
  wordRight: '\x1b[1;5C',
  altEnter: '\x1b\r',
  ctrlA: '\x01',
  ctrlC: '\x03',
  ctrlD: '\x04',
  ctrlE: '\x05',
  ctrlG: '\x07',
  ctrlJ: '\n',
  ctrlK: '\x0b',
  ctrlR: '\x12',
  ctrlU: '\x15',
  ctrlW: '\x17',
  ctrlY: '\x19',
};
export const paste = (text: string) => `\x1b[200~${text}\x1b[201~`;

/** So hot that hardly ever an end comes up: an answer goes on until the context is full. */
export const endless = ['--temperature', '50', '--top-k', '0', '--top-p', '1', '--seed', '1'];

/** Begins an answer without an end, and waits for its first text. */
export async function beginEndless(screen: Screen): Promise<number> {
  const { line } = screen.cursor;
  screen.type('你好\r');
  await screen.until(() => screen.cursor.line > line && (screen.lines[line + 1] ?? '') !== '');
  return line;
}

export function weatherModule(execute: string): string {
  return `export default [{
    name: 'get_weather',
    description: 'Get the weather of a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    execute: ${execute},
  }];`;
}

/** Sends a message, and gives what stands between it and the next prompt. */
export async function say(screen: Screen, message: string): Promise<string> {
  const { line } = screen.cursor;
  screen.type(`${message}\r`);
  await screen.until(() => screen.cursor.line > line && screen.lastLine === 'You: ');
  return screen.lines.slice(line + 1, -1).join('\n');
}

/** Chats whose home is a folder of each test's own, and whose processes end with the test. Call once in a test file. */
export function terminalChats() {
  let home: string;
  let open: Screen[] = [];

  beforeEach(() => {
    home = mkdtempSync(path.join(tmpdir(), 'chatglm-terminal-'));
  });
  afterEach(async () => {
    for (const screen of open) screen.kill('SIGKILL');
    await Promise.all(open.map(({ ended }) => ended));
    open = [];
    rmSync(home, { recursive: true, force: true });
  });

  function start(args: string[] = ['--greedy'], { env, ...options }: ScreenOptions = {}): Screen {
    const screen = new Screen(['chat', '--device', device, ...args], { ...options, env: { HOME: home, ...env } });
    open.push(screen);
    return screen;
  }

  /** At its first prompt. */
  async function ready(args?: string[], options?: ScreenOptions): Promise<Screen> {
    const screen = start(args, options);
    await screen.untilLastLine('You: ');
    return screen;
  }

  return { start, ready, homeOf: () => home };
}
