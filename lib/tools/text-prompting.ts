import { isPlainObject } from '../common/options.js';
import { dumpJson, strip } from '../common/python-text.js';
import type { Literal } from '../families/python-call.js';

/**
 * What tells a model without tools of its own that there are some, and how to call one: for `toolPrompting: 'text'`.
 *
 * @param tools As a system message would list them.
 */
export function textToolPrompt(tools: unknown): string {
  return [
    'You can use the following tools (你可以使用以下工具):',
    dumpJson(tools),
    'To use one, answer with nothing but one JSON object (如需使用工具，只回答一个JSON对象):',
    '{"tool": "NAME", "arguments": {…}}',
    'You will be told what the tool gave. If you need no tool, answer as usual.',
  ].join('\n');
}

/**
 * Reads an answer that {@link textToolPrompt} has asked for: one JSON object of a declared tool's name and its arguments, in a
 * Markdown fence or not, and nothing else.
 *
 * @returns undefined for any other answer.
 */
export function parseTextToolCall(
  text: string,
  names: ReadonlySet<string>,
): { name: string; arguments: Record<string, Literal> } | undefined {
  const stripped = strip(text);
  const fence = /^```[a-z]*\n([\s\S]*?)\n?```$/i.exec(stripped);
  let value: unknown;
  try {
    value = JSON.parse(fence?.[1] ?? stripped);
  } catch {
    return undefined;
  }
  if (!isPlainObject(value) || Object.keys(value).length !== 2) return undefined;
  const { tool, arguments: given } = value;
  if (typeof tool !== 'string' || !names.has(tool) || !isPlainObject(given)) return undefined;
  return { name: tool, arguments: given as Record<string, Literal> };
}
