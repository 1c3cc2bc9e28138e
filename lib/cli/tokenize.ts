import { embeddedModelPath, loadTokenizer } from '../index.js';
import { type CommandSpec, type OptionValues, UsageError } from './arguments.js';
import { textArgument } from './input.js';
import { familyOption, modelPath, toFamily } from './model-options.js';
import { print, printJson } from './output.js';

const options = {
  model: {
    kind: 'text',
    short: 'm',
    value: 'PATH',
    about: 'Checkpoint: a directory, a GGUF file or a tokenizer.model (default: the embedded model)',
  },
  ...familyOption,
  decode: { kind: 'flag', about: 'Show the text of ids, which are separated by spaces or commas' },
  count: { kind: 'flag', about: 'Print only the number of tokens' },
  json: { kind: 'flag', about: 'Print { count, ids, text } as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'tokenize',
  positionals: '[text]',
  about: `Show the token ids of a text. Without the argument the text is read from stdin.

The text is encoded as it is: nothing in it becomes a special token, and no special tokens are added.`,
  options,
  examples: [
    ["chatglm tokenize '你好'", 'show the ids that the embedded model gives'],
    ['chatglm tokenize -m ./chatglm3-6b --count < book.txt', 'count the tokens of a file'],
    ["chatglm tokenize -m ./chatglm3-6b --decode '36474 54591'", 'show the text of ids'],
  ],
} satisfies CommandSpec;

export async function run(given: OptionValues<typeof options>, [argument]: readonly string[]): Promise<void> {
  const input = await textArgument(argument);
  const tokenizer = await loadTokenizer(modelPath(given) ?? embeddedModelPath(), toFamily(given));
  const ids = given.decode ? readIds(input, tokenizer.tokenCount) : tokenizer.encode(input);
  const text = given.decode ? tokenizer.decode(ids) : input;
  if (given.json) printJson({ count: ids.length, ids: [...ids], text });
  else if (given.count) print(String(ids.length));
  else print(given.decode ? text : ids.join(' '));
}

function readIds(text: string, tokenCount: number): number[] {
  const parts = text.split(/[\s,[\]]+/).filter((part) => part !== '');
  return parts.map((part) => {
    if (!/^\d{1,9}$/.test(part)) throw new UsageError(`--decode takes token ids, got ${JSON.stringify(part)}`);
    const id = Number(part);
    if (id >= tokenCount) {
      // Which ids there are, the tokenizer tells, not the command line.
      throw new Error(`this tokenizer has no token ${id}; its ids are 0 to ${tokenCount - 1}`);
    }
    return id;
  });
}
