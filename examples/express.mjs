// Shows an HTTP server that streams answers as server-sent events, and stops computing when a client goes away.
//
// Needs:  npm install express
// Run:    PORT=3000 node examples/express.mjs [CHECKPOINT]
//         curl -N localhost:3000/chat -H 'content-type: application/json' -d '{"message": "What is 7 times 8?"}'
// Prints: where it listens, and one line for each answer: how it ended. The client gets `data: {"text": …}` for each
//         piece, then `event: done` with the conversation, which it sends along as `history` the next time.
import express from 'express';
import { ChatGLMError, loadModel } from 'node-chatglm';

const STATUS = {
  ERR_INVALID_ARGUMENT: 400,
  ERR_CONTEXT_OVERFLOW: 413,
  ERR_QUEUE_FULL: 503,
};

const model = await loadModel(process.argv[2]);
const app = express();
app.use(express.json({ limit: '256kb' }));

app.post('/chat', async (request, response, next) => {
  const { message, history } = request.body ?? {};
  const controller = new AbortController();
  response.on('close', () => controller.abort()); // the client went away, or the answer is complete
  try {
    const chat = model.createChat({ temperature: 0, ...(history && { history }) });
    const answer = chat.stream(message, { maxTokens: 500, signal: controller.signal });
    for await (const { text } of answer) send(response, 'message', { text });
    const { finishReason, usage } = await answer.result;
    send(response, 'done', { finishReason, usage, history: chat.history });
    console.log(`answered: ${finishReason}`);
    response.end();
  } catch (error) {
    console.log(`not answered: ${error.code ?? error}`);
    if (!response.headersSent) return next(error);
    if (!response.destroyed) send(response, 'error', { code: error.code });
    response.end();
  }
});

// Errors that come before the first piece have a status of their own. Express knows a handler of errors by its four
// parameters.
app.use((error, _request, response, _next) => {
  const isOurs = error instanceof ChatGLMError;
  const status = isOurs ? (STATUS[error.code] ?? 500) : (error.status ?? 500);
  response.status(status).json({ code: isOurs ? error.code : undefined, message: error.message });
});

function send(response, event, data) {
  if (!response.headersSent)
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  response.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
}

const server = app.listen(Number(process.env.PORT ?? 3000), () => {
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  console.log(`listening on http://localhost:${port}`);
});
process.once('SIGTERM', async () => {
  server.close();
  await model.dispose(); // answers under way end with ERR_DISPOSED
});
