import { invalidArgument } from './errors.js';
import { messageOf } from './options.js';

/** Far more than a schema needs, and far less than what exhausts the stack of those that walk through it. */
const MOST_LEVELS = 100;

/**
 * A copy of a value that shares nothing with it, as JSON has it; undefined for what JSON leaves out.
 *
 * @param name How errors call the value.
 * @param mostText The most UTF-16 units that the value may have as JSON. Default: any number.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT for what is no JSON, too long, or nested more than 100 levels deep.
 */
export function plainCopy(value: unknown, name: string, mostText = Number.POSITIVE_INFINITY): unknown {
  let json: string | undefined;
  try {
    json = JSON.stringify(value);
  } catch (cause) {
    // A cycle, a bigint, a getter that throws, or nesting that exhausts the stack.
    throw invalidArgument(`${name} cannot be written as JSON: ${messageOf(cause)}`, cause);
  }
  if (json === undefined) return undefined;
  if (json.length > mostText) {
    throw invalidArgument(`${name} has ${json.length} characters as JSON, and may have ${mostText}`);
  }
  const copy: unknown = JSON.parse(json);
  if (isDeeperThan(MOST_LEVELS, copy)) throw invalidArgument(`${name} is nested more than ${MOST_LEVELS} levels deep`);
  return copy;
}

function isDeeperThan(levels: number, value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  return levels === 0 || Object.values(value).some((inner) => isDeeperThan(levels - 1, inner));
}
