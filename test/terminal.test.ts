import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { displayWidth } from '../lib/cli/terminal/width.js';
import { endless, key, say, terminalChats, weatherModule } from './support/terminal-chat';

// What somebody at a terminal sees of commands, sessions and answers.

const { homeOf, ready, start } = terminalChats();

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
    expect(await say(screen, `/save ${homeOf()}/copy.json`)).toBe(`Saved as ${homeOf()}/copy.json.`);
    expect(await say(screen, '/sessions')).toMatch(/^\* 第一次 · .* · 2 messages · 我叫小明。$/);
    screen.type('CLEAR\r');
    await screen.until((text) => text === 'You: ');
    expect(await say(screen, '/history')).toBe('Nothing was said yet.');
    expect(await say(screen, '/load nobody')).toContain('there is no session nobody');
    expect(await say(screen, `/load ${homeOf()}/copy.json`)).toContain('2 messages');
    expect(await say(screen, '我叫什么名字？')).toBe('你叫小明。');
    expect(JSON.parse(readFileSync(path.join(homeOf(), 'copy.json'), 'utf8')).history).toHaveLength(2);
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
    const file = path.join(homeOf(), '.local', 'share', 'chatglm', 'sessions', 'one.json');
    expect(JSON.parse(readFileSync(file, 'utf8')).chat.history).toHaveLength(4);
  });

  test.each(['/exit', '/quit', '/bye', '/stop', 'Exit', 'QUIT', 'stop'])('%s leaves', async (command) => {
    const screen = await ready();
    screen.type(`${command}\r`);
    expect(await screen.ended).toBe(0);
  });

  test('Tab completes commands, options, sessions and paths', async () => {
    mkdirSync(path.join(homeOf(), 'folder'));
    writeFileSync(path.join(homeOf(), 'folder', 'chat.json'), '');
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
    const folder = path.join(homeOf(), '.local', 'share', 'chatglm', 'sessions');
    // The session is open, so that its lock stands beside.
    expect(readdirSync(folder).filter((name) => !name.endsWith('.lock'))).toEqual(['trip.json']);
    expect(statSync(path.join(folder, 'trip.json')).mode & 0o777).toBe(0o600);
  });

  test('keep the tools of this run, and take the system message of the command line', async () => {
    const first = await ready(['--greedy', '--session', 'trip', '--system', 'You are Bob.']);
    await say(first, '我叫小明。');
    first.type(key.ctrlD);
    await first.ended;

    const tools = path.join(homeOf(), 'tools.mjs');
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
    const sessions = path.join(homeOf(), 'sessions');
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

describe('answers', () => {
  test('tools are called, and told on lines of their own', async () => {
    const tools = path.join(homeOf(), 'tools.mjs');
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
    const tools = path.join(homeOf(), 'tools.mjs');
    writeFileSync(tools, weatherModule(`() => '晴天\\n'.repeat(40)`));
    const screen = await ready(['--greedy', '--tools', tools], { columns: 40 });
    const [, result, after] = (await say(screen, '北京今天天气怎么样？')).split('\n');
    expect(result).toMatch(/^← 晴天 晴天 .*…$/);
    expect(displayWidth(result ?? '')).toBeLessThan(40);
    expect(after).not.toMatch(/^晴天 晴天/);
  });

  test('a tool that fails', async () => {
    const tools = path.join(homeOf(), 'tools.cjs');
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
