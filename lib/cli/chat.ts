import { CHAT_FAMILIES, type Chat, ChatGLMError, type ChatOptions, type ChatReply, type Model } from '../index.js';
import { type CommandSpec, type OptionValues, UsageError } from './arguments.js';
import { formatMilliseconds, significant } from './format.js';
import { onInterrupt } from './interrupt.js';
import { LineReader } from './line-reader.js';
import {
  generateOptions,
  loadOptions,
  loadWithProgress,
  modelOption,
  modelPath,
  toFamily,
  toGenerateOptions,
  toLoadOptions,
} from './model-options.js';
import { note, print, printJson, write } from './output.js';

const options = {
  ...modelOption,
  system: { kind: 'text', about: 'System message, which comes before the conversation (default: none)' },
  format: {
    kind: 'text',
    value: 'FORMAT',
    choices: ['auto', ...CHAT_FAMILIES],
    about: `Prompt format: ${CHAT_FAMILIES.join(', ')} (default: auto, that of the model's family)`,
  },
  ...generateOptions,
  ...loadOptions,
  stats: { kind: 'flag', about: 'Print the numbers of tokens and their speed after each answer' },
  json: { kind: 'flag', about: 'Print each answer as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'chat',
  positionals: '[model]',
  about: `Talk with a model: a checkpoint's directory, a GGUF file or, without a path, the embedded model.

Text that is piped in is answered line by line, and nothing but the answers goes to stdout. Ctrl-C stops an answer and
keeps the conversation; at the prompt Ctrl-C ends the program. The line "clear" forgets the conversation, and the line
"stop" ends the program. On a terminal, control characters in answers are shown as U+FFFD.`,
  options,
  examples: [
    ['chatglm chat', 'talk with the embedded model'],
    ['chatglm chat ./chatglm3-6b --quantization int4 --stats', 'talk with THUDM/chatglm3-6b in a third of the memory'],
    ["echo '你好' | chatglm chat --greedy", 'ask one question and get one answer'],
    ["chatglm chat --system 'You are Emma.' --temperature 0.3", 'give the model a part to play'],
    ['chatglm chat ./my-finetune --family chatglm2', 'say the family of a model whose files do not tell'],
  ],
} satisfies CommandSpec;

const commands = 'clear forgets the conversation; stop, /exit or Ctrl-C leaves.';

export async function run(given: OptionValues<typeof options>, [argument]: readonly string[]): Promise<void> {
  const path = modelPath(given, argument);
  const format = given.format === 'auto' ? undefined : (given.format as ChatOptions['family']);
  const { family } = toFamily(given);
  if (family !== undefined && format === undefined && !CHAT_FAMILIES.some((name) => name === family)) {
    throw new UsageError(`${family} has no prompt format: use chatglm generate, or say which one with --format`);
  }
  const model = await loadWithProgress(path, toLoadOptions(given));
  const lines = new LineReader();
  try {
    const chat = model.createChat({
      ...toGenerateOptions(given),
      ...(given.system === undefined ? {} : { system: given.system }),
      family: format,
    });
    if (lines.isInteractive) greet(model);
    await converse(chat, lines, given);
  } finally {
    lines.close();
    await model.dispose();
  }
}

function greet({ info }: Model): void {
  note(`${info.name} on ${info.device}. Type a message; ${commands}`);
}

async function converse(chat: Chat, lines: LineReader, given: OptionValues<typeof options>): Promise<void> {
  for (;;) {
    const line = await lines.next('You: ');
    if (line === undefined) {
      if (lines.isInteractive) note('');
      return;
    }
    const input = line.trim();
    if (input === 'stop' || input === '/exit') return;
    if (input === '') continue;
    if (input === 'clear') {
      chat.history = chat.history.filter(({ role }) => role === 'system');
      // As THUDM's demo does; nothing happens where stdout is no terminal.
      if (lines.isInteractive) console.clear();
      continue;
    }
    try {
      await answer(chat, line, lines, given);
    } catch (error) {
      // A conversation goes on after an error, say of a message that was too long; a script must notice it.
      if (!lines.isInteractive || !(error instanceof ChatGLMError) || error.code === 'ERR_DISPOSED') throw error;
      note(`chatglm: ${error.message} (${error.code})`);
    }
  }
}

async function answer(
  chat: Chat,
  input: string,
  lines: LineReader,
  { json, stats }: OptionValues<typeof options>,
): Promise<void> {
  const stream = chat.stream(input);
  const release = onInterrupt(() => {
    // The second Ctrl-C ends the process: the first one did not help.
    release();
    void stream.return();
  });
  lines.redirectInterrupts(true);
  let reply: ChatReply;
  try {
    for await (const { text } of stream) if (!json) write(text);
    reply = await stream.result;
  } finally {
    lines.redirectInterrupts(false);
    release();
    if (!json) print('');
  }
  if (json) {
    const { text, finishReason, usage, timings, seed } = reply;
    printJson({ text, finishReason, usage, timings, seed });
  } else if (reply.text === '' && reply.messages.length > 0 && reply.messages[0]?.metadata) {
    note(`[the model called ${reply.messages[0].metadata}: tools are for the API]`);
  }
  if (reply.finishReason === 'length')
    note('[the answer was cut off: no more tokens were allowed, or the context is full]');
  if (stats) note(statsLine(reply));
}

/** What `--stats` prints. */
export function statsLine({ usage, timings }: Pick<ChatReply, 'usage' | 'timings'>): string {
  const cached = usage.cachedTokens > 0 ? `, ${usage.cachedTokens} of them cached` : '';
  return [
    `[prompt: ${usage.promptTokens} tokens${cached}, ${significant(timings.prefillTokensPerSecond)} tokens/s`,
    `first token after ${formatMilliseconds(timings.firstTokenMs)}`,
    `answer: ${usage.generatedTokens} tokens, ${significant(timings.decodeTokensPerSecond)} tokens/s]`,
  ].join('; ');
}
