import type { FastifyRequest } from 'fastify';
import { ApiError } from '../http/errors.js';
import type { ServerSettings } from '../options.js';

/** Names and addresses that a computer has for itself only. */
export function isLoopback(host: string): boolean {
  return /^(localhost|.+\.localhost|127(\.\d{1,3}){3}|\[?::1\]?|\[?::ffff:127(\.\d{1,3}){3}\]?)\.?$/i.test(host);
}

/** The name in a header `Host`, without its port. */
function nameOf(host: string): string {
  return host.replace(/:\d*$/, '').toLowerCase();
}

/**
 * Refuses what a web page of somebody else's could make a browser send to a server that asks for no key.
 *
 * A page may send requests to any address, without seeing the answers: so an `Origin` that is not the server's own must be
 * named. And a page may have its own name lead to 127.0.0.1 ("DNS rebinding"), whose answers it sees: so a server on loopback
 * answers to loopback's names only, and to those that were named.
 */
export class OriginGuard {
  readonly #origins: ReadonlySet<string>;
  readonly #hosts: ReadonlySet<string>;
  /** Whether the server listens on loopback only. */
  isLocal = false;

  constructor({ cors, hosts }: Pick<ServerSettings, 'cors' | 'hosts'>) {
    this.#origins = new Set(cors);
    this.#hosts = new Set(hosts);
  }

  check({ headers }: FastifyRequest): void {
    const { host, origin } = headers;
    if (this.isLocal && !this.#hosts.has('*')) {
      const name = host === undefined ? '' : nameOf(host);
      if (!isLoopback(name) && !this.#hosts.has(name)) {
        throw forbidden(
          'This server answers to the names localhost and 127.0.0.1. To use another one, start it with --allow-host NAME (the option hosts).',
          'host_not_allowed',
        );
      }
    }
    if (origin === undefined) {
      // A picture or a script of another page has no Origin; browsers tell of it here. A link to the page is no harm.
      const site = headers['sec-fetch-site'];
      const isForeign = site === 'cross-site' || site === 'same-site';
      if (isForeign && headers['sec-fetch-mode'] !== 'navigate' && this.#origins.size === 0) throw foreign();
      return;
    }
    if (this.#origins.has('*') || this.#origins.has(origin)) return;
    if (host === undefined || !isSameHost(origin, host)) throw foreign();
  }
}

function isSameHost(origin: string, host: string): boolean {
  try {
    const { protocol } = new URL(origin);
    return new URL(origin).host === new URL(`${protocol}//${host}`).host;
  } catch {
    return false;
  }
}

function foreign(): ApiError {
  return forbidden(
    'Pages of other origins may not use this server. To allow one, start it with --cors ORIGIN (the option cors).',
    'origin_not_allowed',
  );
}

function forbidden(message: string, code: string): ApiError {
  return new ApiError(message, { status: 403, code });
}
