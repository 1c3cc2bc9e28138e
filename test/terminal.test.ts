import { spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { LineBuffer, layOut } from '../lib/cli/terminal/line-buffer.js';
import { MarkdownStream } from '../lib/cli/terminal/markdown.js';
import { displayWidth } from '../lib/cli/terminal/width.js';
import { device } from './support/device';
import { Screen, type ScreenOptions } from './support/terminal';

// What somebody at a terminal sees: the compiled command line on a pseudo-terminal, with the embedded model.

const key = {
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
const paste = (text: string) => `\x1b[200~${text}\x1b[201~`;

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

/** Sends a message, and gives what stands between it and the next prompt. */
async function say(screen: Screen, message: string): Promise<string> {
  const { line } = screen.cursor;
  screen.type(`${message}\r`);
  await screen.until(() => screen.cursor.line > line && screen.lastLine === 'You: ');
  return screen.lines.slice(line + 1, -1).join('\n');
}

/** So hot that hardly ever an end comes up: an answer goes on until the context is full. */
const endless = ['--temperature', '50', '--top-k', '0', '--top-p', '1', '--seed', '1'];

/** Begins an answer without an end, and waits for its first text. */
async function beginEndless(screen: Screen): Promise<number> {
  const { line } = screen.cursor;
  screen.type('你好\r');
  await screen.until(() => screen.cursor.line > line && (screen.lines[line + 1] ?? '') !== '');
  return line;
}

describe('editing', () => {
  test('in the middle of wide characters', async () => {
    const screen = await ready();
    screen.type('中国的首都哪里？');
    await screen.untilLastLine('You: 中国的首都哪里？');
    expect(screen.cursor.column).toBe(5 + 16);
    screen.type(key.left.repeat(3));
    await screen.until(() => screen.cursor.column === 5 + 10);
    screen.type('是');
    await screen.untilLastLine('You: 中国的首都是哪里？');
    expect(screen.cursor.column).toBe(5 + 12);
    screen.type(key.backspace + key.delete);
    await screen.untilLastLine('You: 中国的首都里？');
    screen.type('是哪');
    await screen.untilLastLine('You: 中国的首都是哪里？');
    expect(await say(screen, key.home)).toBe('中国的首都是北京。');
  });

  test('emoji, joined ones and accents are one character each', async () => {
    const screen = await ready();
    screen.type(`a👋b👨‍👩‍👧ce\u0301d`);
    await screen.until(() => screen.lastLine.endsWith('d'));
    // Left of d, of é, of c, of the family: then the family is deleted, and b.
    screen.type(key.left.repeat(3) + key.backspace + key.backspace);
    await screen.untilLastLine('You: a👋ce\u0301d');
    expect(screen.cursor.column).toBe(5 + 3);
    screen.type(key.backspace);
    await screen.untilLastLine('You: ace\u0301d');
    screen.type(key.end + key.left + key.backspace);
    await screen.untilLastLine('You: acd');
  });

  test('by words, also Chinese ones, to the ends, and with what was cut', async () => {
    const screen = await ready();
    screen.type(`hello brave world${key.wordLeft}${key.wordLeft}big `);
    await screen.untilLastLine('You: hello big brave world');
    screen.type(`${key.wordRight}${key.ctrlK}`);
    await screen.untilLastLine('You: hello big brave');
    screen.type(`${key.ctrlA}${key.ctrlY} ${key.ctrlE}${key.ctrlW}`);
    await screen.until(() => /^You: {1,2}world hello big ?$/.test(screen.lastLine));
    screen.type(`${key.ctrlU}今天天气很好${key.wordLeft}`);
    await screen.until(() => screen.lastLine === 'You: 今天天气很好' && screen.cursor.column < 5 + 12);
    screen.type(key.ctrlU);
    await screen.until(() => !screen.lastLine.includes('今天'));
    screen.type(`${key.ctrlE}${key.ctrlU}`);
    await screen.untilLastLine('You: ');
  });

  test('a line longer than the screen, and a screen that becomes narrower and wider', async () => {
    const screen = await ready(['--greedy'], { columns: 40 });
    const above = screen.lines.slice(0, -1).join(' ');
    const text = 'What is the capital of 法国的首都 and also of Italy?';
    screen.type(text);
    const typed = () => screen.lines.slice(screen.lines.findLastIndex((line) => line.startsWith('You:')));
    await screen.until(() => typed().join('') === `You: ${text}`);
    for (const columns of [20, 13, 70, 31]) {
      screen.resize(columns, 20);
      // As many rows as it takes, none of them wider than the screen: then it was drawn for this screen.
      const rows = Math.ceil((displayWidth(text) + 5) / (columns - 1));
      const isWithin = () => Math.max(...typed().map(displayWidth)) < columns;
      await screen.until(() => typed().join('') === `You: ${text}` && typed().length === rows && isWithin());
    }
    screen.type(`${key.left.repeat(6)}${key.wordLeft}X`);
    await screen.until(() => typed().join('') === `You: ${text.replace('of Italy', 'Xof Italy')}`);
    // Nothing is left of earlier drawings, and nothing above was taken away.
    expect(screen.text.match(/You:/g)).toHaveLength(1);
    expect(
      screen.lines
        .slice(
          0,
          screen.lines.findLastIndex((line) => line.startsWith('You:')),
        )
        .join('')
        .replace(/\s/g, ''),
    ).toBe(above.replace(/\s/g, ''));
  });

  test('any keys in any order: the screen shows what the buffer holds, and nothing else', async () => {
    const columns = 30;
    const screen = await ready(['--greedy'], { columns, rows: 40 });
    const above = screen.lines.slice(0, -1);
    const buffer = new LineBuffer();
    const type = (text: string) => () => {
      for (const char of text) buffer.insert(char);
      return text;
    };
    const press = (keys: string, change: () => void) => () => {
      change();
      return keys;
    };
    const actions = [
      ...['a', '中', '👋', 'e\u0301', 'hello ', '世界。', key.ctrlJ].map(type),
      press(key.left, () => buffer.moveTo(buffer.cursor - 1)),
      press(key.right, () => buffer.moveTo(buffer.cursor + 1)),
      press(key.wordLeft, () => buffer.moveTo(buffer.wordLeft)),
      press(key.wordRight, () => buffer.moveTo(buffer.wordRight)),
      press(key.home, () => buffer.moveTo(buffer.lineStart)),
      press(key.end, () => buffer.moveTo(buffer.lineEnd)),
      press(key.backspace, () => buffer.deleteTo(buffer.cursor - 1)),
      press(key.delete, () => buffer.deleteTo(buffer.cursor + 1)),
      press(key.ctrlW, () => buffer.killTo(buffer.wordLeft)),
      press(key.ctrlY, () => buffer.yank()),
      press('\x1f', () => buffer.undo()),
    ];
    let seed = 1;
    for (let step = 0; step < 200; step++) {
      seed = (seed * 1_103_515_245 + 12_345) & 0x7fff_ffff;
      const action = actions[(seed >> 8) % actions.length] as () => string;
      screen.type(action());
      const { rows, cursorRow, cursorColumn } = layOut(buffer, { first: 'You: ', more: ' ... ' }, columns - 1);
      const expected = [...above, ...rows.map(({ text }) => text.trimEnd())].join('\n').trimEnd();
      const cursor = { column: cursorColumn, line: above.length + cursorRow };
      const shown = () =>
        screen.lines
          .map((line) => line.trimEnd())
          .join('\n')
          .trimEnd();
      await screen.until(() => shown() === expected && JSON.stringify(screen.cursor) === JSON.stringify(cursor));
    }
  });

  test('history: up, down, a draft that is kept, search, and another run', async () => {
    const screen = await ready();
    await say(screen, 'What is 7 times 8?');
    await say(screen, '法国的首都是哪里？');
    screen.type(`draft${key.up}`);
    await screen.untilLastLine('You: 法国的首都是哪里？');
    screen.type(key.up);
    await screen.untilLastLine('You: What is 7 times 8?');
    screen.type(key.down + key.down);
    await screen.untilLastLine('You: draft');
    screen.type(`${key.ctrlR}times`);
    await screen.untilLastLine('(search "times") What is 7 times 8?');
    screen.type(key.ctrlG);
    await screen.untilLastLine('You: draft');
    screen.type(key.ctrlU + key.ctrlD);
    expect(await screen.ended).toBe(0);

    const file = path.join(home, '.local', 'state', 'chatglm', 'history');
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(readdirSync(path.dirname(file))).toEqual(['history']);
    const again = await ready();
    again.type(key.up + key.up);
    await again.untilLastLine('You: What is 7 times 8?');
    expect(await say(again, '')).toBe('7 × 8 = 56');
  });

  test('search on a narrow screen', async () => {
    const screen = await ready(['--greedy'], { columns: 24 });
    await say(screen, 'What is the capital of France?');
    const above = screen.lines.slice(0, -1);
    screen.type(`${key.ctrlR}is the capital`);
    await screen.until((text) => text.includes('(search'));
    screen.type(`${key.backspace.repeat(14)}x${key.ctrlG}`);
    await screen.untilLastLine('You: ');
    expect(screen.lines.slice(0, -1)).toEqual(above);
  });

  test('history is bounded, goes where CHATGLM_HISTORY says, and nowhere when that is empty', async () => {
    const file = path.join(home, 'my-history');
    writeFileSync(file, [...Array.from({ length: 1500 }, (_, index) => `"entry ${index}"\n`), 'damaged\n'].join(''));
    const screen = await ready(['--greedy'], { env: { CHATGLM_HISTORY: file } });
    screen.type(`/tools\r${key.up}${key.up}`);
    await screen.untilLastLine('You: entry 1499');
    screen.type(key.ctrlU + key.ctrlD);
    await screen.ended;
    const entries = readFileSync(file, 'utf8').trimEnd().split('\n');
    expect(entries).toHaveLength(1000);
    expect([entries[0], entries.at(-1)]).toEqual(['"entry 501"', '"/tools"']);

    const off = await ready(['--greedy'], { env: { CHATGLM_HISTORY: '' } });
    off.type('/tools\r/exit\r');
    await off.ended;
    expect(existsSync(path.join(home, '.local', 'state'))).toBe(false);
  });
});

describe('messages of several lines', () => {
  test('between """', async () => {
    const screen = await ready();
    screen.type('"""\r中国的\r首都是哪里？\r"""');
    await screen.until((text) => text.endsWith('You: """\n ... 中国的\n ... 首都是哪里？\n ... """'));
    expect(await say(screen, '')).not.toBe('');
    expect(screen.text.match(/You:/g)).toHaveLength(2);
    expect(await say(screen, '/history')).toContain('You: 中国的 首都是哪里？');
  });

  test('with Alt-Enter and Ctrl-J; up and down go from line to line', async () => {
    const screen = await ready();
    screen.type(`first${key.altEnter}second${key.ctrlJ}第三`);
    await screen.until((text) => text.endsWith('You: first\n ... second\n ... 第三'));
    screen.type(`${key.up}${key.up}X`);
    await screen.until((text) => text.endsWith('You: firsXt\n ... second\n ... 第三'));
    screen.type(key.down + key.down + key.down);
    screen.type(`${key.end}。`);
    await screen.until((text) => text.endsWith('You: firsXt\n ... second\n ... 第三。'));
  });

  test('a paste of 10,000 characters with line breaks is one message, shown folded', async () => {
    const screen = await ready();
    expect(screen.raw).toContain('\x1b[?2004h');
    const lines = Array.from({ length: 400 }, (_, index) => `clear ${index} 粘贴的一行文字，something`);
    const text = lines.join('\r');
    expect(text.length).toBeGreaterThan(10_000);
    screen.type(`${paste(text)} end`);
    await screen.untilLastLine(`You: [pasted 400 lines, ${text.length} characters] end`);
    // All of it is one message, which the context has no room for.
    const answer = await say(screen, '');
    expect(answer).toContain('ERR_CONTEXT_OVERFLOW');
    expect(answer).toContain('/clear');
    expect(screen.text.match(/You:/g)).toHaveLength(2);
    screen.type(key.up);
    await screen.untilLastLine(`You: [pasted 400 lines, ${text.length + 4} characters]`);
    screen.type(`${key.backspace}${key.ctrlD}`);
    expect(await screen.ended).toBe(0);
    expect(screen.raw.trimEnd().endsWith('\x1b[?2004l')).toBe(true);
  });

  test('a folded paste is shown with Ctrl-O, and /edit shows all of a message', async () => {
    const screen = await ready();
    const lines = Array.from({ length: 10 }, (_, index) => `第${index}行`);
    screen.type(paste(lines.join('\n')));
    await screen.untilLastLine('You: [pasted 10 lines, 39 characters]');
    screen.type('\x0f!');
    const shown = (prompt: string, last: string) =>
      [prompt + lines[0], ...lines.slice(1).map((line) => ` ... ${line}`)].join('\n') + last;
    await screen.until((text) => text.endsWith(shown('You: ', '!')));
    await say(screen, '');
    screen.type('/edit\r');
    await screen.until((text) => text.endsWith(shown('Edit: ', '!').replaceAll('\n ... ', '\n  ... ')));
  });

  test('a short paste is shown whole, and its control characters do nothing', async () => {
    const screen = await ready();
    screen.type(paste('one\r\ntwo\x1b[2J\x07'));
    await screen.until((text) => /You: one\n \.\.\. two\ufffd\[2J\ufffd$/.test(text));
  });
});

describe('Ctrl-C and Ctrl-D', () => {
  test('while the model is being loaded', async () => {
    // The model's file opens once there was an interrupt: so loading is under way when Ctrl-C comes.
    const hold = path.join(home, 'hold.cjs');
    writeFileSync(
      hold,
      `const promises = require('node:fs/promises');
      const { open } = promises;
      promises.open = async (file, ...rest) => {
        if (String(file).endsWith('.gguf')) {
          await new Promise((resolve) => { process.once('SIGINT', resolve); process.stderr.write('held\\n'); });
        }
        return await open(file, ...rest);
      };`,
    );
    const screen = start(['--greedy'], { env: { NODE_OPTIONS: `--require ${hold}` } });
    await screen.until((text) => text.includes('held'));
    screen.type(key.ctrlC);
    expect(await screen.ended).toBe(130);
    expect(screen.text).toContain('ERR_ABORTED');
    expect(screen.raw.lastIndexOf('\x1b[?2004l')).toBeGreaterThan(screen.raw.lastIndexOf('\x1b[?2004h'));
  });

  test('while a server of tools is being started', async () => {
    const screen = start(['--mcp', `"${process.execPath}" -e "process.stdin.resume()"`]);
    await screen.until(() => screen.raw.includes('\x1b[?2004h'));
    screen.type(key.ctrlC);
    expect(await screen.ended).toBe(130);
    expect(screen.raw).toContain('\x1b[?2004l');
  });

  test('with text clears it; at an empty prompt the second one ends', async () => {
    const screen = await ready();
    screen.type('some text');
    await screen.untilLastLine('You: some text');
    screen.type(key.ctrlC);
    await screen.untilLastLine('You: ');
    expect(screen.text).not.toContain('press Ctrl-C again');
    screen.type(key.ctrlC);
    await screen.until((text) => text.endsWith('(press Ctrl-C again or type /exit to leave)\nYou: '));
    // Something else in between, and the first one is forgotten.
    screen.type(`x${key.backspace}${key.ctrlC}`);
    await screen.until((text) => text.match(/press Ctrl-C again/g)?.length === 2);
    screen.type(key.ctrlC);
    expect(await screen.ended).toBe(0);
  });

  test('stops an answer, keeps the conversation and what was typed meanwhile, and a late one ends nothing', async () => {
    const screen = await ready(endless);
    const line = await beginEndless(screen);
    screen.type(`ahead 打字${key.ctrlC}`);
    await screen.untilLastLine('You: ahead 打字');
    const answer = screen.lines.slice(line + 1, -1).join('');
    expect(answer).not.toContain('ahead');
    screen.type(key.ctrlC + key.ctrlC);
    await screen.until((text) => text.includes('(press Ctrl-C again'));
    expect((await say(screen, '/history')).split('\n')).toEqual(['You: 你好', expect.stringMatching(/^Model: /)]);
  });

  test('messages that were typed ahead are answered in turn', async () => {
    const screen = await ready(endless);
    await beginEndless(screen);
    screen.type(`/set greedy on\rWhat is 7 times 8?\r${key.ctrlC}`);
    await screen.until((text) => /You: What is 7 times 8\?\n.+\nYou: $/s.test(text));
  });

  test('pressed again and again stops the answer, and leaves the program there', async () => {
    const screen = await ready(endless);
    await beginEndless(screen);
    screen.type(key.ctrlC.repeat(2));
    await screen.until((text) => text.endsWith('You: '));
    expect(await say(screen, '/history')).toContain('You: 你好');
  });

  test('what is typed before there is a prompt is not lost', async () => {
    const screen = start();
    screen.type('What is 7 times 8?\rWhat is 7 times 7?\r');
    await screen.until((text) => text.includes('7 × 8 = 56') && text.includes('7 × 7 = 49'));
    await screen.untilLastLine('You: ');
  });

  test('while a tool runs', async () => {
    const tools = path.join(home, 'tools.mjs');
    writeFileSync(tools, weatherModule('() => new Promise(() => {})'));
    const screen = await ready(['--greedy', '--tools', tools]);
    screen.type('北京今天天气怎么样？\r');
    await screen.until((text) => text.includes('→ get_weather'));
    screen.type(key.ctrlC);
    await screen.untilLastLine('You: ');
    expect(await say(screen, '你好')).not.toBe('');
  });

  test('Ctrl-Z gives the terminal back, and the line is there again afterwards', async () => {
    const screen = await ready();
    screen.type('half a 句子');
    await screen.untilLastLine('You: half a 句子');
    // No shell waits for the process here, so that it goes on at once.
    screen.type('\x1a');
    await screen.until(() => screen.raw.match(/\[\?2004h/g)?.length === 2 && screen.lastLine === 'You: half a 句子');
    expect(screen.raw).toContain('[?2004l');
  });

  test('a message of more lines than the screen has', async () => {
    const screen = await ready(['--greedy'], { rows: 8 });
    const above = screen.lines.slice(0, -1);
    const lines = Array.from({ length: 20 }, (_, index) => `line ${index}`);
    screen.type(lines.join(key.ctrlJ));
    await screen.untilLastLine(' ... line 19');
    screen.type(key.up.repeat(17));
    await screen.until((text) => text.includes('... line 2\n'));
    screen.type('X');
    await screen.until((text) => text.includes('... line 2X\n'));
    await say(screen, '');
    const shown = lines.map((line, index) => (index === 0 ? `You: ${line}` : ` ... ${line}${index === 2 ? 'X' : ''}`));
    expect(screen.lines.slice(0, above.length + shown.length)).toEqual([...above, ...shown]);
  });

  test('a signal from outside gives the terminal back', async () => {
    const screen = await ready();
    screen.kill('SIGTERM');
    expect(await screen.ended).toBe(128 + 15);
    expect(screen.raw).toContain('\x1b[?2004l');
  });
});

describe('commands', () => {
  test('that there are not are not sent; two slashes send one', async () => {
    const screen = await ready();
    const told = await say(screen, '/hlep');
    expect(told.replace(/\s+/g, ' ')).toBe(
      'chatglm: there is no command /hlep: did you mean /help? To send this as a message, begin it with //',
    );
    expect(await say(screen, '/history')).toBe('Nothing was said yet.');
    await say(screen, '//etc is a folder');
    expect(await say(screen, '/history')).toContain('You: /etc is a folder');
  });

  test('/help, /system, /stats, /tools', async () => {
    const screen = await ready(['--greedy'], { columns: 100 });
    const help = await say(screen, '/help');
    for (const name of ['help', 'system', 'history', 'undo', 'regenerate', 'edit', 'save', 'load', 'sessions']) {
      expect(help).toContain(`/${name} `);
    }
    for (const name of ['tools', 'stats', 'set', 'clear', 'stop']) expect(help).toContain(`/${name} `);
    expect(await say(screen, '/system')).toBe('There is no system message.');
    expect(await say(screen, '/system You are Emma, a friendly assistant.')).toContain('You are Emma');
    expect(await say(screen, 'Who are you?')).toContain('Emma');
    expect((await say(screen, '/stats')).replace(/\s+/g, ' ')).toMatch(/tokens\/s\] \[3 messages; \d+ of 1,024 tokens/);
    expect(await say(screen, '/system ""')).toBe('There is no system message.');
    expect(await say(screen, '/tools')).toContain('--tools');
  });

  test('/undo, /regenerate, /edit', async () => {
    const screen = await ready();
    await say(screen, '我叫小明。');
    await say(screen, '我叫小红。');
    expect(await say(screen, '/undo')).toBe('Taken back: 我叫小红。');
    expect(await say(screen, '我叫什么名字？')).toBe('你叫小明。');
    expect(await say(screen, '/regenerate')).toBe('你叫小明。');
    expect(await say(screen, '/edit What is 7 times 8?')).toBe('7 × 8 = 56');
    screen.type('/edit\r');
    await screen.untilLastLine('Edit: What is 7 times 8?');
    expect(await say(screen, `${key.backspace.repeat(2)}7?`)).toBe('7 × 7 = 49');
    expect(await say(screen, '/history')).toBe(
      ['You: 我叫小明。', expect.anything(), 'You: What is 7 times 7?', 'Model: 7 × 7 = 49']
        .map((line) => (typeof line === 'string' ? line : screen.lines.find((shown) => shown.startsWith('Model: '))))
        .join('\n'),
    );
  });

  test('/set', async () => {
    const screen = await ready(['--temperature', '0.5']);
    expect(await say(screen, '/set temperature')).toMatch(/^temperature 0\.5: /);
    expect(await say(screen, '/set temperature 101')).toContain('temperature must be a number from 0 to 100');
    expect(await say(screen, '/set temprature 1')).toContain('there is no option temprature');
    expect(await say(screen, '/set temperature default')).toMatch(/^temperature default: /);
    await say(screen, '/set greedy on');
    await say(screen, '/set max-tokens 6');
    expect((await say(screen, 'Count from 3 to 9.')).replace(/\s+/g, ' ')).toMatch(
      /^3\D*\[the answer was cut off.*max-tokens\]$/,
    );
    expect((await say(screen, '/set')).split('\n').length).toBeGreaterThan(10);
  });

  test('/save, /sessions, /load and /clear', async () => {
    const screen = await ready(['--greedy'], { columns: 90 });
    expect(await say(screen, '/save')).toContain('/save needs a name');
    await say(screen, '我叫小明。');
    expect(await say(screen, '/save 第一次')).toBe('Saved as 第一次.');
    expect(await say(screen, `/save ${home}/copy.json`)).toBe(`Saved as ${home}/copy.json.`);
    expect(await say(screen, '/sessions')).toMatch(/^\* 第一次 · .* · 2 messages · 我叫小明。$/);
    screen.type('CLEAR\r');
    await screen.until((text) => text === 'You: ');
    expect(await say(screen, '/history')).toBe('Nothing was said yet.');
    expect(await say(screen, '/load nobody')).toContain('there is no session nobody');
    expect(await say(screen, `/load ${home}/copy.json`)).toContain('2 messages');
    expect(await say(screen, '我叫什么名字？')).toBe('你叫小明。');
    expect(JSON.parse(readFileSync(path.join(home, 'copy.json'), 'utf8')).history).toHaveLength(2);
  });

  test('/save asks before it replaces another session; what was typed ahead does not answer', async () => {
    const screen = await ready();
    await say(screen, '我叫小明。');
    await say(screen, '/save one');
    await say(screen, '/save two');
    await say(screen, 'What is 7 times 8?');
    screen.type('/save one\ryes ahead');
    await screen.until((text) => text.includes('There is a session one. Replace it? [y/N] '));
    screen.type('n');
    await screen.untilLastLine('You: yes ahead');
    expect(screen.text).not.toContain('Saved as one.\nYou: yes');
    screen.type(`${key.ctrlU}/save one\r`);
    await screen.until((text) => text.match(/Replace it\?/g)?.length === 2);
    screen.type('y');
    await screen.until((text) => text.endsWith('[y/N] y\nSaved as one.\nYou: '));
    const file = path.join(home, '.local', 'share', 'chatglm', 'sessions', 'one.json');
    expect(JSON.parse(readFileSync(file, 'utf8')).chat.history).toHaveLength(4);
  });

  test.each(['/exit', '/quit', '/bye', '/stop', 'Exit', 'QUIT', 'stop'])('%s leaves', async (command) => {
    const screen = await ready();
    screen.type(`${command}\r`);
    expect(await screen.ended).toBe(0);
  });

  test('Tab completes commands, options, sessions and paths', async () => {
    mkdirSync(path.join(home, 'folder'));
    writeFileSync(path.join(home, 'folder', 'chat.json'), '');
    const screen = await ready();
    screen.type('/reg\t');
    await screen.untilLastLine('You: /regenerate ');
    screen.type(`${key.ctrlU}/st\t\t`);
    await screen.until((text) => text.endsWith('/stats  /stop\nYou: /st'));
    screen.type(`${key.ctrlU}/set tem\t0.3`);
    await screen.untilLastLine('You: /set temperature 0.3');
    screen.type(`${key.ctrlU}/load ~/fol\tch\t`);
    await screen.untilLastLine('You: /load ~/folder/chat.json ');
    screen.type(key.ctrlU);
    await say(screen, '我叫小明。');
    await say(screen, '/save journey');
    screen.type('/load jo\t');
    await screen.untilLastLine('You: /load journey ');
  });
});

describe('sessions', () => {
  test('go on after the end, and after a process was killed', async () => {
    const args = ['--greedy', '--session', 'trip'];
    const first = await ready(args);
    await say(first, '我叫小明。');
    first.type(key.ctrlD);
    await first.ended;

    const second = await ready(args);
    expect(second.text).toContain('trip: 2 messages');
    await say(second, '法国的首都是哪里？');
    second.kill('SIGKILL');
    await second.ended;

    const third = await ready(args);
    expect(third.text).toContain('trip: 4 messages');
    expect(await say(third, '我叫什么名字？')).toBe('你叫小明。');
    const folder = path.join(home, '.local', 'share', 'chatglm', 'sessions');
    // The session is open, so that its lock stands beside.
    expect(readdirSync(folder).filter((name) => !name.endsWith('.lock'))).toEqual(['trip.json']);
    expect(statSync(path.join(folder, 'trip.json')).mode & 0o777).toBe(0o600);
  });

  test('keep the tools of this run, and take the system message of the command line', async () => {
    const first = await ready(['--greedy', '--session', 'trip', '--system', 'You are Bob.']);
    await say(first, '我叫小明。');
    first.type(key.ctrlD);
    await first.ended;

    const tools = path.join(home, 'tools.mjs');
    writeFileSync(tools, weatherModule(`() => '{"celsius": 21}'`));
    const second = await ready(['--greedy', '--session', 'trip', '--tools', tools]);
    expect(await say(second, '/system')).toBe('System message: You are Bob.');
    expect(await say(second, '/stats')).toContain('3 messages');
    second.type(key.ctrlD);
    await second.ended;
    const third = await ready(['--greedy', '--session', 'trip', '--system', 'You are Emma.']);
    expect(await say(third, '/system')).toBe('System message: You are Emma.');
    expect(await say(third, '我叫什么名字？')).toBe('你叫小明。');
  });

  test('that are damaged, or have no possible name, are told before the model is looked for', async () => {
    const sessions = path.join(home, 'sessions');
    mkdirSync(sessions);
    writeFileSync(path.join(sessions, 'bad.json'), '{"history": [');
    const env = { CHATGLM_SESSIONS: sessions };
    const damaged = start(['nothing.gguf', '--session', 'bad'], { env });
    expect(await damaged.ended).toBe(1);
    expect(damaged.text).toContain('bad.json');
    const unnamed = start(['nothing.gguf', '--session', '../x'], { env });
    expect(await unnamed.ended).toBe(2);
  });
});

function weatherModule(execute: string): string {
  return `export default [{
    name: 'get_weather',
    description: 'Get the weather of a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    execute: ${execute},
  }];`;
}

describe('answers', () => {
  test('tools are called, and told on lines of their own', async () => {
    const tools = path.join(home, 'tools.mjs');
    writeFileSync(tools, weatherModule(`() => '{"celsius":\\n 21}'`));
    const screen = await ready(['--greedy', '--tools', tools]);
    const [call, result, ...answer] = (await say(screen, '北京今天天气怎么样？')).split('\n');
    expect(call).toBe('→ get_weather(city="北京")');
    expect(result).toMatch(/^← \{"celsius": 21\}$/);
    expect(answer.join('')).toContain('21');
    const line = screen.lines.indexOf(call as string);
    expect(screen.styleAt(line, 2).isDim).toBe(true);
  });

  test('what a tool gives is cut to one line', async () => {
    const tools = path.join(home, 'tools.mjs');
    writeFileSync(tools, weatherModule(`() => '晴天\\n'.repeat(40)`));
    const screen = await ready(['--greedy', '--tools', tools], { columns: 40 });
    const [, result, after] = (await say(screen, '北京今天天气怎么样？')).split('\n');
    expect(result).toMatch(/^← 晴天 晴天 .*…$/);
    expect(displayWidth(result ?? '')).toBeLessThan(40);
    expect(after).not.toMatch(/^晴天 晴天/);
  });

  test('a tool that fails', async () => {
    const tools = path.join(home, 'tools.cjs');
    writeFileSync(
      tools,
      weatherModule(`() => { throw new Error('no network') }`).replace('export default', 'module.exports ='),
    );
    const screen = await ready(['--greedy', '--tools', tools]);
    expect(await say(screen, '北京今天天气怎么样？')).toContain('← failed: Error: no network');
  });

  test('Markdown: code stands in a dim frame with its language', async () => {
    const screen = await ready();
    const lines = (await say(screen, 'Write a quick sort in Python.')).split('\n');
    const top = lines.findIndex((line) => line.startsWith('╭─ python ─'));
    expect(top).toBeGreaterThanOrEqual(0);
    expect(lines[top + 1]).toMatch(/^def /);
    expect(lines.at(-1)).toMatch(/^╰─+$/);
    expect(lines.join('\n')).not.toContain('```');
    const line = screen.lines.findIndex((shown) => shown.startsWith('╭'));
    expect(screen.styleAt(line, 0).isDim).toBe(true);
    expect(screen.styleAt(line + 1, 0).isDim).toBe(false);
  });

  test('tools of a Model Context Protocol server', async () => {
    const server = require.resolve('@modelcontextprotocol/server-everything/dist/index.js');
    const screen = await ready(['--greedy', '--mcp', `"${process.execPath}" "${server}"`]);
    expect(await say(screen, '/tools')).toMatch(/^echo: /m);
    screen.type('/exit\r');
    expect(await screen.ended).toBe(0);
  });

  test('--plain shows them as they are', async () => {
    const screen = await ready(['--greedy', '--plain']);
    expect(await say(screen, 'Write a quick sort in Python.')).toContain('```python\ndef ');
  });

  test.each([
    [{ NO_COLOR: '1' }, false],
    [{ NO_COLOR: '1', FORCE_COLOR: '1' }, true],
    [{ FORCE_COLOR: '0' }, false],
    [{}, true],
  ])('colours with %j: %p', async (env, isColored) => {
    const screen = await ready(['--greedy'], { env: env as Record<string, string> });
    await say(screen, 'Write a quick sort in Python.');
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for.
    expect(/\x1b\[\d*m/.test(screen.raw)).toBe(isColored);
  });

  test.each(['Tell me a story about a cat.', '给我讲一个关于猫的故事。'])(
    'are broken between words on a narrow screen: %s',
    async (question) => {
      const wide = await ready(['--greedy'], { columns: 1000 });
      const whole = await say(wide, question);
      const narrow = await ready(['--greedy'], { columns: 20 });
      const lines = (await say(narrow, question)).split('\n');
      // The question takes more than one line itself.
      const answer = lines.slice(lines.findIndex((line) => whole.startsWith(line.trimEnd())));
      expect(answer.length).toBeGreaterThan(4);
      expect(answer.join(' ').replace(/\s+/g, '')).toBe(whole.replace(/\s+/g, ''));
      for (const line of answer) {
        expect(displayWidth(line)).toBeLessThan(20);
        expect(line).not.toMatch(/^[，。！？、；：”]/);
      }
      const words = new Set(whole.split(/\s+/));
      if (/^[\x20-\x7e\n]+$/.test(whole))
        for (const word of answer.join(' ').split(/\s+/)) expect(words).toContain(word);
    },
  );

  test('survive a screen that is resized meanwhile', async () => {
    const question = 'Tell me a story about a cat.';
    const whole = (await say(await ready(['--greedy'], { columns: 1000 }), question)).replace(/\s+/g, '');
    const screen = await ready(['--greedy'], { columns: 70 });
    const { line } = screen.cursor;
    screen.type(`${question}\r`);
    await screen.until(() => screen.cursor.line > line);
    for (const columns of [30, 90, 45]) screen.resize(columns, 20);
    await screen.untilLastLine('You: ');
    expect(screen.text.replace(/\s+/g, '')).toContain(whole);
  });

  test('a terminal that cannot move its cursor gets plain lines', async () => {
    const screen = await ready(['--greedy'], { env: { TERM: 'dumb' } });
    screen.type('What is 7 times 8?\r');
    await screen.until((text) => text.endsWith('You: What is 7 times 8?\n7 × 8 = 56\nYou: '));
    screen.type('/exit\r');
    expect(await screen.ended).toBe(0);
    expect(screen.raw).not.toContain('\x1b[?2004h');
  });

  test('with a full context the message says what helps', async () => {
    const screen = await ready([...endless, '--context-length', '64']);
    const answer = (await say(screen, '你好')).replace(/\s+/g, ' ');
    expect(answer).toMatch(/context is full.*\/clear/);
  });
});

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

describe('piped', () => {
  function pipe(args: string[]) {
    const main = path.join(__dirname, '..', 'dist', 'cli', 'main.js');
    const child = spawn(process.execPath, [main, 'chat', '--device', device, ...args], {
      env: { ...process.env, HOME: home },
    });
    child.stdin.on('error', () => {});
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text) => {
      stderr += text;
    });
    const ended = new Promise<{ code: number | null; stdout: string; stderr: string }>((resolve) => {
      child.on('close', (code) => resolve({ code, stdout, stderr }));
    });
    return { child, ended };
  }

  test('an endless input is read no further than it is answered', async () => {
    const { child, ended } = pipe([...endless, '--max-tokens', '200']);
    const lines = Buffer.from('y\n'.repeat(32 << 10));
    let accepted = 0;
    const write = () => {
      child.stdin.write(lines, (error) => {
        if (error) return;
        accepted += lines.length;
        write();
      });
    };
    write();
    await new Promise((resolve) => child.stdout.once('data', resolve));
    await new Promise((resolve) => child.stdout.once('data', resolve));
    expect(accepted).toBeLessThan(2 << 20);
    child.kill('SIGKILL');
    await ended;
  });

  test('messages of several lines, and a command that there is not', async () => {
    const { child, ended } = pipe(['--greedy']);
    child.stdin.end('"""\n/etc\n"""\n/nothing\n//x\r\nWhat is 7 times 8?\n/stop\n你好\n');
    const { code, stdout, stderr } = await ended;
    expect(stdout.trimEnd().split('\n').at(-1)).toBe('7 × 8 = 56');
    expect(stdout.trimEnd().split('\n')).toHaveLength(3);
    expect(stderr).toBe(
      'chatglm: there is no command /nothing: /help lists them. To send this as a message, begin it with //\n',
    );
    expect(code).toBe(1);
  });

  test('--json tells the call of a tool', async () => {
    const tools = path.join(home, 'tools.json');
    const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
    writeFileSync(
      tools,
      JSON.stringify([{ name: 'get_weather', description: 'Get the weather of a city', parameters }]),
    );
    const { child, ended } = pipe(['--greedy', '--json', '--tools', tools]);
    child.stdin.end('北京今天天气怎么样？\n');
    const { code, stdout } = await ended;
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      finishReason: 'tool_call',
      toolCall: { name: 'get_weather', arguments: { city: '北京' } },
    });
  });

  test('--json tells the calls that were carried out', async () => {
    const tools = path.join(home, 'tools.mjs');
    writeFileSync(tools, weatherModule(`() => '{"celsius": 21}'`));
    const { child, ended } = pipe(['--greedy', '--json', '--tools', tools]);
    child.stdin.end('北京今天天气怎么样？\n');
    const answer = JSON.parse((await ended).stdout);
    expect(answer).toMatchObject({ text: expect.stringContaining('21'), finishReason: 'stop' });
    expect(answer.steps).toEqual([
      { type: 'tool-call', name: 'get_weather', arguments: { city: '北京' } },
      { type: 'tool-result', name: 'get_weather', content: '{"celsius": 21}', ok: true },
    ]);
  });

  test.each([
    [['--interpreter', 'python'], 2, '--yes'],
    [['--yes'], 2, '--interpreter'],
    [['--tools', 'nothing.json'], 1, 'nothing.json'],
    [['--schema', 'nothing.json'], 1, 'nothing.json'],
    [['--session', 'a/b'], 2, 'a/b'],
  ])('%j is told before the model is looked for', async (args, expected, message) => {
    const { child, ended } = pipe([...args, '-m', path.join(home, 'nothing.gguf')]);
    child.stdin.end();
    const { code, stderr } = await ended;
    expect(code).toBe(expected);
    expect(stderr).toContain(message);
    expect(stderr).not.toContain('nothing.gguf');
  });
});
