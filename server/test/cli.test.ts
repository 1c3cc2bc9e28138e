import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { spawn } from '@lydell/node-pty';
import { embeddedModelPath } from 'node-chatglm';
import { json, MAIN, post, run, type ServerProcess, startProcess, until } from './support/infra';

const root = path.join(__dirname, '..', '..');
let directory: string;
const processes: ServerProcess[] = [];

beforeAll(() => {
  directory = mkdtempSync(path.join(tmpdir(), 'chatglm-server-cli-'));
});
afterEach(async () => {
  for (const { child, ended } of processes.splice(0)) {
    child.kill('SIGKILL');
    await ended;
  }
});
afterAll(() => rmSync(directory, { recursive: true }));

async function start(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<ServerProcess> {
  const started = await startProcess(args, env);
  processes.push(started);
  return started;
}

const models = async (url: string, headers: Record<string, string> = {}) => {
  const { data } = await json(await fetch(`${url}/v1/models`, { headers }));
  return data.map(({ id }: { id: string }) => id);
};

test('the help names every option, and the version is the version', async () => {
  const help = await run(['--help']).ended;
  expect(help.code).toBe(0);
  for (const word of ['--port', '--model ID=PATH', '--keys FILE', '--max-memory SIZE', 'worker', 'Exit codes']) {
    expect(help.stdout).toContain(word);
  }
  expect(Math.max(...help.stdout.split('\n').map(({ length }) => length))).toBeLessThanOrEqual(130);
  expect((await run(['--version']).ended).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  expect((await run(['key', '--help']).ended).stdout).toContain('chatglm-server key NAME');
});

test.each<[string[], number, RegExp]>([
  [['--prot', '1'], 2, /unknown option --prot: did you mean --port\?\nSee: chatglm-server --help/],
  [['--port', 'x'], 2, /--port must be a whole number, got "x"/],
  [['--port', '70000'], 2, /--port must be from 0 to 65535, got "70000"/],
  [['--port'], 2, /--port needs a value/],
  [['--max-memory', 'much'], 2, /--max-memory must be a size such as 512MB, 8GB or 8GiB, got "much"/],
  [['--log-level', 'loud'], 2, /--log-level must be one of silent, error, warn, info, debug, got "loud"/],
  [['--no-web=1'], 2, /--no-web takes no value/],
  [['--cors', 'example.com'], 2, /cors must have origins such as https:\/\/example\.com/],
  [['--keys', '/nowhere/keys'], 2, /the file of keys \/nowhere\/keys cannot be read: there is no such file/],
  [['./nowhere'], 1, /there is no model at \.\/nowhere/],
  [['a=./nowhere'], 1, /there is no model at \.\/nowhere/],
  [[MAIN], 1, /ERR_CHECKPOINT_INVALID/],
  [['--host', '192.0.2.1', '--port', '0'], 1, /192\.0\.2\.1 is no address of this machine/],
  [['--preload', 'b'], 2, /preload names "b"; there are chatglm-tiny/],
  [['key'], 2, /NAME is missing: whose key it is\nSee: chatglm-server key --help/],
  [['key', 'a', '--expires', 'soon'], 2, /expires must be a date/],
])('chatglm-server %j ends with %i', async (args, code, message) => {
  const ended = await run(args).ended;
  expect([ended.code, ended.stderr]).toEqual([code, expect.stringMatching(message)]);
  expect(ended.stderr).not.toMatch(/\n {4}at /);
});

test('a port that is in use', async () => {
  const other = createServer().listen(0, '127.0.0.1');
  await until(() => other.listening);
  const { port } = other.address() as AddressInfo;
  const ended = await run(['--port', String(port)]).ended;
  expect([ended.code, ended.stderr]).toEqual([
    1,
    `chatglm-server: port ${port} of 127.0.0.1 is in use: end what listens there, or give another one with --port\n`,
  ]);
  other.close();
});

test('several models, by their paths and by names', async () => {
  const file = path.join(directory, 'other.gguf');
  symlinkSync(embeddedModelPath(), file);
  const { url, output } = await start([file, `mine=${file}`, '--model', `third=${file}`, '--max-memory', '1GB']);
  expect(await models(url)).toEqual(['third', 'other', 'mine']);
  const ask = (model: string) =>
    post(`${url}/v1/chat/completions`, { model, messages: [{ role: 'user', content: '你好' }], max_tokens: 2 });
  expect((await ask('mine')).body.model).toBe('mine');
  const unknown = await ask('gpt-4');
  expect([unknown.status, unknown.body.error.code]).toEqual([404, 'model_not_found']);
  // Where no terminal is, the log is JSON.
  for (const line of output().trim().split('\n')) expect(JSON.parse(line)).toHaveProperty('msg');
});

test('keys that the command made, of a file that SIGHUP reads again', async () => {
  const made = await run(['key', 'anna', '--tokens', '5000', '--weight', '2']).ended;
  const key = /sk-chatglm-[\w-]{43}/.exec(made.stderr)?.[0] as string;
  expect(made.stdout).toMatch(/^anna sha256:[\da-f]{64} weight=2 tokens=5000\n$/);
  expect(made.stdout).not.toContain(key);
  const file = path.join(directory, 'keys.txt');
  writeFileSync(file, made.stdout);
  const { url, child, output } = await start(['--keys', file, '--any-model']);
  expect((await fetch(`${url}/v1/models`)).status).toBe(401);
  const headers = { authorization: `Bearer ${key}` };
  const body = { model: 'gpt-4', messages: [{ role: 'user', content: '你好' }], max_tokens: 2 };
  const answer = await post(`${url}/v1/chat/completions`, body, { headers });
  expect([answer.status, answer.headers.get('x-ratelimit-limit-tokens')]).toEqual([200, '5000']);
  writeFileSync(file, '');
  child.kill('SIGHUP');
  await until(async () => (await fetch(`${url}/v1/models`, { headers })).status === 401);
  expect(output()).not.toContain(key);
});

test('keys of the environment', async () => {
  const { url } = await start([], { CHATGLM_KEYS: 'anna sk-0123456789abcdef; ben sk-0123456789abcdeg requests=5' });
  expect(await models(url, { 'x-api-key': 'sk-0123456789abcdeg' })).toEqual(['chatglm-tiny']);
  expect((await fetch(`${url}/v1/models`)).status).toBe(401);
});

test('an address of the network without keys is warned of', async () => {
  const { output } = await start(['--host', '0.0.0.0']);
  expect(output()).toContain('everybody who reaches this address may use the server');
});

/** A program on a terminal: what it wrote, and how it ended. */
function onTerminal(args: readonly string[]) {
  const terminal = spawn(process.execPath, [...args], { cols: 120, cwd: root });
  let text = '';
  terminal.onData((data) => {
    text += data;
  });
  const ended = new Promise<number>((resolve) => terminal.onExit(({ exitCode }) => resolve(exitCode)));
  return { terminal, ended, text: () => text };
}

test('on a terminal the first lines say what to open, and Ctrl-C ends it', async () => {
  const main = path.join(root, 'dist', 'cli', 'main.js');
  const { terminal, ended, text } = onTerminal([main, 'serve', '--port', '0', '--device', 'cpu']);
  await until(() => text().includes('Ctrl-C'));
  expect(text()).toMatch(/Open +http:\/\/127\.0\.0\.1:\d+\//);
  expect(text()).toMatch(/Model +chatglm-tiny on cpu, 1,024 tokens of context/);
  expect(text()).toMatch(/For +programs of this machine/);
  const url = /Open +(http:\S+)\//.exec(text())?.[1] as string;
  await fetch(`${url}/v1/models`);
  await until(() => text().includes('GET /v1/models 200'));
  terminal.write('\u0003');
  expect(await ended).toBe(0);
  expect(text()).not.toContain('"level"');
});

test('chatglm serve says what to install where the server is missing', async () => {
  // The package alone, as a user has it who never installed the server.
  for (const part of ['dist', 'package.json']) symlinkSync(path.join(root, part), path.join(directory, part));
  const child = spawn(
    process.execPath,
    ['--preserve-symlinks', '--preserve-symlinks-main', path.join(directory, 'dist', 'cli', 'main.js'), 'serve'],
    {
      cwd: directory,
      cols: 200,
    },
  );
  let text = '';
  child.onData((data) => {
    text += data;
  });
  const code = await new Promise((resolve) => child.onExit(({ exitCode }) => resolve(exitCode)));
  expect(code).toBe(1);
  expect(text).toContain('npm install node-chatglm-server');
});
