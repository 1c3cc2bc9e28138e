import { readdir } from 'node:fs/promises';
import { type OptionSpec, suggestion, UsageError } from '../arguments.js';
import { formatCount } from '../format.js';
import { statsLine } from '../stats.js';
import { type Conversation, settingOptions } from './conversation.js';
import { expandHome, isPath } from './paths.js';
import { tell, tellLine, tellRow } from './tell.js';
import type { Completion } from './terminal-input.js';

/** What a command asks of the loop that reads messages. */
export type Outcome = 'leave' | { edit: string } | undefined;

interface Command {
  /** What stands behind the name. */
  takes?: string;
  about: string;
  run(conversation: Conversation, argument: string): Promise<Outcome> | Outcome;
}

const leave: Command['run'] = () => 'leave';

/** The commands of a chat, in the order of their help. */
export const commands: Readonly<Record<string, Command>> = {
  help: { about: 'Show this', run: showHelp },
  system: { takes: '[text]', about: 'Show or set the system message; "" takes it away', run: runSystem },
  history: { about: 'Show the conversation', run: showHistory },
  undo: { about: 'Take the last message and its answer back', run: runUndo },
  regenerate: { about: 'Answer the last message again', run: (chat) => chat.regenerate() as Promise<undefined> },
  edit: { takes: '[text]', about: 'Change the last message, and answer that', run: runEdit },
  save: { takes: '[name]', about: 'Save the conversation, and keep saving it; a path with a / gets a copy', run: save },
  load: { takes: 'name', about: 'Go on with a saved conversation', run: load },
  sessions: { about: 'List the saved conversations', run: showSessions },
  tools: { about: 'List the tools that the model may call', run: showTools },
  stats: { about: 'Show tokens and speed of the last answer, and how full the context is', run: showStats },
  set: { takes: '[option [value]]', about: 'Show or change an option of answers; default takes it back', run: runSet },
  clear: { about: 'Forget the conversation; the system message stays', run: clear },
  stop: { about: 'Leave; /exit, /quit, /bye and Ctrl-D do, too', run: leave },
};

const aliases: Readonly<Record<string, string>> = { exit: 'stop', quit: 'stop', bye: 'stop' };
/** Words that are commands without a slash, in any letter case. */
const bareWords = new Set(['exit', 'quit', 'stop', 'clear']);

/** What a line is: a message for the model, or a command, known or not. */
export type Line = { kind: 'message'; text: string } | { kind: 'command'; name: string; argument: string };

export function readLine(text: string): Line {
  const trimmed = text.trim();
  if (bareWords.has(trimmed.toLowerCase())) return { kind: 'command', name: trimmed.toLowerCase(), argument: '' };
  if (trimmed.startsWith('//')) return { kind: 'message', text: text.replace('//', '/') };
  if (!trimmed.startsWith('/')) return { kind: 'message', text };
  const [, name = '', argument = ''] = /^\/(\S*)\s*(.*)$/s.exec(trimmed) ?? [];
  return { kind: 'command', name, argument };
}

/**
 * Runs a command.
 *
 * @throws {UsageError} for a command that there is not, or that was used wrongly.
 */
export async function runCommand(conversation: Conversation, name: string, argument: string): Promise<Outcome> {
  const known = aliases[name.toLowerCase()] ?? name.toLowerCase();
  if (!Object.hasOwn(commands, known)) {
    const near = suggestion(name, [...Object.keys(commands), ...Object.keys(aliases)], '/');
    throw new UsageError(
      `there is no command /${name}${near || ': /help lists them.'} To send this as a message, begin it with //`,
    );
  }
  return await (commands[known] as Command).run(conversation, argument);
}

function showHelp(): undefined {
  const rows = Object.entries(commands).map(([name, { takes, about }]): [string, string] => [
    `/${name}${takes ? ` ${takes}` : ''}`,
    about,
  ]);
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  for (const [left, about] of rows) tellRow(left.padEnd(width), about);
  tell('');
  tell(
    'exit, quit, stop and clear need no slash. //text sends /text. A line """ begins and ends a message of several lines; ' +
      'Alt-Enter or Ctrl-J breaks a line. Tab completes, Up and Ctrl-R find what was typed before, Ctrl-C stops an answer.',
  );
}

async function runSystem(conversation: Conversation, argument: string): Promise<undefined> {
  if (argument !== '') await conversation.setSystem(argument === '""' ? undefined : argument);
  const { system } = conversation.chat;
  tell(system === undefined ? 'There is no system message.' : `System message: ${system}`);
}

function showHistory({ chat }: Conversation): undefined {
  if (chat.history.length === 0) tell('Nothing was said yet.');
  const names = { system: 'System', user: 'You', assistant: 'Model', observation: 'Tool' };
  for (const { role, content, metadata } of chat.history) {
    tellLine(`${names[role]}: ${metadata ? `→ ${metadata} ` : ''}${content.trim()}`);
  }
}

async function runUndo(conversation: Conversation): Promise<undefined> {
  const [message] = await conversation.undo();
  if (!message) throw new UsageError('there is no message to take back');
  tellLine(`Taken back: ${message.content}`);
}

async function runEdit(conversation: Conversation, argument: string): Promise<Outcome> {
  const last = conversation.chat.history.findLast(({ role }) => role === 'user');
  if (!last) throw new UsageError('there is no message to edit');
  if (argument === '') {
    if (!conversation.input.isInteractive) throw new UsageError('/edit needs the text');
    // At the prompt a message with a slash would be a command.
    return { edit: last.content.replace(/^\//, '//') };
  }
  await conversation.sayInstead(argument);
  return undefined;
}

async function save(conversation: Conversation, argument: string): Promise<undefined> {
  const name = argument || conversation.sessionName;
  if (name === undefined) throw new UsageError('/save needs a name');
  if (conversation.chat.history.length === 0) throw new UsageError('there is nothing to save yet');
  if (await conversation.saveAs(name)) tell(`Saved as ${name}.`);
}

async function load(conversation: Conversation, argument: string): Promise<undefined> {
  if (argument === '') throw new UsageError('/load needs a name: /sessions lists them');
  await conversation.load(argument);
  tell(resumed(conversation, argument));
}

/** What is said when a conversation goes on. */
export function resumed({ chat }: Conversation, name: string): string {
  const count = chat.history.length;
  return `${name}: ${count} ${count === 1 ? 'message' : 'messages'}. /history shows them.`;
}

async function showSessions({ store, sessionName }: Conversation): Promise<undefined> {
  const sessions = await (await store()).list();
  if (sessions.length === 0) tell('Nothing was saved yet: /save name');
  for (const { name, title, messages, updated, damaged } of sessions) {
    const when = updated.toISOString().slice(0, 16).replace('T', ' ');
    const about = damaged !== undefined ? `damaged: ${damaged}` : `${messages} messages · ${title}`;
    tellLine(`${name === sessionName ? '*' : '-'} ${name} · ${when} · ${about}`);
  }
}

function showTools({ tools }: Conversation): undefined {
  if (tools.length === 0) tell('The model has no tools: see --tools and --mcp.');
  for (const { name, description, execute } of tools) {
    tell(`${name}${description ? `: ${description}` : ''}${execute ? '' : ' (only shown, not carried out)'}`);
  }
}

async function showStats({ lastReply, chat, model }: Conversation): Promise<undefined> {
  const { contextLength } = model.info;
  if (lastReply) tell(statsLine(lastReply));
  const used = chat.countTokens();
  const share = `${Math.round((used / contextLength) * 100)}%`;
  const of = `${formatCount(used)} of ${formatCount(contextLength)}`;
  tell(`[${chat.history.length} messages; ${of} tokens of context used, ${share}]`);
}

function runSet(conversation: Conversation, argument: string): undefined {
  const [, name = '', value = ''] = /^(\S*)\s*(.*)$/s.exec(argument) ?? [];
  const show = (option: string) => {
    const given = (conversation.settings as Record<string, unknown>)[option];
    const { kind, about } = settingOptions[option as keyof typeof settingOptions] as OptionSpec;
    const text = given === undefined ? 'default' : kind === 'flag' ? (given ? 'on' : 'off') : JSON.stringify(given);
    tell(`${option} ${text}: ${about}`);
  };
  if (name === '') {
    for (const option of Object.keys(settingOptions)) show(option);
    return;
  }
  if (value !== '') conversation.set(name, value === 'default' ? undefined : value);
  else if (!Object.hasOwn(settingOptions, name)) conversation.set(name, undefined);
  show(name);
}

async function clear(conversation: Conversation): Promise<undefined> {
  await conversation.clear();
  // As THUDM's demo does; nothing happens where stdout is no terminal.
  if (conversation.input.isInteractive) console.clear();
}

/** What Tab offers: names of commands, options, sessions and files. */
export async function complete(text: string, sessionNames: () => Promise<string[]>): Promise<Completion> {
  const none = { length: 0, candidates: [] };
  if (!text.startsWith('/') || text.startsWith('//') || text.includes('\n')) return none;
  const [, name = '', space = '', rest = ''] = /^\/(\S*)(\s*)(.*)$/.exec(text) ?? [];
  if (space === '') {
    const all = [...Object.keys(commands), ...Object.keys(aliases)].map((command) => `/${command}`).sort();
    return { length: text.length, candidates: all.filter((command) => command.startsWith(text)) };
  }
  if (name === 'set') {
    const [option = '', ...values] = rest.split(/\s+/);
    if (values.length > 1) return none;
    if (values.length === 0) return { length: option.length, candidates: begin(Object.keys(settingOptions), option) };
    const spec = Object.hasOwn(settingOptions, option)
      ? (settingOptions[option as keyof typeof settingOptions] as OptionSpec)
      : undefined;
    const [value = ''] = values;
    return {
      length: value.length,
      candidates: begin([...(spec?.kind === 'flag' ? ['on', 'off'] : []), 'default'], value),
    };
  }
  if (name !== 'load' && name !== 'save') return none;
  if (isPath(rest) || /^[.~]/.test(rest)) return await completePath(rest);
  return { length: rest.length, candidates: begin(await sessionNames(), rest) };
}

function begin(candidates: readonly string[], prefix: string): string[] {
  return candidates.filter((candidate) => candidate.startsWith(prefix));
}

async function completePath(typed: string): Promise<Completion> {
  if (typed === '~' || typed === '.' || typed === '..') return { length: 0, candidates: ['/'] };
  const folder = typed.slice(0, typed.lastIndexOf('/') + 1);
  const name = typed.slice(folder.length);
  const entries = await readdir(folder === '' ? '.' : expandHome(folder), { withFileTypes: true }).catch(() => []);
  const candidates = entries
    .filter((entry) => entry.name.startsWith(name) && (name.startsWith('.') || !entry.name.startsWith('.')))
    .map((entry) => folder + entry.name + (entry.isDirectory() ? '/' : ''));
  return { length: typed.length, candidates: candidates.sort() };
}
