import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/** Answers that are not over, by the connection that they are for. */
const open = new WeakMap<Socket, Set<ServerResponse>>();

/**
 * Has an answer emit 'close' when its connection ends. Node does so for the answer that has the connection, and not for those
 * that wait behind it, where a client has sent several requests at once: they would wait for ever.
 */
export function closeWithSocket(response: ServerResponse, socket: Socket): void {
  let answers = open.get(socket);
  if (!answers) {
    const own = new Set<ServerResponse>();
    answers = own;
    open.set(socket, own);
    // Behind what Node does itself.
    socket.once('close', () => setImmediate(closeAll, own));
  }
  answers.add(response);
  response.once('close', () => answers.delete(response));
}

function closeAll(answers: ReadonlySet<ServerResponse>): void {
  for (const response of [...answers]) {
    response.destroy();
    response.emit('close');
  }
}
