import { stat } from 'node:fs/promises';
import { basename, dirname, resolve } from 'node:path';
import { ChatGLMError, throwIfAborted } from '../common/errors.js';
import { invalid } from '../common/invalid.js';
import { choiceOption, type FilePath, type Nullable, readOptions, signalOption, toPath } from '../common/options.js';
import { MODEL_FAMILIES, type ModelFamily } from '../families/index.js';
import type { TokenizerData } from '../tokenizer/data.js';
import { type CheckpointFile, readError, readTokenizerModel, withFile } from './file.js';
import { contentOf } from './foreign.js';
import { openGguf, readGgufTokenizer } from './gguf/checkpoint.js';
import { GGUF_MAGIC } from './gguf/format.js';
import { openFileOfDirectory, openHuggingFace, readDirectoryTokenizer } from './huggingface/directory.js';
import { formatOfContent } from './huggingface/weights.js';
import type { Checkpoint } from './types.js';

export interface OpenOptions {
  /** Overrides what the checkpoint's files tell. */
  family?: ModelFamily | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Reads everything but the weights of a checkpoint: a GGUF file, a Hugging Face directory, or a file in such a directory,
 * which then is the one whose weights are opened, with the shards that belong to it. Nothing of it is executed, and
 * whatever the files say, every range in the result lies within them.
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
  const asked = toPath('path', path);
  const absolute = resolve(asked);
  const set = readOptions<OpenOptions>(options, ['family', 'signal'], 'openCheckpoint()');
  const family = choiceOption('family', set.family, MODEL_FAMILIES, '') || undefined;
  const signal = signalOption(set.signal);
  throwIfAborted(signal);
  const checkpoint = (await isDirectory(absolute, asked))
    ? await openHuggingFace(absolute, { family, signal })
    : await withFile(absolute, signal, (file) => openFile(file, { family, signal }));
  throwIfAborted(signal);
  return checkpoint;
}

async function openFile(file: CheckpointFile, { family, signal }: OpenOptions): Promise<Checkpoint> {
  if (await isGguf(file)) return openGguf(file, family);
  if ((await formatOfContent(file)) === undefined) {
    const content = contentOf(await file.head());
    if (content !== undefined) throw invalid(file.path, content);
    if (/\.model$/i.test(file.path)) throw invalid(file.path, 'is a tokenizer; open the directory of its model');
    if (!isNamedAsPart(file.path)) {
      throw invalid(file.path, 'is no checkpoint: neither a GGUF file nor a part of a Hugging Face directory');
    }
  }
  return openFileOfDirectory(file, { family, signal });
}

export interface ReadTokenizerResult {
  data: TokenizerData;
  /** Undefined where nothing tells it, as beside a lone tokenizer.model. */
  family: ModelFamily | undefined;
}

/** Reads only the tokenizer: of a tokenizer.model file, of a checkpoint's directory or of a GGUF file. */
export async function readTokenizer(
  path: string,
  wanted?: ModelFamily | undefined,
  signal?: AbortSignal | undefined,
): Promise<ReadTokenizerResult> {
  const absolute = resolve(path);
  if (await isDirectory(absolute, path)) return tokenizerOf(absolute);
  const lone = await withFile(absolute, signal, async (file): Promise<ReadTokenizerResult | undefined> => {
    if (await isGguf(file)) return readGgufTokenizer(file, wanted);
    if (isNamedAsPart(absolute) || (await formatOfContent(file)) !== undefined) return undefined;
    return { data: await readTokenizerModel(file), family: wanted };
  });
  return lone ?? tokenizerOf(dirname(absolute));

  async function tokenizerOf(directory: string): Promise<ReadTokenizerResult> {
    const { data, family } = await readDirectoryTokenizer(directory, { family: wanted, signal });
    if (data === undefined) throw invalid(directory, 'holds no tokenizer.model');
    return { data, family: wanted ?? family };
  }
}

/** Whether the name is one that a file in a Hugging Face directory has. */
function isNamedAsPart(file: string): boolean {
  return /\.(safetensors|bin|json)$/i.test(basename(file));
}

async function isGguf(file: CheckpointFile): Promise<boolean> {
  return (await file.head()).toString('latin1', 0, 4) === GGUF_MAGIC;
}

/** `given` is the path as the caller wrote it. */
async function isDirectory(path: string, given: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    const refused = readError(path, error);
    if (!(refused instanceof ChatGLMError) || !(await isRepositoryName(given))) throw refused;
    const message = `${refused.message}; a model of Hugging Face must be cloned first`;
    throw new ChatGLMError(refused.code, message, refused.details, error);
  }
}

/** Whether a path of nothing looks like a name on Hugging Face, such as THUDM/chatglm3-6b, rather than one of this disk. */
async function isRepositoryName(path: string): Promise<boolean> {
  const owner = /^(\w[\w.-]*)\/\w[\w.-]*$/.exec(path)?.[1];
  if (owner === undefined || /\.(gguf|bin|safetensors|json|model|pt|pth)$/i.test(path)) return false;
  return stat(owner).then(
    () => false,
    () => true,
  );
}
