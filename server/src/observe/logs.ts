import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { type Logger, pino } from 'pino';
import type { LogSettings } from '../options.js';

/** A request's id: the client's own, if that is harmless in a log and a header. */
export function requestId(request: IncomingMessage): string {
  const given = request.headers['x-request-id'];
  return typeof given === 'string' && /^[\w.:-]{1,128}$/.test(given)
    ? given
    : `req_${randomUUID().replaceAll('-', '')}`;
}

export function isLogger(value: Logger | LogSettings): value is Logger {
  return typeof (value as Partial<Logger>).child === 'function';
}

/** A logger that writes JSON, or lines for people, to stdout. */
export function createLogger({ level, pretty }: LogSettings): Logger {
  const options = { level, base: null, timestamp: pino.stdTimeFunctions.isoTime };
  if (!pretty) return pino(options);
  return pino(options, {
    write(line: string) {
      process.stdout.write(`${prettyLine(line)}\n`);
    },
  });
}

const LEVELS: Readonly<Record<number, string>> = { 20: 'debug', 30: '', 40: 'warning', 50: 'error', 60: 'fatal' };
/** Fields that a line for people has elsewhere, or not at all. */
const LEFT_OUT = new Set(['level', 'time', 'msg', 'reqId', 'err', 'requestId', 'method', 'path', 'status', 'route']);

/** A line of the log for people: `12:00:01 POST /v1/chat/completions 200 in 350 ms  model=chatglm3-6b prompt=12 …`. */
export function prettyLine(line: string): string {
  let entry: Record<string, unknown>;
  try {
    entry = JSON.parse(line) as Record<string, unknown>;
  } catch {
    return plain(line.trimEnd());
  }
  const level = LEVELS[entry.level as number] ?? '';
  const fields = Object.entries(entry)
    .filter(([name, value]) => !LEFT_OUT.has(name) && value !== undefined && value !== null)
    .map(([name, value]) => `${name}=${typeof value === 'object' ? JSON.stringify(value) : value}`);
  const { message, code, stack } = (entry.err ?? {}) as { message?: string; code?: string; stack?: string };
  const what = [
    new Date(entry.time as string).toLocaleTimeString('en-GB'),
    level && `${level}:`,
    entry.method === undefined ? entry.msg : `${entry.method} ${entry.path} ${entry.status}`,
    message !== undefined && `${message}${code === undefined ? '' : ` (${code})`}`,
    fields.length > 0 && ` ${fields.join(' ')}`,
  ].filter(Boolean);
  const first = plain(what.join(' '));
  return (entry.level as number) >= 50 && stack !== undefined && code === undefined
    ? `${first}\n${stack.split('\n').slice(1).map(plain).join('\n')}`
    : first;
}

/** Without what a terminal would obey instead of showing it. */
function plain(text: string): string {
  return text.replace(/\p{Cc}/gu, '\ufffd');
}
