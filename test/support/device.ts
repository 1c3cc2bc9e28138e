import type { FilePath, LoadOptions, Model, Nullable, SyntheticModelOptions } from 'node-chatglm';
import * as chatglm from 'node-chatglm';

// The same tests run on the CPU and, with CHATGLM_TEST_DEVICE=cuda, on a GPU.

export const device = (process.env.CHATGLM_TEST_DEVICE ?? 'cpu') as NonNullable<LoadOptions['device']>;
export const onGpu = device !== 'cpu';

/** A test of what only the CPU backend has or promises. */
export const testOnCpu: jest.It = onGpu ? test.skip : test;

/** What `auto` and the defaults would choose is tested in device.test.ts. */
export async function loadModel(path?: FilePath | null, options: Nullable<LoadOptions> = {}): Promise<Model> {
  return await chatglm.loadModel(path, { device, ...options });
}

export async function loadSyntheticModel(options: SyntheticModelOptions): Promise<Model> {
  return await chatglm.loadSyntheticModel({ device, ...options });
}

/** Source code for another process or a worker: its own loadModel() for the tests' device. */
export const loadModelSource = `
  const loadModel = (path, options) => require('node-chatglm').loadModel(path, { device: '${device}', ...options });`;

/** ||actual - expected|| / ||expected||; NaN if anything is NaN. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(actual.length).toBe(expected.length);
  let error = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    error += ((actual[i] as number) - (expected[i] as number)) ** 2;
    norm += (expected[i] as number) ** 2;
  }
  return Math.sqrt(error / norm);
}

/** max |a - b|; NaN if anything is NaN. */
export function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs((a[i] as number) - (b[i] as number));
    // A NaN must not pass.
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}
