import type { NativeGrammar } from '../addon/native.js';
import { invalidArgument } from '../common/errors.js';
import { show } from '../common/options.js';
import type { ChatFormat } from '../families/family.js';
import { renameRules } from '../structured/gbnf.js';
import type { ResponseGrammar } from '../structured/response-format.js';
import { schemaToGrammar } from '../structured/schema-grammar.js';
import type { ToolSet } from '../tools/tool-set.js';

/** Whether the model may call tools: as it likes, not at all, or no other way; or one tool alone. */
export type ToolChoice = 'auto' | 'none' | 'required' | { name: string };

export function readToolChoice(value: unknown, tools: ToolSet): ToolChoice {
  if (value === undefined || value === 'auto') return 'auto';
  if (value === 'none') return 'none';
  if (value === 'required') {
    if (tools.size === 0) throw invalidArgument("toolChoice is 'required', and there are no tools");
    return value;
  }
  // OpenAI's shape, too: { type: 'function', function: { name } }.
  const choice = value as { name?: unknown; function?: { name?: unknown } | null } | null;
  const name = typeof choice === 'object' ? (choice?.function?.name ?? choice?.name) : undefined;
  if (typeof name !== 'string') {
    throw invalidArgument(`toolChoice must be auto, none, required or { name }, got ${show(value)}`);
  }
  if (!tools.names.has(name)) throw invalidArgument(`toolChoice names ${show(name)}, which is none of the tools`);
  return { name };
}

/** What one answer has to follow. */
export interface AnswerRules {
  format: ChatFormat;
  /** Whether the tokenizer puts a space before a text. */
  dummySpace: boolean;
  tools: ToolSet;
  choice: ToolChoice;
  /** How the model was told of the tools. */
  prompting: 'native' | 'text';
  /** Whether the answer may be code for the interpreter. */
  interpreter: boolean;
  response: ResponseGrammar | undefined;
}

/** A text that is no call in JSON, which `toolPrompting: 'text'` asks for: such a call may stand in a fence. */
const NO_JSON = 'root ::= ([^{`\\x20\\n\\r\\t] .*)?';

/**
 * The grammar of an answer; undefined where the answer is free.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where the family's calls cannot be told by a grammar, or a strict tool's schema
 *   cannot.
 */
export function answerGrammar(answer: AnswerRules): NativeGrammar | undefined {
  const { format, dummySpace, tools, choice, prompting, response } = answer;
  const offered = choice === 'none' ? [] : [...tools.names];
  const isForced = choice !== 'auto' && choice !== 'none';
  const isStrict = offered.some((name) => tools.get(name)?.strict === true);
  const { answerPrefix: prefix = '', codePrefix } = format;
  const writesCode = answer.interpreter && codePrefix !== undefined && !isForced;
  const hasAlternatives = offered.length > 0 || writesCode;
  if (!isForced && !isStrict && !(response && hasAlternatives)) {
    return response && { text: response.grammar, prefix, dummySpace };
  }
  const wanted = typeof choice === 'object' ? [choice.name] : offered;
  const rules: string[] = [];
  const alternatives: string[] = [];
  const addCalls = (dialect: 'json' | 'python-call', open: (name: string) => string, close: string) => {
    for (const [index, name] of wanted.entries()) {
      const { parameters, strict } = tools.get(name) ?? {};
      rules.push(
        renameRules(argumentsGrammar(parameters, { dialect, name, isStrict: strict === true }), `call${index}-`),
      );
      alternatives.push(`${literal(open(name))} call${index}-root ${literal(close)}`);
    }
  };
  if (prompting === 'text') {
    addCalls('json', (name) => `{"tool": ${JSON.stringify(name)}, "arguments": `, '}');
    if (!isForced) {
      rules.push(renameRules(response?.grammar ?? NO_JSON, 'text-'));
      alternatives.push('text-root');
    }
    // Calls are texts like others: all of them stand behind what a text begins with.
    return { text: grammarOf(alternatives, rules), prefix, dummySpace };
  }
  if (wanted.length > 0) {
    const { toolCall: syntax } = format;
    if (syntax === undefined)
      throw invalidArgument('no grammar can hold an answer to calls in the format of this family');
    addCalls('python-call', syntax.open, syntax.close);
  }
  if (writesCode) alternatives.push(`${literal(codePrefix)} .*`);
  if (!isForced) {
    rules.push(renameRules(response?.grammar ?? 'root ::= .*', 'text-'));
    // Where the answer may begin with a space, the dummy space is a must, so that it is clear which is which.
    const space = dummySpace ? (response?.beginsWithSpace === false ? '" "?' : '" "') : '';
    // The space before the whole is the grammar's own.
    alternatives.push(`${literal(dummySpace ? prefix.replace(/^ /, '') : prefix)} ${response ? space : ''} text-root`);
  }
  return { text: grammarOf(alternatives, rules), prefix: '', dummySpace };
}

function grammarOf(alternatives: readonly string[], rules: readonly string[]): string {
  return `root ::= ${alternatives.join(' | ')}\n${rules.join('\n')}`;
}

/** The grammar of a tool's arguments. A schema that no grammar can hold an answer to is only an error where the tool is strict. */
function argumentsGrammar(
  parameters: Readonly<Record<string, unknown>> | undefined,
  { dialect, name, isStrict }: { dialect: 'json' | 'python-call'; name: string; isStrict: boolean },
): string {
  const anything = { type: 'object', additionalProperties: true };
  try {
    return schemaToGrammar(parameters ?? anything, { dialect, name: `the parameters of ${name}` });
  } catch (error) {
    if (isStrict) throw error;
    return schemaToGrammar(anything, { dialect });
  }
}

function literal(text: string): string {
  const escaped = text
    .replaceAll(/[\\"]/g, '\\$&')
    .replaceAll('\n', '\\n')
    .replaceAll('\r', '\\r')
    .replaceAll('\t', '\\t');
  return `"${escaped}"`;
}
