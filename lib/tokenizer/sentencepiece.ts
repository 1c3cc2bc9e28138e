import { invalid, shown } from '../common/invalid.js';
import type { Work } from '../common/turns.js';
import { PieceType, type TokenizerData } from './data.js';
import { PieceList } from './pieces.js';

const PIECE_LIMIT = 1 << 20;
/** Fields of one message that are no pieces; trainer_spec has the most, some 50. */
const FIELD_LIMIT = 1000;
/** Fields between two looks at the clock. */
const FIELDS_PER_YIELD = 64;

const EMPTY = new Uint8Array(0);

const MODEL_TYPES = ['', 'unigram', 'BPE', 'word', 'character'];
const BPE = 2;

/**
 * Parses the bytes of a tokenizer.model, a protobuf ModelProto of
 * https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. `file` is for messages.
 */
export function* parseSentencePiece(bytes: Uint8Array, file: string): Work<TokenizerData> {
  const pieces = new PieceList(file);
  let count = 0;
  let others = 0;
  let modelType = 1;
  let normalizer: Normalizer = {
    name: '',
    charsmapBytes: 0,
    addDummyPrefix: true,
    removeExtraWhitespaces: true,
    escape: true,
  };
  for (const { number, value } of fields(bytes, file)) {
    if ((count + others) % FIELDS_PER_YIELD === 0) yield;
    if (number === 1) {
      if (++count > PIECE_LIMIT) throw invalid(file, `has more than ${PIECE_LIMIT} pieces`);
      addPiece(message(value, file), pieces, file);
      continue;
    }
    if (++others > FIELD_LIMIT) throw invalid(file, 'is damaged or no SentencePiece model');
    if (number === 2) {
      modelType = parseModelType(message(value, file), file) ?? modelType;
    } else if (number === 3) {
      normalizer = parseNormalizer(message(value, file), normalizer, file);
    }
  }
  if (count === 0) throw invalid(file, 'is no SentencePiece model: it has no pieces');
  if (modelType !== BPE) {
    throw invalid(file, `is a SentencePiece model of type ${MODEL_TYPES[modelType] ?? modelType}; ChatGLM's are BPE`);
  }
  checkNormalizer(normalizer, file);
  return pieces.pack(normalizer.addDummyPrefix);
}

interface Normalizer {
  name: string;
  charsmapBytes: number;
  addDummyPrefix: boolean;
  removeExtraWhitespaces: boolean;
  escape: boolean;
}

/** The tokenizer in C++ does only what the ChatGLM family's models ask for. */
function checkNormalizer(normalizer: Normalizer, file: string): void {
  const refuse = (what: string) => invalid(file, `its normalizer ${what}, which ChatGLM's does not`);
  if (normalizer.charsmapBytes > 0) throw refuse(`rewrites characters (${shown(normalizer.name)})`);
  if (normalizer.name !== '' && normalizer.name !== 'identity') throw refuse(`is ${shown(normalizer.name)}`);
  if (normalizer.removeExtraWhitespaces) throw refuse('removes whitespace');
  if (!normalizer.escape) throw refuse('does not escape whitespace');
}

function addPiece(bytes: Uint8Array, pieces: PieceList, file: string): void {
  let text: Uint8Array = EMPTY;
  let score = 0;
  let type: number = PieceType.normal;
  for (const { number, value } of fields(bytes, file, FIELD_LIMIT)) {
    if (number === 1) text = message(value, file);
    else if (number === 2) score = float(value, file);
    else if (number === 3) type = integer(value, file);
  }
  pieces.add(text, score, type);
}

function parseModelType(trainerSpec: Uint8Array, file: string): number | undefined {
  let type: number | undefined;
  for (const { number, value } of fields(trainerSpec, file, FIELD_LIMIT)) if (number === 3) type = integer(value, file);
  return type;
}

function parseNormalizer(spec: Uint8Array, before: Normalizer, file: string): Normalizer {
  const normalizer = { ...before };
  for (const { number, value } of fields(spec, file, FIELD_LIMIT)) {
    if (number === 1) normalizer.name = Buffer.from(message(value, file)).toString('latin1').slice(0, 40);
    else if (number === 2) normalizer.charsmapBytes = message(value, file).length;
    else if (number === 3) normalizer.addDummyPrefix = integer(value, file) !== 0;
    else if (number === 4) normalizer.removeExtraWhitespaces = integer(value, file) !== 0;
    else if (number === 5) normalizer.escape = integer(value, file) !== 0;
  }
  return normalizer;
}

/** A varint as a number; the bytes of a fixed32, fixed64 or length-delimited field. */
type FieldValue = number | { wire: number; bytes: Uint8Array };

const FIXED64 = 1;
const LENGTH_DELIMITED = 2;
const FIXED32 = 5;

/** The fields of a protobuf message, https://protobuf.dev/programming-guides/encoding. More than `most` are an error. */
function* fields(
  bytes: Uint8Array,
  file: string,
  most = Number.POSITIVE_INFINITY,
): Generator<{ number: number; value: FieldValue }> {
  let at = 0;
  let count = 0;
  const varint = (): number => {
    let value = 0;
    for (let factor = 1; factor < 2 ** 64; factor *= 128) {
      const byte = bytes[at++];
      if (byte === undefined) throw invalid(file, 'is damaged: it ends within a number');
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
    throw invalid(file, 'is damaged: a number has too many digits');
  };
  while (at < bytes.length) {
    const tag = varint();
    const wire = tag % 8;
    const number = Math.floor(tag / 8);
    if (number === 0 || number > 0x1fffffff || ++count > most)
      throw invalid(file, 'is damaged or no SentencePiece model');
    if (wire === 0) {
      yield { number, value: varint() };
      continue;
    }
    if (wire !== FIXED64 && wire !== LENGTH_DELIMITED && wire !== FIXED32) {
      throw invalid(file, 'is damaged or no SentencePiece model');
    }
    const length = wire === FIXED64 ? 8 : wire === FIXED32 ? 4 : varint();
    if (length > bytes.length - at) throw invalid(file, 'is damaged: a field is longer than what holds it');
    yield { number, value: { wire, bytes: bytes.subarray(at, at + length) } };
    at += length;
  }
}

function message(value: FieldValue, file: string): Uint8Array {
  if (typeof value === 'number' || value.wire !== LENGTH_DELIMITED)
    throw invalid(file, 'is damaged: a field has the wrong type');
  return value.bytes;
}

function float(value: FieldValue, file: string): number {
  if (typeof value === 'number' || value.wire !== FIXED32)
    throw invalid(file, 'is damaged: a field has the wrong type');
  return new DataView(value.bytes.buffer, value.bytes.byteOffset, 4).getFloat32(0, true);
}

function integer(value: FieldValue, file: string): number {
  if (typeof value !== 'number') throw invalid(file, 'is damaged: a field has the wrong type');
  return value;
}
