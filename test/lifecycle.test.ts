import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { loadModelSource, onGpu } from './support/device';

// Each scenario is a process of its own: what is tested is how it ends, and what it leaves behind until then.

const root = join(__dirname, '..');

interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

function run(script: string, args: readonly string[] = []): Promise<Outcome> {
  const preamble = `
    ${loadModelSource}
    const { Worker } = require('node:worker_threads');
    const fs = require('node:fs');
    const endless = { maxTokens: 900, stopTokens: [] };
    const threads = () => fs.readdirSync('/proc/self/task').length;
    const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    // Node starts the threads of its own pool when they are first needed, and so does CUDA.
    const warm = async () => {
      await Promise.all(Array.from({ length: 16 }, () => fs.promises.stat('.')));
      if (!${onGpu}) return;
      await (await loadModel()).dispose();
      await sleep(300); // until the model's own threads are gone
    };
    async function settled(read, wanted) {
      for (let i = 0; i < 500 && read() !== wanted; i++) await sleep(10);
      return read();
    }
  `;
  const child = spawn(process.execPath, [...args, '-e', `${preamble}(async () => { await warm(); ${script}})();`], {
    cwd: root,
  });
  const outcome: Outcome = { code: null, signal: null, stdout: '', stderr: '' };
  child.stdout.on('data', (data) => {
    outcome.stdout += data;
  });
  child.stderr.on('data', (data) => {
    outcome.stderr += data;
  });
  return new Promise((resolve) => child.on('close', (code, signal) => resolve({ ...outcome, code, signal })));
}

async function expectOutput(script: string, output: unknown, args: readonly string[] = []): Promise<void> {
  const { code, signal, stdout, stderr } = await run(script, args);
  expect({ code, signal, stderr, stdout: stdout === '' ? '' : JSON.parse(stdout) }).toEqual({
    code: 0,
    signal: null,
    stderr: '',
    stdout: output,
  });
}

const print = (expression: string) => `process.stdout.write(JSON.stringify(${expression}));`;

test('process.exit() in the middle of generations and of loading', async () => {
  const generating = await run(`
    const model = await loadModel();
    const generations = Array.from({ length: 6 }, (_, i) => model.generate('a'.repeat(i * 50), endless));
    await generations[0].next();
    process.exit(7);`);
  expect(generating).toMatchObject({ code: 7, stderr: '' });
  const loading = await run(`loadModel(); setTimeout(() => process.exit(8), 60);`);
  expect(loading).toMatchObject({ code: 8, stderr: '' });
});

test('process.exit(), and the end of a worker, in the middle of encodeAsync()', async () => {
  const encoding = `
    const { loadTokenizer, embeddedModelPath } = require('.');
    const tokenizer = await loadTokenizer(embeddedModelPath());
    const all = Promise.all(Array.from({ length: 3 }, () => tokenizer.encodeAsync('a b'.repeat(3_000_000))));`;
  const exited = await run(`${encoding} setTimeout(() => process.exit(7), 60);`);
  expect(exited).toMatchObject({ code: 7, stderr: '' });
  const left = await run(`${encoding} all.then((lists) => process.stdout.write(String(lists.length)));`);
  expect(left).toMatchObject({ code: 0, stdout: '3', stderr: '' });
  const terminated = await run(`
    const source = \`(async () => {${encoding} require('node:worker_threads').parentPort.postMessage(1); })()\`;
    const worker = new Worker(source, { eval: true });
    await new Promise((resolve) => worker.once('message', resolve));
    await sleep(40);
    await worker.terminate();`);
  expect(terminated).toMatchObject({ code: 0, stderr: '' });
});

test('a signal ends the process at once', async () => {
  const outcome = await run(`
    const model = await loadModel();
    await model.generate('b', endless).next();
    process.kill(process.pid, 'SIGTERM');
    await sleep(10_000);`);
  expect(outcome).toMatchObject({ signal: 'SIGTERM', stderr: '' });
});

test('a process with an idle model, or one that loads or answers, ends when its work is done', async () => {
  await expectOutput(
    `
    const model = await loadModel();
    const { tokens } = await model.generate('b', { ...endless, maxTokens: 20 }).result;
    ${print('tokens.length')}`,
    20,
  );
});

test('an error that nobody catches in a loop ends the process as any other does', async () => {
  const outcome = await run(`
    const model = await loadModel();
    for await (const chunk of model.generate('b', endless)) throw new Error('mine');`);
  expect(outcome.code).toBe(1);
  expect(outcome.stderr).toContain('Error: mine');
});

test('dispose() in the middle of generations: they end with ERR_DISPOSED, and all threads are gone', async () => {
  await expectOutput(
    `
    const before = threads();
    const model = await loadModel();
    const generations = Array.from({ length: 6 }, () => model.generate('b', endless));
    const results = generations.map(({ result }) => result.catch((error) => error.code));
    const logits = model.logits(Array(1000).fill(300)).catch((error) => error.code);
    await generations[0].next();
    await Promise.all([model.dispose(), model.dispose()]);
    const after = await model.generate('b', endless).result.catch((error) => error.code);
    ${print('[await Promise.all(results), await logits, after, await settled(threads, before) === before]')}`,
    [Array(6).fill('ERR_DISPOSED'), 'ERR_DISPOSED', 'ERR_DISPOSED', true],
  );
});

test('await using disposes', async () => {
  await expectOutput(
    `
    const model = await loadModel();
    await model[Symbol.asyncDispose]();
    ${print('await model.logits([1]).catch((error) => error.code)')}`,
    'ERR_DISPOSED',
  );
});

test('loading can be aborted, and an error in onProgress ends it', async () => {
  await expectOutput(
    `
    const before = threads();
    const codes = [];
    const controller = new AbortController();
    codes.push(await loadModel(undefined, { signal: controller.signal, onProgress: () => controller.abort() }).catch((e) => e.code));
    codes.push(await loadModel(undefined, { signal: AbortSignal.abort() }).catch((e) => e.code));
    codes.push(await loadModel(undefined, { onProgress: () => { throw new Error('mine'); } }).catch((e) => e.message));
    ${print('[codes, await settled(threads, before) === before]')}`,
    [['ERR_ABORTED', 'ERR_ABORTED', 'mine'], true],
  );
});

test('workers: terminated in the middle of generations while the main thread goes on', async () => {
  await expectOutput(
    `
    const model = await loadModel();
    const before = threads();
    const source = \`
      ${loadModelSource}
      const { parentPort } = require('node:worker_threads');
      (async () => {
        const model = await loadModel();
        for await (const chunk of model.generate('b', { maxTokens: 900, stopTokens: [] })) parentPort.postMessage(chunk.text);
      })();\`;
    const ends = [];
    for (let i = 0; i < 4; i++) {
      const workers = [new Worker(source, { eval: true }), new Worker(source, { eval: true })];
      await Promise.all(workers.map((worker) => new Promise((resolve) => worker.once('message', resolve))));
      await sleep(i * 7);
      ends.push(...(await Promise.all(workers.map((worker) => worker.terminate()))));
    }
    const loading = new Worker(\`${loadModelSource}; loadModel()\`, { eval: true });
    await sleep(50);
    await loading.terminate();
    const { tokens } = await model.generate('b', { ...endless, maxTokens: 5 }).result;
    ${print('[ends, tokens.length, (await settled(threads, before)) <= before]')}`,
    [Array(8).fill(1), 5, true],
  );
});

test('200 loads and disposals leave threads, files and memory as they were', async () => {
  await expectOutput(
    `
    const resident = () => process.memoryUsage.rss() / 2 ** 20;
    const files = () => fs.readdirSync('/proc/self/fd').length;
    const cycle = async () => {
      const model = await loadModel();
      await model.generate('b', { maxTokens: 2 }).result;
      await model.dispose();
    };
    // The allocator's arenas, one for each thread that ran at a time, grow by some 20 MB until they have settled; from
    // then on 500 loads add nothing that can be measured.
    for (let i = 0; i < 100; i++) await cycle();
    global.gc();
    const before = [threads(), files(), resident()];
    for (let i = 0; i < 100; i++) await cycle();
    global.gc();
    const after = [await settled(threads, before[0]), files(), resident()];
    ${print('[after[0] === before[0], after[1] === before[1], after[2] < before[2] + 24 || [before, after]]')}`,
    [true, true, true],
    ['--expose-gc'],
  );
});

test('a model that nobody holds any more gives its threads back', async () => {
  await expectOutput(
    `
    const before = threads();
    await (async () => { await loadModel(); })();
    const during = threads();
    for (let i = 0; i < 200 && threads() > before; i++) { global.gc(); await sleep(10); }
    ${print('[during > before, threads() === before]')}`,
    [true, true],
    ['--expose-gc'],
  );
});

test('import and require() share one instance', async () => {
  await expectOutput(
    `
    const imported = await import('node-chatglm');
    ${print("[imported.loadModel === require('node-chatglm').loadModel, Object.keys(imported).sort().join() === Object.keys(require('node-chatglm')).sort().join()]")}`,
    [true, true],
  );
});
