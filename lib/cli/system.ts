import { systemInfo } from '../index.js';
import type { CommandSpec, OptionValues } from './arguments.js';
import { formatBytes, formatFacts } from './format.js';
import { print, printJson } from './output.js';

const options = {
  json: { kind: 'flag', about: 'Print everything as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'system',
  about: 'Show what this machine can compute with: the kernels for its CPU, and its GPUs or why none can be used.',
  options,
  examples: [
    ['chatglm system', 'list the devices that --device takes'],
    ['chatglm system --json', 'give the same to a program'],
  ],
} satisfies CommandSpec;

export async function run(given: OptionValues<typeof options>): Promise<void> {
  const system = systemInfo();
  if (given.json) return printJson(system);
  const gpus = system.gpus.map(({ name, computeCapability, totalBytes, freeBytes }, index) => {
    const memory = `${formatBytes(freeBytes)} of ${formatBytes(totalBytes)} free`;
    return [`cuda:${index}`, `${name}, compute capability ${computeCapability}, ${memory}`] as const;
  });
  print(
    formatFacts([
      ['cpu', `${system.kernels} kernels, ${system.cores} cores`],
      ...(gpus.length > 0 ? gpus : [['cuda', system.cuda] as const]),
    ]),
  );
}
