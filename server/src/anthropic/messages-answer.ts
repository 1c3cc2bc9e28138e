import { randomUUID } from 'node:crypto';
import type { ChatChunk, ChatReply, Model, TraceEvent, Usage } from 'node-chatglm';
import type { ChoiceWriter } from '../chat/choices.js';
import { anthropicErrorType } from '../http/error-handler.js';
import type { ApiError } from '../http/errors.js';

/** An id as Anthropic writes them: what the thing is, and letters that nobody can guess. */
export function newId(kind: 'msg' | 'toolu'): string {
  return `${kind}_${randomUUID().replaceAll('-', '')}`;
}

/** What a message has from its beginning to its end. */
export interface MessageFrame {
  id: string;
  model: string;
}

/** A block of an answer. */
export type Block =
  | { type: 'text'; text: string; citations: null }
  | { type: 'tool_use'; id: string; name: string; input: object; caller: { type: 'direct' } };

/** Why an answer ended, and the stop sequence that ended it. */
export interface Stop {
  stop_reason: 'end_turn' | 'max_tokens' | 'stop_sequence' | 'tool_use' | 'model_context_window_exceeded';
  stop_sequence: string | null;
}

export function stopOf(
  { finishReason, tokens, usage, toolCall }: ChatReply,
  { tokenizer, info }: Model,
  stops: readonly string[],
): Stop {
  switch (finishReason) {
    case 'length': {
      const isFull = usage.promptTokens + usage.generatedTokens >= info.contextLength;
      return { stop_reason: isFull ? 'model_context_window_exceeded' : 'max_tokens', stop_sequence: null };
    }
    case 'stop_sequence':
      return { stop_reason: 'stop_sequence', stop_sequence: stopSequence(tokenizer.decode(tokens), stops) };
    case 'tool_call':
      return { stop_reason: toolCall?.arguments ? 'tool_use' : 'end_turn', stop_sequence: null };
    default:
      return { stop_reason: 'end_turn', stop_sequence: null };
  }
}

/** The stop sequence that a text ended with: the one that begins first, and of two that begin there the shorter one. */
export function stopSequence(text: string, stops: readonly string[]): string | null {
  let first = Number.POSITIVE_INFINITY;
  let found: string | null = null;
  for (const stop of stops) {
    const at = text.indexOf(stop);
    if (at < 0 || at > first || (at === first && found !== null && found.length <= stop.length)) continue;
    first = at;
    found = stop;
  }
  return found;
}

/** What an answer says and calls. A call that cannot be read is no call in this API: what the model wrote is text. */
export function blocksOf({ text, toolCall }: ChatReply): Block[] {
  const { said, input } = callOf(text, toolCall);
  const blocks: Block[] = said === '' ? [] : [{ type: 'text', text: said, citations: null }];
  if (toolCall && input) blocks.push(toolUse(toolCall.name, input));
  return blocks;
}

function callOf(text: string, toolCall: ChatReply['toolCall']): { said: string; input: object | undefined } {
  if (!toolCall || toolCall.arguments) return { said: text, input: toolCall?.arguments };
  const written = `${toolCall.name}\n${toolCall.raw}`;
  return { said: text === '' ? written : `${text}\n${written}`, input: undefined };
}

function toolUse(name: string, input: object): Block & { type: 'tool_use' } {
  return { type: 'tool_use', id: newId('toolu'), name, input, caller: { type: 'direct' } };
}

/** The tokens of a message. Anthropic counts those that were kept from earlier requests apart. */
export function messagesUsage({ promptTokens, cachedTokens, generatedTokens }: Usage): object {
  return {
    input_tokens: promptTokens - cachedTokens,
    cache_creation_input_tokens: 0,
    cache_read_input_tokens: cachedTokens,
    output_tokens: generatedTokens,
    service_tier: 'standard',
  };
}

/** A message as Anthropic writes it. */
export function toMessage(
  { id, model }: MessageFrame,
  { content, stop, usage }: { content: readonly Block[]; stop: Stop | undefined; usage: object },
): Record<string, unknown> {
  return {
    id,
    type: 'message',
    role: 'assistant',
    model,
    content,
    stop_reason: stop?.stop_reason ?? null,
    stop_sequence: stop?.stop_sequence ?? null,
    usage,
  };
}

/** Counts the tokens of a prompt while they are computed: a stream tells them with its first event. */
export class PromptCount {
  #cached = 0;
  #computed = 0;
  #isComplete = false;

  readonly onTrace = ({ phase, tokens }: TraceEvent): void => {
    if (this.#isComplete) return;
    if (phase === 'admitted') {
      // A request that was admitted again begins anew.
      this.#cached = tokens;
      this.#computed = 0;
    }
    if (phase === 'prefill') this.#computed += tokens;
  };

  /** Called with the first token: what is admitted from now on are tokens of the answer, too. */
  get usage(): Usage {
    this.#isComplete = true;
    return {
      promptTokens: this.#cached + this.#computed,
      cachedTokens: this.#cached,
      generatedTokens: 1,
      speculatedTokens: 0,
    };
  }
}

/** What a client hears while it waits. */
export const PING = event('ping', {});

function event(type: string, fields: object): string {
  return `event: ${type}\ndata: ${JSON.stringify({ type, ...fields })}\n\n`;
}

const BEFORE_TEXT =
  'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":';

/** Writes a message as the events of its stream. */
export class MessageWriter implements ChoiceWriter<ChatChunk, ChatReply> {
  readonly #frame: MessageFrame;
  readonly #prompt: PromptCount;
  readonly #model: Model;
  readonly #stops: readonly string[];
  readonly #requestId: string;
  #text = '';
  #hasText = false;
  #hasBegun = false;

  constructor(
    frame: MessageFrame,
    {
      prompt,
      model,
      stops,
      requestId,
    }: { prompt: PromptCount; model: Model; stops: readonly string[]; requestId: string },
  ) {
    this.#frame = frame;
    this.#prompt = prompt;
    this.#model = model;
    this.#stops = stops;
    this.#requestId = requestId;
  }

  push(chunk: ChatChunk): void {
    this.#text += chunk.text;
  }

  flush(): string {
    if (this.#text === '') return '';
    let events = this.#begin();
    if (!this.#hasText) {
      this.#hasText = true;
      events += event('content_block_start', { index: 0, content_block: { type: 'text', text: '', citations: null } });
    }
    events += `${BEFORE_TEXT}${JSON.stringify(this.#text)}}}\n\n`;
    this.#text = '';
    return events;
  }

  end(reply: ChatReply): string {
    const { toolCall, usage } = reply;
    const { said, input } = callOf(reply.text, toolCall);
    this.#text += said.slice(reply.text.length);
    let events = this.flush() + this.#begin();
    if (this.#hasText) events += event('content_block_stop', { index: 0 });
    if (toolCall && input) {
      const index = this.#hasText ? 1 : 0;
      const partial_json = JSON.stringify(input);
      events += event('content_block_start', { index, content_block: toolUse(toolCall.name, {}) });
      events += event('content_block_delta', { index, delta: { type: 'input_json_delta', partial_json } });
      events += event('content_block_stop', { index });
    }
    const delta = stopOf(reply, this.#model, this.#stops);
    return events + event('message_delta', { delta, usage: messagesUsage(usage) }) + event('message_stop', {});
  }

  /** The event of a failure behind the first ones. */
  failed(error: ApiError): string {
    const { message } = error;
    return event('error', { error: { type: anthropicErrorType(error), message }, request_id: this.#requestId });
  }

  #begin(): string {
    if (this.#hasBegun) return '';
    this.#hasBegun = true;
    const usage = messagesUsage(this.#prompt.usage);
    return event('message_start', { message: toMessage(this.#frame, { content: [], stop: undefined, usage }) });
  }
}
