import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import { createServer, type Server } from '../src/index.js';

// Events on the wire: they are framed here and not by Node, which has to be right for every kind of connection.

let server: Server;
let port: number;

beforeAll(async () => {
  server = createServer({ logger: false, batch: false, web: false });
  port = Number(new URL(await server.listen({ port: 0 })).port);
  await server.preload();
});
afterAll(async () => await server?.close());

const body = (content: string, isStream = true) =>
  JSON.stringify({ messages: [{ role: 'user', content }], temperature: 0, stream: isStream });

function head(payload: string, version = '1.1', extra = ''): string {
  const length = Buffer.byteLength(payload);
  return (
    `POST /v1/chat/completions HTTP/${version}\r\nhost: 127.0.0.1:${port}\r\ncontent-type: application/json\r\n` +
    `content-length: ${length}\r\n${extra}\r\n`
  );
}

/** Everything that the server sends until it closes the connection. */
async function exchange(request: string): Promise<string> {
  const socket = net.connect(port, '127.0.0.1');
  const pieces: Buffer[] = [];
  socket.on('data', (piece: Buffer) => pieces.push(piece));
  socket.write(request);
  await once(socket, 'end');
  socket.end();
  return Buffer.concat(pieces).toString('utf8');
}

/** Takes a chunked body apart, which begins a text. */
function dechunked(text: string): { body: string; rest: string } {
  let bytes = Buffer.from(text);
  const parts: Buffer[] = [];
  for (;;) {
    const end = bytes.indexOf('\r\n');
    const length = Number.parseInt(bytes.subarray(0, end).toString('latin1'), 16);
    expect(length).toBeGreaterThanOrEqual(0);
    const from = end + 2;
    expect(bytes.subarray(from + length, from + length + 2).toString('latin1')).toBe('\r\n');
    parts.push(bytes.subarray(from, from + length));
    bytes = bytes.subarray(from + length + 2);
    if (length === 0) return { body: Buffer.concat(parts).toString('utf8'), rest: bytes.toString('utf8') };
  }
}

function textOf(events: string): string {
  const lines = events.split('\n\n').filter(Boolean);
  expect(lines.at(-1)).toBe('data: [DONE]');
  const chunks = lines.slice(0, -1).map((line) => JSON.parse(line.slice('data: '.length)));
  return chunks.map(({ choices }) => choices[0]?.delta.content ?? '').join('');
}

test('are chunks, in which characters of several bytes are counted as bytes', async () => {
  const payload = body('你好');
  const [headers = '', ...rest] = (await exchange(head(payload, '1.1', 'connection: close\r\n') + payload)).split(
    '\r\n\r\n',
  );
  expect(headers).toMatch(/^HTTP\/1\.1 200 OK/);
  expect(headers.toLowerCase()).toContain('transfer-encoding: chunked');
  const { body: events, rest: behind } = dechunked(rest.join('\r\n\r\n'));
  expect(behind).toBe('');
  expect(textOf(events)).toMatch(/^你好/);
});

test('have no frames for HTTP/1.0, which knows none', async () => {
  const payload = body('What is the capital of France?');
  const [headers = '', ...rest] = (await exchange(head(payload, '1.0') + payload)).split('\r\n\r\n');
  expect(headers.toLowerCase()).not.toContain('transfer-encoding');
  expect(textOf(rest.join('\r\n\r\n'))).toBe('The capital of France is Paris.');
});

test('of requests that are sent at once come one after the other', async () => {
  const first = body('What is the capital of France?');
  const second = body('What is 7 times 8?', false);
  const third = body('What is 7 times 8?');
  const answers = await exchange(
    head(first) + first + head(second) + second + head(third, '1.1', 'connection: close\r\n') + third,
  );
  const behindHead = (text: string) => text.slice(text.indexOf('\r\n\r\n') + 4);
  const one = dechunked(behindHead(answers));
  expect(textOf(one.body)).toBe('The capital of France is Paris.');
  const length = Number(/content-length: (\d+)/i.exec(one.rest)?.[1]);
  const whole = Buffer.from(behindHead(one.rest));
  const two = JSON.parse(whole.subarray(0, length).toString('utf8'));
  const three = dechunked(behindHead(whole.subarray(length).toString('utf8')));
  expect(three.rest).toBe('');
  expect(textOf(three.body)).toBe(two.choices[0].message.content);
});

test('leave the connection to the next request', async () => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const ports = new Set<number | undefined>();
  for (let i = 0; i < 3; i++) {
    const request = http.request({ agent, port, host: '127.0.0.1', path: '/v1/chat/completions', method: 'POST' });
    request.setHeader('content-type', 'application/json');
    request.end(body('What is the capital of France?'));
    const [response] = (await once(request, 'response')) as [http.IncomingMessage];
    ports.add(response.socket.localPort);
    let events = '';
    for await (const piece of response.setEncoding('utf8')) events += piece;
    expect(textOf(events)).toBe('The capital of France is Paris.');
  }
  expect(ports.size).toBe(1);
  agent.destroy();
});

test('are the body alone where a request is injected', async () => {
  const response = await server.app.inject({
    method: 'POST',
    url: '/v1/chat/completions',
    headers: { 'content-type': 'application/json', host: 'localhost' },
    payload: body('What is the capital of France?'),
  });
  expect(response.statusCode).toBe(200);
  expect(textOf(response.payload)).toBe('The capital of France is Paris.');
});
