import { dumpJson, strip, stripStart } from '../common/python-text.js';
import { CHATGLM_ARCHITECTURE, CHATGLM2_PREFIX, CHATGLM2_TOKENS, type Family, ROPE_BASE } from './family.js';
import type { ChatMessage, Role } from './messages.js';
import type { PromptPart } from './prompt.js';
import { parseToolCall } from './python-call.js';
import { type Outcome, type Segment, TextSegment } from './reply.js';

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
    partToken: ROLE_TOKENS.assistant,
    // llama.cpp knows the format by the template's first lines.
    jinjaTemplate:
      '{% for m in messages %}{% if loop.first %}[gMASK]sop{% endif %}' +
      "<|{{ m['role'] }}|>\n {{ m['content'] }}{% endfor %}" +
      '{% if add_generation_prompt %}<|assistant|>{% endif %}',
    prompt,
    openSegment: (tools: ReadonlySet<string>): Segment => new ChatGLM3Segment(tools),
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
const CALL_OPENINGS = ['```', 'tool_call('];

/** A segment that begins with a line of metadata: what the segment is shows only after a while. */
class ChatGLM3Segment implements Segment {
  readonly #tools: ReadonlySet<string>;
  #undecided = '';
  #text: TextSegment | undefined;
  #call: { name: string; content: string[] } | undefined;

  constructor(tools: ReadonlySet<string>) {
    this.#tools = tools;
  }

  push(text: string): string {
    if (this.#call) {
      this.#call.content.push(text);
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
    const { name } = this.#call;
    // The space is the dummy prefix with which the content was encoded in training. Encoding adds the space again.
    const content = this.#call.content.join('').replace(/^ /, '');
    if (name === INTERPRETER && !this.#tools.has(name)) return { kind: 'code', name, content, code: unfence(content) };
    const parsed = parseToolCall(content);
    return parsed ? { kind: 'call', name, content, arguments: parsed } : { kind: 'call', name, content };
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
    if (name === INTERPRETER || this.#tools.has(name) || CALL_OPENINGS.some((prefix) => opening.startsWith(prefix))) {
      this.#call = { name, content: [content] };
      return '';
    }
    const mayBeCall = CALL_OPENINGS.some((prefix) => prefix.startsWith(opening));
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

/** The code in a Markdown fence, or all of the text when there is none. */
export function unfence(content: string): string {
  const text = strip(content);
  const opening = /^```[^\n]*\n/.exec(text);
  if (!opening) return text;
  const code = text.slice(opening[0].length);
  const closing = /\n?[ \t]*```[ \t]*$/.exec(code);
  return closing ? code.slice(0, closing.index) : code;
}
