import { batch, computed, type Signal, signal } from '@preact/signals';
import { type Database, openDatabase, summaryOf } from './database.js';
import { settings } from './settings.js';
import { newId, pathOf, textOf } from './tree.js';
import type { Chat, Summary, Turn } from './types.js';

/** All conversations, the newest first. */
export const summaries = signal<readonly Summary[]>([]);
/** Whether the list was read. */
export const isReady = signal(false);
export const isLasting = signal(true);
/** Whether the last attempt to save has failed. */
export const isUnsaved = signal(false);
/** '' for a conversation that has not begun. */
export const currentId = signal('');

/** Conversations that were opened since the page was. */
const cache = signal<ReadonlyMap<string, Signal<Chat>>>(new Map());
export const current = computed(() => cache.value.get(currentId.value)?.value);
/** What the model is to be told in the conversation that has not begun. */
export const newSystem = signal('');

let database: Database;
const windows = typeof BroadcastChannel === 'undefined' ? undefined : new BroadcastChannel('chatglm');
/** What the part that runs answers does for this one. */
export const answering = {
  /** Ends what runs for a conversation that was removed. */
  end: (_id: string): void => {},
  isBusy: (_id: string): boolean => false,
  /** Saves answers on their way, as the page is being closed. */
  leave: (): void => {},
};

function sorted(list: readonly Summary[]): Summary[] {
  return [...list].sort((a, b) => b.updated - a.updated);
}

export async function start(): Promise<void> {
  database = await openDatabase();
  isLasting.value = database.isLasting;
  opensStore();
  await takePending();
  summaries.value = sorted(await database.list());
  isReady.value = true;
  windows?.addEventListener('message', ({ data }) => void hear(data as Said));
  addEventListener('hashchange', () => void show(idInAddress()));
  await show(idInAddress());
}

interface Said {
  what: 'saved' | 'removed';
  summary: Summary;
}

/** What another window tells. */
async function hear({ what, summary }: Said): Promise<void> {
  if (what === 'removed') {
    forget(summary.id);
    return;
  }
  list(summary);
  if (cache.value.has(summary.id) && !answering.isBusy(summary.id)) {
    const chat = await database.get(summary.id);
    const held = cache.value.get(summary.id);
    // The other window may show another branch; this one keeps its own.
    if (chat && held) held.value = { ...chat, chosen: { ...chat.chosen, ...held.value.chosen } };
  }
}

function list(summary: Summary): void {
  summaries.value = sorted([summary, ...summaries.value.filter(({ id }) => id !== summary.id)]);
}

function idInAddress(): string {
  return /^#\/c\/(\w+)$/.exec(location.hash)?.[1] ?? '';
}

/** Opens a conversation; '' begins a new one. */
export async function show(id: string): Promise<void> {
  if (id !== '' && !cache.value.has(id)) {
    const chat = await database.get(id);
    if (chat) hold(withoutOpenEnds(chat));
    else id = '';
  }
  currentId.value = id;
  const hash = id === '' ? '#/' : `#/c/${id}`;
  if (location.hash !== hash && !(id === '' && location.hash === '')) history.pushState(null, '', hash);
}

/** An answer that has no end was being written when the page was closed. */
function withoutOpenEnds(chat: Chat): Chat {
  const turns = Object.entries(chat.turns).map(([id, turn]): [string, Turn] => {
    const isOpen = turn.role === 'assistant' && turn.finish === undefined;
    return [id, isOpen ? { ...turn, finish: 'cut' } : turn];
  });
  return { ...chat, turns: Object.fromEntries(turns) };
}

function hold(chat: Chat): Signal<Chat> {
  const held = cache.value.get(chat.id);
  if (held) {
    held.value = chat;
    return held;
  }
  const made = signal(chat);
  cache.value = new Map(cache.value).set(chat.id, made);
  return made;
}

/** A conversation that was opened since the page was. */
export function opened(id: string): Chat | undefined {
  return cache.value.get(id)?.value;
}

export async function read(id: string): Promise<Chat | undefined> {
  return opened(id) ?? (await database.get(id));
}

export function begin(title: string): Chat {
  const now = Date.now();
  const chat: Chat = {
    id: newId(),
    title,
    created: now,
    updated: now,
    isNamed: false,
    system: newSystem.value,
    model: settings.value.model,
    turns: {},
    chosen: {},
  };
  newSystem.value = '';
  hold(chat);
  return chat;
}

/** Changes a conversation in memory and in the store. */
export function alter(id: string, changed: (chat: Chat) => Chat, { isTouched = true } = {}): Chat | undefined {
  const held = cache.value.get(id);
  if (!held) return undefined;
  batch(() => {
    const chat = changed(held.value);
    held.value = isTouched ? { ...chat, updated: Date.now() } : chat;
    list(summaryOf(held.value));
  });
  void save(held.value);
  return held.value;
}

/** What is not in the database yet. */
const pending = new Map<string, Chat>();
const PENDING = 'chatglm.pending';

// A database has no time for a write while a page is closed; local storage does it at once, and the next page goes on.
addEventListener('pagehide', () => {
  answering.leave();
  if (pending.size === 0) return;
  try {
    localStorage.setItem(PENDING, JSON.stringify([...pending.values()]));
  } catch {
    // Too much for that store: what the last second changed is lost.
  }
});
addEventListener('pageshow', ({ persisted }) => {
  // A page that comes back from the browser's cache goes on writing by itself.
  if (persisted) localStorage.removeItem(PENDING);
});

async function takePending(): Promise<void> {
  try {
    const chats = JSON.parse(localStorage.getItem(PENDING) ?? '[]') as Chat[];
    localStorage.removeItem(PENDING);
    for (const chat of chats) {
      const stored = await database.get(chat.id);
      if (!stored || stored.updated <= chat.updated) await database.put(chat);
    }
  } catch {
    // What cannot be read, or written, is as it was before.
  }
}

/** Writes follow one another, so that an older state never overwrites a newer one. */
let opensStore: () => void = () => {};
let writing = new Promise<void>((resolve) => {
  opensStore = resolve;
});

export function save(chat: Chat): Promise<void> {
  pending.set(chat.id, chat);
  const write = writing.then(async () => {
    if (!summaries.value.some(({ id }) => id === chat.id)) return;
    await database.put(chat);
    if (pending.get(chat.id) === chat) pending.delete(chat.id);
    isUnsaved.value = false;
    windows?.postMessage({ what: 'saved', summary: summaryOf(chat) } satisfies Said);
  });
  writing = write.catch(() => {
    isUnsaved.value = true;
  });
  return writing;
}

export async function rename(id: string, title: string): Promise<void> {
  const chat = await read(id);
  if (!chat || title.trim() === '') return;
  hold(chat);
  alter(id, (each) => ({ ...each, title: title.trim(), isNamed: true }), { isTouched: false });
}

/** Removes a conversation and gives what brings it back. */
export async function remove(id: string): Promise<(() => Promise<void>) | undefined> {
  const chat = await read(id);
  const isCurrent = currentId.value === id;
  forget(id);
  const removing = writing.then(() => database.remove(id));
  writing = removing.catch(() => {});
  await removing;
  windows?.postMessage({ what: 'removed', summary: { id, title: '', created: 0, updated: 0 } } satisfies Said);
  if (!chat) return undefined;
  return async () => {
    await add([chat]);
    if (isCurrent) await show(chat.id);
  };
}

function forget(id: string): void {
  pending.delete(id);
  answering.end(id);
  batch(() => {
    summaries.value = summaries.value.filter((each) => each.id !== id);
    const rest = new Map(cache.value);
    rest.delete(id);
    cache.value = rest;
    if (currentId.value === id) {
      currentId.value = '';
      history.replaceState(null, '', '#/');
    }
  });
}

/** Takes conversations in, such as imported ones. */
export async function add(chats: readonly Chat[]): Promise<void> {
  for (const chat of chats) {
    list(summaryOf(chat));
    if (cache.value.has(chat.id)) hold(chat);
    await save(chat);
  }
}

export async function all(): Promise<Chat[]> {
  await writing;
  const chats: Chat[] = [];
  await database.each((chat) => {
    chats.push(chat);
    return true;
  });
  return chats.sort((a, b) => b.updated - a.updated);
}

/** The conversations whose title or texts have the words, with a piece of text around them. */
export async function search(
  words: string,
  isCurrent: () => boolean,
): Promise<{ summary: Summary; excerpt: string }[]> {
  const wanted = words.trim().toLocaleLowerCase();
  const found: { summary: Summary; excerpt: string }[] = [];
  await database.each((chat) => {
    const excerpt = excerptOf(chat, wanted);
    if (excerpt !== undefined) found.push({ summary: summaryOf(chat), excerpt });
    return isCurrent() && found.length < 200;
  });
  return found.sort((a, b) => b.summary.updated - a.summary.updated);
}

function excerptOf(chat: Chat, wanted: string): string | undefined {
  for (const turn of Object.values(chat.turns)) {
    const text = textOf(turn);
    const at = text.toLocaleLowerCase().indexOf(wanted);
    if (at < 0) continue;
    const before = at > 24 ? `…${text.slice(at - 24, at).replace(/^\S*\s/, '')}` : text.slice(0, at);
    return `${before}${text.slice(at, at + wanted.length + 60)}`.replace(/\s+/g, ' ');
  }
  return chat.title.toLocaleLowerCase().includes(wanted) ? '' : undefined;
}

export function currentPath(): ReturnType<typeof pathOf> {
  return current.value ? pathOf(current.value) : [];
}
