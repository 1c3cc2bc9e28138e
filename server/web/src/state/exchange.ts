import { newId, pathOf, textOf, titleFrom } from './tree.js';
import type { Chat, Part, ResultFile, TextFile, Turn } from './types.js';

const FORMAT = 'chatglm-conversations';

export function toJson(chats: readonly Chat[]): string {
  return JSON.stringify({ format: FORMAT, version: 1, conversations: chats }, null, 1);
}

/** What is shown of a conversation, as Markdown. */
export function toMarkdown(chat: Chat, names: { user: string; assistant: string; system: string }): string {
  const blocks = [`# ${chat.title}`];
  if (chat.system.trim() !== '') blocks.push(`> **${names.system}:** ${chat.system.trim().replace(/\n/g, '\n> ')}`);
  for (const turn of pathOf(chat)) {
    blocks.push(`## ${turn.role === 'user' ? names.user : names.assistant}`);
    for (const { name, text } of turn.files ?? []) blocks.push(`${name}\n\n${fenced(text)}`);
    for (const part of turn.parts) {
      if (part.type === 'text') blocks.push(part.text.trim());
      else if (part.type === 'tool') blocks.push(`\`${part.name}\``, fenced(part.arguments, 'json'));
      else blocks.push(fenced(part.code, 'python'));
      if (part.type === 'tool' && part.result) blocks.push(fenced(part.result.content));
      if (part.type === 'code' && part.result) blocks.push(fenced(part.result.text));
    }
  }
  return `${blocks.filter((block) => block !== '').join('\n\n')}\n`;
}

function fenced(text: string, language = ''): string {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([ticks]) => ticks.length));
  const fence = '`'.repeat(longest + 1);
  return `${fence}${language}\n${text.replace(/\n$/, '')}\n${fence}`;
}

/**
 * Conversations of a file: what {@link toJson} wrote, or messages in OpenAI's shape. Files come from anywhere: only what is
 * known is taken over. Ids are new where they are taken already.
 */
export function fromJson(json: string, isTaken: (id: string) => boolean): Chat[] {
  const value: unknown = JSON.parse(json);
  const list = Array.isArray(value) ? value : (record(value).conversations ?? [value]);
  if (!Array.isArray(list)) return [];
  const chats = list.flatMap((each) => {
    const fields = record(each);
    if (Array.isArray(fields.messages)) return chatOfMessages(fields.messages, string(fields.title));
    return fields.turns === undefined ? [] : readChat(fields);
  });
  const fresh = new Set<string>();
  return chats.map((chat) => {
    const id = isTaken(chat.id) || fresh.has(chat.id) ? newId() : chat.id;
    fresh.add(id);
    return { ...chat, id };
  });
}

type Fields = Record<string, unknown>;

function record(value: unknown): Fields {
  return typeof value === 'object' && value !== null ? (value as Fields) : {};
}

function string(value: unknown, otherwise = ''): string {
  return typeof value === 'string' ? value : otherwise;
}

function number(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isFinite(value) ? value : undefined;
}

function id(value: unknown): string {
  return typeof value === 'string' && /^\w{1,64}$/.test(value) ? value : newId();
}

function readChat(fields: Fields): Chat[] {
  const turns: Record<string, Turn> = {};
  for (const each of Object.values(record(fields.turns))) {
    const turn = readTurn(record(each));
    if (turn) turns[turn.id] = turn;
  }
  if (Object.keys(turns).length === 0) return [];
  const chosen: Record<string, string> = {};
  for (const [parent, child] of Object.entries(record(fields.chosen))) {
    if (typeof child === 'string' && Object.hasOwn(turns, child)) chosen[parent] = child;
  }
  const created = number(fields.created) ?? Date.now();
  const model = string(fields.model);
  const from = string(fields.from);
  return [
    {
      id: id(fields.id),
      title: string(fields.title).slice(0, 500) || '…',
      created,
      updated: number(fields.updated) ?? created,
      isNamed: fields.isNamed === true,
      system: string(fields.system),
      turns,
      chosen,
      ...(model !== '' && { model }),
      ...(Object.hasOwn(turns, from) && { from }),
    },
  ];
}

function readTurn(fields: Fields): Turn | undefined {
  const { role } = fields;
  if (role !== 'user' && role !== 'assistant') return undefined;
  const parts = Array.isArray(fields.parts) ? fields.parts : [];
  const files = Array.isArray(fields.files) ? fields.files : [];
  const [finish, model] = [string(fields.finish), string(fields.model)];
  const [usage, timings] = [record(fields.usage), record(fields.timings)];
  const [prompt, generated] = [number(usage.prompt), number(usage.generated)];
  return {
    id: id(fields.id),
    parent: string(fields.parent),
    role,
    created: number(fields.created) ?? Date.now(),
    parts: parts.flatMap((part) => readPart(record(part))),
    ...(files.length > 0 && {
      files: files.map((file): TextFile => {
        const { name, text } = record(file);
        return { name: string(name, '…'), text: string(text) };
      }),
    }),
    ...(role === 'assistant' && {
      finish: finish === 'length' || finish === 'stopped' || finish === 'cut' ? finish : ('stop' as const),
    }),
    ...(model !== '' && { model }),
    ...(role === 'assistant' && Array.isArray(fields.messages) && { messages: fields.messages }),
    ...(prompt !== undefined &&
      generated !== undefined && { usage: { prompt, generated, cached: number(usage.cached) } }),
    ...(Object.keys(timings).length > 0 && {
      timings: {
        firstTokenMs: number(timings.firstTokenMs),
        tokensPerSecond: number(timings.tokensPerSecond),
      },
    }),
  };
}

function readPart(fields: Fields): Part[] {
  const result = fields.result === undefined ? undefined : record(fields.result);
  switch (fields.type) {
    case 'text':
      return [{ type: 'text', text: string(fields.text) }];
    case 'tool':
      return [
        {
          type: 'tool',
          id: id(fields.id),
          name: string(fields.name),
          arguments: string(fields.arguments),
          ...(result && { result: { content: string(result.content), ok: result.ok === true } }),
        },
      ];
    case 'code':
      return [
        {
          type: 'code',
          id: id(fields.id),
          code: string(fields.code),
          ...(result && {
            result: {
              status: string(result.status, 'ok'),
              text: string(result.text),
              tookMs: number(result.tookMs),
              files: Array.isArray(result.files) ? result.files.map((file) => readFile(record(file))) : [],
            },
          }),
        },
      ];
    default:
      return [];
  }
}

function readFile({ name, mediaType, url }: Fields): ResultFile {
  return {
    name: string(name, '…'),
    mediaType: string(mediaType),
    ...(typeof url === 'string' && url.startsWith('data:') && { url }),
  };
}

function chatOfMessages(messages: readonly unknown[], title: string): Chat[] {
  const now = Date.now();
  const turns: Record<string, Turn> = {};
  let [system, parent] = ['', ''];
  messages.forEach((message, index) => {
    const { role, content } = record(message);
    const text = Array.isArray(content) ? content.map((part) => string(record(part).text)).join('\n') : string(content);
    if (role === 'system' || role === 'developer') system = text;
    if ((role !== 'user' && role !== 'assistant') || text === '') return;
    const turn: Turn = { id: newId(), parent, role, created: now + index, parts: [{ type: 'text', text }] };
    if (role === 'assistant') turn.finish = 'stop';
    turns[turn.id] = turn;
    parent = turn.id;
  });
  const first = Object.values(turns)[0];
  if (!first) return [];
  const name = title || titleFrom(textOf(first)) || '…';
  return [{ id: newId(), title: name, created: now, updated: now, isNamed: false, system, turns, chosen: {} }];
}
