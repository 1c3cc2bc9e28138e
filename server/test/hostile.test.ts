import { execFile } from 'node:child_process';
import net from 'node:net';
import path from 'node:path';
import { promisify } from 'node:util';
import { loadModel, type Model } from 'node-chatglm';
import { createServer, type Server } from '../src/index';
import { exchange, metric, until } from './support/infra';

// What scripts/fuzz-server.mjs has found, and a short run of it.
let model: Model;
let server: Server;
let url: string;

beforeAll(async () => {
  model = await loadModel(null, { device: 'cpu' });
  server = createServer({ model });
  url = await server.listen({ port: 0 });
});
afterAll(async () => {
  await server.close();
  await model.dispose();
});

const post = (where: string, body: string, type = 'application/json', more = '') =>
  `POST ${where} HTTP/1.1\r\nhost: localhost\r\ncontent-type: ${type}\r\ncontent-length: ${Buffer.byteLength(body)}\r\n${more}\r\n${body}`;
const last = 'connection: close\r\n';
const question = '"messages":[{"role":"user","content":"hi"}],"max_tokens":1';

test.each(['/v1/chat/completions', '/v1/messages', '/v1/completions', '/v1/responses'])(
  'a stream of %s ends once, and the next answer of the connection follows',
  async (where) => {
    const body =
      where === '/v1/completions'
        ? '{"prompt":"hi","max_tokens":1,"stream":true}'
        : where === '/v1/responses'
          ? '{"input":"hi","max_output_tokens":16,"stream":true}'
          : `{"model":"chatglm-tiny",${question},"stream":true}`;
    const answer = await exchange(url, `${post(where, body)}GET /health HTTP/1.1\r\nhost: localhost\r\n${last}\r\n`);
    expect(answer.match(/^HTTP\/1\.1 200 /gm)).toHaveLength(2);
    expect(answer.match(/\r\n0\r\n\r\n/g)).toHaveLength(1);
    expect(answer).toMatch(/\r\n0\r\n\r\nHTTP\/1\.1 200 /);
  },
);

test('requests behind one whose client has gone end too', async () => {
  const { port, hostname } = new URL(url);
  const socket = net.connect(Number(port), hostname);
  socket.on('error', () => {});
  socket.write(post('/v1/chat/completions', `{${question.replace('1', '900')},"stream":true}`).repeat(5));
  await until(async () => (await metric(server, 'chatglm_http_requests_in_flight')) === 5);
  socket.destroy();
  await until(async () => (await metric(server, 'chatglm_http_requests_in_flight')) === 0);
  await until(() => model.stats().activeSequences === 0);
});

test('a broken request behind one that is being answered gives no second answer', async () => {
  const answer = await exchange(url, `${post('/v1/chat/completions', `{${question}}`)}nonsense\r\n\r\n`);
  expect(answer.match(/^HTTP/gm)?.length ?? 0).toBeLessThanOrEqual(1);
});

test.each([
  ['a part without a name', '--x\r\ncontent-disposition: form-data\r\n\r\nx\r\n--x--\r\n'],
  ['a file without a name', '--x\r\ncontent-disposition: form-data; filename="a"\r\n\r\nx\r\n--x--\r\n'],
  ['more behind the last line', '--x\r\n\r\n--x\r\n--x----x\r\n\r\n--x\r\n--x--'],
  ['a part that does not end', '--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx'],
  ['nothing', ''],
])('a form with %s is refused', async (_, form) => {
  const answer = await exchange(url, post('/v1/files', form, 'multipart/form-data; boundary=x', last));
  expect(answer).toMatch(/^HTTP\/1\.1 400 /);
});

test('a short run of the script finds nothing', async () => {
  const script = path.join(__dirname, '..', '..', 'scripts', 'fuzz-server.mjs');
  const args = [script, '--requests', '2000', '--seconds', '10', '--seed', '1'];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  expect(JSON.parse(stdout)).toMatchObject({ failures: 0 });
});
