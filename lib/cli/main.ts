#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { type CommandSpec, helpText, type OptionValues, parseArguments, suggestion, UsageError } from './arguments.js';
import { note, print } from './output.js';

interface Command {
  spec: CommandSpec;
  // Each command's run() takes the values of its own options; which ones those are is lost in the list.
  run(options: OptionValues<CommandSpec['options']>, positionals: readonly string[]): Promise<void>;
}

/** A command whose arguments another program reads. */
interface PassedOnCommand {
  runAsGiven(args: readonly string[]): Promise<void>;
}

// Loaded when they are used: the list of commands does not need the addon.
const commands: Readonly<Record<string, { summary: string; load: () => Promise<Command | PassedOnCommand> }>> = {
  chat: { summary: 'Talk with a model', load: () => import('./chat.js') },
  generate: { summary: 'Continue a text', load: () => import('./generate.js') },
  tokenize: { summary: 'Show the token ids of a text, or the text of token ids', load: () => import('./tokenize.js') },
  inspect: { summary: 'Show what a checkpoint holds', load: () => import('./inspect.js') },
  convert: { summary: 'Write a checkpoint as a GGUF file', load: () => import('./convert.js') },
  synth: { summary: 'Write a GGUF file of random weights', load: () => import('./synth.js') },
  bench: { summary: 'Measure speed and memory', load: () => import('./bench.js') },
  system: { summary: 'Show the devices of this machine', load: () => import('./system.js') },
  serve: { summary: "Serve models to OpenAI's clients and browsers", load: () => import('./serve.js') },
};

const overview = [
  'Usage: chatglm <command> [options]',
  '',
  'ChatGLM models in Node.js.',
  '',
  'Commands:',
  ...Object.entries(commands).map(([name, { summary }]) => `  ${name.padEnd(10)}${summary}`),
  '',
  'Options:',
  '  -h, --help     Show this help, or that of a command: chatglm chat --help',
  '  -v, --version  Show the version',
  '',
  'Exit codes: 0, done; 1, failed; 2, the command line is wrong; 130, ended by Ctrl-C.',
].join('\n');

async function main(args: readonly string[]): Promise<void> {
  const [name, ...rest] = args;
  if (name === '--version' || name === '-v') return print(version());
  if (name === undefined || name === '--help' || name === '-h' || (name === 'help' && rest.length === 0)) {
    print(overview);
    return;
  }
  if (name === 'help') return await main([...rest.slice(0, 1), '--help']);
  if (!Object.hasOwn(commands, name)) {
    const what = name.startsWith('-') ? 'option' : 'command';
    throw new UsageError(`unknown ${what} ${name}${suggestion(name, Object.keys(commands))}`);
  }
  const command = await (commands[name] as NonNullable<(typeof commands)[string]>).load();
  if ('runAsGiven' in command) return await command.runAsGiven(rest);
  const { spec, run } = command;
  const { options, positionals, wantsHelp } = parseArguments(spec, rest);
  if (wantsHelp) print(helpText(spec));
  else await run(options, positionals);
}

function version(): string {
  const file = path.join(__dirname, '..', '..', 'package.json');
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}

function fail(error: unknown): void {
  if (error instanceof UsageError) {
    const command = process.argv[2];
    const which = command !== undefined && Object.hasOwn(commands, command) ? ` ${command}` : '';
    note(`chatglm: ${error.message}\nSee: chatglm${which} --help`);
    process.exitCode = 2;
  } else {
    const { code, message } = error as { code?: unknown; message?: unknown };
    note(`chatglm: ${message ?? error}${typeof code === 'string' ? ` (${code})` : ''}`);
    process.exitCode = exitCode(code);
  }
}

function exitCode(code: unknown): number {
  // What depends on the checkpoint, its context length say, shows late that the command line is wrong.
  if (code === 'ERR_INVALID_ARGUMENT') return 2;
  // What a shell gives for a process that Ctrl-C has ended.
  return code === 'ERR_ABORTED' ? 130 : 1;
}

// `chatglm … | head` closes the pipe early: that is no error, and nobody is left to read on. A model that computes for
// nobody would keep the process for minutes, so that setting an exit code is not enough.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') note(`chatglm: ${error.message}`);
  process.exit(error.code === 'EPIPE' ? 0 : 1);
});

main(process.argv.slice(2)).catch(fail);
