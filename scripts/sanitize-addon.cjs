'use strict';
// What scripts/sanitize.sh runs in Node with a sanitized addon: loading, generating, cancelling, disposing, going away.
const assert = require('node:assert');
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const { loadModel, loadSyntheticModel, embeddedModelPath } = require('..');
const native = require('../dist/addon/native.js').loadNative();

const code = (promise) => promise.then(() => 'none').catch((error) => error.code ?? String(error));
const ignore = () => undefined;

async function generateSome(model) {
  const texts = await Promise.all(
    ['你好', 'Hello', '1 + 1 =', '法国的首都'].map(async (text, i) => {
      let joined = '';
      for await (const chunk of model.generate(text, { maxTokens: 12, seed: i, logprobs: 3 })) joined += chunk.text;
      return joined;
    }),
  );
  assert(texts.every((text) => typeof text === 'string'));
}

async function main() {
  const model = await loadModel(undefined, { maxSequences: 3, threads: 2 });
  await generateSome(model);
  const ids = Uint32Array.from({ length: 120 }, (_, i) => 300 + i);
  const logits = await model.logits(ids, { from: 100 });
  assert.strictEqual(logits.length, 20 * model.info.vocabSize);
  const { response } = await model.chat('你好', { history: [] });
  assert.strictEqual(typeof response, 'string');

  // Cancelled while waiting, in the prompt and in the answer.
  for (let i = 0; i < 8; ++i) {
    const controller = new AbortController();
    const streams = [0, 1, 2, 3].map(() =>
      code(drain(model.generate(ids, { maxTokens: 50, signal: controller.signal }))),
    );
    await new Promise((resolve) => setTimeout(resolve, i % 7));
    controller.abort();
    await Promise.all(streams);
  }
  model.clearCache();

  // Disposed in the middle, and used afterwards.
  const running = [0, 1, 2, 3].map(() => code(drain(model.generate('你好', { maxTokens: 1000, stopTokens: [] }))));
  await new Promise((resolve) => setTimeout(resolve, 30));
  await Promise.all([model.dispose(), model.dispose()]);
  assert.deepStrictEqual(await Promise.all(running), Array(4).fill('ERR_DISPOSED'));
  assert.strictEqual(await code(drain(model.generate('你好'))), 'ERR_DISPOSED');

  // Aborted while loading, loaded and left to the garbage collector, every type of weights.
  for (let i = 0; i < 5; ++i) {
    const controller = new AbortController();
    setTimeout(() => controller.abort(), i).unref();
    await loadModel(undefined, { signal: controller.signal }).then((m) => m.dispose(), ignore);
    await loadModel();
    globalThis.gc?.();
  }
  for (const type of ['f16', 'q8_0']) {
    const synthetic = await loadSyntheticModel({ shape: 'tiny', type });
    await drain(synthetic.generate([5, 6, 7], { maxTokens: 5 }));
    await synthetic.dispose();
  }
  assert.strictEqual(await code(loadModel(undefined, { quantization: 'int8' })), 'ERR_INVALID_ARGUMENT');
  assert.strictEqual(await code(loadModel(undefined, { device: 'cuda' })), 'ERR_DEVICE_UNAVAILABLE');
  assert.deepStrictEqual(native.system().gpus, []);

  hostile();
  await cut();

  // Workers that end by themselves, are terminated, or exit, whatever runs in them.
  for (const how of ['end', 'terminate', 'terminate', 'exit', 'abandon']) {
    const worker = new Worker(__filename, { workerData: { how } });
    await new Promise((resolve, reject) => {
      worker.on('error', reject);
      worker.on('exit', resolve);
      worker.on('message', () => {
        if (how === 'terminate') setTimeout(() => worker.terminate(), 20);
      });
    });
  }
  // The process itself goes away.
  for (const how of ['exit', 'abandon']) {
    const child = spawnSync(process.execPath, [__filename, how], { encoding: 'utf8' });
    assert.strictEqual(child.status, how === 'exit' ? 7 : 0, child.stderr);
  }
  process.stdout.write('addon: done\n');
}

async function drain(stream) {
  let count = 0;
  for await (const chunk of stream) count += chunk.tokens?.length ?? 0;
  return count;
}

// Arguments that lib/ would never pass on.
function hostile() {
  const bytes = new Uint8Array(64);
  const huge = 0x7fffffff;
  const refused = [
    () => native.convertRows('f32', bytes, undefined, huge, huge, 'f32', bytes),
    () => native.convertRows('q4_0', bytes, undefined, huge, 32, 'f32', bytes),
    () => native.convertRows('f32', bytes, undefined, 1, 17, 'q4_0', bytes),
    () => native.convertRows('int4', bytes, new Float32Array(0), 1, 32, 'f16', bytes),
    () => native.fillRandom('q4_0', new Uint8Array(17), 'x', 0, 0, 0, 1),
    () => new native.Tokenizer(bytes, new Uint32Array([0, 64]), new Float32Array(1), new Uint8Array(1)),
    () => new native.Model({}, ignore),
    () => new native.Model(undefined, undefined),
    () => native.measureBandwidth(1, 1 << 20, 'gpu'),
    () => native.measureBandwidth(1, 1 << 20, 'cuda:99999999999'),
    () => native.measureBandwidth(1, 1 << 20),
    () => native.Model.prototype.submit.call({}, {}),
    () => native.Model.prototype.dispose.call(new native.Tokenizer(...[])),
  ];
  for (const call of refused) assert.throws(call);
  const odd = new Float32Array([Number.NaN, 1e38, -Infinity, Infinity]);
  const block = new Float32Array(32).map((_, i) => odd[i % 4]);
  for (const type of ['f16', 'bf16', 'q8_0', 'q4_0']) {
    native.convertRows('f32', new Uint8Array(block.buffer), undefined, 1, 32, type, new Uint8Array(128));
  }
}

// A checkpoint that ends too soon.
async function cut() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'chatglm-sanitize-'));
  const whole = fs.readFileSync(embeddedModelPath());
  for (const part of [0.1, 0.5, 0.999]) {
    const file = path.join(folder, `${part}.gguf`);
    fs.writeFileSync(file, whole.subarray(0, Math.floor(whole.length * part)));
    assert.strictEqual(await code(loadModel(file)), 'ERR_CHECKPOINT_INVALID');
  }
  fs.rmSync(folder, { recursive: true });
}

async function goAway(how) {
  const model = await loadModel();
  const running = drain(model.generate('你好', { maxTokens: how === 'abandon' ? 20 : 2000, stopTokens: [] })).catch(
    ignore,
  );
  parentPort?.postMessage('running');
  if (how === 'end') {
    await model.dispose();
    await running;
  } else if (how === 'exit') {
    setTimeout(() => process.exit(7), 20);
  } else if (how === 'abandon') {
    setTimeout(ignore, 20); // the process ends by itself, after its last answer
  }
}

if (isMainThread && process.argv.length < 3) main();
else goAway(isMainThread ? process.argv[2] : workerData.how);
