import { invalid, shown } from '../../common/invalid.js';
import type { Work } from '../../common/turns.js';

/** A class or function that a pickle names. It is only ever compared with the few known ones, never looked up. */
export class PickleGlobal {
  constructor(readonly name: string) {}
}

/** What a pickle refers to by a persistent id: for torch, a storage. */
export class PicklePersistent {
  constructor(readonly id: PickleValue) {}
}

/** A tuple. */
export class PickleTuple {
  constructor(readonly items: readonly PickleValue[]) {}
}

/** A dict or an OrderedDict. */
export class PickleDict {
  readonly entries: [key: PickleValue, value: PickleValue][] = [];
}

export class PickleList {
  readonly items: PickleValue[] = [];
}

/** A call that the pickle asks for. The caller of {@link parsePickle} decides what becomes of it. */
export interface PickleCall {
  callee: PickleGlobal;
  args: readonly PickleValue[];
}

/** What a known callee returned, such as a description of a tensor. */
export interface PickleObject {
  readonly kind: string;
}

export type PickleValue =
  | null
  | boolean
  | number
  | string
  | PickleGlobal
  | PicklePersistent
  | PickleTuple
  | PickleDict
  | PickleList
  | PickleObject;

export interface PickleOptions {
  /** For messages. */
  file: string;
  /** Names that GLOBAL may give, as `module name`. Anything else is refused. */
  globals: ReadonlySet<string>;
  /** Stands in for calling `callee`. */
  call(call: PickleCall): PickleValue;
}

/** The pickle of a 6B model has 30 kB and 1,500 memo entries; no sensible one comes near these. */
const STACK_LIMIT = 100_000;
const MEMO_LIMIT = 150_000;
/** Of all values that are ever on the stack. */
const VALUE_LIMIT = 1_000_000;
/** A dict of tensors opens five marks within each other. */
const MARK_LIMIT = 1000;
/** Steps between two looks at the clock. */
const STEPS_PER_YIELD = 256;

/** The opcodes that torch.save writes for a dict of tensors (protocol 2 to 4), Python's pickletools.py. */
const Op = {
  mark: 0x28, // (
  emptyTuple: 0x29, // )
  stop: 0x2e, // .
  binFloat: 0x47, // G
  binInt: 0x4a, // J
  binInt1: 0x4b, // K
  binInt2: 0x4d, // M
  none: 0x4e, // N
  binPersId: 0x51, // Q
  reduce: 0x52, // R
  binString: 0x54, // T
  shortBinString: 0x55, // U
  binUnicode: 0x58, // X
  emptyList: 0x5d, // ]
  append: 0x61, // a
  build: 0x62, // b
  global: 0x63, // c
  appends: 0x65, // e
  binGet: 0x68, // h
  longBinGet: 0x6a, // j
  binPut: 0x71, // q
  longBinPut: 0x72, // r
  setItem: 0x73, // s
  tuple: 0x74, // t
  setItems: 0x75, // u
  emptyDict: 0x7d, // }
  proto: 0x80,
  tuple1: 0x85,
  tuple2: 0x86,
  tuple3: 0x87,
  newTrue: 0x88,
  newFalse: 0x89,
  long1: 0x8a,
  shortBinUnicode: 0x8c,
  stackGlobal: 0x93,
  memoize: 0x94,
  frame: 0x95,
} as const;

/**
 * Reads a pickle without executing anything: a stack machine over plain data in which the only "calls" are those that
 * `options.call` stands in for. Time and memory are bounded by the pickle's length.
 */
export function parsePickle(bytes: Buffer, options: PickleOptions): Work<PickleValue> {
  return new PickleMachine(bytes, options).run();
}

class PickleMachine {
  private at = 0;
  private stack: PickleValue[] = [];
  /** The stacks below each MARK. */
  private readonly below: PickleValue[][] = [];
  private readonly memo = new Map<number, PickleValue>();
  private values = 0;

  constructor(
    private readonly bytes: Buffer,
    private readonly options: PickleOptions,
  ) {}

  *run(): Work<PickleValue> {
    for (let steps = 1; ; steps++) {
      if (steps % STEPS_PER_YIELD === 0) yield;
      const op = this.take(1)[0];
      if (op === Op.stop) return this.pop();
      this.step(op ?? 0);
    }
  }

  private step(op: number): void {
    switch (op) {
      case Op.proto: {
        const version = this.u8();
        if (version < 2 || version > 5) throw this.damaged(`pickle protocol ${version}`);
        return;
      }
      case Op.frame:
        this.take(8);
        return;
      case Op.mark:
        if (this.below.length === MARK_LIMIT) throw this.damaged('a pickle that nests too deep');
        this.below.push(this.stack);
        this.stack = [];
        return;
      case Op.none:
        this.push(null);
        return;
      case Op.newTrue:
        this.push(true);
        return;
      case Op.newFalse:
        this.push(false);
        return;
      case Op.binInt:
        this.push(this.take(4).readInt32LE(0));
        return;
      case Op.binInt1:
        this.push(this.u8());
        return;
      case Op.binInt2:
        this.push(this.take(2).readUInt16LE(0));
        return;
      case Op.long1:
        this.push(this.long());
        return;
      case Op.binFloat:
        this.push(this.take(8).readDoubleBE(0));
        return;
      case Op.binUnicode:
      case Op.binString:
        this.push(this.text(this.u32()));
        return;
      case Op.shortBinUnicode:
      case Op.shortBinString:
        this.push(this.text(this.u8()));
        return;
      case Op.emptyTuple:
        this.push(new PickleTuple([]));
        return;
      case Op.tuple1:
        this.push(new PickleTuple(this.popMany(1)));
        return;
      case Op.tuple2:
        this.push(new PickleTuple(this.popMany(2)));
        return;
      case Op.tuple3:
        this.push(new PickleTuple(this.popMany(3)));
        return;
      case Op.tuple:
        this.push(new PickleTuple(this.popToMark()));
        return;
      case Op.emptyList:
        this.push(new PickleList());
        return;
      case Op.append:
        this.append(this.popMany(1));
        return;
      case Op.appends:
        this.append(this.popToMark());
        return;
      case Op.emptyDict:
        this.push(new PickleDict());
        return;
      case Op.setItem:
        this.setItems(this.popMany(2));
        return;
      case Op.setItems:
        this.setItems(this.popToMark());
        return;
      case Op.binPut:
        this.remember(this.u8());
        return;
      case Op.longBinPut:
        this.remember(this.u32());
        return;
      case Op.memoize:
        this.remember(this.memo.size);
        return;
      case Op.binGet:
        this.push(this.recall(this.u8()));
        return;
      case Op.longBinGet:
        this.push(this.recall(this.u32()));
        return;
      case Op.global:
        this.pushGlobal(`${this.line()} ${this.line()}`);
        return;
      case Op.stackGlobal: {
        const [module, name] = this.popMany(2);
        this.pushGlobal(`${typeof module === 'string' ? module : '?'} ${typeof name === 'string' ? name : '?'}`);
        return;
      }
      case Op.binPersId:
        this.push(new PicklePersistent(this.pop()));
        return;
      case Op.reduce:
        this.reduce();
        return;
      case Op.build:
        // The state of an OrderedDict (torch's _metadata). Nothing here needs it.
        this.pop();
        if (!(this.stack.at(-1) instanceof PickleDict)) throw this.damaged('state for something that is no dict');
        return;
      default:
        throw this.damaged(`the pickle opcode 0x${op.toString(16).padStart(2, '0')}`);
    }
  }

  private reduce(): void {
    const [callee, args] = this.popMany(2);
    if (!(callee instanceof PickleGlobal) || !(args instanceof PickleTuple))
      throw this.damaged('a call of no function');
    this.push(this.options.call({ callee, args: args.items }));
  }

  private pushGlobal(name: string): void {
    if (!this.options.globals.has(name)) {
      const shownName = shown(name.replace(' ', '.'));
      throw invalid(this.options.file, `its pickle wants ${shownName}, which a file of weights has no use for`, {
        global: shownName,
      });
    }
    this.push(new PickleGlobal(name));
  }

  private append(items: PickleValue[]): void {
    const list = this.stack.at(-1);
    if (!(list instanceof PickleList)) throw this.damaged('list items without a list');
    for (const item of items) list.items.push(item);
  }

  private setItems(items: PickleValue[]): void {
    const dict = this.stack.at(-1);
    if (!(dict instanceof PickleDict) || items.length % 2 !== 0) throw this.damaged('dict items without a dict');
    for (let i = 0; i < items.length; i += 2) dict.entries.push([items[i] ?? null, items[i + 1] ?? null]);
  }

  private remember(index: number): void {
    if (this.memo.size === MEMO_LIMIT) throw this.damaged('too many memo entries');
    const value = this.stack.at(-1);
    if (value === undefined) throw this.damaged('a memo of nothing');
    this.memo.set(index, value);
  }

  private recall(index: number): PickleValue {
    const value = this.memo.get(index);
    if (value === undefined) throw this.damaged('a memo entry that is not there');
    return value;
  }

  private push(value: PickleValue): void {
    // Counts what was ever pushed rather than what is: a list may outlive its place on the stack.
    if (++this.values > VALUE_LIMIT || this.stack.length === STACK_LIMIT) throw this.damaged('too many values');
    this.stack.push(value);
  }

  private pop(): PickleValue {
    const value = this.stack.pop();
    if (value === undefined) throw this.damaged('an empty stack');
    return value;
  }

  private popMany(count: number): PickleValue[] {
    if (this.stack.length < count) throw this.damaged('an empty stack');
    return this.stack.splice(this.stack.length - count);
  }

  private popToMark(): PickleValue[] {
    const items = this.stack;
    const below = this.below.pop();
    if (below === undefined) throw this.damaged('a missing mark');
    this.stack = below;
    return items;
  }

  private take(length: number): Buffer {
    if (length > this.bytes.length - this.at) throw invalid(this.options.file, 'is damaged: its pickle ends too early');
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }

  private u8(): number {
    return this.take(1).readUInt8(0);
  }

  private u32(): number {
    return this.take(4).readUInt32LE(0);
  }

  /** A signed integer of up to eight bytes. */
  private long(): number {
    const length = this.u8();
    if (length > 8) throw this.damaged('an integer that is too large');
    const value = length === 0 ? 0 : Number(BigInt.asIntN(8 * length, this.littleEndian(length)));
    if (!Number.isSafeInteger(value)) throw this.damaged('an integer that is too large');
    return value;
  }

  private littleEndian(length: number): bigint {
    return this.take(length).reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
  }

  private text(length: number): string {
    return this.take(length).toString('utf8');
  }

  private line(): string {
    const end = this.bytes.indexOf(0x0a, this.at);
    if (end < 0) throw this.damaged('a name without an end');
    const text = this.text(end - this.at);
    this.at = end + 1;
    return text;
  }

  private damaged(what: string) {
    return invalid(this.options.file, `is damaged or holds more than tensors: its pickle has ${what}`);
  }
}
