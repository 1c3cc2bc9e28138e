import { invalidArgument } from '../common/errors.js';
import { isPlainObject, type Nullable, numberOption, readOptions, show, signalOption } from '../common/options.js';
import { dumpJsonLine } from '../common/python-text.js';
import { defineTool, type Tool } from './tool.js';

/** What is used of a `Client` of `@modelcontextprotocol/sdk`. */
export interface McpClient {
  listTools(
    params?: { cursor?: string },
    options?: { signal?: AbortSignal },
  ): Promise<{ tools: readonly McpTool[]; nextCursor?: string | undefined }>;
  callTool(
    params: { name: string; arguments?: Record<string, unknown> },
    schema?: undefined,
    options?: { signal?: AbortSignal; timeout?: number },
  ): Promise<unknown>;
}

/** A tool as an MCP server lists it. */
export interface McpTool {
  name: string;
  description?: string | undefined;
  inputSchema: object;
}

/** Options of `toolsFromMcp()`. */
export interface McpOptions {
  /** What comes before each tool's name, such as `files_`: two servers may have tools of one name. Default: nothing. */
  prefix?: string | undefined;
  /** The time of a call, in milliseconds. Default: `toolTimeoutMs` of the chat. */
  timeoutMs?: number | undefined;
  /** Ends the listing. Default: none. */
  signal?: AbortSignal | undefined;
}

/** No server has so many pages of tools; one that never ends its list is broken. */
const MOST_PAGES = 1000;

/**
 * The tools of a server of the Model Context Protocol, for `createChat({ tools })`. A call goes to the server; what it gives as
 * text is told to the model, and what it gives besides is named. What the server calls an error is told to the model as one.
 *
 * @param client A connected `Client` of `@modelcontextprotocol/sdk`, which stays yours to close.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT. What the client throws is thrown as it is.
 *
 * @example
 * ```ts
 * // @modelcontextprotocol/sdk is to be installed beside this package.
 * declare const client: McpClient; // new Client(…), connected
 * const chat = model.createChat({ tools: await toolsFromMcp(client) });
 * console.log((await chat.send('What is 17 plus 25?')).text);
 * ```
 */
export async function toolsFromMcp(client: McpClient, options: Nullable<McpOptions> = {}): Promise<Tool[]> {
  const set = readOptions<McpOptions>(options, ['prefix', 'timeoutMs', 'signal'], 'toolsFromMcp()');
  const { prefix = '' } = set;
  if (typeof prefix !== 'string') throw invalidArgument(`prefix must be a string, got ${show(prefix)}`);
  const signal = signalOption(set.signal);
  const timeoutMs =
    set.timeoutMs === undefined
      ? undefined
      : numberOption('timeoutMs', set.timeoutMs, 0, { least: 1, most: 2 ** 31 - 1 });
  if (typeof client?.listTools !== 'function' || typeof client.callTool !== 'function') {
    throw invalidArgument(`client must be a connected Client of @modelcontextprotocol/sdk, got ${show(client)}`);
  }
  const tools: Tool[] = [];
  let cursor: string | undefined;
  for (let page = 0; page < MOST_PAGES; page++) {
    const listed = await client.listTools(cursor === undefined ? {} : { cursor }, signal ? { signal } : {});
    tools.push(...listed.tools.map((tool) => toTool(client, tool, prefix, timeoutMs)));
    cursor = listed.nextCursor;
    if (cursor === undefined) return tools;
  }
  throw invalidArgument(`the server's list of tools has more than ${MOST_PAGES} pages`);
}

function toTool(client: McpClient, tool: McpTool, prefix: string, timeoutMs: number | undefined): Tool {
  const { name, description, inputSchema } = tool;
  const { $schema: _, ...parameters } = inputSchema as Record<string, unknown>;
  return defineTool({
    name: prefix + name,
    description,
    parameters,
    timeoutMs,
    execute: async (args: Record<string, unknown>, { signal }) => {
      // The chat ends a call that takes too long: the client's own limit only must not be shorter.
      const result = await client.callTool({ name, arguments: args }, undefined, { signal, timeout: 2 ** 31 - 1 });
      const { content, structuredContent, isError } = (isPlainObject(result) ? result : {}) as {
        content?: unknown;
        structuredContent?: unknown;
        isError?: unknown;
      };
      const text = Array.isArray(content) ? content.map(textOf).join('\n') : '';
      if (isError === true) throw new Error(text || `${name} failed`);
      if (text !== '' || structuredContent === undefined) return text;
      return dumpJsonLine(structuredContent);
    },
  }) as Tool;
}

/** A part of a result as the model is told of it. */
function textOf(part: unknown): string {
  if (!isPlainObject(part)) return '';
  const { type, text, data, mimeType, uri, resource } = part;
  if (type === 'text' && typeof text === 'string') return text;
  if (typeof data === 'string') return `[${type} ${mimeType ?? ''}, ${Math.floor((data.length * 3) / 4)} bytes]`;
  if (isPlainObject(resource)) {
    return typeof resource.text === 'string' ? resource.text : `[resource ${resource.uri ?? ''}]`;
  }
  return `[${type} ${uri ?? ''}]`;
}
