import { createKey, hashOfKey, toServerKey } from '../access/key.js';
import { keyLine } from '../access/key-file.js';
import { type OptionSpecs, optionLines, readArguments, UsageError } from './arguments.js';
import { note, print } from './output.js';
import { isAnswered } from './running.js';

const options = {
  weight: {
    kind: 'text',
    value: 'X',
    about: 'So many times the tokens of a key of weight 1 while requests wait (default: 1)',
  },
  requests: { kind: 'integer', least: 1, about: 'Most requests a minute (default: no limit)' },
  tokens: { kind: 'integer', least: 1, about: 'Most tokens a minute, of prompts and answers (default: no limit)' },
  parallel: { kind: 'integer', least: 1, about: 'Most requests that are answered at a time (default: no limit)' },
  models: { kind: 'text', value: 'ID,ID', about: 'Models that may be asked (default: all)' },
  expires: { kind: 'text', value: 'DATE', about: 'When the key ends, such as 2030-12-31 (default: never)' },
  help: { kind: 'flag', short: 'h', about: 'Show this help' },
} as const satisfies OptionSpecs;

const help = [
  'Usage: chatglm-server key NAME [options]',
  '',
  'Makes a key. The key goes to stderr, once, for whoever is to use it; its line for the file of keys, which has its hash',
  'only, goes to stdout.',
  '',
  'Options:',
  ...optionLines(options),
  '',
  'Examples:',
  '  # a key for anna, and its line at the end of the file; kill -HUP has a running server read it',
  '  chatglm-server key anna --tokens 100000 >> keys.txt',
  '  chatglm-server --keys keys.txt',
].join('\n');

export async function run(args: readonly string[]): Promise<void> {
  const { options: given, positionals } = readArguments(options, args);
  if (isAnswered(given, help)) return;
  const [name, extra] = positionals;
  if (name === undefined) throw new UsageError('NAME is missing: whose key it is');
  if (extra !== undefined) throw new UsageError(`unexpected argument ${JSON.stringify(extra)}`);
  const key = createKey();
  const { weight, requests, tokens, parallel, models, expires } = given;
  // Checks what the file's reader would refuse.
  toServerKey('the key', {
    name,
    key,
    weight: weight === undefined ? undefined : Number(weight),
    requestsPerMinute: requests,
    tokensPerMinute: tokens,
    parallel,
    models: models?.split(','),
    expires,
  });
  note(`The key of ${name}, which is shown this once: ${key}`);
  print(keyLine(name, hashOfKey(key), { weight, requests, tokens, parallel, models, expires }));
}
