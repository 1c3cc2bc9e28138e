import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { type ClientRequest, request } from 'node:http';
import path from 'node:path';
import { promisify } from 'node:util';

// Every program in examples/ as a user runs it: a process of its own, which resolves 'node-chatglm' by name to dist/.

const root = path.join(__dirname, '..');
const examples = path.join(root, 'examples');
const compiled = path.join(root, 'build', 'examples');
const programs = readdirSync(examples).filter((name) => /\.(mjs|cjs|mts)$/.test(name));

/** The program as Node runs it: what tsc has made of it, if it is TypeScript. */
function runnable(program: string): string {
  return program.endsWith('.mts') ? path.join(compiled, program.replace('.mts', '.mjs')) : path.join(examples, program);
}

async function run(program: string): Promise<string> {
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [runnable(program)], { cwd: root });
  expect(stderr).toBe('');
  return stdout;
}

/** What each program is to print. What the built-in model says beyond these facts is its own affair. */
const expectations: Readonly<Record<string, (output: string) => void>> = {
  'stream.mjs': (output) => {
    expect(output).toMatch(/Paris/);
    expect(output).toMatch(/^stop: \d+ tokens of prompt, \d+ generated$/m);
    expect(output).toMatch(/^\d+ tokens\/s$/m);
  },
  'tools.mjs': (output) => {
    expect(output).toMatch(/^call: get_weather \{ city: '北京' \}$/m);
    expect(output).toMatch(/^observation: .*21/m);
    expect(output).toMatch(/^answer: .*21/m);
    expect(output).toMatch(/^failed: .*there is no station in 东京/m);
    expect(output.match(/^answer: ./gm)).toHaveLength(2);
  },
  'structured.mjs': (output) => {
    const [, text] = /^text: (.*)$/m.exec(output) ?? [];
    expect(Object.keys(JSON.parse(text as string))).toEqual(['capital', 'country', 'confidence']);
    expect(output).toMatch(/^country: (France|Germany|Italy)$/m);
    expect(output).toMatch(/^number: \d+$/m);
  },
  'interpreter.mjs': (output) => {
    expect(output).toMatch(/^result = sum\(range\(1, 100 \+ 1\)\)$/m);
    expect(output).toMatch(/^ok: 5050$/m);
    expect(output).toMatch(/^answer: .*5050/m);
  },
  'history.mjs': (output) => {
    const lines = output.trim().split('\n');
    expect(lines[1]).toBe('saved: conversation.json');
    expect(lines[2]).toMatch(/Anna/);
    expect(lines[3]).toBe('messages: user, assistant');
  },
  'abort.mjs': (output) => {
    expect(output).toMatch(/^time limit: ERR_ABORTED AbortError TimeoutError$/m);
    expect(output).toMatch(/^signal: ERR_ABORTED the user has seen enough$/m);
    expect(output).toMatch(/^messages after abort\(\): 0$/m);
    expect(output).toMatch(/^break: cancelled$/m);
    expect(output).toMatch(/^messages after break: 2$/m);
  },
  'many-chats.mjs': (output) => {
    expect(output).toMatch(/^under way: 8$/m);
    expect(output).toMatch(/^What is the capital of France\? -> .*Paris/m);
    expect(output).toMatch(/^法国的首都是哪里？ -> .*巴黎/m);
    expect(output.match(/ -> ./g)).toHaveLength(8);
    expect(output).toMatch(/^under way: 0, kept for later: [1-9]\d* tokens$/m);
  },
  'session.mjs': (output) => {
    expect(output).toMatch(/^saved: \d+\.\d MiB$/m);
    expect(output).toMatch(/Anna/);
    const [, kept, all] = /^kept: (\d+) of (\d+) tokens$/m.exec(output) ?? [];
    expect(Number(kept)).toBeGreaterThan(0.8 * Number(all));
  },
  'service.mjs': (output) => {
    expect(output).toMatch(/^anna: .*Paris/m);
    expect(output).toMatch(/^bob: .*56/m);
    expect(output).toMatch(/^phases: queued \d+ ms, admitted .*, finished \d+ ms$/m);
    expect(output).toMatch(/^ended$/m);
  },
  'openai-server.mjs': (output) => {
    expect(output).toBe('answer: The capital of France is Paris.\nwith a wrong key: 401 invalid_api_key\n');
  },
  'perplexity.mjs': (output) => {
    const [ordered, disordered] = output
      .trim()
      .split('\n')
      .map((line) => Number(line.split(' ').at(-1)));
    expect(ordered).toBeGreaterThan(1);
    expect(disordered).toBeGreaterThan(2 * (ordered as number));
  },
  'logprobs.mjs': (output) => {
    const lines = output
      .split('\n')
      .filter((line) => /^ *[\d.]+% ".*" {2}\(".*" [\d.]+%, ".*" [\d.]+%, ".*" [\d.]+%\)$/.test(line));
    expect(lines.length).toBeGreaterThan(2);
    for (const line of lines) expect(Number.parseFloat(line)).toBeLessThanOrEqual(100);
    expect(output).toMatch(/^answer: .*Paris/m);
  },
  'continuation.mjs': (output) => {
    const [prompt, text, ending, again] = output.split('\n');
    expect(prompt).toBe('Once upon a time there was …');
    expect(text).not.toMatch(/[.!?]/);
    expect(ending).toMatch(/^ended by: (stop_sequence|length|stop)$/);
    expect(again).toMatch(/gives the same again: true$/);
  },
  'tokenizer.mjs': (output) => {
    expect(output).toMatch(/^decoded: Hello, 世界 👋$/m);
    expect(output).toMatch(/^streamed: Hello, 世界 👋$/m);
    expect(output).toMatch(/^prompt of \d+ tokens: \[gMASK\]sop<\|system\|>\n Answer briefly\.<\|user\|>/m);
    expect(output).toMatch(/^special tokens in "<\|system\|>": 0$/m);
  },
  'errors.mjs': (output) => {
    expect(output.match(/^ERR_\w+/gm)).toEqual([
      'ERR_CHECKPOINT_NOT_FOUND',
      'ERR_INVALID_ARGUMENT',
      'ERR_CONTEXT_OVERFLOW',
      'ERR_ABORTED',
      'ERR_QUEUE_FULL',
      'ERR_DISPOSED',
    ]);
    expect(output).toMatch(/^ERR_CHECKPOINT_NOT_FOUND: .*no-such-checkpoint$/m);
    expect(output).toMatch(/^ERR_CONTEXT_OVERFLOW: .*there is room for 256$/m);
  },
  'worker.mjs': (output) => {
    expect(output).toMatch(/Paris/);
    expect(output).toMatch(/\nstop\nworker ended with 0\n$/);
  },
  'commonjs.cjs': (output) => {
    expect(output).toMatch(/million parameters, on (cpu|cuda:0) \(\w+\)\n/);
    expect(output).toMatch(/Paris/);
    expect(output).toMatch(/56.* 4\n$/);
  },
  'typescript.mts': (output) => {
    expect(output).toMatch(/Paris/);
    expect(output).toMatch(/^system, user, assistant$/m);
    expect(output).toMatch(/^ERR_INVALID_ARGUMENT$/m);
  },
  'await-using.mts': (output) => {
    expect(output).toMatch(/Paris/);
    expect(output).toMatch(/^after the block: ERR_DISPOSED$/m);
  },
};

beforeAll(async () => {
  // Type-checks all of them, those in JavaScript too.
  const typescript = require.resolve('typescript/package.json').replace('package.json', 'bin/tsc');
  await promisify(execFile)(process.execPath, [typescript, '-p', examples, '--outDir', compiled], { cwd: root }).catch(
    ({ stdout }) => {
      throw new Error(stdout);
    },
  );
});

test('every program has an expectation, a line in the list, and says on top what it shows', () => {
  expect([...Object.keys(expectations), 'express.mjs'].sort()).toEqual([...programs].sort());
  const list = readFileSync(path.join(examples, 'README.md'), 'utf8');
  for (const program of programs) {
    expect(list).toContain(`[${program}](${program})`);
    const text = readFileSync(path.join(examples, program), 'utf8');
    expect(text).toMatch(/^\/\/ Shows [\s\S]*\n\/\/ Run: [\s\S]*\n\/\/ Prints: /);
    expect(text).toMatch(/(from|require\()\s?'node-chatglm'/);
  }
});

test.each(Object.keys(expectations))('%s', async (program) => {
  expectations[program]?.(await run(program));
});

describe('express.mjs', () => {
  let server: ChildProcess;
  let output = '';
  let url = '';

  /** Resolves when the server has printed the pattern. */
  async function printed(pattern: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const found = pattern.exec(output);
      if (found) return found;
      if (server.exitCode !== null) throw new Error(`the server has ended: ${output}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  const post = (body: unknown) =>
    fetch(`${url}/chat`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });

  beforeAll(async () => {
    server = spawn(process.execPath, [runnable('express.mjs')], { env: { ...process.env, PORT: '0' } });
    for (const stream of [server.stdout, server.stderr]) {
      stream?.on('data', (bytes) => {
        output += bytes;
      });
    }
    url = (await printed(/listening on (http:\S+)/))[1] as string;
  });
  afterAll(() => server.kill('SIGKILL'));

  /** The events of a stream of server-sent events. */
  function eventsOf(text: string): { event: string; data: Record<string, unknown> }[] {
    return text
      .split('\n\n')
      .filter((part) => part !== '')
      .map((part) => {
        const [, event, data] = /^event: (\w+)\ndata: (.*)$/.exec(part) as RegExpExecArray;
        return { event: event as string, data: JSON.parse(data as string) };
      });
  }

  test('streams an answer, and the next one with the history that came with it', async () => {
    const response = await post({ message: 'My name is Anna.' });
    expect(response.headers.get('content-type')).toBe('text/event-stream');
    const events = eventsOf(await response.text());
    expect(events.filter(({ event }) => event === 'message').length).toBeGreaterThan(1);
    const { event, data } = events.at(-1) as { event: string; data: Record<string, unknown> };
    expect(event).toBe('done');
    expect(data).toMatchObject({ finishReason: 'stop', history: [{ role: 'user' }, { role: 'assistant' }] });

    const second = eventsOf(await (await post({ message: 'What is my name?', history: data.history })).text());
    expect(second.map((each) => each.data.text ?? '').join('')).toMatch(/Anna/);
  });

  test('says what is wrong with a request by its status', async () => {
    const wrong = await post({ message: 7 });
    expect([wrong.status, ((await wrong.json()) as { code: string }).code]).toEqual([400, 'ERR_INVALID_ARGUMENT']);
    const long = await post({ message: 'word '.repeat(2000) });
    expect([long.status, ((await long.json()) as { code: string }).code]).toEqual([413, 'ERR_CONTEXT_OVERFLOW']);
  });

  test('stops computing for clients that go away', async () => {
    // More of them than are computed at a time, so that some are sure to be unfinished when all go away.
    const body = JSON.stringify({ message: 'What should I do if I cannot sleep?' });
    const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) };
    const clients: ClientRequest[] = [];
    await new Promise<void>((resolve) => {
      for (let i = 0; i < 24; i++) {
        const client = request(`${url}/chat`, { method: 'POST', headers });
        client.on('error', () => {});
        client.on('response', (response) => response.once('data', () => resolve()).on('error', () => {}));
        client.end(body);
        clients.push(client);
      }
    });
    for (const client of clients) client.destroy();
    await printed(/not answered: ERR_ABORTED/);
    expect((await post({ message: 'What is the capital of France?' })).status).toBe(200);
  });

  test('ends by itself when it is told to', async () => {
    const ended = new Promise((resolve) => server.once('exit', (code) => resolve(code)));
    server.kill('SIGTERM');
    expect(await ended).toBe(0);
  });
});
