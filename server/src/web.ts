import { readFileSync } from 'node:fs';
import path from 'node:path';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { ServerContext } from './context.js';
import type { ServerSettings } from './options.js';

/** Where the bundled page lies, seen from this file as source and as compiled. */
const PAGE = path.join(__dirname, '..', 'dist', 'web');

/**
 * What the page may do: nothing but run its own scripts, look as its own style sheets say, show images that are part of it
 * or of an answer, and talk to this server. Scripts cannot turn texts into HTML but through DOMPurify.
 */
export const CONTENT_SECURITY_POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data: blob:",
  "font-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  'trusted-types dompurify',
].join('; ');

const HEADERS = {
  'content-security-policy': CONTENT_SECURITY_POLICY,
  'cross-origin-opener-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
  'permissions-policy': 'camera=(), geolocation=(), microphone=()',
};

type Encoding = 'br' | 'gzip';

interface PageFile {
  name: string;
  type: string;
  etag: string;
  body: Buffer;
  encoded: Partial<Record<Encoding, Buffer>>;
}

/** Reads the page; undefined where it was not built. */
function readPage(): PageFile[] | undefined {
  let list: string;
  try {
    list = readFileSync(path.join(PAGE, 'files.json'), 'utf8');
  } catch {
    return undefined;
  }
  const { files } = JSON.parse(list) as {
    files: { name: string; type: string; etag: string; encodings: Encoding[] }[];
  };
  return files.map(({ name, type, etag, encodings }) => {
    const read = (ending: string) => readFileSync(path.join(PAGE, `${name}${ending}`));
    const encoded = Object.fromEntries(encodings.map((encoding) => [encoding, read(`.${encoding}`)]));
    return { name, type, etag, body: read(''), encoded };
  });
}

/**
 * The web page, and what it needs to know of the server. All files are read once, and each has a route of its own: what a
 * request names is compared, and never opened.
 */
export function webRoutes(app: FastifyInstance, { settings, log }: ServerContext): void {
  if (!settings.web) return;
  const files = readPage();
  if (!files) {
    log.warn('The web page was not built: the server answers without it.');
    return;
  }
  for (const file of files) {
    const isIndex = file.name === 'index.html';
    app.get(`/${isIndex ? '' : file.name}`, { config: { isOpen: true } }, (request, reply) => {
      // The page finds its files and the API relative to its own address, which has to end with a slash for that.
      const address = addressOf(request);
      if (isIndex && !address.endsWith('/')) {
        return reply.redirect(`./${address.slice(address.lastIndexOf('/') + 1)}/`, 308);
      }
      const isHashed = file.name.startsWith('assets/');
      return send(file, request, reply, isHashed ? 'public, max-age=31536000, immutable' : 'no-cache');
    });
  }
  const config = describeTools(settings);
  // Not open: who has no key does not learn of tools.
  app.get('/web/config.json', (_request, reply) => reply.header('cache-control', 'no-store').send(config));
}

/** The path that was asked for, with what an Express application took off before the server saw it. */
function addressOf(request: FastifyRequest): string {
  const { originalUrl } = request.raw as { originalUrl?: string };
  return (originalUrl ?? request.url).split('?', 1)[0] ?? '/';
}

function send(file: PageFile, request: FastifyRequest, reply: FastifyReply, caching: string): FastifyReply {
  const accepted = request.headers['accept-encoding'] ?? '';
  const encoding = (['br', 'gzip'] as const).find((name) => file.encoded[name] && accepts(accepted, name));
  // Each form is a representation of its own.
  const etag = `"${file.etag}${encoding ? `-${encoding}` : ''}"`;
  reply.headers({ ...HEADERS, etag, vary: 'accept-encoding', 'cache-control': caching });
  const known = request.headers['if-none-match'];
  if (known?.split(',').some((each) => each.trim().replace(/^W\//, '') === etag)) return reply.status(304).send();
  if (encoding) reply.header('content-encoding', encoding);
  return reply.type(file.type).send(encoding ? file.encoded[encoding] : file.body);
}

/** Whether an Accept-Encoding header names an encoding, and not with the weight 0. */
function accepts(header: string, name: Encoding): boolean {
  return header.split(',').some((part) => {
    const [encoding, ...parameters] = part.split(';').map((each) => each.trim());
    return encoding === name && !parameters.some((each) => /^q=0(?:\.0*)?$/.test(each));
  });
}

interface ToolFields {
  name?: unknown;
  description?: unknown;
  function?: { name?: unknown; description?: unknown } | undefined;
}

/** What the page tells of the server's tools. */
function describeTools({ tools, interpreter }: ServerSettings): object {
  // THUDM's registry has the tools by their names.
  const list: readonly ToolFields[] = Array.isArray(tools)
    ? tools
    : Object.entries(tools ?? {}).map(([name, tool]) => ({ name, description: (tool as ToolFields).description }));
  return {
    tools: list.map((tool) => {
      const { name, description } = tool.function ?? tool;
      return { name: String(name), description: typeof description === 'string' ? description : '' };
    }),
    interpreter: interpreter?.language ?? null,
  };
}
