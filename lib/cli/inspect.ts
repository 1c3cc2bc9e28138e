import { stat } from 'node:fs/promises';
import { type Checkpoint, embeddedModelPath, openCheckpoint, type TensorEntry } from '../index.js';
import type { CommandSpec, OptionValues } from './arguments.js';
import { formatBytes, formatCount, formatFacts, formatTable } from './format.js';
import { familyOption, modelOption, modelPath, toFamily } from './model-options.js';
import { jsonText, print, printJson } from './output.js';

const options = {
  ...modelOption,
  ...familyOption,
  tensors: { kind: 'flag', about: 'List all tensors' },
  metadata: { kind: 'flag', about: "Show the checkpoint's own metadata" },
  json: { kind: 'flag', about: 'Print everything as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'inspect',
  positionals: '[model]',
  about: 'Show what a checkpoint holds, without loading its weights. Without a path: the embedded model.',
  options,
  examples: [
    ['chatglm inspect ./chatglm3-6b', 'show family, shape, types and size'],
    ['chatglm inspect model.gguf --tensors', 'list each tensor with its type, shape and place'],
    ['chatglm inspect model.gguf --json', 'give everything to a program'],
  ],
} satisfies CommandSpec;

export async function run(given: OptionValues<typeof options>, [argument]: readonly string[]): Promise<void> {
  const checkpoint = await openCheckpoint(modelPath(given, argument) ?? embeddedModelPath(), toFamily(given));
  const { format, config, files, tensors, metadata } = checkpoint;
  const types = countTypes(tensors);
  const parameters = sum(tensors.map(weights));
  const weightBytes = sum(tensors.map(bytes));
  const fileBytes = sum(await Promise.all(files.map(async (file) => (await stat(file)).size)));
  const pieces = checkpoint.tokenizer?.types.length;

  if (given.json) {
    const facts = { path: checkpoint.path, format, config, parameters, weightBytes, fileBytes, types, files };
    printJson({ ...facts, tokenizer: pieces === undefined ? null : { pieces }, tensors, metadata });
    return;
  }
  print(
    formatFacts([
      ['Name', config.name],
      ['Family', config.family],
      ['Format', format],
      ['Parameters', formatCount(parameters)],
      ['Weights', `${formatBytes(weightBytes)} in ${count(tensors.length, 'tensor')}`],
      ['Files', `${formatBytes(fileBytes)} in ${count(files.length, 'file')}`],
      [
        'Types',
        Object.entries(types)
          .map(([type, of]) => `${type}: ${count(of, 'tensor')}`)
          .join(', '),
      ],
      ['Context', `${formatCount(config.contextLength)} tokens`],
      ['Layers', String(config.layers)],
      ['Hidden size', `${config.hiddenSize}, FFN ${config.ffnHiddenSize}`],
      ['Heads', `${config.heads} of ${config.headSize}, ${config.kvGroups} KV groups`],
      ['Rotary', rotary(checkpoint)],
      ['Vocabulary', formatCount(config.vocabSize)],
      ['Tokenizer', pieces === undefined ? 'none: token ids only' : `${formatCount(pieces)} pieces`],
    ]),
  );
  if (given.tensors) print(`\n${tensorTable(tensors)}`);
  if (given.metadata) print(`\n${jsonText(metadata, 2)}`);
}

function rotary({ config }: Checkpoint): string {
  const scale = config.ropeScale === 1 ? '' : `, positions divided by ${config.ropeScale}`;
  return `${config.ropeDimension} dimensions, base ${formatCount(config.ropeBase)}${scale}`;
}

function tensorTable(tensors: readonly TensorEntry[]): string {
  return formatTable([
    ['Tensor', 'Type', 'Shape', 'Bytes', 'File', 'Offset'],
    ...tensors.map((tensor) => [
      tensor.name,
      tensor.type,
      tensor.shape.join(' x '),
      formatCount(bytes(tensor)),
      String(tensor.data.file),
      formatCount(tensor.data.offset),
    ]),
  ]);
}

function countTypes(tensors: readonly TensorEntry[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { type } of tensors) counts[type] = (counts[type] ?? 0) + 1;
  return counts;
}

function weights({ shape }: TensorEntry): number {
  return shape.reduce((product, size) => product * size, 1);
}

function bytes({ data, scale }: TensorEntry): number {
  return data.length + (scale?.length ?? 0);
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}
