import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { brotliDecompressSync } from 'node:zlib';

const fixtures = join(__dirname, '..', 'fixtures');

/** Small checkpoints in the layouts that THUDM has published, with what THUDM's code computes on them. */
export const referenceCheckpoints = [
  'chatglm2-bin-f16',
  'chatglm2-int4',
  'chatglm2-int8',
  'chatglm3-32k-f16',
  'chatglm3-bf16',
  'chatglm3-safetensors-f16',
] as const;
export type ReferenceCheckpoint = (typeof referenceCheckpoints)[number];

/** What expected.json says. The logits lie beside it in expected.safetensors: (positions, vocabulary). */
export interface ReferenceExpectation {
  about: string;
  input_ids: number[];
  greedy_continuation: number[];
}

/** The directory of a reference checkpoint. It is shared and must not be changed: copy it for that. */
export function referenceCheckpoint(name: ReferenceCheckpoint): string {
  return unpacked(join('reference', name));
}

export function referenceExpectation(name: ReferenceCheckpoint): ReferenceExpectation {
  return JSON.parse(readFileSync(join(referenceCheckpoint(name), 'expected.json'), 'utf8')) as ReferenceExpectation;
}

/** The logits that THUDM's code computes for the input ids: (positions, vocabulary). */
export function referenceLogits(name: ReferenceCheckpoint): Float32Array {
  const bytes = readFileSync(join(referenceCheckpoint(name), 'expected.safetensors'));
  const headerEnd = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, headerEnd)) as Record<string, { data_offsets: [number, number] }>;
  const [begin, end] = header.logits?.data_offsets ?? [0, 0];
  return new Float32Array(Uint8Array.from(bytes.subarray(headerEnd + begin, headerEnd + end)).buffer);
}

/** The path of ChatGLM's own tokenizer.model. */
export function referenceTokenizer(): string {
  return join(unpacked('tokenizer'), 'tokenizer.model');
}

/** The objects of a file of JSON lines: `encode`, `chatglm2_prompts` or `chatglm3_prompts`. */
export function referenceLines<T>(name: 'encode' | 'chatglm2_prompts' | 'chatglm3_prompts'): T[] {
  const text = readFileSync(join(unpacked('tokenizer'), `${name}.jsonl`), 'utf8');
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as T);
}

/** A fresh directory for a test's files, and what removes it. */
export function temporaryDirectory(): { path: string; remove(): void } {
  const path = mkdtempSync(join(tmpdir(), 'node-chatglm-test-'));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

/** Unpacks a folder of fixtures into the system's temporary directory, once for all test processes. */
function unpacked(folder: string): string {
  const target = join(tmpdir(), `node-chatglm-fixtures-${process.getuid?.() ?? 'user'}`, stamp(folder));
  if (existsSync(target)) return target;
  const fresh = temporaryDirectory();
  for (const name of readdirSync(join(fixtures, folder))) {
    const bytes = readFileSync(join(fixtures, folder, name));
    const [, original = name, planes, packed] = /^(.*?)(?:\.planes(\d))?(\.br)?$/.exec(name) ?? [];
    const plain = packed === undefined ? bytes : interleave(brotliDecompressSync(bytes), Number(planes ?? 1));
    writeFileSync(join(fresh.path, original), plain);
  }
  mkdirSync(join(target, '..'), { recursive: true });
  try {
    renameSync(fresh.path, target);
  } catch {
    // Another test process was quicker.
    fresh.remove();
  }
  return target;
}

/** A name that changes with the fixtures. */
function stamp(folder: string): string {
  const hash = createHash('sha256');
  for (const name of readdirSync(join(fixtures, folder)).sort()) {
    const bytes = readFileSync(join(fixtures, folder, name));
    hash.update(`${name} ${bytes.length}\n`).update(bytes);
  }
  return `${folder.replace(/[\\/]/g, '-')}-${hash.digest('hex').slice(0, 16)}`;
}

/** Undoes the byte planes of scripts/pack-fixtures.cjs: the first bytes of all numbers, then their second bytes, … */
function interleave(planes: Uint8Array, stride: number): Uint8Array {
  const bytes = new Uint8Array(planes.length);
  let next = 0;
  for (let plane = 0; plane < stride; plane++) {
    for (let i = plane; i < bytes.length; i += stride) bytes[i] = planes[next++] as number;
  }
  return bytes;
}
