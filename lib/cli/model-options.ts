import {
  type GenerateOptions,
  type LoadOptions,
  loadModel,
  MODEL_FAMILIES,
  type Model,
  type ModelFamily,
} from '../index.js';
import { type OptionSpecs, type OptionValues, UsageError } from './arguments.js';
import { withInterruptSignal } from './interrupt.js';
import { withProgress } from './progress.js';

/** Which checkpoint a command works on. */
export const modelOption = {
  model: {
    kind: 'text',
    short: 'm',
    value: 'PATH',
    about: 'Checkpoint: a directory or a GGUF file (default: the embedded model)',
  },
} as const satisfies OptionSpecs;

/** The family, in every command that reads a checkpoint. */
export const familyOption = {
  family: {
    kind: 'text',
    value: 'FAMILY',
    choices: ['auto', ...MODEL_FAMILIES],
    about: `Family of the model: ${MODEL_FAMILIES.join(', ')} (default: auto, as its files tell)`,
  },
} as const satisfies OptionSpecs;

/** Options of loadModel(). */
export const loadOptions = {
  ...familyOption,
  device: {
    kind: 'text',
    value: 'DEVICE',
    pattern: { matches: /^(auto|cpu|cuda(:(0|[1-9]\d{0,2}))?)$/, expected: 'auto, cpu, cuda or cuda:N' },
    about: 'Device to compute on: auto, cpu, cuda or cuda:N; see chatglm system (default: auto)',
  },
  quantization: {
    kind: 'text',
    value: 'TYPE',
    choices: ['int8', 'int4'],
    about: "Quantize the weights while loading: int8 or int4 (default: the checkpoint's own types)",
  },
  'context-length': {
    kind: 'integer',
    least: 1,
    about: "Context length in tokens, at most the model's own (default: that, but no more than 32768)",
  },
  'kv-cache-type': {
    kind: 'text',
    value: 'TYPE',
    choices: ['f16', 'f32', 'q8_0'],
    about: 'Type of keys and values: f16, f32 (CPU only) or q8_0 (default: as suits device and weights)',
  },
  threads: { kind: 'integer', least: 1, most: 1024, about: 'Threads to compute with (default: one per core)' },
} as const satisfies OptionSpecs;

/** Options of generate(), and of chats. */
export const generateOptions = {
  'max-tokens': {
    kind: 'integer',
    least: 0,
    most: 0x7fff_ffff,
    about: 'Most tokens to generate (default: as many as the context has room for)',
  },
  greedy: { kind: 'flag', about: 'Always take the likeliest token instead of sampling' },
  temperature: {
    kind: 'number',
    least: 0,
    most: 100,
    about: 'Sampling temperature; a higher one gives more varied text (default: 0.8)',
  },
  'top-k': {
    kind: 'integer',
    least: 0,
    most: 0x7fff_ffff,
    about: 'Sample from the N likeliest tokens; 0 samples from all (default: 50)',
  },
  'top-p': {
    kind: 'number',
    least: 0,
    most: 1,
    about: 'Sample from the likeliest tokens whose probabilities add up to X (default: 0.8)',
  },
  'min-p': {
    kind: 'number',
    least: 0,
    most: 1,
    about: 'Leave out tokens that are less than X times as likely as the likeliest (default: 0)',
  },
  'repetition-penalty': {
    kind: 'number',
    least: 0.01,
    most: 100,
    about: 'Make tokens of the prompt and the answer less likely by the factor X (default: 1)',
  },
  'presence-penalty': {
    kind: 'number',
    least: -100,
    most: 100,
    about: 'Subtract X from the logit of each token that the answer has already (default: 0)',
  },
  'frequency-penalty': {
    kind: 'number',
    least: -100,
    most: 100,
    about: "Subtract X from a token's logit for each time that the answer has the token (default: 0)",
  },
  seed: { kind: 'integer', least: 0, about: 'Seed: the same one gives the same answer (default: a random one)' },
  stop: {
    kind: 'texts',
    pattern: { matches: /./s, expected: 'a text that is not empty' },
    about: 'End the answer before this text; may be given several times',
  },
} as const satisfies OptionSpecs;

/** The path of the checkpoint, which every command that loads one takes as an option, and some as an argument as well. */
export function modelPath(given: OptionValues<typeof modelOption>, positional?: string): string | undefined {
  if (given.model !== undefined && positional !== undefined) {
    throw new UsageError(`give one model: ${JSON.stringify(positional)} or --model ${JSON.stringify(given.model)}`);
  }
  return given.model ?? positional;
}

/** The family that was asked for, if any. */
export function toFamily({ family }: OptionValues<typeof familyOption>): { family?: ModelFamily } {
  return family === undefined || family === 'auto' ? {} : { family: family as ModelFamily };
}

export function toLoadOptions(given: OptionValues<typeof loadOptions>): LoadOptions {
  const options: LoadOptions = toFamily(given);
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
