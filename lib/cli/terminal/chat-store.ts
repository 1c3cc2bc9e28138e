import { randomBytes } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { SavedChat } from '../../index.js';

/** What a list of saved chats says of each. */
export interface StoredChat {
  name: string;
  title: string;
  messages: number;
  /** When it was saved last. */
  updated: Date;
  /** Why it cannot be read; absent where it can. */
  damaged?: string;
}

/** One saved chat. */
export interface StoredSession {
  /** The chat as it was saved; undefined if it never was. */
  load(): Promise<SavedChat | undefined>;
  save(chat: SavedChat): Promise<unknown>;
  close(): Promise<void>;
}

/** A folder of saved chats. */
export interface ChatStore {
  /** The last one that was saved comes first. */
  list(): Promise<StoredChat[]>;
  open(name: string): Promise<StoredSession>;
  delete(name: string): Promise<unknown>;
}

/** Opens a folder of saved chats; it is made when something is saved. */
export async function openChatStore(directory: string): Promise<ChatStore> {
  const fileOf = (name: string) => path.join(directory, `${checkedName(name)}.json`);
  return {
    async list() {
      const files = await readdir(directory).catch(nothingThere<string[]>([]));
      const chats = await Promise.all(
        files
          .filter((file) => file.endsWith('.json') && !file.startsWith('.'))
          .map((file) => describe(path.join(directory, file))),
      );
      return chats.sort((a, b) => b.updated.getTime() - a.updated.getTime());
    },
    async open(name) {
      const file = fileOf(name);
      return {
        load: () => readChat(file),
        save: (chat) => writeChat(file, chat),
        close: async () => {},
      };
    },
    async delete(name) {
      await rm(fileOf(name));
    },
  };
}

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

async function describe(file: string): Promise<StoredChat> {
  const name = path.basename(file, '.json');
  const { mtime } = await stat(file);
  try {
    const history = (await readChat(file))?.history ?? [];
    const title = history.find(({ role }) => role === 'user')?.content ?? '';
    return { name, title: title.replace(/\s+/g, ' ').trim(), messages: history.length, updated: mtime };
  } catch (error) {
    return { name, title: '', messages: 0, updated: mtime, damaged: (error as Error).message };
  }
}

/** @throws {Error} for what is no name of a file everywhere. */
function checkedName(name: string): string {
  if (/^[^./\\<>:"|?*\p{C}][^/\\<>:"|?*\p{C}]{0,99}$/u.test(name) && !/[. ]$/.test(name)) return name;
  throw new Error(`${JSON.stringify(name)} cannot be the name of a session: letters, digits, - and _ can`);
}

function nothingThere<T>(instead: T): (error: NodeJS.ErrnoException) => T {
  return (error) => {
    if (error.code === 'ENOENT') return instead;
    throw error;
  };
}
