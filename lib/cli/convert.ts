import { CONVERSION_TYPES, type ConversionType, convertCheckpoint } from '../index.js';
import { type CommandSpec, type OptionValues, UsageError } from './arguments.js';
import { formatBytes } from './format.js';
import { withInterruptSignal } from './interrupt.js';
import { familyOption, toFamily } from './model-options.js';
import { note, printJson } from './output.js';
import { withProgress } from './progress.js';

const options = {
  type: {
    kind: 'text',
    short: 't',
    value: 'TYPE',
    choices: CONVERSION_TYPES,
    about: 'Type of the matrices: f16, q8_0 or q4_0 (required)',
  },
  ...familyOption,
  name: { kind: 'text', about: "What the new file calls the model (default: the checkpoint's name)" },
  force: { kind: 'flag', short: 'f', about: 'Overwrite an existing file' },
  json: { kind: 'flag', about: 'Print { path, bytes } of the new file as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'convert',
  positionals: '<source> <target>',
  about: `Write any readable checkpoint as one GGUF file, which llama.cpp reads too.

Weights that are quantized already are copied exactly where the type allows that. The file states the model's family.`,
  options,
  examples: [
    [
      'chatglm convert ./chatglm3-6b chatglm3-6b-q4_0.gguf --type q4_0',
      'turn a directory of 12 GB into a file of 3.5 GB',
    ],
    ['chatglm convert ./chatglm2-6b-int4 chatglm2-6b.gguf -t q4_0', "keep THUDM's int4 weights as they are"],
  ],
} satisfies CommandSpec;

export async function run(given: OptionValues<typeof options>, paths: readonly string[]): Promise<void> {
  const [source, target] = paths as [string, string];
  if (given.type === undefined) throw new UsageError(`--type is missing: one of ${CONVERSION_TYPES.join(', ')}`);
  const type = given.type as ConversionType;
  const { path, bytes } = await withInterruptSignal((signal) =>
    withProgress('Converting', (onProgress) =>
      convertCheckpoint(source, target, {
        type,
        name: given.name,
        ...toFamily(given),
        overwrite: given.force === true,
        signal,
        onProgress,
      }),
    ),
  );
  if (given.json) printJson({ path, bytes });
  else note(`${path}: ${formatBytes(bytes)}`);
}
