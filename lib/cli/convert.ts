import { CONVERSION_TYPES, type ConversionType, convertCheckpoint } from '../index.js';
import { type CommandSpec, type OptionValues, UsageError } from './arguments.js';
import { formatBytes } from './format.js';
import { withInterruptSignal } from './interrupt.js';
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
  name: { kind: 'text', about: "What the new file calls the model (default: the checkpoint's name)" },
  force: { kind: 'flag', short: 'f', about: 'Overwrite an existing file' },
  json: { kind: 'flag', about: 'Print { path, bytes } of the new file as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'convert',
  positionals: '<source> <target>',
  about: `Write any readable checkpoint as one GGUF file, which llama.cpp reads too.

Weights that THUDM or somebody else has quantized already are taken over exactly where the type allows it.`,
  options,
  examples: [
    ['chatglm convert ./chatglm3-6b chatglm3-6b-q4_0.gguf --type q4_0', 'a 12 GB directory to 3.5 GB'],
    ['chatglm convert ./chatglm2-6b-int4 chatglm2-6b.gguf -t q4_0', "THUDM's int4 without loss"],
  ],
} satisfies CommandSpec;

export async function run(given: OptionValues<typeof options>, paths: readonly string[]): Promise<void> {
  const [source, target] = paths as [string, string];
  if (given.type === undefined) throw new UsageError(`--type is missing: one of ${CONVERSION_TYPES.join(', ')}`);
  const type = given.type as ConversionType;
  const named = given.name === undefined ? {} : { name: given.name };
  const { path, bytes } = await withInterruptSignal((signal) =>
    withProgress('Converting', (onProgress) =>
      convertCheckpoint(source, target, { type, ...named, overwrite: given.force === true, signal, onProgress }),
    ),
  );
  if (given.json) printJson({ path, bytes });
  else note(`${path}: ${formatBytes(bytes)}`);
}
