import type { Server } from '../server.js';
import { VERSION } from '../version.js';
import { print } from './output.js';

/** Whether the help, or the version, was asked for: then it is printed, and there is nothing more to do. */
export function isAnswered(given: { help?: boolean; version?: boolean }, help: string): boolean {
  if (given.help) print(help);
  else if (given.version) print(VERSION);
  else return false;
  return true;
}

/** Loads the models. False where the server was asked to end meanwhile; throws why a model cannot be loaded. */
export async function isLoaded(server: Server): Promise<boolean> {
  try {
    await server.preload();
    return true;
  } catch (error) {
    if (server.isDraining) return false;
    await server.close();
    const { cause } = error as { cause?: unknown };
    throw cause ?? error;
  }
}

/** Calls `end` at the first SIGTERM or SIGINT, and resolves with it. A second signal ends the process at once. */
export function untilSignal(end: () => Promise<void>): Promise<void> {
  return new Promise((resolve, reject) => {
    let isEnding = false;
    const onSignal = (signal: NodeJS.Signals) => {
      // Whoever asks twice does not want to wait for answers. What a shell gives for a process that a signal has ended.
      if (isEnding) process.exit(signal === 'SIGINT' ? 130 : 143);
      isEnding = true;
      const ended = end().then(() => {
        // Whatever an interpreter or a client library left open does not keep the process.
        setTimeout(() => process.exit(), 1000).unref();
      });
      ended.then(resolve, reject);
    };
    process.on('SIGTERM', onSignal);
    process.on('SIGINT', onSignal);
  });
}
