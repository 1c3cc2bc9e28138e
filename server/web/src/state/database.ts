import type { Chat, Summary } from './types.js';

/** Where conversations are kept: the browser's IndexedDB, or memory where a browser refuses it. */
export interface Database {
  /** Whether what is put here is there after the page was closed. */
  readonly isLasting: boolean;
  list(): Promise<Summary[]>;
  get(id: string): Promise<Chat | undefined>;
  /** Turns that another window added meanwhile stay. */
  put(chat: Chat): Promise<Chat>;
  remove(id: string): Promise<void>;
  /** Calls `visit` with every conversation until it gives false. */
  each(visit: (chat: Chat) => boolean): Promise<void>;
}

const SUMMARIES = 'summaries';
const CHATS = 'chats';

export function summaryOf({ id, title, created, updated }: Summary): Summary {
  return { id, title, created, updated };
}

/** One conversation from two windows. What is in `mine` wins where both have the same turn, but for one that has no end. */
export function merged(stored: Chat | undefined, mine: Chat): Chat {
  if (!stored) return mine;
  const turns = { ...stored.turns };
  for (const [id, turn] of Object.entries(mine.turns)) {
    const isOlder = turn.role === 'assistant' && turn.finish === undefined && turns[id]?.finish !== undefined;
    if (!isOlder) turns[id] = turn;
  }
  return { ...mine, turns };
}

export async function openDatabase(): Promise<Database> {
  try {
    return new Lasting(await open());
  } catch {
    return new Passing();
  }
}

function open(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open('chatglm', 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(SUMMARIES, { keyPath: 'id' });
      request.result.createObjectStore(CHATS, { keyPath: 'id' });
    };
    request.onsuccess = () => {
      // A window with a newer page must be able to change the stores.
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error('blocked'));
  });
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

class Lasting implements Database {
  readonly isLasting = true;
  readonly #database: IDBDatabase;

  constructor(database: IDBDatabase) {
    this.#database = database;
  }

  async list(): Promise<Summary[]> {
    return await done(this.#database.transaction(SUMMARIES).objectStore(SUMMARIES).getAll());
  }

  async get(id: string): Promise<Chat | undefined> {
    return await done(this.#database.transaction(CHATS).objectStore(CHATS).get(id));
  }

  async put(chat: Chat): Promise<Chat> {
    const transaction = this.#database.transaction([SUMMARIES, CHATS], 'readwrite');
    const chats = transaction.objectStore(CHATS);
    const whole = merged(await done<Chat | undefined>(chats.get(chat.id)), chat);
    chats.put(whole);
    await done(transaction.objectStore(SUMMARIES).put(summaryOf(whole)));
    return whole;
  }

  async remove(id: string): Promise<void> {
    const transaction = this.#database.transaction([SUMMARIES, CHATS], 'readwrite');
    transaction.objectStore(CHATS).delete(id);
    await done(transaction.objectStore(SUMMARIES).delete(id));
  }

  each(visit: (chat: Chat) => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const request = this.#database.transaction(CHATS).objectStore(CHATS).openCursor();
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (cursor && visit(cursor.value as Chat)) cursor.continue();
        else resolve();
      };
    });
  }
}

class Passing implements Database {
  readonly isLasting = false;
  readonly #chats = new Map<string, Chat>();

  async list(): Promise<Summary[]> {
    return [...this.#chats.values()].map(summaryOf);
  }

  async get(id: string): Promise<Chat | undefined> {
    return this.#chats.get(id);
  }

  async put(chat: Chat): Promise<Chat> {
    this.#chats.set(chat.id, chat);
    return chat;
  }

  async remove(id: string): Promise<void> {
    this.#chats.delete(id);
  }

  async each(visit: (chat: Chat) => boolean): Promise<void> {
    for (const chat of this.#chats.values()) if (!visit(chat)) return;
  }
}
