import { ChatGLMError, invalidArgument, throwIfAborted } from '../common/errors.js';
import {
  integerOption,
  messageOf,
  type Nullable,
  reading,
  readOptions,
  show,
  signalOption,
} from '../common/options.js';
import { dumpJsonLine } from '../common/python-text.js';
import { CHECKER, type Checker, MOST_TIMEOUT, type Tool, ToolResult } from './tool.js';

/** A tool as a server lists it. */
export interface McpTool {
  /** The tool's name on the server. */
  name: string;
  /** What it is good for. */
  description?: string | undefined;
  /** JSON schema of its arguments. */
  inputSchema: object;
}

/** What {@link toolsFromMcp} needs of a connected `Client` of `@modelcontextprotocol/sdk`. */
export interface McpClient {
  /** Lists one page of the server's tools. */
  listTools(
    params?: { cursor?: string },
    options?: { signal?: AbortSignal; timeout?: number },
  ): Promise<{ tools: McpTool[]; nextCursor?: string | undefined }>;
  /** Calls a tool of the server. */
  callTool(
    params: { name: string; arguments?: Record<string, unknown> },
    resultSchema?: undefined,
    options?: { signal?: AbortSignal; timeout?: number },
  ): Promise<unknown>;
}

/** Options of {@link toolsFromMcp}. */
export interface McpOptions {
  /** Stands before each tool's name, to tell servers apart. Default: nothing. */
  prefix?: string | undefined;
  /** Ends the listing. Calls end with the chat's own signal. Default: none. */
  signal?: AbortSignal | undefined;
  /** Limit of each request, in milliseconds: a page of the list, a call. Default: the chat's limit, of a page 30 seconds. */
  timeoutMs?: number | undefined;
}

/** A server that lists more is not to be believed. */
const MOST_PAGES = 1000;
const LIST_TIMEOUT = 30_000;

/**
 * The tools of a server of the Model Context Protocol. `client` is a `Client` of `@modelcontextprotocol/sdk`, connected; you
 * close it when no chat uses the tools any more.
 *
 * Arguments are checked by the server. Text goes to the model as it is; images, sounds and files are named with their type
 * and size. Structured content is the value that the program gets. What the server calls an error is told to the model as
 * one. Tools that run only as tasks are left out.
 *
 * @throws {ChatGLMError} ERR_TOOL_FAILED where the server does not list its tools; ERR_ABORTED; ERR_INVALID_ARGUMENT.
 *
 * @example
 * ```ts
 * const { Client } = await import('@modelcontextprotocol/sdk/client/index.js');
 * const { StdioClientTransport } = await import('@modelcontextprotocol/sdk/client/stdio.js');
 * const client = new Client({ name: 'my-app', version: '1.0.0' });
 * await client.connect(new StdioClientTransport({ command: 'npx', args: ['-y', '@modelcontextprotocol/server-everything'] }));
 * const tools = await toolsFromMcp(client);
 * console.log(tools.map(({ name }) => name));
 * ```
 */
export async function toolsFromMcp(client: McpClient, options: Nullable<McpOptions> = {}): Promise<Tool[]> {
  const set = readOptions<McpOptions>(options, ['prefix', 'signal', 'timeoutMs'], 'toolsFromMcp()');
  const { prefix = '' } = set;
  if (typeof prefix !== 'string') throw invalidArgument(`prefix must be a string, got ${show(prefix)}`);
  const signal = signalOption(set.signal);
  const timeoutMs = integerOption('timeoutMs', set.timeoutMs, undefined, { least: 1, most: MOST_TIMEOUT });
  reading('client', () => {
    if (typeof client?.listTools === 'function' && typeof client.callTool === 'function') return;
    throw invalidArgument(`client must be a Client of @modelcontextprotocol/sdk, got ${show(client)}`);
  });
  throwIfAborted(signal);
  const listed = await listAll(client, { ...(signal && { signal }), timeout: timeoutMs ?? LIST_TIMEOUT });
  return listed.filter((tool) => !isTask(tool)).map((tool) => toolOf(client, tool, prefix, timeoutMs));
}

async function listAll(client: McpClient, options: { signal?: AbortSignal; timeout: number }): Promise<McpTool[]> {
  const tools: McpTool[] = [];
  let cursor: string | undefined;
  try {
    for (let page = 0; page < MOST_PAGES; page++) {
      const { tools: more, nextCursor } = await client.listTools(cursor === undefined ? {} : { cursor }, options);
      for (const tool of more) {
        const { name, inputSchema } = tool;
        const isTool = typeof name === 'string' && typeof inputSchema === 'object' && inputSchema !== null;
        if (!isTool) throw new TypeError('what it lists is no tool');
        tools.push(tool);
      }
      if (nextCursor === undefined) return tools;
      cursor = nextCursor;
    }
  } catch (thrown) {
    throwIfAborted(options.signal);
    throw new ChatGLMError('ERR_TOOL_FAILED', `the server does not list its tools: ${messageOf(thrown)}`, {}, thrown);
  }
  throw new ChatGLMError('ERR_TOOL_FAILED', `the server's list of tools has more than ${MOST_PAGES} pages`);
}

/** Whether the tool cannot be called: it wants to be begun as a task, and asked for. */
function isTask(tool: McpTool): boolean {
  return (tool as { execution?: { taskSupport?: unknown } }).execution?.taskSupport === 'required';
}

function toolOf(client: McpClient, listed: McpTool, prefix: string, timeoutMs: number | undefined): Tool {
  const { name, description, inputSchema } = listed;
  const { $schema: _, ...parameters } = inputSchema as Record<string, unknown>;
  const tool: Tool & { [CHECKER]: Checker } = {
    name: `${prefix}${name.replace(/[\r\n]/g, '_')}`,
    ...(description !== undefined && { description }),
    parameters,
    ...(timeoutMs !== undefined && { timeoutMs }),
    execute: async (args, { signal }) => {
      // Whoever runs the tool measures its time, and tells by the signal when that is over.
      const timeout = timeoutMs ?? MOST_TIMEOUT;
      return resultOf(await client.callTool({ name, arguments: args }, undefined, { signal, timeout }));
    },
    [CHECKER]: 'elsewhere',
  };
  return tool;
}

function resultOf(result: unknown): ToolResult {
  const { content, structuredContent, isError, toolResult } = result as Record<string, unknown>;
  const blocks = Array.isArray(content) ? content : [];
  const texts = blocks.map(textOf);
  if (isError === true) throw new Error(texts.join('\n') || 'the server says that the call failed');
  if (structuredContent !== undefined) {
    // The protocol has servers repeat structured content as text; what is not text is told besides.
    const others = texts.filter((_, index) => blocks[index]?.type !== 'text');
    return new ToolResult([dumpJsonLine(structuredContent), ...others].join('\n'), structuredContent);
  }
  // Servers of the protocol's first version gave toolResult.
  if (content === undefined && toolResult !== undefined) return new ToolResult(dumpJsonLine(toolResult), toolResult);
  const text = texts.join('\n');
  return new ToolResult(text === '' ? 'ok' : text, text);
}

/** One block of content as the model is told it. */
function textOf(block: Record<string, unknown>): string {
  const { type, text, data, mimeType, uri, name } = block;
  switch (type) {
    case 'text':
      return String(text);
    case 'image':
    case 'audio':
      return `[${type} ${mimeType}, ${bytesOf(data)} bytes]`;
    case 'resource_link':
      return `[resource ${uri}${mimeType === undefined ? '' : `, ${mimeType}`}: ${name}]`;
    case 'resource': {
      const resource = (block.resource ?? {}) as Record<string, unknown>;
      const kind = resource.mimeType === undefined ? '' : `, ${resource.mimeType}`;
      if (typeof resource.text === 'string') return `[resource ${resource.uri}${kind}]\n${resource.text}`;
      return `[resource ${resource.uri}${kind}, ${bytesOf(resource.blob)} bytes]`;
    }
  }
  return `[${String(type)}]`;
}

/** How many bytes a text in base64 stands for. */
function bytesOf(data: unknown): number {
  return typeof data === 'string' ? Buffer.byteLength(data, 'base64') : 0;
}
