import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

// What docs/architecture.md says of a new family: the file that is printed there and one entry of a list make a family
// that is recognized, loaded, converted and talked with.

const root = path.join(__dirname, '..');
const copy = path.join(root, 'build', 'new-family'); // within the repository, so that types and modules are found
const files = path.join(tmpdir(), `chatglmx-${process.pid}`);
let api: typeof import('node-chatglm');

beforeAll(() => {
  rmSync(copy, { recursive: true, force: true });
  mkdirSync(files, { recursive: true });
  for (const name of ['lib', 'tsconfig.json']) {
    cpSync(path.join(root, name), path.join(copy, name), { recursive: true });
  }
  writeFileSync(path.join(copy, 'package.json'), '{ "name": "new-family", "type": "commonjs" }');
  symlinkSync('..', path.join(copy, 'build')); // the addon: build/Release
  const page = readFileSync(path.join(root, 'docs', 'architecture.md'), 'utf8');
  const [, file] = /```ts\n(import [\s\S]*?satisfies Family;\n)```/.exec(page) as RegExpExecArray;
  writeFileSync(path.join(copy, 'lib', 'families', 'chatglmx.ts'), file as string);
  const list = path.join(copy, 'lib', 'families', 'index.ts');
  const text = readFileSync(list, 'utf8');
  const extended = text.replace(/^const FAMILIES = \[/m, "import { chatglmx } from './chatglmx.js';\n$&chatglmx, ");
  expect(extended).not.toBe(text);
  writeFileSync(list, extended);

  const typescript = require.resolve('typescript/package.json').replace('package.json', 'bin/tsc');
  execFileSync(process.execPath, [typescript, '-p', copy], { cwd: copy, stdio: 'inherit' });
  api = require(path.join(copy, 'dist', 'index.js'));
});
afterAll(() => {
  rmSync(copy, { recursive: true, force: true });
  rmSync(files, { recursive: true, force: true });
});

const chatglmx = 'chatglmx' as 'chatglm3'; // types are the package's own

test('the list of families has it', () => {
  expect(api.MODEL_FAMILIES).toContain('chatglmx');
  expect(api.CHAT_FAMILIES).toContain('chatglmx');
});

test('a checkpoint of it is written, recognized, converted and talked with', async () => {
  const [written, converted] = ['a', 'b'].map((name) => path.join(files, `${name}.gguf`)) as [string, string];
  const shape = { ...api.shapes.micro, family: chatglmx, name: 'Someone/chatglmx-micro' };
  await api.synthesize(written, { shape, type: 'f32' });
  await api.convertCheckpoint(written, converted, { type: 'f16' });
  expect((await api.openCheckpoint(converted)).config.family).toBe('chatglmx');

  const model = await api.loadModel(converted, { device: 'cpu' });
  const prompt = model.tokenizer.encodeChat([{ role: 'user', content: 'hi' }], { family: chatglmx });
  expect(model.tokenizer.decode(prompt, { special: true })).toBe('[gMASK]sop<|human|>hi<|bot|>');
  const chat = model.createChat();
  const reply = await chat.send('hi', { maxTokens: 5 });
  expect([chat.family, reply.usage.generatedTokens > 0, chat.history.length]).toEqual(['chatglmx', true, 2]);
  expect(() => model.createChat({ tools: [{ name: 'a' }] })).toThrow('ChatGLMX');
  await model.dispose();
});

test('a directory of it is told from those of the other families', () => {
  const { detectFamily } = require(path.join(copy, 'dist', 'families', 'detect.js'));
  const nothing = { tokenizerCode: undefined, tokenizerConfig: undefined, names: [], directory: 'fine-tune' };
  expect(detectFamily({ ...nothing, tokenizerCode: 'roles = ["<|human|>"]' })).toBe('chatglmx');
  expect(detectFamily({ ...nothing, names: ['Someone/chatglmx-6b'] })).toBe('chatglmx');
  expect(detectFamily({ ...nothing, tokenizerCode: 'roles = ["<|user|>"]' })).toBe('chatglm3');
  expect(detectFamily(nothing)).toBeUndefined();
});

test('the command line takes it', () => {
  const help = execFileSync(process.execPath, [path.join(copy, 'dist', 'cli', 'main.js'), 'chat', '--help'], {
    encoding: 'utf8',
  });
  expect(help).toMatch(/--family.*chatglmx/);
});
