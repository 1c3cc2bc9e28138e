import type { Chat, Part, Turn } from './types.js';

/** Ids need no secure context here, which crypto.randomUUID() does. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** The turns of a parent, the oldest first. */
export function childrenOf(chat: Chat, parent: string): Turn[] {
  return Object.values(chat.turns)
    .filter((turn) => turn.parent === parent)
    .sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
}

/** The turns that are shown: from the first question along the chosen branches. */
export function pathOf(chat: Chat): Turn[] {
  const byParent = new Map<string, Turn[]>();
  for (const turn of Object.values(chat.turns)) {
    const siblings = byParent.get(turn.parent);
    if (siblings) siblings.push(turn);
    else byParent.set(turn.parent, [turn]);
  }
  const path: Turn[] = [];
  const seen = new Set<string>();
  for (let parent = ''; ; ) {
    const siblings = byParent.get(parent);
    if (!siblings) return path;
    const newest = siblings.reduce((a, b) => (b.created >= a.created ? b : a));
    const turn = siblings.find(({ id }) => id === chat.chosen[parent]) ?? newest;
    // An imported file may hold a circle.
    if (seen.has(turn.id)) return path;
    seen.add(turn.id);
    path.push(turn);
    parent = turn.id;
  }
}

export function textOf({ parts }: { parts: readonly Part[] }): string {
  return parts.map((part) => (part.type === 'text' ? part.text : '')).join('');
}

export function titleFrom(text: string): string {
  const line = text.trim().split('\n', 1)[0]?.replace(/\s+/g, ' ') ?? '';
  const characters = Array.from(line);
  return characters.length > 60 ? `${characters.slice(0, 59).join('')}…` : line;
}
