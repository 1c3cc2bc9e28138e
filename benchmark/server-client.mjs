// A client of benchmark/server.mjs, in a process of its own, that takes as little as it can: it writes requests to sockets,
// looks at each piece that comes only for when it came, and reads the usage off the end.
//
// Hears { streams: [body, …], port, host } from its parent, answers { streams: [{ status, tokens, firstMs, gapsMs, error }] };
// hears { idle: count, port, host }, answers { idle: connections that got an answer } and keeps them until it is ended.
import net from 'node:net';

const DONE = Buffer.from('data: [DONE]');
/** The usage stands in the last event but one. */
const TAIL = 2048;

/** Sends one request and reads its events to their end. */
function stream(host, port, body) {
  return new Promise((resolve) => {
    const payload = Buffer.from(JSON.stringify(body));
    const result = { status: 0, tokens: 0, firstMs: 0, gapsMs: [], error: undefined };
    const socket = net.connect({ host, port, noDelay: true });
    const began = performance.now();
    let last = 0;
    let tail = Buffer.alloc(0);
    const end = (error) => {
      socket.destroy();
      const usage = /"usage":(\{[^}]*("[a-z_]*details":\{[^}]*\}[^}]*)*\})/g;
      const found = [...tail.toString('latin1').matchAll(usage)].at(-1)?.[1];
      if (found) result.tokens = Number(/"completion_tokens":(\d+)/.exec(found)?.[1] ?? 0);
      else error ??= `no usage: ${tail.toString('utf8').slice(-300)}`;
      result.error = error;
      resolve(result);
    };
    socket.on('connect', () => {
      socket.write(
        `POST /v1/chat/completions HTTP/1.1\r\nhost: ${host}:${port}\r\ncontent-type: application/json\r\n` +
          `content-length: ${payload.length}\r\n\r\n`,
      );
      socket.write(payload);
    });
    socket.on('data', (piece) => {
      const now = performance.now();
      if (last === 0) {
        result.status = Number(piece.latin1Slice(9, 12));
        result.firstMs = now - began;
        if (result.status !== 200) {
          end(piece.toString('utf8'));
          return;
        }
      } else {
        result.gapsMs.push(now - last);
      }
      last = now;
      tail = piece.length >= TAIL ? piece.subarray(-TAIL) : Buffer.concat([tail.subarray(piece.length - TAIL), piece]);
      if (piece.includes(DONE)) end();
    });
    socket.on('error', (error) => end(error.message));
    socket.on('close', () => end('the connection was closed'));
  });
}

const kept = [];
/** A connection that has had one answer, and is kept for the next. */
function connection(host, port) {
  return new Promise((resolve) => {
    const socket = net.connect({ host, port });
    kept.push(socket);
    socket.on('connect', () => socket.write(`GET /v1/models HTTP/1.1\r\nhost: ${host}:${port}\r\n\r\n`));
    socket.once('data', () => resolve(1));
    socket.on('error', () => resolve(0));
    socket.on('close', () => resolve(0));
  });
}

process.on('message', async ({ streams, idle, host, port }) => {
  if (streams) {
    process.send({ streams: await Promise.all(streams.map((body) => stream(host, port, body))) });
  } else if (idle) {
    let answered = 0;
    // Not all at once: what is measured is what connections cost, not a backlog that overflows.
    for (let i = 0; i < idle; i += 100) {
      const some = Array.from({ length: Math.min(100, idle - i) }, () => connection(host, port));
      for (const one of await Promise.all(some)) answered += one;
    }
    process.send({ idle: answered });
  }
});
process.on('disconnect', () => process.exit());
