import { type McpClient, type Tool, toolsFromMcp } from 'node-chatglm';
import { UsageError } from './arguments.js';

/** A server of tools, as long as it runs. */
export interface McpServer {
  tools: Tool[];
  close(): Promise<void>;
}

/** What is used of the SDK, which is installed only where it is wanted. */
interface McpSdk {
  Client: new (info: {
    name: string;
    version: string;
  }) => McpClient & { connect(transport: unknown): Promise<void>; close(): Promise<void> };
  StdioClientTransport: new (server: { command: string; args: string[]; stderr: 'ignore' }) => unknown;
}

/** Starts a Model Context Protocol server and asks for its tools. */
export async function startMcp(command: string): Promise<McpServer> {
  const words = command.match(/(?:[^\s"']+|"[^"]*"|'[^']*')+/g) ?? [];
  const [program, ...args] = words.map((word) =>
    word.replace(/"([^"]*)"|'([^']*)'/g, (_, double, single) => double ?? single ?? ''),
  );
  if (program === undefined) throw new UsageError('--mcp needs a command');
  const { Client, StdioClientTransport } = await importSdk();
  const client = new Client({ name: 'chatglm-server', version: '1' });
  await client.connect(new StdioClientTransport({ command: program, args, stderr: 'ignore' }));
  return { tools: await toolsFromMcp(client), close: () => client.close() };
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
