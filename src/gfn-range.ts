// struct kvm_gfn_range, and its checks at the door.

import { flag, halvesOf, integer, object, type U64 } from './errors.ts';

/** A range of gfns of one memslot, and what it is for. The filter form of the VM says which selectors it reads. */
export interface KvmGfnRange {
  /** Id of the memslot. */
  slot: number;
  /** Address space; default 0. */
  asId?: number;
  /** First gfn. */
  start: number;
  /** First gfn behind the range. */
  end: number;
  /** The union `arg`: attributes (8 = private) of a conversion, or the new host pte of set_spte. */
  arg?: { attributes?: U64; pte?: { writable: boolean } };
  /** May the walk yield? Default true. */
  mayBlock?: boolean;
  onlyPrivate?: boolean;
  onlyShared?: boolean;
  /** KVM_FILTER_SHARED 1, KVM_FILTER_PRIVATE 2; 0 is kept as 0. */
  attrFilter?: number;
}

/** Ranges of one length in one memslot, each a call of its own, made one after the other. */
export interface KvmGfnRanges extends Omit<KvmGfnRange, 'start' | 'end'> {
  /** First gfn of each. */
  starts: Float64Array;
  /** Length of each, in gfns. */
  npages: number;
  /** gfns, one for each range: what a walk for it ends at is read right after that range was done. */
  look?: Float64Array;
  /** Whose walk that is; default: a TD's mirror root, elsewhere the direct one. */
  root?: 'direct' | 'mirror';
  /** Arrays to put the results into, of one length with `starts`, instead of new ones: for calls made over and over. */
  into?: { leafs: Float64Array; sptes?: Uint32Array };
}

/** What unmapGfnRanges() and ageGfnRanges() did. */
export interface GfnRangesResult {
  /** Leaves zapped, or found young and aged, by each range. */
  leafs: Float64Array;
  /** What the single call would have returned, for any of them: a flush is asked for, a leaf was young. */
  any: boolean;
  /** For each gfn of `look` what sptes() would give; empty without. */
  sptes: Uint32Array;
}

const GFN_END = 2 ** 52;

/** The engine's arguments; `arg` in two halves, the selector word as assembly/vendor.ts has it. */
export interface RangeArguments {
  asId: number;
  slot: number;
  start: number;
  end: number;
  argLow: number;
  argHigh: number;
  selector: number;
}

/**
 * Checks a range and takes it apart.
 * @throws {TypeError | RangeError} a gfn that is no integer, negative or above 2^52, a filter beyond 3
 */
export function rangeArguments(range: KvmGfnRange): RangeArguments {
  object(range, 'range');
  return argumentsOf(range, range.start, range.end);
}

function argumentsOf(range: Omit<KvmGfnRange, 'start' | 'end'>, first: number, behind: number): RangeArguments {
  const slot = integer(range.slot, 'slot', 0, 65535);
  const asId = integer(range.asId ?? 0, 'asId', 0, 65535);
  const start = integer(first, 'start', 0, GFN_END);
  const end = integer(behind, 'end', 0, GFN_END);
  const arg = range.arg === undefined ? NO_ARG : halvesOfArg(range.arg);
  const isUsual =
    range.attrFilter === undefined &&
    range.mayBlock === undefined &&
    range.onlyPrivate === undefined &&
    range.onlyShared === undefined;
  const selector = isUsual ? MAY_BLOCK : selectorOf(range);
  return { asId, slot, start, end, argLow: arg.low, argHigh: arg.high, selector };
}

// What few calls have stands apart: V8 inlines what is short where it is called.
const MAY_BLOCK = 4;
function selectorOf(range: Omit<KvmGfnRange, 'start' | 'end'>): number {
  return (
    integer(range.attrFilter ?? 0, 'attrFilter', 0, 3) |
    (flag(range.mayBlock, 'mayBlock', true) ? MAY_BLOCK : 0) |
    (flag(range.onlyPrivate, 'onlyPrivate', false) ? 8 : 0) |
    (flag(range.onlyShared, 'onlyShared', false) ? 16 : 0)
  );
}
const NO_ARG = { low: 0, high: 0 };
function halvesOfArg(arg: NonNullable<KvmGfnRange['arg']>): { low: number; high: number } {
  object(arg, 'arg');
  if (arg.pte !== undefined) return { low: flag(arg.pte.writable, 'arg.pte.writable', true) ? 3 : 1, high: 0 };
  if (arg.attributes === undefined) return NO_ARG;
  const [low, high] = halvesOf(arg.attributes, 'arg.attributes');
  return { low, high };
}

type TypedArrayOf = typeof Float64Array | typeof Uint32Array;
function arrayOf(value: unknown, name: string, kind: TypedArrayOf, length?: number): void {
  if (!(value instanceof kind)) throw new TypeError(`${name} must be a ${kind.name}`);
  if (length !== undefined && value.length !== length) {
    throw new RangeError(`${name} has ${value.length} elements: it must have one for each of the ${length} ranges`);
  }
}

/**
 * As rangeArguments(), of all but the gfns themselves, which the engine checks.
 * @throws {TypeError | RangeError} arrays that are none, or not of one length; npages that is no integer from 1 on
 */
export function rangesArguments(ranges: KvmGfnRanges): RangeArguments {
  object(ranges, 'ranges');
  const { starts, look, into } = ranges;
  arrayOf(starts, 'starts', Float64Array);
  const { length } = starts;
  const npages = integer(ranges.npages, 'npages', 1, GFN_END);
  if (look !== undefined) arrayOf(look, 'look', Float64Array, length);
  if (into !== undefined) {
    object(into, 'into');
    arrayOf(into.leafs, 'into.leafs', Float64Array, length);
    if (look !== undefined) arrayOf(into.sptes, 'into.sptes', Uint32Array, length);
  }
  return argumentsOf(ranges, 0, npages);
}
