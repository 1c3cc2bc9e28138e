import { callNative, type NativeEncoding } from '../addon/native.js';
import { onAbort } from '../common/abort.js';
import { aborted, ChatGLMError, throwIfAborted } from '../common/errors.js';

/** UTF-16 units that go to native code at a time: half a megabyte, which takes about half a millisecond. */
const SLICE_UNITS = 1 << 18;
/** Ids that come back at a time: half a megabyte. */
const SLICE_IDS = 1 << 17;

/** Lets timers and I/O have their turn. */
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Settles, without failing, when the encodings that were asked for before are through. */
let before: Promise<unknown> = Promise.resolve();

/**
 * Encodes a text on a thread. The text goes there and the ids come back in slices, so that the event loop waits for none
 * of it longer than a millisecond or so. Long texts are encoded one after the other: each takes a core, and memory of
 * about ten times its length, while it is.
 *
 * @throws {ChatGLMError} ERR_ABORTED as soon as the signal fires, ERR_OUT_OF_MEMORY, ERR_THREAD_UNAVAILABLE.
 */
export function encodeOnThread(
  create: (units: number) => NativeEncoding,
  text: string,
  signal: AbortSignal | undefined,
): Promise<Uint32Array> {
  return new Promise((resolve, reject) => {
    let encoding: NativeEncoding | undefined;
    const over = onAbort(signal, () => {
      encoding?.cancel();
      reject(aborted(signal as AbortSignal));
    });
    const run = async () => {
      throwIfAborted(signal);
      encoding = callNative(() => create(text.length));
      return await encode(encoding, text, signal);
    };
    before = before.then(run).then(resolve, reject).finally(over);
  });
}

async function encode(encoding: NativeEncoding, text: string, signal: AbortSignal | undefined): Promise<Uint32Array> {
  for (let begin = 0; begin < text.length; begin += SLICE_UNITS) {
    callNative(() => encoding.append(text.slice(begin, begin + SLICE_UNITS)));
    await nextTurn();
    throwIfAborted(signal);
  }
  await new Promise<void>((resolve, reject) => {
    callNative(() =>
      encoding.start((error) => {
        if (error) reject(new ChatGLMError(error.code, error.message, error.details));
        else resolve();
      }),
    );
  });
  const ids = new Uint32Array(encoding.length);
  for (let begin = 0; begin < ids.length; begin += SLICE_IDS) {
    encoding.read(ids, begin, SLICE_IDS);
    await nextTurn();
    throwIfAborted(signal);
  }
  return ids;
}
