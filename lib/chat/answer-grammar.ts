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
  response: ResponseGrammar | undefined;
}

/**
 * The grammar of an answer; undefined where the answer is free.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where the family's calls cannot be told by a grammar, or a strict tool's schema
 *   cannot.
 */
export function answerGrammar({ format, dummySpace, tools, choice, response }: AnswerRules): NativeGrammar | undefined {
  const offered = choice === 'none' ? [] : [...tools.names];
  const isForced = choice !== 'auto' && choice !== 'none';
  const isStrict = offered.some((name) => tools.get(name)?.strict === true);
  if (!isForced && !isStrict && !(response && offered.length > 0)) {
    return response && { text: response.grammar, prefix: format.answerPrefix ?? '', dummySpace };
  }
  const { toolCall: syntax } = format;
  if (syntax === undefined) {
    throw invalidArgument(
      'toolChoice, strict tools and responseFormat beside tools need calls in the family’s own format',
    );
  }
  const rules: string[] = [];
  const alternatives: string[] = [];
  const wanted = typeof choice === 'object' ? [choice.name] : offered;
  for (const [index, name] of wanted.entries()) {
    const tool = tools.get(name);
    rules.push(renameRules(argumentsGrammar(tool?.parameters, tool?.strict === true, name), `call${index}-`));
    alternatives.push(`${literal(syntax.open(name))} call${index}-root ${literal(syntax.close)}`);
  }
  if (!isForced) {
    rules.push(renameRules(response?.grammar ?? 'root ::= .*', 'text-'));
    // Where the answer may begin with a space, the dummy space is a must, so that it is clear which is which.
    const space = dummySpace ? (response?.beginsWithSpace === false ? '" "?' : '" "') : '';
    const prefix = format.answerPrefix ?? '';
    // The space before the whole is the grammar's own.
    alternatives.push(`${literal(dummySpace ? prefix.replace(/^ /, '') : prefix)} ${response ? space : ''} text-root`);
  }
  return { text: `root ::= ${alternatives.join(' | ')}\n${rules.join('\n')}`, prefix: '', dummySpace };
}

/** The grammar of a tool's arguments. A schema that no grammar can hold an answer to is only an error where the tool is strict. */
function argumentsGrammar(
  parameters: Readonly<Record<string, unknown>> | undefined,
  isStrict: boolean,
  name: string,
): string {
  const anything = { type: 'object', additionalProperties: true };
  try {
    return schemaToGrammar(parameters ?? anything, { dialect: 'python-call', name: `the parameters of ${name}` });
  } catch (error) {
    if (isStrict) throw error;
    return schemaToGrammar(anything, { dialect: 'python-call' });
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
