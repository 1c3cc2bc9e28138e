import { type GenerateOptions, type LoadOptions, loadModel, type Model } from '../index.js';
import type { OptionSpecs, OptionValues } from './arguments.js';
import { withInterruptSignal } from './interrupt.js';
import { withProgress } from './progress.js';

/** Options of loadModel(). */
export const loadOptions = {
  device: { kind: 'text', value: 'DEVICE', about: 'auto, cpu, cuda or cuda:N; see chatglm system (default: auto)' },
  quantization: {
    kind: 'text',
    value: 'TYPE',
    choices: ['int8', 'int4'],
    about: 'Quantize while loading: int8 or int4 (default: as in the checkpoint)',
  },
  'context-length': { kind: 'integer', about: "Tokens of context to make room for (default: the model's own)" },
  'kv-cache-type': {
    kind: 'text',
    value: 'TYPE',
    choices: ['f16', 'f32', 'q8_0'],
    about: 'Keys and values: f16, f32 (CPU only) or q8_0 (default: what suits the device)',
  },
  threads: { kind: 'integer', about: 'Threads to compute with (default: one per core)' },
} as const satisfies OptionSpecs;

/** Options of generate(), and of chats. */
export const generateOptions = {
  'max-tokens': { kind: 'integer', about: 'Tokens to generate at most (default: as many as fit)' },
  greedy: { kind: 'flag', about: 'Always take the likeliest token instead of sampling' },
  temperature: { kind: 'number', about: 'Higher is more varied (default: 0.8)' },
  'top-k': { kind: 'integer', about: 'Sample from the N likeliest tokens; 0: from all (default: 50)' },
  'top-p': { kind: 'number', about: 'Sample from the likeliest tokens that make up this probability (default: 0.8)' },
  'min-p': { kind: 'number', about: 'Leave out tokens less likely than this part of the likeliest (default: 0)' },
  'repetition-penalty': { kind: 'number', about: 'Make tokens that occurred less likely (default: 1, not at all)' },
  'presence-penalty': { kind: 'number', about: 'The same as OpenAI defines it: once a token (default: 0)' },
  'frequency-penalty': { kind: 'number', about: 'The same for each time a token occurred (default: 0)' },
  seed: { kind: 'integer', about: 'Same seed, same answer (default: by chance)' },
  stop: { kind: 'texts', about: 'End where this text comes up; may be given several times' },
} as const satisfies OptionSpecs;

export function toLoadOptions(given: OptionValues<typeof loadOptions>): LoadOptions {
  const options: LoadOptions = {};
  // The loader checks it, and its message says what there is.
  if (given.device !== undefined) options.device = given.device as NonNullable<LoadOptions['device']>;
  if (given.quantization !== undefined) options.quantization = given.quantization as 'int8' | 'int4';
  if (given['context-length'] !== undefined) options.contextLength = given['context-length'];
  if (given['kv-cache-type'] !== undefined) options.kvCacheType = given['kv-cache-type'] as 'f16' | 'f32' | 'q8_0';
  if (given.threads !== undefined) options.threads = given.threads;
  return options;
}

export function toGenerateOptions(given: OptionValues<typeof generateOptions>): GenerateOptions {
  const options: GenerateOptions = {};
  if (given['max-tokens'] !== undefined) options.maxTokens = given['max-tokens'];
  if (given.greedy) options.doSample = false;
  if (given.temperature !== undefined) options.temperature = given.temperature;
  if (given['top-k'] !== undefined) options.topK = given['top-k'];
  if (given['top-p'] !== undefined) options.topP = given['top-p'];
  if (given['min-p'] !== undefined) options.minP = given['min-p'];
  if (given['repetition-penalty'] !== undefined) options.repetitionPenalty = given['repetition-penalty'];
  if (given['presence-penalty'] !== undefined) options.presencePenalty = given['presence-penalty'];
  if (given['frequency-penalty'] !== undefined) options.frequencyPenalty = given['frequency-penalty'];
  if (given.seed !== undefined) options.seed = given.seed;
  if (given.stop !== undefined) options.stop = given.stop;
  return options;
}

/** Loads a model with a progress bar; Ctrl-C gives up. */
export async function loadWithProgress(path: string | undefined, options: LoadOptions): Promise<Model> {
  return await withInterruptSignal((signal) =>
    withProgress('Loading', (onProgress) => loadModel(path, { ...options, signal, onProgress })),
  );
}
