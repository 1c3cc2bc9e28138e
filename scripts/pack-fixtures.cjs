'use strict';
// Packs a folder of reference data for test/fixtures: node scripts/pack-fixtures.cjs SOURCE TARGET
// Small files are copied as they are. Each other file is compressed in all the ways that test/support/checkpoints.ts
// can undo, and the shortest result is kept. TARGET is replaced.
const fs = require('node:fs');
const path = require('node:path');
const { brotliCompressSync, constants } = require('node:zlib');

const SMALL = 10_000;
// Bytes in a number: with planes, the first bytes of all numbers come first, then all second bytes, and so on.
const STRIDES = [1, 2, 4];
// Chosen by the encoder (0), and the shortest, which suits text pieces and their scores.
const BLOCK_BITS = [0, 16];

function planes(bytes, stride) {
  const result = Buffer.alloc(bytes.length);
  let end = 0;
  for (let plane = 0; plane < stride; plane++) {
    for (let i = plane; i < bytes.length; i += stride) result[end++] = bytes[i];
  }
  return result;
}

function compress(bytes, blockBits) {
  const params = {
    [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY,
    [constants.BROTLI_PARAM_LGWIN]: constants.BROTLI_MAX_WINDOW_BITS,
    [constants.BROTLI_PARAM_LGBLOCK]: blockBits,
    [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length,
  };
  return brotliCompressSync(bytes, { params });
}

/** The shortest packed form of a file: what its name ends in, and the bytes. */
function pack(bytes) {
  if (bytes.length < SMALL) return { ending: '', packed: bytes };
  return STRIDES.flatMap((stride) =>
    BLOCK_BITS.map((blockBits) => ({
      ending: stride === 1 ? '.br' : `.planes${stride}.br`,
      packed: compress(planes(bytes, stride), blockBits),
    })),
  ).reduce((best, each) => (each.packed.length < best.packed.length ? each : best));
}

const [source, target] = process.argv.slice(2);
if (target === undefined) {
  console.error('Usage: node scripts/pack-fixtures.cjs SOURCE TARGET');
  process.exit(2);
}
const files = fs.readdirSync(source).map((name) => ({ name, bytes: fs.readFileSync(path.join(source, name)) }));
fs.rmSync(target, { recursive: true, force: true });
fs.mkdirSync(target, { recursive: true });
for (const { name, bytes } of files) {
  const { ending, packed } = pack(bytes);
  fs.writeFileSync(path.join(target, name + ending), packed);
  console.log(`${path.join(target, name + ending)}: ${bytes.length} -> ${packed.length} bytes`);
}
