import { stat } from 'node:fs/promises';
import { basename, dirname, resolve } from 'node:path';
import { throwIfAborted } from '../common/errors.js';
import { invalid } from '../common/invalid.js';
import { choiceOption, type FilePath, type Nullable, readOptions, signalOption, toPath } from '../common/options.js';
import { MODEL_FAMILIES, type ModelFamily } from '../families/index.js';
import type { TokenizerData } from '../tokenizer/data.js';
import { readError, readTokenizerModel, withFile } from './file.js';
import { openGguf, readGgufTokenizer } from './gguf/checkpoint.js';
import { GGUF_MAGIC } from './gguf/format.js';
import { openHuggingFace, readDirectoryTokenizer } from './huggingface/directory.js';
import type { Checkpoint } from './types.js';

export interface OpenOptions {
  /** Overrides what the checkpoint's files tell. */
  family?: ModelFamily | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Reads everything but the weights of a checkpoint: a GGUF file, a Hugging Face directory, or a file in such a directory.
 * Nothing of it is executed, and whatever the files say, every range in the result lies within them.
 *
 * @throws {ChatGLMError} ERR_CHECKPOINT_NOT_FOUND, ERR_CHECKPOINT_INVALID, ERR_INVALID_ARGUMENT, ERR_ABORTED, and the codes
 *   of the system for what cannot be read.
 *
 * @example
 * ```ts
 * const { format, config, tensors } = await openCheckpoint('./chatglm3-6b');
 * console.log(format, config.family, config.layers); // safetensors chatglm3 28
 * console.log(tensors.map(({ name, type, shape }) => `${name} ${type} (${shape.join(', ')})`));
 * ```
 */
export async function openCheckpoint(path: FilePath, options: Nullable<OpenOptions> = {}): Promise<Checkpoint> {
  const absolute = resolve(toPath('path', path));
  const set = readOptions<OpenOptions>(options, ['family', 'signal'], 'openCheckpoint()');
  const family = choiceOption('family', set.family, MODEL_FAMILIES, '') || undefined;
  const signal = signalOption(set.signal);
  throwIfAborted(signal);
  const checkpoint = (await isDirectory(absolute))
    ? await openHuggingFace(absolute, family, signal)
    : await withFile(absolute, async (file) => {
        const magic = await file.magic();
        if (magic === GGUF_MAGIC) return openGguf(file, family);
        if (isInDirectory(absolute)) return openHuggingFace(dirname(absolute), family, signal);
        if (/^(ggml|lmgg|ggjt|tjgg)$/.test(magic)) {
          throw invalid(absolute, 'is a GGML file (of chatglm.cpp, say), which is not supported; open the original');
        }
        throw invalid(absolute, 'is no checkpoint: neither a GGUF file nor a part of a Hugging Face directory');
      });
  throwIfAborted(signal);
  return checkpoint;
}

export interface ReadTokenizerResult {
  data: TokenizerData;
  /** Undefined where nothing tells it, as beside a lone tokenizer.model. */
  family: ModelFamily | undefined;
}

/** Reads only the tokenizer: of a tokenizer.model file, of a checkpoint's directory or of a GGUF file. */
export async function readTokenizer(path: string, wanted?: ModelFamily): Promise<ReadTokenizerResult> {
  const absolute = resolve(path);
  const isFile = !(await isDirectory(absolute));
  if (isFile && !isInDirectory(absolute)) {
    return withFile(absolute, async (file) =>
      (await file.magic()) === GGUF_MAGIC
        ? readGgufTokenizer(file, wanted)
        : { data: await readTokenizerModel(file), family: wanted },
    );
  }
  const directory = isFile ? dirname(absolute) : absolute;
  const { data, family } = await readDirectoryTokenizer(directory);
  if (data === undefined) throw invalid(directory, 'holds no tokenizer.model');
  return { data, family: wanted ?? family };
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
