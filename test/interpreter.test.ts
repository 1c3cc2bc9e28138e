import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { homedir, tmpdir } from 'node:os';
import path from 'node:path';
import {
  type ExecutionResult,
  type ExecutorSession,
  javascriptExecutor,
  type ProcessExecutor,
  pythonExecutor,
  type SandboxChoice,
} from '../lib/index.js';
import { descendantsOf } from '../lib/interpreter/processes.js';

const root = path.join(__dirname, '..');
const MEBIBYTE = 2 ** 20;

function hasProgram(program: string, ...args: string[]): boolean {
  try {
    execFileSync(program, args, { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

const hasPython = hasProgram('python3', '-c', '1');
const hasBubblewrap = process.platform === 'linux' && hasProgram('bwrap', '--version');
/** Whether the system lets this user make the namespaces that the sandbox of unshare is made of. */
const hasUnshare =
  process.platform === 'linux' &&
  hasProgram('unshare', '--user', '--map-root-user', '--net', '--pid', '--fork', '--mount', 'true');

const sandboxes: [SandboxChoice, string | undefined][] = [
  ['bubblewrap', hasBubblewrap ? undefined : 'there is no bubblewrap (bwrap) here'],
  ['unshare', hasUnshare ? undefined : 'unshare may make no namespaces here'],
];

/** Directories of sessions that a process has. Other programs, and other tests, may have some of their own now. */
const directories = (pid: number = process.pid) =>
  readdirSync(tmpdir()).filter((name) => name.startsWith(`node-chatglm-code-${pid}-`));
const childrenOfThis = () => descendantsOf(process.pid, 10_000).filter(({ isZombie }) => !isZombie);

const open = new Set<ExecutorSession>();
async function opened(executor: ProcessExecutor): Promise<ExecutorSession> {
  const session = await executor.open();
  open.add(session);
  return session;
}
afterEach(async () => {
  for (const session of open) await session.dispose();
  open.clear();
  expect(directories()).toEqual([]);
});

/** Runs pieces one after the other; the last one's result. */
async function run(session: ExecutorSession, ...pieces: string[]): Promise<ExecutionResult> {
  let result: ExecutionResult | undefined;
  for (const piece of pieces) result = await session.run(piece);
  return result as ExecutionResult;
}

const python = (text: TemplateStringsArray, ...values: unknown[]) => String.raw(text, ...values).trim();

// --- What does not need a sandbox.

describe('options of executors', () => {
  test('are checked before anything runs', () => {
    expect(() => pythonExecutor({ timeoutMs: 0 })).toThrow(/timeoutMs/);
    expect(() => pythonExecutor({ memoryBytes: 1 })).toThrow(/memoryBytes/);
    expect(() => pythonExecutor({ sandbox: 'docker' as 'none' })).toThrow(/sandbox/);
    expect(() => pythonExecutor({ node: 'node' } as object)).toThrow(/no option node/);
    expect(() => pythonExecutor({ files: { '../x': new Uint8Array() } })).toThrow(/files/);
    expect(() => pythonExecutor({ files: { '/etc/x': new Uint8Array() } })).toThrow(/files/);
    expect(() => pythonExecutor({ files: { '..': new Uint8Array() } })).toThrow(/files/);
    expect(() => pythonExecutor({ files: { x: 'text' as unknown as Uint8Array } })).toThrow(/files/);
    expect(() => pythonExecutor({ files: { x: new Uint8Array(2000) }, fileBytes: 1999 })).toThrow(/fileBytes/);
    expect(() => javascriptExecutor({ env: ['A=B'] })).toThrow(/env/);
  });

  test('an interpreter that is not there is told when a session begins', async () => {
    const missing = pythonExecutor({ python: '/no/such/python', sandbox: 'none' });
    await expect(missing.open()).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED' });
    const wrong = pythonExecutor({ python: process.execPath, sandbox: 'none' });
    await expect(wrong.open()).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED' });
  });

  test('without a sandbox nothing runs unless it is asked for', async () => {
    // Another platform has no sandbox, whatever programs are installed.
    const platform = Object.getOwnPropertyDescriptor(process, 'platform') as PropertyDescriptor;
    Object.defineProperty(process, 'platform', { ...platform, value: 'darwin' });
    try {
      const refused = javascriptExecutor().open();
      await expect(refused).rejects.toMatchObject({
        code: 'ERR_UNSUPPORTED',
        message: expect.stringContaining("'none'"),
      });
      expect((await javascriptExecutor({ sandbox: 'none' }).protections()).files).toBe(false);
    } finally {
      Object.defineProperty(process, 'platform', platform);
    }
  });

  test('none runs with the rights of the user and says so', async () => {
    const executor = javascriptExecutor({ sandbox: 'none', timeoutMs: 1000 });
    expect(await executor.protections()).toMatchObject({ sandbox: 'none', network: false, files: false });
    const session = await opened(executor);
    const { text } = await session.run(`require('node:fs').existsSync(${JSON.stringify(__filename)})`);
    expect(text).toBe('true');
    expect((await session.run('for (;;);')).status).toBe('timeout');
    expect((await session.run('1 + 1')).text).toBe('2');
  });
});

for (const [sandbox, reason] of sandboxes) {
  if (reason !== undefined) {
    test.skip(`the sandbox ${sandbox}: ${reason}`, () => {});
    continue;
  }
  const limits = { sandbox, memoryBytes: 256 * MEBIBYTE, fileBytes: 8 * MEBIBYTE };

  describe(`JavaScript in ${sandbox}`, () => {
    test('results, state, errors and files', async () => {
      const session = await opened(javascriptExecutor({ ...limits, files: { 'in.txt': Buffer.from('你好') } }));
      expect(await session.run('const x = 20; x + 1')).toMatchObject({ status: 'ok', text: '21', files: [] });
      expect((await session.run('x * 2')).text).toBe('40');
      expect((await session.run('const y = await Promise.resolve(x + 3); y')).text).toBe('23');
      expect((await session.run('console.log("答案", { y }); console.error("e")')).text).toBe('答案 { y: 23 }\ne');
      expect(await session.run('null.x')).toMatchObject({ status: 'error', text: expect.stringMatching(/^TypeError/) });
      expect((await session.run('x =')).text).toMatch(/SyntaxError/);
      expect((await session.run('throw 3')).text).toBe('Uncaught 3');
      expect((await session.run('Promise.reject(new Error("late"))')).text).toMatch(/^Error: late/);
      expect((await session.run('fs.readFileSync("in.txt", "utf8")')).text).toBe("'你好'");
      const { files } = await session.run('fs.writeFileSync("out.json", "[1]")');
      expect(files).toEqual([
        { name: 'out.json', mediaType: 'application/json', data: new Uint8Array(Buffer.from('[1]')) },
      ]);
      expect((await session.run('process.cwd()')).text).toBe("'/mnt/data'");
    });

    test('what ends the process', async () => {
      const session = await opened(javascriptExecutor({ ...limits, timeoutMs: 2000 }));
      expect((await session.run('for (;;);')).status).toBe('timeout');
      expect((await session.run('await new Promise(() => setInterval(() => {}, 10))')).status).toBe('timeout');
      expect(await session.run('process.exit(3)')).toMatchObject({ status: 'error' });
      expect((await session.run('process.kill(process.pid, "SIGKILL")')).status).toBe('crashed');
      expect((await session.run('process.abort()')).status).toBe('crashed');
      expect((await session.run('fs.writeSync(3, "not JSON\\n"); for (;;);')).status).toBe('crashed');
      expect((await session.run('const all = []; for (;;) all.push(new Array(1e6).fill(0.5))')).status).toBe('memory');
      expect((await session.run('for (;;) console.log("endless")')).status).toBe('output');
      expect((await session.run('function f() { return f() + 1 } f()')).text).toMatch(/Maximum call stack/);
      expect((await session.run('1 + 1')).text).toBe('2');
    });

    test('sees no files, no network and no environment of the host', async () => {
      process.env.CHATGLM_TEST_SECRET = 'secret-of-the-test';
      try {
        const session = await opened(javascriptExecutor(limits));
        const places = [root, __filename, '/etc/shadow', '/etc/passwd', path.join(homedir(), '.bashrc')];
        const { text } = await session.run(`${JSON.stringify(places)}.filter((it) => fs.existsSync(it))`);
        expect(text).toBe('[]');
        expect((await session.run('process.env')).text).not.toMatch(/secret-of-the-test|CHATGLM/);
        const { text: interfaces } = await session.run('Object.keys(os.networkInterfaces())');
        expect(interfaces).toMatch(/^\[( 'lo' )?\]$/);
        expect((await session.run('fs.writeFileSync("/usr/x", "")')).text).toMatch(/EROFS|EACCES/);
      } finally {
        delete process.env.CHATGLM_TEST_SECRET;
      }
    });
  });

  if (!hasPython) {
    test.skip(`Python in ${sandbox}: there is no python3 here`, () => {});
    continue;
  }

  describe(`Python in ${sandbox}`, () => {
    const session = (options = {}) => opened(pythonExecutor({ ...limits, ...options }));

    test('says what it protects', async () => {
      const protections = await pythonExecutor(limits).protections();
      expect(protections).toMatchObject({ sandbox, network: true, files: true, processes: true, memory: true });
    });

    test('shows the last value, keeps what is defined, and tells errors', async () => {
      const it = await session();
      expect(await it.run('x = 20\nprint("答案")\nx + 1')).toMatchObject({ status: 'ok', text: '答案\n21' });
      expect((await it.run('x')).text).toBe('20');
      expect(await it.run('y = 1')).toMatchObject({ status: 'ok', text: '', files: [] });
      expect((await it.run('None')).text).toBe('');
      const failed = await it.run('def f():\n    return 1 / 0\nf()');
      expect(failed.status).toBe('error');
      expect(failed.text).toMatch(
        /^Traceback[\s\S]*<cell 5>", line 2, in f\n {4}return 1 \/ 0[\s\S]*ZeroDivisionError: division by zero$/,
      );
      expect((await it.run('x =')).text).toMatch(/SyntaxError/);
      expect((await it.run('x')).text).toBe('20');
      expect((await it.run('import asyncio\nawait asyncio.sleep(0)\n"awaited"')).text).toBe("'awaited'");
      expect((await it.run('import sys\nsys.exit(2)')).status).toBe('error');
      expect((await it.run('sys.exit()')).status).toBe('ok');
      expect((await it.run('input()')).text).toMatch(/EOFError/);
      expect((await it.run('')).status).toBe('ok');
      expect((await it.run('"\\ud800"\nprint("\\ud800")')).status).toBe('ok');
    });

    test('shows what other programs print, in its order', async () => {
      const it = await session();
      const { text } = await it.run(python`
import os, subprocess, sys
print('one')
subprocess.run(['sh', '-c', 'echo two; echo three >&2'])
os.write(1, b'four\n')
print('five', file=sys.stderr)
'six'`);
      expect(text).toBe("one\ntwo\nthree\nfour\nfive\n'six'");
    });

    test('an image and other files come back, and files that were given are there', async () => {
      const it = await session({ files: { 'numbers.csv': Buffer.from('1\n2\n') } });
      expect((await it.run('sum(int(line) for line in open("numbers.csv"))')).text).toBe('3');
      const { files } = await it.run(python`
import os, struct, zlib
def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
png = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 8, 0, 0, 0, 0))
png += chunk(b'IDAT', zlib.compress(b'\0\x7f')) + chunk(b'IEND', b'')
open('图.png', 'wb').write(png)
os.mkdir('folder')
open('folder/a.txt', 'w').write('a')
open('numbers.csv', 'a').write('3\n')
open('.hidden', 'w').write('no result')`);
      expect(files.map(({ name, mediaType }) => [name, mediaType])).toEqual([
        ['folder/a.txt', 'text/plain'],
        ['numbers.csv', 'text/csv'],
        ['图.png', 'image/png'],
      ]);
      expect(
        Buffer.from(files[2]?.data ?? [])
          .subarray(1, 4)
          .toString(),
      ).toBe('PNG');
      expect(Buffer.from(files[1]?.data ?? []).toString()).toBe('1\n2\n3\n');
      expect((await it.run('1')).files).toEqual([]);
    });

    test('figures of matplotlib come back', async () => {
      const it = await session();
      if ((await it.run('import matplotlib')).status !== 'ok') {
        // Nothing that draws is installed: a module with its shape shows that figures are asked for and saved.
        await it.run(python`
import sys, types
class Figure:
    def savefig(self, name): open(name, 'wb').write(b'\x89PNG')
pyplot = types.ModuleType('matplotlib.pyplot')
pyplot.open = [1, 2]
pyplot.get_fignums = lambda: pyplot.open
pyplot.figure = lambda number: Figure()
pyplot.close = lambda what: pyplot.open.clear()
sys.modules['matplotlib.pyplot'] = pyplot
None`);
        const { files } = await it.run('pyplot.open = [3]');
        expect(files.map(({ name }) => name)).toEqual(['figure-3.png']);
        return;
      }
      const { files } = await it.run('import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()');
      expect(files).toMatchObject([{ name: 'figure-1.png', mediaType: 'image/png' }]);
    });

    test("a virtual environment's Python sees its environment and nothing beside it", async () => {
      const folder = mkdtempSync(path.join(tmpdir(), 'environment-'));
      try {
        writeFileSync(path.join(folder, 'beside'), '');
        const environment = path.join(folder, 'venv');
        execFileSync('python3', ['-m', 'venv', '--without-pip', environment]);
        const it = await session({ python: path.join(environment, 'bin', 'python') });
        const { text } = await it.run('import os, sys\nprint(sys.prefix, os.listdir(os.path.dirname(sys.prefix)))');
        expect(text).toBe(`${environment} ['venv']`);
      } finally {
        rmSync(folder, { recursive: true });
      }
    });

    test('pieces given at once run one after the other', async () => {
      const it = await session();
      const results = await Promise.all(['a = [1]', 'a.append(2)', 'a'].map((piece) => it.run(piece)));
      expect(results.map(({ text }) => text)).toEqual(['', '', '[1, 2]']);
    });

    test.each([
      ['a loop', 'while True: pass'],
      ['a sleep', 'import time; time.sleep(1000)'],
      [
        'a process that ignores signals',
        'import signal\nfor i in range(1, 32):\n  if i not in (9, 19): signal.signal(i, signal.SIG_IGN)\nwhile True: pass',
      ],
      ['a child', 'import subprocess; subprocess.run(["sleep", "1000"])'],
      ['a stopped process', 'import os, signal; os.kill(os.getpid(), signal.SIGSTOP)'],
    ])('a timeout ends %s', async (_, code) => {
      const it = await session({ timeoutMs: 1000 });
      await it.run('open("kept", "w").write("kept"); x = 1');
      expect((await it.run(code)).status).toBe('timeout');
      expect((await it.run('x')).text).toMatch(/NameError/);
      expect((await it.run('open("kept").read()')).text).toBe("'kept'");
    });

    test('a signal ends a piece, and dispose() another', async () => {
      const it = await session({ timeoutMs: 100_000 });
      const controller = new AbortController();
      const running = it.run('open("begun", "w")\nwhile True: pass', { signal: controller.signal });
      controller.abort(new Error('why'));
      await expect(running).rejects.toMatchObject({
        code: 'ERR_ABORTED',
        name: 'AbortError',
        cause: controller.signal.reason,
      });
      await expect(it.run('1', { signal: controller.signal })).rejects.toMatchObject({ code: 'ERR_ABORTED' });
      expect((await it.run('1')).text).toBe('1');
      const last = it.run('while True: pass');
      const expected = expect(last).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
      await it.dispose();
      await expected;
      await expect(it.run('1')).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    });

    // --- Breaking out.

    test('no file of the host is seen, nothing outside is written', async () => {
      const it = await session();
      const places = [
        '/etc/shadow',
        '/etc/passwd',
        '/etc/hostname',
        root,
        __filename,
        path.join(homedir(), '.bashrc'),
        '/var',
        '/sys/kernel',
        '/proc/1/root/etc/shadow',
        '/run',
      ];
      const seen = await it.run(`import os\n[p for p in ${JSON.stringify(places)} if os.path.exists(p)]`);
      expect(seen.text).toBe('[]');
      const { text } = await it.run(python`
def writes(place):
    try:
        open(place, 'w').close()
        return True
    except OSError:
        return False
[p for p in ['/x', '/usr/x', '/usr/bin/x', '/etc/x', '/mnt/x', '/dev/x', '/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/1/mem', '/proc/1/oom_score_adj', ${JSON.stringify(tmpdir())} + '/../x', ${JSON.stringify(homedir())} + '/x'] if writes(p)]`);
      expect(text).toBe('[]');
      expect((await it.run('open("/tmp/x", "w").write("private")')).text).toBe('7');
      expect(existsSync('/tmp/x')).toBe(false);
    });

    test('no variable of the environment is seen unless it is named', async () => {
      process.env.CHATGLM_TEST_SECRET = 'secret-of-the-test';
      process.env.CHATGLM_TEST_SHOWN = 'shown';
      try {
        const it = await session({ env: ['CHATGLM_TEST_SHOWN'] });
        const { text } = await it.run(python`
import glob, os
texts = [repr(dict(os.environ))]
for place in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
    try:
        texts.append(open(place, errors='replace').read())
    except OSError:
        pass
print(len(texts) > 1, 'secret-of' + '-the-test' in ''.join(texts), os.environ['CHATGLM_TEST_SHOWN'])`);
        expect(text).toBe('True False shown');
      } finally {
        delete process.env.CHATGLM_TEST_SECRET;
        delete process.env.CHATGLM_TEST_SHOWN;
      }
    });

    test('no network is reached', async () => {
      let connections = 0;
      const folder = mkdtempSync(path.join(tmpdir(), 'sockets-'));
      const listen = (where: number | string) =>
        new Promise<Server>((resolve, reject) => {
          const server = createServer((socket) => {
            connections++;
            socket.destroy();
          });
          server.once('error', reject);
          if (typeof where === 'number') server.listen(where, '127.0.0.1', () => resolve(server));
          else server.listen(where, () => resolve(server));
        });
      const tcp = await listen(0);
      const local = await listen(path.join(folder, 'socket'));
      const abstract = await listen(`\0node-chatglm-test-${process.pid}`).catch(() => undefined);
      try {
        const { port } = tcp.address() as { port: number };
        const it = await session();
        const { text, status } = await it.run(python`
import socket
def reach(family, address, kind=socket.SOCK_STREAM):
    try:
        s = socket.socket(family, kind)
        s.settimeout(1)
        s.connect(address)
        return True
    except OSError:
        return False
found = [reach(socket.AF_INET, ('127.0.0.1', ${port})), reach(socket.AF_INET, ('1.1.1.1', 53)),
         reach(socket.AF_UNIX, ${JSON.stringify(path.join(folder, 'socket'))}), reach(socket.AF_UNIX, '\0node-chatglm-test-${process.pid}')]
try:
    found.append(bool(socket.getaddrinfo('example.com', 80)))
except OSError:
    found.append(False)
try:
    socket.socket(40, socket.SOCK_STREAM)
    found.append(True)
except OSError:
    found.append(False)
found`);
        expect(status).toBe('ok');
        expect(text).toBe(`[${Array(6).fill('False').join(', ')}]`);
        expect(connections).toBe(0);
      } finally {
        for (const server of [tcp, local, abstract]) server?.close();
        rmSync(folder, { recursive: true });
      }
    });

    test('no process of the host is seen, signalled or traced', async () => {
      const it = await session();
      const bystander = spawn('sleep', ['1000']);
      try {
        const { text } = await it.run(python`
import ctypes, glob, os
commands = [open(p, errors='replace').read() for p in glob.glob('/proc/[0-9]*/cmdline')]
print(0 < len(commands) < 10, any('sleep' in command for command in commands))
libc = ctypes.CDLL(None, use_errno=True)
print([libc.ptrace(16, pid, 0, 0) for pid in (1, os.getppid() or 1)])`);
        expect(text).toBe('True False\n[-1, -1]'); // its own are seen
        for (const code of ['os.kill(os.getppid(), 9)', 'os.kill(1, 9)', 'os.kill(-1, 9)', 'os.killpg(0, 9)']) {
          const { status } = await it.run(`import os\n${code}`);
          expect(['ok', 'error', 'crashed']).toContain(status);
        }
        expect((await it.run('1')).text.endsWith('1')).toBe(true);
        expect(bystander.exitCode ?? bystander.signalCode).toBeNull();
      } finally {
        bystander.kill('SIGKILL');
      }
    });

    test('rights cannot be won', async () => {
      const it = await session();
      const { text } = await it.run(python`
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
status = open('/proc/self/status').read()
rights = [line.split()[1].strip('0') for line in status.splitlines() if line.startswith(('CapEff', 'CapPrm', 'CapInh', 'CapAmb'))]
print(rights, 'NoNewPrivs:\t1' in status)
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000
print(libc.unshare(CLONE_NEWNS), libc.mount(b'none', b'/tmp', b'tmpfs', 0, None), libc.umount2(b'/usr', 2))
try:
    os.setuid(0) if os.getuid() != 0 else os.setgroups([0])
    print('another user')
except OSError:
    print('no')
try:
    os.mknod('device', 0o600 | 0o060000, os.makedev(8, 0))
    print('a device')
except OSError:
    print('no')`);
      expect(text).toBe("['', '', '', ''] True\n-1 -1 -1\nno\nno");
    });

    test('a fork bomb is held, and gone afterwards', async () => {
      const it = await session({ processes: 8 });
      const before = childrenOfThis().length;
      const { status, text } = await it.run('import os\nwhile True: os.fork()');
      expect(['error', 'crashed']).toContain(status);
      expect(text).toMatch(/BlockingIOError|more than 8 processes/);
      expect(childrenOfThis().length).toBeLessThan(before + 40);
      await it.run('import os; os.kill(os.getpid(), 9)');
      await it.dispose();
      expect(childrenOfThis().length).toBeLessThanOrEqual(before);
    });

    test('memory is held: of a process, and of all together', async () => {
      const it = await session();
      expect((await it.run('x = bytearray(2 << 30)')).status).toBe('memory');
      expect(
        (await it.run('import mmap\nm = mmap.mmap(-1, 2 << 30)\nfor i in range(0, 2 << 30, 4096): m[i] = 1')).status,
      ).toBe('memory');
      const all = await it.run(python`
import os, time
for i in range(8):
    if os.fork() == 0:
        x = bytearray(os.urandom(1 << 20)) * 100
        time.sleep(100)
        os._exit(0)
time.sleep(100)`);
      expect(all.status).toBe('memory');
      expect((await it.run('1')).text).toBe('1');
    });

    test('output is cut, whole characters kept', async () => {
      const it = await session({ outputBytes: 1000 });
      const endless = await it.run('while True: print("字" * 100)');
      expect(endless.status).toBe('output');
      expect(endless.text.split('\n[')[0]).toMatch(/^[字\n]+$/);
      expect(Buffer.byteLength(endless.text)).toBeLessThan(1200);
      expect((await it.run('"a" * 1000000')).status).toBe('output');
      expect((await it.run('import sys, os; sys.stdout.buffer.write(bytes(range(256))); None')).status).toBe('ok');
      expect((await it.run('import subprocess; subprocess.run("yes")')).status).toBe('output');
      expect((await it.run('1')).text).toBe('1');
    });

    test('the disk is held: large files, many files, deep folders, removed files', async () => {
      const it = await session({ timeoutMs: 30_000 });
      expect((await it.run('open("big", "wb").write(bytes(64 << 20))')).text).toMatch(/File too large/);
      const pieces = [
        'for i in range(100): open(f"part{i}", "wb").write(os.urandom(1 << 20))',
        'for i in range(100_000): open(f"small{i}", "w").close()',
        'for i in range(100):\n    os.mkdir("d"); os.chdir("d")\ntime.sleep(100)',
        'held = []\nfor i in range(100):\n    held.append(open("held", "wb")); os.remove("held"); held[-1].write(bytes(1 << 20)); held[-1].flush()\ntime.sleep(100)',
      ];
      for (const piece of pieces) {
        const result = await it.run(`import os, time\n${piece}`);
        expect([piece, result.status]).toEqual([piece, 'output']);
        expect((await it.run('import os; os.listdir("/mnt/data")')).text).toBe('[]');
      }
      expect(
        (await it.run('open("/tmp/big", "wb").write(bytes(4 << 20))\nopen("/tmp/other", "wb").write(bytes(6 << 20))'))
          .text,
      ).toMatch(/No space left/);
    });

    test('only regular files come back, and not too many', async () => {
      const it = await session();
      const { files } = await it.run(python`
import os, socket
os.symlink('/etc/passwd', 'link')
os.symlink('/etc', 'folder')
os.symlink('.', 'loop')
os.mkfifo('fifo')
socket.socket(socket.AF_UNIX).bind('socket')
open('closed', 'w').write('x'); os.chmod('closed', 0)
open('name\n\x1b[31m', 'w').write('x')
open('real', 'w').write('real')`);
      const names = files.map(({ name }) => name).filter((name) => name !== 'closed'); // which real root may read
      expect(names).toEqual(['name??[31m', 'real']);
      const many = await it.run('for i in range(30): open(f"file{i:02}", "w").write("x")');
      expect(many.files).toHaveLength(20);
      expect(many.text).toMatch(/not given back.*"file29"/);
    });

    test('a folder that is exchanged for a link all the time leads nowhere', async () => {
      const it = await session();
      const { status } = await it.run(python`
import os
os.mkdir('a'); open('a/hostname', 'w').write('mine'); os.symlink('/etc', 'b')
if os.fork() == 0:
    while True:
        os.rename('a', 'c'); os.rename('b', 'a'); os.rename('a', 'b'); os.rename('c', 'a')`);
      expect(status).toBe('ok');
      for (let i = 0; i < 50; i++) {
        const { files } = await it.run('1');
        for (const { data } of files) expect(Buffer.from(data).toString()).toBe('mine');
      }
    });

    test('the channel cannot be forged', async () => {
      const it = await session();
      const attempts = [
        'for fd in range(3, 256):\n    try: os.write(fd, b"garbage\\n")\n    except OSError: pass\nwhile True: pass',
        'for fd in range(3, 256):\n    try: os.write(fd, b"x" * 100000)\n    except OSError: pass\nwhile True: pass',
        'for fd in range(3, 256):\n    try: os.write(fd, b\'{"id": "1", "status": "ok"}\\n\')\n    except OSError: pass\nwhile True: pass',
        'for fd in range(3, 256):\n    try: os.write(fd, b\'{"__proto__": {"id": 1}, "id": {}, "status": []}\\n\')\n    except OSError: pass\nwhile True: pass',
        'os.closerange(0, 256)',
        'for fd in range(256):\n    try: os.dup2(os.open("/dev/null", os.O_RDWR), fd)\n    except OSError: pass',
      ];
      for (const attempt of attempts) {
        const { status } = await it.run(`import os\n${attempt}`);
        expect([attempt, status]).toEqual([attempt, expect.stringMatching(/^(crashed|timeout)$/)]);
        const next = await it.run('1');
        expect(next).toMatchObject({ status: 'ok', text: expect.stringMatching(/1$/) });
      }
      // A reply between pieces.
      await it.run(
        'import os, threading, time\ndef f():\n    time.sleep(0.05)\n    for fd in range(3, 256):\n        try: os.write(fd, b"{}\\n")\n        except OSError: pass\nthreading.Thread(target=f).start()',
      );
      await it.run('1').then(() => it.run('time.sleep(0.2)'));
      expect((await it.run('2')).text.endsWith('2')).toBe(true);
    });

    test('code of every kind', async () => {
      const it = await session({ timeoutMs: 60_000 });
      expect((await it.run('def f(): return f()\nf()')).text).toMatch(/RecursionError/);
      expect(
        (await it.run('import sys, ctypes\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)')).status,
      ).not.toBe('ok');
      expect((await it.run(`x = "${'y'.repeat(10_000_000)}"; len(x)`)).text).toBe('10000000');
      expect((await it.run('\u0000\u0001\ufffd\ud800 \u202e')).status).toBe('error');
      expect((await it.run(`${'('.repeat(10_000)}`)).status).toBe('error');
      expect(['crashed', 'error']).toContain((await it.run('import ctypes; ctypes.string_at(0)')).status);
      expect((await it.run('class E(Exception):\n    def __str__(self): raise E()\nraise E()')).status).toBe('error');
      expect((await it.run('class R:\n    def __repr__(self): raise KeyboardInterrupt\nR()')).status).toBe('error');
      expect((await it.run('import os; os._exit(0)')).status).toBe('crashed');
      expect((await it.run('import sys; sys.stdout = sys.stderr = None')).status).toBe('ok');
      expect((await it.run('1/0')).status).toBe('error');
      expect((await run(it, 'import os; os._exit(1)', '2')).text.endsWith('2')).toBe(true);
    });

    test('what left its process group is gone with the session', async () => {
      // How long the orphan would sleep tells it from all other processes of the machine.
      const mark = String(1_000_000 + process.pid);
      const before = childrenOfThis().length;
      const it = await session();
      const { text } = await it.run(python`
import os, time
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(writing, b'x')
        os.execvp('sleep', ['sleep', '${mark}'])
    os._exit(0)
os.read(reading, 1)`);
      expect(text).toBe("b'x'");
      await it.dispose();
      expect(childrenOfThis().length).toBeLessThanOrEqual(before);
      expect(execFileSync('ps', ['-eo', 'args'], { encoding: 'utf8' })).not.toContain(mark);
    });

    test('sessions do not see each other', async () => {
      const executor = pythonExecutor(limits);
      const [one, other] = [await opened(executor), await opened(executor)];
      await one.run('open("mine", "w").write("x"); open("/tmp/mine", "w").write("x"); y = 1');
      expect((await other.run('import os; (os.listdir(), os.listdir("/tmp"), "y" in globals())')).text).toBe(
        '([], [], False)',
      );
    });

    test('a hundred sessions leave nothing', async () => {
      const executor = pythonExecutor(limits);
      const before = childrenOfThis().length;
      const descriptors = () => readdirSync('/proc/self/fd').length;
      await (await executor.open()).dispose();
      const open = descriptors();
      for (let i = 0; i < 25; i++) {
        const sessions = await Promise.all(Array.from({ length: 4 }, () => executor.open()));
        const results = await Promise.all(sessions.map((it, n) => it.run(`${n} + 1`)));
        expect(results.map(({ text }) => text)).toEqual(['1', '2', '3', '4']);
        await Promise.all(sessions.map((it) => it.dispose()));
      }
      expect(childrenOfThis().length).toBeLessThanOrEqual(before);
      expect(directories()).toEqual([]);
      expect(descriptors()).toBeLessThanOrEqual(open + 2);
    });

    test('a program that ends without dispose() leaves neither process nor directory', () => {
      const script = path.join(mkdtempSync(path.join(tmpdir(), 'program-')), 'program.cjs');
      writeFileSync(
        script,
        `const { pythonExecutor } = require(${JSON.stringify(path.join(root, 'dist'))});
pythonExecutor({ sandbox: '${sandbox}' }).open().then(async (it) => console.log((await it.run('1 + 1')).text));`,
      );
      try {
        const { pid, stdout } = spawnSync(process.execPath, [script], { encoding: 'utf8' });
        expect(stdout).toBe('2\n');
        expect(directories(pid)).toEqual([]);
      } finally {
        rmSync(path.dirname(script), { recursive: true });
      }
    });
  });
}
