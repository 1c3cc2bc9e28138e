import { type Signal, signal } from '@preact/signals';
import { type Chunk, RequestError, type Step, streamChat } from '../api/client.js';
import { connection, hasTools, lost, modelFor, needsKey, refreshModels } from '../api/server.js';
import { alter, answering, begin, current, opened, save, show } from './chats.js';
import { settings } from './settings.js';
import { newId, pathOf, textOf, titleFrom } from './tree.js';
import type { Chat, CodePart, Part, Problem, TextFile, ToolPart, Turn } from './types.js';

/** An answer on its way. */
interface Run {
  chatId: string;
  turn: Signal<Turn>;
  controller: AbortController;
}

/** The answers on their way, by conversation. */
export const runs = signal<ReadonlyMap<string, Run>>(new Map());
/** What screen readers are told. */
export const announced = signal('');

const SAVE_MS = 1000;
/** More than a browser needs from the end of a page's requests to the end of the page. */
const LEAVING_MS = 200;

answering.end = (id) => runs.value.get(id)?.controller.abort();
answering.isBusy = (id) => runs.value.has(id);

/** Asks a question in the current conversation, or in a new one. */
export function ask(text: string, files: TextFile[]): void {
  const open = current.value;
  if (open && runs.value.has(open.id)) return;
  const chat = open ?? begin(titleFrom(text) || files[0]?.name || '…');
  const parent = pathOf(chat).at(-1)?.id ?? '';
  addQuestion(chat.id, parent, text, files);
  void show(chat.id);
}

/** Asks a question anew, as a branch beside the one that was. */
export function askAgain(chat: Chat, turn: Turn, text: string, files: TextFile[] | undefined): void {
  if (runs.value.has(chat.id)) return;
  addQuestion(chat.id, turn.parent, text, files ?? []);
}

function addQuestion(chatId: string, parent: string, text: string, files: TextFile[]): void {
  const question: Turn = {
    id: newId(),
    parent,
    role: 'user',
    created: Date.now(),
    parts: [{ type: 'text', text }],
    ...(files.length > 0 && { files }),
  };
  alter(chatId, (chat) => withTurn(chat, question));
  void answer(chatId, question.id);
}

/** Another answer beside the one that there is. */
export function regenerate(chat: Chat, turn: Turn): void {
  if (!runs.value.has(chat.id)) void answer(chat.id, turn.parent);
}

/**
 * Tries again to give an answer that failed, in its place.
 *
 * @param options.dropOldest Whether the oldest questions are left out until the rest fits.
 * @param options.isFull Whether the conversation fits, but leaves no room: then the oldest question is left out at once.
 */
export function retry(
  chat: Chat,
  turn: Turn,
  options: { dropOldest?: boolean | undefined; isFull?: boolean | undefined } = {},
): void {
  if (!runs.value.has(chat.id)) void answer(chat.id, turn.parent, { ...options, id: turn.id });
}

export function stop(chatId: string): void {
  runs.value.get(chatId)?.controller.abort();
}

function withTurn(chat: Chat, turn: Turn): Chat {
  return {
    ...chat,
    turns: { ...chat.turns, [turn.id]: turn },
    chosen: { ...chat.chosen, [turn.parent]: turn.id },
  };
}

function setRun(chatId: string, run: Run | undefined): void {
  const map = new Map(runs.value);
  if (run) map.set(chatId, run);
  else map.delete(chatId);
  runs.value = map;
}

async function answer(
  chatId: string,
  questionId: string,
  {
    id = newId(),
    dropOldest = settings.value.dropOldest,
    isFull = false,
  }: { id?: string; dropOldest?: boolean | undefined; isFull?: boolean | undefined } = {},
): Promise<void> {
  const created = Date.now();
  const begun = alter(chatId, (chat) => {
    const model = modelFor(chat.model)?.id;
    return withTurn(chat, {
      id,
      parent: questionId,
      role: 'assistant',
      created: chat.turns[id]?.created ?? created,
      parts: [],
      ...(model !== undefined && { model }),
    });
  });
  const first = begun?.turns[id];
  if (!begun || !first) return;
  const turn = signal(first);
  const controller = new AbortController();
  setRun(chatId, { chatId, turn, controller });
  const draft = new Draft(turn, () => {
    const chat = opened(chatId);
    if (chat) void save(withTurn(chat, turn.peek()));
  });
  let from = isFull ? (nextQuestion(begun, questionId, begun.from) ?? begun.from) : begun.from;
  try {
    for (;;) {
      try {
        await streamChat(requestBody(begun, questionId, from), {
          conversation: chatId,
          signal: controller.signal,
          onChunk: (chunk) => draft.push(chunk),
        });
        draft.finish();
        break;
      } catch (error) {
        const isFull = error instanceof RequestError && error.problem.kind === 'context';
        const next = isFull && dropOldest ? nextQuestion(begun, questionId, from) : undefined;
        if (next === undefined) throw error;
        from = next;
      }
    }
  } catch (error) {
    // A browser that closes a page ends its requests first: what looks like a broken connection may be that.
    if (!controller.signal.aborted) await new Promise((resolve) => setTimeout(resolve, LEAVING_MS));
    if (isLeaving) draft.end('cut');
    else if (controller.signal.aborted) draft.end('stopped');
    else if (error instanceof RequestError) draft.fail(error.problem);
    else draft.fail({ kind: 'server', message: String(error) });
  } finally {
    const { problem } = draft.turn;
    setRun(chatId, undefined);
    alter(chatId, (chat) => ({ ...withTurn(chat, draft.turn), ...(from !== undefined && { from }) }));
    announced.value = problem ? '' : textOf(draft.turn).slice(0, 400);
    if (problem?.kind === 'offline' || problem?.kind === 'broken') lost();
    else if (problem?.kind === 'key') needsKey.value = true;
    else {
      connection.value = 'online';
      if (modelFor(begun.model)?.contextLength === undefined) void refreshModels();
    }
  }
}

/** The question after the one with which begins what the model is told; none where only the last one is left. */
function nextQuestion(chat: Chat, questionId: string, from: string | undefined): string | undefined {
  const questions = pathTo(chat, questionId).filter(({ role }) => role === 'user');
  const at = Math.max(
    0,
    questions.findIndex(({ id }) => id === from),
  );
  return questions[at + 1]?.id;
}

/** From the first question to this one. */
function pathTo(chat: Chat, id: string): Turn[] {
  const path: Turn[] = [];
  for (let turn = chat.turns[id]; turn && !path.includes(turn); turn = chat.turns[turn.parent]) path.push(turn);
  return path.reverse();
}

function requestBody(chat: Chat, questionId: string, from: string | undefined): object {
  const { temperature, topP, maxTokens, seed, useTools } = settings.value;
  const path = pathTo(chat, questionId);
  const begins = Math.max(
    0,
    path.findIndex(({ id }) => id === from),
  );
  const messages: unknown[] = chat.system.trim() === '' ? [] : [{ role: 'system', content: chat.system }];
  path.slice(begins).forEach((turn, index, turns) => {
    // A question that got no answer, such as one that was too long, is no part of the conversation.
    const isUnanswered = turn.role === 'user' && turns[index + 1]?.parts.length === 0;
    if (!isUnanswered) messages.push(...toMessages(turn));
  });
  return {
    model: modelFor(chat.model)?.id,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    ...(temperature !== undefined && { temperature }),
    ...(topP !== undefined && { top_p: topP }),
    ...(maxTokens !== undefined && { max_tokens: maxTokens }),
    ...(seed !== undefined && { seed }),
    chatglm: { run_tools: useTools && hasTools.value, timings: true },
  };
}

function toMessages(turn: Turn): unknown[] {
  if (turn.role === 'user') return [{ role: 'user', content: withFiles(textOf(turn), turn.files) }];
  if (turn.messages) return turn.messages;
  return turn.parts.flatMap((part): unknown[] => {
    if (part.type === 'text') return part.text.trim() === '' ? [] : [{ role: 'assistant', content: part.text.trim() }];
    // A call that was cut off has no place in a conversation.
    if (!part.result) return [];
    const called =
      part.type === 'tool'
        ? { name: part.name, arguments: part.arguments }
        : { name: 'interpreter', arguments: JSON.stringify({ code: part.code }) };
    const content = part.type === 'tool' ? part.result.content : part.result.text;
    return [
      { role: 'assistant', content: null, tool_calls: [{ id: part.id, type: 'function', function: called }] },
      { role: 'tool', tool_call_id: part.id, content },
    ];
  });
}

/** The model sees files as text behind the question. */
function withFiles(text: string, files: readonly TextFile[] | undefined): string {
  const blocks = (files ?? []).map((file) => {
    const longest = Math.max(2, ...[...file.text.matchAll(/`+/g)].map(([ticks]) => ticks.length));
    const fence = '`'.repeat(longest + 1);
    return `${file.name}\n${fence}\n${file.text}\n${fence}`;
  });
  return [text, ...blocks].filter((block) => block !== '').join('\n\n');
}

/** Collects an answer; those who look at it see it change once a frame. */
class Draft {
  turn: Turn;
  readonly #shown: Signal<Turn>;
  readonly #save: () => void;
  #isScheduled = false;
  #isOver = false;
  #saved = Date.now();

  constructor(shown: Signal<Turn>, save: () => void) {
    this.#shown = shown;
    this.turn = shown.value;
    this.#save = save;
  }

  push({ choices, usage, timings, chatglm }: Chunk): void {
    const [choice] = choices ?? [];
    const text = choice?.delta?.content;
    if (text) this.#addText(text);
    if (chatglm) this.#addStep(chatglm);
    const ended = choice?.finish_reason;
    const turn = { ...this.turn };
    if (ended) turn.finish = ended === 'length' ? 'length' : 'stop';
    if (usage) {
      turn.usage = {
        prompt: usage.prompt_tokens,
        generated: usage.completion_tokens,
        cached: usage.prompt_tokens_details?.cached_tokens,
      };
    }
    if (timings) {
      turn.timings = { firstTokenMs: timings.first_token_ms, tokensPerSecond: timings.predicted_per_second };
    }
    this.turn = turn;
    this.#schedule();
  }

  finish(): void {
    this.end(this.turn.finish ?? 'stop');
  }

  fail(problem: Problem): void {
    this.end('failed');
    this.turn = { ...this.turn, problem };
  }

  end(finish: NonNullable<Turn['finish']>): void {
    this.#isOver = true;
    this.turn = { ...this.turn, finish };
  }

  #addText(text: string): void {
    const { parts } = this.turn;
    const last = parts.at(-1);
    if (last?.type === 'text') this.#replaceLast({ ...last, text: last.text + text });
    else this.turn = { ...this.turn, parts: [...parts, { type: 'text', text }] };
  }

  #addStep(step: Step): void {
    const { parts } = this.turn;
    if (step.type === 'messages') {
      // Without steps the text is all there is to tell.
      if (parts.some(({ type }) => type !== 'text')) this.turn = { ...this.turn, messages: step.messages };
    } else if (step.type === 'tool-call') {
      const part: ToolPart = { type: 'tool', id: `call_${newId()}`, ...step.call };
      this.turn = { ...this.turn, parts: [...parts, part] };
    } else if (step.type === 'code') {
      const part: CodePart = { type: 'code', id: `call_${newId()}`, code: step.code };
      this.turn = { ...this.turn, parts: [...parts, part] };
    } else {
      const last = parts.at(-1);
      if (step.type === 'tool-result' && last?.type === 'tool') {
        this.#replaceLast({ ...last, result: { content: step.result.content, ok: step.result.ok } });
      } else if (step.type === 'code-result' && last?.type === 'code') {
        const { status, text, took_ms: tookMs, files = [] } = step.result;
        const shown = files.map(({ name, media_type: mediaType, url }) => ({ name, mediaType, url }));
        this.#replaceLast({ ...last, result: { status, text, tookMs, files: shown } });
      }
    }
  }

  #replaceLast(part: Part): void {
    this.turn = { ...this.turn, parts: [...this.turn.parts.slice(0, -1), part] };
  }

  #schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    const show = () => {
      this.#isScheduled = false;
      if (this.#isOver) return;
      this.#shown.value = this.turn;
      if (Date.now() - this.#saved < SAVE_MS) return;
      this.#saved = Date.now();
      this.#save();
    };
    // There are no frames in a window that is hidden.
    if (document.visibilityState === 'visible') requestAnimationFrame(show);
    else setTimeout(show, 250);
  }
}

/** Whether the page is being closed: then the end of a request is no failure of the server's. */
let isLeaving = false;

answering.leave = () => {
  isLeaving = true;
  for (const { chatId, turn } of runs.peek().values()) {
    const chat = opened(chatId);
    if (chat) void save(withTurn(chat, { ...turn.peek(), finish: 'cut' }));
  }
};
addEventListener('pageshow', () => {
  isLeaving = false;
});
