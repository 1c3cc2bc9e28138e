import { invalid, shown } from '../../common/invalid.js';
import type { Work } from '../../common/turns.js';
import type { CheckpointFile } from '../file.js';
import { rangeFits } from '../file.js';

/** A file within a zip file, as its central directory describes it. */
export interface ZipEntry {
  name: string;
  size: number;
  localHeader: number;
}

const END_RECORD = 0x06054b50;
const END_RECORD_BYTES = 22;
const ZIP64_LOCATOR = 0x07064b50;
const ZIP64_LOCATOR_BYTES = 20;
const ZIP64_END_RECORD = 0x06064b50;
const ZIP64_END_RECORD_BYTES = 56;
const CENTRAL_ENTRY = 0x02014b50;
const CENTRAL_ENTRY_BYTES = 46;
const LOCAL_HEADER = 0x04034b50;
const LOCAL_HEADER_BYTES = 30;
const ZIP64_EXTRA = 1;
const COMMENT_LIMIT = 0xffff;
/** "Look into the zip64 record": what stands in a 32-bit field that is too narrow. */
const IN_ZIP64 = 0xffffffff;
/** A shard of a ChatGLM checkpoint has some 300 entries of 60 bytes. */
const DIRECTORY_LIMIT = 4 << 20;
const ENTRY_LIMIT = 32_768;

/**
 * Reads a zip file's central directory, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. Only what torch.save
 * writes is accepted: one disk, nothing compressed or encrypted.
 */
export async function readZipDirectory(file: CheckpointFile): Promise<Map<string, ZipEntry>> {
  const { offset, size, count } = await findDirectory(file);
  if (size > DIRECTORY_LIMIT || count > ENTRY_LIMIT || count * CENTRAL_ENTRY_BYTES > size) {
    throw invalid(file.path, `is damaged: its zip directory would have ${count} entries in ${size} bytes`);
  }
  return file.inTurns(parseDirectory(await file.read(offset, size), count, file));
}

function* parseDirectory(directory: Buffer, count: number, file: CheckpointFile): Work<Map<string, ZipEntry>> {
  const entries = new Map<string, ZipEntry>();
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (i % 256 === 255) yield;
    const fixed = directory.subarray(at, at + CENTRAL_ENTRY_BYTES);
    if (fixed.length < CENTRAL_ENTRY_BYTES || fixed.readUInt32LE(0) !== CENTRAL_ENTRY) {
      throw invalid(file.path, 'is damaged: its zip directory is broken');
    }
    const nameEnd = at + CENTRAL_ENTRY_BYTES + fixed.readUInt16LE(28);
    const extraEnd = nameEnd + fixed.readUInt16LE(30);
    const end = extraEnd + fixed.readUInt16LE(32);
    if (end > directory.length) throw invalid(file.path, 'is damaged: its zip directory is broken');
    const name = directory.toString('utf8', at + CENTRAL_ENTRY_BYTES, nameEnd);
    const entry = parseEntry(name, fixed, directory.subarray(nameEnd, extraEnd), file);
    if (entries.has(name)) throw invalid(file.path, `is damaged: it holds ${shown(name)} twice`);
    entries.set(name, entry);
    at = end;
  }
  return entries;
}

/** Where the bytes of an entry begin: only the header in front of them tells. */
export async function zipDataOffset(file: CheckpointFile, entry: ZipEntry): Promise<number> {
  const nameBytes = Buffer.byteLength(entry.name);
  const header = await file.read(entry.localHeader, LOCAL_HEADER_BYTES + nameBytes);
  if (
    header.readUInt32LE(0) !== LOCAL_HEADER ||
    header.readUInt16LE(8) !== 0 ||
    header.readUInt16LE(26) !== nameBytes ||
    header.toString('utf8', LOCAL_HEADER_BYTES) !== entry.name
  ) {
    throw invalid(file.path, `is damaged: ${shown(entry.name)} is not where the zip directory says`);
  }
  const offset = entry.localHeader + LOCAL_HEADER_BYTES + nameBytes + header.readUInt16LE(28);
  if (!rangeFits(offset, entry.size, file.size)) {
    throw invalid(file.path, `is cut short: ${shown(entry.name)} lies outside of it`);
  }
  return offset;
}

interface DirectoryPlace {
  offset: number;
  size: number;
  count: number;
}

async function findDirectory(file: CheckpointFile): Promise<DirectoryPlace> {
  const tailStart = Math.max(0, file.size - END_RECORD_BYTES - COMMENT_LIMIT);
  const tail = await file.read(tailStart, file.size - tailStart);
  for (let at = tail.length - END_RECORD_BYTES; at >= 0; at--) {
    if (tail.readUInt32LE(at) !== END_RECORD || at + END_RECORD_BYTES + tail.readUInt16LE(at + 20) !== tail.length)
      continue;
    const record = tail.subarray(at);
    const zip64 = await findZip64Directory(file, tailStart + at);
    if (zip64 !== undefined) return zip64;
    if (
      record.readUInt16LE(4) !== 0 ||
      record.readUInt16LE(6) !== 0 ||
      record.readUInt16LE(8) !== record.readUInt16LE(10)
    ) {
      throw invalid(file.path, 'is a zip file in several parts');
    }
    return { count: record.readUInt16LE(10), size: record.readUInt32LE(12), offset: record.readUInt32LE(16) };
  }
  throw invalid(file.path, 'is cut short or no zip file: the directory at its end is missing');
}

async function findZip64Directory(file: CheckpointFile, endRecord: number): Promise<DirectoryPlace | undefined> {
  if (endRecord < ZIP64_LOCATOR_BYTES) return undefined;
  const locator = await file.read(endRecord - ZIP64_LOCATOR_BYTES, ZIP64_LOCATOR_BYTES);
  if (locator.readUInt32LE(0) !== ZIP64_LOCATOR) return undefined;
  const record = await file.read(readU64(locator, 8, file), ZIP64_END_RECORD_BYTES);
  if (record.readUInt32LE(0) !== ZIP64_END_RECORD) throw invalid(file.path, 'is damaged: its zip64 record is missing');
  if (record.readUInt32LE(16) !== 0 || record.readUInt32LE(20) !== 0) {
    throw invalid(file.path, 'is a zip file in several parts');
  }
  return { count: readU64(record, 32, file), size: readU64(record, 40, file), offset: readU64(record, 48, file) };
}

function parseEntry(name: string, fixed: Buffer, extra: Buffer, file: CheckpointFile): ZipEntry {
  const fail = (problem: string) => invalid(file.path, `${shown(name)} in it ${problem}`);
  if ((fixed.readUInt16LE(8) & 1) !== 0) throw fail('is encrypted');
  const method = fixed.readUInt16LE(10);
  if (method !== 0) throw fail(`is compressed (method ${method}); torch.save stores its records as they are`);
  let packedSize = fixed.readUInt32LE(20);
  let size = fixed.readUInt32LE(24);
  let localHeader = fixed.readUInt32LE(42);
  if (size === IN_ZIP64 || packedSize === IN_ZIP64 || localHeader === IN_ZIP64) {
    const wide = zip64Extra(extra);
    let at = 0;
    const next = () => {
      if (wide === undefined || at + 8 > wide.length) throw fail('has no zip64 sizes');
      at += 8;
      return readU64(wide, at - 8, file);
    };
    if (size === IN_ZIP64) size = next();
    if (packedSize === IN_ZIP64) packedSize = next();
    if (localHeader === IN_ZIP64) localHeader = next();
  }
  if (packedSize !== size) throw fail('has two sizes');
  return { name, size, localHeader };
}

function zip64Extra(extra: Buffer): Buffer | undefined {
  for (let at = 0; at + 4 <= extra.length; ) {
    const end = at + 4 + extra.readUInt16LE(at + 2);
    if (end > extra.length) return undefined;
    if (extra.readUInt16LE(at) === ZIP64_EXTRA) return extra.subarray(at + 4, end);
    at = end;
  }
  return undefined;
}

function readU64(buffer: Buffer, at: number, file: CheckpointFile): number {
  const value = Number(buffer.readBigUInt64LE(at));
  if (!Number.isSafeInteger(value)) throw invalid(file.path, `is damaged: a zip field is ${value}`);
  return value;
}
