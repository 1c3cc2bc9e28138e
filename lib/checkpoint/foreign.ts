import { shown } from '../common/invalid.js';

// Files and directories of other tools, or of downloads that went wrong: what they are, and what to do with them.

/** Git LFS's specification: a pointer is shorter. */
export const LFS_POINTER_LIMIT = 1024;

/** Whether these are the bytes of a Git LFS pointer, and of how many bytes the file is that it stands for: 0 if it does not say. */
export function lfsPointer(bytes: Buffer): { fileBytes: number } | undefined {
  const text = bytes.toString('latin1');
  if (!text.startsWith('version https://git-lfs')) return undefined;
  return { fileBytes: Number(/^size (\d{1,15})$/m.exec(text)?.[1] ?? 0) };
}

const TORCH = 'load it in Python and save the model with save_pretrained(), or its state_dict() with torch.save()';
const GGML =
  'is a GGML file (of chatglm.cpp or an old llama.cpp, say), which is not supported; open the original model';

/** What files of other kinds begin with, as Latin-1, and what a message goes on with after the file's name. */
const BEGINNINGS: readonly (readonly [beginnings: readonly string[], content: string])[] = [
  [['lmgg', 'ggml', 'tjgg', 'ggjt', 'algg', 'ggla', 'fmgg', 'ggmf'], GGML],
  [['GGUF'], 'is a GGUF file; open it by its path'],
  [['FUGG'], 'is a big-endian GGUF file, which is not supported'],
  [['\x89HDF\r\n'], 'holds weights of TensorFlow (HDF5), which are not supported; open the original PyTorch model'],
  [
    ['\x1f\x8b', 'BZh', '\xfd7zXZ', '\x28\xb5\x2f\xfd', '7z\xbc\xaf', 'Rar!'],
    'is a compressed archive; unpack it, and open what is in it',
  ],
  [['\x93NUMPY'], 'is an array of NumPy, which is not supported'],
];
/** Where a tar archive has its magic word. */
const TAR = { at: 257, word: 'ustar' } as const;
/** The producer that an ONNX file names in its first bytes. */
const ONNX = /^.{2,8}(pytorch|onnx|tf2onnx)/s;

/** What the file that begins with these bytes is, where it is of a known other kind. */
export function contentOf(head: Buffer): string | undefined {
  const text = head.toString('latin1');
  const known = BEGINNINGS.find(([beginnings]) => beginnings.some((beginning) => text.startsWith(beginning)));
  if (known !== undefined) return known[1];
  if (text.startsWith(TAR.word, TAR.at)) return 'is a tar archive; unpack it, and open what is in it';
  if (/^\s*<(!doctype|html|\?xml)/i.test(text)) return 'is a web page, not the file; download the file itself';
  if (head[0] === 8 && ONNX.test(text)) return 'is an ONNX model, which is not supported; open the original';
  return undefined;
}

/** What adapter_config.json tells. */
export interface AdapterFacts {
  peftType: unknown;
  base: unknown;
}

/** Why a peft adapter is no model, as a message goes on after the name of its directory. */
export function adapterProblem({ peftType, base }: AdapterFacts): string {
  const kind = peftType === undefined ? 'a peft adapter' : `a peft adapter (${shown(peftType)})`;
  const of = typeof base === 'string' ? `of ${shown(base)}` : 'of a base model';
  return (
    `is ${kind} ${of}, not a model, and adapters are not supported; merge it into its base in Python ` +
    '(merge_and_unload(), then save_pretrained()) and open the result'
  );
}

const TRAINING =
  /^(optimizer|scheduler|rng_state.*|trainer_state|training_args|random_states.*)\.(pt|pth|bin|pkl|json)$/;

/** What a directory without weights of a known name holds, by the names in it; in the order of what tells most. */
const DIRECTORIES: readonly (readonly [pattern: RegExp, problem: string])[] = [
  [/^adapter_model\./, adapterProblem({ peftType: undefined, base: undefined })],
  [/^snapshots$/, 'is a folder of the Hugging Face cache; open the folder within its "snapshots"'],
  [/\.gguf$/i, 'holds GGUF files; open one of them by its path: NAMES'],
  [/ggml.*\.bin$|\.ggml$/i, `holds NAMES, which ${GGML}`],
  [
    /\.(incomplete|aria2|crdownload|part|download)$/,
    'holds a download that is not complete (NAMES); download it again',
  ],
  [
    /^(zero_to_fp32\.py|global_step\d+|.*_optim_states\.pt|zero_pp_rank.*)$/,
    'holds a checkpoint of DeepSpeed, in parts; "python zero_to_fp32.py . pytorch_model.bin" makes a file of weights of them',
  ],
  [
    /^(iter_\d+|latest_checkpointed_iteration\.txt|mp_rank_\d+.*)$/,
    'holds a checkpoint of Megatron, which is not supported; convert it to a Hugging Face directory',
  ],
  [/\.onnx$/, 'holds an ONNX model, which is not supported; open the original'],
  [/^openvino_.*\.(xml|bin)$/, 'holds an OpenVINO model, which is not supported; open the original'],
  [/\.(engine|plan)$|^rank\d+\.safetensors$/, 'holds a model of TensorRT, which is not supported; open the original'],
  [
    /^tf_model.*\.h5$|\.ckpt\.(index|data.*|meta)$|^saved_model\.pb$/,
    'holds weights of TensorFlow, which are not supported; open the original PyTorch model',
  ],
  [
    /\.msgpack$|\.npz$/,
    'holds weights of Flax or MLX (NAMES), which are not supported; open the original PyTorch model',
  ],
  [
    /^(?!.*(optimizer|scheduler|rng_state|training_args)).*\.(pt|pth|ckpt)$/,
    `holds a checkpoint of a training run (NAMES), which is not supported; ${TORCH}`,
  ],
  [TRAINING, `holds the state of a training run, but not the model's weights; ${TORCH}`],
  [/^checkpoint-\d+$/, 'holds the checkpoints of a training run; open one of them: NAMES'],
];

const MOST_NAMES = 5;

/** What a directory that is no model is, where it is of a known kind, as a message goes on after its name. */
export function directoryProblem(names: Iterable<string>): string | undefined {
  const sorted = [...names].sort();
  for (const [pattern, problem] of DIRECTORIES) {
    const matching = sorted.filter((name) => pattern.test(name));
    if (matching.length === 0) continue;
    const listed = matching.slice(0, MOST_NAMES).map(shown).join(', ');
    return problem.replace('NAMES', () => (matching.length > MOST_NAMES ? `${listed}, …` : listed));
  }
  return undefined;
}

const ORIGINAL = 'open the original model; the option quantization, or "chatglm convert", quantizes it';

/** Names of the quantization methods that config.json may give. */
const METHODS: Readonly<Record<string, string>> = {
  gptq: 'GPTQ',
  awq: 'AWQ',
  bitsandbytes: 'bitsandbytes',
  'compressed-tensors': 'compressed-tensors',
  fp8: 'FP8',
  hqq: 'HQQ',
  eetq: 'EETQ',
  aqlm: 'AQLM',
};

/** Why a model of this `quantization_config` cannot be opened. */
export function quantizationProblem(method: unknown): string {
  const key = typeof method === 'string' ? method.toLowerCase() : '';
  const name = Object.hasOwn(METHODS, key) ? METHODS[key] : shown(method);
  return `says that the model is quantized with ${name}, which is not supported; ${ORIGINAL}`;
}

/** What tensors of these names belong to, as a message goes on after the tensor's name. */
const TENSORS: readonly (readonly [pattern: RegExp, problem: string])[] = [
  [
    /\.lora_[AB]\b|\.lora_embedding_[AB]\b|\.lora_magnitude_vector/,
    'belongs to a LoRA adapter, which is not supported; merge it into its base in Python (merge_and_unload(), then save_pretrained()) and open the result',
  ],
  [
    /^base_model\.model\.|\.base_layer\./,
    'was saved from a model with a peft adapter around it; merge it in Python (merge_and_unload(), then save_pretrained()) and open the result',
  ],
  [/^prompt_embeddings$|^prompt_encoder\./, 'belongs to a peft adapter, which is not supported; open its base model'],
  [
    /(^|\.)prefix_encoder\./,
    'belongs to a P-Tuning v2 prefix (P-tuning), which is not supported; open the base model, without the prefix',
  ],
  [/\.(qweight|qzeros|g_idx)$/, `is quantized with GPTQ or AWQ, which is not supported; ${ORIGINAL}`],
  [
    /\.(SCB|weight_format|absmax|nested_absmax|quant_map|nested_quant_map)$|\.quant_state\./,
    `is quantized with bitsandbytes, which is not supported; ${ORIGINAL}`,
  ],
  [/\.(weight_packed|weight_scale_inv|input_scale)$/, `is quantized in a way that is not supported; ${ORIGINAL}`],
  [
    /^(_orig_mod|module)\./,
    'was saved from a wrapper (torch.compile, DataParallel or DeepSpeed); save the model within it',
  ],
];

/** What is wrong with a checkpoint that has a tensor of this name; undefined where nothing tells. */
export function tensorProblem(name: string): string | undefined {
  return TENSORS.find(([pattern]) => pattern.test(name))?.[1];
}
