import { strip, stripEnd, stripStart } from '../common/python-text.js';
import type { ChatMessage } from '../families/messages.js';
import type { ChatFamily } from '../families/prompt.js';
import { parseToolCall } from '../families/python-call.js';

/** A tool that the model wants to be called. Send what it gives back with the role `observation`. */
export interface ToolCall {
  name: string;
  /** The arguments. Absent when what the model wrote is no call with literals: see `raw`. */
  arguments?: Record<string, unknown>;
  /** What the model wrote. */
  raw: string;
}

/** What an answer turned out to be. */
export interface ParsedReply {
  /** The last of the visible text, which was held back until now. */
  text: string;
  /** The answer as it belongs in the history: one message for each part. */
  messages: ChatMessage[];
  /** The answer ends with a call of a tool. */
  toolCall?: ToolCall;
  /** The answer ends with Python for the code interpreter: the code, without its fence. */
  code?: string;
}

/**
 * Tells the visible text of an answer from calls of tools while it is being generated.
 *
 * A ChatGLM3 answer has one or more segments, separated by the token `<|assistant|>`. A segment is a line of metadata
 * (a tool's name, `interpreter`, or nothing) and a content; only the content of segments without metadata is for
 * people. Whatever does not look like a call is shown, so that no text is ever lost. A ChatGLM2 answer is one text.
 *
 * Visible text comes as early as it is certain: stripped as THUDM's code strips it, with THUDM's placeholder for the
 * training date filled in, and with a line break between the texts of two segments. Pieces must be whole characters.
 */
export class ReplyParser {
  readonly #family: ChatFamily;
  readonly #tools: ReadonlySet<string>;
  readonly #outcomes: Outcome[] = [];
  #segment: Segment;
  #hasText = false;

  /** @param tools Names of the tools that the model was told about. Default: none. */
  constructor(family: ChatFamily, tools: Iterable<string> = []) {
    this.#family = family;
    this.#tools = new Set(tools);
    this.#segment = this.#open();
  }

  /** The next piece of the answer. Returns the visible text that has become certain. */
  push(text: string): string {
    return this.#visible(this.#segment.push(text));
  }

  /** The token `<|assistant|>` came. Returns visible text that was held back. */
  newSegment(): string {
    const text = this.#visible(this.#segment.end());
    this.#outcomes.push(this.#segment.outcome());
    this.#segment = this.#open();
    return text;
  }

  /** The answer has ended. */
  finish(): ParsedReply {
    const text = this.#visible(this.#segment.end());
    const outcomes = [...this.#outcomes, this.#segment.outcome()];
    const filled = outcomes.filter((outcome) => outcome.kind === 'call' || outcome.content !== '');
    const messages = (filled.length > 0 ? filled : outcomes.slice(-1)).map((outcome) => this.#message(outcome));
    const last = filled.at(-1);
    if (last?.kind !== 'call') return { text, messages };
    const { name, content } = last;
    if (name === interpreter && !this.#tools.has(name)) return { text, messages, code: unfence(content) };
    const parsed = parseToolCall(content);
    return { text, messages, toolCall: parsed ? { name, arguments: parsed, raw: content } : { name, raw: content } };
  }

  #open(): Segment {
    return this.#family === 'chatglm3' ? new ChatGLM3Segment(this.#tools) : new TextSegment();
  }

  #visible(text: string): string {
    if (text === '') return '';
    const separated = this.#hasText && !this.#segment.shown ? `\n${text}` : text;
    this.#segment.shown = true;
    this.#hasText = true;
    return separated;
  }

  #message(outcome: Outcome): ChatMessage {
    // THUDM's ChatGLM2 keeps the text as shown, its ChatGLM3 keeps it as generated.
    if (this.#family === 'chatglm2') return { role: 'assistant', content: fillIn(outcome.content) };
    const metadata = outcome.kind === 'call' ? outcome.name : '';
    return { role: 'assistant', metadata, content: outcome.content };
  }
}

const interpreter = 'interpreter';
const callOpenings = ['```', 'tool_call('];
const placeholder = '[[训练时间]]';

type Outcome = { kind: 'text'; content: string } | { kind: 'call'; name: string; content: string };

/** One part of an answer. push() and end() return what of it may be shown. */
interface Segment {
  /** Whether anything of it has been shown; kept here by the parser. */
  shown: boolean;
  push(text: string): string;
  end(): string;
  outcome(): Outcome;
}

/** A segment that is text for people. */
class TextSegment implements Segment {
  shown = false;
  #all = '';
  #held = '';
  #started = false;

  push(text: string): string {
    this.#all += text;
    this.#held += text;
    if (!this.#started) {
      this.#held = stripStart(this.#held);
      if (this.#held === '') return '';
      this.#started = true;
    }
    const certain = this.#held.length - uncertainEnd(this.#held);
    const shown = this.#held.slice(0, certain);
    this.#held = this.#held.slice(certain);
    return fillIn(shown);
  }

  end(): string {
    // Held back was either white space, which nothing follows now, or the beginning of a placeholder that is none.
    const text = stripEnd(this.#held);
    this.#held = '';
    return text;
  }

  outcome(): Outcome {
    return { kind: 'text', content: strip(this.#all) };
  }
}

/** A segment that begins with a line of metadata: what it is shows only after a while. */
class ChatGLM3Segment implements Segment {
  shown = false;
  readonly #tools: ReadonlySet<string>;
  #undecided = '';
  #text: TextSegment | undefined;
  #call: { name: string; content: string } | undefined;

  constructor(tools: ReadonlySet<string>) {
    this.#tools = tools;
  }

  push(text: string): string {
    if (this.#call) {
      this.#call.content += text;
      return '';
    }
    if (this.#text) return this.#text.push(text);
    this.#undecided += text;
    return this.#decide(false);
  }

  end(): string {
    const decided = this.#call || this.#text ? '' : this.#decide(true);
    return decided + (this.#text?.end() ?? '');
  }

  outcome(): Outcome {
    if (!this.#call) return this.#text?.outcome() ?? { kind: 'text', content: '' };
    // The space is the dummy prefix with which the content was encoded in training. Encoding adds it again.
    return { kind: 'call', name: this.#call.name, content: this.#call.content.replace(/^ /, '') };
  }

  #decide(isEnd: boolean): string {
    const all = this.#undecided;
    const newline = all.indexOf('\n');
    const name = strip(newline < 0 ? all : all.slice(0, newline));
    if (newline < 0) {
      const mayBeName = name === '' || isName(name);
      return mayBeName && !isEnd ? '' : this.#becomeText();
    }
    if (!isName(name)) return this.#becomeText();
    const content = all.slice(newline + 1);
    const opening = stripStart(content);
    if (name === interpreter || this.#tools.has(name) || callOpenings.some((prefix) => opening.startsWith(prefix))) {
      this.#call = { name, content };
      return '';
    }
    const mayBeCall = callOpenings.some((prefix) => prefix.startsWith(opening));
    return mayBeCall && !isEnd ? '' : this.#becomeText();
  }

  #becomeText(): string {
    this.#text = new TextSegment();
    return this.#text.push(this.#undecided);
  }
}

function isName(text: string): boolean {
  return /^[\p{L}\p{N}_.-]{1,64}$/u.test(text);
}

function fillIn(text: string): string {
  return text.replaceAll(placeholder, '2023年');
}

/** How much of the text's end may be stripped, or be the beginning of a placeholder, once the rest has come. */
function uncertainEnd(text: string): number {
  for (let length = Math.min(placeholder.length - 1, text.length); length > 0; length--) {
    if (text.endsWith(placeholder.slice(0, length))) return length;
  }
  return text.length - stripEnd(text).length;
}

/** The code in a Markdown fence, or all of the text when there is none. */
function unfence(content: string): string {
  const text = strip(content);
  const opening = /^```[^\n]*\n/.exec(text);
  if (!opening) return text;
  const code = text.slice(opening[0].length);
  const closing = /\n?[ \t]*```[ \t]*$/.exec(code);
  return closing ? code.slice(0, closing.index) : code;
}
