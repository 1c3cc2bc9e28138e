import type { ChatChunk, ChatReply, Model, Usage } from 'node-chatglm';
import type { ChoiceWriter } from '../chat/choices.js';
import type { ApiError } from '../http/errors.js';
import type { Fields } from '../http/fields.js';
import { type Item, newId } from './responses-input.js';
import { chatLogprobs, TokenAligner } from './token-texts.js';

/** What a response has from its beginning to its end. */
export interface ResponseFrame {
  id: string;
  createdAt: number;
  model: string;
  echo: Fields;
}

/** What becomes of a response. */
interface Outcome {
  status: 'in_progress' | 'completed' | 'incomplete' | 'failed';
  output?: readonly Item[];
  error?: { code: string; message: string };
  usage?: object;
}

/** A response as OpenAI writes it. */
export function toResponse(
  { id, createdAt, model, echo }: ResponseFrame,
  { status, output = [], error, usage }: Outcome,
): Record<string, unknown> {
  return {
    id,
    object: 'response',
    created_at: createdAt,
    completed_at: status === 'completed' ? Math.floor(Date.now() / 1000) : null,
    status,
    error: error ?? null,
    incomplete_details: status === 'incomplete' ? { reason: 'max_output_tokens' } : null,
    model,
    output,
    usage: usage ?? null,
    ...echo,
  };
}

/** The ids of what an answer is made of. */
export interface AnswerIds {
  message: string;
  call: string;
  callItem: string;
}

export function newAnswerIds(): AnswerIds {
  return { message: newId('msg'), call: newId('call'), callItem: newId('fc') };
}

/** The tokens of a response, in the names of this API. */
export function responsesUsage({ promptTokens, cachedTokens, generatedTokens }: Usage): object {
  return {
    input_tokens: promptTokens,
    input_tokens_details: { cached_tokens: cachedTokens },
    output_tokens: generatedTokens,
    output_tokens_details: { reasoning_tokens: 0 },
    total_tokens: promptTokens + generatedTokens,
  };
}

export function statusOf({ finishReason }: ChatReply): 'completed' | 'incomplete' {
  return finishReason === 'length' ? 'incomplete' : 'completed';
}

/** What an answer says and calls, as items. An answer that says nothing has a message with no text, unless it calls. */
export function outputItems(reply: ChatReply, ids: AnswerIds, logprobs: readonly unknown[]): Item[] {
  const items: Item[] = [];
  if (reply.text !== '' || !reply.toolCall) {
    const content: Item = {
      id: ids.message,
      type: 'message',
      status: statusOf(reply),
      role: 'assistant',
      content: [{ type: 'output_text', text: reply.text, annotations: [], logprobs: [...logprobs] }],
    };
    items.push(content);
  }
  if (reply.toolCall) {
    const { name, arguments: given, raw } = reply.toolCall;
    items.push({
      id: ids.callItem,
      type: 'function_call',
      status: 'completed',
      call_id: ids.call,
      name,
      // What cannot be read is told as the model wrote it.
      arguments: given === undefined ? raw : JSON.stringify(given),
    });
  }
  return items;
}

/** Log-probabilities of an answer's text. */
export function outputLogprobs({ text, logprobs }: ChatReply, { tokenizer }: Model): unknown[] {
  const aligner = new TokenAligner(tokenizer);
  const shown = [...aligner.push(text, logprobs ?? []), ...aligner.end()];
  return JSON.parse(`[${chatLogprobs(tokenizer, shown)}]`);
}

/** Writes a response as the typed events of its stream. */
export class ResponseWriter implements ChoiceWriter<ChatChunk, ChatReply> {
  readonly #frame: ResponseFrame;
  readonly #ids: AnswerIds;
  readonly #model: Model;
  readonly #aligner: TokenAligner | undefined;
  /** An event with text, up to its text. */
  readonly #beforeText: string;
  #text = '';
  /** JSON of the entries for the text that was not sent yet, and for all text. */
  #logprobs = '';
  #allLogprobs = '';
  #sequence = 0;
  #hasBegun = false;
  #hasMessage = false;
  #output: Item[] = [];

  constructor(frame: ResponseFrame, ids: AnswerIds, model: Model, withLogprobs: boolean) {
    this.#frame = frame;
    this.#ids = ids;
    this.#model = model;
    this.#aligner = withLogprobs ? new TokenAligner(model.tokenizer) : undefined;
    const type = 'response.output_text.delta';
    const place = JSON.stringify({ type, item_id: ids.message, output_index: 0, content_index: 0 });
    this.#beforeText = `event: ${type}\ndata: ${place.slice(0, -1)},"delta":`;
  }

  /** What the answer was made of, once {@link end} was called. */
  get output(): readonly Item[] {
    return this.#output;
  }

  push(chunk: ChatChunk): void {
    this.#text += chunk.text;
    if (this.#aligner) this.#addLogprobs(this.#aligner.push(chunk.text, chunk.logprobs ?? []));
  }

  flush(): string {
    if (this.#text === '' && this.#logprobs === '') return '';
    const events = this.#beginMessage();
    const text = JSON.stringify(this.#text);
    const delta = `${this.#beforeText}${text},"logprobs":[${this.#logprobs}],"sequence_number":${this.#sequence++}}\n\n`;
    this.#text = '';
    this.#logprobs = '';
    return events + delta;
  }

  end(reply: ChatReply): string {
    if (this.#aligner) this.#addLogprobs(this.#aligner.end());
    let events = this.flush();
    this.#output = outputItems(reply, this.#ids, JSON.parse(`[${this.#allLogprobs}]`) as unknown[]);
    for (const [index, item] of this.#output.entries()) {
      if (item.type === 'message') events += this.#beginMessage() + this.#endMessage(item);
      if (item.type === 'function_call') events += this.#begin() + this.#call(item, index);
    }
    return events;
  }

  /** The event that tells how the response ended. */
  last(response: Fields): string {
    return this.#event(`response.${response.status}`, { response });
  }

  /** The events of a failure behind the first ones. */
  failed({ code, message, param, status }: ApiError): string {
    const error = { code: status === 429 ? 'rate_limit_exceeded' : 'server_error', message };
    return (
      this.#event('error', { code, message, param }) +
      this.last(toResponse(this.#frame, { status: 'failed', error, output: this.#output }))
    );
  }

  #event(type: string, fields: object): string {
    const data = JSON.stringify({ type, ...fields, sequence_number: this.#sequence++ });
    return `event: ${type}\ndata: ${data}\n\n`;
  }

  #begin(): string {
    if (this.#hasBegun) return '';
    this.#hasBegun = true;
    const response = toResponse(this.#frame, { status: 'in_progress' });
    return this.#event('response.created', { response }) + this.#event('response.in_progress', { response });
  }

  #beginMessage(): string {
    if (this.#hasMessage) return '';
    this.#hasMessage = true;
    const item = { id: this.#ids.message, type: 'message', status: 'in_progress', role: 'assistant', content: [] };
    const part = { type: 'output_text', text: '', annotations: [], logprobs: [] };
    return (
      this.#begin() +
      this.#event('response.output_item.added', { output_index: 0, item }) +
      this.#event('response.content_part.added', { item_id: item.id, output_index: 0, content_index: 0, part })
    );
  }

  #endMessage(item: Item & { type: 'message' }): string {
    const place = { item_id: item.id, output_index: 0, content_index: 0 };
    const [part] = item.content;
    const { text, logprobs } = part as { text: string; logprobs: unknown[] };
    return (
      this.#event('response.output_text.done', { ...place, text, logprobs }) +
      this.#event('response.content_part.done', { ...place, part }) +
      this.#event('response.output_item.done', { output_index: 0, item })
    );
  }

  #call(item: Item & { type: 'function_call' }, index: number): string {
    const begun = { ...item, status: 'in_progress', arguments: '' };
    const place = { item_id: item.id, output_index: index };
    return (
      this.#event('response.output_item.added', { output_index: index, item: begun }) +
      this.#event('response.function_call_arguments.delta', { ...place, delta: item.arguments }) +
      this.#event('response.function_call_arguments.done', { ...place, name: item.name, arguments: item.arguments }) +
      this.#event('response.output_item.done', { output_index: index, item })
    );
  }

  #addLogprobs(shown: Parameters<typeof chatLogprobs>[1]): void {
    const entries = chatLogprobs(this.#model.tokenizer, shown);
    if (entries === '') return;
    this.#logprobs += this.#logprobs === '' ? entries : `,${entries}`;
    this.#allLogprobs += this.#allLogprobs === '' ? entries : `,${entries}`;
  }
}
