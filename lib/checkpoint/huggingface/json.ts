import { invalid, shown } from '../../common/invalid.js';

export type JsonObject = Readonly<Record<string, unknown>>;

/** Parses a JSON object from a file. A key that occurs twice is an error: readers would disagree about which one counts. */
export function parseJsonObject(bytes: Uint8Array, file: string, what = 'it'): JsonObject {
  let text: string;
  let value: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    value = JSON.parse(text);
  } catch (error) {
    throw invalid(file, `${what} is not valid JSON`, {}, error);
  }
  if (!isObject(value)) throw invalid(file, `${what} is no JSON object`);
  const twice = duplicateKey(text);
  if (twice !== undefined) throw invalid(file, `${what} has the key "${shown(twice)}" twice`);
  return value;
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Finds a key that occurs twice in an object of a text that JSON.parse has accepted. */
function duplicateKey(json: string): string | undefined {
  const tokens = /[{}[\],:]|"(?:[^"\\]|\\.)*"/g;
  /** The keys of each open object; undefined for an open array. */
  const open: (Set<string> | undefined)[] = [];
  let isKey = false;
  for (const [token] of json.matchAll(tokens)) {
    if (token === '{' || token === '[') open.push(token === '{' ? new Set() : undefined);
    else if (token === '}' || token === ']') open.pop();
    const keys = open.at(-1);
    if (isKey && keys !== undefined && token.startsWith('"')) {
      const key = JSON.parse(token) as string;
      if (keys.has(key)) return key;
      keys.add(key);
    }
    isKey = (token === '{' || token === ',') && keys !== undefined;
  }
  return undefined;
}
