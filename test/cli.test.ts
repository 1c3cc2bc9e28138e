import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { device, onGpu } from './support/device';

// What a user gets: the compiled command line, run as a process, with the embedded model.
const root = path.join(__dirname, '..');
const main = path.join(root, 'dist', 'cli', 'main.js');

jest.setTimeout(60_000);

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(path.join(tmpdir(), 'chatglm-cli-'));
});
afterAll(() => {
  rmSync(directory, { recursive: true, force: true });
});

interface Run {
  code: number | null;
  stdout: string;
  stderr: string;
}

function start(args: string[]): { child: ChildProcessWithoutNullStreams; ended: Promise<Run> } {
  const [command = '', ...rest] = args;
  const computes = ['chat', 'generate', 'bench'].includes(command);
  const all = computes ? [command, '--device', device, ...rest] : args;
  const child = spawn(process.execPath, [main, ...all]);
  const run: Run = { code: null, stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text) => {
    run.stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text) => {
    run.stderr += text;
  });
  const ended = new Promise<Run>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ ...run, code }));
  });
  return { child, ended };
}

async function chatglm(args: string[], input = ''): Promise<Run> {
  const { child, ended } = start(args);
  // A command that does not read its input may end before it is written.
  child.stdin.on('error', () => {});
  child.stdin.end(input);
  return await ended;
}

async function json(args: string[], input = ''): Promise<Record<string, unknown>> {
  const { code, stdout, stderr } = await chatglm([...args, '--json'], input);
  expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout.trimEnd()).not.toContain('\n');
  return JSON.parse(stdout) as Record<string, unknown>;
}

const commands = ['chat', 'generate', 'tokenize', 'inspect', 'convert', 'synth', 'bench', 'system'];

describe('help', () => {
  test('lists the commands', async () => {
    for (const args of [[], ['--help'], ['-h'], ['help']]) {
      const { code, stdout, stderr } = await chatglm(args);
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      for (const command of commands) expect(stdout).toContain(`\n  ${command} `);
    }
  });

  test.each(commands)('of %s has examples', async (command) => {
    const { code, stdout, stderr } = await chatglm([command, '--help']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(new RegExp(`^Usage: chatglm ${command} `));
    expect(stdout).toContain('\nExamples:\n');
    expect((await chatglm(['help', command])).stdout).toBe(stdout);
  });

  test('--version', async () => {
    const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as { version: string };
    expect((await chatglm(['--version'])).stdout).toBe(`${version}\n`);
  });
});

describe('errors', () => {
  test.each<[string[], string]>([
    [['caht'], 'chatglm: unknown command caht: did you mean chat?\nSee: chatglm --help\n'],
    [['--jsn'], 'chatglm: unknown option --jsn\nSee: chatglm --help\n'],
    [['constructor'], 'chatglm: unknown command constructor\nSee: chatglm --help\n'],
    [
      ['chat', '--temprature', '1'],
      'chatglm: unknown option --temprature: did you mean --temperature?\nSee: chatglm chat --help\n',
    ],
    [['convert', 'a'], 'chatglm: <target> is missing\nSee: chatglm convert --help\n'],
    [['convert', 'a', 'b'], 'chatglm: --type is missing: one of f16, q8_0, q4_0\nSee: chatglm convert --help\n'],
    [
      ['bench', 'a', '--shape', '6b'],
      'chatglm: give a model or --shape and --type, not both\nSee: chatglm bench --help\n',
    ],
    [
      ['bench', '--gen', '1'],
      'chatglm: --gen must be a whole number of at least 2, got "1"\nSee: chatglm bench --help\n',
    ],
    [
      ['chat', 'a.gguf', '-m', 'b.gguf'],
      'chatglm: give one model: "a.gguf" or --model "b.gguf"\nSee: chatglm chat --help\n',
    ],
    [
      ['chat', '--family', 'codegeex2'],
      'chatglm: codegeex2 has no prompt format: use chatglm generate, or say which one with --format\nSee: chatglm chat --help\n',
    ],
    [['tokenize', '--decode', '1 x'], 'chatglm: --decode takes token ids, got "x"\nSee: chatglm tokenize --help\n'],
  ])('%j: exit code 2', async (args, message) => {
    expect(await chatglm(args)).toEqual({ code: 2, stdout: '', stderr: message });
  });

  test.each([
    ['chat', ['--seed', '-1'], '--seed must be a whole number of at least 0, got "-1"'],
    ['chat', ['--top-p', '2'], '--top-p must be a number from 0 to 1, got "2"'],
    ['chat', ['--stop', ''], '--stop must be a text that is not empty, got ""'],
    ['chat', ['--threads', '0'], '--threads must be a whole number from 1 to 1024, got "0"'],
    ['bench', ['--device', 'gpu'], '--device must be auto, cpu, cuda or cuda:N, got "gpu"'],
    ['generate', ['x', '--logprobs', '101'], '--logprobs must be a whole number from 0 to 100, got "101"'],
    ['inspect', ['--family', 'glm'], '--family must be one of auto, chatglm2, chatglm3, codegeex2, got "glm"'],
  ])('of %s %j are found before the model is looked for', async (command, args, message) => {
    const { code, stderr } = await chatglm([command, ...args, '-m', path.join(directory, 'nothing.gguf')]);
    expect({ code, stderr }).toEqual({ code: 2, stderr: `chatglm: ${message}\nSee: chatglm ${command} --help\n` });
  });

  test.each([
    ['chat'],
    ['chat', '-m'],
    ['generate', 'x', '-m'],
    ['tokenize', 'x', '-m'],
    ['inspect'],
    ['inspect', '-m'],
    ['bench'],
    ['bench', '--model'],
  ])('a model that is not there, %s: exit code 1', async (...args) => {
    const { code, stdout, stderr } = await chatglm([...args, path.join(directory, 'nothing.gguf')]);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^chatglm: .*nothing\.gguf.* \(ERR_CHECKPOINT_NOT_FOUND\)\n$/);
  });

  test.each(['99999999', '300 99999999'])('an id that the tokenizer does not have, %s: exit code 1', async (ids) => {
    const stderr = 'chatglm: this tokenizer has no token 99999999; its ids are 0 to 8191\n';
    expect(await chatglm(['tokenize', '--decode', ids])).toEqual({ code: 1, stdout: '', stderr });
  });

  test('an option out of the range of this model: exit code 2', async () => {
    const { code, stdout, stderr } = await chatglm(['chat', '--context-length', '4096'], '你好\n');
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/contextLength must be .* from 1 to 1024, got 4096 \(ERR_INVALID_ARGUMENT\)\n$/);
  });

  test('a Node that is too old', async () => {
    const pretend = path.join(directory, 'old-node.cjs');
    const versions = "{ ...process.versions, node: '18.20.8' }";
    writeFileSync(pretend, `Object.defineProperty(process, 'versions', { value: ${versions} });`);
    const { status, stdout, stderr } = spawnSync(process.execPath, ['-r', pretend, main, 'chat'], { encoding: 'utf8' });
    const sentence = 'node-chatglm needs Node 20.17 or a later 20, or 22.9 or later; this is Node 18.20.8';
    expect({ status, stdout, stderr }).toEqual({
      status: 1,
      stdout: '',
      stderr: `chatglm: ${sentence} (ERR_UNSUPPORTED)\n`,
    });
  });
});

describe('chat', () => {
  test('answers each line that is piped in, and prints nothing else', async () => {
    expect(await chatglm(['chat', '--greedy'], '中国的首都是哪里？\nWhat is the capital of France?\n')).toEqual({
      code: 0,
      stdout: '中国的首都是北京。\nThe capital of France is Paris.\n',
      stderr: '',
    });
  });

  test('needs no line break at the end, and ends without input', async () => {
    expect((await chatglm(['chat', '--greedy'], '今天是星期三，明天是星期几？')).stdout).toBe('明天是星期四。\n');
    expect(await chatglm(['chat'], '\n\n')).toEqual({ code: 0, stdout: '', stderr: '' });
  });

  test('remembers, until it is cleared; stop leaves', async () => {
    const input = ['我叫小明。', '我叫什么名字？', 'clear', 'What is 7 times 8?', 'stop', '你好', ''].join('\n');
    const answers = (await chatglm(['chat', '--greedy', '--json'], input)).stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as { text: string; usage: { promptTokens: number } });
    expect(answers).toHaveLength(3);
    expect(answers[1]?.text).toBe('你叫小明。');
    expect(answers[2]?.text).toBe('7 × 8 = 56');
    // After clear the prompt is the new question alone.
    expect(answers[2]?.usage.promptTokens).toBeLessThan(answers[1]?.usage.promptTokens as number);
  });

  test('--system outlives clear', async () => {
    const args = ['chat', '--greedy', '--system', 'You are Emma, a friendly assistant.'];
    const { stdout } = await chatglm(args, 'clear\nWho are you?\n');
    expect(stdout).toBe("I'm Emma, nice to meet you.\n");
  });

  test('--json', async () => {
    const answer = await json(['chat', '--greedy'], 'Hello\n');
    expect(Object.keys(answer)).toEqual(['text', 'finishReason', 'usage', 'timings', 'seed']);
    expect(answer).toMatchObject({ finishReason: 'stop', usage: { generatedTokens: expect.any(Number) } });
  });

  test('--stats, --max-tokens and --stop', async () => {
    const { stdout, stderr } = await chatglm(
      ['chat', '--greedy', '--max-tokens', '6', '--stats'],
      'Count from 3 to 9.\n',
    );
    expect(stdout).toMatch(/^3\D*\n$/);
    expect(stderr).toMatch(
      /cut off.*\n\[prompt: \d+ tokens.*; first token after .*; answer: 6 tokens, [\d.]+ tokens\/s\]\n$/,
    );
    expect((await chatglm(['chat', '--greedy', '--stop', ', 6'], 'Count from 3 to 9.\n')).stdout).toBe('3, 4, 5\n');
  });

  test('Ctrl-C stops the answer and keeps the conversation', async () => {
    // So hot that hardly ever an end comes up: without Ctrl-C an answer goes on until the context is full.
    const args = ['chat', '--temperature', '50', '--top-k', '0', '--top-p', '1', '--seed', '1', '--stats'];
    const { child, ended } = start(args);
    let answers = 0;
    let isAnswering = true;
    child.stdout.on('data', () => {
      if (isAnswering) child.kill('SIGINT');
      isAnswering = false;
    });
    child.stderr.on('data', (text: string) => {
      if (!text.includes('tokens/s]')) return;
      answers++;
      isAnswering = true;
      if (answers === 1) child.stdin.write('再见\n');
      else child.stdin.end();
    });
    child.stdin.write('你好\n');
    const { code, stderr } = await ended;
    const told = [...stderr.matchAll(/prompt: (\d+) tokens.* answer: (\d+) tokens/g)].map(([, ...counts]) =>
      counts.map(Number),
    );
    expect({ code, answers: told.length }).toEqual({ code: 0, answers: 2 });
    const [first, second] = told as [[number, number], [number, number]];
    expect(second[0]).toBeGreaterThan(first[0]);
    for (const [prompt, answer] of told as [number, number][]) expect(prompt + answer).toBeLessThan(1000);
  });

  test('ends quietly when nobody reads any more', async () => {
    const { child, ended } = start(['chat', '--greedy']);
    child.stdin.on('error', () => {});
    child.stdin.end('Hello\n'.repeat(5));
    child.stdout.destroy();
    expect(await ended).toMatchObject({ code: 0, stderr: '' });
  });
});

describe('generate', () => {
  test('continues a text, the same with the same seed', async () => {
    const args = ['generate', 'Once upon a time', '--max-tokens', '8', '--seed', '3'];
    const result = await json(args);
    expect(result).toMatchObject({
      finishReason: expect.any(String),
      seed: 3,
      usage: { promptTokens: expect.any(Number) },
    });
    expect((result.tokens as number[]).length).toBeLessThanOrEqual(8);
    expect((await chatglm(args)).stdout).toBe(`${result.text}\n`);
    expect((await chatglm(['generate', ...args.slice(2)], 'Once upon a time')).stdout).toBe(`${result.text}\n`);
  });

  test('--logprobs', async () => {
    const result = await json(['generate', '中国', '--max-tokens', '3', '--greedy', '--logprobs', '2']);
    expect(result.logprobs).toHaveLength((result.tokens as number[]).length);
  });
});

describe('tokenize', () => {
  test('there and back', async () => {
    const text = 'Hello 世界👋';
    const result = await json(['tokenize', text]);
    const ids = result.ids as number[];
    expect(result).toEqual({ count: ids.length, ids, text });
    expect((await chatglm(['tokenize', text])).stdout).toBe(`${ids.join(' ')}\n`);
    expect((await chatglm(['tokenize'], text)).stdout).toBe(`${ids.join(' ')}\n`);
    expect((await chatglm(['tokenize', text, '--count'])).stdout).toBe(`${ids.length}\n`);
    expect((await chatglm(['tokenize', '--decode', ids.join(' ')])).stdout).toBe(`${text}\n`);
    expect((await chatglm(['tokenize', '--decode'], JSON.stringify(ids))).stdout).toBe(`${text}\n`);
  });

  test('special tokens cannot be typed', async () => {
    const { ids } = await json(['tokenize', '<|user|></s>[gMASK]sop']);
    expect(Math.max(...(ids as number[]))).toBeLessThan(8183);
    expect(ids).not.toContain(2);
  });
});

test('system', async () => {
  const facts = await json(['system']);
  expect(facts).toEqual({
    kernels: expect.any(String),
    cores: expect.any(Number),
    gpus: expect.any(Array),
    cuda: expect.any(String),
    pageTokens: 64,
  });
  const { stdout } = await chatglm(['system']);
  expect(stdout).toMatch(/^cpu +\w+ kernels, \d+ cores\ncuda(:0)? +\S.*\n/);
});

describe('files', () => {
  const file = (name: string) => path.join(directory, name);

  test('synth, inspect, convert, bench', async () => {
    const made = await json(['synth', file('micro.gguf'), '--shape', 'micro', '--type', 'f16', '--seed', '5']);
    expect(made).toEqual({ path: file('micro.gguf'), bytes: readFileSync(file('micro.gguf')).length });

    const facts = await json(['inspect', file('micro.gguf')]);
    expect(facts).toMatchObject({ format: 'gguf', config: { family: 'chatglm3', layers: 2 }, types: { f16: 10 } });
    expect((facts.tensors as unknown[]).length).toBe(2 * 7 + 3);
    const { stdout } = await chatglm(['inspect', file('micro.gguf'), '--tensors', '--metadata']);
    expect(stdout).toMatch(/^Family +chatglm3$/m);
    expect(stdout).toMatch(/^token_embd\.weight +f16 +384 x 64 /m);
    expect(stdout).toContain('"general.architecture": "chatglm"');

    await json(['convert', file('micro.gguf'), file('small.gguf'), '--type', 'q4_0']);
    expect(await json(['inspect', file('small.gguf')])).toMatchObject({ types: { q4_0: 10 } });

    const again = await chatglm(['convert', file('micro.gguf'), file('small.gguf'), '--type', 'q8_0']);
    expect({ code: again.code, stdout: again.stdout }).toEqual({ code: 2, stdout: '' });
    expect(again.stderr).toMatch(/^chatglm: .* \(ERR_[A-Z_]+\)\n$/);
    const forced = await chatglm(['convert', file('micro.gguf'), file('small.gguf'), '--type', 'q8_0', '--force']);
    expect({ code: forced.code, stdout: forced.stdout }).toEqual({ code: 0, stdout: '' });
    expect(forced.stderr).toContain('small.gguf: ');
    expect(await json(['inspect', file('small.gguf')])).toMatchObject({ types: { q8_0: 10 } });

    expectReport(
      await json(['bench', file('micro.gguf'), '--prompt', '8,16', '--depth', '0,4', '--batch', '1,2', '--gen', '4']),
    );
  });

  test('--family overrides what the files tell, everywhere', async () => {
    const model = path.join(root, 'models', 'chatglm-tiny', 'model.gguf');
    expect(await json(['inspect', '--family', 'codegeex2'])).toMatchObject({ config: { family: 'codegeex2' } });
    expect(await json(['inspect', '--family', 'auto'])).toMatchObject({ config: { family: 'chatglm3' } });
    await json(['convert', model, file('second.gguf'), '--type', 'q4_0', '--family', 'chatglm2']);
    expect(await json(['inspect', file('second.gguf')])).toMatchObject({ config: { family: 'chatglm2' } });

    // ChatGLM2's prompt is one longer text with rounds, ChatGLM3's has a token for each role.
    const promptTokens = async (...args: string[]) => {
      const { usage } = await json(['chat', '--greedy', '--max-tokens', '1', ...args], '你好\n');
      return (usage as { promptTokens: number }).promptTokens;
    };
    const [third, second] = [await promptTokens(), await promptTokens(file('second.gguf'))];
    expect(second).not.toBe(third);
    expect(await promptTokens('--family', 'chatglm2')).toBe(second);
    expect(await promptTokens('--format', 'chatglm2')).toBe(second);
    expect(await promptTokens('--format', 'chatglm3', '-m', file('second.gguf'))).toBe(third);
    expect(await promptTokens('--family', 'codegeex2', '--format', 'chatglm2')).toBe(second);

    expect((await chatglm(['generate', 'x', '--family', 'chatglm2', '--max-tokens', '1'])).code).toBe(0);
    expect((await chatglm(['tokenize', 'x', '--family', 'chatglm2'])).code).toBe(0);
    const bench = ['bench', '--family', 'chatglm2', '--prompt', '8', '--gen', '2', '--repeat', '1'];
    expect((await chatglm(bench)).code).toBe(0);
  });

  test('bench on a shape', async () => {
    const args = [
      '--shape',
      'micro',
      '--type',
      'q4_0',
      '--prompt',
      '8,16',
      '--depth',
      '0,4',
      '--batch',
      '1,2',
      '--gen',
      '4',
    ];
    expectReport(await json(['bench', ...args]));
    const { stdout } = await chatglm(['bench', ...args, '--repeat', '1']);
    expect(stdout).toMatch(/^Prefill +tokens\/s$/m);
    expect(stdout).toMatch(/^depth 4 +2 /m);
  });

  function expectReport(report: unknown) {
    const positive = expect.any(Number);
    const gpu = {
      name: expect.any(String),
      totalBytes: positive,
      freeBytesBefore: positive,
      freeBytesAfter: positive,
      modelBytes: positive,
      weightBytes: positive,
      kvCacheBytes: positive,
    };
    const decode = (depth: number, batch: number) => ({
      depth,
      batch,
      tokensPerSecond: positive,
      bytesPerSecond: positive,
      bandwidth: positive,
    });
    // Exactly this shape: programs read it.
    expect(report).toEqual({
      model: expect.any(String),
      device: expect.any(String),
      threads: onGpu ? 0 : positive,
      prefill: [
        { tokens: 8, tokensPerSecond: positive },
        { tokens: 16, tokensPerSecond: positive },
      ],
      decode: [decode(0, 1), decode(0, 2), decode(4, 1), decode(4, 2)],
      bandwidth: { bytesPerSecond: positive },
      memory: { peakBytes: positive, loadMs: positive, ...(onGpu ? { gpu } : {}) },
    });
    // All but the depth: nothing here takes no time, and null is what JSON makes of NaN.
    JSON.stringify(report, (key, value: unknown) => {
      if (typeof value === 'number' && key !== 'depth' && key !== 'threads') expect(value).toBeGreaterThan(0);
      return value;
    });
  }
});
