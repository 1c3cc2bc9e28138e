import { type CodeExecutor, javascriptExecutor, type LoadOptions, pythonExecutor } from 'node-chatglm';
import { parseKeys } from '../access/key-file.js';
import { isLoopback } from '../access/origins.js';
import { defaultDataDirectory } from '../batch/settings.js';
import { idOfPath, kindOfPath, type LogOptions, type ServedModel, type ServerOptions } from '../options.js';
import { createServer, type Server } from '../server.js';
import { VERSION } from '../version.js';
import { type OptionSpecs, type OptionValues, optionLines, readArguments } from './arguments.js';
import { type McpServer, startMcp } from './mcp.js';
import { print } from './output.js';
import { isAnswered, isLoaded, untilSignal } from './running.js';

const listening = {
  host: { kind: 'text', about: 'Address to listen on; 0.0.0.0 is all of the machine (default: 127.0.0.1)' },
  port: { kind: 'integer', short: 'p', least: 0, most: 65_535, about: 'Port; 0 takes a free one (default: 8000)' },
} as const satisfies OptionSpecs;

/** Options for the models that a process loads. */
export const models = {
  model: { kind: 'texts', short: 'm', value: 'ID=PATH', about: 'A model and its id; may be given several times' },
  'any-model': { kind: 'flag', about: 'Requests for a model that there is not get the first one' },
  preload: { kind: 'texts', value: 'ID', about: 'A model to load at the start (default: the first)' },
  'max-memory': { kind: 'bytes', least: 1, about: 'Most memory of loaded models, such as 16GB; idle ones make room' },
  device: { kind: 'text', about: 'Device: auto, cpu, cuda or cuda:N (default: auto)' },
  quantization: { kind: 'text', value: 'TYPE', choices: ['int8', 'int4'], about: 'Quantize weights while loading' },
  'context-length': { kind: 'integer', least: 1, about: "Most tokens of a conversation (default: the model's own)" },
  'kv-cache-type': { kind: 'text', value: 'TYPE', choices: ['f16', 'f32', 'q8_0'], about: 'Type of keys and values' },
  'kv-cache-tokens': { kind: 'integer', least: 1, about: 'Tokens that the key/value cache holds, of all requests' },
  sequences: { kind: 'integer', least: 1, most: 256, about: 'Most requests computed at a time (default: 256)' },
  queue: { kind: 'integer', least: 0, about: 'Most requests that wait; more get 429 (default: 256)' },
  threads: { kind: 'integer', least: 1, most: 1024, about: 'Threads of the CPU (default: one per core)' },
  isolate: { kind: 'flag', about: 'Run each model in a process of its own, which may crash without the server' },
} as const satisfies OptionSpecs;

const access = {
  keys: { kind: 'text', value: 'FILE', about: 'File of keys; see chatglm-server key (default: no keys)' },
  cors: { kind: 'texts', value: 'ORIGIN', about: 'Origin of a web page that may use the server' },
  'allow-host': { kind: 'texts', value: 'NAME', about: 'Name in the header Host, besides localhost' },
  'trust-proxy': { kind: 'flag', about: 'Believe x-forwarded-for' },
  'body-limit': { kind: 'bytes', least: 1, about: 'Largest body of a request (default: 8MiB)' },
  'parallel-per-address': { kind: 'integer', least: 1, about: 'Most requests of one address, where there are no keys' },
  'queue-timeout': { kind: 'seconds', about: 'How long a request may wait for its turn (default: no limit)' },
  'answer-timeout': { kind: 'seconds', about: 'How long an answer may take (default: no limit)' },
} as const satisfies OptionSpecs;

const parts = {
  'no-web': { kind: 'flag', about: 'No web page' },
  interpreter: {
    kind: 'text',
    value: 'LANGUAGE',
    choices: ['python', 'javascript'],
    about: "Run the model's code in chats of the page, in a sandbox: python or javascript",
  },
  mcp: { kind: 'texts', value: 'COMMAND', about: 'Command of a Model Context Protocol server: tools for the page' },
  data: { kind: 'text', value: 'DIR', about: "Directory for files and batches (default: in the user's data)" },
  redis: { kind: 'text', value: 'URL', about: 'Redis whose workers answer batches (default: this process does)' },
} as const satisfies OptionSpecs;

/** Options for what a process tells, and for its end. */
export const running = {
  metrics: {
    kind: 'text',
    value: 'WHO',
    choices: ['keys', 'open', 'off'],
    about: '/metrics: keys, open, off (default: keys)',
  },
  'log-level': {
    kind: 'text',
    value: 'LEVEL',
    choices: ['silent', 'error', 'warn', 'info', 'debug'],
    about: 'silent, error, warn, info or debug (default: info)',
  },
  'log-format': {
    kind: 'text',
    value: 'FORMAT',
    choices: ['json', 'pretty'],
    about: 'json or pretty (default: pretty on a terminal)',
  },
  'log-content': { kind: 'flag', about: 'Log the texts of messages too' },
  'shutdown-timeout': { kind: 'seconds', about: 'How long answers may go on after SIGTERM (default: 30)' },
  help: { kind: 'flag', short: 'h', about: 'Show this help' },
  version: { kind: 'flag', short: 'v', about: 'Show the version' },
} as const satisfies OptionSpecs;

const options = { ...listening, ...models, ...access, ...parts, ...running };

const help = [
  'Usage: chatglm-server [MODEL...] [options]',
  '       chatglm-server key NAME [options]    make a key',
  '       chatglm-server worker [options]      answer batches of a Redis',
  '',
  "A server that OpenAI's and Anthropic's clients can use, with a web page, for ChatGLM models. MODEL is a checkpoint's",
  'directory or a GGUF file, or ID=PATH; without one the embedded model is served.',
  '',
  'Listening:',
  ...optionLines(listening),
  '',
  'Models:',
  ...optionLines(models),
  '',
  'Access and limits:',
  ...optionLines(access),
  '',
  'Web page and batches:',
  ...optionLines(parts),
  '',
  'Running:',
  ...optionLines(running),
  '',
  'Examples:',
  '  # the embedded model, and its page at http://127.0.0.1:8000/',
  '  chatglm-server',
  '  # a model in a third of its memory',
  '  chatglm-server ./chatglm3-6b --quantization int4',
  '  # several models that share 20 GB, for everybody who has a key',
  '  chatglm-server chat=./chatglm3-6b code=./codegeex2-6b --max-memory 20GB --host 0.0.0.0 --keys keys.txt',
  '',
  'The environment variable CHATGLM_KEYS has keys as the file has them, with ; between lines.',
  'SIGTERM and SIGINT let answers end, a second one ends at once; SIGHUP reads the file of keys again.',
  'Exit codes: 0, done; 1, failed; 2, the command line is wrong; 130, ended by Ctrl-C.',
].join('\n');

type Given = OptionValues<typeof options>;
type ModelValues = OptionValues<typeof models>;
type LogValues = OptionValues<Pick<typeof running, 'log-level' | 'log-format' | 'log-content'>>;

export async function run(args: readonly string[]): Promise<void> {
  const { options: given, positionals } = readArguments(options, args);
  if (isAnswered(given, help)) return;
  const servers = await startAll(given.mcp ?? []);
  try {
    await serve(given, positionals, servers);
  } catch (error) {
    await Promise.all(servers.map((server) => server.close()));
    throw error;
  }
}

async function serve(given: Given, positionals: readonly string[], mcp: readonly McpServer[]): Promise<void> {
  const { host = '127.0.0.1', port = 8000 } = given;
  const served = toModels([...(given.model ?? []), ...positionals], toLoadOptions(given));
  const logger = toLogOptions(given);
  const server = createServer({ ...toServerOptions(given, mcp), model: served, logger });
  const isShutDown = untilSignal(async () => {
    await server.close();
    await Promise.all(mcp.map((each) => each.close()));
  });
  process.on('SIGHUP', () => server.reload());
  let url: string;
  try {
    url = await server.listen({ host, port });
  } catch (error) {
    await server.close();
    throw listenError(error as NodeJS.ErrnoException, host, port);
  }
  if (!(await isLoaded(server))) return await isShutDown;
  if (logger.pretty) print(banner(server, url, host));
  await isShutDown;
}

/** What the first lines on a terminal say. */
function banner(server: Server, url: string, host: string): string {
  const loaded = [...server.models.loaded()].map(({ id, model }) => {
    const { device, contextLength } = model.info;
    return `${id} on ${device}, ${contextLength.toLocaleString('en-US')} tokens of context`;
  });
  const others = server.models.list().filter(({ isLoaded }) => !isLoaded);
  const who = server.hasKeys
    ? 'those who have a key'
    : isLoopback(host)
      ? 'programs of this machine'
      : 'EVERYBODY who reaches this address: see chatglm-server key';
  const rows = [
    ['Open', `${url}/`],
    ['API', `${url}/v1`],
    [
      'Model',
      [...loaded, ...(others.length > 0 ? [`on demand: ${others.map(({ id }) => id).join(', ')}`] : [])].join('; '),
    ],
    ['For', who],
    ['Stop', 'Ctrl-C'],
  ];
  return ['', `chatglm-server ${VERSION}`, ...rows.map(([name = '', value]) => `  ${name.padEnd(7)}${value}`), ''].join(
    '\n',
  );
}

async function startAll(commands: readonly string[]): Promise<McpServer[]> {
  const servers: McpServer[] = [];
  for (const command of commands) {
    try {
      servers.push(await startMcp(command));
    } catch (error) {
      await Promise.all(servers.map((server) => server.close()));
      throw error;
    }
  }
  return servers;
}

export function toModels(named: readonly string[], load: LoadOptions): ServedModel[] {
  if (named.length === 0) return [{ load }];
  return named.map((text) => {
    // A path may have an = too: what is there is a path.
    const [, id, rest] = kindOfPath(text) === 'nothing' ? (/^([^=/\\]+)=(.+)$/s.exec(text) ?? []) : [];
    const file = rest ?? text;
    if (kindOfPath(file) === 'nothing') throw new Error(`there is no model at ${file}`);
    return { id: id ?? idOfPath(file), path: file, load };
  });
}

export function toLoadOptions(given: ModelValues): LoadOptions {
  const load: LoadOptions = {};
  if (given.device !== undefined) load.device = given.device as NonNullable<LoadOptions['device']>;
  if (given.quantization !== undefined) load.quantization = given.quantization as 'int8' | 'int4';
  if (given['context-length'] !== undefined) load.contextLength = given['context-length'];
  if (given['kv-cache-type'] !== undefined) load.kvCacheType = given['kv-cache-type'] as 'f16' | 'f32' | 'q8_0';
  if (given['kv-cache-tokens'] !== undefined) load.kvCacheTokens = given['kv-cache-tokens'];
  if (given.sequences !== undefined) load.maxSequences = given.sequences;
  if (given.queue !== undefined) load.maxQueue = given.queue;
  if (given.threads !== undefined) load.threads = given.threads;
  if (given.isolate) load.isolate = true;
  return load;
}

export function toLogOptions(given: LogValues): LogOptions & { pretty: boolean } {
  return {
    level: (given['log-level'] ?? 'info') as NonNullable<LogOptions['level']>,
    pretty: given['log-format'] === undefined ? process.stdout.isTTY === true : given['log-format'] === 'pretty',
    content: given['log-content'] ?? false,
  };
}

function toServerOptions(given: Given, mcp: readonly McpServer[]): ServerOptions {
  const tools = mcp.flatMap((server) => server.tools);
  return {
    preload: given.preload,
    maxMemory: given['max-memory'],
    anyModel: given['any-model'],
    tools: tools.length > 0 ? tools : undefined,
    interpreter: toExecutor(given.interpreter),
    keys: given.keys ?? keysOfEnvironment(),
    cors: given.cors,
    hosts: given['allow-host'],
    trustProxy: given['trust-proxy'],
    limits: {
      bodyBytes: given['body-limit'],
      parallelPerAddress: given['parallel-per-address'],
      queueTimeoutMs: given['queue-timeout'],
      answerTimeoutMs: given['answer-timeout'],
    },
    metrics: given.metrics === 'open' ? 'open' : given.metrics !== 'off',
    web: !given['no-web'],
    batch: { directory: given.data ?? defaultDataDirectory(), redis: given.redis },
    shutdownMs: given['shutdown-timeout'],
  };
}

function toExecutor(language: string | undefined): CodeExecutor | undefined {
  if (language === undefined) return undefined;
  return language === 'python' ? pythonExecutor() : javascriptExecutor();
}

function keysOfEnvironment(): ServerOptions['keys'] {
  const text = process.env.CHATGLM_KEYS;
  if (text === undefined || text.trim() === '') return undefined;
  return parseKeys(text.replaceAll(';', '\n'), 'CHATGLM_KEYS').map(({ hash, expires, ...key }) => ({
    ...key,
    hash: hash.toString('hex'),
    expires: expires === undefined ? undefined : new Date(expires),
  }));
}

function listenError(error: NodeJS.ErrnoException, host: string, port: number): Error {
  switch (error.code) {
    case 'EADDRINUSE':
      return new Error(`port ${port} of ${host} is in use: end what listens there, or give another one with --port`);
    case 'EACCES':
      return new Error(
        `this user may not listen on port ${port}: ports below 1024 may be the system's; try --port 8000`,
      );
    case 'EADDRNOTAVAIL':
      return new Error(`${host} is no address of this machine; 0.0.0.0 is all of its addresses`);
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return new Error(`the host ${host} is not known`);
    default:
      return error;
  }
}
