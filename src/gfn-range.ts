// struct kvm_gfn_range, and its checks at the door.

import { halvesOf, integer, object } from './errors.ts';
import type { U64 } from './vm.ts';

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

const GFN_END = 2 ** 52;

function flag(value: unknown, name: string, byDefault: boolean): boolean {
  if (value === undefined) return byDefault;
  if (typeof value !== 'boolean') throw new TypeError(`${name} is ${String(value)}: it must be a boolean`);
  return value;
}

/** The engine's arguments; `arg` in two halves, the selector word as assembly/mmu.ts has it. */
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
  const slot = integer(range.slot, 'slot', 0, 65535);
  const asId = integer(range.asId ?? 0, 'asId', 0, 65535);
  const start = integer(range.start, 'start', 0, GFN_END);
  const end = integer(range.end, 'end', 0, GFN_END);
  const attrFilter = integer(range.attrFilter ?? 0, 'attrFilter', 0, 3);
  const { arg } = range;
  let argLow = 0;
  let argHigh = 0;
  if (arg !== undefined) {
    object(arg, 'arg');
    if (arg.pte !== undefined) argLow = flag(arg.pte.writable, 'arg.pte.writable', true) ? 3 : 1;
    else if (arg.attributes !== undefined) [argLow, argHigh] = halvesOf(arg.attributes, 'arg.attributes');
  }
  const selector =
    attrFilter |
    (flag(range.mayBlock, 'mayBlock', true) ? 4 : 0) |
    (flag(range.onlyPrivate, 'onlyPrivate', false) ? 8 : 0) |
    (flag(range.onlyShared, 'onlyShared', false) ? 16 : 0);
  return { asId, slot, start, end, argLow, argHigh, selector };
}
