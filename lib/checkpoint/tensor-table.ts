import { familyNamed } from '../families/index.js';
import type { ModelConfig } from './types.js';

/** What a tensor is for: decides how it may be stored, and how a random one is filled. */
export type TensorRole = 'embedding' | 'norm' | 'bias' | 'linear' | 'output';

export interface TensorSpec {
  /** GGUF's name. */
  name: string;
  /** THUDM's name, without the prefix `transformer.` that all of theirs share. */
  thudmName: string;
  /** (rows, columns) or (length) */
  shape: readonly number[];
  role: TensorRole;
}

/**
 * All tensors of a model, in the order of the computation. Names: llama.cpp's gguf-py/gguf/tensor_mapping.py and THUDM's
 * modeling_chatglm.py. The query, key and value rows are one matrix, and so are the gate and up rows of the FFN.
 */
export function tensorLayout(config: ModelConfig): TensorSpec[] {
  const { hiddenSize: hidden, ffnHiddenSize: ffn, vocabSize: vocab } = config;
  const { qkvBias } = familyNamed(config.family).architecture;
  const query = config.heads * config.headSize;
  const queryKeyValue = query + 2 * config.kvGroups * config.headSize;
  const specs: TensorSpec[] = [
    {
      name: 'token_embd.weight',
      thudmName: 'embedding.word_embeddings.weight',
      shape: [vocab, hidden],
      role: 'embedding',
    },
  ];
  for (let layer = 0; layer < config.layers; layer++) {
    const add = (name: string, thudmName: string, shape: readonly number[], role: TensorRole) =>
      specs.push({ name: `blk.${layer}.${name}`, thudmName: `encoder.layers.${layer}.${thudmName}`, shape, role });
    add('attn_norm.weight', 'input_layernorm.weight', [hidden], 'norm');
    add('attn_qkv.weight', 'self_attention.query_key_value.weight', [queryKeyValue, hidden], 'linear');
    if (qkvBias) add('attn_qkv.bias', 'self_attention.query_key_value.bias', [queryKeyValue], 'bias');
    add('attn_output.weight', 'self_attention.dense.weight', [hidden, query], 'linear');
    add('ffn_norm.weight', 'post_attention_layernorm.weight', [hidden], 'norm');
    add('ffn_up.weight', 'mlp.dense_h_to_4h.weight', [2 * ffn, hidden], 'linear');
    add('ffn_down.weight', 'mlp.dense_4h_to_h.weight', [hidden, ffn], 'linear');
  }
  specs.push(
    { name: 'output_norm.weight', thudmName: 'encoder.final_layernorm.weight', shape: [hidden], role: 'norm' },
    { name: 'output.weight', thudmName: 'output_layer.weight', shape: [vocab, hidden], role: 'output' },
  );
  return specs;
}

/** Under tied embeddings the output matrix is the embedding, and the file holds one of them. */
export const EMBEDDING = 'token_embd.weight';
export const OUTPUT = 'output.weight';
