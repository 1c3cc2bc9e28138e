#!/usr/bin/env node
import { UsageError } from './arguments.js';
import { note, print } from './output.js';

/** A command reads its own arguments. Loaded when it is used: the help does not need a model's addon. */
interface Command {
  run(args: readonly string[]): Promise<void>;
}

const commands: Readonly<Record<string, () => Promise<Command>>> = {
  serve: () => import('./serve.js'),
  key: () => import('./key-command.js'),
  worker: () => import('./worker.js'),
};

async function main(args: readonly string[]): Promise<void> {
  const [name = '', ...rest] = args;
  if (name === '--version' || name === '-v') {
    const { VERSION } = await import('../version.js');
    print(VERSION);
    return;
  }
  if (name === 'help') return await main([...rest.slice(0, 1), '--help']);
  const isCommand = Object.hasOwn(commands, name);
  const { run } = await (commands[isCommand ? name : 'serve'] as () => Promise<Command>)();
  await run(isCommand ? rest : args);
}

function fail(error: unknown): void {
  const [name = ''] = process.argv.slice(2);
  if (error instanceof UsageError) {
    const which = Object.hasOwn(commands, name) ? ` ${name}` : '';
    note(`chatglm-server: ${error.message}\nSee: chatglm-server${which} --help`);
    process.exitCode = 2;
    return;
  }
  const { code, message } = error as { code?: unknown; message?: unknown };
  note(`chatglm-server: ${message ?? error}${typeof code === 'string' ? ` (${code})` : ''}`);
  process.exitCode = code === 'ERR_INVALID_ARGUMENT' ? 2 : 1;
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // Whoever read the log has gone; the server does not end for that.
  if (error.code !== 'EPIPE') note(`chatglm-server: ${error.message}`);
});

main(process.argv.slice(2)).catch(fail);
