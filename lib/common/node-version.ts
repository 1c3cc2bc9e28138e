// Refuses a Node that is too old, by a sentence: without this file the first function that such a Node lacks would fail with
// an error about something else. index.ts imports this file before all others, and nothing here is newer than Node 14.
import { ChatGLMError } from './errors.js';

/** What package.json asks for under `engines`. */
export function isSupported(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return major > 22 || (major === 22 && minor >= 9) || (major === 20 && minor >= 17);
}

if (!isSupported(process.versions.node)) {
  throw new ChatGLMError(
    'ERR_UNSUPPORTED',
    `node-chatglm needs Node 20.17 or a later 20, or 22.9 or later; this is Node ${process.versions.node}`,
  );
}
