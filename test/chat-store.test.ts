import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { ChatGLMError, type ChatStore, type ChatStoreSession, openChatStore, type SavedChat } from 'node-chatglm';
import { fileNameOf, nameOf } from '../lib/chat/chat-names.js';

let folder: string;
let store: ChatStore;
const children = new Set<ChildProcess>();
const sessions = new Set<ChatStoreSession>();

/** A session that is closed when the test ends, if it was not before. */
async function hold(opening: Promise<ChatStoreSession>): Promise<ChatStoreSession> {
  const session = await opening;
  sessions.add(session);
  return session;
}

beforeEach(async () => {
  folder = join(mkdtempSync(join(tmpdir(), 'chat-store-')), 'chats');
  store = await openChatStore(folder);
});
afterEach(async () => {
  await Promise.all([...children].map(kill));
  children.clear();
  for (const session of sessions) await session[Symbol.asyncDispose]();
  sessions.clear();
  rmSync(join(folder, '..'), { recursive: true });
});

async function errorOf(promise: Promise<unknown>): Promise<ChatGLMError> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(ChatGLMError);
  return error as ChatGLMError;
}

function chatOf(...texts: string[]): SavedChat {
  const history = texts.map((content, index) =>
    index % 2 === 0 ? { role: 'user' as const, content } : { role: 'assistant' as const, metadata: '', content },
  );
  return { family: 'chatglm3', history };
}

async function save(name: string, chat: SavedChat, to = store): Promise<string> {
  const session = await to.open(name);
  const { path } = await session.save(chat);
  await session.close();
  return path;
}

/** Runs code in a process of its own that has a store, as `store`, and says lines by `say()`. */
async function run(code: string): Promise<ChildProcess> {
  const program = `
    const { openChatStore } = require('node-chatglm');
    const say = (line) => require('node:fs').writeSync(1, line + '\\n');
    (async () => {
      const store = await openChatStore(${JSON.stringify(folder)});
      ${code}
    })();`;
  const child = spawn(process.execPath, ['-e', program], {
    cwd: join(__dirname, '..'),
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  children.add(child);
  await once(child.stdout as NonNullable<typeof child.stdout>, 'data');
  return child;
}

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const end = once(child, 'exit');
  child.kill('SIGKILL');
  await end;
}

const files = () => readdirSync(folder).sort();

describe('names', () => {
  test.each([
    ['default', 'default'],
    ['北京 之旅-2_x', '北京 之旅-2_x'],
    ['Anna', '%41nna'],
    ['..', '%2E%2E'],
    ['.', '%2E'],
    ['a/b\\c:d*e?f"g<h>i|j', 'a%2Fb%5Cc%3Ad%2Ae%3Ff%22g%3Ch%3Ei%7Cj'],
    ['a\0b\n', 'a%00b%0A'],
    ['con', '%63on'],
    ['COM1', '%43%4F%4D1'],
    ['lpt9', '%6Cpt9'],
    ['console', 'console'],
    [' a b ', '%20a b%20'],
    ['%41', '%2541'],
    ['~', '%7E'],
    ['é', 'é'],
    ['e\u0301', 'e%CC%81'],
    ['É', '%C3%89'],
    ['ß', '%C3%9F'],
    ['ſ', '%C5%BF'],
    ['ﬁ', '%EF%AC%81'],
    ['한국', '한국'],
    ['\u1112\u1161', '%E1%84%92%E1%85%A1'],
    ['👋', '%F0%9F%91%8B'],
    ['привет', 'привет'],
  ])('%j', (name, file) => {
    expect(fileNameOf(name)).toBe(file);
    expect(nameOf(file)).toBe(name);
    expect(nameOf(file.normalize('NFD'))).toBe(name);
  });

  test('long names are cut, and stay different', () => {
    const names = ['京'.repeat(100), `${'京'.repeat(99)}都`, '！'.repeat(500), 'A'.repeat(1000), `${'A'.repeat(999)}B`];
    const encoded = names.map(fileNameOf);
    expect(new Set(encoded).size).toBe(names.length);
    for (const file of encoded) {
      const [beginning = ''] = file.split(/~[0-9a-f]{32}$/);
      expect(Buffer.byteLength(file)).toBeLessThanOrEqual(195);
      expect(Buffer.byteLength(file)).toBeGreaterThan(180);
      expect(names[encoded.indexOf(file)]?.startsWith(decodeURIComponent(beginning))).toBe(true);
      expect(nameOf(file)).toBeUndefined();
    }
  });

  test.each(['README', 'a.b', '%4a', '%zz', 'A', '%61'])('%s is a file of another origin', (file) => {
    expect(nameOf(file)).toBeNull();
  });

  test.each([undefined, null, '', 5, '\ud800', 'x'.repeat(1001)])('%p is no name', async (name) => {
    expect((await errorOf(store.open(name as string))).code).toBe('ERR_INVALID_ARGUMENT');
    expect((await errorOf(store.delete(name as string))).code).toBe('ERR_INVALID_ARGUMENT');
    expect((await errorOf(store.rename('a', name as string))).message).toMatch(/^newName /);
    expect(files()).toEqual([]);
  });
});

describe('a store', () => {
  test.each(['default', '北京之旅', '../x', 'CON', `${'很长'.repeat(200)}`, 'a\n\0b'])(
    'saves and loads %j',
    async (name) => {
      const chat = chatOf('你好', '你好！', '\u2028"\\\n', '👋');
      chat.history.unshift({ role: 'system', content: 'x', tools: [{ name: 'f', parameters: { type: 'object' } }] });
      chat.history.push({ role: 'user', content: 'x', openai: { name: 'Anna' } });
      const session = await store.open(name);
      expect(session.name).toBe(name);
      expect(await session.load()).toBeUndefined();
      await session.save({ ...chat, more: [1] } as SavedChat);
      expect(await session.load()).toEqual({ ...chat, more: [1] });
      await session.save({ family: 'chatglm2', history: [] });
      expect(await session.load()).toEqual({ family: 'chatglm2', history: [] });
      const { bytes, path } = await session.save(chat);
      expect(path).toBe(session.file);
      expect(statSync(path).size).toBe(bytes);
      await session.close();
      await session.close();
      expect(files()).toHaveLength(1);
      expect(files()[0]).toMatch(/\.json$/);
      const again = await hold((await openChatStore(folder)).open(name));
      expect(await again.load()).toEqual(chat);
      expect((await store.list()).map((entry) => entry.name)).toEqual([name]);
    },
  );

  test('the file is text with a line for each message', async () => {
    const path = await save('default', chatOf('你好', '你好！'));
    const lines = readFileSync(path, 'utf8').split('\n');
    expect(lines).toContain('{"role":"user","content":"你好"},');
    expect(JSON.parse(lines.join('\n'))).toMatchObject({ name: 'default', version: 1, chat: { family: 'chatglm3' } });
  });

  test('only the owner may read', async () => {
    if (process.platform === 'win32') return;
    const path = await save('default', chatOf('x', 'y'));
    expect(statSync(folder).mode & 0o777).toBe(0o700);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    await hold(store.open('default'));
    for (const name of files()) expect(statSync(join(folder, name)).mode & 0o077).toBe(0);
  });

  test('lists what there is, the latest first, and says of damaged files why', async () => {
    await save('first', chatOf('Hello,\n  what is\tthis? \u001b[31m', 'y'));
    await setTimeout(5);
    await save('second', chatOf(`${'长'.repeat(100)}`));
    await setTimeout(5);
    const empty = await save('third', { family: 'chatglm2', history: [] });
    writeFileSync(join(folder, 'cut.json'), readFileSync(empty).subarray(0, 50));
    writeFileSync(join(folder, 'other.json'), '{}');
    writeFileSync(join(folder, 'bytes.json'), Buffer.from([0x22, 0xff, 0x22]));
    writeFileSync(join(folder, 'newer.json'), readFileSync(empty, 'utf8').replace('"version": 1', '"version": 2'));
    writeFileSync(
      join(folder, 'role.json'),
      readFileSync(join(folder, 'first.json'), 'utf8').replace('"user"', '"nobody"'),
    );
    writeFileSync(join(folder, 'family.json'), readFileSync(empty, 'utf8').replace('chatglm2', 'gpt'));
    writeFileSync(join(folder, `a~${'0'.repeat(32)}.json`), readFileSync(empty));
    mkdirSync(join(folder, 'folder.json'));
    writeFileSync(join(folder, 'README.md'), 'x');
    writeFileSync(join(folder, 'A.json'), 'x');
    const entries = await store.list();
    const whole = entries.filter(({ damaged }) => damaged === undefined);
    expect(whole.map(({ name, title, messages }) => ({ name, title, messages }))).toEqual([
      { name: 'third', title: '', messages: 0 },
      { name: 'second', title: `${'长'.repeat(60)}…`, messages: 1 },
      { name: 'first', title: 'Hello, what is this? ?[31m', messages: 2 },
    ]);
    expect(whole[0]?.updated.getTime()).toBeGreaterThan(whole[2]?.updated.getTime() as number);
    const damaged = Object.fromEntries(entries.map(({ name, damaged }) => [name, damaged]));
    expect(damaged).toMatchObject({
      cut: expect.stringMatching(/cut\.json is cut or damaged: /),
      other: expect.stringMatching(/is not a saved conversation$/),
      bytes: expect.stringMatching(/is cut or damaged: /),
      newer: expect.stringMatching(/was saved by another version of this package$/),
      role: expect.stringMatching(/is damaged: chat\.history\[0\]\.role must be one of /),
      family: expect.stringMatching(/is damaged: chat\.family must be one of .* got "gpt"$/),
      [`a~${'0'.repeat(32)}`]: expect.stringMatching(/has the content of another conversation$/),
      folder: expect.stringMatching(/is a directory$/),
    });
    expect(entries).toHaveLength(11);
    // They can be opened, which says why, and deleted.
    const session = await hold(store.open('cut'));
    const error = await errorOf(session.load());
    expect(error).toMatchObject({ code: 'ERR_SESSION_INVALID', details: { file: session.file } });
    await session.close();
    expect((await errorOf(store.rename('cut', 'whole'))).code).toBe('ERR_SESSION_INVALID');
    expect(await store.delete('cut')).toBe(true);
    expect(await store.delete('cut')).toBe(false);
  });

  test('a file that is cut anywhere is damaged', async () => {
    const path = await save('default', chatOf('你好', '你好！'));
    const bytes = readFileSync(path);
    const session = await hold(store.open('default'));
    for (let length = 0; length < bytes.length - 1; length += 3) {
      writeFileSync(path, bytes.subarray(0, length));
      expect((await errorOf(session.load())).code).toBe('ERR_SESSION_INVALID');
    }
  });

  test('a save that fails leaves the old file', async () => {
    const chat = chatOf('x', 'y');
    const session = await hold(store.open('default'));
    await session.save(chat);
    const cycle: Record<string, unknown> = { family: 'chatglm3', history: [] };
    cycle.cycle = cycle;
    const wrong = [
      undefined,
      null,
      5,
      {},
      cycle,
      { family: 'chatglm3' },
      { family: 'x', history: [] },
      { family: 'chatglm3', history: [{ role: 'user' }] },
      { family: 'chatglm3', history: [], more: 5n },
    ];
    for (const value of wrong) {
      expect((await errorOf(session.save(value as unknown as SavedChat))).code).toBe('ERR_INVALID_ARGUMENT');
    }
    expect(await session.load()).toEqual(chat);
    // Root writes into any directory.
    if (process.platform === 'win32' || process.getuid?.() === 0) return;
    chmodSync(folder, 0o500);
    expect((await errorOf(session.save(chatOf('new')))).code).toBe('ERR_PERMISSION_DENIED');
    chmodSync(folder, 0o700);
    expect(await session.load()).toEqual(chat);
  });

  test('saves that overlap are done in their order, each of what the chat was then', async () => {
    const session = await store.open('default');
    const chat = chatOf('0');
    const saves = Array.from({ length: 20 }, (_, index) => {
      chat.history[0] = { role: 'user', content: `${index}` };
      return session.save(chat);
    });
    await session.close();
    await Promise.all(saves);
    const again = await hold(store.open('default'));
    expect(await again.load()).toEqual(chatOf('19'));
    for (const use of [session.load(), session.save(chat)]) expect((await errorOf(use)).code).toBe('ERR_DISPOSED');
  });

  test('rename() takes the content along, and replaces nothing', async () => {
    await save('a', chatOf('a'));
    await save('B/c', chatOf('b'));
    expect((await errorOf(store.rename('a', 'B/c'))).message).toBe('there is a conversation "B/c" already');
    expect((await errorOf(store.rename('none', 'x'))).message).toBe('there is no conversation "none"');
    await store.rename('a', 'a');
    await store.rename('a', 'A');
    const session = await hold(store.open('A'));
    expect(await session.load()).toEqual(chatOf('a'));
    expect((await errorOf(store.rename('A', 'x'))).code).toBe('ERR_BUSY');
    expect((await errorOf(store.rename('B/c', 'A'))).code).toBe('ERR_BUSY');
    expect((await store.list()).map(({ name }) => name).sort()).toEqual(['A', 'B/c']);
    await store.rename('B/c', 'c');
    await session.close();
    expect(files()).toEqual(['%41.json', 'c.json']);
  });

  test('what is no directory cannot be opened', async () => {
    const file = join(folder, 'x');
    writeFileSync(file, '');
    for (const path of [file, join(file, 'y')]) {
      expect((await errorOf(openChatStore(path))).code).toBe('ERR_INVALID_ARGUMENT');
    }
    rmSync(folder, { recursive: true });
    expect(await errorOf(store.list())).toMatchObject({ code: 'ERR_IO', details: { file: folder } });
    expect((await errorOf(store.open('x'))).code).toBe('ERR_IO');
    mkdirSync(folder);
  });
});

describe('a conversation is open once at a time', () => {
  test('in this process', async () => {
    const session = await store.open('default');
    const other = await openChatStore(folder);
    const error = await errorOf(other.open('default'));
    expect(error).toMatchObject({ code: 'ERR_BUSY', details: { pid: process.pid, host: hostname() } });
    expect(error.message).toMatch(/^the conversation "default" is open in this process since 20/);
    expect((await errorOf(other.delete('default'))).code).toBe('ERR_BUSY');
    await hold(other.open('Default'));
    await session.close();
    await hold(other.open('default'));
  });

  test('many that want it at the same time: never two of them have it', async () => {
    let open = 0;
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (let tries = 0; tries < 4; tries++) {
          try {
            const session = await store.open('default');
            expect(++open).toBe(1);
            await setTimeout(1);
            open--;
            await session.close();
          } catch (error) {
            expect((error as ChatGLMError).code).toBe('ERR_BUSY');
          }
        }
      }),
    );
    expect(files()).toEqual([]);
    await hold(store.open('default'));
  });

  test('the second process is told the first; after the first was killed it has the conversation', async () => {
    const child = await run(`
      const session = await store.open('default');
      await session.save(${JSON.stringify(chatOf('of the child'))});
      say('open');
      setInterval(() => {}, 1000);`);
    const error = await errorOf(store.open('default'));
    expect(error).toMatchObject({ code: 'ERR_BUSY', details: { pid: child.pid } });
    expect(error.message).toContain(`is open in process ${child.pid} on `);
    await kill(child);
    const session = await hold(store.open('default'));
    expect(await session.load()).toEqual(chatOf('of the child'));
    expect(files().filter((name) => name.endsWith('.lock'))).toHaveLength(1);
  });

  test('a process that exits leaves no lock', async () => {
    const child = await run(`
      await store.open('a');
      await store.open('b');
      say('open');
      process.stdin.once('data', () => process.exit());`);
    expect(files()).toHaveLength(2);
    const end = once(child, 'exit');
    child.stdin?.write('x');
    await end;
    expect(files()).toEqual([]);
  });

  test('an open conversation keeps no process alive', async () => {
    const child = await run(`await store.open('a'); say('open');`);
    if (child.exitCode === null) await once(child, 'exit');
    expect(child.exitCode).toBe(0);
    expect(files()).toEqual([]);
  });

  test('locks that others have left: of a dead process, of a process id that is used again, without content', async () => {
    const own = await store.open('default');
    const [lock] = files() as [string];
    const record = JSON.parse(readFileSync(join(folder, lock), 'utf8'));
    await own.close();
    const other = join(folder, 'default.other.lock');
    const put = (content: string, ageMs = 0) => {
      writeFileSync(other, content);
      const time = new Date(Date.now() - ageMs);
      utimesSync(other, time, time);
    };
    const isBusy = async () => {
      try {
        await (await store.open('default')).close();
        return false;
      } catch (error) {
        expect((error as ChatGLMError).code).toBe('ERR_BUSY');
        return true;
      }
    };
    put(JSON.stringify(record), 1e9);
    expect(await isBusy()).toBe(true);
    if (record.started !== '') {
      put(JSON.stringify({ ...record, started: '1' }));
      expect(await isBusy()).toBe(false);
      expect(existsSync(other)).toBe(false);
    }
    // Another machine's process is alive while it touches its locks.
    const foreign = JSON.stringify({ ...record, host: 'elsewhere' });
    put(foreign, 30_000);
    expect(await isBusy()).toBe(true);
    put(foreign, 120_000);
    expect(await isBusy()).toBe(false);
    for (const content of ['', '{', 'null', '{"pid":-1}']) {
      put(content, 1000);
      expect(await isBusy()).toBe(true);
      put(content, 20_000);
      expect(await isBusy()).toBe(false);
    }
  });

  test('a session whose lock is gone saves nothing', async () => {
    const session = await hold(store.open('default'));
    await session.save(chatOf('old'));
    for (const name of files()) if (name.endsWith('.lock')) rmSync(join(folder, name));
    expect((await errorOf(session.save(chatOf('new')))).code).toBe('ERR_BUSY');
    expect(await session.load()).toEqual(chatOf('old'));
  });
});

test('a process that is killed while it saves, 30 times: the file is always one whole version', async () => {
  // Each version says its number in every message, so that a mixture of two shows.
  const code = `
    const session = await store.open('default');
    const before = await session.load();
    let version = before ? Number(before.history[0].content.split(' ')[0]) : 0;
    say('saving');
    for (;;) {
      version++;
      const content = version + ' ' + 'x'.repeat(1000 + (version % 7) * 20000);
      await session.save({ family: 'chatglm3', history: [1, 2, 3].map(() => ({ role: 'user', content })) });
    }`;
  let last = 0;
  for (let time = 0; time < 30; time++) {
    const child = await run(code);
    await setTimeout(Math.random() * 60);
    await kill(child);
    const session = await hold(store.open('default'));
    const chat = await session.load();
    if (chat === undefined) {
      expect(last).toBe(0);
      await session.close();
      continue;
    }
    const contents = new Set(chat.history.map(({ content }) => content));
    expect(contents.size).toBe(1);
    const [content = ''] = contents;
    const version = Number(content.split(' ')[0]);
    expect(content).toBe(`${version} ${'x'.repeat(1000 + (version % 7) * 20000)}`);
    expect(version).toBeGreaterThanOrEqual(last);
    last = version;
    // What the killed process was writing is gone, and so is its lock.
    expect(files().filter((name) => name.endsWith('.part'))).toEqual([]);
    expect(files().filter((name) => name.endsWith('.lock'))).toHaveLength(1);
    await session.close();
  }
  expect(last).toBeGreaterThan(30);
});
