import { strip, stripStart } from '../common/python-text.js';
import type { Literal } from '../families/python-call.js';
import { type Outcome, type Segment, TextSegment } from '../families/reply.js';
import { parseTextToolCall } from '../tools/text-prompting.js';

/** An answer that follows a grammar: it is shown as it stands, but for what a family's answers begin with. */
export class VerbatimSegment implements Segment {
  readonly #pieces: string[] = [];
  #before: string;

  /** @param before What comes before the answer itself; of its end a space may be absent. */
  constructor(before: string) {
    this.#before = before;
  }

  push(text: string): string {
    let rest = text;
    while (this.#before !== '' && rest !== '') {
      if (rest[0] === this.#before[0]) rest = rest.slice(1);
      else if (this.#before !== ' ') return this.#keep(rest);
      this.#before = this.#before.slice(1);
    }
    return this.#keep(rest);
  }

  #keep(text: string): string {
    if (text !== '') this.#pieces.push(text);
    return text;
  }

  end(): string {
    return '';
  }

  outcome(): Outcome {
    return { kind: 'text', content: this.#pieces.join('') };
  }
}

/** An answer that may be a call in JSON, as the prompt has asked for one: what looks like one is held back. */
export class TextCallSegment implements Segment {
  readonly #tools: ReadonlySet<string>;
  #undecided: string[] | undefined = [];
  #text: TextSegment | undefined;
  #call: Outcome | undefined;

  constructor(tools: ReadonlySet<string>) {
    this.#tools = tools;
  }

  push(text: string): string {
    if (this.#text) return this.#text.push(text);
    this.#undecided?.push(text);
    // White space alone says nothing yet; what begins otherwise than JSON, or a fence around JSON, is text.
    const begin = stripStart(this.#undecided?.join('').slice(0, 1000) ?? '');
    if (begin === '' || begin.startsWith('{') || '```'.startsWith(begin.slice(0, 3))) return '';
    return this.#becomeText();
  }

  end(): string {
    if (this.#text) return this.#text.end();
    const content = strip(this.#undecided?.join('') ?? '');
    const call = parseTextToolCall(content, this.#tools);
    if (call) {
      this.#call = { kind: 'call', name: call.name, content, arguments: call.arguments as Record<string, Literal> };
      return '';
    }
    return this.#becomeText() + (this.#text as unknown as TextSegment).end();
  }

  outcome(): Outcome {
    return this.#call ?? this.#text?.outcome() ?? { kind: 'text', content: '' };
  }

  #becomeText(): string {
    const text = this.#undecided?.join('') ?? '';
    this.#undecided = undefined;
    this.#text = new TextSegment();
    return this.#text.push(text);
  }
}
