import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { device } from './support/device';
import { endless, terminalChats, weatherModule } from './support/terminal-chat';

// `chatglm chat` with text piped in.

const { homeOf } = terminalChats();

describe('piped', () => {
  function pipe(args: string[]) {
    const main = path.join(__dirname, '..', 'dist', 'cli', 'main.js');
    const child = spawn(process.execPath, [main, 'chat', '--device', device, ...args], {
      env: { ...process.env, HOME: homeOf() },
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
    const tools = path.join(homeOf(), 'tools.json');
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
    const tools = path.join(homeOf(), 'tools.mjs');
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
    const { child, ended } = pipe([...args, '-m', path.join(homeOf(), 'nothing.gguf')]);
    child.stdin.end();
    const { code, stderr } = await ended;
    expect(code).toBe(expected);
    expect(stderr).toContain(message);
    expect(stderr).not.toContain('nothing.gguf');
  });
});
