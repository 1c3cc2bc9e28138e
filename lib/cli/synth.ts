import { type ShapeName, SYNTHETIC_TYPES, type SyntheticType, shapes, synthesize } from '../index.js';
import type { CommandSpec, OptionValues } from './arguments.js';
import { formatBytes } from './format.js';
import { withInterruptSignal } from './interrupt.js';
import { note, printJson } from './output.js';
import { withProgress } from './progress.js';

/** What a random model looks like; the benchmark takes the same. */
export const shapeOptions = {
  shape: {
    kind: 'text',
    value: 'SHAPE',
    choices: Object.keys(shapes),
    about: `Shape of the model: ${Object.keys(shapes).join(', ')} (default: 6b)`,
  },
  type: {
    kind: 'text',
    short: 't',
    value: 'TYPE',
    choices: SYNTHETIC_TYPES,
    about: `Type of the matrices: ${SYNTHETIC_TYPES.join(', ')} (default: q4_0)`,
  },
} as const satisfies CommandSpec['options'];

const options = {
  ...shapeOptions,
  seed: { kind: 'integer', least: 0, about: 'Seed: the same one gives the same file (default: 0)' },
  force: { kind: 'flag', short: 'f', about: 'Overwrite an existing file' },
  json: { kind: 'flag', about: 'Print { path, bytes } of the new file as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'synth',
  positionals: '<target>',
  about: 'Write a GGUF file of random weights, to measure with where no real checkpoint is at hand.',
  options,
  examples: [
    ['chatglm synth 6b-q4_0.gguf --shape 6b --type q4_0', 'write a file as large as ChatGLM3-6B in 4 bits'],
    ['chatglm synth micro.gguf --shape micro --type f16', 'write the smallest file, for tests'],
  ],
} satisfies CommandSpec;

export async function run(given: OptionValues<typeof options>, paths: readonly string[]): Promise<void> {
  const [target] = paths as [string];
  const { path, bytes } = await withInterruptSignal((signal) =>
    withProgress('Writing', (onProgress) =>
      synthesize(target, {
        shape: given.shape as ShapeName | undefined,
        type: given.type as SyntheticType | undefined,
        seed: given.seed,
        overwrite: given.force === true,
        signal,
        onProgress,
      }),
    ),
  );
  if (given.json) printJson({ path, bytes });
  else note(`${path}: ${formatBytes(bytes)}`);
}
