// Tools for families whose models were not trained to call any: the system message explains how to, and a reply that is
// such a call and nothing else is taken for one.
import { isPlainObject } from '../common/options.js';
import { dumpJson, strip } from '../common/python-text.js';
import type { ListedTools } from '../families/messages.js';

/** What the system message says about tools, after what it says otherwise. */
export function textToolPrompt(tools: ListedTools): string {
  return [
    'You can call the following tools. 你可以调用以下工具：',
    dumpJson(tools),
    'To call a tool, reply with one JSON object of this form and nothing else. 调用工具时，只回复一个如下形式的JSON对象：',
    '{"tool": "name", "arguments": {"argument": "value"}}',
    'Where no tool is needed, reply in words. 不需要工具时，直接回答。',
  ].join('\n');
}

/** A reply that is longer is no call; reading it would hold up the event loop. */
const MOST_CHARACTERS = 1_000_000;

/**
 * Reads a reply that is a call: one JSON object of exactly `tool` and `arguments`, alone or in a Markdown fence, with the name
 * of a tool that there is. Whatever else a reply holds makes it an answer in words: text that only quotes a call must not
 * become one. Integers that a JavaScript number cannot hold exactly become strings of their digits, as in ChatGLM3's calls.
 */
export function parseTextToolCall(
  text: string,
  names: ReadonlySet<string>,
): { name: string; arguments: Record<string, unknown> } | undefined {
  if (text.length > MOST_CHARACTERS) return undefined;
  let call: unknown;
  try {
    call = JSON.parse(quoteBigIntegers(unfenced(strip(text))));
  } catch {
    return undefined;
  }
  if (!isPlainObject(call) || Object.keys(call).length !== 2) return undefined;
  if (!Object.hasOwn(call, 'tool') || !Object.hasOwn(call, 'arguments')) return undefined;
  const { tool, arguments: args } = call;
  if (typeof tool !== 'string' || !names.has(tool) || !isPlainObject(args)) return undefined;
  return { name: tool, arguments: args };
}

function unfenced(text: string): string {
  if (!text.startsWith('```') || !text.endsWith('```') || text.length < 6) return text;
  const inner = text.slice(3, -3);
  return strip(inner.replace(/^[ \t]*(?:json[c5]?)?[ \t]*(?=[\r\n{])/i, ''));
}

/** Strings are matched only to leave alone what stands in them. */
const STRING_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/gs;

function quoteBigIntegers(json: string): string {
  return json.replace(STRING_OR_NUMBER, (token) =>
    /^-?\d{16,}$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"${token}"` : token,
  );
}
