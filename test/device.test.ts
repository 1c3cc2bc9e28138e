import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { totalmem } from 'node:os';
import { join } from 'node:path';
import {
  type GpuInfo,
  type LoadOptions,
  loadModel,
  loadSyntheticModel,
  measureBandwidth,
  systemInfo,
} from 'node-chatglm';
import { temporaryDirectory } from './support/checkpoints';

// What each device says on a machine with a GPU and on one without.

const root = join(__dirname, '..');
const { gpus, cuda, kernels, cores } = systemInfo();
const testWithGpu = gpus.length > 0 ? test : test.skip;
const testWithoutGpu = gpus.length > 0 ? test.skip : test;

const unavailable = { code: 'ERR_DEVICE_UNAVAILABLE' };
const invalid = { code: 'ERR_INVALID_ARGUMENT' };

async function infoOf(options: LoadOptions) {
  const model = await loadModel(undefined, options);
  await model.dispose();
  return model.info;
}

test.each(['gpu', 'CUDA', 'cuda:', 'cuda:-1', 'cuda:x', 'cuda:01', 'cuda:1000', 'cuda 0', 'cpu:0', '', 5, []])(
  'device %j is refused',
  async (device) => {
    const message = expect.stringMatching(/^device must be auto, cpu, cuda or cuda:N, got /);
    await expect(loadModel(undefined, { device } as LoadOptions)).rejects.toMatchObject({ ...invalid, message });
    expect(() => measureBandwidth(1, 2 ** 20, device as 'cpu')).toThrow(/^device must be cpu, cuda or cuda:N, got /);
  },
);

test('the CPU, and what keys and values it has', async () => {
  expect(kernels).toMatch(/^(avx512|avxvnni|avx2|neon|portable)$/);
  for (const kvCacheType of [undefined, 'f16', 'f32', 'q8_0'] as const) {
    const info = await infoOf({ device: 'cpu', kvCacheType, maxSequences: 2, contextLength: 100 });
    expect(info).toMatchObject({ device: 'cpu', kvCacheType: kvCacheType ?? 'f16', deviceBytes: 0 });
    // 8 layers of 2 groups of 128 numbers each for keys and values; two pages of 64 tokens a sequence.
    const bytes = { f16: 2, f32: 4, q8_0: 34 / 32 }[kvCacheType ?? 'f16'];
    expect(info.kvBytesPerToken).toBe(2 * 8 * 2 * 128 * bytes);
    expect(info.kvCacheBytes).toBe(info.kvBytesPerToken * 2 * 128);
  }
  await expect(loadModel(undefined, { kvCacheType: 'q4_0' } as object)).rejects.toMatchObject({
    ...invalid,
    message: 'kvCacheType must be one of f16, f32, q8_0, got "q4_0"',
  });
  expect(measureBandwidth(1, 2 ** 24, 'cpu')).toBeGreaterThan(1e8);
});

test('auto takes the CPU for what only the CPU has', async () => {
  expect(await infoOf({ device: 'auto', kvCacheType: 'f32' })).toMatchObject({ device: 'cpu', kvCacheType: 'f32' });
});

testWithoutGpu('without a GPU: the reason, and auto takes the CPU', async () => {
  expect(cuda).toMatch(/^device 'cuda': ./);
  expect(gpus).toEqual([]);
  for (const device of ['cuda', 'cuda:0', 'cuda:99'] as const) {
    await expect(loadModel(undefined, { device })).rejects.toMatchObject({ ...unavailable, message: cuda });
    expect(() => measureBandwidth(1, 2 ** 20, device)).toThrow(expect.objectContaining(unavailable));
  }
  expect(await infoOf({})).toMatchObject({ device: 'cpu' });
  expect(await infoOf({ device: 'auto' })).toMatchObject({ device: 'cpu' });
});

testWithGpu('with a GPU: what it is, and auto takes it', async () => {
  expect(cuda).toBe('available');
  for (const gpu of gpus) {
    expect(gpu).toEqual({
      name: expect.stringMatching(/./),
      computeCapability: expect.stringMatching(/^\d+\.\d$/),
      totalBytes: expect.any(Number),
      freeBytes: expect.any(Number),
    });
    expect(gpu.freeBytes).toBeLessThanOrEqual(gpu.totalBytes);
  }
  for (const device of [undefined, 'auto', 'cuda', 'cuda:0'] as const) {
    const info = await infoOf({ device });
    expect(info).toMatchObject({ device: 'cuda:0', kvCacheType: 'f16', threads: 0, mappedBytes: 0 });
    expect(info.kernels).toMatch(/^sm_\d+a?$/);
    expect(info.deviceBytes).toBeGreaterThanOrEqual(info.bytes + info.kvCacheBytes);
  }
  const half = await infoOf({ device: 'cuda', kvCacheType: 'f16' });
  const quarter = await infoOf({ device: 'cuda', kvCacheType: 'q8_0' });
  expect(quarter.kvCacheType).toBe('q8_0');
  expect(quarter.kvBytesPerToken / half.kvBytesPerToken).toBeCloseTo(34 / 64, 5);
  await expect(loadModel(undefined, { device: 'cuda', kvCacheType: 'f32' })).rejects.toMatchObject({
    ...invalid,
    message: "kvCacheType 'f32' takes the CPU: the CUDA backend has f16 and q8_0",
  });
  await expect(loadModel(undefined, { device: 'cuda:99' })).rejects.toMatchObject({
    ...unavailable,
    message: expect.stringMatching(/^device 'cuda:99': .*cuda:0/),
  });
  expect(() => measureBandwidth(1, 2 ** 20, 'cuda:99')).toThrow(expect.objectContaining(unavailable));
  expect(measureBandwidth(undefined, 2 ** 28, 'cuda')).toBeGreaterThan(1e10);
});

describe('memory', () => {
  const [gpu] = gpus as [GpuInfo];
  // Keys and values of that many bytes.
  const synthetic = (bytes: number, device: 'auto' | 'cuda') => {
    const tokenBytes = 2 * 8 * 2 * 128 * 2;
    return loadSyntheticModel({
      shape: 'tiny',
      device,
      contextLength: 1024,
      kvCacheTokens: Math.ceil(bytes / tokenBytes),
    });
  };

  testWithGpu('what does not fit is refused with wanted and free bytes, and auto takes the CPU', async () => {
    const bytes = 1.1 * gpu.totalBytes;
    await expect(synthetic(bytes, 'cuda')).rejects.toMatchObject({
      code: 'ERR_OUT_OF_MEMORY',
      details: { wantedBytes: expect.any(Number), freeBytes: expect.any(Number) },
    });
    // The CPU's memory is taken only when it is needed, but more than there is is refused.
    if (totalmem() < 1.2 * bytes) return;
    const model = await synthetic(bytes, 'auto');
    expect(model.info.device).toBe('cpu');
    await model.dispose();
  });

  testWithGpu('comes back', async () => {
    // Far more than what other processes, such as those of the other tests, take or give back meanwhile.
    const free = () => (systemInfo().gpus[0] as GpuInfo).freeBytes;
    const before = free();
    const bytes = 0.4 * before;
    const model = await synthetic(bytes, 'cuda');
    expect(before - free()).toBeGreaterThan(0.7 * bytes);
    await model.generate([5, 6, 7], { maxTokens: 5, stopTokens: [] }).result;
    await model.dispose();
    expect(before - free()).toBeLessThan(0.3 * bytes);
  });
});

test.each([
  ['none', /^device 'cuda': this installation has no CUDA backend \(libchatglm-cuda\.so is not beside the addon\)$/],
  ['damaged', /^device 'cuda': the CUDA backend cannot be loaded: /],
])('an addon with a CUDA library beside it that is: %s', (what, message) => {
  const directory = temporaryDirectory();
  try {
    const release = join(directory.path, 'build', 'Release');
    mkdirSync(release, { recursive: true });
    copyFileSync(join(root, 'build', 'Release', 'chatglm.node'), join(release, 'chatglm.node'));
    if (what === 'damaged') writeFileSync(join(release, 'libchatglm-cuda.so'), 'no library');
    const script = `
      const { loadModel, systemInfo } = require('node-chatglm');
      (async () => {
        const failure = await loadModel(undefined, { device: 'cuda:0' }).catch((error) => error);
        const model = await loadModel();
        process.stdout.write(JSON.stringify([systemInfo(), failure.code, failure.message, model.info.device]));
      })();`;
    const { stdout, stderr } = spawnSync(process.execPath, ['-e', script], {
      cwd: root,
      env: { ...process.env, NODE_CHATGLM_PREBUILD: directory.path },
      encoding: 'utf8',
    });
    expect(stderr).toBe('');
    const [system, code, text, device] = JSON.parse(stdout);
    expect(system).toEqual({ kernels, cores, gpus: [], cuda: expect.stringMatching(message), pageTokens: 64 });
    expect([code, text, device]).toEqual(['ERR_DEVICE_UNAVAILABLE', system.cuda, 'cpu']);
  } finally {
    directory.remove();
  }
});
