import { text } from 'node:stream/consumers';
import { UsageError } from './arguments.js';

/**
 * The text that a command works on: its argument, or else what is piped in.
 *
 * @throws {UsageError} when there is neither.
 */
export async function textArgument(argument: string | undefined): Promise<string> {
  if (argument !== undefined) return argument;
  if (process.stdin.isTTY) throw new UsageError('give the text as an argument, or pipe it in');
  return await text(process.stdin);
}
