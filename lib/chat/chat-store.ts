import { mkdir, readdir, readFile, rm, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { ChatGLMError, invalidArgument } from '../common/errors.js';
import { plainText } from '../common/invalid.js';
import { type FilePath, isPlainObject, messageOf, show, toPath } from '../common/options.js';
import { isLock, type ProcessLock, takeLock } from '../common/process-lock.js';
import { isSystemError, systemError } from '../common/system-errors.js';
import { syncDirectory, writeBytes, writeWhole } from '../common/whole-file.js';
import type { WrittenFile } from '../common/written-file.js';
import { CHAT_FAMILIES, type ChatFamily } from '../families/index.js';
import { type ChatMessage, validateMessages } from '../families/messages.js';
import { checkName, fileNameOf, nameOf } from './chat-names.js';
import type { SavedChat } from './saved-chat.js';

const EXTENSION = '.json';
const FORMAT = 'node-chatglm conversation';
const VERSION = 1;
/** More text than this is no conversation. */
const MOST_BYTES = 256 << 20;
/** Characters of a title. */
const TITLE_LENGTH = 60;

/** What a store's list says of a conversation. */
export interface ChatStoreEntry {
  /** Its name. */
  name: string;
  /** How the first message of a user begins, in one line; empty where there is none. */
  title: string;
  /** How many messages there are. */
  messages: number;
  /** When it was saved last. */
  updated: Date;
  /** Its file. */
  file: string;
  /** Why it cannot be read; absent where it can. */
  damaged?: string;
}

/**
 * Opens a directory of conversations, and makes one where there is none, which its owner alone may read. Each conversation is
 * a file of its own, JSON that people can read.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where the path is no directory; the codes of the system.
 *
 * @example
 * ```ts
 * const store = await openChatStore('./chats');
 * await using session = await store.open('北京之旅');
 * const chat = model.createChat((await session.load()) ?? {});
 * await chat.send('故宫几点开门？');
 * await session.save(chat);
 * ```
 */
export async function openChatStore(directory: FilePath): Promise<ChatStore> {
  const path = resolve(toPath('directory', directory));
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
  } catch (error) {
    if (isSystemError(error) && ['EEXIST', 'ENOTDIR'].includes(error.code)) {
      throw invalidArgument(`directory: ${path} is no directory`, error);
    }
    throw isSystemError(error) ? systemError(path, 'written', error) : error;
  }
  return new ChatStore(path);
}

/**
 * A directory of conversations. A conversation can be open once at a time, in all processes of the machine together; a process
 * that dies, however it dies, leaves the conversation as it was saved last, and open to others.
 *
 * @example
 * ```ts
 * const store = await openChatStore('./chats');
 * for (const { name, title, damaged } of await store.list()) console.log(name, damaged ?? title);
 * ```
 */
export class ChatStore {
  /** Its absolute path. */
  readonly directory: string;

  /** @internal Use `openChatStore()`. */
  constructor(directory: string) {
    this.directory = directory;
  }

  /**
   * All conversations, the one that was saved last first. A file that cannot be read is listed with the reason.
   *
   * @throws {ChatGLMError} the codes of the system, if the directory cannot be read.
   *
   * @example
   * ```ts
   * const store = await openChatStore('./chats');
   * const [latest] = await store.list();
   * console.log(latest?.title, latest?.updated.toLocaleString());
   * ```
   */
  async list(): Promise<ChatStoreEntry[]> {
    const entries: ChatStoreEntry[] = [];
    for (const name of await this.#files()) {
      if (!name.endsWith(EXTENSION)) continue;
      const entry = await this.#entry(name.slice(0, -EXTENSION.length), join(this.directory, name));
      if (entry) entries.push(entry);
    }
    return entries.sort((a, b) => b.updated.getTime() - a.updated.getTime() || (a.name < b.name ? -1 : 1));
  }

  /**
   * Opens a conversation, new or saved, until it is closed.
   *
   * @param name Any text: it need not be the name of a file.
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT; ERR_BUSY, with `pid` and `host`, while it is open in another process, or in
   *   this one; the codes of the system.
   *
   * @example
   * ```ts
   * const store = await openChatStore('./chats');
   * const session = await store.open('default');
   * await session.save(chat);
   * await session.close();
   * ```
   */
  async open(name: string): Promise<ChatStoreSession> {
    const path = this.#pathOf(checkName(name));
    const lock = await this.#lock(name, path);
    try {
      await this.#removeParts(path);
      return new ChatStoreSession(name, path + EXTENSION, lock);
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  /**
   * Deletes a conversation, also one that cannot be read. Gives whether there was one.
   *
   * @throws {ChatGLMError} as {@link open}.
   *
   * @example
   * ```ts
   * const store = await openChatStore('./chats');
   * console.log(await store.delete('default'));
   * ```
   */
  async delete(name: string): Promise<boolean> {
    const session = await this.open(name);
    try {
      return await this.#remove(session.file);
    } finally {
      await session.close();
    }
  }

  /**
   * Gives a conversation another name.
   *
   * @throws {ChatGLMError} as {@link open}; ERR_INVALID_ARGUMENT where there is no such conversation, or one of the new name
   *   already; ERR_SESSION_INVALID for one that cannot be read.
   *
   * @example
   * ```ts
   * const store = await openChatStore('./chats');
   * await store.rename('default', 'Peking, in May');
   * ```
   */
  async rename(name: string, newName: string): Promise<void> {
    checkName(name);
    if (checkName(newName, 'newName') === name) return;
    const from = await this.open(name);
    try {
      const to = await this.open(newName);
      try {
        const chat = await from.load();
        if (chat === undefined) throw invalidArgument(`there is no conversation ${show(name)}`);
        if (await exists(to.file)) throw invalidArgument(`there is a conversation ${show(newName)} already`);
        // The new file is there before the old one goes: whatever ends the process in between, nothing is lost.
        await to.save(chat);
        await this.#remove(from.file);
      } finally {
        await to.close();
      }
    } finally {
      await from.close();
    }
  }

  #pathOf(name: string): string {
    return join(this.directory, fileNameOf(name));
  }

  async #lock(name: string, path: string): Promise<ProcessLock> {
    let taken: Awaited<ReturnType<typeof takeLock>>;
    try {
      taken = await takeLock(path);
    } catch (error) {
      throw isSystemError(error) ? systemError(path, 'written', error) : error;
    }
    if (isLock(taken)) return taken;
    const { pid, host, since } = taken;
    const who = pid === process.pid ? 'this process' : `process ${pid} on ${plainText(host)}`;
    throw new ChatGLMError(
      'ERR_BUSY',
      `the conversation ${show(name)} is open in ${who}${since === '' ? '' : ` since ${plainText(since)}`}`,
      { file: path + EXTENSION, pid, host },
    );
  }

  /** Removes what a process that died while it saved has left. Only with the conversation's lock. */
  async #removeParts(path: string): Promise<void> {
    const prefix = `${basename(path)}${EXTENSION}.`.normalize('NFC');
    for (const name of await this.#files()) {
      if (name.endsWith('.part') && name.normalize('NFC').startsWith(prefix))
        await this.#remove(join(this.directory, name));
    }
  }

  async #files(): Promise<string[]> {
    try {
      return await readdir(this.directory);
    } catch (error) {
      throw isSystemError(error) ? systemError(this.directory, 'read', error) : error;
    }
  }

  async #entry(fileName: string, file: string): Promise<ChatStoreEntry | undefined> {
    const name = nameOf(fileName);
    if (name === null) return undefined;
    const shownName = name ?? plainText(fileName);
    try {
      const read = await readConversation(file);
      if (read === undefined) return undefined; // deleted meanwhile
      if (name === undefined && fileNameOf(read.name) !== fileName.normalize('NFC')) {
        throw invalid(file, 'has the content of another conversation');
      }
      const { history } = read.chat;
      return {
        name: name ?? read.name,
        title: titleOf(history),
        messages: history.length,
        updated: read.updated,
        file,
      };
    } catch (error) {
      if (!(error instanceof ChatGLMError)) throw error;
      const updated = await stat(file).then(
        ({ mtime }) => mtime,
        () => new Date(0),
      );
      return { name: shownName, title: '', messages: 0, updated, file, damaged: error.message };
    }
  }

  async #remove(file: string): Promise<boolean> {
    try {
      await rm(file);
      await syncDirectory(this.directory);
      return true;
    } catch (error) {
      if (!isSystemError(error)) throw error;
      if (error.code === 'ENOENT') return false;
      throw systemError(file, 'written', error);
    }
  }
}

/**
 * A conversation of a store, open for this process alone. Close it: until then, or until the process ends, nobody else opens it.
 *
 * @example
 * ```ts
 * const store = await openChatStore('./chats');
 * await using session = await store.open('default');
 * console.log((await session.load())?.history.length);
 * ```
 */
export class ChatStoreSession {
  /** The conversation's name. */
  readonly name: string;
  /** Its file, which is there once it has been saved. */
  readonly file: string;
  readonly #lock: ProcessLock;
  #saved: Promise<unknown> = Promise.resolve();
  #isClosed = false;

  /** @internal Use `store.open()`. */
  constructor(name: string, file: string, lock: ProcessLock) {
    this.name = name;
    this.file = file;
    this.#lock = lock;
  }

  /**
   * The conversation as it was saved last, for `model.createChat()`; undefined if it never was.
   *
   * @throws {ChatGLMError} ERR_SESSION_INVALID, with the reason, for a file that is damaged or another version's; ERR_DISPOSED
   *   when the session is closed; the codes of the system.
   *
   * @example
   * ```ts
   * const session = await (await openChatStore('./chats')).open('default');
   * const chat = model.createChat((await session.load()) ?? { system: 'Answer briefly.' });
   * console.log(chat.history.length);
   * ```
   */
  async load(): Promise<SavedChat | undefined> {
    this.#refuseClosed();
    await this.#saved;
    return (await readConversation(this.file))?.chat;
  }

  /**
   * Saves the conversation as it is at the time of the call. The file has either the old content or the new one, whole and on
   * the disk, whatever happens. Saves that overlap are done one after the other.
   *
   * @param chat A chat, or what its `toJSON()` gave.
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT; ERR_DISPOSED when the session is closed; ERR_BUSY if this process was stopped
   *   for so long that another machine has taken the conversation over; the codes of the system. The old file stays.
   *
   * @example
   * ```ts
   * await using session = await (await openChatStore('./chats')).open('default');
   * await chat.send('你好');
   * await session.save(chat);
   * ```
   */
  async save(chat: SavedChat): Promise<WrittenFile> {
    this.#refuseClosed();
    const bytes = Buffer.from(textOf(this.name, chat));
    const saved = this.#saved.then(async () => {
      if (!(await this.#lock.isHeld())) {
        throw new ChatGLMError('ERR_BUSY', `the conversation ${show(this.name)} was taken over by another process`, {
          file: this.file,
        });
      }
      return await writeWhole(this.file, { overwrite: true, mode: 0o600 }, async (handle, path) => {
        await writeBytes(handle, bytes, 0, path);
        return bytes.length;
      });
    });
    this.#saved = saved.catch(() => {});
    return await saved;
  }

  /**
   * Lets others open the conversation, once what is being saved has been saved. Closing again does nothing.
   *
   * @example
   * ```ts
   * const session = await (await openChatStore('./chats')).open('default');
   * await session.close();
   * ```
   */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#saved;
    await this.#lock.release();
  }

  /**
   * As {@link close}: `await using session = …` closes it where its block ends.
   *
   * @example
   * ```ts
   * await using session = await (await openChatStore('./chats')).open('default');
   * console.log(session.name);
   * ```
   */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #refuseClosed(): void {
    if (this.#isClosed) {
      throw new ChatGLMError('ERR_DISPOSED', `the conversation ${show(this.name)} was closed`, { file: this.file });
    }
  }
}

/** The content of a file: JSON with a line for each message. */
function textOf(name: string, chat: SavedChat): string {
  let plain: unknown;
  try {
    // Calls toJSON() of a chat.
    plain = JSON.parse(JSON.stringify(chat) ?? 'null');
  } catch (cause) {
    if (cause instanceof ChatGLMError) throw cause;
    throw invalidArgument(`chat cannot be written as JSON: ${messageOf(cause)}`, cause);
  }
  const { history, ...rest } = checkedChat(plain, 'chat');
  const head = { format: FORMAT, version: VERSION, name, updated: new Date().toISOString(), ...{ chat: rest } };
  const lines = history.map((message) => JSON.stringify(message));
  const open = JSON.stringify(head, null, 1).replace(/\n \}\n\}$/, ',\n  "history": [\n');
  return `${open}${lines.join(',\n')}${lines.length > 0 ? '\n' : ''}  ]\n }\n}\n`;
}

interface Conversation {
  name: string;
  updated: Date;
  chat: SavedChat;
}

/** @returns undefined if there is no such file. */
async function readConversation(file: string): Promise<Conversation | undefined> {
  let bytes: Buffer;
  try {
    const { size } = await stat(file);
    if (size > MOST_BYTES) throw invalid(file, `has ${size} bytes, more than any conversation`);
    bytes = await readFile(file);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    if (error.code === 'ENOENT') return undefined;
    if (error.code === 'EISDIR') throw invalid(file, 'is a directory', error);
    throw systemError(file, 'read', error);
  }
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw invalid(file, `is cut or damaged: ${plainText(messageOf(cause))}`, cause);
  }
  if (!isPlainObject(value) || value.format !== FORMAT) throw invalid(file, 'is not a saved conversation');
  if (value.version !== VERSION) throw invalid(file, 'was saved by another version of this package');
  const { name, updated } = value;
  const time = typeof updated === 'string' ? new Date(updated) : new Date(Number.NaN);
  if (typeof name !== 'string') throw invalid(file, 'is damaged: it has no name');
  if (Number.isNaN(time.getTime())) throw invalid(file, 'is damaged: it has no time');
  try {
    return { name, updated: time, chat: checkedChat(value.chat, 'chat') };
  } catch (cause) {
    throw invalid(file, `is damaged: ${messageOf(cause)}`, cause);
  }
}

/** Checks a chat as it was saved. Fields besides those of today are kept. */
function checkedChat(value: unknown, name: string): SavedChat {
  if (!isPlainObject(value)) throw invalidArgument(`${name} must be a saved chat, got ${show(value)}`);
  const { family, history } = value;
  if (!CHAT_FAMILIES.includes(family as ChatFamily)) {
    throw invalidArgument(`${name}.family must be one of ${CHAT_FAMILIES.join(', ')}, got ${show(family)}`);
  }
  return { ...value, family: family as ChatFamily, history: validateMessages(history, `${name}.history`) };
}

function titleOf(history: readonly ChatMessage[]): string {
  const first = history.find(({ role }) => role === 'user')?.content ?? '';
  const line = plainText(first.slice(0, 1000).replace(/\s+/g, ' ').trim());
  const characters = [...line];
  return characters.length > TITLE_LENGTH ? `${characters.slice(0, TITLE_LENGTH).join('').trimEnd()}…` : line;
}

async function exists(file: string): Promise<boolean> {
  return await stat(file).then(
    () => true,
    () => false,
  );
}

function invalid(file: string, problem: string, cause?: unknown): ChatGLMError {
  return new ChatGLMError('ERR_SESSION_INVALID', `${file} ${problem}`, { file }, cause);
}
