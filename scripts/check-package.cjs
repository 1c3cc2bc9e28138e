'use strict';
// Packs the package, installs the tarball into an empty project without a build of its own, and uses it from CommonJS,
// ES modules and TypeScript under every kind of module resolution. Then the same with the server's package.
const { execFileSync, spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const readline = require('node:readline');
const { pack } = require('./pack-server.cjs');

const root = path.join(__dirname, '..');
const project = fs.mkdtempSync(path.join(os.tmpdir(), 'node-chatglm-consumer-'));
const run = (command, args, cwd = project) =>
  execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });

const [{ filename, files, size }] = JSON.parse(
  run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', project], root),
);
const names = files.map((file) => file.path);
for (const wanted of [
  'dist/index.js',
  'dist/esm.mjs',
  'dist/index.d.ts',
  'models/chatglm-tiny/model.gguf',
  'LICENSE',
]) {
  if (!names.includes(wanted)) throw new Error(`the package lacks ${wanted}`);
}
const stray = names.filter((name) => /^(test|server|benchmark|build|native\/test)\//.test(name));
if (stray.length > 0) throw new Error(`the package has ${stray.join(', ')}`);

fs.writeFileSync(path.join(project, 'package.json'), JSON.stringify({ name: 'consumer', private: true }));
run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', `./${filename}`]);
// The addon that was built here, and the CUDA library if there is one, stand for those of a published package.
const installed = path.join(project, 'node_modules', 'node-chatglm');
const prebuild = path.join(installed, 'prebuilds', `${process.platform}-${process.arch}`);
fs.mkdirSync(prebuild, { recursive: true });
const release = path.join(root, 'build', 'Release');
fs.copyFileSync(path.join(release, 'chatglm.node'), path.join(prebuild, 'node-chatglm.node'));
const cudaLibrary = path.join(release, 'libchatglm-cuda.so');
const withCuda = fs.existsSync(cudaLibrary);
if (withCuda) fs.copyFileSync(cudaLibrary, path.join(prebuild, 'libchatglm-cuda.so'));

const source = `
const model = await loadModel();
const { response } = await model.chat('What is the capital of France?', { temperature: 0 });
console.log(response);
await model.dispose();`;
fs.writeFileSync(
  path.join(project, 'a.cjs'),
  `const { loadModel } = require('node-chatglm'); (async () => {${source}})();`,
);
fs.writeFileSync(path.join(project, 'b.mjs'), `import { loadModel } from 'node-chatglm';${source}`);
for (const file of ['a.cjs', 'b.mjs']) {
  const answer = run(process.execPath, [file]).trim();
  if (answer !== 'The capital of France is Paris.') throw new Error(`${file} answered ${JSON.stringify(answer)}`);
}
const help = run(path.join(project, 'node_modules', '.bin', 'chatglm'), ['--help']);
if (!/bench/.test(help)) throw new Error('the command chatglm does not work');
const { cuda } = JSON.parse(run(path.join(project, 'node_modules', '.bin', 'chatglm'), ['system', '--json']));
if (withCuda && /not beside the addon|cannot be loaded|another version/.test(cuda)) throw new Error(cuda);

const typed = `import { ChatGLMError, loadModel, type ChatMessage, type Model } from 'node-chatglm';
export async function ask(history: ChatMessage[]): Promise<string> {
  await using model: Model = await loadModel(undefined, { device: 'cuda:1', onProgress: ({ bytes }) => void bytes });
  const chat = model.createChat({ history, temperature: 0.5 });
  let text = '';
  for await (const delta of chat.stream('hi')) text += delta.text;
  const reply = await chat.send('and?', { signal: new AbortController().signal });
  const reason: 'stop' | 'stop_sequence' | 'length' | 'tool_call' | 'cancelled' = reply.finishReason;
  try {
    const logits: Float32Array = await model.logits([1, 2]);
    text += logits.length + reason;
  } catch (error) {
    if (error instanceof ChatGLMError && error.code === 'ERR_CONTEXT_OVERFLOW') text += error.details.limit;
  }
  // @ts-expect-error there is no such option
  model.generate('a', { temprature: 1 });
  return text;
}
`;
for (const extension of ['ts', 'mts', 'cts']) fs.writeFileSync(path.join(project, `types.${extension}`), typed);
const tsc = require.resolve('typescript/package.json').replace('package.json', 'bin/tsc');
for (const [module, resolution] of [
  ['node16', 'node16'],
  ['nodenext', 'nodenext'],
  ['preserve', 'bundler'],
]) {
  run(process.execPath, [
    tsc,
    ...['--noEmit', '--strict', '--target', 'es2022', '--lib', 'es2022,esnext.disposable,dom'],
    ...['--types', '', '--module', module, '--moduleResolution', resolution, 'types.ts', 'types.mts', 'types.cts'],
  ]);
}
const packages = () => fs.readdirSync(path.join(project, 'node_modules')).filter((name) => !name.startsWith('.'));
if (packages().includes('fastify')) throw new Error('a dependency of the server reaches those who have no server');
console.log(`package: ${names.length} files, ${(size / 1e6).toFixed(1)} MB packed; works from its tarball`);

async function checkServer() {
  const { file, names: own, size: packed } = pack(project);
  for (const wanted of ['dist/index.js', 'dist/index.d.ts', 'dist/web/index.html', 'README.md', 'LICENSE']) {
    if (!own.includes(wanted)) throw new Error(`the server's package lacks ${wanted}`);
  }
  run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', file]);
  if (fs.existsSync(path.join(project, 'node_modules', 'node-chatglm-server', 'node_modules', 'node-chatglm'))) {
    throw new Error('the server brings a second node-chatglm');
  }
  fs.writeFileSync(path.join(project, 'server.mts'), "export { createServer } from 'node-chatglm-server';\n");
  const options = ['--noEmit', '--strict', '--skipLibCheck', '--target', 'es2022', '--lib', 'es2022,esnext.disposable'];
  const types = path.join(root, 'node_modules', '@types');
  run(process.execPath, [
    tsc,
    ...options,
    '--module',
    'nodenext',
    '--types',
    'node',
    '--typeRoots',
    types,
    'server.mts',
  ]);
  const [command, ...args] = [path.join(project, 'node_modules', '.bin', 'chatglm'), 'serve', '--port', '0'];
  const server = spawn(command, [...args, '--log-format', 'json', '--data', project], {
    cwd: project,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  try {
    let url;
    for await (const line of readline.createInterface({ input: server.stdout })) {
      url = /http:\/\/127\.0\.0\.1:\d+/.exec(line)?.[0];
      if (url) break;
    }
    const answer = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ messages: [{ role: 'user', content: 'What is the capital of France?' }], temperature: 0 }),
    });
    const text = (await answer.json()).choices[0].message.content;
    if (text !== 'The capital of France is Paris.') throw new Error(`the server answered ${JSON.stringify(text)}`);
    const page = await fetch(url);
    if (!/<script/.test(await page.text())) throw new Error('the server has no page');
  } finally {
    server.kill('SIGTERM');
  }
  const [code] = await once(server, 'exit');
  if (code !== 0) throw new Error(`the server ended with ${code}`);
  const count = packages().length;
  console.log(
    `server: ${own.length} files, ${(packed / 1e6).toFixed(1)} MB packed; works from its tarball (${count} folders in node_modules)`,
  );
}

checkServer().then(
  () => fs.rmSync(project, { recursive: true, force: true }),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
