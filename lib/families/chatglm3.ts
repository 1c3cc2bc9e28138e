import { dumpJson, strip, stripEnd, stripStart } from '../common/python-text.js';
import { CHATGLM_ARCHITECTURE, CHATGLM2_PREFIX, CHATGLM2_TOKENS, type Family, ROPE_BASE } from './family.js';
import type { ChatMessage, Role } from './messages.js';
import type { PromptPart } from './prompt.js';
import { parseToolCall } from './python-call.js';
import { type ExpectedCalls, type Outcome, type Segment, TextSegment } from './reply.js';

const ROLE_TOKENS = {
  system: '<|system|>',
  user: '<|user|>',
  assistant: '<|assistant|>',
  observation: '<|observation|>',
} as const satisfies Record<Role, string>;

/** ChatGLM3-6B: a token for each role, tools, and a code interpreter (PROMPT.md of THUDM/ChatGLM3). */
export const chatglm3 = {
  name: 'chatglm3',
  title: 'ChatGLM3',
  namePattern: /chatglm-?3/i,
  tokenizerMark: /<\|(user|assistant)\|>/,
  tokenizer: 'sentencepiece-bpe',
  specialTokens: [...CHATGLM2_TOKENS, ...Object.values(ROLE_TOKENS)],
  roleTokens: ROLE_TOKENS,
  prefixTokens: CHATGLM2_PREFIX,
  // <|assistant|> is none of them: text behind that token belongs to the same answer, which is how ChatGLM3 says
  // something and calls a tool at once.
  stopTokens: [ROLE_TOKENS.user, ROLE_TOKENS.observation],
  architecture: CHATGLM_ARCHITECTURE,
  // chatglm3-6b-32k and -128k multiply the base of the frequencies.
  rotary: (ropeRatio: number) => ({ ropeBase: ROPE_BASE * ropeRatio, ropeScale: 1 }),
  chat: {
    hasTools: true,
    // The line of metadata, which is empty; its own dummy prefix comes first.
    answerPrefix: ' \n',
    toolCall: { open: (name: string) => `${name}\n \`\`\`python\ntool_call(`, close: ')\n```' },
    codePrefix: 'interpreter\n',
    partToken: ROLE_TOKENS.assistant,
    // llama.cpp knows the format by the template's first lines.
    jinjaTemplate:
      '{% for m in messages %}{% if loop.first %}[gMASK]sop{% endif %}' +
      "<|{{ m['role'] }}|>\n {{ m['content'] }}{% endfor %}" +
      '{% if add_generation_prompt %}<|assistant|>{% endif %}',
    prompt,
    openSegment: (expected: ExpectedCalls): Segment => openSegment(expected),
    // THUDM's code keeps the answer as it was generated.
    toMessage: (outcome: Outcome): ChatMessage => ({
      role: 'assistant',
      metadata: outcome.kind === 'text' ? '' : outcome.name,
      content: outcome.content,
    }),
  },
} as const satisfies Family;

/** Each message is its role's token, its metadata's line and its content, the two encoded apart. */
function prompt(messages: readonly ChatMessage[]): PromptPart[] {
  const parts: PromptPart[] = CHATGLM2_PREFIX.map((token) => ({ token }));
  for (const { role, content, metadata, tools } of messages) {
    parts.push({ token: ROLE_TOKENS[role] }, `${metadata ?? ''}\n`, tools ? `${content}\n${dumpJson(tools)}` : content);
  }
  parts.push({ token: ROLE_TOKENS.assistant });
  return parts;
}

/** The metadata of code for the interpreter. */
export const INTERPRETER = 'interpreter';

/** What follows the name of a tool that the model was not told about, where the part is a call all the same. */
const CALL_OPENINGS = ['```python', 'tool_call('];
const LONGEST_OPENING = Math.max(...CALL_OPENINGS.map((opening) => opening.length));

/** The most characters of a tool's name that the model made up. */
const LONGEST_NAME = 64;

function openSegment(expected: ExpectedCalls): Segment {
  return expected.interpreter || expected.tools.size > 0 ? new ChatGLM3Segment(expected) : new TextSegment();
}

/**
 * A part of an answer to a model that has tools or an interpreter. The first line tells what the part is:
 *
 * - a declared tool's name, whatever its characters and with white space around it or not: a call;
 * - `interpreter`, where there is one: code;
 * - where there are tools, another name (letters, digits, `_`, `.` and `-`) that a fence of Python or `tool_call(` follows:
 *   a call of a tool that there is not, which the model can be told, if it can be read as a call, which its end shows;
 * - anything else: text.
 *
 * While that is open, each character is looked at once, and what is kept for comparison is bounded by the names' lengths.
 */
class ChatGLM3Segment implements Segment {
  readonly #expected: ExpectedCalls;
  readonly #undecided: string[] = [];
  readonly #line: FirstLine;
  /** What stands behind the line of a name that is not declared, without white space before it. */
  #opening: string | undefined;
  #text: TextSegment | undefined;
  #call: { name: string; content: string[] } | undefined;

  constructor(expected: ExpectedCalls) {
    this.#expected = expected;
    const { tools, interpreter } = expected;
    this.#line = new FirstLine(interpreter ? [...tools, INTERPRETER] : tools, tools.size > 0);
  }

  push(text: string): string {
    if (this.#call) {
      this.#call.content.push(text);
      return '';
    }
    if (this.#text) return this.#text.push(text);
    this.#undecided.push(text);
    if (this.#opening !== undefined) return this.#open(text);
    const rest = this.#line.push(text);
    if (rest === undefined) return this.#line.mayBeCall ? '' : this.#becomeText();
    if (this.#line.declared !== undefined) return this.#becomeCall(this.#line.declared);
    if (!this.#line.isName) return this.#becomeText();
    this.#opening = '';
    return this.#open(rest);
  }

  end(): string {
    if (this.#call && this.#isNoCall(this.#call)) {
      this.#undecided.push(...this.#call.content.slice(1));
      this.#call = undefined;
    }
    const decided = this.#call || this.#text ? '' : this.#becomeText();
    return decided + (this.#text?.end() ?? '');
  }

  /** A heading over a program looks like the name of a tool that there is not over a call; nothing else tells the two apart. */
  #isNoCall({ name, content }: { name: string; content: string[] }): boolean {
    const { tools, interpreter } = this.#expected;
    if (tools.has(name) || (interpreter && name === INTERPRETER)) return false;
    return parseToolCall(content.join(''), name) === undefined;
  }

  outcome(): Outcome {
    if (!this.#call) return this.#text?.outcome() ?? { kind: 'text', content: '' };
    const { name } = this.#call;
    // The space is the dummy prefix with which the content was encoded in training. Encoding adds the space again.
    const content = this.#call.content.join('').replace(/^ /, '');
    const { tools, interpreter } = this.#expected;
    if (name === INTERPRETER && interpreter && !tools.has(name)) {
      return { kind: 'code', name, content, code: unfence(content) };
    }
    const parsed = parseToolCall(content, name);
    return parsed ? { kind: 'call', name, content, arguments: parsed } : { kind: 'call', name, content };
  }

  /** More of what follows the line of a name that is not declared. */
  #open(text: string): string {
    const more = this.#opening === '' ? stripStart(text) : text;
    const opening = this.#opening + more.slice(0, LONGEST_OPENING);
    this.#opening = opening;
    if (CALL_OPENINGS.some((prefix) => opening.startsWith(prefix))) return this.#becomeCall(this.#line.text);
    return CALL_OPENINGS.some((prefix) => prefix.startsWith(opening)) ? '' : this.#becomeText();
  }

  #becomeCall(name: string): string {
    const all = this.#undecided.join('');
    this.#call = { name, content: [all.slice(all.indexOf('\n') + 1)] };
    return '';
  }

  #becomeText(): string {
    this.#text = new TextSegment();
    return this.#text.push(this.#undecided.join(''));
  }
}

/** The line that a part begins with, compared with the names that it may have while it comes. */
class FirstLine {
  /** The line so far, without white space around it; complete only as long as the line may be a call. */
  text = '';
  /** The declared name that the whole line is. */
  declared: string | undefined;
  /** White space that belongs to the line if anything else follows it. */
  #spaces = '';
  /** The declared names that begin with `text`, as they are declared and without white space around them. */
  #candidates: { name: string; text: string }[];
  readonly #longest: number;
  #isName: boolean;
  #characters = 0;

  /** @param takesOthers Whether the line may be another name than those of `names`. */
  constructor(names: Iterable<string>, takesOthers: boolean) {
    // Of two names that differ by the white space around them, the plain one comes first.
    this.#candidates = Array.from(names, (name) => ({ name, text: strip(name) }))
      .filter(({ text }) => text !== '')
      .sort((a, b) => a.name.length - a.text.length - (b.name.length - b.text.length));
    this.#longest = this.#candidates.reduce((most, { text }) => Math.max(most, text.length), 0);
    this.#isName = takesOthers;
  }

  /** Whether the line is a name that someone may have made up. */
  get isName(): boolean {
    return this.#isName && this.#characters > 0;
  }

  /** Whether the line may still come to be a name. */
  get mayBeCall(): boolean {
    return this.#isName || this.#candidates.length > 0;
  }

  /** Takes more of the line. Returns what stands behind it, once it is complete. */
  push(text: string): string | undefined {
    let at = 0;
    for (const character of text) {
      if (!this.mayBeCall) return undefined;
      at += character.length;
      if (character === '\n') {
        this.declared = this.#candidates.find((candidate) => candidate.text.length === this.text.length)?.name;
        return text.slice(at);
      }
      if (strip(character) !== '') this.#append(character);
      else if (this.text !== '' && this.#spaces.length <= this.#longest) this.#spaces += character;
    }
    return undefined;
  }

  #append(character: string): void {
    const added = this.#spaces + character;
    const at = this.text.length;
    this.#candidates = this.#candidates.filter((candidate) => candidate.text.startsWith(added, at));
    this.#isName &&= this.#spaces === '' && /[\p{L}\p{N}_.-]/u.test(character) && ++this.#characters <= LONGEST_NAME;
    this.#spaces = '';
    this.text += added;
  }
}

/** The code in a Markdown fence without what stands behind it, or all of the text when there is none. */
export function unfence(content: string): string {
  const text = strip(content);
  const opening = /^```[^\n]*\n/.exec(text);
  if (!opening) return text;
  const lines = text.slice(opening[0].length).split('\n');
  const isFence = (line: string) => /^[ \t]*```$/.test(stripEnd(line));
  const last = lines.length - 1;
  // A fence at the very end may follow the last line's code directly.
  const end = lines.at(-1)?.endsWith('```') ? last : lines.findLastIndex(isFence);
  if (end < 0) return lines.join('\n');
  if (isFence(lines[end] as string)) return lines.slice(0, end).join('\n');
  return [...lines.slice(0, end), stripEnd((lines[end] as string).slice(0, -'```'.length))].join('\n');
}
