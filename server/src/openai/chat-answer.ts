import type { ChatChunk, ChatReply, ExecutionResult, Model, ToolCall } from 'node-chatglm';
import { toOpenAI } from 'node-chatglm';
import type { ChoiceWriter } from '../chat/choices.js';
import { freshId } from '../chat/choices.js';
import type { ChatOrder } from './chat-request.js';
import { chatLogprobs, TokenAligner } from './token-texts.js';

/** OpenAI's reason for the end of an answer. */
export function finishReason({ finishReason: reason }: ChatReply, usesFunctions: boolean): string {
  if (reason === 'tool_call') return usesFunctions ? 'function_call' : 'tool_calls';
  return reason === 'length' ? 'length' : 'stop';
}

function calledFunction({ name, arguments: given, raw }: ToolCall): { name: string; arguments: string } {
  // What cannot be read is told as the model wrote it.
  return { name, arguments: given === undefined ? raw : JSON.stringify(given) };
}

/** A choice of a chat completion. */
export function chatChoice(
  reply: ChatReply,
  index: number,
  { order, model: { tokenizer }, contextTokens }: { order: ChatOrder; model: Model; contextTokens: () => number },
): object {
  const { text, toolCall, logprobs } = reply;
  const message: Record<string, unknown> = {
    role: 'assistant',
    content: toolCall && text === '' ? null : text,
    refusal: null,
    annotations: [],
  };
  if (toolCall) {
    const called = calledFunction(toolCall);
    if (order.usesFunctions) message.function_call = called;
    else message.tool_calls = [{ id: freshId('call_'), type: 'function', function: called }];
  }
  if (order.runsTools) {
    message.chatglm = { ...saidBy(reply, contextTokens()), steps: reply.steps.map(toStep) };
  }
  return {
    index,
    message,
    logprobs: order.withLogprobs ? { content: contentLogprobs(), refusal: null } : null,
    finish_reason: finishReason(reply, order.usesFunctions),
  };

  function contentLogprobs(): unknown {
    const aligner = new TokenAligner(tokenizer);
    const shown = [...aligner.push(text, logprobs ?? []), ...aligner.end()];
    return JSON.parse(`[${chatLogprobs(tokenizer, shown)}]`);
  }
}

/** All that an answer said, called and learned, for the next request; and how much of the context is taken then. */
function saidBy({ messages }: ChatReply, contextTokens: number): object {
  return { messages: toOpenAI(messages), context_tokens: contextTokens };
}

/** What the server did between question and answer, as the last answer tells it. */
function toStep(step: ChatReply['steps'][number]): object {
  if (step.type === 'code') return { type: 'code', code: step.code, result: toExecution(step.result) };
  const { call, result } = step;
  return {
    type: 'tool',
    call: calledFunction(call),
    result: { name: result.name, ok: result.ok, content: result.content },
  };
}

/** What code gave; files as data URLs. */
function toExecution({ status, text, files, tookMs }: ExecutionResult): object {
  return {
    status,
    text,
    took_ms: tookMs,
    files: files.map(({ name, mediaType, data }) => ({
      name,
      media_type: mediaType,
      url: `data:${mediaType};base64,${Buffer.from(data).toString('base64')}`,
    })),
  };
}

/** The parts of a chunk's JSON that are the same in all of an answer's chunks. */
export interface ChunkFrame {
  /** Up to the list of choices. */
  head: string;
  /** Behind it. */
  tail: string;
}

/** Writes a choice of a chat completion as chunks. */
export class ChatChoiceWriter implements ChoiceWriter<ChatChunk, ChatReply> {
  readonly #frame: ChunkFrame;
  readonly #index: number;
  readonly #order: ChatOrder;
  readonly #model: Model;
  #aligner: TokenAligner | undefined;
  /** A chunk with text, up to its text and behind it. */
  readonly #beforeText: string;
  readonly #afterText: string;
  #text = '';
  #logprobs = '';
  /** Events of steps, and of text that came before them. */
  #events = '';
  #hasBegun = false;

  readonly #contextTokens: () => number;

  /** @param setup.contextTokens How much of the context the conversation takes, once it has the answer. */
  constructor(
    index: number,
    setup: { frame: ChunkFrame; order: ChatOrder; model: Model; contextTokens: () => number },
  ) {
    const { frame, order, model } = setup;
    this.#contextTokens = setup.contextTokens;
    this.#frame = frame;
    this.#index = index;
    this.#order = order;
    this.#model = model;
    this.#aligner = order.withLogprobs ? new TokenAligner(model.tokenizer) : undefined;
    this.#beforeText = `data: ${frame.head}{"index":${index},"delta":{"content":`;
    this.#afterText = `},"logprobs":null,"finish_reason":null}${frame.tail}\n\n`;
  }

  push(chunk: ChatChunk): void {
    if (chunk.type !== 'text') {
      if (this.#order.runsTools) this.#pushStep(chunk);
      return;
    }
    this.#text += chunk.text;
    if (this.#aligner)
      this.#addLogprobs(chatLogprobs(this.#model.tokenizer, this.#aligner.push(chunk.text, chunk.logprobs ?? [])));
  }

  flush(): string {
    this.#takeText();
    const events = this.#events;
    if (events === '') return '';
    this.#events = '';
    return this.#begin() + events;
  }

  end(reply: ChatReply): string {
    if (this.#aligner) this.#addLogprobs(chatLogprobs(this.#model.tokenizer, this.#aligner.end()));
    this.#takeText();
    let events = this.#begin(reply.toolCall && this.#events === '' ? 'null' : '""') + this.#events;
    this.#events = '';
    if (reply.toolCall) {
      const { name, arguments: given } = calledFunction(reply.toolCall);
      const rest = JSON.stringify(given);
      if (this.#order.usesFunctions) {
        events += this.#chunk(`{"function_call":{"name":${JSON.stringify(name)},"arguments":""}}`);
        events += this.#chunk(`{"function_call":{"arguments":${rest}}}`);
      } else {
        const called = `"function":{"name":${JSON.stringify(name)},"arguments":""}`;
        events += this.#chunk(`{"tool_calls":[{"index":0,"id":"${freshId('call_')}","type":"function",${called}}]}`);
        events += this.#chunk(`{"tool_calls":[{"index":0,"function":{"arguments":${rest}}}]}`);
      }
    }
    const extra = this.#order.runsTools
      ? { type: 'messages', index: this.#index, ...saidBy(reply, this.#contextTokens()) }
      : undefined;
    return events + this.#chunk('{}', { finish: finishReason(reply, this.#order.usesFunctions), extra });
  }

  /** The chunk that says who speaks. @param content JSON of the text so far; null where there will be none. */
  #begin(content = '""'): string {
    if (this.#hasBegun) return '';
    this.#hasBegun = true;
    return this.#chunk(`{"role":"assistant","content":${content},"refusal":null}`);
  }

  #takeText(): void {
    if (this.#text === '' && this.#logprobs === '') return;
    const text = JSON.stringify(this.#text);
    this.#text = '';
    if (this.#logprobs === '') {
      this.#events += this.#beforeText + text + this.#afterText;
      return;
    }
    this.#events += this.#chunk(`{"content":${text}}`, { logprobs: this.#logprobs });
    this.#logprobs = '';
  }

  #addLogprobs(entries: string): void {
    if (entries === '') return;
    this.#logprobs += this.#logprobs === '' ? entries : `,${entries}`;
  }

  #pushStep(step: Exclude<ChatChunk, { type: 'text' }>): void {
    if (this.#aligner) {
      // What was not shown until here was a call, or code.
      this.#addLogprobs(chatLogprobs(this.#model.tokenizer, this.#aligner.end()));
      this.#aligner = new TokenAligner(this.#model.tokenizer);
    }
    this.#takeText();
    const told = { type: step.type, index: this.#index, ...stepFields(step) };
    this.#events += this.#chunk('{}', { extra: told });
  }

  /** @param more.logprobs JSON of the entries. */
  #chunk(
    delta: string,
    { logprobs, finish, extra }: { logprobs?: string; finish?: string; extra?: object | undefined } = {},
  ): string {
    const { head, tail } = this.#frame;
    const content = logprobs === undefined ? 'null' : `{"content":[${logprobs}],"refusal":null}`;
    const reason = finish === undefined ? 'null' : `"${finish}"`;
    const choice = `{"index":${this.#index},"delta":${delta},"logprobs":${content},"finish_reason":${reason}}`;
    // An object's end is the last letter of the tail.
    const end = extra === undefined ? tail : `${tail.slice(0, -1)},"chatglm":${JSON.stringify(extra)}}`;
    return `data: ${head}${choice}${end}\n\n`;
  }
}

function stepFields(step: Exclude<ChatChunk, { type: 'text' }>): object {
  switch (step.type) {
    case 'tool-call':
      return { call: calledFunction(step.call) };
    case 'tool-result':
      return { result: { name: step.result.name, ok: step.result.ok, content: step.result.content } };
    case 'code':
      return { code: step.code };
    case 'code-result':
      return { result: toExecution(step.result) };
  }
}
