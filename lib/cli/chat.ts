import { CHAT_FAMILIES, type Chat, ChatGLMError, type ChatOptions, type ChatReply, type Model } from '../index.js';
import type { CommandSpec, OptionValues } from './arguments.js';
import { formatMilliseconds, significant } from './format.js';
import { onInterrupt } from './interrupt.js';
import { LineReader } from './line-reader.js';
import { generateOptions, loadOptions, loadWithProgress, toGenerateOptions, toLoadOptions } from './model-options.js';
import { note, printJson } from './output.js';

const options = {
  system: { kind: 'text', about: 'What the model is told first: a system message (default: none)' },
  family: {
    kind: 'text',
    value: 'FAMILY',
    choices: ['auto', ...CHAT_FAMILIES],
    about: `Format of the prompts: auto, ${CHAT_FAMILIES.join(', ')} (default: auto, the model's own)`,
  },
  ...generateOptions,
  ...loadOptions,
  stats: { kind: 'flag', about: 'Tell tokens per second after each answer' },
  json: { kind: 'flag', about: 'Print each answer as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'chat',
  positionals: '[model]',
  about: `Talk with a model: a checkpoint's directory or GGUF file, or else the embedded model.

With text piped in, each line is answered, and nothing but answers goes to stdout.
Ctrl-C stops an answer and keeps the conversation; at the prompt it leaves. The line clear forgets the conversation, and
the line stop ends it.`,
  options,
  examples: [
    ['chatglm chat', 'talk with the embedded model'],
    ['chatglm chat ./chatglm3-6b --quantization int4 --stats', 'with THUDM/chatglm3-6b in a third of the memory'],
    ["echo '你好' | chatglm chat --greedy", 'one question, one answer'],
    ["chatglm chat --system 'You are Emma.' --temperature 0.3", 'give it a part to play'],
  ],
} satisfies CommandSpec;

const commands = 'clear forgets the conversation; stop, /exit or Ctrl-C leaves.';

export async function run(given: OptionValues<typeof options>, [path]: readonly string[]): Promise<void> {
  const model = await loadWithProgress(path, toLoadOptions(given));
  const lines = new LineReader();
  try {
    const chat = model.createChat({
      ...toGenerateOptions(given),
      ...(given.system === undefined ? {} : { system: given.system }),
      ...(given.family === undefined ? {} : { family: given.family as ChatOptions['family'] }),
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
    for await (const { text } of stream) if (!json) process.stdout.write(text);
    reply = await stream.result;
  } finally {
    lines.redirectInterrupts(false);
    release();
    if (!json) process.stdout.write('\n');
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

/** What `--stats` tells. */
export function statsLine({ usage, timings }: Pick<ChatReply, 'usage' | 'timings'>): string {
  const cached = usage.cachedTokens > 0 ? `, ${usage.cachedTokens} of them cached` : '';
  return [
    `[prompt: ${usage.promptTokens} tokens${cached}, ${significant(timings.prefillTokensPerSecond)} tokens/s`,
    `first token after ${formatMilliseconds(timings.firstTokenMs)}`,
    `answer: ${usage.generatedTokens} tokens, ${significant(timings.decodeTokensPerSecond)} tokens/s]`,
  ].join('; ');
}
