import { spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdirSync, openSync, rmSync, symlinkSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint, readTokenizer } from '../lib/checkpoint/open';
import { synthesize, syntheticConfig } from '../lib/checkpoint/synth';
import { syntheticTokenizer } from '../lib/tokenizer/synthetic';
import { temporaryDirectory } from './support/checkpoints';
import { longestTurn, pollution } from './support/hostile.cjs';
import { safetensorsBytes, tokenizerModel, writeSmallDirectory } from './support/small-checkpoints';
import { zipFile } from './support/torch-file';

// Files that would take memory or time out of proportion: refused within a budget, and never at the event loop's cost.

const directory = temporaryDirectory();
afterAll(() => directory.remove());
const at = (name: string) => join(directory.path, name);

let count = 0;
/** A directory whose file has the content. */
function directoryWith(name: string, content: Uint8Array | string): string {
  const path = at(`chatglm3-${count++}`);
  writeSmallDirectory(path, { container: name.endsWith('.bin') ? 'torch' : 'safetensors' });
  writeFileSync(join(path, name), content);
  return path;
}

/** Milliseconds of computing between two turns of the event loop; a collection of garbage may fall into one of three. */
const MOST_MS = 40;

async function expectRefused(path: string, message: RegExp, code = 'ERR_CHECKPOINT_INVALID') {
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 3 && best > MOST_MS; i++) {
    const longest = await longestTurn(() =>
      expect(openCheckpoint(path)).rejects.toMatchObject({ code, message: expect.stringMatching(message) }),
    );
    best = Math.min(best, longest);
  }
  expect(best).toBeLessThan(MOST_MS);
  expect(pollution()).toBeUndefined();
}

const u32 = (value: number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};
const u64 = (value: number) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
};
const text = (value: string) => Buffer.concat([u64(value.length), Buffer.from(value)]);

/** A GGUF file of arrays of zero bytes, which a sparse file has for nothing: each of `items` items of a type. */
function sparseGguf(arrays: number, itemType: number, itemBytes: number, items: number): string {
  const path = at('sparse.gguf');
  const fd = openSync(path, 'w');
  let end = 0;
  const write = (bytes: Buffer) => {
    end += writeSync(fd, bytes, 0, bytes.length, end);
  };
  write(Buffer.concat([Buffer.from('GGUF'), u32(3), u64(0), u64(arrays)]));
  for (let i = 0; i < arrays; i++) {
    write(Buffer.concat([text(`k${i}`), u32(9), u32(itemType), u64(items)]));
    end += items * itemBytes;
  }
  ftruncateSync(fd, end + 64);
  closeSync(fd);
  return path;
}

describe('budgets of a GGUF header count all of it', () => {
  const million = 1 << 20;
  test.each([
    ['an array of strings that nobody needs is passed over', 1, 8, 8, 2 * million, /architecture undefined/],
    ['items of many arrays of strings', 15, 8, 8, 2 * million, /more than 4194304 items/],
    ['items of many arrays of booleans', 120, 7, 1, 2 * million, /more than 4194304 items/],
    ['entries', 5000, 7, 1, 0, /5000 metadata entries/],
  ])('%s', async (_, arrays, type, bytes, items, message) => {
    const before = process.memoryUsage().arrayBuffers;
    await expectRefused(sparseGguf(arrays, type, bytes, items), message);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 << 20);
  });

  test('bytes of texts', async () => {
    const path = at('texts.gguf');
    const write = (strings: number, length: number) => {
      const entries = Array.from({ length: strings }, (_, i) =>
        Buffer.concat([text(`k${i}`), u32(8), u64(length), Buffer.alloc(length, 'x')]),
      );
      writeFileSync(path, Buffer.concat([Buffer.from('GGUF'), u32(3), u64(0), u64(strings), ...entries]));
    };
    write(5, 1 << 20);
    await expectRefused(path, /more than 4194304 bytes/);
    write(1, 2 << 20);
    await expectRefused(path, /a string in its header would have 2097152 bytes/);
  });
});

describe('JSON', () => {
  const deep = (depth: number) => `{"a":${'['.repeat(depth)}${']'.repeat(depth)}}`;
  test('that nests deep', async () => {
    await expectRefused(
      directoryWith('model.safetensors', safetensorsBytes(deep(4e6), Buffer.alloc(64))),
      /nests deeper/,
    );
    const objects = `${'{"a":'.repeat(2e6)}1${'}'.repeat(2e6)}`;
    await expectRefused(
      directoryWith('model.safetensors', safetensorsBytes(objects, Buffer.alloc(64))),
      /nests deeper/,
    );
    await expectRefused(directoryWith('config.json', deep(5e5)), /config\.json: it nests deeper than 64/);
  });

  test('of long texts, or of many tensors', async () => {
    const header = `{"__metadata__":{"a":"${'x'.repeat(15e6)}"}}`;
    await expectRefused(directoryWith('model.safetensors', safetensorsBytes(header, Buffer.alloc(64))), /is missing/);
    const escaped = `{"__metadata__":{"a":"${'\\u00e9'.repeat(2e6)}"}}`;
    await expectRefused(directoryWith('model.safetensors', safetensorsBytes(escaped, Buffer.alloc(64))), /is missing/);
    const entry = (i: number) => `"t${i}":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}`;
    const many = (tensors: number) =>
      safetensorsBytes(`{${Array.from({ length: tensors }, (_, i) => entry(i)).join()}}`, Buffer.alloc(64));
    await expectRefused(directoryWith('model.safetensors', many(20_000)), /more than 16384 tensors/);
    await expectRefused(directoryWith('model.safetensors', many(100_000)), /more than 262144 values/);
  });

  test.each([
    '{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}}}',
    '{"model_type":{"toString":1,"valueOf":1}}',
    '{"a":"\\ud800"}',
    '{"a":"\\u12"}',
    '{"a":01}',
    '{"a":1.}',
    '{"a":NaN}',
    '{"a" 1}',
    '{"a":1 "b":2}',
    '{"a":[1,]}',
    '{"a":"\u0001"}',
    '{"a":1}x',
    '{"a":',
    '{',
    '"',
    '',
  ])('%s', async (json) => {
    await expectRefused(directoryWith('config.json', json), /config\.json: /);
  });

  test('is read as JSON.parse reads it', async () => {
    const json = {
      texts: ['', 'ä', '天气', '😀', '\u0000\u001f"\\/\b\f\n\r\t', '\ud83d', 'x'.repeat(20_000), '天'.repeat(20_000)],
      numbers: [0, -0, 1.5, -1e-7, 1e300, 5e-324],
      others: [true, false, null, {}, [], [[{ a: {} }]]],
      ['__proto__']: 1,
    };
    const escaped = JSON.stringify(json).replace(
      /[^\x20-\x7e]/g,
      (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
    );
    for (const written of [
      JSON.stringify(json),
      JSON.stringify(json, null, 3),
      escaped,
      `\ufeff${JSON.stringify(json)}`,
    ]) {
      const path = at(`chatglm3-json-${count++}`);
      writeSmallDirectory(path, { json });
      const { metadata } = await openCheckpoint(path);
      const expected = { ...metadata };
      const all = `{${Object.entries(metadata)
        .filter(([key]) => !Object.hasOwn(json, key))
        .map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)},`)
        .join('')}${written.replace('\ufeff', '').trim().slice(1)}`;
      writeFileSync(join(path, 'config.json'), written.startsWith('\ufeff') ? `\ufeff${all}` : all);
      const again = await openCheckpoint(path);
      expect(JSON.stringify(again.metadata)).toBe(JSON.stringify(JSON.parse(all)));
      expect(Object.keys(again.metadata).sort()).toEqual(Object.keys(expected).sort());
    }
  });
});

describe('a pickle', () => {
  const pickle = (data: Buffer) => directoryWith('pytorch_model.bin', zipFile([{ name: 'a/data.pkl', data }]));

  test('of one long shape for many tensors', async () => {
    const use = Buffer.from('h\x01(h\x02K\x00h\x00h\x00tR', 'latin1');
    const parts = [Buffer.from([0x80, 2, 0x28]), Buffer.from('K\x01'.repeat(90_000)), Buffer.from('tq\x00')];
    parts.push(Buffer.from('ctorch._utils\n_rebuild_tensor_v2\nq\x01X\x07\x00\x00\x00storageQq\x02}'));
    const all = Buffer.concat([...parts, ...Array.from({ length: 90_000 }, () => use), Buffer.from('.')]);
    await expectRefused(pickle(all), /misuses torch\._utils\._rebuild_tensor_v2/);
  });

  test('of many marks, or values', async () => {
    await expectRefused(pickle(Buffer.concat([Buffer.alloc(99_999, '('), Buffer.from('N.')])), /nests too deep/);
    await expectRefused(pickle(Buffer.alloc(3 << 20, '}')), /too many values/);
  });

  test('that is too long, beside a long text of Python', async () => {
    const path = directoryWith('tokenization_chatglm.py', Buffer.alloc(16 << 20, '<'));
    await expectRefused(path, /tokenization_chatglm\.py: has 16777216 bytes; at most 1048576/);
  });
});

describe('a tokenizer.model', () => {
  test.each<[string, Buffer, RegExp]>([
    ['of fields of nothing', Buffer.alloc(15 << 20, Buffer.from([0x20, 0x00])), /no SentencePiece model/],
    ['of empty pieces', Buffer.alloc(2 << 20, Buffer.from([0x0a, 0x00])), /type unigram|empty/],
    ['larger than any', Buffer.alloc(64 << 20, 0x0a), /at most 16777216/],
  ])('%s', async (_, bytes, message) => {
    await expectRefused(directoryWith('tokenizer.model', bytes), message);
  });
});

describe('a vocabulary of 65,000 pieces', () => {
  let gguf: string;
  beforeAll(async () => {
    gguf = at('large.gguf');
    const shape = { ...syntheticConfig('micro'), vocabSize: 65_024 };
    await synthesize(gguf, { shape, type: 'q8_0' });
    writeFileSync(at('tokenizer.model'), tokenizerModel(syntheticTokenizer(64_789)));
  });

  test.each([
    ['GGUF', () => openCheckpoint(gguf)],
    ['SentencePiece', () => readTokenizer(at('tokenizer.model'))],
  ])('is read in turns with the event loop (%s)', async (_, read) => {
    const turns: number[] = [];
    for (let i = 0; i < 3; i++) turns.push(await longestTurn(read));
    expect(Math.min(...turns)).toBeLessThan(20);
  });

  test('is left at once when the signal fires', async () => {
    const reads = [
      (signal: AbortSignal) => openCheckpoint(gguf, { signal }),
      (signal: AbortSignal) => readTokenizer(at('tokenizer.model'), undefined, signal),
    ];
    for (const read of reads) {
      const controller = new AbortController();
      const reading = read(controller.signal);
      setImmediate(() => setImmediate(() => controller.abort('enough')));
      await expect(reading).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'enough' });
    }
  });
});

describe('what is no file, or may not be read', () => {
  const onLinux = process.platform === 'linux' ? test : test.skip;

  onLinux('a named pipe, a loop of links, a link to nothing', async () => {
    spawnSync('mkfifo', [at('model.gguf')]);
    await expectRefused(at('model.gguf'), /not a regular file/);
    symlinkSync(at('loop-b'), at('loop-a'));
    symlinkSync(at('loop-a'), at('loop-b'));
    await expectRefused(at('loop-a'), /lead back to each other/, 'ERR_CHECKPOINT_NOT_FOUND');
    const path = directoryWith('config.json', '{}');
    rmSync(join(path, 'config.json'));
    symlinkSync(at('nowhere'), join(path, 'config.json'));
    await expectRefused(path, /There is no/, 'ERR_CHECKPOINT_NOT_FOUND');
    await expectRefused(at('x'.repeat(300)), /longer than names/, 'ERR_CHECKPOINT_NOT_FOUND');
  });

  /** Opens the path in a process that first does something to itself. */
  function codeIn(setup: string, path: string): string {
    const code = `${setup}; require('./dist').openCheckpoint(${JSON.stringify(path)}).catch((e) => console.log(e.code))`;
    return spawnSync(process.execPath, ['-e', code], { cwd: join(__dirname, '..'), encoding: 'utf8' }).stdout.trim();
  }

  onLinux('no permission, and too many open files', () => {
    const path = at('private');
    mkdirSync(path, { mode: 0 });
    writeFileSync(at('private.gguf'), 'GGUF', { mode: 0 });
    const asNobody = process.getuid?.() === 0 ? "require('./dist'); process.seteuid(65534)" : '';
    // The folder of a root's test may itself be closed to others, with the same result.
    expect(codeIn(asNobody, at('private.gguf'))).toBe('ERR_PERMISSION_DENIED');
    expect(codeIn(asNobody, path)).toBe('ERR_PERMISSION_DENIED');
    const busy = "require('./dist'); try { for (;;) fs.openSync('/dev/null') } catch {}";
    const script = `ulimit -n 64; exec "$0" -e "$1"`;
    const code = `${busy}; require('./dist').openCheckpoint('package.json').catch((e) => console.log(e.code))`;
    const options = { cwd: join(__dirname, '..'), encoding: 'utf8' } as const;
    expect(spawnSync('sh', ['-c', script, process.execPath, code], options).stdout.trim()).toBe('ERR_TOO_MANY_FILES');
  });
});
