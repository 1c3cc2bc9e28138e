import type {
  Chat,
  ChatChunk,
  ChatMessage,
  ChatOptions,
  ChatReply,
  ChatStore,
  ChatStream,
  GenerateOptions,
  Model,
  SavedChat,
  ChatStoreSession as StoredSession,
  Tool,
} from '../../index.js';
import { type OptionSpec, type OptionValues, readOption, UsageError } from '../arguments.js';
import { onInterrupt, PATIENCE_MS } from '../interrupt.js';
import { generateOptions, toGenerateOptions } from '../model-options.js';
import { forTerminal, jsonText, print, printJson, write } from '../output.js';
import { statsLine } from '../stats.js';
import { readChat, writeChat } from './chat-file.js';
import type { ChatInput } from './input.js';
import { MarkdownStream } from './markdown.js';
import { expandHome, isPath } from './paths.js';
import { hasColors } from './style.js';
import { tell, tellCode, tellLine } from './tell.js';

/** What `/set` changes. */
export const settingOptions = {
  ...generateOptions,
  stats: { kind: 'flag', about: 'Print the numbers of tokens and their speed after each answer' },
  plain: { kind: 'flag', about: 'Show answers as they are, without their Markdown' },
} as const satisfies Record<string, OptionSpec>;

export type Settings = OptionValues<typeof settingOptions>;

export interface ConversationSetup {
  model: Model;
  input: ChatInput;
  options: ChatOptions;
  tools: readonly Tool[];
  settings: Settings;
  isJson: boolean;
  /** The model's code is shown where it is asked for. */
  asksForCode: boolean;
  /** Opens the folder of saved conversations. */
  store: () => Promise<ChatStore>;
}

/** What happens between the texts of an answer. */
type Step = Exclude<ChatChunk, { type: 'text' }>;

/** A saved conversation that is open. */
export interface Session {
  name: string;
  stored: StoredSession;
}

/** One conversation on a terminal or in a pipe. */
export class Conversation {
  readonly model: Model;
  readonly input: ChatInput;
  readonly tools: readonly Tool[];
  readonly settings: Settings;
  readonly store: () => Promise<ChatStore>;
  readonly chat: Chat;
  /** The last answer. */
  lastReply: ChatReply | undefined;
  readonly #isJson: boolean;
  readonly #asksForCode: boolean;
  #session: Session | undefined;

  constructor({ model, input, options, tools, settings, isJson, asksForCode, store }: ConversationSetup) {
    this.model = model;
    this.input = input;
    this.tools = tools;
    this.settings = settings;
    this.store = store;
    this.#isJson = isJson;
    this.#asksForCode = asksForCode;
    this.chat = model.createChat(options);
  }

  /** The session that is kept, if any. */
  get sessionName(): string | undefined {
    return this.#session?.name;
  }

  /** Sends a message and shows the answer. */
  async say(text: string): Promise<void> {
    await this.#show(() => this.chat.stream(text, this.#generation()));
  }

  async regenerate(): Promise<void> {
    await this.#show(() => this.chat.regenerate(this.#generation()));
  }

  /** Says the last message in other words. Whatever goes wrong, the conversation is what it was. */
  async sayInstead(text: string): Promise<void> {
    const taken = this.chat.undo();
    const kept = this.chat.history.length;
    try {
      await this.say(text);
    } finally {
      if (this.chat.history.length === kept) this.chat.history.push(...taken);
    }
  }

  async undo(): Promise<ChatMessage[]> {
    const taken = this.chat.undo();
    await this.keep();
    return taken;
  }

  async setSystem(text: string | undefined): Promise<void> {
    this.chat.system = text;
    await this.keep();
  }

  /** Forgets everything but the system message. */
  async clear(): Promise<void> {
    this.chat.history = this.chat.history.filter(({ role }) => role === 'system');
    this.lastReply = undefined;
    await this.keep();
  }

  /** Goes on with a saved conversation, which is kept from now on; one of a file only with `/save`. */
  async load(name: string): Promise<void> {
    if (isPath(name)) {
      const file = expandHome(name);
      const chat = await readChat(file);
      if (!chat) throw new Error(`${file}: there is no such file`);
      this.#adopt(chat.history);
      return;
    }
    const isOwn = name === this.#session?.name;
    const stored = isOwn ? (this.#session as Session).stored : await (await this.store()).open(name);
    const chat = await stored.load();
    if (!chat) {
      if (!isOwn) await stored.close();
      throw new Error(`there is no session ${name}`);
    }
    await this.enter({ name, stored }, chat);
  }

  /** Keeps the conversation in a session from now on, and goes on with what was saved there, if anything was. */
  async enter(session: Session, chat: SavedChat | undefined): Promise<void> {
    if (chat) this.#adopt(chat.history);
    if (session.stored !== this.#session?.stored) await this.#session?.stored.close();
    this.#session = session;
    this.lastReply = undefined;
  }

  /** Takes over a history; the tools are those of this run. */
  #adopt(history: readonly ChatMessage[]): void {
    const [own] = this.chat.history;
    this.chat.history = history;
    if (own?.role !== 'system' || !own.tools) return;
    const [first] = this.chat.history;
    if (first?.role === 'system') first.tools = own.tools;
    else this.chat.history.unshift(own);
  }

  /** Saves the conversation under a name, and keeps it there from now on; a path gets it once. */
  async saveAs(name: string): Promise<boolean> {
    if (isPath(name)) {
      await writeChat(expandHome(name), this.chat.toJSON());
      return true;
    }
    if (name !== this.#session?.name) {
      const stored = await (await this.store()).open(name);
      const isThere = (await (await this.store()).list()).some((chat) => chat.name === name);
      if (isThere && !(await this.input.confirm(`There is a session ${name}. Replace it?`))) {
        await stored.close();
        return false;
      }
      await this.#session?.stored.close();
      this.#session = { name, stored };
    }
    await this.#session?.stored.save(this.chat.toJSON());
    return true;
  }

  /** Writes the session, if there is one. */
  async keep(): Promise<void> {
    if (!this.#session) return;
    try {
      await this.#session.stored.save(this.chat.toJSON());
    } catch (error) {
      if (!this.input.isInteractive) throw error;
      tell(`chatglm: the session was not saved: ${(error as Error).message}`);
    }
  }

  async close(): Promise<void> {
    await this.chat.dispose();
    await this.#session?.stored.close();
  }

  /** Sets what `/set` sets; undefined takes it back to the default. */
  set(name: string, value: string | undefined): void {
    const option = Object.hasOwn(settingOptions, name) ? settingOptions[name as keyof Settings] : undefined;
    if (!option) throw new UsageError(`there is no option ${name}: /set lists them`);
    const settings = this.settings as Record<string, unknown>;
    if (value === undefined) {
      delete settings[name];
    } else if (option.kind === 'flag') {
      if (!/^(on|off|true|false)$/i.test(value)) throw new UsageError(`${name} must be on or off, got ${value}`);
      settings[name] = /^(on|true)$/i.test(value);
    } else {
      settings[name] = readOption(name, option, value);
    }
  }

  #generation(): GenerateOptions {
    return toGenerateOptions(this.settings);
  }

  async #show(begin: () => ChatStream): Promise<void> {
    const answer = begin();
    const shown = this.#isJson ? undefined : this.#screen();
    const steps: Step[] = [];
    let stoppedAt: number | undefined;
    const release = onInterrupt(() => {
      if (stoppedAt === undefined) {
        stoppedAt = performance.now();
        void answer.return();
      } else if (!this.input.isInteractive || performance.now() - stoppedAt > PATIENCE_MS) {
        // The answer does not end: a tool, or a driver, hangs. Whatever holds the process would hold any other end up as
        // well; the terminal is given back by the input's listener of 'exit'.
        process.exit(130);
      }
    });
    try {
      for await (const part of answer) {
        if (part.type !== 'text') steps.push(part);
        shown?.part(part);
      }
    } finally {
      release();
      shown?.end();
    }
    const reply = await answer.result;
    this.lastReply = reply;
    if (this.#isJson) this.#printReply(reply, steps);
    this.#explain(reply, this.#isJson);
    const { droppedMessages: dropped } = reply;
    if (dropped > 0) tell(`[the context is full: the ${dropped} oldest messages were left out]`);
    if (this.settings.stats) tell(statsLine(reply));
    await this.keep();
  }

  #printReply({ text, finishReason, toolCall, code, usage, timings, seed }: ChatReply, steps: readonly Step[]): void {
    printJson({
      text,
      finishReason,
      ...(toolCall ? { toolCall } : {}),
      ...(code === undefined ? {} : { code }),
      ...(steps.length > 0 ? { steps: steps.map(stepFacts) } : {}),
      usage,
      timings,
      seed,
    });
  }

  #explain({ text, finishReason, toolCall, code, messages, usage }: ChatReply, isJson: boolean): void {
    const metadata = messages[0]?.metadata;
    if (!isJson && finishReason === 'tool_call' && toolCall) {
      tellLine(callLine(toolCall.name, toolCall.arguments), 'dim');
      tell(`[the model called ${toolCall.name}: only tools of a module, see --tools, are carried out]`);
    } else if (!isJson && code !== undefined) {
      tell('[the model wrote code for its interpreter: see --interpreter]');
    } else if (!isJson && text === '' && metadata) {
      tell(`[the model called ${metadata}: tools are for the API, or for --tools]`);
    }
    if (finishReason !== 'length') return;
    const most = this.settings['max-tokens'];
    if (most !== undefined && usage.generatedTokens >= most) {
      tell('[the answer was cut off: no more tokens were allowed, see --max-tokens]');
    } else {
      tell('[the answer was cut off: the context is full. /clear forgets the conversation, /undo the last message]');
    }
  }

  /** What shows the parts of an answer. */
  #screen(): { part(part: ChatChunk): void; end(): void } {
    const isTerminal = process.stdout.isTTY === true;
    if (!isTerminal || this.settings.plain) return this.#plainScreen();
    const setup = {
      write: (text: string) => void process.stdout.write(text),
      // The last column stays free: what a terminal does with a cursor behind it differs.
      columns: () => Math.max(2, (process.stdout.columns || 80) - 1),
      hasColors: hasColors(process.stdout),
    };
    let markdown = new MarkdownStream(setup);
    let hasText = false;
    return {
      part: (part) => {
        if (part.type === 'text') {
          // Texts with a call between them are on lines of their own already.
          const text = hasText ? part.text : part.text.replace(/^\n+/, '');
          markdown.push(forTerminal(text));
          hasText ||= text !== '';
          return;
        }
        markdown.end();
        if (hasText) print('');
        hasText = false;
        markdown = new MarkdownStream(setup);
        this.#activity(part);
      },
      end: () => {
        markdown.end();
        if (hasText) print('');
      },
    };
  }

  #plainScreen(): { part(part: ChatChunk): void; end(): void } {
    let hasText = false;
    return {
      part: (part) => {
        if (part.type === 'text') {
          write(part.text);
          hasText ||= part.text !== '';
          return;
        }
        if (hasText) print('');
        hasText = false;
        this.#activity(part);
      },
      end: () => print(''),
    };
  }

  /** A call of a tool, or what came of it, on one line; code on as many as it has. */
  #activity(part: Step): void {
    switch (part.type) {
      case 'tool-call':
        tellLine(callLine(part.call.name, part.call.arguments), 'dim');
        break;
      case 'tool-result':
        tellLine(`← ${part.result.ok ? '' : 'failed: '}${part.result.content}`, 'dim');
        break;
      case 'code':
        if (!this.#asksForCode) tellCode(part.code);
        break;
      case 'code-result': {
        const { status, text } = part.result;
        tellLine(`← ${status === 'ok' ? '' : `${status}: `}${text}`, 'dim');
        for (const { name, mediaType } of part.result.files) tellLine(`← file ${name}, ${mediaType}`, 'dim');
        break;
      }
    }
  }
}

/** `→ get_weather(city="北京")` */
function callLine(name: string, args: Record<string, unknown> | undefined): string {
  const list = Object.entries(args ?? {}).map(([key, value]) => `${key}=${jsonText(value)}`);
  return `→ ${name}(${list.join(', ')})`;
}

/** What `--json` says of a call, a result, the model's code or what came of it. */
function stepFacts(step: Step): Record<string, unknown> {
  switch (step.type) {
    case 'tool-call':
      return { type: step.type, name: step.call.name, arguments: step.call.arguments };
    case 'tool-result':
      return { type: step.type, name: step.result.name, content: step.result.content, ok: step.result.ok };
    case 'code':
      return { type: step.type, code: step.code };
    case 'code-result':
      return { type: step.type, status: step.result.status, text: step.result.text };
  }
}
