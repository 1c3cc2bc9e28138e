// How long does a 6B q4_0 file take to load, how fast does it answer, and how much memory does that take?
import { execFileSync } from 'node:child_process';
import { createReadStream, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { finished } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import { loadModel, synthesize } from '../dist/esm.mjs';
import {
  commandLine,
  median,
  printTable,
  randomIds,
  verdict,
  watchNeighbours,
  withTemporaryDirectory,
} from './common.mjs';

const RUNS = 3;
const PROMPT = 32;
const GENERATED = 17;
const MOST_LOAD_SECONDS = 4;
const ALLOWANCE = 300e6;
const MOST_OF_ALLOWED = 1.1;

/** In a process of its own: its peak memory is that of this alone. */
async function measure(path) {
  const neighbours = watchNeighbours();
  const delays = monitorEventLoopDelay({ resolution: 1 });
  delays.enable();
  const began = performance.now();
  const model = await loadModel(path);
  const loadSeconds = (performance.now() - began) / 1000;
  delays.disable();
  const { info } = model;
  const prompt = randomIds(PROMPT, info.vocabSize, 1);
  const options = { temperature: 0, maxTokens: GENERATED, stopTokens: [] };
  const { timings, usage } = await model.generate(prompt, options).result;
  const peak = Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;
  const result = {
    loadSeconds,
    loadDelay: delays.max / 1e6,
    firstToken: timings.firstTokenMs / 1000,
    decode: timings.decodeTokensPerSecond,
    peak,
    mapped: info.mappedBytes,
    kv: (usage.promptTokens + usage.generatedTokens) * info.kvBytesPerToken,
    neighbours: neighbours(),
  };
  await model.dispose();
  console.log(JSON.stringify(result));
}

async function report(path) {
  const file = statSync(path).size;
  await finished(createReadStream(path, { highWaterMark: 1 << 22 }).resume());
  const runs = Array.from({ length: RUNS }, () =>
    JSON.parse(
      execFileSync(process.execPath, [fileURLToPath(import.meta.url), '--measure', path], { encoding: 'utf8' }),
    ),
  );
  const list = (field, digits) => runs.map((run) => run[field].toFixed(digits)).join(' ');
  const middle = (field) => median(runs.map((run) => run[field]));
  const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
  const peak = Math.max(...runs.map((run) => run.peak));
  const allowed = file + runs[0].kv + ALLOWANCE;
  printTable([
    ['', 'median', 'runs', 'bar'],
    [
      'load, cached',
      `${middle('loadSeconds').toFixed(2)} s`,
      list('loadSeconds', 2),
      `< ${MOST_LOAD_SECONDS} s: ${verdict(middle('loadSeconds') < MOST_LOAD_SECONDS)}`,
    ],
    ['event loop, longest delay', `${middle('loadDelay').toFixed(1)} ms`, list('loadDelay', 1), ''],
    [`first token of ${PROMPT}`, `${middle('firstToken').toFixed(2)} s`, list('firstToken', 2), ''],
    [`decode, ${GENERATED - 1} tokens`, `${middle('decode').toFixed(2)} tokens/s`, list('decode', 2), ''],
    [
      'peak memory (VmHWM)',
      megabytes(peak),
      runs.map((run) => (run.peak / 1e6).toFixed(1)).join(' '),
      `<= ${MOST_OF_ALLOWED} x ${megabytes(allowed)}: ${verdict(peak <= MOST_OF_ALLOWED * allowed)}, ${(peak / allowed).toFixed(3)} x`,
    ],
  ]);
  console.log(`file ${megabytes(file)}, mapped ${megabytes(runs[0].mapped)}, keys and values ${megabytes(runs[0].kv)}`);
  for (const { neighbours } of runs) console.log(neighbours);
}

const usage =
  'node load-6b.mjs [FILE.gguf] [--keep FILE.gguf]   (without a file: one is written, and deleted unless kept)';
const { values, positionals } = commandLine(usage, { keep: { type: 'string' }, measure: { type: 'string' } });
if (values.measure !== undefined) await measure(values.measure);
else if (positionals[0] !== undefined) await report(positionals[0]);
else
  await withTemporaryDirectory(async (directory) => {
    const path = values.keep ?? join(directory, '6b-q4_0.gguf');
    const began = performance.now();
    await synthesize(path, { shape: '6b', type: 'q4_0' });
    console.log(`written in ${((performance.now() - began) / 1000).toFixed(1)} s`);
    await report(path);
  });
