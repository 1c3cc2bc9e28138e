import { add, all, currentId, newSystem, read, remove, show, summaries } from '../state/chats.js';
import { fromJson, toJson, toMarkdown } from '../state/exchange.js';
import type { Chat, Summary } from '../state/types.js';
import { t } from '../text/index.js';
import { download, editing, focusComposer, isDrawerOpen, tell } from './ui.js';

export function beginNew(): void {
  newSystem.value = '';
  open('');
}

export function open(id: string): void {
  editing.value = '';
  isDrawerOpen.value = false;
  void show(id);
  focusComposer();
}

export async function removeWithUndo({ id, title }: Summary): Promise<void> {
  const wasCurrent = currentId.value === id;
  const undo = await remove(id);
  tell(t('removed', title), undo);
  if (wasCurrent) focusComposer();
}

function fileName({ title }: Summary, ending: string): string {
  const name = title.replace(/[\\/:*?"<>|\p{Cc}]+/gu, ' ').trim();
  return `${name || 'chat'}.${ending}`;
}

export async function exportOne(id: string, format: 'json' | 'md'): Promise<void> {
  const chat = await read(id);
  if (!chat) return;
  if (format === 'json') download(fileName(chat, 'json'), 'application/json', toJson([chat]));
  else download(fileName(chat, 'md'), 'text/markdown', markdownOf(chat));
}

export function markdownOf(chat: Chat): string {
  return toMarkdown(chat, { user: t('you'), assistant: t('assistant'), system: t('instructions') });
}

export async function exportAll(): Promise<void> {
  const day = new Date().toISOString().slice(0, 10);
  download(`chatglm-${day}.json`, 'application/json', toJson(await all()));
}

export async function importFiles(files: readonly File[]): Promise<void> {
  const ids = new Set(summaries.value.map(({ id }) => id));
  const chats: Chat[] = [];
  for (const file of files) {
    try {
      chats.push(...fromJson(await file.text(), (id) => ids.has(id)));
    } catch {
      // What is no JSON has no conversations.
    }
  }
  if (chats.length === 0) {
    tell(t('importFailed'));
    return;
  }
  await add(chats);
  tell(t('imported', chats.length));
  const [first] = chats;
  if (first) open(first.id);
}
