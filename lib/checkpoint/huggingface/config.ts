import { basename } from 'node:path';
import { invalid, plainText, shown } from '../../common/invalid.js';
import { familyNamed, type ModelFamily } from '../../families/index.js';
import { quantizationProblem } from '../foreign.js';
import type { ModelConfig } from '../types.js';
import { type FieldNames, validateConfig } from '../validate.js';
import { isObject, type JsonObject } from './json.js';

const FIELD_NAMES: FieldNames = {
  layers: 'num_layers',
  hiddenSize: 'hidden_size',
  heads: 'num_attention_heads',
  kvGroups: 'multi_query_group_num',
  headSize: 'kv_channels',
  ffnHiddenSize: 'ffn_hidden_size',
  vocabSize: 'padded_vocab_size',
  ropeDimension: 'kv_channels',
  contextLength: 'seq_length',
  normEpsilon: 'layernorm_epsilon',
  ropeBase: 'rope_ratio',
  ropeScale: 'rope_ratio',
};

const GLM4_VOCABULARY = 151_552;

/** Settings that change the computation, and the value that all supported models have. */
const FIXED_SETTINGS: Readonly<Record<string, boolean>> = {
  rmsnorm: true,
  post_layer_norm: true,
  add_qkv_bias: true,
  add_bias_linear: false,
  apply_residual_connection_post_layernorm: false,
  multi_query_attention: true,
  original_rope: true,
  interleaved_qkv: false,
};

/**
 * Reads THUDM's config.json (configuration_chatglm.py of chatglm2-6b and chatglm3-6b). `file` is its path.
 */
export function parseHuggingFaceConfig(
  json: JsonObject,
  family: ModelFamily,
  file: string,
  directory: string,
): ModelConfig {
  refuseOtherModels(json, file);
  const number = (name: string): number => {
    const value = json[name];
    if (typeof value !== 'number') throw invalid(file, value === undefined ? `has no ${name}` : `${name} is no number`);
    return value;
  };
  const ropeRatio = json.rope_ratio === undefined || json.rope_ratio === null ? 1 : number('rope_ratio');
  const headSize = number('kv_channels');
  const config: ModelConfig = {
    family,
    name: modelName(json, directory),
    layers: number('num_layers'),
    hiddenSize: number('hidden_size'),
    heads: number('num_attention_heads'),
    kvGroups: number('multi_query_group_num'),
    headSize,
    ffnHiddenSize: number('ffn_hidden_size'),
    vocabSize: number('padded_vocab_size'),
    normEpsilon: number('layernorm_epsilon'),
    ropeDimension: headSize / 2,
    ...familyNamed(family).rotary(ropeRatio),
    contextLength: number('seq_length'),
  };
  validateConfig(config, file, FIELD_NAMES);
  return config;
}

function refuseOtherModels(json: JsonObject, file: string): void {
  const { model_type: type, vocab_size: vocab } = json;
  if (type !== undefined && type !== 'chatglm')
    throw invalid(file, `describes a model of type ${shown(type)}, not a ChatGLM`);
  if ('position_encoding_2d' in json || 'inner_hidden_size' in json || vocab === 130_528 || vocab === 150_528) {
    throw invalid(
      file,
      'describes ChatGLM-6B, the first generation, which is not supported; ChatGLM2-6B and newer are',
    );
  }
  if (vocab === GLM4_VOCABULARY || json.padded_vocab_size === GLM4_VOCABULARY) {
    throw invalid(file, 'describes a GLM-4, which is not supported yet');
  }
  if (json.pre_seq_len !== undefined && json.pre_seq_len !== null) {
    throw invalid(
      file,
      'asks for a P-Tuning v2 prefix (pre_seq_len; P-tuning), which is not supported; open the base model',
    );
  }
  refuseQuantization(json, file);
  for (const [name, supported] of Object.entries(FIXED_SETTINGS)) {
    const value = json[name];
    if (value !== undefined && value !== supported) {
      throw invalid(file, `sets ${name} to ${shown(value)}; only ${supported} is supported`);
    }
  }
}

/** THUDM's own quantization is `quantization_bit`; these are what other tools write. */
function refuseQuantization({ quantization_config: config, quantization }: JsonObject, file: string): void {
  if (isObject(config)) {
    const { quant_method: method, load_in_8bit: in8Bits, load_in_4bit: in4Bits } = config;
    throw invalid(file, quantizationProblem(method ?? (in8Bits || in4Bits ? 'bitsandbytes' : 'an unnamed method')));
  }
  if (isObject(quantization)) throw invalid(file, quantizationProblem('MLX'));
}

function modelName(json: JsonObject, directory: string): string {
  const name = json._name_or_path;
  // Fine-tuned models often carry a path of the machine they were trained on.
  return typeof name === 'string' && /^[\w.-]+\/[\w.-]+$/.test(name) && !name.startsWith('.')
    ? name
    : plainText(basename(directory));
}
