import type { CommandSpec, OptionValues } from './arguments.js';

import { textArgument } from './input.js';
import { onInterrupt } from './interrupt.js';
import {
  generateOptions,
  loadOptions,
  loadWithProgress,
  modelOption,
  modelPath,
  toGenerateOptions,
  toLoadOptions,
} from './model-options.js';
import { note, print, printJson, write } from './output.js';
import { statsLine } from './stats.js';

const options = {
  ...modelOption,
  ...generateOptions,
  logprobs: {
    kind: 'integer',
    least: 0,
    most: 100,
    about: 'With --json: log-probabilities of each token and of the N likeliest in its place',
  },
  ...loadOptions,
  stats: { kind: 'flag', about: 'Print the numbers of tokens and their speed at the end' },
  json: { kind: 'flag', about: 'Print the result as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'generate',
  positionals: '[text]',
  about: `Continue a text as it is, without a prompt format: for base models and CodeGeeX2.

Without the argument the text is read from stdin. Ctrl-C stops the generation.`,
  options,
  examples: [
    ["chatglm generate 'Once upon a time' --max-tokens 40", 'continue a text with the embedded model'],
    [
      "printf '# language: Python\\n# quick sort\\n' | chatglm generate -m ./codegeex2-6b --greedy",
      'write code with CodeGeeX2',
    ],
    ["chatglm generate 'The sky is' --max-tokens 5 --logprobs 3 --json", 'give probabilities to a program'],
  ],
} satisfies CommandSpec;

export async function run(given: OptionValues<typeof options>, [argument]: readonly string[]): Promise<void> {
  const prompt = await textArgument(argument);
  const model = await loadWithProgress(modelPath(given), toLoadOptions(given));
  try {
    const generation = model.generate(prompt, {
      ...toGenerateOptions(given),
      ...(given.logprobs === undefined ? {} : { logprobs: given.logprobs }),
    });
    const release = onInterrupt(() => {
      release();
      process.exitCode = 130; // what follows must not go on with half an answer
      void generation.return();
    });
    try {
      for await (const { text } of generation) if (!given.json) write(text);
    } finally {
      release();
      if (!given.json) print('');
    }
    const result = await generation.result;
    if (given.json) printJson(result);
    if (given.stats) note(statsLine(result));
  } finally {
    await model.dispose();
  }
}
