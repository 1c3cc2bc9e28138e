// A client of benchmark/server.mjs, in a process of its own, that takes as little as it can: it writes requests to sockets,
// looks at each piece that comes only for when it came, and reads the usage off the end.
//
// Is told by its parent { id, host, port, streams: [body, …] } and answers { id, result: [{ tokens, firstMs, gapsMs, error }] };
// or { id, host, port, idle: count } and answers { id, result: connections that got an answer }, which it keeps.
import net from 'node:net';

const DONE = Buffer.from('data: [DONE]');
/** In the last event but one. In the others it is null. */
const USAGE = Buffer.from('"usage":{');

/** Where all connections' pieces are put as they come: nothing is allocated for them. */
const buffer = Buffer.allocUnsafe(1 << 16);

/** Sends one request and reads its events to their end. */
function stream(host, port, body, key) {
  return new Promise((resolve) => {
    const payload = Buffer.from(JSON.stringify(body));
    const result = { tokens: 0, firstMs: 0, gapsMs: [], error: undefined };
    const began = performance.now();
    let last = 0;
    let tail = Buffer.alloc(0);
    let isOver = false;
    const end = (error) => {
      if (isOver) return;
      isOver = true;
      socket.destroy();
      const found = /.*"completion_tokens":(\d+)/s.exec(tail.toString('latin1'))?.[1];
      result.tokens = Number(found ?? 0);
      result.error = error ?? (found ? undefined : `no usage: ${tail.toString('utf8').slice(-300)}`);
      resolve(result);
    };
    const callback = (length) => {
      const now = performance.now();
      const piece = buffer.subarray(0, length);
      if (last === 0) {
        result.firstMs = now - began;
        if (piece.latin1Slice(9, 12) !== '200') {
          end(piece.toString('utf8'));
          return false;
        }
      } else {
        result.gapsMs.push(now - last);
      }
      last = now;
      // The end may come in two pieces.
      if (piece.includes(USAGE) || tail.length > 0) tail = Buffer.concat([tail, piece]);
      if (tail.includes(DONE)) end();
      return true;
    };
    const socket = net.connect({ host, port, noDelay: true, onread: { buffer, callback } });
    socket.on('connect', () => {
      socket.write(
        `POST /v1/chat/completions HTTP/1.1\r\nhost: ${host}:${port}\r\ncontent-type: application/json\r\n` +
          `${key === undefined ? '' : `authorization: Bearer ${key}\r\n`}content-length: ${payload.length}\r\n\r\n`,
      );
      socket.write(payload);
    });
    socket.on('error', (error) => end(error.message));
    socket.on('close', () => end('the connection was closed'));
  });
}

/** The same with OpenAI's client. */
async function openAIStream(host, port, body, key) {
  const { OpenAI } = await import('openai');
  const client = new OpenAI({ baseURL: `http://${host}:${port}/v1`, apiKey: key ?? 'none', maxRetries: 0 });
  const result = { tokens: 0, firstMs: 0, gapsMs: [], error: undefined };
  const began = performance.now();
  let last = 0;
  try {
    for await (const { usage } of await client.chat.completions.create(body)) {
      const now = performance.now();
      if (last === 0) result.firstMs = now - began;
      else result.gapsMs.push(now - last);
      last = now;
      if (usage) result.tokens = usage.completion_tokens;
    }
  } catch (error) {
    result.error = error.message;
  }
  return result;
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

/** Connections that stay open after an answer each, for as long as this process lives. */
async function keepIdle(count, host, port) {
  let answered = 0;
  // Not all at once: what is measured is what connections cost, not a backlog that overflows.
  for (let i = 0; i < count; i += 100) {
    const some = Array.from({ length: Math.min(100, count - i) }, () => connection(host, port));
    for (const one of await Promise.all(some)) answered += one;
  }
  return answered;
}

process.on('message', async ({ id, act, streams, idle, host, port, key, openai }) => {
  try {
    if (act === 'cpu') {
      const { user, system } = process.cpuUsage();
      process.send({ id, result: (user + system) / 1000 });
      return;
    }
    const one = openai ? openAIStream : stream;
    const result = streams
      ? await Promise.all(streams.map((body) => one(host, port, body, key)))
      : await keepIdle(idle, host, port);
    process.send({ id, result });
  } catch (error) {
    process.send({ id, error: error.stack ?? String(error) });
  }
});
process.on('disconnect', () => process.exit());
process.send({ id: 'ready' });
