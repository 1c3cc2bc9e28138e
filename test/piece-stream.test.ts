import { PieceStream } from '../lib/generation/piece-stream.js';

/** A stream whose pieces the test gives; it ends when it is asked to stop. */
class Numbers extends PieceStream<number, string> {
  stops = 0;

  give(...pieces: number[]): void {
    for (const piece of pieces) this.push(piece);
  }

  finish(result: string): void {
    this.end(result);
  }

  break(error: unknown, dropPieces = false): void {
    this.fail(error, dropPieces);
  }

  protected override stop(): void {
    this.stops++;
    queueMicrotask(() => this.end('stopped'));
  }
}

const piece = (value: number) => ({ done: false, value });
const over = { done: true, value: undefined };

describe('next()', () => {
  test('pieces that are there, then the result once', async () => {
    const stream = new Numbers();
    stream.give(1, 2);
    stream.finish('all');
    expect(await stream.next()).toEqual(piece(1));
    expect(await stream.next()).toEqual(piece(2));
    expect(await stream.next()).toEqual({ done: true, value: 'all' });
    expect(await stream.next()).toEqual(over);
  });

  test('several at once keep their order, also with one that comes right behind a piece', async () => {
    const stream = new Numbers();
    const order: string[] = [];
    const ask = (name: string) => stream.next().then(({ value }) => order.push(`${name}${value}`));
    const asked = [ask('a'), ask('b'), ask('c')];
    stream.give(1);
    asked.push(ask('d'));
    stream.give(2, 3, 4, 5);
    asked.push(ask('e'));
    await Promise.all(asked);
    expect(order).toEqual(['a1', 'b2', 'c3', 'd4', 'e5']);
  });

  test('the end is told to the first who waits', async () => {
    const stream = new Numbers();
    const asked = [stream.next(), stream.next(), stream.next()];
    stream.give(1);
    stream.finish('all');
    expect(await Promise.all(asked)).toEqual([piece(1), { done: true, value: 'all' }, over]);
    expect(await stream.next()).toEqual(over);
  });

  test('so is an error', async () => {
    const stream = new Numbers();
    const asked = [stream.next(), stream.next()];
    stream.break(new Error('broken'));
    expect(await Promise.allSettled(asked)).toEqual([
      { status: 'rejected', reason: new Error('broken') },
      { status: 'fulfilled', value: over },
    ]);
    await expect(stream.result).rejects.toThrow('broken');
    expect(await stream.next()).toEqual(over);
  });

  test.each([
    [false, [1, 2]],
    [true, []],
  ])('an error that drops pieces: %s', async (dropPieces, expected) => {
    const stream = new Numbers();
    stream.give(1, 2);
    stream.break(new Error('broken'), dropPieces);
    const got: number[] = [];
    const all = (async () => {
      for await (const value of stream) got.push(value);
    })();
    await expect(all).rejects.toThrow('broken');
    expect(got).toEqual(expected);
  });

  test('as many pieces as there may be', async () => {
    const stream = new Numbers();
    const count = 300_000;
    for (let index = 0; index < count; index++) stream.give(index);
    stream.finish('all');
    let expected = 0;
    for await (const value of stream) if (value !== expected++) throw new Error(`${value} came, not ${expected - 1}`);
    expect(expected).toBe(count);
  });
});

describe('leaving', () => {
  test('a loop', async () => {
    const stream = new Numbers();
    stream.give(1, 2);
    for await (const value of stream) if (value === 1) break;
    expect(stream.stops).toBe(1);
    expect(await stream.next()).toEqual(over);
    expect(await stream.result).toBe('stopped');
  });

  test('return() ends the calls of next() that wait', async () => {
    const stream = new Numbers();
    const asked = [stream.next(), stream.next()];
    expect(await stream.return()).toEqual({ done: true, value: 'stopped' });
    expect(await Promise.all(asked)).toEqual([over, over]);
    expect(await stream.return()).toEqual({ done: true, value: 'stopped' });
    expect(stream.stops).toBe(1);
  });

  test('throw() stops, and rejects once that has ended', async () => {
    const stream = new Numbers();
    stream.give(1);
    const error = new Error('given up');
    let isStopped = false;
    void stream.result.then(() => {
      isStopped = true;
    });
    await expect(stream.throw(error)).rejects.toBe(error);
    expect([isStopped, stream.stops]).toEqual([true, 1]);
    expect(await stream.next()).toEqual(over);
    await expect(stream.throw('again')).rejects.toBe('again');
    expect(stream.stops).toBe(1);
  });

  test('throw() after a failure rejects with what was thrown', async () => {
    const stream = new Numbers();
    stream.break(new Error('broken'));
    await expect(stream.throw(new Error('given up'))).rejects.toThrow('given up');
    expect(stream.stops).toBe(0);
  });

  test('what `await using` calls', async () => {
    const stream = new Numbers();
    stream.give(1);
    const waiting = [stream.next(), stream.next()];
    expect(await stream[Symbol.asyncDispose]()).toBeUndefined();
    expect(await Promise.all(waiting)).toEqual([piece(1), over]);
    expect(stream.stops).toBe(1);
    expect(await stream.result).toBe('stopped');
  });

  test('disposing of what has failed is no error', async () => {
    const stream = new Numbers();
    stream.break(new Error('broken'));
    expect(await stream[Symbol.asyncDispose]()).toBeUndefined();
  });
});

describe('toReadableStream()', () => {
  test('gives the pieces and closes', async () => {
    const stream = new Numbers();
    stream.give(1, 2);
    const got: number[] = [];
    const reading = stream.toReadableStream().pipeTo(new WritableStream({ write: (value) => void got.push(value) }));
    stream.give(3);
    stream.finish('all');
    await reading;
    expect(got).toEqual([1, 2, 3]);
    expect(await stream.result).toBe('all');
  });

  test('pulls nothing that nobody reads', async () => {
    const stream = new Numbers();
    stream.give(1, 2, 3);
    const reader = stream.toReadableStream().getReader();
    expect(await reader.read()).toEqual(piece(1));
    await new Promise((resolve) => setImmediate(resolve));
    expect(await stream.next()).toEqual(piece(2));
    expect(await reader.read()).toEqual(piece(3));
  });

  test('cancelling stops, also while a piece is waited for', async () => {
    const stream = new Numbers();
    stream.give(1);
    const reader = stream.toReadableStream().getReader();
    expect(await reader.read()).toEqual(piece(1));
    const waiting = reader.read();
    await reader.cancel('enough');
    expect(await waiting).toEqual(over);
    expect(stream.stops).toBe(1);
    expect(await stream.result).toBe('stopped');
  });

  test('has the error', async () => {
    const stream = new Numbers();
    stream.give(1);
    stream.break(new Error('broken'));
    const reader = stream.toReadableStream().getReader();
    expect(await reader.read()).toEqual(piece(1));
    await expect(reader.read()).rejects.toThrow('broken');
    await expect(reader.closed).rejects.toThrow('broken');
  });

  test('is the body of a response', async () => {
    const stream = new Numbers();
    stream.give(1, 2);
    stream.finish('all');
    const lines = new TransformStream<number, Uint8Array>({
      transform: (value, controller) => controller.enqueue(new TextEncoder().encode(`${value}\n`)),
    });
    expect(await new Response(stream.toReadableStream().pipeThrough(lines)).text()).toBe('1\n2\n');
  });
});
