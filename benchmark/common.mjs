// What the measurements share. They use the package as it lies built in ../dist: nothing is installed twice.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

export const defaultThreads = availableParallelism();

/** Options and positionals of the command line; an unknown option ends the process with the usage. */
export function commandLine(usage, options = {}) {
  try {
    return parseArgs({ options, allowPositionals: true });
  } catch (error) {
    return refuse(usage, error.message);
  }
}

export function refuse(usage, message) {
  console.error(`${message}\nUsage: ${usage}`);
  process.exit(2);
}

/** Calls `body` with a new directory, which is gone afterwards, however it ends. */
export async function withTemporaryDirectory(body) {
  const directory = mkdtempSync(join(tmpdir(), 'chatglm-benchmark-'));
  const remove = () => rmSync(directory, { recursive: true, force: true });
  const onSignal = () => {
    remove();
    process.exit(130);
  };
  process.once('SIGINT', onSignal).once('SIGTERM', onSignal);
  try {
    return await body(directory);
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
    remove();
  }
}

/** The conversations with THUDM's answers, from its own code in float32. */
export function expectedConversations() {
  const file = new URL('../test/fixtures/chatglm-tiny/expected.json', import.meta.url);
  return JSON.parse(readFileSync(file, 'utf8')).conversations;
}

/** The first index at which two lists differ, or -1. */
export function firstDifference(a, b) {
  for (let i = 0; i < Math.max(a.length, b.length); i++) if (a[i] !== b[i]) return i;
  return -1;
}

/** Random ids of ordinary tokens: behind the byte pieces, before the special tokens. */
export function randomIds(count, vocabSize, seed) {
  let state = seed >>> 0;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return 300 + Math.floor((state / 2 ** 32) * (Math.min(vocabSize, 64_789) - 400));
  });
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** The value that so many percent of the values do not exceed. */
export function percentile(values, percent) {
  if (values.length === 0) return Number.NaN;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil((percent / 100) * sorted.length) - 1)];
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Prints rows in columns; the first row is the heading. */
export function printTable(rows) {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => String(row[column]).length)));
  for (const row of rows)
    console.log(
      row
        .map((cell, column) => String(cell).padEnd(widths[column]))
        .join('  ')
        .trimEnd(),
    );
}

/** A verdict, which also sets the process's exit code if the bar is missed. */
export function verdict(isMet) {
  if (!isMet) process.exitCode = 1;
  return isMet ? 'met' : 'MISSED';
}

/** Neighbours spoil timings: call it, and later what it returns, which tells how busy they were meanwhile. */
export function watchNeighbours() {
  // In milliseconds, of all cores and all processes.
  const busy = () => cpus().reduce((sum, { times }) => sum + times.user + times.nice + times.sys, 0);
  const before = { busy: busy(), own: process.cpuUsage(), time: performance.now() };
  return () => {
    const { user, system } = process.cpuUsage(before.own);
    const others = (busy() - before.busy - (user + system) / 1000) / (performance.now() - before.time);
    return `other processes kept ${Math.max(0, others).toFixed(2)} of ${cpus().length} cores busy`;
  };
}
