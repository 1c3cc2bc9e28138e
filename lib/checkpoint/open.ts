import { stat } from 'node:fs/promises';
import { basename, dirname, resolve } from 'node:path';
import { throwIfAborted } from '../errors.js';
import { readError, withFile } from './file.js';
import { openGguf, readGgufTokenizer } from './gguf.js';
import { GGUF_MAGIC } from './gguf-format.js';
import { familyOfDirectory, openHuggingFace, readDirectoryTokenizer } from './huggingface.js';
import { invalid } from './invalid.js';
import { readSentencePiece } from './sentencepiece.js';
import type { Checkpoint, ModelFamily, TokenizerData } from './types.js';

export interface OpenOptions {
  /** Overrides what the checkpoint's files tell. */
  family?: ModelFamily | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Reads everything but the weights of a checkpoint: a GGUF file, a Hugging Face directory, or a file in such a directory.
 * Nothing of it is executed, and whatever the files say, every range in the result lies within them.
 */
export async function openCheckpoint(path: string, options: OpenOptions = {}): Promise<Checkpoint> {
  throwIfAborted(options.signal);
  const place = await resolvePlace(path);
  const checkpoint =
    place.kind === 'gguf'
      ? await openGguf(place.path, options.family)
      : await openHuggingFace(place.path, options.family, options.signal);
  throwIfAborted(options.signal);
  return checkpoint;
}

export interface ReadTokenizerResult {
  data: TokenizerData;
  /** Undefined where nothing tells it, as beside a lone tokenizer.model. */
  family: ModelFamily | undefined;
}

/** Reads only the tokenizer: of a tokenizer.model file, of a checkpoint's directory or of a GGUF file. */
export async function readTokenizer(path: string): Promise<ReadTokenizerResult> {
  const absolute = resolve(path);
  const isFile = !(await isDirectory(absolute));
  if (isFile && !isInDirectory(absolute)) {
    return (await magicOf(absolute)) === GGUF_MAGIC
      ? readGgufTokenizer(absolute)
      : { data: await readSentencePiece(absolute), family: undefined };
  }
  const directory = isFile ? dirname(absolute) : absolute;
  const data = await readDirectoryTokenizer(directory);
  if (data === undefined) throw invalid(directory, 'holds no tokenizer.model');
  return { data, family: await familyOfDirectory(directory) };
}

async function resolvePlace(path: string): Promise<{ kind: 'gguf' | 'directory'; path: string }> {
  const absolute = resolve(path);
  if (await isDirectory(absolute)) return { kind: 'directory', path: absolute };
  const magic = await magicOf(absolute);
  if (magic === GGUF_MAGIC) return { kind: 'gguf', path: absolute };
  if (isInDirectory(absolute)) return { kind: 'directory', path: dirname(absolute) };
  if (/^(ggml|lmgg|ggjt|tjgg)$/.test(magic)) {
    throw invalid(absolute, 'is a GGML file (of chatglm.cpp, say), which is not supported; open the original instead');
  }
  throw invalid(absolute, 'is no checkpoint: neither a GGUF file nor a part of a Hugging Face directory');
}

/** Whether the name is one that a file in a Hugging Face directory has. */
function isInDirectory(file: string): boolean {
  return /\.(safetensors|bin|json)$/i.test(basename(file));
}

async function isDirectory(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    throw readError(path, error);
  }
}

function magicOf(path: string): Promise<string> {
  return withFile(path, async (file) => (await file.read(0, Math.min(4, file.size))).toString('latin1'));
}
