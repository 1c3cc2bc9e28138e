import {
  embeddedModelPath,
  type GpuInfo,
  type LoadOptions,
  loadSyntheticModel,
  type Model,
  measureBandwidth,
  openCheckpoint,
  type ShapeName,
  type SyntheticType,
  systemInfo,
} from '../index.js';
import { type CommandSpec, type OptionValues, UsageError } from './arguments.js';
import { formatBytes, formatFacts, formatMilliseconds, formatTable, significant } from './format.js';
import { withInterruptSignal } from './interrupt.js';
import { evaluatePrompts, measureDecode, measurePrefill, RandomIds } from './measure.js';
import { loadOptions, loadWithProgress, modelOption, modelPath, toFamily, toLoadOptions } from './model-options.js';
import { print, printJson } from './output.js';
import { withProgress } from './progress.js';
import { shapeOptions } from './synth.js';

const options = {
  ...modelOption,
  ...shapeOptions,
  prompt: { kind: 'integers', least: 1, about: 'Lengths of the prompts to evaluate, in tokens (default: 512)' },
  depth: { kind: 'integers', least: 0, about: 'Tokens of context before the generated ones (default: 0)' },
  batch: { kind: 'integers', least: 1, most: 256, about: 'Sequences to generate at the same time (default: 1)' },
  // The first token comes with the prompt: time passes between it and the second.
  gen: { kind: 'integer', least: 2, about: 'Tokens to generate in each sequence (default: 64)' },
  repeat: { kind: 'integer', least: 1, about: 'Repetitions of each measurement, whose median counts (default: 3)' },
  seed: { kind: 'integer', about: 'Seed of the random prompts (default: 1)' },
  ...loadOptions,
  json: { kind: 'flag', about: 'Print everything as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'bench',
  positionals: '[model]',
  about: `Measure a model's speed and memory, and which share of the memory's bandwidth it reaches.

The model is a checkpoint or, with --shape, random weights made in memory. Without either it is the embedded model.`,
  options,
  examples: [
    ['chatglm bench ./chatglm3-6b-q4_0.gguf', 'measure prompts of 512 tokens, then one sequence at a time'],
    [
      'chatglm bench --shape 6b --type q4_0 --prompt 512,2048 --depth 0,2048 --batch 1,8 --gen 64',
      'measure without a file',
    ],
    [
      'chatglm bench --device cuda --batch 1,8,64,256 --depth 128 --gen 128',
      'measure many sequences at a time on a GPU',
    ],
    ['chatglm bench model.gguf --json > bench.json', 'give the figures to a program'],
  ],
} satisfies CommandSpec;

/** Of memory that is read to measure its bandwidth: more than caches hold. */
const BANDWIDTH_BYTES = 2 ** 29;

/** What `--json` prints. */
export interface BenchReport {
  model: string;
  device: string;
  threads: number;
  prefill: { tokens: number; tokensPerSecond: number }[];
  /** bandwidth: bytes per second of a plain read of the device's memory, on the CPU between these very runs. */
  decode: { depth: number; batch: number; tokensPerSecond: number; bytesPerSecond: number; bandwidth: number }[];
  /** The median of them. */
  bandwidth: { bytesPerSecond: number };
  /** peakBytes: of the machine's memory, by the whole process. */
  memory: { peakBytes: number; loadMs: number; gpu?: GpuMemory };
}

interface GpuMemory {
  name: string;
  totalBytes: number;
  /** Before the model was loaded; CUDA had taken already what it needs itself. */
  freeBytesBefore: number;
  freeBytesAfter: number;
  /** What the model took, and of that the weights and the keys and values. */
  modelBytes: number;
  weightBytes: number;
  kvCacheBytes: number;
}

export async function run(given: OptionValues<typeof options>, [argument]: readonly string[]): Promise<void> {
  const plan = readPlan(given);
  const path = modelPath(given, argument);
  if (path !== undefined && (given.shape !== undefined || given.type !== undefined)) {
    throw new UsageError('give a model or --shape and --type, not both');
  }
  const gpus = given.device === 'cpu' ? [] : systemInfo().gpus;
  const loading = await loadingOptions(path, given, plan);
  const began = performance.now();
  const model = await load(path, given, loading);
  const loadMs = performance.now() - began;
  try {
    const report = await measure(model, plan, loadMs, gpus);
    if (given.json) printJson(report);
    else print(formatReport(report));
  } finally {
    await model.dispose();
  }
}

interface Plan {
  prompts: number[];
  depths: number[];
  batches: number[];
  generated: number;
  repeat: number;
  seed: number;
}

function readPlan(given: OptionValues<typeof options>): Plan {
  const { prompt = [512], depth = [0], batch = [1], gen = 64, repeat = 3, seed = 1 } = given;
  return { prompts: prompt, depths: depth, batches: batch, generated: gen, repeat, seed };
}

function isSynthetic({ shape, type }: OptionValues<typeof options>): boolean {
  return shape !== undefined || type !== undefined;
}

/** No longer a context than is needed: on a GPU each of the sequences gets its memory at once. */
async function loadingOptions(
  path: string | undefined,
  given: OptionValues<typeof options>,
  { prompts, depths, batches, generated }: Plan,
): Promise<LoadOptions> {
  const longest = Math.max(...prompts.map((tokens) => tokens + 1), ...depths.map((depth) => depth + generated + 1));
  // A sequence that goes on from a cached prompt gets a page of its own for the prompt's end. Without room for that, other
  // cached prompts would have to go.
  const most = isSynthetic(given)
    ? Infinity
    : (await openCheckpoint(path ?? embeddedModelPath(), toFamily(given))).config.contextLength;
  const contextLength = Math.max(longest, Math.min(longest + systemInfo().pageTokens, most));
  return { contextLength, ...toLoadOptions(given), maxSequences: Math.max(...batches) };
}

async function load(
  path: string | undefined,
  given: OptionValues<typeof options>,
  loading: LoadOptions,
): Promise<Model> {
  if (!isSynthetic(given)) return await loadWithProgress(path, loading);
  const shape = (given.shape ?? '6b') as ShapeName;
  const type = (given.type ?? 'q4_0') as SyntheticType;
  return await withInterruptSignal((signal) =>
    withProgress('Loading', (onProgress) => loadSyntheticModel({ shape, type, ...loading, signal, onProgress })),
  );
}

async function measure(model: Model, plan: Plan, loadMs: number, gpus: readonly GpuInfo[]): Promise<BenchReport> {
  const { info } = model;
  const isGpu = info.device !== 'cpu';
  const ids = new RandomIds(info.vocabSize, plan.seed);
  // The first run pays for what is set up on first use: on a GPU that is something else for each size.
  await measurePrefill(model, ids, Math.min(16, ...plan.prompts));
  const prefill: BenchReport['prefill'] = [];
  for (const tokens of plan.prompts) {
    progress(`prefill of ${tokens} tokens`);
    if (isGpu) await measurePrefill(model, ids, tokens);
    const speeds = await repeated(plan.repeat, () => measurePrefill(model, ids, tokens));
    prefill.push({ tokens, tokensPerSecond: median(speeds) });
  }
  const decode: BenchReport['decode'] = [];
  // Of this process alone, without what measuring the bandwidth takes. Linux and macOS both tell kilobytes here.
  let peakBytes = process.resourceUsage().maxRSS * 1024;
  const bandwidths: number[] = [];
  for (const depth of plan.depths) {
    for (const batch of plan.batches) {
      progress(`decode of ${batch} x ${plan.generated} tokens at depth ${depth}`);
      const prompts = Array.from({ length: batch }, () => ids.next(Math.max(1, depth)));
      await evaluatePrompts(model, prompts);
      if (isGpu) await measureDecode(model, prompts, plan.generated);
      const reads: number[] = [];
      const speeds = await repeated(plan.repeat, async () => {
        const speed = await measureDecode(model, prompts, plan.generated);
        const first = bandwidths.length + reads.length === 0;
        peakBytes = Math.max(peakBytes, first ? process.resourceUsage().maxRSS * 1024 : process.memoryUsage.rss());
        // The memory's speed drifts, on shared machines by factors: what the runs are compared with is measured between them.
        if (!isGpu) reads.push(measureBandwidth(info.threads, BANDWIDTH_BYTES));
        return speed;
      });
      const tokensPerSecond = median(speeds);
      // Each step reads the weights once, and every sequence's keys and values: at half of what is generated, on average.
      const stepBytes = info.bytesPerToken + batch * info.kvBytesPerToken * (depth + plan.generated / 2);
      const bytesPerSecond = (tokensPerSecond / batch) * stepBytes;
      decode.push({ depth, batch, tokensPerSecond, bytesPerSecond, bandwidth: isGpu ? 0 : median(reads) });
      bandwidths.push(...reads);
    }
  }
  const memory: BenchReport['memory'] = { peakBytes, loadMs };
  if (isGpu) {
    const index = Number(info.device.slice('cuda:'.length));
    const after = systemInfo().gpus[index] as GpuInfo;
    memory.gpu = {
      name: after.name,
      totalBytes: after.totalBytes,
      freeBytesBefore: (gpus[index] as GpuInfo).freeBytes,
      freeBytesAfter: after.freeBytes,
      modelBytes: info.deviceBytes,
      weightBytes: info.bytes,
      kvCacheBytes: info.kvCacheBytes,
    };
    progress('memory bandwidth');
    // Far more than its cache holds, and no more than there is room for.
    const bytes = Math.max(2 ** 20, Math.min(2 ** 32, Math.floor(after.freeBytes / 2)));
    bandwidths.push(measureBandwidth(undefined, bytes, info.device as 'cuda'));
    for (const row of decode) row.bandwidth = bandwidths[0] as number;
  }
  progress('');
  return {
    model: info.name,
    device: info.device,
    threads: info.threads,
    prefill,
    decode,
    bandwidth: { bytesPerSecond: median(bandwidths) },
    memory,
  };
}

function formatReport({ model, device, threads, prefill, decode, bandwidth, memory }: BenchReport): string {
  const perSecond = (bytes: number) => `${formatBytes(bytes)}/s`;
  const { gpu } = memory;
  return [
    formatFacts([
      ['Model', model],
      ['Device', `${device}, ${gpu ? gpu.name : `${threads} threads`}`],
      ['Loaded in', formatMilliseconds(memory.loadMs)],
      ['Peak memory', formatBytes(memory.peakBytes)],
      ['GPU memory', gpu && gpuMemory(gpu)],
      ['Bandwidth', `${perSecond(bandwidth.bytesPerSecond)} (plain read)`],
    ]),
    formatTable([
      ['Prefill', 'tokens/s'],
      ...prefill.map(({ tokens, tokensPerSecond }) => [`${tokens} tokens`, significant(tokensPerSecond)]),
    ]),
    formatTable([
      ['Decode', 'batch', 'tokens/s', 'read', 'bandwidth', 'share'],
      ...decode.map(({ depth, batch, tokensPerSecond, bytesPerSecond, bandwidth }) => [
        `depth ${depth}`,
        String(batch),
        significant(tokensPerSecond),
        perSecond(bytesPerSecond),
        perSecond(bandwidth),
        `${Math.round((bytesPerSecond / bandwidth) * 100)}%`,
      ]),
    ]),
  ].join('\n\n');
}

function gpuMemory(gpu: GpuMemory): string {
  const { totalBytes, freeBytesBefore, freeBytesAfter, modelBytes, weightBytes, kvCacheBytes } = gpu;
  const rest = modelBytes - weightBytes - kvCacheBytes;
  return [
    `${formatBytes(modelBytes)} by the model: weights ${formatBytes(weightBytes)}, keys and values ${formatBytes(kvCacheBytes)}, the rest ${formatBytes(rest)}`,
    `free before and after ${formatBytes(freeBytesBefore)} and ${formatBytes(freeBytesAfter)} of ${formatBytes(totalBytes)}`,
  ].join('; ');
}

async function repeated(times: number, run: () => Promise<number>): Promise<number[]> {
  const results: number[] = [];
  for (let time = 0; time < times; time++) results.push(await run());
  return results;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const [low, high] = [sorted[sorted.length % 2 === 0 ? middle - 1 : middle], sorted[middle]] as [number, number];
  return (low + high) / 2;
}

/** What is being measured, on one line of the terminal that is written over. */
function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r${text}\x1b[K`);
}
