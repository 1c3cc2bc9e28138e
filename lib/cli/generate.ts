import type { CommandSpec, OptionValues } from './arguments.js';
import { statsLine } from './chat.js';
import { textArgument } from './input.js';
import { onInterrupt } from './interrupt.js';
import { generateOptions, loadOptions, loadWithProgress, toGenerateOptions, toLoadOptions } from './model-options.js';
import { note, printJson } from './output.js';

const options = {
  model: { kind: 'text', short: 'm', value: 'PATH', about: 'Checkpoint to use (default: the embedded model)' },
  ...generateOptions,
  logprobs: { kind: 'integer', about: 'With --json: log-probabilities of the tokens and of the N likeliest' },
  ...loadOptions,
  stats: { kind: 'flag', about: 'Tell tokens per second at the end' },
  json: { kind: 'flag', about: 'Print the result as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'generate',
  positionals: '[text]',
  about: `Continue a text, as it is: no chat format. Without the argument the text is read from stdin.

For base models and CodeGeeX2. Ctrl-C stops it.`,
  options,
  examples: [
    ["chatglm generate 'Once upon a time' --max-tokens 40", 'with the embedded model'],
    [
      "printf '# language: Python\\n# quick sort\\n' | chatglm generate -m ./codegeex2-6b --greedy",
      'code, as CodeGeeX2 writes it',
    ],
    ["chatglm generate 'The sky is' --max-tokens 5 --logprobs 3 --json", 'with probabilities, for programs'],
  ],
} satisfies CommandSpec;

export async function run(given: OptionValues<typeof options>, [argument]: readonly string[]): Promise<void> {
  const prompt = await textArgument(argument);
  const model = await loadWithProgress(given.model, toLoadOptions(given));
  try {
    const generation = model.generate(prompt, {
      ...toGenerateOptions(given),
      ...(given.logprobs === undefined ? {} : { logprobs: given.logprobs }),
    });
    const release = onInterrupt(() => {
      release();
      process.exitCode = 130; // what follows must not go on with half an answer
      void generation.return?.();
    });
    try {
      for await (const { text } of generation) if (!given.json) process.stdout.write(text);
    } finally {
      release();
      if (!given.json) process.stdout.write('\n');
    }
    const result = await generation.result;
    if (given.json) printJson(result);
    if (given.stats) note(statsLine(result));
  } finally {
    await model.dispose();
  }
}
