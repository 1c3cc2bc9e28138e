import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { SavedChat } from '../../index.js';

/** Reads a chat from a file; undefined if there is none. */
export async function readChat(file: string): Promise<SavedChat | undefined> {
  const text = await readFile(file, 'utf8').catch(nothingThere(undefined));
  if (text === undefined) return undefined;
  try {
    const chat = JSON.parse(text) as SavedChat;
    if (Array.isArray(chat?.history)) return chat;
  } catch {
    // Said below.
  }
  throw new Error(`${file} is no saved chat`);
}

/** Writes a chat to a file, which is seen only as a whole. */
export async function writeChat(file: string, chat: SavedChat): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
  const temporary = path.join(path.dirname(file), `.${path.basename(file)}.${randomBytes(4).toString('hex')}`);
  try {
    await writeFile(temporary, `${JSON.stringify(chat)}\n`, { mode: 0o600, flag: 'wx', flush: true });
    await rename(temporary, file);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

function nothingThere<T>(instead: T): (error: NodeJS.ErrnoException) => T {
  return (error) => {
    if (error.code === 'ENOENT') return instead;
    throw error;
  };
}
