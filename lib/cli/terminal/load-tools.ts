import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import {
  type CodeExecutor,
  javascriptExecutor,
  type McpClient,
  pythonExecutor,
  type Tool,
  toolsFromMcp,
} from '../../index.js';
import { UsageError } from '../arguments.js';

/** Reads JSON of a file, and says which file it was that could not be read. */
export async function readJson(file: string): Promise<unknown> {
  const text = await readFile(file, 'utf8');
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw new Error(`${file} is no JSON: ${(error as Error).message}`);
  }
}

/** The tools of a JSON file, which the model may only ask for, or of a module, which have a function `execute`. */
export async function toolsFromFile(file: string): Promise<Tool[]> {
  const isModule = /\.[cm]?js$/i.test(file);
  const value = isModule ? await defaultExport(path.resolve(file)) : await readJson(file);
  if (!Array.isArray(value)) {
    throw new Error(`${file} must ${isModule ? 'export an array of tools by default' : 'hold an array of tools'}`);
  }
  return value.map((entry: unknown, index) => {
    const outer = entry as Partial<Tool> & { type?: unknown; function?: Partial<Tool> };
    const tool = { ...(outer?.type === 'function' ? outer.function : outer) } as Tool;
    const execute = tool.execute ?? outer?.execute;
    if (typeof tool.name !== 'string' || tool.name === '') throw new Error(`${file}: tool ${index} has no name`);
    if (execute !== undefined && typeof execute !== 'function') {
      throw new Error(`${file}: execute of ${tool.name} must be a function`);
    }
    return execute === undefined ? tool : { ...tool, execute };
  });
}

async function defaultExport(file: string): Promise<unknown> {
  const module = (await import(pathToFileURL(file).href)) as { default?: unknown };
  const value = module.default;
  // CommonJS that was compiled from `export default`.
  return Array.isArray(value) ? value : ((value as { default?: unknown } | undefined)?.default ?? value);
}

/** A server of tools, as long as it runs. */
export interface McpServer {
  tools: Tool[];
  close(): Promise<void>;
}

/** Starts a Model Context Protocol server and asks for its tools. */
export async function startMcp(command: string): Promise<McpServer> {
  const [program, ...args] = splitCommand(command);
  if (program === undefined) throw new UsageError('--mcp needs a command');
  const { Client, StdioClientTransport } = await importSdk();
  const client = new Client({ name: 'chatglm', version: '1' });
  await client.connect(new StdioClientTransport({ command: program, args, stderr: 'ignore' }));
  return { tools: await toolsFromMcp(client), close: () => client.close() };
}

/** What is used of the SDK. Its own types want those of a browser, which this package does without. */
interface McpSdk {
  Client: new (info: {
    name: string;
    version: string;
  }) => McpClient & { connect(transport: unknown): Promise<void>; close(): Promise<void> };
  StdioClientTransport: new (server: { command: string; args: string[]; stderr: 'ignore' }) => unknown;
}

async function importSdk(): Promise<McpSdk> {
  const sdk = '@modelcontextprotocol/sdk';
  try {
    const client = (await import(`${sdk}/client/index.js`)) as Pick<McpSdk, 'Client'>;
    const stdio = (await import(`${sdk}/client/stdio.js`)) as Pick<McpSdk, 'StdioClientTransport'>;
    return { Client: client.Client, StdioClientTransport: stdio.StdioClientTransport };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error;
    throw new Error(`--mcp needs a package that is not installed: npm install ${sdk}`);
  }
}

/** The words of a command, as a shell has them: quotes hold words together. */
export function splitCommand(command: string): string[] {
  const words = command.match(/(?:[^\s"']+|"[^"]*"|'[^']*')+/g) ?? [];
  return words.map((word) => word.replace(/"([^"]*)"|'([^']*)'/g, (_, double, single) => double ?? single ?? ''));
}

/** An executor whose code runs only after somebody has agreed. */
export function confirmed(language: string, agree: ((code: string) => Promise<boolean>) | undefined): CodeExecutor {
  const executor = language === 'python' ? pythonExecutor() : javascriptExecutor();
  if (!agree) return executor;
  return {
    language: executor.language,
    async open() {
      const session = await executor.open();
      return {
        async run(code, options) {
          if (await agree(code)) return await session.run(code, options);
          return { status: 'error', text: 'The user did not allow this code to run.', files: [], tookMs: 0 };
        },
        dispose: () => session.dispose(),
        [Symbol.asyncDispose]: () => session.dispose(),
      };
    },
  };
}
