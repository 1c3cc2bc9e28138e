import { ServerResponse } from 'node:http';
import type { FastifyReply } from 'fastify';

/** How often a client that waits hears something, so that nothing between it and the server gives the connection up. */
const KEEP_ALIVE_MS = 10_000;

/**
 * Server-sent events as an answer to a request. Nothing is sent, and the status stays open, until the first event or
 * comment; until then a failure can still be an answer of its own.
 *
 * A client that reads slowly fills its own socket: {@link isWritable} tells, and {@link drained} waits for it. What is to
 * be sent meanwhile should be joined into fewer events.
 */
export class EventStream {
  readonly #reply: FastifyReply;
  #hasBegun = false;
  #isOver = false;
  #keepAlive: NodeJS.Timeout | undefined;
  /** Whether events are written with the chunked encoding's frame around them. */
  #isFramed = false;

  /** @param keepAlive What a client that waits hears. Default: a comment. */
  constructor(reply: FastifyReply, keepAlive = ': waiting\n\n') {
    this.#reply = reply;
    const { raw } = reply;
    raw.once('close', () => {
      clearInterval(this.#keepAlive);
      this.#isOver = true;
    });
    this.#keepAlive = setInterval(() => this.write(keepAlive), KEEP_ALIVE_MS).unref();
  }

  /** Whether the status and the headers are out: then a failure has to be an event. */
  get hasBegun(): boolean {
    return this.#hasBegun;
  }

  /** Whether the client has read what it got, so that more may be sent at once. */
  get isWritable(): boolean {
    return !this.#reply.raw.writableNeedDrain;
  }

  /** Resolves once the client has read what it got, or has gone. */
  async drained(): Promise<void> {
    const { raw } = this.#reply;
    if (!raw.writableNeedDrain || raw.destroyed) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        raw.off('drain', done);
        raw.off('close', done);
        resolve();
      };
      raw.once('drain', done);
      raw.once('close', done);
    });
  }

  /** Sends an event whose data is one line, such as JSON. */
  send(data: string, event?: string): void {
    this.write(event === undefined ? `data: ${data}\n\n` : `event: ${event}\ndata: ${data}\n\n`);
  }

  /** Sends whole events as they are, each with the empty line at its end. */
  write(events: string): void {
    // A frame of nothing is the end of the answer.
    if (this.#isOver || events === '') return;
    this.#begin();
    this.#reply.raw.write(this.#isFramed ? `${Buffer.byteLength(events).toString(16)}\r\n${events}\r\n` : events);
  }

  /** Sends a line that clients skip. */
  comment(text: string): void {
    this.write(`: ${text}\n\n`);
  }

  /** Ends the answer. */
  end(): void {
    clearInterval(this.#keepAlive);
    if (this.#isOver) return;
    this.#isOver = true;
    this.#begin();
    if (this.#isFramed) this.#reply.raw.end('0\r\n\r\n');
    else this.#reply.raw.end();
  }

  /** Gives the request back to whoever answers errors, if nothing was sent yet. */
  abandon(): void {
    clearInterval(this.#keepAlive);
    this.#isOver = true;
  }

  #begin(): void {
    if (this.#hasBegun) return;
    this.#hasBegun = true;
    this.#reply.hijack();
    const { raw } = this.#reply;
    for (const [name, value] of Object.entries(this.#reply.getHeaders())) {
      if (value !== undefined) raw.setHeader(name, value);
    }
    raw.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      // nginx would hold events back until its buffer is full.
      'x-accel-buffering': 'no',
    });
    // Node writes a chunk's length, the chunk and two line ends as four pieces, gathered at the end of the turn, which for
    // events of one token takes most of an event's time. Framed here, an event is one write. Not where something else sits
    // between this and the socket, such as a middleware that compresses.
    if (raw.chunkedEncoding && raw.write === ServerResponse.prototype.write) {
      raw.chunkedEncoding = false;
      this.#isFramed = true;
    }
  }
}
