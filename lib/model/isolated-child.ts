import { fromNative, loadNative, type NativeError, type NativeEvent, type NativeModel } from '../addon/native.js';
import { endOf, type IsolatedCall, type IsolatedReport } from './isolated-messages.js';

// The program of a process that runs one model for its parent: see isolated.ts.

/** Electron's way to the parent. */
interface ParentPort {
  postMessage(message: unknown): void;
  on(event: 'message', listener: (message: { data: unknown }) => void): void;
}

const { parentPort } = process as { parentPort?: ParentPort };

/** Events that wait until the message before them is on its way: at many streams one message then tells of several steps. */
let gathered: NativeEvent[] = [];
let isSending = false;
let isOver = false;

function send(events: readonly NativeEvent[]): void {
  for (const event of events) gathered.push(event);
  flush();
}

function flush(): void {
  if (isSending) return;
  if (gathered.length === 0) {
    if (isOver) end();
    return;
  }
  const events = gathered;
  gathered = [];
  report(events);
}

function report(events: NativeEvent[]): void {
  const message: IsolatedReport = { events, stats: isOver ? undefined : model?.stats() };
  isSending = true;
  const sent = () => {
    isSending = false;
    flush();
  };
  if (parentPort) {
    parentPort.postMessage(message);
    setImmediate(sent);
  } else if (process.connected) {
    process.send?.(message, sent);
  }
}

let model: NativeModel | undefined;
/** The parent's numbers by the model's own, and the other way round. */
const outer = new Map<number, number>();
const inner = new Map<number, number>();
/** The parent's numbers of requests that stay those of their pins after the end. */
const pinning = new Set<number>();

function enter(number: number, own: number): void {
  outer.set(own, number);
  inner.set(number, own);
}

function tell(events: NativeEvent[]): void {
  const told = events.map((event): NativeEvent => {
    if (event.type === 'disposed') isOver = true;
    if (!('request' in event)) return event;
    const number = outer.get(event.request) ?? 0;
    if (event.type === 'error' || event.type === 'pages' || (event.type === 'finish' && !pinning.has(number))) {
      pinning.delete(number);
      outer.delete(event.request);
      inner.delete(number);
    }
    return { ...event, request: number };
  });
  send(told);
}

/** What is done without an event of its own shows in the figures a little later. */
function tellStatsSoon(): void {
  setTimeout(() => {
    if (!isSending && !isOver) report([]);
  }, 20).unref();
}

/** The last report is on its way. */
function end(): void {
  // Electron's port keeps the process alive for as long as somebody listens to it.
  if (parentPort) setImmediate(() => process.exit(0));
  else process.disconnect?.();
}

/** Does what was asked; what is refused is the end of the request or call. */
function attempt(number: number, kind: 'request' | 'pages', call: () => number): void {
  try {
    enter(number, call());
  } catch (thrown) {
    const { code, message, details } = fromNative(thrown);
    const error: NativeError = { code, message, details };
    send([endOf(number, kind, error)]);
  }
}

function answer(call: IsolatedCall): void {
  if (call.call === 'load') {
    try {
      const { Model, Tokenizer } = loadNative();
      const { spec, tokenizer: data } = call;
      const grammars =
        data &&
        new Tokenizer(data.pieces, data.offsets, data.scores, data.types, data.addDummyPrefix).createGrammars(
          spec.config.vocabSize,
        );
      model = new Model(spec, tell, grammars);
    } catch (thrown) {
      const { code, message, details } = fromNative(thrown);
      tell([{ type: 'failed', error: { code, message, details } }, { type: 'disposed' }]);
    }
    return;
  }
  const own = model as NativeModel;
  switch (call.call) {
    case 'submit':
      if (call.request.pin) pinning.add(call.number);
      attempt(call.number, 'request', () => own.submit(call.request));
      return;
    case 'importPages':
      attempt(call.number, 'pages', () => own.importPages(call.tokens));
      return;
    case 'readPages':
      attempt(call.number, 'pages', () => own.readPages(inner.get(call.pin) ?? 0, call.first, call.count));
      return;
    case 'writePages':
      attempt(call.number, 'pages', () => own.writePages(inner.get(call.pin) ?? 0, call.first, call.data));
      return;
    case 'cancel': {
      const number = inner.get(call.number);
      if (number !== undefined) own.cancel(number);
      return;
    }
    case 'release': {
      const number = inner.get(call.number);
      pinning.delete(call.number);
      inner.delete(call.number);
      tellStatsSoon();
      if (number === undefined) return;
      outer.delete(number);
      own.release(number);
      return;
    }
    case 'clearCache':
      tellStatsSoon();
      own.clearCache();
      return;
    case 'dispose':
      own.dispose();
      return;
  }
}

if (parentPort) {
  parentPort.on('message', ({ data }) => answer(data as IsolatedCall));
} else {
  // A terminal sends its signals to the parent's whole group; what they are to mean is the parent's affair.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
  process.on('message', (call) => answer(call as IsolatedCall));
  // Without its parent, or after its last report, the process has nothing to do.
  process.once('disconnect', () => process.exit(0));
}
