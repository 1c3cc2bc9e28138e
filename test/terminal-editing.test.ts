import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { LineBuffer, layOut } from '../lib/cli/terminal/line-buffer.js';
import { displayWidth } from '../lib/cli/terminal/width.js';
import { beginEndless, endless, key, paste, say, terminalChats, weatherModule } from './support/terminal-chat';

// What somebody who types sees: keys, messages of several lines, Ctrl-C.

const { homeOf, ready, start } = terminalChats();

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

    const file = path.join(homeOf(), '.local', 'state', 'chatglm', 'history');
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
    const file = path.join(homeOf(), 'my-history');
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
    expect(existsSync(path.join(homeOf(), '.local', 'state'))).toBe(false);
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
    const hold = path.join(homeOf(), 'hold.cjs');
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
    const tools = path.join(homeOf(), 'tools.mjs');
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
