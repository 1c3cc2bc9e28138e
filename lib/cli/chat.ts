import { homedir } from 'node:os';
import {
  CHAT_FAMILIES,
  ChatGLMError,
  type ChatOptions,
  type ChatStore,
  type CodeExecutor,
  type Model,
  openChatStore,
  type ResponseFormat,
  type Tool,
} from '../index.js';
import { type CommandSpec, type OptionValues, UsageError } from './arguments.js';
import { LineReader } from './line-reader.js';
import {
  generateOptions,
  loadOptions,
  loadWithProgress,
  modelOption,
  modelPath,
  toFamily,
  toLoadOptions,
} from './model-options.js';
import { complete, readLine, resumed, runCommand } from './terminal/commands.js';
import { Conversation } from './terminal/conversation.js';
import { HistoryFile, historyPath } from './terminal/history-file.js';
import type { ChatInput } from './terminal/input.js';
import { confirmed, type McpServer, readJson, startMcp, toolsFromFile } from './terminal/load-tools.js';
import { isPath, sessionsPath } from './terminal/paths.js';
import { hasColors } from './terminal/style.js';
import { tell, tellCode } from './terminal/tell.js';
import { TerminalInput } from './terminal/terminal-input.js';

const options = {
  ...modelOption,
  system: { kind: 'text', about: 'System message, which comes before the conversation (default: none)' },
  session: { kind: 'text', value: 'NAME', about: 'Go on with the session of this name, and save it after each answer' },
  tools: {
    kind: 'text',
    value: 'FILE',
    about: 'Tools that the model may call: a JSON file of them, or a module whose default export is an array of them',
  },
  mcp: {
    kind: 'texts',
    value: 'COMMAND',
    about: 'Command that starts a Model Context Protocol server with tools; may be given several times',
  },
  interpreter: {
    kind: 'text',
    value: 'LANGUAGE',
    choices: ['python', 'javascript'],
    about: 'Let the model run code: python or javascript; each piece is shown, and runs once you agree',
  },
  yes: { kind: 'flag', about: "Run the interpreter's code without asking" },
  schema: { kind: 'text', value: 'FILE', about: 'JSON schema that every answer must fit' },
  'context-overflow': {
    kind: 'text',
    value: 'POLICY',
    choices: ['error', 'drop-oldest-rounds'],
    about: 'When the context is full: error, or drop-oldest-rounds (default: error)',
  },
  format: {
    kind: 'text',
    value: 'FORMAT',
    choices: ['auto', ...CHAT_FAMILIES],
    about: `Prompt format: ${CHAT_FAMILIES.join(', ')} (default: auto, that of the model's family)`,
  },
  ...generateOptions,
  ...loadOptions,
  stats: { kind: 'flag', about: 'Print the numbers of tokens and their speed after each answer' },
  plain: { kind: 'flag', about: 'Show answers as they are, without their Markdown' },
  json: { kind: 'flag', about: 'Print each answer as one line of JSON' },
} as const satisfies CommandSpec['options'];

export const spec = {
  name: 'chat',
  positionals: '[model]',
  about: `Talk with a model: a checkpoint's directory, a GGUF file or, without a path, the embedded model.

Text that is piped in is answered line by line, and nothing but the answers goes to stdout. /help lists the commands of a
conversation, such as /system, /undo, /save and /set; //text sends a message that begins with a slash. Ctrl-C stops an
answer and keeps the conversation; at an empty prompt two of them end the program. The line "clear" forgets the
conversation, and the lines "stop", "exit" and "quit" end the program. On a terminal, control characters in answers are
shown as U+FFFD.`,
  options,
  examples: [
    ['chatglm chat', 'talk with the embedded model'],
    ['chatglm chat ./chatglm3-6b --quantization int4 --stats', 'talk with THUDM/chatglm3-6b in a third of the memory'],
    ["echo '你好' | chatglm chat --greedy", 'ask one question and get one answer'],
    ["chatglm chat --system 'You are Emma.' --temperature 0.3", 'give the model a part to play'],
    ['chatglm chat --session trip', 'go on with a conversation another day'],
    ['chatglm chat --tools ./tools.mjs', 'let the model call your functions'],
    ['chatglm chat ./my-finetune --family chatglm2', 'say the family of a model whose files do not tell'],
  ],
} satisfies CommandSpec;

type Given = OptionValues<typeof options>;

export async function run(given: Given, [argument]: readonly string[]): Promise<void> {
  const path = modelPath(given, argument);
  const format = given.format === 'auto' ? undefined : (given.format as ChatOptions['family']);
  const { family } = toFamily(given);
  if (family !== undefined && format === undefined && !CHAT_FAMILIES.some((name) => name === family)) {
    throw new UsageError(`${family} has no prompt format: use chatglm generate, or say which one with --format`);
  }
  const isInteractive = process.stdin.isTTY === true;
  if (given.interpreter === undefined && given.yes) throw new UsageError('--yes is for --interpreter');
  if (given.interpreter !== undefined && !given.yes && !isInteractive) {
    throw new UsageError('--interpreter asks before it runs code, and nobody can be asked here: --yes runs it anyway');
  }
  if (given.session !== undefined && isPath(given.session)) {
    throw new UsageError(`--session takes a name, got ${JSON.stringify(given.session)}: /save and /load take paths`);
  }
  const fileTools = given.tools === undefined ? [] : await toolsFromFile(given.tools);
  const schema = given.schema === undefined ? undefined : await readJson(given.schema);

  // A session that is damaged, or open elsewhere, is told before the model is loaded.
  let opened: Promise<ChatStore> | undefined;
  const store = () => {
    // Not before somebody wants to save or load: a store makes its folder.
    opened ??= openChatStore(sessionsPath());
    return opened;
  };
  const stored = given.session === undefined ? undefined : await (await store()).open(given.session);
  let conversation: Conversation | undefined;
  const history = new HistoryFile(isInteractive ? historyPath(process.env, homedir()) : undefined);
  const names = async () => (await (await store()).list()).map(({ name }) => name);
  // From here on the terminal is this program's: what is typed while the model is being loaded is kept for the prompt.
  const input: ChatInput = isDrawable()
    ? new TerminalInput({ history, complete: (text) => complete(text, names), hasColors: hasColors(process.stderr) })
    : new LineReader();
  const servers: McpServer[] = [];
  let model: Model | undefined;
  try {
    const saved = await stored?.load();
    const agree = async (code: string) => {
      tellCode(code);
      return await input.confirm('Run this code?');
    };
    const interpreter =
      given.interpreter === undefined ? undefined : confirmed(given.interpreter, given.yes ? undefined : agree);
    for (const command of given.mcp ?? []) servers.push(await startMcp(command));
    await history.load();
    const tools = [...fileTools, ...servers.flatMap((server) => server.tools)];

    model = await loadWithProgress(path, toLoadOptions(given));
    conversation = new Conversation({
      model,
      input,
      options: chatOptions(given, { tools, schema, interpreter, format }),
      tools,
      settings: { ...given },
      isJson: given.json === true,
      asksForCode: given.yes !== true,
      store,
    });
    if (isInteractive) greet(model);
    if (stored && given.session !== undefined) {
      await conversation.enter({ name: given.session, stored }, saved);
      // A system message of the command line counts more than the one that was saved.
      if (saved && given.system !== undefined) await conversation.setSystem(given.system);
      if (saved && isInteractive) tell(resumed(conversation, given.session));
    }
    await converse(conversation);
  } finally {
    input.close();
    await history.flush();
    if (history.problem !== undefined) tell(`chatglm: what was typed is not kept: ${history.problem}`);
    await (conversation ?? stored)?.close();
    await Promise.all(servers.map((server) => server.close()));
    await model?.dispose();
  }
}

/** Whether a prompt can be drawn and drawn again. */
function isDrawable(): boolean {
  return process.stdin.isTTY === true && process.stderr.isTTY === true && process.env.TERM !== 'dumb';
}

interface ChatParts {
  tools: readonly Tool[];
  schema: unknown;
  interpreter: CodeExecutor | undefined;
  format: ChatOptions['family'];
}

function chatOptions(given: Given, { tools, schema, interpreter, format }: ChatParts): ChatOptions {
  const policy = given['context-overflow'] as 'error' | 'drop-oldest-rounds' | undefined;
  return {
    family: format,
    ...(given.system === undefined ? {} : { system: given.system }),
    ...(tools.length === 0 ? {} : { tools }),
    ...(interpreter === undefined ? {} : { interpreter }),
    ...(schema === undefined ? {} : { responseFormat: { type: 'json_schema', schema } as ResponseFormat }),
    ...(policy === undefined ? {} : { contextOverflow: policy }),
  };
}

function greet({ info }: Model): void {
  tell(`${info.name} on ${info.device}. Type a message; /help lists commands, /exit or Ctrl-D leaves.`);
}

async function converse(conversation: Conversation): Promise<void> {
  const { input } = conversation;
  let editing: string | undefined;
  for (;;) {
    const typed = await input.next(editing === undefined ? 'You: ' : 'Edit: ', editing);
    if (typed === undefined) return;
    const wasEditing = editing !== undefined;
    editing = undefined;
    const { text, isQuoted } = typed;
    if (text.trim() === '') continue;
    try {
      const line = isQuoted ? { kind: 'message' as const, text } : readLine(text);
      if (line.kind === 'message') {
        await (wasEditing ? conversation.sayInstead(line.text) : conversation.say(line.text));
        continue;
      }
      const outcome = await runCommand(conversation, line.name, line.argument);
      if (outcome === 'leave') return;
      editing = outcome?.edit;
    } catch (error) {
      if (!isBearable(error, input)) throw error;
      const { message, code } = error as Error & { code?: unknown };
      tell(`chatglm: ${message}${typeof code === 'string' ? ` (${code})` : ''}`);
      if (code === 'ERR_CONTEXT_OVERFLOW') tell('[/clear forgets the conversation, /undo the last message]');
      // Whoever pipes in a command that is wrong gets the answers to the other lines, and notices.
      if (!input.isInteractive) process.exitCode = 1;
    }
  }
}

/** A conversation goes on after an error, say of a message that was too long; a script must notice it. */
function isBearable(error: unknown, input: ChatInput): boolean {
  if (error instanceof UsageError) return true;
  if (error instanceof ChatGLMError && error.code === 'ERR_DISPOSED') return false;
  return input.isInteractive && error instanceof Error;
}
